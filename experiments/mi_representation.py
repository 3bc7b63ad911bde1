"""Multi-view InfoMax: how its checkpoints are trained, and the paper's six experiments, on halves of 8 x 8 digits.

Upper and lower halves of 1,257 training images, 32 pixels each; accuracies are of a linear classifier on codes of upper
halves of 360 test images. Encoders that are invertible have the mutual information of the pixels at every step; others
come with the bound that they reach on training and on held-out pairs, of as many candidates as a batch has.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo.datasets import load_arrays
from zoo.experiments.report import Ledger, Progress, mean_and_std, shows, spread, write_results
from zoo.experiments.training import cosine_adam
from zoo.information.image_pairs import batches
from zoo.information.info_nce import InfoNCE
from zoo.information.mi_representation import (
    ESTIMATORS,
    EVALUATION_CANDIDATES,
    MultiViewInfoMax,
    RealNVPEncoder,
    halves,
    linear_accuracy,
    log_condition_numbers,
)
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# === Recipes ===


def shuffled_halves(batch_size: int) -> Callable[[MultiViewInfoMax, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of the two halves of images."""

    def data(model: MultiViewInfoMax, dataset: str, seed: int) -> TrainingData:
        validation = tf.data.Dataset.from_tensor_slices(halves(dataset, "validation"))
        return TrainingData(
            endless_batches(halves(dataset, "train"), batch_size, seed),
            validation.batch(EVALUATION_CANDIDATES, drop_remainder=True),
        )

    return data


