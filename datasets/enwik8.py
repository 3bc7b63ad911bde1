"""enwik8: the first 100 million bytes of an English Wikipedia dump, the standard byte-level benchmark."""

from __future__ import annotations

from zoo.datasets import source
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import cut

SOURCE = Source(
    file="enwik8",
    url="http://mattmahoney.net/dc/enwik8.zip",
    sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    size=100_000_000,
    archive_sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
    member="enwik8",
)

INFO = DatasetInfo(
    name="enwik8",
    description=(
        "The first 10^8 bytes of the English Wikipedia dump of 3 March 2006, XML and all, as bytes. Splits in the "
        "customary order: 90 million bytes train, 5 million validation, 5 million test. A 36 MB download."
    ),
    licence="GFDL 1.2 (Wikipedia text of 2006)",
    source="http://mattmahoney.net/dc/textdata.html",
    features={"text": "bytes, one line at a time"},
    splits={"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000},
    unit="bytes",
    embedded=False,
    sha256=SOURCE.sha256,
)


def load(split: str) -> bytes:
    """Returns the bytes of a split."""
    return cut(source.read("enwik8", SOURCE), 0.9, 0.05)[split]
