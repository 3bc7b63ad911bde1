"""NICE: the mathematics of the flow, held against autodiff, numerical integration and TensorFlow Probability."""

import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import zoo
from zoo.datasets import load_arrays
from zoo.generative.image_flow import EVALUATION_DRAWS, bits_per_dimension
from zoo.generative.nice import NICE
from zoo.layers.couplings import AdditiveCoupling, AffineCoupling, DenseConditioner

VARIANTS = [
    {},
    {"coupling": "affine", "prior": "gaussian"},
    {"scaling": False, "num_couplings": 3},
    {"preprocessing": "zca", "split": "halves", "value_range": (-1.0, 1.0), "coupling": "affine"},
]


def levels_of(split):
    images = load_arrays("digits", split)["image"]
    return images.reshape(len(images), -1)


def random_model(num_features=8, hidden_dim=24, seed=0, **changes):
    """A small model with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    model = NICE(
        **{"num_levels": 17, "num_hidden_layers": 2, "hidden_dim": hidden_dim} | changes, num_features=num_features
    )
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            variable.assign(rng.normal(0.0, 0.5, variable.shape))
    if model.preprocessing == "zca":
        model.fit_preprocessing(rng.integers(0, 17, (200, num_features)))
    return model


def zero_networks(model):
    for variable in model.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    return model


def images_for(model, count=5, seed=0):
    return tf.constant(np.random.default_rng(seed).uniform(*model.value_range, (count, model.num_features)), tf.float32)


def jacobians(model, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        latent, _ = model._encode(images)
    return tape.batch_jacobian(latent, images)


@pytest.fixture(scope="module", params=["additive", "affine"])
def trained(request):
    keras.utils.set_random_seed(0)
    model = NICE(64, 17, num_hidden_layers=2, hidden_dim=128, coupling=request.param)
    model.initialize_scaling(levels_of("train"))
    model.compile(optimizer=keras.optimizers.Adam(1e-3, beta_2=0.99, epsilon=1e-4), jit_compile=False)
    model.fit(levels_of("train"), epochs=15, batch_size=128, verbose=0)
    return model


# === The flow ===


def test_encoding_and_decoding_are_inverse(trained):
    images = tf.constant(trained.dequantize(levels_of("test"), seed=0))
    latent, _ = trained._encode(images)
    again = trained._decode(tf.identity(latent))
    error = np.abs(again - images).max()

    assert 0 < error < 1e-5

    drawn = tf.constant(np.random.default_rng(0).logistic(size=(300, 64)), tf.float32)
    back, _ = trained._encode(tf.identity(trained._decode(drawn)))

    # exp(s) up to 100 magnifies the rounding of pixels: relative to the latents' size, which is about 10.
    assert np.abs(back - drawn).max() / np.abs(drawn).max() < 1e-5


@pytest.mark.parametrize("changes", VARIANTS)
def test_untrained_variants_are_inverse(changes):
    model = random_model(**changes)
    images = images_for(model)
    latent, _ = model._encode(images)

    np.testing.assert_allclose(model._decode(tf.identity(latent)), images, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_log_det_is_that_of_the_jacobian(changes):
    model = random_model(**changes)
    images = images_for(model)
    _, log_det = model._encode(images)

    expected = np.linalg.slogdet(jacobians(model, images).numpy().astype(np.float64))[1]
    np.testing.assert_allclose(log_det, expected, atol=1e-4)


def test_log_det_of_nice_is_the_sum_of_the_log_scales():
    model = random_model()
    _, log_det = model._encode(images_for(model))

    assert (log_det.numpy() == tf.reduce_sum(model.log_scale.value).numpy()).all()


@pytest.mark.parametrize("index", range(4))
def test_each_additive_coupling_preserves_volume(index):
    model = random_model()
    coupling = model.couplings[index]
    kept, changed = tf.split(images_for(model), 2, axis=1)
    with tf.GradientTape() as tape:
        joined = tf.concat([kept, changed], axis=1)
        tape.watch(joined)
        mapped, _ = coupling(joined[:, :4], joined[:, 4:])
        whole = tf.concat([joined[:, :4], mapped], axis=1)

    np.testing.assert_allclose(np.linalg.det(tape.batch_jacobian(whole, joined)), 1.0, atol=1e-5)


@pytest.mark.parametrize(("num_couplings", "dense"), [(2, False), (3, True), (4, True)])
@pytest.mark.parametrize("split", ["odd_even", "halves"])
def test_dependency_needs_three_couplings(num_couplings, dense, split):
    model = random_model(num_couplings=num_couplings, hidden_dim=64, split=split)
    never = (jacobians(model, images_for(model, 20)).numpy() == 0).all(axis=0)

    # With two couplings the changed-first part depends on itself only through the identity: 4 x 4 less its diagonal.
    assert never.sum() == (0 if dense else 12)


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
def test_density_integrates_to_one(prior):
    model = random_model(num_features=2, prior=prior, coupling="affine")
    edges, step = np.linspace(-30, 30, 1201, retstep=True)
    grid = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1, 2).astype(np.float32)
    log_prob = np.concatenate([model._log_prob(tf.constant(part)) for part in np.array_split(grid, 20)])

    assert np.exp(log_prob.astype(np.float64)).sum() * step**2 == pytest.approx(1.0, abs=1e-3)


def test_logistic_prior():
    values = np.linspace(-30, 30, 999, dtype=np.float32)
    softplus = lambda x: np.logaddexp(0, x)  # noqa: E731
    log_prob = random_model(prior="logistic")._prior().log_prob(values)

    np.testing.assert_allclose(log_prob, tfp.distributions.Logistic(0.0, 1.0).log_prob(values), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log_prob, -softplus(values) - softplus(-values), rtol=1e-6, atol=1e-6)


def test_logistic_samples_have_an_entropy_of_two_nats():
    noise = np.random.default_rng(0).random((50_000, 8), dtype=np.float32)
    model = random_model()
    surprise = -model._prior().log_prob(model._prior_quantile(tf.constant(noise))).numpy()

    # Five standard errors: a false alarm in about two million runs.
    assert surprise.mean() == pytest.approx(2.0, abs=5 * float(surprise.std()) / surprise.size**0.5)


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
def test_identity_flow_gives_the_prior_of_the_image(prior):
    model = zero_networks(random_model(prior=prior))
    images = images_for(model)
    terms = {
        "logistic": lambda x: -np.logaddexp(0, x) - np.logaddexp(0, -x),
        "gaussian": lambda x: -0.5 * (x**2 + np.log(2 * np.pi)),
    }[prior]

    np.testing.assert_allclose(model._log_prob(images), terms(images.numpy()).sum(axis=1), atol=1e-5)


def test_bits_per_dimension_do_not_depend_on_the_scale_of_images():
    unit, symmetric = (
        random_model(preprocessing="zca", value_range=value_range) for value_range in ((0.0, 1.0), (-1.0, 1.0))
    )
    symmetric.set_weights(unit.get_weights())
    # The same function of the levels: 2 x - 1 is undone on the way into the flow.
    symmetric.mean.assign(2 * unit.mean - 1)
    symmetric.whitening.assign(unit.whitening / 2)
    symmetric.whitening_log_det.assign(unit.whitening_log_det - 8 * np.log(2))
    levels = np.random.default_rng(1).integers(0, 17, (20, 8))

    first, second = (model.bits_per_dimension(model(levels).numpy().mean()) for model in (unit, symmetric))

    assert first == pytest.approx(second, rel=1e-6)


def test_bits_per_dimension_of_published_likelihoods():
    assert bits_per_dimension(1980.50, 784, 256) == pytest.approx(4.36, abs=0.005)
    assert bits_per_dimension(5371.78, 3072, 256, (-1, 1)) == pytest.approx(4.48, abs=0.005)


def test_agrees_with_tensorflow_probability():
    """TFP's forward goes from latent to image, so that the couplings come in the opposite order, negated."""
    tfb = tfp.bijectors
    model = random_model(split="halves", num_couplings=2)

    def negated(coupling):
        return lambda kept, units: (-coupling.conditioner(kept), None)

    swap = tfb.Permute([4, 5, 6, 7, 0, 1, 2, 3])
    one, two = (tfb.RealNVP(num_masked=4, shift_and_log_scale_fn=negated(c)) for c in model.couplings)
    bijector = tfb.Chain([one, swap, two, swap, tfb.Scale(log_scale=-model.log_scale.value)])
    prior = tfp.distributions.Sample(tfp.distributions.Logistic(0.0, 1.0), 8)
    images = images_for(model)

    np.testing.assert_allclose(model._encode(images)[0], bijector.inverse(tf.identity(images)), rtol=1e-5, atol=1e-5)
    expected = tfp.distributions.TransformedDistribution(prior, bijector).log_prob(tf.identity(images))
    np.testing.assert_allclose(model._log_prob(images), expected, rtol=1e-5)


