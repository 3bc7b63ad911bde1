"""Builds the data files that come with the package. For maintainers; the files are committed, so nobody else needs it.

    python datasets/build_embedded.py austen DIRECTORY
    python datasets/build_embedded.py mnist_sample DIRECTORY
    python datasets/build_embedded.py fashion_mnist_sample DIRECTORY

`austen`: DIRECTORY is the data folder of an installed R package janeaustenr 1.0.0, with `Rdata.rdb` and `Rdata.rdx` (as
in Debian's r-cran-janeaustenr). Needs the Python package rdata, which nothing else in the project does.
`mnist_sample`: DIRECTORY is a folder called `mnist` that holds the four unpacked files of MNIST.
`fashion_mnist_sample`: the same, of a folder called `fashion_mnist`.

Each prints the SHA-256 to put into the loader. The output is the same on every run.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import os
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np

from zoo.datasets import austen, fashion_mnist_sample, mnist_sample, registry
from zoo.datasets.novels import normalise
from zoo.datasets.source import EMBEDDED, sha256
from zoo.files import atomic_file

_NOVELS = ("sensesensibility", "prideprejudice")


def build_austen(directory: Path) -> bytes:
    """Returns the embedded file of `austen`.

    Args:
        directory: path of the R package's data folder.
    """
    text = "\n".join(normalise(lines) for lines in _read_r_database(directory))
    sys.stdout.write(f"content SHA-256 {sha256(text.encode())}, {len(text):,} characters\n")
    return bz2.compress(text.encode(), 9)


def _read_r_database(directory: Path) -> list[list[str]]:
    import rdata

    def convert(data: bytes) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of an unknown encoding; the texts are ASCII and UTF-8
            return rdata.conversion.convert(rdata.parser.parse_data(data))

    database = (directory / "Rdata.rdb").read_bytes()
    index = convert(gzip.decompress((directory / "Rdata.rdx").read_bytes()))["variables"]
    novels = []
    for name in _NOVELS:
        start, length = index[name]
        # Four bytes of length precede the compressed object.
        novels.append([str(line) for line in convert(zlib.decompress(database[start + 4 : start + length]))])
    return novels


def build_mnist_sample(directory: Path) -> bytes:
    """Returns the embedded file of `mnist_sample`, from the folder with the four unpacked MNIST files."""
    return _sample("mnist", directory, {"train": 500, "validation": 100, "test": 200})


def build_fashion_mnist_sample(directory: Path) -> bytes:
    """Returns the embedded file of `fashion_mnist_sample`, from the folder with the four unpacked files."""
    return _sample("fashion_mnist", directory, {"train": 400, "validation": 50, "test": 100})


def _sample(name: str, directory: Path, examples_per_class: dict[str, int]) -> bytes:
    cache = directory.resolve()
    if cache.name != name:
        raise ValueError(f"`directory` must be called {name!r}, as in the cache. Received: {directory}")
    os.environ.update(ZOO_DATA_DIR=str(cache.parent), ZOO_OFFLINE="1")
    arrays = {}
    for split, count in examples_per_class.items():
        data = registry.load_arrays(name, split)
        chosen = np.sort(np.concatenate([np.flatnonzero(data["label"] == digit)[:count] for digit in range(10)]))
        arrays |= {f"{split}_image": data["image"][chosen], f"{split}_label": data["label"][chosen].astype("uint8")}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def main() -> None:
    """Builds one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("austen", "mnist_sample", "fashion_mnist_sample"))
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    build, file = {
        "austen": (build_austen, austen.FILE),
        "mnist_sample": (build_mnist_sample, mnist_sample.FILE),
        "fashion_mnist_sample": (build_fashion_mnist_sample, fashion_mnist_sample.FILE),
    }[arguments.name]
    data = build(arguments.directory)
    path = EMBEDDED / arguments.name / file
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    sys.stdout.write(f"{path}: SHA-256 {sha256(data)}, {len(data):,} bytes\n")


if __name__ == "__main__":
    main()
