"""Pruning at initialisation by connection sensitivity, with layerwise dynamical isometry.

Lee, Ajanthan, Gould, Torr 2020 (https://arxiv.org/abs/1906.06307). With a mask c over all kernels and biases w, the
sensitivity of connection j is what the loss L over the data D changes by its removal, before any training:

    g_j = dL(c * w; D) / dc_j at c = 1,    s_j = |g_j| / sum_k |g_k|

and the largest are kept. Where the Jacobian dx_l / dx_(l-1) = D_l W_l of a layer has singular values far from 1,
sensitivities of some layers vanish beside those of others and whole layers are cut. Pruning itself spoils the singular
values; approximate isometry restores them without data, by descent of the surviving weights on

    sum over layers of || (C * W)^T (C * W) - I ||_F

Differs from the paper: for convolutions too the kernel is a matrix `(inputs, outputs)` in that sum, as in the authors'
code; sensitivities of a last, smaller batch count by its size; a least number of connections a layer can be asked for.

Checked against: derivatives by the mask itself, Euler's identity of homogeneous networks, finite differences, closed
forms, the parameter counts of the paper's networks.
"""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.compression import pruning_networks
from zoo.compression.compressed import (
    Bound,
    CompressedModel,
    Point,
    Stage,
    Target,
    check_choice,
    check_model,
    find_targets,
    is_weight,
    overrides,
    with_stage,
)
from zoo.compression.image_classifier import CompressedClassifier, check_image_shape, default_policy
from zoo.compression.pruning_networks import INITIALIZERS, NETWORKS
from zoo.model import ZooModel

# By the path of a variable: float scores, or masks, of its shape.
Scores = dict[str, np.ndarray]
Masks = dict[str, np.ndarray]

METHODS = ("sensitivity", "magnitude", "random")
LABELS = ("data", "uniform")
# Output channels x inputs of a block, as kernels for sparse blocks have them.
BLOCKS: Mapping[str, tuple[int, int]] = {"1x4": (1, 4), "2x4": (2, 4)}
SCOPES = ("global", "layer", "channel", *BLOCKS)
SCORING_BATCH = 100


# === Masks as a stage ===


