"""Time of a bit-packed convolution against the same one in float32.

    python benchmarks/binary_convolution.py

One image, one thread, wall-clock medians; the runtimes take turns, but for Larq Compute Engine, which runs and measures in an
environment of its own. Every result is compared with the float one.
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

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from zoo.compression import binary, xnor_kernels
from zoo.compression.real_to_binary import binary_sign
from zoo.export import larq
from zoo.export.quiet import quiet

# Height and width, channels in and out; the last is a product of 512x4608 and 4608x512 matrices
CONVOLUTIONS = {"3x3, 256 to 256, 14x14": (14, 256, 256), "3x3, 64 to 64, 56x56": (56, 64, 64)}
PRODUCT = (512, 4608, 512)


def convolution(size: int, channels: int, filters: int, rounds: int) -> dict:
    """Times a binary convolution of real inputs: comparing, packing, counting; against float32 with the same signs."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, size, size, channels)).astype("float32")
    kernel = np.where(rng.normal(size=(3, 3, channels, filters)) >= 0, 1, -1).astype("float32")
    packed, zeros = binary.pack_kernel(kernel), np.zeros(channels, "float32")
    bits = np.empty((1, size, size, binary.num_words(channels)), np.uint64)

    def numba():
        xnor_kernels.pack_bits(image, zeros, zeros > 0, bits)
        return binary.xnor_convolution(bits, packed, channels)

    def numpy():
        return binary.xnor_convolution(binary.pack_signs(image >= 0), packed, channels, engine="numpy")

    convolve = tf.function(lambda image: {"sums": tf.nn.conv2d(binary_sign(image), kernel, 1, "SAME")})
    concrete = convolve.get_concrete_function(tf.TensorSpec(image.shape, name="image"))
    litert = litert_convolution(concrete)
    times = medians({"packed, numba": numba, "packed, NumPy": numpy, "float32, LiteRT": lambda: litert(image)}, rounds)
    times["binary, LCE"] = lce_convolution(concrete, image, litert(image), rounds)
    return {"milliseconds": times, "bytes": {"packed": packed.nbytes, "float32": kernel.nbytes}}


def lce_convolution(concrete, image: np.ndarray, wanted: np.ndarray, rounds: int) -> float:
    """Returns the milliseconds of Larq Compute Engine; raises where its result differs."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        tf.saved_model.save(tf.Module(), f"{scratch}/saved", signatures=concrete)
        larq.convert(f"{scratch}/saved", f"{scratch}/model.tflite")
        done = larq.run(f"{scratch}/model.tflite", {"image": image}, rounds)
    if not np.array_equal(done.outputs["sums"], wanted):
        raise ValueError("All results must be equal. Received: another one from Larq Compute Engine")
    return 1e3 * done.seconds


def litert_convolution(concrete):
    """Returns a function that runs the convolution in LiteRT."""
    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
        interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
        interpreter.allocate_tensors()
        interpreter.invoke()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(image):
        interpreter.set_tensor(source, image)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


def product(rounds: int) -> dict:
    """Times a product of packed sign matrices, as a 1x1 convolution, against the float one."""
    rows, inner, columns = PRODUCT
    rng = np.random.default_rng(0)
    first, second = (
        np.where(rng.normal(size=s) >= 0, 1, -1).astype("float32") for s in ((rows, inner), (inner, columns))
    )
    bits = binary.pack_signs(first >= 0)[:, None, None, :]
    packed = binary.pack_kernel(second[None, None])

    def run(engine):
        return lambda: binary.xnor_convolution(bits, packed, inner, engine=engine).reshape(rows, columns)

    times = medians(
        {"packed, numba": run("numba"), "packed, NumPy": run("numpy"), "float32, NumPy": lambda: first @ second}, rounds
    )
    return {"milliseconds": times, "bytes": {"packed": packed.nbytes, "float32": second.nbytes}}


def medians(functions: dict, rounds: int) -> dict[str, float]:
    """Returns milliseconds by name; raises where results differ."""
    results = {name: function() for name, function in functions.items()}
    reference = next(value for name, value in results.items() if name.startswith("float32"))
    for name, value in results.items():
        if not np.array_equal(value, reference):
            raise ValueError(f"All results must be equal. Received: another one from {name!r}")
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results" / "benchmarks")
    options = parser.parse_args()
    cases = {name: convolution(*sizes, options.rounds) for name, sizes in CONVOLUTIONS.items()}
    cases["product of 512x4608 and 4608x512"] = product(max(options.rounds // 10, 3))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "binary_convolution.json").write_text(json.dumps(cases, indent=1) + "\n")
    (options.output / "binary_convolution.md").write_text(table(cases, options.rounds))


def table(cases: dict, rounds: int) -> str:
    lines = [
        "# Time of a bit-packed convolution",
        "",
        f"`python benchmarks/binary_convolution.py --rounds {rounds}`: wall-clock milliseconds, one image, one thread, "
        "medians of runtimes that take turns, but for Larq Compute Engine (LCE), which measures in a process of its own; all "
        "results are equal. Packing the input is part of the time in the convolutions, not in the product.",
        "",
        "| | packed, numba | packed, NumPy | LCE | float32 | float32 by | bytes packed | bytes float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        times, sizes = case["milliseconds"], case["bytes"]
        rival = next(each for each in times if each.startswith("float32"))
        runtimes = ("packed, numba", "packed, NumPy", "binary, LCE", rival)
        cells = [f"{times[each]:.2f}" if each in times else "" for each in runtimes]
        cells += [rival.removeprefix("float32, "), f"{sizes['packed']:,}", f"{sizes['float32']:,}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
