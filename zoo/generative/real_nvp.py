"""Real NVP: an exactly invertible flow of images in several scales.

Dinh, Sohl-Dickstein, Bengio 2017 (https://arxiv.org/abs/1605.08803). With b a mask and s, t networks of the kept part,

    y = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x)),       log|det| = sum((1 - b) * s)

A scale: three couplings under checkerboard masks, a squeeze of 2 x 2 pixels into four times the channels, three couplings
of channels; then half of the variables leave for the latent and the rest goes on to the next scale. The last scale is four
checkerboard couplings. s is tanh of a network times a learned scalar, t the network itself: a residual network with skip
connections, weight normalisation and batch normalisation. Pixels are first stretched to logits.

Batch normalisation. Each coupling's output is normalised over batch and pixels (an invertible layer, log|det| =
-0.5 * sum(log(variance + epsilon))), and so are the networks' activations. In training both use the statistics of the
batch, and gradients pass through them: the loss of a batch is no density of single images then, since images share
statistics. Everywhere else (validation, likelihoods, encoding, decoding, samples) the moving averages are used, which
makes the flow one fixed, invertible map. The paper's appendix E mixes both in training, for very small batches; as in the
released code's default, that is not done here.

Differs from the paper: channels are split, in couplings and where they leave, by the pixel they come from (rows of the
2 x 2 squares in couplings, so that they do not repeat the checkerboard; diagonals where they leave), whatever their colour.

Checked against: autodiff Jacobians, numerical integration, and the structure of the released code (tensorflow/models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.arguments import require
from zoo.generative.image_flow import ImageFlow
from zoo.layers.couplings import COUPLINGS, AdditiveCoupling, AffineCoupling
from zoo.layers.image_flows import (
    ChannelCoupling,
    InvertibleChain,
    flatten_parts,
    require_squeezable,
    split_parts,
    squeeze,
    unsqueeze,
)

# Pixels in [0, 1] are drawn in to [alpha, 1 - alpha], where their logits are finite.
ALPHA = 0.05
# Weight of the squared norm of all learned scales in the loss (section 4.1).
SCALE_PENALTY = 5e-5
EPSILON = 1e-4
# Of moving averages: ten batches, about, are remembered.
MOMENTUM = 0.9


def checkerboard(height: int, width: int, parity: int) -> np.ndarray:
    """Returns the mask that keeps every second pixel: `(1, height, width, 1)`, 1 where (row + column) % 2 == parity."""
    kept = np.add.outer(np.arange(height), np.arange(width)) % 2 == parity
    return kept.astype(np.float32)[None, :, :, None]


# === Networks of the couplings ===


@keras.saving.register_keras_serializable(package="zoo")
class WeightNormConv2D(keras.layers.Layer):
    """A convolution of stride 1 whose kernel has a norm of its own for each output: magnitude * direction / |direction|.

    Args:
        filters: int. Number of output channels.
        kernel_size: int.
        scaled: bool. Whether the magnitude is learned; 1 otherwise, for convolutions that a normalisation follows.
        use_bias: bool.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Salimans, Kingma 2016, "Weight Normalization", equation 2; initial magnitude as in the released code of Real NVP.
    """

    def __init__(self, filters: int, kernel_size: int, scaled: bool = True, use_bias: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.scaled = scaled
        self.use_bias = use_bias

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        # In float32 under mixed precision, for the sum of squares.
        self.direction = self.add_weight(name="direction", shape=shape, initializer="random_uniform", autocast=False)
        if self.scaled:
            start = keras.initializers.Constant(self.kernel_size * 6**-0.5)
            self.magnitude = self.add_weight(name="magnitude", shape=(self.filters,), initializer=start, autocast=False)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        """Convolves `(batch, height, width, channels)`, padded with zeros to the same size."""
        kernel = self.direction * ops.rsqrt(ops.sum(ops.square(self.direction), axis=(0, 1, 2)))
        if self.scaled:
            kernel = kernel * self.magnitude
        outputs = ops.conv(inputs, ops.cast(kernel, inputs.dtype), padding="same")
        return outputs + self.bias if self.use_bias else outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "scaled": self.scaled,
            "use_bias": self.use_bias,
        }


@keras.saving.register_keras_serializable(package="zoo")
class ResidualConditioner(keras.layers.Layer):
    """The network of s and t: residual blocks, whose sums are all led to the output by skip connections.

    Args:
        output_channels: int.
        filters: int. Feature maps of every hidden layer.
        num_blocks: int. Number of residual blocks of two convolutions.
        batch_norm: bool. Whether activations are batch-normalised.
        parity: int or None. Of the checkerboard that masks the inputs: the network is told where it is, and gives 0 on
            kept pixels. `None` for inputs that are not masked.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Real NVP, section 4.1; skip connections as in van den Oord et al. 2016, "Pixel Recurrent Neural Networks".
    """

    def __init__(
        self,
        output_channels: int,
        filters: int,
        num_blocks: int,
        batch_norm: bool = True,
        parity: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.output_channels = output_channels
        self.filters = filters
        self.num_blocks = num_blocks
        self.batch_norm = batch_norm
        self.parity = parity

        self.first_norm = self._norm()
        self.first = self._conv(filters, 3, scaled=False)
        self.norms = [self._norm() for _ in range(2 * num_blocks)]
        # A bias before a normalisation would be subtracted again.
        self.inner = [self._conv(filters, 3, scaled=False, use_bias=not batch_norm) for _ in range(num_blocks)]
        self.outer = [self._conv(filters, 3) for _ in range(num_blocks)]
        self.skips = [self._conv(filters, 1) for _ in range(num_blocks + 1)]
        self.last_norm = self._norm()
        self.last = self._conv(output_channels, 1)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights."""
        hidden = (*input_shape[:-1], self.filters)
        self.first_norm.build(input_shape)
        self.first.build((*input_shape[:-1], 2 * input_shape[-1] + (self.parity is not None)))
        for layer in (*self.norms, *self.inner, *self.outer, *self.skips, self.last_norm, self.last):
            layer.build(hidden)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Maps `(batch, height, width, channels)` to `(batch, height, width, output_channels)`."""
        values = self.first_norm(inputs, training=training)
        signs = [values, -values]
        if self.parity is not None:
            mask = ops.cast(checkerboard(*inputs.shape[1:3], self.parity), values.dtype)
            signs.append(ops.zeros_like(values[..., :1]) + mask)
        values = self.first(ops.relu(ops.concatenate(signs, axis=-1)))
        total = self.skips[0](values)
        for block in range(self.num_blocks):
            values = values + self._residual(block, values, training)
            total = total + self.skips[block + 1](values)
        outputs = self.last(ops.relu(self.last_norm(total, training=training)))
        return outputs if self.parity is None else outputs * (1 - mask)

    def _residual(self, block: int, values: Any, training: bool) -> Any:
        values = self.inner[block](ops.relu(self.norms[2 * block](values, training=training)))
        return self.outer[block](ops.relu(self.norms[2 * block + 1](values, training=training)))

    def _norm(self) -> keras.layers.Layer:
        if not self.batch_norm:
            return keras.layers.Identity(dtype=self.dtype_policy)
        return keras.layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, scale=False, dtype=self.dtype_policy)

    def _conv(self, filters: int, kernel_size: int, **kwargs: bool) -> WeightNormConv2D:
        return WeightNormConv2D(filters, kernel_size, dtype=self.dtype_policy, **kwargs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "output_channels": self.output_channels,
            "filters": self.filters,
            "num_blocks": self.num_blocks,
            "batch_norm": self.batch_norm,
            "parity": self.parity,
        }


# === Invertible layers ===


@keras.saving.register_keras_serializable(package="zoo")
class CheckerboardCoupling(keras.layers.Layer):
    """A coupling of every second pixel with the others.

    Args:
        coupling: `AdditiveCoupling` or a layer derived from it, whose conditioner gives 0 on kept pixels.
        parity: int. 0 keeps the upper left pixel, 1 changes it.
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Real NVP, equation 9.
    """

    def __init__(self, coupling: AdditiveCoupling, parity: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.coupling = coupling
        self.parity = parity

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the coupling."""
        if not self.coupling.built:  # a deserialised one is built already
            self.coupling.build(input_shape, input_shape)

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Maps the changed pixels."""
        mask = checkerboard(*image.shape[1:3], self.parity)
        kept = image * mask
        changed, log_det = self.coupling(kept, image * (1 - mask), training=training)
        return kept + changed, log_det

    def inverse(self, image: Any) -> Any:
        """Undoes `call`."""
        mask = checkerboard(*image.shape[1:3], self.parity)
        kept = image * mask
        return kept + self.coupling.inverse(kept, image * (1 - mask))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        coupling = keras.saving.serialize_keras_object(self.coupling)
        return {**super().get_config(), "coupling": coupling, "parity": self.parity}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CheckerboardCoupling:
        """Creates the layer and its coupling from `get_config`."""
        return cls(**{**config, "coupling": keras.saving.deserialize_keras_object(config["coupling"])})


@keras.saving.register_keras_serializable(package="zoo")
class InvertibleBatchNormalization(keras.layers.Layer):
    """Batch normalisation without learned scale and shift, as a step of a flow.

    In training it uses the mean and variance of the batch; otherwise, and in `inverse`, their moving averages.

    Args:
        **kwargs: arguments of `keras.layers.Layer`.

    Reference:
        Real NVP, section 3.7.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the moving averages."""
        self.moving_mean, self.moving_variance = (
            self.add_weight(
                name=name,
                shape=input_shape[-1:],
                initializer=start,
                trainable=False,
                autocast=False,
                aggregation="mean",
            )
            for name, start in (("moving_mean", "zeros"), ("moving_variance", "ones"))
        )

    def call(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        """Normalises every channel."""
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            mean, variance = ops.moments(image, axes=(0, 1, 2))
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(MOMENTUM * average + (1 - MOMENTUM) * value)
        log_variance = ops.log(variance + EPSILON)
        pixels = image.shape[1] * image.shape[2]
        return (image - mean) * ops.exp(-0.5 * log_variance), -0.5 * pixels * ops.sum(log_variance)

    def inverse(self, image: Any) -> Any:
        """Undoes `call` outside of training."""
        return image * ops.sqrt(self.moving_variance + EPSILON) + self.moving_mean


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class RealNVP(ImageFlow):
    """An exactly invertible model of images in several scales, with exact likelihood.

    `fit` takes batches of integer levels `(batch, height, width, channels)`, and needs no targets and no loss; see
    `ImageFlow`. In training, statistics of the batch normalise; see the module.

    Args:
        image_shape: sequence of int. Height, width and channels of the images; `2**(num_scales - 1)` divides height and
            width.
        num_levels: int. Number of levels V of the data; levels are 0 to V - 1. Defaults to 256.
        num_scales: int. Defaults to 2.
        num_blocks: int. Residual blocks of each coupling's network. Defaults to 4.
        filters: int. Feature maps of the networks before the first squeeze; each squeeze doubles them. Defaults to 32.
        coupling: str. `"additive"` or `"affine"`. Defaults to `"affine"`.
        batch_norm: bool. Whether couplings and their networks are batch-normalised. Defaults to True.
        factor_out: bool. Whether half of the variables leave for the latent after each scale but the last; otherwise all
            go through all scales. Defaults to True.
        value_range: pair of floats. What levels are scaled to. Defaults to `(0.0, 1.0)`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("real_nvp")
    image = model.dequantize(levels, seed=0)                    # integer levels (batch, 8, 8, 1) -> floats in [0, 1)
    log_prob = model.log_prob(image)                            # nats, (batch,)
    strip = model.interpolate(image[:1], image[1:2], num_steps=9)   # (1, 9, 8, 8, 1)
    samples = model.sample(16, temperature=0.8, seed=0)
    ```

    Reference:
        Dinh, Sohl-Dickstein, Bengio 2017, "Density estimation using Real NVP", arXiv 1605.08803.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_levels: int = 256,
        num_scales: int = 2,
        num_blocks: int = 4,
        filters: int = 32,
        coupling: Literal["additive", "affine"] = "affine",
        batch_norm: bool = True,
        factor_out: bool = True,
        value_range: Sequence[float] = (0.0, 1.0),
        **kwargs: Any,
    ):
        require(num_scales >= 1, "num_scales", "at least 1", num_scales)
        require_squeezable(image_shape, num_scales - 1)
        super().__init__(image_shape, num_levels, value_range, "gaussian", **kwargs)
        pixels = image_shape[0] * image_shape[1] // 4 ** (num_scales - 1)
        require(pixels >= 2, "num_scales", "such that the last scale has at least 2 pixels", num_scales)
        require(num_blocks >= 1, "num_blocks", "at least 1", num_blocks)
        require(filters >= 1, "filters", "at least 1", filters)
        require(coupling in COUPLINGS, "coupling", f"one of {COUPLINGS}", coupling)
        self.num_scales = num_scales
        self.num_blocks = num_blocks
        self.filters = filters
        self.coupling = coupling
        self.batch_norm = batch_norm
        self.factor_out = factor_out

        # === Layers ===
        self._plan = _plan(self._image_shape, num_scales, factor_out)
        self.checkerboards, self.channelwise = [], []
        for scale, (_, _, channels) in enumerate(self._plan):
            width, last = filters * 2**scale, scale == num_scales - 1
            self.checkerboards.append(
                self._chain(
                    [
                        CheckerboardCoupling(self._coupling(channels, width, parity), parity, dtype=self.dtype_policy)
                        for parity in ((0, 1, 0, 1) if last else (0, 1, 0))
                    ]
                )
            )
            if not last:
                self.channelwise.append(
                    self._chain(
                        [
                            ChannelCoupling(self._coupling(2 * channels, 2 * width), swap, dtype=self.dtype_policy)
                            for swap in (False, True, False)
                        ]
                    )
                )
        self.build((None, *self._image_shape))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        for scale, (height, width, channels) in enumerate(self._plan):
            self.checkerboards[scale].build((None, height, width, channels))
            if scale < self.num_scales - 1:
                self.channelwise[scale].build((None, height // 2, width // 2, 4 * channels))

    def _coupling(self, channels: int, filters: int, parity: int | None = None) -> AdditiveCoupling:
        """Returns a coupling that changes so many channels."""
        layer = {"additive": AdditiveCoupling, "affine": AffineCoupling}[self.coupling]
        outputs = channels * (2 if self.coupling == "affine" else 1)
        conditioner = ResidualConditioner(
            outputs, filters, self.num_blocks, self.batch_norm, parity, dtype=self.dtype_policy
        )
        return layer(conditioner, dtype=self.dtype_policy)

    def _chain(self, couplings: Sequence[keras.layers.Layer]) -> InvertibleChain:
        layers = []
        for coupling in couplings:
            layers.append(coupling)
            if self.batch_norm:
                layers.append(InvertibleBatchNormalization(dtype=self.dtype_policy))
        return InvertibleChain(layers, dtype=self.dtype_policy)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean negative log-likelihood in nats; in training, with the penalty on learned scales."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        scales = [v for v in self.trainable_variables if v.name in ("magnitude", "log_scale_bound")]
        return loss + SCALE_PENALTY * sum(ops.sum(ops.square(scale)) for scale in scales)

    # === The flow, as functions of tensors ===

    def _encode(self, image: Any, training: bool = False) -> tuple[Any, Any]:
        image, log_det = self._to_logits(image)
        parts = []
        for scale, chain in enumerate(self.checkerboards):
            image, term = chain(image, training=training)
            log_det = log_det + term
            if scale < self.num_scales - 1:
                image, term = self.channelwise[scale](squeeze(image), training=training)
                log_det = log_det + term
                if self.factor_out:
                    image, leaving = _split_diagonals(image)
                    parts.append(leaving)
        return flatten_parts([*parts, image]), log_det

    def _decode(self, latent: Any) -> Any:
        shapes = [self._plan[-1]]
        if self.factor_out:
            # What leaves has the shape of what goes on.
            shapes = [*self._plan[1:], *shapes]
        *parts, image = split_parts(latent, shapes)
        for scale in reversed(range(self.num_scales)):
            if scale < self.num_scales - 1:
                if self.factor_out:
                    image = _merge_diagonals(image, parts.pop())
                image = unsqueeze(self.channelwise[scale].inverse(image))
            image = self.checkerboards[scale].inverse(image)
        return self._from_logits(image)

    def _to_logits(self, image: Any) -> tuple[Any, Any]:
        low, high = self.value_range
        probability = ALPHA + (1 - 2 * ALPHA) * (image - low) / (high - low)
        log_odds = ops.log(probability), ops.log(1 - probability)
        constant = self.latent_dim * math.log((1 - 2 * ALPHA) / (high - low))
        return log_odds[0] - log_odds[1], constant - ops.sum(log_odds[0] + log_odds[1], axis=(1, 2, 3))

    def _from_logits(self, logits: Any) -> Any:
        low, high = self.value_range
        return low + (high - low) * (ops.sigmoid(logits) - ALPHA) / (1 - 2 * ALPHA)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_shape": list(self._image_shape),
            "num_levels": self.num_levels,
            "num_scales": self.num_scales,
            "num_blocks": self.num_blocks,
            "filters": self.filters,
            "coupling": self.coupling,
            "batch_norm": self.batch_norm,
            "factor_out": self.factor_out,
            "value_range": list(self.value_range),
        }


def _plan(image_shape: tuple[int, ...], num_scales: int, factor_out: bool) -> list[tuple[int, int, int]]:
    """Returns the shape in which images enter each scale."""
    height, width, channels = image_shape
    growth = 2 if factor_out else 4
    return [(height >> scale, width >> scale, channels * growth**scale) for scale in range(num_scales)]


def _split_diagonals(image: Any) -> tuple[Any, Any]:
    """Returns, of each former square of 2 x 2 pixels, the falling diagonal, which goes on, and the rising one."""
    upper_left, upper_right, lower_left, lower_right = ops.split(image, 4, axis=-1)
    stays = ops.concatenate([upper_left, lower_right], axis=-1)
    return stays, ops.concatenate([upper_right, lower_left], axis=-1)


def _merge_diagonals(stays: Any, leaves: Any) -> Any:
    upper_left, lower_right = ops.split(stays, 2, axis=-1)
    upper_right, lower_left = ops.split(leaves, 2, axis=-1)
    return ops.concatenate([upper_left, upper_right, lower_left, lower_right], axis=-1)
