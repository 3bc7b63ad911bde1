"""Densities and means of densities, in the logarithm."""

from __future__ import annotations

import math
from typing import Any

from keras import ops

LOG_2_PI = math.log(2.0 * math.pi)


def log_mean_exp(values: Any, axis: int = -1, mask: Any = None) -> Any:
    """Returns log(mean(exp(values))) along an axis, exactly the value itself where there is one.

    Args:
        values: float tensor.
        axis: int. Defaults to the last.
        mask: bool tensor like `values`, or None. False where a value does not count; one must count.

    Returns:
        Tensor without that axis.
    """
    if mask is not None:
        # Far below any other value, and finite, so that gradients are.
        values = ops.where(mask, values, -1e30)
    largest = ops.stop_gradient(ops.max(values, axis=axis, keepdims=True))
    exponentials = ops.exp(values - largest)
    if mask is None:
        mean = ops.mean(exponentials, axis=axis)
    else:
        mean = ops.sum(exponentials, axis=axis) / ops.sum(ops.cast(mask, values.dtype), axis=axis)
    return ops.log(mean) + ops.squeeze(largest, axis)


def standard_normal_log_prob(values: Any) -> Any:
    """Returns the log-density in nats of standard normal vectors, summed over the last axis."""
    return -0.5 * ops.sum(ops.square(values) + LOG_2_PI, axis=-1)
