"""Autoencoders: how their checkpoints are trained, and their codes beside principal components of the same number."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.catalog import info
from zoo.datasets import load_arrays
from zoo.experiments.image_grids import show_rows
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.experiments.training import available_dataset, cosine_adam
from zoo.generative.autoencoder import Autoencoder
from zoo.generative.image_networks import ImageAutoencoder
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EVALUATION_BATCH = 500


# === Recipes ===


def shuffled_images(batch_size: int) -> Callable[[ImageAutoencoder, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of images, as the model takes them."""

    def data(model: ImageAutoencoder, dataset: str, seed: int) -> TrainingData:
        train, validation = (load_arrays(dataset, split)["image"][..., None] for split in ("train", "validation"))
        return TrainingData(batches(model, train, batch_size, seed), _slices(validation, EVALUATION_BATCH, model))

    return data


def batches(model: ImageAutoencoder, levels: np.ndarray, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns endless shuffled batches of images.

    Args:
        model: `ImageAutoencoder`. It says how pixels are scaled.
        levels: array `(num_images, height, width, channels)`. Stored pixels.
        batch_size: int.
        seed: int. The same seed gives the same batches.
    """
    shuffled = tf.data.Dataset.from_tensor_slices(levels).shuffle(len(levels), seed=seed).repeat()
    return shuffled.batch(batch_size).map(model.scale)


def _slices(levels: np.ndarray, batch_size: int, model: ImageAutoencoder) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(levels).batch(batch_size).map(model.scale)


def evaluate(model: Autoencoder, dataset: str, split: str) -> dict[str, float]:
    """Returns the mean squared error of a split's images, summed over an image's values."""
    return {"squared_error": model.mean_squared_error(lambda name, inputs: model.run(name, **inputs), dataset, split)}


def _mnist(preset: str, epochs: int) -> Recipe:
    return Recipe(
        method="autoencoder",
        preset=preset,
        dataset="mnist",
        evaluation_dataset="mnist_sample",
        epochs=epochs,
        steps_per_epoch=500,
        data=shuffled_images(100),
        compile=cosine_adam(1e-3),
        evaluate=evaluate,
        monitor="val_loss",
    )


RECIPES = {
    "digits": Recipe(
        method="autoencoder",
        preset="digits",
        dataset="digits",
        epochs=300,
        steps_per_epoch=13,
        data=shuffled_images(100),
        compile=cosine_adam(2e-3),
        evaluate=evaluate,
        monitor="val_loss",
    ),
    "mnist": _mnist("mnist", epochs=30),
    "mnist_2d": _mnist("mnist_2d", epochs=40),
}


# === Experiment ===


CLAIM = (
    "A deep autoencoder gives back held-out images with a smaller squared error than as many principal components "
    "(paper, figure 2: 3.00 against 13.87 on MNIST with 30 numbers)."
)
DEEP, SHALLOW, PCA = "deep autoencoder", "one hidden layer", "principal components"
HIDDEN_DIMS: Mapping[str, list[int]] = {DEEP: [400, 200, 100], SHALLOW: [400]}
LATENT_DIMS = (2, 4, 8, 16, 30)
NUM_SHOWN = 6
SHOWN_DIM = 8


def reproduce(directory: Path, seeds: int = 3, updates: int = 4000, progress: Progress = lambda message: None) -> None:
    """Trains autoencoders with codes of several sizes, and writes `autoencoder.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Trainings of every autoencoder; principal components need none.
        updates: int. Updates of every training, of 100 images each.
        progress: callable that takes one line per run.
    """
    dataset = available_dataset("mnist", progress)
    settings = {"dataset": dataset, "split": "test", "updates": updates, "batch_size": 100}
    ledger = Ledger(directory / "autoencoder.runs.json", settings)
    for seed in range(seeds):
        for dim in LATENT_DIMS:
            for name in (PCA, *HIDDEN_DIMS):

                def run(name: str = name, dim: int = dim, seed: int = seed) -> dict[str, Any]:
                    if name == PCA:
                        found = run_pca(dataset, dim)
                    else:
                        found = run_autoencoder(HIDDEN_DIMS[name], dim, dataset, updates, seed)
                    # Pictures of one run of each kind are all that the figure needs
                    return found if (dim, seed) == (SHOWN_DIM, 0) else {"squared_error": found["squared_error"]}

                ledger.run(_arm(name, dim), seed, run, progress)
    write_results(
        "autoencoder",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce autoencoder --seeds {seeds} --updates {updates}",
        tables={
            "squared_error_by_size_of_the_code": {
                str(dim): {name: ledger.summary("squared_error")[_arm(name, dim)] for name in (PCA, *HIDDEN_DIMS)}
                for dim in LATENT_DIMS
            }
        },
        figure=_figure(ledger, dataset),
        settings={**settings, "seeds": seeds},
    )


def _arm(name: str, latent_dim: int) -> str:
    return f"{name}, {latent_dim}"


def run_autoencoder(
    hidden_dims: list[int], latent_dim: int, dataset: str, updates: int, seed: int
) -> dict[str, float | list]:
    """Trains an autoencoder on squared errors; returns its test error, and some reconstructions."""
    keras.utils.set_random_seed(seed)
    changes = {"latent_dim": latent_dim, "hidden_dims": hidden_dims, "reconstruction_loss": "squared_error"}
    model = Autoencoder(**{**info("autoencoder").preset("mnist").config, **changes})
    cosine_adam(1e-3)(model, updates)
    levels = load_arrays(dataset, "train")["image"][..., None]
    model.fit(batches(model, levels, 100, seed), steps_per_epoch=updates, shuffle=False, verbose=0)
    images = shown_images(model.held_out_images(dataset, "test"))
    return {**evaluate(model, dataset, "test"), "shown": _rounded(model.reconstruct(images))}


def run_pca(dataset: str, num_components: int) -> dict[str, float | list]:
    """Reconstructs test images from the principal components of the training images; returns what a training does."""
    train, test = (load_arrays(dataset, split)["image"] / 255.0 for split in ("train", "test"))
    shape = test.shape[1:]
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    mean, components = principal_components(train, num_components)
    again = mean + (test - mean) @ components.T @ components
    error = float(np.mean(np.sum((test - again) ** 2, axis=1)))
    return {"squared_error": error, "shown": _rounded(shown_images(again.reshape(-1, *shape, 1)))}


def principal_components(values: np.ndarray, num_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `(features,)` and the principal components `(num_components, features)` of rows."""
    mean = values.mean(axis=0)
    covariance = (values - mean).T @ (values - mean) / len(values)
    vectors = np.linalg.eigh(covariance)[1]
    return mean, vectors[:, ::-1][:, :num_components].T


def shown_images(images: np.ndarray) -> np.ndarray:
    """Returns the images that the figure shows."""
    return images[:NUM_SHOWN]


def _rounded(images: np.ndarray) -> list:
    return np.round(images[..., 0], 2).tolist()


def _verdict(ledger: Ledger) -> str:
    def errors(name: str, dim: int) -> list[float]:
        return ledger.values(_arm(name, dim), "squared_error")

    better = [dim for dim in LATENT_DIMS if max(errors(DEEP, dim)) < min(errors(PCA, dim))]
    deeper = [
        dim for dim in LATENT_DIMS if statistics.fmean(errors(DEEP, dim)) < statistics.fmean(errors(SHALLOW, dim))
    ]
    shows = {0: "The claim does not show", len(LATENT_DIMS): "The claim shows"}.get(
        len(better), "The claim shows in part"
    )
    largest = LATENT_DIMS[-1]
    return (
        f"{shows}: of codes of {_listed(list(LATENT_DIMS))} numbers, the deep autoencoder has the smaller error in every "
        f"seed with {_listed(better)}; with {largest}, {spread(errors(DEEP, largest))} against "
        f"{statistics.fmean(errors(PCA, largest)):.3f} of principal components. It is better on average than one with a "
        f"single hidden layer with {_listed(deeper)}. Networks and training are smaller than the paper's, and start from "
        "random weights."
    )


def _listed(dims: list[int]) -> str:
    return ", ".join(map(str, dims)) or "none"


# === Figure ===


def _figure(ledger: Ledger, dataset: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    curves, strips = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _show_errors(curves, ledger)
    originals = shown_images(load_arrays(dataset, "test")["image"]) / 255.0
    rows = {"image": originals}
    rows |= {
        name: np.array(ledger.content["runs"][_arm(name, SHOWN_DIM)]["0"]["shown"]) for name in (DEEP, SHALLOW, PCA)
    }
    show_rows(strips, rows, f"Test images from {SHOWN_DIM} numbers each")
    return figure


def _show_errors(axes: Axes, ledger: Ledger) -> None:
    for name, marker in ((PCA, "s"), (SHALLOW, "^"), (DEEP, "o")):
        runs = [ledger.values(_arm(name, dim), "squared_error") for dim in LATENT_DIMS]
        means = [statistics.fmean(run) for run in runs]
        bars = [(mean - min(run), max(run) - mean) for run, mean in zip(runs, means, strict=True)]
        axes.errorbar(LATENT_DIMS, means, np.abs(np.transpose(bars)), marker=marker, capsize=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="numbers in the code", ylabel="squared error, summed over an image")
    # Within a factor of ten or so a logarithmic axis would have one number or none
    low, high = axes.get_ylim()
    heights = [height for height in (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70) if low <= height <= high]
    axes.set_yticks(heights, [str(height) for height in heights])
    axes.set_xticks(LATENT_DIMS, [str(dim) for dim in LATENT_DIMS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_title("Error of test images (mean, and range over seeds)")
    axes.legend()
