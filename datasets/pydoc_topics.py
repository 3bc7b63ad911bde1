"""The help topics of the running Python: long technical English that every CPython brings along."""

from __future__ import annotations

import platform
from pydoc_data.topics import topics

from zoo.datasets.source import sha256
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import cut

# Sorted, because the dictionary's own order differs between versions for no reason of content.
_TEXT = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
_PARTS = cut(_TEXT, 0.8, 0.1, boundary="\n\n")

INFO = DatasetInfo(
    name="pydoc_topics",
    description=(
        f"The text of `help('topics')` in the running Python, {platform.python_version()}, sorted by topic. Another "
        "version of Python has another text: compare the SHA-256. Splits are contiguous, cut between paragraphs: 80 % "
        "train, 10 % validation, 10 % test."
    ),
    licence="Python Software Foundation License Version 2",
    source="https://docs.python.org/3/reference/",
    features={"text": "str, one line at a time"},
    splits={name: len(part) for name, part in _PARTS.items()},
    unit="characters",
    embedded=True,
    sha256=sha256(_TEXT.encode()),
)


def load(split: str) -> str:
    """Returns the text of a split."""
    return _PARTS[split]
