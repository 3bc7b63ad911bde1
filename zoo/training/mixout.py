"""Mixout: fine-tuning in which random neurons' outgoing weights are the pretrained ones.

Lee, Cho, Kang, ICLR 2020, https://arxiv.org/abs/1909.11299.

With weights w, the weights u that they are drawn to, and a mask M of independent entries that are 1 with probability 1 - p,
every forward pass of a training computes with

    mix(w; u, p) = u + M (w - u) / (1 - p)

whose mean is w. A neuron has one entry of M, which all weights that lead out of it share. Dropout is the case u = 0, but for
its mask of each example: here all examples and time steps of a batch share one. For a loss L that is strongly convex with
constant m

    E L(mix(w; u, p)) >= L(w) + m p / (2 (1 - p)) |w - u|^2

so that mixout is a pull towards u that grows with the curvature. The explicit one, `wdecay(u, s)`, adds s / 2 |w - u|^2 to
the loss; weight decay is its case u = 0.

`Mixout` and `ReferenceDecay` do this to any built Keras 3 model; `MixoutClassifier` is the network of the paper's study on
digits. Beyond the paper: masks of the input channels of convolutions and of the projections of attention; layers that are
called several times in a pass draw a mask each time; recurrent ones keep theirs through all time steps. The gradient has the
factor 1 / (1 - p) of the formula, which the authors' code leaves out.

Checked against: enumeration of all masks, closed forms, dropout, finite differences.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from zoo.arguments import require
from zoo.compression.compressed import CompressedModel, Point, Stage, Target, check_model, hook, overrides, strip
from zoo.compression.image_classifier import CompressedClassifier, check_image_shape, default_policy
from zoo.model import ZooModel

GRANULARITIES = ("neuron", "weight")
# By the path of a weight: its value
Reference = Literal["zeros"] | Mapping[str, Any] | None

_logger = logging.getLogger(__name__)
_layers = keras.layers

# Kernels whose last two axes are input and output
_LINEAR = (
    _layers.Dense, _layers.Conv1D, _layers.Conv2D, _layers.Conv3D, _layers.DepthwiseConv1D, _layers.DepthwiseConv2D,
    _layers.SeparableConv1D, _layers.SeparableConv2D, _layers.SimpleRNNCell, _layers.GRUCell, _layers.LSTMCell,
)  # fmt: skip
_KERNELS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel")
_TRANSPOSED = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
_CELLS = (_layers.SimpleRNNCell, _layers.GRUCell, _layers.LSTMCell)
# Layers whose inner ones are one layer with them: those that repeat them over time, and one that rewrites their weights
_REPEATING = (_layers.RNN, _layers.TimeDistributed)
_OPAQUE = (_layers.SpectralNormalization,)
_DROPOUTS = (_layers.Dropout, _layers.AlphaDropout, _layers.GaussianDropout)

UNKNOWN = "of a layout that is not known"


# === Which weights ===


@dataclasses.dataclass(frozen=True)
class Place:
    """A layer within a model.

    Args:
        path: str. Names of the layers that lead there, such as `"backbone/layer_0/attention/query"`.
        layer: `keras.layers.Layer`.
        caller: `keras.layers.Layer`. At whose calls the layer's masks are drawn: itself, or what repeats it over time.
    """

    path: str
    layer: keras.layers.Layer
    caller: keras.layers.Layer


@dataclasses.dataclass(frozen=True)
class MixedWeight:
    """A weight with a reference.

    Args:
        path: str. Of its layer, and its name.
        variable: `keras.Variable`.
        mask_shape: tuple of int. Of a mask with an entry for every neuron; repeated along the last axis for groups, and
            broadcast.
        caller: see `Place`.
    """

    path: str
    variable: keras.Variable
    mask_shape: tuple[int, ...]
    caller: keras.layers.Layer


def find_places(model: keras.Model) -> list[Place]:
    """Returns the layers of a model, itself first with an empty path, each once."""
    found: dict[int, Place] = {}
    paths: set[str] = set()

    def visit(layer: keras.layers.Layer, path: str, caller: keras.layers.Layer | None) -> None:
        if id(layer) in found or isinstance(layer, _layers.InputLayer):
            return
        while path in paths:
            path += "_"
        paths.add(path)
        if caller is None and isinstance(layer, _REPEATING + _OPAQUE):
            caller = layer
        found[id(layer)] = Place(path, layer, caller or layer)
        for child in layer.layers if isinstance(layer, keras.Sequential) else layer._layers:
            visit(child, f"{path}/{child.name}".strip("/"), caller)

    visit(model, "", None)
    return list(found.values())


def select_places(places: Iterable[Place], include: Sequence[str] | None, exclude: Sequence[str]) -> list[Place]:
    """Returns the places whose path an `include` pattern finds, where there are such, and no `exclude` pattern.

    Raises:
        ValueError: for a pattern that finds no layer, or is no regular expression.
    """
    places = list(places)
    for name, patterns in (("include", include), ("exclude", exclude)):
        require(not isinstance(patterns, str), name, "a sequence of regular expressions", repr(patterns))
        for pattern in patterns or ():
            try:
                known = any(re.search(pattern, place.path) for place in places)
            except re.error as error:
                raise ValueError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({error})") from error
            paths = [place.path for place in places if place.layer._trainable_variables]
            require(known, name, f"patterns of layer paths, such as those of {paths}", repr(pattern))

    def found(patterns: Sequence[str], place: Place) -> bool:
        return any(re.search(pattern, place.path) for pattern in patterns)

    return [place for place in places if (include is None or found(include, place)) and not found(exclude, place)]


def neuron_axes(layer: keras.layers.Layer, name: str, rank: int) -> tuple[int, ...] | None:
    """Returns the axes of a kernel along which each index is an input neuron; None where the layout is not known.

    Args:
        layer: `keras.layers.Layer`.
        name: str. Of its variable.
        rank: int. Of the variable.
    """
    if isinstance(layer, _layers.EinsumDense) and name == "kernel":
        inputs, kernel = re.match(r"(.*),(.*)->", layer.equation.replace(" ", "")).groups()
        return tuple(axis for axis, letter in enumerate(kernel) if letter in inputs)
    if isinstance(layer, _layers.Embedding) and name == "embeddings":
        return (0,)
    if isinstance(layer, _TRANSPOSED) and name == "kernel":
        return (rank - 1,)
    return (rank - 2,) if isinstance(layer, _LINEAR) and name in _KERNELS else None


def _mask_shape(layer: keras.layers.Layer, variable: keras.Variable) -> tuple[int, ...] | None:
    shape = tuple(variable.shape)
    axes = neuron_axes(layer, variable.name, len(shape))
    if axes is None:
        return None
    mask = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    if getattr(layer, "groups", 1) > 1:
        # The rows of a group's kernel are other neurons in every group
        mask[-1] = layer.groups
    return tuple(mask)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Weights with a reference, what is passed through with the reason why, and the attributes that are dropout rates.

    An object of its own, so that Keras does not track it.
    """

    weights: list[MixedWeight]
    passed_through: dict[str, str]
    rates: list[tuple[keras.layers.Layer, str]]


