"""Compressed forms of a LiteRT model.

Some modes have two recipes, the second for models that the first fails. `int8` is full integer arithmetic, and, where
that spoils the model (attention with large negative masks does), integers only in the layers that hold the weights.
`weight_only_int8` covers all constant operands, and, where the quantizer writes a file that does not load (it does for
some products of batches of matrices), those layers only. Float weights that are mostly zero are stored sparsely.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from zoo.export import flatbuffer, litert
from zoo.export.calibration import Calibration
from zoo.export.errors import ExportError
from zoo.export.quiet import quiet

BLOCK = 32
FULL = "full integer"
ALL = "all layers"
SPARSE = "sparse weights"
RESTRICTED = "weighted layers"
_WEIGHTED_OPS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to make an artifact.

    Args:
        variant: str. Name of the recipe; empty where a mode has one only.
        build: callable that makes the artifact, in whichever form its format has in memory.
    """

    variant: str
    build: Callable[[], Any]


def litert_candidates(
    mode: str,
    convert: Callable[[Callable[[Any], None]], bytes],
    base: Callable[[], bytes],
    calibration: Calibration,
    is_sparse: bool = False,
) -> list[Candidate]:
    """Returns the recipes of a mode, the preferred first.

    Args:
        mode: str. One of `zoo.export.QUANTIZATIONS`.
        convert: callable that makes a flatbuffer with a converter that the argument configures.
        base: callable that returns the float32 flatbuffer.
        calibration: `Calibration`, read by `int8` only.
        is_sparse: bool. Whether most weights are zero, so that float weights are worth storing sparsely.
    """

    def converted(configure: Callable[[Any], None]) -> bytes:
        return _smaller(convert(configure), base())

    def static(ops: Sequence[str]) -> bytes:
        return _requantized(base(), lambda quantizer: _add_static(quantizer, ops), calibration)

    if mode == "none":
        dense = Candidate("", base)
        return [Candidate(SPARSE, lambda: converted(_store_sparse)), dense] if is_sparse else [dense]
    if mode == "float16":
        return [Candidate("", lambda: converted(_store_float16))]
    if mode == "dynamic_int8":
        return [Candidate("", lambda: converted(_store_int8))]
    if mode == "weight_only_int8":
        return [
            Candidate(ALL, lambda: _requantized(base(), lambda q: _add_weight_only(q, ("*",)))),
            Candidate(RESTRICTED, lambda: _requantized(base(), lambda q: _add_weight_only(q, _WEIGHTED_OPS))),
        ]
    if mode == "int4":
        return [Candidate("", lambda: _requantized(base(), lambda q: _add_int4(q, base())))]
    return [
        Candidate(FULL, lambda: static(("*", "INPUT", "OUTPUT"))),
        Candidate(RESTRICTED, lambda: static(_WEIGHTED_OPS)),
    ]


def _store_float16(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _store_sparse(converter: Any) -> None:
    # Alone: together with the default optimisation the file does not load, or computes wrong values
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]


def _store_int8(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _add_weight_only(quantizer: Any, ops: Sequence[str]) -> None:
    for op in ops:
        quantizer.add_weight_only_config(".*", op, num_bits=8)


def _add_static(quantizer: Any, ops: Sequence[str]) -> None:
    for op in ops:
        if op in ("INPUT", "OUTPUT"):
            # The edges stay as they are declared; the file converts from and to integers inside.
            quantizer.update_quantization_recipe(".*", op, algorithm_key="no_quantize")
        else:
            quantizer.add_static_config(".*", op, activation_num_bits=8, weight_num_bits=8)


def _add_int4(quantizer: Any, content: bytes) -> None:
    from litert_quantizer import qtyping

    layers = dict(_fully_connected(content))
    if not any(depth % BLOCK == 0 for depth in layers.values()):
        raise ExportError(
            f"int4 needs a fully connected layer whose input size is a multiple of {BLOCK}. "
            f"Received: input sizes {sorted(set(layers.values()))}"
        )
    granularity = qtyping.QuantGranularity.BLOCKWISE_32
    quantizer.add_dynamic_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, 4, granularity)
    # Four bits are wrong or slow in convolutions; left alone, they would outweigh everything else
    quantizer.add_dynamic_config(".*", qtyping.TFLOperationName.CONV_2D, 8)
    for output, depth in layers.items():
        if depth % BLOCK:
            quantizer.update_quantization_recipe(re.escape(output), "FULLY_CONNECTED", algorithm_key="no_quantize")


def _fully_connected(content: bytes) -> Iterator[tuple[str, int]]:
    """Yields the output tensor's name and the input size of each fully connected layer with constant weights."""
    model = flatbuffer.read(content)
    for graph in model.subgraphs:
        for op in graph.operators or ():
            if litert.op_name(model.operatorCodes[op.opcodeIndex]) == "FULLY_CONNECTED":
                weights = graph.tensors[op.inputs[1]]
                if model.buffers[weights.buffer].data is not None:
                    yield graph.tensors[op.outputs[0]].name.decode(), int(weights.shape[-1])


def _requantized(content: bytes, configure: Callable[[Any], None], calibration: Calibration | None = None) -> bytes:
    from litert_quantizer import quantizer as litert_quantizer

    quantizer = litert_quantizer.Quantizer(bytearray(content))
    configure(quantizer)
    try:
        with quiet():
            ranges = quantizer.calibrate(calibration.required(), num_threads=1) if calibration else None
            result = bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)
    except (RuntimeError, KeyError, NotImplementedError, ValueError, TypeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"The LiteRT quantizer refused the model. Received: {str(error)[:500]}") from error
    litert.check_ops(result)
    # Integers throughout are asked for their own sake; ranges can outweigh what a tiny model's weights lose.
    return result if calibration else _smaller(result, content)


def _smaller(content: bytes, base: bytes) -> bytes:
    if len(content) >= len(base):
        raise ExportError(f"Nothing in the LiteRT file could be compressed. Received: {len(base)} bytes")
    return content
