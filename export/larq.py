"""Larq Compute Engine: LiteRT files whose binary convolutions have one bit a weight and run by xnor and popcount.

The engine's converter and interpreter need an older NumPy than this library and no TensorFlow, so they live in an
environment of their own, made on first use in the user's cache directory, and are called as a subprocess. The converter
recognises `where(x >= 0, 1, -1)` before a convolution whose kernel is a constant of +-1.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from zoo.export import larq_worker
from zoo.export.errors import ExportError
from zoo.export.flatbuffer import read
from zoo.export.litert import litert_ops
from zoo.files import atomic_directory, atomic_file

VERSION = "0.16.0"
REQUIREMENTS = (f"larq-compute-engine=={VERSION}", "numpy<2")
# Pythons that the engine's packages are built for
PYTHONS = ((3, 11), (3, 12))
BINARY_CONVOLUTION = "custom:LceBconv2d"
_INSTALL_SECONDS, _RUN_SECONDS = 1800, 600


@dataclasses.dataclass(frozen=True)
class LarqRun:
    """What running a flatbuffer gave.

    Args:
        outputs: dict from output name to array.
        seconds: float. Median time of one example.
        size: int. Bytes of the file.
    """

    outputs: dict[str, np.ndarray]
    seconds: float
    size: int


# === Environment ===


def environment_path() -> Path:
    """Returns where the engine's environment is, or will be."""
    root = os.environ.get("ZOO_CACHE_DIR") or platformdirs.user_cache_dir("method-zoo", appauthor=False)
    return Path(root) / "environments" / f"larq-compute-engine-{VERSION}"


def environment_python() -> Path:
    """Returns the Python of the engine's environment, making it on first use (275 MB).

    Raises:
        ExportError: if there is no fitting Python, or installing fails, as without a network.
    """
    directory = environment_path()
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        base = find_python()
        with atomic_directory(directory) as temporary:
            # Moved to its place when it is whole: its Python finds its packages by where it lies
            _call([base, "-m", "venv", str(temporary)], "Making an environment for Larq Compute Engine")
            inside = temporary / python.relative_to(directory)
            _call(
                [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS],
                f"Installing {' and '.join(REQUIREMENTS)} (is there a network?)",
                _INSTALL_SECONDS,
            )
    return python


def find_python() -> str:
    """Returns a Python that the engine is built for: this one, or another one on the machine.

    Raises:
        ExportError: if there is none.
    """
    tried = {}
    for candidate in _candidates():
        tried[candidate] = _python_version(candidate)
        if tried[candidate] in PYTHONS:
            return candidate
    wanted = " or ".join(".".join(map(str, version)) for version in PYTHONS)
    raise ExportError(
        f"Larq Compute Engine needs Python {wanted}, on the PATH or running this library. Received: {tried}"
    )


def _candidates() -> Iterator[str]:
    yield sys.executable
    for version in PYTHONS:
        if found := shutil.which("python{}.{}".format(*version)):
            yield found


def _python_version(python: str) -> tuple[int, int] | None:
    command = [python, "-I", "-c", "import json, sys; print(json.dumps(sys.version_info[:2]))"]
    try:
        # A launcher without the version behind it is found, too, and fails
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        major, minor = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return major, minor


def _call(command: list[str], what: str, seconds: float = _RUN_SECONDS) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{what} failed. Received: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ExportError(f"{what} failed. Received: {' '.join(lines[-3:]) or f'status {done.returncode}'}")


def _work(*arguments: str) -> None:
    # Isolated, so that packages of this library's environment stay out of the engine's
    command = [str(environment_python()), "-I", larq_worker.__file__, *arguments]
    _call(command, f"Larq Compute Engine, {arguments[0]},")


# === Conversion ===


