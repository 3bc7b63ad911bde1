"""Directories of Hugging Face: a configuration in JSON, weights as named arrays in safetensors.

Nothing is unpickled and no code comes out of a file. Each array must have its place in the model, and the model no other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.files import atomic_directory
from zoo.metadata import CONFIG, MAXIMUM_ASSET, MAXIMUM_JSON, dump_json, parse_json

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "spiece.model")
TOKENIZER_SETTINGS = "tokenizer_config.json"
MAXIMUM_WEIGHTS = 16 << 30
# What is taken from a repository, and its largest size in bytes
FILES = {
    CONFIG: MAXIMUM_JSON,
    WEIGHTS: MAXIMUM_WEIGHTS,
    TOKENIZER_SETTINGS: MAXIMUM_ASSET,
    **dict.fromkeys(TOKENIZER_FILES, MAXIMUM_ASSET),
}
# By their name of each weight: our variable, and their shape where it is not ours or its transpose's
Places = Mapping[str, tuple[keras.Variable, Sequence[int] | None]]


# === Configuration ===


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the content of `config.json`.

    Raises:
        ValueError: if it is missing, too large or malformed.
    """
    config = parse_json(_file(directory, CONFIG, MAXIMUM_JSON).read_bytes(), CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"`{CONFIG}` must hold a configuration. Received: {config!r}")
    return config


def check_model(config: Mapping[str, Any], model_type: str, architectures: Collection[str], what: str) -> None:
    """Refuses the configuration of another model.

    Args:
        config: mapping.
        model_type: str. What theirs must be.
        architectures: collection of str. Classes of theirs, one of which must be named, if any is.
        what: str. What the error says must be.
    """
    named = config.get("architectures") or list(architectures)
    if config.get("model_type") != model_type or not set(named) & set(architectures):
        found = {name: config.get(name) for name in ("model_type", "architectures")}
        raise ValueError(f"`{CONFIG}` must be of {what}. Received: {found}")


