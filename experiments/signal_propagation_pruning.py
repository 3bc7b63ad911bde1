"""Pruning at initialisation: how its checkpoint is trained, and what isometry is worth on 8 x 8 digits.

Claims: pruning spoils the singular values of the Jacobian, and approximate isometry restores them and trainability;
orthogonal weights give the best sparse networks; masks need no labels. Beside them: one batch instead of all, the largest
weights, and chance. All runs take the same updates, and count with the weights they end with.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.pruning_networks import INITIALIZERS
from zoo.compression.signal_propagation_pruning import (
    SignalPropagationPruning,
    cut_layers,
    densities,
    enforce_isometry,
    jacobian_singular_values,
)
from zoo.datasets import load_arrays
from zoo.experiments.image_classifiers import error, evaluate, shuffled_images
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 100
LEARNING_RATE = 0.1


# === Recipe ===


def prepare(model: SignalPropagationPruning, dataset: str) -> None:
    """Prunes a new model by all training images."""
    train = load_arrays(dataset, "train")
    model.prune((model.preprocess(train["image"]), train["label"]))


def compile_model(model: SignalPropagationPruning, num_updates: int, steps_per_execution: int = 1) -> None:
    """Compiles a model with the paper's optimiser; its learning rate is constant, whatever the number of updates."""
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[error],
        steps_per_execution=steps_per_execution,
        # XLA takes longer to compile these small dense graphs than it saves on a CPU
        jit_compile=False,
    )


RECIPES = {
    "mnist": Recipe(
        method="signal_propagation_pruning",
        preset="mnist",
        dataset="mnist",
        epochs=20,
        steps_per_epoch=50_000 // BATCH,
        prepare=prepare,
        data=shuffled_images(BATCH),
        compile=compile_model,
        evaluate=evaluate,
        monitor="val_error",
        evaluation_dataset="mnist_sample",
    )
}


# === Experiment ===


