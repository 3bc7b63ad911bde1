"""Packed files: every bit width, run in its runtime and compared with Keras."""

import gzip

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from zoo.compression.bit_plan import BitPlan, Codes, integer_weights, size_report
from zoo.compression.mixed_precision_dnn import MixedPrecisionDNN, learn_bitwidths
from zoo.compression.tfmot import quantize_aware
from zoo.export import ExportError, VerificationError
from zoo.export.flatbuffer import read
from zoo.export.packed import (
    IR_VERSION,
    OPSET,
    check_containers,
    container,
    match,
    pack_bytes,
    pack_flatbuffer,
    pack_litert,
    pack_onnx,
    pack_planes,
    packed_onnx_runner,
)
from zoo.export.runners import onnx_runner

BITS = {"conv8": 8, "conv6": 6, "conv3": 3, "conv2": 2, "depthwise": 5, "dense1": 1, "dense2": 2, "dense4": 4}
NATIVE = (2, 4, 8)


def network(width=64):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for name in ("conv8", "conv6", "conv3", "conv2"):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=name)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(name=f"{name}_norm")(x))
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(width + 3, activation="relu", name="dense1")(x)
    x = keras.layers.Dense(width, activation="relu", name="dense2")(x)
    model = keras.Model(image, keras.layers.Dense(10, name="dense4")(x))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "norm" in variable.path:
            low, high = (0.5, 1.5) if "variance" in variable.path else (-1.0, 1.0)
            variable.assign(rng.uniform(low, high, variable.shape))
    return model


@pytest.fixture(scope="module")
def rounded():
    """A plain model whose weights are exactly what their codes say."""
    model = network()
    plan = BitPlan({f"{name}/*kernel": bits for name, bits in BITS.items()})
    codes = integer_weights(model, plan)
    for variable in model.trainable_variables:
        if variable.path in codes:
            variable.assign(codes[variable.path].dequantized())
    return model, plan, codes


@pytest.fixture(scope="module")
def packed_onnx(rounded, tmp_path_factory):
    model, _, codes = rounded
    return pack_onnx(model, codes, tmp_path_factory.mktemp("packed") / "model.onnx")


@pytest.fixture(scope="module")
def packed_litert(rounded, tmp_path_factory):
    model, _, codes = rounded
    return pack_litert(model, codes, tmp_path_factory.mktemp("packed") / "model.tflite")


# === Bits ===


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_hold_the_first_code_in_the_lowest_bits(bits):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 37)
    packed = pack_bytes(values, bits)

    assert len(packed) == -(-37 * bits // 8)
    number = int.from_bytes(packed.tobytes(), "little")
    fields = [(number >> (bits * i)) & (2**bits - 1) for i in range(37)]
    np.testing.assert_array_equal([f - 2**bits * (f >= 2 ** (bits - 1)) for f in fields], values)


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_planes_hold_one_bit_each(bits):
    fields = np.random.default_rng(0).integers(0, 2**bits, 21).astype("uint32")
    planes = pack_planes(fields, bits)

    assert planes.shape == (bits, 3)
    unpacked = np.unpackbits(planes, axis=1, bitorder="little")[:, :21]
    np.testing.assert_array_equal((unpacked.T * 2 ** np.arange(bits)).sum(axis=1), fields)


# === Finding codes ===


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 0, 1), (3, 0, 1, 2)])
def test_codes_are_found_transposed_and_scaled_by_channel(order):
    rng = np.random.default_rng(0)
    codes = Codes(rng.integers(-7, 8, (3, 3, 6, 10)), np.float32(0.25), 4)
    factors = rng.uniform(-2, 2, 10)
    factors[3] = 0.0
    constant = (codes.dequantized() * factors).transpose(order).astype("float32")
    found = match(codes, constant)

    assert found.axis == order.index(3)
    np.testing.assert_allclose(found.values * found.broadcast_scale, constant, atol=1e-6)
    assert (found.scale > 0).all()
    constant[0, 0, 0, 0] += 1e-3
    assert match(codes, constant) is None


# === ONNX ===


def test_onnx_computes_what_keras_computes(packed_onnx):
    assert packed_onnx.max_relative_error < 1e-5
    assert packed_onnx.agreement == 1.0
    assert packed_onnx.gzip_size == len(gzip.compress(packed_onnx.path.read_bytes(), 9))


