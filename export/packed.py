"""Files whose weights take the bits that a plan gives them.

The codes are looked for among the constants of the finished float graph, transposed or scaled per channel as converters
leave them (batch normalisation is folded into kernels), and a constant is replaced only where the codes reproduce it. So
a packed file computes what the float file does.

ONNX stores 2, 4 and 8 bits natively, and any other width as bit-planes: plane k holds bit k of eight codes in a byte.
Standard operators make weights of the codes when a session loads the file; `DequantizeLinear` is not among them, since
ONNX Runtime would compute products with what it gives in eight bits. LiteRT stores each layer in the smallest integer type
that its kernels get right, in front of a `DEQUANTIZE`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper, version_converter

from zoo.export import flatbuffer, litert
from zoo.export import onnx as onnx_export
from zoo.export.errors import ExportError

if TYPE_CHECKING:
    from zoo.compression.bit_plan import Codes

# The first opset with two-bit tensors.
OPSET = 25
IR_VERSION = 12
# Smaller tensors, such as biases, would take more as codes than they do in float.
LEAST_ELEMENTS = 128
# Largest error of the codes relative to the largest weight of a constant: what folding in float32 leaves.
_MATCH = 2e-6


# === Finding codes in graphs ===


@dataclasses.dataclass(frozen=True)
class Stored:
    """Codes as a constant of a graph holds them.

    Args:
        values: int64 array of the constant's shape.
        scale: float32 array `(1,)`, or `(channels,)`.
        axis: int or None. Axis of the channels; None for one scale.
        bits: int.
        exponential: bool. See `zoo.compression.bit_plan.Codes`.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int | None
    bits: int
    exponential: bool

    @property
    def broadcast_scale(self) -> np.ndarray:
        """The scale in a shape that is broadcast to the constant."""
        shape = [1] * self.values.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return self.scale.reshape(shape)


def match(codes: Codes, constant: np.ndarray) -> Stored | None:
    """Returns codes in the layout of a constant of a graph; None where the constant is not made of them.

    Args:
        codes: `zoo.compression.bit_plan.Codes`.
        constant: float array.
    """
    if codes.values.size != constant.size or constant.size < LEAST_ELEMENTS:
        return None
    for values in _layouts(codes.values, constant.shape):
        for axis in (None, *range(constant.ndim)):
            found = _scaled(values, constant, axis)
            if found is not None:
                values, scale = found
                return Stored(values, scale, axis, codes.bits, codes.exponential)
    return None


