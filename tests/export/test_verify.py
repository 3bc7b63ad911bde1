import numpy as np
import pytest

from zoo.export import GateError, VerificationError
from zoo.export.calibration import LIMIT, Calibration
from zoo.export.gate import Gate
from zoo.export.verify import BATCHES, Reference, compare_outputs, keras_runner
from zoo.model import TaskMetric


def outputs(**changes):
    values = {"y": np.arange(6, dtype="float32").reshape(2, 3), "ids": np.array([1, 2], "int32")}
    return {**values, **changes}


def shifted(amount):
    y = outputs()["y"].copy()
    y[1, 0] += amount
    return outputs(y=y)


def test_equal_outputs_have_no_error():
    error = compare_outputs("a", outputs(), outputs(), 1e-4)

    assert (error.max_absolute, error.max_relative) == (0.0, 0.0)


def test_error_within_tolerance_is_located():
    error = compare_outputs("a", outputs(), shifted(1e-4), 1e-4)

    assert (error.output, error.index) == ("y", (1, 0))
    assert error.max_absolute == pytest.approx(1e-4, rel=0.01)
    assert error.max_relative == pytest.approx(1e-4 / 5, rel=0.01)


def test_error_over_tolerance_names_everything():
    with pytest.raises(VerificationError, match=r"litert/none, output 'y' at index \(1, 0\): Keras gives 3 .* 3\.5;"):
        compare_outputs("litert/none", outputs(), shifted(0.5), 1e-4)


def test_without_tolerance_the_error_is_measured_only():
    assert compare_outputs("a", outputs(), shifted(0.5), None).max_absolute == 0.5


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (outputs(ids=np.array([1, 3], "int32")), r"'ids' at index \(1,\)"),
        (outputs(ids=np.array([1, 2], "int64")), "dtype=int64"),
        (outputs(y=np.zeros((2, 1), "float32")), r"shape=\(2, 1\)"),
        ({"y": outputs()["y"]}, r"expected the outputs \['ids', 'y'\]"),
        (shifted(np.nan), r"'y' at index \(1, 0\).*Received: nan"),
        (shifted(np.inf), "Received: inf"),
    ],
)
def test_differences_that_no_tolerance_covers(received, message):
    with pytest.raises(VerificationError, match=message):
        compare_outputs("a", outputs(), received, 1e-4)


def test_non_finite_values_are_refused_even_when_only_measuring():
    with pytest.raises(VerificationError, match="non-finite"):
        compare_outputs("a", outputs(), shifted(np.nan), None)


def test_nan_and_infinity_where_keras_has_them_agree():
    assert compare_outputs("a", shifted(np.nan), shifted(np.nan), 1e-4).max_absolute == 0
    assert compare_outputs("a", shifted(-np.inf), shifted(-np.inf), 1e-4).max_absolute == 0
    with pytest.raises(VerificationError, match="Received: inf"):
        compare_outputs("a", shifted(-np.inf), shifted(np.inf), 1e-4)


def test_reference_runs_batches_1_and_3_on_random_and_real_inputs(language_model):
    signatures = language_model.signatures()
    reference = Reference(language_model, signatures, Calibration(language_model, signatures))
    seen = []

    def run(name, inputs):
        seen.append(len(inputs["token_ids"]))
        return keras_runner(signatures)(name, inputs)

    errors = reference.compare("keras", run, 1e-4)

    assert seen == [*BATCHES, 1, 1, 3, 3]
    assert errors["step"].max_absolute < 1e-5


def test_wrong_numbers_and_failing_runtimes_are_named(language_model):
    signatures = language_model.signatures()
    reference = Reference(language_model, signatures, Calibration(language_model, signatures))

    def wrong(name, inputs):
        values = keras_runner(signatures)(name, inputs)
        values["logits"] = values["logits"].copy()
        values["logits"][0, 2, 5] += 1.0
        return values

    def failing(name, inputs):
        raise RuntimeError("no kernel")

    with pytest.raises(VerificationError, match=r"onnx/none, signature 'step'.*'logits' at index \(0, 2, 5\)"):
        reference.compare("onnx/none", wrong, 1e-4)
    with pytest.raises(VerificationError, match=r"the runtime failed\. Received: RuntimeError: no kernel"):
        reference.compare("onnx/none", failing, 1e-4)


# === Gate ===


def gate(model, metric=None, calibration=None):
    signatures = model.signatures()
    return Gate(model, signatures, Calibration(model, signatures, calibration), metric)


def noisy(model, scale):
    rng = np.random.default_rng(0)

    def run(name, inputs):
        values = keras_runner(model.signatures())(name, inputs)
        return {key: value * (1 + scale * rng.standard_normal(value.shape)) for key, value in values.items()}

    return run


def test_gate_uses_the_models_metric(language_model):
    judge = gate(language_model)

    fine, bad = judge.measure(noisy(language_model, 1e-4)), judge.measure(noisy(language_model, 0.5))

    judge.check("a", fine)
    assert fine.name == "bits_per_token"
    assert fine.allowed == pytest.approx(0.01 + 0.02 * judge.reference)
    with pytest.raises(GateError, match=r"litert/int8: bits_per_token goes from .* where .* is allowed"):
        judge.check("litert/int8", bad)


def test_gate_without_metric_judges_the_outputs(density):
    judge = gate(density)

    change = judge.measure(noisy(density, 0.01))

    assert judge.reference == 0
    assert 0.005 < change.value < 0.03
    judge.check("a", change)
    with pytest.raises(GateError, match="relative_output_error"):
        judge.check("a", judge.measure(noisy(density, 0.3)))


def test_gate_refuses_nan(density):
    judge = gate(density)

    with pytest.raises(GateError, match="Received: nan"):
        judge.check("a", judge.measure(noisy(density, np.nan)))


def test_given_metric_goes_first_and_must_be_one(language_model):
    constant = TaskMetric("accuracy", lambda run: 0.5, higher_is_better=True)

    assert gate(language_model, constant).reference == 0.5
    with pytest.raises(TypeError, match="TaskMetric"):
        gate(language_model, lambda run: 0.5)
    with pytest.raises(GateError, match="not finite"):
        gate(language_model, TaskMetric("accuracy", lambda run: np.nan, higher_is_better=True))


# === Calibration ===


def test_calibration_takes_arrays_tuples_and_dicts(density):
    x = np.ones((2, 4), "float32")
    signatures = density.signatures()

    by_array = Calibration(density, signatures, [x])
    by_tuple = Calibration(density, signatures, [(x, np.zeros(2))])
    by_name = Calibration(density, signatures, {"decode": ({"z": x} for _ in range(1000))})

    np.testing.assert_array_equal(by_array.real("log_prob")[0]["x"], x)
    np.testing.assert_array_equal(by_tuple.real("log_prob")[0]["x"], x)
    assert len(by_name.real("decode")) == LIMIT
    assert by_name.real("log_prob") == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"unknown": []}, "may name the signatures"),
        ([], "at least one input"),
        ([np.ones((2, 5), "float32")], "must have shape"),
        ([{"y": np.ones((2, 4), "float32")}], "Expected inputs"),
        ([np.full((2, 4), np.nan, "float32")], "finite"),
    ],
)
def test_calibration_that_does_not_fit_is_refused(density, data, message):
    with pytest.raises(ValueError, match=message):
        Calibration(density, density.signatures(), data)
