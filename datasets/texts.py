"""Cutting one long text into contiguous splits."""

from __future__ import annotations

from typing import TypeVar

Text = TypeVar("Text", str, bytes)

SPLITS = ("train", "validation", "test")


def cut(text: Text, train: float, validation: float, boundary: str = "") -> dict[str, Text]:
    """Cuts a text, in its order, into train, validation and test parts that together are the text.

    Args:
        text: str or bytes.
        train: float in (0, 1). Share of the length that goes to the train split.
        validation: float in (0, 1). Share of the validation split; the test split takes the rest.
        boundary: str. Each cut moves on to the end of the next such string, so that parts begin at paragraphs, say; the
            empty one cuts exactly.

    Returns:
        Dict from split name to part.
    """
    mark = boundary if isinstance(text, str) else boundary.encode()
    bounds = [0]
    for share in (train, train + validation):
        found = text.find(mark, int(share * len(text)))
        bounds.append(len(text) if found < 0 else found + len(mark))
    return {name: text[a:b] for name, a, b in zip(SPLITS, bounds, [*bounds[1:], len(text)], strict=True)}