def _choose(
    model: keras.Model, include: Sequence[str] | None, exclude: Sequence[str], embeddings: bool, bias: bool
) -> _Choice:
    """Returns what of a model is mixed."""
    places = find_places(model)
    selected = {id(place.layer) for place in select_places(places, include, exclude)}
    choice = _Choice([], {}, [])
    for place in places:
        if id(place.layer) in selected:
            choice.rates.extend((place.layer, name) for name in _rates(place.layer))
        for path, variable in _own_weights(place):
            reason = "left out by the patterns"
            if id(place.layer) in selected:
                reason = _unmixed(place, variable, embeddings, bias)
            if reason:
                choice.passed_through[path] = reason
                continue
            shape = tuple(variable.shape) if variable.name == "bias" else _mask_shape(place.layer, variable)
            choice.weights.append(MixedWeight(path, variable, shape, place.caller))
    return choice


def _own_weights(place: Place) -> Iterator[tuple[str, keras.Variable]]:
    for variable in place.layer._trainable_variables:
        if "float" in variable.dtype:
            yield f"{place.path}/{variable.name}".strip("/"), variable


def _unmixed(place: Place, variable: keras.Variable, embeddings: bool, bias: bool) -> str | None:
    """Returns why a weight is not mixed, or None where it is."""
    known = neuron_axes(place.layer, variable.name, len(variable.shape)) is not None
    if isinstance(place.caller, _OPAQUE):
        return UNKNOWN
    if isinstance(place.layer, _layers.Embedding) and known:
        return None if embeddings else "an embedding: see `embeddings`"
    if known:
        return None
    if variable.name == "bias":
        has_kernel = isinstance(place.layer, (*_LINEAR, *_TRANSPOSED, _layers.EinsumDense))
        return None if bias and has_kernel else "a bias: see `bias`" if has_kernel else UNKNOWN
    return UNKNOWN if sum(size > 1 for size in variable.shape) > 1 else "a vector"


