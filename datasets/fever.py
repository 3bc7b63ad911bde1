"""Reads FEVER: claims to verify against sentences of Wikipedia. For files that users have.

Thorne et al. 2018, https://fever.ai. `train.jsonl` and `shared_task_dev.jsonl` hold claims, one a line, with the pages and
line numbers of their evidence; the sentences are in the folder `wiki-pages` (`wiki-001.jsonl` ...; CC BY-SA 3.0).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

# In the order of the classes of models that verify claims.
LABELS = ("NOT ENOUGH INFO", "REFUTES", "SUPPORTS")

# Title of a page and number of a line
Place = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim.

    Args:
        id: int.
        claim: str.
        label: str or None. One of `LABELS`; None where the file has none.
        evidence_sets: tuple of alternatives, each the places that together verify the claim.
    """

    id: int
    claim: str
    label: str | None = None
    evidence_sets: tuple[tuple[Place, ...], ...] = ()

    @property
    def evidence(self) -> list[Place]:
        """All places of evidence, each once, in order."""
        return list(dict.fromkeys(place for places in self.evidence_sets for place in places))


def read_claims(path: str | Path) -> list[Claim]:
    """Reads a file of claims.

    Args:
        path: path of a JSON-lines file.

    Returns:
        List of claims, in the order of the file.

    Raises:
        ValueError: for lines that are no claims; the message names the line.
    """
    return [_claim(entry, place) for entry, place in _lines(Path(path))]


def _claim(entry: Mapping[str, Any], place: str) -> Claim:
    try:
        label = entry.get("label")
        sets = tuple(
            # Undecidable claims have evidence without a page.
            tuple((title, int(line)) for _, _, title, line in places if title is not None)
            for places in entry.get("evidence", ())
        )
        found = Claim(int(entry["id"]), entry["claim"], label, tuple(places for places in sets if places))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "A claim must have `id`, `claim` and, in `evidence`, sets of [annotation, evidence, page, line]. Received: "
            f"{place}, {type(error).__name__}: {error}"
        ) from error
    if label is not None and label not in LABELS:
        raise ValueError(f"`label` must be one of {LABELS}. Received: {place}, {label!r}")
    return found


def read_pages(directory: str | Path, titles: Collection[str]) -> dict[str, dict[int, str]]:
    """Reads the sentences of some pages.

    Args:
        directory: path of the folder `wiki-pages`.
        titles: collection of str. Pages to read, as claims name them: `Stranger_Things`, `Emma_-LRB-novel-RRB-`.

    Returns:
        Dict from title to a dict from line number to sentence, without empty lines. Titles that no file has are absent.

    Raises:
        FileNotFoundError: if the folder holds no `.jsonl` file.
        ValueError: for lines that are no pages; the message names the line.
    """
    wanted, files = set(titles), sorted(Path(directory).glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"`directory` must hold files such as wiki-001.jsonl. Received: {directory}")
    pages = {}
    for file in files:
        for entry, place in _lines(file):
            try:
                if entry["id"] in wanted:
                    pages[entry["id"]] = dict(_sentences(entry["lines"]))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"A page must have `id` and `lines`, each a number, a sentence and links between tabs. Received: "
                    f"{place}, {type(error).__name__}: {error}"
                ) from error
    return pages


def _sentences(lines: str) -> Iterator[tuple[int, str]]:
    for line in lines.split("\n"):
        number, *fields = line.split("\t")
        # A page's text may hold line breaks of its own, whose rests have no number.
        if number.isdecimal() and fields and fields[0].strip():
            yield int(number), fields[0].strip()


def readable(title: str) -> str:
    """Returns a page's title as text: `The_Ten_Commandments_-LRB-1956_film-RRB-` is `The Ten Commandments (1956 film)`."""
    brackets = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-COLON-": ":"}
    for code, character in brackets.items():
        title = title.replace(code, character)
    return title.replace("_", " ")


def _lines(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    yield json.loads(line), place
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"`path` must be a file of JSON lines, as FEVER's are. Received: {place}, {error}"
                    ) from error
