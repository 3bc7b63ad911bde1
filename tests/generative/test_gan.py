"""The adversarial network, held against the closed form of the game, gradients in closed form, and the papers' sizes."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

import zoo
from zoo.datasets import load_arrays
from zoo.generative.gan import (
    EVALUATION_SEED,
    GAN,
    LOSSES,
    discriminator_loss,
    energy_distance,
    generator_loss,
)
from zoo.training.checkpoint import TrainingCheckpoint

CONDITIONAL = {"num_classes": 3}
DENSE = {"convolutions": (), "hidden_dims": [16, 12], "batch_norm": "none"}
MAXOUT = {**DENSE, "maxout_pieces": 3, "dropout": 0.5, "input_dropout": 0.2, "output_activation": "sigmoid"}
WGAN = {"loss": "wasserstein", "gradient_penalty": 10.0, "batch_norm": "generator", "discriminator_steps": 5}
R1 = {"r1_gamma": 1.0, "batch_norm": "none"}
VARIANTS = [
    {},
    CONDITIONAL,
    {**CONDITIONAL, "hidden_dims": [10]},
    {"hidden_dims": [10], "output_activation": "sigmoid", "latent_distribution": "normal"},
    DENSE,
    {**MAXOUT, **CONDITIONAL},
    WGAN,
    {**R1, **CONDITIONAL},
    {"loss": "hinge"},
    {"loss": "least_squares"},
    {"loss": "minimax", "label_smoothing": 0.1},
    {"ema_decay": 0.99},
]


def random_model(seed=0, compiled=True, **changes):
    keras.utils.set_random_seed(seed)
    arguments = {"latent_dim": 5, "convolutions": [[6, 3, 1], [8, 4, 2]], "num_levels": 5}
    model = GAN((4, 6, 1), **{**arguments, **changes})
    if compiled:
        model.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    return model


def images_for(model, count=8, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(model.preprocess(rng.integers(0, model.num_levels, (count, *model.image_shape))))


def labels_for(model, count=8, seed=0):
    if not model.num_classes:
        return None
    return tf.constant(np.random.default_rng(seed).integers(0, model.num_classes, count), tf.int32)


def one_hot_for(model, count=8):
    labels = labels_for(model, count)
    return None if labels is None else tf.one_hot(labels, model.num_classes)


def values_of(variables):
    return [variable.numpy().copy() for variable in variables]


def trained(model, weights):
    """The weights that a loss reaches: a Wasserstein critic's last bias shifts images and samples alike."""
    idle = model.discriminator.linear_layers[-1].bias if model.loss_name == "wasserstein" else None
    return [weight for weight in weights if weight is not idle]


def all_equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# === The game ===

P_DATA = np.array([0.5, 0.25, 0.125, 0.125])


def trained_logits(p_data, p_fake):
    """Optimises a discriminator of one free logit for each point, and returns its logits and its loss."""
    points = [np.repeat(np.arange(4), np.round(1000 * p).astype(int)) for p in (p_data, p_fake)]
    logits = tf.Variable(np.zeros(4), dtype=tf.float64)

    def loss():
        return discriminator_loss(*(tf.gather(logits, index) for index in points))

    @tf.function
    def descend():
        for _ in tf.range(5000):
            with tf.GradientTape() as tape:
                value = loss()
            logits.assign_sub(2.0 * tf.convert_to_tensor(tape.gradient(value, logits)))

    descend()
    return logits.numpy(), float(loss())


@pytest.mark.parametrize("p_fake", [[0.125, 0.125, 0.25, 0.5], [0.25, 0.25, 0.25, 0.25], P_DATA])
def test_the_optimal_discriminator_is_the_ratio_of_densities(p_fake):
    p_fake = np.array(p_fake)
    logits, loss = trained_logits(P_DATA, p_fake)
    middle = (P_DATA + p_fake) / 2
    divergence = 0.5 * sum((p * np.log(p / middle)).sum() for p in (P_DATA, p_fake))

    np.testing.assert_allclose(expit(logits), P_DATA / (P_DATA + p_fake), atol=1e-3)
    assert loss == pytest.approx(math.log(4) - 2 * divergence, abs=1e-4)
    if divergence == 0:
        assert loss == pytest.approx(1.386294, abs=1e-6)


