"""Labelled texts in files of one's own: CSV with a line of column names, or JSONL with an object a line.

Imports no TensorFlow, so that a file is judged before anything slow begins.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".csv", ".jsonl")


class Row(NamedTuple):
    """One example.

    Args:
        place: str. Where it stands, for errors.
        values: dict from column to value: strings in CSV, JSON values in JSONL.
    """

    place: str
    values: dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """Reads a file.

    Args:
        path: path that ends in `.csv` or `.jsonl`; UTF-8.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another suffix, a file without rows, and a malformed line, which is named.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"A file of examples must end in {' or '.join(SUFFIXES)}. Received: {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"There is no such file. Received: {str(path)!r}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list((_csv if path.suffix == ".csv" else _jsonl)(file, path.name))
    except UnicodeDecodeError as error:
        raise ValueError(f"A file of examples must be UTF-8: {error}. Received: {str(path)!r}") from error
    if not rows:
        raise ValueError(f"A file of examples must hold at least one. Received: {str(path)!r}")
    return rows


def _csv(file: Any, name: str) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError(f"Line 1 of {name!r} must name each column once. Received: {header}")
        for values in reader:
            if not values:
                continue
            place = f"line {reader.line_num} of {name!r}"
            if len(values) != len(header):
                raise ValueError(
                    f"Every line must have {len(header)} values, as the first one; separators and line ends within a "
                    f"value need quotes. Received: {len(values)} in {place}"
                )
            yield Row(place, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise ValueError(
            f"Every line must be valid CSV: {error}. Received: line {reader.line_num} of {name!r}"
        ) from error


def _jsonl(file: Any, name: str) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"line {number} of {name!r}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Every line must be valid JSON: {error}. Received: {place}") from error
        if not isinstance(values, dict):
            raise ValueError(f"Every line must be a JSON object. Received: {type(values).__name__} in {place}")
        yield Row(place, values)


# === Values ===


def value_of(row: Row, column: str) -> Any:
    """Returns the value of a column.

    Raises:
        ValueError: if the row has no such column; the message names those that it has.
    """
    if column not in row.values:
        raise ValueError(f"A column {column!r} must be there. Received: {list(row.values)} in {row.place}")
    return row.values[column]


def text_of(row: Row, column: str) -> str:
    """Returns the text of a column.

    Raises:
        ValueError: if there is none, or an empty one.
    """
    value = value_of(row, column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column!r} must be a text that is not empty. Received: {value!r} in {row.place}")
    return value


def label_of(row: Row, column: str) -> str:
    """Returns the label of a column, whole numbers as text.

    Raises:
        ValueError: for anything else than a text or a whole number.
    """
    value = value_of(row, column)
    # A bool is an int to Python
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise ValueError(f"{column!r} must be a text or a whole number. Received: {value!r} in {row.place}")
    return str(value)


def texts_of(row: Row, column: str) -> list[str]:
    """Returns the list of texts of a column.

    Raises:
        ValueError: for anything else, an empty list or an empty text.
    """
    value = value_of(row, column)
    valid = isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)
    if not valid:
        raise ValueError(f"{column!r} must be a list of texts that are not empty. Received: {value!r} in {row.place}")
    return value


# === Labels ===


def class_names(labels: Sequence[str]) -> list[str]:
    """Returns the classes among the labels of a train split, sorted, as numbers where all of them are.

    Raises:
        ValueError: for fewer than two.
    """
    found = set(labels)
    if len(found) < 2:
        raise ValueError(f"The train split must have at least two classes. Received: {sorted(found)}")
    return sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)


def class_ids(labels: Sequence[str], classes: Sequence[str], split: str) -> list[int]:
    """Returns the number of each label's class.

    Raises:
        ValueError: for classes that are not among the known ones.
    """
    numbers = {name: index for index, name in enumerate(classes)}
    unseen = sorted(set(labels) - set(numbers))
    if unseen:
        raise ValueError(
            f"Every class must be in the train split, which has {list(classes)}. Received: {unseen} in the {split} split"
        )
    return [numbers[label] for label in labels]