def endless_batches(arrays: Any, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns shuffled batches of arrays, passes over them without end."""
    slices = tf.data.Dataset.from_tensor_slices(arrays)
    return slices.shuffle(len(slices), seed=seed).repeat().batch(batch_size, drop_remainder=True)


def adam(learning_rate: float) -> keras.optimizers.Optimizer:
    """Returns the paper's optimiser; encoders that begin as the identity have gradients as small as Keras's epsilon."""
    return keras.optimizers.Adam(learning_rate, epsilon=1e-8)


def compile_as_paper(model: MultiViewInfoMax, num_updates: int) -> None:
    """Compiles a model with Adam of a constant learning rate, whatever the number of updates."""
    model.compile(optimizer=adam(1e-4), jit_compile=False)


def evaluate(model: MultiViewInfoMax, dataset: str, split: str) -> dict[str, float]:
    """Returns the accuracy of a linear classifier on codes, and the bound on held-out pairs of 60 candidates, in nats."""
    return {
        "accuracy": linear_accuracy(model.encoders[0], dataset, split, model.input_noise),
        f"{model.estimator}_at_{EVALUATION_CANDIDATES}": mean_bound(model, dataset, split, EVALUATION_CANDIDATES),
    }


def mean_bound(
    model: MultiViewInfoMax, dataset: str, split: str, num_candidates: int, most_batches: int | None = None
) -> float:
    """Returns the bound in nats, averaged over batches of a split, the first ones or all."""
    parts = itertools.islice(batches(halves(dataset, split), num_candidates), most_batches)
    return float(np.mean([model.bound(model(part)) for part in parts]))


def _digits(preset: str, epochs: int) -> Recipe:
    return Recipe(
        method="mi_representation",
        preset=preset,
        dataset="digits",
        epochs=epochs,
        steps_per_epoch=10,
        data=shuffled_halves(120),
        compile=cosine_adam(5e-4),
        evaluate=evaluate,
        monitor="val_loss",
    )


def _mnist(preset: str) -> Recipe:
    """Returns the paper's training: 21,000 updates of 128 images."""
    return Recipe(
        method="mi_representation",
        preset=preset,
        dataset="mnist",
        evaluation_dataset="mnist_sample",
        epochs=21,
        steps_per_epoch=1000,
        data=shuffled_halves(128),
        compile=compile_as_paper,
        evaluate=evaluate,
        monitor="val_loss",
    )


RECIPES = {
    "digits": _digits("digits", epochs=100),
    "digits_real_nvp": _digits("digits_real_nvp", epochs=100),
    **{
        f"mnist_{name}": _mnist(f"mnist_{name}")
        for name in ("real_nvp", "mlp_skip", "mlp", "mlp_separable", "mlp_mlp", "convnet")
    },
}


# === Experiments ===


CLAIM = (
    "Downstream accuracy does not follow mutual information: it changes, either way, under invertible encoders, which have "
    "all of it at any weights; critics that give higher bounds need not give better codes; at equal bounds the encoder's "
    "architecture decides; and neither bound holds where the pairs of a batch depend on each other (paper, sections 3 and 4)."
)
# Evaluations during a training, beside the one before it.
NUM_POINTS = 5
# Of training images, which bounds are taken of: as many as of test images in digits.
TRAINING_BATCHES = 3
PERCENTILES = (0, 20, 40, 60, 80, 100)
NOISE = 0.05
CRITICS = ("bilinear", "separable", "mlp")
TARGETS = (2.0, 4.0)
JACOBIANS = 120


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the experiments.

    Args:
        dataset: str.
        view_shape: pair of int.
        batch_size: int. Also the number of candidates of all bounds on images.
        learning_rate: float.
        updates: int. Of every training for a bound.
        num_couplings: int. Of invertible encoders.
        coupling_dim: int. Hidden units of their networks.
        filters: int. Of the convolutional encoder.
        adversarial_updates: int. Of the encoder against the classifier.
        adversarial_learning_rate: float. Of that encoder.
        classifier_steps: int. Of the classifier, for one of the encoder.
        warmup_steps: int. Of the classifier, before.
        gaussian_updates: int. Of critics of dependent pairs.
        gaussian_batch_size: int.
        gaussian_learning_rate: float.
    """

    dataset: str
    view_shape: tuple[int, int]
    batch_size: int
    learning_rate: float
    updates: int
    num_couplings: int
    coupling_dim: int
    filters: int
    adversarial_updates: int
    adversarial_learning_rate: float
    classifier_steps: int
    warmup_steps: int
    gaussian_updates: int
    gaussian_batch_size: int
    gaussian_learning_rate: float

    def for_updates(self, updates: int) -> Scale:
        """Returns a scale whose trainings are all longer or shorter by one factor."""
        factor = updates / self.updates
        names = ("updates", "adversarial_updates", "warmup_steps", "gaussian_updates")
        changes = {name: max(round(getattr(self, name) * factor), NUM_POINTS) for name in names}
        return dataclasses.replace(self, **changes)


# Batches of 120: the test images make three of them.
DIGITS = Scale("digits", (4, 8), 120, 5e-4, 1000, 6, 64, 32, 600, 1e-4, 5, 300, 3000, 64, 5e-4)
# The paper's sizes: hours on two cores.
MNIST = Scale("mnist", (14, 28), 128, 1e-4, 21_000, 30, 512, 64, 4000, 1e-5, 10, 1000, 20_000, 128, 1e-4)


def invertible_encoder(scale: Scale, seed: int, estimator: str) -> dict[str, Any]:
    """First experiment: an encoder with all of the information at any weights, trained for a bound on it.

    Returns:
        What `train_for_bound` does, and `inverse_error`, the largest difference of a test view and that of its code.
    """
    model, found = train_for_bound(
        scale, seed, encoder="real_nvp", num_couplings=scale.num_couplings, hidden_dim=scale.coupling_dim,
        estimator=estimator,
    )  # fmt: skip
    return {**found, "inverse_error": inverse_error(model.encoders[0], scale.dataset)}


def adversarial_encoder(scale: Scale, seed: int) -> dict[str, Any]:
    """Second experiment: an encoder with all of the information, trained so that a linear classifier finds none of it.

    Returns:
        Dict of the lists `steps` (of the encoder) and `accuracy`, and `inverse_error`.
    """
    keras.utils.set_random_seed(seed)
    encoder = MultiViewInfoMax(
        scale.view_shape, "real_nvp", num_couplings=scale.num_couplings, hidden_dim=scale.coupling_dim,
        coupling="affine", permutation_seed=2 * seed,
    ).encoders[0]  # fmt: skip
    labels = load_arrays(scale.dataset, "train")["label"]
    model = AdversarialEncoder(encoder, int(labels.max()) + 1, scale.warmup_steps, scale.classifier_steps)
    rounds = max(scale.adversarial_updates // NUM_POINTS, 1)
    model.compile(adam(scale.adversarial_learning_rate), adam(1e-3))
    data = endless_batches((halves(scale.dataset, "train")["view1"], labels), scale.batch_size, seed)
    model.fit(data, steps_per_epoch=scale.warmup_steps, shuffle=False, verbose=0)
    trace = Trace(lambda: {"accuracy": linear_accuracy(encoder, scale.dataset, "test")}, rounds)
    model.fit(
        data, epochs=NUM_POINTS, steps_per_epoch=rounds * (scale.classifier_steps + 1), shuffle=False, verbose=0,
        callbacks=[trace],
    )  # fmt: skip
    return {**trace.found, "inverse_error": inverse_error(encoder, scale.dataset)}


def hard_to_invert(scale: Scale, seed: int, estimator: str) -> dict[str, Any]:
    """Third experiment: a network that begins as the identity, trained for a bound on noisy views.

    Returns:
        What `train_for_bound` does, and `log_condition`, percentiles of the log-condition numbers of its Jacobians.
    """
    views = halves(scale.dataset, "train")["view1"][:JACOBIANS]
    noise = np.random.default_rng(seed).standard_normal(views.shape, "float32")

    def conditions(model: MultiViewInfoMax) -> dict[str, Any]:
        numbers = log_condition_numbers(model.encoders[0], views + np.float32(NOISE) * noise)
        return {"log_condition": np.percentile(numbers, PERCENTILES).tolist()}

    _, found = train_for_bound(
        scale, seed, conditions, encoder="mlp_skip", num_hidden_layers=4, estimator=estimator, input_noise=NOISE
    )
    return found


def critic_capacity(scale: Scale, seed: int, critic: str, estimator: str) -> dict[str, Any]:
    """Fourth experiment: the same encoders, trained with critics of different capacity."""
    hidden = (200,) if critic == "mlp" else (100,)
    _, found = train_for_bound(
        scale, seed, encoder="mlp", code_dim=100, critic=critic, critic_hidden_dims=hidden, estimator=estimator
    )
    return found


def encoder_architecture(scale: Scale, seed: int, encoder: str, estimator: str, target: float) -> dict[str, Any]:
    """Fifth experiment: encoders of different architecture, trained for the same value of a bound."""
    hidden = scale.filters if encoder == "convnet" else 300
    _, found = train_for_bound(
        scale, seed, encoder=encoder, code_dim=100, hidden_dim=hidden, estimator=estimator, target_bound=target
    )
    return found


def dependent_pairs(scale: Scale, seed: int, estimator: str, dependent: bool) -> dict[str, Any]:
    """Sixth experiment: bounds from batches whose pairs share a draw, beside those of independent pairs.

    Returns:
        Dict of `curve`, averages of the bound over the training, and of `mean` and `standard_error` over 500 new batches.
    """
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    size, points = scale.gaussian_batch_size, 4 * NUM_POINTS
    steps = max(scale.gaussian_updates // points, 1)
    model = ScalarEstimator(estimator)
    model.compile(optimizer=adam(scale.gaussian_learning_rate), jit_compile=False, steps_per_execution=steps)
    data = tf.data.Dataset.from_tensor_slices(scalar_pairs(points * steps, size, dependent, rng)).batch(size)
    # Without a `repeat` an epoch would begin again at the first batch.
    history = model.fit(data.repeat(), epochs=points, steps_per_epoch=steps, shuffle=False, verbose=0)
    score = tf.function(lambda x, context: model.bound(model({"x": x, "context": context})))
    values = [float(score(**batch)) for batch in batches(scalar_pairs(500, size, dependent, rng), size)]
    return {
        "curve": [-loss for loss in history.history["loss"]],
        "mean": statistics.fmean(values),
        "standard_error": statistics.stdev(values) / math.sqrt(len(values)),
    }


# === Parts of them ===


def train_for_bound(
    scale: Scale,
    seed: int,
    more: Callable[[MultiViewInfoMax], dict[str, Any]] = lambda model: {},
    **arguments: Any,
) -> tuple[MultiViewInfoMax, dict[str, Any]]:
    """Trains a model and evaluates it before, and five times until the end.

    Args:
        scale: `Scale`.
        seed: int.
        more: callable of the model: further measures of each evaluation.
        **arguments: of `MultiViewInfoMax`.

    Returns:
        The model, and a dict of lists: `steps`, `accuracy`, `train_bound` and `test_bound`.
    """
    keras.utils.set_random_seed(seed)
    model = MultiViewInfoMax(scale.view_shape, permutation_seed=2 * seed, **arguments)
    steps = max(scale.updates // NUM_POINTS, 1)
    model.compile(optimizer=adam(scale.learning_rate), jit_compile=False, steps_per_execution=steps)

    def measure() -> dict[str, Any]:
        return {
            "accuracy": linear_accuracy(model.encoders[0], scale.dataset, "test", model.input_noise),
            "train_bound": mean_bound(model, scale.dataset, "train", scale.batch_size, TRAINING_BATCHES),
            "test_bound": mean_bound(model, scale.dataset, "test", scale.batch_size),
            **more(model),
        }

    trace = Trace(measure, steps)
    data = endless_batches(halves(scale.dataset, "train"), scale.batch_size, seed)
    model.fit(data, epochs=NUM_POINTS, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[trace])
    return model, trace.found


class Trace(keras.callbacks.Callback):
    """Measures something before a training and after each of its epochs, in `found`.

    Args:
        measure: callable without arguments to a dict.
        steps_per_epoch: int. Counted in `found["steps"]`.
    """

    def __init__(self, measure: Callable[[], dict[str, Any]], steps_per_epoch: int) -> None:
        super().__init__()
        self.measure = measure
        self.steps_per_epoch = steps_per_epoch
        self.found: dict[str, list] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Measures before the first step."""
        self._record(0)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Measures after an epoch."""
        self._record((epoch + 1) * self.steps_per_epoch)

    def _record(self, steps: int) -> None:
        for name, value in {"steps": steps, **self.measure()}.items():
            self.found.setdefault(name, []).append(value)


class AdversarialEncoder(keras.Model):
    """An encoder, and the linear classifier that it is trained against, in turns.

    The classifier has the first steps, then so many for each step of the encoder, which makes predictions uniform. `fit`
    takes views and labels, and reports the mean losses of both.

    Args:
        encoder: built layer.
        num_classes: int.
        warmup_steps: int. Steps of the classifier before the encoder has any.
        classifier_steps: int. Steps of the classifier before each of the encoder's.
    """

    def __init__(self, encoder: keras.layers.Layer, num_classes: int, warmup_steps: int, classifier_steps: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_classes = num_classes
        self.warmup_steps = warmup_steps
        self.classifier_steps = classifier_steps
        self.classifier = keras.layers.Dense(num_classes)
        self.steps = self.add_weight(name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.encoder_loss = keras.metrics.Mean(name="encoder_loss")
        self.classifier_loss = keras.metrics.Mean(name="classifier_loss")

    def compile(self, optimizer: Any, classifier_optimizer: Any) -> None:
        """Takes the optimisers of both."""
        super().compile(optimizer=optimizer, loss=None, jit_compile=False)
        self.classifier_optimizer = classifier_optimizer

    def call(self, view: Any, training: bool | None = None) -> Any:
        """Returns the classifier's logits."""
        return self.classifier(self.encoder(view))

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of the one whose turn it is."""
        view, label = data
        if not self.classifier_optimizer.built:
            # Inside of a condition no variables can be made.
            self.classifier.build((None, view.shape[-1]))
            self.classifier_optimizer.build(self.classifier.trainable_variables)
            self.optimizer.build(self.encoder.trainable_variables)
        turns = self.steps.value - self.warmup_steps
        encoder_turn = (turns >= 0) & (turns % (self.classifier_steps + 1) == self.classifier_steps)
        uniform = tf.fill((tf.shape(view)[0], self.num_classes), 1.0 / self.num_classes)
        classes = tf.one_hot(label, self.num_classes)
        tf.cond(
            encoder_turn,
            lambda: self._update(view, uniform, self.encoder, self.optimizer, self.encoder_loss),
            lambda: self._update(view, classes, self.classifier, self.classifier_optimizer, self.classifier_loss),
        )
        self.steps.assign_add(1)
        return {metric.name: metric.result() for metric in (self.encoder_loss, self.classifier_loss)}

    def _update(self, view: Any, wanted: Any, part: Any, optimizer: Any, metric: keras.metrics.Metric) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.softmax_cross_entropy_with_logits(wanted, self(view, training=True))
            loss = tf.reduce_mean(losses)
        weights = part.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        metric.update_state(loss)


def inverse_error(encoder: RealNVPEncoder, dataset: str) -> float:
    """Returns the largest difference of a test view from the view that its code gives, at double precision.

    At single precision, small scales of affine couplings magnify rounding, which says nothing of the map.
    """
    views = halves(dataset, "test")["view1"].astype("float64")
    exact = RealNVPEncoder.from_config({**encoder.get_config(), "dtype": "float64"})
    exact.build(views.shape)
    exact.set_weights(encoder.get_weights())
    return float(np.abs(exact.inverse(exact(views)) - views).max())


# Covariances of what a batch shares, and of what each pair has of its own (paper, section 4).
SHARED = np.array([[1.0, -0.5], [-0.5, 1.0]])
OWN = np.array([[1.0, 0.9], [0.9, 1.0]])


def scalar_information() -> float:
    """Returns the mutual information of the numbers of a pair, in nats: that of their marginal distribution."""
    covariance = SHARED + OWN
    correlation = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    return -0.5 * math.log(1 - correlation**2)


def scalar_pairs(num_batches: int, batch_size: int, dependent: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns batches of correlated numbers, which share a draw or have one each: (X_i, Y_i) = Z + e_i.

    Args:
        num_batches: int.
        batch_size: int.
        dependent: bool. Whether all pairs of a batch have the same Z.
        rng: NumPy generator.

    Returns:
        Dict of float32 arrays `"context"` and `"x"` `(num_batches * batch_size, 1)`; every pair is of the same distribution
        whether or not they depend on each other.
    """
    draws = 1 if dependent else batch_size
    shared = rng.multivariate_normal(np.zeros(2), SHARED, (num_batches, draws))
    pairs = shared + rng.multivariate_normal(np.zeros(2), OWN, (num_batches, batch_size))
    context, x = np.split(pairs.reshape(-1, 2).astype("float32"), 2, axis=1)
    return {"context": context, "x": x}


class ScalarEstimator(InfoNCE):
    """An estimator for pairs of numbers, with the paper's critic: five hidden layers of 10 units on both.

    Args:
        estimator: str. `"nce"` or `"nwj"`.
    """

    def __init__(self, estimator: str) -> None:
        super().__init__(1, 1, "mlp", (10,) * 5)
        # The bound of the same name; its encoders are not used.
        self.bound = MultiViewInfoMax((1, 2), critic="inner", estimator=estimator).bound


# === Arms ===


Run = Callable[..., dict[str, Any]]
INVERTIBLE: Mapping[str, Run] = {
    f"invertible, {name}": functools.partial(invertible_encoder, estimator=name) for name in ESTIMATORS
}
ADVERSARIAL = "invertible, adversarial"
SKIP: Mapping[str, Run] = {
    f"skip connections, {name}": functools.partial(hard_to_invert, estimator=name) for name in ESTIMATORS
}
CAPACITY: Mapping[str, Run] = {
    f"{critic} critic, {name}": functools.partial(critic_capacity, critic=critic, estimator=name)
    for critic in CRITICS
    for name in ESTIMATORS
}
ARCHITECTURE: Mapping[str, Run] = {
    f"{encoder}, {name} of {target:g}": functools.partial(
        encoder_architecture, encoder=encoder, estimator=name, target=target
    )
    for target in TARGETS
    for name in ESTIMATORS
    for encoder in ("convnet", "mlp")
}
GAUSSIAN: Mapping[str, Run] = {
    f"{kind} pairs, {name}": functools.partial(dependent_pairs, estimator=name, dependent=kind == "dependent")
    for kind in ("dependent", "independent")
    for name in ESTIMATORS
}
# Encoders of images that maximise a bound: what arms are compared by.
MAXIMISED: Mapping[str, Run] = {**INVERTIBLE, **SKIP, **CAPACITY}
ARMS: Mapping[str, Run] = {
    **INVERTIBLE, ADVERSARIAL: adversarial_encoder, **SKIP, **CAPACITY, **ARCHITECTURE, **GAUSSIAN,
}  # fmt: skip


# === Reproduction ===


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = DIGITS.updates,
    invertible_seeds: int = 10,
    scale: Scale = DIGITS,
    progress: Progress = lambda message: None,
) -> None:
    """Runs all six experiments and writes `mi_representation.json` and `mi_representation.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Of every training for a bound; the other trainings keep their proportion to it.
        invertible_seeds: int. Runs of the arms with invertible encoders, whose effects are small.
        scale: `Scale`. `MNIST` for the paper's sizes.
        progress: callable that takes one line per run.
    """
    scale = scale.for_updates(updates)
    ledger = Ledger(directory / "mi_representation.runs.json", dataclasses.asdict(scale))
    for arm, run in ARMS.items():
        for seed in range(invertible_seeds if arm in INVERTIBLE or arm == ADVERSARIAL else seeds):
            ledger.run(arm, seed, functools.partial(run, scale, seed), progress)
    pixels = linear_accuracy(lambda view: view, scale.dataset, "test")
    write_results(
        "mi_representation",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, pixels),
        command=f"zoo reproduce mi_representation --seeds {seeds} --updates {updates}",
        tables={
            "accuracy_of_pixels": pixels,
            "after_training": {arm: _final(ledger, arm) for arm in ARMS if arm not in GAUSSIAN},
            "by_step": {arm: _by_step(ledger, arm) for arm in (*INVERTIBLE, ADVERSARIAL, *SKIP)},
            "dependent_and_independent_pairs": {
                "true_nats": scalar_information(),
                **{arm: mean_and_std(ledger.values(arm, "mean")) for arm in GAUSSIAN},
            },
        },
        figure=_figure(ledger, pixels, scale),
        settings={**dataclasses.asdict(scale), "seeds": seeds, "invertible_seeds": invertible_seeds, "split": "test"},
    )


