"""Mixout and the decay towards a reference, on Keras 3 models of every kind."""

import functools
import itertools
import logging
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.experiments import mixout as experiment
from zoo.experiments.report import Ledger
from zoo.export import export_model
from zoo.export.signatures import model_signatures
from zoo.sequence.tokenizer import load_tokenizer
from zoo.training import Mixout, ReferenceDecay
from zoo.training import mixout as module
from zoo.training.mixout import MixoutClassifier, draw_mask, mix, neuron_axes

layers = keras.layers


# === Models ===


def perceptron(dtype="float32"):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,), dtype=dtype),
            layers.Dense(8, activation="tanh", name="first", dtype=dtype),
            layers.Dense(4, name="second", dtype=dtype),
        ]
    )


def convolutional():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Conv2D(8, 3, padding="same", groups=2, activation="relu", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x) + layers.SeparableConv2D(8, 3, name="separable")(x)
    x = layers.Conv2DTranspose(6, 3, name="transposed")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D()(x)))


def attentive():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(2, 3, name="attention")(inputs, layers.LayerNormalization(name="norm")(inputs))
    x = layers.EinsumDense("abc,cde->abde", (5, 2, 4), name="einsum")(x)
    return keras.Model(inputs, layers.Dense(3, name="last")(layers.Flatten()(x)))


def recurrent():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 6))
    x = layers.LSTM(5, return_sequences=True, dropout=0.5, recurrent_dropout=0.5, name="lstm")(inputs)
    x = layers.TimeDistributed(layers.Dense(4, name="each"), name="repeated")(x)
    x = layers.Bidirectional(layers.GRU(3, name="gru"), name="both")(x)
    return keras.Model(inputs, layers.Dense(2, name="last")(x))


@keras.saving.register_keras_serializable("test_mixout")
class Subclassed(keras.Model):
    """An embedding, a nested model, and a kernel that is read without its layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embedding = layers.Embedding(11, 6, name="embedding")
        self.nested = keras.Sequential([layers.Dense(6, activation="relu", name="inner")], name="nested")
        self.borrowed = layers.Dense(5, name="borrowed")

    def build(self, input_shape=None):
        self.embedding.build((None, None))
        self.nested.build((None, 6))
        self.borrowed.build((None, 6))

    def call(self, inputs, training=False):
        x = keras.ops.mean(self.embedding(inputs), axis=1)
        return keras.ops.matmul(self.nested(x), self.borrowed.kernel)

    def get_config(self):
        return {"name": self.name}


def subclassed():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(np.zeros((1, 4), "int32"))
    return model


MODELS = {
    "perceptron": perceptron, "convolutional": convolutional, "attentive": attentive, "recurrent": recurrent,
    "subclassed": subclassed,
}  # fmt: skip


def data(model, size=32):
    rng = np.random.default_rng(0)
    if isinstance(model, Subclassed):
        return rng.integers(0, 11, (size, 4)).astype("int32"), rng.integers(0, 5, size)
    shape = model.inputs[0].shape[1:]
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, model.outputs[0].shape[-1], size)


def move(model, scale=0.3, seed=1):
    """Moves all trainable weights away from where they are."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(variable.numpy() + scale * rng.normal(size=variable.shape))


def moved(make, *arguments, **options):
    """Returns a model and its wrapper with a reference that its weights have moved away from."""
    model = make()
    wrapper = Mixout(model, *arguments, **options)
    move(model)
    return model, wrapper


def rewind(wrapper, state=0):
    """Lets a model draw the same masks again."""
    wrapper.stages[0].seed_generator.state.assign([7, state])


def drawn(wrapper, x):
    """Runs a training pass; returns its output and the mixed weights by path."""
    with wrapper.applied(training=True) as scope:
        output = wrapper.model(x, training=True)
        weights = wrapper._choice.weights
        return keras.tree.map_structure(np.array, output), {
            w.path: np.array(scope.get_current_value(w.variable)) for w in weights
        }


def mask_of(wrapper, path, value):
    """Returns the mask that a mixed weight was made with, as numbers that should be 0 or 1."""
    weight = next(w for w in wrapper._choice.weights if w.path == path).variable.numpy()
    reference = wrapper.reference()[path]
    return (value - reference) / (weight - reference) * (1 - wrapper.probability)


def all_masks(count):
    return np.array(list(itertools.product([0, 1], repeat=count)), bool)


def chance(mask, probability):
    kept = mask.sum()
    return (1 - probability) ** kept * probability ** (mask.size - kept)


# === The formula (paper, equation 5) ===


