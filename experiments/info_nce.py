"""InfoNCE: how its checkpoint is trained, and estimators of mutual information beside the truth.

Correlated Gaussian pairs have mutual information in closed form. Critics of one architecture are trained to maximise each
bound on it, by `fit`, and judged on new pairs: bias, variance over batches, and the ceiling log K of InfoNCE.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.experiments.gaussian_pairs import correlation_of, gaussian_pairs
from zoo.experiments.report import Ledger, Progress, write_results
from zoo.experiments.training import cosine_adam
from zoo.information import bounds
from zoo.information.image_pairs import batches, image_halves
from zoo.information.info_nce import EVALUATION_CANDIDATES, InfoNCE
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 128


# === Recipe ===


def shuffled_halves(model: InfoNCE, dataset: str, seed: int) -> TrainingData:
    """Returns shuffled batches of the two halves of images."""
    train, validation = image_halves(dataset, "train"), image_halves(dataset, "validation")
    return TrainingData(
        tf.data.Dataset.from_tensor_slices(train).shuffle(len(train["x"]), seed=seed).repeat().batch(BATCH),
        tf.data.Dataset.from_tensor_slices(validation).batch(EVALUATION_CANDIDATES, drop_remainder=True),
    )


def evaluate(model: InfoNCE, dataset: str, split: str) -> dict[str, float]:
    """Returns the bound on held-out pairs, in nats, among 60 candidates."""
    values = [model.bound(model(batch)) for batch in batches(image_halves(dataset, split), EVALUATION_CANDIDATES)]
    return {f"info_nce_at_{EVALUATION_CANDIDATES}": float(np.mean(values))}


RECIPES = {
    "digits": Recipe(
        method="info_nce",
        preset="digits",
        dataset="digits",
        epochs=100,
        steps_per_epoch=10,
        data=shuffled_halves,
        compile=cosine_adam(1e-3),
        evaluate=evaluate,
        monitor="val_loss",
    )
}


# === Experiment ===


CLAIM = (
    "InfoNCE estimates mutual information with low variance but never above log K; Donsker-Varadhan and NWJ have no such "
    "ceiling and a variance that grows with the information; interpolated bounds trade one for the other (van den Oord et "
    "al. 2018, section 2.3; Poole et al. 2019, section 3)."
)
Bound = Callable[[Any], Any]
# What is maximised, from a matrix of scores.
BOUNDS: Mapping[str, Bound] = {
    "InfoNCE": bounds.info_nce,
    "interpolated, α = 0.5": functools.partial(bounds.interpolated, alpha=0.5),
    "interpolated, α = 0.01": functools.partial(bounds.interpolated, alpha=0.01),
    "JS": lambda scores: bounds.jensen_shannon(*bounds.joint_and_marginal(scores)),
    "NWJ": lambda scores: bounds.nwj(*bounds.joint_and_marginal(scores)),
    "DV": lambda scores: bounds.donsker_varadhan(*bounds.joint_and_marginal(scores)),
}
DIMENSIONS = (2, 20)
INFORMATION = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
BATCH_SIZES = (16, 64, 256)
# The batch size of all values of the information; the other sizes are tried where the ceiling shows.
MAIN_BATCH_SIZE = 64
CEILING_BOUNDS = ("InfoNCE", "interpolated, α = 0.01", "DV")
EVALUATION_PAIRS = 12_800
# Deviations over seeds that the figure shows, in nats; larger ones would cover it.
HIGHEST_BAR = 5.0
# Hidden units of both networks of the separable critic, and size of their outputs.
HIDDEN, EMBEDDING = (128, 128), 32


class Estimator(InfoNCE):
    """An `InfoNCE` model that maximises another bound.

    Args:
        bound: callable of a matrix of scores.
        dim: int. Size of each of the two variables.
    """

    def __init__(self, bound: Bound, dim: int) -> None:
        super().__init__(dim, dim, "separable", HIDDEN, EMBEDDING)
        self.bound = bound


def reproduce(directory: Path, seeds: int = 3, updates: int = 3000, progress: Progress = lambda message: None) -> None:
    """Trains a critic for every bound, dimension, batch size and information, and writes `info_nce.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Updates of every critic.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": "correlated Gaussian pairs", "updates": updates, "evaluation_pairs": EVALUATION_PAIRS}
    ledger = Ledger(directory / "info_nce.runs.json", settings)
    for seed in range(seeds):
        for arm in arms():

            def run(arm: tuple[str, int, int] = arm, seed: int = seed) -> dict[str, Any]:
                return run_arm(*arm, updates, seed)

            ledger.run(label(*arm), seed, run, progress)
    tables = {label(*arm): _table(ledger, label(*arm)) for arm in arms()}
    write_results(
        "info_nce",
        directory,
        claim=CLAIM,
        verdict=_verdict(tables),
        command=f"zoo reproduce info_nce --seeds {seeds} --updates {updates}",
        tables={"nats_by_true_nats": tables},
        figure=_figure(tables),
        settings={**settings, "seeds": seeds, "hidden_dims": HIDDEN, "embedding_dim": EMBEDDING},
    )


def arms() -> list[tuple[str, int, int]]:
    """Returns bound, dimension and batch size of every arm."""
    return [
        (name, dim, size)
        for dim in DIMENSIONS
        for size in BATCH_SIZES
        for name in BOUNDS
        if size == MAIN_BATCH_SIZE or (dim == DIMENSIONS[-1] and name in CEILING_BOUNDS)
    ]


def label(name: str, dim: int, size: int) -> str:
    """Returns the name of an arm in the ledger."""
    return f"{name}, {dim} dimensions, K = {size}"


def run_arm(name: str, dim: int, size: int, updates: int, seed: int) -> dict[str, Any]:
    """Trains one critic, whose pairs get more information in steps, and judges it at every step.

    A critic that goes on from less information learns in a share of the updates; every bound has the same course.

    Returns:
        Dict of lists by `INFORMATION`: `"mean"` and `"std"` of the bound over batches of new pairs, in nats.
    """
    keras.utils.set_random_seed(seed)
    model = Estimator(BOUNDS[name], dim)
    steps = max(updates // len(INFORMATION), 1)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=10.0), jit_compile=False, steps_per_execution=steps
    )
    rng = np.random.default_rng(seed)
    evaluate_batch = tf.function(lambda x, context: model.bound(model({"x": x, "context": context})))
    found: dict[str, Any] = {"mean": [], "std": []}
    for information in INFORMATION:
        correlation = correlation_of(information, dim)
        context, x = gaussian_pairs(steps * size, dim, correlation, rng)
        data = tf.data.Dataset.from_tensor_slices({"x": x, "context": context}).batch(size, drop_remainder=True)
        model.fit(data, shuffle=False, verbose=0)
        context, x = gaussian_pairs(EVALUATION_PAIRS, dim, correlation, rng)
        values = [float(evaluate_batch(**batch)) for batch in batches({"x": x, "context": context}, size)]
        found["mean"].append(statistics.fmean(values))
        found["std"].append(statistics.stdev(values))
    return found


def _table(ledger: Ledger, arm: str) -> dict[str, list[float]]:
    """Returns, by information: the mean over seeds of the estimate and of its spread, and the spread over seeds."""
    means, deviations = (np.array(ledger.values(arm, key), dtype="float64") for key in ("mean", "std"))
    return {
        "truth": list(INFORMATION),
        "estimate": means.mean(axis=0).tolist(),
        "std_over_seeds": (means.std(axis=0, ddof=1) if len(means) > 1 else np.zeros(len(INFORMATION))).tolist(),
        "bias": (means.mean(axis=0) - np.array(INFORMATION)).tolist(),
        "std_over_batches": deviations.mean(axis=0).tolist(),
    }


def _verdict(tables: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    dim, size = DIMENSIONS[-1], MAIN_BATCH_SIZE
    final = {name: {key: row[-1] for key, row in tables[label(name, dim, size)].items()} for name in BOUNDS}
    ceilings = {s: tables[label("InfoNCE", dim, s)]["estimate"][-1] for s in BATCH_SIZES}
    held = all(value <= math.log(s) for s, value in ceilings.items())
    others = [final[name]["std_over_batches"] for name in ("DV", "NWJ")]
    steadier = all(final["InfoNCE"]["std_over_batches"] < other for other in others)
    growth = {name: [tables[label(name, dim, size)]["std_over_batches"][i] for i in (0, -1)] for name in ("DV", "NWJ")}
    spreads = ", ".join(f"{name} from {first:.2f} to {last:.2f}" for name, (first, last) in growth.items())
    between = final["interpolated, α = 0.01"]["estimate"] > final["InfoNCE"]["estimate"]
    shown = "; ".join(f"{name} {row['estimate']:.2f} ± {row['std_over_batches']:.2f}" for name, row in final.items())
    limits = ", ".join(f"{value:.2f} of log {s} = {math.log(s):.2f}" for s, value in ceilings.items())
    return (
        f"At {INFORMATION[-1]:g} nats in {dim} dimensions InfoNCE {'stays' if held else 'does not stay'} below log K "
        f"({limits}) and varies {'less' if steadier else 'not less'} from batch to batch than both DV and NWJ, whose "
        f"deviations go, between {INFORMATION[0]:g} and {INFORMATION[-1]:g} nats, {spreads}; the "
        f"interpolated bound with α = 0.01 {'reaches' if between else 'does not reach'} above it. Estimates with "
        f"K = {size}, ± the standard deviation over batches: {shown}."
    )


# === Figure ===


def _figure(tables: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    colors = dict(
        zip(BOUNDS, ("tab:blue", "tab:cyan", "tab:green", "tab:orange", "tab:red", "tab:purple"), strict=True)
    )
    for axes, dim in zip(upper, DIMENSIONS, strict=False):
        for name in BOUNDS:
            row = tables[label(name, dim, MAIN_BATCH_SIZE)]
            deviation = np.array(row["std_over_seeds"])
            bars = np.where(deviation < HIGHEST_BAR, deviation, np.nan)
            axes.errorbar(row["truth"], row["estimate"], bars, marker=".", color=colors[name], label=name)
        _show_truth(axes, (MAIN_BATCH_SIZE,))
        axes.set_title(f"{dim} dimensions, K = {MAIN_BATCH_SIZE}")
    upper[0].legend(fontsize=8, loc="upper left", title=f"deviation over seeds, where below {HIGHEST_BAR:.0f} nats")
    upper[0].get_legend().get_title().set_fontsize(8)
    for size, style in zip(BATCH_SIZES, (":", "--", "-"), strict=True):
        for name in CEILING_BOUNDS:
            row = tables[label(name, DIMENSIONS[-1], size)]
            upper[2].plot(row["truth"], row["estimate"], style, color=colors[name], label=f"{name}, K = {size}")
    _show_truth(upper[2], BATCH_SIZES)
    upper[2].set_title(f"{DIMENSIONS[-1]} dimensions, ceilings log K")
    upper[2].legend(fontsize=7, loc="upper left")
    _show_errors(lower, tables, colors)
    return figure


def _show_truth(axes: Axes, sizes: Sequence[int]) -> None:
    highest = INFORMATION[-1]
    axes.plot([0, highest], [0, highest], "k-", linewidth=1)
    for size in sizes:
        axes.axhline(math.log(size), color="grey", linewidth=0.8, linestyle="--")
        axes.text(highest, math.log(size), f"log {size}", fontsize=8, ha="right", va="bottom", color="grey")
    axes.set(xlabel="true mutual information, nats", ylabel="estimate, nats", ylim=(-0.5, 1.3 * highest))


def _show_errors(
    row: Sequence[Axes], tables: Mapping[str, Mapping[str, Sequence[float]]], colors: Mapping[str, str]
) -> None:
    dim = DIMENSIONS[-1]
    where = f"{dim} dimensions, K = {MAIN_BATCH_SIZE}"
    for name in BOUNDS:
        table = tables[label(name, dim, MAIN_BATCH_SIZE)]
        deviation = np.array(table["std_over_batches"])
        row[0].plot(table["truth"], table["bias"], marker=".", color=colors[name])
        row[1].plot(table["truth"], deviation**2, marker=".", color=colors[name])
        row[2].plot(table["truth"], np.hypot(table["bias"], deviation), marker=".", color=colors[name])
    row[0].axhline(0, color="k", linewidth=1)
    # NWJ and JS hold an exponential of scores: some of their values are far below the axis.
    row[0].set(title=f"Bias, {where}", ylabel="estimate - truth, nats", ylim=(-1.2 * INFORMATION[-1], 3))
    row[1].set(title="Variance over batches", ylabel="nats²", yscale="log")
    row[2].set(title="Root mean squared error of a batch", ylabel="nats", yscale="log")
    for axes in row:
        axes.set_xlabel("true mutual information, nats")
