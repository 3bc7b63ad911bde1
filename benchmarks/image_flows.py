"""Likelihoods and samples of flows against PyTorch packages of the same sizes, in turn, by CPU time on one thread.

    python benchmarks/image_flows.py --torch-python PATH --rounds 15

`PATH` is a Python with `torch`, `nflows` and `normflows`. All sides have the sizes of the preset `mnist` with a Gaussian
prior, and random weights. They are not quite the same networks: the peers' couplings have no features that mark the edge,
nflows has no prior for what leaves, and its NICE has no scaling; parameter counts stand in the table. The zoo's side
runs in Keras, and as it is deployed, in ONNX Runtime and LiteRT.
"""

import argparse
import json
import sys
from pathlib import Path

from workers import HERE, Worker, interleaved

import zoo

PEERS = {"nice": ("nflows",), "glow": ("nflows", "normflows")}
RUNTIMES = {"keras": "Keras", "onnx": "ONNX Runtime", "litert": "LiteRT"}
CHANGES = {"nice": {"prior": "gaussian"}, "glow": {}}
WORK = {"log_prob": 5, "sample": 5}
BATCH_SIZES = (1, 64)


def compare(method: str, batch_size: int, torch_python: str, rounds: int) -> dict:
    shared = {"method": method, "batch_size": batch_size}
    own = {**shared, "preset": "mnist", "changes": CHANGES[method]}
    sides = {
        label: Worker(sys.executable, "keras_flows_worker.py", {**own, "runtime": runtime})
        for runtime, label in RUNTIMES.items()
    }
    for peer in PEERS[method]:
        config = {**zoo.info(method).preset("mnist").config, **shared, "peer": peer}
        sides[peer] = Worker(torch_python, "torch_flows_worker.py", config)
    return interleaved(sides, WORK, rounds)


def table(results: dict, rounds: int) -> str:
    lines = [
        "# Flows of images against PyTorch",
        "",
        f"`python benchmarks/image_flows.py --torch-python PATH --rounds {rounds}`: CPU milliseconds of one call on one "
        "thread, median (quartiles), all sides in turn. Ratios are to the fastest peer; below 1 the zoo is faster. What "
        "differs between the networks stands in the script.",
        "",
        "| method | images | work | side | parameters | ms | to the fastest peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        method, batch_size = name.split(", ")
        for kind in WORK:
            fastest = min(result[kind][peer][1] for peer in PEERS[method])
            for side, (low, median, high) in result[kind].items():
                cells = [method, batch_size, kind, side, f"{result['parameters'][side]:,}"]
                cells += [f"{1e3 * median:.3g} ({1e3 * low:.3g} to {1e3 * high:.3g})", f"{median / fastest:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with the PyTorch packages")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    results = {
        f"{method}, {size}": compare(method, size, options.torch_python, options.rounds)
        for method in PEERS
        for size in BATCH_SIZES
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "image_flows.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "image_flows.md").write_text(table(results, options.rounds))


if __name__ == "__main__":
    main()
