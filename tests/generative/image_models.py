"""Small models of images with random weights, images for them, and Jacobians of flows."""

import keras
import numpy as np
import tensorflow as tf


def random_model(model_class, image_shape=(4, 6, 1), seed=0, **changes):
    """A small autoencoder of a class with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    arguments = {"latent_dim": 3, "hidden_dims": [16], "num_levels": 5, "activation": "tanh"}
    model = model_class(image_shape, **{**arguments, **changes})
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            variable.assign(rng.normal(0.0, 0.5, variable.shape))
    return model


def images_for(model, count=5, seed=0):
    """Random images of a model's levels, as it takes them."""
    return model.preprocess(np.random.default_rng(seed).integers(0, model.num_levels, (count, *model.image_shape)))


def flow_images(model, count=4, seed=0):
    """Random images in the range of a flow."""
    shape = model.signatures()["log_prob"].inputs["image"].shape[1:]
    return tf.constant(np.random.default_rng(seed).uniform(*model.value_range, (count, *shape)), tf.float32)


def flow_jacobians(model, images):
    """Returns the Jacobians of latents by pixels, by one gradient: of each latent in a copy of the image of its own."""
    size = model.latent_dim
    copies = tf.repeat(images, size, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        latent, _ = model._encode(copies)
        chosen = tf.reduce_sum(latent * np.tile(np.eye(size, dtype=np.float32), (len(images), 1)))
    return tape.gradient(chosen, copies).numpy().reshape(-1, size, size)
