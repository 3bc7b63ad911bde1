import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from rich.console import Console

import zoo.export
from zoo.export import ExportReport, VerificationError, export_file, export_model, read_metadata, verify_bundle
from zoo.export import pipeline as pipeline_module
from zoo.export.runners import open_artifact
from zoo.files import publish
from zoo.model import Signature, Spec

FORMATS = ("saved_model", "litert", "onnx")


@pytest.fixture(scope="module")
def density_bundle(density, tmp_path_factory):
    directory = tmp_path_factory.mktemp("density") / "bundle"
    return directory, export_model(density, directory, benchmark=False)


@pytest.fixture(scope="module")
def language_bundle(language_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("language") / "new" / "bundle"
    return directory, export_model(language_model, directory, quantization=("none", "dynamic_int8"))


# === What a bundle holds ===


def test_all_formats_agree_with_keras(density_bundle, language_bundle):
    for _, report in (density_bundle, language_bundle):
        for format in FORMATS:
            artifact = report.artifact(format)
            assert artifact.verified
            assert artifact.max_relative_error < 1e-5
            assert set(artifact.errors) == set(report.signatures)


def test_four_signatures_share_the_weights(density, density_bundle):
    directory, report = density_bundle
    weights = 4 * density.count_params()

    assert report.artifact("litert").size < weights + 18_000
    assert sum(file.stat().st_size for file in directory.glob("saved_model/variables/*.data*")) < weights + 1000
    shared = directory / "toy_density.weights.bin"
    assert weights * 0.9 < shared.stat().st_size < weights + 64
    assert len(list(directory.glob("*.onnx"))) == 4
    assert all(file.stat().st_size < 8000 for file in directory.glob("*.onnx"))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("batch", "time"), [(1, 5), (3, 12), (4, 1)])
def test_artifacts_take_any_batch_and_length_with_carried_state(language_model, language_bundle, format, batch, time):
    directory, report = language_bundle
    paths = {name: directory / path for name, path in report.artifact(format).paths.items()}
    run = open_artifact(format, paths)
    rng = np.random.default_rng(0)
    state = expected_state = np.zeros((batch, 6, 64), "float32")

    for _ in range(2):
        tokens = rng.integers(0, 13, (batch, time)).astype("int32")
        outputs = run("step", {"token_ids": tokens, "memory": state})
        expected = language_model.run("step", token_ids=tokens, memory=expected_state)
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-4)
        state, expected_state = outputs["memory_out"], expected["memory_out"]


@pytest.mark.parametrize(
    "path",
    ["saved_model", "toy_language_model.tflite", "toy_language_model.onnx", "toy_language_model.dynamic_int8.onnx"],
)
def test_metadata_and_tokenizer_come_back_from_every_format(language_model, language_bundle, path):
    directory, report = language_bundle

    facts, files = read_metadata(directory / path)

    assert facts["model"]["method"] == "toy_language_model"
    assert facts["model"]["licence"] == "Apache-2.0"
    assert facts["model"]["weights_sha256"] == "0" * 64
    assert facts["signatures"] == report.signatures
    assert facts["signatures"]["step"]["inputs"]["token_ids"]["shape"] == ["batch", "time"]
    assert facts["signatures"]["step"]["outputs"]["logits"]["shape"] == ["batch", "time", 13]
    assert files == language_model.assets


def test_runtimes_show_the_metadata(language_bundle):
    directory, _ = language_bundle
    session = onnxruntime.InferenceSession(str(directory / "toy_language_model.onnx"))

    assert session.get_modelmeta().custom_metadata_map["licence"] == "Apache-2.0"


def test_files_without_metadata_are_refused(tmp_path):
    (tmp_path / "assets").mkdir()
    with pytest.raises(ValueError, match="No metadata"):
        read_metadata(tmp_path)