@keras.saving.register_keras_serializable(package="zoo")
class FixedMaskStage(Stage):
    """Keeps some kernels' and biases' elements at zero for good; normalisation is left alone.

    All masks are ones until `set_masks`.
    """

    order = 1

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._masks = Bound()

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the masks."""
        for target in _by_path(targets).values():
            self._masks[target] = self.add_weight(
                name=f"mask_{len(self._masks)}", shape=target.shape, dtype="bool", initializer="ones", trainable=False
            )

    @property
    def masks(self) -> Masks:
        """The masks by path, bool arrays."""
        return {target.path: ops.convert_to_numpy(mask) for target, mask in self._masks.items()}

    def set_masks(self, masks: Masks) -> None:
        """Sets the masks, and the weights that they hide to zero.

        Args:
            masks: dict from path to array of the variable's shape, for all of them.

        Raises:
            ValueError: for other paths or shapes.
        """
        wanted = {target.path: target.shape for target, _ in self._masks.items()}
        found = {path: np.shape(mask) for path, mask in masks.items()}
        if wanted != found:
            differing = {path: found.get(path) for path in wanted | found if wanted.get(path) != found.get(path)}
            raise ValueError(f"`masks` must have the paths and shapes of the weights. Received: {differing}")
        for target, mask in self._masks.items():
            mask.assign(np.asarray(masks[target.path], bool))
        self.after_step()

    def transforms(self, target: Target) -> bool:
        """Whether a variable is masked."""
        return target in self._masks

    def transform(self, target: Target, value: tf.Tensor, training: bool) -> tf.Tensor:
        """Masks a weight, and with it its gradient."""
        return tf.where(self._masks[target].value, value, tf.zeros((), value.dtype))

    def after_step(self) -> None:
        """Sets masked weights to zero: decay and momentum must not bring them back."""
        for target, mask in self._masks.items():
            variable = target.variable
            variable.assign(tf.where(mask.value, variable.value, tf.zeros((), variable.dtype)))


def _by_path(targets: Iterable[Target]) -> dict[str, Target]:
    prunable = [target for target in targets if is_weight(target)]
    found = {target.path: target for target in prunable}
    if len(found) != len(prunable):
        paths = [target.path for target in prunable]
        repeated = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Layers with weights must have different names. Received: {repeated}")
    return found


# === Scores ===


def connection_sensitivity(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    batches: int | None = None,
    labels: Literal["data", "uniform"] = "data",
) -> Scores:
    """Returns how much the loss depends on each connection of a model as it is.

    The derivatives g keep their signs while they are added up over batches. Normalisation uses its moving statistics.

    Args:
        model: built `keras.Model`.
        data: iterable of batches `(x, y)`, or one tuple of arrays `(x, y)`, which is cut into batches of 100; `y` may be
            missing where no labels are needed.
        loss: Keras loss, its name, or callable of (labels, outputs). By default what the model was compiled with or
            defines itself, else the cross-entropy of logits, or of probabilities where the model ends in a softmax.
        batches: int or None. Batches to read; all by default. One is the rule of Lee, Ajanthan, Torr 2019 ("SNIP").
        labels: str. `"uniform"` replaces the labels by equal probabilities of all classes, so that none are needed.

    Returns:
        Dict from the path of each kernel and bias to a float64 array of its shape, not negative; together they sum to
        1, or to 0 where nothing depends on any connection.

    Raises:
        ValueError: for data that is empty, endless, without labels or that does not fit the model, for derivatives that
            are not finite, and for a model that is not built, is compressed already, or trains by a step of its own.

    Reference:
        Lee et al. 2020, equations 1 and 2; section 4.3 for uniform labels.
    """
    check_model(model)
    check_choice("labels", labels, LABELS)
    targets = _by_path(find_targets(model))
    derivatives = _mask_derivatives(model, list(targets.values()), _objective(model, loss, labels))
    sums = {path: np.zeros(target.shape) for path, target in targets.items()}
    for x, y, weight in _batches(data, batches):
        found = _fitting(derivatives, x, y if labels == "data" else None, weight)
        size = len(keras.tree.flatten(x)[0])
        for path, value in zip(sums, found, strict=True):
            sums[path] += size * value.numpy()
    return _normalized(sums)


def _mask_derivatives(model: keras.Model, targets: Sequence[Target], objective: Callable) -> Callable:
    """Returns a compiled function from a batch to the derivatives by all masks at one."""

    @tf.function(reduce_retracing=True, autograph=False)
    def derivatives(x: Any, y: Any, weight: Any) -> list[tf.Tensor]:
        variables = [target.variable.value for target in targets]
        with tf.GradientTape() as tape:
            value = objective(x, y, weight)
        gradients = tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [w * tf.convert_to_tensor(g) for w, g in zip(variables, gradients, strict=True)]

    return derivatives


def _objective(model: keras.Model, loss: Any, labels: str) -> Callable[[Any, Any, Any], tf.Tensor]:
    """Returns the function of a batch whose derivatives count."""
    from_logits = not _ends_in_softmax(model)

    def outputs(x: Any) -> Any:
        takes_training = getattr(model, "_call_has_training_arg", True)
        return model(x, training=False) if takes_training else model(x)

    def mean_loss(function: Any, y: Any, predicted: Any, weight: Any) -> tf.Tensor:
        is_keras_loss = isinstance(function, keras.losses.Loss)
        values = function(y, predicted, sample_weight=weight) if is_keras_loss else function(y, predicted)
        return tf.reduce_mean(values)

    def uniform(x: Any, y: Any, weight: Any) -> tf.Tensor:
        predicted = outputs(x)
        if not tf.is_tensor(predicted):
            raise ValueError(
                f"`labels='uniform'` needs a model with one output. Received: a {type(predicted).__name__}"
            )
        function = keras.losses.CategoricalCrossentropy(from_logits) if loss is None else keras.losses.get(loss)
        return mean_loss(function, tf.ones_like(predicted) / predicted.shape[-1], predicted, weight)

    def given(x: Any, y: Any, weight: Any) -> tf.Tensor:
        return mean_loss(keras.losses.get(loss), _present(y), outputs(x), weight)

    def own(x: Any, y: Any, weight: Any) -> tf.Tensor:
        # Keras's wrapper, since a `compute_loss` need not take `training`
        return model._compute_loss(x, y, outputs(x), weight, training=False)

    def cross_entropy(x: Any, y: Any, weight: Any) -> tf.Tensor:
        predicted = outputs(x)
        one_hot = len(_present(y).shape) == len(predicted.shape) and y.shape[-1] == predicted.shape[-1] > 1
        kind = keras.losses.CategoricalCrossentropy if one_hot else keras.losses.SparseCategoricalCrossentropy
        return mean_loss(kind(from_logits=from_logits), y, predicted, weight)

    if labels == "uniform":
        return uniform
    if loss is not None:
        return given
    return own if model.compiled or overrides(model, "compute_loss") else cross_entropy


def _present(y: Any) -> Any:
    if y is None:
        raise ValueError("`data` must have labels, or `labels` be 'uniform'. Received: batches without labels")
    return y


def _ends_in_softmax(model: keras.Model) -> bool:
    graph = None if isinstance(model, keras.Sequential) else getattr(model, "operations", None)
    operations = graph or model.layers
    if not operations:
        return False
    if isinstance(operations[-1], keras.Model):
        return _ends_in_softmax(operations[-1])
    activation = getattr(operations[-1], "activation", None)
    # The layer and the operation of a functional graph have one name
    return type(operations[-1]).__name__ == "Softmax" or activation is keras.activations.softmax


def _batches(data: Any, batches: int | None) -> Iterator[tuple[Any, Any, Any]]:
    """Yields inputs, labels and sample weights."""
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 1):
        raise ValueError(f"`batches` must be a positive integer or None. Received: batches={batches!r}")
    if isinstance(data, tuple) and data and not any(isinstance(part, tuple | list) for part in data):
        data = _slices(data)
    if isinstance(data, np.ndarray | tf.Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise ValueError(
            f"`data` must be an iterable of batches (x, y), or a tuple of arrays. Received: {type(data).__name__}"
        )
    if batches is None and isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`batches` must be given for data without end. Received: batches=None")
    empty = True
    for batch in itertools.islice(data, batches):
        empty = False
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(batch) if isinstance(batch, list) else batch)
        sizes = {np.shape(part)[:1] for part in keras.tree.flatten((x, y, weight)) if part is not None}
        if len(sizes) != 1 or sizes in ({()}, {(0,)}):
            raise ValueError(f"The parts of a batch in `data` must have one length, above 0. Received: {sorted(sizes)}")
        yield x, y, weight
    if empty:
        raise ValueError("`data` must hold at least one batch. Received: none")


def _slices(arrays: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    lengths = {np.shape(part)[:1] for part in keras.tree.flatten(arrays)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(f"The arrays in `data` must have one length. Received: lengths {sorted(lengths)}")
    (length,) = lengths.pop()
    for start in range(0, length, SCORING_BATCH):
        yield keras.tree.map_structure(lambda part, start=start: part[start : start + SCORING_BATCH], arrays)


def _fitting(derivatives: Callable, x: Any, y: Any, weight: Any) -> list[tf.Tensor]:
    """Runs a batch, and tells of one that does not fit which it was."""
    try:
        return derivatives(x, y, weight)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        shapes = keras.tree.map_structure(np.shape, (x, y))
        raise ValueError(
            f"`data` does not fit the model or the loss: {error}. Received: shapes (x, y) = {shapes}"
        ) from error


def _normalized(sums: Scores) -> Scores:
    sizes = {path: np.abs(value) for path, value in sums.items()}
    total = sum(value.sum() for value in sizes.values())
    if not np.isfinite(total):
        unusable = [path for path, value in sizes.items() if not np.isfinite(value).all()]
        raise ValueError(f"All derivatives of the loss must be finite. Received: NaN or infinity in {unusable}")
    return {path: value / total if total else value for path, value in sizes.items()}


def weight_scores(model: keras.Model, method: Literal["magnitude", "random"], seed: int = 0) -> Scores:
    """Returns scores to compare with: the sizes of the weights, or chance.

    Args:
        model: built `keras.Model`.
        method: str. `"magnitude"` or `"random"`.
        seed: int. Of the random scores.

    Returns:
        Like `connection_sensitivity`.
    """
    check_model(model)
    check_choice("method", method, METHODS[1:])
    rng = np.random.default_rng(seed)
    targets = _by_path(find_targets(model))
    if method == "random":
        return _normalized({path: rng.random(target.shape) for path, target in targets.items()})
    return _normalized(
        {path: ops.convert_to_numpy(target.variable).astype("float64") for path, target in targets.items()}
    )


# === Masks from scores ===


def choose_masks(
    scores: Scores, sparsity: float, scope: str = "global", minimum: int = 0, keep: Sequence[str] = ()
) -> Masks:
    """Chooses which connections stay: those of the highest scores.

    Args:
        scores: dict from path to array. See `connection_sensitivity`.
        sparsity: float in [0, 1). Share that goes: round(m (1 - sparsity)) of m connections stay, at most as many where
            they go in groups.
        scope: str. `"global"` (one threshold for all layers), `"layer"` (one for each, so that all have one density), or
            in groups with added scores: `"channel"` (an output channel with its bias), `"1x4"` and `"2x4"` (blocks of
            one or two output channels and four inputs).
        minimum: int. Connections, or groups, that each kernel keeps at least, of its highest scores.
        keep: sequence of patterns of paths that stay whole.

    Returns:
        Dict from path to bool array.

    Raises:
        ValueError: for a bad argument, or where what must stay is more than may stay.

    Reference:
        Lee et al. 2020, equation 2.
    """
    check_choice("scope", scope, SCOPES)
    _check_sparsity(sparsity)
    if minimum < 0:
        raise ValueError(f"`minimum` must not be negative. Received: minimum={minimum!r}")
    if not scores:
        raise ValueError("`scores` must not be empty. Received: {}")
    if scope == "layer":
        masks: Masks = {}
        for _, paths in itertools.groupby(sorted(scores, key=_layer), _layer):
            masks |= _keep_best({path: scores[path] for path in paths}, sparsity, "global", minimum, keep)
        return {path: masks[path] for path in scores}
    return _keep_best(scores, sparsity, scope, minimum, keep)


def _keep_best(scores: Scores, sparsity: float, scope: str, minimum: int, keep: Sequence[str]) -> Masks:
    groups, count = _groups(scores, scope)
    flat = np.concatenate([groups[path].ravel() for path in scores])
    values = np.concatenate([np.ravel(score) for score in scores.values()])
    sizes = np.bincount(flat, minlength=count)
    totals = np.bincount(flat, weights=values, minlength=count)
    for path in scores:
        members = np.unique(groups[path])
        if any(fnmatch.fnmatch(path, pattern) for pattern in keep):
            totals[members] = np.inf
        elif _is_kernel(path, scores[path]):
            totals[members[np.argsort(-totals[members], kind="stable")[:minimum]]] = np.inf
    budget = round(flat.size * (1 - sparsity))
    needed = int(sizes[np.isinf(totals)].sum())
    if needed > budget:
        raise ValueError(
            f"`sparsity` must leave the {needed} connections that `minimum`, `keep` and the scope call for. "
            f"Received: sparsity={sparsity!r}, which leaves {budget}"
        )
    order = np.argsort(-totals, kind="stable")
    stays = np.zeros(count, bool)
    stays[order] = np.cumsum(sizes[order]) <= budget
    return {path: stays[groups[path]] for path in scores}


def _groups(scores: Scores, scope: str) -> tuple[dict[str, np.ndarray], int]:
    """Returns for every connection the number of its group, and how many groups there are."""
    groups, count, channels_of = {}, 0, {}
    for path, score in scores.items():
        shape = np.shape(score)
        if scope == "channel":
            # A bias goes with the kernel of its layer
            key = (_layer(path), shape[-1])
            first = channels_of.setdefault(key, count)
            group = np.broadcast_to(first + np.arange(shape[-1]), shape)
        elif scope in BLOCKS and len(shape) >= 2:
            group = count + _block_numbers(shape, *BLOCKS[scope])
        else:
            group = count + np.arange(np.size(score)).reshape(shape)
        groups[path] = group
        count = max(count, int(group.max()) + 1)
    return groups, count


def _block_numbers(shape: tuple[int, ...], channels: int, inputs: int) -> np.ndarray:
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    across = -(-columns // channels)
    numbers = np.arange(rows)[:, None] // inputs * across + np.arange(columns) // channels
    return numbers.reshape(shape)


def _layer(path: str) -> str:
    return path.rpartition("/")[0] or path


def densities(masks: Masks) -> dict[str, float]:
    """Returns the share of kept connections, by path."""
    return {path: float(np.mean(mask)) for path, mask in masks.items()}


def cut_layers(masks: Masks) -> list[str]:
    """Returns the paths of kernels without any connection left, behind which a network knows nothing of its input."""
    return [path for path, mask in masks.items() if _is_kernel(path, mask) and not np.any(mask)]


def _is_kernel(path: str, value: np.ndarray) -> bool:
    # Recurrent layers have biases of two dimensions
    return np.ndim(value) >= 2 and not path.endswith("bias")


# === Approximate isometry ===


def isometry_penalty(
    kernels: Sequence[tf.Tensor], masks: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """Returns how far masked matrices are from orthogonal columns, and the gradient.

    Args:
        kernels: tensors `(inputs, outputs)`.
        masks: tensors of zeros and ones of the same shapes and types.

    Returns:
        Scalar sum of Frobenius norms, not squared, and tensors of the shapes of the kernels.

    Reference:
        Lee et al. 2020, equation 11.
    """
    total, gradients = tf.zeros((), kernels[0].dtype), []
    for kernel, mask in zip(kernels, masks, strict=True):
        masked = kernel * mask
        excess = tf.matmul(masked, masked, transpose_a=True) - tf.eye(masked.shape[1], dtype=masked.dtype)
        norm = tf.norm(excess)
        total += norm
        # The norm has no derivative at zero, where there is nothing left to do
        gradients.append(2 * mask * tf.math.divide_no_nan(tf.matmul(masked, excess), norm))
    return total, tuple(gradients)


def enforce_isometry(model: keras.Model, steps: int = 10_000, learning_rate: float = 0.1) -> np.ndarray:
    """Brings the surviving kernels of a model near orthogonality, by plain gradient descent without data.

    Biases, embeddings and depthwise kernels are left alone.

    Args:
        model: `CompressedModel` with masks, whose masked weights stay zero, or a built plain model.
        steps: int. Defaults to 10,000.
        learning_rate: float. Defaults to 0.1.

    Returns:
        float32 array `(steps + 1,)`: the penalty before each step and at the end.

    Raises:
        ValueError: for a bad argument, or a model without kernels to bring there.

    Reference:
        Lee et al. 2020, section 4.2.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"`steps` must be an integer of 0 or more. Received: steps={steps!r}")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive. Received: learning_rate={learning_rate!r}")
    stage = model.stage(FixedMaskStage) if isinstance(model, CompressedModel) else None
    targets = model.targets if isinstance(model, CompressedModel) else find_targets(model)
    chosen = [target for target in targets if _is_matrix(target)]
    if not chosen:
        raise ValueError(f"`model` must have dense or convolutional kernels. Received: {model.name!r}")
    masks = stage.masks if stage is not None else {}
    kernels = tuple(_to_matrix(target, tf.cast(target.variable.value, "float32")) for target in chosen)
    matrices = tuple(_to_matrix(t, tf.constant(masks.get(t.path, np.ones(t.shape)), "float32")) for t in chosen)
    kernels, penalties = _descend(kernels, matrices, tf.constant(steps), tf.constant(learning_rate, "float32"))
    for target, kernel in zip(chosen, kernels, strict=True):
        target.variable.assign(_from_matrix(target, kernel))
    if stage is not None:
        stage.after_step()
    return penalties.numpy()


