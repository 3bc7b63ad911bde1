"""All six novels of Jane Austen as one English text at character level; whole novels are held out."""

from __future__ import annotations

import bz2
import io
import struct

from zoo.datasets import source
from zoo.datasets.novels import normalise
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo, combined_sha256

_ADDRESS = "https://raw.githubusercontent.com/juliasilge/janeaustenr/2b8d5936ca112bb0b3dfc9ebd97c64c345c09fcf/data/"
_UNPACKED_LIMIT = 4 << 20  # bytes; the longest novel takes 1 MB

NOVELS = {
    "train": ("sensesensibility", "prideprejudice", "mansfieldpark", "emma"),
    "validation": ("persuasion",),
    "test": ("northangerabbey",),
}

SOURCES = {
    novel: Source(f"{novel}.rda", f"{_ADDRESS}{novel}.rda", sha256, size)
    for novel, sha256, size in (
        ("emma", "65594dab7e37779e5b36c8551886d35cef2149fb442793e49b9879a4287f33f2", 247427),
        ("mansfieldpark", "c5903def1e79b8494097f9bc5c52d0fb173084450432c10dfd9647c0d3bd3e2d", 247813),
        ("northangerabbey", "d4b8163fba67575e3125f532752baf7d86bf25dbf975aa596b92d3868cab9519", 126284),
        ("persuasion", "758a227662b5f94785199b5c80a3d23533b397d476ddc43289181fb556d945a0", 131561),
        ("prideprejudice", "9704d3d55b0e59f3e9f6d6032d192200f925ec7b2ba4f1dba402f179578ae3c9", 185129),
        ("sensesensibility", "0fef9c0d7598e30a0c09e866e3db4117b4a47d31cbc28cc8783eb4abdad03593", 184429),
    )
}

INFO = DatasetInfo(
    name="austen_full",
    description=(
        "The six novels as paragraphs over 76 characters (see `zoo.datasets.novels`). Train: Sense and Sensibility, "
        "Pride and Prejudice, Mansfield Park, Emma; validation: Persuasion; test: Northanger Abbey. The train split "
        "holds all of `austen`."
    ),
    licence="Public domain (published 1811-1818); the files are data of the R package janeaustenr (MIT)",
    source="https://github.com/juliasilge/janeaustenr",
    features={"text": "str, one paragraph or blank line at a time"},
    splits={"train": 3116571, "validation": 464346, "test": 432798},
    unit="characters",
    embedded=False,
    sha256=combined_sha256({each.file: each.sha256 for each in SOURCES.values()}),
)

# Item types of R's serialisation format, the only ones in a file that holds a character vector.
_SYMBOL, _PAIRLIST, _STRING, _STRINGS, _END = 1, 2, 9, 16, 254


def load(split: str) -> str:
    """Returns the text of a split."""
    return "\n".join(normalise(read_rda(source.read("austen_full", SOURCES[novel]))) for novel in NOVELS[split])


def read_rda(data: bytes) -> list[str]:
    """Reads an R data file that holds one character vector: the only shape that is understood here.

    Args:
        data: bytes of a bzip2-compressed `.rda` file, format 2.

    Returns:
        List of str.

    Raises:
        ValueError: if the file is anything else or truncated.
    """
    try:
        decompressor = bz2.BZ2Decompressor()
        unpacked = decompressor.decompress(data, _UNPACKED_LIMIT)
        if not decompressor.eof:
            raise EOFError(f"the file is truncated or unpacks to more than {_UNPACKED_LIMIT:,} bytes")
        return _character_vector(io.BytesIO(unpacked))
    except (OSError, EOFError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"Expected an R data file of one character vector. Received: {error}") from error


def _character_vector(stream: io.BytesIO) -> list[str]:
    _expect(stream.read(7), b"RDX2\nX\n", "header")
    stream.read(12)  # versions of the format, of the writer and of the oldest reader
    _expect(_kind(stream), _PAIRLIST, "item")
    _expect(_kind(stream), _SYMBOL, "tag")
    _string(stream)
    _expect(_kind(stream), _STRINGS, "value")
    strings = [_string(stream) for _ in range(_integer(stream))]
    _expect(_kind(stream), _END, "end")
    return strings


def _expect(received: object, expected: object, what: str) -> None:
    if received != expected:
        raise ValueError(f"Expected an R data file of one character vector, {what} {expected}. Received: {received}")


def _integer(stream: io.BytesIO) -> int:
    return struct.unpack(">i", stream.read(4))[0]


def _kind(stream: io.BytesIO) -> int:
    return _integer(stream) & 0xFF


def _string(stream: io.BytesIO) -> str:
    _expect(_kind(stream), _STRING, "string")
    length = _integer(stream)
    text = stream.read(length) if length >= 0 else b""  # length -1 is R's missing value
    if len(text) < length:
        raise EOFError("the file ends inside a string")
    return text.decode()
