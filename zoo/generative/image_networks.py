"""What autoencoders of images share: encoder and decoder networks, the images they take, interpolation, held-out data.

An encoder is convolutions, if any, then dense layers, then linear heads; a decoder is the same the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.arguments import require
from zoo.generative.interpolation import interpolate_latents
from zoo.generative.unit_images import UnitImageModel, check_convolutions
from zoo.layers.chain import apply_chain, build_chain
from zoo.model import Arrays, Spec

# Seed of the noise in evaluation and in held-out inputs: the same at any time.
EVALUATION_SEED = 2013


# === Networks ===


def _initializer(stddev: float | None) -> keras.initializers.Initializer:
    # A new one for each layer: one that is shared would give layers of one shape the same weights.
    return keras.initializers.GlorotUniform() if stddev is None else keras.initializers.RandomNormal(stddev=stddev)


@keras.saving.register_keras_serializable(package="zoo")
class ImageEncoder(keras.layers.Layer):
    """Maps images to one or more vectors.

    Args:
        head_dims: sequence of int. Sizes of the vectors, each a linear function of the last hidden layer.
        hidden_dims: sequence of int. Sizes of dense hidden layers.
        convolutions: sequence of `(filters, kernel_size, stride)`. Convolutions before them, padded to keep the size.
        activation: str. Name of a Keras activation, of all hidden layers.
        center_inputs: bool. Whether images are scaled from [0, 1] to [-1, 1] first. Defaults to False.
        initializer_stddev: float or None. Standard deviation of normal initial weights; Glorot's uniform ones by default.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        head_dims: Sequence[int],
        hidden_dims: Sequence[int],
        convolutions: Sequence[Sequence[int]],
        activation: str,
        center_inputs: bool = False,
        initializer_stddev: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.head_dims = list(head_dims)
        self.hidden_dims = list(hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.activation = activation
        self.center_inputs = center_inputs
        self.initializer_stddev = initializer_stddev
        self.convolution_layers = [
            keras.layers.Conv2D(filters, size, stride, "same", activation=activation, **self._arguments())
            for filters, size, stride in convolutions
        ]
        self.hidden_layers = [
            keras.layers.Dense(dim, activation=activation, **self._arguments()) for dim in hidden_dims
        ]
        self.heads = [keras.layers.Dense(dim, **self._arguments()) for dim in head_dims]

    def _arguments(self) -> dict[str, Any]:
        return {"kernel_initializer": _initializer(self.initializer_stddev), "dtype": self.dtype_policy}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        features = math.prod(build_chain(self.convolution_layers, input_shape)[1:])
        hidden = build_chain(self.hidden_layers, (None, features))
        for head in self.heads:
            head.build(hidden)

    def call(self, image: Any) -> list[Any]:
        """Maps `(batch, height, width, channels)` to float32 tensors `(batch, head_dim)`."""
        hidden = apply_chain(self.convolution_layers, 2 * image - 1 if self.center_inputs else image)
        hidden = apply_chain(self.hidden_layers, ops.reshape(hidden, (-1, math.prod(hidden.shape[1:]))))
        return [ops.cast(head(hidden), "float32") for head in self.heads]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "head_dims": self.head_dims,
            "hidden_dims": self.hidden_dims,
            "convolutions": self.convolutions,
            "activation": self.activation,
            "center_inputs": self.center_inputs,
            "initializer_stddev": self.initializer_stddev,
        }


