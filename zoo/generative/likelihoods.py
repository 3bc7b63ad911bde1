"""Distributions of a pixel in [0, 1] given what a decoder says of it: log p(x|z) is their sum over the image's values.

Each is described by a few numbers per value, the decoder's raw outputs. `log_prob` and `mean` are used in exported graphs;
`sample` maps uniform noise through the quantile function.

Checked against: TensorFlow Probability's distributions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from zoo.ops.probability import LOG_2_PI

MEAN_ACTIVATIONS = ("sigmoid", "linear")
# Where a pixel is the same in all images, a density has no maximum: a deviation of 0.007, about two of 256 levels, and for
# the logistic a scale of 0.001, are the smallest.
MIN_LOG_VARIANCE = -10.0
MIN_LOG_SCALE = -7.0


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """A black or white pixel, p = sigmoid(logit): log p(x) = x logit - softplus(logit).

    For grey values this is a cross-entropy, and no likelihood.
    """

    # Raw outputs of each of the decoder's heads for a value of the image
    depths = (1,)

    def log_prob(self, value: Any, logit: Any) -> Any:
        """Returns nats; all arguments are tensors `(..., num_values)`."""
        return value * logit - ops.softplus(logit)

    def mean(self, logit: Any) -> Any:
        """Returns the probability of white."""
        return ops.sigmoid(logit)

    def sample(self, noise: Any, logit: Any) -> Any:
        """Returns 0 or 1; `noise` is uniform in (0, 1)."""
        return ops.cast(noise < ops.sigmoid(logit), "float32")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A grey value around a mean, with the logarithm of its variance.

    Args:
        mean_activation: str. `"sigmoid"` keeps means in (0, 1), `"linear"` does not.
        num_heads: int. 2, or 1 where the variance is no output of the decoder.
    """

    mean_activation: str
    num_heads: int = 2

    @property
    def depths(self) -> tuple[int, ...]:
        """Raw outputs of each of the decoder's heads for a value of the image."""
        return (1,) * self.num_heads

    def log_prob(self, value: Any, location: Any, log_variance: Any) -> Any:
        """Returns nats; `location` is the mean before its activation."""
        log_variance = ops.maximum(log_variance, MIN_LOG_VARIANCE)
        squares = ops.square(value - self.mean(location)) * ops.exp(-log_variance)
        return -0.5 * (squares + log_variance + LOG_2_PI)

    def mean(self, location: Any, log_variance: Any = None) -> Any:
        """Returns the mean."""
        return keras.activations.get(self.mean_activation)(location)

    def sample(self, noise: Any, location: Any, log_variance: Any) -> Any:
        """Returns values that may leave [0, 1]; `noise` is uniform in (0, 1)."""
        deviation = ops.exp(0.5 * ops.maximum(log_variance, MIN_LOG_VARIANCE))
        return self.mean(location) + deviation * tf.math.ndtri(noise)


@dataclasses.dataclass(frozen=True)
class DiscretizedLogistic:
    """One of equally spaced levels: the mass of a logistic distribution in the bin around it.

    The bins of the first and the last level are open to the outside, so that the masses sum to one.

    Args:
        num_levels: int. Levels are 0, 1 / (num_levels - 1), ..., 1.
        mean_activation: str. Of the logistic's mean: `"sigmoid"` or `"linear"`.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling 2016 (arXiv 1606.04934), appendix; Salimans, Karpathy, Chen,
        Kingma 2017 (arXiv 1701.05517), section 2.1, for the open bins.
    """

    num_levels: int
    mean_activation: str
    depths = (1, 1)

    def log_prob(self, value: Any, location: Any, log_scale: Any) -> Any:
        """Returns nats; `location` is the mean before its activation."""
        half = 0.5 / (self.num_levels - 1)
        precision = ops.exp(-ops.maximum(log_scale, MIN_LOG_SCALE))
        distance = value - self.mean(location)
        lower, upper = precision * (distance - half), precision * (distance + half)
        # log(sigmoid(b) - sigmoid(a)) without a difference of numbers that are almost the same
        log_below, log_above = -ops.softplus(-upper), -ops.softplus(lower)
        inside = log_below + log_above + ops.log(-ops.expm1(-2 * half * precision))
        return ops.where(value < half, log_below, ops.where(value > 1 - half, log_above, inside))

    def mean(self, location: Any, log_scale: Any = None) -> Any:
        """Returns the mean of the logistic, which is that of the levels where no mass is outside [0, 1]."""
        return keras.activations.get(self.mean_activation)(location)

    def sample(self, noise: Any, location: Any, log_scale: Any) -> Any:
        """Returns levels; `noise` is uniform in (0, 1)."""
        scale = ops.exp(ops.maximum(log_scale, MIN_LOG_SCALE))
        value = self.mean(location) + scale * (ops.log(noise) - ops.log(1 - noise))
        return ops.clip(ops.round(value * (self.num_levels - 1)) / (self.num_levels - 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of equally spaced levels, each with a probability of its own.

    Args:
        num_levels: int. Levels are 0, 1 / (num_levels - 1), ..., 1.
    """

    num_levels: int

    @property
    def depths(self) -> tuple[int, ...]:
        """Raw outputs of each of the decoder's heads for a value of the image."""
        return (self.num_levels,)

    def log_prob(self, value: Any, logits: Any) -> Any:
        """Returns nats of the level nearest to `value`; `logits` are `(..., num_values, num_levels)`."""
        level = ops.cast(ops.round(value * (self.num_levels - 1)), "int32")
        return ops.sum(ops.one_hot(level, self.num_levels, dtype="float32") * ops.log_softmax(logits), axis=-1)

    def mean(self, logits: Any) -> Any:
        """Returns the mean of the levels."""
        return ops.sum(ops.softmax(logits) * self._levels(), axis=-1)

    def sample(self, noise: Any, logits: Any) -> Any:
        """Returns levels; `noise` is uniform in (0, 1)."""
        passed = ops.cumsum(ops.softmax(logits), axis=-1)[..., :-1] <= ops.expand_dims(noise, -1)
        return ops.sum(ops.cast(passed, "float32"), axis=-1) / (self.num_levels - 1)

    def _levels(self) -> Any:
        return ops.arange(self.num_levels, dtype="float32") / (self.num_levels - 1)