def _layouts(values: np.ndarray, shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields all transpositions of an array, in a shape."""
    axes = [axis for axis, size in enumerate(values.shape) if size > 1]
    squeezed = values.reshape([values.shape[axis] for axis in axes])
    for order in itertools.permutations(range(squeezed.ndim)):
        yield squeezed.transpose(order).reshape(shape)


def _scaled(values: np.ndarray, constant: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    others = tuple(other for other in range(values.ndim) if other != axis)
    weights = values.astype("float64")
    squares = np.square(weights).sum(axis=others)
    scale = (weights * constant).sum(axis=others) / np.where(squares > 0, squares, 1)
    shape = [-1 if other == axis else 1 for other in range(values.ndim)]
    error = np.abs(weights * scale.reshape(shape) - constant).max()
    if not error <= _MATCH * max(np.abs(constant).max(), np.finfo("float32").tiny):
        return None
    # Formats want positive scales: signs go into the codes, as folding may leave them
    sign = np.where(scale < 0, -1, np.where(scale > 0, 1, 0)).reshape(shape)
    return values * sign, np.atleast_1d(np.where(scale == 0, 1, np.abs(scale))).astype("float32")


def _assigned(codes: Mapping[str, Codes], constants: Mapping[Any, np.ndarray]) -> dict[Any, Stored]:
    """Returns the codes of constants; several may be one weight's, since every signature has its own.

    Raises:
        ExportError: if a weight is no constant of the graph.
    """
    found: dict[Any, Stored] = {}
    for path, each in codes.items():
        if each.values.ndim < 2 or each.values.size < LEAST_ELEMENTS:
            continue
        matches = {key: match(each, constant) for key, constant in constants.items()}
        matches = {key: stored for key, stored in matches.items() if stored is not None}
        if not matches:
            raise ExportError(
                f"The weight {path!r} is no constant of the graph with {each.bits} bits: export the model that the codes "
                f"are of. Received: {len(constants)} constants"
            )
        found = {**matches, **found}
    if not found:
        raise ExportError(
            f"`codes` must hold a weight of {LEAST_ELEMENTS} elements or more. Received: {sorted(codes) or 'none'}"
        )
    return found


def _field(values: np.ndarray, bits: int) -> np.ndarray:
    """Returns codes as unsigned integers, two's complement."""
    return (values.ravel() & (2**bits - 1)).astype("uint32")


def pack_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Packs integers of 2, 4 or 8 bits into bytes, the first in the lowest bits, as ONNX and LiteRT have it.

    Args:
        values: int array.
        bits: int.

    Returns:
        uint8 array.
    """
    each = 8 // bits
    fields = _field(values, bits).astype("uint8")
    fields = np.concatenate([fields, np.zeros(-len(fields) % each, "uint8")]).reshape(-1, each)
    shifts = np.arange(each, dtype="uint8") * np.uint8(bits)
    return np.bitwise_or.reduce(fields << shifts, axis=1)


def pack_planes(fields: np.ndarray, bits: int) -> np.ndarray:
    """Returns bit-planes of unsigned codes.

    Args:
        fields: unsigned int array `(number,)`.
        bits: int.

    Returns:
        uint8 array `(bits, ceil(number / 8))`; plane k holds bit k, the first code in the lowest bit of a byte.
    """
    planes = (fields[None] >> np.arange(bits, dtype=fields.dtype)[:, None]) & 1
    return np.packbits(planes.astype("uint8"), axis=1, bitorder="little")


# === ONNX ===


def pack_graphs(models: Mapping[str, onnx.ModelProto], codes: Mapping[str, Codes]) -> dict[str, onnx.ModelProto]:
    """Returns float graphs with their weights packed.

    Args:
        models: dict from signature to `onnx.ModelProto`, weights inside; they stay as they are.
        codes: dict from path to `zoo.compression.bit_plan.Codes`.

    Raises:
        ExportError: if a weight is not found in any graph, or a result is no valid ONNX.
    """
    packed = {name: version_converter.convert_version(model, OPSET) for name, model in models.items()}
    tensors = {
        (name, tensor.name): numpy_helper.to_array(tensor)
        for name, model in packed.items()
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    found = _assigned(codes, tensors)
    for name, model in packed.items():
        _pack(model, {tensor: stored for (owner, tensor), stored in found.items() if owner == name})
    return packed


def _pack(model: onnx.ModelProto, found: Mapping[str, Stored]) -> None:
    model.ir_version = IR_VERSION
    writer = _Writer()
    for name, stored in found.items():
        writer.add(name, stored)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in found]
    nodes = [*writer.nodes, *model.graph.node]
    for field, values in ((model.graph.initializer, [*kept, *writer.tensors]), (model.graph.node, nodes)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    onnx_export.shorten_names(model)
    onnx_export.check_model(model, model.graph.name)


class _Writer:
    """Collects the nodes and tensors that stand for packed weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._shared: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, stored: Stored) -> None:
        if stored.exponential and stored.bits > 1:
            self._add_powers(name, stored)
        elif stored.bits in _ONNX_TYPES and not stored.exponential:
            self._add_native(name, stored)
        else:
            self._add_planes(name, stored)

    def _add_native(self, name: str, stored: Stored) -> None:
        tensor = TensorProto(name=f"{name}_codes", data_type=_ONNX_TYPES[stored.bits], dims=stored.values.shape)
        tensor.raw_data = pack_bytes(stored.values, stored.bits).tobytes()
        self.tensors.append(tensor)
        self._scale(name, self._node("Cast", name, tensor.name, to=TensorProto.FLOAT), stored)

    def _add_planes(self, name: str, stored: Stored) -> None:
        bits = stored.bits
        fields = _field(stored.values if bits > 1 else stored.values > 0, bits)
        # Two's complement: the highest bit counts negative. A single bit stands for -1 and 1.
        places = 2.0 ** np.arange(bits) * np.where(np.arange(bits) == bits - 1, -1, 1) if bits > 1 else np.array([2.0])
        last = self._sum(name, self._bits(name, fields, bits), places)
        if bits == 1:
            last = self._node("Add", name, last, self._constant(np.float32(-1)))
        self._finish(name, last, stored)

    def _add_powers(self, name: str, stored: Stored) -> None:
        """A sign, 1 for negative, above the exponent."""
        bits = stored.bits
        # A channel that folding has emptied has no powers; its scale makes up for them
        magnitude = np.maximum(np.abs(stored.values.ravel()), 1)
        fields = np.log2(magnitude).round().astype("uint32") | ((stored.values.ravel() < 0) << (bits - 1)).astype(
            "uint32"
        )
        unpacked = self._bits(name, fields, bits)
        is_sign = np.arange(bits) == bits - 1
        exponent = self._sum(name, unpacked, np.where(is_sign, 0, 2.0 ** np.arange(bits)))
        sign = self._node("Add", name, self._sum(name, unpacked, is_sign * -2.0), self._constant(np.float32(1)))
        power = self._node("Pow", name, self._constant(np.float32(2)), exponent)
        self._finish(name, self._node("Mul", name, power, sign), stored)

    def _bits(self, name: str, fields: np.ndarray, bits: int) -> str:
        """Returns the name of a float tensor `(bits, number of codes and padding)` of zeros and ones."""
        planes = self._tensor(f"{name}_planes", pack_planes(fields, bits)[:, :, None])
        shifted = self._node("BitShift", name, planes, self._constant(np.arange(8, dtype="uint8")), direction="RIGHT")
        masked = self._node("BitwiseAnd", name, shifted, self._constant(np.uint8(1)))
        numbers = self._node("Cast", name, masked, to=TensorProto.FLOAT)
        return self._node("Reshape", name, numbers, self._constant(np.array([bits, -1])))

    def _sum(self, name: str, unpacked: str, places: np.ndarray) -> str:
        return self._node("MatMul", name, self._constant(places.astype("float32")), unpacked)

    def _finish(self, name: str, flat: str, stored: Stored) -> None:
        if stored.values.size % 8:
            ends = [self._constant(np.array([end])) for end in (0, stored.values.size)]
            flat = self._node("Slice", name, flat, *ends)
        self._scale(name, self._node("Reshape", name, flat, self._constant(np.array(stored.values.shape))), stored)

    def _scale(self, name: str, codes: str, stored: Stored) -> None:
        scale = self._tensor(f"{name}_scale", stored.broadcast_scale)
        self.nodes.append(helper.make_node("Mul", [codes, scale], [name]))

    def _node(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        output = f"{name}_packed_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def _tensor(self, name: str, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _constant(self, value: np.ndarray) -> str:
        """Returns the name of a small tensor, stored once."""
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._shared:
            self._shared[key] = self._tensor(f"packed_constant_{len(self._shared)}", value)
        return self._shared[key]


_ONNX_TYPES = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8}


