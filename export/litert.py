"""LiteRT (TFLite): one flatbuffer with all signatures, built-in operators only, weights certainly inside."""

from __future__ import annotations

import collections
import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from zoo.export.errors import ExportError
from zoo.export.flatbuffer import read, simplify, write
from zoo.export.quiet import quiet

FLEX = "Flex"
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
# Operators of a file whose weights are variables: nothing initialises them, and the outputs are noise.
_VARIABLE_OPS = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"}


def convert(
    saved_model: Path,
    signatures: Sequence[str],
    *,
    allow_flex: bool = False,
    configure: Callable[[Any], None] | None = None,
) -> bytes:
    """Converts a SavedModel.

    Args:
        saved_model: path of a directory that `write_saved_model` made.
        signatures: names of the signatures to take over.
        allow_flex: bool. Whether operators may come from TensorFlow, which the runtime's packages cannot run.
        configure: callable or None. Changes the `tf.lite.TFLiteConverter`, for example its optimisations.

    Returns:
        The flatbuffer.

    Raises:
        ExportError: if an operator has no built-in form, or the weights were not frozen.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=list(signatures))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if allow_flex:
        converter.target_spec.supported_ops.append(tf.lite.OpsSet.SELECT_TF_OPS)
    if configure is not None:
        configure(converter)
    try:
        with quiet():
            content = converter.convert()
    except Exception as error:  # the converter raises its own kinds and bare RuntimeError alike
        raise ExportError(f"LiteRT cannot hold this model with built-in operators. {_reason(str(error))}") from error
    check_ops(content, allow_flex=allow_flex)
    return content


def _reason(message: str) -> str:
    named = re.findall(r"(?:Flex ops|Custom ops): ([^\n]*)", message)
    lines = [line for line in message.splitlines() if "error:" in line] or message.splitlines()
    return f"Received: {'; '.join(named) if named else ' '.join(lines[:2])[:500]}"


def check_ops(content: bytes, *, allow_flex: bool = False) -> None:
    """Refuses a flatbuffer that could not be run, or would run on uninitialised weights.

    Args:
        content: bytes of the flatbuffer.
        allow_flex: bool. Whether TensorFlow's operators are acceptable.

    Raises:
        ExportError: for Flex operators unless allowed, for custom ones, and for variables.
    """
    ops = set(litert_ops(content))
    flex = {op for op in ops if op.startswith(FLEX)}
    custom = {op for op in ops if op.startswith("custom:")}
    if flex and not allow_flex:
        raise ExportError(f"The file needs TensorFlow's own operators (Flex). Received: {sorted(flex)}")
    if custom:
        raise ExportError(f"The file needs custom operators. Received: {sorted(custom)}")
    if ops & _VARIABLE_OPS:
        raise ExportError(f"The weights were not frozen into the file. Received: {sorted(ops & _VARIABLE_OPS)}")


def litert_ops(content: bytes) -> dict[str, int]:
    """Returns how often each operator occurs in a flatbuffer; custom ones as `custom:<name>`."""
    model = read(content)
    names = [op_name(code) for code in model.operatorCodes]
    counts = collections.Counter(names[op.opcodeIndex] for graph in model.subgraphs for op in graph.operators or ())
    counts.update(name for name in names if name not in counts)
    return dict(sorted(counts.items()))


def op_name(code: Any) -> str:
    """Returns the name of an operator code: a built-in's, a Flex one's, or `custom:<name>`."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    if number != schema.BuiltinOperator.CUSTOM:
        return _NAMES.get(number, f"builtin:{number}")
    name = code.customCode.decode()
    return name if name.startswith(FLEX) else f"custom:{name}"


# === Metadata ===


def embed(content: bytes, entries: Mapping[str, bytes], files: Mapping[str, bytes]) -> bytes:
    """Adds metadata entries to a flatbuffer, and files as a ZIP archive behind it.

    Runtimes ignore both; any ZIP program lists and extracts the files.

    Args:
        content: bytes of the flatbuffer.
        entries: dict from metadata name to content.
        files: dict from file name to content.
    """
    model = read(content)
    simplify(model)
    model.metadata = model.metadata or []
    for name, value in entries.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(value, np.uint8)
        model.buffers.append(buffer)
        entry.name, entry.buffer = name, len(model.buffers) - 1
        model.metadata.append(entry)
    stream = io.BytesIO(write(model))
    if files:
        stream.seek(0, io.SEEK_END)
        with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, value in files.items():
                archive.writestr(name, value)
    return stream.getvalue()


def embedded(path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Returns the metadata entries and the files of a `.tflite` file, as `embed` took them."""
    model = read(path.read_bytes())
    entries = {
        entry.name.decode(): bytes(model.buffers[entry.buffer].data)
        for entry in model.metadata or ()
        if model.buffers[entry.buffer].data is not None
    }
    if not zipfile.is_zipfile(path):
        return entries, {}
    with zipfile.ZipFile(path) as archive:
        return entries, {name: archive.read(name) for name in archive.namelist()}
