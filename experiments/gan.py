"""Generative adversarial networks: how their checkpoints are trained, and what their losses and the rules of DCGAN do.

Two experiments. On a ring of eight narrow Gaussians, the non-saturating loss of the generator beside the minimax one, from
the same seeds. On digits, a network by the rules of DCGAN beside the same one without batch normalisation, with ReLU in the
discriminator, and with Adam's usual momentum. Samples are held against test images in the features of a fixed classifier.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.catalog import info
from zoo.datasets import load_arrays
from zoo.experiments.image_grids import show_images
from zoo.experiments.report import Ledger, Progress, mean_and_std, spread, write_results
from zoo.experiments.sample_quality import FeatureClassifier, frechet_distance, sample_quality, scaled_images
from zoo.generative.gan import BETA_1, EVALUATION_SEED, GAN, LEARNING_RATE
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH_SIZE = 64
EVALUATION_BATCH = 500
# Data sets too large to judge every epoch on: their embedded part does.
JUDGES = {"mnist": "mnist_sample", "fashion_mnist": "fashion_mnist_sample"}


# === Recipes ===


@dataclasses.dataclass(frozen=True)
class ImageData(TrainingData):
    """Batches of images, and the name of the data set that samples are judged on.

    Args:
        judge: str. Name for `zoo.datasets.load`.
    """

    judge: str


def shuffled_images(model: GAN, dataset: str, seed: int) -> ImageData:
    """The `data` function of a recipe: shuffled batches of images, and of labels where the model takes them."""
    train, validation = (_slices(model, dataset, split) for split in ("train", "validation"))
    return ImageData(
        _scaled(model, train.shuffle(len(train), seed=seed).repeat().batch(BATCH_SIZE)),
        _scaled(model, validation.batch(EVALUATION_BATCH)),
        JUDGES.get(dataset, dataset),
    )


def _slices(model: GAN, dataset: str, split: str) -> tf.data.Dataset:
    arrays = load_arrays(dataset, split)
    images = arrays["image"].reshape(-1, *model.image_shape)
    return tf.data.Dataset.from_tensor_slices((images, arrays["label"]) if model.num_classes else (images,))


def _scaled(model: GAN, batches: tf.data.Dataset) -> tf.data.Dataset:
    return batches.map(lambda levels, *label: (model.scale(levels), *label))


def adam(beta_1: float = BETA_1, learning_rate: float = LEARNING_RATE) -> Callable[[GAN, int], None]:
    """Returns the `compile` function of a recipe: Adam, of a constant learning rate, for both networks."""

    def compile_model(model: GAN, num_updates: int) -> None:
        # XLA takes longer to compile these small graphs than it saves on a CPU.
        model.compile(keras.optimizers.Adam(learning_rate, beta_1=beta_1), jit_compile=False)

    return compile_model


class FrechetDistance(keras.callbacks.Callback):
    """Reports `val_frechet_distance`, of samples from validation images: a GAN has no loss to choose weights by.

    Args:
        dataset: str. Name for `zoo.datasets.load`.
    """

    def __init__(self, dataset: str):
        super().__init__()
        self.classifier = FeatureClassifier.of(dataset)
        self.real = self.classifier.features(scaled_images(dataset, "validation"))
        self.labels = load_arrays(dataset, "validation")["label"]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Draws samples, by the same noise each time, and adds their distance to the epoch's metrics."""
        fake = self.classifier.features(draw(self.model, self.labels))
        logs["val_frechet_distance"] = frechet_distance(self.real, fake)


def draw(model: GAN, labels: np.ndarray, seed: int = EVALUATION_SEED) -> np.ndarray:
    """Returns a sample for each label, which only conditional models look at."""
    latents = model.draw_latents(len(labels), seed)
    parts = [slice(start, start + EVALUATION_BATCH) for start in range(0, len(labels), EVALUATION_BATCH)]
    return np.concatenate([model.decode(latents[i], labels[i] if model.num_classes else None) for i in parts])


