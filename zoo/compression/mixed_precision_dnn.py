"""Mixed precision DNNs: every layer learns the bit widths of its weights and activations, within a budget in kilobytes.

Uhlich et al. 2020 (https://arxiv.org/abs/1905.11452). A uniform quantiser is given by any two of step size d, range qmax
and bits b, which are tied by qmax = (2^(b-1) - 1) d; a power-of-two quantiser by any two of qmin, qmax and b, tied by
qmax = 2^(2^(b-1) - 1) qmin. The choice decides how gradient descent fares: with (d, qmax), and with (qmin, qmax), the
gradients are bounded and never both nonzero. The bit width is then inferred, and a penalty keeps the sizes it gives below
the budgets:

    loss + lambda max(0, size of weights - budget)^2 + lambda max(0, size of activations - budget)^2

Differs from the paper: where qmax is brought to a multiple of d, the gradient passes to qmax alone, so that the two
stay decoupled under rounding too; quantisation may begin at a later update, so that the float training that the paper
begins from is part of the same `fit`.

Checked against: the closed forms of all gradients, the sizes of the paper's networks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.bit_plan import Codes
from zoo.compression.compressed import (
    CompressedModel,
    Point,
    Stage,
    Target,
    check_choice,
    current_value,
    is_weight,
    with_stage,
)
from zoo.compression.image_classifier import CompressedClassifier, check_image_shape, default_policy
from zoo.layers.residual_network import residual_network
from zoo.model import ZooModel

# The two parameters of each parametrisation; the first of each kind is the one that the paper recommends.
PARAMETRIZATIONS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "uniform": {
        "step_and_range": ("step", "maximum"),
        "bits_and_step": ("bits", "step"),
        "bits_and_range": ("bits", "maximum"),
    },
    "power_of_two": {
        "minimum_and_maximum": ("minimum", "maximum"),
        "bits_and_maximum": ("bits", "maximum"),
        "bits_and_minimum": ("bits", "minimum"),
    },
}
MODES = ("fixed", "tqt", "learned", "learned+budget")
ACTIVATION_SIZES = ("sum", "max")
FROM_SCRATCH_STEP = 2.0**-3
# Parameters stay this far inside their ranges, and the step below the range.
MARGIN = 1e-5
MAXIMUM_BITS = 16
# Factor of the squared excess in KB, for the paper's network of about this size.
PENALTY_WEIGHT, PAPER_BUDGET_KB = 0.1, 70.0
_BITS_PER_KB = 8 * 1024
# Operations whose output holds values of their input only, and zeros.
_MOVING = ("MaxPool", "Flatten", "Reshape", "Permute", "Dropout", "SpatialDropout", "ZeroPadding", "Cropping")
# What a logarithm of base 2 may be off by; bit widths of neighbouring sizes are further apart up to `MAXIMUM_BITS`.
_LOG2_ERROR = 5e-6


# === Quantisers: pure functions ===


def uniform(x: tf.Tensor, step: tf.Tensor, maximum: tf.Tensor, signed: bool = True) -> tf.Tensor:
    """Rounds to multiples of a step, half away from zero, up to a range.

    Args:
        x: float tensor.
        step: scalar d.
        maximum: scalar qmax.
        signed: bool. Negative values become 0 where not.

    Returns:
        Tensor of the shape of `x`. Gradients are the paper's (U3): of `x` inside the range; of `step` by the rounding
        error inside; of `maximum` by the sign outside.

    Reference:
        Uhlich et al. 2020, section 2, equation 3.
    """

    @tf.custom_gradient
    def quantize(x: tf.Tensor, step: tf.Tensor, maximum: tf.Tensor) -> Any:
        one, zero = tf.ones((), x.dtype), tf.zeros((), x.dtype)
        magnitude = tf.abs(x) if signed else tf.maximum(x, zero)
        sign = tf.where(x < 0, -one if signed else zero, one)
        within = magnitude <= maximum
        y = sign * tf.where(within, step * tf.floor(magnitude / step + 0.5), maximum)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            counted = within if signed else within & (x >= 0)
            error = tf.where(counted, (y - x) / step, zero)
            outside = tf.where(within, zero, sign)
            return (
                tf.where(counted, upstream, zero),
                tf.reduce_sum(upstream * error),
                tf.reduce_sum(upstream * outside),
            )

        return y, gradient

    return quantize(x, step, maximum)


def power_of_two(x: tf.Tensor, minimum: tf.Tensor, maximum: tf.Tensor, signed: bool = True) -> tf.Tensor:
    """Rounds to powers of two between two bounds.

    Args:
        x: float tensor.
        minimum: scalar qmin, a power of two.
        maximum: scalar qmax, a power of two.
        signed: bool. Signed values have no zero; unsigned ones are 0 below `minimum / sqrt(2)`.

    Returns:
        Tensor of the shape of `x`. Gradients are the paper's, with the sign that its equation omits: of `minimum` below
        it, of `maximum` above it, of `x` by the slope of the power between them.

    Reference:
        Uhlich et al. 2020, section 2, equation 5.
    """

    @tf.custom_gradient
    def quantize(x: tf.Tensor, minimum: tf.Tensor, maximum: tf.Tensor) -> Any:
        one, zero = tf.ones((), x.dtype), tf.zeros((), x.dtype)
        magnitude = tf.abs(x) if signed else x
        sign = tf.where(x < 0, -one, one) if signed else one
        above = magnitude > maximum
        between = (magnitude > minimum) & ~above
        below = ~between & ~above
        if not signed:
            below &= magnitude >= minimum * (2.0**-0.5)
        positive = tf.where(between, magnitude, one)
        power = tf.pow(2.0 * one, tf.floor(0.5 + _log2(positive)))
        y = sign * tf.where(above, maximum, tf.where(between, power, tf.where(below, minimum, zero)))

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            signed_upstream = upstream * sign
            return (
                tf.where(between, upstream * power / positive, zero),
                tf.reduce_sum(tf.where(below, signed_upstream, zero)),
                tf.reduce_sum(tf.where(above, signed_upstream, zero)),
            )

        return y, gradient

    return quantize(x, minimum, maximum)


QUANTIZERS = {"uniform": uniform, "power_of_two": power_of_two}


def _round_activation(x: tf.Tensor, step: Any, maximum: Any) -> tf.Tensor:
    """Does what `uniform` does to the output of a rectifier and a range that is a multiple of the step, in few operations.

    Exported graphs have it instead: other operations than these would keep converters from moving transpositions out.
    """
    return tf.minimum(tf.floor(x / step + 0.5) * step, maximum)


def round_to_power_of_two(value: tf.Tensor) -> tf.Tensor:
    """Returns `2^round(log2 value)`; its gradient is the ratio of the rounded value to the value."""
    return tf.pow(2.0 * tf.ones_like(value), _round(_log2(value)))


def _log2(value: tf.Tensor) -> tf.Tensor:
    return tf.math.log(value) / math.log(2.0)


@tf.custom_gradient
def _round(value: tf.Tensor) -> Any:
    return tf.floor(value + 0.5), lambda upstream: upstream


@tf.custom_gradient
def _ceil(value: tf.Tensor) -> Any:
    return tf.math.ceil(value - _LOG2_ERROR), lambda upstream: upstream


@tf.custom_gradient
def _snap(maximum: tf.Tensor, step: tf.Tensor) -> Any:
    """Returns the multiple of the step nearest to a range; the gradient goes to the range alone."""
    return tf.floor(maximum / step + 0.5) * step, lambda upstream: (upstream, tf.zeros_like(step))


@tf.custom_gradient
def _limited(value: tf.Tensor, limit: tf.Tensor) -> Any:
    """Returns a value whose gradient is clipped, element by element, to `[-limit, limit]`."""
    return tf.identity(value), lambda upstream: (tf.clip_by_value(upstream, -limit, limit), tf.zeros_like(limit))


# === Parametrisations ===


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a quantiser rounds to.

    Args:
        smallest: tensor. Step d, or qmin.
        largest: tensor. Range qmax.
        bits: tensor. Bit width.
    """

    smallest: tf.Tensor
    largest: tf.Tensor
    bits: tf.Tensor


