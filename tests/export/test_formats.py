"""SavedModel, LiteRT and ONNX files on their own: what is in them, and the guards against what must not be."""

import keras
import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest
import tensorflow as tf
from onnx import TensorProto, helper

from zoo.export import ExportError, flatbuffer, litert, onnx
from zoo.export.quiet import collect_errors, quiet
from zoo.export.runners import open_artifact
from zoo.export.saved_model import saved_model_ops, write_saved_model
from zoo.export.signatures import trace
from zoo.model import Signature, Spec

X = {"x": Spec(("batch", 4))}


def traced(function, inputs=X):
    return trace({"predict": Signature(function, inputs, {"y": ""})})


def saved(functions, directory, assets=None):
    (directory / "scratch").mkdir()
    write_saved_model(functions, directory / "model", assets or {}, directory / "scratch")
    return directory / "model"


@pytest.fixture
def dense_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(64), keras.layers.Dense(4)])


# === SavedModel ===


def test_saved_model_holds_weights_once_and_a_default_signature(dense_model, tmp_path):
    path = saved(traced(lambda x: {"y": dense_model(x)}), tmp_path, {"labels.txt": b"a\nb"})

    weights = sum(file.stat().st_size for file in (path / "variables").glob("*.data*"))
    loaded = tf.saved_model.load(str(path))
    x = np.ones((2, 4), "float32")

    assert weights < 4 * dense_model.count_params() + 1000
    assert set(loaded.signatures) == {"predict", "serving_default"}
    np.testing.assert_array_equal(loaded.signatures["serving_default"](x=x)["y"], dense_model(x))
    assert (path / "assets" / "labels.txt").read_bytes() == b"a\nb"
    assert saved_model_ops(path)["MatMul"] >= 2


def test_saved_model_of_a_keras_model_would_hold_weights_twice(dense_model, tmp_path):
    with quiet():
        dense_model.export(tmp_path / "keras", format="tf_saved_model", verbose=False)
    weights = sum(file.stat().st_size for file in (tmp_path / "keras" / "variables").glob("*.data*"))

    assert weights > 1.9 * 4 * dense_model.count_params()


# === LiteRT ===


def test_litert_has_builtin_operators_only(dense_model, tmp_path):
    content = litert.convert(saved(traced(lambda x: {"y": dense_model(x)}), tmp_path), ["predict"])

    assert litert.litert_ops(content)["FULLY_CONNECTED"] == 2


def test_litert_refuses_flex_and_names_the_operator(tmp_path):
    path = saved(traced(lambda x: {"y": tf.math.erf(x)}), tmp_path)

    with pytest.raises(ExportError, match=r"built-in operators.*Erf"):
        litert.convert(path, ["predict"])

    content = litert.convert(path, ["predict"], allow_flex=True)
    assert "FlexErf" in litert.litert_ops(content)
    with pytest.raises(ExportError, match=r"\(Flex\)\. Received: \['FlexErf'\]"):
        litert.check_ops(content)


def test_litert_refuses_uninitialised_weights(dense_model):
    function = tf.function(lambda x: {"y": dense_model(x)}, input_signature=[tf.TensorSpec([None, 4], name="x")])
    with quiet():
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], dense_model)
        content = converter.convert()

    with pytest.raises(ExportError, match=r"weights were not frozen.*VAR_HANDLE"):
        litert.check_ops(content)


def test_litert_refuses_custom_operators(dense_model, tmp_path):
    content = litert.convert(saved(traced(lambda x: {"y": dense_model(x)}), tmp_path), ["predict"])
    model = flatbuffer.read(content)
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = "Mine"

    with pytest.raises(ExportError, match="custom:Mine"):
        litert.check_ops(flatbuffer.write(model), allow_flex=True)


def test_litert_files_are_written_small_and_aligned(dense_model, tmp_path):
    content = litert.convert(saved(traced(lambda x: {"y": dense_model(x)}), tmp_path), ["predict"])

    written = litert.embed(content, {}, {})

    model = flatbuffer.schema.Model.GetRootAs(written, 0)
    positions = []
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength() >= flatbuffer.ALIGNMENT:
            positions.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(written) < len(content)
    assert len(positions) >= 3
    assert not any(position % flatbuffer.ALIGNMENT for position in positions)


