import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from zoo.export import onnx
from zoo.export.onnx_handlers import HANDLERS
from zoo.export.signatures import trace
from zoo.model import Signature, Spec

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal((3, 5)).astype("float32")
OTHER = RNG.standard_normal((3, 5)).astype("float32")
POSITIVE = np.abs(NORMAL) + np.float32(0.1)
TINY = np.array([[1e-7, -1e-7, 1e-4, -1e-3, 0.0]] * 3, "float32")
WITH_ZEROS = np.where(NORMAL > 0, NORMAL, np.float32(0))
SORTED = np.sort(RNG.standard_normal((3, 6)).astype("float32"), -1)
INTEGERS = np.array([[7, -7, 6, -6, 0], [1, -1, 5, -5, 9], [-8, 8, 3, -3, 2]], "int32")
DIVISORS = np.array([[2, 2, -3, -3, 5], [3, 3, -2, -2, -4], [3, -3, 1, -1, -7]], "int32")


def raw(op):
    return getattr(tf.raw_ops, op)


# Op, function of named tensors, inputs, tolerance relative to 1 + |value|.
CASES = {
    "Erfc": (lambda x: raw("Erfc")(x=x), {"x": NORMAL}, 1e-6),
    "Expm1": (lambda x: raw("Expm1")(x=x), {"x": NORMAL}, 1e-6),
    "Expm1 near zero": (lambda x: 1e6 * raw("Expm1")(x=x), {"x": TINY}, 1e-5),
    "Log1p": (lambda x: raw("Log1p")(x=x), {"x": POSITIVE}, 1e-6),
    "Log1p near zero": (lambda x: 1e6 * raw("Log1p")(x=x), {"x": TINY}, 1e-5),
    "Xlogy": (lambda x, y: raw("Xlogy")(x=x, y=y), {"x": WITH_ZEROS, "y": WITH_ZEROS}, 1e-6),
    "Xlog1py": (lambda x, y: raw("Xlog1py")(x=x, y=y), {"x": WITH_ZEROS, "y": WITH_ZEROS - 1}, 1e-6),
    "MulNoNan": (lambda x, y: raw("MulNoNan")(x=tf.math.log(x), y=y), {"x": WITH_ZEROS, "y": WITH_ZEROS}, 1e-6),
    "Lgamma": (lambda x: raw("Lgamma")(x=x), {"x": POSITIVE * 3}, 1e-5),
    "Lgamma, large": (lambda x: raw("Lgamma")(x=x), {"x": POSITIVE * 1e6}, 1e-5),
    "TanhGrad": (lambda x, y: raw("TanhGrad")(y=tf.tanh(x), dy=y), {"x": NORMAL, "y": OTHER}, 1e-6),
    "SigmoidGrad": (lambda x, y: raw("SigmoidGrad")(y=tf.sigmoid(x), dy=y), {"x": NORMAL, "y": OTHER}, 1e-6),
    "ReluGrad": (lambda x, y: raw("ReluGrad")(gradients=y, features=x), {"x": NORMAL, "y": OTHER}, 1e-6),
    "EluGrad": (lambda x, y: raw("EluGrad")(gradients=y, outputs=tf.nn.elu(x)), {"x": NORMAL, "y": OTHER}, 1e-6),
    "RsqrtGrad": (lambda x, y: raw("RsqrtGrad")(y=tf.math.rsqrt(x), dy=y), {"x": POSITIVE, "y": OTHER}, 1e-5),
    "FloorDiv": (lambda x, y: x // y, {"x": INTEGERS, "y": DIVISORS}, 0),
    "FloorDiv of floats": (lambda x, y: x // y, {"x": NORMAL * 5, "y": OTHER}, 0),
    "FloorMod": (lambda x, y: x % y, {"x": INTEGERS, "y": DIVISORS}, 0),
    "FloorMod of floats": (lambda x, y: x % y, {"x": NORMAL * 5, "y": OTHER}, 1e-6),
    "ScatterNd": (
        lambda x, y: tf.scatter_nd(tf.abs(x[:, :1]), y, [10, 5]),
        {"x": np.array([[4], [4], [9]], "int32"), "y": NORMAL},
        1e-6,
    ),
    "BroadcastArgs": (
        lambda x, y: raw("BroadcastArgs")(s0=tf.shape(x), s1=tf.shape(y)),
        {"x": NORMAL, "y": OTHER[:, :1]},
        0,
    ),
    "LowerBound": (lambda x, y: tf.searchsorted(x, y), {"x": SORTED, "y": SORTED[:, ::2] + 0}, 0),
    "UpperBound": (lambda x, y: tf.searchsorted(x, y, "right"), {"x": SORTED, "y": SORTED[:, ::2] + 0}, 0),
    "CumulativeLogsumexp": (lambda x: tf.math.cumulative_logsumexp(x, axis=1), {"x": NORMAL}, 1e-6),
    "CumulativeLogsumexp, reversed": (
        lambda x: tf.math.cumulative_logsumexp(x, axis=1, reverse=True),
        {"x": NORMAL},
        1e-6,
    ),
}


def operation(case):
    return case.split(",")[0].split(" ")[0]


def convert(function, inputs):
    specs = {name: Spec(("batch", *value.shape[1:]), str(value.dtype)) for name, value in inputs.items()}
    signature = Signature(lambda **tensors: {"out": function(**tensors)}, specs, {"out": ""})
    shape = [f"d{axis}" for axis in range(function(**inputs).ndim)]
    return onnx.convert(trace({"f": signature})["f"], "f", output_dimensions={"out": shape})


@pytest.mark.parametrize("case", CASES)
def test_handler_computes_what_tensorflow_computes(case, monkeypatch):
    function, inputs, tolerance = CASES[case]
    op, called = operation(case), []
    handler, arguments = HANDLERS[op]
    monkeypatch.setitem(HANDLERS, op, (lambda *args: (called.append(op), handler(*args)), arguments))
    expected = function(**{name: tf.constant(value) for name, value in inputs.items()}).numpy()

    session = onnxruntime.InferenceSession(convert(function, inputs).SerializeToString())
    (received,) = session.run(None, inputs)

    assert called
    assert received.dtype == expected.dtype
    assert received.shape == expected.shape
    assert np.all(np.abs(received - expected) <= tolerance * (1 + np.abs(expected)))


def test_every_handler_has_a_case():
    assert set(HANDLERS) == {operation(case) for case in CASES}


@pytest.mark.parametrize("case", ["ScatterNd", "FloorDiv", "FloorMod"])
def test_without_the_handler_tf2onnx_is_silently_wrong(case, monkeypatch):
    function, inputs, _ = CASES[case]
    monkeypatch.delitem(HANDLERS, case)
    expected = function(**{name: tf.constant(value) for name, value in inputs.items()}).numpy()

    session = onnxruntime.InferenceSession(convert(function, inputs).SerializeToString())
    (received,) = session.run(None, inputs)

    assert not np.allclose(received, expected)
