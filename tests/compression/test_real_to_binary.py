"""Real-to-binary networks: the arithmetic of the blocks, the losses, and what passes from stage to stage."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.compression.binary import same_padding
from zoo.compression.progressive import (
    DROPS,
    REAL_TO_BINARY_STAGES,
    STRONG_BASELINE_STAGES,
    AttentionMatching,
    Distillation,
    Distiller,
    Progression,
    Stage,
    WarmupAndDrops,
    attention_map,
    hand_over,
)
from zoo.compression.real_to_binary import (
    BinaryConv2D,
    ClipToUnit,
    HalfBlock,
    RealToBinaryNet,
    binary_kernel,
    binary_sign,
)
from zoo.experiments.real_to_binary import ARMS, NETWORK, RECIPES, FlipRates, reproduce
from zoo.training import run as training

SMALL = dict(
    image_size=10, num_channels=1, num_classes=4, widths=[8, 16], depths=[1, 1], stem="cifar", gate_ratio=4, padding_value=1
)  # fmt: skip


def small_model(seed=0, **changes):
    """A small network with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    return randomize(RealToBinaryNet(**{**SMALL, **changes}), seed)


def randomize(layer, seed=0):
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        name = variable.path.split("/")[-1]
        if name in ("moving_mean", "beta"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif name in ("gamma", "moving_variance", "alpha"):
            variable.assign(rng.uniform(0.3, 2.0, variable.shape))
    return layer


def images(count=5, size=10, channels=1, seed=0):
    return np.random.default_rng(seed).random((count, size, size, channels), np.float32)


def features(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), tf.float32)


def half_block(channels=8, filters=16, strides=1, size=6, **options):
    keras.utils.set_random_seed(0)
    half = HalfBlock(filters, strides, **{"gate_ratio": 4, **options})
    half.build((None, size, size, channels))
    return randomize(half)


# === Faithfulness ===


@pytest.mark.parametrize("padding_value", [0, 1])
def test_sums_are_whole_numbers_of_the_right_parity(padding_value):
    conv = BinaryConv2D(16, padding_value=padding_value)
    sums = conv(features(4, 9, 9, 7)).numpy()
    inside = sums if padding_value == 1 else sums[:, 1:-1, 1:-1]

    np.testing.assert_array_equal(sums, np.round(sums))
    assert (inside % 2 == (9 * 7) % 2).all()
    assert np.abs(sums).max() <= 9 * 7
    if padding_value == 0:
        # 6 of 9 places lie inside at an edge, 4 in a corner: both even
        assert (sums[:, 0] % 2 == 0).all()


def test_sign_of_zero_is_positive_and_its_gradient_passes_inside_the_unit_interval():
    x = tf.constant([0.0, -0.0, 1.0, -1.0, 1.0001, -1.0001, 1e-30, -1e-30, 0.3])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = binary_sign(x)

    np.testing.assert_array_equal(y, [1, 1, 1, -1, 1, -1, 1, -1, 1])
    upstream = tf.range(1.0, 10.0)
    np.testing.assert_array_equal(tape.gradient(y, x, upstream), upstream * [1, 1, 1, 1, 0, 0, 1, 1, 1])