def test_the_mean_over_all_masks_is_the_weight():
    rng, p = np.random.default_rng(0), 0.7
    w, u = rng.normal(size=(2, 6, 3))
    mean = sum(chance(m, p) * mix(u, w - u, tf.constant(m[:, None]), p).numpy() for m in all_masks(6))
    np.testing.assert_allclose(mean, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("granularity", ["neuron", "weight"])
def test_the_mean_over_drawn_masks_is_the_weight(granularity):
    # 48 entries within 4 s.e. of a binomial mean: one false alarm in 300 fixed seeds
    rng, p, draws = np.random.default_rng(0), 0.7, 20_000
    w, u = rng.normal(size=(2, 6, 8)).astype("float32")
    shape = (6, 1) if granularity == "neuron" else (6, 8)
    seeds = tf.stack([tf.fill([draws], 3), tf.range(draws)], axis=1)
    mixed = tf.vectorized_map(lambda seed: mix(u, w - u, draw_mask(shape, seed, p), p), seeds).numpy()
    error = np.sqrt(p / (1 - p) * (w - u) ** 2 / draws)
    assert (np.abs(mixed.mean(axis=0, dtype="float64") - w) < 4 * error).all()
    np.testing.assert_allclose(mixed.std(axis=0), np.sqrt(p / (1 - p)) * np.abs(w - u), rtol=0.05)


def test_the_mean_loss_is_penalised_by_curvature():
    rng, p, m = np.random.default_rng(1), 0.7, 2.5
    w, u = rng.normal(size=(2, 6))
    mean = sum(
        chance(mask, p) * 0.5 * m * np.sum(mix(u, w - u, tf.constant(mask), p).numpy() ** 2) for mask in all_masks(6)
    )
    wanted = 0.5 * m * np.sum(w**2) + m * p / (2 * (1 - p)) * np.sum((w - u) ** 2)
    assert abs(mean - wanted) < 1e-10


def test_towards_zero_it_is_dropout():
    model, wrapper = moved(perceptron, 0.6, "zeros", include=["second"], seed=3)
    x = np.random.default_rng(0).normal(size=(1, 6)).astype("float32")
    found, mixed = drawn(wrapper, x)
    first, second = model.layers
    mask = np.any(mixed["second/kernel"] != 0, axis=1)
    assert 0 < mask.sum() < 8
    dropped = first(x).numpy() * mask / (1 - 0.6)
    wanted = dropped @ second.kernel.numpy() + second.bias.numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_the_gradient_is_the_formulas_and_has_its_factor():
    p, make = 0.6, functools.partial(perceptron, "float64")
    model, wrapper = moved(make, p, seed=3)
    x, _ = data(model, 5)
    first, second = (layer.kernel for layer in model.layers)

    def loss():
        rewind(wrapper)
        return tf.reduce_sum(tf.sin(wrapper(x, training=True)))

    with tf.GradientTape() as tape:
        value = loss()
    found = [gradient.numpy() for gradient in tape.gradient(value, [first, second])]

    rewind(wrapper)
    _, mixed = drawn(wrapper, x)
    plain, phis = make(), [mixed["first/kernel"], mixed["second/kernel"]]
    plain.set_weights([phis[0], model.layers[0].bias.numpy(), phis[1], model.layers[1].bias.numpy()])
    kernels = [layer.kernel for layer in plain.layers]
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.sin(plain(x)))
    of_mixed = [gradient.numpy() for gradient in tape.gradient(value, kernels)]
    for path, gradient, inner in zip(mixed, found, of_mixed, strict=True):
        mask = np.round(mask_of(wrapper, path, mixed[path]))
        assert 0 < mask.mean() < 1 and (gradient[mask == 0] == 0).all()
        np.testing.assert_allclose(gradient, inner * mask / (1 - p), rtol=1e-12, atol=1e-14)
        assert not np.allclose(gradient, inner * mask, rtol=1e-2, atol=1e-3)

    # Finite differences of the whole pass, in kept and masked neurons of the second layer
    for row in range(8):
        before, step = second.numpy(), np.zeros((8, 4))
        step[row, 1] = 1e-6
        second.assign(before + step)
        above = float(loss())
        second.assign(before - step)
        below = float(loss())
        second.assign(before)
        assert abs((above - below) / 2e-6 - found[1][row, 1]) < 1e-8


def test_the_reference_gets_no_gradient():
    _, wrapper = moved(perceptron, 0.5)
    values = wrapper.stages[0].values
    with tf.GradientTape() as tape:
        for value in values:
            tape.watch(value.value)
        loss = tf.reduce_sum(wrapper(np.ones((2, 6)), training=True))
    assert tape.gradient(loss, [value.value for value in values]) == [None, None]


@pytest.mark.parametrize(
    ("kind", "probability"),
    [*(("perceptron", p) for p in (0.0, 0.3, 0.9, 1.0)), ("attentive", 0.9), ("recurrent", 0.9), ("subclassed", 0.9)],
)
def test_at_the_reference_training_computes_as_evaluation(kind, probability):
    model = MODELS[kind]()
    wrapper, (x, _) = Mixout(model, probability), data(model)
    np.testing.assert_allclose(wrapper(x, training=True), model(x), rtol=0, atol=1e-6)


def test_probability_one_is_the_reference_and_learns_nothing():
    model = perceptron()
    x, _ = data(model)
    wrapper = Mixout(model, 1.0)
    move(model)
    reference = wrapper.reference()
    hidden = np.tanh(x @ reference["first/kernel"] + model.layers[0].bias.numpy())
    wanted = hidden @ reference["second/kernel"] + model.layers[1].bias.numpy()
    np.testing.assert_allclose(wrapper(x, training=True), wanted, atol=1e-5)
    kernels = [layer.kernel.numpy() for layer in model.layers]
    wrapper.compile("sgd", "mse", jit_compile=False)
    wrapper.fit(x, wanted, verbose=0)
    for layer, kernel in zip(model.layers, kernels, strict=True):
        np.testing.assert_array_equal(layer.kernel, kernel)


