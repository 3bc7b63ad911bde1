"""TensorFlow Model Optimization on Keras 3: its pruning, clustering and quantisers as stages of a `CompressedModel`.

TensorFlow Model Optimization accepts legacy Keras models only, but its algorithms work on plain tensors and variables.
Here they get Keras 3 variables: `_Host` is what its quantisers see as a layer.
"""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.compressed import (
    Bound,
    CompressedModel,
    Point,
    Stage,
    Target,
    check_choice,
    current_value,
    select,
    with_stage,
)

PATTERNS = ("unstructured", "2x4", "channel")
SCHEDULES = ("constant", "polynomial")
INITIALIZATIONS = ("kmeans++", "linear", "density", "random")
_ALL_STEPS = -1
_ROOT = "tensorflow_model_optimization.python.core."


def _tfmot(module: str) -> ModuleType:
    """Imports a module of TensorFlow Model Optimization.

    Raises:
        ImportError: if it is not installed, naming the extra.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    # It switches the whole process to legacy Keras; `tf.keras` stays what it is once it has been looked at
    _ = tf.keras.layers
    try:
        return importlib.import_module(_ROOT + module)
    except ImportError as error:
        raise ImportError('This needs TensorFlow Model Optimization: pip install "method-zoo[compression]"') from error
    finally:
        if legacy is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = legacy


# === Pruning ===


@keras.saving.register_keras_serializable(package="zoo")
class PruningStage(Stage):
    """Keeps the largest weights of each kernel; the rest is zero, from step to step more of it.

    Args:
        sparsity: float in [0, 1). Final share of zeros; 0.5 for the pattern `"2x4"`.
        schedule: `"constant"` or `"polynomial"` (cubic, from no zeros at all).
        begin_step: int. First training step with zeros.
        end_step: int. Step of the final sparsity (polynomial).
        frequency: int. Steps between two choices of the zeros.
        pattern: `"unstructured"`, `"2x4"` (two zeros in any four neighbours along the input channels) or `"channel"`
            (whole output channels).
        weights: sequence of patterns of weight paths, or None for all kernels.

    Reference:
        Zhu and Gupta 2017, "To prune, or not to prune", section 3.
    """

    order = 1

    def __init__(
        self,
        sparsity: float,
        schedule: str = "constant",
        begin_step: int = 0,
        end_step: int = 0,
        frequency: int = 100,
        pattern: str = "unstructured",
        weights: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("schedule", schedule, SCHEDULES)
        check_choice("pattern", pattern, PATTERNS)
        if not 0 <= sparsity < 1:
            raise ValueError(f"`sparsity` must be in [0, 1). Received: sparsity={sparsity!r}")
        if pattern == "2x4" and sparsity != 0.5:
            raise ValueError(f"`sparsity` must be 0.5 for the pattern '2x4'. Received: sparsity={sparsity!r}")
        if schedule == "polynomial" and not 0 <= begin_step < end_step:
            raise ValueError(
                f"`end_step` must be after `begin_step` for the polynomial schedule. "
                f"Received: begin_step={begin_step!r}, end_step={end_step!r}"
            )
        if frequency < 1:
            raise ValueError(f"`frequency` must be at least 1. Received: frequency={frequency!r}")
        self.sparsity, self.schedule, self.pattern = sparsity, schedule, pattern
        self.begin_step, self.end_step, self.frequency = begin_step, end_step, frequency
        self.weight_patterns = None if weights is None else list(weights)
        self._masks = Bound()

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the masks; a constant schedule from step 0 applies at once."""
        _check_patterns(self.weight_patterns, targets)
        self.step = self.add_weight(name="step", shape=(), dtype="int64", initializer="zeros", trainable=False)
        for target in targets:
            if _chosen(self.weight_patterns, target):
                _check_prunable(target, self.pattern)
                self._masks[target] = self.add_weight(
                    name=f"mask_{len(self._masks)}", shape=target.shape, initializer="ones", trainable=False
                )
        if self.begin_step == 0 and self.schedule == "constant":
            self._update_masks()

    def transforms(self, target: Target) -> bool:
        """Whether a variable is masked."""
        return target in self._masks

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Masks a weight."""
        return value * tf.cast(self._masks[target].value, value.dtype)

    def before_step(self) -> None:
        """Chooses the zeros anew where the schedule says so."""
        should_prune, _ = self._schedule()(self.step.value)
        tf.cond(should_prune, self._update_masks, tf.no_op)

    def after_step(self) -> None:
        """Sets masked weights to zero, so that they cannot return by their old size."""
        for target, mask in self._masks.items():
            target.variable.assign(target.variable.value * tf.cast(mask.value, target.variable.dtype))
        self.step.assign(self.step.value + 1)

    def _update_masks(self) -> tf.Operation | None:
        for target, mask in self._masks.items():
            mask.assign(self._mask(target))
        return tf.no_op() if not tf.executing_eagerly() else None

    def _mask(self, target: Target) -> tf.Tensor:
        weights = tf.cast(target.variable.value, "float32")
        if self.sparsity == 0:
            return tf.ones_like(weights)
        two_of_four = (2, 4) if self.pattern == "2x4" else None
        pruning = _tfmot("sparsity.keras.pruning_impl").Pruning(
            lambda: self.step.value, [], self._schedule(), (1, 1), "AVG", two_of_four
        )
        if self.pattern == "channel":
            sizes = tf.reduce_mean(tf.abs(weights), axis=list(range(len(target.shape) - 1)))
            return tf.broadcast_to(pruning._update_mask(sizes)[1], target.shape)
        return tf.reshape(pruning._maybe_update_block_mask(weights)[1], target.shape)

    def _schedule(self) -> Any:
        schedules = _tfmot("sparsity.keras.pruning_schedule")
        if self.schedule == "constant":
            return schedules.ConstantSparsity(self.sparsity, self.begin_step, _ALL_STEPS, self.frequency)
        return schedules.PolynomialDecay(0.0, self.sparsity, self.begin_step, self.end_step, frequency=self.frequency)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "sparsity": self.sparsity,
            "schedule": self.schedule,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
            "pattern": self.pattern,
            "weights": self.weight_patterns,
        }


def _check_prunable(target: Target, pattern: str) -> None:
    """Refuses kernels that a pattern is not defined for."""
    problem = None
    if pattern == "channel" and target.channel_axes != (len(target.shape) - 1,):
        problem = "has no output channels along its last axis"
    if pattern == "2x4" and (len(target.shape) not in (2, 4) or target.shape[-2] % 4):
        problem = "must have two or four dimensions and a multiple of 4 input channels"
    if problem:
        raise ValueError(
            f"The pattern {pattern!r} does not fit {target.path!r} of {type(target.layer).__name__}, which {problem}: "
            f"leave it out by `weights=`, or prune it 'unstructured'. Received: shape={target.shape}"
        )


# === Clustering ===


@keras.saving.register_keras_serializable(package="zoo")
class ClusteringStage(Stage):
    """Lets all elements of a kernel share a few values, which train.

    Args:
        clusters: int, 2 or more. Values per kernel, zero included where an earlier stage prunes.
        initialization: `"kmeans++"`, `"linear"`, `"density"` or `"random"`.
        weights: sequence of patterns of weight paths, or None for all kernels with more elements than clusters.

    Reference:
        Han et al. 2016, "Deep Compression", section 3.
    """

    order = 2

    def __init__(
        self, clusters: int, initialization: str = "kmeans++", weights: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_choice("initialization", initialization, INITIALIZATIONS)
        if isinstance(clusters, bool) or not isinstance(clusters, int) or clusters < 2:
            raise ValueError(f"`clusters` must be an integer of 2 or more. Received: clusters={clusters!r}")
        self.clusters, self.initialization = clusters, initialization
        self.weight_patterns = None if weights is None else list(weights)
        self._centroids = Bound()

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the shared values."""
        _check_patterns(self.weight_patterns, targets)
        for target in targets:
            if _chosen(self.weight_patterns, target) and math.prod(target.shape) > self.clusters:
                values = self._initial(current_value(target))
                self._centroids[target] = self.add_weight(
                    name=f"centroids_{len(self._centroids)}",
                    shape=values.shape,
                    initializer=keras.initializers.Constant(0.0),
                    autocast=False,
                )
                self._centroids[target].assign(values)

    def _initial(self, weights: tf.Tensor) -> np.ndarray:
        centroids = _tfmot("clustering.keras.clustering_centroids")
        kinds = _tfmot("clustering.keras.cluster_config").CentroidInitialization
        kind = {
            "kmeans++": kinds.KMEANS_PLUS_PLUS,
            "linear": kinds.LINEAR,
            "density": kinds.DENSITY_BASED,
            "random": kinds.RANDOM,
        }[self.initialization]
        is_sparse = bool(tf.reduce_any(weights == 0))
        initializer = centroids.CentroidsInitializerFactory.get_centroid_initializer(kind)
        found = initializer(tf.cast(weights, "float32"), self.clusters, False, "channels_last", is_sparse)
        return np.asarray(found.get_cluster_centroids(), "float32").ravel()

    def transforms(self, target: Target) -> bool:
        """Whether a variable shares values."""
        return target in self._centroids

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Rounds a weight to the nearest shared value; zeros of earlier stages stay."""
        aggregation = _tfmot("clustering.keras.cluster_config").GradientAggregation.AVG
        # The algorithm takes the variable, not a tensor
        algorithm = _tfmot("clustering.keras.clustering_algorithm").ClusteringAlgorithm(
            self._centroids[target].value, aggregation
        )
        shared = algorithm.get_clustered_weight(algorithm.get_pulling_indices(value), value)
        return shared * tf.cast(value != 0, value.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "clusters": self.clusters,
            "initialization": self.initialization,
            "weights": self.weight_patterns,
        }


# === Quantisation ===


@keras.saving.register_keras_serializable(package="zoo")
class QuantizationStage(Stage):
    """Rounds weights, and the outputs of operations, to the grid that integers will have.

    Weights: symmetric, one range per output channel (or block), from their present values. Outputs: one range each, a
    moving average of what training sees, as runtimes need it. A `Point` that runtimes fuse with the next is left alone.

    Args:
        bits: int from 2 to 8, or mapping from patterns of weight paths to bits; `None` leaves weights as they are.
        activations: int from 2 to 8, or None. Bits of the outputs.
        block_size: int or None. Input elements that share a range, as int4 artifacts of language models have it; None
            for one range per output channel.
        decay: float in [0, 1). Of the moving averages.

    Reference:
        Jacob et al. 2018, "Quantization and training of neural networks", section 3.
    """

    order = 3

    def __init__(
        self,
        bits: int | Mapping[str, int | None] | None = 8,
        activations: int | None = 8,
        block_size: int | None = None,
        decay: float = 0.99,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bits = dict(bits) if isinstance(bits, Mapping) else bits
        for name, each in [("bits", b) for b in self._patterns().values()] + [("activations", activations)]:
            if each is not None and (isinstance(each, bool) or each not in range(2, 9)):
                raise ValueError(
                    f"`{name}` must be from 2 to 8; a single bit needs a binary network (see real_to_binary). "
                    f"Received: {name}={each!r}"
                )
        if block_size is not None and block_size < 2:
            raise ValueError(f"`block_size` must be 2 or more. Received: block_size={block_size!r}")
        self.activations, self.block_size, self.decay = activations, block_size, decay
        self._ranges = Bound()
        self._output_ranges = Bound()

    def _patterns(self) -> dict[str, int | None]:
        return self.bits if isinstance(self.bits, dict) else {"*": self.bits}

    def weight_bits(self, target: Target) -> int | None:
        """Returns the bits of a variable; None where it stays in float."""
        return select(self._patterns(), target.path) if target.kind == "kernel" else None

    def product_bits(self, target: Target) -> tuple[int | None, int | None]:
        """Returns the bits of a kernel, and of all activations."""
        return self.weight_bits(target), self.activations

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the ranges: of weights from their values, of outputs from -6 to 6 until data is seen."""
        _check_patterns(self._patterns(), targets)
        self.num_updates = self.add_weight(
            name="num_updates", shape=(), initializer="zeros", trainable=False, autocast=False
        )
        for target in targets:
            bits = self.weight_bits(target)
            if bits is not None:
                quantizer = _weight_quantizer(bits, target, self.block_size)
                self._ranges[target] = _Bind(quantizer, self, f"weight_{len(self._ranges)}")
                self._ranges[target](current_value(target), training=True)
        if self.activations is not None:
            for point in points:
                if not point.fused and not _passes_through(point.operation):
                    quantizer = _output_quantizer(self.activations, self._moving_decay)
                    self._output_ranges[point] = _Bind(quantizer, self, f"output_{len(self._output_ranges)}")

    def _moving_decay(self) -> tf.Tensor:
        """Starts as the plain mean of the first batches."""
        return tf.minimum(self.decay, 1.0 - 1.0 / tf.maximum(self.num_updates.value, 1.0))

    def transforms(self, target: Target) -> bool:
        """Whether a variable is rounded."""
        return target in self._ranges

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Rounds a weight. The range is that of the value itself, never one of an earlier step."""
        return self._ranges[target](value, training=True)

    def observes(self, point: Point) -> bool:
        """Whether the output of an operation is rounded."""
        return point in self._output_ranges

    def observe(self, point: Point, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Rounds the output of an operation."""
        return self._output_ranges[point](value, training)

    def before_step(self) -> None:
        """Counts the batches that the ranges of outputs have seen."""
        self.num_updates.assign(self.num_updates.value + 1)

    def weight_ranges(self, model: CompressedModel) -> dict[str, np.ndarray]:
        """Returns the largest absolute value of every range of the weights' grids, by path."""
        for target, _ in self._ranges.items():
            model.transformed(target)
        return {target.path: bind.maximum for target, bind in self._ranges.items()}

    def output_ranges(self) -> dict[str, tuple[float, float]]:
        """Returns the learned ranges of outputs, by path of the operation."""
        return {point.path: bind.range for point, bind in self._output_ranges.items()}

    def check_calibrated(self) -> None:
        """Refuses ranges that no data has set.

        Raises:
            ValueError: before any training or calibration.
        """
        if len(self._output_ranges) and not float(self.num_updates.value):
            raise ValueError(
                "The outputs have no ranges yet: fit the model or `calibrate` it. Received: 0 batches seen"
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "activations": self.activations,
            "block_size": self.block_size,
            "decay": self.decay,
        }


