"""The deterministic autoencoder, held against principal components and losses written another way."""

import functools
import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from generative import image_models
from generative.image_models import images_for

import zoo
from zoo.datasets import load_arrays
from zoo.experiments.autoencoder import principal_components
from zoo.generative.autoencoder import Autoencoder

CONVOLUTIONS = {"convolutions": [[3, 3, 1], [4, 3, 2]], "activation": "leaky_relu"}
VARIANTS = [{}, {"reconstruction_loss": "squared_error"}, CONVOLUTIONS]


random_model = functools.partial(image_models.random_model, Autoencoder)


# === The loss ===


def test_losses_are_sums_over_pixels():
    cross_entropy, squared = random_model(), random_model(reconstruction_loss="squared_error")
    images = images_for(cross_entropy)
    again = cross_entropy.reconstruct(images).astype(np.float64)
    logarithms = images * np.log(again) + (1 - images) * np.log(1 - again)

    np.testing.assert_allclose(cross_entropy(images)["loss"], -logarithms.sum(axis=(1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(squared(images)["loss"], ((images - again) ** 2).sum(axis=(1, 2, 3)), rtol=1e-4)


def test_cross_entropy_of_extreme_outputs_is_exact():
    model = random_model(hidden_dims=[])
    kernel, bias = model.decoder.heads[0].get_weights()
    model.decoder.heads[0].set_weights([0 * kernel, np.full_like(bias, 200.0)])

    # A probability of 1 - exp(-200) for pixels that are 0: its logarithm cannot be taken from the probability
    np.testing.assert_allclose(model(np.zeros((2, 4, 6, 1), np.float32))["loss"], 24 * 200.0)
    np.testing.assert_allclose(model(np.ones((2, 4, 6, 1), np.float32))["loss"], 0.0, atol=1e-6)


def test_fit_reports_loss_and_squared_error():
    model = random_model()
    model.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    images = images_for(model, 40)
    history = model.fit(images, batch_size=8, verbose=0).history
    outputs = model(images)

    assert set(history) == {"loss", "squared_error"}
    assert history["loss"][0] == pytest.approx(np.mean(outputs["loss"]), rel=1e-5)
    errors = ((images - outputs["reconstruction"]) ** 2).numpy().sum(axis=(1, 2, 3))
    assert history["squared_error"][0] == pytest.approx(errors.mean(), rel=1e-5)


def test_sample_weight_leaves_images_out():
    model = random_model()
    images = images_for(model, 6)
    weights = np.array([2.0, 0, 2, 0, 2, 0])
    weighted = model.compute_loss(x=images, y_pred=model(images), sample_weight=weights).numpy()

    assert weighted == pytest.approx(np.mean(model(images[::2])["loss"]), rel=1e-5)


# === Principal components ===


@pytest.fixture(scope="module")
def digits():
    return (load_arrays("digits", "train")["image"] / 16.0).astype(np.float32)[..., None]


def linear_model(components):
    return Autoencoder((8, 8, 1), components, "squared_error", "linear", hidden_dims=[], num_levels=17)


def test_principal_components_reconstruct_all_but_the_rest_of_the_variance(digits):
    rows = digits.reshape(len(digits), -1).astype(np.float64)
    mean, components = principal_components(rows, 10)
    error = np.sum((rows - mean - (rows - mean) @ components.T @ components) ** 2, axis=1).mean()
    eigenvalues = np.linalg.eigvalsh(np.cov(rows, rowvar=False, bias=True))

    assert error == pytest.approx(eigenvalues[:-10].sum(), rel=1e-9)
    np.testing.assert_allclose(components @ components.T, np.eye(10), atol=1e-9)


def test_linear_autoencoder_trains_to_the_principal_components(digits):
    """The best linear map of 64 numbers through 5 is the projection on principal components."""
    rows = digits.reshape(len(digits), -1)
    mean, components = principal_components(rows.astype(np.float64), 5)
    best = np.sum((rows - mean - (rows - mean) @ components.T @ components) ** 2, axis=1).mean()
    keras.utils.set_random_seed(0)
    model = linear_model(5)
    updates = 1500
    schedule = keras.optimizers.schedules.CosineDecay(3e-2, updates)
    model.compile(optimizer=keras.optimizers.Adam(schedule), jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices(digits).shuffle(1257, seed=0).repeat().batch(200)
    model.fit(data, steps_per_epoch=updates, verbose=0)
    found = float(np.mean(model(digits)["loss"]))

    assert best <= found < 1.005 * best
    # The codes span what the components span: what is decoded from them lies in their plane
    directions = model.decoder.heads[0].kernel.numpy()
    outside = directions - directions @ components.T @ components
    assert np.linalg.norm(outside) < 0.1 * np.linalg.norm(directions)


# === Use ===


@pytest.fixture(scope="module")
def trained(digits):
    keras.utils.set_random_seed(0)
    model = zoo.get("autoencoder", weights=None)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)
    model.fit(digits, epochs=15, batch_size=100, verbose=0)
    return model


def test_trained_codes_beat_the_mean_image(trained, digits):
    test = trained.preprocess(load_arrays("digits", "test")["image"])
    errors = [
        ((test - other) ** 2).sum(axis=(1, 2, 3)).mean() for other in (trained.reconstruct(test), digits.mean(axis=0))
    ]

    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_interpolation_begins_and_ends_at_reconstructions(trained, method):
    images = trained.preprocess(load_arrays("digits", "test")["image"][:10])
    again = trained.reconstruct(images)
    path = trained.interpolate(images[:5], images[5:], num_steps=7, method=method)

    assert path.shape == (5, 7, 8, 8, 1)
    np.testing.assert_allclose(path[:, 0], again[:5], atol=1e-5)
    np.testing.assert_allclose(path[:, -1], again[5:], atol=1e-5)
    assert np.abs(path[:, 3] - (again[:5] + again[5:]) / 2).max() > 0.05


def test_signatures_agree_with_the_methods(trained):
    images = trained.preprocess(load_arrays("digits", "test")["image"][:6])
    outputs = trained(images)

    np.testing.assert_allclose(trained.encode(images), outputs["latent"], atol=1e-6)
    np.testing.assert_allclose(trained.reconstruct(images), outputs["reconstruction"], atol=1e-6)
    np.testing.assert_allclose(trained.decode(trained.encode(images)), outputs["reconstruction"], atol=1e-6)
    path = trained.interpolate(images[:3], images[3:], num_steps=5)
    found = trained.run("interpolate", start=images[:3], end=images[3:], position=np.full(3, 0.75, np.float32))
    np.testing.assert_allclose(found["image"], path[:, 3], atol=1e-6)


def test_real_inputs_and_metric_are_of_held_out_images():
    model = random_model((8, 8, 1), num_levels=17)
    assert list(model.real_inputs("encode")) == []
    assert model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    for name, signature in model.signatures().items():
        (inputs,) = model.real_inputs(name, 100)
        signature.check(inputs)
    test = load_arrays("digits", "test")["image"][..., None] / 16
    expected = ((test - model.reconstruct(test.astype(np.float32))) ** 2).sum(axis=(1, 2, 3)).mean()
    metric = model.task_metric()
    assert metric.compute(lambda name, inputs: model.run(name, **inputs)) == pytest.approx(expected, rel=1e-5)
    assert metric.worsening(1.0, 1.5) == 0.5


# === Networks and saving ===


def test_paper_network_has_its_layers():
    model = zoo.get("autoencoder", "hinton_mnist", weights=None)
    kernels = [tuple(weight.shape) for weight in model.trainable_weights if len(weight.shape) == 2]
    sizes = [784, 1000, 500, 250, 30, 250, 500, 1000, 784]

    assert kernels == list(itertools.pairwise(sizes))
    layers = [*model.encoder.hidden_layers, *model.decoder.hidden_layers]
    assert {layer.activation.__name__ for layer in layers} == {"sigmoid"}
    # The code is linear
    assert model.encoder.heads[0].activation.__name__ == "linear"


@pytest.mark.parametrize("changes", VARIANTS)
def test_mixed_precision_keeps_images_and_losses_in_float32(changes):
    exact = random_model(**changes)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = random_model(**changes)
    finally:
        keras.config.set_dtype_policy("float32")
    found = model(images_for(exact))

    assert model.decoder.heads[0].compute_dtype == "bfloat16"
    assert all(value.dtype == tf.float32 for value in found.values())
    np.testing.assert_allclose(found["loss"], exact(images_for(exact))["loss"], rtol=0.05)


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"reconstruction_loss": "hinge"}, "reconstruction_loss"),
        ({"output_activation": "relu"}, "output_activation"),
        ({"output_activation": "linear"}, "output_activation"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"image_shape": (4, 6)}, "image_shape"),
        ({"convolutions": [[8, 3, 4]]}, "convolutions"),
    ],
    ids=str,
)
def test_bad_arguments(changes, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: "):
        random_model(**changes)