def test_probability_zero_mixes_nothing():
    model, wrapper = moved(perceptron, 0.0)
    x, _ = data(model)
    np.testing.assert_array_equal(wrapper(x, training=True), model(x))


# === Masks ===

# By kind of model, for each mixed kernel: the axes along which its mask varies
MASK_AXES = {
    "perceptron": {"first/kernel": (0,), "second/kernel": (0,)},
    "convolutional": {
        "conv/kernel": (2,),
        "depthwise/kernel": (2,),
        "separable/depthwise_kernel": (2,),
        "separable/pointwise_kernel": (2,),
        "transposed/kernel": (3,),
        "logits/kernel": (0,),
    },
    "attentive": {
        "attention/query/kernel": (0,),
        "attention/key/kernel": (0,),
        "attention/value/kernel": (0,),
        "attention/attention_output/kernel": (0, 1),
        "einsum/kernel": (0,),
        "last/kernel": (0,),
    },
    "recurrent": {
        "lstm/lstm_cell/kernel": (0,),
        "lstm/lstm_cell/recurrent_kernel": (0,),
        "repeated/each/kernel": (0,),
        "both/forward_gru/gru_cell/kernel": (0,),
        "both/forward_gru/gru_cell/recurrent_kernel": (0,),
        "both/backward_gru/gru_cell/kernel": (0,),
        "both/backward_gru/gru_cell/recurrent_kernel": (0,),
        "last/kernel": (0,),
    },
    "subclassed": {"nested/inner/kernel": (0,), "borrowed/kernel": (0,)},
}


@pytest.mark.parametrize("kind", MODELS)
def test_weights_that_lead_out_of_a_neuron_share_an_entry(kind):
    model, wrapper = moved(MODELS[kind], 0.5, seed=1)
    _, mixed = drawn(wrapper, data(model)[0])
    assert set(mixed) == set(MASK_AXES[kind]) | ({"grouped/kernel"} if kind == "convolutional" else set())
    both = np.zeros(2)
    for path, axes in MASK_AXES[kind].items():
        mask = mask_of(wrapper, path, mixed[path])
        np.testing.assert_allclose(mask, np.round(mask), atol=1e-3)
        others = tuple(axis for axis in range(mask.ndim) if axis not in axes)
        shared = mask.mean(axis=others)
        np.testing.assert_allclose(shared, np.round(shared), atol=1e-3)
        both += [np.sum(shared < 0.5), np.sum(shared > 0.5)]
    assert (both > 0).all()


def test_groups_of_a_convolution_have_neurons_of_their_own():
    _, wrapper = moved(convolutional, 0.5, seed=2)
    _, mixed = drawn(wrapper, data(wrapper.model)[0])
    mask = np.round(mask_of(wrapper, "grouped/kernel", mixed["grouped/kernel"]))
    assert mask.shape == (3, 3, 4, 8)
    neurons = mask[0, 0].reshape(4, 2, 4)
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[0, 0], mask.shape))
    np.testing.assert_array_equal(neurons, np.broadcast_to(neurons[:, :, :1], neurons.shape))
    assert not np.array_equal(neurons[:, 0, 0], neurons[:, 1, 0])


def test_an_einsum_letter_in_input_and_output_is_an_input_too():
    layer = layers.EinsumDense("abc,bcd->abd", (3, 4))
    layer.build((None, 3, 5))
    assert neuron_axes(layer, "kernel", 3) == (0, 1)
    ellipsis = layers.EinsumDense("...x,xy->...y", (4,))
    ellipsis.build((None, 3, 5))
    assert neuron_axes(ellipsis, "kernel", 2) == (0,)


@pytest.mark.parametrize("kind", MODELS)
def test_a_training_pass_runs_the_plain_model_with_mixed_weights(kind):
    # So one mask is shared by the batch and, in recurrent layers, by all time steps
    model, wrapper = moved(MODELS[kind], 0.5, seed=4)
    x = data(model)[0]
    found, mixed = drawn(wrapper, x)
    oracle = MODELS[kind]()
    oracle.set_weights(model.get_weights())
    names = {w.path: index for index, w in enumerate(wrapper._choice.weights)}
    variables = [w.variable for w in Mixout(oracle, 0.5)._choice.weights]
    for path, index in names.items():
        variables[index].assign(mixed[path])
    for layer in oracle._flatten_layers():
        for name in ("dropout", "recurrent_dropout"):
            if isinstance(layer, layers.LSTMCell):
                setattr(layer, name, 0.0)
    np.testing.assert_allclose(found, oracle(x, training=True), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, model(x), atol=1e-3)


def test_weights_are_masked_one_by_one_on_request():
    _, wrapper = moved(perceptron, 0.5, granularity="weight", seed=1)
    _, mixed = drawn(wrapper, data(wrapper.model)[0])
    mask = np.round(mask_of(wrapper, "first/kernel", mixed["first/kernel"]))
    assert not np.array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))


def test_successive_passes_draw_other_masks_and_a_seed_repeats_them():
    x = data(perceptron())[0]

    def passes():
        _, wrapper = moved(perceptron, 0.5, seed=5)
        return [wrapper(x, training=True).numpy() for _ in range(2)]

    (first, second), again = passes(), passes()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])


