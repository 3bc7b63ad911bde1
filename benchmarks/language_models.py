"""Training steps and text generation against PyTorch packages of the same sizes, interleaved, by CPU time on one thread.

    python benchmarks/language_models.py --torch-python PATH --rounds 15

`PATH` is a Python with `torch`, `compressive-transformer-pytorch` and `x-transformers`. Both sides have the shipped preset's
vocabulary, width, depth, heads, window and memory sizes. They are not the same network: the PyTorch Compressive Transformer
has feed-forward layers four times as wide as the stream and a positional table instead of relative encodings, and
x-transformers has a learned bias by distance; parameter counts stand in the table.
"""

import argparse
import json
import sys
from pathlib import Path

from workers import HERE, Worker, interleaved

import zoo

PEERS = {"compressive_transformer": "compressive-transformer-pytorch", "transformer_xl": "x-transformers"}
WORK = {"train": 10, "generate": 64}


def compare(method: str, torch_python: str, rounds: int) -> dict:
    config = {**zoo.info(method).preset().config, "method": method, "batch_size": 16}
    sides = {
        "zoo": Worker(sys.executable, "keras_worker.py", config),
        PEERS[method]: Worker(torch_python, "torch_worker.py", config),
    }
    return interleaved(sides, WORK, rounds)


def table(results: dict, rounds: int) -> str:
    lines = [
        "# Language models against PyTorch",
        "",
        f"`python benchmarks/language_models.py --torch-python PATH --rounds {rounds}`: CPU milliseconds on one thread, "
        "median (quartiles), both sides in turn. Training: 16 windows forward and backward, clipping, Adam. Generation: "
        "one token at batch 1. What differs between the networks stands in the script.",
        "",
        "| method | peer | parameters (zoo, peer) | work | zoo | peer | zoo / peer |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, result in results.items():
        peer = PEERS[method]
        counts = f"{result['parameters']['zoo']:,}, {result['parameters'][peer]:,}"
        for kind in WORK:
            own, other = result[kind]["zoo"], result[kind][peer]
            cells = [f"{1e3 * q[1]:.3g} ({1e3 * q[0]:.3g} to {1e3 * q[2]:.3g})" for q in (own, other)]
            lines.append(
                f"| {method} | {peer} | {counts} | {kind} | {cells[0]} | {cells[1]} | {own[1] / other[1]:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with the PyTorch packages")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    results = {method: compare(method, options.torch_python, options.rounds) for method in PEERS}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "language_models.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "language_models.md").write_text(table(results, options.rounds))


if __name__ == "__main__":
    main()
