"""Compressed forms of ONNX graphs, for ONNX Runtime."""

from __future__ import annotations

import collections
import contextlib
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization as ort_quantization
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel

from zoo.export.calibration import Calibration
from zoo.export.errors import ExportError
from zoo.export.onnx import for_each, shorten_names
from zoo.export.quantize import BLOCK, FULL, RESTRICTED, Candidate
from zoo.export.quiet import quiet

_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_WEIGHTED_OPS = ("MatMul", "Conv", "Gemm")
Models = Mapping[str, onnx.ModelProto]
Change = Callable[[str, onnx.ModelProto], onnx.ModelProto]


def onnx_candidates(mode: str, models: Models, calibration: Calibration) -> list[Candidate]:
    """Returns the recipes of a mode, the preferred first.

    Args:
        mode: str. One of `zoo.export.QUANTIZATIONS`.
        models: dict from signature to the float32 graph.
        calibration: `Calibration`, read by `int8` only.
    """

    def recipe(change: Change, variant: str = "") -> Candidate:
        return Candidate(variant, lambda: _compressed(models, change, must_shrink=not variant))

    def static(ops: Sequence[str] | None) -> Change:
        return lambda name, model: _static(model, calibration.required()[name], ops)

    if mode == "none":
        return [Candidate("", lambda: for_each(models, lambda name, model: model))]
    if mode == "float16":
        return [recipe(lambda name, model: _float16(model))]
    if mode == "dynamic_int8":
        return [recipe(lambda name, model: _dynamic(model))]
    if mode == "weight_only_int8":
        return [recipe(lambda name, model: _convolutions_int8(_matrices(model, 8)))]
    if mode == "int4":
        return [Candidate("", lambda: _four_bits(models))]
    return [recipe(static(None), FULL), recipe(static(_WEIGHTED_OPS), RESTRICTED)]


def _four_bits(models: Models) -> dict[str, onnx.ModelProto]:
    """Four bits in matrix products; convolutions, which there is no such kernel for, take eight."""
    if not any(node.op_type in ("MatMul", "Gemm") for model in models.values() for node in model.graph.node):
        raise ExportError("int4 needs a product with a constant matrix; nothing in the graphs could be compressed so.")
    return _compressed(models, lambda name, model: _convolutions_int8(_matrices(model, 4)), must_shrink=True)


def _compressed(models: Models, change: Change, must_shrink: bool) -> dict[str, onnx.ModelProto]:
    try:
        with quiet():
            result = for_each(models, change)
        for model in result.values():
            shorten_names(model)
    except (RuntimeError, KeyError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"ONNX Runtime's quantizer refused the model. Received: {str(error)[:500]}") from error
    sizes = [sum(model.ByteSize() for model in group.values()) for group in (models, result)]
    if must_shrink and sizes[1] >= sizes[0]:
        raise ExportError(f"Nothing in the ONNX graphs could be compressed. Received: {sizes[0]} bytes")
    return result


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    # ONNX has no IsInf of float16
    floats = [*float16.DEFAULT_OP_BLOCK_LIST, "IsInf"]
    converted = float16.convert_float_to_float16(_with_integers(model), keep_io_types=True, op_block_list=floats)
    # The converter appends the casts of the inputs behind the nodes that read them, which is not valid ONNX.
    OnnxModel.graph_topological_sort(converted.graph)
    return converted


def _with_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which integers are compared as such.

    tf2onnx compares them as floats, with casts before and after. Among them are the ends of slices, up to 1e9, and token ids,
    which float16 does not hold.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    casts = {cast.output[0]: cast.input[0] for cast in graph.node if types.get(_cast_source(cast)) in _INTEGERS}
    readers = collections.defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    nodes = []
    for node in graph.node:
        back = readers[node.output[0]] if node.op_type in ("Max", "Min") else []
        if _compares_integers(node, back, casts, constants):
            for place, name in enumerate(node.input):
                node.input[place] = exact = f"{node.output[0]}_{place}"
                if name in casts:
                    nodes.append(helper.make_node("Cast", [casts[name]], [exact], name=exact, to=TensorProto.INT64))
                else:
                    graph.initializer.append(numpy_helper.from_array(constants[name].astype("int64"), exact))
            if back:
                node.output[0] = f"{node.output[0]}_integer"
                for cast in back:
                    cast.input[0] = node.output[0]
        nodes.append(node)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if not _cast_source(node) or node.output[0] in used)
    return model


def _compares_integers(
    node: onnx.NodeProto, back: Sequence[onnx.NodeProto], casts: Collection[str], constants: Collection[str]
) -> bool:
    """Whether all that a node compares are integers cast to floats; `back` reads the largest or smallest one."""
    compares = node.op_type in _COMPARISONS or (back and all(_cast_source(cast) for cast in back))
    known = all(name in casts or name in constants for name in node.input)
    return bool(compares) and known and any(name in casts for name in node.input)


