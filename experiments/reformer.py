"""Reformer: how the shipped checkpoint is trained, what hash rounds buy, and whether reversible layers cost anything.

Three parts: a word of random symbols has to be written twice, which needs attention to exactly one place far back; characters
of novels, with the paper's changes to a Transformer made one after another; and the memory that a training step takes.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import catalog
from zoo.experiments import language_models as lm
from zoo.experiments.memory import resident_megabytes
from zoo.experiments.report import Ledger, Progress, difference, mean_and_std, spread, write_results
from zoo.layers.reversible import Branch
from zoo.sequence.reformer import Reformer
from zoo.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECIPES = {
    "austen": Recipe(
        method="reformer",
        preset="austen",
        dataset="austen",
        epochs=10,
        steps_per_epoch=240,
        prepare=lm.prepare,
        overrides=lm.vocabulary,
        data=lm.stream_data(batch_size=8),
        compile=lm.compiler(peak=2e-3, warmup_steps=100, clip_norm=1.0, final=1e-5),
        evaluate=lm.evaluate,
        monitor="val_bits_per_character",
    )
}

CLAIM = (
    "Hashed attention trained with 4 rounds copies a word without error, more rounds at evaluation help, and models trained "
    "with hashing stand few rounds better than those trained with full attention (paper, table 2). Sharing queries and keys "
    "and reversible layers do not change the loss (figure 3), and with reversible layers memory does not grow with depth."
)

# === Duplication ===

NUM_SYMBOLS = 32
WORD = 31
DUPLICATION = dict(
    vocabulary_size=NUM_SYMBOLS, num_layers=1, hidden_dim=128, num_heads=4, intermediate_dim=128,
    window_length=2 * (WORD + 1), chunk_length=8,
)  # fmt: skip
DUPLICATION_BATCH = 64
FULL = "full"
TRAINED_WITH = (FULL, "4 rounds", "2 rounds", "1 round")
EVALUATED_WITH = (FULL, "8 rounds", "4 rounds", "2 rounds", "1 round")
HASH_SEEDS = 4
EVALUATION_WORDS = 128


def attention_options(label: str) -> dict[str, Any]:
    """Returns the constructor arguments of a label such as `"4 rounds"`."""
    if label == FULL:
        return {"attention_layers": ["full_shared_qk"]}
    return {"attention_layers": ["lsh"], "num_rounds": int(label.split()[0])}


def duplicated_words(batch_size: int, seed: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns texts 0w0w of random words w.

    Args:
        batch_size: int.
        seed: int tensor `(2,)`.

    Returns:
        Tuple of inputs and targets, int32 `(batch_size, 2 * (WORD + 1))`, and weights of the same shape: only what can be
        known, the second w, counts, such that the mean over all positions is that over these.
    """
    word = tf.random.stateless_uniform((batch_size, WORD), seed, 1, NUM_SYMBOLS, tf.int32)
    once = tf.pad(word, ((0, 0), (1, 0)))
    inputs = tf.concat([once, once], axis=1)
    targets = tf.pad(inputs[:, 1:], ((0, 0), (0, 1)))
    counts = np.zeros((1, 2 * (WORD + 1)), "float32")
    counts[:, WORD + 1 : -1] = 2 * (WORD + 1) / WORD
    return inputs, targets, tf.repeat(tf.constant(counts), batch_size, axis=0)