# === Tables and verdict ===


def _last(ledger: Ledger, arm: str, key: str) -> list[float]:
    return [values[-1] for values in ledger.values(arm, key)]


def _final(ledger: Ledger, arm: str) -> dict[str, dict[str, float]]:
    keys = [key for key in ("accuracy", "train_bound", "test_bound") if key in ledger.content["runs"][arm]["0"]]
    return {key: mean_and_std(_last(ledger, arm, key)) for key in keys}


def _by_step(ledger: Ledger, arm: str) -> dict[str, list]:
    """Returns lists by step, averaged over seeds."""
    run = ledger.content["runs"][arm]["0"]
    return {key: np.mean(ledger.values(arm, key), axis=0).tolist() for key in run if isinstance(run[key], list)}


def opposed_pairs(ledger: Ledger, chosen: Iterable[str]) -> tuple[list[tuple[str, str]], int]:
    """Compares arms pair by pair, where every run of one is above every run of the other, in bound and in accuracy.

    Returns:
        Pairs of arms (higher held-out bound, higher accuracy) that differ, and the number of pairs that can be compared.
    """
    found = {arm: [_last(ledger, arm, key) for key in ("test_bound", "accuracy")] for arm in chosen}
    opposed, comparable = [], 0
    for first in found:
        for second in found:
            if min(found[first][0]) > max(found[second][0]):
                better = min(found[first][1]) > max(found[second][1])
                worse = max(found[first][1]) < min(found[second][1])
                comparable += better or worse
                if worse:
                    opposed.append((first, second))
    return opposed, comparable