def evaluate(model: GAN, dataset: str, split: str) -> dict[str, float]:
    """Returns the measures of `sample_quality` on a split; `label_accuracy` of the samples of a conditional model."""
    classifier, labels = FeatureClassifier.of(dataset), load_arrays(dataset, split)["label"]
    samples = draw(model, labels)
    found = sample_quality(classifier, scaled_images(dataset, split), samples)
    return {**found, "label_accuracy": classifier.accuracy(samples, labels)} if model.num_classes else found


def _recipe(preset: str, dataset: str, epochs: int, steps_per_epoch: int) -> Recipe:
    return Recipe(
        method="gan",
        preset=preset,
        dataset=dataset,
        evaluation_dataset=JUDGES.get(dataset),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        data=shuffled_images,
        compile=adam(),
        evaluate=evaluate,
        monitor="val_frechet_distance",
        callbacks=lambda data: [FrechetDistance(data.judge)],
    )


RECIPES = {
    "digits": _recipe("digits", "digits", epochs=48, steps_per_epoch=250),
    "digits_conditional": _recipe("digits_conditional", "digits", epochs=28, steps_per_epoch=250),
    "digits_mlp": _recipe("digits_mlp", "digits", epochs=80, steps_per_epoch=250),
    "mnist": _recipe("mnist", "mnist", epochs=20, steps_per_epoch=500),
    "fashion_mnist": _recipe("fashion_mnist", "fashion_mnist", epochs=20, steps_per_epoch=500),
}


# === Experiment ===


CLAIM = (
    "The generator learns from -log D(G(z)) where log(1 - D(G(z))) has hardly any gradient, early in training (Goodfellow et "
    "al. 2014, section 3); and networks by the rules of DCGAN train stably and give better samples (Radford et al. 2016, "
    "section 3)."
)
NON_SATURATING, MINIMAX = "ring, non-saturating", "ring, minimax"
RING_ARMS = {NON_SATURATING: "non_saturating", MINIMAX: "minimax"}
DCGAN = "DCGAN"
# What each arm changes in the preset `digits`, and the momentum of its optimizers.
DIGIT_ARMS: Mapping[str, tuple[Mapping[str, Any], float]] = {
    DCGAN: ({}, BETA_1),
    "no batch normalisation": ({"batch_norm": "none"}, BETA_1),
    "ReLU in the discriminator": ({"negative_slope": 0.0}, BETA_1),
    "momentum of 0.9": ({}, 0.9),
}
# Points in which a training is measured on its way
NUM_POINTS = 50
NUM_MODES, RADIUS, DEVIATION = 8, 2.0, 0.02
# The square that images of two values, from 0 to 1, stand for reaches so far from its centre
HALF_WIDTH = 2.5
RING_BATCH, RING_SAMPLES, RING_LEARNING_RATE = 256, 2500, 1e-3
LEAST_SAMPLES = 20
LOG_4 = math.log(4.0)
NUM_SHOWN, NUM_STRIPS, PATH_STEPS = 24, 8, 9


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 5000,
    progress: Progress = lambda message: None,
) -> None:
    """Trains all arms of both experiments and writes `gan.json` and `gan.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Updates of both networks in every run.
        progress: callable that takes one line per run.
    """
    settings = {
        "ring": f"{NUM_MODES} Gaussians of deviation {DEVIATION} on a circle of radius {RADIUS}; batches of {RING_BATCH}",
        "dataset": "digits",
        "split": "test",
        "updates": updates,
        "batch_size": BATCH_SIZE,
    }
    ledger = Ledger(directory / "gan.runs.json", settings)
    for seed in range(seeds):
        for arm in RING_ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: run_ring(RING_ARMS[arm], updates, seed), progress)
        for arm in DIGIT_ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: run_digits(arm, updates, seed), progress)
    progress("figure")
    write_results(
        "gan",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, updates),
        command=f"zoo reproduce gan --seeds {seeds} --updates {updates}",
        tables=_tables(ledger),
        figure=_figure(ledger, updates),
        settings={**settings, "seeds": seeds},
    )