class _Host:
    """What a quantiser of TensorFlow Model Optimization takes for its layer: creates its variables on a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def add_weight(self, name: str, initializer: Any, trainable: bool, shape: Any = None) -> Any:
        """Creates a variable from the arguments of legacy Keras."""
        shape = () if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        value = keras.initializers.Constant(initializer.value)
        return self.stage.add_weight(name=name, shape=shape, initializer=value, trainable=trainable, autocast=False)


class _Bind:
    """A quantiser with its variables."""

    def __init__(self, quantizer: Any, stage: Stage, name: str) -> None:
        self.quantizer = quantizer
        self.variables = quantizer.build(None, name, _Host(stage))

    def __call__(self, value: tf.Tensor, training: bool) -> tf.Tensor:
        # The quantisers assign to plain TensorFlow variables
        variables = {name: variable.value for name, variable in self.variables.items()}
        rounded = self.quantizer(tf.cast(value, "float32"), training, variables)
        return tf.cast(rounded, value.dtype)

    @property
    def maximum(self) -> np.ndarray:
        return keras.ops.convert_to_numpy(self.variables["max_var"])

    @property
    def range(self) -> tuple[float, float]:
        return tuple(float(keras.ops.convert_to_numpy(self.variables[name])) for name in ("min_var", "max_var"))


def _weight_quantizer(bits: int, target: Target, block_size: int | None) -> Any:
    """Returns a symmetric quantiser with a range per channel, or per block and channel, of a kernel of any rank.

    The quantiser of TensorFlow Model Optimization knows kernels of two and of four dimensions only: others are brought to
    two, channels last.
    """
    rank, axes = len(target.shape), target.channel_axes
    inputs = [axis for axis in range(rank) if axis not in axes]
    num_inputs = math.prod(target.shape[axis] for axis in inputs)
    num_channels = math.prod(target.shape[axis] for axis in axes)
    rows = block_size if block_size and num_inputs % block_size == 0 else num_inputs
    num_ranges = num_channels * (num_inputs // rows)
    order = [*inputs, *axes]
    transposed = [target.shape[axis] for axis in order]
    base = _tfmot("quantization.keras.quantizers").LastValueQuantizer

    class Quantizer(base):
        def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
            return self._add_range_weights(layer, name, True, (num_ranges,))

        def __call__(self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
            blocks = tf.reshape(tf.transpose(inputs, order), (num_inputs // rows, rows, num_channels))
            flat = tf.reshape(tf.transpose(blocks, (1, 0, 2)), (rows, num_ranges))
            rounded = super().__call__(flat, training, weights)
            blocks = tf.transpose(tf.reshape(rounded, (rows, num_inputs // rows, num_channels)), (1, 0, 2))
            return tf.transpose(tf.reshape(blocks, transposed), np.argsort(order))

    return Quantizer(num_bits=bits, per_axis=True, symmetric=True, narrow_range=True)


def _output_quantizer(bits: int, decay: Any) -> Any:
    """Returns a moving-average quantiser whose decay is not fixed at 0.999, for which a training is too short."""
    base = _tfmot("quantization.keras.quantizers").MovingAverageQuantizer
    quantize = _tfmot("quantization.keras.quant_ops").MovingAvgQuantize

    class Quantizer(base):
        def __call__(self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any) -> tf.Tensor:
            return quantize(
                inputs,
                weights["min_var"],
                weights["max_var"],
                ema_decay=decay() if training else None,
                is_training=training,
                num_bits=self.num_bits,
            )

    return Quantizer(num_bits=bits, per_axis=False, symmetric=False, narrow_range=False)


# Operations that move values about, or, in integer runtimes, must have the scale of their input
_PASSING = (
    "Flatten", "Reshape", "Permute", "Dropout", "SpatialDropout", "ZeroPadding", "Cropping", "MaxPooling", "AveragePooling",
    "GlobalMaxPooling", "MaxPool", "AveragePool", "UpSampling", "RepeatVector", "Concatenate", "Pad", "Transpose", "GetItem",
    "Identity", "ExpandDims", "Squeeze", "Slice", "Take", "Stack", "Split",
)  # fmt: skip


def _passes_through(operation: keras.Operation) -> bool:
    """Whether an operation's output has no range of its own."""
    return re.sub(r"[123]D$", "", type(operation).__name__) in _PASSING


