"""Lightweight and dynamic convolutions against their definition, written as loops, and against the authors' code."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from zoo.layers.lightweight_convolution import ConvolutionModule, DynamicConv1D, LightweightConv1D, weighted_sum

KINDS = {"lightweight": LightweightConv1D, "dynamic": DynamicConv1D}
DIM, HEADS = 8, 2
# Lengths below and above the number of taps, and of one block and several.
SIZES = [(1, 3), (4, 7), (9, 4), (16, 3), (40, 7), (70, 31)]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def make(kind, kernel_size, padding, dim=DIM, **arguments):
    layer = KINDS[kind](kernel_size, HEADS, padding=padding, **arguments)
    layer.build((None, None, dim))
    for weight in layer.weights:
        weight.assign(draw(*weight.shape, seed=5))
    return layer


def kernels(layer, inputs):
    """Returns the weights of every position `(batch, length, heads, taps)`, computed apart from the layer."""
    if isinstance(layer, LightweightConv1D):
        scores = np.broadcast_to(layer.kernel.numpy(), (*inputs.shape[:2], HEADS, layer.kernel_size))
    else:
        scores = (inputs @ layer.projection.kernel.numpy()).reshape(*inputs.shape[:2], HEADS, layer.kernel_size)
    exponentials = np.exp(scores.astype("float64"))
    return exponentials / exponentials.sum(-1, keepdims=True)


def band_matrices(weights, left):
    """Returns `(batch, heads, length, length)`: row i holds the weights of position i where its neighbours are."""
    batch, length, heads, taps = weights.shape
    bands = np.zeros((batch, heads, length, length))
    for i in range(length):
        for j in range(taps):
            if 0 <= i + j - left < length:
                bands[:, :, i, i + j - left] = weights[:, i, :, j]
    return bands


def by_bands(layer, inputs):
    left = layer.kernel_size - 1 if layer.padding == "causal" else layer.kernel_size // 2
    bands = band_matrices(kernels(layer, inputs), left)
    channels = np.split(inputs, HEADS, axis=-1)  # head h owns channels that lie side by side
    return np.concatenate([bands[:, head] @ channels[head] for head in range(HEADS)], axis=-1)


# === Oracles ===


@pytest.mark.parametrize("padding", ["same", "causal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "kernel_size"), SIZES)
def test_equals_multiplication_by_band_matrices(kind, padding, length, kernel_size):
    layer, inputs = make(kind, kernel_size, padding), draw(3, length, DIM)
    np.testing.assert_allclose(layer(inputs), by_bands(layer, inputs), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_lengths_give_the_same(kind):
    layer = make(kind, 7, "same")
    function = tf.function(layer, input_signature=[tf.TensorSpec((None, None, DIM))])
    for length in (1, 5, 16, 33):
        inputs = draw(2, length, DIM)
        np.testing.assert_allclose(function(inputs), layer(inputs), atol=1e-6)


def test_heads_own_channels_side_by_side():
    """A depthwise convolution with every row repeated; rows that alternate give something else."""
    layer, inputs = make("lightweight", 3, "causal", dim=4), draw(1, 6, 4)
    rows = kernels(layer, inputs)[0, 0]

    def depthwise(by_channel):
        padded = np.pad(inputs[0], ((2, 0), (0, 0)))
        return np.array([[padded[i : i + 3, c] @ by_channel[c] for c in range(4)] for i in range(6)])

    outputs = layer(inputs)[0]
    np.testing.assert_allclose(outputs, depthwise(rows[[0, 0, 1, 1]]), atol=1e-6)
    assert np.abs(outputs - depthwise(rows[[0, 1, 0, 1]])).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_input_stays_but_for_the_edges(kind):
    """Weights that fall outside are lost, not shared out: sums of the last t + 1 weights at the left edge."""
    layer, constant = make(kind, 7, "causal"), draw(DIM)
    inputs = np.tile(constant, (1, 20, 1))
    outputs = layer(inputs).numpy()[0]
    np.testing.assert_allclose(outputs[6:], inputs[0, 6:], atol=1e-6)
    for t in range(6):
        share = kernels(layer, inputs)[0, t, :, -(t + 1) :].sum(-1)
        np.testing.assert_allclose(outputs[t], constant * share.repeat(DIM // HEADS), atol=1e-6)
    centred = make(kind, 7, "same")(inputs).numpy()[0]
    np.testing.assert_allclose(centred[3:-3], inputs[0, 3:-3], atol=1e-6)
    assert np.abs(centred[:3] - inputs[0, :3]).max() > 1e-2


def test_kernels_of_zeros_average():
    inputs, results = draw(2, 12, DIM), []
    for kind in KINDS:
        layer = make(kind, 5, "causal")
        for weight in layer.weights:
            weight.assign(np.zeros(weight.shape))
        results.append(layer(inputs).numpy())
    padded = np.pad(inputs, ((0, 0), (4, 0), (0, 0)))
    average = sum(padded[:, j : j + 12] for j in range(5)) / 5
    np.testing.assert_allclose(results[0], average, atol=1e-6)
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)


def test_weighted_sum_of_one_position():
    weights, context = draw(2, 1, HEADS, 5), draw(2, 5, DIM)
    expected = np.einsum("bhk,bkhr->bhr", weights[:, 0], context.reshape(2, 5, HEADS, -1)).reshape(2, 1, DIM)
    np.testing.assert_allclose(weighted_sum(context, weights), expected, atol=1e-6)


# === Properties ===


def test_a_dynamic_kernel_depends_on_its_own_input_alone():
    layer, inputs = make("dynamic", 3, "same"), tf.constant(draw(1, 5, DIM))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        predicted = layer.normalized_kernel(inputs)
    jacobian = tape.jacobian(predicted, inputs).numpy()[0, :, :, :, 0]  # position, head, tap, position, channel
    for i in range(5):
        for j in range(5):
            assert (np.abs(jacobian[i, :, :, j]).max() == 0) == (i != j)


def test_lightweight_is_linear_and_dynamic_is_not():
    first, second = draw(1, 9, DIM), draw(1, 9, DIM, seed=1)
    differences = {}
    for kind in KINDS:
        layer = make(kind, 5, "same")
        differences[kind] = np.abs(layer(2 * first - 3 * second) - (2 * layer(first) - 3 * layer(second))).max()
    assert differences["lightweight"] < 1e-5
    assert differences["dynamic"] > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_causality_is_exact(kind):
    layer, inputs = make(kind, 5, "causal"), draw(1, 12, DIM)
    before = layer(inputs).numpy()
    for place in range(12):
        changed = inputs.copy()
        changed[0, place] += 1
        after = layer(changed).numpy()
        assert np.array_equal(after[:, :place], before[:, :place])
        assert not np.array_equal(after[:, place], before[:, place])
        assert np.array_equal(after[:, place + 5 :], before[:, place + 5 :])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [(1,) * 12, (3, 1, 8), (12,)])
def test_histories_continue_a_sequence(kind, steps):
    layer, inputs = make(kind, 5, "causal"), draw(2, 12, DIM)
    history, outputs = np.zeros((2, 4, DIM), "float32"), []
    for part in np.split(inputs, np.cumsum(steps)[:-1], axis=1):
        outputs.append(layer(part, history=history))
        history = layer.next_history(part, history)
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), layer(inputs), atol=1e-5)
    np.testing.assert_array_equal(history, inputs[:, -4:])


# === DropConnect ===


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_weights_give_the_output_on_average(kind):
    """Within 4 standard errors of 2000 masks; 48 numbers, so a right layer fails with a probability of 0.3 %."""
    layer, inputs = make(kind, 3, "causal", weight_dropout=0.3), draw(1, 6, DIM)
    many = np.tile(inputs, (2000, 1, 1))
    outputs = layer(many, training=True).numpy()
    error = outputs.std(0, ddof=1) / np.sqrt(2000)
    assert (np.abs(outputs.mean(0) - layer(inputs)[0]) <= 4 * error + 1e-6).all()
    assert (error > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masks_differ_by_place_head_and_sequence_and_are_not_normalised_away(kind):
    layer = make(kind, 7, "same", weight_dropout=0.5)
    sums = layer(np.ones((2, 30, DIM), "float32"), training=True).numpy()[:, 3:-3]
    assert np.ptp(sums[0, :, 0]) > 0.1  # weights left after dropping do not sum to one
    assert np.abs(sums[0] - sums[1]).max() > 0.1
    assert np.abs(sums[..., 0] - sums[..., -1]).max() > 0.1
    np.testing.assert_allclose(sums[..., 0], sums[..., DIM // HEADS - 1], atol=1e-6)  # of one head
    np.testing.assert_allclose(layer(np.ones((1, 30, DIM), "float32"))[:, 3:-3], 1, atol=1e-6)


# === The authors' code ===


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "lightweight_conv.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(5))
def test_parity_with_fairseq(golden, kind, case):
    """Also token by token, as fairseq decodes."""
    heads, taps, causal = (int(value) for value in golden[f"settings_{case}"])
    inputs, weight = golden[f"inputs_{case}"], golden[f"{kind}_weight_{case}"]
    layer = KINDS[kind](taps, heads, padding="causal" if causal else "same")
    layer.build(inputs.shape)
    layer.set_weights([weight if kind == "lightweight" else weight.T])
    np.testing.assert_allclose(layer(inputs), golden[f"{kind}_outputs_{case}"], atol=1e-5)
    if causal:
        history, outputs = np.zeros((len(inputs), taps - 1, inputs.shape[-1]), "float32"), []
        for step in np.split(inputs, inputs.shape[1], axis=1):
            outputs.append(layer(step, history=history))
            history = layer.next_history(step, history)
        np.testing.assert_allclose(np.concatenate(outputs, 1), golden[f"{kind}_steps_{case}"], atol=1e-5)


# === Initial weights ===


def test_initial_weights():
    light, dynamic = LightweightConv1D(31, 64), DynamicConv1D(31, 64)
    for layer in (light, dynamic):
        layer.build((None, None, 256))
    for weight, bound in ((light.kernel, np.sqrt(6 / (31 + 64 * 31))), (dynamic.projection.kernel, 1 / 16)):
        values = weight.numpy()
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.99 * bound
        assert abs(values.std() / (bound / np.sqrt(3)) - 1) < 0.05
    assert dynamic.projection.bias is None


# === The module ===


@pytest.mark.parametrize("glu", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_module_is_projection_gate_convolution_projection(kind, glu):
    module = ConvolutionModule(kind, 3, HEADS, padding="same", glu=glu)
    module.build((None, None, DIM))
    inputs, mask = draw(2, 7, DIM), np.array([[True] * 7, [True] * 4 + [False] * 3])
    hidden = inputs @ module.inner.kernel.numpy() + module.inner.bias.numpy()
    if glu:
        hidden = hidden[..., :DIM] / (1 + np.exp(-hidden[..., DIM:]))
    outputs = by_bands(module.convolution, hidden * mask[..., None]) @ module.outer.kernel.numpy()
    np.testing.assert_allclose(module(inputs, padding_mask=mask), outputs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_round_trip(kind):
    module = ConvolutionModule(
        kind, 5, 4, padding="causal", glu=False, input_dropout=0.1, weight_dropout=0.2, weight_softmax=False
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(module))
    assert again.get_config() == module.get_config()
    assert again.convolution.get_config() == module.convolution.get_config()


@pytest.mark.parametrize("kind", KINDS)
def test_without_softmax_kernels_are_used_as_they_are(kind):
    layer, inputs = make(kind, 3, "same", weight_softmax=False), draw(1, 5, DIM)
    raw = layer.kernel if kind == "lightweight" else ops.reshape(layer.projection(inputs), (1, 5, HEADS, 3))
    np.testing.assert_array_equal(layer.normalized_kernel(*([] if kind == "lightweight" else [inputs])), raw)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernel_size=0), "`kernel_size` must be positive. Received: 0"),
        (dict(num_heads=0), "`num_heads` must be positive"),
        (dict(padding="valid"), "`padding` must be one of .* Received: 'valid'"),
        (dict(weight_dropout=1.0), r"`weight_dropout` must be in \[0, 1\)"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**{"kernel_size": 3, "num_heads": 2, **arguments})


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_named(kind):
    with pytest.raises(ValueError, match=r"`num_heads` must be a divisor of the 7 channels\. Received: 2"):
        KINDS[kind](3, 2).build((None, None, 7))
    with pytest.raises(ValueError, match="`padding` must be 'causal' where there is a history"):
        make(kind, 3, "same")(draw(1, 4, DIM), history=draw(1, 2, DIM))
    with pytest.raises(ValueError, match="`conv_type` must be one of"):
        ConvolutionModule("heavy", 3, 2)
