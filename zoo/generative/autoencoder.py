"""Deep autoencoder: a network with a narrow middle that learns to give back its input, and so finds codes for images.

Hinton, Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks". An encoder z = f(x) and a decoder
g(z), hidden layers of nonlinear units and a linear code, minimise the mean over images of

    cross-entropy   -sum_d [x_d log g_d(z) + (1 - x_d) log(1 - g_d(z))]
    squared error    sum_d (x_d - g_d(z))^2

Differs from the paper: all layers are trained together from random weights. The paper initialised them by a stack of
restricted Boltzmann machines, which today's initialisation and optimisers replace for rectified units; its own presets, of
logistic units, train slowly without them.

The codes have no distribution to draw from: what is decoded from a random code may look like nothing. See `VAE` for that.

Checked against: principal components, which a linear autoencoder finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_networks import EVALUATION_SEED, ImageAutoencoder
from zoo.generative.likelihoods import MEAN_ACTIVATIONS, Bernoulli
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric

RECONSTRUCTION_LOSSES = ("cross_entropy", "squared_error")
EVALUATION_BATCH = 250


@keras.saving.register_keras_serializable(package="zoo")
class Autoencoder(ImageAutoencoder):
    """A deterministic autoencoder of images.

    `fit` takes batches of float images in [0, 1], `(batch, height, width, channels)`, and needs no targets and no loss. It
    reports the mean squared error of an image, summed over its values, as `squared_error`. Called, the model returns a
    dict: `latent` `(batch, latent_dim)`, `reconstruction` like the images, and `loss` `(batch,)`.

    Args:
        image_shape: tuple of int. Height, width and channels.
        latent_dim: int. Size of the code.
        reconstruction_loss: str. `"cross_entropy"` or `"squared_error"`. Defaults to `"cross_entropy"`.
        output_activation: str. `"sigmoid"` keeps reconstructions in (0, 1); `"linear"` goes with the squared error alone.
            Defaults to `"sigmoid"`.
        **kwargs: sizes of the networks, and `num_levels` of stored pixels: see `ImageAutoencoder`.

    Example:

    ```python
    model = zoo.get("autoencoder")
    image = model.preprocess(levels)                                # 0..16 of the digits -> [0, 1]
    latent = model.encode(image)                                    # (batch, latent_dim)
    again = model.reconstruct(image)
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 8, 8, 1)
    ```

    Reference:
        Hinton, Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks", Science 313.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        reconstruction_loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
        output_activation: Literal["sigmoid", "linear"] = "sigmoid",
        **kwargs: Any,
    ):
        super().__init__(image_shape, latent_dim, **kwargs)
        require(
            reconstruction_loss in RECONSTRUCTION_LOSSES,
            "reconstruction_loss",
            f"one of {RECONSTRUCTION_LOSSES}",
            reconstruction_loss,
        )
        known = MEAN_ACTIVATIONS if reconstruction_loss == "squared_error" else ("sigmoid",)
        name = f"one of {known} with the {reconstruction_loss} loss"
        require(output_activation in known, "output_activation", name, output_activation)
        self.reconstruction_loss = reconstruction_loss
        self.output_activation = output_activation
        self.squared_error = keras.metrics.Mean(name="squared_error")
        self.make_networks([latent_dim], [1])
        self.build((None, *self.image_shape))

    # === The method, as functions of tensors ===

    def call(self, image: Any, training: bool | None = False) -> dict[str, Any]:
        """Encodes and decodes.

        Args:
            image: float tensor `(batch, height, width, channels)`, in [0, 1].
            training: bool. Makes no difference.

        Returns:
            Dict of `latent`, `reconstruction` and `loss`, a number for each image: nats or squared units.

        Raises:
            ValueError: for images of another shape.
            TypeError: for images of whole numbers.
        """
        image = self.check_images(image)
        (latent,) = self.encoder(image)
        (output,) = self.decoder(latent)
        values = ops.reshape(image, ops.shape(output))
        if self.reconstruction_loss == "cross_entropy":
            loss = -Bernoulli().log_prob(values, output)
        else:
            loss = ops.square(values - self._activated(output))
        reconstruction = self._as_images(self._activated(output))
        return {"latent": latent, "reconstruction": reconstruction, "loss": ops.sum(loss, axis=1)}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean loss of an image; `y_pred` is what `call` returned."""
        self.squared_error.update_state(_squared_error(x, y_pred["reconstruction"]), sample_weight)
        loss = y_pred["loss"]
        return ops.mean(loss if sample_weight is None else loss * ops.cast(sample_weight, loss.dtype))

    def _decode(self, latent: Any) -> Any:
        (output,) = self.decoder(latent)
        return self._as_images(self._activated(output))

    def _activated(self, output: Any) -> Any:
        return keras.activations.get(self.output_activation)(output)

    # === Use ===

    def encode(self, image: Any) -> np.ndarray:
        """Returns the codes of images.

        Args:
            image: array-like `(batch, height, width, channels)`. Floats in [0, 1].

        Returns:
            float32 array `(batch, latent_dim)`.

        Raises:
            ValueError: for another shape, NaN, or values out of [0, 1].
            TypeError: for whole numbers, and values that are no numbers.
        """
        return self.run("encode", image=self._float_images(image))["latent"]

    def reconstruct(self, image: Any) -> np.ndarray:
        """Encodes and decodes images; refuses what `encode` refuses."""
        return self.run("reconstruct", image=self._float_images(image))["reconstruction"]

    def _codes(self, image: Any) -> np.ndarray:
        return self.encode(image)

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns the mean squared error of a test image, summed over its values; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "squared_error",
            lambda run: self.mean_squared_error(run, dataset, "test"),
            higher_is_better=False,
            relative_tolerance=0.02,
        )

    def mean_squared_error(self, run: Runner, dataset: str, split: str) -> float:
        """Returns the mean over images of the squared error, summed over an image's values.

        Args:
            run: `Runner`.
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        images = self.held_out_images(dataset, split)
        batches = np.split(images, range(EVALUATION_BATCH, len(images), EVALUATION_BATCH))
        errors = [_squared_error(batch, run("reconstruct", {"image": batch})["reconstruction"]) for batch in batches]
        return float(np.mean(np.concatenate(errors)))

    def inputs_from_images(self, signature: str, images: np.ndarray, others: np.ndarray) -> Arrays:
        """Returns inputs of a signature made of two batches of real images."""
        if signature == "decode":
            return {"latent": self.encode(images)}
        if signature == "interpolate":
            position = np.random.default_rng(EVALUATION_SEED).random(len(images), dtype=np.float32)
            return {"start": images, "end": others, "position": position}
        return {"image": images}

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `encode`, `decode`, `reconstruct` and `interpolate`."""
        image = {"image": self.image_spec()}
        latent = Spec(("batch", self.latent_dim), "float32", "Codes.")
        return {
            "encode": Signature(
                lambda image: {"latent": self.encoder(image)[0]}, image, {"latent": "Codes, (batch, latent_dim)."}
            ),
            "decode": Signature(
                lambda latent: {"image": self._decode(latent)}, {"latent": latent}, {"image": "Images of the codes."}
            ),
            "reconstruct": Signature(
                lambda image: {"reconstruction": self._decode(self.encoder(image)[0])},
                image,
                {"reconstruction": "Images, encoded and decoded."},
            ),
            "interpolate": Signature(
                self._interpolate,
                self.interpolation_specs(),
                {"image": "Images between the two, by way of their codes."},
            ),
        }

    def _interpolate(self, start: tf.Tensor, end: tf.Tensor, position: tf.Tensor) -> dict[str, Any]:
        codes = (self.encoder(image)[0] for image in (start, end))
        return {"image": self._decode(self._between(*codes, position))}

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "reconstruction_loss": self.reconstruction_loss,
            "output_activation": self.output_activation,
        }


def _squared_error(image: Any, reconstruction: Any) -> Any:
    return ops.sum(ops.square(ops.cast(image, "float32") - reconstruction), axis=(1, 2, 3))
