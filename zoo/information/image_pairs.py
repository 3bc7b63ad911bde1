"""Pairs made of images, which the shipped estimators are trained on: an image with its label, and its two halves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zoo.datasets import load_arrays
from zoo.model import Arrays


def labelled_images(dataset: str, split: str) -> Arrays:
    """Returns the images of a split, flattened, as x, and their labels, one-hot, as z.

    Args:
        dataset: str. Name for `zoo.datasets.load`.
        split: str.

    Returns:
        Dict of float32 arrays `(num_images, num_pixels)`, in [0, 1], and `(num_images, num_classes)`.
    """
    labels = load_arrays(dataset, split)["label"]
    num_classes = load_arrays(dataset, "train")["label"].max() + 1
    images = _scaled_images(dataset, split)
    return {"x": images.reshape(len(images), -1), "z": np.eye(num_classes, dtype="float32")[labels]}


def image_halves(dataset: str, split: str) -> Arrays:
    """Returns the lower halves of a split's images, flattened, as x, and the upper ones as context.

    Args:
        dataset: str. Name for `zoo.datasets.load`.
        split: str.

    Returns:
        Dict of two float32 arrays `(num_images, num_pixels / 2)`, in [0, 1].
    """
    images = _scaled_images(dataset, split)
    upper, lower = np.split(images, 2, axis=1)
    return {"x": lower.reshape(len(images), -1), "context": upper.reshape(len(images), -1)}


def _scaled_images(dataset: str, split: str) -> np.ndarray:
    brightest = load_arrays(dataset, "train")["image"].max()
    return load_arrays(dataset, split)["image"].astype("float32") / np.float32(brightest)


def batches(arrays: Arrays, batch_size: int) -> Iterator[Arrays]:
    """Yields batches of arrays of one length; an incomplete last one is left out."""
    total = len(next(iter(arrays.values())))
    for start in range(0, total - batch_size + 1, batch_size):
        yield {name: value[start : start + batch_size] for name, value in arrays.items()}
