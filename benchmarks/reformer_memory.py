"""Memory of a Reformer's training step against depth: reversible layers, and the same network without recomputation.

    python benchmarks/reformer_memory.py

What activations take is the peak of a process of its own over two training steps on a long text, beyond the same on a short
one: weights, gradients and TensorFlow's graph are in both. Freed memory goes back at once there, or else the heap's growth,
which differs between processes, would count. And by how much the gradients of both networks differ.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import keras
import numpy as np
import tensorflow as tf

from zoo.experiments.reformer import MEMORY, SHORT, activation_megabytes
from zoo.sequence.reformer import Reformer

DEPTHS = (2, 6, 12, 24)
KINDS = {"reversible": True, "not reversible": False}


def build(num_layers: int, reversible: bool) -> Reformer:
    keras.utils.set_random_seed(0)
    return Reformer(num_layers=num_layers, reversible=reversible, **MEMORY).build_from_signature()


def gradient_difference(num_layers: int) -> float:
    """Largest difference between gradients with and without recomputation, relative to the largest of a variable."""
    rng, found = np.random.default_rng(0), []
    ids = rng.integers(0, MEMORY["vocabulary_size"], (1, MEMORY["window_length"])).astype("int32")
    for reversible in KINDS.values():
        model = build(num_layers, reversible)
        with tf.GradientTape() as tape:
            logits = model.read(ids, training=True, seed=tf.constant([1, 2]))
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(ids, logits, from_logits=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        found.append([tf.convert_to_tensor(gradient).numpy() for gradient in gradients])
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*found, strict=True))


def table(results: dict) -> str:
    lines = [
        "# Memory of a training step's activations against depth",
        "",
        f"`python benchmarks/reformer_memory.py --runs {results['runs']}`: Reformer of width {MEMORY['hidden_dim']} on "
        f"one text of {MEMORY['window_length']:,} tokens with LSH attention. Peak memory in megabytes beyond that of a "
        f"text of {SHORT} tokens, a process each, medians of {results['runs']}: what activations take, without weights, "
        "gradients and TensorFlow's graph. What preparing that graph takes for a while grows with depth and is in the "
        "short text's peak only, so that the difference may fall.",
        "",
        f"| | {' | '.join(f'{depth} layers' for depth in DEPTHS)} | {DEPTHS[-1]} / {DEPTHS[0]} layers |",
        f"|---|{'---|' * (len(DEPTHS) + 1)}",
    ]
    for kind in KINDS:
        curve = [results["megabytes"][kind][depth] for depth in DEPTHS]
        lines.append(f"| {kind} | {' | '.join(f'{v:.0f}' for v in curve)} | {curve[-1] / curve[0]:.2f} |")
    largest = max(results["gradient_difference"].values())
    lines += ["", f"Gradients of both differ by at most {largest:.1e}, relative to the largest of a variable."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    parser.add_argument("--runs", type=int, default=3, help="processes of each kind, depth and length (default: 3)")
    options = parser.parse_args()
    measured = {
        kind: {depth: [activation_megabytes(depth, reversible) for _ in range(options.runs)] for depth in DEPTHS}
        for kind, reversible in KINDS.items()
    }
    results = {
        "runs": options.runs,
        "megabytes": {
            kind: {depth: statistics.median(values) for depth, values in curve.items()}
            for kind, curve in measured.items()
        },
        "megabytes_of_runs": measured,
        "gradient_difference": {depth: gradient_difference(depth) for depth in DEPTHS},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reformer_memory.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "reformer_memory.md").write_text(table(results))


if __name__ == "__main__":
    main()
