"""Multi-view InfoMax: encoders, bounds and measures held against oracles, and the paper's experiments in small."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import load_arrays
from zoo.experiments import mi_representation as experiments
from zoo.experiments.report import Ledger
from zoo.export import export_model
from zoo.information.critics import ConcatenatedCritic
from zoo.information.mi_representation import (
    EVALUATION_CANDIDATES,
    MultiViewInfoMax,
    RealNVPEncoder,
    halves,
    linear_accuracy,
    log_condition_numbers,
)

KINDS = {
    "mlp": {"encoder": "mlp", "code_dim": 5, "hidden_dim": 7},
    "convnet": {"encoder": "convnet", "code_dim": 5, "hidden_dim": 3},
    "mlp_skip": {"encoder": "mlp_skip", "num_hidden_layers": 4},
    "real_nvp": {"encoder": "real_nvp", "num_couplings": 3, "hidden_dim": 8},
    "real_nvp_affine": {"encoder": "real_nvp", "num_couplings": 3, "hidden_dim": 8, "coupling": "affine"},
}
SMALL = experiments.Scale("digits", (4, 8), 120, 1e-3, 50, 3, 16, 4, 40, 1e-4, 3, 20, 400, 32, 2e-3)


def new_model(kind="mlp", seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return MultiViewInfoMax((4, 8), **KINDS[kind] | changes)


def random_model(kind="mlp", seed=0, stddev=0.3, **changes):
    """A model with no weight left at its initial value."""
    model = new_model(kind, seed, **changes)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0.0, stddev, weight.shape) for weight in model.get_weights()])
    return model


def random_views(count, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random((count, 32), "float32") for name in ("view1", "view2")}


def gaussian_log_ratio(x, y, correlation):
    rest = 1 - correlation**2
    return -0.5 * np.log(rest) - (correlation**2 * (x**2 + y**2) - 2 * correlation * x * y) / (2 * rest)


# === Invertible encoders ===


@pytest.fixture(scope="module")
def trained():
    """Encoders trained as in the first and in the second experiment."""
    model = new_model("real_nvp", num_couplings=3, hidden_dim=32)
    model.compile(experiments.adam(1e-3), jit_compile=False)
    model.fit(
        experiments.endless_batches(halves("digits", "train"), 120, 0), steps_per_epoch=80, shuffle=False, verbose=0
    )
    keras.utils.set_random_seed(0)
    encoder = new_model("real_nvp_affine").encoders[0]
    adversarial = experiments.AdversarialEncoder(encoder, 10, 30, 2)
    adversarial.compile(experiments.adam(1e-4), experiments.adam(1e-3))
    data = experiments.endless_batches(
        (halves("digits", "train")["view1"], load_arrays("digits", "train")["label"]), 64, 0
    )
    adversarial.fit(data, steps_per_epoch=150, shuffle=False, verbose=0)
    return SimpleNamespace(additive=model.encoders[0], affine=encoder)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_encoders_are_inverted_before_and_after_training(trained, coupling):
    views = halves("digits", "test")["view1"]
    fresh = new_model("real_nvp", coupling=coupling).encoders[0]
    for encoder in (fresh, getattr(trained, coupling)):
        code = encoder(views)
        error = np.abs(encoder.inverse(code) - views).max()

        assert error <= 1e-5
        assert experiments.inverse_error(encoder, "digits") < 1e-12
        assert np.abs(code - views).max() > 0.1
    assert np.abs(trained.additive.get_weights()[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["real_nvp", "real_nvp_affine"])
def test_random_weights_are_inverted_and_the_log_det_is_that_of_the_jacobian(kind):
    encoder = random_model(kind).encoders[0]
    views = tf.constant(random_views(6)["view1"])
    with tf.GradientTape() as tape:
        tape.watch(views)
        code, log_det = encoder.transform(views)
    wanted = np.linalg.slogdet(tape.batch_jacobian(code, views).numpy().astype("float64"))[1]

    np.testing.assert_allclose(encoder.inverse(code), views, atol=1e-4)
    np.testing.assert_allclose(log_det, wanted, atol=1e-4)
    assert (np.ptp(log_det) > 0.01) == (kind == "real_nvp_affine")


def test_additive_encoders_preserve_volume_exactly(trained):
    _, log_det = trained.additive.transform(halves("digits", "test")["view1"])

    assert (log_det.numpy() == 0).all()


@pytest.mark.parametrize("num_couplings", [6, 30])
def test_encoders_begin_next_to_their_permutation(num_couplings):
    encoder = new_model("real_nvp", num_couplings=num_couplings, hidden_dim=64).encoders[0]
    views = halves("digits", "test")["view1"]
    order = np.arange(32)
    for permutation in encoder.permutations:
        order = order[permutation]

    assert len(encoder.permutations) == num_couplings
    assert not np.array_equal(order, np.arange(32))
    assert 0 < np.abs(encoder(views) - views[:, order]).max() < 1e-3


@pytest.mark.parametrize("kind", ["real_nvp", "real_nvp_affine"])
def test_accuracy_begins_as_that_of_pixels(kind):
    pixels = linear_accuracy(lambda view: view, "digits", "test")

    assert linear_accuracy(new_model(kind).encoders[0], "digits", "test") == pixels


def test_permutations_are_the_same_for_ever():
    encoder = RealNVPEncoder(2, 1, 4, "additive", 0)
    encoder.build((None, 8))

    np.testing.assert_array_equal(encoder.permutations, [[6, 2, 1, 7, 3, 0, 5, 4], [1, 6, 3, 7, 0, 4, 2, 5]])
    first, second = new_model("real_nvp", permutation_seed=3).encoders
    assert (first.permutation_seed, second.permutation_seed) == (3, 4)
    assert not np.array_equal(first.permutations, second.permutations)


def test_views_of_odd_size_are_inverted():
    keras.utils.set_random_seed(0)
    model = MultiViewInfoMax((3, 3), "real_nvp", num_couplings=3, hidden_dim=8)
    view = np.random.default_rng(0).random((4, 9), "float32")

    np.testing.assert_allclose(model.encoders[0].inverse(model.encoders[0](view)), view, atol=1e-6)


@pytest.mark.parametrize("kind", ["real_nvp", "real_nvp_affine"])
def test_mixed_precision_keeps_encoders_invertible(kind):
    model = random_model(kind, dtype="mixed_bfloat16")
    view = random_views(5)["view1"]
    code = model.run("encode", view1=view)["code"]

    np.testing.assert_allclose(model.run("decode", code=code)["view1"], view, atol=1e-4)
    assert np.abs(code - random_model(kind).run("encode", view1=view)["code"]).max() > 1e-4


# === Other encoders ===


def test_convolutional_encoder_normalises_over_all_places_and_channels():
    model = random_model("convnet")
    view = random_views(4)["view1"]
    weights = model.encoders[0].get_weights()
    hidden = view.reshape(4, 4, 8, 1)
    for kernel, bias in (weights[0:2], weights[2:4]):
        hidden = tf.nn.relu(tf.nn.conv2d(hidden, kernel, 2, "SAME") + bias).numpy()
    mean, deviation = hidden.mean(axis=(1, 2, 3), keepdims=True), hidden.std(axis=(1, 2, 3), keepdims=True)
    pooled = ((hidden - mean) / (deviation + 1e-6) * weights[4] + weights[5]).mean(axis=(1, 2))

    assert hidden.shape == (4, 1, 2, 6)
    np.testing.assert_allclose(model.encoders[0](view), pooled @ weights[6] + weights[7], atol=1e-5)


def test_skip_encoder_adds_each_layer_to_its_input():
    model = random_model("mlp_skip")
    view = expected = random_views(4)["view1"]
    weights = model.encoders[0].get_weights()
    for index in range(5):
        added = expected @ weights[2 * index] + weights[2 * index + 1]
        expected = expected + (np.maximum(added, 0) if index < 4 else added)

    assert len(weights) == 10
    np.testing.assert_allclose(model.encoders[0](view), expected, rtol=1e-5, atol=1e-5)
    fresh = new_model("mlp_skip").encoders[0](view)
    assert 0 < np.abs(fresh - view).max() < 3e-3


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_of_the_two_views_share_nothing(kind):
    model = random_model(kind)
    views = random_views(4)
    before = model.run("encode", view1=views["view1"])["code"]
    for weight in model.encoders[1].weights:
        weight.assign(weight + 1.0)

    np.testing.assert_array_equal(model.run("encode", view1=views["view1"])["code"], before)
    assert before.shape == (4, model.output_dim)


# === Bounds ===


def test_nce_is_at_most_log_k_and_zero_for_equal_scores():
    model = new_model()
    scores = np.random.default_rng(0).normal(0, 30, (200, 16, 16)).astype("float32")
    np.einsum("bii->bi", scores[:100])[:] += 200

    assert np.max(model.bound(scores)) <= np.log(16) + 1e-6
    assert np.max(model.bound(scores)) > np.log(16) - 1e-3
    assert float(model.bound(np.zeros((16, 16), "float32"))) == pytest.approx(0.0, abs=1e-6)


def test_nwj_of_ones_is_zero():
    assert float(new_model(estimator="nwj").bound(np.ones((16, 16), "float32"))) == pytest.approx(0.0, abs=1e-6)


def test_nwj_of_the_best_critic_is_the_information():
    # The standard error of 200 batches is 0.006.
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 128))
    y = 0.9 * x + np.sqrt(1 - 0.81) * rng.standard_normal((200, 128))
    scores = 1 + gaussian_log_ratio(x[:, :, None], y[:, None, :], 0.9)

    assert -0.5 * np.log(1 - 0.81) == pytest.approx(0.8304, abs=1e-4)
    assert np.mean(new_model(estimator="nwj").bound(scores)) == pytest.approx(0.8304, abs=0.02)


def test_nwj_takes_the_right_pairs_for_no_negatives():
    model = new_model(estimator="nwj")
    scores = np.random.default_rng(0).normal(size=(6, 6))
    others = scores[~np.eye(6, dtype=bool)]
    right = scores.copy()
    np.fill_diagonal(right, 50.0)
    mean_right = np.diagonal(scores).mean()

    assert float(model.bound(scores)) == pytest.approx(
        1 + np.mean(np.diagonal(scores) - 1) - np.mean(np.exp(others - 1))
    )
    assert float(model.bound(right) - model.bound(scores)) == pytest.approx(50.0 - mean_right)


def test_scores_of_the_network_on_both_codes_are_those_of_a_double_loop():
    model = random_model(critic="mlp", critic_hidden_dims=(6,))
    views = random_views(4)
    first, second = model.encoders[0](views["view1"]).numpy(), model.encoders[1](views["view2"]).numpy()
    assert isinstance(model.critic, ConcatenatedCritic)
    x_kernel, bias = (weight.numpy() for weight in model.critic.x_projection.weights)
    kernel = np.concatenate([x_kernel, model.critic.y_projection.kernel.numpy()])
    last, last_bias = (weight.numpy() for weight in model.critic.score_layers[-1].weights)
    scores = model(views).numpy()

    for i, j in np.ndindex(4, 4):
        hidden = np.maximum(np.concatenate([first[i], second[j]]) @ kernel + bias, 0)
        assert scores[i, j] == pytest.approx((hidden @ last + last_bias).item(), abs=1e-4)
    assert np.abs(scores - scores.T).max() > 0.01


@pytest.mark.parametrize("critic", ["bilinear", "inner", "separable", "mlp"])
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_rows_are_first_views(critic, kind):
    model = random_model(kind, critic=critic)
    views = random_views(4)
    scores = model(views).numpy()

    for i, j in np.ndindex(4, 4):
        alone = model.run("score", view1=views["view1"][i : i + 1], view2=views["view2"][j : j + 1])["scores"]
        assert scores[i, j] == pytest.approx(alone.item(), abs=1e-4)
    assert np.abs(scores - scores.T).max() > 0.01


@pytest.mark.parametrize("estimator", ["nce", "nwj"])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_target_turns_the_gradient_where_the_bound_is_above_it(estimator, side):
    model = random_model(estimator=estimator, stddev=0.25)
    views = random_views(8)
    model.target_bound = float(model.bound(model(views))) - 0.3 * side
    with tf.GradientTape(persistent=True) as tape:
        scores = model(views)
        loss, bound = model.compute_loss(views, y_pred=scores), model.bound(scores)
    found, of_bound = (
        [gradient.numpy() for gradient in tape.gradient(value, model.trainable_variables)] for value in (loss, bound)
    )

    assert float(loss) == pytest.approx(0.3, abs=1e-4)
    for first, second in zip(found, of_bound, strict=True):
        np.testing.assert_allclose(first, side * second, rtol=1e-4, atol=1e-6)
    assert max(np.abs(gradient).max() for gradient in of_bound) > 1e-3


@pytest.mark.parametrize("estimator", ["nce", "nwj"])
def test_training_reaches_a_target_from_below(estimator):
    model = new_model("mlp", estimator=estimator, target_bound=1.0, hidden_dim=32)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False, steps_per_execution=50)
    data = experiments.endless_batches(halves("digits", "train"), 60, 0)
    history = model.fit(data, epochs=4, steps_per_epoch=50, verbose=0).history

    assert history["bound"][0] < 0.95
    assert history["bound"][-1] == pytest.approx(1.0, abs=0.15)
    assert history["loss"][-1] < 0.3


def test_noise_is_the_same_for_both_views_and_fresh_in_training():
    # An encoder that is the identity, and a critic x' y: one row and one column.
    model = random_model("mlp_skip", critic="inner", input_noise=0.5, stddev=0.0)
    zeros = {"view1": np.zeros((1, 32), "float32"), "view2": np.zeros((1, 32), "float32")}
    drawn = [model(zeros, training=True).numpy().item() for _ in range(100)]
    fixed = [model(zeros, training=False).numpy().item() for _ in range(2)]

    # The squared length of 32 numbers of variance 1/4: 8 +- 2; independent noise would give 0.
    assert np.mean(drawn) == pytest.approx(8.0, abs=4 * 2 / np.sqrt(100))
    assert np.std(drawn) > 1
    assert fixed[0] == fixed[1] > 0


# === Measures ===


def test_log_condition_numbers_are_those_of_finite_differences():
    encoder = random_model("mlp_skip", stddev=0.05).encoders[0]
    views = random_views(5)["view1"]
    found = log_condition_numbers(encoder, views)
    exact = experiments.MultiViewInfoMax((4, 8), **KINDS["mlp_skip"], dtype="float64").encoders[0]
    exact.set_weights(encoder.get_weights())
    steps = 1e-5 * np.eye(32)
    for row, view in enumerate(views.astype("float64")):
        jacobian = (exact(view + steps) - exact(view - steps)).numpy() / 2e-5
        values = np.linalg.svd(jacobian, compute_uv=False)
        assert found[row] == pytest.approx(np.log(values[0] / values[-1]), rel=1e-2)
    assert found.min() > 0.5


def test_log_condition_numbers_begin_at_zero():
    found = log_condition_numbers(new_model("mlp_skip").encoders[0], halves("digits", "train")["view1"][:30])

    assert found.shape == (30,)
    assert (found >= 0).all() and found.max() < 0.05


def test_linear_accuracy_is_invariant_to_scales_and_judges_the_upper_half_alone():
    pixels = linear_accuracy(lambda view: view, "digits", "test")
    scaled = linear_accuracy(lambda view: view * np.linspace(0.1, 30, 32) - 5, "digits", "test")
    lower = linear_accuracy(lambda view: np.roll(view, 1, axis=0), "digits", "test")

    assert 0.8 < pixels < 0.9
    assert scaled == pytest.approx(pixels, abs=1.5 / 360)
    assert lower < 0.3


def test_noise_lowers_linear_accuracy():
    pixels, noisy = (linear_accuracy(lambda view: view, "digits", "test", input_noise=noise) for noise in (0.0, 0.5))

    assert noisy < pixels - 0.05


def test_halves_are_those_of_images():
    views = halves("digits", "test")
    whole = np.concatenate([views["view1"], views["view2"]], axis=1).reshape(-1, 8, 8)

    np.testing.assert_allclose(whole * 16, load_arrays("digits", "test")["image"], atol=1e-5)


# === Experiments ===


def test_training_for_a_bound_is_traced():
    scale = experiments.dataclasses.replace(SMALL, updates=100)
    _, found = experiments.train_for_bound(scale, 0, lambda model: {"two": 2}, code_dim=16, hidden_dim=32)

    assert found["steps"] == [0, 20, 40, 60, 80, 100] and found["two"] == 6 * [2]
    assert {len(values) for values in found.values()} == {6}
    assert found["train_bound"][-1] > found["train_bound"][0] + 0.5
    assert found["test_bound"][0] + 0.5 < found["test_bound"][-1] < np.log(120)


def test_the_adversarial_encoder_and_the_classifier_take_turns():
    encoder = new_model("real_nvp_affine").encoders[0]
    model = experiments.AdversarialEncoder(encoder, 10, warmup_steps=2, classifier_steps=2)
    model.compile(experiments.adam(1e-3), experiments.adam(1e-3))
    data = experiments.endless_batches(
        (halves("digits", "train")["view1"], load_arrays("digits", "train")["label"]), 32, 0
    )
    moved = []

    def weights():
        return [part.get_weights() for part in (encoder, model.classifier)]

    def compare(epoch, logs):
        before, now = (moved.pop() if moved else None), weights()
        if before is not None:
            moved.append("".join(name for name, *pair in zip("ec", before, now, strict=True) if not same(*pair)))
        moved.append(now)

    def same(first, second):
        return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))

    callback = keras.callbacks.LambdaCallback(on_epoch_end=compare)
    model.fit(data, epochs=9, steps_per_epoch=1, shuffle=False, verbose=0, callbacks=[callback])
    turns = "c" + "".join(moved[:-1])

    assert turns == "cc" + "cce" * 2 + "c"


def test_the_adversarial_encoder_makes_predictions_uniform():
    encoder = new_model("real_nvp_affine", hidden_dim=32).encoders[0]
    model = experiments.AdversarialEncoder(encoder, 10, warmup_steps=0, classifier_steps=0)
    model.compile(experiments.adam(3e-3), experiments.adam(1e-3))
    data = experiments.endless_batches(
        (halves("digits", "train")["view1"], load_arrays("digits", "train")["label"]), 64, 0
    )
    losses = model.fit(data, epochs=3, steps_per_epoch=40, shuffle=False, verbose=0).history["encoder_loss"]

    # The cross-entropy with the uniform target is at least log 10, which it comes near to.
    assert losses[0] > losses[-1] > np.log(10)
    assert losses[-1] < np.log(10) + 0.03


def test_pairs_of_numbers_have_the_paper_s_distribution():
    assert experiments.scalar_information() == pytest.approx(-0.5 * np.log(1 - 0.04), abs=1e-6)
    assert experiments.scalar_information() == pytest.approx(0.020411, abs=1e-6)
    rng = np.random.default_rng(0)
    for dependent, within in ((True, [[1, 0.9], [0.9, 1]]), (False, [[2, 0.4], [0.4, 2]])):
        pairs = np.concatenate(list(experiments.scalar_pairs(20_000, 8, dependent, rng).values()), axis=1)
        sets = pairs.reshape(20_000, 8, 2)
        # Four standard errors of variances of 160,000 and, between batches, 20,000 draws.
        np.testing.assert_allclose(np.cov(sets[:, 0].T), [[2, 0.4], [0.4, 2]], atol=4 * 2 * np.sqrt(2 / 20_000))
        centred = (sets - sets.mean(axis=1, keepdims=True)).reshape(-1, 2)
        found = centred.T @ centred / (20_000 * 7)
        np.testing.assert_allclose(found, within, atol=4 * 2 * np.sqrt(2 / 140_000))


def test_dependent_pairs_give_more_than_the_truth_and_independent_ones_do_not():
    truth = experiments.scalar_information()
    dependent, independent = (experiments.dependent_pairs(SMALL, 0, "nce", kind) for kind in (True, False))

    assert dependent["mean"] > truth + 3 * dependent["standard_error"]
    assert independent["mean"] <= truth + 3 * independent["standard_error"]
    assert len(dependent["curve"]) == 20


def test_arms_that_go_opposite_ways_are_counted(tmp_path):
    ledger = Ledger(tmp_path / "runs.json", {})
    runs = {"a": [(3.0, 0.8), (3.1, 0.81)], "b": [(2.0, 0.9), (2.1, 0.91)], "c": [(1.0, 0.7), (1.1, 0.95)]}
    for arm, values in runs.items():
        for seed, (bound, accuracy) in enumerate(values):
            found = {"test_bound": [0.0, bound], "accuracy": [0.5, accuracy]}
            ledger.run(arm, seed, lambda found=found: found, lambda message: None)

    # The accuracies of c overlap with all others.
    assert experiments.opposed_pairs(ledger, runs) == ([("a", "b")], 1)


def made_up(arm, fall):
    """A run of an arm: as the experiments return it, with an adversarial encoder that gets worse by `fall`."""

    def run(scale, seed):
        if arm in experiments.GAUSSIAN:
            return {"curve": [0.0, 0.1], "mean": 0.1 * arm.startswith("dependent"), "standard_error": 0.01}
        found = {"steps": [0, 10], "accuracy": [0.85, 0.86 + seed / 1000], "inverse_error": 1e-14}
        if arm == experiments.ADVERSARIAL:
            return {**found, "accuracy": [0.85, 0.85 - fall]}
        return {
            **found,
            "train_bound": [0.0, 3.0],
            "test_bound": [0.0, 2.0],
            "log_condition": [[0.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
        }

    return run


@pytest.mark.parametrize(
    ("fall", "beginning"),
    [
        (
            0.1,
            "Shows: an invertible encoder can lose accuracy, bounds fail for pairs that depend on each other. Does not",
        ),
        (-0.1, "Shows: bounds fail for pairs that depend on each other. Does not show: an invertible encoder can lose"),
    ],
)
def test_the_verdict_is_that_of_the_runs(fall, beginning, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "ARMS", {arm: made_up(arm, fall) for arm in experiments.ARMS})
    experiments.reproduce(tmp_path, seeds=2, invertible_seeds=4)
    found = json.loads((tmp_path / "mi_representation.json").read_text())

    assert found["verdict"].startswith(beginning)
    assert "Of 0.0204 nats, estimates exceed the truth" in found["verdict"]
    assert found["after_training"]["invertible, nce"]["accuracy"]["seeds"] == 4
    assert found["after_training"]["mlp critic, nwj"]["test_bound"] == {"mean": 2.0, "std": 0.0, "seeds": 2}
    assert (tmp_path / "mi_representation.png").stat().st_size > 50_000


@pytest.mark.slow
def test_reproduction_writes_its_results(tmp_path):
    experiments.reproduce(tmp_path, seeds=1, updates=10, invertible_seeds=2)

    assert {path.name for path in tmp_path.iterdir()} == {
        "mi_representation.json", "mi_representation.png", "mi_representation.runs.json"
    }  # fmt: skip


# === Saving, signatures, held-out data ===


@pytest.mark.parametrize("kind", KINDS)
def test_saving_gives_the_model_back(kind, tmp_path):
    changes = {"critic": "separable", "critic_embedding_dim": 3, "estimator": "nwj", "target_bound": 2.0}
    model = random_model(kind, **changes, input_noise=0.1, permutation_seed=5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    views = random_views(4)

    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded(views), model(views))


@pytest.mark.parametrize("kind", ["convnet", "mlp_skip", "real_nvp_affine"])
def test_encoders_are_layers_of_their_own(kind):
    encoder = random_model(kind).encoders[0]
    again = type(encoder).from_config(encoder.get_config())
    views = random_views(3)["view1"]
    again.build(views.shape)
    again.set_weights(encoder.get_weights())

    np.testing.assert_array_equal(again(views), encoder(views))


@pytest.mark.parametrize("kind", KINDS)
def test_only_invertible_encoders_offer_to_decode(kind):
    assert ("decode" in new_model(kind).signatures()) == kind.startswith("real_nvp")


@pytest.mark.parametrize("kind", ["real_nvp_affine", pytest.param("convnet", marks=pytest.mark.slow)])
def test_encoders_export_with_their_inverses(kind, tmp_path):
    model = random_model(kind)
    report = export_model(model, tmp_path, ["litert", "onnx"], "none", benchmark=False)

    for artifact in report.artifacts:
        assert artifact.verified and set(artifact.errors) == set(model.signatures())


def test_scores_take_another_number_of_candidates():
    views = random_views(5)

    assert random_model().run("score", view1=views["view1"][:2], view2=views["view2"])["scores"].shape == (2, 5)


def test_fit_repeats_under_a_seed():
    losses = []
    for _ in range(2):
        model = new_model(seed=3, input_noise=0.1)
        model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)
        data = experiments.endless_batches(halves("digits", "train"), 32, 0)
        losses.append(model.fit(data, epochs=3, steps_per_epoch=2, verbose=0).history["loss"])

    assert losses[0] == losses[1]


def test_real_inputs_are_held_out_halves():
    model = new_model("real_nvp")
    assert list(model.real_inputs("encode")) == [] and model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    views = halves("digits", "validation")
    for name, key in (("encode", "view1"), ("score", "view1"), ("decode", "code")):
        found = list(model.real_inputs(name, 50))
        assert len(found) == 3
        model.signatures()[name].check(found[0])
        wanted = views["view1"][50:100] if key == "view1" else model.encoders[0](views["view1"][50:100])
        np.testing.assert_allclose(found[1][key], wanted, atol=1e-6)


def test_task_metric_is_the_accuracy_of_a_linear_classifier():
    model = new_model("mlp_skip")
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    metric = model.task_metric()
    found = metric.compute(lambda name, inputs: model.run(name, **inputs))

    assert found == pytest.approx(linear_accuracy(model.encoders[0], "digits", "test"), abs=1.5 / 360)
    assert metric.higher_is_better and metric.name == "accuracy"


def test_evaluation_is_of_stated_candidates():
    model = random_model(estimator="nwj", stddev=0.05)
    views = {name: value.reshape(6, EVALUATION_CANDIDATES, 32) for name, value in halves("digits", "test").items()}
    values = [float(model.bound(model({name: value[i] for name, value in views.items()}))) for i in range(6)]
    found = experiments.evaluate(model, "digits", "test")

    assert set(found) == {"accuracy", "nwj_at_60"}
    assert found["nwj_at_60"] == pytest.approx(np.mean(values), abs=1e-5)


# === Facts ===

MLP = 392 * 300 + 300 + 300 * 300 + 300 + 300 * 100 + 100
CONVNET = 25 * 64 + 64 + 25 * 64 * 128 + 128 + 2 * 128 + 128 * 100 + 100
SKIP = 5 * (392 * 392 + 392)
ADDITIVE = 30 * (196 * 512 + 512 + 512 * 512 + 512 + 512 * 196 + 196)
SEPARABLE = 2 * 2 * (100 * 100 + 100)


@pytest.mark.parametrize(
    ("preset", "encoder", "critic"),
    [
        ("mnist_real_nvp", ADDITIVE, 392 * 392),
        ("mnist_real_nvp_affine", ADDITIVE + 30 * (512 * 196 + 196), 392 * 392),
        ("mnist_mlp_skip", SKIP, 392 * 392),
        ("mnist_mlp", MLP, 100 * 100),
        ("mnist_mlp_separable", MLP, SEPARABLE),
        ("mnist_mlp_mlp", MLP, 200 * 200 + 200 + 200 + 1),
        ("mnist_convnet", CONVNET, 100 * 100),
    ],
)
def test_presets_have_the_sizes_of_the_paper(preset, encoder, critic):
    model = zoo.get("mi_representation", preset, weights=None)

    assert [part.count_params() for part in (*model.encoders, model.critic)] == [encoder, encoder, critic]
    assert zoo.info("mi_representation").preset(preset).parameters == 2 * encoder + critic


def test_published_sizes():
    assert (MLP, CONVNET, SKIP, ADDITIVE, SEPARABLE) == (238_300, 219_748, 770_280, 13_922_040, 40_400)


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"view_shape": (32,)}, "`view_shape` must be a height and a width"),
        ({"view_shape": (1, 1)}, "`view_shape` must be a height and a width"),
        ({"encoder": "transformer"}, "`encoder` must be one of"),
        ({"coupling": "spline"}, "`coupling` must be one of"),
        ({"estimator": "dv"}, "`estimator` must be one of"),
        ({"critic": "euclidean"}, "`critic` must be one of"),
        ({"code_dim": 0}, "`code_dim` must be at least 1"),
        ({"encoder": "real_nvp", "code_dim": 5}, "`code_dim` must be None"),
        ({"encoder": "mlp_skip", "code_dim": 5}, "`code_dim` must be None"),
        ({"hidden_dim": 0}, "`hidden_dim` must be at least 1"),
        ({"num_hidden_layers": -1}, "`num_hidden_layers` must be at least 0"),
        ({"num_couplings": 0}, "`num_couplings` must be at least 1"),
        ({"permutation_seed": -1}, "`permutation_seed` must be at least 0"),
        ({"critic": "mlp", "critic_hidden_dims": ()}, "`hidden_dims` must hold at least one size"),
        ({"target_bound": float("nan")}, "`target_bound` must be finite"),
        ({"input_noise": -0.1}, "`input_noise` must be finite and not negative"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        MultiViewInfoMax(**{"view_shape": (4, 8)} | changes)


ONES = {"view1": np.ones((4, 32), "float32"), "view2": np.ones((4, 32), "float32")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(ONES["view1"]), "`inputs` must be a dict of 'view1' and 'view2'"),
        (lambda m: m({"view1": ONES["view1"]}), "`inputs` must be a dict of 'view1' and 'view2'"),
        (lambda m: m.compute_loss(ONES, y=ONES["view1"], y_pred=m(ONES)), "`y` must be None"),
        (lambda m: m.compute_loss(ONES, y_pred=m(ONES), sample_weight=1.0), "`sample_weight` must be None"),
        (lambda m: m.compute_loss(ONES, y_pred=tf.zeros((1, 1))), "`scores` must"),
        (lambda m: m.run("encode", view1=255 * np.ones((4, 32), "uint8")), r"`view1` must be in \[0.0, 1.0\]"),
        (lambda m: m.run("encode", view1=ONES["view1"] * np.nan), "`view1` must be finite"),
        (lambda m: m.run("encode", view1=np.ones((4, 64))), "`view1` must have shape"),
        (lambda m: m.run("score", view1=ONES["view1"], view2=-ONES["view2"]), "`view2` must be in"),
    ],
)
@pytest.mark.parametrize("estimator", ["nce", "nwj"])
def test_methods_refuse(call, message, estimator):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call(new_model(estimator=estimator))
