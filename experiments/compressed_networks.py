"""Every way to a small network side by side: a residual network on CIFAR-10 (or Fashion-MNIST), small in twenty ways.

The float network of a seed is trained once; what starts from trained weights starts from it, and trains for three tenths as
long. What starts from random weights, as pruning at initialisation and binary networks, trains as long as the float network,
all stages and teachers counted. Every arm is exported, and its accuracy read through the file it leads to.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import compression
from zoo.compression.costs import bit_operations
from zoo.compression.progressive import Stage
from zoo.compression.real_to_binary import RealToBinaryNet
from zoo.datasets import load_arrays
from zoo.experiments import real_to_binary
from zoo.experiments.image_classifiers import shuffled_images
from zoo.experiments.mixed_precision_dnn import BestWithinBudgets
from zoo.experiments.report import Ledger, Progress, write_results
from zoo.export import ENGINES, ArtifactReport, export_binary, export_model
from zoo.export.runners import open_artifact
from zoo.layers.residual_network import residual_network
from zoo.model import Arrays, Runner, TaskMetric
from zoo.training.statistics import RefreshStatistics, refresh_statistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEPTH, WIDTH, STEM_STRIDES = 8, 16, 2
BATCH = 128
EPOCHS, FINE_TUNING = 6, 0.3
# Of 70 KB for a network that takes 65.5 KB at two bits (paper of mixed_precision_dnn, section 5)
BUDGET_SLACK = 70 / 65.5
SPARSITY, SCORED_BATCHES, ISOMETRY_STEPS = 0.9, 20, 2000
LEARNING_RATE, SMALL_LEARNING_RATE = 0.1, 0.01
# What the gate of an export reads; the table reads all of the test images
GATE_IMAGES = 1000
# How often a training under a budget looks whether its weights are the best ones yet
CHECKS = 10
CLAIM = (
    "Quantisation-aware training at 8 bits costs nothing and at 4 bits little; most weights can be pruned; learned bit "
    "widths beat fixed ones at equal size."
)


# === Data and training ===


def load_images(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images with values from 0 to 1, `(count, height, width, channels)`, and labels."""
    arrays = load_arrays(dataset, split)
    images = arrays["image"].astype("float32") / 255
    return (images if images.ndim == 4 else images[..., None]), arrays["label"]


def num_steps(dataset: str, epochs: int) -> int:
    """Returns the number of updates in some epochs."""
    return epochs * (len(load_arrays(dataset, "train")["label"]) // BATCH)


def fit(
    model: keras.Model, dataset: str, seed: int, epochs: int, learning_rate: float, within_budgets: bool = False
) -> None:
    """Trains with momentum and a cosine schedule.

    Args:
        model: built `keras.Model`.
        dataset: str.
        seed: int.
        epochs: int.
        learning_rate: float.
        within_budgets: bool. Whether to end with the best weights that keep the budgets of learned bit widths.
    """
    steps, parts = num_steps(dataset, epochs), CHECKS if within_budgets else 1
    data = shuffled_images(BATCH, augment=True)(model, dataset, seed)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps), momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # on a CPU, XLA takes twice the time for these convolutions
    )
    selection = []
    if within_budgets:
        selection = [RefreshStatistics(data.train), BestWithinBudgets(model.stage(compression.LearnedBitwidthStage))]
    model.fit(
        data.train,
        validation_data=data.validation if within_budgets else None,
        epochs=parts,
        steps_per_epoch=steps // parts,
        verbose=0,
        shuffle=False,
        callbacks=selection,
    )
    if not within_budgets:
        refresh_statistics(model, data.train)


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
        self.fine_tuning = max(1, math.ceil(epochs * FINE_TUNING))
        self.weights = scratch / f"{dataset}-{DEPTH}-{WIDTH}-{STEM_STRIDES}-{epochs}-{seed}.weights.h5"
        self.shape = load_images(dataset, "validation")[0].shape[1:]

    def fresh(self) -> keras.Model:
        """Returns the network with its first random weights."""
        keras.backend.clear_session()  # else layers are numbered on, and patterns of names differ from run to run
        keras.utils.set_random_seed(self.seed)
        return residual_network(DEPTH, WIDTH, input_shape=self.shape, stem_strides=STEM_STRIDES)

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

    def tune(self, model: keras.Model, within_budgets: bool = False) -> keras.Model:
        """Trains a compressed network on."""
        fit(model, self.dataset, self.seed + 1000, self.fine_tuning, SMALL_LEARNING_RATE, within_budgets)
        return model

    def learn(self, model: keras.Model) -> keras.Model:
        """Trains a network from scratch."""
        fit(model, self.dataset, self.seed, self.epochs, LEARNING_RATE)
        return model

    @property
    def fine_tuning_steps(self) -> int:
        """Number of updates of `tune`."""
        return num_steps(self.dataset, self.fine_tuning)


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


