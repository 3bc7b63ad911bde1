"""Forward and backward pass of a Reformer over 4,096 tokens against Hugging Face's in PyTorch, by CPU time on one thread.

    python benchmarks/reformer_speed.py --torch-python PATH --rounds 9

`PATH` is a Python with `torch` and `transformers`. Both have the same sizes, chunks, buckets and rounds, no dropout and
reversible layers. The reference attends across buckets and counts keys found twice twice; so does this side in its arm
"their options". Both sides take turns.
"""

import argparse
import json
import sys
from pathlib import Path

from workers import HERE, Worker, interleaved

LENGTH = 4096
SIZES = dict(vocabulary_size=320, num_layers=4, hidden_dim=128, num_heads=2, intermediate_dim=256)
SIZES |= dict(axial_shape=[64, 64], axial_dims=[32, 96], attention_layers=["local", "lsh"])
SIZES |= dict(chunk_length=64, local_chunk_length=64, num_rounds=2, num_buckets=128)
THEIR_OPTIONS = dict(attend_across_buckets=True, allow_duplicates=True, wrap_chunks=True)
PEER = "transformers"
WORK = {"forward and backward": 1, "forward": 1}


def compare(torch_python: str, rounds: int) -> dict:
    sides = {
        "zoo": Worker(sys.executable, "keras_reformer_worker.py", {**SIZES, "length": LENGTH}),
        "zoo, their options": Worker(
            sys.executable, "keras_reformer_worker.py", {**SIZES, **THEIR_OPTIONS, "length": LENGTH}
        ),
        PEER: Worker(torch_python, "torch_reformer_worker.py", {**SIZES, "length": LENGTH}),
    }
    return interleaved(sides, WORK, rounds)


def table(results: dict, rounds: int) -> str:
    lines = [
        "# Reformer against PyTorch",
        "",
        f"`python benchmarks/reformer_speed.py --torch-python PATH --rounds {rounds}`: one text of {LENGTH:,} tokens, "
        f"{SIZES['num_layers']} layers of width {SIZES['hidden_dim']}, CPU milliseconds on one thread, median (quartiles), "
        "all in turn.",
        "",
        f"| | parameters | {' | '.join(f'{kind} | / {PEER}' for kind in WORK)} |",
        f"|---|---|{'---|---|' * len(WORK)}",
    ]
    for name, parameters in results["parameters"].items():
        cells = []
        for kind in WORK:
            low, middle, high = (1e3 * value for value in results[kind][name])
            ratio = results[kind][name][1] / results[kind][PEER][1]
            cells += [f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{ratio:.2f}"]
        lines.append(f"| {name} | {parameters:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with the PyTorch packages")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    results = compare(options.torch_python, options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reformer_speed.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "reformer_speed.md").write_text(table(results, options.rounds))


if __name__ == "__main__":
    main()
