"""Generative adversarial network: a generator of images, trained against a discriminator of images and samples.

Goodfellow et al. 2014 (https://arxiv.org/abs/1406.2661); convolutions by the rules of DCGAN, Radford, Metz, Chintala 2016
(https://arxiv.org/abs/1511.06434). G maps noise z to images; D = sigmoid(l) tells images from samples by a logit l:

    D minimises  -E_x log D(x) - E_z log(1 - D(G(z)))      at best log 4 - 2 JSD(p_data, p_g); log 4 where they are the same
    G minimises  -E_z log D(G(z))                          non-saturating: strong gradients while D wins
             or   E_z log(1 - D(G(z)))                     minimax: the same fixed point, but almost no gradient there

Rules of DCGAN: strides instead of pooling, batch normalisation everywhere but at G's output and D's input, no hidden dense
layers, ReLU in G and leaky ReLU in D, weights of N(0, 0.02), Adam with beta_1 = 0.5.

Differs from the papers: by choice, labels, hinge, least-squares and Wasserstein losses, penalties of D's gradient, one-sided
label smoothing, averaged weights of G. A GAN has no encoder and no likelihood: two latents can be interpolated, two given
images cannot.

Checked against: the optimal discriminator and gradients in closed form, parameter counts of the released code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.interpolation import interpolate_latents
from zoo.generative.unit_images import UnitImageModel, check_convolutions
from zoo.layers.chain import build_chain
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric

LOSSES = ("non_saturating", "minimax", "hinge", "least_squares", "wasserstein")
LATENT_DISTRIBUTIONS = ("uniform", "normal")
OUTPUT_ACTIVATIONS = ("tanh", "sigmoid")
BATCH_NORMS = ("both", "generator", "none")
INITIALIZERS = ("normal", "uniform", "glorot")
# Of the gains of batch normalisation, in the authors' code of DCGAN.
GAIN_STDDEV = 0.02
# Adam of DCGAN.
LEARNING_RATE, BETA_1 = 2e-4, 0.5
# Samples of a generator that still changes must not be normalised by statistics of many updates ago.
NORM_MOMENTUM, NORM_EPSILON = 0.9, 1e-5
EVALUATION_SEED = 2016
EVALUATION_BATCH = 500


# === Losses ===


def discriminator_loss(
    real_logits: Any, fake_logits: Any, loss: str = "non_saturating", label_smoothing: float = 0.0
) -> Any:
    """Returns what the discriminator minimises.

    Args:
        real_logits: float tensor `(batch,)`. Logits l(x) of images.
        fake_logits: float tensor `(batch,)`. Logits l(G(z)) of samples.
        loss: str. One of `LOSSES`; `"non_saturating"` and `"minimax"` are the same here.
        label_smoothing: float. Images are to be taken for images with probability 1 - `label_smoothing` only.

    Returns:
        Scalar tensor.

    Reference:
        Goodfellow et al. 2014, equation 1.
    """
    if loss == "wasserstein":
        return ops.mean(fake_logits) - ops.mean(real_logits)
    if loss == "hinge":
        return ops.mean(ops.relu(1.0 - real_logits)) + ops.mean(ops.relu(1.0 + fake_logits))
    if loss == "least_squares":
        return 0.5 * (ops.mean(ops.square(real_logits - 1.0)) + ops.mean(ops.square(fake_logits)))
    # log D = -softplus(-l) and log(1 - D) = -softplus(l), which are finite for all logits
    smoothed = (1.0 - label_smoothing) * ops.softplus(-real_logits) + label_smoothing * ops.softplus(real_logits)
    return ops.mean(smoothed) + ops.mean(ops.softplus(fake_logits))


def generator_loss(fake_logits: Any, loss: str = "non_saturating") -> Any:
    """Returns what the generator minimises.

    Args:
        fake_logits: float tensor `(batch,)`. Logits l(G(z)) of samples.
        loss: str. One of `LOSSES`.

    Returns:
        Scalar tensor.

    Reference:
        Goodfellow et al. 2014, section 3.
    """
    if loss in ("wasserstein", "hinge"):
        return -ops.mean(fake_logits)
    if loss == "least_squares":
        return 0.5 * ops.mean(ops.square(fake_logits - 1.0))
    return -ops.mean(ops.softplus(fake_logits)) if loss == "minimax" else ops.mean(ops.softplus(-fake_logits))


# === Networks ===


def _initializer(name: str, scale: float) -> keras.initializers.Initializer:
    # A new one for each layer: one that is shared would give layers of one shape the same weights.
    if name == "glorot":
        return keras.initializers.GlorotUniform()
    initializers = keras.initializers
    return initializers.RandomNormal(0.0, scale) if name == "normal" else initializers.RandomUniform(-scale, scale)


def _norms(count: int, policy: Any) -> list[keras.layers.Layer]:
    return [
        keras.layers.BatchNormalization(
            momentum=NORM_MOMENTUM,
            epsilon=NORM_EPSILON,
            gamma_initializer=keras.initializers.RandomNormal(1.0, GAIN_STDDEV),
            dtype=policy,
        )
        for _ in range(count)
    ]


def _with_label(values: Any, one_hot: Any) -> Any:
    """Appends labels to the features of rows, or to the channels at each place of maps."""
    if one_hot is None:
        return values
    one_hot = ops.cast(one_hot, values.dtype)
    if len(values.shape) == 4:
        place = ops.ones((1, values.shape[1], values.shape[2], 1), dtype=values.dtype)
        one_hot = ops.reshape(one_hot, (-1, 1, 1, one_hot.shape[-1])) * place
    return ops.concatenate([values, one_hot], axis=-1)


def _more_channels(shape: Sequence[int | None], count: int) -> tuple[int | None, ...]:
    return (*shape[:-1], shape[-1] + count)


def _flat(values: Any) -> Any:
    return ops.reshape(values, (-1, math.prod(values.shape[1:])))


@keras.saving.register_keras_serializable(package="zoo")
class Generator(keras.layers.Layer):
    """Maps noise to images.

    Args:
        image_shape: tuple of int. Height, width and channels.
        hidden_dims: sequence of int. Sizes of dense hidden layers.
        convolutions: sequence of `(filters, kernel_size, stride)`. Each is a map of so many channels, which a transposed
            convolution takes to the next map; the last one gives the image. The first map is a dense layer's.
        num_classes: int. Number of labels, which every layer is given; 0 for none.
        output_activation: str. `"tanh"` for images in [-1, 1], `"sigmoid"` for [0, 1].
        batch_norm: bool. Whether to normalise all layers but the last one, which then have no biases.
        initializer: str. Of the weights: `"normal"`, `"uniform"`, or Glorot's uniform ones, `"glorot"`.
        initializer_scale: float. Standard deviation of normal weights, limit of uniform ones.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_dims: Sequence[int],
        convolutions: Sequence[Sequence[int]],
        num_classes: int,
        output_activation: str,
        batch_norm: bool,
        initializer: str,
        initializer_scale: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.image_shape = tuple(image_shape)
        self.hidden_dims = list(hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.num_classes = num_classes
        self.output_activation = output_activation
        self.batch_norm = batch_norm
        self.initializer = initializer
        self.initializer_scale = initializer_scale
        height, width, channels = self.image_shape
        scale = math.prod(stride for _, _, stride in convolutions)
        # What the last dense layer gives: the first map, or the image itself
        filters = [filters for filters, _, _ in convolutions]
        self.first_map = (height // scale, width // scale, filters[0] if filters else channels)
        dense = [keras.layers.Dense(dim, **self._arguments()) for dim in (*self.hidden_dims, math.prod(self.first_map))]
        following_filters = [*filters[1:], channels] if filters else []
        transposed = [
            keras.layers.Conv2DTranspose(following, size, stride, "same", **self._arguments())
            for (_, size, stride), following in zip(convolutions, following_filters, strict=True)
        ]
        self.linear_layers = dense + transposed
        self.norms = _norms(len(self.linear_layers) - 1, self.dtype_policy) if batch_norm else []

    def _arguments(self) -> dict[str, Any]:
        initializer = _initializer(self.initializer, self.initializer_scale)
        return {"use_bias": not self.batch_norm, "kernel_initializer": initializer, "dtype": self.dtype_policy}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        shape = input_shape
        for index, layer in enumerate(self.linear_layers):
            shape = build_chain([layer], _more_channels(shape, self.num_classes))
            if self.norms and index < len(self.norms):
                self.norms[index].build(shape)
            if index == len(self.hidden_dims):
                shape = (None, *self.first_map)

    def call(self, latent: Any, one_hot: Any = None, training: bool | None = False) -> Any:
        """Maps `(batch, latent_dim)`, and labels `(batch, num_classes)`, to float32 images in the activation's range."""
        hidden = latent
        for index, layer in enumerate(self.linear_layers):
            hidden = layer(_with_label(hidden, one_hot))
            if index < len(self.linear_layers) - 1:
                hidden = self.norms[index](hidden, training=training) if self.norms else hidden
                hidden = ops.relu(hidden)
            if index == len(self.hidden_dims):
                hidden = ops.reshape(hidden, (-1, *self.first_map))
        return keras.activations.get(self.output_activation)(ops.cast(hidden, "float32"))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self.image_shape),
            "hidden_dims": self.hidden_dims,
            "convolutions": self.convolutions,
            "num_classes": self.num_classes,
            "output_activation": self.output_activation,
            "batch_norm": self.batch_norm,
            "initializer": self.initializer,
            "initializer_scale": self.initializer_scale,
        }


