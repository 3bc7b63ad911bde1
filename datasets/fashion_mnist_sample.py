"""A part of Fashion-MNIST small enough to come with the package: for tests, demonstrations and offline use."""

from __future__ import annotations

import io

import numpy as np

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo

FILE = "fashion_mnist_sample.npz"

INFO = DatasetInfo(
    name="fashion_mnist_sample",
    description=(
        "Of each class of `fashion_mnist`, the first 400 of its train split, the first 50 of its validation split and the "
        "first 100 of its test split, in the original order."
    ),
    licence="MIT (Zalando SE)",
    source="https://github.com/zalandoresearch/fashion-mnist",
    features={"image": "uint8 (28, 28), 0..255", "label": "int32 (), 0..9"},
    splits={"train": 4000, "validation": 500, "test": 1000},
    unit="examples",
    embedded=True,
    sha256="a0897f0d96e28177b812eb97a1ae55ad2cc5bc69b528da739bfe044f7be51644",
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split."""
    data = source.read_embedded("fashion_mnist_sample", FILE, INFO.sha256)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {"image": arrays[f"{split}_image"], "label": arrays[f"{split}_label"].astype("int32")}