def test_sign_of_weights_has_the_same_rules():
    conv = BinaryConv2D(1, kernel_size=1)
    conv.build((None, 1, 1, 4))
    conv.kernel.assign(np.reshape([0.0, -1.0, 1.0, -0.5], (1, 1, 4, 1)))
    x = tf.reshape(tf.constant([0.5, 0.5, -0.5, -0.5]), (1, 1, 1, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = conv(x)
    to_input, to_kernel = tape.gradient(y, [x, conv.kernel.value])

    assert y.numpy().item() == 1 - 1 - 1 + 1
    np.testing.assert_array_equal(np.ravel(to_input), [1, -1, 1, -1])
    np.testing.assert_array_equal(np.ravel(to_kernel), [1, 1, -1, -1])
    conv.kernel.assign(np.full(conv.kernel.shape, 1.0001))
    with tf.GradientTape() as tape:
        y = conv(x)
    np.testing.assert_array_equal(tape.gradient(y, conv.kernel.value), np.zeros(conv.kernel.shape))


def test_forward_graph_of_the_sign_is_a_comparison_and_a_selection():
    concrete = tf.function(binary_sign).get_concrete_function(tf.TensorSpec([3]))
    ops = {node.op for node in concrete.graph.as_graph_def().node} - {"Placeholder", "Const", "Identity", "IdentityN"}

    assert ops == {"GreaterEqual", "SelectV2"}


def test_sign_of_a_kernel_is_the_sign_and_becomes_a_constant_of_exported_files(tmp_path):
    values = tf.constant([0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 0.3, -2.0])
    np.testing.assert_array_equal(binary_kernel(values), binary_sign(values))
    report = zoo.export.export_model(small_model(), tmp_path / "out", ["litert"], benchmark=False)

    # One selection for the input of each convolution, and none for its kernel
    assert report.artifacts[0].ops["SELECT_V2"] == 4
    assert "SIGN" not in report.artifacts[0].ops


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 11_999_464),
        ({"scale": "none"}, 11_995_624),
        ({"scale": "none", "gate": False}, 11_701_224),
        # The ordinary ResNet-18: 11,689,512, and two moving statistics of 4,800 channels
        ({"real": True}, 11_699_112),
    ],
)
def test_parameter_counts_of_the_paper(changes, parameters):
    model = RealToBinaryNet(**changes)

    assert model.count_params() == parameters
    assert model.num_binary_weights == (0 if changes.get("real") else 10_985_472)


def test_gate_reads_real_values():
    half = half_block()
    a = features(5, 6, 6, 8)

    np.testing.assert_array_equal(half.conv(3.0 * a), half.conv(a))
    gates, scaled = half.gate(a).numpy(), half.gate(3.0 * a).numpy()
    assert np.abs(gates - scaled).max() > 1e-3
    assert 0 < gates.min() and gates.max() < 1
    half.gate.expand.kernel.assign(np.zeros((2, 16)))
    np.testing.assert_array_equal(half.gate(a), np.full((5, 1, 1, 16), 0.5))


def test_half_block_is_the_paper_s():
    half = half_block(strides=2, padding_value=1)
    x = features(5, 6, 6, 8).numpy()

    def norm(layer, v):
        slope = layer.gamma.numpy() / np.sqrt(layer.moving_variance.numpy() + 1e-3)
        return (v - layer.moving_mean.numpy()) * slope + layer.beta.numpy()

    a = norm(half.norm, x)
    u, kernel = np.where(a >= 0, 1, -1), np.where(half.conv.kernel.numpy() >= 0, 1, -1)
    padded = np.pad(u, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1)
    patches = [[padded[:, i : i + 5 : 2, j : j + 5 : 2] @ kernel[i, j] for j in range(3)] for i in range(3)]
    v = np.sum(patches, axis=(0, 1)).astype(np.float64)
    hidden = np.maximum(a.mean(axis=(1, 2)) @ half.gate.reduce.kernel.numpy(), 0)
    gate = 1 / (1 + np.exp(-hidden @ half.gate.expand.kernel.numpy()))
    v = v * half.scale.alpha.numpy() * gate[:, None, None]
    v = np.where(v > 0, v, np.ravel(half.activation.alpha.numpy()) * v)
    pooled = x.reshape(5, 3, 2, 3, 2, 8).mean(axis=(2, 4))
    shortcut = norm(half.shortcut.norm, pooled @ half.shortcut.conv.kernel.numpy()[0, 0])

    np.testing.assert_allclose(half(x), v + shortcut, rtol=1e-4, atol=1e-4)


def test_mean_commutes_with_normalisation():
    half = half_block()
    x = features(5, 6, 6, 8)
    norm = half.norm
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    offset = norm.beta.numpy() - norm.moving_mean.numpy() * scale
    reduce = half.gate.reduce.kernel.numpy()
    hidden = np.maximum(x.numpy().mean(axis=(1, 2)) @ (scale[:, None] * reduce) + offset @ reduce, 0)
    folded = 1 / (1 + np.exp(-hidden @ half.gate.expand.kernel.numpy()))

    np.testing.assert_allclose(half.gate(norm(x))[:, 0, 0], folded, atol=1e-5)


