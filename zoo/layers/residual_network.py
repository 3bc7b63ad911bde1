"""The residual networks for small images that compression is measured on."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


def residual_network(
    depth: int,
    width: int = 16,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    *,
    kernel_initializer: Any = "he_normal",
    use_bias: bool = False,
    stem_strides: int = 1,
    name: str = "residual_network",
) -> keras.Model:
    """Builds the residual network for CIFAR: three stages of basic blocks, identity shortcuts without parameters.

    Where a stage begins with fewer pixels and more channels, the shortcut takes every second pixel and pads with zero
    channels (option A of the paper).

    Args:
        depth: int. Number of weighted layers, 6n + 2.
        width: int. Channels of the first stage; each further one has twice as many.
        num_classes: int.
        input_shape: tuple of height, width and channels.
        kernel_initializer: initializer of the convolutions.
        use_bias: bool. Whether the convolutions have biases, which the batch normalisation behind them makes redundant.
        stem_strides: int. Strides of the first convolution: 2 for images of 64 pixels.
        name: str.

    Returns:
        Functional `keras.Model` from images to logits `(batch, num_classes)`.

    Raises:
        ValueError: for a depth that is not 6n + 2.

    Reference:
        He et al. 2016, section 4.2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"`depth` must be 8, 14, 20, ... (6n + 2). Received: depth={depth!r}")

    def convolution(x: Any, filters: int, strides: int, label: str) -> Any:
        x = layers.Conv2D(
            filters, 3, strides, "same", use_bias=use_bias, kernel_initializer=kernel_initializer, name=f"{label}_conv"
        )(x)
        return layers.BatchNormalization(momentum=0.9, name=f"{label}_norm")(x)

    inputs = keras.Input(input_shape, name="image")
    x = layers.ReLU(name="stem_relu")(convolution(inputs, width, stem_strides, "stem"))
    for stage in range(3):
        filters = width * 2**stage
        for block in range(blocks):
            label, strides = f"stage{stage + 1}_block{block + 1}", 2 if stage and not block else 1
            y = layers.ReLU(name=f"{label}_relu1")(convolution(x, filters, strides, f"{label}_1"))
            y = convolution(y, filters, 1, f"{label}_2")
            y = layers.Add(name=f"{label}_add")([y, _shortcut(x, filters, strides, label)])
            x = layers.ReLU(name=f"{label}_relu2")(y)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name=name)


def _shortcut(x: Any, filters: int, strides: int, label: str) -> Any:
    if strides > 1:
        x = layers.AveragePooling2D(1, strides, name=f"{label}_every_second")(x)
    missing = filters - x.shape[-1]
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2))) if missing else x