def _verdict(ledger: Ledger, pixels: float) -> str:
    opposed, comparable = opposed_pairs(ledger, MAXIMISED)
    starts, falls = ([run[place] for run in ledger.values(ADVERSARIAL, "accuracy")] for place in (0, -1))
    moved = max(falls) < pixels
    differ, compared = _different_architectures(ledger)
    # The first is exact, as no information was lost; the others compare bounds, which are what can be measured.
    parts = {
        "an invertible encoder can lose accuracy": moved,
        "a higher bound can go with a lower accuracy": bool(opposed),
        f"architectures differ at equal bounds (clearly in {differ} of {compared})": 2 * differ > compared,
        "bounds fail for pairs that depend on each other": _dependent_exceed(ledger),
    }
    return " ".join(
        (
            shows(parts),
            _invertible_verdict(ledger),
            f"Trained against a linear classifier, an invertible encoder goes from {spread(starts)} to {spread(falls)}, "
            f"{'in every seed' if moved else 'but not in every seed'} below the {pixels:.3f} of pixels; its inverse is exact "
            f"to {max(ledger.values(ADVERSARIAL, 'inverse_error')):.0e}.",
            _condition_verdict(ledger),
            f"Of {comparable} pairs of arms that maximise a bound and differ clearly both in the held-out bound and in "
            f"accuracy, {len(opposed)} are ordered the other way round by accuracy.",
            _capacity_verdict(ledger),
            _architecture_verdict(ledger),
            _gaussian_verdict(ledger),
        )
    )


