"""MINE: how its checkpoint is trained, and three of the paper's experiments.

Gaussian pairs, whose mutual information is known: the three objectives beside the k-nearest-neighbour estimator of Kraskov
et al. Digits with their labels, and with labels of others. A GAN on 25 Gaussians with and without a term that keeps its
code readable from its points, against dropped modes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.catalog import get
from zoo.experiments.gaussian_pairs import gaussian_pairs
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.experiments.training import cosine_adam
from zoo.information.image_pairs import labelled_images
from zoo.information.mine import MINE, VARIANTS, adaptive_clip
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 128


# === Recipe ===


def shuffled_pairs(model: MINE, dataset: str, seed: int) -> TrainingData:
    """Returns shuffled batches of images and labels; the validation pairs are one batch."""
    return _training_data(labelled_images(dataset, "train"), labelled_images(dataset, "validation"), seed)


def _training_data(train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray], seed: int) -> TrainingData:
    return TrainingData(
        tf.data.Dataset.from_tensor_slices(dict(train)).shuffle(len(train["x"]), seed=seed).repeat().batch(BATCH),
        tf.data.Dataset.from_tensors(dict(validation)),
    )


def evaluate(model: MINE, dataset: str, split: str) -> dict[str, float]:
    """Returns the estimate from held-out pairs, in nats."""
    return {"mutual_information": model.estimate(**labelled_images(dataset, split))}


RECIPES = {
    "digits": Recipe(
        method="mine",
        preset="digits",
        dataset="digits",
        epochs=100,
        steps_per_epoch=10,
        data=shuffled_pairs,
        compile=cosine_adam(1e-3),
        evaluate=evaluate,
        monitor="val_loss",
    )
}


# === Experiment ===


CLAIM = (
    "A network trained by gradient ascent on the Donsker-Varadhan bound, its gradient corrected by a moving average, "
    "estimates mutual information where the k-nearest-neighbour estimator fails (paper, section 4.1), and as a term of a "
    "GAN's loss it keeps modes from being dropped (section 5.1)."
)
DIMENSIONS = (2, 20)
CORRELATIONS = (0.0, 0.5, 0.75, 0.9, 0.99)
# The one whose training is drawn.
SHOWN = 0.9
BATCH_SIZES = (32, 256)
HIDDEN = (128, 128)
KSG = "k nearest neighbours"
KSG_PAIRS, KSG_NEIGHBOURS = 3000, 3
EVALUATION_PAIRS = 10_000
# Points of the curve over a training.
POINTS = 25
TRUE_LABELS, OTHER_LABELS = "labels of the images", "labels of other images"
GANS = {"GAN": 0.0, "GAN + MINE": 1.0}


def reproduce(directory: Path, seeds: int = 3, updates: int = 1000, progress: Progress = lambda message: None) -> None:
    """Runs the three experiments and writes `mine.json` and `mine.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Updates of every network on pairs; GANs get six times as many.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": "Gaussian pairs, digits, 25 Gaussians", "updates": updates, "correlations": CORRELATIONS}
    ledger = Ledger(directory / "mine.runs.json", settings)
    for seed in range(seeds):
        for dim in DIMENSIONS:
            ledger.run(label(KSG, dim), seed, lambda dim=dim, seed=seed: run_ksg(dim, seed), progress)
            for size in BATCH_SIZES:
                for variant in VARIANTS:

                    def sweep(variant: str = variant, dim: int = dim, size: int = size, seed: int = seed) -> dict:
                        return run_sweep(variant, dim, size, updates, seed)

                    ledger.run(label(variant, dim, size), seed, sweep, progress)
        for name in (TRUE_LABELS, OTHER_LABELS):
            ledger.run(name, seed, lambda name=name, seed=seed: run_digits(name, updates, seed), progress)
        for name, beta in GANS.items():
            ledger.run(name, seed, lambda beta=beta, seed=seed: run_gan(beta, 6 * updates, seed), progress)
    sweeps = [label(KSG, dim) for dim in DIMENSIONS]
    sweeps += [label(variant, dim, size) for dim in DIMENSIONS for size in BATCH_SIZES for variant in VARIANTS]
    write_results(
        "mine",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce mine --seeds {seeds} --updates {updates}",
        tables={
            "nats_by_correlation": {
                **{f"truth, {dim} dimensions": {str(c): truth(dim, c) for c in CORRELATIONS} for dim in DIMENSIONS},
                **{
                    arm: {
                        str(correlation): _statistics(estimates)
                        for correlation, estimates in zip(
                            CORRELATIONS, zip(*ledger.values(arm, "estimates"), strict=True), strict=True
                        )
                    }
                    for arm in sweeps
                },
            },
            "nats_on_digits": {name: _statistics(ledger.values(name, "nats")) for name in (TRUE_LABELS, OTHER_LABELS)},
            "gan": {
                key: {name: _statistics(ledger.values(name, key)) for name in GANS}
                for key in ("modes", "share_of_good_samples")
            },
        },
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds, "hidden_dims": HIDDEN},
    )


def label(name: str, dim: int, size: int | None = None) -> str:
    """Returns the name of an arm in the ledger."""
    return f"{name}, {dim} dimensions" + ("" if size is None else f", batch {size}")


def _statistics(values: Sequence[Any]) -> dict[str, Any]:
    array = np.array(values, dtype="float64")
    deviation = array.std(axis=0, ddof=1) if len(array) > 1 else np.zeros_like(array[0])
    return {"mean": array.mean(axis=0).tolist(), "std": np.asarray(deviation).tolist()}


# === Gaussian pairs ===


def truth(dim: int, correlation: float) -> float:
    """Returns the mutual information of correlated Gaussian pairs, in nats."""
    return -0.5 * dim * math.log(1 - correlation**2) + 0.0


def run_sweep(variant: str, dim: int, size: int, updates: int, seed: int) -> dict[str, Any]:
    """Trains a network on the pairs of every correlation, from the same start.

    Returns:
        Dict of `"estimates"` from new pairs, by correlation; and, of the training with `SHOWN`, the curves of the `"bound"`
        of the batches and, for `ema`, of the `"log_average"`, by `"updates"`.
    """
    keras.utils.set_random_seed(seed)
    model = MINE(dim, dim, HIDDEN, variant=variant)
    steps = max(updates // POINTS, 1)
    cosine_adam(1e-3, steps_per_execution=steps)(model, steps * POINTS)
    model.optimizer.build(model.trainable_variables)
    # One model, so that its functions are traced once
    variables = [*model.variables, *model.optimizer.variables]
    start = [variable.value.numpy() for variable in variables]
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"estimates": []}
    for correlation in CORRELATIONS:
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        averages = RunningAverages()
        x, z = gaussian_pairs(steps * POINTS * size, dim, correlation, rng)
        data = tf.data.Dataset.from_tensor_slices({"x": x, "z": z})
        # Repeated, as Keras looks for an epoch more; every pair is seen once
        data = data.batch(size, drop_remainder=True).repeat()
        history = model.fit(
            data, epochs=POINTS, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[averages]
        ).history
        found["estimates"].append(model.estimate(*gaussian_pairs(EVALUATION_PAIRS, dim, correlation, rng)))
        if correlation == SHOWN:
            found["bound"] = [-loss for loss in history["loss"]]
            found["updates"] = [steps * (i + 1) for i in range(POINTS)]
            found["log_average"] = averages.values
    return found


class RunningAverages(keras.callbacks.Callback):
    """Records the logarithm of the moving average of `ema` after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Records."""
        if self.model.variant == "ema":
            self.values.append(float(self.model.log_average))


def run_ksg(dim: int, seed: int) -> dict[str, Any]:
    """Returns the estimates of the k-nearest-neighbour estimator, by correlation."""
    rng = np.random.default_rng(seed)
    return {"estimates": [ksg(*gaussian_pairs(KSG_PAIRS, dim, correlation, rng)) for correlation in CORRELATIONS]}


def ksg(x: np.ndarray, z: np.ndarray, neighbours: int = KSG_NEIGHBOURS) -> float:
    """Returns the first estimator of Kraskov, Stögbauer and Grassberger 2004 (equation 8), in nats.

    Args:
        x: float array `(num_pairs, x_dim)`.
        z: float array `(num_pairs, z_dim)`.
        neighbours: int. k.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    joint = np.concatenate([x, z], axis=1)
    distance = cKDTree(joint).query(joint, neighbours + 1, p=np.inf)[0][:, -1]
    # Strictly nearer than the k-th neighbour; a point counts itself, which is the + 1 of the equation.
    radius = np.nextafter(distance, 0)
    counts = [cKDTree(part).query_ball_point(part, radius, p=np.inf, return_length=True) for part in (x, z)]
    return float(digamma(neighbours) + digamma(len(x)) - np.mean(digamma(counts[0]) + digamma(counts[1])))


# === Digits ===


def run_digits(labels: str, updates: int, seed: int) -> dict[str, float]:
    """Trains the preset `digits`; returns the estimate from test pairs with the weights of the best validation."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    pairs = {split: labelled_images("digits", split) for split in ("train", "validation", "test")}
    if labels == OTHER_LABELS:
        pairs = {split: {"x": p["x"], "z": rng.permutation(p["z"])} for split, p in pairs.items()}
    model = get("mine", "digits", weights=None)
    steps = RECIPES["digits"].steps_per_epoch
    epochs = max(updates // steps, 1)
    cosine_adam(1e-3)(model, epochs * steps)
    data = _training_data(pairs["train"], pairs["validation"], seed)
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=epochs, restore_best_weights=True)],
    )
    return {"nats": model.estimate(**pairs["test"])}


# === GAN ===


@dataclasses.dataclass(frozen=True)
class Grid:
    """A mixture of 25 Gaussians on a grid.

    Args:
        side: int. Modes in a row.
        distance: float. Between neighbours.
        deviation: float. Standard deviation of each.
    """

    side: int = 5
    distance: float = 1.0
    deviation: float = 0.05

    @property
    def centres(self) -> np.ndarray:
        """Centres of the modes `(modes, 2)`."""
        line = (np.arange(self.side) - (self.side - 1) / 2) * self.distance
        return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2).astype("float32")

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Returns points `(count, 2)`."""
        chosen = self.centres[rng.integers(self.side**2, size=count)]
        return chosen + np.float32(self.deviation) * rng.standard_normal((count, 2), "float32")

    def coverage(self, points: np.ndarray) -> dict[str, float]:
        """Returns how many modes have a good point, one within three deviations of the centre, and the share of such."""
        distances = np.linalg.norm(points[:, None] - self.centres, axis=-1)
        good = distances.min(axis=1) <= 3 * self.deviation
        modes = np.unique(distances.argmin(axis=1)[good])
        return {"modes": float(len(modes)), "share_of_good_samples": float(good.mean())}


GRID = Grid()
NOISE_DIM, CODE_DIM = 2, 2
GAN_WIDTH, GAN_BATCH, GAN_SAMPLES = 128, 128, 2500


class MineGAN(keras.Model):
    """A GAN whose generator also keeps its code readable from its points: `min_G max_D,T V(D, G) - beta I(G(e, c); c)`.

    The gradient of the information is added as `adaptive_clip` says.

    Args:
        beta: float. Weight of the information; 0 for a plain GAN.

    Reference:
        Belghazi et al. 2018, section 5.1.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.generator = _network(NOISE_DIM + CODE_DIM, 2)
        self.discriminator = _network(2, 1)
        self.statistics = MINE(2, CODE_DIM, (GAN_WIDTH, GAN_WIDTH))
        self.seed_generator = keras.random.SeedGenerator()

    def compile(self, **kwargs: Any) -> None:
        """Makes an optimiser for each network."""
        super().compile(**kwargs)
        self.optimizers = [keras.optimizers.Adam(1e-3, beta_1=0.5) for _ in range(3)]

    def train_step(self, data: Any) -> dict[str, Any]:
        """Updates discriminator, statistics network and generator, each once."""
        noise = keras.random.normal((GAN_BATCH, NOISE_DIM + CODE_DIM), seed=self.seed_generator)
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(noise)
            real_logits, fake_logits = self.discriminator(data), self.discriminator(fake)
            discriminator_loss = ops.mean(ops.softplus(-real_logits) + ops.softplus(fake_logits))
            generator_loss = ops.mean(ops.softplus(-fake_logits))
            # Code and noise are drawn alike; the code is what the statistics network is shown.
            pairs = {"x": fake, "z": noise[:, NOISE_DIM:]}
            information_loss = self.statistics.compute_loss(pairs, y_pred=self.statistics(pairs))
        networks = (self.discriminator, self.statistics, self.generator)
        variables = [network.trainable_variables for network in networks]
        gradients = [
            tape.gradient(loss, part)
            for loss, part in zip((discriminator_loss, information_loss, generator_loss), variables, strict=True)
        ]
        if self.beta:
            added = tape.gradient(information_loss, variables[2])
            gradients[2] = adaptive_clip(gradients[2], [self.beta * gradient for gradient in added])
        for optimizer, own, part in zip(self.optimizers, gradients, variables, strict=True):
            optimizer.apply(own, part)
        return {"discriminator": discriminator_loss, "generator": generator_loss, "information": -information_loss}


def _network(inputs: int, outputs: int) -> keras.Sequential:
    hidden = [keras.layers.Dense(GAN_WIDTH, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.layers.Input((inputs,)), *hidden, keras.layers.Dense(outputs)])


def run_gan(beta: float, updates: int, seed: int) -> dict[str, Any]:
    """Trains a GAN on the 25 Gaussians; returns its coverage and some of its points."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model = MineGAN(beta)
    model.compile(jit_compile=False, steps_per_execution=max(updates // 10, 1))
    data = tf.data.Dataset.from_tensor_slices(GRID.sample(updates * GAN_BATCH, rng)).batch(GAN_BATCH)
    model.fit(data, shuffle=False, verbose=0)
    noise = rng.standard_normal((GAN_SAMPLES, NOISE_DIM + CODE_DIM), "float32")
    points = np.asarray(model.generator(noise))
    return {**GRID.coverage(points), "points": np.round(points[:1000], 3).tolist()}


# === Verdict ===


def _verdict(ledger: Ledger) -> str:
    small, large = DIMENSIONS
    index = CORRELATIONS.index(SHOWN)

    def at(arm: str) -> list[float]:
        return [values[index] for values in ledger.values(arm, "estimates")]

    by_variant = {
        size: {variant: spread(at(label(variant, small, size))) for variant in VARIANTS} for size in BATCH_SIZES
    }
    shown = "; ".join(
        f"batch {size}: " + ", ".join(f"{variant} {value}" for variant, value in row.items())
        for size, row in by_variant.items()
    )
    goal = truth(large, SHOWN)
    errors = {
        "MINE": abs(statistics.fmean(at(label("ema", large, BATCH_SIZES[-1]))) - goal),
        KSG: abs(statistics.fmean(at(label(KSG, large))) - goal),
    }
    nearer = "is nearer than" if errors["MINE"] < errors[KSG] else "is no nearer than"
    modes = {name: ledger.values(name, "modes") for name in GANS}
    gain = [b - a for a, b in zip(modes["GAN"], modes["GAN + MINE"], strict=True)]
    helps = "covers more modes in every seed" if min(gain) > 0 else "does not cover more modes in every seed"
    digits = {name: spread(ledger.values(name, "nats")) for name in (TRUE_LABELS, OTHER_LABELS)}
    shares = {name: spread(ledger.values(name, "share_of_good_samples")) for name in GANS}
    return (
        f"In {small} dimensions at correlation {SHOWN} (truth {truth(small, SHOWN):.3f} nats) held-out estimates are "
        f"{shown}. In {large} dimensions (truth {goal:.1f}) MINE {nearer} k nearest neighbours: off by "
        f"{errors['MINE']:.1f} and {errors[KSG]:.1f}. I(image; label) of digits is {digits[TRUE_LABELS]} nats (at most "
        f"2.303), with labels of other images {digits[OTHER_LABELS]}. On 25 Gaussians the GAN with MINE {helps}: "
        f"{spread(modes['GAN + MINE'])} against {spread(modes['GAN'])}, with a share of {shares['GAN + MINE']} against "
        f"{shares['GAN']} of points near a mode."
    )


# === Figure ===

COLORS = {"ema": "tab:blue", "dv": "tab:orange", "fdiv": "tab:green"}


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    for axes, dim in zip(upper, DIMENSIONS, strict=False):
        _show_sweep(axes, ledger, dim)
    _show_course(upper[2], ledger)
    _show_digits(lower[0], ledger)
    for axes, name in zip(lower[1:], GANS, strict=True):
        points = np.array(ledger.values(name, "points")[0])
        axes.plot(*GRID.centres.T, "o", color="lightgrey", markersize=12)
        axes.plot(*points.T, ".", markersize=2, color="tab:blue")
        modes = ledger.values(name, "modes")
        axes.set(title=f"{name}: {spread(modes)} of 25 modes", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
        axes.set(xlabel="first coordinate", ylabel="second coordinate")
    return figure


def _show_sweep(axes: Axes, ledger: Ledger, dim: int) -> None:
    goals = [truth(dim, correlation) for correlation in CORRELATIONS]
    axes.plot(goals, goals, "k-", linewidth=1, label="truth")
    for size, style in zip(BATCH_SIZES, (":", "-"), strict=True):
        for variant in VARIANTS:
            row = _statistics(ledger.values(label(variant, dim, size), "estimates"))
            axes.errorbar(
                goals, row["mean"], row["std"], linestyle=style, marker=".", color=COLORS[variant],
                label=f"{variant}, batch {size}",
            )  # fmt: skip
    row = _statistics(ledger.values(label(KSG, dim), "estimates"))
    axes.errorbar(goals, row["mean"], row["std"], linestyle="--", marker="x", color="tab:red", label=KSG)
    # Of fdiv, whose value is an exponential, some lie far below.
    axes.set(
        title=f"Gaussian pairs, {dim} dimensions",
        xlabel="true mutual information, nats",
        ylabel="estimate, nats",
        ylim=(-0.1 * goals[-1], 1.1 * goals[-1]),
    )
    axes.legend(fontsize=8)


def _show_course(axes: Axes, ledger: Ledger) -> None:
    dim = DIMENSIONS[0]
    axes.axhline(truth(dim, SHOWN), color="k", linewidth=1, label="truth")
    for size, style in zip(BATCH_SIZES, (":", "-"), strict=True):
        run = ledger.content["runs"][label("ema", dim, size)]["0"]
        axes.plot(run["updates"], run["bound"], style, color=COLORS["ema"], label=f"bound of batches of {size}")
        axes.plot(run["updates"], run["log_average"], style, color="tab:grey", label="log of the moving average")
    axes.set(title=f"Training, ema, {dim} dimensions, correlation {SHOWN}", xlabel="update", ylabel="nats")
    axes.legend(fontsize=8)


def _show_digits(axes: Axes, ledger: Ledger) -> None:
    for place, name in enumerate((TRUE_LABELS, OTHER_LABELS)):
        values = ledger.values(name, "nats")
        axes.bar(place, statistics.fmean(values), color="tab:blue", alpha=0.6)
        axes.plot([place] * len(values), values, "k.")
    axes.axhline(math.log(10), color="k", linewidth=1)
    axes.text(1.4, math.log(10), "log 10", ha="right", va="bottom")
    axes.set(title="I(image; label) of test digits", ylabel="estimate, nats", xticks=(0, 1))
    axes.set_xticklabels((TRUE_LABELS, OTHER_LABELS))
