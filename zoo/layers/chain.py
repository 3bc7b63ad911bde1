"""Lists of layers that are applied one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

Shape = tuple[int | None, ...]


def build_chain(layers: Sequence[keras.layers.Layer], shape: Sequence[int | None]) -> Shape:
    """Creates the weights of layers that follow each other.

    Args:
        layers: sequence of layers.
        shape: shape of the first one's input.

    Returns:
        Shape of the last one's output; that of the input for no layers.
    """
    shape = tuple(shape)
    for layer in layers:
        layer.build(shape)
        shape = tuple(layer.compute_output_shape(shape))
    return shape


def apply_chain(layers: Sequence[keras.layers.Layer], inputs: Any) -> Any:
    """Returns what the last of the layers makes of the inputs of the first."""
    for layer in layers:
        inputs = layer(inputs)
    return inputs
