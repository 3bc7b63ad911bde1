"""Variational inference: the posterior of a graphical model by maximising the evidence lower bound (ELBO).

Jordan, Ghahramani, Jaakkola, Saul 1999 (Machine Learning 37); Blei, Kucukelbir, McAuliffe 2017 (arXiv 1601.00670). For
observations x, latents z and any density q,

    log p(x) = ELBO(q) + KL(q(z) || p(z|x)),      ELBO(q) = E_q[log p(x, z) - log q(z)]

The evidence log p(x) does not depend on q, so the q with the largest ELBO is the nearest to the posterior in this KL
divergence, and its ELBO is a lower bound on the evidence. The loss is -ELBO, in nats.

q is a guide over unconstrained latents zeta in R^D, pushed through the bijector T of the joint distribution's supports:
z = T(zeta), log q(z) = log q(zeta) - log|det T'(zeta)|. Gradients of the ELBO, with w = p(x, z) / q(z):

    reparameterization   of log w along zeta = f(eps), both where the parameters make zeta and where they make log q
    stl                  without the second: its mean is zero, and so is the rest where q is exact (sticking the landing)
    analytic_entropy     of E_q[log p(x, z)] alone, plus the entropy of a Gaussian in closed form
    score_function       (log w - c) grad log q(zeta), c the mean log w of the other samples
    iwelbo               of the tighter log mean_k w_k, doubly reparameterised

All of them need only zeta, log q and the score of q at zeta, which every guide gives.

Differs from the papers: positive scales are a softplus instead of an exponential; Adam beside ADVI's step sizes.

Checked against: exact evidences of conjugate models, quadrature, TensorFlow Probability's NUTS.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from keras import ops

from zoo.arguments import require
from zoo.generative.guides import make_guide
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

tfd = tfp.distributions

Parts = dict[str, Any]
ESTIMATORS = ("reparameterization", "stl", "analytic_entropy", "score_function", "iwelbo")
# The draws of every evaluation are the same.
EVALUATION_SEED = 1999
EVALUATION_SAMPLES = 4096
CHUNK = 512


# === Posteriors ===


class Posterior:
    """An unnormalised density p(x, z) over named latents z, with the bijector of their supports.

    Args:
        joint: a TensorFlow Probability joint distribution with its observations pinned
            (`joint.experimental_pin(y=y)`), or the prior, a joint distribution of latents alone.
        log_likelihood: callable or None. Takes the latents (dict of tensors `(samples, ...)`) and rows of data (dict of
            tensors `(rows, ...)`) and returns the log-likelihood of each row, `(samples, rows)`. With it a model can be
            fitted to minibatches.
        data: mapping from names to arrays `(rows, ...)`, or None. The observations of `log_likelihood`.

    Raises:
        ValueError: for latents that are discrete, not float32 or of unknown shape, for batch dimensions, and for a density
            that gives no finite number per sample, as with data that do not fit the distribution.
        TypeError: for what is no joint distribution.
    """

    def __init__(
        self,
        joint: Any,
        log_likelihood: Callable[[Parts, Parts], Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ):
        pinned = isinstance(joint, tfp.experimental.distributions.JointDistributionPinned)
        if not pinned and not isinstance(joint, tfd.JointDistribution):
            raise TypeError(f"`joint` must be a joint distribution, pinned or not. Received: {type(joint).__name__}")
        require((log_likelihood is None) == (data is None), "data", "given just when `log_likelihood` is", data)
        self._joint = joint
        # What TensorFlow Probability's documentation refers to for names of parts, public in no other way.
        self.names: tuple[str, ...] = tuple(joint._flat_resolve_names())
        self.event_shapes = self._event_shapes()
        self._bijector, shapes = self._default_bijector()
        self.unconstrained_shapes = dict(zip(self.names, map(tuple, joint._model_flatten(shapes)), strict=True))
        self.data = {name: _as_rows(name, value) for name, value in data.items()} if data is not None else None
        self.log_likelihood = log_likelihood
        sizes = {len(rows) for rows in (self.data or {}).values()}
        require(len(sizes) <= 1, "data", "arrays of one length", sorted(sizes))
        self._check_density()

    @property
    def num_latents(self) -> int:
        """Number of unconstrained latents D."""
        return sum(math.prod(shape) for shape in self.unconstrained_shapes.values())

    @functools.cached_property
    def constrain_exported(self) -> Callable[[Any], tuple[Parts, Any]]:
        """Does what `constrain` does, in graphs that can be exported."""
        return _without_captures(self.constrain, tf.TensorSpec((None, self.num_latents), tf.float32))

    def log_prior(self, parts: Parts) -> Any:
        """Returns the log-density without the rows of `data`, `(samples,)`."""
        return self._joint.unnormalized_log_prob(**parts)

    def log_prob(self, parts: Parts, rows: Parts | None = None) -> Any:
        """Returns log p(x, z) in nats.

        Args:
            parts: dict of tensors `(samples, ...)`. The latents.
            rows: dict of tensors `(rows, ...)`, or None. A minibatch, whose likelihood then counts for all rows; all data
                by default.

        Returns:
            Tensor `(samples,)`.
        """
        log_prob = self.log_prior(parts)
        if self.log_likelihood is None:
            return log_prob
        total = len(next(iter(self.data.values())))
        # A mean: the same for all rows, and unbiased for some.
        return log_prob + total * tf.reduce_mean(self.log_likelihood(parts, self.data if rows is None else rows), -1)

    def check_rows(self, rows: Any) -> Parts:
        """Checks a minibatch of data against `data` and returns it.

        Raises:
            ValueError: for a target without data by rows, and for other names or shapes.
        """
        require(self.data is not None, "y", "None for a target without `log_likelihood` and `data`", type(rows))
        wanted = {name: tuple(value.shape[1:]) for name, value in self.data.items()}
        found = type(rows)
        if isinstance(rows, Mapping):
            found = {name: tuple(value.shape[1:]) for name, value in rows.items()}
        require(found == wanted, "y", f"a dict of rows of shapes {wanted}", found)
        return dict(rows)

    def unconstrain(self, parts: Parts) -> Any:
        """Returns the unconstrained latents of parts: undoes `constrain`.

        Args:
            parts: dict of tensors `(samples, ...)`.

        Returns:
            Tensor `(samples, num_latents)`.
        """
        structure = self._joint._model_unflatten([parts[name] for name in self.names])
        values = self._joint._model_flatten(self._bijector.inverse(structure))
        sizes = [math.prod(shape) for shape in self.unconstrained_shapes.values()]
        return tf.concat([tf.reshape(v, (-1, size)) for v, size in zip(values, sizes, strict=True)], 1)

    def constrain(self, unconstrained: Any) -> tuple[Parts, Any]:
        """Maps unconstrained latents into their supports.

        Args:
            unconstrained: tensor `(samples, num_latents)`.

        Returns:
            Tuple of the parts (dict of tensors `(samples, ...)`) and the log-determinant `(samples,)`.
        """
        sizes = [math.prod(shape) for shape in self.unconstrained_shapes.values()]
        pieces = zip(tf.split(unconstrained, sizes, axis=1), self.unconstrained_shapes.values(), strict=True)
        structure = self._joint._model_unflatten([tf.reshape(piece, (-1, *shape)) for piece, shape in pieces])
        parts = self._joint._model_flatten(self._bijector.forward(structure))
        log_det = self._bijector.forward_log_det_jacobian(structure)
        # Volume-preserving bijectors give a scalar.
        return dict(zip(self.names, parts, strict=True)), log_det + tf.zeros_like(unconstrained[:, 0])

    def _event_shapes(self) -> dict[str, tuple[int, ...]]:
        joint = self._joint
        dtypes = dict(zip(self.names, joint._model_flatten(joint.dtype), strict=True))
        wrong = {name: dtype for name, dtype in dtypes.items() if dtype != tf.float32}
        require(not wrong, "target", "of continuous float32 latents", wrong)
        shapes = dict(zip(self.names, joint._model_flatten(joint.event_shape), strict=True))
        known = all(shape.is_fully_defined() for shape in shapes.values())
        require(bool(shapes) and known, "target", "of at least one latent, all of known shape", shapes)
        batches = [tf.TensorShape(shape) for shape in _flat_shapes(joint.batch_shape)]
        require(
            all(shape.rank == 0 for shape in batches),
            "target",
            "without batch dimensions: wrap parts in Independent or Sample, or use an AutoBatched joint distribution",
            f"batch_shape={batches}",
        )
        return {name: tuple(shape) for name, shape in shapes.items()}

    def _default_bijector(self) -> tuple[Any, Any]:
        """Returns the bijector of the supports and the shapes that it maps to the event shapes."""
        try:
            bijector = self._joint.experimental_default_event_space_bijector()
            return bijector, bijector.inverse_event_shape(self._joint.event_shape)
        # What TensorFlow Probability raises for discrete latents, and for simplices under NumPy 2.4
        except (AttributeError, NotImplementedError, TypeError) as error:
            raise ValueError(
                "`target` must be of continuous latents for which TensorFlow Probability makes a default event-space "
                f"bijector. Received: latents {self.names} ({error})"
            ) from error

    def _check_density(self) -> None:
        """Evaluates the density at three samples: mistakes of shape show here rather than in the middle of `fit`."""
        count = 3
        expected = (
            f"a density that takes {count} samples at once and gives a finite number for each: data must fit the "
            "distribution, and functions must allow leading sample dimensions, as AutoBatched joint distributions do"
        )
        points = tf.reshape(tf.range(count, dtype=tf.float32) / 10.0, (count, 1)) * tf.ones((1, self.num_latents))
        try:
            parts, _ = self.constrain(points)
            together = np.asarray(self.log_prob(parts))
            alone = np.concatenate([self.log_prob(self.constrain(points[i : i + 1])[0]) for i in range(count)])
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(f"`target` must have {expected}. Received: {error}") from error
        shapes = {name: tuple(value.shape) for name, value in parts.items()}
        wanted = {name: (count, *shape) for name, shape in self.event_shapes.items()}
        require(shapes == wanted, "target", f"of latents {wanted}", shapes)
        # Shapes that fit by chance give other numbers.
        good = together.shape == (count,) and np.isfinite(together).all() and np.allclose(together, alone, rtol=1e-3)
        require(bool(good), "target", expected, f"{together} for samples at once and {alone} for one at a time")


class Energy(Posterior):
    """The density exp(-U(z)) of a vector z, for a function U.

    Args:
        function: callable. Takes `(samples, num_latents)` and returns U, `(samples,)`.
        num_latents: int.
    """

    def __init__(self, function: Callable[[Any], Any], num_latents: int):
        self.function = function
        self.names = ("z",)
        self.event_shapes = self.unconstrained_shapes = {"z": (num_latents,)}
        self.log_likelihood = self.data = None

    def log_prior(self, parts: Parts) -> Any:
        """Returns -U."""
        return -self.function(parts["z"])

    def constrain(self, unconstrained: Any) -> tuple[Parts, Any]:
        """Returns the vectors as they are, and log-determinants of zero."""
        return {"z": unconstrained}, tf.zeros_like(unconstrained[:, 0])

    def unconstrain(self, parts: Parts) -> Any:
        """Returns the vectors as they are."""
        return parts["z"]


def _as_rows(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    require(array.ndim >= 1 and array.size > 0, "data", f"of at least one row in {name!r}", f"shape={array.shape}")
    return array.astype("float32") if array.dtype == np.float64 else array


def _flat_shapes(shapes: Any) -> list[Any]:
    """Lists the shapes of a structure; a shape itself would be one to `tf.nest`."""
    if isinstance(shapes, tf.TensorShape):
        return [shapes]
    values = shapes.values() if isinstance(shapes, Mapping) else shapes
    return [shape for value in values for shape in _flat_shapes(value)]


def _without_captures(function: Callable[[Any], Any], spec: tf.TensorSpec) -> Callable[[Any], Any]:
    """Returns a function with the tensors it captures as constants.

    Distributions hold their parameters as tensors of the outer program, which exported graphs must not refer to; nor can
    custom gradients within vectorised functions be saved. The function is for use without gradients.
    """
    concrete = tf.function(function, autograph=False).get_concrete_function(spec)
    constants = {inner.name: outer.numpy() for outer, inner in concrete.graph.captures}
    (argument,) = [t.name for t in concrete.inputs if t.name not in constants]
    graph, outputs = concrete.graph.as_graph_def(), [tensor.name for tensor in concrete.outputs]
    for node in graph.node:
        node.attr.pop("_gradient_op_type", None)
    structure = concrete.structured_outputs

    def replay(values: Any) -> Any:
        inputs = {argument: values, **{name: tf.constant(value) for name, value in constants.items()}}
        found = tf.graph_util.import_graph_def(graph, inputs, outputs, name="constrain")
        return tf.nest.pack_sequence_as(structure, found)

    return tf.function(replay, input_signature=[spec], autograph=False)


# === Built-in posteriors ===

TARGETS: dict[str, Callable[[], Any]] = {}


def register_target(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Returns a decorator that makes a posterior known by name, so that models of it can be saved.

    Args:
        name: str. What `VariationalInference(target=name)` will find. A later function of the same name replaces it.

    Example:

    ```python
    @register_target("my_model")
    def my_model():
        return joint.experimental_pin(y=y)
    ```
    """
    require(isinstance(name, str) and name != "", "name", "a name", repr(name))

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        TARGETS[name] = function
        return function

    return register


