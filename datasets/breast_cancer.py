"""Wisconsin diagnostic breast cancer: 569 tumours by 30 measurements of cell nuclei, which come with scikit-learn."""

from __future__ import annotations

import hashlib

import numpy as np

from zoo.datasets.digits import split_positions
from zoo.datasets.specs import DatasetInfo

INFO = DatasetInfo(
    name="breast_cancer",
    description=(
        "Mean, standard error and worst value of ten measurements of the cell nuclei in 569 images of breast masses, in "
        "their own units; label 1 is benign. Split by position in each class, without chance: every fifth is test, every "
        "eighth of the others validation."
    ),
    licence="CC BY 4.0 (UCI Machine Learning Repository); shipped with scikit-learn (BSD-3-Clause)",
    source="https://archive.ics.uci.edu/dataset/17/breast+cancer+wisconsin+diagnostic",
    features={"features": "float32 (30,), not negative", "label": "int32 (), 0 malignant or 1 benign"},
    splits={"train": 398, "validation": 57, "test": 114},
    unit="examples",
    embedded=True,
    sha256="86abafa0d5a78e22763d04a8ac6a8cf82de38afc648f396da59cea94e70dc4ba",
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the measurements and labels of a split.

    Raises:
        ValueError: if the installed scikit-learn holds other data.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    features, labels = bunch.data.astype("float32"), bunch.target.astype("int32")
    received = hashlib.sha256(features.astype("<f4").tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    if received != INFO.sha256:
        raise ValueError(f"The installed scikit-learn must hold data of SHA-256 {INFO.sha256}. Received: {received}")
    chosen = split_positions(labels)[split]
    return {"features": features[chosen], "label": labels[chosen]}
