import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.export import ExportError
from zoo.export.signatures import model_signatures, trace
from zoo.model import Signature, Spec

X = {"x": Spec(("batch", 3))}


def signature(function, inputs=X, outputs=("y",)):
    return {"predict": Signature(function, inputs, dict.fromkeys(outputs, "An output."))}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs, training=False):
        return {"logits": self.dense(inputs["a"]) + self.dense(inputs["b"])}


class TwoArguments(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, left, right):
        return self.dense(left) + self.dense(right)


# === Plain Keras models ===


def run(model, **inputs):
    chosen = model_signatures(model)["predict"]
    traced = trace({"predict": chosen})["predict"]
    outputs = traced.function(*(tf.constant(inputs[name]) for name in chosen.inputs))
    return chosen, {name: value.numpy() for name, value in outputs.items()}


def test_sequential_keeps_the_name_of_its_last_layer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="scores")])
    x = np.ones((4, 3), "float32")

    chosen, outputs = run(model, inputs=x)

    assert chosen.inputs["inputs"].shape == ("batch", 3)
    np.testing.assert_allclose(outputs["scores"], model(x), rtol=1e-6)


def test_functional_keeps_the_keys_of_dicts_and_dynamic_dimensions():
    a, b = keras.Input((3,), name="first"), keras.Input((None,), dtype="int32", name="second")
    model = keras.Model({"first": a, "second": b}, {"sum": keras.layers.Dense(2)(a), "more": b + 1})

    chosen, outputs = run(model, first=np.ones((2, 3), "float32"), second=np.ones((2, 5), "int32"))

    assert {name: spec.shape for name, spec in chosen.inputs.items()} == {
        "first": ("batch", 3),
        "second": ("batch", "second_1"),
    }
    assert chosen.inputs["second"].dtype == "int32"
    assert {name: value.shape for name, value in outputs.items()} == {"sum": (2, 2), "more": (2, 5)}


def test_functional_with_a_list_takes_layer_names():
    a = keras.Input((3,), name="x")
    model = keras.Model([a], [keras.layers.Dense(2, name="y")(a), keras.layers.Activation("relu", name="z")(a)])

    _, outputs = run(model, x=-np.ones((2, 3), "float32"))

    assert set(outputs) == {"y", "z"}
    assert not outputs["z"].any()


def test_output_of_an_inputs_name_is_renamed():
    a = keras.Input((3,), name="x")
    model = keras.Model({"x": a}, {"x": keras.layers.Activation("relu")(a), "y": keras.layers.Dense(2)(a)})

    _, outputs = run(model, x=-np.ones((2, 3), "float32"))

    assert set(outputs) == {"y", "x_out"}
    assert not outputs["x_out"].any()


def test_subclassed_model_takes_the_shapes_it_was_built_with():
    model = Subclassed()
    inputs = {"a": np.ones((2, 3), "float32"), "b": np.ones((2, 5), "float32") * 0}
    inputs["b"] = inputs["a"] * 2
    expected = model(inputs)["logits"]

    chosen, outputs = run(model, **inputs)

    assert chosen.inputs["a"].shape == ("batch", 3)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-6)


def test_dropout_and_batch_normalization_are_in_inference_mode():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.9),
            keras.layers.Flatten(name="y"),
        ]
    )
    x = np.ones((4, 3), "float32")

    _, outputs = run(model, inputs=x)

    np.testing.assert_allclose(outputs["y"], x, rtol=1e-3)


def test_several_arguments_need_given_signatures():
    model = TwoArguments()
    model(np.ones((2, 3), "float32"), np.ones((2, 3), "float32"))
    given = {"add": Signature(lambda x: {"y": model(x, x)}, X, {"y": ""})}

    with pytest.raises(ExportError, match=r"pass `signatures=`\. Received: 2 required"):
        model_signatures(model)
    assert model_signatures(model, given) == given


def test_what_is_no_built_model_is_refused():
    with pytest.raises(TypeError, match=r"`model` must be a Keras model\. Received: str"):
        model_signatures("model")
    with pytest.raises(ExportError, match="call it once"):
        model_signatures(Subclassed())


# === Guards ===


def test_name_shared_by_input_and_output_is_refused():
    def function(x):
        return {"x": x}

    with pytest.raises(ValueError, match=r"share a name\. Received: \['x'\]"):
        trace(signature(function, outputs=("y",)))


def test_captured_eager_tensor_is_refused():
    captured = tf.constant([1.0, 2.0, 3.0]) * 2

    with pytest.raises(ExportError, match=r"captures tensors.*\(3,\), 'float32'"):
        trace(signature(lambda x: {"y": x + captured}))


def test_hidden_state_is_refused():
    counter = tf.Variable(0.0)

    with pytest.raises(ExportError, match=r"assigns variables.*AssignAddVariableOp"):
        trace(signature(lambda x: {"y": x + counter.assign_add(1.0)}))


def test_hidden_state_inside_a_nested_function_is_refused():
    counter = tf.Variable(0.0)

    @tf.function
    def nested(x):
        counter.assign_add(1.0)
        return x + counter

    with pytest.raises(ExportError, match="assigns variables"):
        trace(signature(lambda x: {"y": nested(x)}))


def test_random_numbers_are_refused():
    with pytest.raises(ExportError, match="noise must be an input"):
        trace(signature(lambda x: {"y": x + tf.random.normal([3])}))


def test_training_mode_dropout_is_refused():
    dropout = keras.layers.Dropout(0.5)

    with pytest.raises(ExportError, match="Received"):
        trace(signature(lambda x: {"y": dropout(x, training=True)}))


def test_python_inside_is_refused():
    with pytest.raises(ExportError, match="calls Python"):
        trace(signature(lambda x: {"y": tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32), [None, 3])}))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, "flat dict of tensors"),
        (lambda x: {"y": {"z": x}}, "flat dict of tensors"),
        (lambda x: {"z": x}, r"declares the outputs \['y'\]. Received: \['z'\]"),
    ],
)
def test_wrong_outputs_are_refused(function, message):
    with pytest.raises(ExportError, match=message):
        trace(signature(function))


def test_names_must_be_identifiers_and_there_must_be_one():
    with pytest.raises(ExportError, match="identifiers"):
        trace(signature(lambda **inputs: {"y": inputs["a b"]}, {"a b": Spec(("batch",))}))
    with pytest.raises(ExportError, match="at least one signature"):
        trace({})
