"""Bit-packed networks: exact integers, exact thresholds, files that are whole or refused."""

import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.compression import binary
from zoo.compression.binary import ENGINES, PackedModel, fold_threshold, pack, pack_kernel, pack_signs, unpack_signs
from zoo.compression.real_to_binary import BinaryConv2D, RealToBinaryNet

VARIANTS = [
    {},
    {"padding_value": 0, "scale": "hwc", "stem": "cifar"},
    {"gate": False, "scale": "none", "stem": "imagenet", "image_size": 36},
]


def random_model(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    model = zoo.get("real_to_binary", weights=None, **changes)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        name = variable.path.split("/")[-1]
        if name in ("moving_mean", "beta"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif name in ("gamma", "alpha"):
            # Some below zero: their comparisons are turned round
            variable.assign(rng.normal(0.4, 0.5, variable.shape))
        elif name == "moving_variance":
            variable.assign(rng.uniform(1, 30, variable.shape))
    return model


def layer_and_input(channels, filters, size, strides, padding_value, kernel_size=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, size, size + 1, channels)).astype("float32")
    layer = BinaryConv2D(filters, kernel_size, strides, padding_value)
    layer.build(x.shape)
    layer.kernel.assign(rng.uniform(-1, 1, layer.kernel.shape))
    return layer, x


# === Convolution ===


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("padding_value", [0, 1])
@pytest.mark.parametrize(
    ("channels", "filters", "size", "strides", "kernel_size"),
    [(64, 64, 7, 1, 3), (32, 64, 14, 2, 3), (128, 33, 9, 2, 3), (7, 5, 6, 2, 3), (100, 8, 5, 1, 1), (65, 40, 8, 1, 5)],
)
def test_packed_convolution_is_the_keras_one(channels, filters, size, strides, kernel_size, padding_value, engine):
    layer, x = layer_and_input(channels, filters, size, strides, padding_value, kernel_size)
    bits, kernel = pack_signs(x >= 0), pack_kernel(layer.kernel.numpy())
    sums = binary.xnor_convolution(bits, kernel, channels, strides, padding_value, engine)

    assert sums.dtype == np.int32
    np.testing.assert_array_equal(sums, layer(x))


def test_sums_are_counts_of_differing_bits():
    rng = np.random.default_rng(0)
    x, w = (np.where(rng.random((1, 1, 1, 200)) < 0.5, 1, -1) for _ in range(2))
    differing = np.bitwise_count(pack_signs(x > 0) ^ pack_signs(w > 0)).sum()
    kernel = pack_kernel(w.reshape(1, 1, 200, 1))
    found = [binary.xnor_convolution(pack_signs(x > 0), kernel, 200, engine=engine).item() for engine in ENGINES]

    assert found == [200 - 2 * int(differing)] * 2 == [np.sum(x * w)] * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_of_zero_leaves_out_what_lies_outside(engine):
    layer, x = layer_and_input(64, 8, 5, 1, 0)
    bits, kernel = pack_signs(x >= 0), pack_kernel(layer.kernel.numpy())
    zero, one = (binary.xnor_convolution(bits, kernel, 64, 1, value, engine) for value in (0, 1))
    weights = np.where(layer.kernel.numpy() >= 0, 1, -1).sum(axis=2)

    np.testing.assert_array_equal(zero[:, 1:-1, 1:-1], one[:, 1:-1, 1:-1])
    np.testing.assert_array_equal((one - zero)[:, 0, 2], np.tile(weights[0].sum(axis=0), (3, 1)))
    corner = weights[0].sum(axis=0) + weights[1:, 0].sum(axis=0)
    np.testing.assert_array_equal((one - zero)[:, 0, 0], np.tile(corner, (3, 1)))


@pytest.mark.parametrize("channels", [1, 31, 64, 65, 130])
def test_signs_survive_packing(channels):
    positive = np.random.default_rng(0).random((2, 3, channels)) < 0.5
    bits = pack_signs(positive)

    assert bits.dtype == np.uint64 and bits.shape == (2, 3, -(-channels // 64))
    np.testing.assert_array_equal(unpack_signs(bits, channels), positive)
    assert int(bits[0, 0, 0]) & 1 == positive[0, 0, 0]


def test_bits_of_features_are_comparisons_in_both_engines():
    from zoo.compression import xnor_kernels

    rng = np.random.default_rng(0)
    x, threshold = rng.normal(size=(2, 3, 4, 70)).astype("float32"), rng.normal(size=70).astype("float32")
    x[0, 0, 0] = threshold
    flipped = rng.random(70) < 0.5
    bits = np.empty((2, 3, 4, 2), np.uint64)
    xnor_kernels.pack_bits(x, threshold, flipped, bits)

    np.testing.assert_array_equal(bits, pack_signs(np.where(flipped, x <= threshold, x >= threshold)))
    assert unpack_signs(bits, 70)[0, 0, 0].all()


# === Thresholds ===


def test_thresholds_agree_with_float32_arithmetic_to_the_last_bit():
    rng = np.random.default_rng(0)
    scale = np.concatenate([rng.normal(size=300), 10.0 ** rng.uniform(-20, 20, 300) * rng.choice([-1, 1], 300)])
    scale, offset = scale.astype("float32"), rng.normal(size=600).astype("float32")
    threshold, flipped = fold_threshold(scale, offset)
    near = [threshold, np.nextafter(threshold, np.float32(np.inf)), np.nextafter(threshold, np.float32(-np.inf))]
    x = np.concatenate([rng.normal(size=(2000, 600)).astype("float32"), near, np.zeros((1, 600)), -np.zeros((1, 600))])
    x = np.clip(x, -1e38, 1e38).astype("float32")
    with np.errstate(over="ignore"):
        wanted = x * scale + offset >= 0

    np.testing.assert_array_equal(np.where(flipped, x <= threshold, x >= threshold), wanted)
    assert 0 < flipped.mean() < 1


def test_channels_without_scale_have_the_sign_of_their_offset():
    threshold, flipped = fold_threshold(np.zeros(3, "float32"), np.array([1.0, 0.0, -1.0], "float32"))
    x = np.array([[-1e30], [0.0], [1e30]], "float32")

    np.testing.assert_array_equal(np.where(flipped, x <= threshold, x >= threshold), [[True, True, False]] * 3)


# === Networks ===


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changes", VARIANTS)
def test_packed_network_gives_the_logits_of_keras(changes, engine):
    model = random_model(**changes)
    image = model.dummy_inputs(batch_size=32)["image"]
    wanted, found = model.run(image=image)["logits"], pack(model, engine).predict(image)

    # Sums in another order may turn a bit that is at its threshold: seldom, and then by a little
    errors = np.abs(wanted - found).max(axis=1) / np.abs(wanted).max()
    assert (errors < 1e-5).mean() >= 0.9
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(axis=1), wanted.argmax(axis=1))


def test_both_engines_give_the_same_logits():
    model = random_model()
    image = model.dummy_inputs(batch_size=4)["image"]

    np.testing.assert_array_equal(*(pack(model, engine).predict(image) for engine in ENGINES))


def test_packed_bytes_of_the_paper_s_network():
    sizes = pack(RealToBinaryNet(), engine="numpy").sizes()

    assert sizes["binary_weights"] == 10_985_472
    assert sizes["kernel_bytes"] == 10_985_472 / 8
    assert sizes["packed_bytes"] / 2**20 == pytest.approx(5.1, abs=0.1)
    assert sizes["ratio"] > 8


# === Files ===


def test_file_round_trip(tmp_path):
    model = random_model()
    packed = pack(model)
    path = packed.save(tmp_path / "model.bits")
    loaded = PackedModel.load(path)
    image = model.dummy_inputs(batch_size=2)["image"]

    assert loaded.config == packed.config
    np.testing.assert_array_equal(loaded.predict(image), packed.predict(image))
    assert path.stat().st_size < 1.1 * packed.sizes()["packed_bytes"]
    assert packed.save(tmp_path / "again.bits").read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "model.bits"
    return pack(random_model(), engine="numpy").save(path).read_bytes()


@pytest.mark.parametrize("place", [0, 10, 60, -1])
def test_damaged_file_is_refused(tmp_path, saved, place):
    data = bytearray(saved)
    data[place] ^= 1
    (tmp_path / "bad").write_bytes(data)

    with pytest.raises(ValueError, match=r"Not a packed model, or a damaged one. Received: "):
        PackedModel.load(tmp_path / "bad")


@pytest.mark.parametrize("length", [0, 7, 40, 47, 1000])
def test_cut_file_is_refused(tmp_path, saved, length):
    (tmp_path / "bad").write_bytes(saved[:length])

    with pytest.raises(ValueError, match=r"Not a packed model, or a damaged one. Received: "):
        PackedModel.load(tmp_path / "bad")


def rewritten(saved, change):
    """A file whose hash is right and whose header is another one."""
    length = int.from_bytes(saved[40:48], "little")
    header = json.loads(saved[48 : 48 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + saved[48 + length :]
    return saved[:8] + hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["arrays"]["stem/slope"].update(shape=[10**9]),
        lambda h: h["arrays"]["stem/slope"].update(shape=[-32]),
        lambda h: h["arrays"]["stem/slope"].update(dtype="object"),
        lambda h: h["arrays"]["stem/slope"].update(offset=0),
        lambda h: h["arrays"].pop("stem/slope") and None,
        lambda h: h["config"].update(scale="none"),
        lambda h: h["config"].update(halves=[]),
        lambda h: h["config"].update(num_classes="10"),
        lambda h: h["config"].update(stem="other"),
        lambda h: h["config"].update(padding_value=7),
        lambda h: h["config"].pop("image_size") and None,
        lambda h: h["config"]["halves"][0].update(strides=0),
        lambda h: [1, 2],
        lambda h: {"config": {}, "arrays": {}},
    ],
)
def test_malformed_header_is_refused(tmp_path, saved, change):
    (tmp_path / "bad").write_bytes(rewritten(saved, change))

    with pytest.raises(ValueError, match=r"Received: "):
        PackedModel.load(tmp_path / "bad")


# === Bad input ===


@pytest.mark.parametrize(
    "changes", [{"real": True}, {"weight_mode": "none"}, {"activation_mode": "tanh"}, {"weight_mode": "tanh"}]
)
def test_packing_refuses_what_is_not_binary(changes):
    with pytest.raises(ValueError, match=r"`model` must have binary activations and weights. Received: "):
        pack(random_model(**changes))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 28, 28)), "must have shape"),
        (np.zeros((2, 28, 28, 3)), "must have shape"),
        (np.zeros((0, 28, 28, 1)), "must have shape"),
        (np.full((2, 28, 28, 1), 1.5), "must be in"),
        (np.full((2, 28, 28, 1), np.nan), "must be in"),
    ],
)
def test_predicting_refuses(image, message):
    with pytest.raises(ValueError, match=rf"`image` {message}.*Received: "):
        pack(random_model(), engine="numpy").predict(image)


