"""The networks that pruning at initialisation is measured on, and the initialisers that it compares.

Lee et al. 2020, section 5 and appendix: perceptrons, VGG and wide residual networks; the residual networks of CIFAR are in
`zoo.layers.residual_network`. All convolutions have biases, which are pruned too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import initializers, layers

from zoo.layers.residual_network import residual_network

NETWORKS = ("mlp", "vgg", "residual", "wide_residual")
# Filters of the convolutions; a 1 x 1 kernel where the second number is 1, a pooling after each group.
_VGG = (
    ((64, 3), (64, 3)),
    ((128, 3), (128, 3)),
    ((256, 3), (256, 3), (256, 1)),
    ((512, 3), (512, 3), (512, 1)),
    ((512, 3), (512, 3), (512, 1)),
)
_VGG_DENSE_UNITS = 512
_BATCH_NORM_MOMENTUM = 0.9


# === Initialisers ===


@keras.saving.register_keras_serializable(package="zoo")
class ConvolutionalOrthogonal(initializers.Initializer):
    """Kernels of convolutions that preserve the norm of every input with circular padding.

    A kernel is a product of paraunitary 2 x 2 blocks of random projections, times an orthogonal map of the channels.

    Args:
        gain: float. Factor of the norm. Defaults to 1.
        seed: int or None. The same seed gives the same kernel; Keras's global generator by default.

    Reference:
        Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 1.
    """

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        self.gain, self.seed = gain, seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns a kernel.

        Args:
            shape: (k, k, input channels, output channels), with no more input than output channels.
            dtype: str or None. Keras's default type of floats by default.

        Raises:
            ValueError: for a shape of another form.
        """
        shape = tuple(shape)
        if len(shape) != 4 or shape[0] != shape[1] or shape[2] > shape[3]:
            raise ValueError(
                "`shape` must be (k, k, input channels, output channels) with no more input than output channels. "
                f"Received: shape={shape}"
            )
        size, _, num_inputs, num_outputs = shape
        seed = int(keras.random.randint((), 0, 2**31 - 1, dtype="int32", seed=self.seed))
        rng = np.random.default_rng(seed)
        kernel = np.eye(num_outputs)[None, None]
        for _ in range(size - 1):
            kernel = _convolve(kernel, _paraunitary_block(num_outputs, rng))
        kernel = _orthogonal(num_outputs, rng)[:num_inputs] @ kernel
        return keras.ops.convert_to_tensor(self.gain * kernel, dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"gain": self.gain, "seed": self.seed}


