"""Small models of images with random weights, and images for them."""

import keras
import numpy as np


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
