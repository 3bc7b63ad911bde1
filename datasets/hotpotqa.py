"""Reads HotpotQA: questions whose answers take several Wikipedia paragraphs. For files that users have.

Yang et al. 2018, https://hotpotqa.github.io. The files (`hotpot_train_v1.1.json`, `hotpot_dev_distractor_v1.json`,
`hotpot_dev_fullwiki_v1.json`, CC BY-SA 4.0) are lists of questions, each with its paragraphs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CLOSED_ANSWERS = ("yes", "no")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its paragraphs.

    Args:
        id: str.
        question: str.
        documents: tuple of pairs of a title and its sentences.
        answer: str or None. None where the file has no answers.
        supporting_facts: tuple of pairs of a title and a sentence's number. They may name what was not retrieved.
    """

    id: str
    question: str
    documents: tuple[tuple[str, tuple[str, ...]], ...]
    answer: str | None = None
    supporting_facts: tuple[tuple[str, int], ...] = ()

    @property
    def span(self) -> str | None:
        """The answer where it is a span of a paragraph; None for yes, no and unknown ones."""
        return None if self.answer in _CLOSED_ANSWERS else self.answer

    @property
    def answer_documents(self) -> list[int]:
        """Numbers of the supporting documents that hold the answer's text."""
        supporting = {title for title, _ in self.supporting_facts}
        return [
            number
            for number, (title, sentences) in enumerate(self.documents)
            if self.span and title in supporting and self.span in " ".join(sentences)
        ]


def read(path: str | Path) -> list[Question]:
    """Reads a file of the official format.

    Args:
        path: path of a JSON file.

    Returns:
        List of questions, in the order of the file.

    Raises:
        ValueError: for what is not a list of questions; the message names the place in the file.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"`path` must be a JSON file of HotpotQA. Received: {path}, {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"`path` must hold a list of questions. Received: {path} with a {type(entries).__name__}")
    return [_question(entry, f"{path}, entry {number}") for number, entry in enumerate(entries)]


def _question(entry: Mapping[str, Any], place: str) -> Question:
    try:
        found = Question(
            id=entry["_id"],
            question=entry["question"],
            documents=tuple((title, tuple(sentences)) for title, sentences in entry["context"]),
            answer=entry.get("answer"),
            supporting_facts=tuple((title, int(number)) for title, number in entry.get("supporting_facts", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"A question must have `_id`, `question` and `context`, a list of titles with sentences. Received: {place}, "
            f"{type(error).__name__}: {error}"
        ) from error
    texts = [found.question, *(text for title, sentences in found.documents for text in (title, *sentences))]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Questions, titles and sentences must be strings. Received: {place}")
    return found