def _orthogonal(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws an orthogonal matrix, uniformly."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    # Without the signs, QR prefers some of the matrices
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def _projection(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a symmetric projection onto a subspace of random dimension."""
    chosen = _orthogonal(size, rng)[:, rng.random(size) < 0.5]
    return chosen @ chosen.T


def _paraunitary_block(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws a 2 x 2 kernel `(2, 2, size, size)` that preserves norms."""
    rows, columns = _projection(size, rng), _projection(size, rng)
    rest = np.eye(size)
    return np.array([[a @ b for b in (columns, rest - columns)] for a in (rows, rest - rows)])


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Composes two kernels of matrices into a larger one."""
    size = len(first) + len(second) - 1
    result = np.zeros((size, size, *first.shape[2:]))
    for row in range(len(second)):
        for column in range(len(second)):
            places = slice(row, row + len(first)), slice(column, column + len(first))
            result[places] += first @ second[row, column]
    return result


def _untruncated(scale: float, mode: str) -> initializers.Initializer:
    return initializers.VarianceScaling(scale, mode, distribution="untruncated_normal")


# The paper's names, and the names of their authors. `orthogonal` has a form of its own for convolutions.
INITIALIZERS = {
    "normal": lambda: initializers.RandomNormal(stddev=1.0),
    "lecun": lambda: _untruncated(1.0, "fan_in"),
    "glorot": lambda: _untruncated(1.0, "fan_avg"),
    "he": lambda: _untruncated(2.0, "fan_in"),
    "orthogonal": lambda: initializers.Orthogonal(),
}


def initializer(name: str, convolutional: bool = False) -> initializers.Initializer:
    """Returns an initialiser that the paper compares.

    Args:
        name: str. `"normal"` (of variance 1), `"lecun"`, `"glorot"`, `"he"` (all untruncated normal) or `"orthogonal"`.
        convolutional: bool. Whether it is for convolutions.

    Raises:
        ValueError: for another name.

    Reference:
        Lee et al. 2020, section 5.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"`name` must be one of {list(INITIALIZERS)}. Received: name={name!r}")
    return ConvolutionalOrthogonal() if convolutional and name == "orthogonal" else INITIALIZERS[name]()


# === Networks ===


def multilayer_perceptron(
    units: Sequence[int],
    activation: str,
    num_classes: int,
    input_shape: Sequence[int],
    kernel_initializer: str = "orthogonal",
    pixel_mean: float = 0.0,
) -> keras.Model:
    """Builds a perceptron from images to logits.

    Args:
        units: sequence of int. Sizes of the hidden layers.
        activation: str. Keras's name of their activation.
        num_classes: int.
        input_shape: shape of one input, of any rank.
        kernel_initializer: str. See `initializer`.
        pixel_mean: float. What is subtracted from the images.

    Returns:
        Functional `keras.Model`.
    """
    inputs = keras.Input(tuple(input_shape), name="image")
    x = layers.Rescaling(1.0, -pixel_mean, name="centre")(inputs) if pixel_mean else inputs
    x = layers.Flatten(name="flatten")(x) if len(input_shape) > 1 else x
    for index, size in enumerate(units, start=1):
        x = layers.Dense(size, activation, kernel_initializer=initializer(kernel_initializer), name=f"dense_{index}")(x)
    return keras.Model(inputs, _logits(x, num_classes, kernel_initializer), name="mlp")


def vgg(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel_initializer: str = "orthogonal",
    stem_strides: int = 1,
) -> keras.Model:
    """Builds VGG of 13 convolutions, three of them 1 x 1, with batch normalisation and two hidden dense layers of 512.

    Args:
        num_classes: int.
        input_shape: height, width and channels.
        kernel_initializer: str. See `initializer`.
        stem_strides: int. Strides of the first convolution: 2 for images of 64 pixels.

    Returns:
        Functional `keras.Model` from images to logits.
    """
    inputs = keras.Input(tuple(input_shape), name="image")
    x, strides = inputs, stem_strides
    for number, group in enumerate(_VGG, start=1):
        for index, (filters, size) in enumerate(group, start=1):
            name = f"block{number}_{index}"
            x = _relu(_convolution(x, filters, size, strides, kernel_initializer, name), name)
            strides = 1
        x = layers.MaxPooling2D(2, padding="same", name=f"block{number}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for index in (1, 2):
        kernel = initializer(kernel_initializer)
        x = layers.Dense(_VGG_DENSE_UNITS, kernel_initializer=kernel, name=f"dense_{index}")(x)
        x = _relu(x, f"dense_{index}")
    return keras.Model(inputs, _logits(x, num_classes, kernel_initializer), name="vgg")


def wide_residual_network(
    depth: int = 16,
    factor: int = 6,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel_initializer: str = "orthogonal",
    stem_strides: int = 1,
) -> keras.Model:
    """Builds a wide residual network: blocks with the normalisation first, projections where a stage begins.

    Args:
        depth: int. Number of convolutions, 6n + 4, the three projections counted.
        factor: int. How many times wider than 16, 32 and 64 channels the stages are.
        num_classes: int.
        input_shape: height, width and channels.
        kernel_initializer: str. See `initializer`.
        stem_strides: int. Strides of the first convolution: 2 for images of 64 pixels.

    Returns:
        Functional `keras.Model` from images to logits.

    Raises:
        ValueError: for a depth that is not 6n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"`depth` must be 10, 16, 22, ... (6n + 4). Received: depth={depth!r}")
    inputs = keras.Input(tuple(input_shape), name="image")
    x = _convolution(inputs, 16, 3, stem_strides, kernel_initializer, "stem")
    for stage in range(3):
        filters = 16 * factor * 2**stage
        for block in range(blocks):
            name, strides = f"stage{stage + 1}_block{block + 1}", 2 if stage and not block else 1
            y = _relu(x, f"{name}_1")
            # The projection sees what the block sees
            shortcut = x if block else _convolution(y, filters, 1, strides, kernel_initializer, f"{name}_shortcut")
            y = _relu(_convolution(y, filters, 3, strides, kernel_initializer, f"{name}_1"), f"{name}_2")
            y = _convolution(y, filters, 3, 1, kernel_initializer, f"{name}_2")
            x = layers.Add(name=f"{name}_add")([y, shortcut])
    x = layers.GlobalAveragePooling2D(name="pool")(_relu(x, "last"))
    return keras.Model(inputs, _logits(x, num_classes, kernel_initializer), name="wide_residual_network")


def pruned_residual_network(
    depth: int, num_classes: int, input_shape: Sequence[int], kernel_initializer: str, stem_strides: int = 1
) -> keras.Model:
    """Builds the residual network for small images with biases, initialised throughout by one scheme.

    Args:
        depth: int. Number of weighted layers, 6n + 2.
        num_classes: int.
        input_shape: height, width and channels.
        kernel_initializer: str. See `initializer`.
        stem_strides: int. Strides of the first convolution: 2 for images of 64 pixels.

    Returns:
        Functional `keras.Model` from images to logits.
    """
    model = residual_network(
        depth,
        num_classes=num_classes,
        input_shape=tuple(input_shape),
        kernel_initializer=initializer(kernel_initializer, convolutional=True),
        use_bias=True,
        stem_strides=stem_strides,
    )
    kernel = model.get_layer("logits").kernel
    kernel.assign(initializer(kernel_initializer)(kernel.shape))
    return model


def _convolution(x: Any, filters: int, size: int, strides: int, kernel_initializer: str, name: str) -> Any:
    kernel = initializer(kernel_initializer, convolutional=True)
    return layers.Conv2D(filters, size, strides, "same", kernel_initializer=kernel, name=f"{name}_conv")(x)


def _relu(x: Any, name: str) -> Any:
    x = layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _logits(x: Any, num_classes: int, kernel_initializer: str) -> Any:
    return layers.Dense(num_classes, kernel_initializer=initializer(kernel_initializer), name="logits")(x)
