"""Two novels of Jane Austen as one English text at character level, embedded."""

from __future__ import annotations

import bz2

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import cut

FILE = "austen.txt.bz2"
FILE_SHA256 = "ad37678ef61f16e5a8d8d5e5a62cff732e6beafb4ac1660f1819fc104ced2671"

INFO = DatasetInfo(
    name="austen",
    description=(
        "Sense and Sensibility followed by Pride and Prejudice, as paragraphs over 76 characters (see "
        "`zoo.datasets.novels`). Splits are contiguous, in the order of the text, cut between paragraphs: 90 % train, "
        "5 % validation, 5 % test (validation and test are the end of Pride and Prejudice). Part of the train split of "
        "`austen_full`: never evaluate a model trained on that one here."
    ),
    licence="Public domain (published 1811 and 1813)",
    source="https://github.com/juliasilge/janeaustenr",
    features={"text": "str, one paragraph or blank line at a time"},
    splits={"train": 1218000, "validation": 68541, "test": 66785},
    unit="characters",
    embedded=True,
    sha256="17d363f00eacdb71747824d0d76064f431ed00d808f0f5594aef2020a35ea341",
)


def load(split: str) -> str:
    """Returns the text of a split."""
    text = bz2.decompress(source.read_embedded("austen", FILE, FILE_SHA256)).decode()
    return cut(text, 0.9, 0.05, boundary="\n\n")[split]
