"""Plain-text clean-up shared by the Jane Austen sets: hard-wrapped lines become paragraphs over a small alphabet.

The e-texts behind both sets differ in their typing habits (one or two spaces after a full stop, underscores for
emphasis, rows of asterisks between scenes). A character model should spend nothing on those, so they are removed here,
once, for the embedded text and for the downloaded one alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

ALPHABET = "\n !\"&'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Every character that a normalised novel may hold, in code-point order."""

# The first drops the typists' marks of emphasis and footnotes; NFKD then takes the accents off what is left.
_REPLACED = str.maketrans(
    {"_": "", "*": "", "£": "L", "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "æ": "ae"}
)
# A modern publisher's note at the end of one e-text; everything from it on is not Jane Austen's.
_END_MATTER = "A NOTE ON THE TEXT"


def _plain(line: str) -> str:
    decomposed = unicodedata.normalize("NFKD", line.translate(_REPLACED))
    kept = "".join(character for character in decomposed if not unicodedata.combining(character))
    return re.sub(r"\s+", " ", kept).strip()


def _join(lines: Iterable[str]) -> str:
    """Joins wrapped lines; a line that ends in a hyphen or a dash was broken inside a word or before its neighbour."""
    joined = ""
    for line in lines:
        joined += line if not joined or joined.endswith("-") else f" {line}"
    return joined


def normalise(lines: Iterable[str]) -> str:
    """Turns the hard-wrapped lines of a novel into paragraphs separated by one blank line.

    Wrapped lines are joined by a space, also in verse and letters; runs of spaces become one; emphasis marks, accents
    and typographic quotes go; bracketed editorial paragraphs and rows of asterisks are dropped.

    Args:
        lines: iterable of str. The novel, a line each, without line ends.

    Returns:
        str over `ALPHABET`, ending in one line break.

    Raises:
        ValueError: if a character remains that is not in `ALPHABET`.
    """
    paragraphs: list[list[str]] = [[]]
    for line in map(_plain, lines):
        if line == _END_MATTER:
            break
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    joined = (_join(paragraph) for paragraph in paragraphs)
    text = "\n\n".join(p for p in joined if p and not (p.startswith("[") and p.endswith("]"))) + "\n"
    foreign = sorted(set(text) - set(ALPHABET))
    if foreign:
        raise ValueError(f"`lines` must normalise to the characters of ALPHABET. Received also: {foreign}")
    return text
