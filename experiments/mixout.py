"""Mixout: how its checkpoint is trained, and what it does beside dropout and weight decay.

First on digits, as in the paper's study: a perceptron, pretrained on images in place, is fine-tuned on 60 that are shifted
by one pixel, with dropout or mixout of several probabilities. Then as the paper's experiments with BERT: the small one of
this catalog is fine-tuned on two small tasks of texts, many times with other seeds, which draw the head, the order of
examples and all masks; the training examples are the same.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import zoo
from zoo.datasets import docstrings, load_arrays
from zoo.datasets.docstring_packages import CLASSES, names_package
from zoo.experiments import image_classifiers
from zoo.experiments.report import Ledger, Progress, mean_and_std, shows, spread, write_results
from zoo.language.pretraining_data import HELD_OUT_SEED
from zoo.language.text_encoder import EVALUATION_BATCH, TextEncoder
from zoo.language.tokenizers import encode_pairs
from zoo.model import Arrays
from zoo.sequence.tokenizer import load_tokenizer
from zoo.training.mixout import Mixout, MixoutClassifier, ReferenceDecay, perceptron
from zoo.training.optimizers import decay_kernels_only
from zoo.training.recipe import Recipe, TrainingData
from zoo.training.schedules import WarmupLinearDecay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIGITS, LEARNING_RATE, BATCH = "digits", 1e-3, 32
# Images to pretrain on, in the experiment, and to fine-tune on
NUM_PRETRAINING, NUM_TUNING = 900, 60
STEPS_PER_EPOCH, PRETRAINING_EPOCHS, TUNING_EPOCHS = 100, 18, 6


def shifted(images: np.ndarray) -> np.ndarray:
    """Returns images `(number, height, width, ...)` moved to the right by one pixel; what comes in is black."""
    moved = np.zeros_like(images)
    moved[:, :, 1:] = images[:, :, :-1]
    return moved


# === Recipe ===


class ReferenceAt(keras.callbacks.Callback):
    """Draws a `Mixout` model, from an epoch on, to the weights that it has then.

    Args:
        epoch: int. Counted from 0.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the reference."""
        if epoch == self.epoch:
            self.model.set_reference()


def data(model: MixoutClassifier, dataset: str, seed: int) -> TrainingData:
    """Returns batches of training images, then of a few shifted validation images; the other ones validate."""
    train, held_out = load_arrays(dataset, "train"), load_arrays(dataset, "validation")
    tuning, validation = _tuning_order(len(held_out["label"]))
    images = model.preprocess(shifted(held_out["image"]))
    first = _batches(model.preprocess(train["image"]), train["label"], seed).take(PRETRAINING_EPOCHS * STEPS_PER_EPOCH)
    then = _batches(images[tuning], held_out["label"][tuning], seed)
    judged = tf.data.Dataset.from_tensor_slices((images[validation], held_out["label"][validation]))
    return TrainingData(first.concatenate(then), judged.batch(len(validation)))


def _tuning_order(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which validation images fine-tune and which validate."""
    order = np.random.default_rng(0).permutation(count)
    return order[:NUM_TUNING], order[NUM_TUNING:]


def _batches(images: np.ndarray, labels: np.ndarray, seed: int) -> tf.data.Dataset:
    slices = tf.data.Dataset.from_tensor_slices((images, labels))
    return slices.shuffle(len(labels), seed=seed).repeat().batch(BATCH, drop_remainder=True)


def compile_model(model: keras.Model, num_updates: int, steps_per_execution: int = 1) -> None:
    """Compiles a classifier with Adam; its learning rate is constant, whatever the number of updates."""
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
        # XLA takes longer to compile these small dense graphs than it saves on a CPU
        jit_compile=False,
    )


def evaluate(model: MixoutClassifier, dataset: str, split: str) -> dict[str, float]:
    """Returns the accuracy on a split's images, and on the shifted ones that were not trained on."""
    arrays = load_arrays(dataset, split)
    chosen = _tuning_order(len(arrays["label"]))[1] if split == "validation" else slice(None)
    logits = model.run("predict", image=model.preprocess(shifted(arrays["image"][chosen])))["logits"]
    hits = logits.argmax(axis=1) == arrays["label"][chosen]
    return {**image_classifiers.evaluate(model, dataset, split), "shifted_accuracy": float(np.mean(hits))}