# === LiteRT ===


# Integer types by operator, in bits: what runs correctly in every kernel that may take the layer. Two bits give noise
# in convolutions, without any error, and so do blocks of them; depthwise convolutions know eight bits only.
CONTAINERS: Mapping[str, Sequence[int]] = {
    "FULLY_CONNECTED": (2, 4, 8),
    "CONV_2D": (4, 8),
    "DEPTHWISE_CONV_2D": (8,),
    "TRANSPOSE_CONV": (8,),
    "EMBEDDING_LOOKUP": (8,),
    "GATHER": (8,),
    "BATCH_MATMUL": (8,),
}
_LITERT_TYPES = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}
_DEQUANTIZE_VERSION = 6


def container(op: str, bits: int) -> int | None:
    """Returns the bits that a weight takes in a LiteRT file; None where it stays in float.

    Args:
        op: str. Operator that reads it, such as `"CONV_2D"`.
        bits: int. Its width.
    """
    return next((each for each in CONTAINERS.get(op, ()) if each >= bits), None)


def pack_flatbuffer(content: bytes, codes: Mapping[str, Codes]) -> bytes:
    """Returns a float flatbuffer with its weights in integer types.

    Args:
        content: bytes of the flatbuffer.
        codes: dict from path to `zoo.compression.bit_plan.Codes`.

    Raises:
        ExportError: if a weight is not found in the file, or the result would not run correctly.
    """
    model = flatbuffer.read(content)
    constants, readers = _constants(model)
    packer = _Packer(model)
    for buffer, stored in _assigned(codes, constants).items():
        bits = max(2, _width(stored.values))
        sizes = {container(op, bits) for op in readers[buffer]}
        if None not in sizes:
            packer.replace(buffer, stored, max(sizes))
    flatbuffer.simplify(model)
    result = flatbuffer.write(model)
    check_containers(result)
    litert.check_ops(result)
    return result


