"""Glow: actnorm, 1x1 convolutions and scales, held against autodiff, NumPy's linear algebra and numerical integration."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from generative.image_models import flow_images, flow_jacobians

import zoo
from zoo.datasets import load_arrays
from zoo.export import export_model
from zoo.export.signatures import function_nodes, trace
from zoo.generative.glow import (
    ActNorm,
    ChannelPermutation,
    ConvolutionalConditioner,
    EdgeConv2D,
    Glow,
    InvertibleConvolution,
    ZeroConv2D,
)
from zoo.layers.image_flows import squeeze

VARIANTS = [
    {},
    {"lu": True, "value_range": (0.0, 1.0)},
    {"image_shape": (8, 8, 1), "num_scales": 3, "coupling": "additive", "num_steps": 1},
    {"image_shape": (4, 8, 2), "permutation": "shuffle"},
    {"num_scales": 1, "permutation": "reverse", "coupling": "additive"},
]


def levels_of(split):
    return load_arrays("digits", split)["image"][..., None]


def fresh_model(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    small = {"image_shape": (4, 4, 1), "num_levels": 17, "num_scales": 2, "num_steps": 2, "filters": 6}
    return Glow(**small | changes)


def random_model(seed=0, **changes):
    """A small model with no trainable weight left at its initial value."""
    model = fresh_model(seed, **changes)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = Glow((8, 8, 1), 17, num_scales=2, num_steps=2, filters=8)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)
    model.fit(levels_of("train"), epochs=4, batch_size=64, verbose=0)
    return model


# === The flow ===


def test_encoding_and_decoding_are_inverse(trained):
    images = tf.constant(trained.dequantize(levels_of("test"), seed=0))
    latent, _ = trained._encode(images)
    error = np.abs(trained._decode(tf.identity(latent)) - images).max()

    assert 0 < error < 1e-5
    drawn = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    back, _ = trained._encode(tf.identity(trained._decode(drawn)))
    # Scales up to 100 magnify the rounding of pixels: relative to the latents' size.
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
    """Of four pixels, the fewest there can be."""
    model = random_model(image_shape=(2, 2, 1), num_scales=1, filters=3)
    edges, step = np.linspace(-9.75, 9.75, 27, retstep=True)
    grid = np.stack(np.meshgrid(*4 * [edges]), axis=-1).reshape(-1, 2, 2, 1).astype(np.float32)
    log_prob = np.concatenate([model._log_prob(tf.constant(part)) for part in np.array_split(grid, 8)])

    assert np.exp(log_prob.astype(np.float64)).sum() * step**4 == pytest.approx(1.0, abs=1e-3)


def test_bits_per_dimension_do_not_depend_on_the_scale_of_images():
    half, whole = (random_model(value_range=value_range) for value_range in ((-0.5, 0.5), (-1.0, 1.0)))
    whole.set_weights(half.get_weights())
    # The same function of the levels: the first layer halves what comes in twice as large.
    first = whole.scales[0].layers[0]
    first.bias.assign(2 * first.bias)
    first.log_scale.assign(first.log_scale - np.log(2) / 3)
    levels = np.random.default_rng(1).integers(0, 17, (20, 4, 4, 1))
    bits = [model.bits_per_dimension(model(levels).numpy().mean()) for model in (half, whole)]

    assert bits[0] == pytest.approx(bits[1], rel=1e-6)


def test_split_priors_are_gaussians_made_of_what_stays():
    """Latents that leave are standardised: log p(x) is that of a model with conditional Gaussians."""
    model = random_model()
    images = flow_images(model)
    values, log_det = model.scales[0](squeeze(images))
    stays, leaves = np.split(values.numpy(), 2, axis=-1)
    mean, log_deviation = np.split(model.split_priors[0](stays).numpy(), 2, axis=-1)
    top, term = model.scales[1](squeeze(stays))
    terms = [(leaves, mean, np.exp(log_deviation)), (top, model.top_mean.numpy(), np.exp(model.top_log_scale.numpy()))]
    expected = log_det + term + model._mixing_log_det()
    for value, centre, deviation in terms:
        density = -0.5 * ((value - centre) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
        expected = expected + np.sum(density, axis=(1, 2, 3))

    assert np.abs(mean).min() > 0
    np.testing.assert_allclose(model._log_prob(images), expected, atol=1e-4)


def test_fresh_model_is_a_rotation_that_shrinks_half_of_the_channels():
    """Couplings begin as scales of sigmoid(2) without shift, priors as standard normal."""
    model = fresh_model(num_scales=1, num_steps=1)
    images = flow_images(model)
    latent, log_det = model._encode(images)
    matrix = model.scales[0].layers[1].matrix().numpy()
    scale = np.array([1, 1, 0.880797, 0.880797], np.float32)

    np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(latent, np.reshape(squeeze(images) @ matrix * scale, (4, -1)), atol=1e-5)
    np.testing.assert_allclose(log_det, 4 * 2 * np.log(0.880797), rtol=1e-5)


# === Actnorm ===


def test_first_batch_sets_every_actnorm():
    model = fresh_model(image_shape=(8, 8, 1))
    images = tf.constant(model.dequantize(levels_of("train")[:256], seed=0))
    encode = tf.function(lambda images: model._encode(images, training=True))
    encode(images)
    image = squeeze(images)
    for chain in model.scales:
        for layer in chain.layers:
            image, _ = layer(image)
            if isinstance(layer, ActNorm):
                np.testing.assert_allclose(image.numpy().mean(axis=(0, 1, 2)), 0.0, atol=1e-4)
                np.testing.assert_allclose(image.numpy().var(axis=(0, 1, 2)), 1.0, atol=1e-4)
        image = squeeze(image[..., : image.shape[-1] // 2])
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, ActNorm)]
    weights = [norm.get_weights() for norm in norms]

    assert len(norms) == 2 * 2 * 3 and all(norm.initialized == 1 for norm in norms)
    encode(3 * images)
    assert all(
        np.array_equal(a, b)
        for norm, old in zip(norms, weights, strict=True)
        for a, b in zip(norm.get_weights(), old, strict=True)
    )


def test_hidden_actnorms_normalise_too():
    conditioner = ConvolutionalConditioner(4, 6)
    image = 5.0 + tf.random.normal((64, 4, 4, 2), seed=0)
    conditioner(image, training=True)
    hidden = conditioner.norms[0](conditioner.hidden[0](image))[0].numpy()

    np.testing.assert_allclose(hidden.mean(axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(hidden.var(axis=(0, 1, 2)), 1.0, atol=1e-4)


def test_only_training_sets_actnorm():
    layer = ActNorm()
    image = 3.0 + tf.random.normal((8, 4, 4, 2), seed=0)
    np.testing.assert_array_equal(layer(image)[0], image)
    assert layer.initialized == 0

    mapped, log_det = layer(image, training=True)
    np.testing.assert_allclose(log_det, -16 * np.log(image.numpy().std(axis=(0, 1, 2))).sum(), rtol=1e-4)
    np.testing.assert_allclose(layer.inverse(mapped), image, atol=1e-5)


def test_actnorm_learns_after_its_first_batch():
    model = fresh_model(image_shape=(8, 8, 1), num_scales=1, num_steps=1)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=False)
    levels = levels_of("train")[:64]
    layer, weights = model.scales[0].layers[0], []
    for _ in range(2):
        model.fit(levels, batch_size=64, verbose=0)
        weights.append(layer.bias.numpy())

    assert 0 < np.abs(weights[1] - weights[0]).max() < 0.02


# === Mixing ===


@pytest.mark.parametrize("lu", [False, True])
def test_invertible_convolution(lu):
    keras.utils.set_random_seed(0)
    layer = InvertibleConvolution(lu)
    image = tf.random.normal((2, 3, 3, 6), seed=0)
    layer(image)
    start = layer.matrix().numpy()
    np.testing.assert_allclose(start @ start.T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(layer.log_det(), 0.0, atol=1e-5)

    weight = layer.trainable_variables[0]
    weight.assign(weight + np.random.default_rng(0).normal(0.0, 0.2, (6, 6)))
    matrix = layer.matrix().numpy().astype(np.float64)
    mapped = layer(image)[0]
    np.testing.assert_allclose(mapped, image @ matrix, atol=1e-5)
    np.testing.assert_allclose(layer.log_det(), np.linalg.slogdet(matrix)[1], atol=1e-5)
    np.testing.assert_allclose(layer.log_det(constant=True), np.linalg.slogdet(matrix)[1], atol=1e-5)
    np.testing.assert_allclose(layer.inverse(mapped), image, atol=1e-5)


def test_lu_parts_make_up_the_matrix():
    """W = P L (U + diag(sign * exp(s))), by loops."""
    layer = InvertibleConvolution(lu=True)
    layer.build((None, 2, 2, 5))
    layer.factors.assign(np.random.default_rng(0).normal(size=(5, 5)))
    factors, signs = layer.factors.numpy(), layer.signs.numpy()
    lower, upper = np.eye(5), np.zeros((5, 5))
    for row in range(5):
        for column in range(5):
            if row > column:
                lower[row, column] = factors[row, column]
            elif row < column:
                upper[row, column] = factors[row, column]
            else:
                upper[row, row] = signs[row] * np.exp(factors[row, row])

    np.testing.assert_allclose(layer.matrix(), layer.permutation.numpy() @ lower @ upper, atol=1e-5)
    assert set(np.abs(signs)) == {1.0}
    np.testing.assert_array_equal(layer.permutation.numpy().sum(axis=0), 1)


@pytest.mark.parametrize("kind", ["reverse", "shuffle"])
def test_fixed_permutations(kind):
    keras.utils.set_random_seed(0)
    layer = ChannelPermutation(kind)
    image = tf.random.normal((2, 3, 3, 8), seed=0)
    mapped, log_det = layer(image)

    order = [int(np.argmax([np.array_equal(mapped[..., i], image[..., j]) for j in range(8)])) for i in range(8)]
    assert sorted(order) == list(range(8))
    assert (order == list(range(8))[::-1]) == (kind == "reverse")
    assert log_det == 0 and not layer.trainable_variables
    np.testing.assert_array_equal(layer.inverse(mapped), image)


@pytest.mark.parametrize("lu", [False, True])
def test_inverses_and_determinants_follow_the_weights_through_training(lu):
    """Also in `evaluate`, whose graph is traced before the training."""
    model = fresh_model(image_shape=(8, 8, 1), num_scales=1, num_steps=1, lu=lu)
    model.compile(optimizer=keras.optimizers.Adam(3e-2), jit_compile=False)
    levels = levels_of("train")[:128]
    images = model.dequantize(levels, seed=0)
    model.fit(levels, batch_size=64, verbose=0)
    start = model._mixing_log_det().numpy()
    model.evaluate(levels, batch_size=128, verbose=0)
    model.fit(levels, batch_size=64, epochs=3, verbose=0)

    assert abs(model._mixing_log_det().numpy() - start) > 0.1
    assert model.evaluate(levels, batch_size=128, verbose=0) == pytest.approx(-model(levels).numpy().mean(), rel=1e-5)
    latent, log_det = model.encode(images)
    np.testing.assert_allclose(log_det, model._encode(tf.constant(images))[1], atol=1e-3)
    np.testing.assert_allclose(model.log_prob(images), model._log_prob(tf.constant(images)), atol=1e-3)
    np.testing.assert_allclose(model.decode(latent), images, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"lu": True}, {"permutation": "shuffle"}])
def test_signatures_hold_no_linear_algebra(changes):
    model = random_model(num_steps=1, **changes)
    for traced in trace(model.signatures()).values():
        graph = traced.concrete.graph.as_graph_def()
        nodes = [*graph.node, *function_nodes(graph)]
        assert not [node.op for node in nodes if "Matrix" in node.op and node.op != "BatchMatMulV2"]


@pytest.mark.slow
def test_a_model_without_lu_is_exported_as_trained(tmp_path):
    model = random_model(num_steps=1)
    report = export_model(model, tmp_path, ["litert", "onnx"], "none", benchmark=False)

    assert all(artifact.verified for artifact in report.artifacts)


# === Networks ===


def test_edges_are_marked():
    """As one convolution of an image with a further channel, 1 outside of the image."""
    layer = EdgeConv2D(5, 3, "random_normal")
    image = tf.random.normal((2, 4, 6, 3), seed=0)
    padded = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1), (0, 0)))
    mark = np.ones((2, 6, 8, 1), np.float32)
    mark[:, 1:-1, 1:-1] = 0
    found = layer(image)
    kernel = np.concatenate([layer.kernel.numpy(), layer.edge_kernel.numpy()], axis=2)

    np.testing.assert_allclose(found, tf.nn.conv2d(np.concatenate([padded, mark], -1), kernel, 1, "VALID"), atol=1e-5)
    assert np.abs(layer.kernel.numpy()[..., :1, :] - layer.edge_kernel.numpy()).min() > 0


def test_zero_convolution_begins_at_zero_and_scales_its_output():
    layer = ZeroConv2D(2)
    image = tf.random.normal((2, 4, 4, 3), seed=0)
    assert not layer(image).numpy().any()

    layer.bias.assign([1.0, 2.0])
    layer.log_scale.assign([0.1, -0.2])
    np.testing.assert_allclose(layer(image)[0, 0, 0], [np.exp(0.3), 2 * np.exp(-0.6)], rtol=1e-6)


def test_hidden_kernels_begin_small_and_different():
    keras.utils.set_random_seed(0)
    conditioner = ConvolutionalConditioner(4, 64)
    conditioner.build((None, 4, 4, 8))
    kernels = [layer.kernel.numpy() for layer in conditioner.hidden]

    # Four standard errors of a deviation: a false alarm in about 8,000 runs, for one kernel.
    for kernel in kernels:
        assert kernel.std() == pytest.approx(0.05, abs=4 * 0.05 / np.sqrt(2 * kernel.size))
    assert np.abs(kernels[0].ravel()[:100] - kernels[1].ravel()[:100]).min() > 0


# === Use ===


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_reaches_both_images(trained, method):
    images = trained.dequantize(levels_of("test")[:4], seed=0)
    path = trained.interpolate(images[:2], images[2:], num_steps=5, method=method)

    assert path.shape == (2, 5, 8, 8, 1)
    np.testing.assert_allclose(path[:, 0], images[:2], atol=1e-5)
    np.testing.assert_allclose(path[:, -1], images[2:], atol=1e-5)
    assert np.abs(path[:, 2] - (images[:2] + images[2:]) / 2).max() > 0.05


def test_samples_are_decoded_noise(trained):
    noise = trained.dummy_inputs("sample", 3)["noise"]

    np.testing.assert_array_equal(trained.run("sample", noise=noise)["image"], trained.decode(noise))


def test_training_raises_the_held_out_likelihood(trained):
    """Uniform noise has 0 nats."""
    assert trained(levels_of("validation")).numpy().mean() > 20


@pytest.mark.parametrize("changes", [{}, {"lu": True}])
def test_mixed_precision_keeps_the_density_in_float32(changes):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = random_model(**changes)
    finally:
        keras.config.set_dtype_policy("float32")
    images = flow_images(model)
    log_prob = model(np.random.default_rng(0).integers(0, 17, (64, 4, 4, 1)), training=True)
    latent, _ = model._encode(images)

    assert latent.dtype == log_prob.dtype == tf.float32
    assert model.scales[0].layers[2].coupling.conditioner(squeeze(images)[..., :2]).dtype == tf.bfloat16
    np.testing.assert_allclose(model._decode(tf.identity(latent)), images, atol=1e-5)


@pytest.mark.parametrize("changes", [VARIANTS[1], VARIANTS[3]])
def test_saving_gives_the_model_back(changes, tmp_path):
    model = random_model(**changes)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = flow_images(model)

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded._log_prob(images), model._log_prob(images))


@pytest.mark.parametrize(
    "layer",
    [
        ActNorm(),
        InvertibleConvolution(lu=True),
        ChannelPermutation("shuffle"),
        EdgeConv2D(3, 3, "random_normal"),
        ZeroConv2D(3),
        ConvolutionalConditioner(4, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_are_serialisable(layer):
    image = tf.random.normal((2, 4, 4, 2), seed=0)
    layer(image)
    copy = type(layer).from_config(layer.get_config())
    copy(image)
    copy.set_weights([weight + 0.1 for weight in layer.get_weights()])
    layer.set_weights(copy.get_weights())

    for first, second in zip(keras.tree.flatten(layer(image)), keras.tree.flatten(copy(image)), strict=True):
        np.testing.assert_array_equal(first, second)


# === Facts ===


@pytest.mark.parametrize("preset", sorted(zoo.info("glow").presets))
def test_presets_have_the_recorded_number_of_parameters(preset):
    chosen = zoo.info("glow").preset(preset)
    # Shapes only: the largest would fill 700 MB.
    with keras.StatelessScope(initialize_variables=False):
        model = Glow(**chosen.config)

    assert sum(int(np.prod(variable.shape)) for variable in model.weights) == chosen.parameters


def test_parameters_of_the_network_for_cifar():
    """By the sizes of the released code, and about the published 44 million."""

    def step(channels):
        half = channels // 2
        network = 9 * (half + 1) * 512 + 512 * 512 + 9 * 513 * channels + 2 * channels + 4 * 512
        return 2 * channels + channels**2 + network

    priors = sum(9 * (half + 1) * 2 * half + 4 * half for half in (6, 12)) + 2 * 48
    trainable = 32 * sum(step(channels) for channels in (12, 24, 48)) + priors

    assert trainable == 44_519_700
    assert zoo.info("glow").preset("glow_cifar").parameters == trainable + 3 * 32 * 3


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (4, 4)}, "`image_shape` must be height, width and channels"),
        ({"image_shape": (6, 6, 1)}, "`image_shape` must be of height and width divisible by 4"),
        ({"num_scales": 0}, "`num_scales` must be at least 1"),
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"filters": 0}, "`filters` must be at least 1"),
        ({"coupling": "sigmoid"}, "`coupling` must be one of"),
        ({"permutation": "rotation"}, "`permutation` must be one of"),
        ({"num_levels": 1}, "`num_levels` must be at least 2"),
        ({"value_range": (0.5, -0.5)}, "`value_range` must be two increasing numbers"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        fresh_model(**changes)


def test_methods_refuse_images_that_do_not_fit():
    model = fresh_model()
    with pytest.raises(ValueError, match=r"`image` must be in \[-0.5, 0.5\].*Received: "):
        model.log_prob(np.full((2, 4, 4, 1), 0.6, np.float32))
    with pytest.raises(ValueError, match=r"`image` must have shape.*Received: "):
        model.encode(np.zeros((2, 16), np.float32))
    with pytest.raises(ValueError, match=r"`latent` must have shape.*Received: "):
        model.decode(np.zeros((2, 4, 4, 1), np.float32))