RECIPES = {
    DIGITS: Recipe(
        method="mixout",
        preset=DIGITS,
        dataset=DIGITS,
        epochs=PRETRAINING_EPOCHS + TUNING_EPOCHS,
        steps_per_epoch=STEPS_PER_EPOCH,
        data=data,
        compile=compile_model,
        evaluate=evaluate,
        monitor="val_loss",
        callbacks=lambda data: [ReferenceAt(PRETRAINING_EPOCHS)],
    )
}


# === Experiment ===

CLAIM = (
    "Fine-tuning with mixout stays nearer to the pretrained weights the larger its probability, and does not collapse where "
    "dropout does (paper, section 4). On small tasks it raises the mean score of a pretrained language model over random "
    "restarts, and fewer of them fail, beside dropout and weight decay, to zero or to the pretrained weights (section 5)."
)
BEFORE, NONE = "before fine-tuning", "none"
PROBABILITIES = (0.1, 0.5, 0.7, 0.9)
UNITS, INPUT_SHAPE, PIXEL_MAXIMUM = (64, 32), (8, 8, 1), 16
PRETRAINING_UPDATES = PRETRAINING_EPOCHS * STEPS_PER_EPOCH
MEASURES = ("target_accuracy", "source_accuracy", "squared_distance")
# What counts as the same accuracy at all probabilities, and as a collapse
SAME, COLLAPSE = 0.03, 0.1

TEXT_BATCH, TEXT_RATE, WARMUP, DECAY = 16, 5e-4, 0.1, 0.01
PLAIN, PULLED = "plain", "decay to pretrained"
TEXT_PROBABILITIES = (0.3, 0.6, 0.9)
TEXT_ARMS = (PLAIN, "weight decay", "dropout", PULLED, *(f"mixout {p}" for p in TEXT_PROBABILITIES))
BASELINES = TEXT_ARMS[:4]
# A new head has no pretrained weights
HEAD = ("^head",)


def _arm(technique: str, probability: float) -> str:
    return f"{technique} {probability}"


def reproduce(
    directory: Path,
    seeds: int = 10,
    updates: int = 600,
    text_updates: int = 150,
    weights: str | Path | None = "default",
    network: Mapping[str, Any] | None = None,
    progress: Progress = lambda message: None,
) -> None:
    """Fine-tunes all arms with every seed and writes `mixout.json`, `mixout.png` and `mixout_texts.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Updates of a run on digits.
        text_updates: int. Updates of a run on texts.
        weights: pretrained weights of BERT, see `zoo.get`.
        network: mapping or None. Constructor arguments of BERT that differ from the preset's.
        progress: callable that takes one line per run.
    """
    # Beside the weights, which cannot be written down
    settings = {"updates": updates, "text_updates": text_updates, "encoder": "bert", **(network or {})}
    ledger = Ledger(directory / "mixout.runs.json", settings)
    for seed in range(seeds):
        ledger.run(BEFORE, seed, lambda seed=seed: judge_digits(pretrained(seed), seed), progress)
        ledger.run(NONE, seed, lambda seed=seed: tune_digits(NONE, 0.0, seed, updates), progress)
        for technique in ("dropout", "mixout"):
            for probability in PROBABILITIES:
                arm = _arm(technique, probability)
                ledger.run(f"digits, {arm}", seed, _digits_run(technique, probability, seed, updates), progress)
    source = functools.cache(lambda: text_model(weights, network or {}))
    for name in TASKS:
        for seed in range(seeds):
            for arm in TEXT_ARMS:
                run = functools.partial(_text_run, source, name, arm, seed, text_updates)
                ledger.run(f"{name}, {arm}", seed, run, progress)
    write_results(
        "mixout",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce mixout --seeds {seeds} --updates {updates}",
        tables=_tables(ledger),
        figure=_draw_digits(ledger),
        more_figures={"texts": _draw_texts(ledger)},
        settings={**settings, "seeds": seeds, "tuning_images": NUM_TUNING, "texts": {t: NUM_TEXTS[t] for t in TASKS}},
    )