def test_attention_matching_ignores_scale_and_order_of_channels():
    loss = AttentionMatching(reduction=None)
    teacher, other = features(4, 5, 6, 8), features(4, 5, 6, 8, seed=1)
    shuffled = tf.gather(other, np.random.default_rng(0).permutation(8), axis=-1)

    np.testing.assert_allclose(loss([teacher], [3.0 * teacher]), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(loss([teacher], [other]), loss([teacher], [shuffled]), rtol=1e-5)
    np.testing.assert_allclose(loss([teacher], [other]), loss([other], [teacher]), rtol=1e-5)
    assert loss([teacher], [other]).numpy().min() > 0.1


def test_attention_matching_normalises_by_l2_and_sums_over_blocks():
    teacher, student = (
        [features(3, 4, 4, 5), features(3, 2, 2, 7)],
        [features(3, 4, 4, 2, seed=1), features(3, 2, 2, 1)],
    )
    expected = 0.0
    for one, two in zip(teacher, student, strict=True):
        q = [np.sum(np.square(a.numpy()), axis=-1).reshape(3, -1) for a in (one, two)]
        units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in q]
        expected = expected + np.linalg.norm(units[0] - units[1], axis=1)

    np.testing.assert_allclose(AttentionMatching(reduction=None)(teacher, student), expected, rtol=1e-5)
    assert attention_map(teacher[0]).shape == (3, 16)


def test_attention_matching_has_a_finite_gradient_for_the_student_alone():
    teacher = tf.Variable(features(2, 3, 3, 4))
    for start in (teacher * 1.0, tf.zeros_like(teacher), features(2, 3, 3, 4, seed=1)):
        student = tf.Variable(start)
        with tf.GradientTape() as tape:
            loss = AttentionMatching()([teacher], [student])
        to_teacher, to_student = tape.gradient(loss, [teacher, student])
        assert to_teacher is None
        assert np.isfinite(to_student).all()
    assert np.abs(to_student).max() > 0


