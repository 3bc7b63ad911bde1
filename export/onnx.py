"""ONNX: one graph a signature, checked, with the signature's own names; weights shared between the graphs."""

from __future__ import annotations

import collections
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import tensorflow as tf
import tf2onnx
from onnx import numpy_helper, version_converter
from tf2onnx import optimizer

from zoo.export.errors import ExportError
from zoo.export.onnx_handlers import HANDLERS
from zoo.export.quiet import collect_errors, quiet
from zoo.export.signatures import Traced

DEFAULT_OPSET = 18
# tf2onnx writes at most opset 18; ONNX's own converter takes it further.
OPSETS = range(18, 22)
_ALIGNMENT = 64
_SHARED_FROM = 1024  # bytes; smaller tensors stay inside each file


def convert(
    traced: Traced, name: str, *, opset: int = DEFAULT_OPSET, output_dimensions: Mapping[str, list[int | str]]
) -> onnx.ModelProto:
    """Converts one signature.

    Args:
        traced: `Traced`.
        name: str. Name of the graph.
        opset: int. One of `OPSETS`.
        output_dimensions: dict from output name to its shape, dynamic dimensions by name.

    Returns:
        A checked model whose inputs, outputs and dynamic dimensions carry the signature's names.

    Raises:
        ExportError: if an operation has no ONNX form, or the file is no valid ONNX.
    """
    with quiet(), collect_errors("tf2onnx") as errors:
        try:
            model = _to_graph(traced.concrete, name, copy=False)
        except Exception:
            # Of any kind, as tf2onnx itself takes them. What an optimiser cannot do spoils the graph, unless it worked on a
            # copy; copying takes longer than optimising. An error of the conversion comes again
            model = _to_graph(traced.concrete, name, copy=True)
    # The converter itself never fails: only its log says that it wrote an operation ONNX does not have.
    if errors:
        raise ExportError(f"ONNX cannot hold signature {name!r}. Received: {'; '.join(errors[:3])[:500]}")
    check_inputs(model, name, list(traced.signature.inputs))
    _order_outputs(model, list(traced.signature.outputs))
    _name_dimensions(model.graph.input, {key: spec.shape for key, spec in traced.signature.inputs.items()})
    _name_dimensions(model.graph.output, output_dimensions)
    shorten_names(model)
    model.graph.name = name
    if opset != OPSETS.start:
        model = version_converter.convert_version(model, opset)
    check_model(model, name)
    return model


def _to_graph(concrete: Any, name: str, copy: bool) -> onnx.ModelProto:
    """Does what `tf2onnx.convert.from_function` does, but optimises in an order that keeps the graph right.

    tf2onnx writes a `0` ("as in the input") into the target shapes of `Reshape` where it can, and joins two `Reshape`
    nodes into the second; done in turns, the `0` comes to mean the wrong input. So all joining happens first.
    """
    inputs, outputs = (
        [tensor.name for tensor in tensors if tensor.dtype != tf.resource]
        for tensors in (concrete.inputs, concrete.outputs)
    )
    names = tf2onnx.convert.tensor_names_from_structed(concrete, inputs, outputs)
    with tf.device("/cpu:0"):
        frozen = tf2onnx.tf_loader.from_function(concrete, inputs, outputs)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            converted = tf2onnx.tfonnx.process_tf_graph(
                graph,
                continue_on_error=True,
                opset=OPSETS.start,
                custom_op_handlers=dict(HANDLERS),
                input_names=inputs,
                output_names=outputs,
                tensors_to_rename=names,
            )
            for without in ("reshape_optimizer", "remove_back_to_back"):
                optimizers = {key: value for key, value in optimizer._get_optimizers().items() if key != without}
                converted = optimizer.optimize_graph(converted, catch_errors=copy, optimizers=optimizers)
    return converted.make_model(name)


def check_inputs(model: onnx.ModelProto, name: str, expected: list[str]) -> None:
    """Refuses a graph whose inputs are not the signature's: a captured tensor becomes another input.

    Raises:
        ExportError: if the names differ.
    """
    received = [value.name for value in model.graph.input]
    if set(received) != set(expected):
        raise ExportError(f"The ONNX graph of {name!r} must have the inputs {expected}. Received: {received}")


