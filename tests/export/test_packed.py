"""Packed files: every bit width, run in its runtime and compared with Keras."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from onnx.reference import ReferenceEvaluator

from zoo.compression.bit_plan import BitPlan, Codes, integer_weights, size_report
from zoo.compression.mixed_precision_dnn import MixedPrecisionDNN, learn_bitwidths
from zoo.compression.tfmot import quantize_aware
from zoo.export import ExportError, VerificationError, export_model, read_metadata, verify_bundle
from zoo.export.flatbuffer import read
from zoo.export.packed import (
    IR_VERSION,
    OPSET,
    check_containers,
    container,
    match,
    pack_bytes,
    pack_flatbuffer,
    pack_graphs,
    pack_planes,
)
from zoo.export.pipeline import Graphs
from zoo.export.runners import litert_runner, onnx_runner
from zoo.export.signatures import model_signatures
from zoo.model import Signature, Spec, ZooModel

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
        elif "kernel" in variable.path and "conv" not in variable.path:
            # Activations that steps of 1/8 do not round to zero
            variable.assign(2 * variable.value)
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
def graphs(rounded, tmp_path_factory):
    """The plain model in float arithmetic."""
    return Graphs(model_signatures(rounded[0]), tmp_path_factory.mktemp("graphs"), dict, False, 18)


@pytest.fixture(scope="module")
def float_onnx(graphs):
    return graphs.onnx({"predict": {"dense4": ["batch", 10]}})


@pytest.fixture(scope="module")
def packed_onnx(rounded, float_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.onnx"
    path.write_bytes(pack_graphs(float_onnx, rounded[2])["predict"].SerializeToString())
    return path


@pytest.fixture(scope="module")
def packed_litert(rounded, graphs, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.tflite"
    path.write_bytes(pack_flatbuffer(graphs.litert_base, rounded[2]))
    return path


IMAGES = np.random.default_rng(0).random((16, 8, 8, 3)).astype("float32")


def check_output(model, run):
    wanted = model(IMAGES).numpy()
    (found,) = run("predict", {"image": IMAGES}).values()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


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


def test_onnx_computes_what_keras_computes(rounded, packed_onnx):
    check_output(rounded[0], onnx_runner({"predict": packed_onnx}))


def test_onnx_takes_the_bits_of_the_plan(rounded, packed_onnx):
    model, plan, _ = rounded
    report = size_report(model, plan, packed_onnx)

    assert -0.05 < report.overhead < 0.05 + 9000 / report.total_bytes  # a small graph beside small weights
    stored = onnx.load(packed_onnx)
    weights = sum(len(tensor.raw_data) for tensor in stored.graph.initializer if tensor.data_type != 1)
    assert weights == pytest.approx(report.quantized_bytes, rel=0.01)


def test_onnx_types_follow_the_widths(rounded, packed_onnx):
    model = onnx.load(packed_onnx)
    types = [tensor.data_type for tensor in model.graph.initializer]

    assert {each.version for each in model.opset_import if each.domain == ""} == {OPSET}
    assert model.ir_version <= IR_VERSION
    for bits, type in {2: "INT2", 4: "INT4", 8: "INT8"}.items():
        expected = sum(each == bits for each in BITS.values())
        assert types.count(getattr(onnx.TensorProto, type)) == expected
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("BitShift") == sum(bits not in NATIVE for bits in BITS.values())
    assert ops.count("Cast") == len(BITS)
    # Its products would be computed in eight bits
    assert "DequantizeLinear" not in ops
    onnx.checker.check_model(model, full_check=True)


def test_reference_implementation_agrees(rounded, packed_onnx):
    packed = onnx.load(packed_onnx)
    (found,) = ReferenceEvaluator(packed).run(None, {packed.graph.input[0].name: IMAGES[:2]})

    np.testing.assert_allclose(found, rounded[0](IMAGES[:2]), atol=1e-4)


# === LiteRT ===


def test_litert_computes_what_keras_computes(rounded, packed_litert):
    check_output(rounded[0], litert_runner({"predict": packed_litert}))


def test_litert_containers(rounded, packed_litert):
    """Two bits for fully connected layers only, four for convolutions, eight for depthwise ones."""
    codes, sizes = rounded[2], {}
    for tensor in read(packed_litert.read_bytes()).subgraphs[0].tensors:
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


def test_two_bit_convolutions_and_blocks_are_refused(rounded, graphs, monkeypatch):
    monkeypatch.setattr("zoo.export.packed.CONTAINERS", {"CONV_2D": (2, 4, 8), "FULLY_CONNECTED": (2, 4, 8)})
    forced = []
    monkeypatch.setattr("zoo.export.packed.check_containers", forced.append)
    kept = {path: each for path, each in rounded[2].items() if "depthwise" not in path}
    pack_flatbuffer(graphs.litert_base, kept)
    monkeypatch.undo()

    with pytest.raises(ExportError, match=r"LiteRT computes CONV_2D wrongly with two-bit weights.*Received: "):
        check_containers(forced[0])


# === Through the pipeline ===


@pytest.mark.slow
def test_a_learned_model_is_exported_with_its_bits(tmp_path):
    """ONNX within five per cent of the sum of the bits and the float parameters."""
    model = learn_bitwidths(network(width=192), bits=3, activation_bits=5)
    stage = model.stages[0]
    # Several widths, one of which no format has
    steps = stage._weight_parameters["step"]
    steps.assign(steps.value * np.resize([0.25, 0.5, 1.0], steps.shape))
    assert {3, 4, 5} <= set(stage.weight_bits().values())
    report = export_model(model, tmp_path / "bundle", ["litert", "onnx"], "bit_plan", name="network", benchmark=False)

    size = size_report(model, BitPlan.of_model(model), tmp_path / "bundle" / "network.bit_plan.onnx")
    assert abs(size.overhead) < 0.05
    for artifact in report.artifacts:
        assert artifact.verified
        assert artifact.metric.value <= artifact.metric.allowed
        assert artifact.variant == f"{size.bits_per_weight:.2f} bits per weight"
        assert f"{size.quantized_bytes:,.0f} bytes" in artifact.notes[0]
        assert f"{size.float_bytes:,}" in artifact.notes[0]
    assert f"{size.overhead:+.1%}" in report.artifact("onnx", "bit_plan").notes[0]
    facts, _ = read_metadata(tmp_path / "bundle" / "network.bit_plan.onnx")
    assert facts["quantization"] == "bit_plan"

    verified = verify_bundle(tmp_path / "bundle", model)
    assert all(artifact.verified for artifact in verified.artifacts)


@pytest.mark.parametrize("quantizer", ["uniform", "power_of_two"])
def test_quantisers_are_packed(quantizer, tmp_path):
    keras.utils.set_random_seed(0)
    model = MixedPrecisionDNN(
        depth=8, num_classes=4, input_shape=(8, 8, 1), quantizer=quantizer, bits=3, activation_bits=4
    )
    report = export_model(model, tmp_path / "b", ["litert", "onnx"], "bit_plan", benchmark=False)

    size = size_report(model, BitPlan.of_model(model))
    assert report.artifact("litert", "bit_plan").size < 0.75 * 4 * size.quantized_weights
    assert report.artifact("onnx", "bit_plan").size < 1.5 * size.total_bytes


def test_quantisation_aware_models_are_packed(tmp_path):
    model = quantize_aware(network(16), bits={"conv*": 3, "dense*": 5}, activations=None)
    report = export_model(model, tmp_path / "b", ["litert", "onnx"], ("none", "bit_plan"), benchmark=False)

    for format in ("litert", "onnx"):
        exact, packed = report.artifact(format), report.artifact(format, "bit_plan")
        assert packed.max_relative_error < 1e-5
        assert packed.size < 0.4 * exact.size


def test_learned_model_of_many_bits_stays_exact(tmp_path):
    """Weights wider than a container stay in float; ONNX holds any width."""
    inputs = keras.Input((40,), name="x")
    keras.utils.set_random_seed(0)
    model = learn_bitwidths(
        keras.Model(inputs, keras.layers.Dense(30)(inputs), name="wide"), bits=10, activation_bits=None
    )
    assert max(BitPlan.of_model(model).values()) > 8
    report = export_model(model, tmp_path / "b", ["litert", "onnx"], "bit_plan", benchmark=False)

    assert all(artifact.max_relative_error < 1e-5 for artifact in report.artifacts)


class TwoSignatures(ZooModel):
    """Shares one layer between its signatures, and has another in one of them only."""

    def __init__(self):
        super().__init__(name="two")
        self.shared, self.head = keras.layers.Dense(32, name="shared"), keras.layers.Dense(24, name="head")
        self(np.zeros((1, 20), "float32"))

    def call(self, inputs):
        return self.head(self.shared(inputs))

    def signatures(self):
        inputs = {"x": Spec(("batch", 20), "float32", "Features.", -1.0, 1.0)}
        return {
            "predict": Signature(lambda x: {"y": self(x)}, inputs, {"y": "Result."}),
            "encode": Signature(lambda x: {"code": self.shared(x)}, inputs, {"code": "Features."}),
        }


def test_signatures_share_their_weights(tmp_path):
    keras.utils.set_random_seed(0)
    model = quantize_aware(TwoSignatures(), bits=3, activations=None)
    modes = ("none", "bit_plan")
    report = export_model(model, tmp_path / "b", ["litert", "onnx"], modes, name="two", benchmark=False)

    for format in ("litert", "onnx"):
        assert report.artifact(format, "bit_plan").max_relative_error < 1e-5
    for name, count in {"encode": 1, "predict": 2}.items():
        graph = onnx.load(tmp_path / "b" / f"two.bit_plan.{name}.onnx").graph
        assert [node.op_type for node in graph.node].count("BitShift") == count
    stored = read((tmp_path / "b" / "two.bit_plan.tflite").read_bytes())
    sizes = [len(buffer.data) for buffer in stored.buffers if buffer.data is not None]
    # Four bits, and each weight once
    assert sizes.count(20 * 32 // 2) == sizes.count(32 * 24 // 2) == 1
    assert not {4 * 20 * 32, 4 * 32 * 24} & set(sizes)


# === Bad input ===


def test_a_plain_model_has_no_plan(rounded, tmp_path):
    with pytest.raises(ExportError, match=r"'bit_plan' needs a model whose weights.*learn_bitwidths.*Received: "):
        export_model(rounded[0], tmp_path / "b", ["onnx"], "bit_plan", benchmark=False)
    assert not list(tmp_path.iterdir())


def test_codes_of_another_model_are_refused(rounded, graphs, float_onnx):
    other = {path: Codes(-each.values[::-1], each.scale, each.bits) for path, each in rounded[2].items()}

    with pytest.raises(ExportError, match=r"is no constant of the graph with.*Received: "):
        pack_graphs(float_onnx, other)
    with pytest.raises(ExportError, match=r"is no constant of the graph with.*Received: "):
        pack_flatbuffer(graphs.litert_base, other)


def test_codes_without_a_matrix_are_refused(float_onnx):
    with pytest.raises(ExportError, match=r"`codes` must hold a weight.*Received: none"):
        pack_graphs(float_onnx, {})


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_files_that_compute_something_else_are_refused(activation_bits, tmp_path, monkeypatch):
    model = learn_bitwidths(network(16), bits=4, activation_bits=activation_bits)
    monkeypatch.setattr("zoo.export.packed.pack_bytes", lambda values, bits: pack_bytes(-values, bits))

    with pytest.raises(VerificationError, match=r"Received: "):
        export_model(model, tmp_path / "b", ["litert"], "bit_plan", benchmark=False)
    assert not list(tmp_path.iterdir())


def test_activations_may_round_the_other_way(tmp_path):
    """A single value on the edge of a step is no error of the file; an output that moves as a whole is."""
    model = learn_bitwidths(network(16), bits=4, activation_bits=4)
    export_model(model, tmp_path / "b", ["onnx"], "none", benchmark=False)
    kernel = next(variable for variable in model.trainable_variables if variable.path == "dense4/kernel")
    kernel.assign(kernel.value + tf.sign(kernel.value) * 2 * model.stages[0]._grid(True).smallest[-1])

    with pytest.raises(VerificationError, match=r"outputs are .* away from Keras.*Received: "):
        verify_bundle(tmp_path / "b", model)