def _cast_source(node: onnx.NodeProto) -> str | None:
    return node.input[0] if node.op_type == "Cast" else None


def _to_file(quantize: Callable[[str], Any]) -> onnx.ModelProto:
    # The quantizers only write files.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        quantize(str(path))
        return onnx.load(str(path))


def _dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    # Unsigned: ONNX Runtime has no kernel for convolutions of signed weights. Per tensor was the more accurate here.
    weights = ort_quantization.QuantType.QUInt8
    return _to_file(lambda path: ort_quantization.quantize_dynamic(model, path, weight_type=weights))


class _Reader(ort_quantization.CalibrationDataReader):
    def __init__(self, items: Sequence[dict[str, np.ndarray]]):
        self._items = iter(items)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def _static(
    model: onnx.ModelProto, items: Sequence[dict[str, np.ndarray]], ops: Sequence[str] | None
) -> onnx.ModelProto:
    return _to_file(
        lambda path: ort_quantization.quantize_static(
            model,
            path,
            _Reader(items),
            quant_format=ort_quantization.QuantFormat.QDQ,
            op_types_to_quantize=ops and list(ops),
            per_channel=True,
            # Seven bits: the products of eight-bit ones saturate on x86 processors without VNNI, silently.
            reduce_range=True,
            activation_type=ort_quantization.QuantType.QUInt8,
            weight_type=ort_quantization.QuantType.QInt8,
        )
    )


@contextlib.contextmanager
def _unchanged_logging() -> Iterator[None]:
    # Importing ONNX Runtime's weight-only quantizer configures the root logger.
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _matrices(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Stores the constant factor of every matrix product in blocks of integers."""
    with _unchanged_logging():
        from onnxruntime.quantization import matmul_nbits_quantizer
    _split_gemm(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    config = matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(model, algo_config=config)
    quantizer.process()
    result = quantizer.model.model
    if bits == 4:
        _keep_trained_grids(result.graph, weights)
    return result


def _keep_trained_grids(graph: onnx.GraphProto, weights: Mapping[str, np.ndarray]) -> None:
    """Encodes weights that lie on the grid of quantisation-aware training, from -7 to 7, exactly.

    ONNX Runtime's own quantizer reaches down to -8, which suits other weights better but would move these.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        source = node.input[1].removesuffix("_Q4") if node.op_type == "MatMulNBits" else None
        encoded = _blocks(weights[source].reshape(weights[source].shape[-2:])) if source in weights else None
        if encoded is not None:
            for name, array in zip(node.input[1:3], encoded, strict=True):
                tensors[name].CopyFrom(numpy_helper.from_array(array.reshape(tensors[name].dims), name))


def _blocks(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the 4-bit codes, two per byte, and the scales of a factor `(depth, outputs)`, as `MatMulNBits` has them.

    None where the weights do not lie on the grid.
    """
    depth, outputs = weights.shape
    padded = np.pad(weights, ((0, -depth % BLOCK), (0, 0))).T.reshape(outputs, -1, BLOCK)
    scales = np.abs(padded).max(-1, keepdims=True) / 7
    scales = np.where(scales > 0, scales, 1).astype(weights.dtype)
    codes = padded / scales
    if np.abs(codes - np.round(codes)).max() > 1e-2:
        return None
    codes = (np.round(codes) + 8).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales


def _split_gemm(model: onnx.ModelProto) -> None:
    """Writes `Gemm` as `MatMul` and `Add`: the weight-only quantizer passes over `Gemm` without a word."""
    nodes = []
    for number, node in enumerate(model.graph.node):
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = all(attributes.get(name, default) == default for name, default in _GEMM_DEFAULTS.items())
        if node.op_type != "Gemm" or not plain:
            nodes.append(node)
            continue
        product = f"{node.output[0]}_product_{number}" if len(node.input) == 3 else node.output[0]
        nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=f"{node.name}_matmul"))
        if len(node.input) == 3:
            nodes.append(helper.make_node("Add", [product, node.input[2]], node.output, name=f"{node.name}_add"))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _convolutions_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores the kernels of convolutions as integers with one scale for each output channel."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv" and node.input[1] in tensors}
    added = []
    for name in sorted(kernels):
        kernel = numpy_helper.to_array(tensors[name])
        scale = np.abs(kernel).max(axis=tuple(range(1, kernel.ndim))) / 127
        scale = np.where(scale > 0, scale, 1).astype(kernel.dtype)
        codes = np.round(kernel / scale.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.int8)
        tensors[name].CopyFrom(numpy_helper.from_array(codes, f"{name}_codes"))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        added.append(helper.make_node("DequantizeLinear", [f"{name}_codes", f"{name}_scale"], [name], axis=0))
    for node in reversed(added):
        model.graph.node.insert(0, node)
    return model
