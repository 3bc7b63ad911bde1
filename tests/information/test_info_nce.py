"""InfoNCE as a model: what it bounds, its signatures, and what a trained critic finds."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.information import bounds
from zoo.information.image_pairs import image_halves
from zoo.information.info_nce import EVALUATION_CANDIDATES, InfoNCE

CRITICS = ("bilinear", "inner", "separable", "mlp")


def small_model(seed=0, **changes):
    """A model with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    model = InfoNCE(**{"x_dim": 3, "context_dim": 3, "hidden_dims": (8,), "embedding_dim": 5} | changes)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.0, 0.7, weight.shape) for weight in model.get_weights()])
    return model


def gaussian_pairs(count, dim, correlation, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dim))
    context = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=(count, dim))
    return {"x": x.astype("float32"), "context": context.astype("float32")}


def train(model, pairs, batch_size, learning_rate=1e-3):
    model.compile(optimizer=keras.optimizers.Adam(learning_rate), jit_compile=False, steps_per_execution=20)
    data = tf.data.Dataset.from_tensor_slices(pairs).batch(batch_size, drop_remainder=True)
    return model.fit(data, verbose=0).history["loss"]


# === The bound ===


@pytest.mark.parametrize("critic", CRITICS)
def test_rows_are_contexts_and_columns_candidates(critic):
    model = small_model(critic=critic)
    pairs = gaussian_pairs(4, 3, 0.5, 0)
    scores = model(pairs).numpy()

    for i, j in np.ndindex(4, 4):
        alone = model.run("score", context=pairs["context"][i : i + 1], x=pairs["x"][j : j + 1])["scores"]
        assert scores[i, j] == pytest.approx(alone.item(), abs=1e-5)
    assert np.abs(scores - scores.T).max() > 0.01


@pytest.mark.parametrize("changes", [{}, {"symmetric": True}, {"temperature": 0.3}])
def test_loss_is_the_cross_entropy_of_the_right_candidate_less_log_k(changes):
    model = small_model(**changes)
    pairs = gaussian_pairs(6, 3, 0.5, 0)
    scores = model(pairs) / changes.get("temperature", 1.0)
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(6), matrix)
        for matrix in ((scores, tf.transpose(scores)) if "symmetric" in changes else (scores,))
    ]

    found = model.compute_loss(pairs, y_pred=model(pairs))
    assert float(found) == pytest.approx(np.mean(losses) - np.log(6), abs=1e-5)


def test_estimate_is_the_mean_over_batches_of_the_stated_size(monkeypatch):
    model = small_model()
    pairs = gaussian_pairs(23, 3, 0.5, 0)
    order = np.random.default_rng(4).permutation(23)[:20].reshape(4, 5)
    values = [float(bounds.info_nce(model({k: v[rows] for k, v in pairs.items()}))) for rows in order]

    for chunk in (2**20, 30):
        monkeypatch.setattr("zoo.information.info_nce.CHUNK", chunk)
        assert model.estimate(**pairs, num_candidates=5, seed=4) == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize(("critic", "batch_size"), [("separable", 64), ("mlp", 32)])
def test_trained_critic_comes_near_the_truth_from_below(critic, batch_size):
    keras.utils.set_random_seed(0)
    correlation = np.sqrt(1 - np.exp(-1.5))
    model = InfoNCE(2, 2, critic, (64,), 16)
    train(model, gaussian_pairs(batch_size * 500, 2, correlation, 0), batch_size, 3e-3)
    held_out = gaussian_pairs(12_800, 2, correlation, 1)

    # Truth 1.5 nats
    assert 1.3 < model.estimate(**held_out, num_candidates=128) < 1.5
    assert model.estimate(**held_out, num_candidates=2) < np.log(2)


def test_saturates_at_log_k():
    keras.utils.set_random_seed(0)
    model = InfoNCE(4, 4, "separable", (64,), 16)
    pairs = gaussian_pairs(64 * 300, 4, 0.999, 0)
    train(model, pairs, 64)
    held_out = gaussian_pairs(3200, 4, 0.999, 1)

    for size in (4, 16):
        assert 0.9 * np.log(size) < model.estimate(**held_out, num_candidates=size) < np.log(size)


def test_fit_repeats_under_a_seed():
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        losses.append(train(InfoNCE(3, 3, hidden_dims=(16,)), gaussian_pairs(320, 3, 0.9, 0), 32))

    assert losses[0] == losses[1]


# === Signatures ===


@pytest.mark.parametrize("critic", ["bilinear", "inner", "separable"])
def test_embeddings_of_both_views_give_the_scores(critic):
    model = small_model(critic=critic)
    pairs = gaussian_pairs(4, 3, 0.5, 0)
    x = model.run("encode", x=pairs["x"])["embedding"]
    context = model.run("encode_context", context=pairs["context"])["context_embedding"]

    np.testing.assert_allclose(context @ x.T, model.run("score", **pairs)["scores"], rtol=1e-5, atol=1e-5)


