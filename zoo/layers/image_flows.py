"""What flows of images are made of: squeezing, couplings of channels, chains of invertible layers, flat latents.

An invertible layer maps an image onto one of the same shape. `layer(image, training)` returns it with the
log-determinant of the Jacobian, `(batch,)` or one number for all images; `layer.inverse(image)` undoes it outside of
training.

Reference:
    Dinh, Sohl-Dickstein, Bengio 2017, "Density estimation using Real NVP" (arXiv 1605.08803), sections 3.4 to 3.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.layers.couplings import AdditiveCoupling

# === Shapes ===


def require_squeezable(image_shape: Sequence[int], num_squeezes: int) -> None:
    """Raises a `ValueError` unless images of a shape can be squeezed so often.

    Args:
        image_shape: sequence of int. Height, width and channels.
        num_squeezes: int.
    """
    whole = len(image_shape) == 3 and all(isinstance(size, int) and size >= 1 for size in image_shape)
    require(whole, "image_shape", "height, width and channels, whole numbers of at least 1", image_shape)
    divisor = 2**num_squeezes
    fits = image_shape[0] % divisor == 0 and image_shape[1] % divisor == 0
    require(
        fits, "image_shape", f"of height and width divisible by {divisor}, for {num_squeezes} squeezes", image_shape
    )


def squeeze(image: Any) -> Any:
    """Turns each square of 2 x 2 pixels into one pixel of four times the channels.

    Args:
        image: tensor `(batch, height, width, channels)`; height and width even.

    Returns:
        Tensor `(batch, height / 2, width / 2, 4 * channels)`: all channels of the upper left pixel, then those of the
        upper right, the lower left and the lower right one. Halves of the channels are rows of the image.
    """
    return tf.nn.space_to_depth(image, 2)


def unsqueeze(image: Any) -> Any:
    """Undoes `squeeze`."""
    return tf.nn.depth_to_space(image, 2)


def flatten_parts(parts: Sequence[Any]) -> Any:
    """Returns images of any shapes as one flat vector for each row of the batch."""
    return ops.concatenate([ops.reshape(part, (-1, math.prod(part.shape[1:]))) for part in parts], axis=1)


def split_parts(latent: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Undoes `flatten_parts`.

    Args:
        latent: tensor `(batch, values)`.
        shapes: sequence of tuples `(height, width, channels)`, of as many values together.
    """
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        parts.append(ops.reshape(latent[:, start : start + size], (-1, *shape)))
        start += size
    return parts


# === Invertible layers ===


@keras.saving.register_keras_serializable(package="zoo")
class ChannelCoupling(keras.layers.Layer):
    """A coupling of the two halves of the channels.

    Args:
        coupling: `AdditiveCoupling` or a layer derived from it.
        swap: bool. Whether the second half is kept and the first one changed. Defaults to False.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, coupling: AdditiveCoupling, swap: bool = False, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.coupling = coupling
        self.swap = swap

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the coupling.

        Raises:
            ValueError: for an odd number of channels.
        """
        half, rest = divmod(input_shape[-1], 2)
        if rest:
            raise ValueError(f"Two halves need an even number of channels. Received: input_shape={input_shape}")
        if not self.coupling.built:  # a deserialised one is built already
            self.coupling.build((*input_shape[:-1], half), (*input_shape[:-1], half))

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps one half."""
        kept, changed = self._split(image)
        changed, log_det = self.coupling(kept, changed, training=training)
        return self._merge(kept, changed), log_det

    def inverse(self, image: Any) -> Any:
        """Undoes `call`."""
        kept, changed = self._split(image)
        return self._merge(kept, self.coupling.inverse(kept, changed))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        coupling = keras.saving.serialize_keras_object(self.coupling)
        return {**super().get_config(), "coupling": coupling, "swap": self.swap}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ChannelCoupling:
        """Creates the layer and its coupling from `get_config`."""
        return cls(**{**config, "coupling": keras.saving.deserialize_keras_object(config["coupling"])})

    def _split(self, image: Any) -> list[Any]:
        halves = ops.split(image, 2, axis=-1)
        return halves[::-1] if self.swap else halves

    def _merge(self, kept: Any, changed: Any) -> Any:
        return ops.concatenate([changed, kept] if self.swap else [kept, changed], axis=-1)


@keras.saving.register_keras_serializable(package="zoo")
class InvertibleChain(keras.layers.Layer):
    """Invertible layers one after the other.

    Args:
        layers: sequence of invertible layers.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.layers = list(layers)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds all layers, for images of one shape."""
        for layer in self.layers:
            if not layer.built:
                layer.build(input_shape)

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Applies the layers and adds up their log-determinants."""
        log_det = 0.0
        for layer in self.layers:
            image, term = layer(image, training=training)
            log_det = log_det + term
        return image, log_det

    def inverse(self, image: Any) -> Any:
        """Undoes `call`."""
        for layer in reversed(self.layers):
            image = layer.inverse(image)
        return image

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InvertibleChain:
        """Creates the chain and its layers from `get_config`."""
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})
