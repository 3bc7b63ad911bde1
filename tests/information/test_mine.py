"""MINE: its gradient and bounds against closed forms, and what a trained network finds."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.information import bounds
from zoo.information.image_pairs import labelled_images
from zoo.information.mine import (
    MINE,
    VARIANTS,
    adaptive_clip,
    bias_corrected,
    estimate_with,
    random_cycle,
    update_log_average,
)


def small_model(seed=0, **changes):
    """A model with no weight left at its initial value."""
    keras.utils.set_random_seed(seed)
    model = MINE(**{"x_dim": 3, "z_dim": 2, "hidden_dims": (8, 8)} | changes)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0.0, 0.7, variable.shape))
    return model


def gaussian_pairs(count, dim, correlation, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dim))
    z = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=(count, dim))
    return {"x": x.astype("float32"), "z": z.astype("float32")}


def train(model, pairs, batch_size, epochs=1, learning_rate=1e-3, steps_per_execution=20):
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer=optimizer, jit_compile=False, steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices(pairs).batch(batch_size, drop_remainder=True)
    return model.fit(data, epochs=epochs, verbose=0).history["loss"]


# === The objective ===


@pytest.mark.parametrize(("size", "biased"), [(2, 0.209), (4, 0.340), (8, 0.438), (32, 0.563), (256, 0.648)])
def test_gradient_of_a_minibatch_is_biased_and_the_moving_average_corrects_it(size, biased):
    """T = a x z on independent N(0, 1): d/da log E exp T = a / (1 - a^2) = 2/3 at a = 0.5."""
    a = tf.constant(0.5)
    batches = 4_000_000 // size
    rng = np.random.default_rng(size)
    products = rng.standard_normal((batches, size), "float32") * rng.standard_normal((batches, size), "float32")
    zero = tf.zeros_like(products)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(a)
        plain = -tf.reduce_mean(bounds.donsker_varadhan(zero, a * products))
        # With the average at its limit, the mean over batches is one over all samples
        corrected = -bias_corrected(zero[0], tf.reshape(a * products, [-1]), -0.5 * tf.math.log(1 - 0.5**2))

    assert float(tape.gradient(plain, a)) == pytest.approx(biased, abs=0.005)
    assert float(tape.gradient(corrected, a)) == pytest.approx(2 / 3, abs=0.01)


def test_corrected_gradient_is_the_formula_and_its_value_the_bound():
    rng = np.random.default_rng(0)
    joint, marginal = (tf.Variable(rng.normal(size=size)) for size in (6, 9))
    log_average = tf.Variable(0.3, dtype=tf.float64)
    with tf.GradientTape() as tape:
        value = bias_corrected(joint, marginal, log_average)
    gradients = tape.gradient(value, [joint, marginal, log_average])

    np.testing.assert_allclose(gradients[0], np.full(6, 1 / 6), atol=1e-6)
    np.testing.assert_allclose(gradients[1], -np.exp(marginal.numpy()) / 9 / np.exp(0.3), atol=1e-6)
    assert gradients[2] is None
    np.testing.assert_allclose(value, bounds.donsker_varadhan(joint, marginal), atol=1e-12)
    surrogate = np.mean(joint) - np.mean(np.exp(marginal)) / np.exp(0.3)
    assert abs(float(value) - surrogate) > 0.1


def test_average_is_kept_in_logarithms():
    scores, log_average = tf.constant([0.5, -1.0, 2.0], tf.float64), tf.constant(0.4, tf.float64)
    expected = np.log(0.99 * np.exp(0.4) + 0.01 * np.mean(np.exp(scores)))

    np.testing.assert_allclose(update_log_average(log_average, scores, 0.01), expected, atol=1e-12)
    np.testing.assert_allclose(update_log_average(log_average + 5e3, scores + 5e3, 0.01), expected + 5e3, atol=1e-9)
    np.testing.assert_allclose(update_log_average(log_average, scores, 1.0), np.log(np.mean(np.exp(scores))))


def test_corrected_objective_is_finite_for_large_scores():
    joint, marginal = tf.Variable(tf.fill([4], 500.0)), tf.Variable([400.0, 500.0, -500.0])
    with tf.GradientTape() as tape:
        value = bias_corrected(joint, marginal, update_log_average(tf.constant(490.0), marginal, 0.01))

    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(value, [joint, marginal]))


@pytest.mark.parametrize("corrected", [False, True])
def test_table_of_two_binary_variables_gives_the_exact_information(corrected):
    table = np.array([[0.4, 0.1], [0.2, 0.3]])
    product = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
    truth = np.sum(table * np.log(table / product))
    scores = tf.Variable(tf.zeros((2, 2), tf.float64))
    # Every cell as often as its probability says, in hundredths
    cells = [np.repeat(np.arange(4), np.round(100 * p.ravel()).astype(int)) for p in (table, product)]
    optimizer, log_average = keras.optimizers.Adam(0.1), tf.constant(0.0, tf.float64)
    for _ in range(200):
        with tf.GradientTape() as tape:
            joint, marginal = (tf.gather(tf.reshape(scores, [-1]), chosen) for chosen in cells)
            log_average = update_log_average(log_average, marginal, 0.1)
            value = (
                bias_corrected(joint, marginal, log_average) if corrected else bounds.donsker_varadhan(joint, marginal)
            )
        optimizer.apply([-gradient for gradient in tape.gradient(value, [scores])], [scores])

    assert float(value) == pytest.approx(truth, abs=1e-3)
    ratio = np.log(table / product)
    np.testing.assert_allclose(scores.numpy() - scores.numpy().mean(), ratio - ratio.mean(), atol=0.02)


# === Adaptive clipping ===


def test_clipped_gradient_is_no_longer_than_the_main_one():
    main = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    long, short = [tf.constant([0.0, 30.0]), tf.constant([[40.0]])], [tf.constant([0.0, 0.3]), tf.constant([[0.4]])]

    clipped = adaptive_clip(main, long)
    np.testing.assert_allclose(clipped[0], [3.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[8.0]], rtol=1e-6)
    kept = adaptive_clip(main, short)
    np.testing.assert_allclose(kept[0], [3.0, 0.3], rtol=1e-6)
    np.testing.assert_allclose(kept[1], [[4.4]], rtol=1e-6)


def test_clipping_takes_gradients_that_are_zero_or_missing():
    main = [tf.constant([3.0, 4.0]), tf.constant([1.0])]

    for added in ([tf.zeros(2), tf.zeros(1)], [None, None]):
        for found, wanted in zip(adaptive_clip(main, added), main, strict=True):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(adaptive_clip([tf.zeros(2)], [tf.ones(2)])[0], [0.0, 0.0])


# === Permutations ===


@pytest.mark.parametrize("size", [2, 3, 17])
def test_orders_are_single_cycles_over_all_places(size):
    first, second = random_cycle(size, 0)
    following = dict(zip(first.tolist(), second.tolist(), strict=True))
    place, seen = 0, []
    for _ in range(size):
        seen.append(place)
        place = following[place]

    assert sorted(seen) == list(range(size)) and place == 0
    assert size < 4 or not np.array_equal(first, random_cycle(size, 1)[0])


def test_training_draws_a_new_order_for_every_batch_and_leaves_no_pair_together():
    model = small_model(x_dim=1, z_dim=1)
    seen = []

    def record(x, z, training):
        seen.append((x.numpy().ravel(), z.numpy().ravel()))
        return tf.zeros(len(x))

    model._score = record
    places = tf.range(12, dtype=tf.float32)[:, None]
    for training in (True, True, False, False):
        model.compute_loss({"x": places, "z": places}, y_pred=tf.zeros(12), training=training)
    orders = [dict(zip(*pair, strict=True)) for pair in seen]

    assert all(sorted(order) == sorted(order.values()) == list(range(12)) for order in orders)
    assert all(x != z for order in orders for x, z in order.items())
    assert orders[0] != orders[1]
    # Evaluation: ten orders, the same each time
    assert len(orders) == 2 + 2 * 10 and orders[2:12] == orders[12:]
    assert len({tuple(sorted(order.items())) for order in orders[2:12]}) == 10


# === Training ===


def test_first_batch_begins_the_average_and_later_ones_move_it():
    model = small_model(ema_rate=0.25)
    pairs = [
        tf.nest.map_structure(
            tf.constant,
            {k: v[:, :d] for (k, v), d in zip(gaussian_pairs(8, 3, 0.5, seed).items(), (3, 2), strict=True)},
        )
        for seed in range(3)
    ]
    marginals = []
    original = model._marginal_scores
    model._marginal_scores = lambda *args: marginals.append(original(*args)) or marginals[-1]
    means = []
    for batch in pairs:
        model.compute_loss(batch, y_pred=model(batch), training=True)
        means.append(np.mean(np.exp(marginals[-1].numpy())))
    expected = 0.75 * (0.75 * means[0] + 0.25 * means[1]) + 0.25 * means[2]

    assert float(model.log_average) == pytest.approx(np.log(expected), abs=1e-5)
    assert int(model.num_averaged) == 3
    model.compute_loss(pairs[0], y_pred=model(pairs[0]), training=False)
    assert int(model.num_averaged) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_the_negative_bound_of_the_variant(variant):
    model = small_model(variant=variant)
    batch = {"x": tf.random.normal((16, 3), seed=0), "z": tf.random.normal((16, 2), seed=1)}
    kept = {}
    original = model._marginal_scores
    model._marginal_scores = lambda *args: kept.setdefault("marginal", original(*args))
    loss = model.compute_loss(batch, y_pred=model(batch), training=True)
    joint, marginal = model(batch).numpy(), kept["marginal"].numpy()
    fdiv = np.mean(joint) - np.mean(np.exp(marginal - 1))
    dv = np.mean(joint) - np.log(np.mean(np.exp(marginal)))

    assert float(loss) == pytest.approx(-(fdiv if variant == "fdiv" else dv), rel=1e-5)


def test_evaluation_loss_is_the_negative_estimate():
    model = small_model()
    model.compile(optimizer="sgd", jit_compile=False)
    pairs = {"x": np.random.default_rng(0).normal(size=(400, 3)), "z": np.random.default_rng(1).normal(size=(400, 2))}
    data = tf.data.Dataset.from_tensors(tf.nest.map_structure(lambda v: tf.constant(v, tf.float32), pairs))

    # Other orders than the estimate's
    assert -model.evaluate(data, verbose=0) == pytest.approx(model.estimate(**pairs), abs=0.15)
    assert model.evaluate(data, verbose=0) == model.evaluate(data, verbose=0)


@pytest.mark.parametrize(
    ("correlation", "low", "high"),
    [
        # Truths 1.661, 0.288, 3.917
        (0.9, 1.63, 1.67),
        pytest.param(0.5, 0.27, 0.288, marks=pytest.mark.slow),
        pytest.param(0.99, 3.5, 3.9, marks=pytest.mark.slow),
    ],
)
def test_trained_network_finds_the_information_of_gaussian_pairs(correlation, low, high):
    keras.utils.set_random_seed(0)
    model = zoo.get("mine", "gaussian_2d", weights=None)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 1500)
    train(model, gaussian_pairs(256 * 1500, 2, correlation, 0), 256, learning_rate=schedule)

    assert low < model.estimate(**gaussian_pairs(50_000, 2, correlation, 1)) < high


@pytest.mark.parametrize("variant", VARIANTS)
def test_independent_samples_have_no_information_whatever_the_training_batches_show(variant):
    keras.utils.set_random_seed(0)
    model = MINE(2, 2, hidden_dims=(32, 32), variant=variant)
    losses = train(model, gaussian_pairs(512, 2, 0.0, 0), 32, epochs=8, learning_rate=3e-3, steps_per_execution=1)

    assert -min(losses) > 0.01
    assert abs(model.estimate(**gaussian_pairs(20_000, 2, 0.0, 1))) < 0.05


def test_constant_of_the_network_leaves_the_estimate_but_not_that_of_fdiv():
    pairs = gaussian_pairs(500, 2, 0.9, 0)
    values = {}
    for variant in ("ema", "fdiv"):
        model = small_model(x_dim=2, variant=variant)
        bias = model.critic.score_layers[-1].bias
        values[variant] = []
        for shift in (0.0, 5.0):
            bias.assign_add([shift])
            values[variant].append(model.estimate(**pairs))

    assert values["ema"][1] == pytest.approx(values["ema"][0], abs=1e-4)
    assert abs(values["fdiv"][1] - values["fdiv"][0]) > 1


def test_fit_repeats_under_a_seed():
    losses = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        losses.append(train(MINE(2, 2, (16,), input_noise=0.1), gaussian_pairs(256, 2, 0.9, 0), 32, epochs=3))

    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_noise_is_added_in_training_only():
    model = small_model(input_noise=0.5)
    batch = {"x": tf.zeros((4, 3)), "z": tf.zeros((4, 2))}

    assert np.ptp(model(batch, training=True)) > 0.01
    np.testing.assert_array_equal(model(batch), small_model()(batch))


# === Use ===


def test_estimate_is_the_mean_over_permutations():
    model = small_model()
    x, z = np.random.default_rng(0).normal(size=(30, 3)), np.random.default_rng(1).normal(size=(30, 2))
    joint = model.run("score", x=x, z=z)["score"].astype("float64")
    values = []
    for seed in (5, 6, 7):
        first, second = random_cycle(30, seed)
        marginal = model.run("score", x=x[first], z=z[second])["score"].astype("float64")
        values.append(joint.mean() - np.log(np.mean(np.exp(marginal))))

    assert model.estimate(x, z, num_permutations=3, seed=5) == pytest.approx(np.mean(values), abs=1e-6)


def test_estimate_does_not_depend_on_the_size_of_chunks(monkeypatch):
    model, pairs = small_model(x_dim=2), gaussian_pairs(100, 2, 0.9, 0)
    whole = model.estimate(**pairs)
    monkeypatch.setattr("zoo.information.mine.CHUNK", 7)

    assert model.estimate(**pairs) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_signature_estimates_every_set_of_pairs(variant):
    model = small_model(variant=variant)
    inputs = model.dummy_inputs("estimate", batch_size=3)
    found = model.run("estimate", **inputs)["mutual_information"]
    joint, marginal = (
        np.stack([model.run("score", x=inputs["x"][i], z=inputs[z][i])["score"] for i in range(3)])
        for z in ("z", "z_permuted")
    )

    np.testing.assert_allclose(found, model.bound(joint, marginal), rtol=1e-5, atol=1e-5)


def test_saving_gives_the_model_back(tmp_path):
    model = small_model(variant="ema", input_noise=0.1, ema_rate=0.5, activation="tanh")
    model.log_average.assign(1.5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = model.dummy_inputs("score")

    assert loaded.get_config() == model.get_config()
    assert float(loaded.log_average) == 1.5
    np.testing.assert_array_equal(loaded.run("score", **inputs)["score"], model.run("score", **inputs)["score"])


# === Held-out data ===


def test_pairs_are_scaled_images_with_their_labels():
    pairs = labelled_images("digits", "test")
    arrays = zoo.datasets.load_arrays("digits", "test")

    np.testing.assert_allclose(pairs["x"] * 16, arrays["image"].reshape(-1, 64), atol=1e-5)
    np.testing.assert_array_equal(pairs["z"].argmax(axis=1), arrays["label"])
    assert pairs["z"].shape == (360, 10) and set(np.unique(pairs["z"])) == {0.0, 1.0}


def test_real_inputs_are_held_out_pairs():
    model = zoo.get("mine", weights=None)
    assert list(model.real_inputs("score")) == [] and model.task_metric() is None

    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    pairs = labelled_images("digits", "validation")
    batches = list(model.real_inputs("score", 90))
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in batches[:2]]), pairs["x"])
    assert len(batches) == 4
    (sets,) = model.real_inputs("estimate", 3)
    model.signatures()["estimate"].check(sets)
    assert sets["x"].shape == (3, 60, 64)
    assert np.mean(np.all(sets["z"] == sets["z_permuted"], axis=-1)) < 0.2


def test_task_metric_is_the_held_out_estimate():
    model = zoo.get("mine", weights=None)
    model.metadata = SimpleNamespace(evaluation_dataset="digits")
    metric = model.task_metric()
    found = metric.compute(lambda name, inputs: model.run(name, **inputs))

    assert found == pytest.approx(model.estimate(**labelled_images("digits", "test")), abs=1e-6)
    assert metric.higher_is_better


# === Facts ===


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("gaussian_2d", 100 * 4 + 100 + 10_100 + 101),
        ("equitability", 100 * 2 + 100 + 10_100 + 101),
        ("gaussian_20d", 400 * 40 + 400 + 2 * 160_400 + 401),
        ("ib_mnist", 400 * 1040 + 400 + 2 * 160_400 + 401),
    ],
)
def test_presets_have_the_sizes_of_the_statistics_network(preset, parameters):
    model = zoo.get("mine", preset, weights=None)

    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == parameters
    assert zoo.info("mine").preset(preset).parameters == model.count_params() == parameters + 2


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_dim": 0}, "`x_dim` must be at least 1"),
        ({"z_dim": 0}, "`z_dim` must be at least 1"),
        ({"hidden_dims": ()}, "`hidden_dims` must hold at least one size"),
        ({"hidden_dims": (8, 0)}, "`hidden_dims` must hold sizes of at least 1"),
        ({"variant": "kl"}, "`variant` must be one of"),
        ({"ema_rate": 0.0}, r"`ema_rate` must be in \(0, 1\]"),
        ({"ema_rate": 1.5}, r"`ema_rate` must be in \(0, 1\]"),
        ({"input_noise": -1.0}, "`input_noise` must be finite and not negative"),
        ({"input_noise": float("nan")}, "`input_noise` must be finite and not negative"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        MINE(**{"x_dim": 3, "z_dim": 2} | changes)


ONES = {"x": np.ones((4, 3), "float32"), "z": np.ones((4, 2), "float32")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.estimate(ONES["x"], ONES["z"][:3]), "`z` must have shape"),
        (lambda m: m.estimate(ONES["z"], ONES["z"]), "`x` must have shape"),
        (lambda m: m.estimate(ONES["x"] * np.nan, ONES["z"]), "`x` must be finite"),
        (lambda m: m.estimate(ONES["x"][:1], ONES["z"][:1]), "`x` must be at least 2 pairs"),
        (lambda m: m.estimate(**ONES, num_permutations=0), "`num_permutations` must be at least 1"),
        (lambda m: m(ONES["x"]), "`inputs` must be a dict of 'x' and 'z'"),
        (lambda m: m({"x": ONES["x"]}), "`inputs` must be a dict of 'x' and 'z'"),
        (lambda m: m.compute_loss(ONES, y=ONES["z"], y_pred=m(ONES)), "`y` must be None"),
        (lambda m: m.compute_loss(ONES, y_pred=m(ONES), sample_weight=1.0), "`sample_weight` must be None"),
        (
            lambda m: m.compute_loss({k: v[:1] for k, v in ONES.items()}, y_pred=tf.zeros(1)),
            "`x` must be a batch of at least 2 pairs",
        ),
        (lambda m: adaptive_clip([tf.ones(2)], []), "`information_gradients` must have as many tensors"),
    ],
)
def test_methods_refuse(call, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call(small_model())


def test_estimate_with_refuses_a_single_pair():
    with pytest.raises(ValueError, match="`x` must be at least 2 pairs"):
        estimate_with(lambda inputs: np.zeros(1), np.zeros((1, 3)), np.zeros((1, 2)), bounds.nwj)
