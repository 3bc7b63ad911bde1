import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.export import ExportError, GateError, export_model, onnx
from zoo.export.onnx_quantize import _float16
from zoo.export.quantize import FULL, RESTRICTED
from zoo.export.runners import open_artifact
from zoo.export.signatures import trace
from zoo.model import Signature, Spec, TaskMetric

COMPRESSED = ("float16", "dynamic_int8", "weight_only_int8", "int4", "int8")
RUNTIMES = ("litert", "onnx")


@pytest.fixture(scope="module")
def language_report(language_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("quantize") / "bundle"
    return export_model(language_model, directory, RUNTIMES, ("none", *COMPRESSED), benchmark=False)


@pytest.fixture(scope="module")
def classifier_report(conv_classifier, images, tmp_path_factory):
    directory = tmp_path_factory.mktemp("quantize") / "bundle"
    return export_model(
        conv_classifier, directory, RUNTIMES, ("none", *COMPRESSED), calibration=list(images), benchmark=False
    )


@pytest.mark.parametrize("format", RUNTIMES)
@pytest.mark.parametrize("mode", COMPRESSED)
def test_language_model_keeps_its_metric_and_shrinks(language_report, format, mode):
    artifact, full = language_report.artifact(format, mode), language_report.artifact(format)

    share = {"float16": 0.6, "int4": 0.4}.get(mode, 0.48)
    assert artifact.size < share * full.size
    assert artifact.verified
    assert artifact.metric.name == "bits_per_token"
    assert artifact.metric.value - artifact.metric.reference <= artifact.metric.allowed
    assert artifact.errors["step"].max_absolute > full.errors["step"].max_absolute


@pytest.mark.parametrize("format", RUNTIMES)
@pytest.mark.parametrize("mode", COMPRESSED)
def test_plain_classifier_passes_every_mode(classifier_report, format, mode):
    artifact, full = classifier_report.artifact(format, mode), classifier_report.artifact(format)

    assert artifact.size < 0.55 * full.size
    assert artifact.metric.name == "relative_output_error"
    assert 0 < artifact.metric.value < 0.1


def test_small_masks_allow_full_integer_arithmetic(language_report):
    assert {language_report.artifact(format, "int8").variant for format in RUNTIMES} == {FULL}


def test_integers_are_really_inside(language_report):
    assert language_report.artifact("onnx", "int8").ops["DequantizeLinear"] > 10
    assert language_report.artifact("onnx", "int4").ops["MatMulNBits"] == 7
    assert language_report.artifact("onnx", "weight_only_int8").ops["MatMulNBits"] == 7
    assert language_report.artifact("onnx", "dynamic_int8").ops["MatMulInteger"] == 7
    assert language_report.artifact("litert", "int8").ops["QUANTIZE"] >= 1


@pytest.mark.parametrize("format", RUNTIMES)
def test_mask_of_minus_1e9_ruins_full_int8_and_the_restricted_recipe_ships(masked_language_model, tmp_path, format):
    report = export_model(masked_language_model, tmp_path / "b", [format], "int8", benchmark=False)

    artifact = report.artifact(format, "int8")
    assert artifact.variant == RESTRICTED
    assert artifact.metric.value < 1.1 * artifact.metric.reference
    assert len(artifact.notes) == 1
    assert FULL in artifact.notes[0]
    assert "bits_per_token goes from" in artifact.notes[0]


def test_gate_that_no_recipe_passes_leaves_nothing(masked_language_model, tmp_path):
    own = masked_language_model.task_metric()
    strict = TaskMetric(own.name, own.compute, own.higher_is_better, absolute_tolerance=-1.0)

    with pytest.raises(GateError, match=f"no recipe is good enough.*{FULL}.*{RESTRICTED}"):
        export_model(masked_language_model, tmp_path / "b", ["onnx"], "int8", metric=strict, benchmark=False)
    assert not list(tmp_path.iterdir())


def test_refused_artifacts_can_be_left_out_and_recorded(language_model, tmp_path):
    own = language_model.task_metric()
    strict = TaskMetric(own.name, own.compute, own.higher_is_better, absolute_tolerance=-1.0)

    report = export_model(
        language_model, tmp_path / "b", ["onnx"], ("none", "int4"), metric=strict, skip_refused=True, benchmark=False
    )

    assert [artifact.quantization for artifact in report.artifacts] == ["none"]
    assert report.refused[0]["quantization"] == "int4"
    assert "bits_per_token" in report.refused[0]["reason"]
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "assets",
        "manifest.json",
        "toy_language_model.onnx",
    }


