"""CPC: how its checkpoints are trained, and a linear classifier on its contexts beside other features of the same digits.

Every digit is a sequence of 8 rows. CPC reads them without labels; a logistic regression is then fitted to the last context
of a few labelled images or of all. Beside it: the network as it is initialised, raw pixels, their principal components, and
encoder and GRU trained with the same labels from end to end.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from zoo.catalog import get
from zoo.datasets import load_arrays, load_text
from zoo.experiments.autoencoder import principal_components
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.experiments.training import cosine_adam
from zoo.information.cpc import CPC, EVALUATION_SEQUENCES, NEGATIVES
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of digits, in the recipe and in the experiment.
BATCH, LEARNING_RATE = 64, 3e-3


# === Recipes ===


def shuffled_sequences(batch_size: int) -> Callable[[CPC, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of sequences."""

    def data(model: CPC, dataset: str, seed: int) -> TrainingData:
        return TrainingData(
            batches(model.sequences_of(dataset, "train"), batch_size, seed), _validation(model, dataset)
        )

    return data


def batches(sequences: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns endless shuffled batches; the same seed gives the same ones."""
    return tf.data.Dataset.from_tensor_slices(sequences).shuffle(len(sequences), seed=seed).repeat().batch(batch_size)


def _validation(model: CPC, dataset: str) -> tf.data.Dataset:
    sequences = model.sequences_of(dataset, "validation")
    return tf.data.Dataset.from_tensor_slices(sequences).batch(EVALUATION_SEQUENCES, drop_remainder=True)


def text_windows(batch_size: int) -> Callable[[CPC, str, int], TrainingData]:
    """Returns the `data` function of a recipe: parts of a text that begin at any of its bytes."""

    def data(model: CPC, dataset: str, seed: int) -> TrainingData:
        text = np.frombuffer(load_text(dataset, "train").encode(), "uint8")
        shape = model.sequence_shape
        starts = np.random.default_rng(seed).permutation(len(text) - math.prod(shape)).astype("int32")

        def window(start: Any) -> Any:
            return tf.cast(tf.reshape(tf.constant(text)[start : start + math.prod(shape)], shape), "int32")

        windows = tf.data.Dataset.from_tensor_slices(starts).repeat().map(window)
        return TrainingData(windows.batch(batch_size), _validation(model, dataset))

    return data


def evaluate(model: CPC, dataset: str, split: str) -> dict[str, float]:
    """Returns the bound in nats for held-out batches of 60 sequences: of every number of steps ahead, and their mean."""
    found = model.information(model.sequences_of(dataset, split))
    by_step = {f"information_at_{ahead}": float(value) for ahead, value in enumerate(found, start=1)}
    return {"information_in_nats": float(np.mean(found)), **by_step}


def _recipe(
    preset: str,
    epochs: int,
    steps_per_epoch: int,
    data: Callable[[CPC, str, int], TrainingData],
    learning_rate: float = 1e-3,
    sample: str | None = None,
) -> Recipe:
    return Recipe(
        method="cpc",
        preset=preset,
        dataset=preset,
        evaluation_dataset=sample,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        data=data,
        compile=cosine_adam(learning_rate),
        evaluate=evaluate,
        monitor="val_loss",
    )


RECIPES = {
    "digits": _recipe("digits", 100, 20, shuffled_sequences(BATCH), LEARNING_RATE),
    "mnist": _recipe("mnist", 10, 500, shuffled_sequences(100), sample="mnist_sample"),
    "austen": _recipe("austen", 20, 200, text_windows(64)),
    "cifar10": _recipe("cifar10", 10, 200, shuffled_sequences(32)),
}


# === Experiment ===


CLAIM = (
    "A linear classifier on contexts that were trained without labels is far better than one on those of a network as it is "
    "initialised, and comes near a network trained with the labels; it is better where more than the next step is "
    "predicted, and the further ahead, the harder the future is to find (van den Oord et al. 2018, section 3.1)."
)
DATASET = "digits"
STEPS_AHEAD = (1, 2, 3, 4)
# Labelled images of each class that a classifier gets; None for all.
LABELS: Sequence[int | None] = (10, 20, 50, None)
RANDOM, PIXELS, PCA, SUPERVISED = "random initialisation", "pixels", "64 principal components", "supervised GRU"
# As the preset: the arm that stands for CPC where there is one curve.
MAIN_STEPS, MAIN_NEGATIVES = 3, "batch_time"
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def reproduce(directory: Path, seeds: int = 3, updates: int = 2000, progress: Progress = lambda message: None) -> None:
    """Trains CPC for 1 to 4 steps ahead and all kinds of wrong candidates, and writes `cpc.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm, each with its own choice of labelled images.
        updates: int. Updates of every training, of CPC and with labels.
        progress: callable that takes one line per run.
    """
    settings = {
        "dataset": DATASET,
        "updates": updates,
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "labels_per_class": LABELS,
    }
    ledger = Ledger(directory / "cpc.runs.json", settings)
    for seed in range(seeds):
        for name, features in {PIXELS: _pixels, PCA: _components}.items():
            ledger.run(
                name, seed, lambda features=features, seed=seed: {"accuracy": probe(*features(), seed)}, progress
            )
        ledger.run(RANDOM, seed, lambda seed=seed: run_cpc(MAIN_STEPS, MAIN_NEGATIVES, 0, seed), progress)
        ledger.run(SUPERVISED, seed, lambda seed=seed: run_supervised(updates, seed), progress)
        for negatives in NEGATIVES:
            for steps in STEPS_AHEAD:

                def run(negatives: str = negatives, steps: int = steps, seed: int = seed) -> dict[str, Any]:
                    return run_cpc(steps, negatives, updates, seed)

                ledger.run(label(steps, negatives), seed, run, progress)
    arms = [PIXELS, PCA, RANDOM, SUPERVISED, *(label(s, n) for n in NEGATIVES for s in STEPS_AHEAD)]
    write_results(
        "cpc",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce cpc --seeds {seeds} --updates {updates}",
        tables={
            "test_accuracy_by_labels_of_each_class": {
                arm: {_name(count): _statistics(ledger, arm, "accuracy", i) for i, count in enumerate(LABELS)}
                for arm in arms
            },
            "nats_by_steps_ahead": {
                label(STEPS_AHEAD[-1], negatives): {
                    str(ahead): _statistics(ledger, label(STEPS_AHEAD[-1], negatives), "information", i)
                    for i, ahead in enumerate(STEPS_AHEAD)
                }
                for negatives in NEGATIVES
            },
        },
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds, "evaluation_sequences": EVALUATION_SEQUENCES},
    )


def label(steps: int, negatives: str) -> str:
    """Returns the name of an arm in the ledger."""
    return f"CPC, {steps} ahead, {negatives}"


def _name(count: int | None) -> str:
    return "all" if count is None else str(count)


def _column(ledger: Ledger, arm: str, key: str, index: int) -> list[float]:
    return [values[index] for values in ledger.values(arm, key)]


def _statistics(ledger: Ledger, arm: str, key: str, index: int) -> dict[str, float]:
    values = _column(ledger, arm, key, index)
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}


# === Arms ===


@functools.cache
def _rows(split: str) -> np.ndarray:
    return get("cpc", DATASET, weights=None).sequences_of(DATASET, split)


def _labels(split: str) -> np.ndarray:
    return load_arrays(DATASET, split)["label"]


def _pixels() -> tuple[np.ndarray, np.ndarray]:
    train, test = (_rows(split).reshape(len(_rows(split)), -1) for split in ("train", "test"))
    return train, test


def _components() -> tuple[np.ndarray, np.ndarray]:
    train, test = _pixels()
    mean, components = principal_components(train, 64)
    return (train - mean) @ components.T, (test - mean) @ components.T


def run_cpc(steps: int, negatives: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains CPC; returns the accuracies of `probe` on its last contexts, and the bound on test images by steps ahead."""
    keras.utils.set_random_seed(seed)
    model = get("cpc", DATASET, weights=None, num_predictions=steps, negatives=negatives)
    if updates:
        _fit(model, batches(_rows("train"), BATCH, seed), updates)
    train, test = (model.represent(_rows(split)) for split in ("train", "test"))
    return {"accuracy": probe(train, test, seed), "information": model.information(_rows("test")).tolist()}


def run_supervised(updates: int, seed: int) -> dict[str, Any]:
    """Trains encoder, GRU and a linear layer with labels, once for every number of them; returns test accuracies."""
    rows, labels, found = _rows("train"), _labels("train"), []
    for count in LABELS:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input(rows.shape[1:])
        contexts = get("cpc", DATASET, weights=None)(inputs)["contexts"]
        model = keras.Model(inputs, keras.layers.Dense(10)(contexts[:, -1]))
        chosen = labelled(labels, count, seed)
        data = tf.data.Dataset.from_tensor_slices((rows[chosen], labels[chosen]))
        data = data.shuffle(len(chosen), seed=seed).repeat().batch(BATCH)
        _fit(model, data, updates, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        predicted = np.argmax(model.predict(_rows("test"), verbose=0), axis=1)
        found.append(float(np.mean(predicted == _labels("test"))))
    return {"accuracy": found}


def _fit(model: keras.Model, data: tf.data.Dataset, updates: int, **compile_arguments: Any) -> None:
    cosine_adam(LEARNING_RATE, **compile_arguments)(model, updates)
    model.fit(data, steps_per_epoch=updates, shuffle=False, verbose=0)


def labelled(labels: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Returns the positions of labelled images: `count` of each class, drawn by the seed, or all."""
    if count is None:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == digit][:count] for digit in range(10)])


def probe(train: np.ndarray, test: np.ndarray, seed: int) -> list[float]:
    """Returns test accuracies of logistic regressions fitted to each number of labelled images.

    Features are standardised; the strength of the penalty is chosen by cross-validation among the labelled images.

    Args:
        train: float array `(num_train, features)`.
        test: float array `(num_test, features)`.
        seed: int. It draws the labelled images.
    """
    labels, found = _labels("train"), []
    for count in LABELS:
        chosen = labelled(labels, count, seed)
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        search = GridSearchCV(pipeline, {"logisticregression__C": STRENGTHS}, cv=3)
        found.append(float(search.fit(train[chosen], labels[chosen]).score(test, _labels("test"))))
    return found


# === Verdict ===


def _gains(ledger: Ledger, better: str, worse: str, index: int) -> list[float]:
    pairs = zip(_column(ledger, better, "accuracy", index), _column(ledger, worse, "accuracy", index), strict=True)
    return [first - second for first, second in pairs]


def verdict(ledger: Ledger) -> str:
    """Returns which parts of the claim show, with their numbers."""
    main, last = label(MAIN_STEPS, MAIN_NEGATIVES), len(LABELS) - 1
    above = [_name(count) for index, count in enumerate(LABELS) if min(_gains(ledger, main, RANDOM, index)) > 0]
    further = [n for n in NEGATIVES if min(_gains(ledger, label(MAIN_STEPS, n), label(1, n), 0)) > 0]
    falling = [n for n in NEGATIVES if all(a > b for a, b in itertools.pairwise(_curve(ledger, n)))]
    parts = [len(above) == len(LABELS), len(further) == len(NEGATIVES), len(falling) == len(NEGATIVES)]
    shows = {0: "The claim does not show", 3: "The claim shows"}.get(sum(parts), "The claim shows in part")
    accuracies = "; ".join(
        f"{arm} {spread(_column(ledger, arm, 'accuracy', 0))} and {spread(_column(ledger, arm, 'accuracy', last))}"
        for arm in (main, RANDOM, PIXELS, PCA, SUPERVISED)
    )
    few, many = (statistics.fmean(_gains(ledger, main, RANDOM, index)) for index in (0, last))
    behind = {
        arm: " and ".join(f"{-statistics.fmean(_gains(ledger, main, arm, index)):+.3f}" for index in (0, last))
        for arm in (SUPERVISED, PIXELS)
    }
    return (
        f"{shows}: contexts are better than those of the initial network in every seed with these numbers of labels of "
        f"each class: {_listed(above)}; {MAIN_STEPS} steps ahead are better than 1 in every seed, with {LABELS[0]} labels, "
        f"with these wrong candidates: {_listed(further)}; the bound falls with every step ahead with: {_listed(falling)}. "
        f"Test accuracy with {LABELS[0]} labels of each class and with all: {accuracies}. The gain over the initial network "
        f"is {few:+.3f} and {many:+.3f}; the supervised GRU is ahead by {behind[SUPERVISED]}, pixels by {behind[PIXELS]}. "
        "The images have 64 pixels, so that 64 principal components are a rotation of them, scaled anew."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _curve(ledger: Ledger, negatives: str) -> list[float]:
    """Returns the mean bound by steps ahead of the models that are trained on the most."""
    arm = label(STEPS_AHEAD[-1], negatives)
    return [statistics.fmean(_column(ledger, arm, "information", index)) for index in range(len(STEPS_AHEAD))]


# === Figure ===

COLORS = dict(zip(NEGATIVES, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    labels, steps, information = figure.subplots(1, 3)
    _show_labels(labels, ledger)
    _show_steps(steps, ledger)
    _show_information(information, ledger)
    return figure


def _errorbar(axes: Axes, places: Sequence[Any], runs: Sequence[Sequence[float]], **style: Any) -> None:
    means = [statistics.fmean(run) for run in runs]
    ranges = [(mean - min(run), max(run) - mean) for run, mean in zip(runs, means, strict=True)]
    axes.errorbar(places, means, np.transpose(ranges), marker="o", capsize=3, **style)


def _show_labels(axes: Axes, ledger: Ledger) -> None:
    places = range(len(LABELS))
    styles: Mapping[str, Mapping[str, Any]] = {
        label(MAIN_STEPS, MAIN_NEGATIVES): {"color": "tab:blue", "linewidth": 2.5},
        SUPERVISED: {"color": "tab:purple"},
        PIXELS: {"color": "black"},
        PCA: {"color": "tab:grey", "linestyle": "--"},
        RANDOM: {"color": "tab:brown"},
    }
    for arm, style in styles.items():
        _errorbar(axes, places, [_column(ledger, arm, "accuracy", i) for i in places], label=arm, **style)
    axes.set_xticks(places, [_name(count) for count in LABELS])
    axes.set(xlabel="labelled images of each class", ylabel="test accuracy (mean, range over seeds)")
    axes.set_title("Linear classifier on the last context")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _show_steps(axes: Axes, ledger: Ledger) -> None:
    for negatives, color in COLORS.items():
        runs = [_column(ledger, label(steps, negatives), "accuracy", 0) for steps in STEPS_AHEAD]
        _errorbar(axes, STEPS_AHEAD, runs, color=color, label=negatives)
    axes.set_xticks(STEPS_AHEAD)
    axes.set(xlabel="steps ahead that are predicted, P", ylabel="test accuracy")
    axes.set_title(f"{LABELS[0]} labelled images of each class")
    axes.grid(alpha=0.3)
    axes.legend(title="wrong candidates", fontsize=8)


def _show_information(axes: Axes, ledger: Ledger) -> None:
    last = STEPS_AHEAD[-1]
    for negatives, color in COLORS.items():
        runs = [_column(ledger, label(last, negatives), "information", index) for index in range(last)]
        model = get("cpc", DATASET, weights=None, negatives=negatives)
        candidates = model.num_candidates(EVALUATION_SEQUENCES)
        _errorbar(axes, STEPS_AHEAD, runs, color=color, label=f"{negatives}, at most log {candidates}")
        axes.axhline(math.log(candidates), color=color, linestyle=":", linewidth=1)
    axes.set_xticks(STEPS_AHEAD)
    axes.set(xlabel="steps ahead, k", ylabel="bound on mutual information, nats")
    axes.set_title(f"Test images, P = {last}; dotted: ceilings")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
