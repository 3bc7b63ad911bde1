"""Memory of a Reformer's training step against depth: reversible layers, and the same network without recomputation.

    python benchmarks/reformer_memory.py

Peak resident memory of a process of its own over two training steps, beyond what it had before them and beyond the gradients,
which are as large as the weights. And by how much the gradients of both differ.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np
from workers import memory_megabytes

DEPTHS = (2, 6, 12, 24)
KINDS = {"reversible": True, "not reversible": False}
SIZES = dict(vocabulary_size=32, hidden_dim=64, num_heads=2, intermediate_dim=128, window_length=4096)
SIZES |= dict(attention_layers=["local", "lsh"], chunk_length=64, local_chunk_length=64, num_rounds=1)


def build(num_layers: int, kind: str):
    import keras

    from zoo.sequence.reformer import Reformer

    keras.utils.set_random_seed(0)
    model = Reformer(num_layers=num_layers, reversible=KINDS[kind], **SIZES).build_from_signature()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, jit_compile=False)
    return model


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, SIZES["vocabulary_size"], (1, SIZES["window_length"])).astype("int32")


def measure_peak(num_layers: int, kind: str) -> float:
    """Peak of this process in two training steps, beyond the gradients, in megabytes."""
    model, ids = build(num_layers, kind), tokens()
    before = memory_megabytes("VmHWM")
    model.fit(ids, ids, epochs=2, verbose=0)
    return memory_megabytes("VmHWM") - before - 4 * model.count_params() / 2**20


def peak(num_layers: int, kind: str) -> float:
    command = [sys.executable, __file__, "--peak", str(num_layers), kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def gradient_difference(num_layers: int) -> float:
    """Largest difference between gradients with and without recomputation, relative to the largest gradient of a variable."""
    import tensorflow as tf

    ids, found = tokens(), []
    for kind in KINDS:
        model = build(num_layers, kind)
        with tf.GradientTape() as tape:
            logits = model.read(ids, training=True, seed=tf.constant([1, 2]))
            loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(ids, logits, from_logits=True))
        found.append([tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, model.trainable_variables)])
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*found, strict=True))


def table(results: dict) -> str:
    lines = [
        "# Memory of a training step against depth",
        "",
        f"`python benchmarks/reformer_memory.py`: Reformer of width {SIZES['hidden_dim']} on one text of "
        f"{SIZES['window_length']:,} tokens, layers in turn local and LSH attention. Peak memory in megabytes beyond weights "
        "and gradients, a process each.",
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
    parser.add_argument(
        "--peak", nargs=2, metavar=("LAYERS", "KIND"), help="measure memory in this process and print it"
    )
    options = parser.parse_args()
    if options.peak:
        print(measure_peak(int(options.peak[0]), options.peak[1]))
        return
    results = {
        "megabytes": {kind: {depth: peak(depth, kind) for depth in DEPTHS} for kind in KINDS},
        "gradient_difference": {depth: gradient_difference(depth) for depth in DEPTHS},
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reformer_memory.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "reformer_memory.md").write_text(table(results))


if __name__ == "__main__":
    main()