def _tables(ledger: Ledger) -> dict[str, Any]:
    digits = [BEFORE, NONE, *(f"digits, {_arm(t, p)}" for t in ("dropout", "mixout") for p in PROBABILITIES)]
    return {
        **{
            f"digits_{key}": {
                arm: mean_and_std(ledger.values(arm, key)) for arm in digits if arm != BEFORE or "acc" in key
            }
            for key in MEASURES
        },
        **{
            f"{key}_of_{name}": {arm: mean_and_std(ledger.values(f"{name}, {arm}", key)) for arm in TEXT_ARMS}
            for name in TASKS
            for key in ("accuracy", "squared_distance")
        },
        "lowest_accuracy": {
            name: {arm: min(ledger.values(f"{name}, {arm}", "accuracy")) for arm in TEXT_ARMS} for name in TASKS
        },
        "degenerate_runs": {name: {arm: _degenerate(ledger, name, arm) for arm in TEXT_ARMS} for name in TASKS},
        "accuracy_per_seed": {
            name: {arm: ledger.values(f"{name}, {arm}", "accuracy") for arm in TEXT_ARMS} for name in TASKS
        },
    }


# === Digits ===


class Digits(NamedTuple):
    """Images in [0, 1] with labels: to pretrain and to fine-tune on, and held out, all in place."""

    pretraining: tuple[np.ndarray, np.ndarray]
    tuning: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]


@functools.lru_cache(maxsize=2)
def load_digits(seed: int) -> Digits:
    """Returns the images of a seed: two parts of the train split, and both other splits together."""
    train, *others = (load_arrays(DIGITS, split) for split in ("train", "validation", "test"))
    order = np.random.default_rng(seed).permutation(len(train["label"]))
    chosen = order[:NUM_PRETRAINING], order[NUM_PRETRAINING : NUM_PRETRAINING + NUM_TUNING]
    held_out = {name: np.concatenate([part[name] for part in others]) for name in train}
    parts = [{name: array[rows] for name, array in train.items()} for rows in chosen]
    return Digits(*((_scaled(part["image"]), part["label"]) for part in (*parts, held_out)))


def _scaled(images: np.ndarray) -> np.ndarray:
    return images[..., None].astype("float32") / PIXEL_MAXIMUM


@functools.lru_cache(maxsize=2)
def pretrained(seed: int) -> keras.Sequential:
    """Returns the network of a seed, pretrained on images in place; it must be copied before it is trained."""
    keras.utils.set_random_seed(seed)
    network = perceptron(UNITS, 10, INPUT_SHAPE)
    _fit(network, load_digits(seed).pretraining, seed, PRETRAINING_UPDATES)
    return network


def _fit(model: keras.Model, examples: tuple[np.ndarray, np.ndarray], seed: int, updates: int) -> None:
    compile_model(model, updates, steps_per_execution=min(updates, 50))
    model.fit(_batches(*examples, seed), steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)


def _digits_run(technique: str, probability: float, seed: int, updates: int) -> Any:
    return lambda: tune_digits(technique, probability, seed, updates)


def tune_digits(technique: str, probability: float, seed: int, updates: int) -> dict[str, float]:
    """Fine-tunes a pretrained network on shifted images.

    Args:
        technique: str. `"none"`, `"dropout"` or `"mixout"`, of the second and third layer.
        probability: float.
        seed: int.
        updates: int.

    Returns:
        Dict of `MEASURES`.
    """
    before = pretrained(seed)
    network = copy_with_dropout(before, probability if technique == "dropout" else 0.0)
    keras.utils.set_random_seed(seed)
    model = Mixout(network, probability, exclude=["^hidden_0$"]) if technique == "mixout" else network
    images, labels = load_digits(seed).tuning
    _fit(model, (shifted(images), labels), seed, updates)
    pairs = zip(before.weights, network.weights, strict=True)
    moved = [float(np.sum((u.numpy() - w.numpy()) ** 2)) for u, w in pairs if w.name == "kernel"]
    return {**judge_digits(network, seed), "squared_distance": sum(moved[1:])}


def copy_with_dropout(network: keras.Sequential, rate: float) -> keras.Sequential:
    """Returns a copy of a perceptron that drops inputs of all dense layers but the first."""
    layers: list[keras.layers.Layer] = []
    for layer in network.layers:
        if layer.name not in ("flatten", "hidden_0") and rate:
            layers.append(keras.layers.Dropout(rate))
        layers.append(type(layer).from_config(layer.get_config()))
    copy = keras.Sequential([keras.Input(INPUT_SHAPE), *layers])
    copy.set_weights(network.get_weights())
    return copy


