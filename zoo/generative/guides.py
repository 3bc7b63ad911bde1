"""Guides: families of densities q(zeta) over R^D that variational inference chooses from.

A guide maps standard normal noise to unconstrained latents zeta and gives log q(zeta) in the same pass:

    mean_field   zeta = mu + sigma * eps                          sigma = softplus(rho) + 1e-5
    full_rank    zeta = mu + L eps                                L lower triangular with a positive diagonal
    low_rank     zeta = mu + d * eps_1 + U eps_2                  covariance diag(d^2) + U U^T, U of R columns
    iaf          eps_k = mu_k(eps_{k-1}) + exp(s_k(eps_{k-1})) * eps_{k-1}, mu_k and s_k autoregressive
    realnvp      affine couplings of alternating halves
    planar       f(e) = e + u tanh(w'e + b)
    radial       f(e) = e + beta (e - c) / (alpha + |e - c|)

Flows start at (`iaf`: near) the identity and have log q(zeta) = log N(eps) - sum_k log|det df_k|. The guides
are Keras layers: their parameters are Keras weights, whatever density library evaluates the target.

Differs from the papers: the networks of `iaf` have direct (masked linear) connections from the input to the shifts, so that
one layer holds every full-covariance Gaussian, and hidden units of tanh, so that log-scales stay bounded far from the
center; the order of the variables is reversed by the masks of every second layer.

Reference:
    Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow" (arXiv 1606.04934); Rezende,
    Mohamed 2015, "Variational inference with normalizing flows" (arXiv 1505.05770); Germain et al. 2015, "MADE" (arXiv
    1502.03509); Kucukelbir et al. 2017, "Automatic differentiation variational inference" (arXiv 1603.00788).

Checked against: autodiff Jacobians, TensorFlow Probability's multivariate normals.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.layers.couplings import AffineCoupling, DenseConditioner
from zoo.ops.probability import LOG_2_PI, standard_normal_log_prob

# Keeps standard deviations away from zero.
SCALE_FLOOR = 1e-5
# Forward substitution, one pass a variable, is exported for at most this many variables.
MAXIMUM_UNROLLED = 32


class Guide(keras.layers.Layer):
    """A density over R^D that is sampled by a map of standard normal noise.

    The signal stays in the variables' type under mixed precision; only networks compute in the lower one.

    Args:
        num_latents: int. Number of unconstrained latents D.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, num_latents: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        require(num_latents >= 1, "num_latents", "at least 1", num_latents)
        self.num_latents = num_latents

    @property
    def noise_dim(self) -> int:
        """Number of noise components for each sample."""
        return self.num_latents

    @property
    def has_cheap_log_prob(self) -> bool:
        """Whether `log_prob` is cheap enough to be exported."""
        return False

    def call(self, noise: Any) -> tuple[Any, Any]:
        """Maps noise to latents.

        Args:
            noise: tensor `(samples, noise_dim)`. Standard normal.

        Returns:
            Tuple of the unconstrained latents `(samples, num_latents)` and their log-density in nats `(samples,)`.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no map of noise to latents.")

    def log_prob(self, unconstrained: Any) -> Any:
        """Returns the log-density in nats, `(samples,)`, of latents `(samples, num_latents)` from anywhere."""
        raise ValueError(f"`guide` must have a known inverse for `log_prob`. Received: {type(self).__name__}")

    def entropy(self) -> Any:
        """Returns the entropy in nats, a scalar."""
        raise ValueError(f"`guide` must have an entropy in closed form. Received: {type(self).__name__}")

    def score(self, noise: Any) -> Any:
        """Returns the gradient of log q with respect to the latents, at the latents of some noise.

        With J the Jacobian of the map, J^T score is the gradient of log q with respect to the noise.

        Args:
            noise: tensor `(samples, noise_dim)`.

        Returns:
            Tensor `(samples, num_latents)`.
        """
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(noise)
            unconstrained, log_q = self(noise)
        jacobian = tape.batch_jacobian(unconstrained, noise)
        gradient = tf.expand_dims(tape.gradient(log_q, noise), -1)
        return tf.squeeze(tf.linalg.solve(jacobian, gradient, adjoint=True), -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "num_latents": self.num_latents}

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)


def inverse_softplus(value: float) -> float:
    """Returns x with log(1 + exp(x)) = value."""
    return math.log(math.expm1(value))


# === Gaussians ===


class _Gaussian(Guide):
    """What the Gaussian guides share: a location, positive scales, and a first scale.

    Args:
        num_latents: int.
        initial_scale: float. Standard deviation at the start. Defaults to 1.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, num_latents: int, initial_scale: float = 1.0, **kwargs: Any):
        super().__init__(num_latents, **kwargs)
        require(initial_scale > SCALE_FLOOR, "initial_scale", f"above {SCALE_FLOOR}", initial_scale)
        self.initial_scale = initial_scale

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        raw = inverse_softplus(self.initial_scale - SCALE_FLOOR)
        self.location = self._weight("location", (self.num_latents,))
        self.raw_scale = self._weight("raw_scale", (self.num_latents,), keras.initializers.Constant(raw))

    @property
    def has_cheap_log_prob(self) -> bool:
        """Whether `log_prob` is cheap enough to be exported."""
        return True

    @property
    def scale(self) -> Any:
        """Positive scales `(num_latents,)`."""
        return ops.softplus(self.raw_scale) + SCALE_FLOOR

    def entropy(self) -> Any:
        """Returns the entropy in nats, a scalar."""
        return self._half_log_det() + 0.5 * self.num_latents * (1.0 + LOG_2_PI)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "initial_scale": self.initial_scale}

    def _half_log_det(self) -> Any:
        """Half the log-determinant of the covariance."""
        return ops.sum(ops.log(self.scale))


