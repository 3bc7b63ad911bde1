"""What every autoencoder of images does alike, whatever its loss: weights, files, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from generative.image_models import images_for, random_model

from zoo.generative.autoencoder import Autoencoder
from zoo.generative.vae import VAE

CLASSES = [Autoencoder, VAE]
CONVOLUTIONS = {"convolutions": [[3, 3, 1], [4, 3, 2]], "activation": "leaky_relu", "center_inputs": True}
MIXTURE = {"kl": "sampled", "prior": "mixture", "num_components": 5, "posterior_scale": "softplus"}
LIKELIHOODS = ["gaussian", "gaussian_shared", "discretized_logistic", "categorical"]
VARIANTS = [
    *((Autoencoder, changes) for changes in ({}, {"reconstruction_loss": "squared_error"}, CONVOLUTIONS)),
    *((VAE, changes) for changes in ({}, MIXTURE, CONVOLUTIONS, *({"likelihood": name} for name in LIKELIHOODS))),
]
every_variant = pytest.mark.parametrize(("model_class", "changes"), VARIANTS, ids=str)
every_class = pytest.mark.parametrize("model_class", CLASSES)


@every_variant
def test_every_weight_is_trained(model_class, changes):
    model = random_model(model_class, **changes)
    images = images_for(model, 8)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x=images, y_pred=model(images, training=True))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for variable, gradient in zip(model.trainable_weights, gradients, strict=True):
        assert gradient is not None and np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


@every_variant
def test_saving_gives_the_model_back(model_class, changes, tmp_path):
    model = random_model(model_class, **changes)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = images_for(model)
    wanted, found = model(images), loaded(images)

    assert loaded.get_config() == model.get_config()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def uses_of(model):
    """Everything that takes images."""
    uses = [model.encode, model.reconstruct, lambda image: model.interpolate(image, image)]
    return [*uses, model.log_likelihood] if isinstance(model, VAE) else uses


@every_class
def test_whole_numbers_are_told_to_be_divided(model_class):
    model = random_model(model_class, num_levels=256)
    stored = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 1)).astype("uint8")
    model.compile(optimizer="sgd", jit_compile=False)
    for call in (model, *uses_of(model), lambda image: model.fit(image, verbose=0)):
        with pytest.raises(TypeError, match=r"`image` must be of floats in \[0, 1\]: divide levels by 255.*uint8"):
            call(stored)


@every_class
@pytest.mark.parametrize("value", [-0.1, 1.5, 255.0, np.nan])
def test_values_out_of_range(model_class, value):
    model = random_model(model_class)
    images = images_for(model)
    images[1, 2, 3, 0] = value
    for call in uses_of(model):
        with pytest.raises(ValueError, match=r"`image` must be .*Received: "):
            call(images)


@every_class
def test_images_of_another_shape(model_class):
    model = random_model(model_class)
    model.compile(optimizer="sgd", jit_compile=False)
    images = np.zeros((3, 6, 4, 1), np.float32)
    for call in (model, model.encode, lambda image: model.fit(image, verbose=0)):
        with pytest.raises(ValueError, match=r"`image` must .*shape"):
            call(images)