# === Functions ===


def quantize_aware(
    model: keras.Model,
    bits: int | Mapping[str, int | None] | None = 8,
    activations: int | None = 8,
    *,
    block_size: int | None = None,
    calibration: Iterable[Any] | None = None,
) -> CompressedModel:
    """Prepares a model for quantisation-aware training.

    Args:
        model: built `keras.Model`, trained or not; may be pruned and clustered.
        bits: int from 2 to 8, or mapping from patterns of weight paths (first match counts) to bits or None.
        activations: int from 2 to 8, or None for float activations.
        block_size: int or None. See `QuantizationStage`.
        calibration: iterable of batches of the model's inputs, which set the first ranges of activations; without, the
            first training batches do.

    Returns:
        `CompressedModel`, to be compiled and fitted.

    Raises:
        ValueError: for bits that no format holds, patterns that match nothing, a model that is quantised already or that
            cannot be compressed, and for calibration data that is empty or does not fit the model.
    """
    compressed = with_stage(model, QuantizationStage(bits, activations, block_size))
    if calibration is not None:
        calibrate(compressed, calibration)
    return compressed


def calibrate(model: CompressedModel, data: Iterable[Any]) -> None:
    """Sets the ranges of activations from data, without training.

    Args:
        model: from `quantize_aware`.
        data: iterable of batches of the model's inputs.

    Raises:
        ValueError: if the data is empty, or does not fit the model.
    """
    stage = model.stage(QuantizationStage)
    if stage is None:
        raise ValueError(f"`model` must come from `quantize_aware`. Received: {model.name!r}")
    batches = 0
    for batch in data:
        stage.before_step()
        try:
            with model.applied(training=True):
                model.model(batch)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            shapes = keras.tree.map_structure(lambda x: tuple(np.shape(x)), batch)
            raise ValueError(f"`calibration` does not fit the model: {error}. Received: shapes {shapes}") from error
        batches += 1
    if not batches:
        raise ValueError("`calibration` must hold at least one batch. Received: none")


