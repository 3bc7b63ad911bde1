"""Real NVP: masks, batch normalisation and scales, held against autodiff and numerical integration."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from generative.image_models import flow_images, flow_jacobians

import zoo
from zoo.datasets import load_arrays
from zoo.generative.image_flow import EVALUATION_DRAWS
from zoo.generative.real_nvp import (
    ALPHA,
    EPSILON,
    SCALE_PENALTY,
    CheckerboardCoupling,
    InvertibleBatchNormalization,
    RealNVP,
    ResidualConditioner,
    WeightNormConv2D,
    _merge_diagonals,
    _split_diagonals,
    checkerboard,
)
from zoo.layers.couplings import AffineCoupling
from zoo.layers.image_flows import squeeze

# Squares of an odd number of pixels are among the scales.
VARIANTS = [
    {},
    {"image_shape": (8, 8, 1), "num_scales": 3, "coupling": "additive"},
    {"image_shape": (4, 6, 2), "batch_norm": False, "value_range": (-1.0, 1.0)},
    {"factor_out": False, "num_blocks": 2},
    {"num_scales": 1},
]


def levels_of(split):
    return load_arrays("digits", split)["image"][..., None]


def random_model(seed=0, **changes):
    """A small model with no weight, and no moving average, left at its initial value."""
    keras.utils.set_random_seed(seed)
    model = RealNVP(**{"image_shape": (6, 6, 1), "num_levels": 17, "num_blocks": 1, "filters": 3} | changes)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        elif len(variable.shape) < 2 and variable.name != "magnitude":
            variable.assign(rng.normal(0.0, 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = RealNVP((8, 8, 1), 17, num_blocks=1, filters=4)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)
    model.fit(levels_of("train"), epochs=4, batch_size=64, verbose=0)
    return model


# === The flow ===


def test_encoding_and_decoding_are_inverse(trained):
    images = tf.constant(trained.dequantize(levels_of("test"), seed=0))
    latent, _ = trained._encode(images)
    error = np.abs(trained._decode(tf.identity(latent)) - images).max()

    assert 0 < error < 1e-5
    # Latents near those of images: far from them pixels are so close to the ends of the logit that rounding shows.
    drawn = latent + 0.1 * np.random.default_rng(0).normal(size=latent.shape).astype(np.float32)
    back, _ = trained._encode(tf.identity(trained._decode(drawn)))
    assert np.abs(back - drawn).max() / np.abs(drawn).max() < 1e-5


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_are_inverse_with_the_log_det_of_the_jacobian(changes):
    model = random_model(**changes)
    images = flow_images(model)
    latent, log_det = model._encode(images)

    assert latent.shape == (4, model.latent_dim)
    np.testing.assert_allclose(model._decode(tf.identity(latent)), images, atol=1e-5)
    expected = np.linalg.slogdet(flow_jacobians(model, images).astype(np.float64))[1]
    np.testing.assert_allclose(log_det, expected, atol=1e-4)


def test_density_integrates_to_one():
    model = random_model(image_shape=(1, 2, 1), num_scales=1)
    edges, step = np.linspace(-9, 9, 181, retstep=True)
    logits = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 1, 2, 1).astype(np.float32)
    image = model._from_logits(logits)
    log_prob = model._log_prob(image).numpy().astype(np.float64)
    # Pixels are s-shaped functions of logits: dx/dy = p (1 - p) / (1 - 2 alpha).
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    stretch = np.prod(p * (1 - p) / (1 - 2 * ALPHA), axis=(1, 2, 3))

    assert (np.exp(log_prob) * stretch).sum() * step**2 == pytest.approx(1.0, abs=1e-3)


def test_bits_per_dimension_do_not_depend_on_the_scale_of_images():
    unit, symmetric = (random_model(value_range=value_range) for value_range in ((0.0, 1.0), (-1.0, 1.0)))
    symmetric.set_weights(unit.get_weights())
    levels = np.random.default_rng(1).integers(0, 17, (20, 6, 6, 1))
    first, second = (model.bits_per_dimension(model(levels).numpy().mean()) for model in (unit, symmetric))

    assert first == pytest.approx(second, rel=1e-6)


def test_logits_of_pixels():
    model = random_model()
    image = np.zeros((1, 6, 6, 1), np.float32)
    image[0, 0, :3, 0] = [0.0, 0.5, 1.0]
    logits, _ = model._to_logits(image)

    np.testing.assert_allclose(logits[0, 0, :3, 0], [np.log(0.05 / 0.95), 0.0, np.log(0.95 / 0.05)], atol=1e-6)
    np.testing.assert_allclose(model._from_logits(logits), image, atol=1e-6)


def test_every_latent_depends_on_every_pixel():
    model = random_model(num_scales=1, image_shape=(4, 4, 1), filters=8)

    assert (np.abs(flow_jacobians(model, flow_images(model, 20))).max(axis=0) > 0).all()


def test_half_of_the_variables_leave_after_a_scale():
    """What leaves first is not seen by the second scale: changing that scale's weights leaves it as it is."""
    model = random_model()
    images = flow_images(model)
    before = model._encode(images)[0].numpy()
    for variable in model.checkerboards[1].trainable_variables:
        variable.assign(variable + 0.1)
    moved = np.abs(model._encode(images)[0].numpy() - before).max(axis=0) > 0

    assert not moved[:18].any() and moved[18:].any()