def _rates(layer: keras.layers.Layer) -> tuple[str, ...]:
    if isinstance(layer, _CELLS):
        return ("dropout", "recurrent_dropout")
    return ("rate",) if isinstance(layer, _DROPOUTS) else ()


@contextlib.contextmanager
def _set_to_zero(rates: Sequence[tuple[keras.layers.Layer, str]]) -> Iterator[None]:
    before = [getattr(layer, name) for layer, name in rates]
    try:
        for layer, name in rates:
            setattr(layer, name, 0.0)
        yield
    finally:
        for (layer, name), rate in zip(rates, before, strict=True):
            setattr(layer, name, rate)


# === The reference ===


class References(Stage):
    """The weights that training is drawn to, as variables that do not train.

    Args:
        weights: sequence of `MixedWeight`.
        strength: float. Of the penalty `strength / 2 |w - u|^2`.
        seed: int or None. Of masks.
    """

    def __init__(
        self, weights: Sequence[MixedWeight], strength: float = 0.0, seed: int | None = None, **kwargs: Any
    ) -> None:
        # Without it weights would be read in the type that layers compute in
        super().__init__(autocast=False, **kwargs)
        self.strength = strength
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._runtime = _Choice(list(weights), {}, [])
        self.values: list[keras.Variable] = []

    def attach(self, targets: Sequence[Target], points: Sequence[Point]) -> None:
        """Creates the variables."""
        self.values = [
            self.add_weight(
                name=f"reference_{index}",
                shape=weight.variable.shape,
                dtype=weight.variable.dtype,
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for index, weight in enumerate(self._runtime.weights)
        ]

    def assign(self, reference: Reference) -> None:
        """Sets the values, see `Mixout.set_reference`."""
        weights = self._runtime.weights
        if reference is None:
            arrays = [weight.variable.numpy() for weight in weights]
        elif isinstance(reference, str) and reference == "zeros":
            arrays = [np.zeros(weight.variable.shape) for weight in weights]
        elif isinstance(reference, Mapping):
            wanted = {weight.path: tuple(weight.variable.shape) for weight in weights}
            found = {path: tuple(np.shape(value)) for path, value in reference.items()}
            differing = {path: found.get(path) for path in wanted | found if wanted.get(path) != found.get(path)}
            require(not differing, "reference", "arrays of the paths and shapes of the weights", differing)
            arrays = [np.asarray(reference[weight.path]) for weight in weights]
        else:
            raise TypeError(
                f"`reference` must be None, 'zeros' or a mapping from paths of weights to arrays. Received: {reference!r}"
            )
        for value, array in zip(self.values, arrays, strict=True):
            value.assign(array)

    def call(self, references: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns how far the weights are from references, in the type that they are stored in."""
        weights = [tf.convert_to_tensor(weight.variable.value) for weight in self._runtime.weights]
        return [weight - reference for weight, reference in zip(weights, references, strict=True)]

    def constants(self) -> list[tf.Tensor]:
        """Returns the values, through which no gradient goes."""
        return [tf.stop_gradient(tf.convert_to_tensor(value.value)) for value in self.values]

    def penalty(self) -> tf.Tensor | None:
        """Returns the penalty, or None without a strength."""
        if not self.strength:
            return None
        return self.strength / 2 * sum(tf.reduce_sum(tf.square(each)) for each in self(self.constants()))


class ReferencedModel(CompressedModel):
    """Base of models whose training is drawn to a reference.

    Args:
        model: built `keras.Model`.
        choice: what of it takes part.
        reference: see `Mixout`.
        strength: float. See `References`.
        seed: int or None. Of masks.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(
        self,
        model: keras.Model,
        choice: _Choice,
        reference: Reference,
        strength: float,
        seed: int | None,
        /,
        **kwargs: Any,
    ) -> None:
        stage = References(choice.weights, strength, seed, name="references", dtype=model.dtype_policy)
        super().__init__(model, [stage], **{"dtype": model.dtype_policy, **kwargs})
        self._choice = choice
        self.set_reference(reference)

    @property
    def mixed(self) -> list[str]:
        """Paths of the weights that have a reference."""
        return [weight.path for weight in self._choice.weights]

    @property
    def passed_through(self) -> dict[str, str]:
        """Paths of all other trainable weights, which are as in the wrapped model, and why."""
        return dict(self._choice.passed_through)

    def set_reference(self, reference: Reference = None) -> None:
        """Changes what training is drawn to.

        Args:
            reference: None for the present weights, `"zeros"`, or mapping from the paths `mixed` to arrays.
        """
        self.stage(References).assign(reference)

    def reference(self) -> dict[str, np.ndarray]:
        """Returns what training is drawn to, by path."""
        values = self.stage(References).values
        return {path: value.numpy() for path, value in zip(self.mixed, values, strict=True)}

    def squared_distances(self) -> dict[str, float]:
        """Returns `|w - u|^2` of every weight that has a reference, by path."""
        stage = self.stage(References)
        distances = stage(stage.constants())
        return {path: float(tf.reduce_sum(each**2)) for path, each in zip(self.mixed, distances, strict=True)}

    def strip(self) -> keras.Model:
        """Returns the wrapped model, a plain one with the weights of now."""
        return strip(self)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the loss that `compile` was given, else that of the wrapped model, with the penalty."""
        if getattr(self, "loss", None) is None or not overrides(self.model, "compute_loss"):
            return super().compute_loss(*args, **kwargs)
        loss, penalty = keras.Model.compute_loss(self, *args, **kwargs), self.stage(References).penalty()
        return loss if penalty is None else loss + penalty

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReferencedModel:
        """Rebuilds the wrapped model; the reference comes with the weights."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(model, **{name: value for name, value in config.items() if name != "model"})


def _check_wrappable(model: keras.Model) -> None:
    check_model(model)
    recomputed = [layer.name for layer in model._flatten_layers() if getattr(layer, "_remat_mode", None)]
    require(not recomputed, "model", "free of layers that compute again for the gradient (`RematScope`)", recomputed)


# === Mixout ===


class MixedModel(ReferencedModel):
    """Base of models whose training mixes their weights with a reference.

    Args:
        model: built `keras.Model`.
        choice: what of it takes part.
        reference: see `Mixout`, as for what follows.
        probability: float in [0, 1].
        granularity: str.
        keep_dropout: bool.
        seed: int or None.
        **kwargs: arguments of `keras.Model`.
    """

    def __init__(
        self,
        model: keras.Model,
        choice: _Choice,
        reference: Reference,
        probability: float,
        granularity: str,
        keep_dropout: bool,
        seed: int | None,
        /,
        **kwargs: Any,
    ) -> None:
        require(0 <= probability <= 1, "probability", "in [0, 1]", probability)
        require(granularity in GRANULARITIES, "granularity", f"one of {GRANULARITIES}", repr(granularity))
        super().__init__(model, choice, reference, 0.0, seed, **kwargs)
        self.probability, self.granularity, self.keep_dropout = probability, granularity, keep_dropout
        for weight in choice.weights:
            hook(weight.caller)

    @contextlib.contextmanager
    def applied(self, training: bool = False) -> Iterator[keras.StatelessScope]:
        """Within this context, the wrapped model and all of its layers compute as in training, or as they are."""
        if not training or self.probability == 0:
            with self._without_dropout(training), super().applied(training) as scope:
                yield scope
            return
        stage = self.stage(References)
        # Drawn outside of the scope, which would keep the generator's next state to itself
        seed = stage.seed_generator.next()
        references = stage.constants()
        with self._without_dropout(training), super().applied(training) as scope:
            weights = list(zip(self._choice.weights, references, stage(references), strict=True))
            outer = getattr(_active, "mixing", None)
            _active.mixing = _Mixing(weights, scope, seed, self.probability, self.granularity)
            try:
                yield scope
            finally:
                _active.mixing.end()
                _active.mixing = outer

    def _without_dropout(self, training: bool) -> contextlib.AbstractContextManager[None]:
        return _set_to_zero([] if self.keep_dropout or not training else self._choice.rates)

    def calling(self, operation: keras.Operation) -> contextlib.AbstractContextManager[None]:
        """Draws masks of a layer that is called once more."""
        mixing = getattr(_active, "mixing", None)
        return contextlib.nullcontext() if mixing is None else mixing.calling(operation)


@keras.saving.register_keras_serializable(package="zoo")
class Mixout(MixedModel):
    """A model whose training mixes its weights with those it had before. Deploys, and runs outside of `fit`, as before.

    The wrapped model is not copied: training this one trains it. Weights keep their names; the reference is a set of further
    variables that do not train, and is saved with them. Mixed are the kernels of dense, einsum, convolutional, and recurrent
    layers, so those inside of `MultiHeadAttention` too. `passed_through` names all other weights; a warning in the log those
    of an unknown layout.

    Args:
        model: built `keras.Model`, functional, sequential or subclassed, with pretrained weights.
        probability: float in [0, 1]. How likely a neuron's weights are the reference's: p. At 1 nothing is learned.
        reference: None for the present weights, `"zeros"` (then it is dropout), or mapping from paths of weights, as `mixed`
            names them, to arrays.
        granularity: str. `"neuron"`, or `"weight"` for an independent entry of the mask for every weight ("mixconnect").
        include: sequence of regular expressions or None. Paths of layers, such as `"backbone/layer_0/attention/query"`, that
            take part; None for all.
        exclude: sequence of regular expressions. Paths of layers that do not: a new head, which has no pretrained weights.
        embeddings: bool. Whether the rows of embeddings are mixed too.
        bias: bool. Whether the elements of biases are mixed too.
        keep_dropout: bool. Whether dropout goes on in layers that take part; mixout takes its place by default.
        seed: int or None. Of masks.
        **kwargs: arguments of `keras.Model`.

    Raises:
        ValueError: for an argument out of range, a pattern that finds no layer, a model without anything to mix, and one that
            cannot be wrapped: not built, wrapped already, with integer weights, a `train_step` of its own, or under a
            `RematScope`.
        TypeError: for a reference of another type.

    Example:

    ```python
    model = zoo.get("albert").with_head("classification", num_classes=4)
    mixed = zoo.training.Mixout(model, 0.9, exclude=["^head"])
    mixed.compile("adam", metrics=["accuracy"])
    mixed.fit(model.text_inputs(texts), labels)
    model = mixed.strip()
    ```

    Reference:
        Lee et al. 2020, section 3.
    """

    def __init__(
        self,
        model: keras.Model,
        probability: float = 0.9,
        reference: Reference = None,
        *,
        granularity: Literal["neuron", "weight"] = "neuron",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        embeddings: bool = False,
        bias: bool = False,
        keep_dropout: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        _check_wrappable(model)
        choice = _choose(model, include, exclude, embeddings, bias)
        require(bool(choice.weights), "model", "one with weights to mix", choice.passed_through)
        settings = (probability, granularity, keep_dropout, seed)
        super().__init__(model, choice, reference, *settings, **{"name": f"mixout_{model.name}", **kwargs})
        self.include, self.exclude = None if include is None else list(include), list(exclude)
        self.embeddings, self.bias, self.seed = embeddings, bias, seed
        unknown = [path for path, reason in choice.passed_through.items() if reason == UNKNOWN]
        if unknown:
            _logger.warning("Mixout passes weights through whose layout it does not know: %s", ", ".join(unknown))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments but the reference, which the weights hold."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "probability": self.probability,
            "granularity": self.granularity,
            "include": self.include,
            "exclude": self.exclude,
            "embeddings": self.embeddings,
            "bias": self.bias,
            "keep_dropout": self.keep_dropout,
            "seed": self.seed,
            "name": self.name,
        }


_active = threading.local()


class _Mixing:
    """One forward pass: masks, drawn once for the pass, and anew when a layer is called again.

    What reads a layer's weights without calling it gets the mask of the layer's first call.
    """

    def __init__(
        self,
        weights: Sequence[tuple[MixedWeight, tf.Tensor, tf.Tensor]],
        scope: keras.StatelessScope,
        seed: tf.Tensor,
        probability: float,
        granularity: str,
    ) -> None:
        self.weights, self.scope, self.seed = weights, scope, seed
        self.probability, self.granularity = probability, granularity
        self.calls: collections.Counter[int] = collections.Counter()
        self.by_caller: dict[int, list[int]] = collections.defaultdict(list)
        for index, (weight, _, _) in enumerate(weights):
            self.by_caller[id(weight.caller)].append(index)
            self._set(index, 0)

    def _set(self, index: int, call: int) -> None:
        weight, reference, distance = self.weights[index]
        shape = weight.mask_shape if self.granularity == "neuron" else tuple(distance.shape)
        # A number of its own for every weight and call
        seed = tf.random.experimental.stateless_fold_in(self.seed, index + call * len(self.weights))
        mask = draw_mask(shape, seed, self.probability)
        self.scope.add_update((weight.variable, mix(reference, distance, mask, self.probability)))

    @contextlib.contextmanager
    def calling(self, layer: Any) -> Iterator[None]:
        """Draws new masks for a layer's calls after its first."""
        indices = self.by_caller.get(id(layer), ())
        call = self.calls[id(layer)]
        self.calls[id(layer)] += 1
        if not indices or not call:
            yield
            return
        variables = [self.weights[index][0].variable for index in indices]
        first = [(variable, self.scope.get_current_value(variable)) for variable in variables]
        for index in indices:
            self._set(index, call)
        try:
            yield
        finally:
            for update in first:
                self.scope.add_update(update)

    def end(self) -> None:
        """Leaves the weights out of what the pass has changed."""
        for weight, _, _ in self.weights:
            self.scope.state_mapping.pop(id(weight.variable))


def draw_mask(shape: Sequence[int], seed: tf.Tensor, probability: float) -> tf.Tensor:
    """Returns a bool tensor that is true with probability `1 - probability`, where the trained weight stays."""
    return tf.random.stateless_uniform(shape, seed) >= probability


def mix(reference: tf.Tensor, distance: tf.Tensor, mask: tf.Tensor, probability: float) -> tf.Tensor:
    """Returns `u + M (w - u) / (1 - p)`.

    Args:
        reference: float tensor u.
        distance: float tensor `w - u`.
        mask: bool tensor that broadcasts to them, its last axis repeated where it has one entry per group.
        probability: float p in [0, 1]. At 1 the reference is returned, with a gradient of zero.

    Reference:
        Lee et al. 2020, equation 5.
    """
    distance = tf.convert_to_tensor(distance)
    if mask.shape[-1] not in (1, distance.shape[-1]):
        mask = tf.repeat(mask, distance.shape[-1] // mask.shape[-1], axis=-1)
    scale = 0.0 if probability == 1 else 1 / (1 - probability)
    return reference + tf.where(mask, distance * scale, tf.zeros((), distance.dtype))


# === The explicit penalty ===


@keras.saving.register_keras_serializable(package="zoo")
class ReferenceDecay(ReferencedModel):
    """A model whose loss has `strength / 2 |w - u|^2` added: weight decay towards the weights that it had before.

    It covers kernels and embeddings of all layers, whatever their layout. Weight decay is the case of zeros for a
    reference. Wraps, saves and strips as `Mixout` does.

    Args:
        model: built `keras.Model`.
        strength: float, 0 or more.
        reference: None for the present weights, `"zeros"`, or mapping from paths of weights, as `mixed` names them, to
            arrays.
        include: sequence of regular expressions or None. See `Mixout`.
        exclude: sequence of regular expressions.
        bias: bool. Whether biases are drawn too.
        **kwargs: arguments of `keras.Model`.

    Raises:
        ValueError: for an argument out of range, and a model that cannot be wrapped.
        TypeError: for a reference of another type.

    Reference:
        Lee et al. 2020, section 2; Wiese et al. 2017; Li et al. 2018 ("L2-SP").
    """

    def __init__(
        self,
        model: keras.Model,
        strength: float = 0.01,
        reference: Reference = None,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_wrappable(model)
        require(strength >= 0, "strength", "0 or more", strength)
        choice = _choose_decayed(model, include, exclude, bias)
        require(bool(choice.weights), "model", "one with weights to decay", choice.passed_through)
        super().__init__(model, choice, reference, strength, None, **{"name": f"decayed_{model.name}", **kwargs})
        self.strength, self.bias = strength, bias
        self.include, self.exclude = None if include is None else list(include), list(exclude)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments but the reference, which the weights hold."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "strength": self.strength,
            "include": self.include,
            "exclude": self.exclude,
            "bias": self.bias,
            "name": self.name,
        }


def _choose_decayed(model: keras.Model, include: Sequence[str] | None, exclude: Sequence[str], bias: bool) -> _Choice:
    places = find_places(model)
    selected = {id(place.layer) for place in select_places(places, include, exclude)}
    choice = _Choice([], {}, [])
    for place in places:
        for path, variable in _own_weights(place):
            is_bias = variable.name.endswith("bias")
            decays = bias if is_bias else sum(size > 1 for size in variable.shape) > 1
            if id(place.layer) in selected and decays:
                choice.weights.append(MixedWeight(path, variable, (), place.caller))
            else:
                left_out = "a bias: see `bias`" if is_bias else "a vector"
                choice.passed_through[path] = left_out if id(place.layer) in selected else "left out by the patterns"
    return choice


# === A ready network ===


@keras.saving.register_keras_serializable(package="zoo")
class MixoutClassifier(CompressedClassifier, MixedModel):
    """A perceptron of images whose second and further layers are mixed.

    The reference of a new model is zero, so that it is pretrained with dropout, of a batch's mask. After `set_reference()`
    its training is drawn to the weights of then. It takes images in [0, 1], `(batch, height, width, channels)`, and gives
    logits. `Mixout` does the same to any other model.

    Args:
        units: sequence of int. Sizes of the hidden layers, of ReLU. Defaults to 300 and 100.
        num_classes: int. Defaults to 10.
        input_shape: height, width and channels. Defaults to `(28, 28, 1)`.
        pixel_maximum: int. What the brightest pixel of a stored image is. Defaults to 255.
        probability: float in [0, 1]. See `Mixout`. Defaults to 0.7.
        granularity: str. See `Mixout`. Defaults to `"neuron"`.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("mixout")
    model.set_reference()               # from here on
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(model.preprocess(images), labels)
    ```

    Reference:
        Lee et al. 2020, section 4.
    """

    def __init__(
        self,
        units: Sequence[int] = (300, 100),
        num_classes: int = 10,
        input_shape: Sequence[int] = (28, 28, 1),
        pixel_maximum: int = 255,
        probability: float = 0.7,
        granularity: Literal["neuron", "weight"] = "neuron",
        **kwargs: Any,
    ) -> None:
        require(len(units) >= 1 and min(units) >= 1, "units", "one or more positive sizes", units)
        require(num_classes >= 2, "num_classes", "at least 2", num_classes)
        require(pixel_maximum >= 1, "pixel_maximum", "positive", pixel_maximum)
        check_image_shape(input_shape)
        with default_policy(kwargs.get("dtype")):
            network = perceptron(units, num_classes, input_shape)
        # All but the first layer
        choice = _choose(network, None, ["^hidden_0$"], embeddings=False, bias=False)
        settings = (probability, granularity, False, None)
        super().__init__(network, choice, "zeros", *settings, **{"name": "mixout", **kwargs})
        self.units, self.num_classes = tuple(units), num_classes
        self.input_size, self.pixel_maximum = tuple(input_shape), pixel_maximum

    def preprocess(self, images: Any) -> np.ndarray:
        """Returns stored images as the model takes them, see `ImageClassifier`; their brightest pixel is 1.

        Raises:
            ValueError: for images of another size, or with brighter pixels.
        """
        brightest = int(np.max(images, initial=0))
        require(brightest <= self.pixel_maximum, "images", f"of pixels up to {self.pixel_maximum}", brightest)
        return np.rint(super().preprocess(images) * 255) / np.float32(self.pixel_maximum)

    def head_variables(self) -> list[keras.Variable]:
        """Returns the last layer's variables with the reference of its kernel: a new head is drawn to zero."""
        references = dict(zip(self.mixed, self.stage(References).values, strict=True))
        return [*super().head_variables(), references["logits/kernel"]]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **ZooModel.get_config(self),
            "units": list(self.units),
            "num_classes": self.num_classes,
            "input_shape": list(self.input_size),
            "pixel_maximum": self.pixel_maximum,
            "probability": self.probability,
            "granularity": self.granularity,
        }


def perceptron(units: Sequence[int], num_classes: int, input_shape: Sequence[int]) -> keras.Sequential:
    """Returns a network of dense layers, `hidden_0` and so on with ReLU, and `logits`."""
    return keras.Sequential(
        [
            keras.Input(tuple(input_shape)),
            _layers.Flatten(name="flatten"),
            *(_layers.Dense(size, activation="relu", name=f"hidden_{index}") for index, size in enumerate(units)),
            _layers.Dense(num_classes, name="logits"),
        ],
        name="perceptron",
    )