def as_posterior(target: Any) -> Posterior:
    """Returns the posterior of a registered name or pinned joint distribution; a `Posterior` is returned as it is.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else, such as a joint distribution without observations.
    """
    if isinstance(target, str):
        require(target in TARGETS, "target", f"registered by `register_target`: one of {sorted(TARGETS)}", repr(target))
        target = TARGETS[target]()
    if isinstance(target, tfp.experimental.distributions.JointDistributionPinned):
        return Posterior(target)
    if not isinstance(target, Posterior):
        raise TypeError(
            "`target` must be a registered name, a joint distribution with its observations pinned by "
            f"`experimental_pin`, or a `Posterior`. Received: {type(target).__name__}"
        )
    return target


@register_target("gaussian_2d")
def gaussian_2d() -> Posterior:
    """Returns a Gaussian of unit variances and correlation 0.9; its evidence is 1."""
    scale = np.linalg.cholesky([[1.0, 0.9], [0.9, 1.0]]).astype("float32")
    return Posterior(tfd.JointDistributionNamed({"z": tfd.MultivariateNormalTriL(tf.zeros(2), scale)}))


@register_target("poisson_gamma")
def poisson_gamma() -> Any:
    """Returns the rate of a Poisson count of 4, under a Gamma(2, 1) prior."""
    joint = tfd.JointDistributionNamed({"rate": tfd.Gamma(2.0, 1.0), "count": lambda rate: tfd.Poisson(rate)})
    return joint.experimental_pin(count=4.0)