def test_a_network_on_both_views_has_no_embeddings():
    assert list(small_model(critic="mlp").signatures()) == ["score"]


def test_scores_take_another_number_of_candidates_than_of_contexts():
    model = small_model()

    assert model.run("score", context=np.ones((2, 3)), x=np.ones((7, 3)))["scores"].shape == (2, 7)


@pytest.mark.parametrize("critic", CRITICS)
def test_saving_gives_the_model_back(critic, tmp_path):
    model = small_model(critic=critic, symmetric=True, temperature=0.5, activation="tanh")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pairs = gaussian_pairs(4, 3, 0.5, 0)

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(pairs), model(pairs))


# === Held-out data ===


def test_pairs_are_the_halves_of_images():
    pairs = image_halves("digits", "test")
    images = zoo.datasets.load_arrays("digits", "test")["image"]

    whole = np.concatenate([pairs["context"], pairs["x"]], axis=1).reshape(-1, 8, 8)
    np.testing.assert_allclose(whole * 16, images, atol=1e-5)


def test_real_inputs_are_held_out_halves():
    model = zoo.get("info_nce", weights=None)
    assert list(model.real_inputs("score")) == [] and model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    pairs = image_halves("digits", "validation")
    for name, key in (("score", "context"), ("encode", "x"), ("encode_context", "context")):
        found = list(model.real_inputs(name, 50))
        assert len(found) == 3
        model.signatures()[name].check(found[0])
        np.testing.assert_array_equal(found[1][key], pairs[key][50:100])


def test_task_metric_is_the_held_out_bound():
    model = zoo.get("info_nce", weights=None)
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    found = model.task_metric().compute(lambda name, inputs: model.run(name, **inputs))
    pairs = {k: v.reshape(6, 60, 32) for k, v in image_halves("digits", "test").items()}
    values = [bounds.info_nce(model({k: v[i] for k, v in pairs.items()})) for i in range(6)]

    assert EVALUATION_CANDIDATES == 60
    assert found == pytest.approx(np.mean(values), abs=1e-5)


# === Facts ===


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gaussian_2d", 256 * 4 + 256 + 256 * 257 + 257),
        ("gaussian_20d", 2 * (21 * 256 + 257 * 256 + 257 * 32)),
        ("halves_mnist", 392 * 392),
    ],
)
def test_presets_have_the_sizes_of_their_critics(preset, parameters):
    model = zoo.get("info_nce", preset, weights=None)

    assert zoo.info("info_nce").preset(preset).parameters == model.count_params() == parameters


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_dim": 0}, "`x_dim` must be at least 1"),
        ({"context_dim": 0}, "`context_dim` must be at least 1"),
        ({"critic": "euclidean"}, "`critic` must be one of"),
        ({"hidden_dims": (0,)}, "`hidden_dims` must hold sizes of at least 1"),
        ({"embedding_dim": 0}, "`embedding_dim` must hold sizes of at least 1"),
        ({"temperature": 0.0}, "`temperature` must be positive and finite"),
        ({"temperature": float("nan")}, "`temperature` must be positive and finite"),
        ({"critic": "inner", "x_dim": 4}, "`y` must have as many features as `x`"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        InfoNCE(**{"x_dim": 3, "context_dim": 3} | changes)


ONES = {"x": np.ones((4, 3), "float32"), "context": np.ones((4, 3), "float32")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.estimate(ONES["x"], ONES["context"][:3]), "`context` must be 4 rows"),
        (lambda m: m.estimate(ONES["x"][:, :2], ONES["context"], 2), "`x` must have shape"),
        (lambda m: m.estimate(ONES["x"], ONES["context"] * np.nan, 2), "`context` must be finite"),
        (lambda m: m.estimate(**ONES, num_candidates=1), "`num_candidates` must be from 2"),
        (lambda m: m.estimate(**ONES, num_candidates=5), "`num_candidates` must be from 2"),
        (lambda m: m(ONES["x"]), "`inputs` must be a dict of 'x' and 'context'"),
        (lambda m: m.compute_loss(ONES, y=ONES["x"], y_pred=m(ONES)), "`y` must be None"),
        (lambda m: m.compute_loss(ONES, y_pred=m(ONES), sample_weight=1.0), "`sample_weight` must be None"),
        (lambda m: m.compute_loss(ONES, y_pred=tf.zeros((1, 1))), "`scores` must have at least 2 candidates"),
    ],
)
def test_methods_refuse(call, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call(small_model())