def judge_digits(network: keras.Model, seed: int) -> dict[str, float]:
    """Returns the accuracy on held-out images, shifted (target) and in place (source)."""
    images, labels = load_digits(seed).held_out
    return {
        f"{name}_accuracy": float(np.mean(np.argmax(network(each, training=False), axis=1) == labels))
        for name, each in (("target", shifted(images)), ("source", images))
    }


# === Texts ===

# A line is a sentence or a part of one; shorter ones are names and types
LEAST_WORDS = 6
LINES, TOPICS = "package of a line", "topic of an article"
LENGTHS = {LINES: 32, TOPICS: 48}
NUM_CLASSES = {LINES: len(CLASSES), TOPICS: 12}
# Examples of the train and of the test split
NUM_TEXTS = {LINES: (200, 400), TOPICS: (600, 311)}


def text_model(weights: str | Path | None, network: Mapping[str, Any]) -> TextEncoder:
    """Returns the pretrained BERT, with the tokenizer of `docstrings`."""
    model = zoo.get("bert", weights=weights, **network)
    model.set_assets({"tokenizer.json": docstrings.tokenizer_json()})
    return model


@functools.cache
def text_examples(name: str, split: str) -> tuple[Arrays, np.ndarray]:
    """Returns the inputs and labels of a task's split, the same ones each time.

    Args:
        name: str. One of `TASKS`.
        split: str. `"train"` or `"test"`.
    """
    return TASKS[name](split, NUM_TEXTS[name][split == "test"], LENGTHS[name])


def package_lines(split: str, count: int, length: int) -> tuple[Arrays, np.ndarray]:
    """Returns lines of docstrings that name no package, as many of each package, and which one they are of."""
    documents, rng = load_arrays("docstring_packages", split), np.random.default_rng(HELD_OUT_SEED)
    lines: dict[str, dict[str, None]] = {package: {} for package in CLASSES}
    for text, package in zip(documents["text"], documents["label"], strict=True):
        for line in text.split("\n"):
            if len(line.split()) >= LEAST_WORDS and not names_package(line):
                lines[package][line] = None
    each = count // len(CLASSES)
    chosen = [line for package in CLASSES for line in rng.permutation(sorted(lines[package]))[:each].tolist()]
    labels = np.repeat(np.arange(len(CLASSES), dtype="int32"), each)
    inputs = encode_pairs(load_tokenizer(docstrings.tokenizer_json()), chosen, None, length, truncate=True)
    return inputs, labels


def article_topics(split: str, count: int, length: int) -> tuple[Arrays, np.ndarray]:
    """Returns beginnings of Wikipedia articles, and which of twelve topics each is of."""
    articles, rng = load_arrays("wikipedia_mentions", split), np.random.default_rng(HELD_OUT_SEED)
    topics = np.unique(load_arrays("wikipedia_mentions", "train")["topic"])
    chosen = rng.permutation(len(articles["topic"]))[:count]
    tokenizer = load_tokenizer(docstrings.tokenizer_json())
    inputs = encode_pairs(tokenizer, articles["text"][chosen].tolist(), None, length, truncate=True)
    return inputs, np.searchsorted(topics, articles["topic"][chosen]).astype("int32")


TASKS = {LINES: package_lines, TOPICS: article_topics}


def _text_run(source: Any, name: str, arm: str, seed: int, updates: int) -> dict[str, float]:
    return tune_texts(source(), name, arm, seed, updates)


