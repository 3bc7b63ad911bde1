import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import load_arrays
from zoo.experiments import image_classifiers


def small_model():
    return zoo.get("mixed_precision_dnn", weights=None, depth=8, width=4)


def test_batches_are_what_the_model_takes():
    model = small_model()
    data = image_classifiers.shuffled_images(16)(model, "fashion_mnist_sample", 0)
    images, labels = next(iter(data.train))
    stored = load_arrays("fashion_mnist_sample", "train")
    found = [np.flatnonzero((model.preprocess(stored["image"]) == image).all((1, 2, 3)))[0] for image in images.numpy()]

    assert images.shape == (16, 28, 28, 1) and images.dtype == tf.float32
    np.testing.assert_array_equal(stored["label"][found], labels)
    assert sum(len(y) for _, y in data.validation) == 500


def test_the_same_seed_gives_the_same_batches():
    def first(seed):
        data = image_classifiers.shuffled_images(8, augment=True)(small_model(), "fashion_mnist_sample", seed)
        return [image.numpy() for image, _ in data.train.take(2)]

    np.testing.assert_array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))


def test_augmented_images_are_mirrored_and_shifted():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (64, 10, 12, 3), dtype=np.uint8)
    changed = image_classifiers.flip_and_shift(tf.constant(images), tf.constant([3, 5], tf.int64)).numpy()
    mirrored = shifted = 0
    for before, after in zip(images, changed, strict=True):
        padded = [np.pad(image, ((4, 4), (4, 4), (0, 0))) for image in (before, before[:, ::-1])]
        matches = [
            (flip, row, column)
            for flip in range(2)
            for row in range(9)
            for column in range(9)
            if np.array_equal(padded[flip][row : row + 10, column : column + 12], after)
        ]
        assert len(matches) == 1
        mirrored += matches[0][0]
        shifted += matches[0][1:] != (4, 4)

    # Binomial with 64 draws of 1/2: outside of these bounds once in 20,000 times
    assert 16 <= mirrored <= 48 and shifted > 48


def test_evaluation_is_the_accuracy_of_the_signature():
    model = small_model()
    found = image_classifiers.evaluate(model, "fashion_mnist_sample", "validation")
    arrays = load_arrays("fashion_mnist_sample", "validation")
    logits = model.run("predict", image=model.preprocess(arrays["image"]))["logits"]

    assert found == {"accuracy": pytest.approx(float(np.mean(logits.argmax(1) == arrays["label"])))}


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"`images` must have shape \(number, \*\(28, 28, 1\)\). Received"):
        small_model().preprocess(np.zeros((2, 32, 32, 3), np.uint8))
