"""Runs Larq Compute Engine in its own environment, which has neither TensorFlow nor this library.

    python larq_worker.py convert <saved model> <flatbuffer>
    python larq_worker.py run <flatbuffer> <inputs.npz> <outputs.npz> <rounds>

A problem ends the program with status 1 and its message on the last line of the error stream.
"""

import importlib.util
import sys
import time
import types
from pathlib import Path

import numpy as np

PACKAGE = "larq_compute_engine"


def stub_packages() -> None:
    """Registers the parent packages empty: what they would import by themselves needs TensorFlow."""
    root = Path(importlib.util.find_spec(PACKAGE).origin).parent
    for name in ("", "mlir", "tflite", "tflite.python"):
        module = types.ModuleType(f"{PACKAGE}.{name}".rstrip("."))
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[module.__name__] = module


def convert(saved_model: str, output: str) -> None:
    """Writes the flatbuffer of a SavedModel's default signature."""
    from larq_compute_engine.mlir import _tf_tfl_flatbuffer as converter

    content = converter.convert_saved_model_to_tflite_flatbuffer(
        saved_model, ["serve"], ["serving_default"], 1, "arm", None
    )
    Path(output).write_bytes(content)


def run(flatbuffer: str, inputs: str, outputs: str, rounds: str) -> None:
    """Runs every example, and times the first one alone: `seconds` holds one measurement a round."""
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    # Without the indirect kernels x86 runs reference code, ten times slower
    interpreter = Interpreter(Path(flatbuffer).read_bytes(), use_indirect_bgemm=True)
    with np.load(inputs, allow_pickle=False) as file:
        given = [file[f"input_{index}"] for index in range(len(file.files))]
    shapes = [tuple(shape) for shape in interpreter.input_shapes]
    if [each.shape[1:] for each in given] != [shape[1:] for shape in shapes]:
        raise ValueError(f"Inputs must have the shapes {shapes}. Received: {[each.shape for each in given]}")
    found = _as_list(interpreter.predict(_one_or_list(given)))
    first = _one_or_list([each[:1] for each in given])
    seconds = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        interpreter.predict(first)
        seconds.append(time.perf_counter() - start)
    arrays = {f"output_{index}": value for index, value in enumerate(found)}
    np.savez(outputs, seconds=np.array(seconds), **arrays)


def _one_or_list(arrays: list) -> object:
    return arrays[0] if len(arrays) == 1 else arrays


def _as_list(values: object) -> list:
    return list(values) if isinstance(values, (list, tuple)) else [values]


if __name__ == "__main__":
    stub_packages()
    {"convert": convert, "run": run}[sys.argv[1]](*sys.argv[2:])
