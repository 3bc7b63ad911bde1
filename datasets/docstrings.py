"""Documentation of scientific Python packages, as documents of one sentence a line: prose with order and topic."""

from __future__ import annotations

import bz2
import json

import numpy as np

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import SPLITS

FILE = "docstrings.jsonl.bz2"
FILE_SHA256 = "10df174829cfcb472d853e9ebfcecd080e43b4cf42eab72fa5fc25a5f52e1c3f"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_SHA256 = "3248643ad43f5600db1edfc555c07f7d0cb98eaed40de28d2f472d9ba23d13ee"

INFO = DatasetInfo(
    name="docstrings",
    description=(
        "Docstrings of NumPy, SciPy, scikit-learn and Keras of over 300 characters, each once; lines of examples and of "
        "signs only are left out. A line of a text is a sentence or a part of one. Split by the hash of the source file, so "
        "that docstrings of one file are all of one split: 14/16 of the files train, 1/16 validation, 1/16 test."
    ),
    licence="BSD-3-Clause (NumPy, SciPy, scikit-learn) and Apache-2.0 (Keras)",
    source="https://numpy.org/doc/",
    features={
        "text": "str (), lines joined by newlines",
        "module": "str (), the source file, such as 'numpy/fft/_pocketfft.py'",
    },
    splits={"train": 5328, "validation": 306, "test": 330},
    unit="examples",
    embedded=True,
    sha256=FILE_SHA256,
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the documents of a split, in the order of their files."""
    documents = [document for document in _documents() if split_of(document["module"]) == split]
    # Objects: an array of the longest text's width would be large
    return {name: np.array([document[name] for document in documents], object) for name in INFO.features}


def _documents() -> list[dict[str, str]]:
    content = bz2.decompress(source.read_embedded("docstrings", FILE, FILE_SHA256)).decode()
    return [json.loads(line) for line in content.splitlines()]


def split_of(module: str) -> str:
    """Returns the split of a source file's docstrings."""
    place = int(source.sha256(module.encode())[:8], 16) % 16
    return SPLITS[max(place - 13, 0)]


def tokenizer_json() -> bytes:
    """Returns a `tokenizer.json` of 4,000 lower-cased word pieces, trained on the train split."""
    return source.read_embedded("docstrings", TOKENIZER_FILE, TOKENIZER_SHA256)