# === The ring ===


def ring(count: int, seed: int) -> np.ndarray:
    """Returns points of eight Gaussians on a circle, `(count, 2)`."""
    rng = np.random.default_rng(seed)
    return centres()[rng.integers(0, NUM_MODES, count)] + DEVIATION * rng.standard_normal((count, 2))


def centres() -> np.ndarray:
    """Returns the means of the Gaussians, `(8, 2)`."""
    angles = 2.0 * np.pi * np.arange(NUM_MODES) / NUM_MODES
    return RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def as_images(points: np.ndarray) -> np.ndarray:
    """Returns points as images of two pixels, in [0, 1]."""
    return (0.5 + 0.5 * points / HALF_WIDTH).astype(np.float32).reshape(-1, 1, 2, 1)


def as_points(images: np.ndarray) -> np.ndarray:
    """Returns the points that images of two pixels stand for."""
    return (2.0 * images.reshape(-1, 2) - 1.0) * HALF_WIDTH


def captured(points: np.ndarray) -> dict[str, float]:
    """Returns how many Gaussians have at least 20 points within three deviations, and the share of points that are."""
    distances = np.linalg.norm(points[:, None] - centres(), axis=2)
    near = distances < 3.0 * DEVIATION
    return {"modes": int(np.sum(near.sum(axis=0) >= LEAST_SAMPLES)), "quality": float(near.any(axis=1).mean())}


