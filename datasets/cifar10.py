"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes.

Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import numpy as np

from zoo.datasets import source
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo, combined_sha256

_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
_FOLDER = "cifar-10-batches-bin"
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # label and pixels
_RECORDS = 10_000

SOURCES = {
    file: Source(file, _ADDRESS, sha256, _RECORD * _RECORDS, _ARCHIVE_SHA256, f"{_FOLDER}/{file}")
    for file, sha256 in (
        ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    )
}

INFO = DatasetInfo(
    name="cifar10",
    description=(
        "Colour photographs of 32 x 32 pixels: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck. "
        "Validation is the last 5,000 of the original 50,000 training examples, test is the original test set. A 170 MB "
        "download."
    ),
    licence="No licence stated (Alex Krizhevsky)",
    source="https://www.cs.toronto.edu/~kriz/cifar.html",
    features={"image": "uint8 (32, 32, 3), 0..255", "label": "int32 (), 0..9"},
    splits={"train": 45000, "validation": 5000, "test": 10000},
    unit="examples",
    embedded=False,
    sha256=combined_sha256({each.file: each.sha256 for each in SOURCES.values()}),
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split.

    Raises:
        ValueError: if a file is corrupt.
    """
    files = [file for file in SOURCES if file.startswith("test") == (split == "test")]
    parts = [read_records(source.read("cifar10", SOURCES[file])) for file in files]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    first = len(images) - INFO.splits["validation"]
    chosen = {"train": slice(0, first), "validation": slice(first, None), "test": slice(None)}[split]
    return {"image": images[chosen], "label": labels[chosen]}


def read_records(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of the binary version: one byte of label and 3,072 of pixels (red, green, blue) for each image.

    Args:
        data: bytes of the file.

    Returns:
        uint8 images `(count, 32, 32, 3)` and int32 labels `(count,)`.

    Raises:
        ValueError: if the length is no multiple of a record, or a label is none of the ten.
    """
    if len(data) % _RECORD:
        raise ValueError(f"Expected records of {_RECORD:,} bytes. Received: {len(data):,} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    labels = records[:, 0].astype("int32")
    if labels.size and labels.max() > 9:
        raise ValueError(f"Labels must be from 0 to 9. Received: {labels.max()}")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)), labels
