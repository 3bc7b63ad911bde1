"""`export_binary`: files of one bit a weight that compute what Keras computes, or no files."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo import cli, export
from zoo.compression import binary
from zoo.compression.real_to_binary import BinaryConv2D, binary_sign
from zoo.export import binary as binary_export
from zoo.export import larq, verify_bundle
from zoo.export.report import ENGINES, read_manifest
from zoo.export.runners import open_artifact
from zoo.model import Signature, Spec, TaskMetric, ZooModel

SMALL = dict(widths=[16, 32], depths=[1, 1], gate_ratio=4)


@pytest.fixture(scope="session")
def small_model(random_binary_network):
    return functools.partial(random_binary_network, **SMALL)


@pytest.fixture(scope="module")
def preset(tmp_path_factory, small_model):
    """A preset directory that names a data set, as trained ones do."""
    from zoo.training.run import dataset_record

    directory = tmp_path_factory.mktemp("presets") / "binary"
    return small_model().save_to_preset(directory, dataset=dataset_record("fashion_mnist_sample"))


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param == "lce":
        request.getfixturevalue("larq_environment")
    return request.param


def left(directory):
    return sorted(path.name for path in directory.iterdir())


# === Bundles ===


def test_bundle_holds_one_verified_file(tmp_path, preset, engine):
    model = zoo.get("real_to_binary", weights=str(preset))
    lines = []
    report = export.export_binary(model, tmp_path / "out", engine, progress=lines.append)
    (artifact,) = report.artifacts
    name = "real_to_binary" + {"lce": ".tflite", "packed": ".bits"}[engine]

    assert left(tmp_path / "out") == sorted(["manifest.json", name])
    assert read_manifest(tmp_path / "out") == report
    assert (artifact.label, artifact.verified) == (f"{engine}/binary", True)
    assert artifact.metric.name == "accuracy"
    assert artifact.metric.value == pytest.approx(artifact.metric.reference, abs=0.01)
    # One bit a weight: float weights alone take 32 times as much
    assert artifact.size < 4 * model.count_params() / 2
    assert 0 < artifact.gzip_size <= 1.01 * artifact.size
    assert 0 < artifact.latency_ms["predict"] < 100
    assert f"Verifying {engine}/binary" in lines

    inputs = model.dummy_inputs(batch_size=5)
    found = open_artifact(engine, {"predict": tmp_path / "out" / name})("predict", inputs)["logits"]
    np.testing.assert_allclose(found, model.run(**inputs)["logits"], atol=1e-3)
    assert verify_bundle(tmp_path / "out", model).artifacts[0].verified


def test_file_of_the_engine_says_what_it_is(tmp_path, larq_environment, small_model):
    export.export_binary(small_model(), tmp_path / "out", "lce", name="net")
    facts, files = export.read_metadata(tmp_path / "out" / "net.tflite")

    assert facts["quantization"] == "binary"
    assert facts["versions"]["larq-compute-engine"] == larq.VERSION
    assert facts["signatures"]["predict"]["outputs"]["logits"]["shape"] == ["batch", 10]
    assert files == {}


def test_given_inputs_and_metric_are_what_a_file_is_judged_by(tmp_path, small_model):
    seen = []

    def compute(run):
        seen.append(run("predict", {"image": np.full((1, 28, 28, 1), 0.5, np.float32)})["logits"])
        return 1.0

    calibration = [np.full((1, 28, 28, 1), value, np.float32) for value in (0.2, 0.4)]
    metric = TaskMetric("score", compute, higher_is_better=True)
    report = export.export_binary(small_model(), tmp_path / "out", "packed", calibration, metric)

    assert report.artifacts[0].metric.name == "score"
    assert len(seen) == 2
    np.testing.assert_allclose(*seen, rtol=1e-4)


def test_bundle_is_replaced_only_when_asked(tmp_path, small_model):
    model = small_model()
    export.export_binary(model, tmp_path / "out", "packed", name="first")
    with pytest.raises(ValueError, match=r"pass overwrite=True to replace it. Received: "):
        export.export_binary(model, tmp_path / "out", "packed", name="second")
    export.export_binary(model, tmp_path / "out", "packed", name="second", overwrite=True)

    assert left(tmp_path / "out") == ["manifest.json", "second.bits"]


@keras.saving.register_keras_serializable(package="zoo_tests")
class Toy(ZooModel):
    """Another model of binary convolutions, whose output has another name and shape."""

    def __init__(self, weight_mode="sign", strides=1, padding_value=0, size=8, channels=8, **kwargs):
        super().__init__(**kwargs)
        self.options = dict(strides=strides, padding_value=padding_value, size=size, channels=channels)
        self.conv = BinaryConv2D(16, 3, strides, padding_value, weight_mode=weight_mode)
        self.conv.build((None, size, size, channels))
        self.built = True

    def call(self, features):
        return self.conv(features)

    def signatures(self):
        shape = ("batch", self.options["size"], self.options["size"], self.options["channels"])
        inputs = {"features": Spec(shape, "float32", "Features.", -1.0, 1.0)}
        return {"encode": Signature(lambda features: {"sums": self(features)}, inputs, {"sums": "Sums."})}

    def with_binary_kernels(self):
        copy = type(self)("none", **self.options)
        copy.conv.kernel.assign(binary_sign(self.conv.kernel.value))
        return copy


def test_any_model_with_binary_kernels_can_be_exported(tmp_path, larq_environment):
    report = export.export_binary(Toy(padding_value=1), tmp_path / "out", "lce", name="toy")

    assert report.artifacts[0].errors["encode"].max_absolute == 0
    assert report.artifacts[0].ops["custom:LceBconv2d"] == 1


# === The engine's padding ===


@pytest.mark.parametrize("padding_value", [0, 1])
@pytest.mark.parametrize("size", [7, 8])
def test_uneven_padding_of_stride_2_is_exact_in_the_engine(tmp_path, larq_environment, size, padding_value):
    model = Toy(strides=2, padding_value=padding_value, size=size, channels=32)
    rng = np.random.default_rng(0)
    # Nothing near the threshold, where rounding would decide
    x = (rng.choice([-1, 1], (6, size, size, 32)) * rng.uniform(0.5, 1.0, (6, size, size, 32))).astype("float32")
    larq.convert(larq.write_static_saved_model(model, tmp_path / "saved"), tmp_path / "model.tflite")
    found = larq.run(tmp_path / "model.tflite", {"features": x}, rounds=1).outputs["sums"]

    assert found.shape == (6, 4, 4, 16)
    np.testing.assert_array_equal(found, model(x))


def test_symmetric_padding_of_stride_2_is_what_the_engine_gets_wrong(tmp_path, larq_environment):
    """Why `BinaryConv2D` pads as "same" does: when this fails, the engine has mended it."""
    kernel = np.random.default_rng(0).choice([-1.0, 1.0], (3, 3, 32, 16)).astype("float32")

    def convolve(x):
        padded = tf.pad(binary_sign(x), [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
        return {"sums": tf.nn.conv2d(padded, kernel, 2, "VALID")}

    concrete = tf.function(convolve).get_concrete_function(tf.TensorSpec((1, 8, 8, 32), name="features"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "saved"), signatures=concrete)
    larq.convert(tmp_path / "saved", tmp_path / "model.tflite")
    x = np.random.default_rng(1).normal(size=(1, 8, 8, 32)).astype("float32")
    found = larq.run(tmp_path / "model.tflite", {"features": x}, rounds=1).outputs["sums"]

    assert np.abs(found - convolve(x)["sums"]).max() > 10


# === Nothing wrong is shipped ===


def test_sums_of_another_kernel_are_refused(tmp_path, monkeypatch, small_model):
    model = small_model()

    def damaged(given):
        packed = binary.pack(given)
        packed.arrays["half_2/kernel"][4, 0, 7] ^= np.uint64(1)
        return packed

    monkeypatch.setattr(binary_export, "pack", damaged)
    with pytest.raises(export.VerificationError, match=r"sums of binary convolution 2 must be Keras's. Received: "):
        export.export_binary(model, tmp_path / "new" / "out", "packed")
    assert left(tmp_path) == []


def test_file_of_another_network_is_refused(tmp_path, monkeypatch, larq_environment, small_model):
    other, write = small_model(seed=1), larq.write_static_saved_model
    monkeypatch.setattr(larq, "write_static_saved_model", lambda model, directory: write(other, directory))

    with pytest.raises(export.VerificationError, match=r"lce/binary: at least 90% of the examples.*Received: "):
        export.export_binary(small_model(), tmp_path / "new" / "out", "lce")
    assert left(tmp_path) == []


def test_file_that_is_bad_at_its_task_is_refused(tmp_path, small_model):
    values = iter([0.9, 0.5])
    metric = TaskMetric("accuracy", lambda run: next(values), higher_is_better=True, absolute_tolerance=0.01)

    with pytest.raises(export.GateError, match=r"packed/binary: accuracy goes from 0.9 to 0.5"):
        export.export_binary(small_model(), tmp_path / "out", "packed", metric=metric)
    assert left(tmp_path) == []


def test_making_the_environment_is_announced_and_its_failure_leaves_nothing(tmp_path, monkeypatch, small_model):
    def fail():
        raise export.ExportError("no network")

    monkeypatch.setattr(larq, "environment_path", lambda: tmp_path / "absent")
    monkeypatch.setattr(larq, "environment_python", fail)
    lines = []

    with pytest.raises(export.ExportError, match="no network"):
        export.export_binary(small_model(), tmp_path / "out", "lce", progress=lines.append)
    assert any(line.startswith("Making the environment of Larq Compute Engine") for line in lines)
    assert left(tmp_path) == []


# === Bad input ===


def test_engine_is_checked(tmp_path, small_model):
    with pytest.raises(ValueError, match=r"`engine` must be one of \('lce', 'packed'\). Received: engine='onnx'"):
        export.export_binary(small_model(), tmp_path / "out", "onnx")


def test_models_that_are_not_binary_are_refused(tmp_path, conv_classifier, small_model):
    with pytest.raises(ValueError, match=r"must have `with_binary_kernels\(\)`.*Received: Functional"):
        export.export_binary(conv_classifier, tmp_path / "out", "lce")
    with pytest.raises(ValueError, match=r"must be a RealToBinaryNet for the engine 'packed'. Received: Toy"):
        export.export_binary(Toy(), tmp_path / "out", "packed")
    for engine in ENGINES:
        with pytest.raises(ValueError, match=r"Received: "):
            export.export_binary(small_model(real=True), tmp_path / "out", engine)
    assert left(tmp_path) == []


def test_a_directory_with_other_things_is_left_alone(tmp_path, small_model):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"`directory` exists and is no export bundle.*Received: "):
        export.export_binary(small_model(), tmp_path, "packed", overwrite=True)
    assert left(tmp_path) == ["mine.txt"]


# === Command line ===


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_writes_a_bundle_that_can_be_verified_and_measured(capsys, tmp_path, preset, engine):
    code, out, err = run(capsys, "export", preset, "--engine", engine, "--output", tmp_path / "out")
    assert code == 0
    assert f"{engine}/binary" in out and "after gzip" in out and "Bundle: " in out
    assert f"Measuring {engine}/binary" in err

    code, out, _ = run(capsys, "verify", tmp_path / "out", "--weights", preset, "--json")
    assert code == 0
    assert [artifact["verified"] for artifact in json.loads(out)["artifacts"]] == [True]

    code, out, _ = run(capsys, "benchmark", tmp_path / "out", "--weights", preset, "--json")
    assert code == 0
    assert 0 < json.loads(out)["artifacts"][0]["latency_ms"]["predict"] < 100


@pytest.mark.parametrize(
    "words", [["--format", "onnx"], ["--quantization", "int8"], ["--opset", "18"], ["--allow-flex"], ["--skip-refused"]]
)
def test_command_refuses_options_of_formats(capsys, tmp_path, preset, words):
    code, out, err = run(capsys, "export", preset, "--engine", "packed", *words, "--output", tmp_path / "out")

    assert (code, out) == (2, "")
    assert f"`--engine` takes the place of formats and their options. Received: {words[0]}" in err
    assert left(tmp_path) == []