def run_duplication(trained_with: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains with one kind of attention; returns accuracies in % with all of them."""
    keras.utils.set_random_seed(seed)
    model = catalog.get("reformer", "duplication", weights=None, **DUPLICATION, **attention_options(trained_with))
    words = tf.data.Dataset.counter().map(lambda step: duplicated_words(DUPLICATION_BATCH, tf.stack([seed, step])))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    history = model.fit(words, epochs=1, steps_per_epoch=updates, verbose=0, shuffle=False)
    accuracies = {label: _accuracy(model, label) for label in EVALUATED_WITH}
    return {"accuracies": accuracies, "loss": history.history["loss"][-1]}


def _accuracy(model: Reformer, evaluated_with: str) -> float:
    inputs, targets, counts = duplicated_words(EVALUATION_WORDS, tf.constant([12345, 678]))
    chosen = counts.numpy() > 0
    found = []
    for hash_seed in range(1 if evaluated_with == FULL else HASH_SEEDS):
        options = {**attention_options(evaluated_with), "hash_seed": 1000 * (hash_seed + 1)}
        other = Reformer.from_config({**model.get_config(), **options}).build_from_signature()
        other.set_weights(model.get_weights())
        predicted = np.argmax(other.run("predict", token_ids=inputs)["logits"], axis=-1)
        found.append((predicted == targets.numpy())[chosen].mean())
    return 100 * statistics.fmean(found)


# === Text ===


class OrdinaryTransformer(Reformer):
    """The same network with one residual stream, both halves of its output layer reading it."""

    def run_stack(self, branches: Sequence[Branch], stream: Any, seed: Any, training: bool) -> tuple[Any, Any]:
        """Adds every branch to the stream."""
        for index, branch in enumerate(branches):
            branch_seed = None if seed is None else tf.random.experimental.stateless_fold_in(seed, index)
            stream = stream + branch(stream, None, branch_seed)[0]
        return stream, stream


TEXT = dict(num_layers=2, hidden_dim=64, num_heads=4, intermediate_dim=128, axial_shape=[16, 16], axial_dims=[16, 48])
TEXT_BATCH = 8
ORDINARY, SHARED, REVERSIBLE, HASHED = (
    "Transformer",
    "+ shared queries and keys",
    "+ reversible layers",
    "+ hashing, 4 rounds",
)
TEXT_ARMS: dict[str, tuple[type[Reformer], dict[str, Any]]] = {
    ORDINARY: (OrdinaryTransformer, dict(attention_layers=["full"])),
    SHARED: (OrdinaryTransformer, dict(attention_layers=["full_shared_qk"])),
    REVERSIBLE: (Reformer, dict(attention_layers=["full_shared_qk"])),
    HASHED: (Reformer, dict(attention_layers=["lsh"], num_rounds=4, chunk_length=32)),
}
# Difference in bits per character below which curves are called the same
SAME = 0.02


def run_text(arm: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains one arm on characters; returns bits per character of the validation text."""
    keras.utils.set_random_seed(seed)
    model_class, options = TEXT_ARMS[arm]
    model = model_class(**{**TEXT, **lm.vocabulary("austen"), **options}).build_from_signature()
    data = lm.stream_data(TEXT_BATCH)(model, "austen", seed)
    lm.compiler(peak=2e-3, warmup_steps=min(100, updates // 4 + 1), clip_norm=1.0, final=1e-5)(model, updates)
    model.fit(data.train, steps_per_epoch=updates, epochs=1, verbose=0, shuffle=False)
    return lm.evaluate(model, "austen", "validation")


# === Memory ===

DEPTHS = (2, 6, 12)
MEMORY = dict(
    vocabulary_size=32, hidden_dim=64, num_heads=4, intermediate_dim=256, window_length=8192, attention_layers=["lsh"],
    num_rounds=1,
)  # fmt: skip
SHORT = 128
# Of glibc: memory that is freed goes back at once. It would stay in heaps that grow by chance, up to 50 MB at 24 layers
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def activation_megabytes(num_layers: int, reversible: bool) -> float:
    """Returns what activations of a training step take at its peak, in megabytes.

    It is what a long text takes beyond a short one, so without weights, gradients and TensorFlow's own.
    """
    long, short = (_peak_megabytes(num_layers, reversible, length) for length in (MEMORY["window_length"], SHORT))
    return long - short


def _peak_megabytes(num_layers: int, reversible: bool, length: int) -> float:
    """Returns by how much two training steps raise the peak memory of a process of their own, in megabytes."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, num_layers, reversible, length))
    # Read when a process starts: it means nothing to this one
    os.environ |= ALLOCATOR
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _measure(sender: Any, num_layers: int, reversible: bool, length: int) -> None:
    options = {**MEMORY, "window_length": length}
    model = Reformer(num_layers=num_layers, reversible=reversible, **options).build_from_signature()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, jit_compile=False)
    ids = np.zeros((1, length), "int32")
    before = resident_megabytes("VmHWM")
    model.fit(ids, ids, epochs=2, verbose=0)
    sender.send(resident_megabytes("VmHWM") - before)


# === Experiment ===


def reproduce(directory: Path, seeds: int = 3, updates: int = 400, progress: Progress = lambda message: None) -> None:
    """Runs all three parts and writes `reformer.json` and `.png`. Memory is read from Linux's `/proc`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Training steps of 64 words; half as many of 8 x 256 characters.
        progress: callable that takes one line per run.
    """
    settings = {"duplication": DUPLICATION, "text": TEXT, "memory": MEMORY, "updates": updates, "split": "validation"}
    words, text, memory = (
        Ledger(directory / f"reformer.{part}.runs.json", settings) for part in ("duplication", "text", "memory")
    )
    for seed in range(seeds):
        for arm in TRAINED_WITH:
            words.run(arm, seed, lambda arm=arm, seed=seed: run_duplication(arm, updates, seed), progress)
        for arm in TEXT_ARMS:
            text.run(arm, seed, lambda arm=arm, seed=seed: run_text(arm, updates // 2, seed), progress)
    for kind, reversible in (("reversible", True), ("ordinary", False)):
        for depth in DEPTHS:
            measure = lambda depth=depth, kept=reversible: {"megabytes": activation_megabytes(depth, kept)}  # noqa: E731
            memory.run(f"{kind}, {depth} layers", 0, measure, progress)
    accuracy = {
        arm: {label: mean_and_std([run[label] for run in words.values(arm, "accuracies")]) for label in EVALUATED_WITH}
        for arm in TRAINED_WITH
    }
    steps = list(TEXT_ARMS)
    changes = {
        after: difference(text, before, after, "bits_per_character") for before, after in itertools.pairwise(steps)
    }
    megabytes = {
        kind: {depth: memory.values(f"{kind}, {depth} layers", "megabytes")[0] for depth in DEPTHS}
        for kind in ("reversible", "ordinary")
    }
    write_results(
        "reformer",
        directory,
        claim=CLAIM,
        verdict=_verdict(accuracy, changes, megabytes),
        command=f"zoo reproduce reformer --seeds {seeds} --updates {updates}",
        tables={
            "accuracy_in_percent_by_training_and_evaluation": accuracy,
            "bits_per_character": text.summary("bits_per_character"),
            "change_of_bits_per_character_by_step": changes,
            "megabytes_of_activations_by_depth": megabytes,
        },
        figure=_figure(accuracy, text, megabytes),
        settings={**settings, "seeds": seeds},
    )


def _verdict(
    accuracy: dict[str, dict[str, dict[str, float]]],
    changes: dict[str, dict[str, float]],
    megabytes: dict[str, dict[int, float]],
) -> str:
    mean = {arm: {label: found["mean"] for label, found in row.items()} for arm, row in accuracy.items()}
    hashed = mean["4 rounds"]
    copies = "copies" if hashed["8 rounds"] >= 99.5 else "does not copy"
    rows = list(mean.values())
    helps = all(row["8 rounds"] >= row["4 rounds"] >= row["2 rounds"] >= row["1 round"] for row in rows)
    stands = hashed["1 round"] > mean[FULL]["1 round"]
    text = "; ".join(
        f"'{step}' {_effect(found)} ({found['mean']:+.3f} ± {found['std']:.3f} bits)" for step, found in changes.items()
    )
    growth = {kind: values[DEPTHS[-1]] / values[DEPTHS[0]] for kind, values in megabytes.items()}
    return (
        f"Trained with 4 rounds the model {copies} the word without error ({hashed['8 rounds']:.1f} % with 8 rounds, "
        f"{hashed['4 rounds']:.1f} % with 4). More rounds at evaluation {'help' if helps else 'do not always help'}. With "
        f"one round it has {hashed['1 round']:.1f} %, the one trained with full attention {mean[FULL]['1 round']:.1f} %: "
        f"training with hashing {'makes' if stands else 'does not make'} it stand few rounds better. On text {text}. From "
        f"{DEPTHS[0]} to {DEPTHS[-1]} layers what activations take in training grows {growth['reversible']:.1f} times with "
        f"reversible layers and {growth['ordinary']:.1f} times without."
    )


def _effect(change: dict[str, float]) -> str:
    if abs(change["mean"]) <= SAME:
        return "leaves the loss the same" if change["std"] <= SAME else "changes the loss by less than its spread"
    return "changes the loss" if abs(change["mean"]) > 2 * change["std"] else "shows no clear effect"


def _figure(
    accuracy: dict[str, dict[str, dict[str, float]]], text: Ledger, megabytes: dict[str, dict[int, float]]
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
    _show_accuracies(left, accuracy)
    arms = list(TEXT_ARMS)
    for row, arm in enumerate(arms):
        values = text.values(arm, "bits_per_character")
        middle.plot(values, [row] * len(values), "o", color="tab:gray", markersize=4)
        middle.plot([statistics.fmean(values)], [row], "D", color="tab:blue")
        middle.annotate(
            spread(values), (statistics.fmean(values), row), (0, 8), textcoords="offset points", ha="center"
        )
    middle.set(xlabel="bits per character", title="Characters of novels", ylim=(len(arms) - 0.5, -0.7))
    middle.set_yticks(range(len(arms)), arms)
    middle.margins(x=0.25)
    for kind, values in megabytes.items():
        right.plot(list(values), list(values.values()), marker="o", label=f"{kind} layers")
    right.set(xlabel="layers", ylabel="MB", title="Activations of a training step", ylim=(0, None))
    right.legend()
    return figure


def _show_accuracies(axes: Axes, accuracy: dict[str, dict[str, dict[str, float]]]) -> None:
    means = np.array([[row[label]["mean"] for label in EVALUATED_WITH] for row in accuracy.values()])
    axes.imshow(means, cmap="Blues", vmin=0, vmax=130, aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        axes.text(column, row, f"{value:.1f}", ha="center", va="center")
    axes.set_xticks(range(len(EVALUATED_WITH)), EVALUATED_WITH)
    axes.set_yticks(range(len(accuracy)), list(accuracy))
    axes.set(xlabel="evaluated with", ylabel="trained with", title="A word written twice: symbols right, in %")
