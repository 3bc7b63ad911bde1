"""What the experiments on flows of images share: batches of levels, training, likelihoods, and what figures show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import catalog
from zoo.datasets import load_arrays
from zoo.experiments.image_grids import show_images
from zoo.experiments.report import Ledger, difference
from zoo.generative.image_flow import ImageFlow
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAUSSIAN = "full-covariance Gaussian"
TRAINING_IMAGES = {"digits": 1257, "mnist": 50_000, "fashion_mnist": 50_000}
# Images by which the best epoch is chosen: more would take longer than the epochs themselves.
VALIDATION_IMAGES = 1000
VALIDATION_BATCH = 256
EVALUATION_BATCH = 500


# === Training ===


def image_shape(model: ImageFlow) -> tuple[int, ...]:
    """Returns the shape of one image as a model takes it."""
    return model.signatures()["log_prob"].inputs["image"].shape[1:]


def load_levels(model: ImageFlow, dataset: str, split: str) -> np.ndarray:
    """Returns the integer levels of a split in the shape that a model takes."""
    images = load_arrays(dataset, split)["image"]
    return images.reshape(len(images), *image_shape(model))


def shuffled_levels(batch_size: int) -> Callable[[ImageFlow, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of integer levels."""

    def data(model: ImageFlow, dataset: str, seed: int) -> TrainingData:
        train = load_levels(model, dataset, "train")
        validation = load_levels(model, dataset, "validation")[:VALIDATION_IMAGES]
        return TrainingData(
            tf.data.Dataset.from_tensor_slices(train).shuffle(len(train), seed=seed).repeat().batch(batch_size),
            tf.data.Dataset.from_tensor_slices(validation).batch(VALIDATION_BATCH),
        )

    return data


def evaluate(model: ImageFlow, dataset: str, split: str) -> dict[str, float]:
    """Returns the mean log-likelihood of a split in nats, and the bound on bits per dimension it gives."""
    images = model.evaluation_images(load_levels(model, dataset, split))
    batches = np.split(images, range(EVALUATION_BATCH, len(images), EVALUATION_BATCH))
    nats = float(np.mean(np.concatenate([model.log_prob(batch) for batch in batches])))
    return {"nats": nats, "bits_per_dimension": float(model.bits_per_dimension(nats))}


def recipe(
    method: str,
    preset: str,
    dataset: str,
    epochs: int,
    batch_size: int,
    compile: Callable[[ImageFlow, int], None],
    steps_per_epoch: int | None = None,
    evaluation_dataset: str | None = None,
    prepare: Callable[[ImageFlow, str], None] = lambda model, dataset: None,
) -> Recipe:
    """Returns the recipe of a flow; an epoch is about one pass over the training images unless said otherwise."""
    return Recipe(
        method=method,
        preset=preset,
        dataset=dataset,
        evaluation_dataset=evaluation_dataset,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch or math.ceil(TRAINING_IMAGES[dataset] / batch_size),
        prepare=prepare,
        data=shuffled_levels(batch_size),
        compile=compile,
        evaluate=evaluate,
        monitor="val_loss",
    )


def recipes(method: str, compile: Callable[[ImageFlow, int], None]) -> dict[str, Recipe]:
    """Returns the recipes of a flow of convolutions, for digits, MNIST and Fashion-MNIST."""
    found = {"digits": recipe(method, "digits", "digits", 150, 128, compile)}
    for preset in ("mnist", "fashion_mnist"):
        found[preset] = recipe(
            method, preset, preset, 16, 64, compile, steps_per_epoch=200, evaluation_dataset=f"{preset}_sample"
        )
    return found


# === Runs of experiments ===


def train_arm(used: Recipe, changes: Mapping[str, Any], seed: int, epochs: int) -> tuple[ImageFlow, list[float]]:
    """Trains one arm.

    Args:
        used: `Recipe`.
        changes: mapping. Constructor arguments that differ from the recipe's preset.
        seed: int.
        epochs: int.

    Returns:
        The model with the weights of its best validation epoch, and the validation bits per dimension of every epoch.
    """
    keras.utils.set_random_seed(seed)
    model = catalog.get(used.method, used.preset, weights=None, **changes)
    used.prepare(model, used.dataset)
    used.compile(model, epochs * used.steps_per_epoch)
    data = used.data(model, used.dataset, seed)
    history = model.fit(
        data.train,
        epochs=epochs,
        steps_per_epoch=used.steps_per_epoch,
        validation_data=data.validation,
        shuffle=False,
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True)],
        verbose=0,
    )
    return model, [float(model.bits_per_dimension(-loss)) for loss in history.history["val_loss"]]


def run_arm(used: Recipe, changes: Mapping[str, Any], seed: int, epochs: int) -> dict[str, Any]:
    """Trains one arm; returns its test likelihood and its `curve`, validation bits per dimension of every epoch."""
    model, curve = train_arm(used, changes, seed, epochs)
    return {**evaluate(model, used.dataset, "test"), "curve": [round(value, 4) for value in curve]}