def _invertible_verdict(ledger: Ledger) -> str:
    parts = []
    for arm in INVERTIBLE:
        gains = [values[-1] - values[0] for values in ledger.values(arm, "accuracy")]
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        mean = statistics.fmean(gains)
        changed = "more than two standard errors" if abs(mean) > 2 * error else "within two standard errors"
        parts.append(f"{mean:+.4f} with {arm.split(', ')[1]} ({changed})")
    return (
        "While they are trained for a bound, the accuracy of invertible encoders, whose mutual information cannot change, "
        f"moves by {' and by '.join(parts)}."
    )


def _condition_verdict(ledger: Ledger) -> str:
    middle = PERCENTILES.index(60)
    first, last = (
        np.mean([[run[place][middle] for run in ledger.values(arm, "log_condition")] for arm in SKIP])
        for place in (0, -1)
    )
    grows = "become harder to invert" if last > first else "do not become harder to invert"
    return (
        f"Networks that begin as the identity {grows}: the 60th percentile of log-condition goes from {first:.2f} to "
        f"{last:.2f}."
    )


def _capacity_verdict(ledger: Ledger) -> str:
    parts, keys = [], ("train_bound", "test_bound", "accuracy")
    for name in ESTIMATORS:
        means = {
            critic: [statistics.fmean(_last(ledger, f"{critic} critic, {name}", key)) for key in keys]
            for critic in CRITICS
        }
        rows = (f"{critic} {values[0]:.2f} / {values[1]:.2f} nats, {values[2]:.3f}" for critic, values in means.items())
        parts.append(f"{name}: {', '.join(rows)}")
    return f"Critics (training / held-out bound, accuracy): {'; '.join(parts)}."