def test_onnx_takes_the_bits_of_the_plan(rounded, packed_onnx):
    model, plan, _ = rounded
    report = size_report(model, plan, packed_onnx.path)

    assert report.file_bytes == packed_onnx.size
    assert -0.05 < report.overhead < 0.05 + 9000 / report.total_bytes  # a small graph beside small weights
    stored = onnx.load(packed_onnx.path)
    weights = sum(len(tensor.raw_data) for tensor in stored.graph.initializer if tensor.data_type != 1)
    assert weights == pytest.approx(report.quantized_bytes, rel=0.01)


@pytest.mark.slow
def test_large_onnx_is_within_five_percent(tmp_path):
    model = network(width=192)
    plan = BitPlan({f"{name}/*kernel": bits for name, bits in BITS.items()})
    codes = integer_weights(model, plan)
    for variable in model.trainable_variables:
        if variable.path in codes:
            variable.assign(codes[variable.path].dequantized())
    pack_onnx(model, codes, tmp_path / "model.onnx")

    assert abs(size_report(model, plan, tmp_path / "model.onnx").overhead) < 0.05


def test_onnx_types_follow_the_widths(rounded, packed_onnx):
    model = onnx.load(packed_onnx.path)
    types = [tensor.data_type for tensor in model.graph.initializer]

    assert {each.version for each in model.opset_import if each.domain == ""} == {OPSET}
    assert model.ir_version <= IR_VERSION
    for bits, type in {2: "INT2", 4: "INT4", 8: "INT8"}.items():
        expected = sum(each == bits for each in BITS.values())
        assert types.count(getattr(onnx.TensorProto, type)) == expected
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("BitShift") == sum(bits not in NATIVE for bits in BITS.values())
    assert ops.count("DequantizeLinear") == sum(bits in NATIVE for bits in BITS.values())
    onnx.checker.check_model(model, full_check=True)


def test_reference_implementation_agrees(rounded, packed_onnx):
    packed = onnx.load(packed_onnx.path)
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
    (found,) = ReferenceEvaluator(packed).run(None, {packed.graph.input[0].name: images})

    np.testing.assert_allclose(found, rounded[0](images), atol=1e-4)


def test_default_session_is_close(rounded, packed_onnx):
    """Without `SESSION_CONFIG`, products with dequantised weights are computed in eight bits."""
    model, _, _ = rounded
    images = np.random.default_rng(0).random((4, 8, 8, 3)).astype("float32")
    wanted = model(images).numpy()
    exact = packed_onnx_runner({"predict": packed_onnx.path})("predict", {"image": images})
    default = onnx_runner({"predict": packed_onnx.path})("predict", {"image": images})

    np.testing.assert_allclose(next(iter(exact.values())), wanted, atol=1e-5)
    np.testing.assert_allclose(next(iter(default.values())), wanted, atol=0.05 * np.abs(wanted).max())


# === LiteRT ===


def test_litert_computes_what_keras_computes(packed_litert):
    assert packed_litert.max_relative_error < 1e-5
    assert packed_litert.agreement == 1.0
    assert packed_litert.gzip_size < packed_litert.size


def test_litert_containers(rounded, packed_litert):
    """Two bits for fully connected layers only, four for convolutions, eight for depthwise ones."""
    codes, sizes = rounded[2], {}
    for tensor in read(packed_litert.path.read_bytes()).subgraphs[0].tensors:
        if tensor.type in (9, 17, 19):  # INT8, INT4, INT2
            sizes[int(np.prod(tensor.shape))] = {9: 8, 17: 4, 19: 2}[tensor.type]
    count = {name: codes[next(path for path in codes if path.startswith(name))].values.size for name in BITS}

    assert sizes[count["conv8"]] == 8
    assert sizes[count["depthwise"]] == 8
    assert sizes[count["conv2"]] in (4, 8)
    assert sizes[count["dense1"]] == 2
    assert sizes[count["dense2"]] == 2
    assert sizes[count["dense4"]] == 4


@pytest.mark.parametrize(
    ("op", "bits", "expected"),
    [
        ("FULLY_CONNECTED", 1, 2), ("FULLY_CONNECTED", 2, 2), ("FULLY_CONNECTED", 3, 4), ("FULLY_CONNECTED", 5, 8),
        ("CONV_2D", 1, 4), ("CONV_2D", 2, 4), ("CONV_2D", 3, 4), ("CONV_2D", 7, 8), ("CONV_2D", 9, None),
        ("DEPTHWISE_CONV_2D", 2, 8), ("SOFTMAX", 8, None),
    ],
)  # fmt: skip
def test_containers_by_operator(op, bits, expected):
    assert container(op, bits) == expected