def tune_texts(source: TextEncoder, name: str, arm: str, seed: int, updates: int) -> dict[str, float]:
    """Fine-tunes a pretrained encoder on a task.

    Args:
        source: `TextEncoder`.
        name: str. One of `TASKS`.
        arm: str. One of `TEXT_ARMS`.
        seed: int.
        updates: int.

    Returns:
        Dict of `accuracy` and `chance`, the share of the most frequent class, on test examples, and of the
        `squared_distance` of the weights that mixout mixes.
    """
    keras.utils.set_random_seed(seed)
    dropout = {"dropout": 0.1, "attention_dropout": 0.1} if arm == "dropout" else {}
    model = source.with_head("classification", num_classes=NUM_CLASSES[name], sequence_length=LENGTHS[name], **dropout)
    train, (inputs, labels) = (text_examples(name, split) for split in ("train", "test"))
    before = Mixout(model, exclude=HEAD)
    trained = wrapped(model, arm)
    schedule = WarmupLinearDecay(TEXT_RATE, int(WARMUP * updates), updates)
    # Beside Adam's own step, since a penalty would undo all that the examples do not read
    decay = DECAY if arm == "weight decay" else None
    optimizer = keras.optimizers.Adam(schedule, weight_decay=decay, global_clipnorm=1.0)
    trained.compile(decay_kernels_only(optimizer) if decay else optimizer, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[1]), seed=seed).repeat().batch(TEXT_BATCH)
    trained.fit(batches, steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)
    rows = [slice(start, start + EVALUATION_BATCH) for start in range(0, len(labels), EVALUATION_BATCH)]
    # Not compiled, which would take longer than it saves
    logits = [model({key: array[part] for key, array in inputs.items()}, training=False) for part in rows]
    return {
        "accuracy": float(np.mean(np.argmax(np.concatenate(logits), axis=1) == labels)),
        "chance": float(np.bincount(labels).max() / len(labels)),
        "test_examples": len(labels),
        "squared_distance": sum(before.squared_distances().values()),
    }


def wrapped(model: keras.Model, arm: str) -> keras.Model:
    """Returns a model as an arm trains it; the model itself where only its arguments or the optimiser differ."""
    if arm == PULLED:
        return ReferenceDecay(model, DECAY, exclude=HEAD)
    technique, _, probability = arm.partition(" ")
    return Mixout(model, float(probability), exclude=HEAD) if technique == "mixout" else model


def _degenerate(ledger: Ledger, name: str, arm: str) -> int:
    """Returns how many runs are no better than the most frequent class, by two standard errors."""
    runs = ledger.content["runs"][f"{name}, {arm}"].values()
    return sum(run["accuracy"] <= run["chance"] + _two_errors(run["chance"], run["test_examples"]) for run in runs)


def _two_errors(share: float, count: int) -> float:
    return 2 * (share * (1 - share) / count) ** 0.5


# === Verdict ===


def verdict(ledger: Ledger) -> str:
    """Says what the numbers of all runs show."""
    parts = _digits_parts(ledger)
    for name in TASKS:
        parts |= _text_parts(ledger, name)
    means = {
        name: ", ".join(f"{arm} {spread(ledger.values(f'{name}, {arm}', 'accuracy'))}" for arm in TEXT_ARMS)
        for name in TASKS
    }
    return f"{shows(parts)} " + " ".join(f"Accuracy on '{name}': {text}." for name, text in means.items())


def _means(ledger: Ledger, technique: str, key: str) -> list[float]:
    """Returns the means at probability 0 and at `PROBABILITIES`."""
    arms = [NONE, *(f"digits, {_arm(technique, p)}" for p in PROBABILITIES)]
    return [statistics.fmean(ledger.values(arm, key)) for arm in arms]


def _digits_parts(ledger: Ledger) -> dict[str, bool]:
    distances = _means(ledger, "mixout", "squared_distance")
    ours, theirs = (_means(ledger, technique, "target_accuracy") for technique in ("mixout", "dropout"))
    highest = f"digits, {_arm('mixout', PROBABILITIES[-1])}"
    kept = _gain(ledger, NONE, highest, "source_accuracy")
    falling = all(after < before for before, after in itertools.pairwise(distances))
    return {
        f"on digits the squared distance to the pretrained weights falls with mixout's probability at every step, from "
        f"{distances[0]:.2f} to {distances[-1]:.2f}": falling,
        f"mixout's accuracy depends little on it ({min(ours):.3f} to {max(ours):.3f})": max(ours) - min(ours) <= SAME,
        f"dropout's collapses ({theirs[0]:.3f} without, {theirs[-1]:.3f} at {PROBABILITIES[-1]})": theirs[0]
        - theirs[-1]
        >= COLLAPSE,
        f"mixout at {PROBABILITIES[-1]} forgets less (images in place: {kept['mean']:+.3f} ± {kept['error']:.3f})": kept[
            "mean"
        ]
        > 2 * kept["error"],
    }