def grid(quantizer: str, parameters: Mapping[str, tf.Tensor], signed: bool = True, hardware: bool = True) -> Grid:
    """Returns what a quantiser rounds to, from whichever two parameters are given.

    Gradients follow the chain rule from `uniform` and `power_of_two`, which gives the paper's for all parametrisations.

    Args:
        quantizer: str. `"uniform"` or `"power_of_two"`.
        parameters: mapping from two of `"step"`, `"minimum"`, `"maximum"` and `"bits"` to tensors of one shape.
        signed: bool.
        hardware: bool. Whether steps and bounds are powers of two, and bits whole numbers.

    Reference:
        Uhlich et al. 2020, sections 2 and 3.
    """
    make = {"uniform": _uniform_grid, "power_of_two": _power_of_two_grid}[quantizer]
    return make(parameters, signed, hardware)


def _uniform_grid(parameters: Mapping[str, tf.Tensor], signed: bool, hardware: bool) -> Grid:
    rounded = round_to_power_of_two if hardware else tf.identity
    if "bits" not in parameters:
        step, maximum = rounded(parameters["step"]), parameters["maximum"]
        maximum = _snap(maximum, step) if hardware else maximum
        return Grid(step, maximum, uniform_bits(step, maximum, signed, hardware))
    bits = _round(parameters["bits"]) if hardware else parameters["bits"]
    levels = tf.pow(2.0 * tf.ones_like(bits), bits - float(signed)) - 1.0
    step = rounded(parameters["step"] if "step" in parameters else parameters["maximum"] / levels)
    return Grid(step, levels * step, bits)


def _power_of_two_grid(parameters: Mapping[str, tf.Tensor], signed: bool, hardware: bool) -> Grid:
    rounded = round_to_power_of_two if hardware else tf.identity
    bounds = {name: rounded(value) for name, value in parameters.items() if name != "bits"}
    if "bits" not in parameters:
        minimum, maximum = bounds["minimum"], bounds["maximum"]
        return Grid(minimum, maximum, power_of_two_bits(minimum, maximum, signed, hardware))
    bits = _round(parameters["bits"]) if hardware else parameters["bits"]
    ratio = tf.pow(2.0 * tf.ones_like(bits), _octaves(bits, signed))
    minimum = bounds["minimum"] if "minimum" in bounds else bounds["maximum"] / ratio
    return Grid(minimum, bounds["maximum"] if "maximum" in bounds else minimum * ratio, bits)


def _octaves(bits: tf.Tensor, signed: bool) -> tf.Tensor:
    """Returns log2(qmax / qmin); without a sign, one code is zero."""
    return tf.pow(2.0 * tf.ones_like(bits), bits - float(signed)) - (1.0 if signed else 2.0)


def uniform_bits(step: tf.Tensor, maximum: tf.Tensor, signed: bool = True, whole: bool = True) -> tf.Tensor:
    """Returns the bit width that a uniform quantiser needs: `ceil(log2(maximum / step + 1) + signed)`."""
    bits = _log2(maximum / step + 1.0) + float(signed)
    return _ceil(bits) if whole else bits


def power_of_two_bits(minimum: tf.Tensor, maximum: tf.Tensor, signed: bool = True, whole: bool = True) -> tf.Tensor:
    """Returns the bit width that a power-of-two quantiser needs: one code for each power, a sign or a zero."""
    codes = _log2(maximum / minimum) + (1.0 if signed else 2.0)
    bits = _log2(codes) + float(signed)
    return _ceil(bits) if whole else bits


