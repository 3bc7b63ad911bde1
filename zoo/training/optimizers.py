"""Optimisers of language models: Adam and Adagrad that clip the gradients of some weights apart from those of others, and
what weight decay leaves out."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from zoo.arguments import require

# Keras asks with the names of TensorFlow's variables: whole paths that end in ":0"
_NOT_DECAYED = r"(^|/)(bias|gamma|beta)(:0)?$"


def decay_kernels_only(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Leaves biases, and scales and shifts of normalisations, out of an optimiser's weight decay; returns the optimiser.

    Args:
        optimizer: Keras optimiser with `weight_decay`, not built yet.
    """
    optimizer.exclude_from_weight_decay(var_names=[_NOT_DECAYED])
    return optimizer


@keras.saving.register_keras_serializable(package="zoo")
class LayerwiseAdamW(keras.optimizers.AdamW):
    """AdamW with a factor on the learning rate of each variable, its weight decay included.

    Args:
        learning_rate: float or schedule.
        multipliers: sequence of float or None. One factor, not negative, for each variable in the order in which the
            optimiser gets them, which is that of a model's `trainable_variables`; None for 1 throughout.
        **kwargs: arguments of `keras.optimizers.AdamW`.

    Reference:
        Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.2.
    """

    def __init__(self, learning_rate: Any = 1e-3, multipliers: Sequence[float] | None = None, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        valid = multipliers is None or all(factor >= 0 for factor in multipliers)
        require(valid, "multipliers", "None or numbers that are not negative", multipliers)
        self.multipliers = None if multipliers is None else [float(factor) for factor in multipliers]

    def build(self, variables: Any) -> None:
        """Creates the moments."""
        fits = self.multipliers is None or len(self.multipliers) == len(variables)
        require(fits, "multipliers", f"one for each of {len(variables)} variables", len(self.multipliers or ()))
        super().build(variables)

    def _apply_weight_decay(self, variables: Any) -> None:
        """Does nothing: Keras's would not know the factor, which `update_step` does."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Decays and updates one variable."""
        factor = 1.0 if self.multipliers is None else self.multipliers[self._get_variable_index(variable)]
        rate = factor * ops.cast(learning_rate, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            self.assign_sub(variable, variable * rate * ops.cast(self.weight_decay, variable.dtype))
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "multipliers": self.multipliers}


@keras.saving.register_keras_serializable(package="zoo")
class StreamAdam(keras.optimizers.Adam):
    """Adam that clips groups of weights separately and can apply an update only every few steps.

    An auxiliary loss that trains weights of its own must not rescale the gradient of the main loss, which one joint
    clipping norm would do.

    Args:
        learning_rate: float or schedule.
        clip_norm: float or None. Largest global norm of each group's gradient.
        clip_groups: sequence of regular expressions over variable paths; each makes a group, what none matches another.
        update_periods: sequence of `(step, period)`: from that step on, gradients of `period` steps are averaged into one
            update. Steps count from 0.
        **kwargs: arguments of `keras.optimizers.Adam`.

    Reference:
        Rae et al. 2020, section 5.1 (`update_periods`: 4 from step 60,000 on).
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        clip_norm: float | None = None,
        clip_groups: Sequence[str] = (),
        update_periods: Sequence[Sequence[int]] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"`clip_norm` must be positive. Received: clip_norm={clip_norm}")
        if any(step < 0 or period < 1 for step, period in update_periods):
            raise ValueError(f"`update_periods` must hold (step >= 0, period >= 1). Received: {update_periods}")
        self.clip_norm = clip_norm
        self.clip_groups = tuple(clip_groups)
        self.update_periods = tuple((int(step), int(period)) for step, period in sorted(update_periods))
        self._groups: list[int] = []

    def build(self, variables: Any) -> None:
        """Creates moments and, where updates get rarer, gradient sums."""
        if self.built:
            return
        super().build(variables)
        self._groups = [self._group(variable.path) for variable in variables]
        self._sums = []
        if self.update_periods:
            self._sums = [self.add_variable_from_reference(variable, "gradient_sum") for variable in variables]
            self._step = self.add_variable((), initializer="zeros", dtype="int64", name="step")

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Applies (or gathers) gradients."""
        if not self.built:
            # Clipping and sums need what `build` makes, before the parent class would call it.
            self.build(trainable_variables)
        grads = self._clip_by_group(list(grads))
        if not self.update_periods:
            super().apply(grads, trainable_variables)
            return
        for total, grad in zip(self._sums, grads, strict=True):
            total.assign_add(grad)
        period = self._period()
        self._step.assign_add(1)
        due = ops.equal(self._step % period, 0)
        ops.cond(due, lambda: self._update(period, trainable_variables), lambda: None)

    def _update(self, period: Any, trainable_variables: Any) -> None:
        super().apply([ops.cast(t, t.dtype) / ops.cast(period, t.dtype) for t in self._sums], trainable_variables)
        for total in self._sums:
            total.assign(ops.zeros_like(total))

    def _period(self) -> Any:
        period = ops.ones((), "int64")
        for step, value in self.update_periods:
            period = ops.where(self._step >= step, ops.cast(value, "int64"), period)
        return period

    def _group(self, path: str) -> int:
        for index, pattern in enumerate(self.clip_groups):
            if re.search(pattern, path):
                return index
        return len(self.clip_groups)

    def _clip_by_group(self, grads: list[Any]) -> list[Any]:
        if self.clip_norm is None:
            return grads
        for group in set(self._groups):
            members = [i for i, own in enumerate(self._groups) if own == group and grads[i] is not None]
            norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(grads[i], "float32"))) for i in members))
            scale = ops.minimum(1.0, self.clip_norm / ops.maximum(norm, 1e-12))
            for i in members:
                grads[i] = grads[i] * ops.cast(scale, grads[i].dtype)
        return grads

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "clip_norm": self.clip_norm,
            "clip_groups": list(self.clip_groups),
            "update_periods": [list(pair) for pair in self.update_periods],
        }


