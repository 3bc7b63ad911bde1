"""Every way to a small network side by side: a residual network on CIFAR-10 (or Fashion-MNIST), small in twenty ways.

The float network of a seed is trained once; what starts from trained weights starts from it. Every arm is exported and its
accuracy read through the file it leads to.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import compression
from zoo.compression.costs import bit_operations
from zoo.datasets import load_arrays
from zoo.experiments.report import Ledger, Progress, write_results
from zoo.export import ExportReport, export_model
from zoo.export.runners import open_artifact
from zoo.layers.residual_network import residual_network
from zoo.model import Arrays, Runner, TaskMetric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH = 8, 16
BATCH = 128
EPOCHS, FINE_TUNING = 10, 3
LEARNING_RATE, SMALL_LEARNING_RATE = 0.1, 0.01
# What the gate of an export reads; the table reads all of the test images
GATE_IMAGES = 1000
CLAIM = (
    "Quantisation-aware training at 8 bits costs nothing and at 4 bits little; most weights can be pruned; learned bit "
    "widths beat fixed ones at equal size."
)


# === Data and training ===


def load_images(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images with values from -1 to 1, `(count, height, width, channels)`, and labels."""
    arrays = load_arrays(dataset, split)
    images = arrays["image"].astype("float32") / 127.5 - 1
    return (images if images.ndim == 4 else images[..., None]), arrays["label"]


def batches(dataset: str, seed: int) -> tf.data.Dataset:
    """Returns endless shuffled batches of training images, flipped and shifted by up to four pixels."""
    images, labels = load_images(dataset, "train")

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.image.stateless_random_flip_left_right(image, seed=_draw(0))
        # One shift for a batch: cutting out image by image would cost as much as the training
        padded = tf.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0)), constant_values=-1.0)
        offset = tf.random.stateless_uniform((2,), _draw(1), 0, 9, tf.int32)
        height, width = image.shape[1:3]
        return padded[:, offset[0] : offset[0] + height, offset[1] : offset[1] + width], label

    def _draw(stream: int) -> tf.Tensor:
        return tf.stack([generator.make_seeds(1)[0, 0], stream])

    generator = tf.random.Generator.from_seed(seed)
    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed).repeat()
    return data.batch(BATCH, drop_remainder=True).map(augment).prefetch(2)


def fit(model: keras.Model, dataset: str, seed: int, epochs: int, learning_rate: float) -> None:
    """Trains with momentum and a cosine schedule."""
    steps = len(load_arrays(dataset, "train")["label"]) // BATCH
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps * epochs)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # on a CPU, XLA takes twice the time for these convolutions
    )
    model.fit(batches(dataset, seed), steps_per_epoch=steps, epochs=epochs, verbose=0, shuffle=False)


def accuracy(run: Runner, dataset: str, split: str = "test", limit: int | None = None) -> float:
    """Returns the share of images that a signature `predict` classifies rightly."""
    images, labels = load_images(dataset, split)
    images, labels = images[:limit], labels[:limit]
    hits = 0
    for start in range(0, len(images), 250):
        part = slice(start, start + 250)
        (logits,) = run("predict", {"image": images[part]}).values()
        hits += int((logits.argmax(-1) == labels[part]).sum())
    return hits / len(images)


# === Arms ===