def with_defaults(
    config: Mapping[str, Any], defaults: Mapping[str, Any], required: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a configuration gives, and their constructor's defaults for the rest.

    Args:
        config: mapping.
        defaults: mapping from all names that matter to defaults, which also say what kind a value must be of.
        required: mapping. Values that our model has and that cannot be others.

    Raises:
        ValueError: for a value of another kind or other than required.
    """
    given = {**defaults, **{name: value for name, value in config.items() if name in defaults}}
    for name, value in given.items():
        _check_kind(name, value, defaults[name])
    for name, value in required.items():
        if given[name] != value:
            raise ValueError(f"`{name}` in {CONFIG!r} must be {value}. Received: {given[name]!r}")
    return given


def _check_kind(name: str, value: Any, default: Any) -> None:
    if default is None:
        kinds: tuple[type, ...] = (int, float, list, type(None))
    else:
        kinds = (int, float) if isinstance(default, float) else (type(default),)
    item = type(default[0]) if isinstance(default, list) else int
    items = value if isinstance(value, list) else ()
    if type(value) not in kinds or any(type(each) is not item for each in items):
        raise ValueError(f"`{name}` in {CONFIG!r} must be of the kind of {default!r}. Received: {value!r}")


def translate(name: str, value: str, meanings: Mapping[str, str]) -> str:
    """Returns our word for a value of theirs.

    Raises:
        ValueError: if we have none.
    """
    if value not in meanings:
        raise ValueError(f"`{name}` in {CONFIG!r} must be one of {list(meanings)}. Received: {value!r}")
    return meanings[value]


# === Weights ===


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the weights, without reading them.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: if the file is missing or no valid one.
    """
    path = _file(directory, WEIGHTS, None)
    safetensors = _safetensors(path)
    with _refusing(path), safetensors.safe_open(path, framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def read_tensors(directory: Path, num_parameters: int) -> dict[str, np.ndarray]:
    """Reads all weights.

    Args:
        directory: path.
        num_parameters: int. Of the model; a file of more than twice their size in float32, and some room, is refused.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: if the file is missing, too large or no valid one.
    """
    path = _file(directory, WEIGHTS, 8 * num_parameters + MAXIMUM_ASSET)
    _safetensors(path)
    from safetensors.numpy import load_file

    with _refusing(path):
        return load_file(path)


def assign(places: Places, tensors: Mapping[str, np.ndarray]) -> None:
    """Puts weights into their places; nothing is changed unless all of them fit.

    Args:
        places: `Places`.
        tensors: mapping from names to arrays.

    Raises:
        ValueError: for missing and unknown names, wrong shapes, and numbers that are not finite.
    """
    missing, unknown = sorted(places.keys() - tensors), sorted(tensors.keys() - places)
    if missing or unknown:
        raise ValueError(
            f"The weights must be those of the model that {CONFIG!r} describes. Received: {len(missing)} missing "
            f"{missing[:5]}, {len(unknown)} unknown {unknown[:5]}"
        )
    values = {}
    for name, (variable, shape) in places.items():
        value, wanted = tensors[name], _their_shape(variable, shape)
        if value.shape != wanted:
            raise ValueError(f"Weight {name!r} must have shape {wanted}. Received: shape={value.shape}")
        if not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            raise ValueError(
                f"Weight {name!r} must hold finite numbers. Received: dtype={value.dtype}, or NaN or infinity"
            )
        values[name] = (value.T if variable.name == "kernel" else value).reshape(variable.shape)
    # Only now, so that no half of a model is loaded
    for name, (variable, _) in places.items():
        variable.assign(values[name])


def collect(places: Places) -> dict[str, np.ndarray]:
    """Returns weights by their names and in their shapes: what `assign` takes."""
    found = {}
    for name, (variable, shape) in places.items():
        value = np.asarray(variable, "float32")
        value = value.T if variable.name == "kernel" else value
        found[name] = np.array(value.reshape(_their_shape(variable, shape)), order="C")
    return found


def _their_shape(variable: keras.Variable, shape: Sequence[int] | None) -> tuple[int, ...]:
    # A dense layer of theirs holds the transpose of ours
    return tuple(shape or (variable.shape[::-1] if variable.name == "kernel" else variable.shape))


def layer_places(layers: Iterable[tuple[str, keras.layers.Layer]]) -> dict[str, tuple[keras.Variable, None]]:
    """Returns the places of dense layers, embeddings and normalisations, each with their name of the layer."""
    ours_and_theirs = (
        ("embeddings", "weight"),
        ("gamma", "weight"),
        ("beta", "bias"),
        ("kernel", "weight"),
        ("bias", "bias"),
    )
    return {
        f"{name}.{theirs}": (variable, None)
        for name, layer in layers
        for ours, theirs in ours_and_theirs
        if (variable := getattr(layer, ours, None)) is not None
    }


def take_copy(tensors: dict[str, np.ndarray], name: str, expected: np.ndarray | None, what: str) -> None:
    """Drops a tensor that is no weight of its own, after checking that it is what it should be.

    Args:
        tensors: dict. Changed.
        name: str. It need not be there.
        expected: array, or None where the original is missing, which is said elsewhere.
        what: str. What it must be equal to.

    Raises:
        ValueError: if it is another.
    """
    if name in tensors:
        value = tensors.pop(name)
        if expected is not None and not np.array_equal(value, expected):
            raise ValueError(f"{name!r} must be {what}. Received: other values, of shape {value.shape}")


# === Files ===


def read_files(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Returns the content of those of some small files that a directory holds."""
    return {name: _file(directory, name, MAXIMUM_ASSET).read_bytes() for name in names if (directory / name).is_file()}


def write_directory(
    directory: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], files: Mapping[str, bytes]
) -> Path:
    """Writes a directory of theirs, atomically.

    Args:
        directory: path. It must not exist, or be empty.
        config: mapping. Content of `config.json`.
        tensors: mapping from names to arrays.
        files: mapping from names of further files to their content.

    Returns:
        The directory.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: for a directory that holds something.
    """
    directory = Path(directory)
    _safetensors(directory)
    from safetensors.numpy import save_file

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"`directory` must not exist, or be empty. Received: directory={str(directory)!r}")
    with atomic_directory(directory) as temporary:
        (temporary / CONFIG).write_bytes(dump_json(dict(config)).encode())
        save_file(dict(tensors), temporary / WEIGHTS, metadata={"format": "pt"})
        for name, content in files.items():
            (temporary / name).write_bytes(content)
    return directory


def _file(directory: Path, name: str, limit: int | None) -> Path:
    path = directory / name
    if not path.is_file():
        found = sorted(entry.name for entry in directory.iterdir())[:20]
        raise ValueError(
            f"A Hugging Face directory must hold {name!r}; pickled weights and parts of weights are not read. "
            f"Received: {found} in {str(directory)!r}"
        )
    if limit is not None and path.stat().st_size > limit:
        raise ValueError(f"{name!r} may have at most {limit} bytes. Received: {path.stat().st_size}")
    return path


def _safetensors(path: Path) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            f"Weights of Hugging Face need safetensors: pip install 'method-zoo[hub]'. Received: {str(path)!r}"
        ) from error
    return safetensors


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turns what safetensors raises into a `ValueError`."""
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name!r} is no valid weights file for NumPy: {error}. Received: {str(path)!r}"
        ) from error
