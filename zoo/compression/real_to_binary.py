"""Real-to-binary networks: residual networks whose 3x3 convolutions have +-1 weights and +-1 inputs.

Martinez, Yang, Bulat, Tzimiropoulos 2020 (https://arxiv.org/abs/2003.11535). A half block computes, with G a small gate
that sees the real values before they are made binary,

    a = BN(x),   out = PReLU((sign(a) * sign(W)) . alpha . G(a)) + shortcut(x)

and two of them make a block. Gradients pass sign where |x| <= 1. The network is trained in stages, each student more
binary than its teacher: see `zoo.compression.progressive`.

Differs from the paper: the gate's precise place among the scales, and distances of attention maps normalised by L2, are
taken from notes on the paper; `alpha` is kept beside the gate, where the public replication has none, and is multiplied by
mean |W| of its filter where a network with binary weights begins with those of one with real weights.

Checked against: the published parameter counts, a bit-packed runtime (exact integers), the ordinary float ResNet-18.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.compression.binary import same_padding
from zoo.compression.image_classifier import ImageClassifier
from zoo.compression.progressive import Progression, Stage, attention_map
from zoo.model import Signature

SCALES = ("channel", "hwc", "none")
SCALE_INITIALIZERS = ("ones", "kernel_mean")
STEMS = ("imagenet", "cifar", "strided")
# Of the moving statistics (Martinez et al. 2020, section 5)
NORMALIZATION_MOMENTUM = 0.99


# === Binarisation ===


@tf.custom_gradient
def binary_sign(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Returns +1 where `x >= 0` and -1 elsewhere; the gradient passes where `|x| <= 1`.

    The forward graph is one comparison and one selection, which every runtime has and binary engines recognise.
    `tf.sign` would give 0 at 0.

    Args:
        x: float tensor.
    """

    return tf.where(x >= 0, tf.constant(1, x.dtype), tf.constant(-1, x.dtype)), lambda upstream: _inside(x, upstream)


