"""Pairs of Gaussian vectors of known mutual information, on which estimators of it are tried."""

from __future__ import annotations

import math

import numpy as np


def gaussian_pairs(count: int, dim: int, correlation: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of standard normal vectors, correlated component by component.

    Args:
        count: int. Number of pairs.
        dim: int.
        correlation: float in (-1, 1).
        rng: NumPy generator.

    Returns:
        Two float32 arrays `(count, dim)`.
    """
    first, noise = (rng.standard_normal((count, dim), "float32") for _ in range(2))
    return first, np.float32(correlation) * first + np.float32(math.sqrt(1 - correlation**2)) * noise


def correlation_of(information: float, dim: int) -> float:
    """Returns the correlation of each component at which vectors share some nats: `-dim / 2 log(1 - correlation^2)`."""
    return math.sqrt(-math.expm1(-2 * information / dim))