def test_a_layer_that_is_called_again_draws_again():
    keras.utils.set_random_seed(0)
    inputs, shared = keras.Input((6,)), layers.Dense(6, use_bias=False, name="shared")
    first = shared(inputs)
    model = keras.Model(inputs, [first, shared(inputs), shared(inputs)])
    wrapper = Mixout(model, 0.5, seed=0)
    move(model)
    found = [output.numpy() for output in wrapper(np.eye(6, dtype="float32"), training=True)]
    masks = [np.round(mask_of(wrapper, "shared/kernel", kernel)) for kernel in found]
    for mask in masks:
        np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    assert len({mask[:, 0].tobytes() for mask in masks}) == 3


def test_masks_of_layers_are_independent():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((40,))
    model = keras.Model(inputs, [layers.Dense(2, name=f"dense_{i}")(inputs) for i in range(2)])
    wrapper = Mixout(model, 0.5, seed=0)
    move(model)
    _, mixed = drawn(wrapper, np.ones((1, 40), "float32"))
    masks = [np.round(mask_of(wrapper, path, value))[:, 0] for path, value in mixed.items()]
    assert 5 < np.sum(masks[0] != masks[1]) < 35


def test_repeated_layers_keep_their_mask_over_time():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6)), layers.TimeDistributed(layers.Dense(6, use_bias=False, name="each"), name="repeated")]
    )
    wrapper = Mixout(model, 0.5, seed=0)
    move(model)
    identity = np.eye(6, dtype="float32")[None]
    kernel = wrapper(identity, training=True).numpy()[0]
    # Every step has read another row, and all of them one draw
    mask = np.round(mask_of(wrapper, "repeated/each/kernel", kernel))
    np.testing.assert_array_equal(mask, np.broadcast_to(mask[:, :1], mask.shape))
    same = wrapper(np.ones((1, 6, 6), "float32"), training=True).numpy()[0]
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), rtol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_pass_leaves_the_weights_as_they_are(kind):
    model, wrapper = moved(MODELS[kind], 0.5)
    before = [variable.numpy() for variable in model.trainable_variables]
    wrapper(data(model)[0], training=True)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


# === What takes part ===


def test_embeddings_and_biases_are_mixed_on_request():
    _, wrapper = moved(subclassed, 0.5, embeddings=True, bias=True, seed=1)
    _, mixed = drawn(wrapper, data(wrapper.model)[0])
    rows = np.round(mask_of(wrapper, "embedding/embeddings", mixed["embedding/embeddings"]))
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))
    elements = np.round(mask_of(wrapper, "nested/inner/bias", mixed["nested/inner/bias"]))
    assert set(np.unique(rows)) == set(np.unique(elements)) == {0, 1}
    assert list(wrapper.passed_through) == []


def test_the_rest_is_listed_with_its_reason():
    _, wrapper = moved(subclassed, exclude=["^nested"])
    assert wrapper.mixed == ["borrowed/kernel"]
    assert wrapper.passed_through == {
        "embedding/embeddings": "an embedding: see `embeddings`",
        "nested/inner/kernel": "left out by the patterns",
        "nested/inner/bias": "left out by the patterns",
        "borrowed/bias": "a bias: see `bias`",
    }


@keras.saving.register_keras_serializable("test_mixout")
class Own(layers.Layer):
    """A layer with a kernel of its own layout."""

    def build(self, input_shape):
        self.table = self.add_weight(name="table", shape=(3, input_shape[-1]))

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.table))


def test_unknown_layouts_pass_through_and_are_said(caplog):
    keras.utils.set_random_seed(0)
    wrapped = layers.SpectralNormalization(layers.Dense(4, name="inner"), name="spectral")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="dense"), wrapped, Own(name="own")])
    with caplog.at_level(logging.WARNING):
        wrapper = Mixout(model, 0.9)
    assert wrapper.mixed == ["dense/kernel"]
    assert wrapper.passed_through["own/table"] == module.UNKNOWN
    assert wrapper.passed_through["spectral/inner/kernel"] == module.UNKNOWN
    assert "own/table" in caplog.text and "dense" not in caplog.text


def test_nothing_is_said_where_all_layouts_are_known(caplog):
    Mixout(convolutional(), 0.9)
    assert not caplog.records


def test_dropout_goes_where_mixout_comes():
    def make():
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        dropouts = [layers.Dropout(0.5, name="drop_0"), layers.SpatialDropout1D(0.5, name="drop_1")]
        return keras.Sequential([keras.Input((5, 6)), *dropouts, layers.Dense(3, name="dense")])

    x = np.ones((2, 5, 6), "float32")
    model = make()
    wrapper = Mixout(model, 0.5)
    np.testing.assert_allclose(wrapper(x, training=True), model(x), atol=1e-6)
    assert [layer.rate for layer in model.layers[:2]] == [0.5, 0.5], "the model itself keeps its dropout"
    kept = Mixout(make(), 0.5, keep_dropout=True)
    assert not np.allclose(kept(x, training=True), kept(x), atol=1e-3)
    excluded = Mixout(make(), 0.5, exclude=["drop_0"])
    assert not np.allclose(excluded(x, training=True), excluded(x), atol=1e-3)


# === A Keras model as before ===


