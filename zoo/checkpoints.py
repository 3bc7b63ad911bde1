"""Preset directories: config, weights, metadata and assets, hashed and written atomically.

A preset directory holds `config.json` (constructor arguments), `model.weights.h5` (Keras's layout), `metadata.json` and
assets such as `tokenizer.json`. Loading builds the class the catalog names and nothing else: no class, function or pickle
comes out of a file, and no file but the small `metadata.json` is parsed before its SHA-256 matches.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from zoo import catalog, hub, hugging_face
from zoo.catalog import Method, Preset
from zoo.config import construct, constructor_arguments, read_config, write_config
from zoo.files import atomic_directory, check_writable, restore_directory, sha256
from zoo.metadata import (
    CONFIG,
    FORMAT_VERSION,
    MAXIMUM_ASSET,
    MAXIMUM_JSON,
    METADATA,
    WEIGHTS,
    Metadata,
    check_file_name,
    plain,
)
from zoo.model import ZooModel
from zoo.weights_file import read_weights, write_weights

__all__ = ["FORMAT_VERSION", "Metadata", "build", "load_preset", "save_preset"]


def build(method: Method, preset: Preset, overrides: Mapping[str, Any]) -> keras.Model:
    """Builds a model with random weights.

    Args:
        method: `Method`.
        preset: `Preset` of it.
        overrides: mapping. Constructor arguments that replace the preset's.

    Returns:
        A `keras.Model`; built, unless it is a user's class that only a call can build.

    Raises:
        ValueError: for overrides that the constructor does not take.
    """
    model_class = method.load_class(preset.class_name)
    kept, head = _split_head(model_class, overrides)
    if "head" not in constructor_arguments(model_class):
        # The only one that the class has
        head.pop("head", None)
    return construct(method, preset.class_name, preset.config, {**kept, **head})


def _split_head(model_class: type, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns overrides apart from those that ask for a head, and these.

    Raises:
        ValueError: for a head of a model without a backbone, or one that a class with a single head does not have.
    """
    names = getattr(model_class, "head_arguments", ())
    if "head" not in overrides or (not names and "head" in constructor_arguments(model_class)):
        return dict(overrides), {}
    if not names:
        raise ValueError(
            f"A {model_class.__name__} has no backbone to put a head on. Received: head={overrides['head']!r}"
        )
    single = getattr(model_class, "head", None)
    if isinstance(single, str) and overrides["head"] != single:
        raise ValueError(f"`head` of a {model_class.__name__} must be {single!r}. Received: head={overrides['head']!r}")
    kept = {name: value for name, value in overrides.items() if name not in names}
    return kept, {name: value for name, value in overrides.items() if name in names}


# === Saving ===


def save_preset(
    model: keras.Model,
    directory: str | Path,
    *,
    method: str | None = None,
    preset: str | None = None,
    weights_dtype: str = "float32",
    metrics: Mapping[str, float] | None = None,
    dataset: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    export: Mapping[str, Any] | None = None,
    licence: str = "Apache-2.0",
) -> Path:
    """Writes a preset directory atomically and sets the model's `metadata`.

    The same model and arguments give the same bytes on the same day; the environment variable `SOURCE_DATE_EPOCH`
    (seconds) fixes the date.

    Args:
        model: built `keras.Model` of a class in the catalog.
        directory: path. It must not exist, be empty, or be a preset directory, which is replaced.
        method: str or None. Catalog name. By default the method whose class is the model's.
        preset: str or None. Preset whose configuration this is. `"custom"` by default.
        weights_dtype: str. `"float16"` halves the file; such weights load into float32 variables.
        metrics: mapping or None. See `Metadata`, as for the rest.
        dataset: mapping or None.
        training: mapping or None.
        export: mapping or None.
        licence: str. SPDX identifier.

    Returns:
        The directory.

    Raises:
        ValueError: for a model that is not built or not in the catalog, for weights that are not finite, for values that
            JSON does not keep, and for a directory that cannot be written or holds something else.
    """
    if weights_dtype not in ("float32", "float16"):
        raise ValueError(f"`weights_dtype` must be 'float32' or 'float16'. Received: weights_dtype={weights_dtype!r}")
    if not model.built:
        raise ValueError("A model must be built before it is saved: call it once. Received: a model without weights")
    chosen = _method_of(model, method)
    assets = model.assets if isinstance(model, ZooModel) else {}
    contents = {CONFIG: write_config(model), **{check_file_name(name): data for name, data in assets.items()}}
    directory = _check_replaceable(Path(directory))
    with atomic_directory(directory) as temporary:
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        write_weights(model, temporary / WEIGHTS, weights_dtype)
        metadata = Metadata(
            method=chosen.name,
            preset=preset or "custom",
            parameters=model.count_params(),
            weights_sha256=sha256(temporary / WEIGHTS),
            files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
            metrics={name: float(value) for name, value in (metrics or {}).items()},
            dataset=plain(dict(dataset or {}), "dataset"),
            training=plain(dict(training or {}), "training"),
            export=plain(dict(export or {}), "export"),
            versions=_versions(),
            licence=licence,
            created=_today(),
        )
        (temporary / METADATA).write_bytes(metadata.to_json().encode())
    model.metadata = metadata
    return directory