class Network:
    """The float network of a seed, and what arms need to start from it.

    Args:
        dataset: str.
        seed: int.
        scratch: path of a directory that keeps trained weights between runs.
        epochs: int. Length of a training from scratch.
    """

    def __init__(self, dataset: str, seed: int, scratch: Path, epochs: int) -> None:
        self.dataset, self.seed, self.epochs = dataset, seed, epochs
        self.fine_tuning = max(1, math.ceil(epochs * FINE_TUNING / EPOCHS))
        self.weights = scratch / f"{dataset}-{epochs}-{seed}.weights.h5"
        self.shape = load_images(dataset, "validation")[0].shape[1:]

    def fresh(self) -> keras.Model:
        """Returns the network with its first random weights."""
        keras.backend.clear_session()  # else layers are numbered on, and patterns of names differ from run to run
        keras.utils.set_random_seed(self.seed)
        return residual_network(DEPTH, WIDTH, input_shape=self.shape)

    def trained(self) -> keras.Model:
        """Returns the trained float network."""
        model = self.fresh()
        if self.weights.exists():
            model.load_weights(self.weights)
        else:
            fit(model, self.dataset, self.seed, self.epochs, LEARNING_RATE)
            self.weights.parent.mkdir(parents=True, exist_ok=True)
            model.save_weights(self.weights)
        return model

    def calibration(self, count: int = 256) -> np.ndarray:
        """Returns the first training images."""
        return load_images(self.dataset, "train")[0][:count]

    def tune(self, model: keras.Model) -> keras.Model:
        """Trains a compressed network on."""
        fit(model, self.dataset, self.seed + 1000, self.fine_tuning, SMALL_LEARNING_RATE)
        return model

    def learn(self, model: keras.Model) -> keras.Model:
        """Trains a network from scratch."""
        fit(model, self.dataset, self.seed, self.epochs, LEARNING_RATE)
        return model

    @property
    def fine_tuning_steps(self) -> int:
        """Number of updates of `tune`."""
        return self.fine_tuning * (len(load_arrays(self.dataset, "train")["label"]) // BATCH)


def quantized(bits: int) -> Callable[[Network], keras.Model]:
    """Returns the arm of quantisation-aware training at some bits."""

    def arm(network: Network) -> keras.Model:
        calibration = np.split(network.calibration(), 4)
        return network.tune(compression.quantize_aware(network.trained(), bits, 8, calibration=calibration))

    return arm


def pruned(sparsity: float) -> Callable[[Network], keras.Model]:
    """Returns the arm of gradual pruning by magnitude."""

    def arm(network: Network) -> keras.Model:
        steps = network.fine_tuning_steps
        schedule = dict(schedule="polynomial", end_step=steps // 2, frequency=max(1, steps // 40))
        return network.tune(compression.prune(network.trained(), sparsity, **schedule))

    return arm


# Each arm, and the forms it is exported in
ARMS: Mapping[str, tuple[Callable[[Network], keras.Model], tuple[str, ...]]] = {
    "float": (Network.trained, ("none", "float16", "dynamic_int8", "int8")),
    "QAT int8": (quantized(8), ("int8",)),
    "QAT int4 weights": (quantized(4), ("none",)),
    "pruned 80 %": (pruned(0.8), ("none",)),
    "pruned 90 %": (pruned(0.9), ("none",)),
    "pruned 95 %": (pruned(0.95), ("none",)),
}


def measure(model: keras.Model, network: Network, modes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the Keras accuracy, the bit operations, and for each LiteRT form accuracy, bytes and latency."""
    dataset = network.dataset

    def keras_run(name: str, inputs: Arrays) -> Arrays:
        return {"logits": model.predict_on_batch(inputs["image"])}

    metric = TaskMetric(
        "accuracy", lambda run: accuracy(run, dataset, limit=GATE_IMAGES), higher_is_better=True, absolute_tolerance=0.5
    )
    result = {"accuracy": accuracy(keras_run, dataset), "bit_operations": bit_operations(model, network.calibration(1))}
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        examples = [{"image": image[None]} for image in network.calibration(64)]
        report = export_model(model, bundle, ["litert"], modes, examples, metric, name="network")
        result["files"] = {
            artifact.quantization: _file(report, artifact, bundle, dataset) for artifact in report.artifacts
        }
    return result


def _file(report: ExportReport, artifact: Any, bundle: Path, dataset: str) -> dict[str, Any]:
    run = open_artifact(artifact.format, {name: bundle / path for name, path in artifact.paths.items()})
    return {
        "variant": artifact.variant,
        "accuracy": accuracy(run, dataset),
        "bytes": artifact.size,
        "gzip_bytes": artifact.gzip_size,
        "latency_ms": artifact.latency_ms["predict"],
    }


# === Experiment ===


def reproduce(
    directory: Path,
    seeds: int = 3,
    epochs: int = EPOCHS,
    dataset: str = "cifar10",
    progress: Progress = lambda message: None,
) -> None:
    """Trains, exports and measures every arm, and writes `compressed_networks.json` and `.png`.

    Args:
        directory: path of `docs/results`.
        seeds: int. Runs of every arm.
        epochs: int. Length of a training from scratch; those from trained weights are three tenths of it.
        dataset: str. `"cifar10"`, `"fashion_mnist"` or, offline, `"fashion_mnist_sample"`.
        progress: callable. Takes one line at each stage.
    """
    settings = dict(depth=DEPTH, width=WIDTH, batch=BATCH, epochs=epochs, dataset=dataset)
    ledger = Ledger(Path(directory) / "compressed_networks.runs.json", settings)
    for seed in range(seeds):
        network = Network(dataset, seed, Path("runs") / "compressed_networks", epochs)
        for arm, (build, modes) in ARMS.items():

            def run(
                build: Callable = build, modes: tuple[str, ...] = modes, network: Network = network
            ) -> dict[str, Any]:
                return measure(build(network), network, modes)

            ledger.run(arm, seed, run, progress)
    rows = _rows(ledger)
    write_results(
        "compressed_networks",
        directory,
        claim=CLAIM,
        verdict=_verdict(rows),
        command=f"zoo reproduce compressed_networks --seeds {seeds}",
        tables={"networks": rows},
        figure=_figure(rows),
        settings={**settings, "seeds": seeds},
    )


def _rows(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Returns mean and spread of every file of every arm."""
    rows = {}
    for arm, runs in ledger.content["runs"].items():
        for mode in next(iter(runs.values()))["files"]:
            files = [run["files"][mode] for run in runs.values()]
            rows[arm if mode == "none" else f"{arm}, {mode}"] = {
                "accuracy": float(np.mean([file["accuracy"] for file in files])),
                "std": float(np.std([file["accuracy"] for file in files], ddof=1)) if len(files) > 1 else 0.0,
                "seeds": len(files),
                "bytes": int(np.median([file["bytes"] for file in files])),
                "gzip_bytes": int(np.median([file["gzip_bytes"] for file in files])),
                "latency_ms": float(np.median([file["latency_ms"] for file in files])),
                "bit_operations": int(np.median([run["bit_operations"] for run in runs.values()])),
                "variant": files[0]["variant"],
            }
    return rows


def _verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    floating = rows["float"]["accuracy"]
    changes = ", ".join(
        f"{name} {100 * (row['accuracy'] - floating):+.2f}" for name, row in rows.items() if name != "float"
    )
    return f"Float network: {100 * floating:.2f} % of the test images. Points gained or lost: {changes}."


def _figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for number, (name, row) in enumerate(rows.items()):
        axes.errorbar(
            row["bytes"] / 1024, 100 * row["accuracy"], 100 * row["std"], fmt="osD^v"[number // 10], color=f"C{number % 10}",
            label=name,
        )  # fmt: skip
    axes.set(xlabel="LiteRT file in KB", ylabel="test accuracy in %", xscale="log", title="Size and accuracy")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
