"""What is known about a dataset without reading it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset.

    Args:
        name: str. Name under which `zoo.datasets.load` finds it.
        description: str. What it is, how it is split, and what was done to it.
        licence: str. Licence of the data (not of this library).
        source: str. Address the data comes from.
        features: mapping from feature name to its meaning: dtype, shape, range.
        splits: mapping from split name to its size, counted in `unit`.
        unit: str. What `splits` counts: `"examples"`, `"characters"`, `"bytes"` or `"lines"`.
        embedded: bool. Whether the data comes with the package, so that no download is needed.
        sha256: str. SHA-256 of the content; of several files, the `combined_sha256` of theirs.
    """

    name: str
    description: str
    licence: str
    source: str
    features: Mapping[str, str]
    splits: Mapping[str, int]
    unit: str
    embedded: bool
    sha256: str


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """Returns one SHA-256 for several files: that of the list `sha256sum` prints for them, sorted by file name.

    Args:
        hashes: mapping from file name to hexadecimal SHA-256.
    """
    listing = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(listing.encode()).hexdigest()