def test_equal_vectors_are_written_once():
    builder = flatbuffer._Builder(64)

    positions = [builder.CreateNumpyVector(np.array(values, "int64")) for values in ([0, 0], [0, 1], [0, 0])]

    assert positions[0] == positions[2] != positions[1]


def test_litert_metadata_and_files_come_back_and_the_file_still_runs(dense_model, tmp_path):
    content = litert.convert(saved(traced(lambda x: {"y": dense_model(x)}), tmp_path), ["predict"])
    path = tmp_path / "model.tflite"
    path.write_bytes(litert.embed(content, {"zoo": b"facts"}, {"tokenizer.json": b"{}", "LICENSE": b"text"}))
    x = np.ones((3, 4), "float32")

    entries, files = litert.embedded(path)
    run = open_artifact("litert", {"predict": path})

    assert entries["zoo"] == b"facts"
    assert files == {"tokenizer.json": b"{}", "LICENSE": b"text"}
    np.testing.assert_allclose(run("predict", {"x": x})["y"], dense_model(x), atol=1e-5)


# === ONNX ===


def test_onnx_keeps_names_and_names_dynamic_dimensions():
    inputs = {"x": Spec(("batch", "time", 4)), "unused": Spec(("batch", 2))}
    functions = traced(lambda x, unused: {"y": tf.nn.gelu(x)}, inputs)

    model = onnx.convert(functions["predict"], "predict", output_dimensions={"y": ["batch", "time", 4]})

    def shape(value):
        return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]

    assert [value.name for value in model.graph.input] == ["x", "unused"]
    assert [shape(value) for value in model.graph.input] == [["batch", "time", 4], ["batch", 2]]
    assert [shape(value) for value in model.graph.output] == [["batch", "time", 4]]
    assert max(len(node.name) for node in model.graph.node) < 6


def split_heads(x):
    """A dense layer on sequences, then heads: two reshapes after each other, dynamic in batch and time."""
    kernel = np.random.default_rng(0).standard_normal((4, 6)).astype("float32")
    merged = tf.matmul(tf.reshape(x, [-1, 4]), tf.constant(kernel))
    hidden = tf.reshape(merged, [tf.shape(x)[0], tf.shape(x)[1], 6])
    return {"y": tf.transpose(tf.reshape(hidden, [tf.shape(hidden)[0], tf.shape(hidden)[1], 2, 3]), [0, 2, 1, 3])}


def test_onnx_reshapes_after_each_other_stay_right(tmp_path):
    functions = traced(split_heads, {"x": Spec(("batch", "time", 4))})
    x = np.random.default_rng(1).standard_normal((3, 5, 4)).astype("float32")

    model = onnx.convert(functions["predict"], "predict", output_dimensions={"y": ["batch", 2, "time", 3]})
    (path,) = onnx.write({"predict": model}, tmp_path, "m")

    received = open_artifact("onnx", {"predict": path})("predict", {"x": x})["y"]
    np.testing.assert_allclose(received, split_heads(x)["y"], atol=1e-5)


def test_onnx_reshapes_after_each_other_fail_in_tf2onnx_itself():
    function = traced(split_heads, {"x": Spec(("batch", "time", 4))})["predict"]
    with quiet(), collect_errors("tf2onnx"):
        model, _ = onnx.tf2onnx.convert.from_function(function.function, function.specs, opset=18)
    session = onnxruntime.InferenceSession(model.SerializeToString())

    with quiet(), pytest.raises(Exception, match="reshape"):
        session.run(None, {"x": np.zeros((3, 5, 4), "float32")})


