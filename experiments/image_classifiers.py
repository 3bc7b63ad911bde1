"""What the recipes of image classifiers share: shuffled and augmented batches, the error to choose weights by, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.image_classifier import EVALUATION_BATCH, ImageClassifier
from zoo.datasets import load_arrays
from zoo.model import Arrays
from zoo.training.recipe import TrainingData

# Pixels by which augmented images move at most, as is usual for CIFAR.
SHIFT = 4


def shuffled_images(batch_size: int, augment: bool = False) -> Callable[[ImageClassifier, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of images, as the model takes them, and labels.

    Args:
        batch_size: int. Images of a training batch.
        augment: bool. Whether half of the training images are mirrored, and all of them shifted by up to four pixels,
            anew each time.
    """

    def data(model: ImageClassifier, dataset: str, seed: int) -> TrainingData:
        train, validation = (load_arrays(dataset, split) for split in ("train", "validation"))
        shuffled = _slices(train).shuffle(len(train["label"]), seed=seed).repeat()
        batches = shuffled.batch(batch_size, drop_remainder=True)
        if augment:
            batches = batches.enumerate().map(
                lambda index, batch: (
                    flip_and_shift(batch[0], tf.stack([tf.constant(seed, index.dtype), index])),
                    batch[1],
                )
            )
        return TrainingData(batches.map(_to_inputs), _slices(validation).batch(EVALUATION_BATCH).map(_to_inputs))

    return data


def _slices(arrays: Mapping[str, np.ndarray]) -> tf.data.Dataset:
    images = arrays["image"] if arrays["image"].ndim == 4 else arrays["image"][..., None]
    return tf.data.Dataset.from_tensor_slices((images, arrays["label"]))


def _to_inputs(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales as `ImageClassifier.preprocess` does; within the pipeline, which holds bytes instead of floats."""
    return tf.cast(images, tf.float32) / 255.0, labels


def flip_and_shift(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors half of the images, and shifts each by up to four pixels in both directions; what comes in is black.

    Args:
        images: tensor `(batch, height, width, channels)`.
        seed: int tensor `(2,)`. The same seed gives the same images.

    Returns:
        Tensor like `images`.
    """
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    mirrored = tf.random.stateless_uniform((count, 1, 1, 1), seed) < 0.5
    images = tf.where(mirrored, tf.reverse(images, [2]), images)
    padded = tf.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
    # Another seed, so that shifts do not depend on flips
    offsets = tf.random.stateless_uniform((count, 2, 1), seed + 1, 0, 2 * SHIFT + 1, tf.int32)
    rows = tf.gather(padded, offsets[:, 0] + tf.range(height), axis=1, batch_dims=1)
    shifted = tf.gather(rows, offsets[:, 1] + tf.range(width), axis=2, batch_dims=1)
    return tf.ensure_shape(shifted, images.shape)


@keras.saving.register_keras_serializable(package="zoo")
def error(labels: Any, logits: Any) -> Any:
    """Returns for each image whether its label is missed: a metric to choose weights by, as `val_error`."""
    return 1.0 - keras.metrics.sparse_categorical_accuracy(labels, logits)


def evaluate(model: ImageClassifier, dataset: str, split: str) -> dict[str, float]:
    """Returns the share of a split's images that get their label."""
    predict = tf.function(model.signatures()["predict"].function, reduce_retracing=True)

    def run(signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return {"logits": predict(image=tf.constant(inputs["image"]))["logits"].numpy()}

    return {"accuracy": model.accuracy(run, dataset, split)}
