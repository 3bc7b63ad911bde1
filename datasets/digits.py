"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that come with scikit-learn."""

from __future__ import annotations

import hashlib

import numpy as np

from zoo.datasets.specs import DatasetInfo

INFO = DatasetInfo(
    name="digits",
    description=(
        "Handwritten digits of 8 x 8 pixels with values 0..16: the UCI optdigits test set, as scikit-learn ships it. "
        "Split by position in each class, without chance: every fifth is test, every eighth of the others validation."
    ),
    licence="CC BY 4.0 (UCI Machine Learning Repository); shipped with scikit-learn (BSD-3-Clause)",
    source="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    features={"image": "uint8 (8, 8), 0..16", "label": "int32 (), 0..9"},
    splits={"train": 1257, "validation": 180, "test": 360},
    unit="examples",
    embedded=True,
    sha256="fe61bc84cd6a594d5ed1b937b7d8f8f791d4091d2a9df91fe5d6066156a4db6e",
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split.

    Raises:
        ValueError: if the installed scikit-learn holds other digits.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype("uint8"), bunch.target.astype("int32")
    received = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    if received != INFO.sha256:
        raise ValueError(f"The installed scikit-learn must hold digits of SHA-256 {INFO.sha256}. Received: {received}")
    chosen = split_positions(labels)[split]
    return {"image": images[chosen], "label": labels[chosen]}


def split_positions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the positions of each split, ascending and stratified by label.

    Args:
        labels: int array `(examples,)`.

    Returns:
        Dict from split name to int array; together they hold every position once.
    """
    by_class = np.argsort(labels, kind="stable")
    test = np.arange(len(labels)) % 5 == 0
    rest = by_class[~test]
    validation = np.arange(len(rest)) % 8 == 0
    parts = {"train": rest[~validation], "validation": rest[validation], "test": by_class[test]}
    return {name: np.sort(positions) for name, positions in parts.items()}