@pytest.mark.parametrize("kind", MODELS)
def test_a_wrapped_model_is_the_model_as_before(kind):
    model = MODELS[kind]()
    x, y = data(model)
    names, wanted = [v.path for v in model.trainable_variables], model.predict(x, verbose=0)
    wrapper = Mixout(model, 0.5, seed=0)
    assert [v.path for v in wrapper.trainable_variables] == names
    np.testing.assert_array_equal(wrapper.predict(x, verbose=0), wanted)
    move(model, 0.02)
    np.testing.assert_array_equal(wrapper(x, training=False), model(x, training=False))

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapper.compile(keras.optimizers.Adam(1e-2), loss, metrics=["accuracy"], jit_compile=False)
    losses = wrapper.fit(x, y, epochs=30, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    stripped = wrapper.strip()
    assert stripped is model and [v.path for v in stripped.trainable_variables] == names
    np.testing.assert_array_equal(stripped.predict(x, verbose=0), wrapper.predict(x, verbose=0))


def own_config(wrapper):
    return {name: value for name, value in wrapper.get_config().items() if name != "model"}


@pytest.mark.parametrize("kind", MODELS)
def test_files_keep_weights_and_reference(kind, tmp_path):
    model, wrapper = moved(
        MODELS[kind], 0.7, seed=4, exclude=["nothing|last|second|logits"] if kind != "subclassed" else ()
    )
    x, _ = data(model)
    wrapper.save(tmp_path / "model.keras")
    loaded = zoo.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, Mixout) and own_config(loaded) == own_config(wrapper)
    assert loaded.mixed == wrapper.mixed
    for path, value in wrapper.reference().items():
        np.testing.assert_array_equal(loaded.reference()[path], value)
    np.testing.assert_array_equal(loaded(x), wrapper(x))
    for each in (wrapper, loaded):
        rewind(each)
    np.testing.assert_array_equal(loaded(x, training=True), wrapper(x, training=True))


def test_the_reference_can_be_given_and_changed():
    model = perceptron()
    values = {"first/kernel": np.full((6, 8), 2.0), "second/kernel": np.full((8, 4), 3.0)}
    wrapper = Mixout(model, 1.0, values)
    assert wrapper.reference()["second/kernel"].mean() == 3
    distance = wrapper.squared_distances()["first/kernel"]
    np.testing.assert_allclose(distance, np.sum((model.layers[0].kernel.numpy() - 2.0) ** 2), rtol=1e-5)
    wrapper.set_reference()
    assert set(wrapper.squared_distances().values()) == {0.0}
    wrapper.set_reference("zeros")
    assert not wrapper.reference()["first/kernel"].any()


def test_moving_averages_and_other_random_layers_go_on():
    model = keras.Sequential(
        [keras.Input((6,)), layers.BatchNormalization(), layers.GaussianNoise(1.0), layers.Dense(3, name="dense")]
    )
    wrapper, x = Mixout(model, 0.5), np.full((4, 6), 5.0, "float32")
    first, second = (wrapper(x, training=True).numpy() for _ in range(2))
    assert float(model.layers[0].moving_mean[0]) > 0 and not np.allclose(first, second)


def test_mixes_in_float32_under_mixed_precision(monkeypatch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="first"), layers.Dense(4, name="second")])
    finally:
        keras.config.set_dtype_policy("float32")
    wrapper = Mixout(model, 0.5, seed=0)
    move(model)
    found = []
    monkeypatch.setattr(module, "mix", lambda *arguments: found.append(mix(*arguments)) or found[-1])
    output = wrapper(data(model)[0], training=True)
    assert output.dtype == "bfloat16" and [value.dtype for value in found] == ["float32", "float32"]
    for path, value in zip(wrapper.mixed, found, strict=True):
        mask = mask_of(wrapper, path, value.numpy())
        np.testing.assert_allclose(mask, np.round(mask), atol=1e-3)


def test_trains_under_xla():
    model = perceptron()
    x, y = data(model)
    wrapper = Mixout(model, 0.5, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapper.compile(keras.optimizers.Adam(1e-2), loss, jit_compile=True)
    losses = wrapper.fit(x, y, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_a_compiled_loss_goes_before_the_models_own():
    @keras.saving.register_keras_serializable("test_mixout")
    class WithLoss(Subclassed):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y_pred)) + 100.0

    model = WithLoss()
    model(np.zeros((1, 4), "int32"))
    x, y = data(model)
    for compiled, is_own in ((None, True), ("mse", False)):
        wrapper = Mixout(model, 0.5)
        wrapper.compile("sgd", compiled, jit_compile=False)
        value = wrapper.evaluate(x, keras.utils.to_categorical(y, 5), verbose=0)
        assert (value > 100) is is_own


# === The models of this catalog ===


def albert(**arguments):
    keras.utils.set_random_seed(0)
    sizes = dict(
        vocabulary_size=50, num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=32, embedding_dim=8,
        max_sequence_length=12, sequence_length=12,
    )  # fmt: skip
    return zoo.get("albert", preset="base", weights=None, **{**sizes, **arguments}).with_head(
        "classification", num_classes=3, dropout=0.1, attention_dropout=0.1
    )


def tokens(size=8):
    rng = np.random.default_rng(0)
    return {
        "token_ids": rng.integers(1, 50, (size, 12)).astype("int32"),
        "segment_ids": np.zeros((size, 12), "int32"),
        "padding_mask": np.ones((size, 12), "int32"),
    }


