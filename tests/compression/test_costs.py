"""Products and bit operations against counts by hand."""

import keras
import numpy as np

from zoo import compression
from zoo.compression.costs import bit_operations, multiplications

layers = keras.layers
EXAMPLE = np.ones((1, 8, 8, 3), "float32")


def network():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="convolution")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(5, name="dense")(layers.Flatten()(x)))


def test_products_by_hand():
    counts = {path.split("/")[-2]: count for path, count in multiplications(network(), EXAMPLE).items()}
    assert counts == {"convolution": 16 * 4 * 3 * 9, "depthwise": 16 * 4 * 9, "dense": 64 * 5}


def test_tokens_share_a_kernel_and_tables_cost_nothing():
    model = keras.Sequential([keras.Input((7,), dtype="int32"), layers.Embedding(11, 4), layers.Dense(3)])
    counts = multiplications(model, np.zeros((1, 7), "int32"))
    assert sorted(counts.values()) == [0, 7 * 4 * 3]


def test_a_layer_used_twice_counts_twice():
    inputs, dense = keras.Input((4,)), layers.Dense(4)
    (count,) = multiplications(keras.Model(inputs, dense(dense(inputs))), np.zeros((1, 4))).values()
    assert count == 2 * 16


def test_bits_and_zeros_weigh():
    model = network()
    floating = bit_operations(model, EXAMPLE)
    assert floating == sum(multiplications(model, EXAMPLE).values()) * 32 * 32
    pruned = compression.prune(model, 0.5)
    assert abs(bit_operations(pruned, EXAMPLE) / floating - 0.5) < 0.01
    small = compression.quantize_aware(pruned, 4, 8)
    assert abs(bit_operations(small, EXAMPLE) / floating - 0.5 * 4 * 8 / 1024) < 0.001


def test_watching_leaves_no_trace():
    model = network()
    before = [layer.call for layer in model.layers]
    multiplications(model, EXAMPLE)
    assert [layer.call for layer in model.layers] == before
