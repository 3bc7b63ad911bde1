"""Convolutions in the place of self-attention: what reading, training and writing cost, by CPU time on one thread.

    python benchmarks/dynamic_convolution.py

The models of `zoo reproduce long_range_language_models`, of equal depth, width and number of parameters. Reading and training
take 8 windows of 256 characters. Writing takes one character after another: there Transformer-XL stands for attention, with a
memory of the last 128 characters; the Transformer without a memory would have to read its window again for each.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np
import tensorflow as tf

from zoo.experiments import language_models as lm
from zoo.experiments import long_range_language_models as models

LENGTH, BATCH, TOKENS = 256, 8, 32
WORK = {
    "reading": (models.FULL, "LightConv", "DynamicConv"),
    "training": (models.FULL, "LightConv", "DynamicConv"),
    "writing": ("Transformer-XL", "LightConv", "DynamicConv"),
}


def worker(kind: str, arm: str) -> Callable[[], float]:
    """Returns a function that does the work once and gives its CPU seconds: of 2,048 characters, or of one written."""
    model = models.build(arm)
    ids = np.random.default_rng(0).integers(0, model.vocabulary_size, (BATCH, LENGTH)).astype("int32")
    if kind == "reading":
        predict = tf.function(lambda tokens: model.forward(tokens, model.initial_state(BATCH), training=False)[0])
        work, count = (lambda: predict(tf.constant(ids)).numpy()), 1
    elif kind == "training":
        lm.compiler(1e-3, 10, 0.25, 1e-4)(model, 10_000)
        work, count = (lambda: model.train_on_batch(ids, ids)), 1
    else:
        work, count = (lambda: model.generate(ids[0], max_new_tokens=TOKENS)), TOKENS

    def timed() -> float:
        start = time.process_time()
        work()
        return (time.process_time() - start) / count

    return timed


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Quartiles of CPU seconds by work and model; models take turns."""
    found = {}
    for kind, arms in WORK.items():
        workers = {arm: worker(kind, arm) for arm in arms}
        times = {arm: [] for arm in arms}
        for turn in range(rounds + 1):
            for arm, timed in workers.items():
                seconds = timed()
                if turn:  # the first turn compiles
                    times[arm].append(seconds)
        found[kind] = {arm: statistics.quantiles(values, n=4) for arm, values in times.items()}
    return found


def table(results: dict, rounds: int) -> str:
    lines = [
        "# Convolutions in the place of self-attention",
        "",
        f"`python benchmarks/dynamic_convolution.py --rounds {rounds}`: two layers of width 64, 150,000 parameters each. CPU "
        f"milliseconds on one thread, median (quartiles), in turn: of {BATCH} windows of {LENGTH} characters, or of one "
        "character written.",
        "",
        "| work | model | milliseconds | / attention |",
        "|---|---|---|---|",
    ]
    for kind, by_arm in results.items():
        attention = by_arm[WORK[kind][0]][1]
        for arm, quartiles in by_arm.items():
            low, middle, high = (1e3 * value for value in quartiles)
            lines.append(
                f"| {kind} | {arm} | {middle:.3g} ({low:.3g} to {high:.3g}) | {quartiles[1] / attention:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    results = measure(options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "dynamic_convolution.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "dynamic_convolution.md").write_text(table(results, options.rounds))


if __name__ == "__main__":
    main()
