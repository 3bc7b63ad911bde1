"""Any Keras 3 model with transformed weights and observed activations: what all compression is made of.

While a `CompressedModel` runs, every weight its stages select reads as `stage(weight)`: `keras.StatelessScope` puts the
transformed tensor in the place of the variable, so that no layer needs to know, whatever its class. Gradients flow
through the transformation to the weight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.model import Arrays, Signature, TaskMetric, ZooModel

_NO_KERNELS = ("bias", "gamma", "beta", "alpha")


@dataclasses.dataclass(frozen=True)
class Target:
    """A trainable variable, which stages may transform.

    Args:
        variable: `keras.Variable`.
        path: str. Where it lies, such as `"resnet/conv2d_1/kernel"`.
        layer: `keras.layers.Layer` that owns it.
        kind: `"kernel"` (kernels, embeddings and all else of two dimensions or more), `"bias"`, or `"other"`
            (normalisation, slopes).
        channel_axes: tuple of int. Axes along which each index is an output channel; empty where there are none.
    """

    variable: keras.Variable
    path: str
    layer: keras.layers.Layer
    kind: str
    channel_axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the variable."""
        return tuple(self.variable.shape)


@dataclasses.dataclass(frozen=True)
class Point:
    """An operation whose output stages may transform: a layer, or an operation of a functional graph such as `+`.

    Args:
        operation: `keras.Operation`.
        path: str. Where it lies in the model.
        fused: bool. Whether runtimes compute it in one piece with what follows (convolution, batch normalisation and
            ReLU), so that its own output never exists.
    """

    operation: keras.Operation
    path: str
    fused: bool