def test_albert_draws_at_every_application_of_its_shared_layer(monkeypatch):
    model = albert()
    wrapper = Mixout(model, 0.9, exclude=["^head"])
    assert "backbone/layer_0/attention/query/kernel" in wrapper.mixed
    assert wrapper.passed_through["head/classifier/kernel"] == "left out by the patterns"
    shapes = []
    original = module.draw_mask
    monkeypatch.setattr(module, "draw_mask", lambda shape, *rest: shapes.append(shape) or original(shape, *rest))
    wrapper(tokens(), training=True)
    # The map and the pooler once, six kernels of the layer three times
    assert len(shapes) == 2 + 3 * 6


def test_albert_fine_tunes():
    model, x, y = albert(num_layers=1), tokens(), np.arange(8) % 3
    wrapper = Mixout(model, 0.5, exclude=["^head"])
    assert max(wrapper.squared_distances().values()) == 0
    wrapper.compile(keras.optimizers.Adam(3e-3), metrics=["accuracy"], jit_compile=False)
    history = wrapper.fit(x, y, epochs=40, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0] and "accuracy" in history
    assert min(wrapper.squared_distances().values()) > 0
    logits = wrapper.strip().predict(x, verbose=0)
    np.testing.assert_array_equal(logits, wrapper.predict(x, verbose=0))


def test_attention_that_reads_its_kernels_itself_is_mixed():
    model = zoo.get("transformer_xl", weights=None, num_layers=1, hidden_dim=16, num_heads=2, intermediate_dim=16)
    wrapper = Mixout(model, 0.9, seed=0, embeddings=True)
    inputs = np.random.default_rng(0).integers(0, 20, (2, model.window_length)).astype("int32")
    np.testing.assert_allclose(wrapper(inputs, training=True), model(inputs, training=True), atol=1e-5)
    assert any("attention" in path and "query/kernel" in path for path in wrapper.mixed)
    for path, value in zip(wrapper.mixed, wrapper.stages[0].values, strict=True):
        if "attention" in path:
            value.assign(value + 1.0)
    assert not np.allclose(wrapper(inputs, training=True), model(inputs), atol=1e-3)


# === Decay towards a reference ===


@pytest.mark.parametrize("reference", [None, "zeros"])
def test_the_penalty_pulls_to_the_reference(reference):
    strength, model = 0.03, perceptron()
    wrapper = ReferenceDecay(model, strength, reference)
    move(model)
    kernels = [layer.kernel for layer in model.layers]
    wrapper.compile("sgd", "mse", jit_compile=False)
    x = np.zeros((1, 6), "float32")
    with tf.GradientTape() as tape:
        output = wrapper(x, training=True)
        loss = wrapper.compute_loss(x, tf.stop_gradient(output), output)
    found = tape.gradient(loss, kernels)
    distances = 0.0
    for kernel, gradient, target in zip(kernels, found, wrapper.reference().values(), strict=True):
        away = kernel.numpy() - target
        assert (reference is None) == bool(target.any())
        np.testing.assert_allclose(gradient, strength * away, rtol=0, atol=1e-7)
        distances += np.sum(away**2)
    np.testing.assert_allclose(float(loss), strength / 2 * distances, rtol=1e-5)


def test_what_decays():
    wrapper = ReferenceDecay(subclassed(), exclude=["borrowed"])
    assert wrapper.mixed == ["embedding/embeddings", "nested/inner/kernel"]
    assert wrapper.passed_through["borrowed/kernel"] == "left out by the patterns"
    assert "nested/inner/bias" in ReferenceDecay(subclassed(), bias=True).mixed


def test_a_file_keeps_the_reference_of_a_decay(tmp_path):
    model = perceptron()
    wrapper = ReferenceDecay(model, 0.5, include=["first"])
    move(model)
    wrapper.save(tmp_path / "model.keras")
    loaded = zoo.load_model(tmp_path / "model.keras")
    assert own_config(loaded) == own_config(wrapper)
    np.testing.assert_array_equal(loaded.reference()["first/kernel"], wrapper.reference()["first/kernel"])
    assert loaded.squared_distances()["first/kernel"] > 0


# === Export ===


def test_the_stripped_model_exports_as_if_it_never_was_wrapped(tmp_path):
    plain = perceptron()
    move(plain)
    before = export_model(plain, tmp_path / "plain", ["saved_model", "litert", "onnx"], "none", benchmark=False)
    wrapper = Mixout(plain, 0.9)
    x, y = data(plain)
    wrapper.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    wrapper.fit(x, y, verbose=0)
    after = export_model(
        wrapper.strip(), tmp_path / "stripped", ["saved_model", "litert", "onnx"], "none", benchmark=False
    )
    for name in ("litert", "onnx"):
        ours, theirs = after.artifact(name), before.artifact(name)
        assert ours.ops == theirs.ops and not any("andom" in op for op in ours.ops)
        sizes = [
            sum((tmp_path / folder / path).stat().st_size for path in artifact.paths.values())
            for folder, artifact in (("stripped", ours), ("plain", theirs))
        ]
        # Names of tensors may differ by a few letters
        assert abs(sizes[0] - sizes[1]) < 200
    ours, theirs = (
        tf.train.list_variables(str(tmp_path / folder / "saved_model" / "variables" / "variables"))
        for folder in ("stripped", "plain")
    )
    assert [shape for _, shape in ours] == [shape for _, shape in theirs]
    # As the wrapper itself would be called
    assert list(wrapper.signatures()["predict"].inputs) == list(model_signatures(plain)["predict"].inputs)


