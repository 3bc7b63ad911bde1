"""Loading `.keras` files that hold classes of this package, in a process that has not imported them."""

from __future__ import annotations

import importlib.util
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras


def load_model(filepath: str | Path, **kwargs: Any) -> keras.Model:
    """Loads a `.keras` file as `keras.saving.load_model` does, once the classes of `zoo` that it names are imported.

    Keras finds registered classes of imported modules only, and `import zoo` imports none, to stay fast.

    Args:
        filepath: path of the file.
        **kwargs: arguments of `keras.saving.load_model`.

    Returns:
        The model.

    Raises:
        ValueError: if the file is no `.keras` file.
        FileNotFoundError: if there is none.
    """
    try:
        with zipfile.ZipFile(filepath) as archive:
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"`filepath` must be a .keras file. Received: {str(filepath)!r} ({error})") from error
    for module in sorted({*_modules(config)}):
        # Code of this package only, whatever a file names
        if re.fullmatch(r"zoo(\.\w+)+", module) and importlib.util.find_spec(module):
            importlib.import_module(module)
    return keras.saving.load_model(filepath, **kwargs)


def _modules(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(config.get("module"), str):
            yield config["module"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _modules(value)