class Stage(keras.layers.Layer):
    """One way of compressing: transforms weights, and perhaps activations, while the model runs.

    A stage is a layer, so that its state is trained, saved and loaded with the model. Subclasses override what they
    need.
    """

    # Stages apply in this order: masks, then shared values, then grids.
    order = 0

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the stage's variables for a model; called once.

        Args:
            targets: trainable variables of the model.
            points: operations of the model.
        """

    def transforms(self, target: Target) -> bool:
        """Whether `transform` must be called for a variable."""
        return False

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Returns what `target` reads as.

        Args:
            target: `Target`.
            value: float tensor: the variable, as earlier stages left it.
            training: bool.
        """
        return value

    def observes(self, point: Point) -> bool:
        """Whether `observe` must be called for an operation."""
        return False

    def observe(self, point: Point, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Returns what the output of an operation becomes."""
        return value

    def before_step(self) -> None:
        """Called inside each training step before the forward pass."""

    def after_step(self) -> None:
        """Called inside each training step after the update of the weights."""

    def check_calibrated(self) -> None:
        """Raises ValueError where the stage needs data that it has not seen."""

    def penalty(self) -> tf.Tensor | None:
        """Returns a term of the training loss, or None."""
        return None

    def product_bits(self, target: Target) -> tuple[int | None, int | None]:
        """Returns the bits of a kernel and of what it is multiplied with; None for what the stage leaves as it is."""
        return None, None

    def deployment(self) -> contextlib.AbstractContextManager | None:
        """Returns the context of every exported graph, where `observe` belongs into all of them; else None."""
        return None


@keras.saving.register_keras_serializable(package="zoo")
class CompressedModel(ZooModel):
    """A model that runs with the transformations of some stages. Trains, saves, loads and exports like any other.

    The wrapped model is not copied: training this one trains it.

    Args:
        model: built `keras.Model`: functional, subclassed or of the catalog.
        stages: sequence of `Stage`, in the order of their kinds.

    Raises:
        ValueError: for a model that is not built, that trains by a step of its own, that Keras has quantised, or that has no
            weights to compress.
    """

    def __init__(self, model: keras.Model, stages: Sequence[Stage], /, **kwargs: Any) -> None:
        check_model(model)
        super().__init__(**{"name": f"compressed_{model.name}", **kwargs})
        self.model = model
        self.stages = list(stages)
        self._runtime = _Runtime(find_targets(model), find_points(model))
        for stage in self.stages:
            stage.attach(self.targets, self.points)
            stage.built = True
        for point in self.points:
            hook(point.operation)
        self.built = True

    @property
    def targets(self) -> list[Target]:
        """The trainable variables of the wrapped model."""
        return self._runtime.targets

    @property
    def transformed_targets(self) -> list[Target]:
        """The variables that some stage transforms."""
        return [t for t in self.targets if any(stage.transforms(t) for stage in self.stages)]

    @property
    def points(self) -> list[Point]:
        """The operations of the wrapped model."""
        return self._runtime.points

    def stage(self, kind: type[Stage]) -> Stage | None:
        """Returns the stage of a kind, or None."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    # === Running ===

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the wrapped model is built."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Runs the wrapped model with its transformed weights."""
        takes_training = getattr(self.model, "_call_has_training_arg", True)
        with self.applied(bool(training)):
            return self.model(inputs, training=training) if takes_training else self.model(inputs)

    @contextlib.contextmanager
    def applied(self, training: bool = False) -> Iterator[keras.StatelessScope]:
        """Within this context, the wrapped model and all of its layers run compressed.

        Args:
            training: bool. Whether stages may update their state.

        Yields:
            What weights read as, a `keras.StatelessScope`.
        """
        values = [(t.variable, self.transformed(t, training)) for t in self.transformed_targets]
        with _substituted(values) as scope, _observing(self, training):
            yield scope
        _keep_updates(self.model.variables, values, scope)
        for loss in scope.losses:
            self.add_loss(loss)

    def transformed(self, target: Target, training: bool = False) -> tf.Tensor:
        """Returns a weight as all stages make it."""
        value = tf.convert_to_tensor(target.variable.value)
        for stage in self.stages:
            if stage.transforms(target):
                value = stage.transform(target, value, training)
        return value

    def calling(self, operation: keras.Operation) -> contextlib.AbstractContextManager:
        """Returns the context of one call of an operation."""
        return contextlib.nullcontext()

    def observed(self, operation: keras.Operation, value: Any, training: bool) -> Any:
        """Returns the output of an operation as all stages make it."""
        point = self._runtime.point_of.get(id(operation))
        if point is None:
            return value
        for stage in self.stages:
            if stage.observes(point):
                value = keras.tree.map_structure(lambda x, stage=stage: _observe(stage, point, x, training), value)
        return value

    # === Training ===

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step of `fit`: the stages' bookkeeping around Keras's own."""
        for stage in self.stages:
            stage.before_step()
        logs = super().train_step(data)
        for stage in self.stages:
            stage.after_step()
        return logs

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the penalties of the stages to the loss, which a wrapped model may define."""
        if overrides(self.model, "compute_loss"):
            loss = self.model.compute_loss(*args, **kwargs)
            loss = loss + sum(self.losses)
        else:
            loss = super().compute_loss(*args, **kwargs)
        penalties = [stage.penalty() for stage in self.stages]
        return loss + sum(penalty for penalty in penalties if penalty is not None)

    # === Deployment ===

    @property
    def metadata(self) -> Any:
        """The record of the wrapped model's checkpoint."""
        return getattr(self.model, "metadata", None)

    @property
    def assets(self) -> dict[str, bytes]:
        """Files of the wrapped model, such as its tokenizer."""
        return getattr(self.model, "assets", {})

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Gives the wrapped model its files back."""
        if assets:
            self.model.set_assets(assets)

    def save_to_preset(self, directory: str | Path, **kwargs: Any) -> Path:
        """Refuses: a preset holds a plain model."""
        raise ValueError(
            f"A compressed model is saved by `save` to a `.keras` file; strip it first for a preset. "
            f"Received: directory={str(directory)!r}"
        )

    def signatures(self) -> dict[str, Signature]:
        """Returns the wrapped model's signatures with the final weights; activations in float where stages allow it."""
        return self._signatures(self._deployed)

    def learned_signatures(self) -> dict[str, Signature] | None:
        """Returns the signatures with activations rounded as in training; None where they differ from `signatures` in
        nothing, since no stage rounds any, or all graphs do.
        """
        if any(stage.deployment() is not None for stage in self.stages):
            return None
        if not any(stage.observes(point) for stage in self.stages for point in self.points):
            return None
        for stage in self.stages:
            stage.check_calibrated()
        return self._signatures(lambda: _observing(self, training=False))

    @contextlib.contextmanager
    def _deployed(self) -> Iterator[None]:
        contexts = [each for each in (stage.deployment() for stage in self.stages) if each is not None]
        with contextlib.ExitStack() as stack:
            for each in contexts:
                stack.enter_context(each)
            if contexts:
                stack.enter_context(_observing(self, training=False))
            yield

    def _signatures(self, context: Callable[[], contextlib.AbstractContextManager]) -> dict[str, Signature]:
        from zoo.export.signatures import model_signatures

        return self._compressed(model_signatures(self.model), context)

    def _compressed(
        self, signatures: Mapping[str, Signature], context: Callable[[], contextlib.AbstractContextManager]
    ) -> dict[str, Signature]:
        """Returns signatures of the wrapped model with the final weights, run in a context."""
        # Variables, since a constant would be stored once per signature
        final = [(t.variable, tf.Variable(self.transformed(t), trainable=False)) for t in self.transformed_targets]

        def compressed(function: Callable[..., dict[str, tf.Tensor]]) -> Callable[..., dict[str, tf.Tensor]]:
            def run(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
                values = [(variable, tf.convert_to_tensor(value)) for variable, value in final]
                with _substituted(values), context():
                    return function(**inputs)

            return run

        return {
            name: dataclasses.replace(signature, function=compressed(signature.function))
            for name, signature in signatures.items()
        }

    def task_metric(self) -> TaskMetric | None:
        """Returns the wrapped model's metric."""
        return self.model.task_metric() if hasattr(self.model, "task_metric") else None

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields the wrapped model's real inputs."""
        return self.model.real_inputs(signature, batch_size) if hasattr(self.model, "real_inputs") else ()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "stages": [keras.saving.serialize_keras_object(stage) for stage in self.stages],
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedModel:
        """Rebuilds the wrapped model and the stages."""
        model = keras.saving.deserialize_keras_object(config["model"])
        stages = [keras.saving.deserialize_keras_object(stage) for stage in config["stages"]]
        return cls(model, stages, name=config["name"])


def with_stage(model: keras.Model, stage: Stage) -> CompressedModel:
    """Adds a stage to a model, compressed already or not.

    Raises:
        ValueError: if the model has this stage, or one that must come after it.
    """
    stages = list(model.stages) if isinstance(model, CompressedModel) else []
    for other in stages:
        if other.order >= stage.order:
            raise ValueError(
                f"The model already has the stage {type(other).__name__}; {type(stage).__name__} must come before it and "
                f"at most once. Strip the model, or compress in the order prune, cluster, quantise. "
                f"Received: stages={[type(each).__name__ for each in stages]}"
            )
    inner = model.model if isinstance(model, CompressedModel) else model
    if not stages:
        return CompressedModel(inner, [stage])
    compressed = CompressedModel(inner, [])
    # Earlier stages keep their state: they are moved, not attached anew
    compressed.stages = [*stages, stage]
    stage.attach([_seen(model, target) for target in model.targets], compressed.points)
    stage.built = True
    return compressed


def strip(model: CompressedModel) -> keras.Model:
    """Ends a compression: writes the final weights into the wrapped model and returns it, a plain model again.

    Args:
        model: `CompressedModel`, trained.

    Raises:
        ValueError: for any other model.
    """
    if not isinstance(model, CompressedModel):
        raise ValueError(f"`model` must be a CompressedModel. Received: {type(model).__name__}")
    for target in model.transformed_targets:
        target.variable.assign(model.transformed(target))
    return model.model


class _Runtime:
    """What a compressed model knows of the wrapped one; an object of its own, so that Keras does not track it."""

    def __init__(self, targets: list[Target], points: list[Point]) -> None:
        self.targets = targets
        self.points = points
        self.point_of = {id(point.operation): point for point in points}


@dataclasses.dataclass(frozen=True)
class _Seen(Target):
    """A target with the value that earlier stages give it."""

    value: tf.Tensor | None = None


def _seen(model: CompressedModel, target: Target) -> Target:
    fields = {field.name: getattr(target, field.name) for field in dataclasses.fields(target)}
    return _Seen(**fields, value=model.transformed(target))


def current_value(target: Target) -> tf.Tensor:
    """Returns the value of a target when a stage is attached, as earlier stages give it."""
    value = getattr(target, "value", None)
    return tf.convert_to_tensor(target.variable.value) if value is None else value


class Bound:
    """Maps targets or points to state, by identity. No dict, which Keras would track, and cannot with such keys."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Any, Any]] = {}

    def __setitem__(self, key: Target | Point, value: Any) -> None:
        self._entries[_identity(key)] = (key, value)

    def __getitem__(self, key: Target | Point) -> Any:
        return self._entries[_identity(key)][1]

    def __contains__(self, key: Target | Point) -> bool:
        return _identity(key) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[Any, Any]]:
        """Returns all keys with their state."""
        return list(self._entries.values())


def _identity(key: Target | Point) -> int:
    return id(key.variable if isinstance(key, Target) else key.operation)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuses what is no choice.

    Raises:
        ValueError: naming the argument, the choices and what was received.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}. Received: {name}={value!r}")


# === What of a model can be compressed ===


def find_targets(model: keras.Model) -> list[Target]:
    """Returns the trainable variables of a model, each with the layer that owns it.

    Raises:
        ValueError: if there is no kernel among them.
    """
    targets, seen = [], set()
    for layer in model._flatten_layers():
        for variable in layer._trainable_variables:
            if id(variable) not in seen and "float" in variable.dtype:
                seen.add(id(variable))
                axes = channel_axes(layer, variable)
                targets.append(Target(variable, variable.path, layer, _kind(variable), axes))
    if not any(target.kind == "kernel" for target in targets):
        raise ValueError(
            f"`model` must have kernels or embeddings to compress (trainable Keras variables of two dimensions or more; "
            f"raw tf.Variables cannot be compressed). Received: {model.name!r} with {len(model.weights)} weights"
        )
    return targets


def _kind(variable: keras.Variable) -> str:
    if not any(word in variable.name for word in _NO_KERNELS) and sum(size > 1 for size in variable.shape) >= 2:
        return "kernel"
    return "bias" if variable.name.endswith("bias") else "other"


def is_weight(target: Target) -> bool:
    """Whether a variable is a kernel or a bias, unlike the scales of a normalisation and the slopes of activations."""
    return target.kind in ("kernel", "bias") or target.variable.name.endswith("kernel")


def channel_axes(layer: keras.layers.Layer, variable: keras.Variable) -> tuple[int, ...]:
    """Returns the axes of a kernel along which each index is an output channel; empty where that is not known."""
    layers, rank = keras.layers, len(variable.shape)
    if isinstance(layer, layers.DepthwiseConv1D | layers.DepthwiseConv2D) or variable.name == "depthwise_kernel":
        return (rank - 2, rank - 1)
    if isinstance(layer, layers.Conv1DTranspose | layers.Conv2DTranspose | layers.Conv3DTranspose):
        return (rank - 2,)
    if isinstance(layer, layers.EinsumDense):
        kernel, output = re.match(r".*,(.*)->(.*)", layer.equation.replace(" ", "")).groups()
        return tuple(axis for axis, letter in enumerate(kernel) if letter in output)
    return (rank - 1,) if variable.name.endswith("kernel") else ()


def find_points(model: keras.Model) -> list[Point]:
    """Returns the innermost operations of a model, with what runtimes fuse."""
    operations = dict(_operations(model, ""))
    fused = _fused(model) if isinstance(model, keras.Model) else set()
    return [Point(operation, path, id(operation) in fused) for path, operation in operations.items()]


def _operations(operation: Any, path: str) -> Iterator[tuple[str, keras.Operation]]:
    """Yields path and operation of the leaves below an operation, itself included where it is one."""
    children = _children(operation)
    for child in children:
        yield from _operations(child, f"{path}/{child.name}".strip("/"))
    if not children:
        yield path, operation


def _children(operation: Any) -> list[Any]:
    graph = getattr(operation, "operations", None)  # of functional models, Sequential included once built
    if isinstance(operation, keras.Sequential):
        graph = operation.layers
    if graph:
        return [child for child in graph if not isinstance(child, keras.layers.InputLayer)]
    return list(getattr(operation, "_layers", []))


def _fused(model: keras.Model) -> set[int]:
    """Returns the ids of operations that runtimes fuse with their only consumer."""
    consumers: dict[int, list[Any]] = {}
    graph = getattr(model, "operations", None) or []
    for operation in graph:
        for node in operation._inbound_nodes:
            for tensor in node.input_tensors:
                producer = tensor._keras_history.operation
                consumers.setdefault(id(producer), []).append(operation)
    fused = set()
    for operation in graph:
        following = consumers.get(id(operation), [])
        if len(following) == 1 and _fuses(operation, following[0]):
            fused.add(id(operation))
    return fused


def _fuses(operation: Any, following: Any) -> bool:
    layers = keras.layers
    activation = getattr(following, "activation", None)
    is_relu = isinstance(following, layers.ReLU) or (
        isinstance(following, layers.Activation) and activation is keras.activations.relu
    )
    is_linear = hasattr(operation, "kernel") and getattr(operation, "activation", None) is keras.activations.linear
    if is_linear:
        return is_relu or isinstance(following, layers.BatchNormalization)
    sums = isinstance(operation, layers.Add) or type(operation).__name__ == "Add"
    return is_relu and (sums or isinstance(operation, layers.BatchNormalization))


def check_model(model: keras.Model) -> None:
    """Refuses what cannot be compressed.

    Raises:
        ValueError: see `CompressedModel`.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {type(model).__name__}")
    if isinstance(model, CompressedModel):
        raise ValueError("`model` is compressed already: strip it first. Received: a CompressedModel")
    if not model.built:
        raise ValueError(f"`model` has no weights yet: call it once on data. Received: {model.name!r}")
    quantized = [layer.name for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]
    if quantized:
        raise ValueError(
            f"`model` has layers whose weights Keras has made integers, which do not train: compress the float model. "
            f"Received: layers {quantized}"
        )
    if overrides(model, "train_step"):
        raise ValueError(
            f"`model` trains by a `train_step` of its own, which would pass the compression by; move its loss to `call` "
            f"(`add_loss`) or `compute_loss`. Received: {type(model).__name__}"
        )


def overrides(model: keras.Model, method: str) -> bool:
    """Whether a model's class has a method of its own in place of Keras's."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


# === Substitution ===


@contextlib.contextmanager
def _substituted(values: Sequence[tuple[keras.Variable, tf.Tensor]]) -> Iterator[keras.StatelessScope]:
    with keras.StatelessScope(values, collect_losses=True, initialize_variables=False) as scope:
        yield scope


def _keep_updates(
    variables: Sequence[keras.Variable],
    values: Sequence[tuple[keras.Variable, tf.Tensor]],
    scope: keras.StatelessScope,
) -> None:
    """Writes what changed inside a scope (moving averages, seeds) into the variables."""
    substituted = {id(variable) for variable, _ in values}
    for variable in variables:
        value = scope.state_mapping.get(id(variable))
        if value is not None and id(variable) not in substituted:
            variable.assign(value)


_active = threading.local()


@contextlib.contextmanager
def _observing(model: CompressedModel, training: bool) -> Iterator[None]:
    outer = getattr(_active, "model", None)
    _active.model = (model, training)
    try:
        yield
    finally:
        _active.model = outer


def hook(operation: keras.Operation) -> None:
    """Lets compressed models see the calls of an operation; does nothing while none of them runs."""
    if getattr(operation, "_zoo_observed", False):
        return
    original = operation.call

    def call(*args: Any, **kwargs: Any) -> Any:
        active = getattr(_active, "model", None)
        if active is None:
            return original(*args, **kwargs)
        model, training = active
        with model.calling(operation):
            output = original(*args, **kwargs)
        return model.observed(operation, output, training)

    # Past Keras's own `__setattr__`, which would track the function
    object.__setattr__(operation, "call", call)
    object.__setattr__(operation, "_zoo_observed", True)


def _observe(stage: Stage, point: Point, value: Any, training: bool) -> Any:
    is_float = isinstance(value, tf.Tensor) and value.dtype.is_floating
    return stage.observe(point, value, training) if is_float else value


def select(patterns: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Returns the value of the first pattern that a path matches.

    Args:
        patterns: mapping from `fnmatch` pattern to value.
        path: str.
        default: value where no pattern matches.
    """
    import fnmatch

    return next((value for pattern, value in patterns.items() if fnmatch.fnmatch(path, pattern)), default)


def sparsity(model: keras.Model) -> dict[str, float]:
    """Returns the share of zeros of every kernel, as the model runs with it, by path."""
    targets = model.targets if isinstance(model, CompressedModel) else find_targets(model)
    final = model.transformed if isinstance(model, CompressedModel) else current_value
    kernels = [target for target in targets if target.kind == "kernel"]
    return {target.path: float(np.mean(final(target).numpy() == 0)) for target in kernels}
