"""Which package a docstring is of: a small task of text classification on the data set `docstrings`."""

from __future__ import annotations

import numpy as np

from zoo.datasets import docstrings
from zoo.datasets.specs import DatasetInfo

CLASSES = ("keras", "numpy", "scipy", "sklearn")
# Fixes which train examples a smaller number of them is
_ORDER_SEED = 0

INFO = DatasetInfo(
    name="docstring_packages",
    description=(
        "The documents of `docstrings` with the package that each is of, in the same splits. The option `examples` takes "
        "that many of the train split, chosen by one random order, so that fewer of them are among the more."
    ),
    licence=docstrings.INFO.licence,
    source=docstrings.INFO.source,
    features={"text": "str (), lines joined by newlines", "label": f"str (), one of {', '.join(CLASSES)}"},
    splits=docstrings.INFO.splits,
    unit="examples",
    embedded=True,
    sha256=docstrings.INFO.sha256,
)


def names_package(line: str) -> bool:
    """Returns whether a text names one of the packages, and so tells its label."""
    return any(package in line.lower() for package in CLASSES)


def load(split: str, examples: int | None = None) -> dict[str, np.ndarray]:
    """Returns the texts and labels of a split.

    Args:
        split: str.
        examples: int or None. How many of the train split, all by default; the other splits are always whole.

    Raises:
        ValueError: for a number that the train split does not have.
    """
    documents = docstrings.load(split)
    labels = np.array([module.partition("/")[0] for module in documents["module"]], object)
    data = {"text": documents["text"], "label": labels}
    if split != "train" or examples is None:
        return data
    if not 1 <= examples <= len(labels):
        raise ValueError(f"`examples` must be from 1 to {len(labels)}. Received: examples={examples!r}")
    chosen = np.sort(np.random.default_rng(_ORDER_SEED).permutation(len(labels))[:examples])
    return {name: array[chosen] for name, array in data.items()}
