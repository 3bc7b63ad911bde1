"""Paths between latents: what lies between two given images, seen by a model that has a code for each."""

from __future__ import annotations

from typing import Literal

import numpy as np

from zoo.arguments import require


def interpolate_latents(
    start: np.ndarray, end: np.ndarray, num_steps: int, method: Literal["linear", "slerp"] = "linear"
) -> np.ndarray:
    """Returns latents on the way from one batch to another.

    Args:
        start: float array `(batch, latent_dim)`.
        end: float array of the same shape.
        num_steps: int. Latents on each way, both ends included.
        method: str. `"linear"`, or `"slerp"`, which turns from one latent to the other at an even angle.

    Returns:
        float32 array `(batch, num_steps, latent_dim)`.

    Raises:
        ValueError: for another method, fewer than two steps, or shapes that differ.
    """
    paths = {"linear": _linear_path, "slerp": _slerp_path}
    require(method in paths, "method", f"one of {tuple(paths)}", method)
    require(num_steps >= 2, "num_steps", "at least 2", num_steps)
    require(start.shape == end.shape, "end", f"of the shape {start.shape} of `start`", f"shape={end.shape}")
    return paths[method](start, end, np.linspace(0.0, 1.0, num_steps)[None, :, None]).astype(np.float32)


def _linear_path(start: np.ndarray, end: np.ndarray, time: np.ndarray) -> np.ndarray:
    return (1.0 - time) * start[:, None] + time * end[:, None]


def _slerp_path(start: np.ndarray, end: np.ndarray, time: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(start, axis=1) * np.linalg.norm(end, axis=1)
    cosine = np.sum(start * end, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))[:, None, None]
    sine = np.sin(angle)
    # Latents in one line have no unique arc between them (and a vanishing divisor): there the straight way is taken.
    straight = sine < 1e-6
    sine = np.where(straight, 1.0, sine)
    weights = np.sin((1.0 - time) * angle) / sine, np.sin(time * angle) / sine
    curved = weights[0] * start[:, None] + weights[1] * end[:, None]
    return np.where(straight, _linear_path(start, end, time), curved)