def quantize(
    x: tf.Tensor,
    quantizer: str,
    parameters: Mapping[str, tf.Tensor],
    signed: bool = True,
    hardware: bool = True,
) -> tf.Tensor:
    """Quantises a tensor.

    Args:
        x: float tensor.
        quantizer: str. `"uniform"` or `"power_of_two"`.
        parameters: mapping from name to scalar; see `grid` for this and what follows.
        signed: bool.
        hardware: bool.
    """
    chosen = grid(quantizer, parameters, signed, hardware)
    return QUANTIZERS[quantizer](x, chosen.smallest, chosen.largest, signed)


def kilobytes(bits: tf.Tensor, counts: Any) -> tf.Tensor:
    """Returns the size of tensors in KB, one entry each.

    Args:
        bits: tensor `(num_tensors,)`.
        counts: array-like `(num_tensors,)`. Numbers of elements.
    """
    return bits * tf.constant(np.asarray(counts, "float32") / _BITS_PER_KB)


# === Initial values and ranges of the parameters ===


def initial_parameters(
    quantizer: str, names: Sequence[str], largest: tf.Tensor, bits: int, signed: bool
) -> dict[str, tf.Tensor]:
    """Returns parameters that fit trained tensors.

    Args:
        quantizer: str.
        names: pair of str. The parameters to return.
        largest: tensor `(num_tensors,)`. Largest absolute values; 0 (a constant tensor) gives the step from scratch.
        bits: int.
        signed: bool.

    Reference:
        Uhlich et al. 2020, appendix on implementation; the official code rounds up above 4 bits.
    """
    levels = 2.0 ** (bits - signed) - 1
    known = tf.where(largest > 0, largest, FROM_SCRATCH_STEP * levels)
    widths = tf.fill(tf.shape(largest), float(bits))
    if quantizer == "power_of_two":
        maximum = round_to_power_of_two(known)
        values = {"bits": widths, "maximum": maximum, "minimum": maximum / tf.pow(2.0, _octaves(widths, signed))}
    else:
        exponent = _log2(known / levels)
        exponent = tf.floor(exponent + _LOG2_ERROR) if bits <= 4 else tf.math.ceil(exponent - _LOG2_ERROR)
        step = tf.clip_by_value(tf.pow(2.0, exponent), 2.0**-8, 1.0)
        values = {"bits": widths, "step": step, "maximum": step * levels}
    return valid_parameters(quantizer, {name: values[name] for name in names}, signed)


def valid_parameters(quantizer: str, parameters: Mapping[str, tf.Tensor], signed: bool) -> dict[str, tf.Tensor]:
    """Returns parameters brought back into their ranges, the step (or qmin) below the range qmax.

    Args:
        quantizer: str.
        parameters: mapping from name to tensor.
        signed: bool. True for weights, False for activations.
    """
    most = (127.0 if signed else 255.0) - MARGIN
    ranges = {
        "bits": (2.0 if signed and quantizer == "uniform" else 1.0, float(MAXIMUM_BITS)),
        "step": (2.0**-8 + MARGIN, 1.0 - MARGIN),
        "minimum": (2.0 ** (-16 if signed else -14) + MARGIN, most - MARGIN),
        "maximum": (2.0**-8 + MARGIN, most),
    }
    valid = {name: tf.clip_by_value(value, *ranges[name]) for name, value in parameters.items()}
    lower = "step" if quantizer == "uniform" else "minimum"
    if lower in valid and "maximum" in valid:
        first, second = valid[lower], valid["maximum"]
        valid["maximum"] = tf.maximum(first, second)
        valid[lower] = tf.minimum(tf.minimum(first, second), valid["maximum"] - MARGIN)
    return valid


# === The stage ===