def _architecture_verdict(ledger: Ledger) -> str:
    parts = []
    for target in TARGETS:
        for name in ESTIMATORS:
            conv, mlp = (
                [_last(ledger, f"{encoder}, {name} of {target:g}", key) for key in ("train_bound", "accuracy")]
                for encoder in ("convnet", "mlp")
            )
            parts.append(
                f"{name} of {target:g}, {spread(conv[1])} against {spread(mlp[1])} (bounds of training images "
                f"{statistics.fmean(conv[0]):.2f} and {statistics.fmean(mlp[0]):.2f})"
            )
    return f"Convolutions against MLP, trained for the same bound: {'; '.join(parts)}."


def _different_architectures(ledger: Ledger) -> tuple[int, int]:
    """Returns for how many bounds every run of one architecture is better than those of the other, and of how many."""
    differ = []
    for target in TARGETS:
        for name in ESTIMATORS:
            conv, mlp = (
                _last(ledger, f"{encoder}, {name} of {target:g}", "accuracy") for encoder in ("convnet", "mlp")
            )
            differ.append(min(conv) > max(mlp) or max(conv) < min(mlp))
    return sum(differ), len(differ)


def _dependent_exceed(ledger: Ledger) -> bool:
    dependent = [arm for arm in GAUSSIAN if arm.startswith("dependent")]
    return all(min(ledger.values(arm, "mean")) > scalar_information() for arm in dependent)