def run_ring(loss: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains a network of dense layers on the ring; returns what it captures, in the end and on the way."""
    keras.utils.set_random_seed(seed)
    model = GAN(
        (1, 2, 1),
        16,
        "normal",
        hidden_dims=(128, 128),
        batch_norm="none",
        initializer="glorot",
        loss=loss,
    )
    adam(learning_rate=RING_LEARNING_RATE)(model, updates)
    data = tf.data.Dataset.from_tensor_slices(as_images(ring(100_000, seed))).shuffle(100_000, seed=seed)
    found: list[dict[str, float]] = []
    latents = model.draw_latents(RING_SAMPLES, EVALUATION_SEED)

    def look(epoch: int, logs: Mapping[str, float]) -> None:
        found.append(captured(as_points(model.decode(latents))))

    _fit(model, data.repeat().batch(RING_BATCH), updates, look)
    shown = {"points": np.round(as_points(model.decode(latents[:1000])), 3).tolist()} if seed == 0 else {}
    return {
        **found[-1],
        "early_modes": statistics.fmean(point["modes"] for point in found[: max(len(found) // 2, 1)]),
        "modes_on_the_way": [point["modes"] for point in found],
        **shown,
    }


def _fit(
    model: GAN, batches: tf.data.Dataset, updates: int, look: Callable[[int, Mapping[str, float]], None] | None = None
) -> dict[str, list[float]]:
    """Trains, and looks in `NUM_POINTS` points; returns the history of the losses."""
    points = min(NUM_POINTS, updates)
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=look)] if look else []
    return model.fit(
        batches, epochs=points, steps_per_epoch=updates // points, shuffle=False, verbose=0, callbacks=callbacks
    ).history


# === Digits ===


def run_digits(arm: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains an arm on digits; returns all measures of its samples, and the discriminator's loss on the way."""
    keras.utils.set_random_seed(seed)
    changes, beta_1 = DIGIT_ARMS[arm]
    # Without averaged weights, so that what is unstable shows
    model = GAN(**{**info("gan").preset("digits").config, "ema_decay": None, **changes})
    adam(beta_1)(model, updates)
    losses = _fit(model, shuffled_images(model, "digits", seed).train, updates)["loss"]
    found = {**evaluate(model, "digits", "test"), "losses": np.round(losses, 4).tolist()}
    if seed > 0:
        return found
    # Pictures of one run of each arm are all that the figure needs
    start, end = np.split(model.draw_latents(2 * NUM_STRIPS, seed), 2)
    return {
        **found,
        "samples": _rounded(model.sample(NUM_SHOWN, seed=seed)),
        "strips": _rounded(model.interpolate(start, end, PATH_STEPS)),
    }


def _rounded(images: np.ndarray) -> list:
    return np.round(images[..., 0], 2).tolist()


def floor() -> dict[str, float]:
    """Returns what as many training images measure as there are test images: what no model can be expected to beat."""
    test, train = (scaled_images("digits", split) for split in ("test", "train"))
    chosen = np.random.default_rng(EVALUATION_SEED).permutation(len(train))[: len(test)]
    return sample_quality(FeatureClassifier.of("digits"), test, train[chosen])


# === Results ===

MEASURES = ("frechet_distance", "modes", "precision", "recall", "nearest_neighbour_accuracy", "confident")


def _tables(ledger: Ledger) -> dict[str, Any]:
    def rows(arms: Iterable[str], names: Sequence[str]) -> dict[str, Any]:
        return {arm: {name: mean_and_std(ledger.values(arm, name)) for name in names} for arm in arms}

    test, labels = scaled_images("digits", "test"), load_arrays("digits", "test")["label"]
    return {
        "ring": rows(RING_ARMS, ("modes", "quality", "early_modes")),
        "digits": {**rows(DIGIT_ARMS, MEASURES), "training images": floor()},
        "accuracy_of_the_classifier": FeatureClassifier.of("digits").accuracy(test, labels),
    }


def _verdict(ledger: Ledger, updates: int) -> str:
    def lower(first: str, second: str, name: str) -> bool:
        return all(a < b for a, b in zip(ledger.values(first, name), ledger.values(second, name), strict=True))

    lags = lower(MINIMAX, NON_SATURATING, "early_modes")
    others = [arm for arm in DIGIT_ARMS if arm != DCGAN]
    beaten = [arm for arm in others if lower(DCGAN, arm, "frechet_distance")]
    complete = min(ledger.values(DCGAN, "modes")) == 10
    shows = {0: "does not show", len(others): "shows"}.get(len(beaten), "shows in part")
    distances = "; ".join(f"{arm} {spread(ledger.values(arm, 'frechet_distance'))}" for arm in DIGIT_ARMS)
    collapsed = [
        f"{arm} ({', '.join(map(str, ledger.values(arm, 'modes')))})"
        for arm in DIGIT_ARMS
        if min(ledger.values(arm, "modes")) < 10
    ]
    return (
        f"That the minimax loss lags early {'shows' if lags else 'does not show'}: over the first {updates // 2} updates the "
        f"ring's modes captured are {spread(ledger.values(MINIMAX, 'early_modes'))} of {NUM_MODES} on average, against "
        f"{spread(ledger.values(NON_SATURATING, 'early_modes'))} with the non-saturating loss; in the end "
        f"{spread(ledger.values(MINIMAX, 'modes'))} against {spread(ledger.values(NON_SATURATING, 'modes'))}. That the rules "
        f"of DCGAN give better samples {shows}: their Frechet distance is smaller in every seed than that of "
        f"{', '.join(beaten) or 'no other arm'} ({distances}; training images {floor()['frechet_distance']:.3f}). Its "
        f"samples are of all ten classes in {'every' if complete else 'not every'} seed; runs with fewer, by arm and seed: "
        f"{'; '.join(collapsed) or 'none'}."
    )


# === Figure ===


def _figure(ledger: Ledger, updates: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 3)
    _show_modes(axes[0, 0], ledger, updates)
    _show_ring(axes[0, 1], ledger)
    _show_losses(axes[0, 2], ledger, updates)
    _show_distances(axes[1, 0], ledger)
    _show_samples(axes[1, 1], ledger)
    _show_strips(axes[1, 2], ledger)
    return figure


def _show_modes(axes: Axes, ledger: Ledger, updates: int) -> None:
    for arm, label in ((NON_SATURATING, "non-saturating"), (MINIMAX, "minimax")):
        curves = np.array(ledger.values(arm, "modes_on_the_way"))
        steps = np.arange(1, curves.shape[1] + 1) * (updates // curves.shape[1])
        (line,) = axes.plot(steps, curves.mean(axis=0), label=label)
        axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), alpha=0.2, color=line.get_color(), linewidth=0)
    axes.axhline(NUM_MODES, color="gray", linewidth=0.8, linestyle=":")
    axes.set(xlabel="updates", ylabel="modes captured", ylim=(-0.2, NUM_MODES + 0.4))
    axes.set_title("Ring of 8 Gaussians: modes (mean, and range over seeds)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _show_ring(axes: Axes, ledger: Ledger) -> None:
    axes.scatter(*centres().T, s=260, facecolors="none", edgecolors="gray", linewidths=0.8, label="Gaussians")
    for arm, label, marker in ((NON_SATURATING, "non-saturating", "o"), (MINIMAX, "minimax", "x")):
        run = ledger.content["runs"][arm]["0"]
        points = np.array(run["points"]).T
        axes.scatter(
            *points, s=7, marker=marker, linewidths=0.6, alpha=0.6, label=f"{label}: {run['quality']:.0%} near"
        )
    axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    axes.set_title("Samples at the end, and the share within 3 deviations")
    axes.legend(loc="center", fontsize="small")


def _show_losses(axes: Axes, ledger: Ledger, updates: int) -> None:
    for arm in DIGIT_ARMS:
        curves = np.array(ledger.values(arm, "losses"))
        steps = np.arange(1, curves.shape[1] + 1) * (updates // curves.shape[1])
        (line,) = axes.plot(steps, curves.mean(axis=0), label=arm)
        axes.fill_between(
            steps, curves.min(axis=0), curves.max(axis=0), alpha=0.15, color=line.get_color(), linewidth=0
        )
    axes.axhline(LOG_4, color="gray", linestyle=":", label="log 4: no telling apart")
    axes.set(xlabel="updates", ylabel="loss of the discriminator in nats", ylim=(0, None))
    axes.set_title("Digits: loss of the discriminator")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def _show_distances(axes: Axes, ledger: Ledger) -> None:
    for place, arm in enumerate(DIGIT_ARMS):
        values = ledger.values(arm, "frechet_distance")
        axes.scatter(values, [place] * len(values), s=30, zorder=3)
        axes.plot([statistics.fmean(values)] * 2, [place - 0.25, place + 0.25], color="black", linewidth=1.5)
    axes.axvline(floor()["frechet_distance"], color="gray", linestyle=":", label="training images")
    axes.set_yticks(range(len(DIGIT_ARMS)), [_in_lines(arm) for arm in DIGIT_ARMS])
    axes.set(xscale="log", xlabel="Frechet distance from test images", ylim=(len(DIGIT_ARMS) - 0.1, -0.5))
    axes.set_title("Digits: distance of samples (seeds, and their mean)")
    axes.grid(alpha=0.3, axis="x", which="both")
    axes.legend(loc="lower right")


def _in_lines(arm: str) -> str:
    return "\n".join(textwrap.wrap(arm, 14))


def _show_samples(axes: Axes, ledger: Ledger) -> None:
    grids = [np.array(ledger.content["runs"][arm]["0"]["samples"]) for arm in DIGIT_ARMS]
    images = np.concatenate([grid.reshape(2, NUM_SHOWN // 2, *grid.shape[1:]) for grid in grids])
    show_images(axes, images, "Samples, one seed")
    axes.set_axis_on()
    height = 2 * (images.shape[2] + 2)
    axes.set_yticks([height * (row + 0.5) for row in range(len(grids))], [_in_lines(arm) for arm in DIGIT_ARMS])
    for row in range(1, len(grids)):
        axes.axhline(height * row - 0.5, color="white", linewidth=1.5)
    axes.set_xticks([])
    axes.tick_params(length=0)


def _show_strips(axes: Axes, ledger: Ledger) -> None:
    strips = np.array(ledger.content["runs"][DCGAN]["0"]["strips"])
    show_images(axes, strips, f"{DCGAN}: from one latent to another")
