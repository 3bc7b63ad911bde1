"""NICE: how its checkpoint is trained, and what of the paper shows on 8 x 8 digits.

Claims: exact likelihood training of an invertible network works (it beats a full-covariance Gaussian), the diagonal scaling
is essential, and images can be encoded and interpolated. Beside them: the logistic against the Gaussian prior, and affine
against additive couplings, under the same budget. Every run keeps the weights of its best validation epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.experiments import image_flows
from zoo.experiments.image_flows import GAUSSIAN, load_levels
from zoo.experiments.image_grids import show_images
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.generative.nice import NICE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What each trained arm changes in the `digits` preset.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "additive, no scaling": {"scaling": False},
    "additive + scaling, logistic": {},
    "additive + scaling, gaussian": {"prior": "gaussian"},
    "affine + scaling, logistic": {"coupling": "affine"},
}
SHOWN = "additive + scaling, logistic"


# === Recipes ===


def prepare(model: NICE, dataset: str) -> None:
    """Computes from the training images what a fresh model takes from them: whitening, initial scales."""
    levels = load_levels(model, dataset, "train")
    if model.preprocessing == "zca":
        model.fit_preprocessing(levels)
    if model.scaling:
        model.initialize_scaling(levels)


def compile_model(model: NICE, num_updates: int) -> None:
    """Compiles a model with the paper's optimiser; its learning rate is constant, whatever the number of updates."""
    # XLA takes longer to compile these small dense graphs than it saves on a CPU.
    model.compile(optimizer=keras.optimizers.Adam(1e-3, beta_1=0.9, beta_2=0.99, epsilon=1e-4), jit_compile=False)


RECIPES = {
    "digits": image_flows.recipe("nice", "digits", "digits", 150, 128, compile_model, prepare=prepare),
    **{
        preset: image_flows.recipe(
            "nice", preset, preset, 30, 200, compile_model, evaluation_dataset=f"{preset}_sample", prepare=prepare
        )
        for preset in ("mnist", "fashion_mnist")
    },
    "nice_mnist": image_flows.recipe("nice", "nice_mnist", "mnist", 1500, 200, compile_model, prepare=prepare),
}


# === Experiment ===


CLAIM = (
    "Exact likelihood training of an invertible network works (it beats a full-covariance Gaussian), the diagonal scaling "
    "is essential, and images can be encoded and interpolated (paper, sections 3.3 and 5)."
)


def reproduce(directory: Path, seeds: int = 3, updates: int = 1200, progress: Progress = lambda message: None) -> None:
    """Trains all arms on digits, compares their held-out likelihoods and writes `nice.json` and `nice.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Budget of every trained arm.
        progress: callable that takes one line per run.
    """
    epochs = max(updates // RECIPES["digits"].steps_per_epoch, 1)
    settings = {"dataset": "digits", "split": "test", "updates": updates, "batch_size": 128}
    ledger = Ledger(directory / "nice.runs.json", settings)
    for seed in range(seeds):
        ledger.run(GAUSSIAN, seed, lambda seed=seed: image_flows.gaussian_baseline(seed), progress)
        for arm, changes in ARMS.items():
            ledger.run(arm, seed, lambda changes=changes, seed=seed: _run(changes, seed, epochs), progress)
    progress("figure")
    shown, _ = image_flows.train_arm(RECIPES["digits"], ARMS[SHOWN], 0, epochs)
    test = load_levels(shown, "digits", "test")
    histogram = outlier_log_probs(shown, test)
    write_results(
        "nice",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce nice --seeds {seeds} --updates {updates}",
        tables={
            "nats": ledger.summary("nats"),
            "bits_per_dimension": ledger.summary("bits_per_dimension"),
            "mean_log_density_by_kind_of_image": {kind: float(values.mean()) for kind, values in histogram.items()},
        },
        figure=draw(shown, test, histogram),
        settings={**settings, "seeds": seeds},
    )


def _run(changes: Mapping[str, Any], seed: int, epochs: int) -> dict[str, float]:
    model, _ = image_flows.train_arm(RECIPES["digits"], changes, seed, epochs)
    return image_flows.evaluate(model, "digits", "test")


def _verdict(ledger: Ledger) -> str:
    nats = {arm: spread(ledger.values(arm, "nats")) for arm in (GAUSSIAN, *ARMS)}
    gain = [
        flow - base for flow, base in zip(ledger.values(SHOWN, "nats"), ledger.values(GAUSSIAN, "nats"), strict=True)
    ]
    beats = "beats" if min(gain) > 0 else "does not beat in every seed"
    return (
        f"The logistic additive flow {beats} the full-covariance Gaussian ({nats[SHOWN]} against {nats[GAUSSIAN]} nats); "
        f"without scaling it has {nats['additive, no scaling']}; with affine couplings {nats['affine + scaling, logistic']}. "
        "Interpolations begin and end at the given images exactly; on 8 x 8 digits they look much like averages of pixels."
    )


def outlier_log_probs(model: NICE, levels: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the log-densities of digits, of digits with dark and light swapped, and of uniform noise."""
    noise = np.random.default_rng(seed).integers(0, model.num_levels, levels.shape)
    kinds = {"digits": levels, "inverted digits": model.num_levels - 1 - levels.astype(int), "uniform noise": noise}
    return {kind: model.log_prob(model.dequantize(values, seed)) for kind, values in kinds.items()}


# === Figure ===


def draw(model: NICE, levels: np.ndarray, histogram: Mapping[str, np.ndarray]) -> Figure:
    """Draws samples, the spectrum, interpolations and the histogram of log-densities.

    Args:
        model: trained `NICE` of square images.
        levels: int array `(num_images, num_features)`. Held-out images.
        histogram: dict from kind of image to log-densities.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    show_images(axes[0, 0], model.sample(64, seed=0).reshape(8, 8, 8, 8), "Samples")
    _show_spectrum(axes[0, 1], model)
    strips = image_flows.interpolation_strips(model, levels).reshape(4, -1, 8, 8)
    show_images(axes[1, 0], strips, "Interpolation of two pairs: latents, then pixels")
    _show_histogram(axes[1, 1], histogram)
    return figure


def _show_spectrum(axes: Axes, model: NICE) -> None:
    axes.plot(np.sort(np.exp(-model.log_scale.numpy()))[::-1], marker=".")
    axes.set_yscale("log")
    axes.set(title="Spectrum", xlabel="component, sorted", ylabel="exp(-s)")


def _show_histogram(axes: Axes, histogram: Mapping[str, np.ndarray]) -> None:
    # Outliers reach far below; what lies under the axis is counted in its first bin.
    bins = np.linspace(-1200, 150, 60)
    for kind, log_probs in histogram.items():
        axes.hist(np.clip(log_probs, bins[0], bins[-1]), bins, alpha=0.6, label=f"{kind} (mean {log_probs.mean():.0f})")
    axes.set(title="Log-density", xlabel="nats", ylabel="images")
    axes.legend()