def _gaussian_verdict(ledger: Ledger) -> str:
    truth = scalar_information()
    means = {arm: ledger.values(arm, "mean") for arm in GAUSSIAN}
    above = _dependent_exceed(ledger)
    below = all(statistics.fmean(means[arm]) <= truth for arm in GAUSSIAN if arm.startswith("independent"))
    rows = ", ".join(f"{arm} {statistics.fmean(values):.3f}" for arm, values in means.items())
    return (
        f"Of {truth:.4f} nats, estimates {'exceed' if above else 'do not all exceed'} the truth where the pairs of a batch "
        f"depend on each other, and {'stay' if below else 'do not all stay'} below it where they do not: {rows}."
    )


# === Figure ===


COLORS = dict(zip(ESTIMATORS, ("tab:blue", "tab:orange"), strict=True))
# Bounds of NWJ on held-out pairs can fall far below zero; they are drawn at the edge.
LOWEST_SHOWN = -0.5


def _figure(ledger: Ledger, pixels: float, scale: Scale) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    _show_bounds(upper[0], ledger, scale)
    _show_accuracies(upper[1], ledger, pixels)
    _show_adversarial(upper[2], ledger, pixels)
    _show_conditions(lower[0], ledger)
    _show_scatter(lower[1], ledger, pixels)
    _show_gaussian(lower[2], ledger, scale)
    for axes in (*upper, *lower):
        axes.grid(alpha=0.3)
    return figure


def _band(axes: Axes, steps: Sequence[int], runs: Any, color: str, label: str, style: str = "-") -> None:
    runs = np.array(runs)
    deviation = runs.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(runs.shape[1])
    mean = runs.mean(axis=0)
    axes.plot(steps, mean, style, color=color, marker=".", label=label)
    axes.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.2)


def _show_bounds(axes: Axes, ledger: Ledger, scale: Scale) -> None:
    for arm, name in zip(INVERTIBLE, ESTIMATORS, strict=True):
        steps = ledger.values(arm, "steps")[0]
        _band(axes, steps, ledger.values(arm, "train_bound"), COLORS[name], f"{name}, training pairs", "--")
        _band(axes, steps, ledger.values(arm, "test_bound"), COLORS[name], f"{name}, held-out pairs")
    axes.set(title="Invertible encoders: bound", xlabel="updates", ylabel=f"nats, K = {scale.batch_size}")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -3.0))
    axes.legend(fontsize=8)


