"""Models of images whose pixels are floats in [0, 1]: how stored images become such, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_levels import check_levels
from zoo.model import ZooModel


class UnitImageModel(ZooModel):
    """A model that takes batches of float images in [0, 1]. Constructors set `image_shape` and `num_levels`."""

    # Height, width and channels
    image_shape: tuple[int, int, int]
    # Of stored pixels, 0 to `num_levels - 1`
    num_levels: int

    def scale(self, levels: Any) -> Any:
        """Returns stored pixels as the model takes them, in a `tf.data` pipeline too.

        Args:
            levels: tensor. Whole numbers 0 to `num_levels - 1`.

        Returns:
            float32 tensor of the same shape, in [0, 1].
        """
        return tf.cast(levels, tf.float32) / (self.num_levels - 1)

    def preprocess(self, levels: Any) -> np.ndarray:
        """Returns stored images as the model takes them.

        Args:
            levels: array-like `(num_images, height, width)` or `(num_images, height, width, channels)`. Whole numbers 0 to
                `num_levels - 1`.

        Returns:
            float32 array `(num_images, height, width, channels)` in [0, 1].

        Raises:
            ValueError: for images of another size, and values that are no levels.
        """
        levels = np.asarray(levels)
        levels = levels[..., None] if levels.ndim == 3 else levels
        check_levels(levels, self.image_shape, self.num_levels)
        return np.array(self.scale(levels))

    def check_images(self, image: Any) -> Any:
        """Refuses what the model cannot take, as far as shape and type tell; returns it as float32.

        Args:
            image: tensor or array `(batch, height, width, channels)`.

        Raises:
            ValueError: for another shape.
            TypeError: for whole numbers and other types than floats.
        """
        if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(image.dtype)):
            raise TypeError(
                f"`image` must be of floats in [0, 1]: divide levels by {self.num_levels - 1}, as `preprocess` does. "
                f"Received: dtype={keras.backend.standardize_dtype(image.dtype)}"
            )
        fits = len(image.shape) == 4 and tuple(image.shape[1:]) == self.image_shape
        wanted = ", ".join(map(str, ("batch", *self.image_shape)))
        require(fits, "image", f"of shape ({wanted})", f"shape={tuple(image.shape)}")
        return ops.cast(image, "float32")


def check_convolutions(name: str, convolutions: Sequence[Sequence[int]], image_shape: Sequence[int]) -> None:
    """Raises a `ValueError` unless an argument is a list of `[filters, kernel_size, stride]` that fits images of a shape."""
    triples = all(len(triple) == 3 and min(triple) >= 1 for triple in convolutions)
    require(triples, name, "a list of [filters, kernel_size, stride]", convolutions)
    scale = math.prod(stride for _, _, stride in convolutions)
    divides = image_shape[0] % scale == 0 and image_shape[1] % scale == 0
    require(divides, name, f"of strides whose product divides {image_shape[0]} and {image_shape[1]}", convolutions)