@register_target("diabetes_regression")
def diabetes_regression() -> Posterior:
    """Returns linear regression of diabetes progression, all 442 patients: weights N(0, I), noise variance 0.5.

    Features and target are standardised. The posterior is Gaussian, its evidence known.
    """
    from zoo.datasets import load_arrays

    splits = [load_arrays("diabetes", split) for split in ("train", "validation", "test")]
    arrays = {name: np.concatenate([split[name] for split in splits]) for name in ("features", "target")}
    data = {name: _standardized(values, values) for name, values in arrays.items()}

    def log_likelihood(parts: Parts, rows: Parts) -> Any:
        mean = tf.matmul(parts["weights"], rows["features"], transpose_b=True)
        return tfd.Normal(mean, math.sqrt(0.5)).log_prob(rows["target"])

    prior = tfd.JointDistributionNamed({"weights": tfd.Sample(tfd.Normal(0.0, 1.0), data["features"].shape[1])})
    return Posterior(prior, log_likelihood, data)


def breast_cancer_rows(split: str) -> Arrays:
    """Returns the rows of a split for `breast_cancer_logistic`, features standardised as in the training split."""
    from zoo.datasets import load_arrays

    train, arrays = load_arrays("breast_cancer", "train"), load_arrays("breast_cancer", split)
    return {
        "features": _standardized(arrays["features"], train["features"]),
        "label": arrays["label"].astype("float32"),
    }


