"""From a Keras model to named, pure, traced functions: what every format is made of."""

from __future__ import annotations

import dataclasses
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from zoo.export.errors import ExportError
from zoo.model import Signature, Spec

EXAMPLE_SIZE = 16
# Graph operations by which a signature would read or leave a trace of an earlier call, run Python, or throw dice.
_WRITES = re.compile(
    r"^(Assign(Add|Sub)?Variable|ResourceApply|ResourceScatter|ResourceStridedSliceAssign|LookupTableInsert)"
)
_PYTHON = re.compile(r"^(Eager)?PyFunc")
_RANDOM = re.compile(r"^(Random|Stateful|Multinomial|TruncatedNormal|ParameterizedTruncatedNormal)")
_RANDOM_EXEMPT = {"StatefulPartitionedCall"}


@dataclasses.dataclass(frozen=True)
class Traced:
    """A signature as TensorFlow functions.

    Args:
        signature: `zoo.model.Signature`. What was traced.
        function: `tf.function` of the inputs in order, returning the dict of outputs.
        concrete: its concrete function.
    """

    signature: Signature
    function: Callable[..., dict[str, tf.Tensor]]
    concrete: Any

    @property
    def specs(self) -> list[tf.TensorSpec]:
        """The named inputs in order."""
        return [spec.tensor_spec(name) for name, spec in self.signature.inputs.items()]


# === Tracing ===


def trace(signatures: Mapping[str, Signature]) -> dict[str, Traced]:
    """Traces signatures and refuses those that no format could hold faithfully.

    Args:
        signatures: dict from name to `zoo.model.Signature`.

    Returns:
        Dict from name to `Traced`.

    Raises:
        ExportError: if there is none, a name is no identifier, outputs differ from the declared ones, an input and an
            output share a name, or the function captures tensors, writes variables, draws randomly or calls Python.
    """
    if not signatures:
        raise ExportError("A model must have at least one signature. Received: none")
    return {name: _trace_one(name, signature) for name, signature in signatures.items()}


def _trace_one(name: str, signature: Signature) -> Traced:
    for identifier in (name, *signature.inputs):
        if not identifier.isidentifier():
            raise ExportError(f"Names of signatures and inputs must be Python identifiers. Received: {identifier!r}")

    def by_position(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return signature.function(**dict(zip(signature.inputs, tensors, strict=True)))

    specs = [spec.tensor_spec(key) for key, spec in signature.inputs.items()]
    function = tf.function(by_position, input_signature=specs, autograph=False)
    concrete = function.get_concrete_function()
    _check_outputs(name, signature, concrete.structured_outputs)
    _check_captures(name, concrete)
    _check_purity(name, concrete)
    return Traced(signature, function, concrete)


def _check_outputs(name: str, signature: Signature, outputs: Any) -> None:
    if not isinstance(outputs, Mapping) or not all(tf.is_tensor(value) for value in outputs.values()):
        raise ExportError(f"Signature {name!r} must return a flat dict of tensors. Received: {type(outputs).__name__}")
    shared = sorted(set(signature.inputs) & set(outputs))
    if shared:
        raise ExportError(f"Signature {name!r}: an input and an output share a name. Received: {shared}")
    if set(outputs) != set(signature.outputs):
        raise ExportError(
            f"Signature {name!r} declares the outputs {sorted(signature.outputs)}. Received: {sorted(outputs)}"
        )


def _check_captures(name: str, concrete: Any) -> None:
    # A captured tensor is a constant to TensorFlow but becomes an extra input of the graph in ONNX.
    captured = [outer for outer, _ in concrete.graph.captures if outer.dtype not in (tf.resource, tf.variant)]
    if captured:
        raise ExportError(
            f"Signature {name!r} captures tensors made outside of it: make constants from NumPy arrays inside the "
            f"function, or keep them as variables. Received: {[(tuple(t.shape), t.dtype.name) for t in captured]}"
        )


def function_nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of all functions that a `GraphDef` carries, beside its own."""
    for function in operator.attrgetter("library.function")(graph):
        yield from function.node_def


def _check_purity(name: str, concrete: Any) -> None:
    graph = concrete.graph.as_graph_def()
    ops = sorted({node.op for node in (*graph.node, *function_nodes(graph))} - _RANDOM_EXEMPT)
    for pattern, message in (
        (_WRITES, "assigns variables: state must go in and out as inputs and outputs"),
        (_RANDOM, "draws random numbers: noise must be an input"),
        (_PYTHON, "calls Python, which no exported file can"),
    ):
        found = [op for op in ops if pattern.match(op)]
        if found:
            raise ExportError(f"Signature {name!r} {message}. Received: {found}")


# === Plain Keras models ===


def model_signatures(model: keras.Model, signatures: Mapping[str, Signature] | None = None) -> dict[str, Signature]:
    """Returns the signatures of any Keras model.

    Args:
        model: a `zoo.model.ZooModel`, which says them, or any built Keras model, whose call becomes `predict`.
        signatures: dict from name to `zoo.model.Signature`, or None. Replaces the model's own.

    Raises:
        TypeError: if `model` is no Keras model.
        ExportError: if the model is not built, or its inputs cannot be found out.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a Keras model. Received: {type(model).__name__}")
    if hasattr(model, "build_from_signature"):
        model.build_from_signature()
    if not model.built:
        raise ExportError(f"The model has no weights yet: call it once on data. Received: {model.name}")
    if signatures is not None:
        return dict(signatures)
    if hasattr(model, "signatures"):
        return model.signatures()
    return {"predict": _predict(model)}


def _predict(model: keras.Model) -> Signature:
    inputs, structure = _call_inputs(model)

    def call(**tensors: tf.Tensor) -> Any:
        return (
            model(_pack(structure, tensors), training=False)
            if _takes_training(model)
            else model(_pack(structure, tensors))
        )

    specs = {name: spec.tensor_spec(name) for name, spec in inputs.items()}
    outputs = tf.function(lambda **tensors: call(**tensors), autograph=False).get_concrete_function(**specs)
    names = _output_names(model, outputs.structured_outputs, set(inputs))

    def predict(**tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, keras.tree.flatten(call(**tensors)), strict=True))

    sizes = {size: EXAMPLE_SIZE for spec in inputs.values() for size in spec.shape if isinstance(size, str)}
    sizes.pop("batch", None)
    return Signature(predict, inputs, dict.fromkeys(names, "Output of the model's call."), sizes)


