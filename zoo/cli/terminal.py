"""What the commands share: arguments, loading a model by name or directory, progress, and output."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import catalog

if TYPE_CHECKING:
    import keras
    from rich.console import Console

Say = Callable[[str], None]

_WIDTH = 120

# === Arguments ===


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], description: str
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
        name: str.
        run: callable of the parsed options.
        description: str. One line.

    Returns:
        The parser of the command.
    """
    help_text = description[0].lower() + description[1:].rstrip(".")
    parser = commands.add_parser(name, help=help_text, description=description, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds NAME|DIR and `--preset`."""
    parser.add_argument("source", metavar="NAME|DIR", help="method of the catalog, or preset directory")
    parser.add_argument("--preset", help="preset of the method (default: the method's own default)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def positive(text: str) -> int:
    """Reads a positive whole number; a type for `argparse`."""
    return _number(text, int, 1)


def natural(text: str) -> int:
    """Reads a whole number from 0 on; a type for `argparse`."""
    return _number(text, int, 0)


def duration(text: str) -> float:
    """Reads a number from 0 on; a type for `argparse`."""
    return _number(text, float, 0)


def share(text: str) -> float:
    """Reads a number from 0 to 1; a type for `argparse`."""
    number = duration(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, received {text!r}")
    return number


def _number(text: str, kind: Callable[[str], Any], minimum: int) -> Any:
    try:
        number = kind(text)
    except ValueError:
        number = minimum - 1
    if not minimum <= number < float("inf"):
        noun = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"must be a {noun} of at least {minimum}, received {text!r}")
    return number


# === Models ===


def is_directory(source: str) -> bool:
    """Whether NAME|DIR means a preset directory or its address: it has a path separator, or exists and is no method."""
    if "/" in source or "\\" in source:
        return True
    return source not in catalog.list_models() and Path(source).is_dir()


def check_source(source: str, preset: str | None, takes_weights: bool = False) -> None:
    """Refuses a source that cannot be loaded, before TensorFlow is.

    Args:
        source: str. NAME or DIR.
        preset: str or None. Preset of NAME.
        takes_weights: bool. Whether the command has `--weights`, which the error then offers.

    Raises:
        ValueError: for an unknown method or preset, a preset without weights, and a preset of a directory.
    """
    if is_directory(source):
        if preset is not None:
            raise ValueError(f"`--preset` belongs to a method; a directory is a preset. Received: --preset {preset}")
        return
    chosen = catalog.info(source).preset(preset)
    if not chosen.trained:
        offer = ", or pass `--weights` DIRECTORY or hf://user/repository instead" if takes_weights else ""
        raise ValueError(
            f"No trained weights are shipped for preset {chosen.name!r}: train them (zoo train {source} --preset "
            f"{chosen.name}) and pass the directory{offer}. Received: {source!r}"
        )


def load_model(source: str, preset: str | None = None) -> keras.Model:
    """Returns a trained model.

    Args:
        source: str. NAME or DIR.
        preset: str or None. Preset of NAME.

    Raises:
        FileNotFoundError: if there is no such directory.
        ConnectionError: if a download fails.
        ValueError: for an unknown or untrained preset, and for a damaged directory.
    """
    check_source(source, preset)
    import_tensorflow()
    if not is_directory(source):
        return catalog.get(source, preset)
    from zoo import checkpoints

    return checkpoints.load_preset(source)


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras without what they print about the machine."""
    from zoo.export.quiet import quiet

    with quiet():
        import keras  # noqa: F401
        import tensorflow  # noqa: F401


# Experiments across methods
EXPERIMENTS = (
    "compressed_networks",
    "compressed_transformer",
    "fine_tuned_encoders",
    "image_models",
    "long_range_language_models",
)


def experiment(method: str) -> Any:
    """Imports the experiment of a method, or one of `EXPERIMENTS`.

    Raises:
        ValueError: for an unknown method, and for one without an experiment.
    """
    name = f"zoo.experiments.{method if method in EXPERIMENTS else catalog.info(method).name}"
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"This method comes without an experiment. Received: {method!r}")
    import_tensorflow()
    return importlib.import_module(name)


def require_extra(package: str, extra: str, purpose: str) -> None:
    """Checks that an optional package is installed.

    Raises:
        ImportError: if not; the message says how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f'{purpose} needs {package}: pip install "method-zoo[{extra}]"')


# === Output ===


def console(stderr: bool = False) -> Console:
    """Returns a rich console that takes text as it is."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # In a pipe or a log nothing tells the width, and rich's 80 columns break tables
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def write_json(value: Any) -> None:
    """Writes a value as JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def stages() -> Iterator[Say]:
    """Yields a callable that shows the stage of long work: a spinner on a terminal, lines on standard error elsewhere."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda line: screen.print(line, soft_wrap=True)
        return
    with screen.status("Loading") as status:
        yield status.update
