"""Coupling layers: invertible maps that change one part of a signal by a function of the other part.

With `kept` the part that passes through and `changed` the part that is mapped, and `a`, `b` what an arbitrary network,
the conditioner, makes of `kept`:

    additive:  y = x + b                          log|det| = 0
    affine:    y = x * exp(c * tanh(a)) + b       log|det| = sum(c * tanh(a)),  c a learned scalar that starts at 0
    sigmoid:   y = (x + b) * sigmoid(a + 2)       log|det| = sum(log sigmoid(a + 2)),  a + 2 at least -4

All are inverted without inverting the conditioner. The layers know no way of splitting: halves of a vector,
checkerboards and channels are the caller's.

Reference:
    Dinh, Krueger, Bengio 2014, "NICE" (arXiv 1410.8516), section 3.2; Dinh, Sohl-Dickstein, Bengio 2017, "Density
    estimation using Real NVP" (arXiv 1605.08803), section 3.2; Kingma, Dhariwal 2018, "Glow" (arXiv 1807.03039).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from zoo.layers.chain import apply_chain, build_chain

COUPLINGS = ("additive", "affine")
# Bound of the sigmoid coupling: no coupling magnifies by more than 1 / sigmoid(-4) = 56 when it is inverted.
SMALLEST_LOGIT = -4.0


@keras.saving.register_keras_serializable(package="zoo")
class DenseConditioner(keras.layers.Layer):
    """A multilayer perceptron with rectified hidden layers and a linear output.

    Args:
        output_dim: int. Size of the output.
        num_hidden_layers: int. Number of hidden layers.
        hidden_dim: int. Size of each hidden layer.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, output_dim: int, num_hidden_layers: int, hidden_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.output_dim = output_dim
        self.num_hidden_layers = num_hidden_layers
        self.hidden_dim = hidden_dim
        self.stages = [
            keras.layers.Dense(hidden_dim, activation="relu", dtype=self.dtype_policy) for _ in range(num_hidden_layers)
        ]
        self.stages.append(keras.layers.Dense(output_dim, dtype=self.dtype_policy))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        build_chain(self.stages, input_shape)

    def call(self, inputs: Any) -> Any:
        """Maps `(batch, ..., features)` to `(batch, ..., output_dim)`."""
        return apply_chain(self.stages, inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.output_dim)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "output_dim": self.output_dim,
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_dim": self.hidden_dim,
        }


