"""Finds datasets and hands out their splits."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.datasets.specs import DatasetInfo
from zoo.datasets.tensors import to_dataset

if TYPE_CHECKING:
    import tensorflow as tf

_PACKAGE = Path(__file__).resolve().parent


def _unknown(argument: str, value: str, known: Iterable[str]) -> ValueError:
    known = sorted(known)
    close = difflib.get_close_matches(str(value), known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"Known: {', '.join(known) or 'none'}."
    return ValueError(f"Unknown {argument}. {hint} Received: {argument}={value!r}")


def _loader(name: str) -> ModuleType | None:
    """Imports `<name>.py` of this folder; `None` where there is none or it holds no dataset."""
    if not isinstance(name, str) or not (_PACKAGE / f"{name}.py").is_file() or not name.isidentifier():
        return None
    module = importlib.import_module(f"zoo.datasets.{name}")
    return module if hasattr(module, "INFO") else None


def list_datasets() -> list[str]:
    """Returns the names of all datasets, sorted."""
    return sorted(path.stem for path in _PACKAGE.glob("*.py") if path.stem != "__init__" and _loader(path.stem))


def _find(name: str) -> ModuleType:
    module = _loader(name)
    if module is None:
        raise _unknown("name", name, list_datasets())
    return module


def info(name: str) -> DatasetInfo:
    """Returns what is known about a dataset without reading it.

    Args:
        name: str. One of `list_datasets()`.

    Raises:
        ValueError: if there is no such dataset; the message offers the closest names.
    """
    return _find(name).INFO


def _read(name: str, split: str, options: dict[str, Any]) -> Any:
    module = _find(name)
    if split not in info(name).splits:
        raise _unknown("split", split, info(name).splits)
    known = set(inspect.signature(module.load).parameters) - {"split"}
    for option in options:
        if option not in known:
            raise _unknown("option", option, known)
    return module.load(split, **options)


def load_arrays(name: str, split: str, **options: Any) -> dict[str, np.ndarray]:
    """Returns a split as NumPy arrays whose first axis counts examples.

    Args:
        name: str. One of `list_datasets()`.
        split: str. One of `info(name).splits`.
        **options: the loader's own, see its module.

    Returns:
        Dict from feature name to array.

    Raises:
        ValueError: for an unknown name, split or option, a corrupt data file, or a dataset that is a text.
        FileNotFoundError: if data is missing and `ZOO_OFFLINE` is set.
        ConnectionError: if a download fails.
    """
    data = _read(name, split, options)
    if not isinstance(data, dict):
        raise ValueError(f"`name` is a text, not arrays: use `load_text`. Received: name={name!r}, {options=}")
    return data


def load_text(name: str, split: str, **options: Any) -> str | bytes:
    """Returns a split as one text.

    Args:
        name: str. One of `list_datasets()`.
        split: str. One of `info(name).splits`.
        **options: the loader's own, see its module.

    Returns:
        str, or bytes where `info(name).unit` is `"bytes"`.

    Raises:
        ValueError: for an unknown name, split or option, a corrupt data file, or a dataset that is no text.
        FileNotFoundError: if data is missing and `ZOO_OFFLINE` is set.
        ConnectionError: if a download fails.
    """
    data = _read(name, split, options)
    if isinstance(data, dict):
        raise ValueError(f"`name` is no text: use `load_arrays`. Received: name={name!r}, {options=}")
    return data


def load(name: str, split: str | None = None, **options: Any) -> tf.data.Dataset | dict[str, tf.data.Dataset]:
    """Returns a dataset for `tf.data`.

    Args:
        name: str. One of `list_datasets()`.
        split: str or None. One of `info(name).splits`; `None` for all of them.
        **options: the loader's own, see its module.

    Returns:
        A finite `tf.data.Dataset`, or a dict of them by split for `split=None`. Its elements are dicts: one example
        each, or one line of a text under `"text"` with its line end, so that the elements in order are the text.

    Raises:
        ValueError: for an unknown name, split or option, or a corrupt data file.
        FileNotFoundError: if data is missing and `ZOO_OFFLINE` is set.
        ConnectionError: if a download fails.
    """
    wanted = list(info(name).splits) if split is None else [split]
    datasets = {each: to_dataset(_read(name, each, options)) for each in wanted}
    return datasets if split is None else datasets[split]