def test_stages_hand_over_weights_and_end_weight_decay():
    one_block = {**SMALL, "widths": [8], "depths": [1]}
    model, data = RealToBinaryNet(**one_block), batches()
    model.compile_stages(REAL_TO_BINARY_STAGES, 13, jit_compile=False)
    entry = AtStart(model.progression, "binary")
    model.fit(data, epochs=1, steps_per_epoch=13, verbose=0, callbacks=[entry])

    before = model.progression.networks["binary activations"]
    assert len(entry.weights) == len(before.get_weights())
    # The teacher of the last stage stays as it was when that stage began
    undone = RealToBinaryNet(**one_block, weight_mode="none")
    undone.set_weights(entry.weights)
    for half in undone.blocks[0].halves:
        scale = np.abs(half.conv.kernel).mean(axis=(0, 1, 2))
        half.scale.alpha.assign(half.scale.alpha / scale)
        assert scale.max() < 0.5
    for own, given in zip(undone.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_allclose(own, given, rtol=1e-6)
    np.testing.assert_allclose(undone(images()), before(images()), atol=1e-6)
    decays = [each.optimizer.weight_decay for each in model.progression.distillers]
    assert decays == [1e-5, 1e-5, 1e-5, None]
    moved = [np.abs(a - b).max() for a, b in zip(entry.weights, model.get_weights(), strict=True)]
    assert max(moved) > 0


def test_zero_scales_leave_the_chain_of_shortcuts():
    model = small_model()
    for block in model.blocks:
        for half in block.halves:
            half.scale.alpha.assign(tf.zeros(half.scale.alpha.shape))
    x = model.stem(images())
    for block in model.blocks:
        for half in block.halves:
            x = half.shortcut(x)

    np.testing.assert_array_equal(model.forward(images())[1][-1], x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sign_of_normalisation_is_a_comparison(sign):
    from zoo.compression.binary import affine, fold_threshold

    norm = keras.layers.BatchNormalization()
    norm.build((None, 64))
    randomize(norm)
    norm.gamma.assign(sign * norm.gamma)
    x = features(5000, 64)
    threshold, flipped = fold_threshold(*affine(norm))
    x = tf.concat([x, [threshold, np.nextafter(threshold, 9e9), np.nextafter(threshold, -9e9)]], 0)

    assert flipped.all() == (sign < 0)
    wanted = norm.moving_mean - norm.beta * np.sqrt(norm.moving_variance + norm.epsilon) / norm.gamma
    np.testing.assert_allclose(threshold, wanted, rtol=1e-4, atol=1e-6)
    compared = np.where(flipped, x <= threshold, x >= threshold)
    np.testing.assert_array_equal(np.where(compared, 1, -1), binary_sign(norm(x)))


# === Layers ===


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [4, 5, 7, 8])
def test_padding_is_that_of_tensorflow(size, strides):
    kernel, x = features(3, 3, 2, 4), features(2, size, size, 2)
    pads = same_padding(size, 3, strides)
    padded = tf.pad(x, [(0, 0), pads, pads, (0, 0)])
    wanted = tf.nn.conv2d(x, kernel, strides, "SAME")

    np.testing.assert_allclose(tf.nn.conv2d(padded, kernel, strides, "VALID"), wanted, atol=1e-5)


def test_padding_by_one_changes_the_border_only():
    zero, one = (BinaryConv2D(4, padding_value=value) for value in (0, 1))
    x = features(2, 6, 6, 8)
    zero(x), one(x)
    one.set_weights(zero.get_weights())
    inner, outer = (zero(x) - one(x)).numpy()[:, 1:-1, 1:-1], (zero(x) - one(x)).numpy()[:, 0]

    assert (inner == 0).all() and (outer != 0).any()


@pytest.mark.parametrize(("mode", "function"), [("none", lambda x: x), ("tanh", np.tanh)])
def test_softer_modes(mode, function):
    conv = BinaryConv2D(4, activation_mode=mode, weight_mode=mode)
    x = features(2, 5, 5, 3)
    conv(x)
    wanted = tf.nn.conv2d(function(x), function(conv.kernel.numpy()), 1, "SAME")

    np.testing.assert_allclose(conv(x), wanted, atol=1e-5)


def test_latent_weights_are_clipped_after_updates():
    conv = BinaryConv2D(4)
    conv.build((None, 5, 5, 3))
    optimizer = keras.optimizers.SGD(100.0)
    optimizer.apply([tf.ones(conv.kernel.shape)], [conv.kernel])

    np.testing.assert_array_equal(conv.kernel, -np.ones(conv.kernel.shape))
    np.testing.assert_array_equal(ClipToUnit()(tf.constant([-2.0, 0.5, 2.0])), [-1.0, 0.5, 1.0])


def test_scales_of_rank_one():
    half = half_block(scale="hwc", size=4)
    shapes = {variable.name: tuple(variable.shape) for variable in half.scale.weights}
    assert shapes == {"alpha": (16,), "alpha_height": (4, 1, 1), "alpha_width": (4, 1)}
    rng = np.random.default_rng(0)
    for variable in half.scale.weights:
        variable.assign(rng.random(variable.shape))
    x = features(2, 4, 4, 16).numpy()
    height, width, channel = (
        np.ravel(w.numpy()) for w in (half.scale.alpha_height, half.scale.alpha_width, half.scale.alpha)
    )

    np.testing.assert_allclose(half.scale(x), np.einsum("nhwc,h,w,c->nhwc", x, height, width, channel), rtol=1e-5)


def test_scales_may_begin_at_the_mean_of_the_weights():
    model = RealToBinaryNet(**SMALL, scale_initializer="kernel_mean")
    half = model.blocks[0].halves[0]

    np.testing.assert_allclose(half.scale.alpha, np.abs(half.conv.kernel).mean(axis=(0, 1, 2)), rtol=1e-6)
    assert (RealToBinaryNet(**SMALL).blocks[0].halves[0].scale.alpha.numpy() == 1).all()


def test_binary_layer_round_trip():
    conv = BinaryConv2D(4, 3, 2, 1, "tanh", "none")

    assert BinaryConv2D.from_config(conv.get_config()).get_config() == conv.get_config()


# === Model ===


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "strided"])
def test_teacher_and_student_have_blocks_of_the_same_shapes(stem):
    student, teacher = (
        RealToBinaryNet(**{**SMALL, "stem": stem, "image_size": 18}, real=real) for real in (False, True)
    )
    shapes = [[f.shape for f in model.forward(images(2, 18))[1]] for model in (student, teacher)]

    assert shapes[0] == shapes[1]
    assert shapes[0][0][1] == {"imagenet": 5, "cifar": 18, "strided": 9}[stem]