def check_model(model: onnx.ModelProto | Path, name: str) -> None:
    """Runs ONNX's full checker.

    Raises:
        ExportError: if the model is not valid, for instance holds an operation that ONNX does not have.
    """
    try:
        onnx.checker.check_model(model if isinstance(model, onnx.ModelProto) else str(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"Not a valid ONNX model: {name!r}. Received: {str(error)[:500]}") from error


def _order_outputs(model: onnx.ModelProto, names: list[str]) -> None:
    by_name = {value.name: value for value in model.graph.output}
    if set(by_name) != set(names):
        raise ExportError(f"The ONNX graph must have the outputs {names}. Received: {list(by_name)}")
    ordered = [onnx.ValueInfoProto.FromString(by_name[name].SerializeToString()) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(ordered)


def _name_dimensions(values: list[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int | str, ...]]) -> None:
    for value in values:
        tensor = value.type.tensor_type
        if len(tensor.shape.dim) != len(shapes[value.name]):
            tensor.ClearField("shape")
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in shapes[value.name])
        for dimension, size in zip(tensor.shape.dim, shapes[value.name], strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
            else:
                dimension.dim_value = size


def shorten_names(model: onnx.ModelProto) -> None:
    """Renames inner tensors and nodes: the scopes TensorFlow puts into names can outweigh the weights."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    free = (name for name in map("t{}".format, itertools.count()) if name not in kept)
    names: dict[str, str] = {}

    def short(name: str) -> str:
        if not name or name in kept:
            return name
        if name not in names:
            names[name] = next(free)
        return names[name]

    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            tensor.name = short(tensor.name)
        if graph is not model.graph:
            for value in (*graph.input, *graph.output):
                value.name = short(value.name)
        for number, node in enumerate(graph.node):
            node.name, node.doc_string = f"n{number}", ""
            node.input[:] = [short(name) for name in node.input]
            node.output[:] = [short(name) for name in node.output]
        del graph.value_info[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def onnx_ops(models: Mapping[str, onnx.ModelProto]) -> dict[str, int]:
    """Returns how often each operator occurs in some graphs together."""
    counts = collections.Counter(
        node.op_type for model in models.values() for graph in _graphs(model.graph) for node in graph.node
    )
    return dict(sorted(counts.items()))


# === Files ===


def write(models: Mapping[str, onnx.ModelProto], directory: Path, stem: str) -> list[Path]:
    """Writes the graphs of a model's signatures.

    A single one becomes `<stem>.onnx` with its weights inside. Several become `<stem>.<signature>.onnx` each, and every
    large tensor goes once into `<stem>.weights.bin`, which all of them refer to.

    Args:
        models: dict from signature to model; their tensors are moved out of them.
        directory: path.
        stem: str.

    Returns:
        Paths of the files, the first signature's first.

    Raises:
        ExportError: if a written file is not valid.
    """
    if len(models) == 1:
        paths = {name: directory / f"{stem}.onnx" for name in models}
        extra = []
    else:
        paths = {name: directory / f"{stem}.{name}.onnx" for name in models}
        extra = _write_shared(models, directory / f"{stem}.weights.bin")
    for name, model in models.items():
        paths[name].write_bytes(model.SerializeToString())
        check_model(paths[name], name)
    return [*paths.values(), *extra]


def _write_shared(models: Mapping[str, onnx.ModelProto], path: Path) -> list[Path]:
    offsets: dict[str, int] = {}
    with path.open("wb") as stream:
        for tensor in _large_tensors(models):
            content = tensor.raw_data
            digest = hashlib.sha256(content).hexdigest()
            if digest not in offsets:
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                offsets[digest] = stream.tell()
                stream.write(content)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", path.name), ("offset", offsets[digest]), ("length", len(content))):
                tensor.external_data.add(key=key, value=str(value))
    if offsets:
        return [path]
    path.unlink()
    return []


def _large_tensors(models: Mapping[str, onnx.ModelProto]) -> Iterator[onnx.TensorProto]:
    for model in models.values():
        for tensor in model.graph.initializer:
            if not tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            if len(tensor.raw_data) >= _SHARED_FROM:
                yield tensor


def for_each(
    models: Mapping[str, onnx.ModelProto], change: Callable[[str, onnx.ModelProto], onnx.ModelProto]
) -> dict[str, onnx.ModelProto]:
    """Returns changed copies of models, which stay as they are."""
    return {name: change(name, onnx.ModelProto.FromString(model.SerializeToString())) for name, model in models.items()}