@keras.saving.register_keras_serializable(package="zoo")
class LearnedBitwidthStage(Stage):
    """Rounds kernels, biases and the outputs of rectifiers to grids that are learned, one for each tensor.

    Outputs of other operations stay as they are, as do the parameters of normalisations. Within the ranges of the paper,
    steps are 2^-8 to 1, weights reach 127 and activations 255: a model of other scales must be rescaled first.

    Args:
        mode: str. `"fixed"` (bits and ranges stay), `"tqt"` (bits stay, ranges are learned), `"learned"`, or
            `"learned+budget"` (with the penalty, and the gradients of a grid's parameters clipped to its step).
        quantizer: str. `"uniform"` or `"power_of_two"`.
        parametrization: str or None. A key of `PARAMETRIZATIONS[quantizer]`; the paper's choice by default.
        bits: int. Initial width of weights and biases.
        activation_bits: int or None. Initial width of activations; None leaves them as they are.
        weight_budget_kb: float or None. Most KB (1024 bytes) that weights and biases may take.
        activation_budget_kb: float or None. Most KB that the activations of one example may take.
        activation_size: str. Whether the `"sum"` of all activations or the `"max"`, the largest one, is meant.
        penalty_weight: float. Factor of the squared excess in KB. The paper's 0.1 is for networks of about 70 KB; for
            others it is divided by the square of the ratio of sizes.
        from_scratch: bool. Whether the weights are not trained yet: uniform grids then begin with a step of 1/8.
        delayed: bool. Whether `quantize_from` may put off the quantisation to a later update.

    Reference:
        Uhlich et al. 2020, sections 3 and 4.
    """

    order = 3

    def __init__(
        self,
        mode: Literal["fixed", "tqt", "learned", "learned+budget"] = "learned",
        quantizer: Literal["uniform", "power_of_two"] = "uniform",
        parametrization: str | None = None,
        bits: int = 4,
        activation_bits: int | None = 4,
        weight_budget_kb: float | None = None,
        activation_budget_kb: float | None = None,
        activation_size: Literal["sum", "max"] = "sum",
        penalty_weight: float = 0.1,
        from_scratch: bool = False,
        delayed: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("mode", mode, MODES)
        check_choice("quantizer", quantizer, tuple(PARAMETRIZATIONS))
        check_choice("activation_size", activation_size, ACTIVATION_SIZES)
        _check_bits("bits", bits, 1 if quantizer == "power_of_two" else 2)
        if activation_bits is not None:
            _check_bits("activation_bits", activation_bits, 1)
        self.parametrization = _parametrization(mode, quantizer, parametrization)
        _check_budgets(mode, weight_budget_kb, activation_budget_kb, activation_bits, penalty_weight)
        self.mode, self.quantizer = mode, quantizer
        self.bits, self.activation_bits = bits, activation_bits
        self.weight_budget_kb, self.activation_budget_kb = weight_budget_kb, activation_budget_kb
        self.activation_size, self.penalty_weight = activation_size, penalty_weight
        self.from_scratch, self.delayed = from_scratch, delayed
        self._known = _Known()

    # === State ===

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the parameters of the grids, from the present weights unless `from_scratch`.

        Raises:
            ValueError: if the smallest grids do not fit into a budget; says the smallest reachable size.
        """
        known = self._known
        known.targets = [target for target in targets if is_weight(target)]
        if self.activation_bits is not None:
            known.points = [point for point in points if not point.fused and is_rectifier(point.operation)]
            known.elements = [_elements(point.operation) for point in known.points]
        values = [current_value(target) for target in known.targets]
        self._weight_parameters = self._create("weight", self._initial_weights(values, self.from_scratch))
        self._activation_parameters = self._create("activation", self._initial_activations())
        if self.delayed:
            self.num_updates = self._counter("num_updates")
            self.first_update = self._counter("first_update")
        self._check_reachable()

    def quantize_from(self, update: int) -> None:
        """Puts off quantisation to a later update, when the grids are set from the weights as they are then.

        Args:
            update: int. Number of float updates; 0 quantises at once.

        Raises:
            ValueError: for a stage without `delayed`, or a negative number.
        """
        if not self.delayed or update < 0:
            raise ValueError(
                f"`update` must be 0 or more, and the stage made with `delayed=True`. "
                f"Received: update={update!r}, delayed={self.delayed}"
            )
        self.first_update.assign(update)

    def _counter(self, name: str) -> keras.Variable:
        return self.add_weight(name=name, shape=(), dtype="int64", initializer="zeros", trainable=False)

    def _create(self, group: str, initial: Mapping[str, tf.Tensor]) -> dict[str, keras.Variable]:
        variables = {}
        for name, value in initial.items() if initial[self._names[0]].shape[0] else ():
            trainable = self.mode.startswith("learned") or (self.mode == "tqt" and name != "bits")
            variables[name] = self.add_weight(
                name=f"{group}_{name}",
                shape=value.shape,
                initializer="zeros",
                trainable=trainable,
                autocast=False,
            )
            variables[name].assign(value)
        return variables

    @property
    def _names(self) -> tuple[str, str]:
        return PARAMETRIZATIONS[self.quantizer][self.parametrization]

    def _initial_weights(self, values: Sequence[tf.Tensor], from_scratch: bool) -> dict[str, tf.Tensor]:
        largest = tf.stack([tf.reduce_max(tf.abs(tf.cast(value, "float32"))) for value in values])
        largest = tf.zeros_like(largest) if from_scratch else largest
        return initial_parameters(self.quantizer, self._names, largest, self.bits, signed=True)

    def _initial_activations(self) -> dict[str, tf.Tensor]:
        unknown = tf.zeros(len(self._known.points))
        return initial_parameters(self.quantizer, self._names, unknown, self.activation_bits or 1, signed=False)

    # === Grids ===

    def _grid(self, signed: bool) -> Grid:
        """Returns the grids of all weights (signed) or activations, as vectors.

        Within a training step there is one tensor for task and penalty, since what is clipped is the sum of their
        gradients.
        """
        known = self._known
        if known.frozen is not None and not signed:
            return known.frozen
        key = (signed, _graph())
        if known.in_step and key in known.grids:
            return known.grids[key]
        variables = self._weight_parameters if signed else self._activation_parameters
        values = {name: variable.value for name, variable in variables.items()}
        if self.mode == "learned+budget":
            values = self._with_limits(values, signed)
        made = grid(self.quantizer, values, signed)
        if known.in_step:
            known.grids[key] = made
        return made

    def _with_limits(self, values: Mapping[str, tf.Tensor], signed: bool) -> dict[str, tf.Tensor]:
        lower = "step" if self.quantizer == "uniform" else "minimum"
        limit = values[lower] if lower in values else grid(self.quantizer, values, signed).smallest
        limit = tf.stop_gradient(limit)
        return {name: value if name == "bits" else _limited(value, limit) for name, value in values.items()}

    def _quantize(self, value: tf.Tensor, index: int, signed: bool) -> tf.Tensor:
        chosen = self._grid(signed)
        x = tf.cast(value, "float32")
        is_deployed = self._known.frozen is not None and not signed and self.quantizer == "uniform"
        if is_deployed:
            y = _round_activation(x, chosen.smallest[index], chosen.largest[index])
        else:
            y = QUANTIZERS[self.quantizer](x, chosen.smallest[index], chosen.largest[index], signed)
        active = self._active()
        y = y if active is True else x if active is False else tf.where(active, y, x)
        return tf.cast(y, value.dtype)

    def _active(self) -> bool | tf.Tensor:
        if not self.delayed:
            return True
        if self._known.frozen is not None:
            return self._known.frozen_active
        return self.num_updates.value >= self.first_update.value

    # === What the compressed model calls ===

    def transforms(self, target: Target) -> bool:
        """Whether a variable is a kernel or a bias."""
        return id(target.variable) in self._known.target_index

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Rounds a weight."""
        return self._quantize(value, self._known.target_index[id(target.variable)], signed=True)

    def observes(self, point: Point) -> bool:
        """Whether an operation is a rectifier."""
        return id(point.operation) in self._known.point_index

    def observe(self, point: Point, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Rounds an activation."""
        index = self._known.point_index[id(point.operation)]
        self._known.see(index, value.shape)
        return self._quantize(value, index, signed=False)

    def before_step(self) -> None:
        """Begins a step: grids are computed anew."""
        self._known.begin_step()

    def after_step(self) -> None:
        """Brings the parameters back into their ranges, and sets them where quantisation is about to begin."""
        self._known.end_step()
        for variables, signed in ((self._weight_parameters, True), (self._activation_parameters, False)):
            valid = valid_parameters(self.quantizer, {n: v.value for n, v in variables.items()}, signed)
            for name, variable in variables.items():
                if variable.trainable:
                    variable.assign(valid[name])
        if self.delayed:
            self.num_updates.assign(self.num_updates.value + 1)
            begins = (self.num_updates.value == self.first_update.value) & (self.first_update.value > 0)
            tf.cond(begins, self._initialize_from_weights, tf.no_op)

    def _initialize_from_weights(self) -> tf.Operation | None:
        values = [target.variable.value for target in self._known.targets]
        for name, value in self._initial_weights(values, from_scratch=False).items():
            self._weight_parameters[name].assign(value)
        for name, variable in self._activation_parameters.items():
            variable.assign(self._initial_activations()[name])
        return tf.no_op() if not tf.executing_eagerly() else None

    def penalty(self) -> tf.Tensor | None:
        """Returns the squared excess over the budgets; None where there is none."""
        if self.mode != "learned+budget":
            return None
        excess = []
        if self.weight_budget_kb is not None:
            excess.append(self._weight_kb() - self.weight_budget_kb)
        if self.activation_budget_kb is not None:
            self._check_reachable()
            excess.append(self._activation_kb() - self.activation_budget_kb)
        total = self.penalty_weight * sum(tf.square(tf.maximum(each, 0.0)) for each in excess)
        active = self._active()
        return total if active is True else tf.where(active, total, 0.0)

    def deployment(self) -> contextlib.AbstractContextManager | None:
        """Returns the context in which activations are rounded by constants, in graphs to be exported."""
        return self._frozen_grid() if self._known.points else None

    @contextlib.contextmanager
    def _frozen_grid(self) -> Iterator[None]:
        with tf.init_scope():
            self._known.frozen_active = bool(self._active())
            made = self._grid(signed=False)
            self._known.frozen = Grid(*(np.asarray(each) for each in (made.smallest, made.largest, made.bits)))
        try:
            yield
        finally:
            self._known.frozen = None

    # === Sizes ===

    def weight_bits(self) -> dict[str, int]:
        """Returns the bit width of every quantised weight and bias, by path."""
        bits = np.asarray(self._grid(signed=True).bits)
        return {target.path: int(each) for target, each in zip(self._known.targets, bits, strict=True)}

    def activation_bit_widths(self) -> dict[str, int]:
        """Returns the bit width of every quantised activation, by path of the operation."""
        bits = np.asarray(self._grid(signed=False).bits if self._known.points else ())
        return {point.path: int(each) for point, each in zip(self._known.points, bits, strict=True)}

    def product_bits(self, target: Target) -> tuple[int | None, int | None]:
        """Returns the bits of a kernel, and of the activation that its layer reads where the graph tells which."""
        if target.kind != "kernel":
            return None, None
        widths = {id(point.operation): point.path for point in self._known.points}
        sources = [_source(tensor) for tensor in _inputs(target.layer)]
        bits = self.activation_bit_widths()
        known = [bits[widths[id(source)]] for source in sources if id(source) in widths]
        # None where one of several calls reads what is not rounded, as images are not
        is_known = known and len(known) == len(sources)
        return self.weight_bits()[target.path], max(known) if is_known else None

    def weight_kb(self) -> float:
        """Returns the size of the quantised weights and biases in KB."""
        return float(self._weight_kb())

    def activation_kb(self, activation_size: Literal["sum", "max"] | None = None) -> float:
        """Returns the size of the quantised activations of one example in KB.

        Args:
            activation_size: str or None. `"sum"`, `"max"`, or as the stage was made.

        Raises:
            ValueError: for a model that is not functional before it has been called, and for dynamic sizes.
        """
        return float(self._activation_kb(activation_size))

    def within_budgets(self) -> tf.Tensor:
        """Returns whether the sizes keep the budgets; false before quantisation begins."""
        holds = tf.convert_to_tensor(self._active())
        if self.weight_budget_kb is not None:
            holds &= self._weight_kb() <= self.weight_budget_kb
        if self.activation_budget_kb is not None:
            holds &= self._activation_kb() <= self.activation_budget_kb
        return holds

    def _weight_kb(self) -> tf.Tensor:
        counts = [math.prod(target.shape) for target in self._known.targets]
        return tf.reduce_sum(kilobytes(self._grid(signed=True).bits, counts))

    def _activation_kb(self, activation_size: Literal["sum", "max"] | None = None) -> tf.Tensor:
        size = activation_size or self.activation_size
        sizes = kilobytes(self._grid(signed=False).bits, self._activation_counts(size))
        return tf.reduce_sum(sizes) if size == "sum" else tf.reduce_max(sizes)

    def _activation_counts(self, activation_size: str) -> list[int]:
        reduce = {"sum": sum, "max": max}[activation_size]
        return [reduce(elements) for elements in self._known.known_elements()]

    def _check_reachable(self) -> None:
        known = self._known
        weights = sum(math.prod(target.shape) for target in known.targets)
        least = weights * (1 if self.quantizer == "power_of_two" else 2) / _BITS_PER_KB
        _check_budget("weight_budget_kb", self.weight_budget_kb, least)
        if self.activation_budget_kb is not None and all(known.elements):
            if not known.points:
                raise ValueError(
                    f"`activation_budget_kb` needs a model with rectifiers, such as ReLU, whose outputs are quantised. "
                    f"Received: activation_budget_kb={self.activation_budget_kb!r}"
                )
            reduce = {"sum": sum, "max": max}[self.activation_size]
            least = reduce(self._activation_counts(self.activation_size)) / _BITS_PER_KB
            _check_budget("activation_budget_kb", self.activation_budget_kb, least)

    # === Integers ===

    def integer_weights(self, model: CompressedModel) -> dict[str, Codes]:
        """Returns every quantised weight and bias as integers with a scale, by path.

        Args:
            model: `CompressedModel` that this stage belongs to.
        """
        made = self._grid(signed=True)
        scales, bits = np.asarray(made.smallest), np.asarray(made.bits)
        exponential = self.quantizer == "power_of_two"
        return {
            target.path: Codes(
                np.round(np.asarray(model.transformed(target), "float64") / scales[index]).astype("int64"),
                np.float32(scales[index]),
                int(bits[index]),
                exponential,
            )
            for index, target in enumerate(self._known.targets)
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "mode": self.mode,
            "quantizer": self.quantizer,
            "parametrization": self.parametrization,
            "bits": self.bits,
            "activation_bits": self.activation_bits,
            "weight_budget_kb": self.weight_budget_kb,
            "activation_budget_kb": self.activation_budget_kb,
            "activation_size": self.activation_size,
            "penalty_weight": self.penalty_weight,
            "from_scratch": self.from_scratch,
            "delayed": self.delayed,
        }


class _Known:
    """What a stage knows of its model and of the running step; an object of its own, so that Keras does not track it."""

    def __init__(self) -> None:
        self._targets: list[Target] = []
        self._points: list[Point] = []
        self.target_index: dict[int, int] = {}
        self.point_index: dict[int, int] = {}
        # Of each activation, the numbers of elements of one example at each place that it is computed
        self.elements: list[list[int]] = []
        self._static: list[bool] = []
        self.in_step = False
        self.grids: dict[Any, Grid] = {}
        self.frozen: Grid | None = None
        self.frozen_active = True

    @property
    def targets(self) -> list[Target]:
        return self._targets

    @targets.setter
    def targets(self, targets: list[Target]) -> None:
        self._targets = targets
        self.target_index = {id(target.variable): index for index, target in enumerate(targets)}

    @property
    def points(self) -> list[Point]:
        return self._points

    @points.setter
    def points(self, points: list[Point]) -> None:
        self._points = points
        self.point_index = {id(point.operation): index for index, point in enumerate(points)}

    def begin_step(self) -> None:
        self.in_step, self.grids = True, {}
        self._static = self._static or [bool(each) for each in self.elements]
        self.elements = [each if static else [] for each, static in zip(self.elements, self._static, strict=True)]

    def end_step(self) -> None:
        # The tensors of a step must not be kept beyond it
        self.in_step, self.grids = False, {}

    def see(self, index: int, shape: tf.TensorShape) -> None:
        """Takes down the size of an activation where the model itself does not tell."""
        self._static = self._static or [bool(each) for each in self.elements]
        repeated = self.in_step or not self.elements[index]
        if not self._static[index] and repeated and shape[1:].is_fully_defined():
            self.elements[index].append(math.prod(shape[1:]))

    def known_elements(self) -> list[list[int]]:
        for point, elements in zip(self.points, self.elements, strict=True):
            if not elements:
                raise ValueError(
                    f"The size of the activation {point.path!r} is not known: call the model first, on inputs of a "
                    f"static size. Received: model not called, or a dynamic size"
                )
        return self.elements


def _graph() -> int:
    """Returns what tells the tensors of one graph from those of another; the tensors of a loop stay inside it."""
    return 0 if tf.executing_eagerly() else id(tf.compat.v1.get_default_graph())


def is_rectifier(operation: keras.Operation) -> bool:
    """Whether an operation ends in a nonlinearity that is 0 for negative inputs, so that its output has no sign."""
    if isinstance(operation, keras.layers.ReLU):
        return not operation.negative_slope
    activation = getattr(operation, "activation", None)
    rectifiers = (keras.activations.relu, keras.activations.relu6)
    return any(activation is each for each in rectifiers) or type(operation).__name__ in ("Relu", "Relu6")


def _inputs(operation: keras.Operation) -> list[Any]:
    """Returns the tensors that an operation of a functional model reads, one for each call."""
    return [node.input_tensors[0] for node in getattr(operation, "_inbound_nodes", [])]


def _source(tensor: Any) -> keras.Operation:
    """Returns the operation that computed a tensor's values, past those that only choose and move them."""
    operation = tensor._keras_history.operation
    while type(operation).__name__.startswith(_MOVING) and len(inputs := _inputs(operation)) == 1:
        operation = inputs[0]._keras_history.operation
    return operation


def _elements(operation: keras.Operation) -> list[int]:
    """Returns the sizes of an operation's outputs for one example in a functional model; nothing where unknown."""
    shapes = [node.output_tensors[0].shape[1:] for node in getattr(operation, "_inbound_nodes", [])]
    return [math.prod(shape) for shape in shapes] if all(None not in shape for shape in shapes) else []


def _parametrization(mode: str, quantizer: str, parametrization: str | None) -> str:
    known = tuple(PARAMETRIZATIONS[quantizer])
    if mode in ("fixed", "tqt"):
        known = tuple(name for name in known if PARAMETRIZATIONS[quantizer][name] == ("bits", "maximum"))
    parametrization = known[0] if parametrization is None else parametrization
    check_choice("parametrization", parametrization, known)
    return parametrization


def _check_bits(name: str, bits: Any, least: int) -> None:
    if isinstance(bits, bool) or bits not in range(least, MAXIMUM_BITS + 1):
        raise ValueError(f"`{name}` must be from {least} to {MAXIMUM_BITS}. Received: {name}={bits!r}")


def _check_budgets(
    mode: str, weights: float | None, activations: float | None, activation_bits: int | None, penalty_weight: float
) -> None:
    given = [budget for budget in (weights, activations) if budget is not None]
    if (mode == "learned+budget") != bool(given):
        raise ValueError(
            f"`weight_budget_kb` or `activation_budget_kb` must be given with the mode 'learned+budget', and with no "
            f"other. Received: mode={mode!r}, weight_budget_kb={weights!r}, activation_budget_kb={activations!r}"
        )
    if activations is not None and activation_bits is None:
        raise ValueError(
            f"`activation_bits` must be given where activations have a budget. "
            f"Received: activation_bits=None, activation_budget_kb={activations!r}"
        )
    if penalty_weight <= 0:
        raise ValueError(f"`penalty_weight` must be positive. Received: penalty_weight={penalty_weight!r}")


def _mode(budgets: tuple[float | None, float | None]) -> str:
    """Returns the mode that budgets of weights and activations call for."""
    return "learned" if budgets == (None, None) else "learned+budget"


def _check_budget(name: str, budget: float | None, least: float) -> None:
    if budget is not None and budget < least:
        raise ValueError(
            f"`{name}` must be at least {least:.4g} KB, the smallest reachable size of this model. "
            f"Received: {name}={budget!r}"
        )


def learn_bitwidths(
    model: keras.Model,
    weight_budget_kb: float | None = None,
    activation_budget_kb: float | None = None,
    *,
    activation_size: Literal["sum", "max"] = "sum",
    quantizer: Literal["uniform", "power_of_two"] = "uniform",
    parametrization: str | None = None,
    mode: Literal["fixed", "tqt", "learned", "learned+budget"] | None = None,
    bits: int = 4,
    activation_bits: int | None = 4,
    penalty_weight: float | None = None,
) -> CompressedModel:
    """Prepares a trained model for training in which every tensor learns its bit width.

    Args:
        model: built `keras.Model`, trained; may be pruned and clustered.
        weight_budget_kb: float or None. See `LearnedBitwidthStage` for this and what follows.
        activation_budget_kb: float or None.
        activation_size: str. `"sum"` or `"max"`.
        quantizer: str. `"uniform"` or `"power_of_two"`.
        parametrization: str or None.
        mode: str or None. `"learned+budget"` by default where there is a budget, else `"learned"`.
        bits: int. Initial width of weights.
        activation_bits: int or None. Initial width of activations; None for float ones.
        penalty_weight: float or None. By default the paper's, scaled as it says to the weight budget (without one, to
            that of the activations).

    Returns:
        `CompressedModel`, to be compiled and fitted; its stage tells `weight_bits()` and `weight_kb()`.

    Raises:
        ValueError: for a bad argument, a budget below the smallest reachable size (which the message says), or a model
            that is quantised already.

    Example:

    ```python
    model = learn_bitwidths(trained, weight_budget_kb=70, activation_budget_kb=8, activation_size="max")
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    model.fit(data)
    model.stage(LearnedBitwidthStage).weight_bits()     # {"conv2d/kernel": 3, ...}
    ```

    Reference:
        Uhlich et al. 2020, "Mixed Precision DNNs: All you need is a good parametrization".
    """
    budgets = (weight_budget_kb, activation_budget_kb)
    mode = mode or _mode(budgets)
    if penalty_weight is None:
        penalty_weight = scaled_penalty_weight(weight_budget_kb or activation_budget_kb)
    stage = LearnedBitwidthStage(
        mode, quantizer, parametrization, bits, activation_bits, *budgets, activation_size, penalty_weight
    )
    return with_stage(model, stage)


def scaled_penalty_weight(budget_kb: float | None) -> float:
    """Returns the factor of the squared excess in KB for a budget: the paper's over the square of the ratio of sizes.

    Args:
        budget_kb: float or None. The paper's own factor without a budget.

    Reference:
        Uhlich et al. 2020, section 4.
    """
    return PENALTY_WEIGHT / (budget_kb / PAPER_BUDGET_KB) ** 2 if budget_kb else PENALTY_WEIGHT


# === Networks ===


@keras.saving.register_keras_serializable(package="zoo")
class LogitScale(keras.layers.Layer):
    """Multiplies logits by a learned number, which grids of powers of two cannot scale finely enough by themselves.

    Reference:
        Uhlich et al. 2020, section 4.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the factor."""
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, inputs: Any) -> Any:
        """Scales the logits."""
        return inputs * self.scale


def resnet18(num_classes: int = 1000, input_shape: Sequence[int] = (224, 224, 3)) -> keras.Model:
    """Returns ResNet-18 for images of ImageNet's size, its shortcuts with projections where sizes change.

    Args:
        num_classes: int.
        input_shape: height, width, channels.

    Reference:
        He et al. 2016, "Deep residual learning for image recognition", table 1.
    """
    image = keras.Input(tuple(input_shape), name="image")
    x = _normalized(image, 64, 7, 2, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for index, (filters, stride) in enumerate(
        ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
    ):
        name = f"block_{index}"
        y = keras.layers.ReLU(name=f"{name}_relu_0")(_normalized(x, filters, 3, stride, f"{name}_0"))
        y = _normalized(y, filters, 3, 1, f"{name}_1")
        shortcut = x if stride == 1 else _normalized(x, filters, 1, stride, f"{name}_shortcut")
        x = keras.layers.ReLU(name=f"{name}_relu_1")(keras.layers.Add(name=f"{name}_add")([y, shortcut]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(num_classes, name="logits")(x), name="resnet18")


def _normalized(x: Any, filters: int, kernel_size: int, stride: int, name: str) -> Any:
    convolution = keras.layers.Conv2D(
        filters, kernel_size, stride, "same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(convolution(x))


def mobilenet_v2(num_classes: int = 1000, input_shape: Sequence[int] = (224, 224, 3)) -> keras.Model:
    """Returns MobileNetV2 of Keras Applications, with logits for outputs."""
    return keras.applications.MobileNetV2(
        tuple(input_shape), weights=None, classes=num_classes, classifier_activation=None
    )


NETWORKS = ("residual", "resnet18", "mobilenet_v2")


# === The model ===


@keras.saving.register_keras_serializable(package="zoo")
class MixedPrecisionDNN(CompressedClassifier):
    """An image classifier, all of whose weights, biases and activations have learned bit widths.

    Trains by `compile` and `fit` on images in [0, 1], `(batch, height, width, channels)`, and integer labels with a loss
    from logits. Beside the compiled metrics, logs show `weight_kb`, `activation_kb` and, with the metric `"accuracy"`,
    `constrained_error`: the error where the budgets are kept, and 1 more where they are not, by which the best epoch is
    chosen. `learn_bitwidths` does the same to any other model.

    Args:
        network: str. `"residual"` (of CIFAR's size), `"resnet18"` or `"mobilenet_v2"`. Defaults to `"residual"`.
        depth: int. Layers of the residual network: 6 n + 2. Defaults to 20.
        width: int. Channels of its first stage. Defaults to 16.
        num_classes: int. Defaults to 10.
        input_shape: height, width and channels. Defaults to `(32, 32, 3)`.
        mode: str. See `LearnedBitwidthStage` for this and what follows. By default as the budgets have it.
        quantizer: str. Defaults to `"uniform"`.
        parametrization: str or None.
        bits: int. Defaults to 4.
        activation_bits: int or None. Defaults to 4.
        weight_budget_kb: float or None.
        activation_budget_kb: float or None.
        activation_size: str. Defaults to `"sum"`.
        penalty_weight: float. Defaults to 0.1.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("mixed_precision_dnn")
    logits = model.run(image=images)["logits"]
    model.bitwidths.weight_bits(), model.bitwidths.weight_kb()
    ```

    Reference:
        Uhlich et al. 2020, "Mixed Precision DNNs: All you need is a good parametrization", arXiv 1905.11452.
    """

    def __init__(
        self,
        network: Literal["residual", "resnet18", "mobilenet_v2"] = "residual",
        depth: int = 20,
        width: int = 16,
        num_classes: int = 10,
        input_shape: Sequence[int] = (32, 32, 3),
        mode: Literal["fixed", "tqt", "learned", "learned+budget"] | None = None,
        quantizer: Literal["uniform", "power_of_two"] = "uniform",
        parametrization: str | None = None,
        bits: int = 4,
        activation_bits: int | None = 4,
        weight_budget_kb: float | None = None,
        activation_budget_kb: float | None = None,
        activation_size: Literal["sum", "max"] = "sum",
        penalty_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        check_choice("network", network, NETWORKS)
        check_image_shape(input_shape)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2. Received: num_classes={num_classes!r}")
        budgets = (weight_budget_kb, activation_budget_kb)
        mode = mode or _mode(budgets)
        with default_policy(kwargs.get("dtype")):
            stage = LearnedBitwidthStage(
                mode, quantizer, parametrization, bits, activation_bits, *budgets, activation_size, penalty_weight,
                from_scratch=True, delayed=True, name="bitwidths",
            )  # fmt: skip
            built = _build_network(network, depth, width, num_classes, tuple(input_shape))
            if quantizer == "power_of_two" and mode == "learned+budget":
                built = keras.Model(built.input, LogitScale(name="logit_scale")(built.output), name=built.name)
        super().__init__(built, [stage], **{"name": "mixed_precision_dnn", **kwargs})
        self.network, self.depth, self.width = network, depth, width
        self.num_classes, self.input_size = num_classes, tuple(input_shape)

    @property
    def bitwidths(self) -> LearnedBitwidthStage:
        """The stage that learns the bit widths."""
        return self.stage(LearnedBitwidthStage)

    def quantize_from(self, update: int) -> None:
        """Trains in float up to an update; see `LearnedBitwidthStage.quantize_from`."""
        self.bitwidths.quantize_from(update)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Adds the sizes, and the error that tells whether the budgets are kept."""
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        sizes = {"weight_kb": self.bitwidths._weight_kb()}
        if self.bitwidths.activation_bits is not None:
            sizes["activation_kb"] = self.bitwidths._activation_kb()
        if "accuracy" in logs:
            outside = 1.0 - tf.cast(self.bitwidths.within_budgets(), "float32")
            sizes["constrained_error"] = 1.0 - tf.cast(logs["accuracy"], "float32") + outside
        return {**logs, **sizes}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        stage = self.bitwidths
        return {
            **ZooModel.get_config(self),
            "network": self.network,
            "depth": self.depth,
            "width": self.width,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_size),
            "mode": stage.mode,
            "quantizer": stage.quantizer,
            "parametrization": stage.parametrization,
            "bits": stage.bits,
            "activation_bits": stage.activation_bits,
            "weight_budget_kb": stage.weight_budget_kb,
            "activation_budget_kb": stage.activation_budget_kb,
            "activation_size": stage.activation_size,
            "penalty_weight": stage.penalty_weight,
        }


def _build_network(network: str, depth: int, width: int, num_classes: int, input_shape: tuple[int, ...]) -> keras.Model:
    if network == "residual":
        return residual_network(depth, width, num_classes, input_shape, name="residual_network")
    return {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2}[network](num_classes, input_shape)