@keras.saving.register_keras_serializable(package="zoo")
class AdditiveCoupling(keras.layers.Layer):
    """Adds a function of the kept part to the changed part; volume-preserving.

    The signal stays in the variables' type under mixed precision, only the conditioner computes in the lower one: both
    directions then add and subtract the same numbers.

    Args:
        conditioner: layer. Maps the kept part to the shape of the changed part.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        NICE, section 3.2, equations 4 and 5.
    """

    def __init__(self, conditioner: keras.layers.Layer, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.conditioner = conditioner

    def build(self, kept_shape: tuple[int | None, ...], changed_shape: tuple[int | None, ...]) -> None:
        """Builds the conditioner.

        Raises:
            ValueError: if the conditioner's output does not fit the changed part.
        """
        if not self.conditioner.built:  # a deserialised one is built already
            self.conditioner.build(kept_shape)
        wanted = (*changed_shape[:-1], changed_shape[-1] * self.outputs_per_feature)
        given = tuple(self.conditioner.compute_output_shape(kept_shape))
        if given != wanted:
            raise ValueError(f"`conditioner` must give outputs of shape {wanted}. Received: {given}")

    @property
    def outputs_per_feature(self) -> int:
        """Number of conditioner outputs for each changed feature."""
        return 1

    def call(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps the changed part.

        Args:
            kept: tensor `(batch, ..., features)`.
            changed: tensor `(batch, ..., features)`.
            training: bool. Passed on to the conditioner.

        Returns:
            Tuple of the mapped part and the log-determinant of the Jacobian, `(batch,)`.
        """
        shift = self._condition(kept, changed, training)
        return changed + shift, ops.zeros_like(_sum_features(changed))

    def inverse(self, kept: Any, changed: Any) -> Any:
        """Undoes `call` outside of training: recovers the changed part from the mapped one."""
        return changed - self._condition(kept, changed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "conditioner": keras.saving.serialize_keras_object(self.conditioner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AdditiveCoupling:
        """Creates the layer and its conditioner from `get_config`."""
        return cls(**{**config, "conditioner": keras.saving.deserialize_keras_object(config["conditioner"])})

    def _condition(self, kept: Any, changed: Any, training: bool = False) -> Any:
        return ops.cast(self.conditioner(kept, training=training), changed.dtype)


@keras.saving.register_keras_serializable(package="zoo")
class AffineCoupling(AdditiveCoupling):
    """Scales and shifts the changed part by functions of the kept part.

    Args:
        conditioner: layer. Maps the kept part to twice the features of the changed part: the raw log-scales, then the
            shifts, along the last axis.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Real NVP, section 3.2, equations 7 and 8; the log-scale is bounded as in its section 4.1.
    """

    def build(self, kept_shape: tuple[int | None, ...], changed_shape: tuple[int | None, ...]) -> None:
        """Builds the conditioner and the scalar that bounds the log-scale."""
        super().build(kept_shape, changed_shape)
        self.log_scale_bound = self.add_weight(name="log_scale_bound", shape=(), initializer="zeros", autocast=False)

    @property
    def outputs_per_feature(self) -> int:
        """Number of conditioner outputs for each changed feature."""
        return 2

    def call(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps the changed part; see `AdditiveCoupling.call`."""
        log_scale, shift = self._log_scale_and_shift(kept, changed, training)
        return changed * ops.exp(log_scale) + shift, _sum_features(log_scale)

    def inverse(self, kept: Any, changed: Any) -> Any:
        """Undoes `call` outside of training: recovers the changed part from the mapped one."""
        log_scale, shift = self._log_scale_and_shift(kept, changed)
        return (changed - shift) * ops.exp(-log_scale)

    def _log_scale_and_shift(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        raw, shift = ops.split(self._condition(kept, changed, training), 2, axis=-1)
        return self.log_scale_bound * ops.tanh(raw), shift


@keras.saving.register_keras_serializable(package="zoo")
class SigmoidCoupling(AdditiveCoupling):
    """Shifts the changed part by one function of the kept part, then shrinks it by another: the scale stays below 1.

    A conditioner that begins at zero begins with no shift and the scale sigmoid(2) = 0.88. The scale stays above 0.018:
    without a bound, a chain of trained couplings divides improbable latents by scales that round to 0.

    Args:
        conditioner: layer. Maps the kept part to twice the features of the changed part: the raw scales, then the
            shifts, along the last axis.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        The code released with Glow (`flow_coupling=1`), which has no lower bound; the paper's table 1 has
        `s = exp(log s)`.
    """

    @property
    def outputs_per_feature(self) -> int:
        """Number of conditioner outputs for each changed feature."""
        return 2

    def call(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps the changed part; see `AdditiveCoupling.call`."""
        logit, shift = self._logit_and_shift(kept, changed, training)
        return (changed + shift) * ops.sigmoid(logit), _sum_features(ops.log_sigmoid(logit))

    def inverse(self, kept: Any, changed: Any) -> Any:
        """Undoes `call` outside of training: recovers the changed part from the mapped one."""
        logit, shift = self._logit_and_shift(kept, changed)
        return changed / ops.sigmoid(logit) - shift

    def _logit_and_shift(self, kept: Any, changed: Any, training: bool = False) -> tuple[Any, Any]:
        raw, shift = ops.split(self._condition(kept, changed, training), 2, axis=-1)
        return ops.maximum(raw + 2.0, SMALLEST_LOGIT), shift


def _sum_features(values: Any) -> Any:
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))