def mixed_precision(bits: int, learned: bool) -> Callable[[Network], keras.Model]:
    """Returns the arm of weights of some bits, the same for all layers or learned under the budget that these take.

    Activations have four bits, or as many kilobytes in all as those take.
    """

    def arm(network: Network) -> keras.Model:
        fixed = compression.learn_bitwidths(network.trained(), mode="fixed", bits=bits, activation_bits=4)
        if not learned:
            return network.tune(fixed)
        sizes = fixed.stage(compression.LearnedBitwidthStage)
        slack = BUDGET_SLACK if bits == 2 else 1.0
        budgets = sizes.weight_kb() * slack, sizes.activation_kb()
        return network.tune(compression.learn_bitwidths(network.trained(), *budgets), within_budgets=True)

    return arm


def pruned_at_initialization(method: str, isometry_steps: int = 0) -> Callable[[Network], keras.Model]:
    """Returns the arm of a network that is sparse before it is trained."""

    def arm(network: Network) -> keras.Model:
        images, labels = load_images(network.dataset, "train")
        scored = slice(0, SCORED_BATCHES * 100)
        model = compression.prune_at_initialization(
            network.fresh(),
            (images[scored], labels[scored]),
            SPARSITY,
            method=method,
            isometry_steps=isometry_steps,
            seed=network.seed,
        )
        return network.learn(model)

    return arm


def binary(stages: tuple[Stage, ...], gate: bool) -> Callable[[Network], RealToBinaryNet]:
    """Returns the arm of a binary network with the layers' sizes of the float one."""

    def arm(network: Network) -> RealToBinaryNet:
        keras.backend.clear_session()
        keras.utils.set_random_seed(network.seed)
        model = RealToBinaryNet(
            image_size=network.shape[0],
            num_channels=network.shape[2],
            num_classes=10,
            widths=[WIDTH, 2 * WIDTH, 4 * WIDTH],
            depths=[1, 1, 1],
            stem="strided",
            gate=gate,
            gate_ratio=4,
            padding_value=1,
            normalization_momentum=0.9,
        )
        model.compile_stages(stages, num_steps(network.dataset, network.epochs), jit_compile=False)
        data = shuffled_images(BATCH, augment=True)(model, network.dataset, network.seed).train
        model.fit(data, steps_per_epoch=num_steps(network.dataset, network.epochs), verbose=0, shuffle=False)
        refresh_statistics(model, data)
        return model

    return arm


# Each arm, and the forms it is exported in
ARMS: Mapping[str, tuple[Callable[[Network], keras.Model], tuple[str, ...]]] = {
    "float": (Network.trained, ("none", "float16", "dynamic_int8", "int8")),
    "QAT int8": (quantized(8), ("int8",)),
    "QAT int4 weights": (quantized(4), ("bit_plan",)),
    "pruned 80 %": (pruned(0.8), ("none",)),
    "pruned 90 %": (pruned(0.9), ("none",)),
    "pruned 95 %": (pruned(0.95), ("none",)),
    "2 bits": (mixed_precision(2, learned=False), ("bit_plan",)),
    "learned bits, size of 2": (mixed_precision(2, learned=True), ("bit_plan",)),
    "4 bits": (mixed_precision(4, learned=False), ("bit_plan",)),
    "learned bits, size of 4": (mixed_precision(4, learned=True), ("bit_plan",)),
    "at initialisation, random 90 %": (pruned_at_initialization("random"), ("none",)),
    "at initialisation, magnitude 90 %": (pruned_at_initialization("magnitude"), ("none",)),
    "at initialisation, sensitivity 90 %": (pruned_at_initialization("sensitivity"), ("none",)),
    "at initialisation, sensitivity 90 %, isometry": (
        pruned_at_initialization("sensitivity", ISOMETRY_STEPS),
        ("none",),
    ),
    **{
        f"binary, {name}": (binary(arm.stages, arm.changes.get("gate", True)), ("none", *ENGINES))
        for name, arm in real_to_binary.ARMS.items()
        if name not in ("float", "two stages")
    },
}


