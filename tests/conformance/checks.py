"""What every method of the catalog must do. Each check takes a `Subject` and raises if the method fails.

`MODEL_CHECKS` and `SLOW_MODEL_CHECKS` are all of this module; signatures, trained weights and exports have modules of their
own. What a method's own error stops (`ValueError`) counts as failed too.
"""

import contextlib
import datetime
import json
import math
import re
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from conformance.subject import SEED, SHORT, STEPS, Subject, values

from zoo.config import constructor_arguments, write_config
from zoo.model import Arrays, ZooModel

# The share of its first value by which the loss on one batch has to fall.
LEARNED = 0.5
# Least part that falls to the last of several phases
SHARE = 0.1


def same(first: Arrays, second: Arrays) -> bool:
    """Whether outputs are equal bit for bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def check_same_outputs(subject: Subject, other: ZooModel, what: str) -> None:
    """Holds another model against the subject's, in all signatures."""
    for name, inputs in subject.examples():
        wanted, found = subject.model.run(name, **inputs), other.run(name, **inputs)
        assert same(wanted, found), f"{what} gives other outputs in {name!r}, by up to {_distance(wanted, found)}"


def _distance(first: Arrays, second: Arrays) -> float:
    if first.keys() != second.keys() or any(first[name].shape != second[name].shape for name in first):
        return math.inf
    return max(float(np.max(np.abs(first[name].astype("float64") - second[name]))) for name in first)


# === The catalog's facts ===


def check_facts(subject: Subject) -> None:
    """The facts are complete: paper, task, and presets that say what they are and fit the constructor."""
    method = subject.method
    assert all((method.title, method.summary, method.task)), f"`title`, `summary` or `task` is missing: {method}"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", method.task), f"`task` must be in snake_case. Received: {method.task!r}"
    paper = method.paper
    assert all((paper.title, paper.authors, paper.venue)), f"A fact about the paper is missing. Received: {paper}"
    assert 1950 <= paper.year <= datetime.date.today().year, f"`year` must be a year. Received: {paper}"
    assert paper.url.startswith("https://"), f"`url` must begin with https://. Received: {paper}"
    assert method.default_preset in method.presets, f"There is no preset {method.default_preset!r}"
    for name, preset in method.presets.items():
        valid = set(constructor_arguments(method.load_class(preset.class_name)))
        assert preset.description, f"Preset {name!r} has no description"
        unknown = sorted(set(preset.config) - valid)
        assert not unknown, f"Preset {name!r} has arguments that the constructor does not take: {unknown}"


def check_parameter_count(subject: Subject) -> None:
    """The recorded number of parameters is the model's."""
    recorded, found = subject.preset.parameters, subject.model.count_params()
    assert recorded == found, f"Preset {subject.preset.name!r} records {recorded} parameters, the model has {found}"


# === Building, configuration and saving ===


def check_build(subject: Subject) -> None:
    """A model of the preset builds, with finite weights and at least one signature."""
    model = subject.build()
    assert isinstance(model, ZooModel), f"Must be a ZooModel. Received: {type(model)}"
    assert model.built and model.signatures(), "Building must create the variables, and there must be a signature"
    for variable in model.variables:
        value = variable.value.numpy()
        assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{variable.path} is not finite at the start"
    before = len(model.variables)
    for name in model.signatures():
        model.run(name, **model.dummy_inputs(name))
    after = len(model.variables)
    assert before == after, (
        f"Building must create all variables. Received: {before} variables before and {after} after use"
    )


