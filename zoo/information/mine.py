"""MINE: mutual information neural estimation.

Belghazi, Baratin, Rajeswar, Ozair, Bengio, Courville, Hjelm 2018 (https://arxiv.org/abs/1801.04062). A network T(x, z), the
statistics network, is trained to make a lower bound on I(X; Z) as large as it can be; its value on held-out pairs is the
estimate, in nats. Variants of what is maximised:

- `dv`: Donsker-Varadhan, `E_joint[T] - log E_marginal[exp T]`;
- `ema` (the paper's): the same, with a gradient corrected for bias. The gradient of the second term,
  `E[exp(T) dT] / E[exp T]`, is biased when both means are of one minibatch; the lower one is replaced by its exponential
  moving average m, which no gradient goes through;
- `fdiv` (MINE-f): `E_joint[T] - E_marginal[exp(T - 1)]`.

Samples of the product of marginals are the batch's own z in another order. T is defined up to a constant under `dv` and
`ema`, so that only the Donsker-Varadhan value of such networks means anything.

Differs from the paper: the order is a random permutation of a single cycle, in which no z stays with its x. In another one,
each z that stays is a joint sample among those of the product, which keeps the bound of a batch from growing beyond the
logarithm of its size.

Checked against: closed forms of Gaussian pairs, exact gradients, tables of discrete variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.information import bounds
from zoo.information.critics import ConcatenatedCritic
from zoo.information.image_pairs import batches, labelled_images
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

VARIANTS = ("ema", "dv", "fdiv")
# Orders of z that held-out estimates are averaged over; the same in every evaluation.
EVALUATION_PERMUTATIONS = 10
EVALUATION_SEED = 2018
# Pairs scored at once in `estimate`.
CHUNK = 10_000
# Samples of one estimate in the inputs that exports are calibrated with.
CALIBRATION_SAMPLES = 60


# === The objective ===


def bias_corrected(joint_scores: Any, marginal_scores: Any, log_average: Any) -> Any:
    """Donsker-Varadhan bound with the gradient of MINE: its denominator is a moving average.

    The gradient is that of `E_joint[T] - E_marginal[exp T] / m` with m constant; the value is the bound itself.

    Args:
        joint_scores: float tensor `(N,)`. T of pairs that belong together.
        marginal_scores: float tensor `(M,)`. T of samples of the product of marginals.
        log_average: scalar tensor. Logarithm of m, as `update_log_average` gives it.

    Returns:
        Scalar tensor, nats, to be maximised.

    Reference:
        Belghazi et al. 2018, section 3.2, equation 12.
    """
    log_average = ops.stop_gradient(log_average)
    # The logarithm of `E_marginal[exp T] / m`; its exponential is at most 1 / rate.
    ratio = -bounds.donsker_varadhan(ops.zeros_like(marginal_scores), marginal_scores) - log_average
    surrogate = ops.mean(joint_scores) - ops.exp(ratio)
    value = bounds.donsker_varadhan(joint_scores, marginal_scores)
    return surrogate + ops.stop_gradient(value - surrogate)


def update_log_average(log_average: Any, marginal_scores: Any, rate: float) -> Any:
    """Returns the logarithm of `(1 - rate) m + rate E_marginal[exp T]`.

    Args:
        log_average: scalar tensor. Logarithm of m before.
        marginal_scores: float tensor `(M,)`.
        rate: float in (0, 1]. Weight of the new mean; 1 forgets the old one.

    Returns:
        Scalar tensor that no gradient goes through.
    """
    new = ops.stop_gradient(-bounds.donsker_varadhan(ops.zeros_like(marginal_scores), marginal_scores))
    return new if rate == 1 else ops.logaddexp(np.log1p(-rate) + log_average, np.log(rate) + new)


def adaptive_clip(gradients: Sequence[Any], information_gradients: Sequence[Any]) -> list[Any]:
    """Adds the gradient of a mutual-information term, made no longer than the gradient of the main loss.

        g = g_u + min(|g_u|, |g_m|) g_m / |g_m|

    Mutual information is unbounded: without this it overwhelms what it is added to, such as a GAN's adversarial loss.

    Args:
        gradients: sequence of tensors. Gradient g_u of the main loss, by variable.
        information_gradients: sequence of tensors or None. Gradient g_m of the term, of the same variables; None where a
            variable has no part in it.

    Returns:
        List of tensors.

    Raises:
        ValueError: for sequences of different lengths.

    Reference:
        Belghazi et al. 2018, appendix 8.1.1.
    """
    if len(gradients) != len(information_gradients):
        raise ValueError(
            f"`information_gradients` must have as many tensors as `gradients`, {len(gradients)}. "
            f"Received: {len(information_gradients)}"
        )
    present = [gradient for gradient in information_gradients if gradient is not None]
    norm, information_norm = _norm(gradients), _norm(present)
    # Where there is no such gradient, any scale does.
    scale = ops.minimum(norm, information_norm) / ops.maximum(information_norm, 1e-30)
    return [
        gradient if added is None else gradient + ops.cast(scale, added.dtype) * added
        for gradient, added in zip(gradients, information_gradients, strict=True)
    ]


def _norm(tensors: Sequence[Any]) -> Any:
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(tensor, "float32"))) for tensor in tensors) + 0.0)


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class MINE(ZooModel):
    """Estimates how much two arrays of paired samples tell about each other.

    The model's input, in `fit` and when called, is a dict of paired samples: `"x"` `(batch, x_dim)` and `"z"`
    `(batch, z_dim)`; its output is T of these pairs, `(batch,)`. `fit` needs no targets and no loss; it draws a new order
    of z for every batch and reports the negative bound as `loss`. Scale inputs to about unit variance.

    Args:
        x_dim: int. Number of features of x.
        z_dim: int. Number of features of z.
        hidden_dims: sequence of ints. Sizes of the hidden layers of T. Defaults to `(100, 100)`.
        activation: str. Of the hidden layers. Defaults to `"elu"`.
        variant: str. `"ema"`, `"dv"` or `"fdiv"`: what is maximised, see the module. Defaults to `"ema"`.
        ema_rate: float in (0, 1]. Weight of a batch in the moving average of `"ema"`. Defaults to 0.01.
        input_noise: float. Standard deviation of Gaussian noise on x and z in training, for small training sets and for
            discrete variables. Defaults to 0.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = MINE(x_dim=2, z_dim=2)
    model.compile(optimizer=keras.optimizers.Adam(1e-3))
    model.fit({"x": x, "z": z}, batch_size=256, epochs=20)
    nats = model.estimate(held_out_x, held_out_z)
    ```

    Reference:
        Belghazi et al. 2018, "Mutual Information Neural Estimation", arXiv 1801.04062, algorithm 1.
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int,
        hidden_dims: Sequence[int] = (100, 100),
        activation: str = "elu",
        variant: Literal["ema", "dv", "fdiv"] = "ema",
        ema_rate: float = 0.01,
        input_noise: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, size in (("x_dim", x_dim), ("z_dim", z_dim)):
            require(size >= 1, name, "at least 1", size)
        require(variant in VARIANTS, "variant", f"one of {VARIANTS}", variant)
        require(0 < ema_rate <= 1, "ema_rate", "in (0, 1]", ema_rate)
        require(0 <= input_noise < np.inf, "input_noise", "finite and not negative", input_noise)
        self.x_dim = x_dim
        self.z_dim = z_dim
        self.variant = variant
        self.ema_rate = float(ema_rate)
        self.input_noise = float(input_noise)
        self.critic = ConcatenatedCritic(hidden_dims, activation, dtype=self.dtype_policy, name="critic")
        self.noise = keras.layers.GaussianNoise(self.input_noise, dtype=self.dtype_policy, name="noise")
        self.seed_generator = keras.random.SeedGenerator()
        self.build({"x": (None, x_dim), "z": (None, z_dim)})

    def build(self, input_shape: Mapping[str, Sequence[int | None]]) -> None:
        """Creates the statistics network and, for `ema`, the moving average."""
        self.critic.build(input_shape["x"], input_shape["z"])
        if self.variant == "ema":
            self.log_average = self.add_weight(
                name="log_average", shape=(), initializer="zeros", trainable=False, dtype="float32", aggregation="mean"
            )
            self.num_averaged = self.add_weight(
                name="num_averaged", shape=(), initializer="zeros", trainable=False, dtype="int32", aggregation="mean"
            )

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns T of pairs.

        Args:
            inputs: dict of tensors, `"x"` `(batch, x_dim)` and `"z"` `(batch, z_dim)`.
            training: bool. Whether to add noise to the inputs.

        Returns:
            Tensor `(batch,)`.
        """
        require(
            isinstance(inputs, Mapping) and set(inputs) == {"x", "z"},
            "inputs",
            "a dict of 'x' and 'z'",
            sorted(inputs) if isinstance(inputs, Mapping) else type(inputs),
        )
        return self._score(inputs["x"], inputs["z"], training)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the negative bound in nats; `y_pred` is what `call` returned."""
        require(y is None, "y", "None: both samples are in one dict, {'x': ..., 'z': ...}", type(y))
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        require(x["x"].shape[0] != 1, "x", "a batch of at least 2 pairs", f"shape={x['x'].shape}")
        if not training:
            seeds = range(EVALUATION_SEED, EVALUATION_SEED + EVALUATION_PERMUTATIONS)
            marginal = ops.stack([self._marginal_scores(x, seed, training) for seed in seeds])
            return -ops.mean(self.bound(ops.expand_dims(y_pred, 0), marginal))
        marginal = self._marginal_scores(x, self.seed_generator, training)
        if self.variant != "ema":
            return -self.bound(y_pred, marginal)
        return -bias_corrected(y_pred, marginal, self._updated_log_average(marginal))

    def bound(self, joint_scores: Any, marginal_scores: Any) -> Any:
        """Returns the bound that fits T: NWJ for `fdiv`, Donsker-Varadhan otherwise.

        Args:
            joint_scores: float tensor `(..., N)`.
            marginal_scores: float tensor `(..., M)`.

        Returns:
            Tensor `(...)`, nats.
        """
        function = bounds.nwj if self.variant == "fdiv" else bounds.donsker_varadhan
        return function(joint_scores, marginal_scores)

    def _score(self, x: Any, z: Any, training: bool | None = False) -> Any:
        x, z = self.noise(x, training=training), self.noise(z, training=training)
        return ops.cast(self.critic(x, z, aligned=True), "float32")

    def _marginal_scores(self, inputs: Mapping[str, Any], seed: Any, training: bool) -> Any:
        order = keras.random.shuffle(ops.arange(ops.shape(inputs["x"])[0]), seed=seed)
        # Each x with the z of the next one in a random circle.
        x = ops.take(inputs["x"], order, axis=0)
        z = ops.take(inputs["z"], ops.roll(order, -1), axis=0)
        return self._score(x, z, training)

    def _updated_log_average(self, marginal_scores: Any) -> Any:
        """Takes a batch into the moving average, which begins with the first batch's mean."""
        later = update_log_average(self.log_average.value, marginal_scores, self.ema_rate)
        first = update_log_average(self.log_average.value, marginal_scores, 1.0)
        updated = ops.where(self.num_averaged.value == 0, first, later)
        self.log_average.assign(updated)
        self.num_averaged.assign_add(1)
        return updated

    # === Use ===

    def estimate(
        self, x: Any, z: Any, num_permutations: int = EVALUATION_PERMUTATIONS, seed: int = EVALUATION_SEED
    ) -> float:
        """Returns the estimate of I(X; Z) from pairs that T was not trained with, in nats.

        On the pairs of the training it would be too high: T knows them by heart.

        Args:
            x: array-like `(num_pairs, x_dim)`.
            z: array-like `(num_pairs, z_dim)`.
            num_permutations: int. Orders of z that the estimate is averaged over.
            seed: int. Seed of the orders.

        Returns:
            float: the Donsker-Varadhan value, NWJ's for `fdiv`.

        Raises:
            ValueError: for arrays of other shapes, NaN, a single pair, or no permutations.
        """
        checked = self._signature("score").check({"x": x, "z": z})
        return estimate_with(
            lambda inputs: np.asarray(self._score(tf.constant(inputs["x"]), tf.constant(inputs["z"]))),
            checked["x"], checked["z"], self.bound, num_permutations, seed,
        )  # fmt: skip

    def signatures(self) -> dict[str, Signature]:
        """Returns `score` (pairs to T) and `estimate` (sets of pairs to a bound for each)."""
        return {
            "score": Signature(
                lambda x, z: {"score": self._score(x, z)},
                {
                    "x": Spec(("batch", self.x_dim), "float32", "First sample of each pair."),
                    "z": Spec(("batch", self.z_dim), "float32", "Second sample of each pair."),
                },
                {"score": "T of each pair: log of how much likelier it is than chance, up to a constant, (batch,)."},
            ),
            "estimate": Signature(
                lambda x, z, z_permuted: {
                    "mutual_information": self.bound(self._score(x, z), self._score(x, z_permuted))
                },
                {
                    "x": Spec(("batch", "samples", self.x_dim), "float32", "First sample of each pair, in sets."),
                    "z": Spec(("batch", "samples", self.z_dim), "float32", "Second sample of each pair."),
                    "z_permuted": Spec(
                        ("batch", "samples", self.z_dim),
                        "float32",
                        "`z` of each set in an order where none stays in its place.",
                    ),
                },
                {"mutual_information": "Bound on I(X; Z) from each set, in nats, (batch,)."},
                sizes={"samples": 16},
            ),
        }

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields held-out pairs, and pairs by chance, of the data set the checkpoint names; nothing without a checkpoint.

        Args:
            signature: str.
            batch_size: int. Number of pairs, or of sets of pairs; an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        pairs = labelled_images(self.metadata.evaluation_dataset, "validation")
        first, second = random_cycle(len(pairs["x"]), EVALUATION_SEED)
        if signature == "score":
            both = {"x": [pairs["x"], pairs["x"][first]], "z": [pairs["z"], pairs["z"][second]]}
            arrays = {name: np.concatenate(parts) for name, parts in both.items()}
        else:
            arrays = {
                name: value[: len(value) // CALIBRATION_SAMPLES * CALIBRATION_SAMPLES].reshape(
                    -1, CALIBRATION_SAMPLES, value.shape[1]
                )
                for name, value in (
                    ("x", pairs["x"][first]),
                    ("z", pairs["z"][first]),
                    ("z_permuted", pairs["z"][second]),
                )
            }
        yield from batches(arrays, batch_size)

    def task_metric(self) -> TaskMetric | None:
        """Returns the estimate from held-out pairs, in nats; `None` without a checkpoint."""
        if self.metadata is None:
            return None

        def compute(run: Runner) -> float:
            pairs = labelled_images(self.metadata.evaluation_dataset, "test")
            return estimate_with(lambda inputs: run("score", inputs)["score"], pairs["x"], pairs["z"], self.bound)

        return TaskMetric("mutual_information", compute, higher_is_better=True, absolute_tolerance=0.05)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        critic = self.critic.get_config()
        return {
            **super().get_config(),
            "x_dim": self.x_dim,
            "z_dim": self.z_dim,
            "hidden_dims": critic["hidden_dims"],
            "activation": critic["activation"],
            "variant": self.variant,
            "ema_rate": self.ema_rate,
            "input_noise": self.input_noise,
        }


# === Estimates ===


def estimate_with(
    score: Callable[[Arrays], np.ndarray],
    x: np.ndarray,
    z: np.ndarray,
    bound: Callable[[np.ndarray, np.ndarray], Any],
    num_permutations: int = EVALUATION_PERMUTATIONS,
    seed: int = EVALUATION_SEED,
) -> float:
    """Returns a bound from pairs and from random orders of them, averaged over the orders.

    Args:
        score: callable from a dict of `"x"` and `"z"` to scores `(pairs,)`.
        x: float array `(num_pairs, x_dim)`.
        z: float array `(num_pairs, z_dim)`.
        bound: callable of joint and marginal scores.
        num_permutations: int.
        seed: int.

    Raises:
        ValueError: for a single pair, or no permutations.
    """
    require(len(x) > 1, "x", "at least 2 pairs", f"shape={x.shape}")
    require(num_permutations >= 1, "num_permutations", "at least 1", num_permutations)

    def scores(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        starts = range(0, len(x), CHUNK)
        parts = [score({"x": x[first[i : i + CHUNK]], "z": z[second[i : i + CHUNK]]}) for i in starts]
        return np.concatenate(parts).astype("float64")

    places = np.arange(len(x))
    joint = scores(places, places)
    orders = (random_cycle(len(x), seed + index) for index in range(num_permutations))
    return float(np.mean([bound(joint, scores(*order)) for order in orders]))


def random_cycle(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns places of x and of z such that every x meets a z of another place, and each of them once.

    Args:
        size: int.
        seed: int.

    Returns:
        Two int arrays `(size,)`.
    """
    order = np.random.default_rng(seed).permutation(size)
    return order, np.roll(order, -1)
