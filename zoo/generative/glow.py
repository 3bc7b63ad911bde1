"""Glow: a flow of images with invertible 1x1 convolutions.

Kingma, Dhariwal 2018 (https://arxiv.org/abs/1807.03039). A step of the flow, on an image of height H and width W:

    actnorm      y = (x + b) * exp(l), per channel, set on the first batch to mean 0, variance 1;  log|det| = H W sum(l)
    1x1 conv     y = x M, an invertible matrix of the channels;                           log|det| = H W log|det M|
    coupling     half of the channels is shifted and scaled by functions of the other half

A scale: squeeze 2 x 2 pixels into four times the channels, so many steps, and then, but in the last scale, half of the
channels leaves. It is Gaussian with a mean and deviation that a convolution makes of the half that stays; standardised by
them (one more affine step) it is part of the latent, as is what is left in the end, standardised by a learned mean and
deviation of each channel.

Follows the released code (openai/glow) where the paper is silent: 3x3 convolutions see a further channel that marks what
lies outside of the image; the hidden convolutions are followed by actnorm instead of biases; logarithms of scales are
stored divided by 3, so that Adam moves them faster; the scale of affine couplings is sigmoid(r + 2). Differs from it: the
released top prior is a convolution of a zero image, a mean and deviation of each channel but for the borders; here it has
no borders. Scales of couplings, and deviations of the halves that leave, are bounded: the trained flow, run backwards from
improbable latents, would otherwise grow beyond all numbers.

No deployment runtime inverts matrices or takes determinants. In signatures the inverses and determinants of the 1x1
convolutions are therefore constants, which NumPy computes in float64 from the weights at the moment when a signature is
run or traced. What is exported, and every call of `decode` or `log_prob`, is up to date; a `tf.function` of a signature
that was traced before further training is not. `fit` and `evaluate` compute determinants from the variables.

Checked against: autodiff Jacobians, numerical integration, NumPy's linear algebra, the structure of the released code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_flow import ImageFlow
from zoo.layers.couplings import COUPLINGS, AdditiveCoupling, SigmoidCoupling
from zoo.layers.image_flows import (
    ChannelCoupling,
    InvertibleChain,
    flatten_parts,
    require_squeezable,
    split_parts,
    squeeze,
    unsqueeze,
)
from zoo.model import Signature

PERMUTATIONS = ("convolution", "shuffle", "reverse")
# Logarithms of scales are stored divided by this.
LOG_SCALE_FACTOR = 3.0
# Largest absolute logarithm of the deviation of a half that leaves.
LARGEST_LOG_SCALE = 7.0


# === Invertible layers ===


@keras.saving.register_keras_serializable(package="zoo")
class ActNorm(keras.layers.Layer):
    """A learned shift and scale of each channel, set on the first training batch to give mean 0 and variance 1.

    Args:
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Glow, section 3.1.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        shared = {"initializer": "zeros", "autocast": False, "aggregation": "mean"}
        self.bias = self.add_weight(name="bias", shape=input_shape[-1:], **shared)
        self.log_scale = self.add_weight(name="log_scale", shape=input_shape[-1:], **shared)
        # A number rather than a truth value, so that all weights of a checkpoint are of one type.
        self.initialized = self.add_weight(name="initialized", shape=(), trainable=False, **shared)

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps `(batch, height, width, channels)`; also returns log|det|."""
        if training:
            self._initialize(image)
        log_scale = LOG_SCALE_FACTOR * ops.convert_to_tensor(self.log_scale)
        bias, scale = (ops.cast(value, image.dtype) for value in (self.bias, ops.exp(log_scale)))
        return (image + bias) * scale, image.shape[1] * image.shape[2] * ops.sum(log_scale)

    def inverse(self, image: Any) -> Any:
        """Undoes `call`."""
        return image * ops.exp(-LOG_SCALE_FACTOR * self.log_scale) - self.bias

    def _initialize(self, image: Any) -> None:
        def statistics() -> tuple[Any, Any]:
            mean, variance = ops.moments(ops.cast(image, "float32"), axes=(0, 1, 2))
            return -mean, -ops.log(ops.sqrt(variance) + 1e-6) / LOG_SCALE_FACTOR

        # Assigned outside of the condition: in one, replicas could not agree.
        current = ops.convert_to_tensor(self.bias), ops.convert_to_tensor(self.log_scale)
        bias, log_scale = ops.cond(self.initialized > 0.5, lambda: current, statistics)
        self.bias.assign(ops.stop_gradient(bias))
        self.log_scale.assign(ops.stop_gradient(log_scale))
        self.initialized.assign(1.0)


@keras.saving.register_keras_serializable(package="zoo")
class InvertibleConvolution(keras.layers.Layer):
    """An invertible 1x1 convolution: each pixel's channels times one matrix, at first a random rotation.

    Its log|det|, the same for all images, is `log_det` for every pixel, and not part of what a call returns: the model
    adds it, as a variable or a constant.

    Args:
        lu: bool. Whether the matrix is P L (U + diag(sign * exp(s))), of which L, U and s are learned: its determinant
            then costs nothing. Defaults to False.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Glow, section 3.2.
    """

    def __init__(self, lu: bool = False, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.lu = lu

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        square = (input_shape[-1], input_shape[-1])
        if not self.lu:
            self.kernel = self.add_weight(name="kernel", shape=square, initializer="orthogonal", autocast=False)
            return
        rotation = keras.initializers.Orthogonal()(square)
        factors, order = (value.numpy() for value in tf.linalg.lu(rotation))
        diagonal = np.diag(factors).copy()
        np.fill_diagonal(factors, np.log(np.abs(diagonal)))
        # L below the diagonal, U above it, s on it
        self.factors = self._weight("factors", factors, trainable=True)
        self.signs = self._weight("signs", np.sign(diagonal))
        self.permutation = self._weight("permutation", np.eye(len(order))[np.argsort(order)])

    def _weight(self, name: str, value: np.ndarray, trainable: bool = False) -> keras.Variable:
        def initializer(shape: tuple[int, ...], dtype: str) -> Any:
            return ops.convert_to_tensor(value, dtype)

        return self.add_weight(
            name=name, shape=value.shape, initializer=initializer, trainable=trainable, autocast=False
        )

    def matrix(self) -> Any:
        """Returns the matrix `(channels, channels)` that multiplies pixels from the right."""
        if not self.lu:
            return ops.convert_to_tensor(self.kernel)
        identity = np.eye(self.signs.shape[0], dtype=np.float32)
        lower = self.factors * np.tril(np.ones_like(identity), -1) + identity
        upper = self.factors * np.triu(np.ones_like(identity), 1) + identity * (self.signs * ops.exp(self.factors))
        return ops.matmul(self.permutation, ops.matmul(lower, upper))

    def log_det(self, constant: bool = False) -> Any:
        """Returns the logarithm of the matrix's absolute determinant.

        Args:
            constant: bool. Whether to return a number rather than a tensor that follows the weights.
        """
        if constant:
            return float(np.linalg.slogdet(self._current_matrix())[1])
        if self.lu:
            return ops.sum(self.factors * np.eye(self.signs.shape[0], dtype=np.float32))
        return ops.cast(tf.linalg.slogdet(ops.cast(self.kernel, "float64"))[1], "float32")

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Mixes the channels of `(batch, height, width, channels)`; the second output is 0, see the class."""
        return mix_channels(image, self.matrix()), 0.0

    def inverse(self, image: Any) -> Any:
        """Undoes `call`, by an inverse that is constant once traced."""
        return mix_channels(image, np.linalg.inv(self._current_matrix()).astype(np.float32))

    def _current_matrix(self) -> np.ndarray:
        # Out of a graph that is being traced, to where variables have values.
        with tf.init_scope():
            return ops.convert_to_numpy(self.matrix()).astype(np.float64)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "lu": self.lu}