def _method_of(model: keras.Model, name: str | None) -> Method:
    if name is not None:
        if type(model) not in map(catalog.info(name).load_class, catalog.info(name).class_names):
            raise ValueError(f"The model must be of method {name!r}. Received: a {type(model).__name__}")
        return catalog.info(name)
    # The module of the model's class is loaded: no other one can be the method's
    found = [method for method in map(catalog.info, catalog.list_models()) if type(model) in _loaded_classes(method)]
    if len(found) != 1:
        raise ValueError(
            f"The model's class must belong to one method of the catalog: see `zoo.register`, or name it by `method`. "
            f"Received: a {type(model).__name__}, class of {[method.name for method in found]}"
        )
    return found[0]


def _loaded_classes(method: Method) -> list[type | None]:
    module = sys.modules.get(method.module)
    return [method.model_class or getattr(module, name, None) for name in method.class_names]


def _check_replaceable(directory: Path) -> Path:
    check_writable(directory)
    if directory.is_dir() and any(directory.iterdir()):
        absent = [name for name in (CONFIG, WEIGHTS, METADATA) if not (directory / name).is_file()]
        if absent:
            raise ValueError(
                f"`directory` must not exist, be empty or be a preset directory; this one lacks {absent}. "
                f"Received: directory={str(directory)!r}"
            )
    return directory


def _versions() -> dict[str, str]:
    packages = ("method-zoo", "tensorflow", "keras", "numpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _today() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.datetime.fromtimestamp(float(epoch), datetime.UTC) if epoch else datetime.datetime.now(datetime.UTC)
    return now.date().isoformat()


# === Loading ===


def load_preset(
    source: str | Path,
    *,
    method: Method | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    offline: bool | None = None,
) -> keras.Model:
    """Builds a model and loads its trained weights.

    Args:
        source: preset directory: a path, `hf://user/repository[/folder][@revision]` or `https://` address of one. An
            address may end with `#sha256=` and the hash of its `metadata.json`, which vouches for all other files. Or the
            path or `hf://` address of a Hugging Face directory, for a method that converts such weights.
        method: `Method`, its name, or None. What the preset must be of; whatever its metadata says by default.
        overrides: mapping or None. Constructor arguments that replace the stored ones. With `head` among them, a head
            that is not the stored one is put on the stored backbone and starts at random, which is logged.
        offline: bool or None. Whether to use only what the cache holds. By default whether the environment variable
            `ZOO_OFFLINE` is set, and not to 0.

    Returns:
        A built `keras.Model` with `metadata` set.

    Raises:
        FileNotFoundError: if there is no such directory, or offline none in the cache.
        ConnectionError: if a download fails.
        ValueError: if the preset is damaged, malformed, of another method or version, or contradicts the overrides.
    """
    overrides = overrides or {}
    if isinstance(method, Method) and (theirs := _hugging_face_directory(source, method, offline)):
        return importlib.import_module(_conversion(method)).from_hugging_face(theirs, overrides)
    directory = hub.fetch(source, offline) if hub.is_address(source) else _local(Path(source), method)
    metadata = Metadata.from_json(_read(directory, METADATA, MAXIMUM_JSON))
    chosen = _expected_method(method, metadata)
    contents = {
        name: _read(directory, name, MAXIMUM_JSON if name == CONFIG else MAXIMUM_ASSET, digest)
        for name, digest in metadata.files.items()
    }
    weights = _inside(directory, WEIGHTS, metadata.maximum_weights)
    _check_hash(weights, sha256(weights), metadata.weights_sha256)
    class_name, config = read_config(contents.pop(CONFIG), chosen)
    overrides, head = _split_head(chosen.load_class(class_name), overrides)
    model = construct(chosen, class_name, config, overrides)
    _check_parameters(model, metadata, overrides)
    try:
        read_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"{error}. The preset is {str(source)!r}, with overrides={dict(overrides)}") from error
    _set_assets(model, contents)
    model.metadata = metadata
    return model.fit_head(**head) if head else model