def gaussian_baseline(seed: int, num_draws: int = 10) -> dict[str, float]:
    """Fits a full-covariance Gaussian to dequantised training digits in closed form and evaluates it on the test split.

    Args:
        seed: int. Seed of the noise on the training images.
        num_draws: int. Number of noise draws for each training image.

    Returns:
        Dict like that of `evaluate`.
    """
    # The flow itself is not used, only what it knows of levels and scales.
    data = catalog.get("nice", "digits", weights=None)
    images = data.dequantize(np.repeat(load_levels(data, "digits", "train"), num_draws, axis=0), seed).astype(
        np.float64
    )
    mean, covariance = images.mean(axis=0), np.cov(images, rowvar=False)
    offsets = data.evaluation_images(load_levels(data, "digits", "test")) - mean
    distances = np.sum(offsets * np.linalg.solve(covariance, offsets.T).T, axis=1)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    nats = float(np.mean(-0.5 * (distances + log_det)))
    return {"nats": nats, "bits_per_dimension": float(data.bits_per_dimension(nats))}


def comparison(ledger: Ledger, better: str, worse: str) -> str:
    """Says whether the seeds of one arm need fewer bits than those of another that they are said to surpass."""
    gain = difference(ledger, better, worse, "bits_per_dimension")
    pairs = zip(*(ledger.values(arm, "bits_per_dimension") for arm in (better, worse)), strict=True)
    wins = [first < second for first, second in pairs]
    verdict = "in every seed" if all(wins) else f"in {sum(wins)} of {len(wins)} seeds, so it does not show"
    return f"{gain['mean']:+.3f} ± {gain['std']:.3f} saved, {verdict}"


# === Figures ===


def figure_of_arms(ledger: Ledger, arms: Sequence[str], model: ImageFlow, used: Recipe) -> Figure:
    """Draws test likelihoods and validation curves of all arms, and samples and interpolations of one trained model.

    Args:
        ledger: `Ledger` of runs by `run_arm`.
        arms: sequence of str. Those to show.
        model: trained model.
        used: `Recipe` of the arms.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    show_bits(axes[0, 0], ledger, arms)
    show_curves(axes[0, 1], ledger, arms, used.steps_per_epoch)
    low, high = model.value_range
    shape = image_shape(model)[:2]
    samples = (model.sample(64, seed=0) - low) / (high - low)
    show_images(axes[1, 0], samples.reshape(8, 8, *shape), "Samples")
    strips = interpolation_strips(model, load_levels(model, used.dataset, "test"))
    show_images(axes[1, 1], strips.reshape(*strips.shape[:2], *shape), "Two pairs: latents, then pixels")
    return figure


def interpolation_strips(model: ImageFlow, levels: np.ndarray, num_steps: int = 9) -> np.ndarray:
    """Returns ways from two images to two others, each by way of latents and by averages of pixels.

    Args:
        model: trained flow.
        levels: int array of at least four images. The first two begin, the next two end.
        num_steps: int.

    Returns:
        float array `(4, num_steps, *image_shape)` of values in [0, 1]: latents, pixels, latents, pixels.
    """
    images = model.dequantize(levels[:4], seed=0)
    start, end = images[:2], images[2:]
    time = np.linspace(0.0, 1.0, num_steps).reshape(1, -1, *[1] * (images.ndim - 1))
    averages = (1 - time) * start[:, None] + time * end[:, None]
    flows = model.interpolate(start, end, num_steps)
    low, high = model.value_range
    return (np.stack([flows[0], averages[0], flows[1], averages[1]]) - low) / (high - low)


def show_bits(axes: Axes, ledger: Ledger, arms: Sequence[str]) -> None:
    """Draws each arm's test bits per dimension: a point for each seed, and a bar at their mean."""
    for place, arm in enumerate(arms):
        values = ledger.values(arm, "bits_per_dimension")
        color = "tab:grey" if arm == GAUSSIAN else "tab:blue"
        axes.plot(statistics.fmean(values), place, marker="|", markersize=24, markeredgewidth=4, color=color)
        axes.plot(values, [place] * len(values), "k.")
    axes.set(title="Test images at equal updates", xlabel="bits per dimension (less is better)")
    axes.set(yticks=range(len(arms)), yticklabels=list(arms))
    axes.grid(axis="x", alpha=0.4)
    axes.margins(0.08, 0.1)
    axes.invert_yaxis()


def show_curves(axes: Axes, ledger: Ledger, arms: Sequence[str], steps_per_epoch: int) -> None:
    """Draws the validation bits per dimension of each trained arm by update: means, and the range over seeds."""
    lasts = []
    for arm in arms:
        if arm == GAUSSIAN:
            continue
        curves = np.array(ledger.values(arm, "curve"))
        updates = steps_per_epoch * np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(updates, curves.mean(axis=0), label=arm)
        axes.fill_between(updates, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2)
        lasts.append(curves.mean(axis=0)[len(updates) // 10 :])
    # The first tenth of a training would squash the rest.
    low, high = min(curve.min() for curve in lasts), max(curve.max() for curve in lasts)
    axes.set_ylim(low - 0.05 * (high - low + 0.1), high + 0.05 * (high - low + 0.1))
    axes.set(title="Validation images", xlabel="update", ylabel="bits per dimension")
    axes.legend()
