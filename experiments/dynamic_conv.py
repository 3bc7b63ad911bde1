"""DynamicConv: how its checkpoints are trained, what predicted kernels gain in a language model, and what they cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import catalog
from zoo.experiments import convolutional_models as cm
from zoo.experiments import language_models as lm
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.layers.lightweight_convolution import ConvolutionModule
from zoo.sequence.convolutional_models import ConvolutionalLanguageModel
from zoo.sequence.tokenizer import encode_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECIPES = cm.recipes("dynamic_conv")

CLAIM = (
    "Kernels predicted from the current position alone do at least as well as self-attention of the same size, better than "
    "fixed ones, and their cost grows linearly with the length (paper, sections 4 and 6)."
)
DATASET = "austen"
ATTENTION = "Transformer-XL"
ARMS = (ATTENTION, "depthwise", "LightConv", "DynamicConv", "DynamicConv, no softmax")
SIZES = dict(num_layers=4, hidden_dim=64, num_heads=4, window_length=64)
INTERMEDIATE_DIM = 128
SENTENCE = "It is a truth universally acknowledged, that a single man in possession"
SHOWN_LAYER = 2

TIMED = ("self-attention", "LightConv", "DynamicConv")
TIMED_DIM, TIMED_HEADS, TIMED_KERNEL = 128, 4, 31
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
# Shorter sequences show what a call costs, not how it grows.
SHORTEST_FITTED = 512


def reproduce(directory: Path, seeds: int = 3, updates: int = 1000, progress: Progress = lambda message: None) -> None:
    """Trains every arm with every seed, times the modules, and writes `dynamic_conv.json`, `.png` and `_kernels.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Training steps of 16 x 64 characters.
        progress: callable that takes one line per run.
    """
    settings = {**SIZES, "updates": updates, "dataset": DATASET, "split": "validation"}
    ledger = Ledger(directory / "dynamic_conv.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: _run(arm, updates, seed), progress)
    progress("times")
    times = measure_times()
    slopes = {arm: growth(times[arm]) for arm in TIMED}
    write_results(
        "dynamic_conv",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, slopes, times),
        command=f"zoo reproduce dynamic_conv --seeds {seeds} --updates {updates}",
        tables={
            "bits_per_character": ledger.summary("bits_per_character"),
            "parameters": ledger.summary("parameters"),
            "fewer_bits": {
                f"DynamicConv against {other}": difference(ledger, "DynamicConv", other, "bits_per_character")
                for other in ARMS
                if other != "DynamicConv"
            },
            "milliseconds_by_length": times,
            "exponent_of_length": slopes,
        },
        figure=_figure(ledger, times, slopes),
        settings={**settings, "seeds": seeds},
        more_figures={"kernels": _kernel_figure(ledger.values("DynamicConv", "kernels")[0])},
    )


# === Language models ===


def build(arm: str, intermediate_dim: int = INTERMEDIATE_DIM) -> keras.Model:
    """Returns the model of an arm with random weights."""
    sizes = {**SIZES, **lm.vocabulary(DATASET), "intermediate_dim": intermediate_dim}
    if arm == ATTENTION:
        return catalog.get("transformer_xl", weights=None, **{**sizes, "memory_length": SIZES["window_length"]})
    return cm.with_mixer(ConvolutionalLanguageModel, arm)(**sizes).build_from_signature()


def _run(arm: str, updates: int, seed: int) -> dict[str, Any]:
    parameters = build("LightConv").count_params()
    keras.utils.set_random_seed(seed)
    model = cm.equal_size(lambda width: build(arm, width), INTERMEDIATE_DIM, parameters)
    lm.prepare(model, DATASET)
    lm.fit_arm(model, DATASET, updates, seed)
    result = {**lm.evaluate(model, DATASET, "validation"), "parameters": model.count_params()}
    return {**result, "kernels": sentence_kernels(model, SHOWN_LAYER)} if arm == "DynamicConv" else result


def sentence_kernels(model: ConvolutionalLanguageModel, layer: int) -> list[list[list[float]]]:
    """Returns the kernels `(characters, heads, taps)` that a layer predicts along a sentence."""
    hidden = model.embedding(encode_text(model.tokenizer, SENTENCE)[None]) * model.hidden_dim**0.5
    for before in model.convolutional_layers[:layer]:
        hidden = before(hidden)
    chosen = model.convolutional_layers[layer]
    inputs = chosen.mixer.projected(chosen.mixer_norm(hidden))
    return np.asarray(chosen.mixer.convolution.normalized_kernel(inputs))[0].round(3).tolist()


# === Time ===


def measure_times(lengths: tuple[int, ...] = LENGTHS, repeats: int = 7) -> dict[str, dict[str, float]]:
    """Returns the CPU time of one causal module of each kind, in ms by length: medians of interleaved runs.

    Args:
        lengths: tuple of int. Positions of the one sequence that is read.
        repeats: int.
    """
    modules = {
        "self-attention": cm.SelfAttention(max(lengths), TIMED_HEADS, "causal"),
        "LightConv": ConvolutionModule("lightweight", TIMED_KERNEL, TIMED_HEADS, padding="causal"),
        "DynamicConv": ConvolutionModule("dynamic", TIMED_KERNEL, TIMED_HEADS, padding="causal"),
    }
    times = {arm: {} for arm in TIMED}
    for length in lengths:
        inputs = tf.constant(np.random.default_rng(0).standard_normal((1, length, TIMED_DIM)), "float32")
        functions = {arm: tf.function(module) for arm, module in modules.items()}
        for function in functions.values():
            function(inputs)
        taken = {arm: [] for arm in functions}
        # Short runs are repeated: the clock is coarse beside them.
        runs = max(1, 2048 // length)
        for _ in range(repeats):
            for arm, function in functions.items():
                start = time.process_time()
                for _ in range(runs):
                    function(inputs)
                taken[arm].append(1e3 * (time.process_time() - start) / runs)
        for arm, values in taken.items():
            times[arm][str(length)] = float(np.median(values))
    return times


def growth(times: dict[str, float]) -> float:
    """Returns the exponent b of a fitted time a * length**b, of the longer sequences."""
    fitted = [(int(length), value) for length, value in times.items() if int(length) >= SHORTEST_FITTED]
    lengths, values = zip(*fitted, strict=True)
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


# === Report ===


def _verdict(ledger: Ledger, slopes: dict[str, float], times: dict[str, dict[str, float]]) -> str:
    bits = {arm: spread(ledger.values(arm, "bits_per_character")) for arm in ARMS}
    parts = []
    for other in (ATTENTION, "LightConv", "depthwise"):
        pairs = zip(*(ledger.values(arm, "bits_per_character") for arm in ("DynamicConv", other)), strict=True)
        wins = [first < second for first, second in pairs]
        kind = "in every seed" if all(wins) else f"in {sum(wins)} of {len(wins)} seeds"
        parts.append(f"fewer than {other} ({bits[other]}) {kind}")
    longest = str(max(LENGTHS))
    ratio = times["self-attention"][longest] / times["DynamicConv"][longest]
    return (
        f"DynamicConv needs {bits['DynamicConv']} bits per character: {', '.join(parts)}; without the softmax it needs "
        f"{bits['DynamicConv, no softmax']}. Its time grows as length to the {slopes['DynamicConv']:.2f}, that of "
        f"self-attention to the {slopes['self-attention']:.2f}; at {longest} positions self-attention takes {ratio:.1f} "
        "times as long."
    )


def _figure(ledger: Ledger, times: dict[str, dict[str, float]], slopes: dict[str, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    bits, cost = figure.subplots(1, 2)
    _show_bits(bits, ledger)
    for arm in TIMED:
        lengths = [int(length) for length in times[arm]]
        label = f"{arm}: length^{slopes[arm]:.2f}"
        cost.plot(lengths, list(times[arm].values()), marker="o", label=label)
    cost.set(xscale="log", yscale="log", xlabel="positions", ylabel="CPU time of one module (ms)")
    cost.set_title(f"Forward time, {TIMED_DIM} channels, {TIMED_HEADS} heads, {TIMED_KERNEL} taps")
    cost.grid(alpha=0.4)
    cost.legend()
    return figure


def _show_bits(axes: Axes, ledger: Ledger) -> None:
    for place, arm in enumerate(ARMS):
        values = ledger.values(arm, "bits_per_character")
        color = "tab:orange" if arm == ATTENTION else "tab:blue"
        axes.plot(np.mean(values), place, marker="|", markersize=24, markeredgewidth=4, color=color)
        axes.plot(values, [place] * len(values), "k.")
    axes.set(title="Equal parameters and updates", xlabel="bits per character (less is better)")
    axes.set(yticks=range(len(ARMS)), yticklabels=list(ARMS))
    axes.grid(axis="x", alpha=0.4)
    axes.margins(0.08, 0.12)
    axes.invert_yaxis()


def _kernel_figure(kernels: list[list[list[float]]]) -> Figure:
    from matplotlib.figure import Figure

    by_head = np.transpose(kernels, (1, 2, 0))
    heads, taps, places = by_head.shape
    figure = Figure(figsize=(12, 2.2 * heads), layout="constrained")
    for head, (axes, values) in enumerate(zip(figure.subplots(heads, 1, sharex=True), by_head, strict=True), start=1):
        extent = (-0.5, places - 0.5, 0.5, 0.5 - taps)  # the oldest tap is the first row, at the top
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, extent=extent)
        axes.set(ylabel=f"head {head}", yticks=range(0, -taps, -7))
        figure.colorbar(image, ax=axes)
    axes.set_xticks(range(places), list(SENTENCE))
    figure.supylabel("place relative to the output")
    figure.suptitle(f"Kernels that layer {SHOWN_LAYER + 1} of DynamicConv predicts along a sentence")
    return figure