def check_config(subject: Subject) -> None:
    """`get_config` holds every argument with its value; `from_config` gives the same model."""
    model = subject.model
    config = model.get_config()
    missing = sorted(set(constructor_arguments(type(model))) - set(config))
    assert not missing, f"get_config lacks constructor arguments: {missing}"
    stored = json.loads(write_config(model))["config"]
    given = {**subject.preset.config, **subject.recipe.overrides(subject.dataset)}
    wrong = {name: stored[name] for name, value in given.items() if stored[name] != _as_json(value)}
    assert not wrong, f"get_config returns other values than the constructor was given: {wrong}"
    again = type(model).from_config(config)
    assert again.get_config() == config, "from_config(get_config()) has another configuration"
    _check_with_weights(subject, again, "from_config(get_config())")


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def _check_with_weights(subject: Subject, other: ZooModel, what: str) -> None:
    other.build_from_signature()
    shapes = [[tuple(weight.shape) for weight in model.weights] for model in (subject.model, other)]
    assert shapes[0] == shapes[1], f"{what} has weights of other shapes"
    other.set_weights(subject.model.get_weights())
    check_same_outputs(subject, other, what)


def check_clone(subject: Subject) -> None:
    """`keras.models.clone_model` makes the same model with weights of its own."""
    clone = keras.models.clone_model(subject.model)
    assert type(clone) is type(subject.model), f"The clone must be of the same class. Received: {type(clone)}"
    assert clone.get_config() == subject.model.get_config(), "The clone has another configuration"
    _check_with_weights(subject, clone, "The clone")


