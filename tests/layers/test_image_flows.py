"""What flows of images are made of: shapes, couplings of channels, chains."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.layers.couplings import AdditiveCoupling, AffineCoupling, SigmoidCoupling
from zoo.layers.image_flows import (
    ChannelCoupling,
    InvertibleChain,
    flatten_parts,
    require_squeezable,
    split_parts,
    squeeze,
    unsqueeze,
)


def image_of(channels=4, size=4, seed=0):
    return tf.random.normal((3, size, size, channels), seed=seed)


def coupling_of(layer, channels=2):
    outputs = channels if layer is AdditiveCoupling else 2 * channels
    return layer(keras.layers.Conv2D(outputs, 3, padding="same", kernel_initializer="random_normal"))


def randomize(layer):
    for variable in layer.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(0.0, 0.4, variable.shape))
    return layer


def jacobian_log_det(layer, image):
    """By one gradient: of each output in a copy of the image of its own."""
    size = int(np.prod(image.shape[1:]))
    copies = tf.repeat(image, size, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(copies)
        mapped = tf.reshape(layer(copies)[0], (-1, size))
        chosen = tf.reduce_sum(mapped * np.tile(np.eye(size, dtype=np.float32), (len(image), 1)))
    jacobian = tape.gradient(chosen, copies).numpy().reshape(-1, size, size)
    return np.linalg.slogdet(jacobian.astype(np.float64))[1]


# === Shapes ===


def test_squeezing_lists_pixels_row_by_row_each_with_its_channels():
    image = np.arange(2 * 4 * 2).reshape(1, 2, 4, 2).astype(np.float32)
    squeezed = squeeze(image).numpy()

    assert squeezed.shape == (1, 1, 2, 8)
    np.testing.assert_array_equal(
        squeezed[0, 0, 0], [*image[0, 0, 0], *image[0, 0, 1], *image[0, 1, 0], *image[0, 1, 1]]
    )
    np.testing.assert_array_equal(unsqueeze(squeezed), image)


def test_parts_come_back_from_flat_vectors():
    parts = [image_of(2, 4), image_of(3, 2, seed=1), image_of(1, 1, seed=2)]
    flat = flatten_parts(parts)

    assert flat.shape == (3, 32 + 12 + 1)
    for part, again in zip(parts, split_parts(flat, [part.shape[1:] for part in parts]), strict=True):
        np.testing.assert_array_equal(part, again)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8), "height, width and channels"),
        ((8, 8, 0), "height, width and channels"),
        ((8.0, 8, 1), "height, width and channels"),
        ((8, 6, 1), "of height and width divisible by 4, for 2 squeezes"),
        ((2, 8, 1), "of height and width divisible by 4, for 2 squeezes"),
    ],
)
def test_shapes_that_cannot_be_squeezed_are_refused(shape, message):
    with pytest.raises(ValueError, match=f"`image_shape` must be {message}.*Received: "):
        require_squeezable(shape, 2)


# === Invertible layers ===


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("layer", [AdditiveCoupling, AffineCoupling, SigmoidCoupling])
def test_channel_coupling(layer, swap):
    coupling = ChannelCoupling(coupling_of(layer), swap)
    image = image_of()
    coupling(image)
    randomize(coupling)
    mapped, log_det = coupling(image)
    kept, changed = (slice(2, 4), slice(0, 2)) if swap else (slice(0, 2), slice(2, 4))

    np.testing.assert_array_equal(mapped[..., kept], image[..., kept])
    assert np.abs(mapped[..., changed] - image[..., changed]).min() > 0
    np.testing.assert_allclose(log_det, jacobian_log_det(coupling, image), atol=1e-4)
    np.testing.assert_allclose(coupling.inverse(tf.identity(mapped)), image, atol=1e-5)


def test_channel_coupling_refuses_an_odd_number_of_channels():
    with pytest.raises(ValueError, match=r"even number of channels\. Received: input_shape=\(3, 4, 4, 3\)"):
        ChannelCoupling(coupling_of(AdditiveCoupling))(image_of(3))


def test_sigmoid_coupling_shifts_then_scales():
    """Raw scales come before shifts; at zero the scale is sigmoid(2)."""
    coupling = SigmoidCoupling(keras.layers.Conv2D(4, 1, kernel_initializer="zeros"))
    kept, changed = image_of(2), image_of(2, seed=1)
    np.testing.assert_allclose(coupling(kept, changed)[0], 0.880797 * changed, rtol=1e-5)
    coupling.conditioner.bias.assign([0.5, -1.0, 2.0, 3.0])

    scale = 1 / (1 + np.exp([-2.5, -1.0]))
    mapped, log_det = coupling(kept, changed)
    np.testing.assert_allclose(mapped, (changed + np.array([2.0, 3.0], np.float32)) * scale, rtol=1e-5)
    np.testing.assert_allclose(log_det, 16 * np.log(scale).sum(), rtol=1e-5)


def test_sigmoid_coupling_bounds_its_scale():
    coupling = SigmoidCoupling(keras.layers.Conv2D(4, 1, kernel_initializer="zeros"))
    kept, changed = image_of(2), image_of(2, seed=1)
    coupling(kept, changed)
    coupling.conditioner.bias.assign([-500.0, 500.0, 0.0, 0.0])
    mapped, log_det = coupling(kept, changed)

    scale = np.array([1 / (1 + np.exp(4.0)), 1.0])
    np.testing.assert_allclose(mapped, changed * scale, rtol=1e-5)
    np.testing.assert_allclose(log_det, 16 * np.log(scale).sum(), rtol=1e-5)
    np.testing.assert_allclose(coupling.inverse(kept, mapped), changed, atol=1e-5)


def test_chain_adds_up_and_undoes_in_reverse():
    chain = InvertibleChain([ChannelCoupling(coupling_of(AffineCoupling), swap) for swap in (False, True)])
    image = image_of()
    chain(image)
    randomize(chain)
    mapped, log_det = chain(image)

    np.testing.assert_allclose(log_det, jacobian_log_det(chain, image), atol=1e-4)
    np.testing.assert_allclose(chain.inverse(tf.identity(mapped)), image, atol=1e-5)


def test_layers_are_serialisable():
    chain = InvertibleChain([ChannelCoupling(coupling_of(SigmoidCoupling), True)])
    image = image_of()
    chain(image)
    copy = InvertibleChain.from_config(chain.get_config())
    copy(image)
    copy.set_weights(randomize(chain).get_weights())

    np.testing.assert_array_equal(copy(image)[0], chain(image)[0])
    assert copy.layers[0].swap