def gradient_of(function, values):
    logits = tf.constant(values, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = function(logits)
    # Of one logit each, not of the mean
    return tape.gradient(loss, logits).numpy() * len(values)


LOGITS = np.array([-10.0, -2.0, -0.3, 0.0, 0.7, 3.0, 12.0])


def test_gradients_of_the_generator_losses():
    saturating = gradient_of(lambda logits: generator_loss(logits, "minimax"), LOGITS)
    default = gradient_of(generator_loss, LOGITS)

    np.testing.assert_allclose(default, -(1 - expit(LOGITS)), atol=1e-6)
    np.testing.assert_allclose(saturating, -expit(LOGITS), atol=1e-6)
    assert abs(default[0]) == pytest.approx(0.99995, abs=1e-5)
    assert abs(saturating[0]) == pytest.approx(4.5e-5, rel=0.02)


def test_losses_are_finite_for_any_logits():
    logits = tf.constant([-1e4, 0.0, 1e4])
    for loss in LOSSES:
        assert np.isfinite(discriminator_loss(logits, logits, loss))
        assert np.isfinite(generator_loss(logits, loss))


def test_losses_by_their_formulas():
    real, fake = LOGITS[:3], LOGITS[3:]
    expected = {
        "non_saturating": (-np.log(expit(real)).mean() - np.log(1 - expit(fake)).mean(), -np.log(expit(fake)).mean()),
        "minimax": (-np.log(expit(real)).mean() - np.log(1 - expit(fake)).mean(), np.log(1 - expit(fake)).mean()),
        "hinge": (np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean(), -fake.mean()),
        "least_squares": (((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2, ((fake - 1) ** 2).mean() / 2),
        "wasserstein": (fake.mean() - real.mean(), -fake.mean()),
    }
    assert set(expected) == set(LOSSES)
    for loss, (of_discriminator, of_generator) in expected.items():
        # 1 - D of a large logit has few digits in the formula
        assert float(discriminator_loss(real, fake, loss)) == pytest.approx(of_discriminator, rel=1e-5)
        assert float(generator_loss(fake, loss)) == pytest.approx(of_generator, rel=1e-5)


def test_label_smoothing_is_the_cross_entropy_of_softer_targets_of_images_only():
    real, fake = LOGITS[:3], LOGITS[3:6]
    expected = keras.losses.BinaryCrossentropy(from_logits=True)
    one_sided = expected(np.full((3, 1), 0.9), real[:, None]) + expected(np.zeros((3, 1)), fake[:, None])

    assert float(discriminator_loss(real, fake, label_smoothing=0.1)) == pytest.approx(float(one_sided), rel=1e-6)


# === Steps ===


@pytest.mark.parametrize(("changes", "compiled"), [({}, True), *((changes, False) for changes in VARIANTS)], ids=str)
def test_steps_leave_the_other_network_alone(changes, compiled):
    model = random_model(**changes)
    images, one_hot = images_for(model), one_hot_for(model)
    networks = model.generator, model.discriminator
    for step, changed, kept in (
        (lambda: model.discriminator_step(images, one_hot), *networks[::-1]),
        (lambda: model.generator_step(8, one_hot), *networks),
    ):
        parts = trained(model, changed.trainable_weights), changed.non_trainable_weights, kept.weights
        before = [values_of(part) for part in parts]
        (tf.function(step) if compiled else step)()
        after = [values_of(part) for part in parts]

        assert all_equal(before[2], after[2])
        assert not any(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))
        assert not before[1] or not any(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_images_and_samples_are_normalised_apart():
    """The loss of a batch of images does not depend on the samples of that step."""
    model = random_model()
    images = images_for(model)
    seen = []
    original = model._logits
    model._logits = lambda values, *rest, **named: seen.append(original(values, *rest, **named)) or seen[-1]
    model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
    for seed in range(2):
        for weight in model.generator.trainable_weights:
            weight.assign(np.random.default_rng(seed).normal(0, 1, weight.shape))
        model.discriminator_step(images)
    (real, fake), (real_again, fake_again) = (seen[:2], seen[2:])

    assert len(seen) == 4
    np.testing.assert_array_equal(real, real_again)
    assert np.abs(fake - fake_again).max() > 1e-3
    # In training mode: statistics are those of the batch
    assert np.abs(real - model(images)).max() > 1e-3


def test_generator_and_discriminator_are_pulled_apart():
    """A step of either lowers its own loss where nothing is random."""
    model = random_model(latent_dim=5, **{**DENSE, "initializer": "glorot"})
    images = images_for(model, 64)
    model.compile(keras.optimizers.SGD(0.05), jit_compile=False)
    noise = tf.constant(model.draw_latents(2000, 0))

    def losses():
        fake, real = model._logits(model.generator(noise), None, False), model(images)
        return float(discriminator_loss(real, fake)), float(generator_loss(fake))

    before = losses()
    for _ in range(10):
        model.discriminator_step(images)
    between = losses()
    for _ in range(10):
        model.generator_step(64)
    after = losses()
    assert between[0] < before[0] - 1e-3
    assert after[1] < between[1] - 1e-3


def test_noise_is_fresh_for_each_update():
    model = random_model()
    drawn = []
    original = model._draw_noise
    model._draw_noise = lambda *given: drawn.append(original(*given).numpy()) or drawn[-1]
    model.compile(run_eagerly=True)
    model.fit(images_for(model), batch_size=4, verbose=0)

    assert len(drawn) == 4
    assert len({noise.tobytes() for noise in drawn}) == 4
    assert all(np.abs(noise).max() <= 1 for noise in drawn)


def test_r1_penalty_of_a_linear_discriminator():
    """For l(x) = w x + b the penalty is gamma / 2 |w|^2, in the range of the networks."""
    model = random_model(**{**DENSE, "hidden_dims": [], "generator_hidden_dims": [4]}, r1_gamma=3.0)
    kernel = model.discriminator.linear_layers[0].kernel.numpy()
    penalty = model._penalty(2 * images_for(model) - 1, None, None)

    assert float(penalty) == pytest.approx(1.5 * np.sum(kernel**2), rel=1e-5)


def test_gradient_penalty_of_a_linear_discriminator():
    changes = {**DENSE, "hidden_dims": [], "generator_hidden_dims": [4], "loss": "wasserstein"}
    model = random_model(**changes, gradient_penalty=10.0)
    kernel = model.discriminator.linear_layers[0].kernel.numpy()
    real, fake = 2 * images_for(model) - 1, tf.zeros((8, 4, 6, 1))

    assert float(model._penalty(real, fake, None)) == pytest.approx(10 * (np.linalg.norm(kernel) - 1) ** 2, rel=1e-4)


def test_gradient_penalty_is_taken_between_images_and_samples():
    model = random_model(**{**WGAN, "loss": "hinge"})
    seen = []
    model._squared_gradient = lambda values, one_hot: seen.append(values.numpy()) or tf.ones(len(values))
    model._penalty(tf.ones((500, 4, 6, 1)), -tf.ones((500, 4, 6, 1)), None)
    shares = seen[0].reshape(500, -1)

    assert np.ptp(shares, axis=1).max() < 1e-6
    # Uniform on [-1, 1], of deviation 3^-1/2: four standard errors of the mean
    assert abs(shares[:, 0].mean()) < 4 * 3**-0.5 / 500**0.5
    assert shares.min() < -0.9 and shares.max() > 0.9


def test_the_penalty_is_in_the_loss():
    images = images_for(random_model())
    reported = []
    for gamma in (0.0, 50.0):
        model = random_model(**{**R1, "r1_gamma": gamma, "initializer": "glorot"})
        model.compile(keras.optimizers.SGD(0.0), jit_compile=False)
        reported.append(model.fit(images, batch_size=8, verbose=0).history["loss"][0])
        expected = 25.0 * np.mean(model._squared_gradient(2 * images - 1, None))

    assert reported[1] - reported[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_generator_waits_for_the_discriminator(steps):
    model = random_model(discriminator_steps=steps)
    model.fit(images_for(model, 24), batch_size=4, verbose=0)

    assert int(model.discriminator_optimizer.iterations) == 6
    assert int(model.optimizer.iterations) == 6 // steps


def test_averaged_weights_follow_the_generator_and_give_the_samples():
    model = random_model(ema_decay=0.3)
    weights = model.average_generator.weights
    assert all_equal(values_of(weights), values_of(model.generator.weights))
    expected = values_of(weights)
    for updates in range(1, 4):
        model.generator_step(8)
        decay = min(0.3, (1 + updates) / (10 + updates))
        expected = [
            decay * old + (1 - decay) * new
            for old, new in zip(expected, values_of(model.generator.weights), strict=True)
        ]
    for found, wanted in zip(values_of(weights), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    latents = model.draw_latents(4, 0)
    by_average = 0.5 * (model.average_generator(latents).numpy() + 1)
    np.testing.assert_allclose(model.decode(latents), by_average, atol=1e-6)
    assert np.abs(by_average - 0.5 * (model.generator(latents).numpy() + 1)).max() > 1e-4
    assert not any(weight.path in {w.path for w in model.trainable_weights} for weight in weights)


# === Structure ===


def parameters(network):
    return sum(math.prod(weight.shape) for weight in network.trainable_weights)


def layers_of(model):
    return [layer for layer in model._flatten_layers() if not layer._flatten_layers(include_self=False)]


@pytest.mark.slow
def test_dcgan_has_the_layers_and_initial_weights_of_the_paper():
    model = zoo.get("gan", preset="dcgan64", weights=None)

    assert parameters(model.generator) == 18_885_760
    assert parameters(model.discriminator) == 17_232_768
    check_rules(model)
    kernels = [layer.kernel.numpy() for layer in (*model.generator.linear_layers, *model.discriminator.linear_layers)]
    assert len(kernels) == 10
    for kernel in kernels:
        assert kernel.std() == pytest.approx(0.02, rel=0.05)


def check_rules(model):
    assert not [
        layer for layer in layers_of(model) if "Pool" in type(layer).__name__ or "UpSampling" in type(layer).__name__
    ]
    generator, discriminator = model.generator, model.discriminator
    # One for all hidden layers of the generator; none for the discriminator's first one; none for what comes out
    assert len(generator.norms) == len(generator.linear_layers) - 1
    assert len(discriminator.norms) == len(discriminator.linear_layers) - 2
    assert [norm.gamma.shape[0] for norm in discriminator.norms] == [
        layer.kernel.shape[-1] for layer in discriminator.linear_layers[1:-1]
    ]
    assert all(not layer.use_bias for layer in (*generator.linear_layers, *discriminator.linear_layers))


def test_the_default_preset_follows_the_rules():
    check_rules(zoo.get("gan", weights=None))


def test_goodfellow_has_the_sizes_and_initial_weights_of_the_authors():
    model = zoo.get("gan", preset="goodfellow_mnist", weights=None)

    assert parameters(model.generator) == 2_503_984
    assert parameters(model.discriminator) == 1_231_441
    for network, limit in ((model.generator, 0.05), (model.discriminator, 0.005)):
        for layer in network.linear_layers[:-1]:
            kernel = layer.kernel.numpy()
            assert 0.999 * limit < kernel.max() <= limit
            assert kernel.std() == pytest.approx(limit / 3**0.5, rel=0.02)


def test_maxout_is_the_largest_of_linear_functions():
    model = random_model(**{**MAXOUT, "hidden_dims": [4]})
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(24, 12)), rng.normal(size=12)
    model.discriminator.linear_layers[0].set_weights([kernel, bias])
    images = images_for(model)
    pieces = (images.numpy().reshape(8, 24) @ kernel + bias).reshape(8, 4, 3)

    found = model.run("discriminate", image=images)["features"]
    np.testing.assert_allclose(found, pieces.max(axis=2), rtol=1e-4, atol=1e-5)


def test_labels_reach_every_layer():
    model = random_model(**CONDITIONAL, hidden_dims=[10])
    assert [layer.kernel.shape[0] for layer in model.generator.linear_layers[:2]] == [5 + 3, 10 + 3]
    assert [layer.kernel.shape[3] for layer in model.generator.linear_layers[2:]] == [8 + 3, 6 + 3]
    assert [layer.kernel.shape[-2] for layer in model.discriminator.linear_layers] == [1 + 3, 6 + 3, 2 * 3 * 8 + 3, 13]
    latents = model.draw_latents(1, 0)
    images = [model.decode(latents, [label]) for label in range(3)]
    assert np.abs(images[0] - images[1]).max() > 1e-4 < np.abs(images[1] - images[2]).max()
    logits = [model.discriminate(images[0], [label])[0] for label in range(3)]
    assert len(set(logits)) == 3


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_networks_see_images_in_the_range_of_the_activation(activation):
    model = random_model(output_activation=activation)
    images = images_for(model)
    given = 2 * images - 1 if activation == "tanh" else images

    np.testing.assert_array_equal(model(images), model.discriminator(given)[0])
    raw = model.generator(model.draw_latents(200, 0)).numpy()
    assert (raw.min() < -1e-4) == (activation == "tanh")
    decoded = model.sample(200, seed=0)
    assert 0 <= decoded.min() and decoded.max() <= 1


# === Use ===


@pytest.fixture(scope="module")
def of_digits():
    keras.utils.set_random_seed(0)
    model = zoo.get("gan", weights=None)
    images = model.preprocess(load_arrays("digits", "train")["image"])
    model.compile(keras.optimizers.Adam(1e-3, beta_1=0.5), jit_compile=False)
    untrained = energy_to_test(model)
    model.losses_of_training = model.fit(images, epochs=8, batch_size=64, verbose=0).history
    model.distances = untrained, energy_to_test(model)
    return model


def energy_to_test(model):
    return model.sample_distance(lambda name, inputs: model.run(name, **inputs), "digits", "test")


def test_training_brings_samples_nearer_to_images(of_digits):
    before, after = of_digits.distances

    assert after < 0.5 * before
    assert set(of_digits.losses_of_training) == {"loss", "generator_loss"}
    assert np.isfinite(list(of_digits.losses_of_training.values())).all()


def test_an_image_does_not_depend_on_its_batch(of_digits):
    latents = of_digits.draw_latents(20, 0)
    together = of_digits.decode(latents)
    for index in range(3):
        np.testing.assert_allclose(of_digits.decode(latents[index : index + 1])[0], together[index], atol=1e-6)
    # By statistics of the batch it does
    in_training = of_digits.generator(latents, training=True).numpy()
    assert np.abs(of_digits.generator(latents[:3], training=True).numpy() - in_training[:3]).max() > 1e-3


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_begins_and_ends_at_the_images_of_the_latents(of_digits, method):
    start, end = of_digits.draw_latents(3, 0), of_digits.draw_latents(3, 1)
    path = of_digits.interpolate(start, end, num_steps=7, method=method)

    assert path.shape == (3, 7, 8, 8, 1)
    np.testing.assert_allclose(path[:, 0], of_digits.decode(start), atol=1e-6)
    np.testing.assert_allclose(path[:, -1], of_digits.decode(end), atol=1e-6)
    assert np.abs(path[:, 3] - (path[:, 0] + path[:, -1]) / 2).max() > 0.05
    if method == "linear":
        found = of_digits.run("interpolate", start=start, end=end, position=np.full(3, 0.5, np.float32))["image"]
        np.testing.assert_allclose(found, path[:, 3], atol=1e-6)


def test_there_is_no_encoder(of_digits):
    with pytest.raises(NotImplementedError, match=r"A GAN has no encoder.*Received: ndarray"):
        of_digits.encode(np.zeros((1, 8, 8, 1), np.float32))
    assert "encode" not in of_digits.signatures()


def test_samples_follow_the_seed(of_digits):
    first, again, other = (of_digits.sample(3, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_allclose(first, of_digits.decode(of_digits.draw_latents(3, 1)), atol=1e-6)


def test_discriminate_is_the_model(of_digits):
    images = of_digits.preprocess(load_arrays("digits", "test")["image"][:5])

    np.testing.assert_allclose(of_digits.discriminate(images), of_digits(images), atol=1e-5)
    found = of_digits.run("discriminate", image=images)
    kernel = of_digits.discriminator.linear_layers[-1].kernel.numpy()
    np.testing.assert_allclose(found["features"] @ kernel[:, 0], found["logit"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_noise_is_of_the_distribution(distribution):
    model = random_model(latent_distribution=distribution, latent_dim=20)
    variance = 1 / 3 if distribution == "uniform" else 1.0
    for noise in (model.draw_latents(1000, 0), model._draw_noise(1000, 0).numpy()):
        # Four standard errors of the mean
        assert abs(noise.mean()) < 4 * (variance / noise.size) ** 0.5
        assert noise.var() == pytest.approx(variance, rel=0.05)
        assert (np.abs(noise).max() <= 1) == (distribution == "uniform")


def test_conditional_fit_draws_samples_of_the_labels():
    """Images of three levels, one of each label: samples learn which."""
    model = random_model(**CONDITIONAL, **{**DENSE, "initializer": "glorot"})
    labels = np.arange(300, dtype="int32") % 3
    images = np.broadcast_to(labels[:, None, None, None] / 2, (300, 4, 6, 1)).astype(np.float32)
    model.compile(keras.optimizers.Adam(2e-3, beta_1=0.5), jit_compile=False)
    model.fit(images, labels, batch_size=50, epochs=60, verbose=0)
    means = model.sample(30, label=np.arange(30) % 3, seed=0).reshape(10, 3, -1).mean(axis=(0, 2))

    assert means[0] < 0.3 < 0.35 < means[1] < 0.65 < 0.7 < means[2]


def test_energy_distance():
    rng = np.random.default_rng(0)
    same = [rng.normal(size=(400, 3)) for _ in range(2)]
    first, second = same[0][:20], 1 + same[1][:30]

    def mean(points, others, pairs):
        return sum(np.linalg.norm(a - b) for a in points for b in others) / pairs

    expected = 2 * mean(first, second, 600) - mean(first, first, 380) - mean(second, second, 870)
    assert energy_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert abs(energy_distance(*same)) < 0.02 < energy_distance(same[0], same[1] + 0.5)


# === Training in full ===


def test_fit_repeats_under_a_seed():
    weights = []
    for _ in range(2):
        model = random_model(seed=3)
        model.fit(images_for(model, 32), batch_size=8, epochs=2, verbose=0)
        weights.append(model.get_weights())

    assert all_equal(*weights)


@pytest.mark.parametrize("changes", [*VARIANTS[2:4], *VARIANTS[5:8], *VARIANTS[10:]], ids=str)
def test_every_weight_is_trained_and_fit_reports_both_losses(changes):
    model = random_model(**changes)
    weights = trained(model, model.weights)
    before = values_of(weights)
    history = model.fit(images_for(model, 40), labels_for(model, 40), batch_size=8, verbose=0).history

    assert set(history) == {"loss", "generator_loss"}
    for variable, value in zip(weights, before, strict=True):
        assert not np.array_equal(variable.numpy(), value), variable.path
    found = model.evaluate(images_for(model), labels_for(model), verbose=0, return_dict=True)
    assert set(found) == {"loss", "generator_loss"} and np.isfinite(list(found.values())).all()


def test_evaluation_is_of_the_same_noise_and_of_what_is_sampled():
    model = random_model(ema_decay=0.9)
    images = images_for(model)
    model.fit(images, verbose=0)
    first, second = (model.evaluate(images, verbose=0, return_dict=True) for _ in range(2))
    noise = keras.random.uniform((8, 5), -1, 1, seed=EVALUATION_SEED)
    fake = model.discriminator(model.average_generator(noise))[0]

    assert first == second
    assert first["loss"] == pytest.approx(float(discriminator_loss(model(images), fake)), rel=1e-4)
    assert first["generator_loss"] == pytest.approx(float(generator_loss(fake)), rel=1e-4)


def test_the_default_optimizers_are_those_of_dcgan_and_two():
    model = random_model(compiled=False)
    model.compile(jit_compile=False)
    for optimizer in (model.optimizer, model.discriminator_optimizer):
        assert float(optimizer.learning_rate) == pytest.approx(2e-4)
        assert (optimizer.beta_1, optimizer.beta_2) == (0.5, 0.999)
    assert model.optimizer is not model.discriminator_optimizer
    model.compile("sgd", keras.optimizers.Adam(0.1), jit_compile=False)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert isinstance(model.discriminator_optimizer, keras.optimizers.Adam)
    optimizer = keras.optimizers.Adam()
    with pytest.raises(ValueError, match=r"`discriminator_optimizer` must be another object.*Received: "):
        model.compile(optimizer, optimizer)


@pytest.mark.parametrize("changes", [VARIANTS[3], {**MAXOUT, **CONDITIONAL}, WGAN, {"ema_decay": 0.99}], ids=str)
def test_saving_gives_the_model_back(changes, tmp_path):
    model = random_model(**changes)
    model.fit(images_for(model, 40), labels_for(model, 40), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert loaded.get_config() == model.get_config()
    assert all_equal(loaded.get_weights(), model.get_weights())
    for name in ("optimizer", "discriminator_optimizer"):
        ours, theirs = getattr(model, name), getattr(loaded, name)
        assert ours.get_config() == theirs.get_config()
        assert len(ours.variables) > 3
        assert all_equal(values_of(theirs.variables), values_of(ours.variables))
    label = labels_for(model, 3)
    np.testing.assert_array_equal(loaded.sample(3, label, seed=0), model.sample(3, label, seed=0))


def test_an_uncompiled_model_loads_uncompiled(tmp_path):
    model = random_model(compiled=False)
    model.save(tmp_path / "model.keras")

    assert not keras.saving.load_model(tmp_path / "model.keras").compiled


def test_a_resumed_training_is_the_unbroken_one(tmp_path):
    changes = {"convolutions": (), "hidden_dims": [8, 8], "dropout": 0.2, "ema_decay": 0.9}
    images = images_for(random_model(), 32)
    data = tf.data.Dataset.from_tensor_slices(images).repeat().batch(8)

    def fit(model, checkpoint, start, stop):
        model.fit(
            data.skip(3 * start), steps_per_epoch=3, initial_epoch=start, epochs=stop, shuffle=False, verbose=0,
            callbacks=[checkpoint],
        )  # fmt: skip

    def checkpoint():
        return TrainingCheckpoint(tmp_path / "training.npz", "loss", minutes=0, settings=None)

    unbroken = random_model(seed=4, **changes)
    fit(unbroken, TrainingCheckpoint(tmp_path / "other.npz", "loss"), 0, 4)
    broken = random_model(seed=4, **changes)
    fit(broken, checkpoint(), 0, 2)
    resumed = random_model(seed=5, **changes)
    restored = checkpoint()
    assert restored.restore(resumed) == 2
    fit(resumed, restored, 2, 4)

    assert all_equal(resumed.get_weights(), unbroken.get_weights())
    for name in ("optimizer", "discriminator_optimizer"):
        assert all_equal(values_of(getattr(resumed, name).variables), values_of(getattr(unbroken, name).variables))


def test_mixed_precision_trains():
    model = random_model(dtype="mixed_bfloat16", **CONDITIONAL)
    history = model.fit(images_for(model, 40), labels_for(model, 40), batch_size=8, verbose=0).history

    assert np.isfinite(list(history.values())).all()
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)


# === Bad input ===


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_dim": 0},
        {"latent_distribution": "cauchy"},
        {"convolutions": [[8, 3]]},
        {"convolutions": [[8, 3, 4]]},
        {"generator_convolutions": [[8, 3, 5]]},
        {"hidden_dims": [0]},
        {"generator_hidden_dims": [-1]},
        {"num_classes": -1},
        {"output_activation": "linear"},
        {"batch_norm": "discriminator"},
        {"negative_slope": -0.1},
        {"maxout_pieces": 2},
        {"dropout": 1.0},
        {"input_dropout": -0.1},
        {"initializer": "no_such"},
        {"initializer_scale": 0.0},
        {"generator_initializer_scale": -0.02},
        {"loss": "adversarial"},
        {"label_smoothing": 0.5},
        {"gradient_penalty": -1.0},
        {"r1_gamma": float("inf")},
        {"discriminator_steps": 0},
        {"ema_decay": 1.0},
        {"num_levels": 1},
    ],
    ids=str,
)
def test_bad_arguments_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: "):
        random_model(**changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"loss": "wasserstein", "batch_norm": "none"}, "gradient_penalty"),
        ({"r1_gamma": 1.0}, "batch_norm"),
        ({"gradient_penalty": 1.0}, "batch_norm"),
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_arguments_that_do_not_go_together(changes, name):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*Received: "):
        random_model(**changes)


def test_image_shape_must_be_three_sizes():
    with pytest.raises(ValueError, match=r"`image_shape` must be height, width and channels. Received: \(8, 8\)"):
        GAN((8, 8), 4)


def test_whole_numbers_are_told_to_be_divided():
    model = random_model(num_levels=256)
    stored = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 1)).astype("uint8")
    for call in (model, model.discriminate, lambda image: model.fit(image, verbose=0)):
        with pytest.raises(TypeError, match=r"`image` must be of floats in \[0, 1\]: divide levels by 255.*uint8"):
            call(stored)


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_values_out_of_range(value):
    model = random_model()
    images = images_for(model).numpy()
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match=r"`image` must be .*Received: "):
        model.discriminate(images)


def test_images_of_another_shape():
    model = random_model()
    images = np.zeros((3, 6, 4, 1), np.float32)
    for call in (model, model.discriminate, lambda image: model.fit(image, verbose=0)):
        with pytest.raises(ValueError, match=r"`image` must .*shape"):
            call(images)
    with pytest.raises(ValueError, match=r"`levels` must be of shape"):
        model.preprocess(np.zeros((2, 6, 4)))


def test_labels_that_are_missing_wrong_or_not_asked_for():
    plain, conditional = random_model(), random_model(**CONDITIONAL)
    images = images_for(plain)
    for call in (
        lambda: plain(images, tf.zeros(8, tf.int32)),
        lambda: plain.sample(2, label=[0, 1]),
        lambda: plain.fit(images, np.zeros(8, "int32"), verbose=0),
        lambda: conditional(images),
        lambda: conditional.sample(2),
        lambda: conditional.sample(2, label=[0, 3]),
        lambda: conditional.sample(2, label=[0, 1, 2]),
        lambda: conditional.fit(images, verbose=0),
        lambda: conditional(images, tf.zeros((8, 3), tf.int32)),
    ):
        with pytest.raises(ValueError, match=r"label.*Received: "):
            call()
    with pytest.raises(TypeError, match=r"`label` must be of whole numbers below 3.*float32"):
        conditional(images, tf.zeros(8))


def test_sample_weights_are_refused():
    model = random_model(**CONDITIONAL)
    with pytest.raises(ValueError, match=r"`sample_weight` must be None. Received: "):
        model.fit(images_for(model), labels_for(model), sample_weight=np.ones(8), verbose=0)


def test_bad_uses_are_named():
    model = random_model()
    latents = model.draw_latents(2, 0)
    for call, name in (
        (lambda: model.sample(0), "num_samples"),
        (lambda: model.decode(latents[:, :4]), "latent"),
        (lambda: model.interpolate(latents, latents[:1]), "end"),
        (lambda: model.interpolate(latents, latents, num_steps=1), "num_steps"),
        (lambda: model.interpolate(latents, latents, method="cubic"), "method"),
    ):
        with pytest.raises(ValueError, match=rf"`{name}` must .*Received: "):
            call()
