"""Bytes and time of a whole binary network: packed, in Larq Compute Engine, and in LiteRT in float and int8.

    python benchmarks/binary_network.py

The network of `real_to_binary`'s preset `fashion`, with its shipped weights where there are any and random ones otherwise.
One image, one thread, wall clock. In each round every runtime makes some calls, in turn; the table has the medians of the
rounds' medians. Larq Compute Engine runs and measures in an environment of its own. LiteRT's files compute with +-1 as with
any other numbers: they emulate the network.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import keras
import numpy as np

import zoo
from zoo.compression.binary import PackedModel
from zoo.export import export_binary, export_model, larq
from zoo.export.runners import open_artifact
from zoo.model import TaskMetric

CALLS = 20
LITERT = {"none": "float32, LiteRT", "dynamic_int8": "dynamic int8, LiteRT", "int8": "static int8, LiteRT"}


def network() -> tuple:
    """Returns the model and what its weights are."""
    if zoo.info("real_to_binary").preset("fashion").trained:
        return zoo.get("real_to_binary", "fashion"), "trained"
    keras.utils.set_random_seed(0)
    return zoo.get("real_to_binary", "fashion", weights=None), "random"


def measure(rounds: int) -> dict:
    """Returns bytes, bytes after gzip, error and milliseconds of every runtime."""
    model, weights = network()
    image = model.dummy_inputs(batch_size=1)
    with tempfile.TemporaryDirectory() as scratch:
        files, rows = export(model, Path(scratch)), {}
        packed = files["packed"][0]
        runners = {name: open_artifact("litert", {"predict": files[name][0]}) for name in LITERT.values()}
        for engine in ("numba", "numpy"):
            loaded = PackedModel.load(packed, engine)
            runners[f"packed, {engine}"] = lambda name, inputs, loaded=loaded: {"logits": loaded.predict(**inputs)}
        wanted = model.run(**image)["logits"]
        times = {name: [] for name in (*runners, "LCE")}
        for _ in range(rounds):
            for name, run in runners.items():
                times[name].append(median(lambda run=run: run("predict", image)))
            times["LCE"].append(larq.run(files["LCE"][0], image, CALLS).seconds)
        found = {name: run("predict", image)["logits"] for name, run in runners.items()}
        found["LCE"] = larq.run(files["LCE"][0], image, 1).outputs["logits"]
        for name, seconds in times.items():
            _, size, gzip_size = files["packed" if name.startswith("packed") else name]
            rows[name] = {
                "bytes": size,
                "gzip_bytes": gzip_size,
                "relative_error": float(np.abs(found[name] - wanted).max() / np.abs(wanted).max()),
                "milliseconds": 1e3 * statistics.median(seconds),
            }
    facts = {"weights": weights, "parameters": model.count_params(), "binary_weights": model.num_binary_weights}
    return {**facts, "rounds": rounds, "calls": CALLS, "runtimes": rows}


def export(model, directory: Path) -> dict:
    """Returns path, bytes and bytes after gzip of the file of every runtime."""
    # int8 may do badly with random weights, and is measured all the same
    metric = TaskMetric("none", lambda run: 0.0, higher_is_better=True)
    examples = [model.dummy_inputs(batch_size=1, seed=seed) for seed in range(32)]
    calibration = {} if model.metadata else {"calibration": examples}
    report = export_model(
        model, directory / "litert", ["litert"], list(LITERT), metric=metric, benchmark=False, **calibration
    )
    artifacts = {LITERT[artifact.quantization]: ("litert", artifact) for artifact in report.artifacts}
    for name, engine in (("packed", "packed"), ("LCE", "lce")):
        artifacts[name] = (engine, export_binary(model, directory / engine, engine).artifacts[0])
    return {
        name: (directory / folder / artifact.paths["predict"], artifact.size, artifact.gzip_size)
        for name, (folder, artifact) in artifacts.items()
    }


def median(function) -> float:
    """Returns the median seconds of a call."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(results: dict) -> str:
    lines = [
        "# Bytes and time of a binary network",
        "",
        f"`python benchmarks/binary_network.py --rounds {results['rounds']}`: the preset `fashion` of `real_to_binary` with "
        f"{results['weights']} weights ({results['parameters']:,} parameters, {results['binary_weights']:,} of them binary); "
        f"one image, one thread, wall-clock milliseconds, medians of rounds in turn. Error: of the logits, relative to the "
        "largest one.",
        "",
        "| runtime | bytes | after gzip | error | ms |",
        "|---|---|---|---|---|",
    ]
    for name, row in results["runtimes"].items():
        numbers = f"{row['bytes']:,} | {row['gzip_bytes']:,} | {row['relative_error']:.1e} | {row['milliseconds']:.3f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    results = measure(options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "binary_network.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "binary_network.md").write_text(table(results))


if __name__ == "__main__":
    main()
