"""Cost of reading a text against its length: time and peak memory of every long-range method.

    python benchmarks/attention_growth.py

One layer each, of equal width; models with a memory read the text in windows of 512. CPU time on one thread, medians of
runs in which methods take turns; memory is what a process of its own takes at most beyond what it had for 512 tokens.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np

from zoo.experiments.memory import resident_megabytes

LENGTHS = (1024, 2048, 4096, 8192, 16384)
SIZES = dict(vocabulary_size=32, num_layers=1, hidden_dim=64, num_heads=2, intermediate_dim=128)
WINDOW = 512
SHORT = 512
KERNEL = 31


def sparse(length: int, **options):
    stride = 2 ** round(np.log2(length) / 2)
    return "sparse_transformer", dict(position_shape=[length // stride, stride], stride=stride, **options)


def reformer(length: int, **options):
    shape = [2 ** (round(np.log2(length)) // 2), 2 ** -(-round(np.log2(length)) // 2)]
    return "reformer", dict(axial_shape=shape, axial_dims=[32, 32], **options)


# What each is, of a length: catalog name and arguments beside SIZES
METHODS = {
    "full attention": lambda n: ("transformer_xl", dict(window_length=n, memory_length=0, position="absolute")),
    "sparse, fixed pattern": lambda n: sparse(n, pattern="fixed", combine="merged", summary_width=4),
    "adaptive span of 256": lambda n: ("adaptive_span", dict(window_length=WINDOW, max_span=WINDOW, span_init=0.5)),
    "LSH attention, 2 rounds": lambda n: reformer(n, attention_layers=["lsh"], chunk_length=64, num_rounds=2),
    "local attention of 64": lambda n: reformer(n, attention_layers=["local"], local_chunk_length=64),
    "dynamic convolution": lambda n: ("dynamic_conv", dict(window_length=n, kernel_sizes=[KERNEL])),
    "Compressive Transformer": lambda n: (
        "compressive_transformer",
        dict(window_length=WINDOW, memory_length=WINDOW, compressed_memory_length=WINDOW // 2),
    ),
}


def reader(name: str, length: int):
    """Returns a function that reads a random text of a length."""
    import tensorflow as tf

    import zoo

    method, options = METHODS[name](length)
    model = zoo.get(method, weights=None, **{**SIZES, **options})
    ids = tf.constant(np.random.default_rng(0).integers(0, SIZES["vocabulary_size"], (1, length)), "int32")
    window = min(model.window_length, length)
    forward = tf.function(lambda part, state: model.forward(part, state, training=False))

    def read() -> None:
        state = model.initial_state(1)
        for start in range(0, length, window):
            logits, state = forward(ids[:, start : start + window], state)
        logits.numpy()

    return read


def measure_seconds(length: int, rounds: int) -> dict[str, float]:
    """CPU seconds of reading a text of a length, medians; methods take turns."""
    readers = {name: reader(name, length) for name in METHODS}
    times = {name: [] for name in METHODS}
    for turn in range(rounds + 1):
        for name, read in readers.items():
            start = time.process_time()
            read()
            if turn:  # the first turn compiles
                times[name].append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(rounds: int) -> dict[str, dict[int, float]]:
    """CPU seconds of a reading by method and length; a process for each length, which gives its memory back."""
    found = {}
    for length in LENGTHS:
        command = [sys.executable, __file__, "--seconds", str(length), "--rounds", str(rounds)]
        found[length] = json.loads(_last_line(command))
    return {name: {length: found[length][name] for length in LENGTHS} for name in METHODS}


def _last_line(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]


def peak_megabytes(name: str, length: int) -> float:
    """Peak memory of a reading in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, str(length)]
    return float(_last_line(command))


def measure_peak(name: str, length: int) -> float:
    """Peak resident memory of this process while it builds a model and reads, beyond that of a short text, in megabytes."""
    reader(name, SHORT)()
    before = resident_megabytes("VmRSS")
    reader(name, length)()
    return resident_megabytes("VmHWM") - before


def slope(curve: dict[int, float]) -> float:
    """Exponent of the power law fitted to a curve."""
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    parser.add_argument(
        "--peak", nargs=2, metavar=("METHOD", "LENGTH"), help="measure memory in this process and print it"
    )
    parser.add_argument("--seconds", type=int, metavar="LENGTH", help="measure times in this process and print them")
    options = parser.parse_args()
    if options.peak:
        print(measure_peak(options.peak[0], int(options.peak[1])))
        return
    if options.seconds:
        print(json.dumps(measure_seconds(options.seconds, options.rounds)))
        return
    times = seconds(options.rounds)
    memory = {name: {length: peak_megabytes(name, length) for length in LENGTHS} for name in METHODS}
    exponents = {
        name: {
            "seconds": slope(times[name]),
            "megabytes": slope(memory[name]),
            "last_doubling": _last_doubling(times[name]),
        }
        for name in METHODS
    }
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"seconds": times, "megabytes": memory, "exponents": exponents}
    (options.output / "attention_growth.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.output / "attention_growth.md").write_text(table(times, memory, exponents, options.rounds))
    figure(times, memory).savefig(options.output / "attention_growth.png", dpi=120, bbox_inches="tight")


def _last_doubling(curve: dict[int, float]) -> float:
    return float(np.log2(curve[LENGTHS[-1]] / curve[LENGTHS[-2]]))


def table(times: dict, memory: dict, exponents: dict, rounds: int) -> str:
    lines = [
        "# Cost of reading a text against its length",
        "",
        f"`python benchmarks/attention_growth.py --rounds {rounds}`: one layer of width {SIZES['hidden_dim']}; exponents are "
        "those of power laws fitted to all lengths, and of the last doubling alone.",
    ]
    for title, unit, curves, key in (
        (
            "CPU time, one thread",
            "milliseconds",
            {n: {k: 1e3 * v for k, v in c.items()} for n, c in times.items()},
            "seconds",
        ),
        ("Peak memory", "megabytes", memory, "megabytes"),
    ):
        last = " last doubling |" if key == "seconds" else ""
        lines += ["", f"## {title}, {unit}", "", f"| | {' | '.join(map(str, LENGTHS))} | exponent |{last}"]
        lines += [f"|---|{'---|' * (len(LENGTHS) + 1 + bool(last))}"]
        for name, curve in curves.items():
            cells = " | ".join(f"{curve[length]:.3g}" for length in LENGTHS)
            end = f" {exponents[name]['last_doubling']:.2f} |" if last else ""
            lines.append(f"| {name} | {cells} | {exponents[name][key]:.2f} |{end}")
    return "\n".join(lines) + "\n\n![Cost against length](attention_growth.png)\n"


def figure(times: dict, memory: dict):
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.5), layout="constrained")
    axes = drawn.subplots(1, 2)
    for axis, curves, label in (
        (axes[0], times, "CPU seconds, one thread"),
        (axes[1], memory, "peak memory, megabytes"),
    ):
        for name, curve in curves.items():
            axis.loglog(list(curve), list(curve.values()), marker="o", base=2, label=name)
        axis.set(xlabel="tokens", ylabel=label, xticks=LENGTHS, xticklabels=[f"{n // 1024}k" for n in LENGTHS])
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    main()