@keras.saving.register_keras_serializable(package="zoo")
class ChannelPermutation(keras.layers.Layer):
    """A fixed permutation of the channels: what the invertible convolution is compared with.

    Args:
        kind: str. `"reverse"`, or `"shuffle"`, an order drawn at random once.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, kind: Literal["reverse", "shuffle"], **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.kind = kind

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the permutation's matrix."""
        channels = input_shape[-1]
        order = np.arange(channels)[::-1] if self.kind == "reverse" else _shuffled(channels)

        def initializer(shape: tuple[int, ...], dtype: str) -> Any:
            return ops.convert_to_tensor(np.eye(channels)[order], dtype)

        self.permutation = self.add_weight(
            name="permutation", shape=(channels, channels), initializer=initializer, trainable=False, autocast=False
        )

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Reorders the channels of `(batch, height, width, channels)`; also returns log|det|, which is 0."""
        return mix_channels(image, self.permutation), 0.0

    def inverse(self, image: Any) -> Any:
        """Undoes `call`."""
        return mix_channels(image, ops.transpose(self.permutation))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "kind": self.kind}


def _shuffled(count: int) -> np.ndarray:
    return np.argsort(ops.convert_to_numpy(keras.random.uniform((count,))))


def mix_channels(image: Any, matrix: Any) -> Any:
    """Multiplies the channels of every pixel by a matrix from the right."""
    return ops.conv(image, ops.reshape(matrix, (1, 1, *matrix.shape)))


# === Networks ===


@keras.saving.register_keras_serializable(package="zoo")
class EdgeConv2D(keras.layers.Layer):
    """A convolution without bias that sees where the image ends: outside of it, beside zeros, a mark of 1.

    Args:
        filters: int. Number of output channels.
        kernel_size: int. Odd; 1 sees no outside.
        kernel_initializer: Keras initializer.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, filters: int, kernel_size: int, kernel_initializer: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernels."""
        size = (self.kernel_size, self.kernel_size)
        # A clone, since an initialiser without a seed may be asked for one kernel only.
        first, second = self.kernel_initializer, self.kernel_initializer.clone()
        self.kernel = self.add_weight(name="kernel", shape=(*size, input_shape[-1], self.filters), initializer=first)
        if self.kernel_size > 1:
            self.edge_kernel = self.add_weight(name="edge_kernel", shape=(*size, 1, self.filters), initializer=second)

    def call(self, inputs: Any) -> Any:
        """Convolves `(batch, height, width, channels)` to the same height and width."""
        outputs = ops.conv(inputs, self.kernel, padding="same")
        if self.kernel_size == 1:
            return outputs
        # The same for all images: a map of one row, which is added to all.
        height, width = inputs.shape[1:3]
        margin = self.kernel_size // 2
        outside = np.pad(
            np.zeros((1, height, width, 1)), ((0, 0), (margin, margin), (margin, margin), (0, 0)), constant_values=1
        )
        return outputs + ops.conv(ops.cast(outside, inputs.dtype), self.edge_kernel, padding="valid")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="zoo")
class ZeroConv2D(keras.layers.Layer):
    """A 3x3 convolution that begins at zero, its output times exp(3 * log_scale).

    Args:
        filters: int. Number of output channels.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Glow, section 3.3.
    """

    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = EdgeConv2D(filters, 3, "zeros", dtype=self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        self.convolution.build(input_shape)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")
        self.log_scale = self.add_weight(name="log_scale", shape=(self.filters,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Convolves `(batch, height, width, channels)` to the same height and width."""
        return (self.convolution(inputs) + self.bias) * ops.exp(LOG_SCALE_FACTOR * self.log_scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="zoo")