def _show_accuracies(axes: Axes, ledger: Ledger, pixels: float) -> None:
    for arm, name in zip(INVERTIBLE, ESTIMATORS, strict=True):
        _band(axes, ledger.values(arm, "steps")[0], ledger.values(arm, "accuracy"), COLORS[name], name)
    _show_pixels(axes, pixels)
    axes.set(title="Invertible encoders: constant information", xlabel="updates", ylabel="accuracy, test images")
    axes.legend(fontsize=8)


def _show_adversarial(axes: Axes, ledger: Ledger, pixels: float) -> None:
    steps, runs = ledger.values(ADVERSARIAL, "steps")[0], ledger.values(ADVERSARIAL, "accuracy")
    axes.plot(steps, np.transpose(runs), color="tab:red", alpha=0.3, linewidth=1)
    axes.plot(steps, np.mean(runs, axis=0), color="tab:red", marker=".", label="mean, and each seed")
    _show_pixels(axes, pixels)
    axes.set(
        title="Invertible encoder against a classifier", xlabel="updates of the encoder", ylabel="accuracy, test images"
    )
    axes.legend(fontsize=8)


def _show_pixels(axes: Axes, pixels: float) -> None:
    axes.axhline(pixels, color="k", linestyle=":", linewidth=1.2, label="pixels")


def _show_conditions(axes: Axes, ledger: Ledger) -> None:
    for arm, name in zip(SKIP, ESTIMATORS, strict=True):
        steps = ledger.values(arm, "steps")[0]
        values = np.mean(ledger.values(arm, "log_condition"), axis=0)
        axes.fill_between(steps, values[:, 0], values[:, -1], color=COLORS[name], alpha=0.12)
        axes.fill_between(steps, values[:, 1], values[:, -2], color=COLORS[name], alpha=0.25)
        axes.plot(
            steps, values[:, 2:4].mean(axis=1), color=COLORS[name], marker=".", label=f"{name}: middle, 20-80 %, all"
        )
    axes.set(
        title="Networks that begin as the identity", xlabel="updates", ylabel="log(largest / smallest singular value)"
    )
    axes.legend(fontsize=8)


def _show_scatter(axes: Axes, ledger: Ledger, pixels: float) -> None:
    markers = dict(zip(ESTIMATORS, ("o", "^"), strict=True))
    kinds = {
        "invertible encoder": INVERTIBLE,
        "skip connections": SKIP,
        **{f"MLP, {critic} critic": [f"{critic} critic, {name}" for name in ESTIMATORS] for critic in CRITICS},
        **{
            f"{encoder}, bound of {target:g}": [f"{encoder}, {name} of {target:g}" for name in ESTIMATORS]
            for encoder in ("mlp", "convnet")
            for target in TARGETS
        },
    }
    for index, (kind, chosen) in enumerate(kinds.items()):
        for arm, name in zip(chosen, ESTIMATORS, strict=True):
            axes.scatter(
                np.maximum(_last(ledger, arm, "test_bound"), LOWEST_SHOWN), _last(ledger, arm, "accuracy"),
                s=22, marker=markers[name], color=f"C{index}", alpha=0.8, label=kind if name == "nce" else None,
            )  # fmt: skip
    axes.axhline(pixels, color="k", linestyle=":", linewidth=1.2)
    axes.set(
        title="Every run: held-out bound and accuracy (● nce, ▲ nwj)",
        xlabel=f"nats, held-out pairs; lower ones drawn at {LOWEST_SHOWN:g}",
        ylabel="accuracy, test images",
    )
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _show_gaussian(axes: Axes, ledger: Ledger, scale: Scale) -> None:
    for arm in GAUSSIAN:
        kind, name = arm.split(" pairs, ")
        runs = ledger.values(arm, "curve")
        steps = (np.arange(len(runs[0])) + 0.5) * scale.gaussian_updates / len(runs[0])
        _band(axes, steps, runs, COLORS[name], f"{name}, {kind} pairs", "-" if kind == "dependent" else "--")
    axes.axhline(scalar_information(), color="k", linewidth=1.2, label="true mutual information")
    axes.set(title="Pairs that share a draw", xlabel="updates", ylabel=f"nats, K = {scale.gaussian_batch_size}")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.3))
    axes.legend(fontsize=8)
