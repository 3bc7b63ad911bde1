"""Products and bit operations against counts by hand."""

import keras
import numpy as np

from zoo import compression
from zoo.compression.costs import bit_operations, multiplications
from zoo.compression.real_to_binary import RealToBinaryNet

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


def test_learned_bits_weigh():
    """Each kernel by its own bits, times those of the rectifier before it; the image stays in float."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(5, 3, padding="same", name="second")(layers.MaxPooling2D(2)(x))
    x = layers.ReLU(name="rectifier")(x)
    x = layers.Dense(6, activation="relu", name="third")(layers.Flatten()(x))
    x = layers.Dense(7, activation="tanh", name="fourth")(x)
    model = compression.learn_bitwidths(keras.Model(inputs, layers.Dense(2, name="fifth")(x)), bits=4)
    stage = model.stage(compression.LearnedBitwidthStage)
    for variables in (stage._weight_parameters, stage._activation_parameters):
        # Three bits for every third
        maximum = variables["maximum"]
        maximum.assign(maximum.value * np.resize([1.0, 1.0, 0.4], maximum.shape))
    weights = {path.split("/")[-2]: bits for path, bits in stage.weight_bits().items() if path.endswith("kernel")}
    activations = {path.split("/")[-1]: bits for path, bits in stage.activation_bit_widths().items()}
    assert set(weights.values()) == set(activations.values()) == {3, 4}

    inputs_of = {"first": None, "second": "first", "third": "rectifier", "fourth": "third", "fifth": None}
    products = multiplications(model, EXAMPLE)
    expected = 0
    for target in model.transformed_targets:
        if target.kind == "kernel":
            name = target.path.split("/")[-2]
            bits = weights[name] * activations.get(inputs_of[name], 32)
            expected += products[target.path] * bits * np.mean(model.transformed(target).numpy() != 0)
    assert bit_operations(model, EXAMPLE) == round(expected)


def test_signs_count_once():
    images = np.ones((1, 8, 8, 1), "float32")
    model = RealToBinaryNet(image_size=8, num_channels=1, num_classes=3, widths=[8], depths=[1], stem="cifar")
    products = multiplications(model, images)
    binary = {conv.kernel.path for conv in model.binary_convs}
    assert binary < set(products)
    floats = sum(count for path, count in products.items() if path not in binary)
    assert bit_operations(model, images) == sum(products[path] for path in binary) + 1024 * floats


def test_watching_leaves_no_trace():
    model = network()
    before = [layer.call for layer in model.layers]
    multiplications(model, EXAMPLE)
    assert [layer.call for layer in model.layers] == before