@keras.saving.register_keras_serializable(package="zoo")
class Discriminator(keras.layers.Layer):
    """Maps images to logits of being no sample.

    Args:
        hidden_dims: sequence of int. Sizes of dense hidden layers, after the convolutions.
        convolutions: sequence of `(filters, kernel_size, stride)`.
        num_classes: int. Number of labels, which every layer is given; 0 for none.
        batch_norm: bool. Whether to normalise all layers but the first and the last one; no layer then has biases.
        negative_slope: float. Slope of the leaky ReLU below 0; 0 makes it a ReLU.
        maxout_pieces: int. From 2 on, dense hidden units are the largest of so many linear functions instead.
        dropout: float. Share of hidden values that are dropped in training.
        input_dropout: float. Share of the image's values that are.
        initializer: str. Of the weights: `"normal"`, `"uniform"`, or Glorot's uniform ones, `"glorot"`.
        initializer_scale: float. Standard deviation of normal weights, limit of uniform ones.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int],
        convolutions: Sequence[Sequence[int]],
        num_classes: int,
        batch_norm: bool,
        negative_slope: float,
        maxout_pieces: int,
        dropout: float,
        input_dropout: float,
        initializer: str,
        initializer_scale: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.hidden_dims = list(hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.num_classes = num_classes
        self.batch_norm = batch_norm
        self.negative_slope = negative_slope
        self.maxout_pieces = maxout_pieces
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.initializer = initializer
        self.initializer_scale = initializer_scale
        strided = [
            keras.layers.Conv2D(filters, size, stride, "same", **self._arguments())
            for filters, size, stride in convolutions
        ]
        dense = [keras.layers.Dense(dim * maxout_pieces, **self._arguments()) for dim in hidden_dims]
        self.linear_layers = [*strided, *dense, keras.layers.Dense(1, **self._arguments())]
        self.norms = _norms(max(len(self.linear_layers) - 2, 0), self.dtype_policy) if batch_norm else []
        self.hidden_drop = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.input_drop = keras.layers.Dropout(input_dropout, dtype=self.dtype_policy)

    def _arguments(self) -> dict[str, Any]:
        initializer = _initializer(self.initializer, self.initializer_scale)
        return {"use_bias": not self.batch_norm, "kernel_initializer": initializer, "dtype": self.dtype_policy}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        shape = input_shape
        for index, layer in enumerate(self.linear_layers):
            if index == len(self.convolutions):
                shape = (None, math.prod(shape[1:]))
            shape = build_chain([layer], _more_channels(shape, self.num_classes))
            if self.norms and 0 < index <= len(self.norms):
                self.norms[index - 1].build(shape)
            if index >= len(self.convolutions):
                shape = (None, shape[-1] // self.maxout_pieces)

    def call(self, image: Any, one_hot: Any = None, training: bool | None = False) -> tuple[Any, Any]:
        """Maps images, and labels `(batch, num_classes)`, to float32 logits `(batch,)` and the features before them."""
        hidden = self.input_drop(image, training=training)
        for index, layer in enumerate(self.linear_layers[:-1]):
            hidden = _flat(hidden) if index == len(self.convolutions) else hidden
            hidden = layer(_with_label(hidden, one_hot))
            if self.norms and index > 0:
                hidden = self.norms[index - 1](hidden, training=training)
            hidden = self.hidden_drop(self._activated(hidden), training=training)
        features = _flat(hidden)
        logit = self.linear_layers[-1](_with_label(features, one_hot))
        return ops.cast(ops.reshape(logit, (-1,)), "float32"), ops.cast(features, "float32")

    def _activated(self, hidden: Any) -> Any:
        if self.maxout_pieces > 1:
            units = hidden.shape[-1] // self.maxout_pieces
            return ops.max(ops.reshape(hidden, (-1, units, self.maxout_pieces)), axis=-1)
        return ops.leaky_relu(hidden, self.negative_slope) if self.negative_slope else ops.relu(hidden)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "hidden_dims": self.hidden_dims,
            "convolutions": self.convolutions,
            "num_classes": self.num_classes,
            "batch_norm": self.batch_norm,
            "negative_slope": self.negative_slope,
            "maxout_pieces": self.maxout_pieces,
            "dropout": self.dropout,
            "input_dropout": self.input_dropout,
            "initializer": self.initializer,
            "initializer_scale": self.initializer_scale,
        }


@contextlib.contextmanager
def _statistics_kept(network: keras.layers.Layer) -> Iterator[None]:
    """Uses a network as in training while moving statistics stay as they were: they belong to its own updates."""
    before = [tf.identity(weight.value) for weight in network.non_trainable_weights]
    yield
    for weight, value in zip(network.non_trainable_weights, before, strict=True):
        weight.assign(value)


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class GAN(UnitImageModel):
    """A generative adversarial network of images.

    `fit` takes batches of float images in [0, 1], `(batch, height, width, channels)`, and, with `num_classes`, their labels
    `(batch,)` as targets. Every step updates the discriminator and the generator in turn, by optimizers and variables of
    their own. It reports `loss`, which is the discriminator's, and `generator_loss`; neither says how good samples are.
    Called, the model returns logits of being no sample, `(batch,)`.

    Args:
        image_shape: tuple of int. Height, width and channels.
        latent_dim: int. Size of the noise.
        latent_distribution: str. Of the noise, `"uniform"` on [-1, 1], or standard `"normal"`. Defaults to `"uniform"`.
        hidden_dims: sequence of int. Sizes of the discriminator's dense hidden layers; none by default.
        generator_hidden_dims: sequence of int or None. Those of the generator; the discriminator's the other way round by
            default.
        convolutions: sequence of `(filters, kernel_size, stride)`. Convolutions before the discriminator's dense layers;
            their strides must divide height and width. None by default.
        generator_convolutions: sequence of `(filters, kernel_size, stride)` or None. Maps of the generator, after its dense
            layers, and the transposed convolutions that take each to the next and the last to the image; the
            discriminator's the other way round by default.
        num_classes: int. Number of labels, for a conditional model; 0, the default, for none.
        output_activation: str. Networks work on images in [-1, 1], `"tanh"`, or [0, 1], `"sigmoid"`. Defaults to `"tanh"`.
        batch_norm: str. Which networks are normalised: `"both"`, `"generator"` or `"none"`. Defaults to `"both"`.
        negative_slope: float. Slope of the discriminator's leaky ReLU below 0. Defaults to 0.2.
        maxout_pieces: int. From 2 on, the discriminator has maxout units of so many pieces instead. Defaults to 1.
        dropout: float. Share of the discriminator's hidden values that are dropped in training. Defaults to 0.
        input_dropout: float. The same of the image's values. Defaults to 0.
        initializer: str. Of the weights: `"normal"`, `"uniform"`, or Glorot's uniform ones, `"glorot"`. Defaults to
            `"normal"`.
        initializer_scale: float. Standard deviation of normal weights, limit of uniform ones. Defaults to 0.02.
        generator_initializer_scale: float or None. That of the generator; the same by default.
        loss: str. `"non_saturating"`, `"minimax"`, `"hinge"`, `"least_squares"` or `"wasserstein"`. Defaults to
            `"non_saturating"`.
        label_smoothing: float. Probability, as a target, that an image is none; one-sided. Defaults to 0.
        gradient_penalty: float. Weight of (|dl/dx| - 1)^2 between images and samples; 10 in the paper of WGAN-GP. Defaults
            to 0.
        r1_gamma: float. Weight of |dl/dx|^2 / 2 at images. Defaults to 0.
        discriminator_steps: int. Updates of the discriminator, of a batch each, for one of the generator. Defaults to 1.
        ema_decay: float or None. Decay of an average of the generator's weights, from which samples are then drawn; none
            by default.
        num_levels: int. Number of levels of stored pixels, 0 to `num_levels - 1`. Defaults to 256.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("gan")
    images = model.sample(16, seed=0)                               # (16, 8, 8, 1)
    start, end = model.draw_latents(2, seed=0)[:, None]
    strip = model.interpolate(start, end, num_steps=9)              # (1, 9, 8, 8, 1)
    logit = model.discriminate(images)                              # (16,)
    ```

    Reference:
        Goodfellow et al. 2014, "Generative Adversarial Nets", arXiv 1406.2661; Radford, Metz, Chintala 2016,
        "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks", arXiv 1511.06434.
        Options: Lim, Ye 2017 (hinge), Mao et al. 2017 (least squares), Gulrajani et al. 2017 (WGAN-GP), Salimans et al.
        2016 (label smoothing), Mescheder et al. 2018 (R1).
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        latent_distribution: Literal["uniform", "normal"] = "uniform",
        hidden_dims: Sequence[int] = (),
        generator_hidden_dims: Sequence[int] | None = None,
        convolutions: Sequence[Sequence[int]] = (),
        generator_convolutions: Sequence[Sequence[int]] | None = None,
        num_classes: int = 0,
        output_activation: Literal["tanh", "sigmoid"] = "tanh",
        batch_norm: Literal["both", "generator", "none"] = "both",
        negative_slope: float = 0.2,
        maxout_pieces: int = 1,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        initializer: Literal["normal", "uniform", "glorot"] = "normal",
        initializer_scale: float = 0.02,
        generator_initializer_scale: float | None = None,
        loss: Literal["non_saturating", "minimax", "hinge", "least_squares", "wasserstein"] = "non_saturating",
        label_smoothing: float = 0.0,
        gradient_penalty: float = 0.0,
        r1_gamma: float = 0.0,
        discriminator_steps: int = 1,
        ema_decay: float | None = None,
        num_levels: int = 256,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # Mixed precision belongs inside the networks: losses need logits in float32.
        self.autocast = False
        generator_hidden_dims = list(hidden_dims)[::-1] if generator_hidden_dims is None else generator_hidden_dims
        generator_convolutions = list(convolutions)[::-1] if generator_convolutions is None else generator_convolutions
        if generator_initializer_scale is None:
            generator_initializer_scale = initializer_scale
        shaped = len(image_shape) == 3 and min(image_shape) >= 1
        require(shaped, "image_shape", "height, width and channels", image_shape)
        for name, value, least in (
            ("latent_dim", latent_dim, 1),
            ("num_classes", num_classes, 0),
            ("maxout_pieces", maxout_pieces, 1),
            ("discriminator_steps", discriminator_steps, 1),
            ("num_levels", num_levels, 2),
        ):
            require(value >= least, name, f"at least {least}", value)
        for name, value, known in (
            ("latent_distribution", latent_distribution, LATENT_DISTRIBUTIONS),
            ("output_activation", output_activation, OUTPUT_ACTIVATIONS),
            ("batch_norm", batch_norm, BATCH_NORMS),
            ("initializer", initializer, INITIALIZERS),
            ("loss", loss, LOSSES),
        ):
            require(value in known, name, f"one of {known}", value)
        for name, dims in (("hidden_dims", hidden_dims), ("generator_hidden_dims", generator_hidden_dims)):
            require(all(dim >= 1 for dim in dims), name, "sizes of at least 1", dims)
        for name, given in (("convolutions", convolutions), ("generator_convolutions", generator_convolutions)):
            check_convolutions(name, given, image_shape)
        for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
            require(0 <= share < 1, name, "in [0, 1)", share)
        for name, value in (
            ("negative_slope", negative_slope),
            ("gradient_penalty", gradient_penalty),
            ("r1_gamma", r1_gamma),
        ):
            require(0 <= value < math.inf, name, "finite and not negative", value)
        for name, size in (
            ("initializer_scale", initializer_scale),
            ("generator_initializer_scale", generator_initializer_scale),
        ):
            require(0 < size < math.inf, name, "positive and finite", size)
        dense_only = maxout_pieces == 1 or not convolutions
        require(dense_only, "maxout_pieces", "1 with convolutions", maxout_pieces)
        require(0 <= label_smoothing < 0.5, "label_smoothing", "in [0, 0.5)", label_smoothing)
        plain = label_smoothing == 0 or loss in ("non_saturating", "minimax")
        require(plain, "label_smoothing", f"0 with the {loss} loss", label_smoothing)
        penalised = loss != "wasserstein" or gradient_penalty > 0
        require(penalised, "gradient_penalty", "positive with the wasserstein loss", gradient_penalty)
        # In a normalised batch the logit of an image has gradients with respect to all others
        alone = batch_norm != "both" or gradient_penalty == r1_gamma == 0
        require(alone, "batch_norm", "'generator' or 'none' with a penalty of gradients", batch_norm)
        decays = ema_decay is None or 0 < ema_decay < 1
        require(decays, "ema_decay", "in (0, 1) or None", ema_decay)
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.latent_distribution = latent_distribution
        self.hidden_dims = list(hidden_dims)
        self.generator_hidden_dims = list(generator_hidden_dims)
        self.convolutions = [list(convolution) for convolution in convolutions]
        self.generator_convolutions = [list(convolution) for convolution in generator_convolutions]
        self.num_classes = num_classes
        self.output_activation = output_activation
        self.batch_norm = batch_norm
        self.negative_slope = negative_slope
        self.maxout_pieces = maxout_pieces
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.initializer = initializer
        self.initializer_scale = initializer_scale
        self.generator_initializer_scale = generator_initializer_scale
        self.loss_name = loss
        self.label_smoothing = label_smoothing
        self.gradient_penalty = gradient_penalty
        self.r1_gamma = r1_gamma
        self.discriminator_steps = discriminator_steps
        self.ema_decay = ema_decay
        self.num_levels = num_levels

        # === Layers ===
        self.generator = self._make_generator()
        self.average_generator = None if ema_decay is None else self._make_generator()
        self.discriminator = Discriminator(
            self.hidden_dims,
            self.convolutions,
            num_classes,
            batch_norm == "both",
            negative_slope,
            maxout_pieces,
            dropout,
            input_dropout,
            initializer,
            initializer_scale,
            dtype=self.dtype_policy,
        )
        self.discriminator_optimizer = None
        self.seed_generator = keras.random.SeedGenerator()
        self.generator_loss = keras.metrics.Mean(name="generator_loss")
        self.build((None, *self.image_shape))

    def _make_generator(self) -> Generator:
        return Generator(
            self.image_shape,
            self.generator_hidden_dims,
            self.generator_convolutions,
            self.num_classes,
            self.output_activation,
            self.batch_norm != "none",
            self.initializer,
            self.generator_initializer_scale,
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        self.generator.build((None, self.latent_dim))
        self.discriminator.build((None, *self.image_shape))
        if self.average_generator is not None:
            self.average_generator.build((None, self.latent_dim))
            self.average_generator.trainable = False
            for average, weight in zip(self.average_generator.weights, self.generator.weights, strict=True):
                average.assign(weight)

    # === Images and noise ===

    def _check_label(self, label: Any) -> Any:
        """Returns labels one-hot; None for a model that takes none."""
        if self.num_classes == 0:
            require(label is None, "label", "None: the model has `num_classes=0`", type(label).__name__)
            return None
        wanted = f"of whole numbers below {self.num_classes}, (batch,)"
        require(label is not None and len(label.shape) == 1, "label", wanted, getattr(label, "shape", label))
        whole = keras.backend.standardize_dtype(label.dtype)
        if "int" not in whole:
            raise TypeError(f"`label` must be {wanted}. Received: dtype={whole}")
        return self._one_hot(label)

    def _one_hot(self, label: Any) -> Any:
        # Not `one_hot`: a comparison is the same in every exported format
        classes = np.arange(self.num_classes, dtype="int32")[None]
        return ops.cast(ops.equal(ops.expand_dims(ops.cast(label, "int32"), 1), classes), "float32")

    def _to_network(self, image: Any) -> Any:
        """Returns images of [0, 1] in the range of the networks."""
        return 2.0 * image - 1.0 if self.output_activation == "tanh" else image

    def _from_network(self, values: Any) -> Any:
        return 0.5 * (values + 1.0) if self.output_activation == "tanh" else values

    def _draw_noise(self, count: Any, seed: Any) -> Any:
        shape = (count, self.latent_dim)
        if self.latent_distribution == "normal":
            return keras.random.normal(shape, dtype="float32", seed=seed)
        return keras.random.uniform(shape, -1.0, 1.0, dtype="float32", seed=seed)

    # === Training ===

    def call(self, image: Any, label: Any = None, training: bool | None = False) -> Any:
        """Returns the discriminator's logits of images.

        Args:
            image: float tensor `(batch, height, width, channels)`, in [0, 1].
            label: int tensor `(batch,)`, for a model with `num_classes`.
            training: bool. Whether to normalise by the batch and to drop values.

        Returns:
            float32 tensor `(batch,)`, positive where an image is taken for no sample.

        Raises:
            ValueError: for images of another shape, and labels that are missing or not asked for.
            TypeError: for images of whole numbers, and labels of other types.
        """
        return self._logits(self._to_network(self.check_images(image)), self._check_label(label), training)

    def _logits(self, values: Any, one_hot: Any, training: bool | None) -> Any:
        return self.discriminator(values, one_hot, training=training)[0]

    def compile(
        self,
        optimizer: Any = None,
        discriminator_optimizer: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
    ) -> None:
        """Sets the optimizers; the losses are the model's own.

        Args:
            optimizer: Keras optimizer or its name, of the generator; Adam of the paper of DCGAN by default.
            discriminator_optimizer: that of the discriminator; another one with the same settings by default.
            run_eagerly: bool.
            steps_per_execution: int.
            jit_compile: bool or `"auto"`.
        """
        optimizer = keras.optimizers.Adam(LEARNING_RATE, beta_1=BETA_1) if optimizer is None else optimizer
        optimizer = keras.optimizers.get(optimizer)
        if discriminator_optimizer is None:
            discriminator_optimizer = type(optimizer).from_config(optimizer.get_config())
        discriminator_optimizer = keras.optimizers.get(discriminator_optimizer)
        apart = discriminator_optimizer is not optimizer
        require(apart, "discriminator_optimizer", "another object than `optimizer`", discriminator_optimizer)
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
        )
        self.discriminator_optimizer = discriminator_optimizer
        self.optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given (called by Keras on saving a `.keras` file)."""
        config = super().get_compile_config()
        names = ("optimizer", "run_eagerly", "steps_per_execution", "jit_compile")
        optimizer = {"discriminator_optimizer": keras.saving.serialize_keras_object(self.discriminator_optimizer)}
        return {**{name: config[name] for name in names}, **optimizer} if config else {}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` says (called by Keras on loading a `.keras` file)."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def stream_variables(self) -> list[Any]:
        """What a training checkpoint holds beside the model and its `optimizer`: the other optimizer."""
        return [] if self.discriminator_optimizer is None else self.discriminator_optimizer.variables

    def restore_stream(self, values: Sequence[np.ndarray]) -> None:
        """Takes back the values of `stream_variables`, before a resumed training."""
        for variable, value in zip(self.stream_variables, values, strict=True):
            variable.assign(value)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Updates the discriminator and then, every `discriminator_steps` batches, the generator; called by `fit`."""
        image, one_hot = self._unpack(data)
        self.discriminator_step(image, one_hot)
        if self.discriminator_steps == 1:
            self.generator_step(ops.shape(image)[0], one_hot)
        else:
            due = ops.equal(self.discriminator_optimizer.iterations.value % self.discriminator_steps, 0)
            ops.cond(due, lambda: self.generator_step(ops.shape(image)[0], one_hot), lambda: None)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        """Returns the losses of held-out images and of samples whose noise is the same each time."""
        image, one_hot = self._unpack(data)
        noise = self._draw_noise(ops.shape(image)[0], EVALUATION_SEED)
        fake_logits = self._logits(self._sampler(noise, one_hot), one_hot, training=False)
        real_logits = self._logits(self._to_network(image), one_hot, training=False)
        self._track(discriminator_loss(real_logits, fake_logits, self.loss_name, self.label_smoothing))
        self.generator_loss.update_state(generator_loss(fake_logits, self.loss_name))
        return self.get_metrics_result()

    def _unpack(self, data: Any) -> tuple[Any, Any]:
        image, label, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        require(sample_weight is None, "sample_weight", "None", type(sample_weight).__name__)
        return self.check_images(image), self._check_label(label)

    def _track(self, loss: Any) -> None:
        """Takes the discriminator's loss into the one that Keras reports as `loss`."""
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)

    def discriminator_step(self, image: Any, one_hot: Any = None) -> None:
        """One update of the discriminator, which leaves the generator and its statistics alone.

        Args:
            image: float tensor `(batch, height, width, channels)`, in [0, 1].
            one_hot: float tensor `(batch, num_classes)`, or None.
        """
        noise = self._draw_noise(ops.shape(image)[0], self.seed_generator)
        with _statistics_kept(self.generator):
            fake = ops.stop_gradient(self.generator(noise, one_hot, training=True))
        real = self._to_network(image)
        variables = self.discriminator.trainable_variables
        with tf.GradientTape() as tape:
            # A pass each: statistics of a batch of both would tell them apart
            real_logits = self._logits(real, one_hot, training=True)
            fake_logits = self._logits(fake, one_hot, training=True)
            loss = discriminator_loss(real_logits, fake_logits, self.loss_name, self.label_smoothing)
            loss += self._penalty(real, fake, one_hot)
            scaled = self.discriminator_optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        self.discriminator_optimizer.apply(gradients, variables)
        self._track(loss)

    def generator_step(self, count: Any, one_hot: Any = None) -> None:
        """One update of the generator, which leaves the discriminator and its statistics alone.

        Args:
            count: int or tensor. Number of samples.
            one_hot: float tensor `(count, num_classes)`, or None. Labels of the samples.
        """
        noise = self._draw_noise(count, self.seed_generator)
        variables = self.generator.trainable_variables
        with _statistics_kept(self.discriminator), tf.GradientTape() as tape:
            fake = self.generator(noise, one_hot, training=True)
            loss = generator_loss(self._logits(fake, one_hot, training=True), self.loss_name)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
        self.generator_loss.update_state(loss)
        if self.average_generator is not None:
            self._average()

    def _penalty(self, real: Any, fake: Any, one_hot: Any) -> Any:
        """Returns the penalties of the discriminator's gradient, with their weights."""
        penalty = 0.0
        if self.gradient_penalty > 0:
            shape = (ops.shape(real)[0], 1, 1, 1)
            share = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
            # The root of 0 has no gradient
            norm = ops.sqrt(self._squared_gradient(share * real + (1.0 - share) * fake, one_hot) + 1e-12)
            penalty += self.gradient_penalty * ops.mean(ops.square(norm - 1.0))
        if self.r1_gamma > 0:
            penalty += 0.5 * self.r1_gamma * ops.mean(self._squared_gradient(real, one_hot))
        return penalty

    def _squared_gradient(self, values: Any, one_hot: Any) -> Any:
        """Returns |dl/dx|^2 of each image, `(batch,)`."""
        with tf.GradientTape() as tape:
            tape.watch(values)
            logits = self._logits(values, one_hot, training=True)
        return ops.sum(ops.square(tape.gradient(logits, values)), axis=(1, 2, 3))

    def _average(self) -> None:
        """Moves the averaged weights towards the generator's: at first faster, to forget where they began."""
        updates = ops.cast(self.optimizer.iterations, "float32")
        decay = ops.minimum(self.ema_decay, (1.0 + updates) / (10.0 + updates))
        for average, weight in zip(self.average_generator.weights, self.generator.weights, strict=True):
            average.assign(decay * average.value + (1.0 - decay) * weight.value)

    # === Use ===

    def _sampler(self, latent: Any, one_hot: Any) -> Any:
        network = self.generator if self.average_generator is None else self.average_generator
        return network(latent, one_hot, training=False)

    def _decode(self, latent: Any, label: Any = None) -> Any:
        """Returns the images of latents, in [0, 1]."""
        one_hot = None if label is None else self._one_hot(label)
        return self._from_network(self._sampler(latent, one_hot))

    def draw_latents(self, num_samples: int, seed: int | None = None) -> np.ndarray:
        """Returns noise of the model's distribution, `(num_samples, latent_dim)`.

        Args:
            num_samples: int.
            seed: int or None. Fresh noise by default.
        """
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        return self._noise_spec().draw(np.random.default_rng(seed), {"batch": num_samples})

    def sample(self, num_samples: int, label: Any = None, seed: int | None = None) -> np.ndarray:
        """Draws images from the model.

        Args:
            num_samples: int.
            label: int array-like `(num_samples,)`, or None: labels of a model with `num_classes`.
            seed: int or None. Fresh noise by default.

        Returns:
            float32 array `(num_samples, height, width, channels)`, in [0, 1].
        """
        return self.run("sample", noise=self.draw_latents(num_samples, seed), **self._label_input(label))["image"]

    def decode(self, latent: Any, label: Any = None) -> np.ndarray:
        """Returns the images of latents.

        Args:
            latent: array-like `(batch, latent_dim)`.
            label: int array-like `(batch,)`, or None: labels of a model with `num_classes`.

        Returns:
            float32 array `(batch, height, width, channels)`, in [0, 1].
        """
        return self.run("decode", latent=latent, **self._label_input(label))["image"]

    def discriminate(self, image: Any, label: Any = None) -> np.ndarray:
        """Returns the discriminator's logits of images.

        Args:
            image: array-like `(batch, height, width, channels)`. Floats in [0, 1].
            label: int array-like `(batch,)`, or None: labels of a model with `num_classes`.

        Returns:
            float32 array `(batch,)`, positive where an image is taken for no sample.

        Raises:
            ValueError: for another shape, NaN, or values out of [0, 1].
            TypeError: for whole numbers, and values that are no numbers.
        """
        image = np.asarray(image)
        if image.dtype.kind in "iub":
            self.check_images(image)
        return self.run("discriminate", image=image, **self._label_input(label))["logit"]

    def interpolate(
        self, start: Any, end: Any, num_steps: int = 9, method: Literal["linear", "slerp"] = "slerp", label: Any = None
    ) -> np.ndarray:
        """Returns images on the way between two batches of latents.

        Args:
            start: array-like `(batch, latent_dim)`.
            end: array-like of the same shape.
            num_steps: int. Number of images on each way, both ends included.
            method: str. `"linear"`, or `"slerp"`, which turns from one latent to the other at an even angle.
            label: int array-like `(batch,)`, or None: labels of a model with `num_classes`.

        Returns:
            float32 array `(batch, num_steps, height, width, channels)`; the first and last images are those of `start` and
            `end`.
        """
        specs = self.signatures()["interpolate"]
        position = np.zeros(len(np.asarray(start)), np.float32)
        given = specs.check({"start": start, "end": end, "position": position, **self._label_input(label)})
        path = interpolate_latents(given["start"], given["end"], num_steps, method)
        labels = np.repeat(given["label"], num_steps) if self.num_classes else None
        return self.decode(path.reshape(-1, self.latent_dim), labels).reshape(*path.shape[:2], *self.image_shape)

    def encode(self, image: Any) -> np.ndarray:
        """Refuses: a GAN has no encoder.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A GAN has no encoder: it has an image for each latent, but no latent for a given image. An autoencoder, a VAE "
            f"or a flow has. Received: {type(image).__name__}"
        )

    def _label_input(self, label: Any) -> Arrays:
        if self.num_classes == 0:
            self._check_label(label)
            return {}
        require(label is not None, "label", f"whole numbers below {self.num_classes}, (batch,)", label)
        return {"label": np.asarray(label)}

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns the energy distance of samples from the test images; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        # Two-sided: the noise is the same, so that samples should be too
        return TaskMetric(
            "energy_distance",
            lambda run: self.sample_distance(run, dataset, "test"),
            higher_is_better=False,
            relative_tolerance=0.1,
            absolute_tolerance=0.001,
            two_sided=True,
        )

    def sample_distance(self, run: Runner, dataset: str, split: str) -> float:
        """Returns the energy distance between a split's images and as many samples, whose noise is the same each time.

        Args:
            run: `Runner`.
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        images, labels = self._held_out(dataset, split)
        inputs = {"noise": self.draw_latents(len(images), EVALUATION_SEED)}
        inputs |= {"label": labels} if self.num_classes else {}
        parts = [
            run("sample", {name: value[start : start + EVALUATION_BATCH] for name, value in inputs.items()})["image"]
            for start in range(0, len(images), EVALUATION_BATCH)
        ]
        return energy_distance(images.reshape(len(images), -1), np.concatenate(parts).reshape(len(images), -1))

    def _held_out(self, dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        from zoo.datasets import load_arrays

        arrays = load_arrays(dataset, split)
        return self.preprocess(arrays["image"]), arrays["label"]

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields noise, and images and labels of the validation split of the data set the checkpoint names.

        Yields nothing without a checkpoint.

        Args:
            signature: str.
            batch_size: int. Number of rows; an incomplete last batch is left out.
        """
        if self.metadata is None:
            return
        images, labels = self._held_out(self.metadata.evaluation_dataset, "validation")
        noise, other = (self.draw_latents(len(images), EVALUATION_SEED + index) for index in range(2))
        position = np.random.default_rng(EVALUATION_SEED).random(len(images), dtype=np.float32)
        arrays = {
            "sample": {"noise": noise},
            "decode": {"latent": noise},
            "discriminate": {"image": images},
            "interpolate": {"start": noise, "end": other, "position": position},
        }[signature]
        arrays |= {"label": labels} if self.num_classes else {}
        for start in range(0, len(images) - batch_size + 1, batch_size):
            yield {name: value[start : start + batch_size] for name, value in arrays.items()}

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `sample`, `decode`, `discriminate` and `interpolate`."""
        latent = Spec(("batch", self.latent_dim), "float32", "Latents.")
        image = Spec(("batch", *self.image_shape), "float32", "Images, scaled to [0, 1].", 0.0, 1.0)
        position = Spec(("batch",), "float32", "Where between the two, 0 at `start` and 1 at `end`.", 0.0, 1.0)
        label = Spec(("batch",), "int32", "Labels.", 0, self.num_classes - 1)
        labels = {"label": label} if self.num_classes else {}
        return {
            "sample": Signature(
                lambda noise, label=None: {"image": self._decode(noise, label)},
                {"noise": self._noise_spec(), **labels},
                {"image": "Images, in [0, 1]."},
            ),
            "decode": Signature(
                lambda latent, label=None: {"image": self._decode(latent, label)},
                {"latent": latent, **labels},
                {"image": "Images of the latents, in [0, 1]."},
            ),
            "discriminate": Signature(
                self._discriminate,
                {"image": image, **labels},
                {
                    "logit": "Positive where an image is taken for no sample, (batch,).",
                    "features": "Last hidden layer of the discriminator, (batch, features).",
                },
            ),
            "interpolate": Signature(
                self._interpolate,
                {"start": latent, "end": latent, "position": position, **labels},
                {"image": "Images between two latents, on a straight way."},
            ),
        }

    def _noise_spec(self) -> Spec:
        shape = ("batch", self.latent_dim)
        if self.latent_distribution == "normal":
            return Spec(shape, "float32", "Standard normal noise.")
        return Spec(shape, "float32", "Noise, uniform on [-1, 1].", -1.0, 1.0)

    def _discriminate(self, image: tf.Tensor, label: tf.Tensor | None = None) -> dict[str, Any]:
        one_hot = None if label is None else self._one_hot(label)
        logit, features = self.discriminator(self._to_network(image), one_hot, training=False)
        return {"logit": logit, "features": features}

    def _interpolate(
        self, start: tf.Tensor, end: tf.Tensor, position: tf.Tensor, label: tf.Tensor | None = None
    ) -> dict[str, Any]:
        position = ops.expand_dims(position, 1)
        return {"image": self._decode((1.0 - position) * start + position * end, label)}

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self.image_shape),
            "latent_dim": self.latent_dim,
            "latent_distribution": self.latent_distribution,
            "hidden_dims": self.hidden_dims,
            "generator_hidden_dims": self.generator_hidden_dims,
            "convolutions": self.convolutions,
            "generator_convolutions": self.generator_convolutions,
            "num_classes": self.num_classes,
            "output_activation": self.output_activation,
            "batch_norm": self.batch_norm,
            "negative_slope": self.negative_slope,
            "maxout_pieces": self.maxout_pieces,
            "dropout": self.dropout,
            "input_dropout": self.input_dropout,
            "initializer": self.initializer,
            "initializer_scale": self.initializer_scale,
            "generator_initializer_scale": self.generator_initializer_scale,
            "loss": self.loss_name,
            "label_smoothing": self.label_smoothing,
            "gradient_penalty": self.gradient_penalty,
            "r1_gamma": self.r1_gamma,
            "discriminator_steps": self.discriminator_steps,
            "ema_decay": self.ema_decay,
            "num_levels": self.num_levels,
        }


def energy_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of rows, 0 for two samples of one distribution.

    Args:
        first: array `(count, features)`.
        second: array `(other_count, features)`.

    Reference:
        Szekely, Rizzo 2004.
    """
    first, second = (np.asarray(rows, np.float64) for rows in (first, second))

    def total(rows: np.ndarray, others: np.ndarray) -> float:
        squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2.0 * rows @ others.T
        return float(np.sqrt(squares.clip(0.0)).sum())

    # A row is no pair with itself
    within = [total(rows, rows) / (len(rows) * (len(rows) - 1)) for rows in (first, second)]
    return 2.0 * total(first, second) / (len(first) * len(second)) - sum(within)