@register_target("breast_cancer_logistic")
def breast_cancer_logistic() -> Posterior:
    """Returns logistic regression of the diagnosis of 398 tumours on 30 measurements: weights and bias N(0, 1)."""
    data = breast_cancer_rows("train")

    def log_likelihood(parts: Parts, rows: Parts) -> Any:
        logits = tf.matmul(parts["weights"], rows["features"], transpose_b=True) + tf.expand_dims(parts["bias"], -1)
        return tfd.Bernoulli(logits).log_prob(rows["label"])

    size = data["features"].shape[1]
    prior = tfd.JointDistributionNamed(
        {"weights": tfd.Sample(tfd.Normal(0.0, 1.0), size), "bias": tfd.Normal(0.0, 1.0)}
    )
    return Posterior(prior, log_likelihood, data)


@register_target("eight_schools")
def eight_schools() -> Any:
    """Returns the effects of coaching in eight schools (Rubin 1981): mean N(0, 5), spread half-Cauchy(0, 5).

    The effect of a school is `mean + spread * standard`, so that the latents are nearly independent.
    """
    effect = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], "float32")
    deviation = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], "float32")

    def observed(mean: Any, spread: Any, standard: Any) -> Any:
        effects = tf.expand_dims(mean, -1) + tf.expand_dims(spread, -1) * standard
        return tfd.Independent(tfd.Normal(effects, deviation), 1)

    joint = tfd.JointDistributionNamed(
        {
            "mean": tfd.Normal(0.0, 5.0),
            "spread": tfd.HalfCauchy(0.0, 5.0),
            "standard": tfd.Sample(tfd.Normal(0.0, 1.0), 8),
            "observed": observed,
        }
    )
    return joint.experimental_pin(observed=effect)