@keras.saving.register_keras_serializable(package="zoo")
class MeanFieldGuide(_Gaussian):
    """Independent Gaussians; see `_Gaussian` for the arguments."""

    def call(self, noise: Any) -> tuple[Any, Any]:
        """Maps noise to latents; see `Guide.call`."""
        return self.location + self.scale * noise, standard_normal_log_prob(noise) - self._half_log_det()

    def log_prob(self, unconstrained: Any) -> Any:
        """Returns the log-density in nats."""
        noise = (unconstrained - self.location) / self.scale
        return standard_normal_log_prob(noise) - self._half_log_det()

    def score(self, noise: Any) -> Any:
        """Returns the gradient of log q with respect to the latents."""
        return -noise / self.scale


@keras.saving.register_keras_serializable(package="zoo")
class FullRankGuide(_Gaussian):
    """A Gaussian of any covariance, by its Cholesky factor; see `_Gaussian` for the arguments."""

    @property
    def has_cheap_log_prob(self) -> bool:
        """Whether there are few enough latents for one small pass each."""
        return self.num_latents <= MAXIMUM_UNROLLED

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        super().build(noise_shape)
        self.lower = self._weight("lower", (self.num_latents * (self.num_latents - 1) // 2,))

    @property
    def strictly_lower(self) -> Any:
        """The Cholesky factor `(num_latents, num_latents)` without its diagonal."""
        size = self.num_latents
        # Entry 0 is a zero, the others are the weights row by row.
        positions = np.zeros((size, size), "int32")
        positions[np.tril_indices(size, -1)] = np.arange(size * (size - 1) // 2) + 1
        return ops.take(ops.pad(self.lower, [[1, 0]]), positions, axis=0)

    @property
    def scale_tril(self) -> Any:
        """The Cholesky factor of the covariance, `(num_latents, num_latents)`."""
        return self.strictly_lower + ops.eye(self.num_latents, dtype=self.scale.dtype) * self.scale

    def call(self, noise: Any) -> tuple[Any, Any]:
        """Maps noise to latents; see `Guide.call`."""
        unconstrained = self.location + self.scale * noise + ops.matmul(noise, ops.transpose(self.strictly_lower))
        return unconstrained, standard_normal_log_prob(noise) - self._half_log_det()

    def log_prob(self, unconstrained: Any) -> Any:
        """Returns the log-density in nats: forward substitution, one variable a pass, for runtimes without a solver."""
        offsets, transposed = unconstrained - self.location, ops.transpose(self.strictly_lower)
        noise = ops.zeros_like(offsets)
        for position in np.eye(self.num_latents, dtype="float32"):
            noise = noise + position * (offsets - ops.matmul(noise, transposed)) / self.scale
        return standard_normal_log_prob(noise) - self._half_log_det()

    def score(self, noise: Any) -> Any:
        """Returns the gradient of log q with respect to the latents: -L^(-T) eps."""
        solved = tf.linalg.triangular_solve(self.scale_tril, tf.transpose(noise), lower=True, adjoint=True)
        return -tf.transpose(solved)


@keras.saving.register_keras_serializable(package="zoo")
class LowRankGuide(_Gaussian):
    """A Gaussian whose covariance is a diagonal plus a few outer products.

    Args:
        num_latents: int.
        rank: int. Number of outer products R. Defaults to 2.
        **kwargs: see `_Gaussian`.
    """

    def __init__(self, num_latents: int, rank: int = 2, **kwargs: Any):
        super().__init__(num_latents, **kwargs)
        require(1 <= rank <= num_latents, "rank", f"from 1 to the number of latents, {num_latents}", rank)
        self.rank = rank

    @property
    def noise_dim(self) -> int:
        """Number of noise components for each sample."""
        return self.num_latents + self.rank

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        super().build(noise_shape)
        self.factor = self._weight(
            "factor", (self.num_latents, self.rank), keras.initializers.RandomNormal(stddev=0.01)
        )

    def call(self, noise: Any) -> tuple[Any, Any]:
        """Maps noise to latents; see `Guide.call`."""
        own, shared = noise[:, : self.num_latents], noise[:, self.num_latents :]
        unconstrained = self.location + self.scale * own + ops.matmul(shared, ops.transpose(self.factor))
        return unconstrained, self.log_prob(unconstrained)

    def log_prob(self, unconstrained: Any) -> Any:
        """Returns the log-density in nats."""
        offsets = unconstrained - self.location
        distances = ops.sum(offsets * self._solve(offsets), axis=-1)
        return -0.5 * (distances + self.num_latents * LOG_2_PI) - self._half_log_det()

    def score(self, noise: Any) -> Any:
        """Returns the gradient of log q with respect to the latents."""
        return -self._solve(self(noise)[0] - self.location)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "rank": self.rank}

    def _solve(self, offsets: Any) -> Any:
        """Multiplies rows by the inverse covariance (Woodbury)."""
        scaled, factor = offsets / self.scale, self.factor / ops.expand_dims(self.scale, 1)
        inner = ops.matmul(ops.matmul(scaled, factor), self._capacitance()[0])
        return (scaled - ops.matmul(inner, ops.transpose(factor))) / self.scale

    def _half_log_det(self) -> Any:
        # The matrix determinant lemma
        return super()._half_log_det() + 0.5 * self._capacitance()[1]

    def _capacitance(self) -> tuple[Any, Any]:
        """Returns the inverse and log-determinant of I + U^T diag(d^-2) U."""
        factor = self.factor / ops.expand_dims(self.scale, 1)
        return inverse_and_log_det(ops.eye(self.rank) + ops.matmul(ops.transpose(factor), factor), self.rank)


def inverse_and_log_det(matrix: Any, size: int) -> tuple[Any, Any]:
    """Inverts a small positive definite matrix by Gauss-Jordan elimination, for runtimes without a solver.

    Args:
        matrix: tensor `(size, size)`. Positive definite, so that no pivots need choosing.
        size: int.

    Returns:
        Tuple of the inverse and the log-determinant.
    """
    rows = ops.concatenate([matrix, ops.eye(size)], axis=1)
    log_det = 0.0
    for index in range(size):
        pivot = rows[index, index]
        row = rows[index : index + 1] / pivot
        chosen = np.eye(size, dtype="float32")[:, index : index + 1]
        rows = chosen * row + (1.0 - chosen) * (rows - rows[:, index : index + 1] * row)
        log_det = log_det + ops.log(pivot)
    return rows[:, size:], log_det


# === Flows ===


class _Flow(Guide):
    """A chain of invertible maps of standard normal noise.

    Args:
        num_latents: int.
        num_layers: int. Number of maps K. Defaults to 2.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, num_latents: int, num_layers: int = 2, **kwargs: Any):
        super().__init__(num_latents, **kwargs)
        require(num_layers >= 1, "num_layers", "at least 1", num_layers)
        self.num_layers = num_layers

    def call(self, noise: Any) -> tuple[Any, Any]:
        """Maps noise to latents; see `Guide.call`."""
        values, log_q = noise, standard_normal_log_prob(noise)
        for index in range(self.num_layers):
            values, log_det = self._map(index, values)
            log_q = log_q - log_det
        return values, log_q

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "num_layers": self.num_layers}

    def _map(self, index: int, values: Any) -> tuple[Any, Any]:
        """Applies one map; returns its log-determinant too."""
        raise NotImplementedError(f"{type(self).__name__} defines no map.")


class _NetworkFlow(_Flow):
    """A flow whose maps are given by networks, and which can be inverted.

    Args:
        num_latents: int.
        num_layers: int. Defaults to 2.
        num_hidden_layers: int. Hidden layers of each map's network. Defaults to 1.
        hidden_dim: int. Size of each hidden layer. Defaults to 32.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, num_latents: int, num_layers: int = 2, num_hidden_layers: int = 1, hidden_dim: int = 32, **kwargs: Any
    ):
        super().__init__(num_latents, num_layers, **kwargs)
        require(num_hidden_layers >= 1, "num_hidden_layers", "at least 1", num_hidden_layers)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        self.num_hidden_layers, self.hidden_dim = num_hidden_layers, hidden_dim

    def inverse(self, unconstrained: Any) -> Any:
        """Returns the noise of latents `(samples, num_latents)`: undoes `call`."""
        for index in reversed(range(self.num_layers)):
            unconstrained = self._unmap(index, unconstrained)
        return unconstrained

    def log_prob(self, unconstrained: Any) -> Any:
        """Returns the log-density in nats."""
        return self(self.inverse(unconstrained))[1]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        options = {"num_hidden_layers": self.num_hidden_layers, "hidden_dim": self.hidden_dim}
        return {**super().get_config(), **options}

    def _unmap(self, index: int, values: Any) -> Any:
        """Undoes one map."""
        raise NotImplementedError(f"{type(self).__name__} defines no inverse of its maps.")


@keras.saving.register_keras_serializable(package="zoo")
class AutoregressiveNetwork(keras.layers.Layer):
    """A masked network of tanh units: shifts and log-scales of a variable depend on the variables before it only.

    Args:
        num_variables: int. Number of variables D.
        num_hidden_layers: int.
        hidden_dim: int.
        backwards: bool. Whether the last variable is the first in order. Defaults to False.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        MADE, sections 3 and 4, with direct connections.
    """

    def __init__(
        self, num_variables: int, num_hidden_layers: int, hidden_dim: int, backwards: bool = False, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.num_variables, self.num_hidden_layers = num_variables, num_hidden_layers
        self.hidden_dim, self.backwards = hidden_dim, backwards
        degrees = [self.order + 1]
        # A hidden unit of degree d sees the first d variables; the last variable is of use to none.
        degrees += [1 + np.arange(hidden_dim) % max(num_variables - 1, 1)] * num_hidden_layers
        self.masks = [
            (after[None, :] >= before[:, None]).astype("float32") for before, after in itertools.pairwise(degrees)
        ]
        outputs = np.tile(degrees[0], 2)
        self.output_mask = (outputs[None, :] > degrees[-1][:, None]).astype("float32")
        self.direct_mask = (degrees[0][None, :] > degrees[0][:, None]).astype("float32")

    @property
    def order(self) -> np.ndarray:
        """Place of each variable in the order, from 0."""
        places = np.arange(self.num_variables)
        return places[::-1] if self.backwards else places

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights; the last layer's are small, so that a flow begins near the identity."""
        self.kernels, self.biases = [], []
        for index, mask in enumerate(self.masks):
            self.kernels.append(self.add_weight(name=f"kernel_{index}", shape=mask.shape, initializer="glorot_uniform"))
            self.biases.append(self.add_weight(name=f"bias_{index}", shape=mask.shape[1:], initializer="zeros"))
        shape = self.output_mask.shape
        small = keras.initializers.RandomNormal(stddev=0.01)
        self.output_kernel = self.add_weight(name="output_kernel", shape=shape, initializer=small)
        self.output_bias = self.add_weight(name="output_bias", shape=shape[1:], initializer="zeros")
        self.direct = self.add_weight(name="direct", shape=self.direct_mask.shape, initializer="zeros")

    def call(self, inputs: Any) -> tuple[Any, Any]:
        """Maps `(batch, num_variables)` to shifts and log-scales of the same shape."""
        hidden = inputs
        for kernel, bias, mask in zip(self.kernels, self.biases, self.masks, strict=True):
            hidden = ops.tanh(_masked(hidden, kernel, mask) + bias)
        shift, log_scale = ops.split(
            _masked(hidden, self.output_kernel, self.output_mask) + self.output_bias, 2, axis=-1
        )
        return shift + _masked(inputs, self.direct, self.direct_mask), log_scale

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_variables": self.num_variables,
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_dim": self.hidden_dim,
            "backwards": self.backwards,
        }


def _masked(inputs: Any, kernel: Any, mask: np.ndarray) -> Any:
    kernel = ops.convert_to_tensor(kernel)
    return ops.matmul(inputs, kernel * ops.cast(mask, kernel.dtype))


@keras.saving.register_keras_serializable(package="zoo")
class IAFGuide(_NetworkFlow):
    """Inverse autoregressive flow: one pass to sample, one pass a variable to invert; see `_NetworkFlow`."""

    def __init__(self, num_latents: int, **kwargs: Any):
        super().__init__(num_latents, **kwargs)
        self.networks = [
            AutoregressiveNetwork(
                num_latents,
                self.num_hidden_layers,
                self.hidden_dim,
                backwards=index % 2 == 1,
                dtype=self.dtype_policy,
                name=f"network_{index}",
            )
            for index in range(self.num_layers)
        ]

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        for network in self.networks:
            network.build(noise_shape)

    def _map(self, index: int, values: Any) -> tuple[Any, Any]:
        shift, log_scale = self._shift_and_log_scale(index, values)
        return shift + ops.exp(log_scale) * values, ops.sum(log_scale, axis=-1)

    def _unmap(self, index: int, values: Any) -> Any:
        found = ops.zeros_like(values)
        for place in range(self.num_latents):
            position = (self.networks[index].order == place).astype("float32")
            shift, log_scale = self._shift_and_log_scale(index, found)
            found = found + position * (values - shift) * ops.exp(-log_scale)
        return found

    def _shift_and_log_scale(self, index: int, values: Any) -> tuple[Any, Any]:
        shift, log_scale = self.networks[index](values)
        return ops.cast(shift, values.dtype), ops.cast(log_scale, values.dtype)


@keras.saving.register_keras_serializable(package="zoo")
class RealNVPGuide(_NetworkFlow):
    """Affine couplings of alternating halves, cheap in both directions; see `_NetworkFlow`. Needs two latents."""

    def __init__(self, num_latents: int, **kwargs: Any):
        super().__init__(num_latents, **kwargs)
        require(num_latents >= 2, "guide", "of another family for a single latent", "realnvp")
        self.first = num_latents // 2
        self.couplings = []
        for index in range(self.num_layers):
            conditioner = DenseConditioner(
                2 * self._sizes(index)[1], self.num_hidden_layers, self.hidden_dim, dtype=self.dtype_policy
            )
            self.couplings.append(AffineCoupling(conditioner, dtype=self.dtype_policy, name=f"coupling_{index}"))

    @property
    def has_cheap_log_prob(self) -> bool:
        """Whether `log_prob` is cheap enough to be exported."""
        return True

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights, so that the flow begins as the identity."""
        for index, coupling in enumerate(self.couplings):
            kept, changed = self._sizes(index)
            coupling.build((None, kept), (None, changed))
            kernel = coupling.conditioner.stages[-1].kernel
            # Only the shifts: log-scales begin as zero by their bound, and would not learn if their network did too.
            kernel.assign(kernel * ops.convert_to_tensor(np.repeat([1.0, 0.0], changed), kernel.dtype))

    def _map(self, index: int, values: Any) -> tuple[Any, Any]:
        kept, changed = self._parts(index, values)
        changed, log_det = self.couplings[index](kept, changed)
        return self._join(index, kept, changed), log_det

    def _unmap(self, index: int, values: Any) -> Any:
        kept, changed = self._parts(index, values)
        return self._join(index, kept, self.couplings[index].inverse(kept, changed))

    def _sizes(self, index: int) -> tuple[int, int]:
        sizes = self.first, self.num_latents - self.first
        return sizes if index % 2 == 0 else sizes[::-1]

    def _parts(self, index: int, values: Any) -> tuple[Any, Any]:
        parts = values[:, : self.first], values[:, self.first :]
        return parts if index % 2 == 0 else parts[::-1]

    def _join(self, index: int, kept: Any, changed: Any) -> Any:
        return ops.concatenate([kept, changed] if index % 2 == 0 else [changed, kept], axis=-1)


@keras.saving.register_keras_serializable(package="zoo")
class PlanarGuide(_Flow):
    """Planar maps f(e) = e + u tanh(w'e + b), kept invertible by w'u >= -1; see `_Flow` for the arguments.

    Reference:
        Rezende, Mohamed 2015, section 4.1 and appendix A.1.
    """

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights, so that the flow begins as the identity."""
        self.directions, self.normals, self.offsets = [], [], []
        for index in range(self.num_layers):
            # Not too small: the first u, and with it the gradient, grows with 1/|w|.
            normal = self._weight(f"w_{index}", (self.num_latents,), keras.initializers.RandomNormal(stddev=0.5))
            self.normals.append(normal)
            self.directions.append(self._weight(f"u_{index}", (self.num_latents,), _NoDirection(normal)))
            self.offsets.append(self._weight(f"b_{index}", ()))

    def _map(self, index: int, values: Any) -> tuple[Any, Any]:
        normal = ops.convert_to_tensor(self.normals[index])
        along = ops.sum(normal * self.directions[index])
        change = ops.softplus(along) - 1.0 - along
        direction = self.directions[index] + change * normal / ops.sum(ops.square(normal))
        height = ops.tanh(ops.sum(values * normal, axis=-1, keepdims=True) + self.offsets[index])
        slope = (1.0 - ops.square(height)) * ops.sum(direction * normal)
        return values + direction * height, ops.log(ops.abs(1.0 + ops.sum(slope, axis=-1)))


class _NoDirection(keras.initializers.Initializer):
    """The u of a planar map that is the identity: w'u = log(e - 1), which the constraint maps to 0."""

    def __init__(self, normal: keras.Variable):
        self.normal = normal

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """Returns the value."""
        normal = ops.convert_to_tensor(self.normal)
        return inverse_softplus(1.0) * normal / ops.sum(ops.square(normal))


@keras.saving.register_keras_serializable(package="zoo")
class RadialGuide(_Flow):
    """Radial maps f(e) = e + beta (e - c) / (alpha + |e - c|), kept invertible by beta >= -alpha; see `_Flow`.

    Reference:
        Rezende, Mohamed 2015, section 4.1 and appendix A.2.
    """

    def build(self, noise_shape: tuple[int | None, ...]) -> None:
        """Creates the weights, so that the flow begins as the identity."""
        self.centers, self.raw_alphas, self.raw_betas = [], [], []
        for index in range(self.num_layers):
            # Alpha is 1 and beta, -alpha + softplus of the weight, is 0.
            start = keras.initializers.Constant(inverse_softplus(1.0))
            self.centers.append(self._weight(f"center_{index}", (self.num_latents,), "random_normal"))
            self.raw_alphas.append(self._weight(f"raw_alpha_{index}", (), start))
            self.raw_betas.append(self._weight(f"raw_beta_{index}", (), start))

    def _map(self, index: int, values: Any) -> tuple[Any, Any]:
        alpha = ops.softplus(self.raw_alphas[index])
        beta = ops.softplus(self.raw_betas[index]) - alpha
        offsets = values - self.centers[index]
        # The tiny number keeps the gradient of the root finite at the center itself.
        radius = ops.sqrt(ops.sum(ops.square(offsets), axis=-1, keepdims=True) + 1e-12)
        stretch = beta / (alpha + radius)
        log_det = (self.num_latents - 1) * ops.log(1.0 + stretch)
        log_det = log_det + ops.log(1.0 + stretch - beta * radius / ops.square(alpha + radius))
        return values + stretch * offsets, ops.sum(log_det, axis=-1)


GUIDES: dict[str, type[Guide]] = {
    "mean_field": MeanFieldGuide,
    "full_rank": FullRankGuide,
    "low_rank": LowRankGuide,
    "iaf": IAFGuide,
    "realnvp": RealNVPGuide,
    "planar": PlanarGuide,
    "radial": RadialGuide,
}


def make_guide(family: str, num_latents: int, *, dtype: Any, **options: Any) -> Guide:
    """Returns a guide of a family, with those of the options that the family has.

    Args:
        family: str. One of `GUIDES`.
        num_latents: int.
        dtype: dtype policy of the layer.
        **options: `initial_scale`, `rank`, `num_layers`, `num_hidden_layers`, `hidden_dim`.
    """
    require(family in GUIDES, "guide", f"one of {tuple(GUIDES)}", family)
    gaussian = issubclass(GUIDES[family], _Gaussian)
    names = {"initial_scale"} if gaussian else {"num_layers"}
    names |= {"rank"} if family == "low_rank" else set()
    names |= {"num_hidden_layers", "hidden_dim"} if issubclass(GUIDES[family], _NetworkFlow) else set()
    chosen = {name: value for name, value in options.items() if name in names}
    return GUIDES[family](num_latents, dtype=dtype, name="guide", **chosen)