def _takes_training(model: keras.Model) -> bool:
    parameters = inspect.signature(model.call).parameters
    return "training" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _call_inputs(model: keras.Model) -> tuple[dict[str, Spec], Any]:
    """Returns the specs by name, and the structure of the call's argument with names as leaves."""
    if isinstance(model, keras.Sequential):
        tensors: Any = model.inputs[0]
    elif getattr(model, "_inputs_struct", None) is not None:
        tensors = (
            model._inputs_struct
        )  # of a functional model; the public `inputs` is flat, and loses the keys of dicts
    else:
        tensors = _built_tensors(model)
    specs: dict[str, Spec] = {}
    structure = _name_leaves(tensors, "", specs)
    return specs, structure


def _built_tensors(model: keras.Model) -> Any:
    required = [
        parameter
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    shape = (model.get_build_config() or {}).get("input_shape")
    if len(required) != 1 or shape is None:
        raise ExportError(
            f"The inputs of {type(model).__name__} cannot be found out from its call: pass `signatures=`. "
            f"Received: {len(required)} required arguments, input shape {shape}"
        )

    def tensor(dimensions: Any) -> Any:
        if isinstance(dimensions, Mapping):
            return {key: tensor(value) for key, value in dimensions.items()}
        if any(not isinstance(size, int | None) for size in dimensions):
            return [tensor(value) for value in dimensions]
        return keras.KerasTensor((None, *dimensions[1:]), dtype=model.input_dtype, name="inputs")

    return tensor(shape)


def _name_leaves(tensors: Any, key: str, specs: dict[str, Spec]) -> Any:
    if isinstance(tensors, Mapping):
        return {name: _name_leaves(value, str(name), specs) for name, value in tensors.items()}
    if isinstance(tensors, list | tuple):
        return [_name_leaves(value, "", specs) for value in tensors]
    # Keras numbers the tensors that nobody named.
    name = key or ("inputs" if tensors.name.startswith("keras_tensor") else tensors.name)
    name = _unique(_identifier(name), specs)
    shape = [f"{name}_{axis}" if size is None else size for axis, size in enumerate(tensors.shape)]
    if tensors.shape[0] is None:
        shape[0] = "batch"
    specs[name] = Spec(tuple(shape), tensors.dtype, "Input of the model's call.")
    return name


def _pack(structure: Any, tensors: Mapping[str, tf.Tensor]) -> Any:
    return keras.tree.map_structure(lambda name: tensors[name], structure)


def _output_names(model: keras.Model, outputs: Any, taken: set[str]) -> list[str]:
    """Returns a name for each output in the order of `keras.tree.flatten`."""
    known = getattr(model, "output_names", None) or []
    if isinstance(model, keras.Sequential):
        known = [model.layers[-1].name]
    names: dict[str, None] = {}
    for position, key in enumerate(_paths(outputs)):
        fallback = known[position] if position < len(known) else f"output_{position}" if position else "output"
        name = _identifier(key if key and not key.isdecimal() else fallback)
        names[_unique(f"{name}_out" if name in taken else name, names)] = None
    return list(names)


def _paths(structure: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(structure, Mapping):
        for key in sorted(structure):
            yield from _paths(structure[key], f"{prefix}_{key}" if prefix else str(key))
    elif isinstance(structure, list | tuple):
        for position, value in enumerate(structure):
            yield from _paths(value, f"{prefix}_{position}" if prefix else str(position))
    else:
        yield prefix


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned.isidentifier() else f"_{cleaned}"


def _unique(name: str, taken: Any) -> str:
    number, candidate = 1, name
    while candidate in taken:
        number, candidate = number + 1, f"{name}_{number + 1}"
    return candidate
