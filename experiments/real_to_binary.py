"""Real-to-binary networks: how the shipped checkpoint is trained, and what stages, teachers and gates are worth."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import catalog
from zoo.compression.progressive import REAL_TO_BINARY_STAGES, STRONG_BASELINE_STAGES, Stage
from zoo.compression.real_to_binary import RealToBinaryNet
from zoo.datasets import load_arrays
from zoo.experiments.image_classifiers import evaluate, shuffled_images
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.experiments.training import available_dataset
from zoo.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 64


# === Recipe ===

# At the paper's 2e-4, for 75 epochs of ImageNet, few weights flip in trainings as short as these
FLOAT, TANH, ACTIVATIONS, BINARY = REAL_TO_BINARY_STAGES
BINARY = dataclasses.replace(BINARY, learning_rate=1e-3)
# Teachers are good enough early; binary weights are what takes time
STAGES = tuple(
    dataclasses.replace(stage, share=share) for stage, share in ((FLOAT, 1), (TANH, 1), (ACTIVATIONS, 1), (BINARY, 3))
)
LAST_STAGE = 1 - STAGES[-1].share / sum(stage.share for stage in STAGES)


def compiler(stages: Sequence[Stage]) -> Callable[[RealToBinaryNet, int], None]:
    """Returns the `compile` function of a recipe: all stages share the updates."""

    def compile_model(model: RealToBinaryNet, num_updates: int) -> None:
        # XLA compiles every stage's graph for longer than it saves on a CPU
        model.compile_stages(stages, num_updates, jit_compile=False)

    return compile_model


RECIPES = {
    "fashion": Recipe(
        method="real_to_binary",
        preset="fashion",
        dataset="fashion_mnist",
        evaluation_dataset="fashion_mnist_sample",
        epochs=10,
        steps_per_epoch=50_000 // BATCH,
        data=shuffled_images(BATCH),
        compile=compiler(STAGES),
        evaluate=evaluate,
        monitor="val_deployable_error",
        last_phase=LAST_STAGE,
    ),
    "cifar10": Recipe(
        method="real_to_binary",
        preset="cifar10",
        dataset="cifar10",
        epochs=8,
        steps_per_epoch=45_000 // BATCH,
        data=shuffled_images(BATCH, augment=True),
        compile=compiler(STAGES),
        evaluate=evaluate,
        monitor="val_deployable_error",
        last_phase=LAST_STAGE,
    ),
}


# === Experiment ===


CLAIM = (
    "Binarising in stages, matching the attention maps of ever more binary teachers, and a data-driven gate each bring a "
    "binary network closer to the float one; gate and attention matching work best together (paper, tables 1 and 2)."
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        stages: tuple of `Stage`. All updates are shared among them, a teacher's too.
        changes: mapping. Constructor arguments that differ from the experiment's network.
    """

    stages: tuple[Stage, ...]
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TAUGHT = (FLOAT, dataclasses.replace(ACTIVATIONS, initial=None, teacher="float"), BINARY)
BASELINE = (STRONG_BASELINE_STAGES[0], dataclasses.replace(STRONG_BASELINE_STAGES[1], learning_rate=1e-3))
PLAIN = {"gate": False}
FULL = "full progressive"
ARMS: Mapping[str, Arm] = {
    "float": Arm((FLOAT,), {"real": True}),
    "one stage": Arm((dataclasses.replace(BASELINE[1], initial=None),), PLAIN),
    "two stages": Arm(BASELINE, PLAIN),
    "two stages, attention and distillation": Arm(TAUGHT, PLAIN),
    "two stages, gate": Arm(BASELINE),
    FULL: Arm((FLOAT, TANH, ACTIVATIONS, BINARY)),
}
# The preset `fashion` at half its width, in small batches: six arms with three seeds take half an hour on two cores.
NETWORK = {"widths": [16, 32, 64], "gate_ratio": 4}
EXPERIMENT_BATCH = 32
NUM_MEASUREMENTS = 20
NUM_SHOWN = 3


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 4000,
    network: Mapping[str, Any] = NETWORK,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm with every seed and writes `real_to_binary.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of all stages of an arm together, of 32 images each.
        network: mapping. Constructor arguments that differ from the preset `fashion`.
        progress: callable that takes one line per run.
    """
    dataset = available_dataset("fashion_mnist", progress)
    settings = {
        "dataset": dataset,
        "split": "test",
        "updates": updates,
        "batch_size": EXPERIMENT_BATCH,
        "network": network,
    }
    ledger = Ledger(directory / "real_to_binary.runs.json", settings)
    for seed in range(seeds):
        for name, arm in ARMS.items():

            def run(arm: Arm = arm, seed: int = seed) -> dict[str, Any]:
                return run_arm(arm, network, dataset, updates, seed)

            ledger.run(name, seed, run, progress)
    gains = {
        "stages": difference(ledger, "one stage", "two stages", "accuracy"),
        "attention and distillation": difference(
            ledger, "two stages", "two stages, attention and distillation", "accuracy"
        ),
        "gate alone": difference(ledger, "two stages", "two stages, gate", "accuracy"),
        "everything": difference(ledger, "two stages", FULL, "accuracy"),
        "everything, over one stage": difference(ledger, "one stage", FULL, "accuracy"),
        "gap to float": difference(ledger, FULL, "float", "accuracy"),
    }
    write_results(
        "real_to_binary",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, gains),
        command=f"zoo reproduce real_to_binary --seeds {seeds} --updates {updates}",
        tables={
            "accuracy": ledger.summary("accuracy"),
            "gain_in_accuracy": gains,
            "flip_rate_by_stage": {arm: _flips_by_stage(ledger, arm) for arm in ARMS if arm != "float"},
        },
        figure=_figure(ledger, dataset),
        settings={**settings, "seeds": seeds},
    )


def run_arm(arm: Arm, network: Mapping[str, Any], dataset: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains an arm; returns its accuracy, how often weights changed sign, and attention maps of all its networks."""
    keras.utils.set_random_seed(seed)
    model = catalog.get("real_to_binary", "fashion", weights=None, **{**network, **arm.changes})
    compiler(arm.stages)(model, updates)
    flips = FlipRates()
    steps = max(updates // NUM_MEASUREMENTS, 1)
    model.fit(
        shuffled_images(EXPERIMENT_BATCH)(model, dataset, seed).train,
        epochs=-(-updates // steps),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[flips],
    )
    shown = model.preprocess(load_arrays(dataset, "test")["image"][:NUM_SHOWN])
    networks = model.progression.networks
    return {
        **evaluate(model, dataset, "test"),
        "flips": flips.history,
        "maps": {name: [np.round(m, 4).tolist() for m in net.attention_maps(shown)] for name, net in networks.items()},
    }


class FlipRates(keras.callbacks.Callback):
    """Records in every epoch which share of the weights of the trained network changed sign."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[dict[str, Any]] = []
        self._stage = ""
        self._signs = np.zeros(0, bool)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Compares with the epoch before, where the same stage was on."""
        progression = self.model.progression
        network, stage = progression.active.student, progression.stages[progression.index].name
        if network.real:
            return
        signs = np.concatenate([np.ravel(conv.kernel.numpy() >= 0) for conv in network.binary_convs])
        if stage == self._stage:
            rate = float(np.mean(signs != self._signs))
            self.history.append({"update": progression.num_updates_done, "stage": stage, "rate": rate})
        self._stage, self._signs = stage, signs


def _flips_by_stage(ledger: Ledger, arm: str) -> dict[str, float]:
    records = [record for run in ledger.values(arm, "flips") for record in run]
    stages = dict.fromkeys(record["stage"] for record in records)
    return {stage: statistics.fmean(r["rate"] for r in records if r["stage"] == stage) for stage in stages}


def _verdict(ledger: Ledger, gains: Mapping[str, Mapping[str, float]]) -> str:
    accuracy = {arm: spread(ledger.values(arm, "accuracy")) for arm in ARMS}
    best = max(accuracy, key=lambda arm: statistics.fmean(ledger.values(arm, "accuracy")) if arm != "float" else 0.0)
    points = ", ".join(f"{name} {100 * gain['mean']:+.2f} ± {100 * gain['std']:.2f}" for name, gain in gains.items())
    return (
        f"Test accuracy is {accuracy['float']} in float and, of the binary networks, highest for “{best}” "
        f"({accuracy[best]}); the full method has {accuracy[FULL]}. Gains in points at equal updates, those of teachers "
        f"counted: {points}."
    )


# === Figure ===


def _figure(ledger: Ledger, dataset: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    bars, curves = upper.subplots(1, 2)
    _show_accuracy(bars, ledger)
    _show_flips(curves, ledger)
    maps = ledger.values(FULL, "maps")[0]
    images = load_arrays(dataset, "test")["image"][:NUM_SHOWN]
    axes = lower.subplots(NUM_SHOWN, 1 + len(maps), squeeze=False)
    for row, image in enumerate(images):
        _show_image(axes[row, 0], image, "image" if row == 0 else "")
        for column, (name, blocks) in enumerate(maps.items(), start=1):
            # The middle block: still sharp in space, no longer near the pixels
            chosen = np.array(blocks[len(blocks) // 2])[row]
            _show_image(axes[row, column], chosen, name if row == 0 else "", "viridis")
    lower.suptitle("Attention maps of the middle block: teacher and students")
    return figure


def _show_accuracy(axes: Axes, ledger: Ledger) -> None:
    for place, arm in enumerate(ARMS):
        values = ledger.values(arm, "accuracy")
        axes.barh(place, statistics.fmean(values), color="tab:grey" if arm == "float" else "tab:blue", alpha=0.6)
        axes.plot(values, [place] * len(values), "k.")
    lowest = min(min(ledger.values(arm, "accuracy")) for arm in ARMS)
    axes.set(title="Test accuracy at equal updates", yticks=range(len(ARMS)), yticklabels=list(ARMS))
    axes.set_xlim(max(lowest - 0.02, 0.0), None)
    axes.invert_yaxis()


def _show_flips(axes: Axes, ledger: Ledger) -> None:
    for arm in (name for name in ARMS if name != "float"):
        records = ledger.values(arm, "flips")[0]
        axes.plot([r["update"] for r in records], [r["rate"] for r in records], marker=".", label=arm)
    axes.set(title="Weights that change sign, per twentieth of the training", xlabel="update", ylabel="share")
    axes.set_yscale("symlog", linthresh=1e-4)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _show_image(axes: Axes, image: np.ndarray, title: str, cmap: str = "gray") -> None:
    axes.imshow(image, cmap=cmap)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