def test_convolution_refuses():
    bits, kernel = np.zeros((1, 4, 4, 1), np.uint64), np.zeros((9, 1, 8), np.uint64)
    for arguments, message in (
        ((bits, kernel, 65), "must fit 65 channels"),
        ((bits[0], kernel, 64), "must fit 64 channels"),
        ((bits, kernel[:8], 64), "must fit 64 channels"),
        ((bits, kernel, 64, 1, 2), "`padding_value` must be 0 or 1"),
        ((bits, kernel, 64, 0), "`strides` must be at least 1"),
        ((bits, kernel, 64, 1, 0, "cuda"), "`engine` must be one of"),
    ):
        with pytest.raises(ValueError, match=rf"{message}.*Received: "):
            binary.xnor_convolution(*arguments)


def test_engine_is_numba_where_that_is_installed(monkeypatch):
    assert binary.default_engine() == "numba"
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda name: None)
    assert binary.default_engine() == "numpy"


def test_missing_numba_is_named_with_its_extra(monkeypatch):
    def refuse(name):
        raise ImportError("No module named 'numba'")

    monkeypatch.setattr(binary.importlib, "import_module", refuse)
    bits, kernel = np.zeros((1, 4, 4, 1), np.uint64), np.zeros((9, 1, 8), np.uint64)

    with pytest.raises(ImportError, match=r"method-zoo\[binary\].*engine='numpy'.*Received: "):
        binary.xnor_convolution(bits, kernel, 64)
    assert binary.xnor_convolution(bits, kernel, 64, engine="numpy").shape == (1, 4, 4, 8)


def test_affine_is_the_normalisation_s():
    norm = random_model().blocks[0].halves[0].norm
    scale, offset = binary.affine(norm)
    x = tf.constant(np.random.default_rng(0).normal(size=(10, 3, 3, 32)), tf.float32)

    np.testing.assert_array_equal(x.numpy() * scale + offset, norm(x))