def _width(values: np.ndarray) -> int:
    """Returns the width of the codes as plain integers; powers of two need more than their exponents."""
    return max(int(values.max()).bit_length(), (-int(values.min()) - 1).bit_length()) + 1


def _constants(model: Any) -> tuple[dict[int, np.ndarray], dict[int, set[str]]]:
    """Returns the float constants by buffer, and the operators that read them."""
    names = [litert.op_name(code) for code in model.operatorCodes]
    constants: dict[int, np.ndarray] = {}
    readers: dict[int, set[str]] = {}
    for graph in model.subgraphs:
        for op in graph.operators or ():
            for index in op.inputs:
                tensor = graph.tensors[index] if index >= 0 else None
                data = None if tensor is None else model.buffers[tensor.buffer].data
                if data is not None and tensor.type == schema.TensorType.FLOAT32:
                    constants[tensor.buffer] = np.frombuffer(bytes(data), "float32").reshape(tensor.shape)
                    readers.setdefault(tensor.buffer, set()).add(names[op.opcodeIndex])
    return constants, readers


class _Packer:
    """Puts integer tensors with a `DEQUANTIZE` into the place of float constants."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._opcode: int | None = None

    def replace(self, buffer: int, stored: Stored, bits: int) -> None:
        packed = schema.BufferT()
        packed.data = pack_bytes(stored.values, bits)
        self.model.buffers.append(packed)
        number = len(self.model.buffers) - 1
        for graph in self.model.subgraphs:
            for index in [i for i, tensor in enumerate(graph.tensors) if tensor.buffer == buffer]:
                self._insert(graph, index, stored, bits, number)

    def _insert(self, graph: Any, index: int, stored: Stored, bits: int, buffer: int) -> None:
        floats = graph.tensors[index]
        integers = schema.TensorT()
        integers.shape, integers.name = floats.shape, b"%s_codes" % floats.name
        integers.type, integers.buffer, integers.isVariable = _LITERT_TYPES[bits], buffer, False
        integers.quantization = schema.QuantizationParametersT()
        integers.quantization.scale = stored.scale
        integers.quantization.zeroPoint = np.zeros(len(stored.scale), "int64")
        integers.quantization.quantizedDimension = stored.axis or 0
        graph.tensors.append(integers)
        floats.buffer = 0
        op = schema.OperatorT()
        op.opcodeIndex = self._dequantize()
        op.inputs, op.outputs = np.array([len(graph.tensors) - 1], "int32"), np.array([index], "int32")
        graph.operators = [op, *graph.operators]

    def _dequantize(self) -> int:
        if self._opcode is None:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
            code.version = _DEQUANTIZE_VERSION
            self.model.operatorCodes.append(code)
            self._opcode = len(self.model.operatorCodes) - 1
        return self._opcode


def check_containers(content: bytes) -> None:
    """Refuses a flatbuffer with integer types that LiteRT reads without an error, and wrongly.

    Args:
        content: bytes of the flatbuffer.

    Raises:
        ExportError: for two-bit weights of anything but fully connected layers, and for blocks of two bits.
    """
    model = flatbuffer.read(content)
    names = [litert.op_name(code) for code in model.operatorCodes]
    for graph in model.subgraphs:
        two_bits = {i for i, tensor in enumerate(graph.tensors) if tensor.type == schema.TensorType.INT2}
        for index in two_bits:
            quantization = graph.tensors[index].quantization
            if quantization is not None and quantization.details is not None:
                raise ExportError(f"LiteRT misreads blocks of two-bit weights. Received: {graph.tensors[index].name!r}")
        for op in graph.operators or ():
            name, inputs = names[op.opcodeIndex], set(op.inputs.tolist())
            if name == "DEQUANTIZE" and inputs & two_bits:
                two_bits |= set(op.outputs.tolist())
            elif inputs & two_bits and 2 not in CONTAINERS.get(name, ()):
                raise ExportError(f"LiteRT computes {name} wrongly with two-bit weights. Received: {name}")