def test_onnx_is_right_after_an_optimiser_failed_half_way(dense_model, tmp_path, monkeypatch):
    calls = []

    def spoil(self, graph):
        calls.append(graph)
        graph.reset_nodes(graph.get_nodes()[:1])
        raise RuntimeError("half way")

    monkeypatch.setattr(onnx.optimizer.IdentityOptimizer, "_optimize", spoil)
    functions = traced(lambda x: {"y": dense_model(x)})
    x = np.ones((2, 4), "float32")

    model = onnx.convert(functions["predict"], "predict", output_dimensions={"y": ["batch", 4]})
    (path,) = onnx.write({"predict": model}, tmp_path, "m")

    assert len(calls) > 1
    received = open_artifact("onnx", {"predict": path})("predict", {"x": x})["y"]
    np.testing.assert_allclose(received, dense_model(x), atol=1e-5)


def test_onnx_refuses_what_tf2onnx_writes_without_raising():
    functions = traced(lambda x: {"y": tf.math.digamma(x)})

    with pytest.raises(ExportError, match=r"ONNX cannot hold signature 'predict'.*Digamma"):
        onnx.convert(functions["predict"], "predict", output_dimensions={"y": ["batch", 4]})


def test_onnx_checker_refuses_operations_that_do_not_exist():
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Digamma", ["x"], ["y"])], "g", value[:1], value[1:])

    with pytest.raises(ExportError, match=r"Not a valid ONNX model.*Digamma"):
        onnx.check_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), "g")


def test_onnx_refuses_an_input_that_a_captured_tensor_became():
    captured = tf.constant([1.0, 2.0, 3.0, 4.0]) * 2
    function = tf.function(lambda x: {"y": x + captured}, input_signature=[tf.TensorSpec([None, 4], name="x")])
    with quiet(), collect_errors("tf2onnx"):
        model, _ = onnx.tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=18)

    with pytest.raises(ExportError, match=r"must have the inputs \['x'\]"):
        onnx.check_inputs(model, "predict", ["x"])


def test_onnx_opset_21_computes_the_same(dense_model, tmp_path):
    functions = traced(lambda x: {"y": dense_model(x)})
    x = np.ones((2, 4), "float32")

    model = onnx.convert(functions["predict"], "predict", opset=21, output_dimensions={"y": ["batch", 4]})
    (path,) = onnx.write({"predict": model}, tmp_path, "m")

    assert model.opset_import[0].version == 21
    received = open_artifact("onnx", {"predict": path})("predict", {"x": x})["y"]
    np.testing.assert_allclose(received, dense_model(x), atol=1e-5)


def test_onnx_signatures_share_one_weights_file(dense_model, tmp_path):
    def head(x):
        return {"y": -dense_model(x)}

    functions = trace(
        {
            "predict": Signature(lambda x: {"y": dense_model(x)}, X, {"y": ""}),
            "negate": Signature(head, X, {"y": ""}),
        }
    )
    models = {name: onnx.convert(item, name, output_dimensions={"y": ["batch", 4]}) for name, item in functions.items()}
    x = np.ones((2, 4), "float32")

    paths = onnx.write(models, tmp_path, "m")

    assert [path.name for path in paths] == ["m.predict.onnx", "m.negate.onnx", "m.weights.bin"]
    assert paths[2].stat().st_size < 4 * dense_model.count_params() + 64
    run = open_artifact("onnx", dict(zip(functions, paths, strict=False)))
    np.testing.assert_allclose(run("negate", {"x": x})["y"], -run("predict", {"x": x})["y"], atol=1e-6)
    onnx_package.checker.check_model(str(paths[0]), full_check=True)


# === Noise ===


def test_quiet_silences_c_and_python_and_comes_back(capfd):
    import os

    with quiet():
        os.write(1, b"from C")
        print("from Python")
    print("after")

    out, err = capfd.readouterr()
    assert (out, err) == ("after\n", "")


def test_collected_errors_are_not_lost():
    import logging

    with quiet(), collect_errors("tf2onnx") as errors:
        logging.getLogger("tf2onnx.tfonnx").error("Unsupported ops: %s", ["X"])

    assert errors == ["Unsupported ops: ['X']"]