def prune(
    model: keras.Model,
    sparsity: float,
    schedule: str = "constant",
    *,
    begin_step: int = 0,
    end_step: int = 0,
    frequency: int = 100,
    pattern: str = "unstructured",
    weights: Sequence[str] | None = None,
) -> CompressedModel:
    """Prepares a model for training with ever more zeros in its kernels.

    Args:
        model: built `keras.Model`.
        sparsity: float in [0, 1). See `PruningStage` for this and what follows.
        schedule: `"constant"` or `"polynomial"`.
        begin_step: int. Training step.
        end_step: int. Training step.
        frequency: int. Training steps.
        pattern: `"unstructured"`, `"2x4"` or `"channel"`.
        weights: sequence of patterns of weight paths, or None for all.

    Returns:
        `CompressedModel`, to be compiled and fitted.

    Raises:
        ValueError: for a bad argument, or a kernel that the pattern does not fit.
    """
    stage = PruningStage(sparsity, schedule, begin_step, end_step, frequency, pattern, weights)
    return with_stage(model, stage)


def cluster(
    model: keras.Model, clusters: int, initialization: str = "kmeans++", *, weights: Sequence[str] | None = None
) -> CompressedModel:
    """Prepares a model for training with few distinct values in each kernel.

    Args:
        model: built `keras.Model`, which may be pruned: its zeros stay.
        clusters: int. Values per kernel.
        initialization: str. See `ClusteringStage`.
        weights: sequence of patterns of weight paths, or None for all.

    Returns:
        `CompressedModel`, to be compiled and fitted.

    Raises:
        ValueError: for a bad argument, or a model that is clustered or quantised already.
    """
    return with_stage(model, ClusteringStage(clusters, initialization, weights))


# === Helpers ===


def _chosen(patterns: Sequence[str] | None, target: Target) -> bool:
    matches = patterns is None or select(dict.fromkeys(patterns, True), target.path, False)
    return target.kind == "kernel" and matches


def _check_patterns(patterns: Iterable[str] | None, targets: Sequence[Target]) -> None:
    paths = [target.path for target in targets if target.kind == "kernel"]
    for pattern in patterns or ():
        if not any(select({pattern: True}, path, False) for path in paths):
            raise ValueError(f"No kernel of the model matches the pattern {pattern!r}. Received: kernels {paths}")