@keras.saving.register_keras_serializable(package="zoo")
class ImageDecoder(keras.layers.Layer):
    """Maps vectors to raw numbers for every value of an image.

    With convolutions, a transposed one unfolds the vector on the smallest map; the last one, to the channels, is linear.

    Args:
        image_shape: tuple of int. Height, width and channels.
        depths: sequence of int. For each head, how many numbers it gives for a value of the image.
        hidden_dims: sequence of int. Sizes of dense hidden layers.
        convolutions: sequence of `(filters, kernel_size, stride)`. Transposed convolutions after them; their strides
            divide height and width.
        activation: str. Name of a Keras activation, of all hidden layers.
        initializer_stddev: float or None. Standard deviation of normal initial weights; Glorot's uniform ones by default.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        depths: Sequence[int],
        hidden_dims: Sequence[int],
        convolutions: Sequence[Sequence[int]],
        activation: str,
        initializer_stddev: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        self.depths = list(depths)
        self.hidden_dims = list(hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.activation = activation
        self.initializer_stddev = initializer_stddev
        self.hidden_layers = [
            keras.layers.Dense(dim, activation=activation, **self._arguments()) for dim in hidden_dims
        ]
        self.convolution_layers = self._transposed_convolutions() if convolutions else []
        channels, values = self.image_shape[2], math.prod(self.image_shape)
        self.heads = [
            keras.layers.Conv2D(channels * depth, convolutions[-1][1], padding="same", **self._arguments())
            if convolutions
            else keras.layers.Dense(values * depth, **self._arguments())
            for depth in depths
        ]

    def _arguments(self) -> dict[str, Any]:
        return {"kernel_initializer": _initializer(self.initializer_stddev), "dtype": self.dtype_policy}

    def _transposed_convolutions(self) -> list[keras.layers.Layer]:
        scale = math.prod(stride for _, _, stride in self.convolutions)
        smallest = (self.image_shape[0] // scale, self.image_shape[1] // scale)
        shared = {"activation": self.activation}
        unfold = keras.layers.Conv2DTranspose(self.convolutions[0][0], smallest, **shared, **self._arguments())
        return [
            unfold,
            *(
                keras.layers.Conv2DTranspose(filters, size, stride, "same", **shared, **self._arguments())
                for filters, size, stride in self.convolutions
            ),
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        shape = build_chain(self.hidden_layers, input_shape)
        if self.convolution_layers:
            shape = build_chain(self.convolution_layers, (None, 1, 1, shape[-1]))
        for head in self.heads:
            head.build(shape)

    def call(self, latent: Any) -> list[Any]:
        """Maps `(batch, latent_dim)` to float32 tensors `(batch, num_values)`, `(batch, num_values, depth)` if deeper."""
        hidden = apply_chain(self.hidden_layers, latent)
        if self.convolution_layers:
            hidden = apply_chain(self.convolution_layers, ops.reshape(hidden, (-1, 1, 1, hidden.shape[-1])))
        values = math.prod(self.image_shape)
        return [
            ops.cast(ops.reshape(head(hidden), (-1, values) if depth == 1 else (-1, values, depth)), "float32")
            for head, depth in zip(self.heads, self.depths, strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self.image_shape),
            "depths": self.depths,
            "hidden_dims": self.hidden_dims,
            "convolutions": self.convolutions,
            "activation": self.activation,
            "initializer_stddev": self.initializer_stddev,
        }


# === Models ===


class ImageAutoencoder(UnitImageModel):
    """A model with a code for each image and an image for each code; the base of `Autoencoder` and `VAE`.

    The model's input, in `fit` and when called, is a batch of float images in [0, 1]. Subclasses make the networks by
    `make_networks` and implement `encode`, `signatures` and `inputs_from_images`.

    Args:
        image_shape: tuple of int. Height, width and channels.
        latent_dim: int. Size J of the code.
        hidden_dims: sequence of int. Sizes of the encoder's dense hidden layers; may be empty. Defaults to `(500,)`.
        decoder_hidden_dims: sequence of int or None. Those of the decoder; the encoder's the other way round by default.
        convolutions: sequence of `(filters, kernel_size, stride)`. Convolutions before the encoder's dense layers; their
            strides must divide height and width. None by default.
        decoder_convolutions: the same of the transposed convolutions after the decoder's dense layers, or None; the
            encoder's the other way round by default.
        activation: str. Name of a Keras activation, of all hidden layers. Defaults to `"relu"`.
        center_inputs: bool. Whether the encoder sees images scaled to [-1, 1]. Defaults to False.
        initializer_stddev: float or None. Standard deviation of normal initial weights; Glorot's uniform ones by default.
        num_levels: int. Number of levels of stored pixels, 0 to `num_levels - 1`. Defaults to 256.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        hidden_dims: Sequence[int] = (500,),
        decoder_hidden_dims: Sequence[int] | None = None,
        convolutions: Sequence[Sequence[int]] = (),
        decoder_convolutions: Sequence[Sequence[int]] | None = None,
        activation: str = "relu",
        center_inputs: bool = False,
        initializer_stddev: float | None = None,
        num_levels: int = 256,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # Mixed precision belongs inside the networks: likelihoods need images and codes in float32.
        self.autocast = False
        require(
            len(image_shape) == 3 and min(image_shape) >= 1, "image_shape", "height, width and channels", image_shape
        )
        require(latent_dim >= 1, "latent_dim", "at least 1", latent_dim)
        require(num_levels >= 2, "num_levels", "at least 2", num_levels)
        decoder_hidden_dims = list(hidden_dims)[::-1] if decoder_hidden_dims is None else decoder_hidden_dims
        decoder_convolutions = list(convolutions)[::-1] if decoder_convolutions is None else decoder_convolutions
        for name, dims in (("hidden_dims", hidden_dims), ("decoder_hidden_dims", decoder_hidden_dims)):
            require(all(dim >= 1 for dim in dims), name, "sizes of at least 1", dims)
        for name, given in (("convolutions", convolutions), ("decoder_convolutions", decoder_convolutions)):
            check_convolutions(name, given, image_shape)
        deviates = initializer_stddev is None or initializer_stddev > 0
        require(deviates, "initializer_stddev", "positive or None", initializer_stddev)
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.hidden_dims = list(hidden_dims)
        self.decoder_hidden_dims = list(decoder_hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.decoder_convolutions = [list(convolution) for convolution in decoder_convolutions]
        self.activation = activation
        self.center_inputs = center_inputs
        self.initializer_stddev = initializer_stddev
        self.num_levels = num_levels

    def make_networks(self, head_dims: Sequence[int], depths: Sequence[int]) -> None:
        """Makes `encoder` and `decoder`; for constructors of subclasses.

        Args:
            head_dims: sequence of int. See `ImageEncoder`.
            depths: sequence of int. See `ImageDecoder`.
        """
        shared = {"initializer_stddev": self.initializer_stddev, "dtype": self.dtype_policy}
        self.encoder = ImageEncoder(
            head_dims, self.hidden_dims, self.convolutions, self.activation, self.center_inputs, **shared
        )
        self.decoder = ImageDecoder(
            self.image_shape, depths, self.decoder_hidden_dims, self.decoder_convolutions, self.activation, **shared
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        self.encoder.build((None, *self.image_shape))
        self.decoder.build((None, self.latent_dim))

    def _float_images(self, image: Any) -> np.ndarray:
        """Refuses whole numbers, which the signatures would take for floats."""
        image = np.asarray(image)
        if image.dtype.kind in "iub":
            self.check_images(image)
        return image

    def _as_images(self, values: Any) -> Any:
        return ops.reshape(values, (-1, *self.image_shape))

    # === Use ===

    def decode(self, latent: Any) -> np.ndarray:
        """Returns the images of codes.

        Args:
            latent: array-like `(batch, latent_dim)`.

        Returns:
            float32 array `(batch, height, width, channels)`.
        """
        return self.run("decode", latent=latent)["image"]

    def interpolate(
        self, start: Any, end: Any, num_steps: int = 9, method: Literal["linear", "slerp"] = "linear"
    ) -> np.ndarray:
        """Returns images on the way between two batches of images, by way of their codes.

        Args:
            start: array-like `(batch, height, width, channels)`. Images in [0, 1].
            end: array-like of the same shape.
            num_steps: int. Number of images on each way, both ends included.
            method: str. `"linear"`, or `"slerp"`, which turns from one code to the other at an even angle.

        Returns:
            float32 array `(batch, num_steps, height, width, channels)`; the first and last images are the reconstructions
            of `start` and `end`.
        """
        path = interpolate_latents(self._codes(start), self._codes(end), num_steps, method)
        return self.decode(path.reshape(-1, self.latent_dim)).reshape(*path.shape[:2], *self.image_shape)

    def _codes(self, image: Any) -> np.ndarray:
        """Returns the codes of images, without noise."""
        raise NotImplementedError(f"{type(self).__name__} defines no codes of images.")

    def _between(self, start: Any, end: Any, position: Any) -> Any:
        position = ops.expand_dims(position, 1)
        return (1.0 - position) * start + position * end

    # === Held-out data ===

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields inputs from the validation split of the data set the checkpoint names; nothing without a checkpoint.

        Args:
            signature: str.
            batch_size: int. Number of images; an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        images = self.held_out_images(self.metadata.evaluation_dataset, "validation")
        others = images[::-1]
        for start in range(0, len(images) - batch_size + 1, batch_size):
            chosen = slice(start, start + batch_size)
            yield self.inputs_from_images(signature, images[chosen], others[chosen])

    def held_out_images(self, dataset: str, split: str) -> np.ndarray:
        """Returns the images of a split, as the model takes them."""
        from zoo.datasets import load_arrays

        return self.preprocess(load_arrays(dataset, split)["image"])

    def inputs_from_images(self, signature: str, images: np.ndarray, others: np.ndarray) -> Arrays:
        """Returns inputs of a signature made of two batches of real images."""
        raise NotImplementedError(f"{type(self).__name__} defines no inputs made of images.")

    # === Signatures ===

    def image_spec(self, description: str = "Images, scaled to [0, 1].") -> Spec:
        """Returns the `Spec` of a batch of images."""
        return Spec(("batch", *self.image_shape), "float32", description, 0.0, 1.0)

    def interpolation_specs(self) -> dict[str, Spec]:
        """Returns the inputs of `interpolate`."""
        return {
            "start": self.image_spec("First images, scaled to [0, 1]."),
            "end": self.image_spec("Last images, scaled to [0, 1]."),
            "position": Spec(("batch",), "float32", "Where between the two, 0 at `start` and 1 at `end`.", 0.0, 1.0),
        }

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self.image_shape),
            "latent_dim": self.latent_dim,
            "hidden_dims": self.hidden_dims,
            "decoder_hidden_dims": self.decoder_hidden_dims,
            "convolutions": self.convolutions,
            "decoder_convolutions": self.decoder_convolutions,
            "activation": self.activation,
            "center_inputs": self.center_inputs,
            "initializer_stddev": self.initializer_stddev,
            "num_levels": self.num_levels,
        }
