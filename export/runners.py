"""Each artifact in its own runtime, all called alike: `run(signature, inputs) -> outputs`.

This module imports no TensorFlow, so that a process that measures a LiteRT or ONNX file holds that runtime only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.export.errors import ExportError
from zoo.export.quiet import quiet

if TYPE_CHECKING:
    from zoo.model import Arrays, Runner


def open_artifact(format: str, paths: dict[str, Path]) -> Runner:
    """Opens an artifact for running.

    Args:
        format: str. `"saved_model"`, `"litert"`, `"onnx"`, `"lce"` or `"packed"`.
        paths: dict from signature to the file (for a SavedModel the directory) that holds it.

    Returns:
        `zoo.model.Runner`, on one thread for LiteRT and ONNX.

    Raises:
        ExportError: if the runtime does not load the artifact.
    """
    opener: Callable[[dict[str, Path]], Runner] = {
        "saved_model": saved_model_runner,
        "litert": litert_runner,
        "onnx": onnx_runner,
        "lce": larq_runner,
        "packed": packed_runner,
    }[format]
    try:
        return opener(paths)
    except (RuntimeError, ValueError, OSError) as error:
        raise ExportError(f"The runtime of {format!r} does not load the artifact. Received: {error}") from error
    except Exception as error:
        # ONNX Runtime's errors share no base class below Exception.
        if type(error).__module__.startswith("onnxruntime"):
            raise ExportError(f"ONNX Runtime does not load the artifact. Received: {error}") from error
        raise


def saved_model_runner(paths: dict[str, Path]) -> Runner:
    """Runs a reloaded SavedModel in TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(next(iter(paths.values()))))

    def run(signature: str, inputs: Arrays) -> Arrays:
        outputs = loaded.signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def litert_runner(paths: dict[str, Path]) -> Runner:
    """Runs a `.tflite` file in the LiteRT interpreter, resized to the inputs at each call."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(model_path=str(next(iter(paths.values()))), num_threads=1)
        signatures = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    announced: set[str] = set()  # the first call of a signature prints from C++

    def run(signature: str, inputs: Arrays) -> Arrays:
        with contextlib.nullcontext() if signature in announced else quiet():
            outputs = signatures[signature](**inputs)
        announced.add(signature)
        return {name: np.array(value) for name, value in outputs.items()}

    return run


def onnx_runner(paths: dict[str, Path]) -> Runner:
    """Runs ONNX graphs in ONNX Runtime, one session a signature."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as well
    sessions = {name: _session(onnxruntime, path, options) for name, path in paths.items()}

    def run(signature: str, inputs: Arrays) -> Arrays:
        session = sessions[signature]
        values = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
        return dict(zip((output.name for output in session.get_outputs()), values, strict=True))

    return run


def larq_runner(paths: dict[str, Path]) -> Runner:
    """Runs a file of Larq Compute Engine in that engine's own environment; every call is a process of its own."""
    from zoo.export import larq

    def run(signature: str, inputs: Arrays) -> Arrays:
        return larq.run(paths[signature], inputs, rounds=1).outputs

    return run


def packed_runner(paths: dict[str, Path]) -> Runner:
    """Runs a bit-packed network, by numba where that is installed."""
    from zoo.compression.binary import PackedModel, default_engine

    model = PackedModel.load(next(iter(paths.values())), default_engine())

    def run(signature: str, inputs: Arrays) -> Arrays:
        return {"logits": model.predict(**inputs)}

    return run


def _session(onnxruntime: Any, path: Path, options: Any) -> Any:
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
