"""LightConv: how its checkpoints are trained, and a ladder from depthwise convolutions to dynamic ones in translation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.experiments import convolutional_models as cm
from zoo.experiments import translation
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.layers.lightweight_convolution import LightweightConv1D
from zoo.sequence.convolutional_models import ConvolutionalEncoderDecoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECIPES = cm.recipes("lightweight_conv")

CLAIM = (
    "With as many parameters, DynamicConv translates at least as well as self-attention and LightConv about as well; a "
    "plain depthwise convolution is behind (paper, tables 1 to 3)."
)
DATASET = "iso_names"
SIZES = dict(
    num_encoder_layers=3, num_decoder_layers=3, hidden_dim=64, num_heads=4, kernel_sizes=(3, 7, 15), dropout=0.1
)
INTERMEDIATE_DIM = 128
# Pairs of arms, the one that should make fewer errors first.
COMPARISONS = (
    ("DynamicConv", "self-attention"),
    ("LightConv", "self-attention"),
    ("DynamicConv", "LightConv"),
    ("LightConv", "depthwise"),
)


def reproduce(directory: Path, seeds: int = 3, updates: int = 500, progress: Progress = lambda message: None) -> None:
    """Trains every arm with every seed and writes `lightweight_conv.json`, `.png` and `_kernels.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Training steps of 64 names.
        progress: callable that takes one line per run.
    """
    settings = {**SIZES, "updates": updates, "dataset": DATASET, "split": "test"}
    ledger = Ledger(directory / "lightweight_conv.runs.json", settings)
    for seed in range(seeds):
        for arm in cm.MIXERS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: _run(arm, updates, seed), progress)
    keys = ("character_error_rate", "exact_match", "bits_per_character", "parameters")
    write_results(
        "lightweight_conv",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce lightweight_conv --seeds {seeds} --updates {updates}",
        tables={
            **{key: ledger.summary(key) for key in keys},
            "fewer_character_errors": {
                f"{better} against {worse}": difference(ledger, better, worse, "character_error_rate")
                for better, worse in COMPARISONS
            },
        },
        figure=_ladder(ledger),
        settings={**settings, "seeds": seeds},
        more_figures={"kernels": _kernel_figure(ledger.values("LightConv", "kernels")[0])},
    )


def build(arm: str, intermediate_dim: int = INTERMEDIATE_DIM) -> ConvolutionalEncoderDecoder:
    """Returns the model of an arm with random weights."""
    model_class = cm.with_mixer(ConvolutionalEncoderDecoder, arm)
    model = model_class(**SIZES, **translation.vocabulary(DATASET), intermediate_dim=intermediate_dim)
    return model.build_from_signature()


def _run(arm: str, updates: int, seed: int) -> dict[str, Any]:
    parameters = build("LightConv").count_params()
    keras.utils.set_random_seed(seed)
    model = cm.equal_size(lambda width: build(arm, width), INTERMEDIATE_DIM, parameters)
    translation.prepare(model, DATASET)
    data = translation.pair_data(64)(model, DATASET, seed)
    translation.compiler(peak=5e-3, warmup_steps=min(100, updates // 5))(model, updates)
    model.fit(data.train, steps_per_epoch=updates, epochs=1, verbose=0, shuffle=False)
    result = {**translation.evaluate(model, DATASET, "test"), "parameters": model.count_params()}
    return {**result, "kernels": _kernels(model)} if arm == "LightConv" else result


def _kernels(model: ConvolutionalEncoderDecoder) -> dict[str, list[list[float]]]:
    """Returns the learned kernels `(heads, taps)` of every layer."""
    stacks = {"encoder": model.encoder_layers, "decoder": model.decoder_layers}
    kernels = {}
    for stack, layers in stacks.items():
        for index, layer in enumerate(layers, start=1):
            learned: LightweightConv1D = layer.mixer.convolution
            kernels[f"{stack} {index}"] = np.asarray(learned.normalized_kernel()).round(4).tolist()
    return kernels


def _verdict(ledger: Ledger) -> str:
    rates = {arm: spread(ledger.values(arm, "character_error_rate")) for arm in cm.MIXERS}
    parts = []
    for better, worse in COMPARISONS:
        pairs = zip(*(ledger.values(arm, "character_error_rate") for arm in (better, worse)), strict=True)
        wins = [first < second for first, second in pairs]
        kind = "in every seed" if all(wins) else f"in {sum(wins)} of {len(wins)} seeds"
        parts.append(f"{better} makes fewer errors than {worse} {kind} ({rates[better]} against {rates[worse]})")
    return f"Edits per character of held-out names: {'; '.join(parts)}."


# === Figures ===


def _ladder(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    errors, matches = figure.subplots(1, 2, sharey=True)
    _show_arms(errors, ledger, "character_error_rate", "edits per character (less is better)")
    _show_arms(matches, ledger, "exact_match", "share of names without an error (more is better)")
    errors.set(yticks=range(len(cm.MIXERS)), yticklabels=list(cm.MIXERS))
    errors.invert_yaxis()
    figure.suptitle("English to German names at equal parameters and updates; a dot is a seed, a bar their mean")
    return figure


def _show_arms(axes: Axes, ledger: Ledger, key: str, label: str) -> None:
    for place, arm in enumerate(cm.MIXERS):
        values = ledger.values(arm, key)
        color = "tab:orange" if arm.startswith("self") else "tab:blue"
        axes.plot(np.mean(values), place, marker="|", markersize=24, markeredgewidth=4, color=color)
        axes.plot(values, [place] * len(values), "k.")
    axes.set(xlabel=label)
    axes.margins(0.08, 0.1)
    axes.grid(axis="x", alpha=0.4)


def _kernel_figure(kernels: dict[str, list[list[float]]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (name, kernel) in zip(figure.subplots(2, 3).flat, kernels.items(), strict=True):
        taps = len(kernel[0])
        first = 1 - taps if name.startswith("decoder") else -(taps // 2)
        image = axes.imshow(
            kernel,
            aspect="auto",
            cmap="viridis",
            vmin=0,
            extent=(first - 0.5, first + taps - 0.5, len(kernel) + 0.5, 0.5),
        )
        axes.set(title=name, xlabel="place relative to the output", ylabel="head", yticks=range(1, len(kernel) + 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes)
    figure.suptitle("Kernels that LightConv has learned")
    return figure
