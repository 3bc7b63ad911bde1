"""A part of MNIST small enough to come with the package: for tests, demonstrations and offline use."""

from __future__ import annotations

import io

import numpy as np

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo

FILE = "mnist_sample.npz"

INFO = DatasetInfo(
    name="mnist_sample",
    description=(
        "Of each digit of `mnist`, the first 500 of its train split, the first 100 of its validation split and the "
        "first 200 of its test split, in the original order."
    ),
    licence="CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
    source="http://yann.lecun.com/exdb/mnist/",
    features={"image": "uint8 (28, 28), 0..255", "label": "int32 (), 0..9"},
    splits={"train": 5000, "validation": 1000, "test": 2000},
    unit="examples",
    embedded=True,
    sha256="5678e32b2108f4a530c643bf8b13c89beffdc80e0284c9a60e5349cca33c8d0b",
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split."""
    data = source.read_embedded("mnist_sample", FILE, INFO.sha256)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {"image": arrays[f"{split}_image"], "label": arrays[f"{split}_label"].astype("int32")}