# === Masks ===


def test_checkerboards_alternate_and_complete_each_other():
    mask = checkerboard(3, 4, 0)[0, :, :, 0]

    np.testing.assert_array_equal(mask, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(mask + checkerboard(3, 4, 1)[0, :, :, 0], 1)


@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard_coupling_follows_its_equation(parity):
    conditioner = ResidualConditioner(4, 5, 1, batch_norm=False, parity=parity)
    layer = CheckerboardCoupling(AffineCoupling(conditioner), parity)
    image = tf.random.normal((2, 3, 5, 2), seed=0)
    layer(image)
    layer.coupling.log_scale_bound.assign(0.7)
    mapped, log_det = layer(image)

    mask = checkerboard(3, 5, parity)
    raw, shift = np.split(conditioner(image * mask).numpy(), 2, axis=-1)
    log_scale = 0.7 * np.tanh(raw)
    expected = mask * image + (1 - mask) * (image * np.exp(log_scale) + shift)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    np.testing.assert_allclose(log_det, ((1 - mask) * log_scale).sum(axis=(1, 2, 3)), atol=1e-5)
    assert np.abs(log_det).min() > 0
    np.testing.assert_allclose(layer.inverse(tf.identity(mapped)), image, atol=1e-5)


def test_channel_couplings_do_not_repeat_the_checkerboard():
    """Halves of squeezed channels are rows of the image; what leaves are the pixels of one checkerboard."""
    model = random_model(image_shape=(4, 4, 1))
    board = tf.constant(checkerboard(4, 4, 0))
    stays, leaves = _split_diagonals(squeeze(board))
    np.testing.assert_array_equal(stays, 1)
    np.testing.assert_array_equal(leaves, 0)
    np.testing.assert_array_equal(_merge_diagonals(stays, leaves), squeeze(board))
    assert [layer.swap for layer in model.channelwise[0].layers[::2]] == [False, True, False]
    assert [layer.parity for layer in model.checkerboards[0].layers[::2]] == [0, 1, 0]
    assert [layer.parity for layer in model.checkerboards[1].layers[::2]] == [0, 1, 0, 1]


# === Normalisation ===


def test_batch_statistics_normalise_in_training_and_moving_averages_otherwise():
    layer = InvertibleBatchNormalization()
    image = 2.0 + 3.0 * tf.random.normal((16, 4, 5, 2), seed=0)
    normal, log_det = layer(image, training=True)
    variance = image.numpy().var(axis=(0, 1, 2))

    np.testing.assert_allclose(normal.numpy().mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(normal.numpy().std(axis=(0, 1, 2)), 1.0, atol=1e-4)
    np.testing.assert_allclose(log_det, -0.5 * 20 * np.log(variance + EPSILON).sum(), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * image.numpy().mean(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)

    mapped, log_det = layer(image)
    expected = (image - layer.moving_mean) / np.sqrt(layer.moving_variance + EPSILON)
    np.testing.assert_allclose(mapped, expected, atol=1e-5)
    np.testing.assert_allclose(log_det, -0.5 * 20 * np.log(layer.moving_variance + EPSILON).sum(), rtol=1e-5)
    np.testing.assert_allclose(layer.inverse(mapped), image, atol=1e-5)


def test_gradients_pass_through_batch_statistics():
    """A normalised batch does not change with the scale of its input, so neither does a loss of it."""
    layer = InvertibleBatchNormalization()
    image = tf.random.normal((16, 4, 4, 2), seed=0)
    scale = tf.Variable(1.0)
    with tf.GradientTape(persistent=True) as tape:
        normal, _ = layer(scale * image, training=True)
        through = tf.reduce_sum(normal**4)
        frozen, _ = layer(scale * image)
        past = tf.reduce_sum(frozen**4)

    assert abs(tape.gradient(through, scale)) < 0.01 * abs(tape.gradient(past, scale))


def test_only_training_moves_the_averages():
    model = random_model()
    levels = np.random.default_rng(0).integers(0, 17, (8, 6, 6, 1))
    averages = [v for v in model.weights if "moving" in v.path]
    before = [v.numpy() for v in averages]
    model(levels)
    assert all(np.array_equal(v.numpy(), old) for v, old in zip(averages, before, strict=True))

    model(levels, training=True)
    assert all((v.numpy() != old).all() for v, old in zip(averages, before, strict=True))


def test_weight_normalisation():
    layer = WeightNormConv2D(5, 3)
    image = tf.random.normal((2, 6, 6, 4), seed=0)
    layer(image)
    layer.direction.assign(np.random.default_rng(0).normal(size=layer.direction.shape))
    layer.magnitude.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    layer.bias.assign([0.1, 0.2, 0.3, 0.4, 0.5])
    direction = layer.direction.numpy()
    kernel = layer.magnitude.numpy() * direction / np.sqrt((direction**2).sum(axis=(0, 1, 2)))

    expected = tf.nn.conv2d(image, kernel, 1, "SAME") + layer.bias.numpy()
    np.testing.assert_allclose(layer(image), expected, atol=1e-5)


def test_learned_scales_are_penalised_in_training_only():
    model = random_model()
    log_prob = tf.constant([-3.0, -5.0])
    scales = [v.numpy() for v in model.trainable_variables if v.name in ("magnitude", "log_scale_bound")]

    assert len(scales) == 10 * 5
    assert float(model.compute_loss(y_pred=log_prob, training=False)) == 4.0
    penalty = SCALE_PENALTY * sum((scale**2).sum() for scale in scales)
    assert float(model.compute_loss(y_pred=log_prob)) == pytest.approx(4.0 + penalty, rel=1e-6)


# === Use ===


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_reaches_both_images(trained, method):
    images = trained.dequantize(levels_of("test")[:4], seed=0)
    path = trained.interpolate(images[:2], images[2:], num_steps=5, method=method)

    assert path.shape == (2, 5, 8, 8, 1)
    np.testing.assert_allclose(path[:, 0], images[:2], atol=1e-5)
    np.testing.assert_allclose(path[:, -1], images[2:], atol=1e-5)
    assert np.abs(path[:, 2] - (images[:2] + images[2:]) / 2).max() > 0.05


def test_training_raises_the_held_out_likelihood(trained):
    """By moving averages, which have to follow the statistics of batches. Uniform noise has 0 nats."""
    assert trained(levels_of("validation")).numpy().mean() > 20


@pytest.mark.parametrize("changes", [{}, {"batch_norm": False, "coupling": "additive"}])
def test_mixed_precision_keeps_the_density_in_float32(changes):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = random_model(**changes)
    finally:
        keras.config.set_dtype_policy("float32")
    images = flow_images(model)
    log_prob = model(np.zeros((2, 6, 6, 1), int), training=True)
    latent, _ = model._encode(images)

    assert latent.dtype == log_prob.dtype == tf.float32
    conditioner = model.checkerboards[0].layers[0].coupling.conditioner
    assert conditioner(images).dtype == tf.bfloat16
    np.testing.assert_allclose(model._decode(tf.identity(latent)), images, atol=1e-5)


@pytest.mark.parametrize("changes", [VARIANTS[1], VARIANTS[2]])
def test_saving_gives_the_model_back(changes, tmp_path):
    model = random_model(**changes)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert loaded.get_config() == model.get_config()
    images = flow_images(model)
    np.testing.assert_array_equal(loaded._log_prob(images), model._log_prob(images))


def test_layers_are_serialisable():
    layer = CheckerboardCoupling(AffineCoupling(ResidualConditioner(2, 3, 1, parity=1)), 1)
    image = tf.random.normal((2, 4, 4, 1), seed=0)
    layer(image, training=True)
    copy = CheckerboardCoupling.from_config(layer.get_config())
    copy(image)
    copy.set_weights(layer.get_weights())

    np.testing.assert_array_equal(copy(image)[0], layer(image)[0])


def test_real_inputs_are_held_out_images():
    model = random_model(image_shape=(8, 8, 1))
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    inputs = {name: next(iter(model.real_inputs(name, 8))) for name in model.signatures()}

    np.testing.assert_array_equal(
        model.to_levels(inputs["encode"]["image"][::EVALUATION_DRAWS]), levels_of("validation")[:2]
    )
    for name in ("decode", "sample"):
        np.testing.assert_allclose(model.run(name, **inputs[name])["image"], inputs["encode"]["image"], atol=1e-4)


# === Facts ===


@pytest.mark.parametrize("preset", sorted(zoo.info("real_nvp").presets))
def test_presets_have_the_recorded_number_of_parameters(preset):
    chosen = zoo.info("real_nvp").preset(preset)
    # Shapes only: the largest would fill 400 MB.
    with keras.StatelessScope(initialize_variables=False):
        model = RealNVP(**chosen.config)

    assert sum(int(np.prod(variable.shape)) for variable in model.weights) == chosen.parameters


def test_parameters_of_a_coupling_by_the_papers_sizes():
    """Two blocks of 32 maps for 3 colours under a mask: every convolution counted by hand."""
    layer = ResidualConditioner(6, 32, 2, parity=0)
    layer.build((None, 8, 8, 3))
    first, inner, outer, skip, last = 9 * 7 * 32 + 32, 9 * 32 * 32, 9 * 32 * 32 + 64, 32 * 32 + 64, 32 * 6 + 12
    norms = 3 + 5 * 32

    trainable = sum(int(np.prod(v.shape)) for v in layer.trainable_variables)
    assert trainable == first + 2 * inner + 2 * outer + 3 * skip + last + norms
    assert layer.count_params() == trainable + 2 * norms


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (6, 6)}, "`image_shape` must be height, width and channels"),
        ({"image_shape": (6, 6, 1), "num_scales": 3}, "`image_shape` must be of height and width divisible by 4"),
        ({"image_shape": (4, 4, 1), "num_scales": 3}, "`num_scales` must be such that the last scale has at least 2"),
        ({"num_scales": 0}, "`num_scales` must be at least 1"),
        ({"num_blocks": 0}, "`num_blocks` must be at least 1"),
        ({"filters": 0}, "`filters` must be at least 1"),
        ({"coupling": "sigmoid"}, "`coupling` must be one of"),
        ({"num_levels": 1}, "`num_levels` must be at least 2"),
        ({"value_range": (1.0, 0.0)}, "`value_range` must be two increasing numbers"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        RealNVP(**{"image_shape": (6, 6, 1), "filters": 2} | changes)


def test_methods_refuse_images_that_do_not_fit():
    model = random_model()
    with pytest.raises(ValueError, match=r"`image` must have shape.*Received: "):
        model.log_prob(np.full((2, 36), 0.5, np.float32))
    with pytest.raises(ValueError, match=r"`levels` must be of shape \(batch, 6, 6, 1\).*Received: "):
        model.dequantize(np.zeros((2, 6, 6), int))
    with pytest.raises(TypeError, match=r"`image` must be of floats.*Received: "):
        model.encode(np.zeros((2, 6, 6, 1), "uint8"))
