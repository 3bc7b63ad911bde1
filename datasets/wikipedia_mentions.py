"""Beginnings of Wikipedia articles that mention each other: short texts with real links between them."""

from __future__ import annotations

import bz2
import json

import numpy as np

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import SPLITS

FILE = "wikipedia_mentions.jsonl.bz2"
FILE_SHA256 = "aafbd032896466c25e7869d40a22fb8a5065b028c4552f4b6c8a3988190f3f4d"
# Articles that a text mentions beyond this many are left out.
MAXIMUM_LINKS = 4

INFO = DatasetInfo(
    name="wikipedia_mentions",
    description=(
        "The first sentences of English Wikipedia articles, up to 320 characters, with the articles whose titles of two or "
        "more words they mention. Only articles that mention another or are mentioned. Split by the hash of the title: "
        "about 80 % train, 10 % validation, 10 % test; linked articles may be of any split."
    ),
    licence="CC BY-SA 4.0 (Wikipedia contributors)",
    source="https://en.wikipedia.org/",
    features={
        "title": "str ()",
        "text": "str ()",
        "topic": "str (), one of twelve, such as 'Geography'",
        "linked_title": f"str ({MAXIMUM_LINKS},), titles that the text mentions, '' where there are fewer",
        "linked_text": f"str ({MAXIMUM_LINKS},), the texts of these",
    },
    splits={"train": 2438, "validation": 334, "test": 311},
    unit="examples",
    embedded=True,
    sha256=FILE_SHA256,
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the articles of a split, sorted by title."""
    content = bz2.decompress(source.read_embedded("wikipedia_mentions", FILE, FILE_SHA256)).decode()
    articles = {article["title"]: article for article in map(json.loads, content.splitlines())}
    chosen = [article for title, article in articles.items() if split_of(title) == split]
    links = [(article["links"] + [""] * MAXIMUM_LINKS)[:MAXIMUM_LINKS] for article in chosen]
    texts = {"": "", **{title: article["text"] for title, article in articles.items()}}
    return {
        **{name: np.array([article[name] for article in chosen]) for name in ("title", "text", "topic")},
        "linked_title": np.array(links),
        "linked_text": np.array([[texts[title] for title in row] for row in links]),
    }


def split_of(title: str) -> str:
    """Returns the split of an article."""
    place = int(source.sha256(title.encode())[:8], 16) % 10
    return SPLITS[max(place - 7, 0)]
