"""Mixed precision DNNs: how the shipped checkpoint is trained, and what parametrisations and learned bits are worth."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.image_classifier import EVALUATION_BATCH
from zoo.compression.mixed_precision_dnn import (
    PARAMETRIZATIONS,
    LearnedBitwidthStage,
    MixedPrecisionDNN,
    grid,
    learn_bitwidths,
    quantize,
    valid_parameters,
)
from zoo.datasets import load_arrays
from zoo.experiments.image_classifiers import evaluate, shuffled_images
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.training.recipe import Recipe
from zoo.training.statistics import RefreshStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 128
MOMENTUM = 0.9
# Keras takes weight decay out of the gradient that momentum amplifies: the paper's 2e-4 counts tenfold there.
WEIGHT_DECAY = 2e-4 / (1 - MOMENTUM)
FLOAT_RATE, QUANTIZED_RATE = 0.1, 0.01
FLOAT_SHARE = 0.4


# === Recipe ===


def schedule(phases: Mapping[float, int]) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Returns learning rates that fall to a tenth after half of their updates, as the paper's do at first.

    Args:
        phases: mapping from the rate that a phase begins with to its number of updates.
    """
    ends, rates, start = [], [], 0
    for rate, updates in phases.items():
        ends += [start + updates // 2, start + updates]
        rates += [rate, rate / 10]
        start += updates
    return keras.optimizers.schedules.PiecewiseConstantDecay(ends[:-1], rates)


def compile_model(model: keras.Model, rates: keras.optimizers.schedules.LearningRateSchedule | float) -> None:
    """Compiles a model with the paper's optimiser."""
    model.compile(
        keras.optimizers.SGD(rates, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        # XLA compiles for longer than it saves on a CPU
        jit_compile=False,
    )


def compile_phases(model: MixedPrecisionDNN, num_updates: int) -> None:
    """Compiles a model that trains in float first, then quantised with smaller learning rates."""
    first = round(FLOAT_SHARE * num_updates)
    model.quantize_from(first)
    compile_model(model, schedule({FLOAT_RATE: first, QUANTIZED_RATE: num_updates - first}))


RECIPES = {
    "fashion_mnist": Recipe(
        method="mixed_precision_dnn",
        preset="fashion_mnist",
        dataset="fashion_mnist",
        evaluation_dataset="fashion_mnist_sample",
        epochs=6,
        steps_per_epoch=50_000 // BATCH,
        data=shuffled_images(BATCH),
        compile=compile_phases,
        evaluate=evaluate,
        monitor="val_constrained_error",
        last_phase=FLOAT_SHARE,
        callbacks=lambda data: [RefreshStatistics(data.train)],
    )
}


# === The paper's toy: one quantiser on normally distributed samples ===


CLAIM = (
    "Of the equivalent ways to parametrise a quantiser, step and range (and the two bounds of a power-of-two one) train "
    "faster and steadier; bit widths that are learned under a budget beat fixed ones of the same size (paper, tables 1-2)."
)
# The paper's names: two of bits, step and range for uniform quantisers, two of bits and bounds for powers of two.
TOY_ARMS: Mapping[str, tuple[str, str]] = {
    "U1": ("uniform", "bits_and_step"),
    "U2": ("uniform", "bits_and_range"),
    "U3": ("uniform", "step_and_range"),
    "P1": ("power_of_two", "bits_and_minimum"),
    "P2": ("power_of_two", "bits_and_maximum"),
    "P3": ("power_of_two", "minimum_and_maximum"),
}
PENALIZED, MOST_BITS, BIT_PENALTY = "U3, 4 bits at most", 4, 0.1
TOY_START = {"bits": 3.0, "step": 1 / 8, "minimum": 3 / 64, "maximum": 3 / 8}
TOY_RATES, TOY_STEPS, TOY_SAMPLES = (0.5, 1.0), 2000, 10_000
CONVERGED, LAST = 0.01, 200


@dataclasses.dataclass(frozen=True)
class ToyRun:
    """Half the mean squared error and the bit width at every step of a descent.

    Args:
        losses: float array `(steps,)`.
        bits: float array `(steps,)`.
    """

    losses: np.ndarray
    bits: np.ndarray

    def summary(self) -> dict[str, float | int | None]:
        """Returns the first step with a small loss, how much the loss still moves in the end, and where it ends."""
        small = np.flatnonzero(self.losses < CONVERGED)
        return {
            "steps": int(small[0]) if len(small) else None,
            "std": float(np.std(self.losses[-LAST:])),
            "loss": float(self.losses[-1]),
            "bits": float(self.bits[-1]),
        }


def descend(arm: str, rate: float, steps: int = TOY_STEPS) -> ToyRun:
    """Minimises `E[(Q(x) - x)^2] / 2` over the two parameters of a quantiser, x from N(0, 1), by gradient descent.

    Args:
        arm: str. Key of `TOY_ARMS`, or `PENALIZED`: with a penalty, and gradients clipped to the step, as in training.
        rate: float. Learning rate of both parameters.
        steps: int.
    """
    penalized = arm == PENALIZED
    quantizer, parametrization = TOY_ARMS["U3" if penalized else arm]
    x = tf.constant(np.random.default_rng(0).standard_normal(TOY_SAMPLES), tf.float32)

    @tf.function
    def run() -> tuple[tf.Tensor, tf.Tensor]:
        values = {name: tf.constant(TOY_START[name]) for name in PARAMETRIZATIONS[quantizer][parametrization]}
        losses, widths = tf.TensorArray(tf.float32, steps), tf.TensorArray(tf.float32, steps)
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                tape.watch(values)
                loss = tf.reduce_mean(tf.square(quantize(x, quantizer, values) - x)) / 2
                bits = grid(quantizer, values).bits
                excess = tf.maximum(bits - MOST_BITS, 0.0) if penalized else 0.0
                total = loss + BIT_PENALTY * tf.square(excess)
            gradients = tape.gradient(total, values)
            if penalized:
                gradients = {n: tf.clip_by_value(g, -values["step"], values["step"]) for n, g in gradients.items()}
            losses, widths = losses.write(step, loss), widths.write(step, bits)
            values = valid_parameters(quantizer, {n: v - rate * gradients[n] for n, v in values.items()}, signed=True)
        return losses.stack(), widths.stack()

    losses, bits = run()
    return ToyRun(losses.numpy(), bits.numpy())


# === Networks ===


DATASET = "fashion_mnist_sample"
IMAGES = 64
NUM_MEASUREMENTS = 20
BITS, ACTIVATION_BITS = 2, 4
# Of 70 KB for a network that takes 65.5 KB at two bits
BUDGET = 1.07
FLOAT, FIXED, RANGES, LEARNED = "float", "fixed, 2 bits", "learned ranges, 2 bits", "learned bits, budget"
U1, U2, U3 = "U1, no budget", "U2, no budget", "U3, no budget"


def network(dataset: str = DATASET) -> keras.Model:
    """Returns five convolutions and a dense layer."""
    shape = (8, 8, 1) if dataset == "digits" else (28, 28, 1)
    x = image = keras.Input(shape, name="image")
    for index, (filters, strides) in enumerate(((16, 2), (16, 1), (32, 2), (32, 1), (64, 1)), start=1):
        x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x), name="network")


