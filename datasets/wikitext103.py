"""WikiText-103: 103 million words of good Wikipedia articles, at character or word level."""

from __future__ import annotations

import array
import collections
import functools
import io

import numpy as np

from zoo.datasets import source
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo

# The address of the authors' former employer is gone; this is the same archive, at a fixed revision.
SOURCE = Source(
    file="wikitext-103-raw-v1.zip",
    url=(
        "https://huggingface.co/datasets/mattdangerw/wikitext-103-raw/resolve/"
        "3555105b17ae31cc619a136fac72dbe2865c3738/wikitext-103-raw-v1.zip"
    ),
    sha256="91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794",
    size=191984949,
)
_MEMBER = "wikitext-103-raw/wiki.{}.raw"
_UNPACKED_LIMIT = 1 << 30  # bytes; the train split takes 0.55 GB

END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"
UNITS = ("character", "word")

INFO = DatasetInfo(
    name="wikitext103",
    description=(
        "Good and featured articles of English Wikipedia, tokenised by spaces, in their original case and the official "
        "splits. The raw release: rare words are spelt out; `unit='word'` replaces those seen fewer than 3 times in "
        "the train split by `<unk>`. A 192 MB download, kept packed."
    ),
    licence="CC BY-SA 3.0 (Wikipedia)",
    source="https://arxiv.org/abs/1609.07843",
    features={"text": "str, one line at a time (unit='character')", "token": "int32 (), word index (unit='word')"},
    splits={"train": 1801350, "validation": 3760, "test": 4358},
    unit="lines",
    embedded=False,
    sha256=SOURCE.sha256,
)


def load(split: str, unit: str = "character", minimum_count: int = 3) -> str | dict[str, np.ndarray]:
    """Returns a split as text or as indices of words.

    Args:
        split: str. `"train"`, `"validation"` or `"test"`.
        unit: str. `"character"` for the text, `"word"` for indices into `vocabulary(minimum_count)`.
        minimum_count: int. Occurrences in the train split that a word needs, for `unit="word"`.

    Returns:
        str, or `{"token": int32 array (words,)}` where each line ends in `<eos>`.

    Raises:
        ValueError: if `unit` is neither, or `minimum_count` is below 1.
    """
    if unit not in UNITS:
        raise ValueError(f"`unit` must be one of {UNITS}. Received: unit={unit!r}")
    if unit == "character":
        return _text(split)
    words = vocabulary(minimum_count)
    return {"token": encode(_text(split), words)}


def _text(split: str) -> str:
    packed = source.read("wikitext103", SOURCE)
    member = _MEMBER.format("valid" if split == "validation" else split)
    return source.unzip(packed, member, _UNPACKED_LIMIT).decode()


@functools.lru_cache(maxsize=1)
def vocabulary(minimum_count: int = 3) -> tuple[str, ...]:
    """Returns the words of the train split, most frequent first, ties in order of code points.

    Args:
        minimum_count: int, at least 1. Occurrences a word needs.

    Returns:
        Tuple of str; it holds `<eos>` and `<unk>`.

    Raises:
        ValueError: if `minimum_count` is below 1.
    """
    if minimum_count < 1:
        raise ValueError(f"`minimum_count` must be at least 1. Received: {minimum_count=}")
    return count_words(_text("train"), minimum_count)


def count_words(text: str, minimum_count: int) -> tuple[str, ...]:
    """Returns the words of a text, see `vocabulary`."""
    counts: collections.Counter[str] = collections.Counter()
    for line in io.StringIO(text, newline="\n"):
        counts.update(line.split())
        counts[END_OF_LINE] += 1
    rare = {word for word, count in counts.items() if count < minimum_count} - {UNKNOWN, END_OF_LINE}
    counts[UNKNOWN] += sum(counts.pop(word) for word in rare)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def encode(text: str, words: tuple[str, ...]) -> np.ndarray:
    """Turns a text into indices of words.

    Args:
        text: str. Words separated by spaces.
        words: tuple of str with `<eos>` and `<unk>`.

    Returns:
        int32 array `(words,)`, an `<eos>` at the end of each line.
    """
    index = {word: position for position, word in enumerate(words)}
    unknown, end = index[UNKNOWN], index[END_OF_LINE]
    tokens = array.array("i")  # 4 bytes a word, where a list of 100 million would take 9 times as much
    for line in io.StringIO(text, newline="\n"):
        tokens.extend(index.get(word, unknown) for word in line.split())
        tokens.append(end)
    return np.asarray(tokens, dtype="int32")
