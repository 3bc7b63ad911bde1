"""The record that lies beside a trained preset, and the strict reading of it. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
METADATA = "metadata.json"
# Largest sizes in bytes that a reader accepts
MAXIMUM_JSON = 1 << 20
MAXIMUM_ASSET = 64 << 20

_MAXIMUM_DEPTH = 32
_CHECKSUM = "checksum"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_json(data: bytes, name: str) -> Any:
    """Reads JSON that somebody else may have written.

    Args:
        data: bytes, UTF-8.
        name: str. What the error calls it.

    Returns:
        The value: only dicts, lists, strings, booleans, integers, finite floats and `None`.

    Raises:
        ValueError: for invalid, too long or too deeply nested JSON, a key given twice, NaN or infinity.
    """
    if len(data) > MAXIMUM_JSON:
        raise ValueError(f"`{name}` must have at most {MAXIMUM_JSON} bytes. Received: {len(data)}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"`{name}` is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"`{name}` is no valid JSON: {error}") from error
    return plain(value, name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError(f"a key is given twice. Received: {[key for key, _ in pairs][:20]}")
    return mapping


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"numbers must be finite. Received: {constant}")


def plain(value: Any, name: str, depth: int = 0) -> Any:
    """Returns a value as JSON would give it back: tuples as lists, all else unchanged.

    Args:
        value: any value.
        name: str. What the error calls it.
        depth: int. How many containers hold it.

    Raises:
        ValueError: for whatever JSON does not keep, such as objects, keys that are no strings, NaN and infinity.
    """
    if depth > _MAXIMUM_DEPTH:
        raise ValueError(f"`{name}` is nested too deeply.")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"`{name}` must have strings as keys. Received: {list(value)[:20]}")
        return {key: plain(item, f"{name}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{index}]", depth + 1) for index, item in enumerate(value)]
    if value is None or type(value) in (str, bool, int) or (type(value) is float and math.isfinite(value)):
        return value
    raise ValueError(
        f"`{name}` must be a string, boolean, finite number, None, list or dict. Received: {value!r} of {type(value)}"
    )


def dump_json(value: Any) -> str:
    """Returns JSON text that is the same for the same value, ending with a newline."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def check_file_name(name: Any) -> str:
    """Returns the name of an asset of a preset.

    Raises:
        ValueError: unless it is a plain name: no folder, no leading dot, not one of the names every preset has.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name in (WEIGHTS, METADATA):
        raise ValueError(
            f"A file of a preset must have a plain name (letters, digits, '.', '_', '-'; not {WEIGHTS!r} or {METADATA!r})."
            f" Received: {name!r}"
        )
    return name


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known about a trained preset.

    Args:
        method: str. Catalog name.
        preset: str. Preset whose configuration was trained, or `"custom"`.
        parameters: int. Number of parameters.
        weights_sha256: str. Hash of `model.weights.h5`.
        files: dict from the name of every other file (`config.json`, assets) to its SHA-256.
        metrics: dict from a metric's name with its split, such as `"test_bits_per_character"`, to its value.
        dataset: dict. Data it was trained on: name, split, sha256, options; `evaluated_on` where its metrics are of
            another data set, whose held-out splits are a part of this one's.
        training: dict. How it was trained: command, seed, steps.
        export: dict. Recorded results of quantised exports.
        versions: dict from package name to version.
        licence: str. SPDX identifier.
        created: str. ISO date.
        format_version: int. Version of the layout of preset directories.
    """

    method: str
    preset: str
    parameters: int
    weights_sha256: str
    files: dict[str, str]
    metrics: dict[str, float]
    dataset: dict[str, Any]
    training: dict[str, Any]
    export: dict[str, Any]
    versions: dict[str, str]
    licence: str
    created: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _check_version(self.format_version)
        for name, kind in _KINDS.items():
            _check_type(name, getattr(self, name), kind)
        if self.parameters < 0:
            raise ValueError(f"`parameters` must not be negative. Received: parameters={self.parameters}")
        for name in ("dataset", "training", "export"):
            plain(getattr(self, name), name)
        self._check_files()
        self._check_values()

    def _check_files(self) -> None:
        if CONFIG not in self.files:
            raise ValueError(f"`files` must name {CONFIG!r}. Received: files={self.files}")
        for name in self.files:
            check_file_name(name)
        for name, digest in {"weights_sha256": self.weights_sha256, **self.files}.items():
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                raise ValueError(f"The SHA-256 of {name!r} must be 64 hexadecimal digits. Received: {digest!r}")

    def _check_values(self) -> None:
        for name, value in self.metrics.items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"`metrics` must hold finite numbers. Received: {name}={value!r}")
        for name, value in self.versions.items():
            _check_type(f"versions.{name}", value, str)
        try:
            datetime.date.fromisoformat(self.created)
        except ValueError as error:
            raise ValueError(f"`created` must be an ISO date. Received: created={self.created!r}") from error

    @property
    def evaluation_dataset(self) -> str:
        """Name of the data set that the metrics are of: the one it was trained on, or an embedded part of that."""
        return self.dataset.get("evaluated_on", self.dataset["name"])

    @property
    def maximum_weights(self) -> int:
        """Largest size in bytes that the weights file of so many parameters can have."""
        return 8 * self.parameters + MAXIMUM_ASSET

    def to_json(self) -> str:
        """Returns the text of `metadata.json`, with a checksum of itself that tells an accident from an edit."""
        fields = dataclasses.asdict(self)
        return dump_json({**fields, _CHECKSUM: _checksum(fields)})

    @classmethod
    def from_json(cls, data: bytes) -> Metadata:
        """Reads the bytes of a `metadata.json`.

        Raises:
            ValueError: for anything that `to_json` does not write; the message names the field.
        """
        fields = parse_json(data, METADATA)
        _check_type(METADATA, fields, dict)
        _check_version(fields.get("format_version"))
        _check_names(fields, [*_KINDS, "format_version", _CHECKSUM])
        checksum = fields.pop(_CHECKSUM)
        metadata = cls(**fields)
        if checksum != _checksum(fields):
            raise ValueError(
                f"`{METADATA}` is damaged: `{_CHECKSUM}` must be {_checksum(fields)}. Received: {checksum!r}"
            )
        return metadata


_KINDS: dict[str, type] = {
    "method": str,
    "preset": str,
    "parameters": int,
    "weights_sha256": str,
    "files": dict,
    "metrics": dict,
    "dataset": dict,
    "training": dict,
    "export": dict,
    "versions": dict,
    "licence": str,
    "created": str,
}


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _check_version(version: Any) -> None:
    # First of all: another version may have other fields, and the reason is what the user needs to read
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"`format_version` must be {FORMAT_VERSION}: another version of method-zoo wrote this preset, or it is none. "
            f"Received: format_version={version!r}"
        )


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise ValueError(f"`{name}` must be of type {kind.__name__}. Received: {value!r}")


def _check_names(fields: Iterable[str], expected: list[str]) -> None:
    unknown, missing = sorted(set(fields) - set(expected)), sorted(set(expected) - set(fields))
    if unknown or missing:
        raise ValueError(f"`{METADATA}` has unknown fields {unknown} and lacks {missing}. Received: {sorted(fields)}")
