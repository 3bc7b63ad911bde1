"""Smaller dense networks out of networks with dead channels.

A channel whose kernel is zero everywhere has the same value for every input, its bias. Chains of dense and convolutional
layers lose such channels: what their constants give to the next layer goes into its bias, so that the outputs stay.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from zoo.compression.compressed import CompressedModel

_LAYERS = keras.layers
# Layers that treat each channel alone, and alike at every place.
_CHANNELWISE = (
    _LAYERS.Activation,
    _LAYERS.ReLU,
    _LAYERS.LeakyReLU,
    _LAYERS.ELU,
    _LAYERS.Dropout,
    _LAYERS.SpatialDropout2D,
    _LAYERS.GaussianNoise,
    _LAYERS.MaxPooling2D,
    _LAYERS.AveragePooling2D,
    _LAYERS.GlobalAveragePooling2D,
    _LAYERS.GlobalMaxPooling2D,
)
_CHANGING_VALUES = (_LAYERS.Activation, _LAYERS.ReLU, _LAYERS.LeakyReLU, _LAYERS.ELU)
_ACROSS_CHANNELS = (keras.activations.softmax, keras.activations.log_softmax)


@dataclasses.dataclass(frozen=True)
class _Channels:
    """What is known of the channels between two layers.

    Args:
        kept: bool array `(channels,)`.
        constants: float array `(channels,)`. Values of the others.
    """

    kept: np.ndarray
    constants: np.ndarray


def materialize_channels(model: keras.Model) -> keras.Model:
    """Returns a model without the dead channels of a chain of layers: smaller and dense, with the same outputs.

    Args:
        model: built Sequential or functional model, or a `CompressedModel` of one, which is left as it is. Its layers form
            a chain of dense and 2D convolutional layers, batch normalisation, activations, pooling, flattening and
            dropout. The channels of the last layer all stay.

    Returns:
        Functional `keras.Model` with layers of the same names.

    Raises:
        ValueError: naming the layer: for one that cannot be made smaller, for one without any channel left, and where a
            dead channel is not zero at the border that a convolution pads with zeros.
    """
    inner = model.model if isinstance(model, CompressedModel) else model
    weights = _final_weights(model)
    chain = _chain(inner)
    last = _last_kernel(chain)
    tensor = inputs = keras.Input(inner.inputs[0].shape[1:], name=chain[0].name, dtype=inner.inputs[0].dtype)
    channels = _all_channels(inner.inputs[0].shape[-1])
    values = {}
    for layer in chain[1:]:
        config, values[layer.name], channels = _smaller(layer, weights, channels, layer is last)
        tensor = type(layer).from_config(config)(tensor)
    small = keras.Model(inputs, tensor, name=f"{inner.name}_materialized")
    for name, arrays in values.items():
        small.get_layer(name).set_weights(arrays)
    return small


def remaining_parameters(model: keras.Model, masks: Mapping[str, np.ndarray]) -> int:
    """Returns how many elements kernels and biases would have without the channels that masks remove.

    Args:
        model: built chain of layers. See `materialize_channels`.
        masks: dict from path of a kernel or bias to bool array.

    Raises:
        ValueError: see `materialize_channels`.
    """
    chain = _chain(model)
    last = _last_kernel(chain)
    weights = {variable.path: np.array(variable) for variable in model.variables}
    # Nothing else than the masks removes channels, or fills them with constants
    weights |= {path: np.asarray(mask, "float32") for path, mask in masks.items()}
    channels, count = _all_channels(model.inputs[0].shape[-1]), 0
    for layer in chain[1:]:
        _, values, channels = _smaller(layer, weights, channels, layer is last, constants=False)
        if hasattr(layer, "kernel"):
            count += sum(value.size for value in values)
    return count


def _final_weights(model: keras.Model) -> dict[str, np.ndarray]:
    compressed = isinstance(model, CompressedModel)
    weights = {variable.path: np.array(variable) for variable in (model.model if compressed else model).variables}
    if compressed:
        weights |= {t.path: np.array(model.transformed(t)) for t in model.transformed_targets}
    return weights


def _chain(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model in order, the input first."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    operations = getattr(graph, "operations", None)
    if not operations:
        raise ValueError(f"`model` must be Sequential or functional. Received: {type(model).__name__}")
    # A layer that other models share has nodes of theirs too
    nodes = {id(node) for level in graph._nodes_by_depth.values() for node in level}
    for previous, operation in itertools.pairwise(operations):
        own = [node for node in operation._inbound_nodes if id(node) in nodes]
        producers = [[tensor._keras_history.operation for tensor in node.input_tensors] for node in own]
        if producers != [[previous]]:
            raise ValueError(
                f"`model` must be a chain of layers: {operation.name!r} must have {previous.name!r} as its one input. "
                f"Received: inputs {[[each.name for each in node] for node in producers]}"
            )
    return list(operations)


def _last_kernel(chain: list[keras.layers.Layer]) -> keras.layers.Layer:
    with_kernel = [layer for layer in chain if hasattr(layer, "kernel")]
    if not with_kernel:
        raise ValueError(f"`model` must have a dense or convolutional layer. Received: {[each.name for each in chain]}")
    return with_kernel[-1]


def _all_channels(count: int) -> _Channels:
    return _Channels(np.ones(count, bool), np.zeros(count))


def _smaller(
    layer: keras.layers.Layer,
    weights: Mapping[str, np.ndarray],
    channels: _Channels,
    is_last: bool,
    constants: bool = True,
) -> tuple[dict[str, Any], list[np.ndarray], _Channels]:
    """Returns configuration and weights of a layer without dead channels, and the channels of its output."""
    if isinstance(layer, _LAYERS.Dense | _LAYERS.Conv2D) and type(layer) in (_LAYERS.Dense, _LAYERS.Conv2D):
        return _smaller_kernel(layer, weights, channels, is_last, constants)
    config = layer.get_config()
    if isinstance(layer, _LAYERS.BatchNormalization):
        return _smaller_normalization(layer, weights, channels)
    if isinstance(layer, _LAYERS.Flatten):
        places = int(np.prod(layer.input.shape[1:-1]))
        repeated = [np.tile(array, places) for array in (channels.kept, channels.constants)]
        return config, [], _Channels(*repeated)
    if isinstance(layer, _LAYERS.Rescaling) and np.ndim(layer.scale) == np.ndim(layer.offset) == 0:
        return config, [], _Channels(channels.kept, channels.constants * layer.scale + layer.offset)
    across = getattr(layer, "activation", None) in _ACROSS_CHANNELS and not channels.kept.all()
    if isinstance(layer, _CHANNELWISE) and not across:
        if isinstance(layer, _CHANGING_VALUES):
            channels = _Channels(channels.kept, _apply(layer, channels.constants))
        return config, [], channels
    raise ValueError(f"Channels cannot be taken out before {layer.name!r}. Received: a {type(layer).__name__}")


def _smaller_kernel(
    layer: keras.layers.Layer, weights: Mapping[str, np.ndarray], channels: _Channels, is_last: bool, constants: bool
) -> tuple[dict[str, Any], list[np.ndarray], _Channels]:
    kernel = weights[layer.kernel.path]
    if getattr(layer, "groups", 1) > 1:
        raise ValueError(f"Channels cannot be taken out of groups. Received: {layer.name!r}, groups={layer.groups}")
    bias = weights[layer.bias.path] if layer.use_bias else np.zeros(kernel.shape[-1], kernel.dtype)
    gone = ~channels.kept
    added = channels.constants[gone] @ kernel.sum(tuple(range(kernel.ndim - 2)))[gone] if constants else 0.0
    if np.any(added) and isinstance(layer, _LAYERS.Conv2D) and layer.padding != "valid":
        raise ValueError(
            f"Dead channels before {layer.name!r} must be zero, since it pads its input with zeros: take them out before "
            f"training. Received: constants up to {np.abs(channels.constants[gone]).max():.3g}"
        )
    kernel = kernel[..., channels.kept, :]
    bias = bias + added
    alive = kernel.any(tuple(range(kernel.ndim - 1))) | is_last
    if layer.activation in _ACROSS_CHANNELS and not alive.all():
        raise ValueError(f"Channels cannot be taken out before a softmax. Received: {layer.name!r}")
    if not alive.any():
        raise ValueError(f"No channel is left in {layer.name!r}. Received: a kernel of zeros")
    config = {**layer.get_config(), "filters" if isinstance(layer, _LAYERS.Conv2D) else "units": int(alive.sum())}
    config["use_bias"] = bool(layer.use_bias or np.any(bias[alive]))
    arrays = [kernel[..., alive], bias[alive]][: 1 + config["use_bias"]]
    outputs = _apply(layer.activation, bias) if constants else np.zeros(len(bias))
    return config, arrays, _Channels(alive, outputs)


def _smaller_normalization(
    layer: keras.layers.BatchNormalization, weights: Mapping[str, np.ndarray], channels: _Channels
) -> tuple[dict[str, Any], list[np.ndarray], _Channels]:
    if layer.axis not in (-1, len(layer.input.shape) - 1):
        raise ValueError(f"{layer.name!r} must normalise the last axis. Received: axis={layer.axis}")
    arrays = [weights[variable.path] for variable in layer.weights]
    slope = 1 / np.sqrt(weights[layer.moving_variance.path] + layer.epsilon)
    slope = slope * weights[layer.gamma.path] if layer.scale else slope
    shift = weights[layer.beta.path] if layer.center else 0.0
    constants = (channels.constants - weights[layer.moving_mean.path]) * slope + shift
    return layer.get_config(), [array[channels.kept] for array in arrays], _Channels(channels.kept, constants)


def _apply(function: Any, values: np.ndarray) -> np.ndarray:
    """Applies an activation to values of single channels; those of kept channels mean nothing."""
    return np.array(function(keras.ops.convert_to_tensor(values[None], "float32")))[0]