def measure(model: keras.Model, network: Network, modes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the Keras accuracy, the bit operations, and for each form accuracy, bytes and latency."""
    dataset = network.dataset

    def keras_run(name: str, inputs: Arrays) -> Arrays:
        return {"logits": model.predict_on_batch(inputs["image"])}

    metric = TaskMetric(
        "accuracy", lambda run: accuracy(run, dataset, limit=GATE_IMAGES), higher_is_better=True, absolute_tolerance=0.5
    )
    examples = [{"image": image[None]} for image in network.calibration(64)]
    result = {"accuracy": accuracy(keras_run, dataset), "bit_operations": bit_operations(model, network.calibration(1))}
    with tempfile.TemporaryDirectory() as scratch:
        bundle, result["files"] = Path(scratch) / "litert", {}
        standard = [mode for mode in modes if mode not in ENGINES]
        # Any bit width is as small as it should be in ONNX only
        formats = ["litert", "onnx"] if "bit_plan" in modes else ["litert"]
        report = export_model(model, bundle, formats, standard, examples, metric, name="network")
        for artifact in report.artifacts:
            form = artifact.quantization if artifact.format == "litert" else artifact.label
            result["files"][form] = _file(artifact, bundle, dataset)
        for engine in (mode for mode in modes if mode in ENGINES):
            bundle = Path(scratch) / engine
            report = export_binary(model, bundle, engine, examples, metric, name="network")
            result["files"][engine] = _file(report.artifacts[0], bundle, dataset)
    return result


def _file(artifact: ArtifactReport, bundle: Path, dataset: str) -> dict[str, Any]:
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
    settings = dict(depth=DEPTH, width=WIDTH, stem_strides=STEM_STRIDES, batch=BATCH, epochs=epochs, dataset=dataset)
    ledger = Ledger(Path(directory) / "compressed_networks.runs.json", settings)
    for seed in range(seeds):
        network = Network(dataset, seed, Path("runs") / "compressed_networks", epochs)
        for arm, (build, modes) in ARMS.items():

            def run(
                build: Callable = build, modes: tuple[str, ...] = modes, network: Network = network
            ) -> dict[str, Any]:
                return measure(build(network), network, modes)

            ledger.run(arm, seed, run, progress)
            # At once, since all of them take hours
            _write(ledger, directory, settings, seeds)


def _write(ledger: Ledger, directory: Path, settings: Mapping[str, Any], seeds: int) -> None:
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


# What the claim compares: the points that the first row is above the second
COMPARISONS = {
    "training for 8 bits over float": ("QAT int8, int8", "float"),
    "learned bits over two bits": ("learned bits, size of 2, bit_plan", "2 bits, bit_plan"),
    "learned bits over four bits": ("learned bits, size of 4, bit_plan", "4 bits, bit_plan"),
    "sensitivity over magnitude at initialisation": (
        "at initialisation, sensitivity 90 %",
        "at initialisation, magnitude 90 %",
    ),
    "sensitivity over chance": ("at initialisation, sensitivity 90 %", "at initialisation, random 90 %"),
    "isometry over none": ("at initialisation, sensitivity 90 %, isometry", "at initialisation, sensitivity 90 %"),
    "binarising in stages over at once": (f"binary, {real_to_binary.FULL}", "binary, one stage"),
}


def _verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    known = {name: pair for name, pair in COMPARISONS.items() if all(row in rows for row in pair)}
    points = ", ".join(
        f"{name} {100 * (rows[first]['accuracy'] - rows[second]['accuracy']):+.2f}"
        for name, (first, second) in known.items()
    )
    return (
        f"The float network has {100 * rows['float']['accuracy']:.2f} % of the test images right. Points gained: {points}; "
        f"spreads and seeds are in the table."
    )


TICKS = (25, 50, 100, 200, 400)
# What the names of arms begin with, and the colour of the family
FAMILIES = {
    "float": "black",
    "QAT": "tab:blue",
    "pruned": "tab:orange",
    "2 bits": "tab:green",
    "learned bits": "tab:green",
    "4 bits": "tab:green",
    "at initialisation": "tab:red",
    "binary": "tab:purple",
}


def _figure(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws every file as its number in the table, in the colour of its family."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots()
    handles = []
    for number, (name, row) in enumerate(rows.items(), 1):
        color = next(color for start, color in FAMILIES.items() if name.startswith(start))
        place = row["bytes"] / 1024, 100 * row["accuracy"]
        axes.errorbar(*place, 100 * row["std"], color=color, alpha=0.4)
        axes.plot(*place, marker=f"${number}$", markersize=10 if number > 9 else 6, color=color)
        handles.append(Line2D([], [], linestyle="", marker=f"${number}$", markersize=9, color=color, label=name))
    axes.set(xlabel="file in KB", ylabel="test accuracy in %", xscale="log", title="Size and accuracy")
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure
