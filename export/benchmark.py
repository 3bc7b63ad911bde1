"""Size, latency and memory of an artifact, the last two in a fresh process that holds nothing else.

`python -m zoo.export.benchmark REQUEST.json INPUTS.npz` measures one artifact and prints the result as JSON.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.export.errors import ExportError
from zoo.export.runners import open_artifact

if TYPE_CHECKING:
    from zoo.model import Arrays, Runner

_SECONDS = 0.3
_LEAST_RUNS, _MOST_RUNS = 5, 200
_STATM = Path("/proc/self/statm")
_RUNTIMES = {
    "saved_model": "tensorflow",
    "litert": "ai_edge_litert.interpreter",
    "onnx": "onnxruntime",
    "packed": "numba",
}


def gzip_size(files: Iterable[Path]) -> int:
    """Returns the bytes of files after gzip: what a download would take."""
    return sum(len(gzip.compress(file.read_bytes(), compresslevel=6, mtime=0)) for file in files)


def measure(
    format: str, paths: Mapping[str, Path], inputs: Mapping[str, Arrays], scratch: Path
) -> tuple[dict[str, float], int | None]:
    """Measures an artifact in a fresh process, on one thread.

    Args:
        format: str. See `open_artifact`.
        paths: dict from signature to file or directory.
        inputs: dict from signature to the inputs of one call.
        scratch: path of a directory for temporary files.

    Returns:
        Median latency by signature, in milliseconds, of a call with NumPy arrays in and out; and the growth of resident
        memory by loading the artifact and running every signature, in bytes, or None where the system does not tell, and
        for `"lce"`.

    Raises:
        ExportError: if the process fails.
    """
    if format == "lce":
        # Its interpreter has an environment of its own, and measures itself there
        from zoo.export import larq

        return {name: 1e3 * larq.run(paths[name], item, _MOST_RUNS).seconds for name, item in inputs.items()}, None
    request, arrays = scratch / "benchmark.json", scratch / "benchmark.npz"
    request.write_text(json.dumps({"format": format, "paths": {name: str(path) for name, path in paths.items()}}))
    np.savez(arrays, **{f"{name}/{key}": value for name, item in inputs.items() for key, value in item.items()})
    command = [sys.executable, "-m", "zoo.export.benchmark", str(request), str(arrays)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ExportError(f"Measuring the {format!r} artifact failed. Received: {done.stderr[-500:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return result["latency_ms"], result["memory_bytes"]


def _resident() -> int | None:
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _latency(run: Runner, signature: str, inputs: Arrays) -> float:
    run(signature, inputs)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _LEAST_RUNS or (len(times) < _MOST_RUNS and time.perf_counter() < end):
        start = time.perf_counter()
        run(signature, inputs)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def _measure_here(request: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    inputs: dict[str, Arrays] = {name: {} for name in request["paths"]}
    for key, value in arrays.items():
        signature, name = key.split("/")
        inputs[signature][name] = value
    _import_runtime(request["format"])
    before = _resident()
    run = open_artifact(request["format"], {name: Path(path) for name, path in request["paths"].items()})
    latency, peak = {}, before
    for name, item in inputs.items():
        latency[name] = _latency(run, name, item)
        peak = peak if peak is None else max(peak, _resident())
    return {"latency_ms": latency, "memory_bytes": None if before is None else peak - before}


def _import_runtime(format: str) -> None:
    # What the runtime itself takes is not the artifact's; numba may be absent, where NumPy runs the file.
    if importlib.util.find_spec(_RUNTIMES[format]):
        importlib.import_module(_RUNTIMES[format])


def main(arguments: list[str]) -> None:
    """Measures what the two files describe and writes the result to standard output."""
    request = json.loads(Path(arguments[0]).read_text())
    with np.load(arguments[1]) as arrays:
        result = _measure_here(request, dict(arrays))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