@keras.saving.register_keras_serializable(package="zoo")
class ClippedAdagrad(keras.optimizers.Optimizer):
    """Adagrad whose step, not its memory of past gradients, is clipped, each variable by itself.

    The sum of squared gradients starts at zero and takes the gradient as it is; only the step is scaled down by
    `clip_norm` over the gradient's norm. Clipping the gradient first, as `clipnorm` does, is another algorithm: Adagrad
    would divide the clipping out again.

    Args:
        learning_rate: float or schedule.
        clip_norm: float or None. Gradient norm of a variable above which its step is scaled down.
        epsilon: float. Added to the root of the sum of squares.
        **kwargs: arguments of `keras.optimizers.Optimizer`.

    Reference:
        Sukhbaatar et al. 2019, section 4, and the optimiser they released.
    """

    def __init__(
        self, learning_rate: Any = 0.07, clip_norm: float | None = None, epsilon: float = 1e-10, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate, **kwargs)
        require(clip_norm is None or clip_norm > 0, "clip_norm", "positive", clip_norm)
        require(epsilon > 0, "epsilon", "positive", epsilon)
        self.clip_norm = clip_norm
        self.epsilon = epsilon

    def build(self, variables: Any) -> None:
        """Creates the sums of squared gradients."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = self.add_optimizer_variables(variables, "accumulator")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        # An embedding's gradient lists a token once per occurrence: only their sums have the norm that is meant
        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        step = ops.cast(learning_rate, variable.dtype) * gradient
        if self.clip_norm is not None:
            norm = ops.sqrt(ops.sum(ops.square(gradient)))
            step = step * ops.minimum(1.0, self.clip_norm / ops.maximum(norm, 1e-12))
        accumulator = self._accumulators[self._get_variable_index(variable)]
        self.assign_add(accumulator, ops.square(gradient))
        self.assign_sub(variable, step / (ops.sqrt(accumulator) + self.epsilon))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "clip_norm": self.clip_norm, "epsilon": self.epsilon}