def test_two_bit_convolutions_and_blocks_are_refused(rounded, tmp_path, monkeypatch):
    model, _, codes = rounded
    monkeypatch.setattr("zoo.export.packed.CONTAINERS", {"CONV_2D": (2, 4, 8), "FULLY_CONNECTED": (2, 4, 8)})
    forced = []
    monkeypatch.setattr("zoo.export.packed.check_containers", forced.append)
    kept = {path: each for path, each in codes.items() if "depthwise" not in path}
    pack_litert(model, kept, tmp_path / "model.tflite")
    monkeypatch.undo()

    with pytest.raises(ExportError, match=r"LiteRT computes CONV_2D wrongly with two-bit weights.*Received: "):
        check_containers(forced[0])


# === Models of other kinds ===


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
def test_learned_models_are_packed(quantizer, tmp_path):
    keras.utils.set_random_seed(0)
    model = MixedPrecisionDNN(
        depth=8, num_classes=4, input_shape=(8, 8, 1), quantizer=quantizer, bits=3, activation_bits=4
    )
    codes = integer_weights(model)
    for pack, name in ((pack_onnx, "model.onnx"), (pack_litert, "model.tflite")):
        packed = pack(model, codes, tmp_path / name)
        assert packed.agreement > 0.7
        assert packed.size < 0.75 * sum(4 * each.values.size for each in codes.values())
    report = size_report(model, BitPlan.of_model(model))
    assert (tmp_path / "model.onnx").stat().st_size < 1.5 * report.total_bytes


def test_quantisation_aware_models_are_packed(tmp_path):
    model = quantize_aware(network(16), bits={"conv*": 3, "dense*": 5}, activations=None)
    codes = integer_weights(model)

    assert pack_onnx(model, codes, tmp_path / "model.onnx").max_relative_error < 1e-5
    assert pack_litert(model, codes, tmp_path / "model.tflite").max_relative_error < 1e-5


def test_graphs_are_packed_without_a_model(rounded, packed_onnx, tmp_path):
    inputs = keras.Input((40,))
    model = keras.Model(inputs, keras.layers.Dense(30)(inputs))
    codes = integer_weights(model, BitPlan({"*/kernel": 3}))
    kernel = next(iter(codes.values())).dequantized()
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "kernel"], ["y"])],
        "graph",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 40])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 30])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])

    assert pack_onnx(made, codes, tmp_path / "graph.onnx") is None
    x = np.random.default_rng(0).normal(size=(5, 40)).astype("float32")
    found = packed_onnx_runner({"graph": tmp_path / "graph.onnx"})("graph", {"x": x})["y"]
    np.testing.assert_allclose(found, x @ kernel, atol=1e-5)


# === Bad input ===


def test_codes_of_another_model_are_refused(rounded, tmp_path):
    model, _, codes = rounded
    other = {path: Codes(-each.values[::-1], each.scale, each.bits) for path, each in codes.items()}

    with pytest.raises(ExportError, match=r"is no constant of the graph with.*Received: "):
        pack_onnx(model, other, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"is no constant of the graph with.*Received: "):
        pack_litert(model, other, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_codes_without_a_matrix_are_refused(rounded, tmp_path):
    with pytest.raises(ExportError, match=r"`codes` must hold a weight.*Received: none"):
        pack_onnx(rounded[0], {}, tmp_path / "model.onnx")


def test_files_that_compute_something_else_are_refused(rounded, tmp_path, monkeypatch):
    model, _, codes = rounded
    original = pack_flatbuffer

    def broken(content, codes):
        monkeypatch.setattr("zoo.export.packed.pack_bytes", lambda values, bits: pack_bytes(-values, bits))
        return original(content, codes)

    monkeypatch.setattr("zoo.export.packed.pack_flatbuffer", broken)
    with pytest.raises(VerificationError, match=r"computes something else than Keras.*Received: "):
        pack_litert(model, codes, tmp_path / "model.tflite")


def test_learned_model_of_many_bits_stays_exact(tmp_path):
    """Weights wider than a container stay in float; ONNX holds any width."""
    inputs = keras.Input((40,))
    keras.utils.set_random_seed(0)
    model = learn_bitwidths(keras.Model(inputs, keras.layers.Dense(30)(inputs)), bits=10, activation_bits=None)
    codes = integer_weights(model)

    assert max(each.bits for each in codes.values()) > 8
    assert pack_onnx(model, codes, tmp_path / "model.onnx").max_relative_error < 1e-5
    assert pack_litert(model, codes, tmp_path / "model.tflite").max_relative_error < 1e-5