def _standardized(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    reference = reference.astype("float64")
    return ((values - reference.mean(0)) / reference.std(0)).astype("float32")


def _energy(number: int, z: Any) -> Any:
    """The four energies of Rezende and Mohamed 2015, table 1; outside of |z_1| < 4, the paper's picture, a wall rises."""
    first, second = z[:, 0], z[:, 1]
    if number == 1:
        ring = 0.5 * ((tf.norm(z, axis=1) - 2.0) / 0.4) ** 2
        sides = [-0.5 * ((first - side) / 0.6) ** 2 for side in (2.0, -2.0)]
        return ring - tf.reduce_logsumexp(sides, axis=0)
    wall = 0.5 * (tf.nn.relu(tf.abs(first) - 4.0) / 0.2) ** 2
    wave = tf.sin(2.0 * math.pi * first / 4.0)
    if number == 2:
        return wall + 0.5 * ((second - wave) / 0.4) ** 2
    bump = 3.0 * tf.exp(-0.5 * ((first - 1.0) / 0.6) ** 2)
    step = 3.0 * tf.sigmoid((first - 1.0) / 0.3)
    one, other, shift = {3: (0.35, 0.35, -bump), 4: (0.4, 0.35, -step)}[number]
    paths = [-0.5 * ((second - wave) / one) ** 2, -0.5 * ((second - wave - shift) / other) ** 2]
    return wall - tf.reduce_logsumexp(paths, axis=0)


for _number in range(1, 5):
    TARGETS[f"energy_{_number}"] = lambda number=_number: Energy(lambda z: _energy(number, z), 2)


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class VariationalInference(ZooModel):
    """A guide, trained by `fit` to be near a posterior.

    What `fit` takes is noise: a batch of standard normal rows `(samples, noise_dim)`, of which `noise` makes an endless
    data set; the loss of a batch is -ELBO, estimated by its samples. Called on noise, the model returns unconstrained
    latents and their log-densities. Where the target has its likelihood by rows, targets `y` may hold a minibatch of
    its data, `{name: (rows, ...)}`, whose likelihood then counts for all rows: `tf.data.Dataset.zip(noise, rows)`.

    Epochs of 100 steps and `keras.callbacks.EarlyStopping("loss", ...)` stop when the mean over 100 steps no longer falls.

    Args:
        target: str, or pinned joint distribution, or `Posterior`. The name of a posterior known by `register_target`;
            or, for a model that is not to be saved, the posterior itself.
        guide: str. `"mean_field"`, `"full_rank"`, `"low_rank"`, `"iaf"`, `"realnvp"`, `"planar"` or `"radial"`. Defaults
            to `"mean_field"`.
        estimator: str. `"reparameterization"`, `"stl"`, `"analytic_entropy"` (Gaussian guides), `"score_function"` (at
            least two samples) or `"iwelbo"`. Defaults to `"reparameterization"`.
        num_importance_samples: int. Samples K in each bound of `"iwelbo"`; a batch must be a multiple. Defaults to 1.
        initial_scale: float. Standard deviation of Gaussian guides at the start; 0.01 suits many latents. Flows start as
            standard normal. Defaults to 1.
        rank: int. Outer products of the covariance of `"low_rank"`. Defaults to 2.
        num_layers: int. Maps of a flow. Defaults to 2.
        num_hidden_layers: int. Hidden layers of the networks of `"iaf"` and `"realnvp"`. Defaults to 1.
        hidden_dim: int. Their size. Defaults to 32.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    joint = tfd.JointDistributionNamedAutoBatched(
        {"rate": tfd.Gamma(2.0, 1.0), "count": lambda rate: tfd.Sample(tfd.Poisson(rate), 3)}
    )
    model = VariationalInference(joint.experimental_pin(count=[4.0, 2.0, 5.0]), guide="full_rank")
    model.compile(optimizer=keras.optimizers.Adam(0.05))
    model.fit(model.noise(num_samples=16), steps_per_epoch=100, epochs=5, shuffle=False)
    rates = model.sample(1000)["rate"]      # (1000,), positive
    model.diagnostics()                     # {"elbo": ..., "pareto_k": ...}
    ```

    Reference:
        Blei, Kucukelbir, McAuliffe 2017 (the bound); Kucukelbir et al. 2017 (ADVI: unconstrained Gaussian guides); Roeder,
        Wu, Duvenaud 2017, arXiv 1703.09194 (`stl`); Ranganath, Gerrish, Blei 2014, arXiv 1401.0118 (`score_function`);
        Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519, and Tucker et al. 2019, arXiv 1810.04152 (`iwelbo`).
    """

    def __init__(
        self,
        target: Any,
        guide: Literal["mean_field", "full_rank", "low_rank", "iaf", "realnvp", "planar", "radial"] = "mean_field",
        estimator: Literal[
            "reparameterization", "stl", "analytic_entropy", "score_function", "iwelbo"
        ] = "reparameterization",
        num_importance_samples: int = 1,
        initial_scale: float = 1.0,
        rank: int = 2,
        num_layers: int = 2,
        num_hidden_layers: int = 1,
        hidden_dim: int = 32,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # Mixed precision belongs inside the networks: a density needs the signal itself in float32.
        self.autocast = False
        require(estimator in ESTIMATORS, "estimator", f"one of {ESTIMATORS}", estimator)
        require(num_importance_samples >= 1, "num_importance_samples", "at least 1", num_importance_samples)
        weighted = estimator == "iwelbo" or num_importance_samples == 1
        require(weighted, "num_importance_samples", "1 without estimator='iwelbo'", num_importance_samples)
        self.target = target
        self.guide = guide
        self.estimator = estimator
        self.num_importance_samples = num_importance_samples
        self.options = {
            "initial_scale": initial_scale,
            "rank": rank,
            "num_layers": num_layers,
            "num_hidden_layers": num_hidden_layers,
            "hidden_dim": hidden_dim,
        }
        self.posterior = as_posterior(target)
        reserved = sorted({"noise", "log_q"} & set(self.posterior.names))
        require(not reserved, "target", "of latents that are not called 'noise' or 'log_q'", reserved)

        # === Layers ===
        self.surrogate = make_guide(guide, self.posterior.num_latents, dtype=self.dtype_policy, **self.options)
        self.build((None, self.surrogate.noise_dim))
        if estimator == "analytic_entropy":
            self.surrogate.entropy()  # refuses guides without one

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        if not self.surrogate.built:
            self.surrogate.build(input_shape)

    def call(self, noise: Any, training: bool | None = False) -> Parts:
        """Maps noise to latents.

        Args:
            noise: tensor `(samples, noise_dim)`. Standard normal.
            training: bool. Makes no difference.

        Returns:
            Dict of `"unconstrained"` latents `(samples, num_latents)` and their log-density `"log_q"`, `(samples,)`.
        """
        size = self.surrogate.noise_dim
        require(len(noise.shape) == 2 and noise.shape[1] == size, "noise", f"of shape (samples, {size})", noise.shape)
        unconstrained, log_q = self.surrogate(noise)
        return {"unconstrained": unconstrained, "log_q": log_q}

    # === Training ===

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns -ELBO (or, for `"iwelbo"`, minus the tighter bound) in nats, with the chosen estimator's gradient.

        Args:
            x: tensor `(samples, noise_dim)`. Noise.
            y: dict of tensors `(rows, ...)`, or None. A minibatch of the target's data.
            y_pred: what `call` returned.
            sample_weight: must be None.
            training: bool. Makes no difference.
        """
        require(sample_weight is None, "sample_weight", "None: all samples count the same", sample_weight)
        rows = None if y is None else self.posterior.check_rows(y)
        unconstrained, log_q = y_pred["unconstrained"], y_pred["log_q"]
        if self.estimator == "score_function":
            value, surrogate = self._score_function(x, unconstrained, log_q, rows)
        elif self.estimator == "analytic_entropy":
            value = surrogate = ops.mean(self._log_joint(unconstrained, rows)) + self.surrogate.entropy()
        else:
            value, surrogate = self._pathwise(x, unconstrained, log_q, rows)
        # The value of the bound, and the gradient of the surrogate.
        return -(surrogate + ops.stop_gradient(value - surrogate))

    def _pathwise(self, noise: Any, unconstrained: Any, log_q: Any, rows: Parts | None) -> tuple[Any, Any]:
        log_p = self._log_joint(unconstrained, rows)
        if self.estimator == "reparameterization":
            value = ops.mean(log_p - log_q)
            return value, value
        if self.estimator == "stl":
            return ops.mean(log_p - log_q), ops.mean(log_p - self._by_latents(noise, unconstrained))
        num = self.num_importance_samples
        divides = unconstrained.shape[0] is None or unconstrained.shape[0] % num == 0
        require(divides, "x", f"of a multiple of num_importance_samples={num} samples", unconstrained.shape)
        log_weights = ops.reshape(log_p - log_q, (-1, num))
        value = ops.mean(ops.logsumexp(log_weights, axis=1)) - math.log(num)
        squares = ops.square(ops.stop_gradient(ops.softmax(log_weights, axis=1)))
        along = ops.reshape(log_p - self._by_latents(noise, unconstrained), (-1, num))
        return value, ops.mean(ops.sum(squares * along, axis=1))

    def _score_function(self, noise: Any, unconstrained: Any, log_q: Any, rows: Parts | None) -> tuple[Any, Any]:
        count = unconstrained.shape[0]
        require(count is None or count >= 2, "x", "of at least 2 samples for estimator='score_function'", noise.shape)
        log_weights = ops.stop_gradient(self._log_joint(unconstrained, rows) - log_q)
        count = ops.cast(ops.shape(log_weights)[0], log_weights.dtype)
        others = (ops.sum(log_weights) - log_weights) / (count - 1.0)
        # log q at latents that stay where they are
        at_fixed_latents = log_q - self._by_latents(noise, unconstrained)
        return ops.mean(log_weights), ops.mean((log_weights - others) * at_fixed_latents)

    def _by_latents(self, noise: Any, unconstrained: Any) -> Any:
        """Returns what has the gradient of log q through the latents alone, its parameters kept."""
        return ops.sum(ops.stop_gradient(self.surrogate.score(noise)) * unconstrained, axis=1)

    def _log_joint(self, unconstrained: Any, rows: Parts | None = None) -> Any:
        """Returns log p(x, T(zeta)) + log|det T'(zeta)|."""
        parts, log_det = self.posterior.constrain(unconstrained)
        return self.posterior.log_prob(parts, rows) + log_det

    def noise(self, num_samples: int = 16, seed: int = 0) -> tf.data.Dataset:
        """Returns an endless data set of noise for `fit`.

        Args:
            num_samples: int. Monte Carlo samples of every step. Defaults to 16.
            seed: int.
        """
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        shape = (num_samples, self.surrogate.noise_dim)
        return tf.data.Dataset.counter().map(
            lambda step: tf.random.stateless_normal(shape, tf.stack([tf.cast(seed, tf.int64), step]))
        )

    # === Use ===

    def sample(self, num_samples: int, seed: int | None = None) -> Arrays:
        """Draws latents from the guide.

        Args:
            num_samples: int.
            seed: int or None. Fresh noise by default.

        Returns:
            Dict of float32 arrays `(num_samples, ...)`, by the names of the latents.
        """
        return self._sample(num_samples, seed)[0]

    def log_prob(self, parts: Mapping[str, Any]) -> np.ndarray:
        """Returns the guide's log-density of latents in nats, for guides with a known inverse.

        Args:
            parts: dict of array-likes `(samples, ...)`, by the names of the latents.

        Returns:
            float32 array `(samples,)`.

        Raises:
            ValueError: for planar and radial flows, and for other names or shapes.
        """
        shapes = self.posterior.event_shapes
        arrays = {name: np.asarray(value, "float32") for name, value in parts.items()}
        found = {name: value.shape for name, value in arrays.items()}
        fits = {name: shape[1:] for name, shape in found.items()} == shapes and len({s[0] for s in found.values()}) == 1
        require(fits, "parts", f"(samples, ...) arrays of shapes {shapes}", found)
        unconstrained = self.posterior.unconstrain({name: tf.constant(value) for name, value in arrays.items()})
        # A copy: bijectors remember what they made a tensor from.
        log_det = self.posterior.constrain(tf.identity(unconstrained))[1]
        return np.asarray(self.surrogate.log_prob(unconstrained) - log_det)

    def diagnostics(
        self, num_samples: int = 10_000, num_importance_samples: int = 100, seed: int = EVALUATION_SEED
    ) -> dict[str, float]:
        """Returns how good the guide is.

        Args:
            num_samples: int. Draws from the guide; a multiple of `num_importance_samples`.
            num_importance_samples: int. Samples K of the importance-weighted bound.
            seed: int.

        Returns:
            Dict of `elbo` and `iwelbo` in nats, their standard errors `elbo_error` and `iwelbo_error`, and `pareto_k`, the
            shape of the tail of the importance weights: below 0.5 they are good, above 0.7 of no use.
        """
        multiple = num_importance_samples >= 1 and num_samples > 0 and num_samples % num_importance_samples == 0
        require(multiple, "num_samples", f"a multiple of {num_importance_samples}", num_samples)
        log_weights = self.log_weights(num_samples, seed)
        groups = log_weights.reshape(-1, num_importance_samples)
        bounds = np.logaddexp.reduce(groups, axis=1) - math.log(num_importance_samples)
        return {
            "elbo": float(log_weights.mean()),
            "elbo_error": _standard_error(log_weights),
            "iwelbo": float(bounds.mean()),
            "iwelbo_error": _standard_error(bounds),
            "pareto_k": pareto_k(log_weights),
        }

    def log_weights(self, num_samples: int, seed: int = EVALUATION_SEED) -> np.ndarray:
        """Returns log p(x, z) - log q(z) of draws z from the guide, float64 `(num_samples,)`; their mean is the ELBO."""
        parts, log_q = self._sample(num_samples, seed)
        return self._log_joint_of(parts) - log_q

    def log_predictive(
        self, rows: Mapping[str, Any], num_samples: int = 1000, seed: int = EVALUATION_SEED
    ) -> np.ndarray:
        """Returns the log of the posterior predictive density of rows of data, in nats.

        Args:
            rows: dict of arrays `(rows, ...)` like the target's `data`.
            num_samples: int. Draws that the likelihood is averaged over.
            seed: int.

        Returns:
            Array `(rows,)`.

        Raises:
            ValueError: for a target without its likelihood by rows, and for rows of other names or shapes.
        """
        checked = self.posterior.check_rows(rows)
        parts = {name: tf.constant(value) for name, value in self.sample(num_samples, seed).items()}
        log_likelihoods = np.asarray(self.posterior.log_likelihood(parts, checked), "float64")
        return np.logaddexp.reduce(log_likelihoods, axis=0) - math.log(num_samples)

    def _sample(self, num_samples: int, seed: int | None) -> tuple[Arrays, np.ndarray]:
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        noise = np.random.default_rng(seed).standard_normal((num_samples, self.surrogate.noise_dim), "float32")
        outputs = self.run("sample", noise=noise)
        return outputs, outputs.pop("log_q").astype("float64")

    def _log_joint_of(self, parts: Arrays) -> np.ndarray:
        count = len(next(iter(parts.values())))
        chunks = [
            self.posterior.log_prob({name: tf.constant(value[start : start + CHUNK]) for name, value in parts.items()})
            for start in range(0, count, CHUNK)
        ]
        return np.concatenate(chunks).astype("float64")

    # === Evaluation of exported files ===

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields noise, or latents made of it; no data set is needed.

        Args:
            signature: str.
            batch_size: int. Number of samples.
        """
        rng = np.random.default_rng(EVALUATION_SEED)
        for _ in range(EVALUATION_SAMPLES // batch_size):
            noise = rng.standard_normal((batch_size, self.surrogate.noise_dim), "float32")
            if signature == "sample":
                yield {"noise": noise}
            else:
                yield {"unconstrained": np.asarray(self.surrogate(tf.constant(noise))[0])}

    def task_metric(self) -> TaskMetric:
        """Returns the ELBO of the `sample` signature's latents, in nats."""
        return TaskMetric("elbo", self._elbo_of, higher_is_better=True, absolute_tolerance=0.05, two_sided=True)

    def _elbo_of(self, run: Runner) -> float:
        log_weights = []
        for inputs in self.real_inputs("sample", CHUNK):
            outputs = dict(run("sample", inputs))
            log_q = outputs.pop("log_q")
            log_weights.append(self._log_joint_of(outputs) - log_q)
        return float(np.mean(log_weights))

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments.

        Raises:
            ValueError: for a target that is not a name.
        """
        require(
            isinstance(self.target, str),
            "target",
            "a name known by `register_target` for the model to be saved",
            type(self.target).__name__,
        )
        return {
            **super().get_config(),
            "target": self.target,
            "guide": self.guide,
            "estimator": self.estimator,
            "num_importance_samples": self.num_importance_samples,
            **self.options,
        }

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model as Keras does; writes nothing for a target that is not a name."""
        self.get_config()
        super().save(*args, **kwargs)

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `sample` and, for guides with a cheap inverse, `log_prob`."""
        noise = Spec(("batch", self.surrogate.noise_dim), "float32", "Standard normal noise.")
        outputs = {name: f"Draw of the latent {name!r}." for name in self.posterior.names}
        log_q = {"log_q": "Log-density of the draw under the guide in nats, (batch,)."}
        signatures = {"sample": Signature(self._sample_signature, {"noise": noise}, {**outputs, **log_q})}
        if self.surrogate.has_cheap_log_prob:
            size = self.posterior.num_latents
            signatures["log_prob"] = Signature(
                lambda unconstrained: {"log_prob": self.surrogate.log_prob(unconstrained)},
                {"unconstrained": Spec(("batch", size), "float32", "Unconstrained latents, in the order of `sample`.")},
                {"log_prob": "Log-density of the unconstrained latents under the guide in nats, (batch,)."},
            )
        return signatures

    def _sample_signature(self, noise: Any) -> Parts:
        unconstrained, log_q = self.surrogate(noise)
        parts, log_det = self.posterior.constrain_exported(unconstrained)
        return {**parts, "log_q": log_q - log_det}


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def pareto_k(log_weights: Any) -> float:
    """Estimates the shape k of the generalised Pareto tail of importance weights; moments above 1/k do not exist.

    Args:
        log_weights: array-like `(samples,)`. At least 25.

    Returns:
        float; minus infinity for weights that are all but equal.

    Reference:
        Vehtari et al. 2024, "Pareto smoothed importance sampling" (arXiv 1507.02646): tail of min(S/5, 3 sqrt(S)) weights,
        the estimator of Zhang and Stephens 2009, and a weak prior at 0.5.
    """
    log_weights = np.asarray(log_weights, "float64")
    require(
        log_weights.ndim == 1 and len(log_weights) >= 25, "log_weights", "of shape (25 or more,)", log_weights.shape
    )
    require(bool(np.isfinite(log_weights).all()), "log_weights", "finite", log_weights)
    weights = np.sort(np.exp(log_weights - log_weights.max()))
    size = int(min(len(weights) / 5, 3 * math.sqrt(len(weights))))
    excess = weights[-size:] - weights[-size - 1]
    quartile = excess[int(size / 4 + 0.5) - 1]
    if quartile <= 0.0:
        return -math.inf
    grid = 30 + int(math.sqrt(size))
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile)
    shapes = np.mean(np.log1p(-theta[:, None] * excess), axis=1)
    profile = size * (np.log(-theta / shapes) - shapes - 1)
    mean = np.sum(theta * np.exp(profile - np.logaddexp.reduce(profile)))
    shape = np.mean(np.log1p(-mean * excess))
    return float((size * shape + 10 * 0.5) / (size + 10))


# === ADVI's step sizes ===


@keras.saving.register_keras_serializable(package="zoo")
class ADVIStepSize(keras.optimizers.Optimizer):
    """Step sizes that shrink with the root of the step and with a running mean of squared gradients.

    At step k, with gradient g:  s_k = alpha g^2 + (1 - alpha) s_{k-1},  step = eta k^(-1/2) / (1 + sqrt(s_k)) * g.

    Args:
        learning_rate: float. The scale eta, of which the paper tries 0.01, 0.1, 1, 10 and 100. Defaults to 0.1.
        memory: float in (0, 1]. Weight alpha of the last gradient. Defaults to 0.1.
        **kwargs: arguments of `keras.optimizers.Optimizer`.

    Reference:
        Kucukelbir et al. 2017, section 2.6, equations 10 and 11. Its exponent -1/2 + 1e-16 is -1/2 in float32.
    """

    def __init__(self, learning_rate: Any = 0.1, memory: float = 0.1, **kwargs: Any):
        super().__init__(learning_rate=learning_rate, **kwargs)
        require(0 < memory <= 1, "memory", "in (0, 1]", memory)
        self.memory = memory

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the running means."""
        if not self.built:
            super().build(variables)
            self._squares = [self.add_variable_from_reference(variable, "squares") for variable in variables]

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable."""
        squares = self._squares[self._get_variable_index(variable)]
        step = ops.cast(self.iterations + 1, variable.dtype)
        memory = ops.where(step == 1.0, 1.0, self.memory)
        self.assign(squares, memory * ops.square(gradient) + (1.0 - memory) * squares)
        factor = ops.cast(learning_rate, variable.dtype) / ops.sqrt(step)
        self.assign_sub(variable, factor * gradient / (1.0 + ops.sqrt(squares)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "memory": self.memory}


# === Coordinate ascent for a conjugate model ===


@dataclasses.dataclass(frozen=True)
class ConjugateRegression:
    """The mean-field posterior q(b) q(s2) of a regression with one weight b and noise variance s2.

    Args:
        mean: float. Of q(b), a Gaussian.
        variance: float. Of q(b).
        concentration: float. Of q(s2), an inverse Gamma distribution.
        scale: float. Of q(s2).
        elbo: float64 array. The ELBO in nats after every update of a coordinate.
    """

    mean: float
    variance: float
    concentration: float
    scale: float
    elbo: np.ndarray


def cavi_regression(
    x: Any, y: Any, prior_variance: float = 1.0, tolerance: float = 1e-6, max_iterations: int = 1000
) -> ConjugateRegression:
    """Fits y_i ~ N(x_i b, s2), b | s2 ~ N(0, s2 prior_variance), p(s2) = 1 / s2 by coordinate ascent.

    Each update is the best one given the other factor, q_j proportional to exp(E[log p(x, z)]) over the rest; the ELBO
    never falls. With the improper prior as written, the evidence it bounds is that up to the same constant.

    Args:
        x: array-like `(n,)`. The regressor.
        y: array-like `(n,)`. The response.
        prior_variance: float. Prior variance of b in units of s2. Defaults to 1.
        tolerance: float. Gain of the ELBO, in nats, at which the iteration ends. Defaults to 1e-6.
        max_iterations: int. Updates of both coordinates. Defaults to 1000.

    Raises:
        ValueError: for arrays of other shapes or values that are not finite.
        RuntimeError: if the ELBO still rises after `max_iterations`.

    Reference:
        Blei, Kucukelbir, McAuliffe 2017, section 2.4.
    """
    x, y = np.asarray(x, "float64"), np.asarray(y, "float64")
    require(x.ndim == 1 and x.size > 0, "x", "of shape (n,)", f"shape={x.shape}")
    require(y.shape == x.shape, "y", f"of the shape {x.shape} of `x`", f"shape={y.shape}")
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    require(bool(finite), "y", "finite, as `x` must be", "NaN or infinite values")
    require(prior_variance > 0, "prior_variance", "positive", prior_variance)
    count, squares, products = len(x), float(x @ x + 1.0 / prior_variance), float(x @ y)
    mean, concentration = products / squares, (count + 1) / 2
    digamma = float(tf.math.digamma(tf.constant(concentration, tf.float64)))

    def elbo(variance: float, scale: float) -> float:
        log_s2, precision = math.log(scale) - digamma, concentration / scale
        residual = float(y @ y) - 2 * mean * products + (mean**2 + variance) * squares
        constants = (count + 1) * math.log(2 * math.pi) + math.log(prior_variance)
        log_joint = -0.5 * (constants + (count + 1) * log_s2 + precision * residual) - log_s2
        entropy_b = 0.5 * math.log(2 * math.pi * math.e * variance)
        entropy_s2 = concentration + math.log(scale) + math.lgamma(concentration) - (1 + concentration) * digamma
        return log_joint + entropy_b + entropy_s2

    variance, scale = 1.0 / squares, max(0.5 * float(y @ y), np.finfo("float64").tiny)
    bounds = [elbo(variance, scale)]
    for _ in range(max_iterations):
        variance = scale / (concentration * squares)
        bounds.append(elbo(variance, scale))
        scale = 0.5 * (float(y @ y) - 2 * mean * products + (mean**2 + variance) * squares)
        bounds.append(elbo(variance, scale))
        if bounds[-1] - bounds[-3] < tolerance:
            return ConjugateRegression(mean, variance, concentration, scale, np.array(bounds))
    raise RuntimeError(f"The ELBO still rises after {max_iterations} iterations. Received: {bounds[-3:]}")
