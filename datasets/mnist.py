"""MNIST: 70,000 handwritten digits of 28 x 28 pixels."""

from __future__ import annotations

import numpy as np

from zoo.datasets import idx
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo, combined_sha256

_ADDRESS = "https://storage.googleapis.com/cvdf-datasets/mnist/"

SOURCES = {
    file: Source(file, f"{_ADDRESS}{file}.gz", sha256, size, archive_sha256)
    for file, size, sha256, archive_sha256 in (
        (
            "train-images-idx3-ubyte",
            47040016,
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train-labels-idx1-ubyte",
            60008,
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "t10k-images-idx3-ubyte",
            7840016,
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "t10k-labels-idx1-ubyte",
            10008,
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
}

INFO = DatasetInfo(
    name="mnist",
    description=(
        "Handwritten digits of 28 x 28 pixels. Validation is the last 10,000 of the original 60,000 training examples, "
        "test is the original test set. A 12 MB download; `mnist_sample` is the embedded part."
    ),
    licence="CC BY-SA 3.0 (Yann LeCun and Corinna Cortes)",
    source="http://yann.lecun.com/exdb/mnist/",
    features={"image": "uint8 (28, 28), 0..255", "label": "int32 (), 0..9"},
    splits={"train": 50000, "validation": 10000, "test": 10000},
    unit="examples",
    embedded=False,
    sha256=combined_sha256({each.file: each.sha256 for each in SOURCES.values()}),
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split."""
    return idx.load_split(INFO, SOURCES, split)
