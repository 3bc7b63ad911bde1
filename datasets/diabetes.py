"""Diabetes progression: 442 patients by 10 baseline measurements, which come with scikit-learn."""

from __future__ import annotations

import hashlib

import numpy as np

from zoo.datasets.digits import split_positions
from zoo.datasets.specs import DatasetInfo

INFO = DatasetInfo(
    name="diabetes",
    description=(
        "Age, sex, body mass index, blood pressure and six blood serum values of 442 patients, in their own units, and the "
        "progression of the disease a year later. Split by position in the order of the target, without chance: every "
        "fifth is test, every eighth of the others validation."
    ),
    licence="Public; published with Efron et al. 2004, 'Least angle regression'; shipped with scikit-learn (BSD-3-Clause)",
    source="https://www4.stat.ncsu.edu/~boos/var.select/diabetes.html",
    features={"features": "float32 (10,): age, sex, bmi, bp, s1..s6", "target": "float32 (), 25..346"},
    splits={"train": 308, "validation": 45, "test": 89},
    unit="examples",
    embedded=True,
    sha256="70a45af6bc04fb77f713e6aca86019c4707501ef0cbd17c743d74f7a9ca8bf11",
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the measurements and targets of a split.

    Raises:
        ValueError: if the installed scikit-learn holds other data.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    features, target = bunch.data.astype("float32"), bunch.target.astype("float32")
    received = hashlib.sha256(features.astype("<f4").tobytes() + target.astype("<f4").tobytes()).hexdigest()
    if received != INFO.sha256:
        raise ValueError(f"The installed scikit-learn must hold data of SHA-256 {INFO.sha256}. Received: {received}")
    chosen = split_positions(target)[split]
    return {"features": features[chosen], "target": target[chosen]}