def write_static_saved_model(model: Any, directory: str | Path) -> Path:
    """Writes the main signature of a model with binary kernels, for one example: what `convert` takes.

    Args:
        model: model with `with_binary_kernels()`, such as a `RealToBinaryNet`.
        directory: path that does not exist.

    Raises:
        ValueError: for a model whose weights are not binary.
    """
    import tensorflow as tf

    binary = model.with_binary_kernels()
    signature = next(iter(binary.signatures().values()))
    specs = [
        tf.TensorSpec([1, *spec.tensor_spec(name).shape[1:]], spec.dtype, name=name)
        for name, spec in signature.inputs.items()
    ]
    function = tf.function(lambda *values: signature.function(**dict(zip(signature.inputs, values, strict=True))))
    module = tf.Module()
    module.weights = [variable.value for variable in binary.variables]
    tf.saved_model.save(module, str(directory), signatures=function.get_concrete_function(*specs))
    return Path(directory)


def convert(saved_model_dir: str | Path, output_path: str | Path) -> dict[str, int]:
    """Converts the default signature of a SavedModel.

    Args:
        saved_model_dir: path of a SavedModel whose binary kernels hold +-1, such as `write_static_saved_model` makes.
        output_path: path of the flatbuffer.

    Returns:
        Dict from operator to how often it occurs.

    Raises:
        ExportError: if the environment cannot be made, the conversion fails, or no convolution was taken for a binary
            one.
        ValueError: if there is no SavedModel.
    """
    saved_model_dir = Path(saved_model_dir)
    if not (saved_model_dir / "saved_model.pb").is_file():
        raise ValueError(f"`saved_model_dir` must be a SavedModel. Received: saved_model_dir={str(saved_model_dir)!r}")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.tflite"
        _work("convert", str(saved_model_dir.resolve()), str(path))
        content = path.read_bytes()
    found = litert_ops(content)
    if BINARY_CONVOLUTION not in found:
        raise ExportError(
            f"No convolution was taken for a binary one: kernels must be constants of +-1, inputs "
            f"`where(x >= 0, 1, -1)`. Received: {found}"
        )
    with atomic_file(output_path) as file:
        file.write_bytes(content)
    return found


def run(path: str | Path, inputs: Mapping[str, np.ndarray], rounds: int = 50) -> LarqRun:
    """Runs a flatbuffer in the engine's interpreter, on one thread.

    Args:
        path: path of a file that `convert` made.
        inputs: dict from input name to array `(batch, ...)`; examples run one after the other.
        rounds: int. Measurements of one example.

    Raises:
        ExportError: if the environment cannot be made, or running fails.
        ValueError: for inputs that the file does not have, or no rounds.
    """
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1. Received: rounds={rounds}")
    path = Path(path).resolve()
    names, output_names = signature_names(path.read_bytes())
    if set(names) != set(inputs):
        raise ValueError(f"`inputs` must be {names}. Received: {sorted(inputs)}")
    # Anything else would be pickled on its way
    if wrong := sorted(name for name in names if np.asarray(inputs[name]).dtype.kind not in "biuf"):
        raise ValueError(f"`inputs` must be arrays of numbers. Received: other ones in {wrong}")
    with tempfile.TemporaryDirectory() as scratch:
        given, found = (str(Path(scratch) / name) for name in ("inputs.npz", "outputs.npz"))
        arrays = {f"input_{index}": np.asarray(inputs[name]) for index, name in enumerate(names)}
        np.savez(given, **arrays)
        _work("run", str(path), given, found, str(rounds))
        with np.load(found, allow_pickle=False) as file:
            outputs = {name: file[f"output_{index}"] for index, name in enumerate(output_names)}
            seconds = statistics.median(file["seconds"].tolist())
    return LarqRun(outputs, seconds, path.stat().st_size)


def signature_names(content: bytes) -> tuple[list[str], list[str]]:
    """Returns the names of a flatbuffer's inputs and outputs, in the file's order."""
    model = read(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    return _names(signature.inputs, graph.inputs), _names(signature.outputs, graph.outputs)


def _names(named: Sequence[Any], order: Sequence[int]) -> list[str]:
    names = {each.tensorIndex: each.name.decode() for each in named}
    return [names[index] for index in order]