def check_keras_file(subject: Subject) -> None:
    """A `.keras` file gives the same model back, also in Keras's safe mode."""
    path = subject.work / "model.keras"
    subject.model.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    assert type(loaded) is type(subject.model), f"Must load as the same class. Received: {type(loaded)}"
    assert loaded.get_config() == subject.model.get_config(), "The loaded model has another configuration"
    # Not the states of random generators, which Keras does not store
    wanted, found = subject.model.get_weights(), loaded.get_weights()
    assert len(wanted) == len(found), f"Of {len(wanted)} weights {len(found)} exist after loading"
    changed = sum(not np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not changed, f"{changed} of {len(wanted)} weights have other values after loading"
    check_same_outputs(subject, loaded, "The model loaded from a .keras file")


def check_keras_file_keeps_assets(subject: Subject) -> None:
    """Files that belong to a model, such as its tokenizer, are in a `.keras` file too."""
    path = subject.work / "assets.keras"
    subject.model.save(path)
    found, wanted = keras.models.load_model(path).assets, subject.model.assets
    assert found == wanted, f"Assets are lost in a .keras file. Received: {sorted(found)}, expected {sorted(wanted)}"


def check_twice(subject: Subject) -> None:
    """Two models in one process do not know of each other."""
    name, inputs = next(subject.examples())
    first, second = subject.build(), subject.build()
    before = second.run(name, **inputs)
    assert same(first.run(name, **inputs), before), "A second model under the same seed gives other outputs"
    for variable in first.variables:
        variable.assign(np.zeros(variable.shape, variable.dtype))
    assert same(before, second.run(name, **inputs)), "Changing the weights of one model changes another"


# === Training ===


def check_fit(subject: Subject) -> None:
    """`fit` learns one batch by heart."""
    losses = subject.training.losses
    assert np.isfinite(losses).all(), f"The loss is not finite. Received: {losses}"
    # A later phase of training may add terms to the loss: the last one counts
    begun, first = losses[:3].mean(), losses[-STEPS:][:3].mean()
    last, noise = losses[-5:].mean(), losses[-10:].std()
    learned = first - last >= LEARNED * abs(first)
    # Where the earlier phases have learned most of it, the last one must add its share
    learned |= begun - last >= LEARNED * abs(begun) and first - last >= SHARE * abs(first)
    assert learned and first - last > 5 * noise, (
        f"The loss on one batch must fall by {LEARNED:.0%} in the last phase, or in all phases with {SHARE:.0%} in the last, "
        f"and by five times its spread ({noise:.3g}). Received: {begun:.4g} at first, from {first:.4g} to {last:.4g} in the "
        f"last {min(STEPS, len(losses))} steps"
    )


def check_determinism(subject: Subject) -> None:
    """The same seed gives the same start, and steps from it that a checkpoint repeats, bit for bit."""
    first, second = (values(subject.build()) for _ in range(2))
    assert len(first) == len(second), "A second model has another number of variables"
    differing = sum(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not differing, f"{differing} of {len(first)} variables differ at the start under the same seed"
    training = subject.training
    pairs = zip(training.weights, training.resumed_weights, strict=True)
    differing = sum(not np.array_equal(a, b) for a, b in pairs)
    assert not differing, f"{differing} variables differ after {SHORT} steps from the same start"


def check_second_training(subject: Subject) -> None:
    """A training of another model, whose step is traced anew, gives the same weights, bit for bit."""
    first, second = subject.training.weights, subject.train().weights
    differing = sum(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not differing, f"{differing} of {len(first)} variables differ between two trainings under the same seed"


# === Mixed precision ===


def check_mixed_precision(subject: Subject) -> None:
    """Under `mixed_bfloat16`: float32 variables and outputs, something computed in bfloat16, all of it finite."""
    exact, mixed = subject.build(), _build_mixed(subject)
    assert mixed.compute_dtype == "bfloat16", f"The policy was ignored. Received: {mixed.dtype_policy}"
    for variable in mixed.variables:
        kept = variable.dtype == "float32" or not keras.backend.is_float_dtype(variable.dtype)
        assert kept, f"{variable.path} must be of dtype float32. Received: {variable.dtype}"
    rng, rounded = np.random.default_rng(SEED), False
    for first, second in zip(exact.trainable_variables, mixed.trainable_variables, strict=True):
        # A network that begins at zero would hide in what precision it is computed
        first.assign(first + 0.01 * rng.standard_normal(first.shape))
        second.assign(first)
    for name, inputs in subject.examples():
        wanted = exact.run(name, **inputs)
        with _types_fit(f"{name!r} under mixed_bfloat16"):
            found = mixed.run(name, **inputs)
        rounded |= not same(wanted, found)
        for key, value in found.items():
            kept = value.dtype.kind in "ib" or value.dtype == np.float32
            assert kept, f"{key!r} of {name!r} must be of dtype float32. Received: {value.dtype}"
            assert np.isfinite(value).all(), f"{key!r} of {name!r} is not finite in bfloat16"
    assert rounded, "No output differs from float32: nothing was computed in bfloat16"


def _build_mixed(subject: Subject) -> ZooModel:
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        with _types_fit("Building under mixed_bfloat16"):
            model = subject.build()
        assert keras.config.dtype_policy().name == "mixed_bfloat16", "Building a model changes Keras's global policy"
    finally:
        keras.config.set_dtype_policy(previous)
    return model


@contextlib.contextmanager
def _types_fit(what: str) -> Iterator[None]:
    """Turns TensorFlow's complaints about types that do not go together into a failed check."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, TypeError) as error:
        raise AssertionError(f"{what} fails: {error}") from error


def check_precision_is_kept(subject: Subject) -> None:
    """A model's precision is its own: a copy made from its configuration computes the same, whatever Keras's default."""
    mixed = _build_mixed(subject)
    copy = type(mixed).from_config(mixed.get_config())
    with _types_fit("Building a mixed_bfloat16 model from its configuration, where Keras's default is float32,"):
        copy.build_from_signature().set_weights(mixed.get_weights())
    pairs = zip(mixed._flatten_layers(), copy._flatten_layers(), strict=True)
    lost = [second.path for first, second in pairs if first.dtype_policy.name != second.dtype_policy.name]
    assert not lost, f"{len(lost)} layers do not take the model's dtype policy, such as {lost[:3]}"
    for name, inputs in subject.examples():
        assert same(mixed.run(name, **inputs), copy.run(name, **inputs)), f"A copy gives other outputs in {name!r}"


MODEL_CHECKS = (
    check_facts,
    check_parameter_count,
    check_build,
    check_config,
    check_clone,
    check_keras_file,
    check_keras_file_keeps_assets,
    check_twice,
    check_fit,
    check_determinism,
    check_mixed_precision,
    check_precision_is_kept,
)
SLOW_MODEL_CHECKS = (check_second_training,)