def test_measurements_are_there(language_bundle):
    _, report = language_bundle
    for artifact in report.artifacts:
        assert artifact.latency_ms["step"] > 0
        assert artifact.gzip_size < artifact.size
        if Path("/proc/self/statm").exists():
            assert 0 < artifact.memory_bytes < 1e9


def test_manifest_is_the_report_and_the_table_shows_it(language_bundle):
    directory, report = language_bundle

    values = json.loads((directory / "manifest.json").read_text())
    console = Console(width=80, file=io.StringIO())
    console.print(report.table())

    assert ExportReport.from_dict(values) == report
    assert ExportReport.from_dict(values).to_dict() == values
    assert (directory / "assets" / "tokenizer.json").is_file()
    assert "litert/dynamic_int8" in console.file.getvalue()
    assert "bits_per_token" in console.file.getvalue()


def test_saved_model_stays_float32_and_says_so(language_model, tmp_path):
    report = export_model(language_model, tmp_path / "b", ["saved_model"], "dynamic_int8", benchmark=False)

    assert report.artifact("saved_model").notes == ["A SavedModel has no dynamic_int8 form here: written in float32."]


def test_reports_refuse_what_is_none():
    with pytest.raises(ValueError, match="schema"):
        ExportReport.from_dict({"schema": "other"})
    with pytest.raises(ValueError, match="damaged"):
        ExportReport.from_dict({"schema": "zoo-export/1", "artifacts": [{}]})
    with pytest.raises(ValueError, match="No such artifact"):
        ExportReport("m", {}, []).artifact("onnx")


def test_package_imports_without_tensorflow():
    code = "import sys, zoo.export, zoo.export.report; zoo.export.FORMATS; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert zoo.export.export_model is export_model


# === Nothing half-written ===


