"""Products of attention with what all examples share: right with one head too, where TensorFlow 2.21's are not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.ops import shared_matmul


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_every_example_meets_the_same_matrices(heads, alike):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, heads, 32, 8)).astype("float32")
    shared = rng.normal(size=(8, 5) if alike else (heads, 8, 5)).astype("float32")
    inputs = [tf.constant(x), tf.constant(shared)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        product = shared_matmul(*inputs)
        loss = tf.reduce_sum(tf.square(product))
    of_x, of_shared = tape.gradient(loss, inputs)

    expected = np.matmul(x, shared)
    np.testing.assert_allclose(product, expected, atol=1e-4)
    np.testing.assert_allclose(of_x, 2 * np.matmul(expected, np.swapaxes(shared, -1, -2)), rtol=1e-4, atol=1e-3)
    by_head = 2 * np.einsum("bhld,bhlk->hdk", x, expected)
    np.testing.assert_allclose(of_shared, by_head.sum(0) if alike else by_head, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("position", ["xl", "shaw"])
@pytest.mark.parametrize("length", [2, 16])
def test_one_head_reads_a_batch_as_its_examples(position, length):
    """A short window has its queries projected, a long one its keys."""
    options = dict(num_heads=1, window_length=length, memory_length=16, position=position, max_distance=16)
    model = zoo.get("transformer_xl", weights=None, **options)
    ids = np.random.default_rng(1).integers(0, model.vocabulary_size, (5, length))
    together = keras.ops.convert_to_numpy(model(ids, training=False))
    alone = [keras.ops.convert_to_numpy(model(row[None], training=False))[0] for row in ids]
    np.testing.assert_allclose(together, alone, atol=1e-4)
