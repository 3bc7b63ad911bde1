"""Cost of one generated token against the length of the text already read.

    python benchmarks/generation_cost.py

With a carried memory the cost is flat; the other way, reading the whole text again with full attention, grows. CPU time on
one thread, medians; sizes of the shipped presets, random weights.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import numpy as np
import tensorflow as tf

import zoo

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
LONGEST_FULL = 4096


def carried(method: str, rounds: int) -> dict[int, float]:
    """Seconds a token, after reading texts of growing length into the memory; lengths take turns."""
    model = zoo.get(method, weights=None)
    ids = np.random.default_rng(0).integers(0, model.vocabulary_size, max(LENGTHS)).astype("int32")
    read = tf.function(lambda window, state: model.forward(window, state)[1])
    decode = tf.function(model.decode_token)
    states = {}
    for length in LENGTHS:
        state = model.initial_decoding_state(1)
        for start in range(0, length, model.window_length):
            window = tf.constant(ids[None, start : start + model.window_length])
            state = {**state, **read(window, {name: state[name] for name in model.state_specs()})}
        states[length] = state
    token = tf.constant([[1]])
    decode(token, states[LENGTHS[0]])
    times = {length: [] for length in LENGTHS}
    for _ in range(rounds):
        for length, state in states.items():
            times[length].append(_seconds(lambda state=state: decode(token, state)))
    return {length: statistics.median(found) for length, found in times.items()}


def full(rounds: int) -> dict[int, float]:
    """Seconds a token where the whole text is read again with full attention."""
    model = zoo.get("transformer_xl", weights=None, memory_length=0)
    predict = tf.function(model.signatures()["predict"].function, reduce_retracing=True)
    medians = {}
    for length in LENGTHS:
        if length <= LONGEST_FULL:
            ids = tf.constant(np.zeros((1, length), "int32"))
            predict(token_ids=ids)
            medians[length] = statistics.median(_seconds(lambda ids=ids: predict(token_ids=ids)) for _ in range(rounds))
    return medians


def _seconds(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def slope(times: dict[int, float]) -> float:
    """Exponent of the power law fitted to a curve."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    curves = {
        "compressive_transformer, carried memory": carried("compressive_transformer", options.rounds),
        "transformer_xl, carried memory": carried("transformer_xl", options.rounds),
        "full attention, text read again": full(max(options.rounds // 40, 3)),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    exponents = {name: slope(curve) for name, curve in curves.items()}
    content = {"seconds_per_token": curves, "exponents": exponents}
    (options.output / "generation_cost.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.output / "generation_cost.md").write_text(table(curves, exponents, options.rounds))
    figure(curves).savefig(options.output / "generation_cost.png", dpi=120, bbox_inches="tight")


def table(curves: dict, exponents: dict, rounds: int) -> str:
    lines = [
        "# Cost of a generated token against the text already read",
        "",
        f"`python benchmarks/generation_cost.py --rounds {rounds}`: CPU milliseconds on one thread, medians; the last column "
        "is the exponent of a fitted power law.",
        "",
        f"| | {' | '.join(map(str, LENGTHS))} | exponent |",
        f"|---|{'---|' * (len(LENGTHS) + 1)}",
    ]
    for name, curve in curves.items():
        cells = [f"{1e3 * curve[length]:.3g}" if length in curve else "" for length in LENGTHS]
        lines.append(f"| {name} | {' | '.join(cells)} | {exponents[name]:.2f} |")
    return "\n".join(lines) + "\n\n![Cost of a token](generation_cost.png)\n"


def figure(curves: dict):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 4), layout="constrained")
    axes = drawn.subplots()
    for name, curve in curves.items():
        axes.loglog(list(curve), [1e3 * value for value in curve.values()], marker="o", label=name)
    axes.set(xlabel="characters already read", ylabel="CPU milliseconds per token")
    axes.legend()
    return drawn


if __name__ == "__main__":
    main()
