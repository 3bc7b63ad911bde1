"""Compressive Transformer: how the shipped checkpoint is trained, and whether compressing beats dropping."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import catalog, datasets
from zoo.experiments import language_models as lm
from zoo.experiments.report import Ledger, Progress, difference, write_results
from zoo.training.recipe import Recipe
from zoo.training.streams import token_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPES = {
    "austen": Recipe(
        method="compressive_transformer",
        preset="austen",
        dataset="austen",
        epochs=24,
        steps_per_epoch=300,
        prepare=lm.prepare,
        overrides=lm.vocabulary,
        data=lm.stream_data(batch_size=16),
        compile=lm.compiler(peak=2e-3, warmup_steps=200, clip_norm=0.25, final=1e-5, clip_groups=["compression_"]),
        evaluate=lm.evaluate,
        monitor="val_bits_per_character",
    )
}

CLAIM = (
    "At equal attention cost (the same number of memory slots) compressing old states beats dropping them; a convolution "
    "trained by attention reconstruction beats pooling and training through time; the compressed memory is used (paper, "
    "tables 4 and 5, figure 2)."
)
WINDOW = 32
SIZES = dict(num_layers=2, hidden_dim=64, num_heads=4, intermediate_dim=128, window_length=WINDOW, dropout=0.0)
COMPRESSIVE = dict(memory_length=WINDOW, compressed_memory_length=WINDOW, compression_rate=3)
EQUAL_COST = "Transformer-XL, memory 64"
MAIN = "conv1d, attention reconstruction"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    EQUAL_COST: ("transformer_xl", dict(memory_length=2 * WINDOW)),
    "Transformer-XL, memory 32": ("transformer_xl", dict(memory_length=WINDOW)),
    MAIN: ("compressive_transformer", dict(compression="conv1d")),
    "conv1d, auto-encoding": ("compressive_transformer", dict(compression="conv1d", compression_loss="auto_encoding")),
    "conv1d, bptt": ("compressive_transformer", dict(compression="conv1d", compression_loss="bptt")),
    "dilated conv, attention reconstruction": ("compressive_transformer", dict(compression="dilated_conv")),
    "mean pooling": ("compressive_transformer", dict(compression="mean_pool", compression_loss="none")),
    "max pooling": ("compressive_transformer", dict(compression="max_pool", compression_loss="none")),
    "most used": ("compressive_transformer", dict(compression="most_used", compression_loss="none")),
}
# How far back, in characters, the previous occurrence of a word lies. One layer of the equal-cost Transformer-XL sees 64
# to 96 characters back, one of the Compressive Transformer 128 to 160.
DISTANCES = ((0, 64), (64, 96), (96, 160), (160, 320), (320, 1000))
BUCKETS = 6


def reproduce(directory: Path, seeds: int = 3, updates: int = 3000, progress: Progress = lambda message: None) -> None:
    """Trains every arm with every seed and writes `compressive_transformer.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Training steps of 16 x 32 characters.
        progress: callable that takes one line per run.
    """
    settings = {**SIZES, **COMPRESSIVE, "updates": updates, "dataset": "austen", "split": "validation"}
    ledger = Ledger(directory / "compressive_transformer.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: _run(arm, updates, seed), progress)
    gains = {arm: difference(ledger, arm, EQUAL_COST, "bits_per_character") for arm in ARMS if arm != EQUAL_COST}
    write_results(
        "compressive_transformer",
        directory,
        claim=CLAIM,
        verdict=_verdict(gains, ledger),
        command=f"zoo reproduce compressive_transformer --seeds {seeds} --updates {updates}",
        tables={
            "bits_per_character": ledger.summary("bits_per_character"),
            f"gain_over_{EQUAL_COST}": gains,
            "bits_per_character_of_recurring_words_by_distance": {arm: _recurring(ledger, arm) for arm in ARMS},
            "attention_by_bucket": _mean(ledger.values(MAIN, "attention_by_bucket")),
            "compression_loss_by_layer": _mean(ledger.values(MAIN, "compression_loss_by_layer")),
            "ngram_bits_per_character": _ngram_table(),
        },
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds},
    )


def _run(arm: str, updates: int, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    method, options = ARMS[arm]
    compressive = COMPRESSIVE if method == "compressive_transformer" else {}
    model = catalog.get(method, weights=None, **{**SIZES, **compressive, **lm.vocabulary("austen"), **options})
    windows = 2 if options.get("compression_loss") == "bptt" else 1
    lm.fit_arm(model, "austen", updates, seed, windows, clip_groups=["compression_"])
    ids = lm.token_ids("austen", "validation")
    bits = lm.character_bits(model, ids)
    result = {"bits_per_character": float(bits.mean()), "recurring_words": recurring_words(bits)}
    if arm == MAIN:
        result |= _use_of_memory(model, ids)
    return result


def recurring_words(bits: np.ndarray) -> dict[str, float]:
    """Returns bits per character of words of six letters or more that occurred before, by distance to that occurrence.

    Args:
        bits: float array `(streams, characters)`: cost of each character of the validation text after the first.
    """
    text = datasets.load_text("austen", "validation")[1:]
    length = bits.shape[1]
    found: dict[str, list[float]] = {f"{low}-{high}": [] for low, high in DISTANCES}
    # The text is cut into streams without gaps: row r begins at character r * (characters of a stream).
    for row in range(len(bits)):
        last: dict[str, int] = {}
        for match in re.finditer(r"[A-Za-z]{6,}", text[row * length : (row + 1) * length]):
            start, word = match.start(), match.group()
            if word in last:
                for low, high in DISTANCES:
                    if low <= start - last[word] < high:
                        found[f"{low}-{high}"].extend(bits[row, start : match.end()])
            last[word] = start
    return {bucket: float(np.mean(costs)) for bucket, costs in found.items() if costs}


def _use_of_memory(model: Any, ids: np.ndarray) -> dict[str, Any]:
    """Measures attention over compressed memory, memory and window, six buckets each, and the losses of compression."""
    windows, _ = token_windows(ids, lm.EVALUATION_STREAMS, model.window_length)
    state = model.initial_state(lm.EVALUATION_STREAMS)
    attention, losses = [], []
    for step, window in enumerate(windows[:40]):
        _, _, probabilities = model.read_window(tf.constant(window), state)
        _, state = model.forward(tf.constant(window), state, training=True)
        if step >= 8:  # both queues are full by then
            attention.append(np.mean([np.asarray(p).mean((0, 1, 2)) for p in probabilities], axis=0))
            losses.append([float(loss) for loss in model.losses])
        model._clear_losses()
    mass = np.mean(attention, axis=0)
    parts = np.split(mass, [model.compressed_memory_length, model.compressed_memory_length + model.memory_length])
    buckets = [float(bucket.mean()) for part in parts for bucket in np.array_split(part, BUCKETS)]
    return {"attention_by_bucket": buckets, "compression_loss_by_layer": np.mean(losses, axis=0).tolist()}


def _ngram_table() -> dict[str, float]:
    train, test = lm.token_ids("austen", "train"), lm.token_ids("austen", "test")
    size = lm.vocabulary("austen")["vocabulary_size"]
    return {f"order {order}": lm.ngram_bits_per_character(train, test, size, order) for order in range(3, 9)}


def _mean(rows: list[list[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*rows, strict=True)]


def _recurring(ledger: Ledger, arm: str) -> dict[str, float]:
    runs = ledger.values(arm, "recurring_words")
    return {bucket: statistics.fmean(run[bucket] for run in runs) for bucket in runs[0]}


def _verdict(gains: dict[str, dict[str, float]], ledger: Ledger) -> str:
    main = gains[MAIN]
    seeds = len(ledger.values(MAIN, "bits_per_character"))
    clear = abs(main["mean"]) > 2 * main["std"] / max(seeds, 1) ** 0.5
    direction = "lower" if main["mean"] > 0 else "higher"
    best = max((arm for arm in gains if not arm.startswith("Transformer-XL")), key=lambda arm: gains[arm]["mean"])
    certainty = "more than two standard errors" if clear else "within two standard errors of zero"
    return (
        f"At equal cost the convolution with attention reconstruction is {abs(main['mean']):.4f} bits per character "
        f"{direction} than Transformer-XL ({certainty}, {seeds} seeds). Best compression here: {best} "
        f"({gains[best]['mean']:+.4f}). Against the same network with half the memory, compression gains "
        f"{main['mean'] - gains['Transformer-XL, memory 32']['mean']:+.4f}."
    )


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    (arms, words), (attention, losses) = figure.subplots(2, 2)
    summary = ledger.summary("bits_per_character")
    means, spreads = ([values[key] for values in summary.values()] for key in ("mean", "std"))
    arms.errorbar(means, list(summary), xerr=spreads, fmt="o")
    arms.set(xlabel="bits per character", title="Validation loss (mean and spread over seeds)")
    arms.invert_yaxis()
    for arm in (EQUAL_COST, "Transformer-XL, memory 32", MAIN, "mean pooling"):
        values = _recurring(ledger, arm)
        words.plot(list(values), list(values.values()), marker="o", label=arm)
    words.set(xlabel="characters since the last occurrence", ylabel="bits per character", title="Recurring words")
    words.legend(fontsize=8)
    colours = ["tab:orange"] * BUCKETS + ["tab:blue"] * BUCKETS + ["tab:green"] * BUCKETS
    mass = _mean(ledger.values(MAIN, "attention_by_bucket"))
    attention.bar(range(len(mass)), mass, color=colours)
    attention.set(title="Mean attention per slot, oldest to newest", xticks=[2.5, 8.5, 14.5])
    attention.set_xticklabels(["compressed memory", "memory", "window"])
    by_layer = _mean(ledger.values(MAIN, "compression_loss_by_layer"))
    losses.bar([str(layer + 1) for layer in range(len(by_layer))], by_layer)
    losses.set(xlabel="layer", ylabel="mean squared error", title="Attention reconstruction loss by layer")
    return figure