def _gain(ledger: Ledger, base: str, arm: str, key: str) -> dict[str, float]:
    """Returns the mean over seeds of `arm - base`, and its standard error."""
    pairs = [b - a for a, b in zip(ledger.values(base, key), ledger.values(arm, key), strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("inf")
    return {"mean": statistics.fmean(pairs), "error": error}


def _text_parts(ledger: Ledger, name: str) -> dict[str, bool]:
    """Returns whether the best mixout is better than each baseline, and fails less often than plain fine-tuning."""
    accuracies = {arm: ledger.values(f"{name}, {arm}", "accuracy") for arm in TEXT_ARMS}
    best = max(TEXT_ARMS[len(BASELINES) :], key=lambda arm: statistics.fmean(accuracies[arm]))
    parts = {}
    for arm in BASELINES:
        gain = _gain(ledger, f"{name}, {arm}", f"{name}, {best}", "accuracy")
        text = f"on '{name}' {best}, the best one, beats {arm} ({spread(accuracies[best])} against {spread(accuracies[arm])})"
        parts[text] = gain["mean"] > 2 * gain["error"]
    failed, plain = (_degenerate(ledger, name, arm) for arm in (best, PLAIN))
    return {
        **parts,
        f"on '{name}' fewer of its runs fail than of plain ones ({failed} against {plain})": failed < plain,
    }


# === Figures ===


def _draw_digits(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    accuracies, distances = figure.subplots(1, 2)
    for technique, color in (("dropout", "tab:orange"), ("mixout", "tab:blue")):
        _draw_line(accuracies, ledger, technique, "target_accuracy", f"{technique}, shifted images", color, "-")
        _draw_line(accuracies, ledger, technique, "source_accuracy", f"{technique}, images in place", color, ":")
        _draw_line(distances, ledger, technique, "squared_distance", technique, color, "-")
    accuracies.set(
        xlabel="probability of dropout or mixout",
        ylabel="accuracy on held-out images",
        ylim=(0, 1),
        title=f"Fine-tuned on {NUM_TUNING} shifted digits",
    )
    distances.set(
        xlabel="probability of dropout or mixout",
        ylabel="|w - u|² of the second and third layer",
        yscale="log",
        title="Distance from the pretrained weights",
    )
    for axes in (accuracies, distances):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.supxlabel("means and standard deviations of seeds", fontsize=8)
    return figure


def _draw_line(axes: Axes, ledger: Ledger, technique: str, key: str, label: str, color: str, style: str) -> None:
    arms = [NONE, *(f"digits, {_arm(technique, p)}" for p in PROBABILITIES)]
    values = [ledger.values(arm, key) for arm in arms]
    means, deviations = [np.mean(v) for v in values], [np.std(v) for v in values]
    axes.errorbar(
        (0, *PROBABILITIES), means, deviations, label=label, color=color, linestyle=style, marker="o", capsize=3
    )


def _draw_texts(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), TASKS, strict=True):
        values = [ledger.values(f"{name}, {arm}", "accuracy") for arm in TEXT_ARMS]
        _draw_boxes(axes, values)
        chance = statistics.fmean(ledger.values(f"{name}, {PLAIN}", "chance"))
        axes.axhline(chance, color="grey", linestyle=":", label="most frequent class")
        axes.set_xticks(range(1, len(TEXT_ARMS) + 1), TEXT_ARMS, rotation=30, ha="right")
        title = f"{name[0].upper()}{name[1:]}, {NUM_TEXTS[name][0]} training examples"
        axes.set(ylabel="test accuracy", title=title)
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize=8, loc="center left")
    figure.suptitle("BERT fine-tuned from several seeds: each dot is a run", fontsize=11)
    return figure


def _draw_boxes(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    axes.boxplot(values, showfliers=False, widths=0.6, medianprops={"color": "black"})
    rng = np.random.default_rng(0)
    for place, runs in enumerate(values, start=1):
        color = "tab:blue" if place > len(BASELINES) else "tab:orange"
        axes.scatter(place + rng.uniform(-0.15, 0.15, len(runs)), runs, s=14, color=color, alpha=0.8, zorder=3)
