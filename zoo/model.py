"""`ZooModel`: what every model of the catalog offers beyond a Keras model.

A model describes what it offers when deployed by `signatures()`: named pure functions with named tensor inputs. Export,
verification, benchmarks and the conformance suite use nothing else.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from zoo.checkpoints import Metadata

_logger = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
# Runs one signature in some runtime: `run(name, inputs) -> outputs`.
Runner = Callable[[str, Arrays], Arrays]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A named tensor input of a signature.

    Args:
        shape: tuple of int (static) and str (dynamic; the name of the dimension). Most begin with `"batch"`.
        dtype: str. `"float32"`, `"int32"` or `"bool"`.
        description: str. What the tensor means.
        minimum: number or None. Smallest valid value.
        maximum: number or None. Largest valid value.
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None

    def tensor_spec(self, name: str) -> tf.TensorSpec:
        """Returns the TensorFlow spec, dynamic dimensions as `None`."""
        return tf.TensorSpec([d if isinstance(d, int) else None for d in self.shape], self.dtype, name=name)

    def draw(self, rng: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
        """Returns a random valid value.

        Args:
            rng: NumPy generator.
            sizes: mapping from the names of dynamic dimensions to sizes.
        """
        shape = [d if isinstance(d, int) else sizes[d] for d in self.shape]
        if self.dtype == "bool":
            return rng.random(shape) < 0.5
        if np.issubdtype(self.dtype, np.integer):
            low = 0 if self.minimum is None else int(self.minimum)
            high = low + 1 if self.maximum is None else int(self.maximum)
            return rng.integers(low, high + 1, shape).astype(self.dtype)
        if self.minimum is not None and self.maximum is not None:
            return rng.uniform(self.minimum, self.maximum, shape).astype(self.dtype)
        return rng.standard_normal(shape).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Signature:
    """One deployable function of a model.

    Args:
        function: callable. Takes exactly the inputs as keyword arguments (tensors) and returns a dict of tensors. Pure:
            state goes in and out, randomness is an input.
        inputs: dict from input name to `Spec`.
        outputs: dict from output name to its meaning; names differ from every input's.
        sizes: dict of example sizes for the dynamic dimensions other than `"batch"`.
        maximum_sizes: dict of largest valid sizes of dynamic dimensions, where there are any.
    """

    function: Callable[..., dict[str, tf.Tensor]]
    inputs: dict[str, Spec]
    outputs: dict[str, str]
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    maximum_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shared = set(self.inputs) & set(self.outputs)
        if shared:
            raise ValueError(f"An input and an output of a signature share a name. Received: {sorted(shared)}")

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """Checks concrete inputs against the specs and returns them as arrays of the right type.

        Raises:
            ValueError: for missing or unknown names, wrong ranks, sizes, values out of range, or NaN and infinity.
            TypeError: for a type that does not convert safely.
        """
        if set(inputs) != set(self.inputs):
            raise ValueError(f"Expected inputs {sorted(self.inputs)}. Received: {sorted(inputs)}")
        sizes: dict[str, tuple[int, str]] = {}
        return {name: self._check_one(name, np.asarray(inputs[name]), sizes) for name in self.inputs}

    def _check_one(self, name: str, value: np.ndarray, sizes: dict[str, tuple[int, str]]) -> np.ndarray:
        spec = self.inputs[name]
        if value.ndim != len(spec.shape):
            raise ValueError(f"`{name}` must have shape {spec.shape}. Received: shape={value.shape}")
        for wanted, size in zip(spec.shape, value.shape, strict=True):
            first, by = sizes.setdefault(wanted, (size, name)) if isinstance(wanted, str) else (wanted, name)
            if size != first:
                also = f" and dimension {wanted!r} is {first} in `{by}`" if by != name else ""
                raise ValueError(f"`{name}` must have shape {spec.shape}{also}. Received: shape={value.shape}")
            if isinstance(wanted, str) and size > self.maximum_sizes.get(wanted, size):
                raise ValueError(
                    f"`{name}` may have at most {self.maximum_sizes[wanted]} along dimension {wanted!r}. Received: {size}"
                )
            if size == 0:
                raise ValueError(f"`{name}` must not be empty. Received: shape={value.shape}")
        if not np.can_cast(value.dtype, spec.dtype, "same_kind"):
            raise TypeError(f"`{name}` must be of dtype {spec.dtype}. Received: dtype={value.dtype}")
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise ValueError(
                f"`{name}` must be finite. Received: {int((~np.isfinite(value)).sum())} NaN or infinite values"
            )
        for bound, broken in ((spec.minimum, np.less), (spec.maximum, np.greater)):
            if bound is not None and broken(value, bound).any():
                raise ValueError(
                    f"`{name}` must be in [{spec.minimum}, {spec.maximum}]. "
                    f"Received: values from {value.min()} to {value.max()}"
                )
        return value.astype(spec.dtype)


@dataclasses.dataclass(frozen=True)
class TaskMetric:
    """The number by which a method is judged, computable in any runtime.

    Args:
        name: str, with its unit, such as `"bits_per_character"`.
        compute: callable from a `Runner` to a float: reads held-out data through the model's signatures.
        higher_is_better: bool.
        relative_tolerance: float. Worsening a compressed artifact may show, as a share of the float model's value.
        absolute_tolerance: float. The same in the metric's unit; the two add up.
        two_sided: bool. Whether a change for the better counts as a worsening too. A density must: one that quantisation
            raised is no longer normalised, so its better number is no better model.
    """

    name: str
    compute: Callable[[Runner], float]
    higher_is_better: bool
    relative_tolerance: float = 0.0
    absolute_tolerance: float = 0.0
    two_sided: bool = False

    def worsening(self, reference: float, value: float) -> float:
        """Returns by how much `value` is worse than `reference`, negative where it is better."""
        change = reference - value if self.higher_is_better else value - reference
        return abs(change) if self.two_sided else change

    def allowed(self, reference: float) -> float:
        """Returns the largest acceptable worsening from `reference`."""
        return self.absolute_tolerance + self.relative_tolerance * abs(reference)


class ZooModel(keras.Model):
    """A Keras model with signatures, presets and verified export.

    Subclasses take plain constructor arguments, return all of them from `get_config`, and implement `signatures`.
    """

    # The record of a trained preset, set when one is loaded.
    metadata: Metadata | None = None
    # The record of the preset whose backbone this is, where a new head was put on it.
    pretrained: Metadata | None = None
    # Constructor arguments that another head may have; none where there is no backbone. "head" may be a class's own.
    head_arguments: tuple[str, ...] = ()

    @property
    def assets(self) -> dict[str, bytes]:
        """Files that belong to the model, such as `tokenizer.json`: stored in presets, shipped in export bundles."""
        return {}

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Takes back what `assets` gave, when a preset is loaded."""
        if assets:
            raise ValueError(f"{type(self).__name__} has no assets. Received: {sorted(assets)}")

    def get_build_config(self) -> dict[str, Any]:
        """Tells Keras that a loaded model must be built before weights are read into it."""
        return {"input_shape": None}

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Creates all variables (called by Keras on loading a `.keras` file)."""
        self.build_from_signature()

    def make_train_function(self, force: bool = False) -> None:
        """Makes the training step (called by Keras), the optimiser's variables first.

        Made within the first step they would have it traced twice, which may take longer than a hundred steps.
        """
        if self.built and self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)

    def save_assets(self, directory: str | Path) -> None:
        """Puts the assets into a `.keras` file (called by Keras)."""
        for name, content in self.assets.items():
            Path(directory, name).write_bytes(content)

    def load_assets(self, directory: str | Path) -> None:
        """Takes the assets out of a `.keras` file (called by Keras)."""
        self.set_assets({path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())})

    def signatures(self) -> dict[str, Signature]:
        """Returns what the model offers when deployed, the main signature first."""
        raise NotImplementedError(f"{type(self).__name__} defines no signatures.")

    def dummy_inputs(self, signature: str | None = None, batch_size: int = 2, seed: int = 0) -> Arrays:
        """Returns random valid inputs of a signature.

        Args:
            signature: str or None. The first signature by default.
            batch_size: int. Size of the dimension `"batch"`.
            seed: int.

        Returns:
            Dict of NumPy arrays.
        """
        chosen = self._signature(signature)
        rng = np.random.default_rng(seed)
        sizes = {"batch": batch_size, **chosen.sizes}
        return {name: spec.draw(rng, sizes) for name, spec in chosen.inputs.items()}

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields inputs of a signature from the data set the checkpoint names, for calibration and checks.

        Yields nothing where the model has no recorded data set.

        Args:
            signature: str.
            batch_size: int. Size of the dimension `"batch"`.
        """
        return ()

    def task_metric(self) -> TaskMetric | None:
        """Returns the metric that compressed artifacts are judged by; `None` for a model without recorded data."""
        return None

    def run(self, signature: str | None = None, **inputs: Any) -> Arrays:
        """Checks inputs, runs one signature and returns its outputs as NumPy arrays.

        Args:
            signature: str or None. The first signature by default.
            **inputs: array-likes, by the signature's input names.

        Returns:
            Dict of NumPy arrays.

        Raises:
            ValueError: for an unknown signature and for inputs that do not fit it.
            TypeError: for inputs of a wrong type.
        """
        chosen = self._signature(signature)
        checked = chosen.check(inputs)
        outputs = chosen.function(**{name: tf.constant(value) for name, value in checked.items()})
        return {name: np.asarray(value) for name, value in outputs.items()}

    def build_from_signature(self) -> ZooModel:
        """Creates all variables by running the first signature once on dummy inputs; returns the model."""
        if not self.built:
            self.run(None, **self.dummy_inputs(batch_size=1))
            self.built = True
        return self

    def with_head(self, head: str | None, **arguments: Any) -> ZooModel:
        """Returns a new model with a copy of this one's backbone, and a new head that starts at random.

        Args:
            head: str or None. One of those that the class has.
            **arguments: constructor arguments that change, such as `num_classes`.

        Raises:
            ValueError: for a model without a backbone, and for arguments that change the backbone's weights.
        """
        raise ValueError(f"A {type(self).__name__} has no backbone to put a head on. Received: head={head!r}")

    def layer_groups(self) -> dict[str, list[keras.layers.Layer]]:
        """Returns the parts of the model from its input to its output, the last of which is `"head"`, each with its layers.

        Fine-tuning freezes by these, and lets the learning rate grow from one to the next.

        Raises:
            ValueError: for a model without a backbone.
        """
        raise ValueError(f"A model must have a backbone to be fine-tuned. Received: a {type(self).__name__}")

    def fit_head(self, **arguments: Any) -> ZooModel:
        """Returns this model where it has the head that is asked for, and else, and then says so, one with a new head.

        Args:
            **arguments: some of `head_arguments`, `head` among them.
        """
        if all(getattr(self, name) == value for name, value in arguments.items()):
            return self
        model = self.with_head(**arguments)
        _logger.warning("The head of %s is new and starts at random: %s", type(self).__name__, arguments)
        model.pretrained = self.metadata
        return model

    def save_to_preset(self, directory: str | Path, **kwargs: Any) -> Path:
        """Writes config, weights and metadata to a preset directory, atomically.

        Args:
            directory: path. It must not exist, or be a preset directory, which is replaced.
            **kwargs: fields of `zoo.checkpoints.Metadata`, such as `metrics` and `licence`.

        Returns:
            The directory.
        """
        from zoo import checkpoints

        return checkpoints.save_preset(self, directory, **kwargs)

    def export(
        self,
        filepath: str | Path,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Exports one artifact, verified, with Keras's own argument names.

        Args:
            filepath: path of the artifact: a directory for a SavedModel, a file otherwise. A model with several
                signatures gives one ONNX file each: `model.onnx` becomes `model.<signature>.onnx`.
            format: `"tf_saved_model"`, `"litert"` or `"onnx"`.
            verbose: bool or None. Whether to print the report table. True by default.
            input_signature: must be `None`: the model's signatures say it.
            **kwargs: arguments of `zoo.export.export_model`, such as `quantization="dynamic_int8"`.

        Raises:
            ValueError: for an unknown format, a failed verification or gate, or an `input_signature`.
        """
        if input_signature is not None:
            raise ValueError("`input_signature` must be None: the model's signatures() say it.")
        from zoo.export import export_file

        export_file(self, filepath, format=format, verbose=verbose is not False, **kwargs)

    def _signature(self, name: str | None) -> Signature:
        signatures = self.signatures()
        if name is None:
            return next(iter(signatures.values()))
        if name not in signatures:
            raise ValueError(f"Unknown signature; this model has {list(signatures)}. Received: {name!r}")
        return signatures[name]
