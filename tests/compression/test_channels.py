"""Dead channels: the smaller dense model computes the same, and what cannot be made smaller is named."""

import keras
import numpy as np
import pytest

import zoo
from zoo.compression.channels import materialize_channels, remaining_parameters
from zoo.compression.compressed import find_targets, strip
from zoo.compression.pruning_networks import multilayer_perceptron, wide_residual_network
from zoo.compression.signal_propagation_pruning import (
    FixedMaskStage,
    choose_masks,
    connection_sensitivity,
    prune_at_initialization,
    sculpt,
)

layers = keras.layers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def built(*chain, shape=(8, 8, 3)):
    """A Sequential model whose biases and statistics are not those of the start."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), *chain])
    rng = np.random.default_rng(2)
    for variable in model.variables:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(0.3 * rng.normal(size=variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(0.5 + rng.random(variable.shape))
    return model


def kill(layer, channels):
    """Zeros the kernel, not the bias, of some channels."""
    kernel = np.array(layer.kernel)
    kernel[..., channels] = 0
    layer.kernel.assign(kernel)


def inputs_of(model, size=5):
    return np.random.default_rng(0).normal(size=(size, *model.inputs[0].shape[1:])).astype("float32")


def check_same(model, small):
    x = inputs_of(small)
    wanted = model.predict(x, verbose=0)
    np.testing.assert_allclose(small.predict(x, verbose=0), wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


CHAINS = {
    "dense": lambda: built(layers.Dense(16, "tanh"), layers.Dense(12, "relu"), layers.Dense(4), shape=(10,)),
    "convolutions without padding": lambda: built(
        layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(2), layers.Conv2D(6, 2), layers.Flatten(),
        layers.Dense(7, "sigmoid"), layers.Dense(4),
    ),
    "normalisation and global pooling": lambda: built(
        layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(6, 3, 2),
        layers.BatchNormalization(scale=False), layers.LeakyReLU(), layers.GlobalAveragePooling2D(), layers.Dropout(0.5),
        layers.Dense(9), layers.BatchNormalization(center=False), layers.Activation("tanh"), layers.Dense(4),
    ),
    "rescaled, averaged, a last activation": lambda: built(
        layers.Rescaling(2.0, -0.5), layers.Conv2D(8, 3, activation="elu"), layers.Rescaling(0.5, 0.1),
        layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(4, "softmax"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_outputs_stay_whatever_biases_dead_channels_have(name):
    model = CHAINS[name]()
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    for layer in kernels[:-1]:
        kill(layer, [0, 2, 5])
    before = [np.array(variable) for variable in model.variables]

    small = materialize_channels(model)

    check_same(model, small)
    for layer in kernels[:-1]:
        assert small.get_layer(layer.name).kernel.shape[-1] == layer.kernel.shape[-1] - 3
    assert small.get_layer(kernels[-1].name).kernel.shape[-1] == 4
    assert small.count_params() < model.count_params()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_the_last_layer_keeps_dead_outputs():
    model = CHAINS["dense"]()
    kill(model.layers[-1], [1, 3])

    small = materialize_channels(model)

    assert small.output.shape == (None, 4)
    check_same(model, small)


def test_a_layer_without_bias_gets_one_where_constants_come_in():
    model = built(layers.Dense(8, "sigmoid"), layers.Dense(6, use_bias=False), layers.Dense(4), shape=(10,))
    kill(model.layers[0], [1, 2])

    small = materialize_channels(model)

    assert small.layers[2].use_bias and small.layers[2].kernel.shape == (6, 6)
    check_same(model, small)
    zero = built(layers.Dense(8, "tanh", use_bias=False), layers.Dense(6, use_bias=False), shape=(10,))
    kill(zero.layers[0], [1, 2])
    assert not materialize_channels(zero).layers[2].use_bias


def test_a_layer_fed_by_dead_channels_alone_dies_too():
    model = built(layers.Dense(4, "tanh"), layers.Dense(6, "tanh"), layers.Dense(3), shape=(5,))
    kill(model.layers[0], [1])
    kernel = np.zeros((4, 6))
    kernel[1], kernel[:, :2] = 1.0, 1.0  # channels 2 to 5 see nothing but the dead one
    model.layers[1].kernel.assign(kernel)

    small = materialize_channels(model)

    assert small.layers[2].kernel.shape == (3, 2)
    check_same(model, small)


def test_padding_with_zeros_needs_dead_channels_of_zero():
    def model(bias):
        chain = built(layers.Conv2D(6, 3, padding="same", activation="relu"), layers.Conv2D(4, 3, padding="same"))
        kill(chain.layers[0], [1, 2])
        chain.layers[0].bias.assign(np.full(6, bias))
        return chain

    zero = model(-0.5)  # which ReLU takes to zero
    check_same(zero, materialize_channels(zero))
    with pytest.raises(ValueError, match=r"pads its input with zeros.*Received: constants up to 0\.5"):
        materialize_channels(model(0.5))


# === Models that were pruned ===


def examples(model, classes=10, size=100):
    return inputs_of(model, size), np.random.default_rng(1).integers(0, classes, size)


def convolutional():
    keras.utils.set_random_seed(0)
    image = x = keras.Input((10, 10, 1), name="image")
    for index, filters in enumerate((8, 16), start=1):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{index}")(x)
        x = layers.ReLU(name=f"relu_{index}")(layers.BatchNormalization(name=f"norm_{index}")(x))
        x = layers.MaxPooling2D(2, name=f"pool_{index}")(x)
    x = layers.Dense(32, "relu", name="dense")(layers.Flatten(name="flatten")(x))
    return keras.Model(image, layers.Dense(10, name="logits")(x))


PRUNED = {
    "perceptron": lambda: multilayer_perceptron((64, 32), "tanh", 10, (8, 8, 1), "he", pixel_mean=0.2),
    "convolutional": convolutional,
}


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_channels_leave_a_smaller_network_before_training_and_after(name):
    model = PRUNED[name]()
    data = examples(model)
    sparse = prune_at_initialization(model, data, 0.6, scope="channel", minimum=2)
    masks = sparse.stage(FixedMaskStage).masks
    small = materialize_channels(sparse)
    check_same(sparse, small)
    kept = sum(np.prod(t.shape) for t in find_targets(small) if t.kind in ("kernel", "bias"))
    assert kept == remaining_parameters(model, masks) < 0.45 * sum(mask.size for mask in masks.values())

    if name == "perceptron":  # trained normalisation shifts the dead channels, which a padded convolution refuses
        sparse.compile("adam", CROSS_ENTROPY)
        sparse.fit(*data, epochs=2, verbose=0)
        check_same(sparse, materialize_channels(sparse))
        check_same(strip(sparse), materialize_channels(model))


def test_the_smaller_model_trains_saves_and_loads(tmp_path):
    model = PRUNED["convolutional"]()
    data = examples(model)
    small = materialize_channels(prune_at_initialization(model, data, 0.6, scope="channel", minimum=2))
    small.compile("adam", CROSS_ENTROPY)
    losses = small.fit(*data, epochs=4, verbose=0).history["loss"]

    small.save(tmp_path / "small.keras")

    assert losses[-1] < losses[0]
    loaded = zoo.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded.predict(data[0], verbose=0), small.predict(data[0], verbose=0))


@pytest.mark.parametrize("budget", [400, 1500])
@pytest.mark.parametrize("name", PRUNED)
def test_sculpt_meets_a_budget_in_channels(name, budget):
    model = PRUNED[name]()

    sparse = sculpt(model, examples(model), budget, scope="channel", minimum=1)

    small = materialize_channels(sparse)
    found = sum(int(np.prod(t.shape)) for t in find_targets(small) if t.kind in ("kernel", "bias"))
    # The next channel, at most the first layer's inputs and the outputs of the next, would be too much
    largest = max(t.shape[0] + t.shape[-1] for t in find_targets(model) if t.kind == "kernel")
    assert budget - 2 * largest <= found <= budget
    check_same(sparse, small)


def test_masks_alone_tell_what_remains():
    model = PRUNED["perceptron"]()
    scores = connection_sensitivity(model, examples(model))
    everything = {path: np.ones(score.shape, bool) for path, score in scores.items()}

    assert remaining_parameters(model, everything) == 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10
    masks = choose_masks(scores, 0.5, "channel", keep=["logits/*"])
    first, second = (int(masks[f"dense_{index}/kernel"].any(0).sum()) for index in (1, 2))
    wanted = 64 * first + first + first * second + second + second * 10 + 10
    assert remaining_parameters(model, masks) == wanted


# === What cannot be made smaller ===


def shared():
    layer = layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    return keras.Model(inputs, layer(layer(inputs)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    return model


def with_dead(model, index=0):
    kill(model.layers[index], [0])
    return model


BAD = {
    "a skip": (
        lambda: wide_residual_network(10, 1, 10, (8, 8, 3), "he"), r"`model` must be a chain of layers: .*Received: inputs"
    ),
    "a layer used twice": (shared, r"`model` must be a chain of layers.*Received: inputs"),
    "a class of its own": (subclassed, "`model` must be Sequential or functional. Received: Subclassed"),
    "no kernel": (lambda: built(layers.Flatten()), "`model` must have a dense or convolutional layer. Received: "),
    "a layer that mixes channels": (
        lambda: built(layers.Dense(6, name="a"), layers.LayerNormalization(name="mixes"), layers.Dense(2), shape=(4,)),
        "cannot be taken out before 'mixes'. Received: a LayerNormalization",
    ),
    "groups": (
        lambda: built(layers.Conv2D(8, 1), layers.Conv2D(8, 3, groups=2, name="grouped"), layers.Flatten(), layers.Dense(2)),
        "cannot be taken out of groups. Received: 'grouped', groups=2",
    ),
    "a softmax inside": (
        lambda: with_dead(built(layers.Dense(6, "softmax", name="mixes"), layers.Dense(2), shape=(4,))),
        "cannot be taken out before a softmax. Received: 'mixes'",
    ),
    "a softmax of its own": (
        lambda: with_dead(built(layers.Dense(6), layers.Activation("softmax", name="m"), layers.Dense(2), shape=(4,))),
        "cannot be taken out before 'm'. Received: a Activation",
    ),
    "nothing left": (
        lambda: cut(built(layers.Dense(6, name="empty"), layers.Dense(2), shape=(4,))),
        "No channel is left in 'empty'. Received: a kernel of zeros",
    ),
    "another axis": (
        lambda: built(layers.Conv2D(6, 3), layers.BatchNormalization(axis=1, name="rows"), layers.Flatten(), layers.Dense(2)),
        "'rows' must normalise the last axis. Received: axis=1",
    ),
}  # fmt: skip


def cut(model):
    kill(model.layers[0], slice(None))
    return model


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_made_smaller_is_named(kind):
    make, message = BAD[kind]
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        materialize_channels(make())


def test_layers_that_other_models_use_too():
    model = CHAINS["dense"]()
    kill(model.layers[0], [3])
    keras.Model(model.inputs, layers.Dense(2)(model.layers[0](model.inputs[0])))

    check_same(model, materialize_channels(model))