def test_binary_kernels_compute_the_same():
    model = small_model()
    copy = model.with_binary_kernels()

    np.testing.assert_array_equal(copy(images()), model(images()))
    assert all(set(np.unique(conv.kernel.numpy())) == {-1.0, 1.0} for conv in copy.binary_convs)
    with pytest.raises(ValueError, match=r"`weight_mode` must be 'sign'.*Received: "):
        copy.with_binary_kernels()


def test_attention_maps_have_unit_norm():
    maps = small_model().attention_maps(images())

    assert [m.shape for m in maps] == [(5, 10, 10), (5, 5, 5)]
    for each in maps:
        np.testing.assert_allclose(np.linalg.norm(each.reshape(5, -1), axis=1), 1.0, rtol=1e-5)


def test_stored_images_become_inputs():
    model = small_model()
    stored = np.arange(200, dtype=np.uint8).reshape(2, 10, 10)

    converted = model.preprocess(stored)
    assert converted.shape == (2, 10, 10, 1) and converted.dtype == np.float32
    assert converted.max() == np.float32(199 / 255)
    np.testing.assert_array_equal(model.preprocess(stored[..., None]), converted)
    with pytest.raises(
        ValueError, match=r"must have shape \(number, \*\(10, 10, 1\)\). Received: shape=\(2, 8, 8, 3\)"
    ):
        model.preprocess(np.zeros((2, 8, 8, 3), np.uint8))


def test_model_round_trip(tmp_path):
    model = small_model(scale="hwc", padding_value=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(images()), model(images()))


@pytest.mark.parametrize("real", [False, True])
def test_momentum_is_that_of_every_normalisation(real):
    model = RealToBinaryNet(**{**SMALL, "stem": "imagenet", "image_size": 16}, real=real, normalization_momentum=0.5)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]

    # Stem, four halves and one shortcut
    assert [norm.momentum for norm in norms] == [0.5] * 6
    assert RealToBinaryNet(**SMALL).blocks[0].halves[0].norm.momentum == 0.99
    assert RealToBinaryNet.from_config(model.get_config()).stem.norm.momentum == 0.5


# === Training ===


def batches(count=32):
    rng = np.random.default_rng(0)
    return tf.data.Dataset.from_tensor_slices((images(count), rng.integers(0, 4, count))).repeat().batch(8)


class AtStart(keras.callbacks.Callback):
    """Takes the weights with which a stage begins: called after the progression itself."""

    def __init__(self, progression, stage):
        super().__init__()
        self.progression, self.stage, self.weights = progression, stage, []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.weights and self.progression.stages[self.progression.index].name == self.stage:
            self.weights = self.model.get_weights()


def test_plain_fit_learns():
    model = RealToBinaryNet(**SMALL)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    history = model.fit(images(16), np.arange(16) % 4, epochs=40, batch_size=16, verbose=0).history["loss"]

    assert history[-1] < 0.3 * history[0]
    assert all(np.abs(conv.kernel).max() <= 1 for conv in model.binary_convs)


def test_distiller_leaves_the_teacher_as_it_is():
    teacher, student = small_model(real=True), small_model(seed=1)
    before, own = teacher.get_weights(), student.get_weights()
    distiller = Distiller(student, teacher, attention_weight=30.0, distillation_weight=3.0)
    distiller.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    distiller.fit(batches(), steps_per_epoch=3, verbose=0)

    for kept, value in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, value)
    assert max(np.abs(a - b).max() for a, b in zip(own, student.get_weights(), strict=True)) > 0
    assert {v.path for v in distiller.trainable_weights} == {v.path for v in student.trainable_weights}