def test_int8_without_real_inputs_is_refused_at_once(density, tmp_path):
    stages = []

    with pytest.raises(
        ExportError, match=r"pass `calibration=`.*`--calibration FILE`.*no data for \['log_prob', 'encode'"
    ):
        export_model(density, tmp_path / "b", ["litert"], "int8", progress=stages.append)
    assert not stages
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "message"), [("litert", "multiple of 32"), ("onnx", "could be compressed")])
def test_int4_without_anything_to_compress_is_refused(tmp_path, format, message):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D()])

    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path / "b", [format], "int4", benchmark=False)


def test_int4_leaves_layers_of_odd_sizes_in_float(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(64), keras.layers.Dense(50), keras.layers.Dense(64)]
    model = keras.Sequential([keras.Input((32,)), *layers])

    report = export_model(model, tmp_path / "b", ["litert"], ("none", "int4"), name="m", benchmark=False)

    # 32x64 and 64x50 become 4 bits, 50x64 stays.
    assert report.artifact("litert", "int4").size < 4 * 50 * 64 + (32 * 64 + 64 * 50) * 0.7 + 8000
    assert report.artifact("litert", "int4").size > 4 * 50 * 64


@pytest.mark.parametrize("mode", ["weight_only_int8", "int4"])
def test_large_tensors_survive_the_embedding_of_metadata(tmp_path, mode):
    # The quantizer puts the tensors of files beyond some size behind the flatbuffer.
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1024), keras.layers.Dense(512)])

    report = export_model(model, tmp_path / "b", ["litert"], mode, name="m", benchmark=False)

    assert report.artifact("litert", mode).metric.value < 0.1


def test_static_ranges_need_inputs_of_the_right_shape(conv_classifier, tmp_path):
    with pytest.raises(ValueError, match="must have shape"):
        export_model(conv_classifier, tmp_path / "b", ["onnx"], "int8", calibration=[np.zeros((1, 4, 4, 1), "float32")])


def test_float16_leaves_integers_whole(tmp_path):
    def count(ids):
        """Two ids that are the same number in float16, and a length that is none."""
        known, length = ids < 30_001, tf.minimum(tf.maximum(tf.shape(ids)[1], 2), 1_000_000)
        return {"y": tf.where(known, 1.5, 0.25)[:, :length], "length": tf.cast(length, "float32") / 4}

    ids = np.array([[30_000, 30_002, 1, 7]], "int32")
    functions = trace({"predict": Signature(count, {"ids": Spec(("batch", "time"), "int32")}, {"y": "", "length": ""})})
    model = onnx.convert(functions["predict"], "m", output_dimensions={"y": ["batch", "time"], "length": []})
    (path,) = onnx.write({"predict": _float16(model)}, tmp_path, "m")

    found = open_artifact("onnx", {"predict": path})("predict", {"ids": ids})

    np.testing.assert_array_equal(found["y"], [[1.5, 0.25, 1.5, 1.5]])
    assert found["length"] == 1


def test_float16_asks_float32_what_is_infinite(tmp_path):
    functions = trace(
        {"predict": Signature(lambda x: {"y": tf.math.is_inf(2 * x)}, {"x": Spec(("batch", 2))}, {"y": ""})}
    )
    model = onnx.convert(functions["predict"], "m", output_dimensions={"y": ["batch", 2]})
    (path,) = onnx.write({"predict": _float16(model)}, tmp_path, "m")

    found = open_artifact("onnx", {"predict": path})("predict", {"x": np.array([[np.inf, 1]], "float32")})

    assert found["y"].tolist() == [[True, False]]
