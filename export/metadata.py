"""What travels inside every artifact: who made it, from what, and what its inputs and outputs mean."""

from __future__ import annotations

import base64
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras
    import onnx

    from zoo.export.signatures import Traced

KEY = "zoo"
FILE = f"{KEY}.json"
_FIELDS = ("method", "preset", "parameters", "weights_sha256", "metrics", "dataset", "training", "licence", "created")
_PACKAGES = (
    "method-zoo",
    "tensorflow",
    "keras",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "ai-edge-litert",
    "litert-quantizer",
)


def describe_model(model: keras.Model) -> dict[str, Any]:
    """Returns class, parameter count and, where the model has a record, method, preset, hash, licence and metrics."""
    record = getattr(model, "metadata", None)
    found = {field: getattr(record, field, None) for field in _FIELDS} if record is not None else {}
    facts = {"class": type(model).__name__, "parameters": model.count_params()}
    facts.update({field: value for field, value in found.items() if value is not None})
    return json.loads(json.dumps(facts, default=str))


def versions() -> dict[str, str]:
    """Returns the versions of the packages that take part in an export."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # the project itself may run from a source tree
    return found


def describe_signature(traced: Traced, shapes: Mapping[str, list[int | str]]) -> dict[str, Any]:
    """Returns shape, dtype and meaning of every input and output.

    Args:
        traced: `Traced`.
        shapes: dict from output name to shape, from `output_shapes`.
    """
    inputs = {
        name: {
            "shape": list(spec.shape),
            "dtype": spec.dtype,
            "description": spec.description,
            "minimum": spec.minimum,
            "maximum": spec.maximum,
        }
        for name, spec in traced.signature.inputs.items()
    }
    outputs = {
        name: {"shape": shapes[name], "dtype": tensor.dtype.name, "description": traced.signature.outputs[name]}
        for name, tensor in traced.concrete.structured_outputs.items()
    }
    return {"inputs": inputs, "outputs": outputs}


def output_shapes(
    traced: Traced, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, list[int | str]]:
    """Names the dynamic dimensions of outputs by those of the inputs.

    A dimension takes the name of the one input dimension that had the same size in an example call, and
    `<output>_<axis>` where none or several had.

    Args:
        traced: `Traced`.
        inputs: arrays of the example call.
        outputs: arrays it gave.
    """
    sizes: dict[str, int] = {}
    for name, spec in traced.signature.inputs.items():
        sizes.update(
            {key: size for key, size in zip(spec.shape, inputs[name].shape, strict=True) if isinstance(key, str)}
        )
    named = {}
    for name, tensor in traced.concrete.structured_outputs.items():
        known = tensor.shape.as_list() if tensor.shape.rank is not None else [None] * outputs[name].ndim
        named[name] = []
        for axis, (static, size) in enumerate(zip(known, outputs[name].shape, strict=True)):
            matches = [key for key, value in sizes.items() if value == size]
            guess = matches[0] if len(matches) == 1 else f"{name}_{axis}"
            named[name].append(guess if static is None else static)
    return named


# === Inside the artifacts ===


def encode(facts: Mapping[str, Any]) -> bytes:
    """Returns facts as JSON."""
    return json.dumps(facts, sort_keys=True).encode()


def set_onnx_properties(model: onnx.ModelProto, facts: Mapping[str, Any], assets: Mapping[str, bytes]) -> None:
    """Puts facts and files into a graph's `metadata_props`, files in base 64 under `asset:<name>`."""
    properties = {KEY: encode(facts).decode()}
    for field in ("method", "preset", "licence", "weights_sha256"):
        if facts["model"].get(field):
            properties[field] = str(facts["model"][field])
    properties.update({f"asset:{name}": base64.b64encode(content).decode() for name, content in assets.items()})
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name = "zoo"


def read_metadata(path: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads what an artifact holds about itself.

    Args:
        path: path of a SavedModel directory, a `.tflite` or an `.onnx` file written by `export_model`.

    Returns:
        The facts, and the embedded files by name.

    Raises:
        ValueError: if the artifact holds no facts.
    """
    path = Path(path)
    if path.is_dir():
        files = {file.name: file.read_bytes() for file in sorted((path / "assets").glob("*"))}
    elif path.suffix == ".onnx":
        files = _onnx_files(path)
    else:
        from zoo.export.litert import embedded

        entries, files = embedded(path)
        files = {**files, **({FILE: entries[KEY]} if KEY in entries else {})}
    if FILE not in files:
        raise ValueError(f"No metadata of this project in the artifact. Received: {str(path)!r}")
    return json.loads(files.pop(FILE)), files


def _onnx_files(path: Path) -> dict[str, bytes]:
    import onnx

    properties = {p.key: p.value for p in onnx.load(str(path), load_external_data=False).metadata_props}
    files = {
        key.removeprefix("asset:"): base64.b64decode(value)
        for key, value in properties.items()
        if key.startswith("asset:")
    }
    return {**files, **({FILE: properties[KEY].encode()} if KEY in properties else {})}
