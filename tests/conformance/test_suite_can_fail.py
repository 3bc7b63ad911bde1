"""The conformance suite sees what is wrong: a healthy toy passes every check, each broken one fails its own."""

import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conformance import checks, shipping_checks, signature_checks, toys
from conformance.subject import Subject

import zoo
from zoo import datasets
from zoo.catalog import Method, Paper, Preset
from zoo.metadata import WEIGHTS
from zoo.training.recipe import Recipe, TrainingData

NAME, DATASET = "conformance_toy", "digits"
PAPER = Paper("Toy", "A. Author", "Nowhere", 2020, "https://example.org")
# Wide enough that there is something to compress
WIDTH = 256
PARAMETERS = WIDTH * (toys.NUM_FEATURES + 1) + toys.NUM_CLASSES * (WIDTH + 1)


def examples(seed):
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (32, toys.NUM_FEATURES)).astype("float32")
    return features, features[:, : toys.NUM_CLASSES].argmax(axis=1)


def data(model, dataset, seed):
    batches = tf.data.Dataset.from_tensor_slices(examples(seed)).batch(8)
    return TrainingData(batches.repeat(), batches)


def compiler(optimizer):
    def compile_model(model, num_updates):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, jit_compile=False)

    return compile_model


def evaluate(model, dataset, split):
    features, labels = examples({"validation": 1, "test": 2}[split])
    logits = model.run("predict", features=features)["logits"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    return {"cross_entropy": float(loss)}


RECIPE = Recipe(
    method=NAME,
    preset="tiny",
    dataset=DATASET,
    epochs=1,
    steps_per_epoch=1,
    data=data,
    compile=compiler(lambda: keras.optimizers.Adam(0.03)),
    evaluate=evaluate,
    monitor="val_loss",
)
METHOD = Method(
    name=NAME,
    title="Toy",
    task="toy_task",
    summary="A toy.",
    paper=PAPER,
    module=toys.__name__,
    class_name="Healthy",
    presets={"tiny": Preset("tiny", "As small as it gets.", {"hidden_dim": WIDTH, "scale": 2.0}, PARAMETERS)},
    default_preset="tiny",
    model_class=toys.Healthy,
)


def method_with(**changes):
    """The healthy method with other fields of its preset."""
    preset = dataclasses.replace(METHOD.presets["tiny"], **changes)
    return dataclasses.replace(METHOD, presets={"tiny": preset})


def recipe_with(**changes):
    return dataclasses.replace(RECIPE, **changes)


def fails(check, subject, match):
    # ValueError is what the project's own guards raise before the check can
    with pytest.raises((AssertionError, ValueError), match=match):
        check(subject)


# === The healthy toy ===

HEALTHY_CHECKS = [
    *checks.MODEL_CHECKS,
    *signature_checks.SIGNATURE_CHECKS,
    *shipping_checks.EXPORT_CHECKS,
    *shipping_checks.SLOW_EXPORT_CHECKS,
]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return Subject(METHOD, RECIPE, tmp_path_factory.mktemp("healthy"))


@pytest.mark.parametrize("check", HEALTHY_CHECKS, ids=lambda check: check.__name__)
def test_the_healthy_toy_passes(check, healthy):
    check(healthy)


# === Broken models ===

BROKEN = [
    (toys.UnsavedArgument, checks.check_config, "lacks constructor arguments"),
    (toys.DefaultInsteadOfArgument, checks.check_config, "other values than the constructor was given"),
    (toys.UntrackedWeights, checks.check_clone, "The clone gives other outputs"),
    (toys.UntrackedWeights, checks.check_config, "gives other outputs"),
    (toys.UntrackedWeights, checks.check_keras_file, "loaded from a .keras file gives other outputs"),
    (toys.UnbuiltWhenLoaded, checks.check_keras_file, "exist after loading"),
    (toys.LazyWeights, checks.check_build, "variables before and"),
    (toys.SharedLayers, checks.check_twice, "changes another"),
    (toys.UnseededStart, checks.check_twice, "under the same seed gives other outputs"),
    (toys.UnseededStart, checks.check_determinism, "differ at the start"),
    (toys.RandomInTrace, checks.check_second_training, "between two trainings"),
    (toys.HiddenProgress, checks.check_determinism, "steps from the same start"),
    (toys.LowPrecisionOutput, checks.check_mixed_precision, "Received: bfloat16"),
    (toys.PinnedToFloat32, checks.check_mixed_precision, "nothing was computed in bfloat16"),
    (toys.Float32Constant, checks.check_mixed_precision, "under mixed_bfloat16 fails"),
    (toys.HalfVariables, checks.check_mixed_precision, "must be of dtype float32"),
    (toys.ChangesGlobalPolicy, checks.check_mixed_precision, "global policy"),
    (toys.LosesPolicy, checks.check_precision_is_kept, "do not take the model's dtype policy"),
    (toys.UnknownVerb, signature_checks.check_signature_names, "must be called one of"),
    (toys.Collision, signature_checks.check_signature_names, "share a name"),
    (toys.StaticBatch, signature_checks.check_signature_names, "has 'batch' as its first"),
    (toys.UndeclaredOutput, signature_checks.check_outputs, "declares"),
    (toys.MissingOutput, signature_checks.check_outputs, "declares"),
    (toys.OneRowForAll, signature_checks.check_outputs, "must have 3 rows"),
    (toys.HalfOutput, signature_checks.check_outputs, "Received: float16"),
    (toys.StateOfAnotherShape, signature_checks.check_outputs, "to go in again"),
    (toys.SilentNaN, signature_checks.check_finite, "NaN or infinite on minimum inputs"),
    (toys.DependsOnBatch, signature_checks.check_batch_independence, "depends on the other rows"),
    (toys.HiddenState, signature_checks.check_purity, "when called again"),
    (toys.HiddenVariable, signature_checks.check_purity, "changed 1 variables"),
    (toys.GlobalNoise, signature_checks.check_purity, "when called again"),
    (toys.AcceptsAnything, signature_checks.check_bad_inputs, "is accepted although"),
    (toys.AcceptsNaN, signature_checks.check_bad_inputs, "is accepted although NaN"),
    (toys.VagueErrors, signature_checks.check_bad_inputs, "must name it"),
    (toys.AnotherGraph, signature_checks.check_jit_compile, "XLA's 'logits'"),
    (toys.RandomInGraph, shipping_checks.check_export, "draws random numbers"),
    (toys.AnotherGraph, shipping_checks.check_export, "relative to the output's scale"),
]


@pytest.mark.parametrize(
    ("model_class", "check", "match"), BROKEN, ids=lambda value: getattr(value, "__name__", "") or "because"
)
def test_a_broken_model_fails(model_class, check, match, tmp_path):
    method = dataclasses.replace(METHOD, model_class=model_class)
    fails(check, Subject(method, RECIPE, tmp_path), match)


def test_lost_assets_fail(tmp_path):
    recipe = recipe_with(prepare=lambda model, dataset: model.set_assets({"labels.txt": b"a b c"}))
    subject = Subject(dataclasses.replace(METHOD, model_class=toys.LostAssets), recipe, tmp_path)
    fails(checks.check_keras_file_keeps_assets, subject, "Assets are lost")


# === Broken training and facts ===


def test_a_model_that_does_not_learn_fails(tmp_path):
    recipe = recipe_with(compile=compiler(lambda: keras.optimizers.SGD(0.0)))
    fails(checks.check_fit, Subject(METHOD, recipe, tmp_path), "loss on one batch must fall")


@pytest.mark.parametrize("start", [1.0, 0.15])
def test_a_last_phase_that_learns_passes(start):
    checks.check_fit(two_phases(np.linspace(start, 0.1, checks.STEPS)))


@pytest.mark.parametrize("start", [0.1, 0.105])
def test_a_last_phase_that_learns_nothing_fails(start):
    noise = np.random.default_rng(0).normal(0.0, 1e-4, checks.STEPS)
    fails(checks.check_fit, two_phases(np.linspace(start, 0.1, checks.STEPS) + noise), "loss on one batch must fall")


def two_phases(second):
    """A training whose first phase learns."""
    return SimpleNamespace(training=SimpleNamespace(losses=np.append(np.linspace(1.0, 0.1, checks.STEPS), second)))


def test_a_training_that_explodes_fails(tmp_path):
    recipe = recipe_with(compile=compiler(lambda: keras.optimizers.SGD(1e38)))
    fails(checks.check_fit, Subject(METHOD, recipe, tmp_path), "not finite")


FACTS = [
    (dataclasses.replace(METHOD, title=""), "is missing"),
    (dataclasses.replace(METHOD, task="Toy Task"), "snake_case"),
    (dataclasses.replace(METHOD, paper=dataclasses.replace(PAPER, authors="")), "about the paper is missing"),
    (dataclasses.replace(METHOD, paper=dataclasses.replace(PAPER, year=0)), "must be a year"),
    (dataclasses.replace(METHOD, paper=dataclasses.replace(PAPER, url="example.org")), "https"),
    (dataclasses.replace(METHOD, presets={**METHOD.presets, "other": Preset("other", "", {})}), "no description"),
    (method_with(config={"depth": 3}), "does not take"),
]


@pytest.mark.parametrize(("method", "match"), FACTS, ids=lambda value: value if isinstance(value, str) else "")
def test_incomplete_facts_fail(method, match, healthy, tmp_path):
    fails(checks.check_facts, Subject(method, RECIPE, tmp_path), match)


def test_a_wrong_parameter_count_fails(tmp_path):
    method = method_with(parameters=PARAMETERS + 1)
    fails(checks.check_parameter_count, Subject(method, RECIPE, tmp_path), "the model has")


# === Broken weights ===


@pytest.fixture
def shipped(tmp_path):
    """Saves a preset as a training does, with what a test changes, and returns it as a subject."""
    zoo.register(toys.Healthy, name=NAME, title="Toy", task="toy_task", presets={"tiny": {}})

    def ship(config=None, **changes):
        config = {**METHOD.presets["tiny"].config, **(config or {})}
        model = toys.Healthy(**config)
        record = {
            "preset": "tiny",
            "metrics": {f"test_{name}": value for name, value in evaluate(model, DATASET, "test").items()},
            "dataset": {"name": DATASET, "split": "train", "sha256": datasets.info(DATASET).sha256, "licence": "MIT"},
            "training": {"command": "zoo train", "seed": 0, "steps": 0},
        }
        model.save_to_preset(tmp_path / "weights", method=NAME, **{**record, **changes})
        method = method_with(weights=tmp_path / "weights", config=config, parameters=model.count_params())
        return Subject(method, RECIPE, tmp_path)

    yield ship
    zoo.unregister(NAME)


def test_healthy_weights_pass(shipped):
    subject = shipped()
    for check in (*shipping_checks.SHIPPED_CHECKS, checks.check_config, checks.check_parameter_count):
        check(subject)
    assert subject.model.metadata is not None


def test_weights_that_do_not_reach_their_metric_fail(shipped):
    subject = shipped()
    reached = subject.model.metadata.metrics["test_cross_entropy"]
    worse = shipped(metrics={"test_cross_entropy": 0.998 * reached})
    fails(shipping_checks.check_metric, worse, "cross_entropy is recorded as")


def test_a_metric_of_another_name_fails(shipped):
    fails(shipping_checks.check_metric, shipped(metrics={"test_accuracy": 1.0}), "not the same ones")


def test_damaged_weights_fail(shipped):
    subject = shipped()
    path = subject.preset.weights / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    fails(shipping_checks.check_weights, subject, "damaged")


def test_weights_that_are_too_large_fail(shipped):
    fails(shipping_checks.check_weights, shipped(config={"hidden_dim": 100_000}), "may have at most")


METADATA = [
    ({"preset": "other"}, "of another preset"),
    ({"metrics": {}}, "no test metric"),
    ({"dataset": {"name": DATASET}}, "`dataset` of the metadata lacks"),
    ({"training": {}}, "`training` of the metadata lacks"),
    ({"licence": ""}, "licence of the weights is missing"),
    (
        {"dataset": {"name": DATASET, "split": "train", "sha256": "0" * 64, "licence": "MIT"}},
        "another version of the data set",
    ),
]


@pytest.mark.parametrize(("changes", "match"), METADATA, ids=lambda value: value if isinstance(value, str) else "")
def test_incomplete_metadata_fail(changes, match, shipped):
    fails(shipping_checks.check_metadata, shipped(**changes), match)


def test_too_many_weights_together_fail(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(shipping_checks.LARGEST_TOTAL + 1)
    with pytest.raises(AssertionError, match="together"):
        shipping_checks.check_total_size(tmp_path)


RECORDS = [
    ({"refused": "worse than allowed"}, "is recorded as"),
    ({"metric": "relative_output_error", "value": 0.09}, "is recorded with 0.09"),
]


@pytest.mark.parametrize(("record", "match"), RECORDS, ids=["refused", "value"])
def test_a_wrong_record_of_an_export_fails(record, match, shipped):
    fails(shipping_checks.check_recorded_exports, shipped(export={"litert/float16": record}), match)