CLAIM = (
    "Pruning at initialisation spoils the singular values of a network's Jacobian; approximate isometry, which needs no "
    "data, restores them and improves every sparse network. Orthogonal weights give the best ones, and masks found without "
    "labels are about as good (paper, sections 4 and 5)."
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of pruning.

    Args:
        isometry: bool. Whether approximate isometry follows.
        initializer: str. See `SignalPropagationPruning`, as for what follows.
        sparsity: float.
        method: str.
        labels: str.
        batches: int or None.
    """

    isometry: bool
    initializer: str = "orthogonal"
    sparsity: float = 0.9
    method: str = "sensitivity"
    labels: str = "data"
    batches: int | None = None


SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
MASKS: Mapping[str, Mapping[str, Any]] = {
    "uniform labels": {"labels": "uniform"},
    "one batch": {"batches": 1},
    "largest weights": {"method": "magnitude"},
    "random": {"method": "random"},
}
WITH = ", isometry"


def _sparse(sparsity: float) -> str:
    """Returns the name of the arms of a sparsity; the one of the initialisers' comparison is shared."""
    return "orthogonal" if sparsity == Arm.sparsity else f"orthogonal, {sparsity:.0%}"


CHANGES: Mapping[str, Mapping[str, Any]] = {
    **{name: {"initializer": name} for name in INITIALIZERS},
    **{_sparse(sparsity): {"sparsity": sparsity} for sparsity in SPARSITIES},
    **MASKS,
}
ARMS: Mapping[str, Arm] = {
    name + ending: Arm(isometry, **changes)
    for name, changes in CHANGES.items()
    for ending, isometry in (("", False), (WITH, True))
}
ISOMETRY_STEPS = 1500
# Updates of one number of a loss curve.
UPDATES_PER_POINT = 20
# Images whose Jacobians are looked at.
NUM_JACOBIANS = 20


def reproduce(directory: Path, seeds: int = 3, updates: int = 2000, progress: Progress = lambda message: None) -> None:
    """Prunes and trains every arm with every seed; writes `signal_propagation_pruning.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of every arm, of 100 images each.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": "digits", "split": "test", "updates": updates, "batch_size": BATCH}
    ledger = Ledger(directory / "signal_propagation_pruning.runs.json", settings)
    for seed in range(seeds):
        for name, arm in ARMS.items():
            ledger.run(name, seed, lambda arm=arm, seed=seed: run_arm(arm, updates, seed), progress)
    gains = {name: difference(ledger, name + WITH, name, "error") for name in CHANGES}
    write_results(
        "signal_propagation_pruning",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, gains),
        command=f"zoo reproduce signal_propagation_pruning --seeds {seeds} --updates {updates}",
        tables={
            "test_error": ledger.summary("error"),
            "fall_of_test_error_by_isometry": gains,
            "mean_singular_value": {key: ledger.summary(key) for key in ("dense", "pruned", "final")},
            "density_by_layer": {name: _mean_densities(ledger, name) for name in CHANGES},
            "kernels_without_connections": ledger.summary("num_cut"),
        },
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds, "isometry_steps": ISOMETRY_STEPS},
    )


@functools.cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images in [0, 1] and labels."""
    data = load_arrays("digits", split)
    return data["image"][..., None].astype("float32") / 16.0, data["label"]


def new_model(arm: Arm) -> SignalPropagationPruning:
    """Returns the dense perceptron of an arm, which centres its images."""
    return SignalPropagationPruning(
        input_shape=(8, 8, 1),
        pixel_mean=float(digits("train")[0].mean()),
        kernel_initializer=arm.initializer,
        sparsity=arm.sparsity,
        method=arm.method,
        labels=arm.labels,
        isometry_steps=0,
    )


@functools.cache
def _compiled() -> SignalPropagationPruning:
    """Returns the model that trains the weights and masks of all arms, so that TensorFlow traces one training step."""
    model = new_model(Arm(isometry=False))
    compile_model(model, 0, steps_per_execution=UPDATES_PER_POINT)
    return model


def run_arm(arm: Arm, updates: int, seed: int) -> dict[str, Any]:
    """Prunes and trains an arm.

    Returns:
        Test error, losses of training, density of each layer, number of kernels without connections, and the mean
        singular value of the input-output Jacobian before pruning, after it, and where training begins.
    """
    keras.utils.set_random_seed(seed)
    model, looked_at = new_model(arm), digits("train")[0][:NUM_JACOBIANS]
    values = {"dense": _mean_singular_value(model, looked_at)}
    with warnings.catch_warnings():
        # Cut layers are a result here
        warnings.simplefilter("ignore", UserWarning)
        model.prune(digits("train"), arm.batches, seed)
    values["pruned"] = values["final"] = _mean_singular_value(model, looked_at)
    if arm.isometry:
        enforce_isometry(model, ISOMETRY_STEPS)
        values["final"] = _mean_singular_value(model, looked_at)
    masks = model.masks
    losses, test_error = _trained(model, updates, seed)
    return {
        "error": test_error,
        "losses": losses,
        "densities": {path: value for path, value in densities(masks).items() if path.endswith("kernel")},
        "num_cut": len(cut_layers(masks)),
        **values,
    }


def _mean_singular_value(model: SignalPropagationPruning, images: np.ndarray) -> float:
    return float(jacobian_singular_values(model, images).mean())


def _trained(model: SignalPropagationPruning, updates: int, seed: int) -> tuple[list[float], float]:
    images, labels = digits("train")
    rng = np.random.default_rng(seed)
    passes = -(-updates * BATCH // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(passes)])[: updates * BATCH]
    batches = tf.data.Dataset.from_tensor_slices(order.reshape(updates, BATCH))
    trained = _compiled()
    trained.set_weights(model.get_weights())
    history = trained.fit(
        batches.map(lambda rows: (tf.gather(images, rows), tf.gather(labels, rows))).repeat(),
        epochs=max(updates // UPDATES_PER_POINT, 1),
        steps_per_epoch=min(UPDATES_PER_POINT, updates),
        shuffle=False,
        verbose=0,
    )
    images, labels = digits("test")
    missed = np.argmax(trained.predict_on_batch(images), axis=1) != labels
    return history.history["loss"], float(missed.mean())


def _mean_densities(ledger: Ledger, arm: str) -> dict[str, float]:
    runs = ledger.values(arm, "densities")
    return {path: statistics.fmean(run[path] for run in runs) for path in runs[0]}


def _verdict(ledger: Ledger, gains: Mapping[str, Mapping[str, float]]) -> str:
    errors = {arm: 100 * statistics.fmean(ledger.values(arm, "error")) for arm in ARMS}
    shown = {arm: spread([100 * value for value in ledger.values(arm, "error")]) for arm in ARMS}
    better = [name for name in INITIALIZERS if gains[name]["mean"] > 0]
    falls = ", ".join(f"{name} {shown[name]} to {shown[name + WITH]}" for name in INITIALIZERS)
    best = {ending: min(INITIALIZERS, key=lambda name: errors[name + ending]) for ending in ("", WITH)}
    masks = ", ".join(f"{name} {shown[name]} and {shown[name + WITH]}" for name in MASKS)
    sparsities = [_sparse(sparsity) for sparsity in SPARSITIES]
    helped = [name for name in sparsities if gains[name]["mean"] > 0]
    singular = {key: statistics.fmean(ledger.values("orthogonal" + WITH, key)) for key in ("dense", "pruned", "final")}
    restored = "restores" if singular["pruned"] < singular["final"] else "does not restore"
    return (
        f"Pruning 90 % takes the mean singular value of the orthogonal network from {singular['dense']:.2g} to "
        f"{singular['pruned']:.2g}; isometry {restored} it ({singular['final']:.2g}). Isometry lowers the mean test error "
        f"of {len(better)} of {len(INITIALIZERS)} initialisers at 90 % (in per cent: {falls}), and of the orthogonal "
        f"network at {len(helped)} of {len(sparsities)} sparsities. The lowest error without isometry is that of "
        f"“{best['']}”, with it that of “{best[WITH]}”. Normal weights leave "
        f"{statistics.fmean(ledger.values('normal', 'num_cut')):.1f} kernels without connections. Other masks at 90 %, "
        f"orthogonal, without and with isometry: {masks}; by sensitivity with labels {shown['orthogonal']} and "
        f"{shown['orthogonal' + WITH]}."
    )


# === Figure ===


COLORS = {False: "tab:red", True: "tab:blue"}


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    _show_errors(axes[0, 0], ledger)
    _show_singular_values(axes[0, 1], ledger)
    _show_densities(axes[1, 0], ledger)
    _show_losses(axes[1, 1], ledger)
    return figure


def _show_errors(axes: Axes, ledger: Ledger) -> None:
    for ending, label in (("", "pruned"), (WITH, "pruned, isometry")):
        runs = [[100 * value for value in ledger.values(_sparse(s) + ending, "error")] for s in SPARSITIES]
        _show_spread(axes, runs, label, COLORS[bool(ending)])
    axes.set(title="Test error of the orthogonal network", xlabel="sparsity", ylabel="per cent")
    axes.legend()


def _show_singular_values(axes: Axes, ledger: Ledger) -> None:
    kinds = {"dense": ("before pruning", "tab:grey"), "pruned": ("pruned", COLORS[False])}
    for key, (label, color) in {**kinds, "final": ("pruned, isometry", COLORS[True])}.items():
        _show_spread(axes, [ledger.values(_sparse(s) + WITH, key) for s in SPARSITIES], label, color)
    axes.set(title="Mean singular value of its Jacobian", xlabel="sparsity")
    axes.set_yscale("log")
    axes.legend()


def _show_spread(axes: Axes, runs: Sequence[Sequence[float]], label: str, color: str) -> None:
    places = range(len(SPARSITIES))
    axes.plot(places, [statistics.fmean(values) for values in runs], color=color, label=label)
    for place, values in zip(places, runs, strict=True):
        axes.plot([place] * len(values), values, ".", color=color)
    axes.set_xticks(places, [f"{sparsity:.0%}" for sparsity in SPARSITIES])


def _show_densities(axes: Axes, ledger: Ledger) -> None:
    width = 0.8 / len(INITIALIZERS)
    for index, name in enumerate(INITIALIZERS):
        values = _mean_densities(ledger, name)
        axes.bar(np.arange(len(values)) + index * width, list(values.values()), width, label=name)
    layers = [path.partition("/")[0] for path in values]
    axes.set_xticks(np.arange(len(layers)) + 0.4 - width / 2, layers, fontsize=8)
    axes.set(title="Connections left in each layer at 90 %", ylabel="density")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(0, 3)
    axes.legend(fontsize=8, ncols=len(INITIALIZERS), loc="upper center")


def _show_losses(axes: Axes, ledger: Ledger) -> None:
    for index, name in enumerate(INITIALIZERS):
        for ending, style in (("", ":"), (WITH, "-")):
            curve = np.mean(ledger.values(name + ending, "losses"), axis=0)
            updates = UPDATES_PER_POINT * np.arange(1, len(curve) + 1)
            axes.plot(updates, curve, style, color=f"C{index}", label=name if ending else None)
    axes.set(title="Training loss at 90 %: with isometry, and without (dotted)", xlabel="update", ylabel="nats")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
