"""NICE: how its checkpoint is trained, and what of the paper shows on 8 x 8 digits.

Claims: exact likelihood training of an invertible network works (it beats a full-covariance Gaussian), the diagonal scaling
is essential, and images can be encoded and interpolated. Beside them: the logistic against the Gaussian prior, and affine
against additive couplings, under the same budget. Every run keeps the weights of its best validation epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.catalog import info
from zoo.datasets import load_arrays
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.generative.nice import NICE
from zoo.training.recipe import Recipe, TrainingData

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
GAUSSIAN = "full-covariance Gaussian"
SHOWN = "additive + scaling, logistic"
EVALUATION_BATCH = 1000


# === Recipes ===


def load_levels(dataset: str, split: str) -> np.ndarray:
    """Returns the integer levels of a split, flattened `(num_images, num_features)`."""
    images = load_arrays(dataset, split)["image"]
    return images.reshape(len(images), -1)


def prepare(model: NICE, dataset: str) -> None:
    """Computes from the training images what a fresh model takes from them: whitening, initial scales."""
    levels = load_levels(dataset, "train")
    if model.preprocessing == "zca":
        model.fit_preprocessing(levels)
    if model.scaling:
        model.initialize_scaling(levels)


def shuffled_images(batch_size: int) -> Callable[[NICE, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of integer levels."""

    def data(model: NICE, dataset: str, seed: int) -> TrainingData:
        train, validation = load_levels(dataset, "train"), load_levels(dataset, "validation")
        return TrainingData(
            tf.data.Dataset.from_tensor_slices(train).shuffle(len(train), seed=seed).repeat().batch(batch_size),
            tf.data.Dataset.from_tensor_slices(validation).batch(EVALUATION_BATCH),
        )

    return data


def compile_model(model: NICE, num_updates: int) -> None:
    """Compiles a model with the paper's optimiser; its learning rate is constant, whatever the number of updates."""
    # XLA takes longer to compile these small dense graphs than it saves on a CPU.
    model.compile(optimizer=keras.optimizers.Adam(1e-3, beta_1=0.9, beta_2=0.99, epsilon=1e-4), jit_compile=False)


def evaluate(model: NICE, dataset: str, split: str) -> dict[str, float]:
    """Returns the mean log-likelihood of a split in nats, and the bound on bits per dimension it gives."""
    images = model.evaluation_images(load_levels(dataset, split))
    batches = np.split(images, range(EVALUATION_BATCH, len(images), EVALUATION_BATCH))
    nats = float(np.mean(np.concatenate([model.log_prob(batch) for batch in batches])))
    return {"nats": nats, "bits_per_dimension": float(model.bits_per_dimension(nats))}


def _recipe(preset: str, dataset: str, epochs: int, batch_size: int) -> Recipe:
    """Returns the recipe of a preset; an epoch is about one pass over the training images."""
    return Recipe(
        method="nice",
        preset=preset,
        dataset=dataset,
        epochs=epochs,
        steps_per_epoch=-(-TRAINING_IMAGES[dataset] // batch_size),
        prepare=prepare,
        data=shuffled_images(batch_size),
        compile=compile_model,
        evaluate=evaluate,
        monitor="val_loss",
    )


TRAINING_IMAGES = {"digits": 1257, "mnist": 50_000}
RECIPES = {
    "digits": _recipe("digits", "digits", epochs=150, batch_size=128),
    "nice_mnist": _recipe("nice_mnist", "mnist", epochs=1500, batch_size=200),
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
        ledger.run(GAUSSIAN, seed, lambda seed=seed: gaussian_baseline(seed), progress)
        for arm, changes in ARMS.items():
            ledger.run(arm, seed, lambda changes=changes, seed=seed: _run(changes, seed, epochs), progress)
    progress("figure")
    shown, test = train_arm(ARMS[SHOWN], 0, epochs), load_levels("digits", "test")
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
    return evaluate(train_arm(changes, seed, epochs), "digits", "test")


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


def train_arm(changes: Mapping[str, Any], seed: int, epochs: int) -> NICE:
    """Trains one arm and returns it with the weights of its best validation epoch.

    Args:
        changes: mapping. Constructor arguments that differ from the preset `digits`.
        seed: int.
        epochs: int.
    """
    keras.utils.set_random_seed(seed)
    used = RECIPES["digits"]
    model = NICE(**{**info("nice").preset("digits").config, **changes})
    prepare(model, "digits")
    compile_model(model, epochs * used.steps_per_epoch)
    data = used.data(model, "digits", seed)
    model.fit(
        data.train,
        epochs=epochs,
        steps_per_epoch=used.steps_per_epoch,
        validation_data=data.validation,
        shuffle=False,
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True)],
        verbose=0,
    )
    return model


def gaussian_baseline(seed: int, num_draws: int = 10) -> dict[str, float]:
    """Fits a full-covariance Gaussian to dequantised training digits in closed form and evaluates it on the test split.

    Args:
        seed: int. Seed of the noise on the training images.
        num_draws: int. Number of noise draws for each training image.

    Returns:
        Dict like that of `evaluate`.
    """
    # The flow itself is not used, only what it knows of levels and scales.
    data = NICE(**info("nice").preset("digits").config)
    images = data.dequantize(np.repeat(load_levels("digits", "train"), num_draws, axis=0), seed).astype(np.float64)
    mean, covariance = images.mean(axis=0), np.cov(images, rowvar=False)
    offsets = data.evaluation_images(load_levels("digits", "test")) - mean
    distances = np.sum(offsets * np.linalg.solve(covariance, offsets.T).T, axis=1)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    nats = float(np.mean(-0.5 * (distances + log_det)))
    return {"nats": nats, "bits_per_dimension": float(data.bits_per_dimension(nats))}


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
    _show_images(axes[0, 0], model.sample(64, seed=0).reshape(8, 8, -1), "Samples")
    _show_spectrum(axes[0, 1], model)
    _show_images(axes[1, 0], _strips(model, levels), "Interpolation of two pairs: latents, then pixels")
    _show_histogram(axes[1, 1], histogram)
    return figure


def _strips(model: NICE, levels: np.ndarray, num_steps: int = 9) -> np.ndarray:
    images = model.dequantize(levels[:4], seed=0)
    start, end = images[:2], images[2:]
    time = np.linspace(0.0, 1.0, num_steps)[None, :, None]
    averages = (1 - time) * start[:, None] + time * end[:, None]
    flows = model.interpolate(start, end, num_steps)
    return np.stack([flows[0], averages[0], flows[1], averages[1]])


def _show_images(axes: Axes, images: np.ndarray, title: str) -> None:
    rows, columns, features = images.shape
    side = round(features**0.5)
    tiles = np.pad(np.clip(images, 0, 1).reshape(rows, columns, side, side), ((0, 0), (0, 0), (1, 0), (1, 0)))
    axes.imshow(tiles.transpose(0, 2, 1, 3).reshape(rows * (side + 1), -1), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()


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