def test_importing_probability_leaves_keras_3_in_place():
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert tf.keras.layers.Dense is keras.layers.Dense


# === Use ===


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_reaches_both_images(trained, method):
    images = trained.dequantize(levels_of("test")[:10], seed=0)
    path = trained.interpolate(images[:5], images[5:], num_steps=7, method=method)

    assert path.shape == (5, 7, 64)
    np.testing.assert_allclose(path[:, 0], images[:5], atol=1e-5)
    np.testing.assert_allclose(path[:, -1], images[5:], atol=1e-5)
    assert np.abs(path[:, 3] - (images[:5] + images[5:]) / 2).max() > 0.05


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_of_an_image_with_itself_stands_still(trained, method):
    images = trained.dequantize(levels_of("test")[:2], seed=0)
    path = trained.interpolate(images, images, num_steps=3, method=method)

    np.testing.assert_allclose(path, np.repeat(images[:, None], 3, axis=1), atol=1e-5)


def test_slerp_keeps_the_angle_even():
    model = zero_networks(random_model(num_features=2, value_range=(-1.0, 1.0)))
    path = model.interpolate([[1.0, 0.0]], [[0.0, 1.0]], num_steps=5, method="slerp")[0]

    angles = np.linspace(0, np.pi / 2, 5)
    np.testing.assert_allclose(path, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-6)