# === Bad input ===


class OwnStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)

    def train_step(self, data):
        return {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": -0.1}, "`probability` must be in"),
        ({"probability": 1.1}, "Received: 1.1"),
        ({"granularity": "layer"}, "`granularity` must be one of"),
        ({"include": ["no_such_layer"]}, "`include` must be patterns of layer paths.*first.*Received: 'no_such_layer'"),
        ({"exclude": ["no_such_layer"]}, "`exclude` must be patterns of layer paths"),
        ({"exclude": "first"}, "`exclude` must be a sequence"),
        ({"include": ["("]}, "`include` must hold regular expressions"),
        ({"exclude": ["first", "second"]}, "`model` must be one with weights to mix"),
        ({"reference": {"first/kernel": np.zeros((6, 8))}}, "`reference` must be arrays.*second/kernel.*None"),
        ({"reference": {"first/kernel": np.zeros((6, 8)), "second/kernel": np.zeros((4, 8))}}, r"\(4, 8\)"),
        ({"reference": {"first": 0.0, "first/kernel": 0.0, "second/kernel": 0.0}}, "'first'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mixout(perceptron(), **arguments)


@pytest.mark.parametrize("reference", ["ones", 0, perceptron])
def test_a_reference_of_another_type(reference):
    with pytest.raises(TypeError, match=r"`reference` must be None.*Received: "):
        Mixout(perceptron(), 0.9, reference)


def test_bad_strength():
    with pytest.raises(ValueError, match="`strength` must be 0 or more"):
        ReferenceDecay(perceptron(), -1.0)


@pytest.mark.parametrize("wrap", [Mixout, ReferenceDecay])
def test_models_that_cannot_be_wrapped(wrap):
    with pytest.raises(ValueError, match="must be a Keras model"):
        wrap(layers.Dense(2))
    with pytest.raises(ValueError, match="no weights yet"):
        wrap(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ValueError, match="strip it first"):
        wrap(Mixout(perceptron()))
    own = OwnStep()
    own(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="`train_step` of its own"):
        wrap(own)
    with keras.RematScope(mode="full"):
        recomputed = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be free of layers that compute again"):
        wrap(recomputed)


def test_a_model_without_kernels_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="`model` must be one with weights to mix"):
        Mixout(model)


def test_the_package_loads_without_tensorflow():
    code = (
        "import sys, zoo, zoo.training; assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules; "
        "zoo.training.Mixout; assert 'tensorflow' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert result.returncode == 0, result.stderr[-2000:]


# === The model of the catalog ===


def classifier(**arguments):
    keras.utils.set_random_seed(0)
    return zoo.get("mixout", weights=None, **arguments)


def test_the_network_of_the_paper_has_its_trainable_parameters():
    model = zoo.get("mixout", "mlp_emnist", weights=None)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 266_610
    assert model.mixed == ["hidden_1/kernel", "logits/kernel"]


def test_a_new_classifier_is_drawn_to_zero_and_then_to_where_it_is():
    model = classifier()
    assert isinstance(model, MixoutClassifier) and not any(value.any() for value in model.reference().values())
    model.set_reference()
    assert set(model.squared_distances().values()) == {0.0}


def test_pixels_are_scaled_to_one():
    model = classifier()
    images = np.arange(64, dtype="uint8").reshape(1, 8, 8) % 17
    np.testing.assert_array_equal(model.preprocess(images), images[..., None].astype("float32") / 16)
    assert model.preprocess(images).max() == 1
    with pytest.raises(ValueError, match=r"`images` must be of pixels up to 16\. Received: 17"):
        model.preprocess(np.full((1, 8, 8), 17, "uint8"))


def test_a_new_head_is_drawn_to_zero():
    model = classifier()
    model.set_reference()
    other = model.with_head(num_classes=4)
    np.testing.assert_array_equal(other.reference()["hidden_1/kernel"], model.reference()["hidden_1/kernel"])
    assert not other.reference()["logits/kernel"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": ()}, "`units`"),
        ({"units": (3, 0)}, "`units`"),
        ({"num_classes": 1}, "`num_classes`"),
        ({"pixel_maximum": 0}, "`pixel_maximum`"),
        ({"input_shape": (8, 8)}, "`input_shape`"),
        ({"probability": 2}, "`probability`"),
    ],
)
def test_bad_arguments_of_the_classifier(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixoutClassifier(**arguments)


# === Recipe and experiment ===


def test_shifted_images():
    images = np.arange(12).reshape(1, 3, 4)
    assert experiment.shifted(images)[0].tolist() == [[0, 0, 1, 2], [0, 4, 5, 6], [0, 8, 9, 10]]


def test_the_recipe_fine_tunes_on_shifted_images_after_pretraining(monkeypatch):
    monkeypatch.setattr(experiment, "STEPS_PER_EPOCH", 2)
    monkeypatch.setattr(experiment, "PRETRAINING_EPOCHS", 3)
    model = classifier()
    found = experiment.data(model, "digits", 0)
    batches = list(found.train.take(8))
    stored = zoo.datasets.load_arrays("digits", "train")["image"]
    known = {image.tobytes() for image in model.preprocess(stored)}
    assert [all(image.tobytes() in known for image in x.numpy()) for x, _ in batches] == [True] * 6 + [False] * 2
    assert all((x.numpy()[:, :, 0] == 0).all() for x, _ in batches[6:])
    judged = {image.tobytes() for x, _ in found.validation for image in x.numpy()}
    tuned = {image.tobytes() for x, _ in batches[6:] for image in x.numpy()}
    assert len(judged) == 120 and not judged & tuned


def test_the_reference_is_set_once_pretraining_ends():
    model = classifier()
    callback = experiment.ReferenceAt(1)
    experiment.compile_model(model, 4)
    x, y = np.ones((8, 8, 8, 1), "float32"), np.zeros(8, "int32")
    model.fit(x, y, epochs=1, verbose=0, callbacks=[callback])
    assert not model.reference()["logits/kernel"].any()
    kernel = model.model.layers[-1].kernel.numpy()
    model.fit(x, y, epochs=3, initial_epoch=1, verbose=0, callbacks=[callback])
    np.testing.assert_array_equal(model.reference()["logits/kernel"], kernel)


def test_lines_are_balanced_and_name_no_package():
    inputs, labels = experiment.package_lines("train", 40, 32)
    tokenizer = load_tokenizer(experiment.docstrings.tokenizer_json())
    decoded = [tokenizer.decode(row.tolist()) for row in inputs["token_ids"]]
    assert np.bincount(labels).tolist() == [10] * 4 and inputs["token_ids"].shape == (40, 32)
    assert not any(package in line for line in decoded for package in experiment.CLASSES)
    again, _ = experiment.package_lines("train", 40, 32)
    np.testing.assert_array_equal(inputs["token_ids"], again["token_ids"])


def test_articles_have_topics_of_all_splits():
    inputs, labels = experiment.article_topics("train", 600, 48)
    _, test = experiment.article_topics("test", 311, 48)
    assert set(test) <= set(range(12)) and set(labels) >= set(range(11)) and inputs["token_ids"].shape == (600, 48)
    stored = zoo.datasets.load_arrays("wikipedia_mentions", "test")["topic"]
    names = sorted(set(stored) | set(zoo.datasets.load_arrays("wikipedia_mentions", "train")["topic"]))
    assert sorted(names[label] for label in test) == sorted(stored)


def test_arms_train_as_they_say():
    model = albert(num_layers=1)
    assert experiment.wrapped(model, "plain") is model and experiment.wrapped(model, "dropout") is model
    mixed = experiment.wrapped(model, "mixout 0.6")
    assert mixed.probability == 0.6 and not any("head" in path for path in mixed.mixed)
    decayed = experiment.wrapped(model, experiment.PULLED)
    assert isinstance(decayed, ReferenceDecay) and decayed.strength == 0.01


def ledger_of(tmp_path, accuracies, distances):
    """Returns the ledger of runs with these digits' results by technique, and texts that all are as good."""
    ledger = Ledger(tmp_path / "runs.json", {})

    def run(arm, seed, result):
        ledger.run(arm, seed, lambda: result, lambda message: None)

    for seed in range(3):
        digits = {"target_accuracy": 0.8, "source_accuracy": 0.7, "squared_distance": distances[0]}
        run(experiment.NONE, seed, digits)
        for technique in ("dropout", "mixout"):
            for p, accuracy, distance in zip(
                experiment.PROBABILITIES, accuracies[technique], distances[1:], strict=True
            ):
                found = {
                    "target_accuracy": accuracy,
                    "source_accuracy": 0.7 + 0.01 * seed,
                    "squared_distance": distance,
                }
                run(f"digits, {technique} {p}", seed, found)
        for name in experiment.TASKS:
            for arm in experiment.TEXT_ARMS:
                result = {"accuracy": 0.6 + 0.01 * seed, "chance": 0.5, "test_examples": 400, "squared_distance": 1.0}
                run(f"{name}, {arm}", seed, result)
    return ledger


def test_the_verdict_follows_the_numbers(tmp_path):
    flat, falling = [0.8, 0.8, 0.8, 0.8], [0.8, 0.7, 0.5, 0.2]
    shown, _, denied = verdict_of(tmp_path / "a", {"mixout": flat, "dropout": falling}, [5, 4, 3, 2, 1])
    assert "falls with mixout's probability" in shown and "dropout's collapses" in shown and "depends little" in shown
    assert "beats plain (0.610" in denied and "fewer of its runs fail" in denied
    shown, _, denied = verdict_of(tmp_path / "b", {"mixout": falling, "dropout": flat}, [5, 4, 6, 2, 1])
    assert "falls with" in denied and "dropout's collapses" in denied and "depends little" in denied


def verdict_of(directory, accuracies, distances):
    directory.mkdir()
    return experiment.verdict(ledger_of(directory, accuracies, distances)).partition("Does not show:")


@pytest.mark.slow
def test_the_experiment_runs(tmp_path):
    network = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 16}
    experiment.reproduce(tmp_path, seeds=2, updates=3, text_updates=2, weights=None, network=network)
    assert {path.name for path in tmp_path.iterdir()} == {
        "mixout.json", "mixout.runs.json", "mixout.png", "mixout_texts.png",
    }  # fmt: skip
