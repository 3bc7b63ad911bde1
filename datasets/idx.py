"""The IDX format of MNIST and its relatives."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping

import numpy as np

from zoo.datasets import source
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo

_UINT8 = 0x08


def load_split(info: DatasetInfo, sources: Mapping[str, Source], split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split; validation is the end of the training files.

    Args:
        info: `DatasetInfo`. Name of the cache folder, and sizes of the splits.
        sources: mapping with the four files of MNIST's names.
        split: `"train"`, `"validation"` or `"test"`.

    Raises:
        ValueError: if a file is corrupt, or images and labels do not fit each other.
    """
    prefix = "t10k" if split == "test" else "train"
    images = read_idx(source.read(info.name, sources[f"{prefix}-images-idx3-ubyte"]), dimensions=3)
    labels = read_idx(source.read(info.name, sources[f"{prefix}-labels-idx1-ubyte"]), dimensions=1).astype("int32")
    if len(images) != len(labels):
        raise ValueError(f"Each image must have a label. Received: {len(images)} images, {len(labels)} labels")
    first = len(images) - info.splits["validation"]
    chosen = {"train": slice(0, first), "validation": slice(first, None), "test": slice(None)}[split]
    return {"image": images[chosen], "label": labels[chosen]}


def read_idx(data: bytes, dimensions: int) -> np.ndarray:
    """Reads an array of unsigned bytes in the IDX format.

    Args:
        data: bytes of the file: two zero bytes, the type, the number of dimensions, the sizes, the values.
        dimensions: int. Number of dimensions it must have.

    Returns:
        uint8 array, writable.

    Raises:
        ValueError: if the header or the length is not what it should be.
    """
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, _UINT8, dimensions)):
        raise ValueError(f"Expected an IDX file of {dimensions} dimensions of uint8. Received: header {data[:4]!r}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) != start + math.prod(shape):
        raise ValueError(f"Expected {math.prod(shape):,} values of shape {shape}. Received: {len(data) - start:,}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
