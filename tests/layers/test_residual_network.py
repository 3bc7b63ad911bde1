"""The residual network for CIFAR against the counts and the shortcuts of its paper."""

import keras
import numpy as np
import pytest

from zoo.layers.residual_network import residual_network


@pytest.mark.parametrize(("depth", "kernels"), [(20, 268_346), (32, 461_882), (56, 848_954)])
def test_parameters(depth, kernels):
    """Kernels of the convolutions, and kernel and bias of the dense layer."""
    model = residual_network(depth)
    counted = sum(int(np.prod(v.shape)) for v in model.trainable_variables if "norm" not in v.path)
    assert counted == kernels
    assert sum(isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) for layer in model.layers) == depth


def test_shortcuts_take_every_second_pixel_and_add_zero_channels():
    model = residual_network(8, width=4, input_shape=(8, 8, 1))
    wanted = [model.get_layer("stage1_block1_relu2").output, model.get_layer("stage2_block1_add").input[1]]
    probe = keras.Model(model.inputs, wanted)
    x, shortcut = probe.predict(np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32"), verbose=0)
    np.testing.assert_array_equal(shortcut[..., 2:6], x[:, ::2, ::2])
    assert not shortcut[..., :2].any() and not shortcut[..., 6:].any()


def test_odd_sizes():
    assert residual_network(8, width=4, input_shape=(7, 5, 1))(np.zeros((2, 7, 5, 1))).shape == (2, 10)


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_impossible_depths(depth):
    with pytest.raises(ValueError, match=r"6n \+ 2"):
        residual_network(depth)