def test_distillation_brings_attention_to_the_teacher_s():
    teacher, student = small_model(real=True), RealToBinaryNet(**SMALL)
    distance = lambda: float(  # noqa: E731
        AttentionMatching()(teacher.forward(images())[1], student.forward(images(), training=True)[1])
    )
    before = distance()
    distiller = Distiller(student, teacher, attention_weight=30.0)
    distiller.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    distiller.fit(batches(), steps_per_epoch=60, verbose=0)

    assert distance() < 0.8 * before


def test_distillation_is_a_scaled_divergence():
    teacher, student = features(4, 5), features(4, 5, seed=1)
    p, q = (np.asarray(tf.nn.softmax(z / 2.0)) for z in (teacher, student))

    np.testing.assert_allclose(
        Distillation(2.0, reduction=None)(teacher, student), 4 * np.sum(p * np.log(p / q), axis=1), rtol=1e-4
    )
    np.testing.assert_allclose(Distillation(2.0)(teacher, teacher), 0.0, atol=1e-6)


def test_learning_rate_warms_up_and_drops():
    schedule = WarmupAndDrops(1e-3, 75, 0.3)
    rates = np.array([float(schedule(step)) for step in range(75)])

    np.testing.assert_allclose(rates[:5], 1e-3 * np.arange(1, 6) / 5, rtol=1e-5)
    for before, factor in ((30, 1.0), (50, 0.3), (65, 0.09), (74, 0.027)):
        assert rates[before] == pytest.approx(1e-3 * factor, rel=1e-5)
    assert len(DROPS) == 3


def test_shares_decide_whose_turn_it_is():
    model = RealToBinaryNet(**{**SMALL, "widths": [8], "depths": [1]})
    model.compile_stages(STRONG_BASELINE_STAGES, 6, jit_compile=False)
    kernel = lambda: model.blocks[0].halves[0].conv.kernel.numpy()  # noqa: E731
    start = kernel()
    turns = []
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: turns.append(model.progression.index))
    history = model.fit(
        batches(), validation_data=batches().take(1), epochs=3, steps_per_epoch=2, verbose=0, callbacks=[log]
    ).history

    assert turns == [0, 0, 0, 1, 1, 1]
    assert model.progression.num_updates_done == 6
    assert (kernel() != start).any()
    # What is chosen by validation is the final network, never an earlier one
    assert history["val_deployable_error"][0] == 1.0
    assert history["val_deployable_error"][-1] == pytest.approx(1 - history["val_accuracy"][-1])


@pytest.mark.slow
def test_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path):
    recipe = dataclasses.replace(
        RECIPES["fashion"], dataset="fashion_mnist_sample", epochs=3, steps_per_epoch=4,
        overrides=lambda dataset: {"widths": [8], "depths": [1]},
    )  # fmt: skip
    # Stages begin after 0, 4, 6 and 9 updates: the third one is in its middle after 8
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: _interrupt() if epoch == 1 else None)
    training.train(recipe, tmp_path / "whole", checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe, tmp_path / "parts", checkpoint_minutes=0, callbacks=[stop])
    training.train(recipe, tmp_path / "parts", checkpoint_minutes=0, resume=True)
    whole, parts = (dict(np.load(tmp_path / name / "training.npz")) for name in ("whole", "parts"))

    # The networks and optimisers of all stages, and the history of the metrics
    assert sum(name.startswith("stream_") for name in whole) > 3 * len(RealToBinaryNet(**SMALL, real=True).weights) / 2
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, parts[name], err_msg=name)


def _interrupt():
    raise KeyboardInterrupt


def test_flip_rates_are_shares_of_changed_signs():
    model = RealToBinaryNet(**SMALL)
    model.compile_stages([dataclasses.replace(STRONG_BASELINE_STAGES[1], initial=None, learning_rate=0.1)], 4)
    flips = FlipRates()
    model.fit(batches(), epochs=2, steps_per_epoch=2, verbose=0, callbacks=[flips])

    assert [record["update"] for record in flips.history] == [4]
    assert 0 < flips.history[0]["rate"] < 1


