"""Tiny Shakespeare: 1.1 million characters of plays, a customary small text for character models."""

from __future__ import annotations

from zoo.datasets import source
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import cut

SOURCE = Source(
    file="input.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    size=1115394,
)

INFO = DatasetInfo(
    name="tiny_shakespeare",
    description=(
        "Forty thousand lines of Shakespeare's plays over 65 characters, cut in their order at exactly 90 % train "
        "(the customary train split), 5 % validation and 5 % test."
    ),
    licence="Public domain text; the repository that compiled it states no licence for the file",
    source="https://github.com/karpathy/char-rnn",
    features={"text": "str, one line at a time"},
    splits={"train": 1003854, "validation": 55770, "test": 55770},
    unit="characters",
    embedded=False,
    sha256=SOURCE.sha256,
)


def load(split: str) -> str:
    """Returns the text of a split."""
    return cut(source.read("tiny_shakespeare", SOURCE).decode("ascii"), 0.9, 0.05)[split]
