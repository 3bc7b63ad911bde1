"""Full-integer artifacts with the ranges that quantisation-aware training learned.

The graph holds a fake quantisation behind every operation whose range was learned, and weights that lie on their grids
already, so that the converters find the very scales of the training again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import helper, numpy_helper

from zoo.export.calibration import Calibration
from zoo.export.errors import ExportError
from zoo.export.onnx import for_each, shorten_names

if TYPE_CHECKING:
    from zoo.export.pipeline import Graphs

LEARNED = "learned ranges"
_MAXIMUM = 127
# An unsigned code's zero. Unsigned weights, since the products of signed ones with unsigned activations saturate on
# x86 processors without VNNI, silently.
_ZERO = 128
_ON_GRID = 1e-3


def learned_litert(graphs: Graphs, calibration: Calibration, output_shapes: Mapping[str, Any]) -> bytes:
    """Returns a full-integer flatbuffer; what has no learned range, as the inside of a softmax, is calibrated.

    Args:
        graphs: `zoo.export.pipeline.Graphs` of the learned signatures.
        calibration: `Calibration`.
        output_shapes: not needed here.
    """

    def examples() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        for name, items in calibration.required().items():
            yield from ((name, item) for item in items)

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]

    return graphs.litert(configure)


def learned_onnx(
    graphs: Graphs, calibration: Calibration, output_shapes: Mapping[str, Any]
) -> dict[str, onnx.ModelProto]:
    """Returns graphs whose fake quantisations are pairs of `QuantizeLinear` and `DequantizeLinear`, weights integers.

    Args:
        graphs: `zoo.export.pipeline.Graphs` of the learned signatures.
        calibration: not needed here.
        output_shapes: dict from signature to shapes of its outputs.
    """
    models = for_each(graphs.onnx(output_shapes), lambda name, model: _integer_weights(model))
    for model in models.values():
        shorten_names(model)
    return models


def _integer_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores the weights of convolutions and products as codes with a scale for each output channel."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    axes = {"Conv": 0, "Gemm": None, "MatMul": -1}
    chosen: dict[str, int] = {}
    for node in model.graph.node:
        name = node.input[1] if node.op_type in axes else None
        if name in tensors and len(tensors[name].dims) > 1:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            axis = axes[node.op_type]
            chosen[name] = (0 if transposed else len(tensors[name].dims) - 1) if axis in (None, -1) else axis
    if not chosen:
        raise ExportError("The graph has no constant weights to store as integers. Received: 0 convolutions, products")
    for name, axis in chosen.items():
        _store(model.graph, tensors[name], axis)
    return model


def _store(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> None:
    weights, name = numpy_helper.to_array(tensor), tensor.name
    others = tuple(other for other in range(weights.ndim) if other != axis)
    scale = np.abs(weights).max(axis=others, keepdims=True) / _MAXIMUM
    scale = np.where(scale > 0, scale, 1).astype(weights.dtype)
    codes = weights / scale
    if np.abs(codes - np.round(codes)).max() > _ON_GRID * _MAXIMUM:
        return  # no grid of 8 bits per output channel: left in float
    tensor.CopyFrom(numpy_helper.from_array((np.round(codes) + _ZERO).astype(np.uint8), f"{name}_codes"))
    zeros = np.full(scale.size, _ZERO, np.uint8)
    graph.initializer.append(numpy_helper.from_array(scale.ravel(), f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(zeros, f"{name}_zero"))
    inputs = [f"{name}_codes", f"{name}_scale", f"{name}_zero"]
    graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
