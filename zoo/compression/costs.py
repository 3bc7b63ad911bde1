"""What a network costs where it runs: products of weights and activations, counted in bit operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from zoo.compression.compressed import CompressedModel, Target, current_value, find_targets

_FLOAT_BITS = 32


def multiplications(model: keras.Model, inputs: Any) -> dict[str, int]:
    """Counts the products with each kernel in one call on one example.

    A kernel takes part once for every position of its layer's output: the pixels of a convolution's, the tokens of a dense
    layer's. Tables that are looked up cost nothing; products between activations are not counted.

    Args:
        model: built `keras.Model`, compressed or not.
        inputs: a batch of inputs of the model's call, of one example.

    Returns:
        Dict from weight path to the number of products.
    """
    inner = model.model if isinstance(model, CompressedModel) else model
    targets = [target for target in find_targets(inner) if target.kind == "kernel"]
    shapes: dict[int, list[tuple[int, ...]]] = {}
    layers = {id(target.layer): target.layer for target in targets}
    with _watched(layers.values(), lambda layer, output: shapes.setdefault(id(layer), []).append(tuple(output.shape))):
        inner(inputs)
    return {t.path: sum(_products(t, shape) for shape in shapes.get(id(t.layer), ())) for t in targets}


def _products(target: Target, output: tuple[int, ...]) -> int:
    if isinstance(target.layer, keras.layers.Embedding):
        return 0
    channels = math.prod(target.shape[axis] for axis in target.channel_axes) or 1
    return math.prod(output[1:]) * math.prod(target.shape) // channels


class _watched:
    """Context in which the outputs of layers are reported."""

    def __init__(self, layers: Any, report: Callable[[keras.layers.Layer, Any], None]) -> None:
        self.layers, self.report = list(layers), report

    def __enter__(self) -> None:
        self.originals = [layer.call for layer in self.layers]
        for layer, original in zip(self.layers, self.originals, strict=True):
            object.__setattr__(layer, "call", self._reporting(layer, original))

    def _reporting(self, layer: keras.layers.Layer, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            for tensor in keras.tree.flatten(output)[:1]:
                self.report(layer, tensor)
            return output

        return call

    def __exit__(self, *error: Any) -> None:
        for layer, original in zip(self.layers, self.originals, strict=True):
            object.__setattr__(layer, "call", original)


def bit_operations(model: keras.Model, inputs: Any) -> int:
    """Returns the products of one call, each weighted by the bits of the weight times the bits of the activation.

    A proxy of the energy on hardware that is built for it: a product of an 8-bit weight and an 8-bit activation counts
    64, one of two signs 1, one in float32 counts 1024, one with a weight that is zero nothing.

    Args:
        model: built `keras.Model`, compressed or not.
        inputs: a batch of inputs of the model's call, of one example.
    """
    counts = multiplications(model, inputs)
    is_compressed = isinstance(model, CompressedModel)
    total = 0.0
    for target in model.targets if is_compressed else find_targets(model):
        if target.path in counts:
            weights = model.transformed(target) if is_compressed else current_value(target)
            density = float(np.mean(weights.numpy() != 0))
            total += counts[target.path] * density * math.prod(_product_bits(model, target))
    return round(total)


def _product_bits(model: keras.Model, target: Target) -> tuple[int, int]:
    """Returns the bits of a kernel and of what it is multiplied with."""
    layer = target.layer
    if any(layer is conv for conv in getattr(getattr(model, "model", model), "binary_convs", ())):
        modes = (layer.weight_mode, layer.activation_mode)
        return tuple(1 if mode == "sign" else _FLOAT_BITS for mode in modes)
    found = [stage.product_bits(target) for stage in model.stages] if isinstance(model, CompressedModel) else []
    return tuple(next((bits for bits in each if bits), _FLOAT_BITS) for each in zip(*found, (None, None), strict=True))