def _conversion(method: Method) -> str:
    """Returns the name of the module beside the method's that would read directories of Hugging Face's."""
    return f"{method.module}_conversion"


def _converts(method: Method) -> bool:
    """Whether a method reads directories of Hugging Face's."""
    return importlib.util.find_spec(_conversion(method)) is not None


def _hugging_face_directory(source: str | Path, method: Method, offline: bool | None) -> Path | None:
    """Returns the local directory of Hugging Face's that a source is, if it is one and the method reads such."""
    if not _converts(method):
        return None
    if hub.is_address(source):
        return hub.fetch_hugging_face(source, hugging_face.FILES, offline)
    directory = Path(source)
    return directory if not (directory / METADATA).exists() and (directory / CONFIG).is_file() else None


def _local(directory: Path, method: Method | str | None) -> Path:
    restore_directory(directory)
    if not directory.exists():
        raise FileNotFoundError(f"There is no such preset directory. Received: {str(directory)!r}")
    if not (directory / METADATA).is_file():
        found = sorted(entry.name for entry in directory.iterdir())[:20] if directory.is_dir() else "a file"
        raise ValueError(
            f"A preset directory must hold {METADATA!r}{_instead(method)}. Received: {found} in {str(directory)!r}"
        )
    return directory


def _instead(method: Method | str | None) -> str:
    """Returns how an error goes on that misses the metadata: what a directory of Hugging Face's would need."""
    if not isinstance(method, Method):
        return ""
    if _converts(method):
        return f", or, for {method.name!r}, Hugging Face's {CONFIG!r}"
    return f"; {method.name!r} reads no weights of Hugging Face"


def _inside(directory: Path, name: str, limit: int) -> Path:
    path = (directory / name).resolve()
    # Not a device or pipe, which would never end, and no link to a file that is not the preset's
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        raise ValueError(f"A preset directory must hold {name!r} as a regular file. Received: {str(directory)!r}")
    if path.stat().st_size > limit:
        raise ValueError(
            f"{name!r} may have at most {limit} bytes. Received: {path.stat().st_size} in {str(directory)!r}"
        )
    return path


def _read(directory: Path, name: str, limit: int, digest: str | None = None) -> bytes:
    path = _inside(directory, name, limit)
    data = path.read_bytes()
    if digest is not None:
        _check_hash(path, hashlib.sha256(data).hexdigest(), digest)
    return data


def _check_hash(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{path.name!r} is damaged, or not the file that {METADATA!r} describes: "
            f"its SHA-256 must be {expected}. Received: {found} in {str(path.parent)!r}"
        )


def _expected_method(method: Method | str | None, metadata: Metadata) -> Method:
    name = method.name if isinstance(method, Method) else method
    if name not in (None, metadata.method):
        raise ValueError(f"The preset must be of method {name!r}. Received: one of {metadata.method!r}")
    return method if isinstance(method, Method) else catalog.info(metadata.method)


def _check_parameters(model: keras.Model, metadata: Metadata, overrides: Mapping[str, Any]) -> None:
    if not model.built:
        raise ValueError(f"Constructing a {type(model).__name__} must build it, so that weights can be loaded.")
    if model.count_params() != metadata.parameters:
        raise ValueError(
            f"The overrides must fit the trained weights, which have {metadata.parameters} parameters; weights=None takes "
            f"any. Received: overrides={dict(overrides)}, which give {model.count_params()} parameters"
        )


def _set_assets(model: keras.Model, assets: Mapping[str, bytes]) -> None:
    if not assets:
        return
    if not isinstance(model, ZooModel):
        raise ValueError(f"Only a ZooModel has assets. Received: {sorted(assets)} for a {type(model).__name__}")
    model.set_assets(assets)