class ConvolutionalConditioner(keras.layers.Layer):
    """The network of a coupling: convolutions of 3x3, 1x1 and 3x3 pixels, the last one zero at first.

    Args:
        output_channels: int.
        filters: int. Feature maps of both hidden layers.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Glow, section 4 and appendix B.
    """

    def __init__(self, output_channels: int, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.output_channels = output_channels
        self.filters = filters
        start = keras.initializers.RandomNormal(stddev=0.05)
        self.hidden = [EdgeConv2D(filters, size, start.clone(), dtype=self.dtype_policy) for size in (3, 1)]
        self.norms = [ActNorm(dtype=self.dtype_policy) for _ in self.hidden]
        self.last = ZeroConv2D(output_channels, dtype=self.dtype_policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        for convolution, norm in zip(self.hidden, self.norms, strict=True):
            convolution.build(input_shape)
            input_shape = (*input_shape[:-1], self.filters)
            norm.build(input_shape)
        self.last.build(input_shape)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Maps `(batch, height, width, channels)` to `(batch, height, width, output_channels)`."""
        for convolution, norm in zip(self.hidden, self.norms, strict=True):
            inputs = ops.relu(norm(convolution(inputs), training=training)[0])
        return self.last(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "output_channels": self.output_channels, "filters": self.filters}


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class Glow(ImageFlow):
    """An exactly invertible model of images with invertible 1x1 convolutions and exact likelihood.

    `fit` takes batches of integer levels `(batch, height, width, channels)`, and needs no targets and no loss; see
    `ImageFlow`. The first batch sets the actnorm layers: give a fresh model one that is typical.

    Args:
        image_shape: sequence of int. Height, width and channels of the images; `2**num_scales` divides height and width.
        num_levels: int. Number of levels V of the data; levels are 0 to V - 1. Defaults to 256.
        num_scales: int. Number of scales ("levels" in the paper) L. Defaults to 3.
        num_steps: int. Steps of flow in each scale K. Defaults to 32.
        filters: int. Feature maps of the hidden layers of the couplings' networks. Defaults to 512.
        coupling: str. `"additive"` or `"affine"`. Defaults to `"affine"`.
        permutation: str. What mixes channels: `"convolution"`, or a fixed permutation, `"shuffle"` (random) or
            `"reverse"`. Defaults to `"convolution"`.
        lu: bool. Whether the convolutions' matrices are learned by their LU decomposition. Defaults to False.
        value_range: pair of floats. What levels are scaled to. Defaults to `(-0.5, 0.5)`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("glow")
    image = model.dequantize(levels, seed=0)                    # integer levels (batch, 8, 8, 1) -> floats around 0
    log_prob = model.log_prob(image)                            # nats, (batch,)
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 8, 8, 1)
    samples = model.sample(16, temperature=0.7, seed=0)
    ```

    Reference:
        Kingma, Dhariwal 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions", arXiv 1807.03039.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_levels: int = 256,
        num_scales: int = 3,
        num_steps: int = 32,
        filters: int = 512,
        coupling: Literal["additive", "affine"] = "affine",
        permutation: Literal["convolution", "shuffle", "reverse"] = "convolution",
        lu: bool = False,
        value_range: Sequence[float] = (-0.5, 0.5),
        **kwargs: Any,
    ):
        require(num_scales >= 1, "num_scales", "at least 1", num_scales)
        require_squeezable(image_shape, num_scales)
        super().__init__(image_shape, num_levels, value_range, "gaussian", **kwargs)
        require(num_steps >= 1, "num_steps", "at least 1", num_steps)
        require(filters >= 1, "filters", "at least 1", filters)
        require(coupling in COUPLINGS, "coupling", f"one of {COUPLINGS}", coupling)
        require(permutation in PERMUTATIONS, "permutation", f"one of {PERMUTATIONS}", permutation)
        self.num_scales = num_scales
        self.num_steps = num_steps
        self.filters = filters
        self.coupling = coupling
        self.permutation = permutation
        self.lu = lu

        # === Layers ===
        height, width, channels = image_shape
        # Shapes of the scales after their squeeze: half of the channels before it has left.
        self._shapes = [(height >> s, width >> s, channels * 2 ** (s + 1)) for s in range(1, num_scales + 1)]
        self.scales = [
            InvertibleChain(
                [layer for _ in range(num_steps) for layer in self._step(shape[-1])], dtype=self.dtype_policy
            )
            for shape in self._shapes
        ]
        self.split_priors = [
            ZeroConv2D(shape[-1], dtype=self.dtype_policy, name=f"split_prior_{scale}")
            for scale, shape in enumerate(self._shapes[:-1])
        ]
        self.build((None, *image_shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        for chain, shape in zip(self.scales, self._shapes, strict=True):
            chain.build((None, *shape))
        for prior, (height, width, channels) in zip(self.split_priors, self._shapes, strict=False):
            prior.build((None, height, width, channels // 2))
        top = {"shape": self._shapes[-1][-1:], "initializer": "zeros", "autocast": False}
        self.top_mean = self.add_weight(name="top_mean", **top)
        self.top_log_scale = self.add_weight(name="top_log_scale", **top)

    def _step(self, channels: int) -> list[keras.layers.Layer]:
        policy = self.dtype_policy
        layer = {"additive": AdditiveCoupling, "affine": SigmoidCoupling}[self.coupling]
        outputs = channels if self.coupling == "affine" else channels // 2
        coupling = layer(ConvolutionalConditioner(outputs, self.filters, dtype=policy), dtype=policy)
        if self.permutation == "convolution":
            mixing = InvertibleConvolution(self.lu, dtype=policy)
        else:
            mixing = ChannelPermutation(self.permutation, dtype=policy)
        return [ActNorm(dtype=policy), mixing, ChannelCoupling(coupling, dtype=policy)]

    # === The flow, as functions of tensors ===

    def _encode(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        latent, log_det = self._transform(image, training)
        return latent, log_det + self._mixing_log_det()

    def _transform(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Returns latents, and log|det| without the share of the 1x1 convolutions."""
        parts, log_det = [], 0.0
        for scale, chain in enumerate(self.scales):
            image, term = chain(squeeze(image), training=training)
            log_det = log_det + term
            if scale < self.num_scales - 1:
                image, leaving = ops.split(image, 2, axis=-1)
                mean, log_scale = self._split_prior(scale, image)
                parts.append((leaving - mean) * ops.exp(-log_scale))
                log_det = log_det - ops.sum(log_scale, axis=(1, 2, 3))
        height, width, _ = self._shapes[-1]
        image = (image - self.top_mean) * ops.exp(-self.top_log_scale)
        return flatten_parts([*parts, image]), log_det - height * width * ops.sum(self.top_log_scale)

    def _mixing_log_det(self, constant: bool = False) -> Any:
        """Returns the share of the 1x1 convolutions in log|det|, the same for all images."""
        return sum(
            height * width * layer.log_det(constant)
            for chain, (height, width, _) in zip(self.scales, self._shapes, strict=True)
            for layer in chain.layers
            if isinstance(layer, InvertibleConvolution)
        )

    def _decode(self, latent: Any) -> Any:
        leaving = [(height, width, channels // 2) for height, width, channels in self._shapes[:-1]]
        *parts, image = split_parts(latent, [*leaving, self._shapes[-1]])
        image = image * ops.exp(self.top_log_scale) + self.top_mean
        for scale in reversed(range(self.num_scales)):
            if scale < self.num_scales - 1:
                mean, log_scale = self._split_prior(scale, image)
                image = ops.concatenate([image, parts[scale] * ops.exp(log_scale) + mean], axis=-1)
            image = unsqueeze(self.scales[scale].inverse(image))
        return image

    def _split_prior(self, scale: int, kept: Any) -> tuple[Any, Any]:
        """Returns mean and log-deviation of the half that leaves."""
        mean, log_scale = ops.split(ops.cast(self.split_priors[scale](kept), kept.dtype), 2, axis=-1)
        return mean, ops.clip(log_scale, -LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `log_prob`, `encode`, `decode` and `sample`, with constants of the current weights (see the module)."""
        signatures = super().signatures()

        def encode(image: Any) -> dict[str, Any]:
            latent, log_det = self._transform(image)
            return {"latent": latent, "log_det": log_det + self._mixing_log_det(constant=True)}

        def log_prob(image: Any) -> dict[str, Any]:
            code = encode(image)
            return {"log_prob": ops.sum(self._prior().log_prob(code["latent"]), axis=1) + code["log_det"]}

        for function in (encode, log_prob):
            name = function.__name__
            signatures[name] = dataclasses.replace(signatures[name], function=function)
        return signatures

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self._image_shape),
            "num_levels": self.num_levels,
            "num_scales": self.num_scales,
            "num_steps": self.num_steps,
            "filters": self.filters,
            "coupling": self.coupling,
            "permutation": self.permutation,
            "lu": self.lu,
            "value_range": list(self.value_range),
        }
