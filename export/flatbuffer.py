"""LiteRT's file format: reading it into objects, making it small, and writing it back.

Python's flatbuffer library writes every vector anew. Writing equal ones once takes up to a tenth off a quantized file
(per-channel zero points alone are 8 bytes a channel and signature), and weights are aligned as the runtime expects.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ALIGNMENT = 16
_IDENTIFIER = b"TFL3"


def read(content: bytes) -> Any:
    """Returns a flatbuffer as an object whose fields can be changed and written again by `write`."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        # The quantizer puts large tensors behind the flatbuffer, at offsets that writing it again would break. The
        # offset 1 stands for none.
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def write(model: Any) -> bytes:
    """Returns the flatbuffer of what `read` gave."""
    builder = _Builder(65536)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Writes equal vectors once, and long byte vectors (the weights) on aligned positions."""

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Writes an array, or returns the position of an equal one."""
        content = np.ascontiguousarray(x).tobytes()
        key = (x.dtype.str, content)
        if key not in self._written:
            is_weight = x.dtype == np.uint8 and len(content) >= ALIGNMENT
            self._written[key] = self._aligned(content) if is_weight else super().CreateNumpyVector(x)
        return self._written[key]

    def _aligned(self, content: bytes) -> int:
        self.StartVector(1, len(content), ALIGNMENT)
        self.head = self.Head() - len(content)
        self.Bytes[self.Head() : self.Head() + len(content)] = content
        return self.EndVector()


def simplify(model: Any) -> None:
    """Takes out what no runtime reads: long names of inner tensors, and empty quantization records and buffers."""
    for number, graph in enumerate(model.subgraphs):
        edges = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if index not in edges:
                # Not empty: quantizers that users may run later tell tensors apart by name.
                tensor.name = f"s{number}t{index}"
            if tensor.quantization is not None and _is_empty(tensor.quantization):
                tensor.quantization = None
            if _length(model.buffers[tensor.buffer].data) == 0:
                tensor.buffer = 0
    _drop_unused_buffers(model)


def _drop_unused_buffers(model: Any) -> None:
    users = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or ())]
    kept = sorted({0, *(user.buffer for user in users)})
    numbers = {old: new for new, old in enumerate(kept)}
    model.buffers = [model.buffers[old] for old in kept]
    for user in users:
        user.buffer = numbers[user.buffer]


def _is_empty(quantization: Any) -> bool:
    # Blockwise quantization has no scales here: its details point to a tensor of them.
    fields = ("scale", "zeroPoint", "min", "max")
    return quantization.details is None and not any(_length(getattr(quantization, field)) for field in fields)


def _length(values: Any) -> int:
    return 0 if values is None else len(values)
