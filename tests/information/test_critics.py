"""Critics: every pair is scored as if it were alone, sizes are the paper's, and layers serialise."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.information.critics import (
    BilinearCritic,
    ConcatenatedCritic,
    EmbeddingCritic,
    InnerProductCritic,
    SeparableCritic,
    make_critic,
)

CRITICS = {
    "bilinear": (BilinearCritic, 5, 4),
    "inner": (InnerProductCritic, 4, 4),
    "separable": (lambda **kwargs: SeparableCritic((7, 6), 3, "tanh", **kwargs), 5, 4),
    "mlp": (lambda **kwargs: ConcatenatedCritic((7, 6), "elu", **kwargs), 5, 4),
}


def inputs(x_dim, y_dim, count=3, other=6):
    rng = np.random.default_rng(0)
    return tf.constant(rng.normal(size=(count, x_dim)), tf.float32), tf.constant(
        rng.normal(size=(other, y_dim)), tf.float32
    )


def random_critic(name, **kwargs):
    """A critic with no weight left at its initial value, and inputs for it."""
    make, x_dim, y_dim = CRITICS[name]
    critic, (x, y) = make(**kwargs), inputs(x_dim, y_dim)
    critic(x, y)
    rng = np.random.default_rng(1)
    critic.set_weights([rng.normal(size=weight.shape) for weight in critic.get_weights()])
    return critic, x, y


@pytest.mark.parametrize("name", CRITICS)
def test_matrix_equals_a_double_loop(name):
    critic, x, y = random_critic(name)
    scores = critic(x, y).numpy()

    assert scores.shape == (3, 6)
    for i, j in np.ndindex(3, 6):
        assert scores[i, j] == pytest.approx(critic(x[i : i + 1], y[j : j + 1]).numpy().item(), abs=1e-5)


@pytest.mark.parametrize("name", CRITICS)
def test_aligned_scores_are_the_diagonal(name):
    critic, x, y = random_critic(name)

    np.testing.assert_allclose(critic(x, y[:3], aligned=True), np.diag(critic(x, y[:3])), rtol=1e-5)


@pytest.mark.parametrize("name", CRITICS)
def test_leading_axes_are_sets_of_their_own(name):
    critic, x, y = random_critic(name)
    scores = critic(tf.stack([x, 2 * x]), tf.stack([y, y]))

    assert scores.shape == (2, 3, 6)
    np.testing.assert_allclose(scores[1], critic(2 * x, y), rtol=1e-5, atol=1e-5)
    aligned = critic(tf.stack([x, 2 * x]), tf.stack([y[:3], y[:3]]), aligned=True)
    np.testing.assert_allclose(aligned[1], critic(2 * x, y[:3], aligned=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bilinear", "inner", "separable"])
def test_embeddings_give_the_scores(name):
    critic, x, y = random_critic(name)

    assert isinstance(critic, EmbeddingCritic)
    np.testing.assert_allclose(
        critic(x, y), np.einsum("ik,jk->ij", critic.embed_x(x), critic.embed_y(y)), rtol=1e-5, atol=1e-5
    )


def test_bilinear_critic_is_a_matrix_between_the_inputs():
    critic, x, y = random_critic("bilinear")
    (matrix,) = critic.get_weights()

    np.testing.assert_allclose(critic(x, y), x @ matrix.T @ tf.transpose(y), rtol=1e-5, atol=1e-5)


def test_concatenated_critic_is_a_network_on_the_concatenation():
    critic, x, y = random_critic("mlp")
    x_kernel, bias, y_kernel, *rest = critic.get_weights()
    network = keras.Sequential([keras.layers.Dense(7, "elu"), keras.layers.Dense(6, "elu"), keras.layers.Dense(1)])
    joined = tf.concat([tf.repeat(x, 6, axis=0), tf.tile(y, (3, 1))], axis=1)
    network(joined)
    network.set_weights([np.concatenate([x_kernel, y_kernel]), bias, *rest])

    np.testing.assert_allclose(critic(x, y), tf.reshape(network(joined), (3, 6)), rtol=1e-4, atol=1e-5)


def test_concatenated_critic_starts_in_glorot_s_range_of_the_whole_kernel():
    critic = ConcatenatedCritic((200,))
    critic(tf.zeros((1, 300)), tf.zeros((1, 100)))
    limit = np.sqrt(6 / (400 + 200))

    for kernel in (critic.x_projection.kernel.numpy(), critic.y_projection.kernel.numpy()):
        assert 0.99 * limit < np.abs(kernel).max() <= limit * 1.0001


@pytest.mark.parametrize(
    ("critic", "size", "parameters"),
    [
        (BilinearCritic(), 100, 10_000),
        (BilinearCritic(), 392, 153_664),
        (InnerProductCritic(), 100, 0),
        (SeparableCritic(), 100, 40_400),
        (ConcatenatedCritic(), 100, 40_401),
    ],
)
def test_defaults_have_the_sizes_of_the_study_of_representations(critic, size, parameters):
    critic(tf.zeros((2, size)), tf.zeros((2, size)))

    assert critic.count_params() == parameters


@pytest.mark.parametrize("name", CRITICS)
def test_critics_serialise(name):
    critic, x, y = random_critic(name)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(critic))
    copy(x, y)
    copy.set_weights(critic.get_weights())

    assert copy.get_config() == critic.get_config()
    np.testing.assert_array_equal(copy(x, y), critic(x, y))


@pytest.mark.parametrize("name", CRITICS)
def test_critics_compute_in_their_precision(name):
    exact, x, y = random_critic(name)
    critic, x, y = random_critic(name, dtype="mixed_bfloat16")

    assert critic(x, y).dtype == tf.bfloat16
    assert all(weight.dtype == "float32" for weight in critic.weights)
    np.testing.assert_allclose(tf.cast(critic(x, y), tf.float32), exact(x, y), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("name", CRITICS)
def test_sizes_may_be_dynamic(name):
    critic, x, y = random_critic(name)
    specs = [tf.TensorSpec([None, tensor.shape[1]], tf.float32) for tensor in (x, y)]

    np.testing.assert_allclose(tf.function(critic, input_signature=specs)(x, y), critic(x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("bilinear", BilinearCritic),
        ("inner", InnerProductCritic),
        ("separable", SeparableCritic),
        ("mlp", ConcatenatedCritic),
    ],
)
def test_critics_are_made_by_name(name, kind):
    critic = make_critic(name, (30, 20), 10, "elu", dtype="mixed_bfloat16")

    assert type(critic) is kind and critic.compute_dtype == "bfloat16"
    config = critic.get_config()
    for key, value in {"hidden_dims": [30, 20], "embedding_dim": 10, "activation": "elu"}.items():
        assert key not in config or config[key] == value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_critic("euclidean"), "`critic` must be one of"),
        (lambda: SeparableCritic((0,)), "`hidden_dims` must hold sizes of at least 1"),
        (lambda: SeparableCritic((4,), 0), "`embedding_dim` must hold sizes of at least 1"),
        (lambda: ConcatenatedCritic(()), "`hidden_dims` must hold at least one size"),
        (lambda: InnerProductCritic()(tf.zeros((2, 3)), tf.zeros((2, 4))), "`y` must have as many features as `x`"),
    ],
)
def test_critics_refuse(call, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call()
