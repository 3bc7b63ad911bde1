"""Larq Compute Engine: the environment, what is converted, and that its files compute the same."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from zoo.export import larq, larq_worker
from zoo.export.errors import ExportError

# === With the engine ===


@pytest.mark.parametrize("changes", [{}, {"padding_value": 0, "gate": False}])
def test_converted_network_gives_the_logits_of_keras(tmp_path, larq_environment, changes, random_binary_network):
    model = random_binary_network(**changes)
    directory = larq.write_static_saved_model(model, tmp_path / "saved")
    ops = larq.convert(directory, tmp_path / "model.tflite")
    inputs = model.dummy_inputs(batch_size=8)
    done = larq.run(tmp_path / "model.tflite", inputs, rounds=3)
    wanted = model.run(**inputs)["logits"]

    # Every binary convolution is one, also those of stride 2
    assert ops["custom:LceBconv2d"] == len(model.binary_convs) == 6
    errors = np.abs(done.outputs["logits"] - wanted).max(axis=1) / np.abs(wanted).max()
    assert (errors < 1e-4).mean() >= 0.8
    np.testing.assert_array_equal(done.outputs["logits"].argmax(axis=1), wanted.argmax(axis=1))
    assert done.size == (tmp_path / "model.tflite").stat().st_size < 200_000
    assert 0 < done.seconds < 1


def test_network_without_binary_kernels_is_refused(tmp_path, larq_environment):
    module = tf.Module()
    dense = tf.function(lambda x: {"y": x @ tf.ones((3, 2))}).get_concrete_function(tf.TensorSpec((1, 3), name="x"))
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=dense)

    with pytest.raises(ExportError, match=r"No convolution was taken for a binary one.*Received: "):
        larq.convert(tmp_path / "saved", tmp_path / "model.tflite")
    assert not (tmp_path / "model.tflite").exists()


def test_running_refuses_inputs_that_do_not_fit(tmp_path, larq_environment, random_binary_network):
    directory = larq.write_static_saved_model(random_binary_network(), tmp_path / "saved")
    larq.convert(directory, tmp_path / "model.tflite")
    path, good = tmp_path / "model.tflite", np.zeros((1, 28, 28, 1), np.float32)

    with pytest.raises(ValueError, match=r"`inputs` must be \['image'\]. Received: "):
        larq.run(path, {"picture": good})
    with pytest.raises(ValueError, match=r"`inputs` must be arrays of numbers. Received: "):
        larq.run(path, {"image": np.array([None])})
    with pytest.raises(ExportError, match=r"Inputs must have the shapes"):
        larq.run(path, {"image": good[:, :4]})


# === Always ===


def test_static_saved_model_holds_signs_and_one_example(tmp_path, random_binary_network):
    model = random_binary_network()
    loaded = tf.saved_model.load(str(larq.write_static_saved_model(model, tmp_path / "saved")))
    signature = loaded.signatures["serving_default"]
    kernels = [v.numpy() for v in loaded.weights if v.shape.rank == 4 and v.shape[0] == 3 and v.shape[2] >= 32]
    image = model.dummy_inputs(batch_size=1)["image"]

    assert signature.structured_input_signature[1]["image"].shape == (1, 28, 28, 1)
    assert len(kernels) == 6 and all(set(np.unique(kernel)) == {-1.0, 1.0} for kernel in kernels)
    np.testing.assert_allclose(
        signature(image=tf.constant(image))["logits"], model.run(image=image)["logits"], rtol=1e-5
    )


def test_environment_is_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))

    assert larq.environment_path().parent == tmp_path / "environments"
    assert larq.VERSION in larq.environment_path().name


def test_python_is_this_one_or_another_that_fits(monkeypatch):
    monkeypatch.setattr(larq, "_candidates", lambda: iter(["old", "broken", "right", "later"]))
    versions = {"old": (3, 9), "broken": None, "right": (3, 12), "later": (3, 11)}
    monkeypatch.setattr(larq, "_python_version", versions.get)

    assert larq.find_python() == "right"


def test_missing_python_is_said_with_what_was_tried(monkeypatch):
    monkeypatch.setattr(larq, "_candidates", lambda: iter(["only"]))
    monkeypatch.setattr(larq, "_python_version", lambda python: (3, 13))

    with pytest.raises(ExportError, match=r"needs Python 3\.11 or 3\.12.*Received: \{'only': \(3, 13\)\}"):
        larq.find_python()


def test_version_of_a_python(tmp_path):
    launcher = tmp_path / "python3.12"
    launcher.write_text("#!/bin/sh\nexit 127\n")
    launcher.chmod(0o755)

    assert larq._python_version(sys.executable) == sys.version_info[:2]
    assert larq._python_version(str(launcher)) is None
    assert larq._python_version(str(tmp_path / "absent")) is None


def test_failed_installation_leaves_nothing_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path))
    calls = []

    def fake(command, **options):
        calls.append(command)
        failed = "pip" in command
        return subprocess.CompletedProcess(
            command, int(failed), "", "ERROR: No matching distribution\n" if failed else ""
        )

    monkeypatch.setattr(larq, "find_python", lambda: "python")
    monkeypatch.setattr(larq.subprocess, "run", fake)

    with pytest.raises(ExportError, match=r"Installing larq-compute-engine==0\.16\.0 and numpy<2.*No matching"):
        larq.environment_python()
    assert calls[0][:3] == ["python", "-m", "venv"]
    assert set(larq.REQUIREMENTS) <= set(calls[1])
    assert not list((tmp_path / "environments").iterdir())


def test_worker_needs_nothing_of_this_library():
    tree = ast.parse(Path(larq_worker.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy", "larq_compute_engine"}


def test_conversion_refuses_another_directory(tmp_path):
    with pytest.raises(ValueError, match=r"`saved_model_dir` must be a SavedModel. Received: "):
        larq.convert(tmp_path, tmp_path / "model.tflite")


def test_running_refuses_no_rounds(tmp_path):
    with pytest.raises(ValueError, match=r"`rounds` must be at least 1. Received: "):
        larq.run(tmp_path / "model.tflite", {}, rounds=0)