@pytest.mark.parametrize("name", ARMS)
def test_arms_are_complete(name):
    arm = ARMS[name]
    model = zoo.get("real_to_binary", "fashion", weights=None, **{**NETWORK, **arm.changes})

    assert len(Progression(model, arm.stages, 100).distillers) == len(arm.stages)


@pytest.mark.parametrize("preset", RECIPES)
def test_recipes_compile_what_they_train(preset):
    recipe = RECIPES[preset]
    model = zoo.get("real_to_binary", preset, weights=None)
    recipe.compile(model, recipe.epochs * recipe.steps_per_epoch)

    assert recipe.preset == preset and recipe.monitor == "val_deployable_error"
    # The last stage has epochs of its own to choose weights from
    assert model.progression.starts[-1] < (recipe.epochs - 1) * recipe.steps_per_epoch


@pytest.mark.slow
def test_experiment_writes_results_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.experiments.real_to_binary.available_dataset", lambda name, progress: f"{name}_sample")
    lines = []
    for _ in range(2):
        reproduce(tmp_path, 1, 12, {"widths": [8], "depths": [1], "gate_ratio": 4}, lines.append)
    results = json.loads((tmp_path / "real_to_binary.json").read_text())

    assert len(lines) == len(ARMS)
    assert set(results["accuracy"]) == set(ARMS)
    assert (tmp_path / "real_to_binary.png").stat().st_size > 10_000


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "`image_size` must be at least 1"),
        ({"num_channels": 0}, "`num_channels` must be at least 1"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"widths": []}, "`widths` must be positive numbers"),
        ({"depths": [1]}, "`depths` must be 2 positive numbers"),
        ({"depths": [1, 0]}, "`depths` must be 2 positive numbers"),
        ({"stem": "wide"}, "`stem` must be one of"),
        ({"scale": "row"}, "`scale` must be one of"),
        ({"scale_initializer": "zeros"}, "`scale_initializer` must be one of"),
        ({"padding_value": 2}, "`padding_value` must be 0 or 1"),
        ({"normalization_momentum": 1.0}, "`normalization_momentum` must be from 0 to below 1"),
        ({"activation_mode": "relu"}, "`activation_mode` must be one of"),
        ({"weight_mode": "ternary"}, "`weight_mode` must be one of"),
        ({"gate_ratio": 0}, "`gate_ratio` must be at least 1"),
        ({"gate_ratio": 9}, "`ratio` must be at most the number of channels 8"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        RealToBinaryNet(**{**SMALL, **changes})


@pytest.mark.parametrize("arguments", [{"filters": 0}, {"kernel_size": 0}, {"strides": 0}, {"padding_value": -1}])
def test_layer_refuses(arguments):
    with pytest.raises(ValueError, match=rf"`{next(iter(arguments))}` must be .*Received: "):
        BinaryConv2D(**{"filters": 4, **arguments})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"share": 0}, "share"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"temperature": 0}, "temperature"),
        ({"attention_weight": -1, "teacher": "a"}, "attention_weight"),
        ({"distillation_weight": -1, "teacher": "a"}, "distillation_weight"),
        ({"distillation_weight": 1}, "teacher"),
        ({"weight_decay": 1e-5}, "weight_decay"),
    ],
)
def test_stage_refuses(arguments, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: "):
        Stage("stage", **arguments)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one, of different names"),
        ([Stage("a"), Stage("a")], "at least one, of different names"),
        ([Stage("a", teacher="b"), Stage("b")], "must name earlier stages only"),
        ([Stage("a", weight_mode="none")], "must be as binary as the model"),
    ],
)
def test_compiling_in_stages_refuses(stages, message):
    with pytest.raises(ValueError, match=rf"`stages`.*{message}.*Received: "):
        RealToBinaryNet(**SMALL).compile_stages(stages, 10)


def test_hand_over_refuses_another_network():
    with pytest.raises(ValueError, match=r"must have the same weights. Received: "):
        hand_over(small_model(), small_model(gate=False))


def test_attention_matching_refuses_maps_of_other_sizes():
    with pytest.raises(ValueError, match=r"block outputs of one size. Received: "):
        AttentionMatching().call([features(2, 4, 4, 3)], [features(2, 5, 5, 3)])