def _fixed(model: keras.Model) -> keras.Model:
    return learn_bitwidths(model, mode="fixed", bits=BITS, activation_bits=ACTIVATION_BITS)


def _budgeted(model: keras.Model) -> keras.Model:
    sizes = _fixed(model).stage(LearnedBitwidthStage)
    return learn_bitwidths(model, BUDGET * sizes.weight_kb(), sizes.activation_kb())


ARMS: Mapping[str, Callable[[keras.Model], keras.Model]] = {
    FLOAT: lambda model: model,
    FIXED: _fixed,
    RANGES: lambda model: learn_bitwidths(model, mode="tqt", bits=BITS, activation_bits=ACTIVATION_BITS),
    LEARNED: _budgeted,
    U1: lambda model: learn_bitwidths(model, parametrization="bits_and_step"),
    U2: lambda model: learn_bitwidths(model, parametrization="bits_and_range"),
    U3: lambda model: learn_bitwidths(model, parametrization="step_and_range"),
}


class BestWithinBudgets(keras.callbacks.Callback):
    """Ends with the weights of the least validation error among the epochs that keep the budgets.

    Args:
        stage: `LearnedBitwidthStage`, or None for a float model.
    """

    def __init__(self, stage: LearnedBitwidthStage | None) -> None:
        super().__init__()
        self.stage = stage
        self.sizes: list[float] = []
        self._accuracy, self._weights = 0.0, None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes down the size, and keeps weights that are better."""
        if self.stage is not None:
            self.sizes.append(self.stage.weight_kb())
        within = self.stage is None or bool(self.stage.within_budgets())
        if within and logs["val_accuracy"] > self._accuracy:
            self._accuracy, self._weights = logs["val_accuracy"], self.model.get_weights()

    def on_train_end(self, logs: Any = None) -> None:
        """Puts the kept weights back."""
        if self._weights is not None:
            self.model.set_weights(self._weights)


def train(model: keras.Model, dataset: str, rate: float, updates: int, seed: int) -> list[float]:
    """Trains a model, and returns its size in KB after every twentieth of the updates."""
    stage = model.stage(LearnedBitwidthStage) if hasattr(model, "stage") else None
    compile_model(model, schedule({rate: updates}))
    data, best = shuffled_images(IMAGES)(model, dataset, seed), BestWithinBudgets(stage)
    steps = max(updates // NUM_MEASUREMENTS, 1)
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=updates // steps,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[RefreshStatistics(data.train), best],
    )
    return best.sizes


def run_arm(arm: str, weights: list[np.ndarray], dataset: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains an arm from float weights; returns its test error, sizes and bits."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = network(dataset)
    model.set_weights(weights)
    model = ARMS[arm](model)
    trace = train(model, dataset, QUANTIZED_RATE, updates, seed)
    return {"error": test_error(model, dataset), "trace": trace, **sizes(model)}


def test_error(model: keras.Model, dataset: str) -> float:
    """Returns the share of the test images whose label is missed."""
    arrays = load_arrays(dataset, "test")
    logits = model.predict(arrays["image"][..., None] / np.float32(255), batch_size=EVALUATION_BATCH, verbose=0)
    return float(np.mean(logits.argmax(axis=1) != arrays["label"]))


def sizes(model: keras.Model) -> dict[str, Any]:
    """Returns the KB of weights and activations, bits by layer, and whether the budgets are kept."""
    stage = model.stage(LearnedBitwidthStage) if hasattr(model, "stage") else None
    if stage is None:
        return {"weight_kb": 16 * _fixed(model).stage(LearnedBitwidthStage).weight_kb(), "within": True}
    return {
        "weight_kb": stage.weight_kb(),
        "activation_kb": stage.activation_kb(),
        "bits": {path: bits for path, bits in stage.weight_bits().items() if path.endswith("kernel")},
        "activation_bits": stage.activation_bit_widths(),
        "within": bool(stage.within_budgets()),
    }


# === Results ===


def reproduce(directory: Path, seeds: int = 3, updates: int = 1000, progress: Progress = lambda message: None) -> None:
    """Runs the toy, trains every arm with every seed, and writes `mixed_precision_dnn.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of every arm, of 64 images each; the first half is the float training that all share.
        progress: callable that takes one line per run.
    """
    progress("The quantisers on normally distributed samples")
    toy = {rate: {arm: descend(arm, rate) for arm in (*TOY_ARMS, PENALIZED)} for rate in TOY_RATES}
    settings = {"dataset": DATASET, "split": "test", "updates": updates, "batch_size": IMAGES}
    ledger = Ledger(directory / "mixed_precision_dnn.runs.json", settings)
    for seed in range(seeds):
        weights = functools.cache(lambda seed=seed: _float_weights(DATASET, updates // 2, seed))
        for arm in ARMS:
            ledger.run(
                arm,
                seed,
                lambda arm=arm, seed=seed, weights=weights: run_arm(arm, weights(), DATASET, updates // 2, seed),
                progress,
            )
    gains = {
        "learned ranges over fixed ones": difference(ledger, RANGES, FIXED, "error"),
        "learned bits over learned ranges": difference(ledger, LEARNED, RANGES, "error"),
        "learned bits over fixed ones": difference(ledger, LEARNED, FIXED, "error"),
        "U3 over U1": difference(ledger, U3, U1, "error"),
        "U3 over U2": difference(ledger, U3, U2, "error"),
        "float over learned bits": difference(ledger, FLOAT, LEARNED, "error"),
    }
    summaries = {f"rate {rate}": {arm: run.summary() for arm, run in runs.items()} for rate, runs in toy.items()}
    write_results(
        "mixed_precision_dnn",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, gains, toy),
        command=f"zoo reproduce mixed_precision_dnn --seeds {seeds} --updates {updates}",
        tables={
            "toy": summaries,
            "error": ledger.summary("error"),
            "weight_kb": ledger.summary("weight_kb"),
            "reduction_of_the_error": gains,
            "seeds_within_budgets": {arm: sum(ledger.values(arm, "within")) for arm in ARMS},
            "bits": {arm: ledger.values(arm, "bits") for arm in (LEARNED, U3)},
            "activation_bits": {arm: ledger.values(arm, "activation_bits") for arm in (LEARNED, U3)},
        },
        figure=_figure(ledger, toy, updates // 2),
        settings={**settings, "seeds": seeds, "toy": {"steps": TOY_STEPS, "samples": TOY_SAMPLES, "start": TOY_START}},
    )


def _float_weights(dataset: str, updates: int, seed: int) -> list[np.ndarray]:
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = network(dataset)
    train(model, dataset, FLOAT_RATE, updates, seed)
    return model.get_weights()


def _verdict(
    ledger: Ledger, gains: Mapping[str, Mapping[str, float]], toy: Mapping[float, Mapping[str, ToyRun]]
) -> str:
    rate = TOY_RATES[0]
    found = {arm: run.summary() for arm, run in toy[rate].items()}
    last = toy[rate][PENALIZED].bits[-LAST:]
    steps = ", ".join(f"{arm} {found[arm]['steps'] or 'never'}" for arm in ("U1", "U2", "U3"))
    errors = ", ".join(
        f"{arm} {spread([100 * e for e in ledger.values(arm, 'error')])} at "
        f"{statistics.fmean(ledger.values(arm, 'weight_kb')):.1f} KB"
        for arm in ARMS
    )
    points = ", ".join(f"{name} {100 * gain['mean']:+.2f} ± {100 * gain['std']:.2f}" for name, gain in gains.items())
    means = [statistics.fmean(ledger.values(arm, "error")) for arm in (FIXED, RANGES, LEARNED)]
    order = "shows" if means[0] > means[1] > means[2] else "does not show"
    within, runs = sum(ledger.values(LEARNED, "within")), len(ledger.values(LEARNED, "within"))
    return (
        f"Toy at learning rate {rate}: steps until the loss is below {CONVERGED}: {steps}; its standard deviation over the "
        f"last {LAST} steps: {found['U1']['std']:.1e}, {found['U2']['std']:.1e}, {found['U3']['std']:.1e}; U3 ends with "
        f"{found['U3']['bits']:.0f} bits, and with a penalty above {MOST_BITS} has {min(last):.0f} to {max(last):.0f} in "
        f"the end. Networks, test error in per cent: {errors}. In the means the paper's order, fixed above "
        f"learned ranges above learned bits, {order}; the budgets are kept in {within} of {runs} runs. Differences in points "
        f"at equal updates: {points}."
    )


# === Figure ===


def _figure(ledger: Ledger, toy: Mapping[float, Mapping[str, ToyRun]], updates: int) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    (losses, bits, layers), (trace, frontier, activations) = figure.subplots(2, 3)
    _show_toy(losses, bits, toy[TOY_RATES[0]])
    _show_bits(layers, ledger, "bits", "Bits of weights, first seed")
    _show_bits(activations, ledger, "activation_bits", "Bits of activations, first seed")
    _show_trace(trace, ledger, updates)
    _show_frontier(frontier, ledger)
    return figure


def _show_toy(losses: Axes, bits: Axes, runs: Mapping[str, ToyRun]) -> None:
    for arm, run in runs.items():
        style = "--" if arm.startswith("P") else ":" if arm == PENALIZED else "-"
        steps = np.arange(1, len(run.losses) + 1)
        losses.plot(steps, run.losses, style, label=arm)
        bits.plot(steps, run.bits, style, label=arm)
    losses.set(title="Toy: half the mean squared error", xlabel="step", xscale="log", yscale="log")
    bits.set(title="Toy: bits", xlabel="step", xscale="log")
    losses.legend(fontsize=8)


def _show_bits(axes: Axes, ledger: Ledger, key: str, title: str) -> None:
    for place, arm in enumerate((LEARNED, U3)):
        widths = ledger.values(arm, key)[0]
        axes.bar(np.arange(len(widths)) + 0.4 * place, list(widths.values()), 0.4, label=arm)
        axes.set_xticks(np.arange(len(widths)) + 0.2, [path.split("/")[0] for path in widths], rotation=45)
    axes.set(title=title)
    axes.legend(fontsize=8)


def _show_trace(axes: Axes, ledger: Ledger, updates: int) -> None:
    for arm in (FIXED, LEARNED, U1, U2, U3):
        trace = ledger.values(arm, "trace")[0]
        axes.plot(np.linspace(updates / len(trace), updates, len(trace)), trace, label=arm)
    budget = BUDGET * ledger.values(FIXED, "weight_kb")[0]
    axes.axhline(budget, color="k", linestyle="--", label="budget")
    axes.set(title="Size of the weights, first seed", xlabel="update", ylabel="KB", ylim=(0, None))
    axes.legend(fontsize=8)


def _show_frontier(axes: Axes, ledger: Ledger) -> None:
    for arm in ARMS:
        kilobytes, errors = ledger.values(arm, "weight_kb"), ledger.values(arm, "error")
        axes.errorbar(
            statistics.fmean(kilobytes),
            100 * statistics.fmean(errors),
            100 * (statistics.stdev(errors) if len(errors) > 1 else 0.0),
            fmt="o",
            label=arm,
        )
    axes.set(title="Test error against size", xlabel="weights, KB", ylabel="per cent", xscale="log")
    axes.legend(fontsize=8)