def test_inpainting_fills_only_what_is_missing_and_raises_the_likelihood(trained):
    images = trained.dequantize(levels_of("test")[:8], seed=0)
    missing = np.arange(64) < 32
    filled = trained.inpaint(images, missing, num_steps=100, step_size=0.001, seed=0)
    random = np.where(missing, np.random.default_rng(1).random(images.shape), images)

    np.testing.assert_array_equal(filled[:, 32:], images[:, 32:])
    assert filled.min() >= 0 and filled.max() <= 1
    assert (trained.log_prob(filled) > trained.log_prob(random)).all()


def test_samples_follow_the_seed_and_the_temperature(trained):
    first, again, other = (trained.sample(3, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    mode = trained.decode(np.zeros((3, 64), np.float32))
    np.testing.assert_array_equal(trained.sample(3, temperature=0.0, seed=1), mode)


def test_extreme_uniform_noise_gives_finite_samples(trained):
    noise = np.tile(np.array([0.0, 1.0], np.float32), (2, 32))

    assert np.isfinite(trained.run("sample", noise=noise)["image"]).all()


def test_dequantising_and_quantising():
    model = random_model(value_range=(-1.0, 1.0))
    levels = np.random.default_rng(0).integers(0, 17, (500, 8))
    images = model.dequantize(levels, seed=3)

    assert images.min() >= -1 and images.max() <= 1
    np.testing.assert_array_equal(model.to_levels(images), levels)
    np.testing.assert_array_equal(images, model.dequantize(levels, seed=3))
    assert (images != model.dequantize(levels)).any()


def test_whitening_whitens():
    model = random_model(preprocessing="zca")
    mixed = np.random.default_rng(0).integers(0, 9, (4000, 8)) @ np.eye(8, dtype=int)
    mixed[:, 1:] += mixed[:, :-1]
    model.fit_preprocessing(mixed, epsilon=1e-9)
    white = (model.dequantize(mixed, seed=0) - model.mean.numpy()) @ model.whitening.numpy()

    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(8), atol=2e-3)
    np.testing.assert_allclose(model.whitening.numpy() @ model.unwhitening.numpy(), np.eye(8), atol=1e-5)
    np.testing.assert_allclose(model.whitening.numpy(), model.whitening.numpy().T, atol=1e-5)


@pytest.mark.parametrize(("prior", "deviation"), [("logistic", np.pi / 3**0.5), ("gaussian", 1.0)])
def test_initialised_scaling_gives_latents_the_deviation_of_the_prior(prior, deviation):
    model = random_model(prior=prior)
    levels = np.random.default_rng(0).integers(0, 17, (1000, 8))
    model.initialize_scaling(levels, seed=5)
    latent, _ = model.encode(model.dequantize(levels, seed=5))

    np.testing.assert_allclose(latent.std(axis=0), deviation, rtol=1e-4)


# === Training ===


def test_noise_is_fresh_in_training_and_fixed_in_evaluation():
    model = random_model()
    levels = np.random.default_rng(0).integers(0, 17, (6, 8))

    assert np.abs(model(levels, training=True) - model(levels, training=True)).min() > 0
    np.testing.assert_array_equal(model(levels), model(levels))


def test_likelihood_of_levels_is_averaged_over_noise():
    model = zero_networks(random_model(prior="gaussian"))
    levels = np.zeros((2000, 8), int)

    # Mean of -(u / 17)^2 / 2 over uniform u is -1 / (6 * 17^2) for each of the pixels.
    expected = 8 * (-1 / (6 * 17**2) - 0.5 * np.log(2 * np.pi))
    assert model(levels).numpy().mean() == pytest.approx(expected, abs=1e-4)


def test_fit_learns_and_repeats_under_a_seed():
    levels = levels_of("train")[:64]
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model = NICE(64, 17, num_hidden_layers=1, hidden_dim=32)
        model.compile(optimizer=keras.optimizers.Adam(2e-2), jit_compile=False)
        histories.append(model.fit(levels, epochs=20, batch_size=64, verbose=0).history["loss"])

    assert histories[0] == histories[1]
    assert histories[0][-1] < histories[0][0] - 20


def test_sample_weight_leaves_images_out():
    model = random_model()
    model.compile(optimizer="sgd", jit_compile=False)
    levels = np.random.default_rng(0).integers(0, 17, (6, 8))
    weighted = model.evaluate(tf.data.Dataset.from_tensors((levels, None, np.array([2.0, 0, 2, 0, 2, 0]))), verbose=0)

    assert weighted == pytest.approx(-model(levels).numpy()[::2].mean(), rel=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_mixed_precision_keeps_the_density_in_float32(changes):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = random_model(**changes)
    finally:
        keras.config.set_dtype_policy("float32")
    images = images_for(model)
    latent, _ = model._encode(images)

    assert latent.dtype == model(np.zeros((2, 8), int), training=True).dtype == tf.float32
    assert model.couplings[0].conditioner(images[:, :4]).dtype == tf.bfloat16
    np.testing.assert_allclose(model._decode(tf.identity(latent)), images, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_saving_gives_the_model_back(changes, tmp_path):
    model = random_model(**changes)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = images_for(model)

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded._log_prob(images), model._log_prob(images))


# === Signatures and held-out data ===


def test_signatures_agree_with_the_methods(trained):
    images = trained.dequantize(levels_of("test")[:3], seed=0)
    latent, log_det = trained.encode(images)
    noise = trained.dummy_inputs("sample", 3)["noise"]

    prior = tfp.distributions.Logistic(0.0, 1.0)
    np.testing.assert_allclose(
        trained.log_prob(images), prior.log_prob(latent).numpy().sum(axis=1) + log_det, rtol=1e-5
    )
    np.testing.assert_allclose(trained.decode(latent), images, atol=1e-5)
    np.testing.assert_allclose(
        trained.run("sample", noise=noise)["image"], trained.decode(prior.quantile(noise)), atol=1e-4
    )


@pytest.mark.parametrize("prior", ["logistic", "gaussian"])
def test_real_inputs_are_held_out_images_in_every_form(prior):
    model = random_model(num_features=64, prior=prior)
    assert list(model.real_inputs("encode")) == []
    assert model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    batches = {name: list(model.real_inputs(name, 100)) for name in model.signatures()}

    assert {len(found) for found in batches.values()} == {180 * EVALUATION_DRAWS // 100}
    images = batches["encode"][0]["image"]
    np.testing.assert_array_equal(model.to_levels(images[::EVALUATION_DRAWS]), levels_of("validation")[:25])
    for name in ("decode", "sample"):
        model.signatures()[name].check(batches[name][0])
        np.testing.assert_allclose(model.run(name, **batches[name][0])["image"], images, atol=1e-3)


def test_task_metric_is_the_mean_log_likelihood_of_held_out_images():
    model = random_model(num_features=64)
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    metric = model.task_metric()

    value = metric.compute(lambda name, inputs: model.run(name, **inputs))
    # Other noise than the metric's: equal up to the noise's share, far below one nat in the mean of 360 images.
    assert value == pytest.approx(model(levels_of("test")).numpy().mean(), abs=0.5)
    assert metric.higher_is_better and metric.allowed(value) == 0.05


# === Facts ===


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("digits", 99_520),
        ("nice_mnist", 19_158_352),
        ("nice_svhn", 72_617_216),
        ("nice_cifar", 72_617_216),
        ("nice_tfd", 346_166_912),
    ],
)
def test_presets_have_the_papers_number_of_parameters(preset, parameters):
    chosen = zoo.info("nice").preset(preset)
    # Shapes only: the largest would fill 1.4 GB.
    with keras.StatelessScope(initialize_variables=False):
        model = NICE(**chosen.config)

    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    assert chosen.parameters == parameters


# === Couplings ===


@pytest.mark.parametrize(("layer", "outputs"), [(AdditiveCoupling, 3), (AffineCoupling, 6)])
def test_coupling_is_invertible_and_serialisable(layer, outputs):
    coupling = layer(DenseConditioner(outputs, 1, 16))
    kept, changed = tf.random.normal((4, 5), seed=0), tf.random.normal((4, 3), seed=1)
    coupling(kept, changed)
    if layer is AffineCoupling:
        coupling.log_scale_bound.assign(0.7)
    mapped, log_det = coupling(kept, changed)

    np.testing.assert_allclose(coupling.inverse(kept, mapped), changed, atol=1e-6)
    assert log_det.shape == (4,)
    copy = layer.from_config(coupling.get_config())
    copy(kept, changed)
    copy.set_weights(coupling.get_weights())
    np.testing.assert_array_equal(copy(kept, changed)[0], mapped)


def test_coupling_maps_images():
    """The last axis holds the features: convolutional conditioners fit, and all other axes count for the log-det."""
    coupling = AffineCoupling(keras.layers.Conv2D(4, 3, padding="same"))
    kept, changed = tf.random.normal((3, 4, 4, 2), seed=0), tf.random.normal((3, 4, 4, 2), seed=1)
    coupling(kept, changed)
    coupling.log_scale_bound.assign(0.5)
    mapped, log_det = coupling(kept, changed)
    ratio = (mapped - coupling(kept, tf.zeros_like(changed))[0]) / changed

    np.testing.assert_allclose(log_det, tf.reduce_sum(tf.math.log(ratio), axis=[1, 2, 3]), atol=1e-4)


def test_coupling_refuses_a_conditioner_that_does_not_fit():
    with pytest.raises(ValueError, match=r"`conditioner` must give outputs of shape \(4, 6\)\. Received: \(4, 3\)"):
        AffineCoupling(DenseConditioner(3, 1, 16))(tf.zeros((4, 5)), tf.zeros((4, 3)))


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_features": 7}, "`num_features` must be an even number"),
        ({"num_features": 0}, "`num_features` must be an even number"),
        ({"num_levels": 1}, "`num_levels` must be at least 2"),
        ({"num_couplings": 0}, "`num_couplings` must be at least 1"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be at least 0"),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1"),
        ({"coupling": "multiplicative"}, "`coupling` must be one of"),
        ({"prior": "laplace"}, "`prior` must be one of"),
        ({"split": "thirds"}, "`split` must be one of"),
        ({"preprocessing": "pca"}, "`preprocessing` must be one of"),
        ({"value_range": (1.0, 0.0)}, "`value_range` must be two increasing numbers"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        NICE(**{"num_features": 8, "hidden_dim": 4} | changes)


GOOD = np.full((2, 8), 0.5, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.log_prob(np.where(np.eye(2, 8), np.nan, GOOD)), ValueError, "`image` must be finite"),
        (lambda m: m.encode(GOOD * 32), ValueError, r"`image` must be in \[0.0, 1.0\]"),
        (lambda m: m.log_prob(GOOD[:, :4]), ValueError, "`image` must have shape"),
        (lambda m: m.log_prob(GOOD[0]), ValueError, "`image` must have shape"),
        (lambda m: m.log_prob(GOOD[:0]), ValueError, "`image` must not be empty"),
        (lambda m: m.log_prob(GOOD.astype(complex)), TypeError, "`image` must be of dtype float32"),
        (lambda m: m.encode((GOOD * 255).astype("uint8")), TypeError, "`dequantize` makes them of integer levels"),
        (lambda m: m.decode(GOOD * np.inf), ValueError, "`latent` must be finite"),
        (lambda m: m.sample(0), ValueError, "`num_samples` must be at least 1"),
        (lambda m: m.sample(1, temperature=-1.0), ValueError, "`temperature` must be finite and not negative"),
        (lambda m: m.sample(1, temperature=np.nan), ValueError, "`temperature` must be finite and not negative"),
        (lambda m: m.interpolate(GOOD, GOOD[:1]), ValueError, "`end` must be of the shape"),
        (lambda m: m.interpolate(GOOD, GOOD, num_steps=1), ValueError, "`num_steps` must be at least 2"),
        (lambda m: m.interpolate(GOOD, GOOD, method="cubic"), ValueError, "`method` must be one of"),
        (lambda m: m.inpaint(GOOD, GOOD), ValueError, "`missing` must be boolean"),
        (lambda m: m.inpaint(GOOD, np.ones((3, 8), bool)), ValueError, "`missing` must be broadcastable"),
        (lambda m: m.inpaint(GOOD, np.ones(8, bool), num_steps=0), ValueError, "`num_steps` must be at least 1"),
        (lambda m: m.inpaint(GOOD, np.ones(8, bool), step_size=0.0), ValueError, "`step_size` must be positive"),
        (lambda m: m.inpaint(GOOD, np.ones((1, 2, 8), bool)), ValueError, "`missing` must be broadcastable"),
        (lambda m: m.dequantize(GOOD), ValueError, "`levels` must be whole numbers from 0 to 16"),
        (lambda m: m.dequantize(np.full((2, 8), 17)), ValueError, "`levels` must be whole numbers from 0 to 16"),
        (lambda m: m.dequantize(np.full((2, 8), -1)), ValueError, "`levels` must be whole numbers from 0 to 16"),
        (lambda m: m.dequantize(np.zeros((2, 4), int)), ValueError, "`levels` must be of shape"),
        (lambda m: m.dequantize(np.zeros((0, 8), int)), ValueError, "`levels` must be whole numbers"),
        (lambda m: m.fit_preprocessing(np.zeros((2, 8), int)), ValueError, "`preprocessing` must be 'zca'"),
    ],
)
def test_methods_refuse(call, error, message):
    with pytest.raises(error, match=message + r".*Received: "):
        call(random_model())


def test_methods_refuse_what_the_variant_lacks():
    with pytest.raises(ValueError, match="`scaling` must be True"):
        random_model(scaling=False).initialize_scaling(np.zeros((2, 8), int))
    with pytest.raises(ValueError, match="`epsilon` must be positive"):
        random_model(preprocessing="zca").fit_preprocessing(np.zeros((2, 8), int), epsilon=0.0)
