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
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.guides import make_guide
from zoo.generative.posteriors import Parts, as_posterior
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel
from zoo.ops.probability import log_mean_exp

ESTIMATORS = ("reparameterization", "stl", "analytic_entropy", "score_function", "iwelbo")
# The draws of every evaluation are the same.
EVALUATION_SEED = 1999
EVALUATION_SAMPLES = 4096
CHUNK = 512


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
        value = ops.mean(log_mean_exp(log_weights, axis=1))
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