@tf.function(autograph=False)
def _descend(
    kernels: tuple[tf.Tensor, ...], masks: tuple[tf.Tensor, ...], steps: tf.Tensor, learning_rate: tf.Tensor
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
    def body(step: tf.Tensor, kernels: tuple[tf.Tensor, ...], penalties: tf.TensorArray) -> tuple:
        penalty, gradients = isometry_penalty(kernels, masks)
        moved = tuple(w - learning_rate * g for w, g in zip(kernels, gradients, strict=True))
        return step + 1, moved, penalties.write(step, penalty)

    penalties = tf.TensorArray(tf.float32, size=steps + 1)
    loop = tf.while_loop(lambda step, *_: step < steps, body, (tf.constant(0), kernels, penalties))
    _, kernels, penalties = loop
    return kernels, penalties.write(steps, isometry_penalty(kernels, masks)[0]).stack()


def _is_matrix(target: Target) -> bool:
    depthwise = target.layer.__class__.__name__.startswith(("Depthwise", "Separable")) and "depth" in target.path
    return is_weight(target) and bool(target.channel_axes) and len(target.shape) >= 2 and not depthwise


def _order(target: Target) -> list[int]:
    """Returns the axes of a kernel, those of the outputs last."""
    axes = range(len(target.shape))
    return [axis for axis in axes if axis not in target.channel_axes] + list(target.channel_axes)


def _to_matrix(target: Target, value: tf.Tensor) -> tf.Tensor:
    outputs = int(np.prod([target.shape[axis] for axis in target.channel_axes]))
    return tf.reshape(tf.transpose(value, _order(target)), (-1, outputs))


def _from_matrix(target: Target, value: tf.Tensor) -> tf.Tensor:
    order = _order(target)
    return tf.transpose(tf.reshape(value, [target.shape[axis] for axis in order]), np.argsort(order))


def jacobian_singular_values(model: keras.Model, x: Any, layer: str | None = None) -> np.ndarray:
    """Returns the singular values of a model's Jacobian, from its input to its output.

    Args:
        model: built `keras.Model` with one input and one output; a `CompressedModel` is taken as it runs.
        x: float array `(batch, ...)`.
        layer: str or None. Name of a layer of a functional model: its own Jacobian, at the values that `x` gives it.

    Returns:
        float32 array `(batch, least of the numbers of inputs and outputs)`, largest first.

    Raises:
        ValueError: for inputs that are not floats, and for a layer that a model does not have.

    Reference:
        Lee et al. 2020, definition 1.
    """
    if not np.issubdtype(np.asarray(x).dtype, np.floating):
        raise ValueError(f"`x` must hold floats. Received: dtype={np.asarray(x).dtype}")
    x = tf.convert_to_tensor(x, "float32")
    inner = model.model if isinstance(model, CompressedModel) else model
    with model.applied() if isinstance(model, CompressedModel) else contextlib.nullcontext():
        function: Any = inner
        if layer is not None:
            function = inner.get_layer(layer)
            x = keras.Model(inner.inputs, function.input)(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(function(x), "float32")
        jacobians = tape.batch_jacobian(y, x)
    matrices = tf.reshape(jacobians, (tf.shape(x)[0], int(np.prod(y.shape[1:])), int(np.prod(x.shape[1:]))))
    return np.linalg.svd(matrices.numpy(), compute_uv=False)


# === Everything together ===


def prune_at_initialization(
    model: keras.Model,
    data: Any,
    sparsity: float,
    *,
    loss: Any = None,
    method: Literal["sensitivity", "magnitude", "random"] = "sensitivity",
    labels: Literal["data", "uniform"] = "data",
    scope: str = "global",
    batches: int | None = None,
    minimum: int = 0,
    isometry_steps: int = 0,
    seed: int = 0,
) -> CompressedModel:
    """Removes connections of an untrained model for good; the sparse rest is then trained as usual.

    Args:
        model: built `keras.Model`: functional, subclassed or of the catalog.
        data: see `connection_sensitivity`, as for `loss`, `labels` and `batches`; None for the other methods.
        sparsity: float in [0, 1). See `choose_masks`, as for `scope` and `minimum`. Where whole channels go, those of
            the last layer stay.
        loss: Keras loss, its name, callable, or None.
        method: str. `"sensitivity"`; or for comparison `"magnitude"` or `"random"`.
        labels: str.
        scope: str.
        batches: int or None.
        minimum: int.
        isometry_steps: int. Steps of `enforce_isometry` afterwards.
        seed: int. Of the random method.

    Returns:
        `CompressedModel`, to be compiled and fitted. Removed weights are exactly zero in it, whatever the optimiser.

    Raises:
        ValueError: for a bad argument, data that does not fit, or a model that cannot be compressed.

    Warns:
        UserWarning: with the names of layers that have no connection left.

    Reference:
        Lee et al. 2020, sections 3 and 4.

    Example:

    ```python
    sparse = zoo.compression.prune_at_initialization(model, batches, 0.9, isometry_steps=1000)
    sparse.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    sparse.fit(batches)
    model = zoo.compression.strip(sparse)
    ```
    """
    check_model(model)
    _check_sparsity(sparsity)
    check_choice("scope", scope, SCOPES)
    scores = _scores(model, data, loss, method, labels, batches, seed)
    return _pruned(model, _masks(model, scores, sparsity, scope, minimum), isometry_steps)


def sculpt(
    model: keras.Model,
    data: Any,
    num_parameters: int,
    *,
    scope: str = "global",
    minimum: int = 0,
    isometry_steps: int = 0,
    **scoring: Any,
) -> CompressedModel:
    """Carves a small network out of one that is too large, instead of choosing its layer sizes by hand.

    Args:
        model: built `keras.Model`, wider or deeper than needed.
        data: see `prune_at_initialization`, as for what follows `num_parameters`.
        num_parameters: int. Kernels' and biases' elements that stay. With the scope `"channel"` the most that the dense
            model of `materialize_channels` may have.
        scope: str.
        minimum: int.
        isometry_steps: int.
        **scoring: `loss`, `method`, `labels`, `batches` and `seed`.

    Returns:
        `CompressedModel`, to be compiled and fitted.

    Raises:
        ValueError: for a number of parameters that the model does not have, or that no choice of channels fits.

    Reference:
        Lee et al. 2020, section 5.4.
    """
    check_model(model)
    check_choice("scope", scope, SCOPES)
    available = sum(int(np.prod(target.shape)) for target in _by_path(find_targets(model)).values())
    if isinstance(num_parameters, bool) or not 1 <= num_parameters <= available:
        raise ValueError(
            f"`num_parameters` must be from 1 to {available}, the kernels and biases of the model. "
            f"Received: num_parameters={num_parameters!r}"
        )
    scores = _scores(model, data, **scoring)
    sparsity = 1 - num_parameters / available
    if scope == "channel":
        sparsity = _channel_sparsity(model, scores, num_parameters, available, minimum)
    return _pruned(model, _masks(model, scores, sparsity, scope, minimum), isometry_steps)


def _pruned(model: keras.Model, masks: Masks, isometry_steps: int) -> CompressedModel:
    compressed = with_stage(model, FixedMaskStage())
    compressed.stage(FixedMaskStage).set_masks(masks)
    if isometry_steps:
        enforce_isometry(compressed, isometry_steps)
    return compressed


def _channel_sparsity(model: keras.Model, scores: Scores, num_parameters: int, available: int, minimum: int) -> float:
    """Returns the least sparsity at which the dense rest of a chain has at most so many parameters."""
    from zoo.compression.channels import remaining_parameters

    def fits(kept: int) -> bool | None:
        try:
            masks = _masks(model, scores, 1 - kept / available, "channel", minimum, warn=False)
        except ValueError:
            return None
        # Where a layer is cut, the rest is no network: more must stay
        return None if cut_layers(masks) else remaining_parameters(model, masks) <= num_parameters

    low, high = 0, available + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) is False else (middle, high)
    if fits(low) is not True:
        raise ValueError(
            f"`num_parameters` is too small for any choice of channels. Received: num_parameters={num_parameters!r}"
        )
    return 1 - low / available


def _scores(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    method: str = "sensitivity",
    labels: str = "data",
    batches: int | None = None,
    seed: int = 0,
) -> Scores:
    check_choice("method", method, METHODS)
    if method != "sensitivity":
        return weight_scores(model, method, seed)
    scores = connection_sensitivity(model, data, loss, batches, labels)
    if not any(score.any() for score in scores.values()):
        raise ValueError("The loss must depend on the weights. Received: sensitivities that are all 0")
    return scores


def _masks(model: keras.Model, scores: Scores, sparsity: float, scope: str, minimum: int, warn: bool = True) -> Masks:
    targets = find_targets(model)
    keep: list[str] = []
    if scope in ("channel", *BLOCKS):
        for target in targets:
            if target.kind == "kernel" and target.channel_axes != (len(target.shape) - 1,):
                raise ValueError(
                    f"The scope {scope!r} needs output channels along the last axis. Received: {target.path!r} of "
                    f"{type(target.layer).__name__}"
                )
    if scope == "channel":
        last = [target for target in targets if target.kind == "kernel"][-1]
        keep = [target.path for target in targets if target.layer is last.layer]
    masks = choose_masks(scores, sparsity, scope, minimum, keep)
    cut = cut_layers(masks)
    if cut and warn:
        warnings.warn(
            f"No connection is left in {cut}: what lies behind does not see the input, and may not train. Initialise "
            f"the model by scaled or orthogonal weights, prune less, or set `minimum`.",
            stacklevel=3,
        )
    return masks


def _check_sparsity(sparsity: float) -> None:
    if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1). Received: sparsity={sparsity!r}")


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class SignalPropagationPruning(CompressedClassifier):
    """An image classifier whose connections are chosen before training, and then stay.

    A new model is dense; `prune` makes it sparse for good. The masks are weights of the model, so that a loaded model is
    sparse and trains on as such. It takes images in [0, 1], `(batch, height, width, channels)`, and gives logits.
    `prune_at_initialization` does the same to any other model.

    Args:
        network: str. `"mlp"`, `"vgg"`, `"residual"` or `"wide_residual"`. Defaults to `"mlp"`.
        units: sequence of int. Sizes of the perceptron's hidden layers. Defaults to six of 100.
        activation: str. Of the perceptron: Keras's name. Defaults to `"tanh"`.
        depth: int. Of residual networks: 6n + 2, wide ones 6n + 4. Defaults to 32.
        factor: int. How many times wider a wide residual network is. Defaults to 6.
        stem_strides: int. Strides of the first convolution. Defaults to 1.
        num_classes: int. Defaults to 10.
        input_shape: height, width and channels. Defaults to `(28, 28, 1)`.
        pixel_mean: float. What the perceptron subtracts from its images; the others normalise. Defaults to 0.
        kernel_initializer: str. `"normal"`, `"lecun"`, `"glorot"`, `"he"` or `"orthogonal"`. Defaults to `"orthogonal"`.
        sparsity: float in [0, 1). Share of the weights and biases that `prune` removes. Defaults to 0.9.
        method: str. See `prune_at_initialization`, as for what follows. Defaults to `"sensitivity"`.
        labels: str. Defaults to `"data"`.
        scope: str. Defaults to `"global"`.
        isometry_steps: int. Defaults to 10,000.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("signal_propagation_pruning")
    logits = model.run(image=images)["logits"]
    zoo.compression.sparsity(model)     # share of zeros of every kernel
    ```

    Reference:
        Lee et al. 2020, "A Signal Propagation Perspective for Pruning Neural Networks at Initialization", arXiv
        1906.06307.
    """

    def __init__(
        self,
        network: Literal["mlp", "vgg", "residual", "wide_residual"] = "mlp",
        units: Sequence[int] = (100,) * 6,
        activation: str = "tanh",
        depth: int = 32,
        factor: int = 6,
        stem_strides: int = 1,
        num_classes: int = 10,
        input_shape: Sequence[int] = (28, 28, 1),
        pixel_mean: float = 0.0,
        kernel_initializer: Literal["normal", "lecun", "glorot", "he", "orthogonal"] = "orthogonal",
        sparsity: float = 0.9,
        method: Literal["sensitivity", "magnitude", "random"] = "sensitivity",
        labels: Literal["data", "uniform"] = "data",
        scope: str = "global",
        isometry_steps: int = 10_000,
        **kwargs: Any,
    ) -> None:
        for name, value, choices in (
            ("network", network, NETWORKS),
            ("kernel_initializer", kernel_initializer, tuple(INITIALIZERS)),
            ("method", method, METHODS),
            ("labels", labels, LABELS),
            ("scope", scope, SCOPES),
        ):
            check_choice(name, value, choices)
        _check_sparsity(sparsity)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2. Received: num_classes={num_classes!r}")
        check_image_shape(input_shape)
        if min(units, default=1) < 1:
            raise ValueError(f"`units` must be positive. Received: units={units!r}")
        common = (num_classes, tuple(input_shape), kernel_initializer)
        with default_policy(kwargs.get("dtype")):
            built = {
                "mlp": lambda: pruning_networks.multilayer_perceptron(units, activation, *common, pixel_mean),
                "vgg": lambda: pruning_networks.vgg(*common, stem_strides),
                "residual": lambda: pruning_networks.pruned_residual_network(depth, *common, stem_strides),
                "wide_residual": lambda: pruning_networks.wide_residual_network(depth, factor, *common, stem_strides),
            }[network]()
            stage = FixedMaskStage(name="masks")
        super().__init__(built, [stage], **{"name": "signal_propagation_pruning", **kwargs})
        self.network, self.units, self.activation = network, tuple(units), activation
        self.depth, self.factor, self.stem_strides = depth, factor, stem_strides
        self.num_classes, self.input_size, self.pixel_mean = num_classes, tuple(input_shape), pixel_mean
        self.kernel_initializer, self.sparsity, self.method = kernel_initializer, sparsity, method
        self.labels, self.scope, self.isometry_steps = labels, scope, isometry_steps

    # === Pruning ===

    def head_variables(self) -> list[keras.Variable]:
        """Returns the last layer's variables with their masks: a new head is dense."""
        variables = super().head_variables()
        own = {id(variable) for variable in variables}
        masks = self.stage(FixedMaskStage)._masks.items()
        return [*variables, *(mask for target, mask in masks if id(target.variable) in own)]

    @property
    def masks(self) -> Masks:
        """The masks by path, bool arrays."""
        return self.stage(FixedMaskStage).masks

    @property
    def num_connections(self) -> int:
        """How many kernels' and biases' elements are left."""
        return int(sum(mask.sum() for mask in self.masks.values()))

    def prune(self, data: Any = None, batches: int | None = None, seed: int = 0) -> np.ndarray:
        """Removes connections of a new model, as its configuration says.

        Args:
            data: iterable of batches (images in [0, 1], integer labels), or a tuple of arrays; None for the methods that
                read none.
            batches: int or None. See `connection_sensitivity`.
            seed: int. Of the random method.

        Returns:
            The penalties of `enforce_isometry`, `(isometry_steps + 1,)`.

        Raises:
            ValueError: for data that does not fit, or if the model is sparse already.

        Warns:
            UserWarning: with the names of layers that have no connection left.
        """
        if not all(mask.all() for mask in self.masks.values()):
            raise ValueError(f"The model is sparse already. Received: {self.num_connections} connections left")
        scores = _scores(self.model, data, None, self.method, self.labels, batches, seed)
        self.stage(FixedMaskStage).set_masks(_masks(self.model, scores, self.sparsity, self.scope, minimum=0))
        return enforce_isometry(self, self.isometry_steps)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **ZooModel.get_config(self),
            "network": self.network,
            "units": list(self.units),
            "activation": self.activation,
            "depth": self.depth,
            "factor": self.factor,
            "stem_strides": self.stem_strides,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_size),
            "pixel_mean": self.pixel_mean,
            "kernel_initializer": self.kernel_initializer,
            "sparsity": self.sparsity,
            "method": self.method,
            "labels": self.labels,
            "scope": self.scope,
            "isometry_steps": self.isometry_steps,
        }
