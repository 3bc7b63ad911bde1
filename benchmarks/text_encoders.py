"""ALBERT and BERT of base size against Hugging Face's in PyTorch and KerasHub's, by CPU time on one thread.

    python benchmarks/text_encoders.py --torch-python PATH --keras-hub-python PATH --rounds 5

The first PATH is a Python with `torch` and `transformers`, the second one with `keras-hub` and TensorFlow. All encode as many
tokens, without padding, in float32. A training step is the forward and backward pass of a classifier of the pooled first
token, with dropout. All take turns. TensorFlow's oneDNN kernels are on, `TF_ENABLE_ONEDNN_OPTS=1`, as PyTorch's always are.
"""

import argparse
import json
import sys
from pathlib import Path

from workers import HERE, Worker, interleaved, processor

BATCH, LENGTH, NUM_CLASSES = 8, 128, 2
SIZES = dict(num_layers=12, hidden_dim=768, num_heads=12, intermediate_dim=3072, dropout=0.1)
VOCABULARIES = {"albert": 30_000, "bert": 30_522}
EMBEDDING_DIM = 128
WORK = {"inference": 1, "training step": 1}
ZOO, KERAS_HUB, TRANSFORMERS = "zoo", "KerasHub", "transformers"


def compare(method: str, torch_python: str, keras_hub_python: str, rounds: int) -> dict:
    config = {
        **SIZES,
        "method": method,
        "vocabulary_size": VOCABULARIES[method],
        "embedding_dim": EMBEDDING_DIM,
        "batch": BATCH,
        "length": LENGTH,
        "num_classes": NUM_CLASSES,
    }
    sides = {
        ZOO: Worker(sys.executable, "keras_encoder_worker.py", {**config, "library": ZOO}),
        KERAS_HUB: Worker(keras_hub_python, "keras_encoder_worker.py", {**config, "library": KERAS_HUB}),
        TRANSFORMERS: Worker(torch_python, "torch_encoder_worker.py", config),
    }
    return interleaved(sides, WORK, rounds)


def table(results: dict, rounds: int) -> str:
    lines = [
        "# Text encoders against PyTorch and KerasHub",
        "",
        "`python benchmarks/text_encoders.py --torch-python PATH --keras-hub-python PATH "
        f"--rounds {rounds}`: base size, {BATCH} texts of {LENGTH} tokens, CPU seconds on one thread of "
        f"{processor()}, median (quartiles), all in turn; beside each our time as a share of it. "
        "`TF_ENABLE_ONEDNN_OPTS=1`, which TensorFlow does not set on all processors: oneDNN's kernels, which PyTorch always "
        "calls.",
        "",
        f"| | | parameters | {' | '.join(f'{kind} | zoo / it' for kind in WORK)} |",
        f"|---|---|---|{'---|---|' * len(WORK)}",
    ]
    for method, found in results.items():
        for name, parameters in found["parameters"].items():
            cells = []
            for kind in WORK:
                low, middle, high = found[kind][name]
                cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{found[kind][ZOO][1] / middle:.2f}"]
            lines.append(f"| {method} | {name} | {parameters:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch and transformers")
    parser.add_argument("--keras-hub-python", default=sys.executable, help="a Python with keras-hub and TensorFlow")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    pythons = options.torch_python, options.keras_hub_python
    results = {method: compare(method, *pythons, options.rounds) for method in VOCABULARIES}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "text_encoders.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "text_encoders.md").write_text(table(results, options.rounds))


if __name__ == "__main__":
    main()