@tf.custom_gradient
def binary_kernel(kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Returns what `binary_sign` returns, in a form that LiteRT's converter folds into a constant.

    It does not fold what grows: a selection by one byte a weight would be made anew, and transposed, at every call, and is
    no kernel that static int8 can hold.

    Args:
        kernel: float tensor.
    """
    return tf.sign(tf.sign(kernel) + 0.5), lambda upstream: _inside(kernel, upstream)


def _inside(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    return upstream * tf.cast(tf.abs(x) <= 1, upstream.dtype)


# From real to binary: values as they are, squashed, and of one bit.
BINARIZATIONS = {"none": lambda x: x, "tanh": ops.tanh, "sign": lambda x: binary_sign(tf.convert_to_tensor(x))}
KERNEL_BINARIZATIONS = {**BINARIZATIONS, "sign": lambda kernel: binary_kernel(tf.convert_to_tensor(kernel))}


@keras.saving.register_keras_serializable(package="zoo")
class ClipToUnit(keras.constraints.Constraint):
    """Keeps weights in [-1, 1], where their gradient passes the sign."""

    def __call__(self, value: Any) -> Any:
        """Returns the clipped weights."""
        return ops.clip(value, -1.0, 1.0)


@keras.saving.register_keras_serializable(package="zoo")
class BinaryConv2D(keras.layers.Layer):
    """A convolution without bias whose input and kernel are made binary; output of the size of `"same"` padding.

    The kernel variable holds latent real weights in [-1, 1].

    Args:
        filters: int.
        kernel_size: int. Defaults to 3.
        strides: int. Defaults to 1.
        padding_value: int. 0, or 1, with which every sum is one of +-1 only. Padding is applied after the sign.
        activation_mode: str. What happens to the input: `"sign"`, `"tanh"` or `"none"`.
        weight_mode: str. The same for the kernel.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        padding_value: int = 0,
        activation_mode: Literal["sign", "tanh", "none"] = "sign",
        weight_mode: Literal["sign", "tanh", "none"] = "sign",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        require(filters >= 1, "filters", "at least 1", filters)
        require(kernel_size >= 1, "kernel_size", "at least 1", kernel_size)
        require(strides >= 1, "strides", "at least 1", strides)
        require(padding_value in (0, 1), "padding_value", "0 or 1", padding_value)
        _check_modes(activation_mode, weight_mode)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding_value = padding_value
        self.activation_mode = activation_mode
        self.weight_mode = weight_mode

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the latent kernel `(kernel_size, kernel_size, channels, filters)`."""
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform", constraint=ClipToUnit())
        self._padding = [same_padding(size, self.kernel_size, self.strides) for size in input_shape[1:3]]

    def call(self, x: Any) -> Any:
        """Returns the sums, whole numbers where both modes are `"sign"`.

        Args:
            x: float tensor `(batch, height, width, channels)`.
        """
        x = BINARIZATIONS[self.activation_mode](x)
        kernel = KERNEL_BINARIZATIONS[self.weight_mode](ops.convert_to_tensor(self.kernel))
        if self.padding_value == 0:
            return ops.conv(x, kernel, self.strides, "same")
        # Padded as "same" pads, also where stride 2 makes that uneven: binary engines take the pair for "same"
        x = ops.pad(x, [(0, 0), *self._padding, (0, 0)], constant_values=float(self.padding_value))
        return ops.conv(x, kernel, self.strides, "valid")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `(batch, ceil(height / strides), ceil(width / strides), filters)`."""
        height, width = (-(-size // self.strides) for size in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding_value": self.padding_value,
            "activation_mode": self.activation_mode,
            "weight_mode": self.weight_mode,
        }


# === Blocks ===


@keras.saving.register_keras_serializable(package="zoo")
class OutputScale(keras.layers.Layer):
    """Trainable positive-initialised scales of a convolution's output: one per channel, or of rank 1 over all axes.

    Args:
        kind: str. `"channel"`, or `"hwc"`: one factor per row, per column and per channel, which fixes the image size.
        initializer: initializer of the scale of the channels. Defaults to `"ones"`.
    """

    def __init__(self, kind: str = "channel", initializer: Any = "ones", **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = kind
        self.initializer = initializer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the scales."""
        _, height, width, channels = input_shape
        self.alpha = self.add_weight(name="alpha", shape=(channels,), initializer=self.initializer)
        if self.kind == "hwc":
            self.alpha_height = self.add_weight(name="alpha_height", shape=(height, 1, 1), initializer="ones")
            self.alpha_width = self.add_weight(name="alpha_width", shape=(width, 1), initializer="ones")

    def call(self, x: Any) -> Any:
        """Returns the scaled input, `(batch, height, width, channels)`."""
        if self.kind == "hwc":
            x = x * self.alpha_height * self.alpha_width
        return x * self.alpha


@keras.saving.register_keras_serializable(package="zoo")
class ChannelGate(keras.layers.Layer):
    """Data-driven scales of channels: `sigmoid(W2 relu(W1 mean(a)))`, from real values.

    Args:
        filters: int. Number of channels that are scaled.
        ratio: int. By how much the hidden layer is narrower than the input.

    Reference:
        Martinez et al. 2020, section 4.3.
    """

    def __init__(self, filters: int, ratio: int = 8, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.ratio = ratio

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates both matrices."""
        channels = input_shape[-1]
        require(channels >= self.ratio, "ratio", f"at most the number of channels {channels}", self.ratio)
        options = dict(use_bias=False, kernel_initializer="he_normal", dtype=self.dtype_policy)
        self.reduce = keras.layers.Dense(channels // self.ratio, activation="relu", name="reduce", **options)
        self.expand = keras.layers.Dense(self.filters, activation="sigmoid", name="expand", **options)
        self.reduce.build((None, channels))
        self.expand.build((None, channels // self.ratio))

    def call(self, a: Any) -> Any:
        """Returns gates in (0, 1).

        Args:
            a: float tensor `(batch, height, width, channels)`: real values, not yet binary.

        Returns:
            Tensor `(batch, 1, 1, filters)`.
        """
        gates = self.expand(self.reduce(ops.mean(a, axis=(1, 2))))
        return ops.reshape(gates, (-1, 1, 1, self.filters))


@keras.saving.register_keras_serializable(package="zoo")
class Shortcut(keras.layers.Layer):
    """The real way around a half block: the identity, or average pooling, a 1x1 convolution and normalisation.

    Args:
        filters: int. Number of output channels.
        strides: int.
        pool: bool. Whether strides are taken by average pooling rather than by the convolution.
        momentum: float. Of the normalisation's moving statistics.
    """

    def __init__(
        self, filters: int, strides: int, pool: bool = True, momentum: float = NORMALIZATION_MOMENTUM, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.momentum = momentum
        options = dict(padding="same", name="pool", dtype=self.dtype_policy)
        self.pool = keras.layers.AveragePooling2D(strides, **options) if pool and strides > 1 else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the convolution where the shape changes."""
        self.conv = None
        if self.strides == 1 and input_shape[-1] == self.filters:
            return
        strides = 1 if self.pool else self.strides
        options = dict(use_bias=False, name="conv", dtype=self.dtype_policy)
        self.conv = keras.layers.Conv2D(self.filters, 1, strides, padding="same", **options)
        self.norm = _normalization("norm", self.momentum, self.dtype_policy)
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x: Any, training: bool | None = False) -> Any:
        """Returns a tensor of the half block's output shape."""
        if self.conv is None:
            return x
        x = x if self.pool is None else self.pool(x)
        return self.norm(self.conv(x), training=training)


@keras.saving.register_keras_serializable(package="zoo")
class HalfBlock(keras.layers.Layer):
    """Normalisation, sign, binary convolution, scales, gate, PReLU; plus the shortcut.

    Args:
        filters: int. Number of output channels.
        strides: int.
        gate_ratio: int or None. Narrowing inside the gate; None for no gate.
        scale: str. `"channel"`, `"hwc"` or `"none"`.
        scale_initializer: str. `"ones"`, or `"kernel_mean"`, the mean of |W| of each filter.
        momentum: float. Of the normalisations' moving statistics.
        **binary: `padding_value`, `activation_mode` and `weight_mode` of `BinaryConv2D`; arguments of a layer.

    Reference:
        Martinez et al. 2020, sections 4.1 and 4.3, figure 1.
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        gate_ratio: int | None = 8,
        scale: str = "channel",
        scale_initializer: str = "ones",
        padding_value: int = 0,
        activation_mode: str = "sign",
        weight_mode: str = "sign",
        momentum: float = NORMALIZATION_MOMENTUM,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.norm = _normalization("norm", momentum, policy)
        self.conv = BinaryConv2D(
            filters, 3, strides, padding_value, activation_mode, weight_mode, name="conv", dtype=policy
        )
        initializer = self._kernel_mean if scale_initializer == "kernel_mean" else scale_initializer
        self.scale = OutputScale(scale, initializer, name="scale", dtype=policy) if scale != "none" else None
        self.gate = ChannelGate(filters, gate_ratio, name="gate", dtype=policy) if gate_ratio is not None else None
        self.activation = keras.layers.PReLU(shared_axes=[1, 2], name="activation", dtype=policy)
        self.shortcut = Shortcut(filters, strides, momentum=momentum, name="shortcut", dtype=policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        output_shape = self.conv.compute_output_shape(input_shape)
        for layer in (self.norm, self.conv, self.gate, self.shortcut):
            if layer is not None:
                layer.build(input_shape)
        for layer in (self.scale, self.activation):
            if layer is not None:
                layer.build(output_shape)

    def call(self, x: Any, training: bool | None = False) -> Any:
        """Returns a tensor `(batch, height / strides, width / strides, filters)`."""
        a = self.norm(x, training=training)
        v = self.conv(a)
        if self.scale is not None:
            v = self.scale(v)
        if self.gate is not None:
            v = v * self.gate(a)
        return self.activation(v) + self.shortcut(x, training=training)

    def scale_signs_like_weights(self) -> None:
        """Multiplies the output scales by the mean |W| of each filter.

        Of all multiples of sign(W) that one is nearest to W: a network whose weights become signs keeps the balance
        between its convolutions and its shortcuts.
        """
        if self.scale is not None:
            alpha = self.scale.alpha
            alpha.assign(alpha * self._kernel_mean(alpha.shape, alpha.dtype))

    def _kernel_mean(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return ops.cast(ops.mean(ops.abs(self.conv.kernel), axis=(0, 1, 2)), dtype)


@keras.saving.register_keras_serializable(package="zoo")
class BinaryBlock(keras.layers.Layer):
    """Two half blocks, each with a shortcut of its own.

    Args:
        filters: int. Number of output channels.
        strides: int. Of the first half.
        **options: arguments of `HalfBlock`.
    """

    def __init__(self, filters: int, strides: int, options: Mapping[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.halves = [
            HalfBlock(filters, stride, **options, name=f"half_{index}", dtype=self.dtype_policy)
            for index, stride in enumerate((strides, 1))
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        for half in self.halves:
            half.build(input_shape)
            input_shape = half.conv.compute_output_shape(input_shape)

    def call(self, x: Any, training: bool | None = False) -> Any:
        """Returns a tensor `(batch, height / strides, width / strides, filters)`."""
        for half in self.halves:
            x = half(x, training=training)
        return x


@keras.saving.register_keras_serializable(package="zoo")
class RealBlock(keras.layers.Layer):
    """The block of the float teacher: two convolutions with normalisation and ReLU, one shortcut around both.

    Args:
        filters: int. Number of output channels.
        strides: int. Of the first convolution.
        momentum: float. Of the normalisations' moving statistics.
    """

    def __init__(self, filters: int, strides: int, momentum: float = NORMALIZATION_MOMENTUM, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        policy = self.dtype_policy
        options = dict(padding="same", use_bias=False, dtype=policy)
        self.convs = [
            keras.layers.Conv2D(filters, 3, stride, name=f"conv_{index}", **options)
            for index, stride in enumerate((strides, 1))
        ]
        self.norms = [_normalization(f"norm_{index}", momentum, policy) for index in range(2)]
        self.shortcut = Shortcut(filters, strides, pool=False, momentum=momentum, name="shortcut", dtype=policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        self.shortcut.build(input_shape)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)
            norm.build(input_shape)

    def call(self, x: Any, training: bool | None = False) -> Any:
        """Returns a tensor `(batch, height / strides, width / strides, filters)`, not negative."""
        v = ops.relu(self.norms[0](self.convs[0](x), training=training))
        v = self.norms[1](self.convs[1](v), training=training)
        return ops.relu(v + self.shortcut(x, training=training))


@keras.saving.register_keras_serializable(package="zoo")
class Stem(keras.layers.Layer):
    """The first layers, which stay real: convolution, normalisation, activation.

    Args:
        filters: int.
        kind: str. `"imagenet"` (7x7 of stride 2, then max-pooling of stride 2), `"cifar"` (3x3) or `"strided"` (3x3 of
            stride 2).
        activation: str. `"prelu"` or `"relu"`.
        momentum: float. Of the normalisation's moving statistics.
    """

    def __init__(
        self, filters: int, kind: str, activation: str, momentum: float = NORMALIZATION_MOMENTUM, **kwargs: Any
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        kernel_size, strides = {"imagenet": (7, 2), "cifar": (3, 1), "strided": (3, 2)}[kind]
        self.conv = keras.layers.Conv2D(
            filters, kernel_size, strides, padding="same", use_bias=False, name="conv", dtype=policy
        )
        self.norm = _normalization("norm", momentum, policy)
        self.activation = (
            keras.layers.PReLU(shared_axes=[1, 2], name="activation", dtype=policy)
            if activation == "prelu"
            else keras.layers.ReLU(name="activation", dtype=policy)
        )
        self.pool = keras.layers.MaxPooling2D(3, 2, "same", name="pool", dtype=policy) if kind == "imagenet" else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        self.conv.build(input_shape)
        shape = self.conv.compute_output_shape(input_shape)
        self.norm.build(shape)
        self.activation.build(shape)

    def call(self, image: Any, training: bool | None = False) -> Any:
        """Returns the features of an image."""
        x = self.activation(self.norm(self.conv(image), training=training))
        return x if self.pool is None else self.pool(x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `(batch, height, width, filters)`."""
        shape = self.conv.compute_output_shape(input_shape)
        return shape if self.pool is None else self.pool.compute_output_shape(shape)


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class RealToBinaryNet(ImageClassifier):
    """A residual network with binary 3x3 convolutions, or its float teacher.

    Input: images `(batch, image_size, image_size, num_channels)` in [0, 1]; output: logits `(batch, num_classes)`.
    `compile` and `fit` train it as it is; after `compile_stages`, `fit` trains a sequence of networks that ends in it.

    Args:
        image_size: int. Height and width of images. Defaults to 224.
        num_channels: int. Channels of images. Defaults to 3.
        num_classes: int. Defaults to 1000.
        widths: sequence of int. Channels of each stage. Defaults to `(64, 128, 256, 512)`.
        depths: sequence of int. Blocks of each stage, of two convolutions each. Defaults to `(2, 2, 2, 2)`.
        stem: str. `"imagenet"`, `"cifar"` or `"strided"`; see `Stem`. Defaults to `"imagenet"`.
        gate: bool. Whether channels are scaled by a `ChannelGate`. Defaults to True.
        gate_ratio: int. By how much the gate's hidden layer is narrower. Defaults to 8.
        scale: str. Trainable output scales: `"channel"`, `"hwc"` or `"none"`. Defaults to `"channel"`.
        scale_initializer: str. `"ones"` or `"kernel_mean"`. Defaults to `"ones"`.
        padding_value: int. What binary activations are padded with: 0 or 1. Defaults to 0.
        normalization_momentum: float. Of the moving statistics of batch normalisation; smaller for trainings whose stages
            have few hundred updates, where the statistics lag behind. Defaults to 0.99.
        activation_mode: str. `"sign"`, `"tanh"` or `"none"`: how far the convolutions' inputs are binary.
        weight_mode: str. The same for their weights.
        real: bool. Whether this is the float teacher: ordinary blocks, which have none of the options above.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("real_to_binary")
    logits = model.run("predict", image=images)["logits"]    # images (batch, 28, 28, 1) in [0, 1]
    packed = zoo.compression.binary.pack(model)              # one bit a weight, xnor and popcount
    ```

    Reference:
        Martinez, Yang, Bulat, Tzimiropoulos 2020, "Training Binary Neural Networks with Real-to-Binary Convolutions",
        arXiv 2003.11535.
    """

    def __init__(
        self,
        image_size: int = 224,
        num_channels: int = 3,
        num_classes: int = 1000,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 2, 2),
        stem: Literal["imagenet", "cifar", "strided"] = "imagenet",
        gate: bool = True,
        gate_ratio: int = 8,
        scale: Literal["channel", "hwc", "none"] = "channel",
        scale_initializer: Literal["ones", "kernel_mean"] = "ones",
        padding_value: int = 0,
        normalization_momentum: float = NORMALIZATION_MOMENTUM,
        activation_mode: Literal["sign", "tanh", "none"] = "sign",
        weight_mode: Literal["sign", "tanh", "none"] = "sign",
        real: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        for name, value in (("image_size", image_size), ("num_channels", num_channels), ("gate_ratio", gate_ratio)):
            require(value >= 1, name, "at least 1", value)
        require(num_classes >= 2, "num_classes", "at least 2", num_classes)
        require(len(widths) > 0 and min(widths) >= 1, "widths", "positive numbers", widths)
        fits = len(depths) == len(widths) and min(depths) >= 1
        require(fits, "depths", f"{len(widths)} positive numbers, as many as `widths`", depths)
        for name, value, known in (
            ("stem", stem, STEMS),
            ("scale", scale, SCALES),
            ("scale_initializer", scale_initializer, SCALE_INITIALIZERS),
        ):
            require(value in known, name, f"one of {known}", value)
        require(padding_value in (0, 1), "padding_value", "0 or 1", padding_value)
        inside = 0 <= normalization_momentum < 1
        require(inside, "normalization_momentum", "from 0 to below 1", normalization_momentum)
        _check_modes(activation_mode, weight_mode)
        self.image_size = image_size
        self.num_channels = num_channels
        self.input_size = (image_size, image_size, num_channels)
        self.num_classes = num_classes
        self.widths = tuple(widths)
        self.depths = tuple(depths)
        self.stem_kind = stem
        self.use_gate = gate
        self.gate_ratio = gate_ratio
        self.scale = scale
        self.scale_initializer = scale_initializer
        self.padding_value = padding_value
        self.normalization_momentum = normalization_momentum
        self.activation_mode = activation_mode
        self.weight_mode = weight_mode
        self.real = real
        self.progression: Progression | None = None

        # === Layers ===
        policy = self.dtype_policy
        activation = "relu" if real else "prelu"
        self.stem = Stem(self.widths[0], stem, activation, normalization_momentum, name="stem", dtype=policy)
        self.blocks = [
            self._block(filters, strides, f"block_{index}") for index, (filters, strides) in enumerate(self._shapes())
        ]
        self.classifier = keras.layers.Dense(num_classes, name="classifier", dtype=policy)
        self.build((None, image_size, image_size, num_channels))

    def _shapes(self) -> Iterator[tuple[int, int]]:
        """Yields filters and strides of every block."""
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for index in range(depth):
                yield width, 2 if stage > 0 and index == 0 else 1

    def _block(self, filters: int, strides: int, name: str) -> keras.layers.Layer:
        policy = self.dtype_policy
        if self.real:
            return RealBlock(filters, strides, self.normalization_momentum, name=name, dtype=policy)
        options = dict(
            gate_ratio=self.gate_ratio if self.use_gate else None,
            scale=self.scale,
            scale_initializer=self.scale_initializer,
            padding_value=self.padding_value,
            momentum=self.normalization_momentum,
            activation_mode=self.activation_mode,
            weight_mode=self.weight_mode,
        )
        return BinaryBlock(filters, strides, options, name=name, dtype=policy)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights."""
        self.stem.build(input_shape)
        shape = self.stem.compute_output_shape(input_shape)
        for block, (filters, strides) in zip(self.blocks, self._shapes(), strict=True):
            block.build(shape)
            shape = (None, -(-shape[1] // strides), -(-shape[2] // strides), filters)
        self.classifier.build((None, shape[-1]))

    def call(self, image: Any, training: bool | None = False) -> Any:
        """Returns logits `(batch, num_classes)`.

        Args:
            image: float tensor `(batch, image_size, image_size, num_channels)` in [0, 1].
            training: bool. Whether normalisation takes its statistics from the batch.
        """
        return self.forward(image, training)[0]

    def forward(self, image: Any, training: bool | None = False) -> tuple[Any, list[Any]]:
        """Returns logits and the outputs of all blocks.

        Args:
            image: see `call`.
            training: see `call`.

        Returns:
            Tensor `(batch, num_classes)` and list of tensors `(batch, height, width, channels)`.
        """
        x = self.stem(image, training=training)
        features = []
        for block in self.blocks:
            x = block(x, training=training)
            features.append(x)
        logits = self.classifier(ops.mean(x, axis=(1, 2)))
        return ops.cast(logits, "float32"), features

    def attention_maps(self, image: Any) -> list[np.ndarray]:
        """Returns where every block is active.

        Args:
            image: array-like `(batch, image_size, image_size, num_channels)` in [0, 1].

        Returns:
            List of float32 arrays `(batch, height, width)`, each map of unit L2 norm.
        """
        checked = self.signatures()["predict"].check({"image": image})["image"]
        _, features = self.forward(tf.constant(checked))
        maps = []
        for feature in features:
            flat = np.asarray(attention_map(feature))
            norms = np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo("float32").tiny)
            maps.append((flat / norms).reshape(feature.shape[:3]))
        return maps

    # === Binary weights ===

    @property
    def binary_convs(self) -> list[BinaryConv2D]:
        """The binary convolutions in order; none in a float teacher."""
        return [] if self.real else [half.conv for block in self.blocks for half in block.halves]

    @property
    def num_binary_weights(self) -> int:
        """How many weights need one bit when deployed."""
        return sum(int(np.prod(conv.kernel.shape)) for conv in self.binary_convs)

    def with_binary_kernels(self) -> RealToBinaryNet:
        """Returns a copy whose kernels hold +-1 themselves, for engines that do not fold a sign of a constant.

        Raises:
            ValueError: for a model whose weights are not binary.
        """
        require(not self.real and self.weight_mode == "sign", "weight_mode", "'sign'", self.weight_mode)
        copy = type(self).from_config({**self.get_config(), "weight_mode": "none"})
        copy.set_weights(self.get_weights())
        for conv in copy.binary_convs:
            conv.kernel.assign(binary_sign(conv.kernel.value))
        return copy

    # === Training in stages ===

    def scale_signs_like_weights(self) -> None:
        """Makes up for what the weights lose in size as they become signs, in all output scales.

        Reference:
            Rastegari et al. 2016, "XNOR-Net" (arXiv 1603.05279), section 3.1.
        """
        for block in self.blocks:
            for half in block.halves:
                half.scale_signs_like_weights()

    def compile_stages(self, stages: Sequence[Stage], num_updates: int, **kwargs: Any) -> None:
        """Compiles for a training in stages: `fit` then trains one network after the other, this one last.

        Args:
            stages: sequence of `Stage`; the last one must be as binary as this model.
            num_updates: int. Updates of all stages together.
            **kwargs: arguments of `compile`, such as `jit_compile`.

        Raises:
            ValueError: for stages that do not end in this model, or name teachers that do not come before.
        """
        self.progression = Progression(self, stages, num_updates)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.compile(optimizer=self.progression.optimizer, loss=loss, **kwargs)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does; after `compile_stages`, in stages."""
        if self.progression is not None:
            callbacks = [self.progression, *(callbacks or [])]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of the network whose turn it is."""
        if self.progression is None:
            return super().train_step(data)
        return self.progression.active.train_step(data)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the network whose turn it is.

        `deployable_error` is the error of this model itself, and 1 before its stage: the value to choose weights by.
        """
        if self.progression is None:
            return super().test_step(data)
        logs = self.progression.active.test_step(data)
        error = 1.0 - logs["accuracy"] if self.progression.is_last else tf.constant(1.0)
        return {**logs, "deployable_error": error}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of the network whose turn it is."""
        return super().metrics if self.progression is None else self.progression.active.metrics

    @property
    def stream_variables(self) -> list[Any]:
        """What a training checkpoint holds beside this model and its optimiser: the networks of earlier stages."""
        return [] if self.progression is None else self.progression.variables

    def restore_stream(self, values: Sequence[np.ndarray]) -> None:
        """Takes back the values of `stream_variables`, before a resumed training."""
        for variable, value in zip(self.stream_variables, values, strict=True):
            variable.assign(value)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "num_channels": self.num_channels,
            "num_classes": self.num_classes,
            "widths": list(self.widths),
            "depths": list(self.depths),
            "stem": self.stem_kind,
            "gate": self.use_gate,
            "gate_ratio": self.gate_ratio,
            "scale": self.scale,
            "scale_initializer": self.scale_initializer,
            "padding_value": self.padding_value,
            "normalization_momentum": self.normalization_momentum,
            "activation_mode": self.activation_mode,
            "weight_mode": self.weight_mode,
            "real": self.real,
        }

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`."""
        return self.predict_signature(lambda image: self.forward(image)[0])


def _normalization(name: str, momentum: float, policy: Any) -> keras.layers.BatchNormalization:
    return keras.layers.BatchNormalization(momentum=momentum, name=name, dtype=policy)


def _check_modes(activation_mode: str, weight_mode: str) -> None:
    for name, value in (("activation_mode", activation_mode), ("weight_mode", weight_mode)):
        require(value in BINARIZATIONS, name, f"one of {tuple(BINARIZATIONS)}", value)