def test_wrong_numbers_are_refused_and_leave_nothing(language_model, tmp_path, monkeypatch):
    def tampered(format, paths):
        run = open_artifact(format, paths)

        def wrong(name, inputs):
            outputs = run(name, inputs)
            outputs["logits"][0, 1, 2] += 0.5
            return outputs

        return wrong

    monkeypatch.setattr(pipeline_module, "open_artifact", tampered)

    with pytest.raises(VerificationError, match=r"onnx/none, signature 'step'.*'logits' at index \(0, 1, 2\)"):
        export_model(language_model, tmp_path / "made" / "b", ["onnx"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [100, 20_000, 150_000])
@pytest.mark.parametrize("format", FORMATS)
def test_writes_that_fail_leave_nothing(language_model, tmp_path, format, limit):
    """A limit on the size of files makes writes of C++ and Python alike fail, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large|SavedModel failed"):
            export_model(language_model, tmp_path / "b", [format], benchmark=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["Path.write_text", "Path.rename", "os.fsync"])
def test_failures_at_the_last_steps_leave_nothing(language_model, tmp_path, monkeypatch, step, failure):
    def fail(*args, **kwargs):
        raise failure

    owner = {"Path": Path, "os": os}[step.split(".")[0]]
    monkeypatch.setattr(owner, step.split(".")[1], fail)

    with pytest.raises(type(failure)):
        export_model(language_model, tmp_path / "b", ["saved_model"], benchmark=False)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_failed_replacement_keeps_the_old_bundle(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.mkdir()
        (path / "which").write_text(path.name)
    replace = Path.replace

    def fail_for_new(self, target):
        if self == new:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_for_new)

    with pytest.raises(OSError, match="No space"):
        publish(new, old)
    assert (old / "which").read_text() == "old"


# === Where it may write ===


@pytest.mark.parametrize("target", ["/proc/none/bundle", "file/bundle"])
def test_unwritable_directories_are_refused_before_the_work(language_model, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no directory")
    stages = []

    with pytest.raises(ValueError, match=r"cannot be written \(.*\)\. Received"):
        export_model(language_model, target, progress=stages.append)
    assert not stages


def test_foreign_directories_are_left_alone(language_model, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")

    with pytest.raises(ValueError, match="no export bundle: it is left alone"):
        export_model(language_model, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


def test_bundles_are_replaced_only_when_asked(language_model, tmp_path):
    target = tmp_path / "bundle"
    export_model(language_model, target, ["saved_model"], benchmark=False)

    with pytest.raises(ValueError, match="pass overwrite=True"):
        export_model(language_model, target, ["onnx"])
    export_model(language_model, target, ["onnx"], overwrite=True, benchmark=False, name="other")

    assert {path.name for path in target.iterdir()} == {"assets", "manifest.json", "other.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["tflite"]}, "`formats` must be"),
        ({"formats": []}, "`formats` must be"),
        ({"quantization": "int3"}, "`quantization` must be"),
        ({"opset": 11}, "`opset` must be from 18 to 21. Received: opset=11"),
        ({"name": "../m"}, "`name` must be"),
    ],
)
def test_bad_arguments_are_named(language_model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_model(language_model, tmp_path / "b", **arguments)


# === Flex ===


def test_flex_is_refused_unless_allowed_and_then_said_to_be_unverified(tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    signatures = {"predict": Signature(lambda x: {"y": tf.math.erf(model(x))}, {"x": Spec(("batch", 64))}, {"y": ""})}
    arguments = dict(signatures=signatures, formats=["litert"], benchmark=False, name="m")

    with pytest.raises(zoo.export.ExportError, match="Erf"):
        export_model(model, tmp_path / "b", **arguments)
    report = export_model(model, tmp_path / "b", allow_flex=True, **arguments)

    artifact = report.artifact("litert")
    assert not artifact.verified
    assert artifact.errors == {}
    assert "not verified" in artifact.notes[0]
    with pytest.raises(zoo.export.GateError, match="cannot be judged"):
        export_model(model, tmp_path / "c", allow_flex=True, quantization="float16", **arguments)


# === verify_bundle ===


def copied(bundle, tmp_path):
    return Path(shutil.copytree(bundle[0], tmp_path / "copy"))


def test_bundle_verifies_again(language_model, language_bundle):
    report = verify_bundle(language_bundle[0], language_model)

    assert all(artifact.verified for artifact in report.artifacts)
    assert report.artifact("litert", "dynamic_int8").metric.name == "bits_per_token"


def test_bundle_of_a_plain_model_is_only_hashed(density_bundle):
    report = verify_bundle(density_bundle[0])

    assert not any(artifact.verified for artifact in report.artifacts)


def test_model_is_rebuilt_from_the_catalog(language_model, language_bundle, monkeypatch):
    asked = []

    def get(name, preset):
        asked.append((name, preset))
        return language_model

    with pytest.raises(ValueError, match=r"pass `model=`.*Unknown method"):
        verify_bundle(language_bundle[0])
    monkeypatch.setattr("zoo.catalog.get", get)
    report = verify_bundle(language_bundle[0])

    assert asked == [("toy_language_model", "tiny")]
    assert all(artifact.verified for artifact in report.artifacts)


def test_bundle_of_other_weights_is_refused(language_model, language_bundle, monkeypatch):
    monkeypatch.setattr(type(language_model.metadata), "weights_sha256", "1" * 64)

    with pytest.raises(ValueError, match=r"made from other weights.*Received: 1111"):
        verify_bundle(language_bundle[0], language_model)


@pytest.mark.parametrize("name", ["toy_density.tflite", "saved_model/saved_model.pb", "toy_density.weights.bin"])
def test_altered_files_are_found(density_bundle, tmp_path, name):
    path = copied(density_bundle, tmp_path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)

    with pytest.raises(VerificationError, match=f"{name} was altered"):
        verify_bundle(path)


def test_missing_and_additional_files_are_found(density_bundle, tmp_path):
    path = copied(density_bundle, tmp_path)
    (path / "toy_density.tflite").rename(path / "new.tflite")

    with pytest.raises(VerificationError, match=r"missing=\['toy_density.tflite'\], extra=\['new.tflite'\]"):
        verify_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "damaged"),
        (lambda text: text.replace("toy_density.tflite", "../../toy_density.tflite"), "outside of the bundle"),
        (lambda text: text.replace("zoo-export/1", "zoo-export/9"), "schema"),
    ],
)
def test_damaged_manifests_are_refused(density_bundle, tmp_path, change, message):
    path = copied(density_bundle, tmp_path)
    (path / "manifest.json").write_text(change((path / "manifest.json").read_text()))

    with pytest.raises(ValueError, match=message):
        verify_bundle(path)


def test_other_models_are_refused(density, language_bundle, density_bundle, tmp_path):
    with pytest.raises(ValueError, match="signatures and inputs"):
        verify_bundle(language_bundle[0], density)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        verify_bundle(tmp_path)


def test_model_with_other_weights_fails(density, density_bundle):
    keras_weights = density.get_weights()
    density.set_weights([2 * value + 0.1 for value in keras_weights])
    try:
        with pytest.raises(VerificationError, match="saved_model/none"):
            verify_bundle(density_bundle[0], density)
    finally:
        density.set_weights(keras_weights)


# === One artifact ===


def test_model_export_writes_one_file_and_prints_the_table(language_model, tmp_path, capsys):
    language_model.export(tmp_path / "m.tflite", format="litert", quantization="dynamic_int8", benchmark=False)

    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]
    assert "litert" in capsys.readouterr().out
    facts, _ = read_metadata(tmp_path / "m.tflite")
    assert facts["quantization"] == "dynamic_int8"


def test_several_signatures_give_one_onnx_file_each(density, tmp_path, capsys):
    report = export_file(
        density, tmp_path / "m.onnx", format="onnx", verbose=False, quantization="float16", benchmark=False
    )

    expected = {"m.log_prob.onnx", "m.encode.onnx", "m.decode.onnx", "m.sample.onnx"}
    artifact = report.artifact("onnx", "float16")
    assert {path.name for path in tmp_path.iterdir()} == set(artifact.files)
    assert expected < set(artifact.files)
    assert capsys.readouterr().out == ""
    run = open_artifact("onnx", {name: tmp_path / path for name, path in artifact.paths.items()})
    z = np.ones((1, 4), "float32")
    np.testing.assert_allclose(run("decode", {"z": z})["x"], density.run("decode", z=z)["x"], atol=1e-2)


def test_saved_model_goes_to_the_path_itself_and_replaces_only_its_kind(density, tmp_path):
    arguments = dict(verbose=False, benchmark=False)
    report = export_file(density, tmp_path / "sm", **arguments)
    export_file(density, tmp_path / "sm", **arguments)

    assert set(report.artifacts[0].paths.values()) == {"sm"}
    assert "sm/saved_model.pb" in report.artifacts[0].files
    assert (tmp_path / "sm" / "saved_model.pb").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["sm"]
    with pytest.raises(ValueError, match="no earlier 'tf_saved_model' export"):
        export_file(density, tmp_path, **arguments)
    with pytest.raises(ValueError, match="no earlier 'litert' export"):
        export_file(density, tmp_path / "sm", format="litert", **arguments)
    with pytest.raises(ValueError, match="pass overwrite=True"):
        export_file(density, tmp_path / "sm", overwrite=False, **arguments)


def test_export_file_names_bad_arguments(density, tmp_path):
    with pytest.raises(ValueError, match=r"`format` must be one of .*Received: format='tflite'"):
        export_file(density, tmp_path / "m", format="tflite")
    with pytest.raises(ValueError, match="one mode"):
        export_file(density, tmp_path / "m", quantization=["none"])
    with pytest.raises(ValueError, match="input_signature"):
        density.export(tmp_path / "m", input_signature=[])
