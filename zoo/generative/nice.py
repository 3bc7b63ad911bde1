"""NICE: non-linear independent components estimation, an exactly invertible flow.

Dinh, Krueger, Bengio 2014 (https://arxiv.org/abs/1410.8516). A network h = f(x), made of coupling layers and a diagonal
scaling, is trained by exact maximum likelihood so that the components of h are independent under a fixed prior:

    log p(x) = sum_d log p_H(f_d(x)) + log|det df/dx|

Index sets: I1 the odd and I2 the even positions (counted from 1) or, by choice, the two halves. Couplings alternate:
I2 is changed by a function of I1, then I1 by one of I2, and so on; h = exp(s) * y multiplies by the learned diagonal.

Differs from the paper: couplings may also be affine (Real NVP), for comparison; s may be initialised from data, since
it travels a few units and Adam moves it a learning rate a step.

Checked against: autodiff Jacobians, TensorFlow Probability's bijectors and distributions, numerical integration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_flow import ImageFlow
from zoo.layers.couplings import COUPLINGS, AdditiveCoupling, AffineCoupling, DenseConditioner

SPLITS = ("odd_even", "halves")
PREPROCESSINGS = ("none", "zca")


@keras.saving.register_keras_serializable(package="zoo")
class NICE(ImageFlow):
    """An exactly invertible model of flattened images, with exact likelihood.

    `fit` takes batches of integer levels `(batch, num_features)`, and needs no targets and no loss; see `ImageFlow`.

    Args:
        num_features: int. Number of pixels times channels D; even.
        num_levels: int. Number of levels V of the data; levels are 0 to V - 1. Defaults to 256.
        num_couplings: int. Number of couplings; three let every output depend on every input. Defaults to 4.
        num_hidden_layers: int. Hidden layers of each coupling's network. Defaults to 5.
        hidden_dim: int. Size of each hidden layer. Defaults to 1000.
        coupling: str. `"additive"` or `"affine"`. Defaults to `"additive"`.
        prior: str. `"logistic"` or `"gaussian"`. Defaults to `"logistic"`.
        scaling: bool. Whether there is a diagonal scaling; an additive model without one preserves volume. Defaults to
            True.
        split: str. `"odd_even"` or `"halves"`. Defaults to `"odd_even"`.
        value_range: pair of floats. What levels are scaled to. Defaults to `(0.0, 1.0)`.
        preprocessing: str. `"none"` or `"zca"`, a whitening which `fit_preprocessing` computes. Defaults to `"none"`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("nice")
    image = model.dequantize(levels, seed=0)                    # integer levels (batch, 64) -> floats in [0, 1)
    log_prob = model.log_prob(image)                            # nats, (batch,)
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 64)
    samples = model.sample(16, temperature=0.8, seed=0)
    ```

    Reference:
        Dinh, Krueger, Bengio 2014, "NICE: Non-linear Independent Components Estimation", arXiv 1410.8516.
    """

    def __init__(
        self,
        num_features: int,
        num_levels: int = 256,
        num_couplings: int = 4,
        num_hidden_layers: int = 5,
        hidden_dim: int = 1000,
        coupling: Literal["additive", "affine"] = "additive",
        prior: Literal["logistic", "gaussian"] = "logistic",
        scaling: bool = True,
        split: Literal["odd_even", "halves"] = "odd_even",
        value_range: Sequence[float] = (0.0, 1.0),
        preprocessing: Literal["none", "zca"] = "none",
        **kwargs: Any,
    ):
        super().__init__((num_features,), num_levels, value_range, prior, **kwargs)
        even = num_features >= 2 and num_features % 2 == 0
        require(even, "num_features", "an even number of at least 2", num_features)
        require(num_couplings >= 1, "num_couplings", "at least 1", num_couplings)
        require(num_hidden_layers >= 0, "num_hidden_layers", "at least 0", num_hidden_layers)
        require(hidden_dim >= 1, "hidden_dim", "at least 1", hidden_dim)
        for name, value, known in (
            ("coupling", coupling, COUPLINGS),
            ("split", split, SPLITS),
            ("preprocessing", preprocessing, PREPROCESSINGS),
        ):
            require(value in known, name, f"one of {known}", value)
        self.num_features = num_features
        self.num_couplings = num_couplings
        self.num_hidden_layers = num_hidden_layers
        self.hidden_dim = hidden_dim
        self.coupling = coupling
        self.scaling = scaling
        self.split = split
        self.preprocessing = preprocessing

        # === Layers ===
        half = num_features // 2
        layer = {"additive": AdditiveCoupling, "affine": AffineCoupling}[coupling]
        outputs = half * (2 if coupling == "affine" else 1)
        self.couplings = [
            layer(
                DenseConditioner(outputs, num_hidden_layers, hidden_dim, dtype=self.dtype_policy),
                dtype=self.dtype_policy,
                name=f"coupling_{index}",
            )
            for index in range(num_couplings)
        ]
        self.build((None, num_features))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        half = (None, self.num_features // 2)
        for coupling in self.couplings:
            coupling.build(half, half)
        if self.scaling:
            self.log_scale = self._float32_weight("log_scale", (self.num_features,), "zeros", trainable=True)
        if self.preprocessing == "zca":
            square = (self.num_features, self.num_features)
            self.mean = self._float32_weight("mean", (self.num_features,), "zeros")
            self.whitening = self._float32_weight("whitening", square, "identity")
            self.unwhitening = self._float32_weight("unwhitening", square, "identity")
            self.whitening_log_det = self._float32_weight("whitening_log_det", (), "zeros")

    def fit_preprocessing(self, levels: Any, epsilon: float = 1e-6, seed: int = 0) -> None:
        """Computes the ZCA whitening of dequantised training data: W = U (L + epsilon)^(-1/2) U^T.

        Args:
            levels: array-like `(num_images, num_features)`. Integer levels of the training images.
            epsilon: float. Added to the eigenvalues L of the covariance (in squared units of `value_range`); larger
                values whiten approximately. The map is invertible for every positive value.
            seed: int. Seed of the dequantisation noise.

        Raises:
            ValueError: for a model without whitening, bad levels, or an `epsilon` that is not positive.
        """
        require(
            self.preprocessing == "zca", "preprocessing", "'zca' for a whitening to be computed", self.preprocessing
        )
        require(epsilon > 0, "epsilon", "positive", epsilon)
        image = self.dequantize(levels, seed).astype(np.float64)
        mean = image.mean(axis=0)
        centred = image - mean
        eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(image))
        # Rounding can leave the eigenvalues of a singular covariance slightly below zero.
        deviations = np.sqrt(np.maximum(eigenvalues, 0.0) + epsilon)
        self.mean.assign(mean)
        self.whitening.assign((vectors / deviations) @ vectors.T)
        self.unwhitening.assign((vectors * deviations) @ vectors.T)
        self.whitening_log_det.assign(-np.log(deviations).sum())

    def initialize_scaling(self, levels: Any, seed: int = 0) -> None:
        """Sets s so that every latent component has the prior's standard deviation on the given data.

        Args:
            levels: array-like `(num_images, num_features)`. Integer levels of training images.
            seed: int. Seed of the dequantisation noise.

        Raises:
            ValueError: for a model without scaling, or bad levels.
        """
        require(self.scaling, "scaling", "True for a scaling to be initialised", self.scaling)
        latent, _ = self._encode(tf.constant(self.dequantize(levels, seed)))
        wanted = float(self._prior().stddev())
        self.log_scale.assign(self.log_scale + ops.log(wanted) - ops.log(ops.std(latent, axis=0)))

    # === The flow, as functions of tensors ===

    def _encode(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        latent, log_det = image, 0.0
        if self.preprocessing == "zca":
            latent, log_det = ops.matmul(image - self.mean, self.whitening), self.whitening_log_det
        parts = self._split(latent)
        for index, coupling in enumerate(self.couplings):
            kept, changed = index % 2, 1 - index % 2
            parts[changed], term = coupling(parts[kept], parts[changed])
            log_det = log_det + term
        latent = self._merge(parts)
        if self.scaling:
            latent, log_det = latent * ops.exp(self.log_scale), log_det + ops.sum(self.log_scale)
        return latent, log_det

    def _decode(self, latent: Any) -> Any:
        if self.scaling:
            latent = latent * ops.exp(-self.log_scale)
        parts = self._split(latent)
        for index, coupling in reversed(list(enumerate(self.couplings))):
            kept, changed = index % 2, 1 - index % 2
            parts[changed] = coupling.inverse(parts[kept], parts[changed])
        image = self._merge(parts)
        if self.preprocessing == "zca":
            image = ops.matmul(image, self.unwhitening) + self.mean
        return image

    def _split(self, values: Any) -> list[Any]:
        half = self.num_features // 2
        if self.split == "halves":
            return [values[:, :half], values[:, half:]]
        pairs = ops.reshape(values, (-1, half, 2))
        return [pairs[:, :, 0], pairs[:, :, 1]]

    def _merge(self, parts: list[Any]) -> Any:
        if self.split == "halves":
            return ops.concatenate(parts, axis=1)
        return ops.reshape(ops.stack(parts, axis=2), (-1, self.num_features))

    def _float32_weight(
        self, name: str, shape: tuple[int, ...], initializer: str, trainable: bool = False
    ) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=trainable, autocast=False)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_features": self.num_features,
            "num_levels": self.num_levels,
            "num_couplings": self.num_couplings,
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_dim": self.hidden_dim,
            "coupling": self.coupling,
            "prior": self.prior,
            "scaling": self.scaling,
            "split": self.split,
            "value_range": list(self.value_range),
            "preprocessing": self.preprocessing,
        }
