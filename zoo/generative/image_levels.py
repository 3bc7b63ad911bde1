"""Stored pixels: whole numbers, the levels, that generative models of images make their inputs of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.arguments import require


def check_levels(levels: np.ndarray, image_shape: Sequence[int], num_levels: int) -> None:
    """Refuses what are no levels of images of a shape.

    Args:
        levels: array.
        image_shape: sequence of int. Shape of one image.
        num_levels: int. Levels are 0 to `num_levels - 1`.

    Raises:
        ValueError: for another shape than `(batch, *image_shape)`, no images, and values that are no levels.
    """
    wanted = ", ".join(map(str, ("batch", *image_shape)))
    require(levels.shape[1:] == tuple(image_shape), "levels", f"of shape ({wanted})", f"shape={levels.shape}")
    whole = np.issubdtype(levels.dtype, np.number) and np.array_equal(levels, np.floor(levels))
    require(
        bool(whole) and levels.size > 0 and levels.min() >= 0 and levels.max() < num_levels,
        "levels",
        f"whole numbers from 0 to {num_levels - 1}",
        f"dtype={levels.dtype}, values={levels.ravel()[:5]}...",
    )
