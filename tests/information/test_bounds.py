"""Bounds on mutual information: their values at known critics, held against TensorFlow Probability and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

from zoo.information import bounds

SHIFTS = (-50.0, 0.0, 50.0)


def random_scores(*shape, seed=0, scale=2.0, dtype="float64"):
    return tf.constant(np.random.default_rng(seed).normal(0.0, scale, shape), dtype)


def loop_log_mean_exp(values):
    values = np.asarray(values, np.float64)
    return np.log(np.mean(np.exp(values - values.max()))) + values.max()


def gradient(function, scores):
    scores = tf.convert_to_tensor(scores)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        value = function(scores)
    return tape.gradient(value, scores).numpy()


def gaussian_pairs(count, dim, correlation, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dim))
    return x, correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=(count, dim))


def log_ratio(x, z, correlation):
    """log p(x, z) / (p(x) p(z)) of standard normal pairs, summed over the last axis."""
    rest = 1 - correlation**2
    square = correlation**2 * (x**2 + z**2) - 2 * correlation * x * z
    return np.sum(-0.5 * np.log(rest) - square / (2 * rest), axis=-1)


def correlation_of(information, dim):
    return np.sqrt(1 - np.exp(-2 * information / dim))


# === Splitting a matrix ===


@pytest.mark.parametrize("size", [2, 3, 7])
def test_matrix_is_split_into_diagonal_and_rest(size):
    scores = random_scores(size, size)
    joint, marginal = bounds.joint_and_marginal(scores)

    np.testing.assert_array_equal(joint, np.diag(scores))
    np.testing.assert_array_equal(marginal, scores.numpy()[~np.eye(size, dtype=bool)])


def test_splitting_keeps_leading_axes_and_takes_dynamic_sizes():
    scores = random_scores(4, 5, 3, 3)
    split = tf.function(bounds.joint_and_marginal, input_signature=[tf.TensorSpec([None, 5, None, None], tf.float64)])
    joint, marginal = split(scores)

    assert joint.shape == (4, 5, 3) and marginal.shape == (4, 5, 6)
    np.testing.assert_array_equal(marginal[2, 3], bounds.joint_and_marginal(scores[2, 3])[1])


# === Against TensorFlow Probability ===


@pytest.mark.parametrize("seed", range(3))
def test_bounds_equal_those_of_tensorflow_probability(seed):
    scores = random_scores(9, 9, seed=seed)
    split = bounds.joint_and_marginal(scores)
    theirs = tfp.vi.mutual_information

    # A row of theirs is one x with all y, so are normalised alike.
    np.testing.assert_allclose(bounds.info_nce(scores), theirs.lower_bound_info_nce(scores), atol=1e-6)
    np.testing.assert_allclose(bounds.nwj(*split), theirs.lower_bound_nguyen_wainwright_jordan(scores), atol=1e-6)
    np.testing.assert_allclose(
        bounds.jensen_shannon_objective(*split), theirs.lower_bound_jensen_shannon(scores), atol=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_info_nce_is_log_k_less_a_cross_entropy(seed):
    scores = random_scores(6, 11, seed=seed)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(6), scores)

    assert float(bounds.info_nce(scores)) == pytest.approx(np.log(11) - np.mean(cross_entropy), abs=1e-6)


# === InfoNCE ===


def test_info_nce_of_known_scores():
    assert float(bounds.info_nce(tf.fill((8, 8), 3.0))) == pytest.approx(0.0, abs=1e-6)
    assert float(bounds.info_nce(1e4 * tf.eye(8))) == pytest.approx(np.log(8), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_info_nce_is_at_most_log_k(seed):
    scores = random_scores(12, 12, seed=seed, scale=30.0)
    # The most that any scores allow: each right candidate the best of its row.
    best = tf.linalg.set_diag(scores, tf.reduce_max(scores, axis=1))

    assert float(bounds.info_nce(scores)) < float(bounds.info_nce(best)) <= np.log(12)


def test_info_nce_does_not_see_shifts_of_contexts_but_those_of_candidates():
    scores, shift = random_scores(7, 7), random_scores(7, seed=1)
    value = float(bounds.info_nce(scores))

    assert float(bounds.info_nce(scores + shift[:, None])) == pytest.approx(value, abs=1e-6)
    assert abs(float(bounds.info_nce(scores + shift[None, :])) - value) > 0.1


def test_symmetric_info_nce_is_the_mean_over_rows_and_columns():
    scores = random_scores(6, 6)
    expected = (bounds.info_nce(scores) + bounds.info_nce(tf.transpose(scores))) / 2

    np.testing.assert_allclose(bounds.info_nce(scores, symmetric=True), expected, atol=1e-12)
    assert abs(float(expected - bounds.info_nce(scores))) > 1e-3


@pytest.mark.parametrize("temperature", [0.1, 1, 3.0, tf.constant(0.5)])
def test_temperature_divides_the_scores(temperature):
    scores = random_scores(6, 6)

    np.testing.assert_allclose(
        bounds.info_nce(scores, temperature=temperature), bounds.info_nce(scores / np.float64(temperature)), atol=1e-7
    )


def test_explicit_negatives_are_columns():
    positive, negatives = random_scores(5), random_scores(5, 3, seed=1)
    joined = tf.concat([negatives[:, :2], positive[:, None], negatives[:, 2:]], axis=1)
    expected = np.mean(
        [p - loop_log_mean_exp([p, *row]) for p, row in zip(positive.numpy(), negatives.numpy(), strict=True)]
    )

    assert float(bounds.info_nce(joined, positives=tf.fill([5], 2))) == pytest.approx(expected, abs=1e-10)


def test_masked_candidates_do_not_count():
    scores = random_scores(5, 8)
    mask = np.random.default_rng(3).random((5, 8)) < 0.5
    np.fill_diagonal(mask, True)
    expected = np.mean([scores[i, i] - loop_log_mean_exp(scores.numpy()[i, mask[i]]) for i in range(5)])

    assert float(bounds.info_nce(scores, mask=mask)) == pytest.approx(expected, abs=1e-10)
    found = gradient(lambda s: bounds.info_nce(s, mask=mask), scores)
    np.testing.assert_array_equal(found == 0, ~mask)


def test_mask_of_a_symmetric_bound_is_transposed_with_the_scores():
    scores, mask = random_scores(4, 4), np.tri(4, dtype=bool)
    expected = (bounds.info_nce(scores, mask=mask) + bounds.info_nce(tf.transpose(scores), mask=mask.T)) / 2

    np.testing.assert_allclose(bounds.info_nce(scores, mask=mask, symmetric=True), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("symbols", "batch", "expected"),
    [(10, 4, 1.18681), (10, 64, 2.22979), (10, 1024, 2.29818), (1000, 64, 4.11577)],
)
def test_expectation_on_uniform_symbols(symbols, batch, expected):
    """X = C uniform, f = c [x = c] with a large c: E = log K - E log(1 + Bin(K - 1, 1 / M))."""
    counts = np.arange(batch)
    exact = np.log(batch) - np.sum(stats.binom.pmf(counts, batch - 1, 1 / symbols) * np.log1p(counts))
    assert exact == pytest.approx(expected, abs=1e-5)

    # 4 s.e.; fewer batches of the largest matrices, whose values vary the least.
    rounds = 2000 if batch < 1000 else 60
    drawn = np.random.default_rng(0).integers(0, symbols, (rounds, batch))
    values = bounds.info_nce(50.0 * tf.cast(drawn[:, :, None] == drawn[:, None, :], tf.float32)).numpy()
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(rounds)


def scores_of_best_critic(batches, size, dim, correlation, seed=0):
    """Log-ratios of all pairs: (batches, size, size), a row for each z."""
    x, z = (part.reshape(batches, size, dim) for part in gaussian_pairs(batches * size, dim, correlation, seed))
    rest = 1 - correlation**2
    squares = np.sum(x**2, axis=-1)[:, None, :] + np.sum(z**2, axis=-1)[:, :, None]
    products = np.einsum("bid,bjd->bij", z, x)
    return -0.5 * dim * np.log(rest) - (correlation**2 * squares - 2 * correlation * products) / (2 * rest)


@pytest.mark.parametrize(("size", "expected", "tolerance"), [(128, 1.890, None), (256, 2.0, 0.1)])
def test_info_nce_with_the_best_critic_of_gaussian_pairs(size, expected, tolerance):
    """Of 2 nats in 20 dimensions, 128 candidates show 1.890 +- 0.003 (3000 batches); 256 are within 0.1 of the truth."""
    values = bounds.info_nce(scores_of_best_critic(200, size, 20, correlation_of(2.0, 20))).numpy()
    error = values.std() / np.sqrt(200)

    assert values.mean() == pytest.approx(expected, abs=tolerance or 4 * error + 0.012)
    assert values.mean() < 2.0


def test_info_nce_saturates_at_log_k():
    values = bounds.info_nce(scores_of_best_critic(30, 128, 20, correlation_of(10.0, 20))).numpy()

    assert np.log(128) - 0.1 < values.mean() <= np.log(128)
    assert values.max() <= np.log(128)


# === Donsker-Varadhan and NWJ ===


@pytest.mark.parametrize("seed", range(5))
def test_donsker_varadhan_does_not_see_constants_and_is_above_nwj(seed):
    joint, marginal = random_scores(40, seed=seed, dtype="float32"), random_scores(60, seed=seed + 50, dtype="float32")
    value = bounds.donsker_varadhan(joint, marginal)

    for shift in SHIFTS:
        np.testing.assert_allclose(bounds.donsker_varadhan(joint + shift, marginal + shift), value, atol=1e-5)
    assert float(bounds.nwj(joint, marginal)) <= float(value)


def test_nwj_is_largest_at_its_own_constant():
    joint, marginal = random_scores(40), random_scores(60, seed=1)
    # log u <= u / e touches at u = e: where the marginal's mean of exp f is e.
    constant = 1.0 - loop_log_mean_exp(marginal)

    np.testing.assert_allclose(
        bounds.nwj(joint + constant, marginal + constant), bounds.donsker_varadhan(joint, marginal), atol=1e-10
    )


def test_large_scores_stay_finite():
    joint, marginal = random_scores(30, scale=1000.0, dtype="float32"), random_scores(30, seed=1, scale=1000.0)
    for function in (bounds.donsker_varadhan, bounds.jensen_shannon_objective):
        assert np.isfinite(function(joint, tf.cast(marginal, "float32")))
        assert np.isfinite(gradient(lambda s, f=function: f(joint, s), tf.cast(marginal, "float32"))).all()


@pytest.mark.parametrize(("correlation", "dim", "truth"), [(0.9, 2, 1.6607)])
def test_analytic_critic_gives_the_truth(correlation, dim, truth):
    x, z = gaussian_pairs(1_000_000, dim, correlation, seed=0)
    _, other = gaussian_pairs(1_000_000, dim, correlation, seed=1)
    joint, marginal = log_ratio(x, z, correlation), log_ratio(x, other, correlation)

    assert float(bounds.donsker_varadhan(joint, marginal)) == pytest.approx(truth, abs=0.02)
    assert float(bounds.nwj(joint + 1, marginal + 1)) == pytest.approx(truth, abs=0.02)
    assert float(bounds.jensen_shannon(joint, marginal)) == pytest.approx(truth, abs=0.02)


def test_nwj_with_all_pairs_of_batches_gives_the_truth():
    scores = 1.0 + scores_of_best_critic(200, 128, 1, 0.9)

    assert np.mean(bounds.nwj(*bounds.joint_and_marginal(scores))) == pytest.approx(0.8304, abs=0.02)


def test_nwj_of_known_scores():
    assert float(bounds.nwj(*bounds.joint_and_marginal(tf.ones((4, 4))))) == pytest.approx(0.0, abs=1e-6)
    scores = random_scores(5, 5)
    raised = tf.linalg.set_diag(scores, tf.fill([5], tf.constant(50.0, tf.float64)))
    change = bounds.nwj(*bounds.joint_and_marginal(raised)) - bounds.nwj(*bounds.joint_and_marginal(scores))
    assert float(change) == pytest.approx(50 - np.mean(np.diag(scores)), abs=1e-9)


# === Jensen-Shannon ===


def test_jensen_shannon_has_the_value_of_nwj_and_the_gradient_of_its_objective():
    joint, marginal = random_scores(20), random_scores(30, seed=1)

    expected = 1 + np.mean(joint) - np.mean(np.exp(marginal))
    assert float(bounds.jensen_shannon(joint, marginal)) == pytest.approx(expected, abs=1e-9)
    for place in range(2):
        scores = (joint, marginal)

        def along(function, place=place, scores=scores):
            return gradient(lambda s: function(*scores[:place], s, *scores[place + 1 :]), scores[place])

        wanted = along(bounds.jensen_shannon_objective)
        np.testing.assert_allclose(along(bounds.jensen_shannon), wanted, atol=1e-12)
        assert np.abs(wanted).max() > 0


def test_jensen_shannon_objective_is_largest_at_the_log_ratio():
    x, z = gaussian_pairs(200_000, 1, 0.8, seed=0)
    _, other = gaussian_pairs(200_000, 1, 0.8, seed=1)
    scores = log_ratio(x, z, 0.8), log_ratio(x, other, 0.8)
    values = [
        float(bounds.jensen_shannon_objective(*(scale * s + shift for s in scores)))
        for scale, shift in [(1, 0), (1, 0.3), (1, -0.3), (1.3, 0), (0.7, 0)]
    ]

    assert np.argmax(values) == 0
    assert max(values) <= 0


# === Interpolated ===


def loop_interpolated(scores, alpha, log_baseline):
    """The bound by its definition, one pair at a time."""
    size = len(scores)
    joint, marginal = [], []
    for i in range(size):
        for j in range(size):
            if i == j:
                continue
            leaving_j = np.mean([np.exp(scores[i, k]) for k in range(size) if k != j])
            leaving_i = np.mean([np.exp(scores[i, k]) for k in range(size) if k != i])
            baseline = (1 - alpha) * np.exp(log_baseline[i])
            joint.append(scores[i, i] - np.log(alpha * leaving_j + baseline))
            marginal.append(np.exp(scores[i, j]) / (alpha * leaving_i + baseline))
    return 1 + np.mean(joint) - np.mean(marginal)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_interpolated_bound_is_its_definition(alpha):
    scores, baseline = random_scores(6, 6), random_scores(6, seed=1)

    np.testing.assert_allclose(
        bounds.interpolated(scores, alpha, baseline), loop_interpolated(scores.numpy(), alpha, baseline.numpy())
    )
    np.testing.assert_allclose(bounds.interpolated(scores, alpha), loop_interpolated(scores.numpy(), alpha, np.ones(6)))


def test_ends_of_the_interpolated_bound():
    scores = random_scores(8, 8)
    info_nce_of_fewer = np.mean(
        [
            scores[i, i] - loop_log_mean_exp(np.delete(scores.numpy()[i], j))
            for i in range(8)
            for j in range(8)
            if i != j
        ]
    )

    np.testing.assert_allclose(bounds.interpolated(scores, 1.0), info_nce_of_fewer, atol=1e-9)
    np.testing.assert_allclose(
        bounds.interpolated(scores, 0.0), bounds.nwj(*bounds.joint_and_marginal(scores)), atol=1e-9
    )


@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0])
def test_interpolated_bound_is_finite_and_bounded_on_scores_of_a_sure_critic(alpha):
    """One candidate makes up all of a row's sum: to leave it out by a difference would lose everything."""
    scores = random_scores(8, 8, dtype="float32") + 60.0 * tf.eye(8)
    found = float(bounds.interpolated(scores, alpha))

    assert found == pytest.approx(loop_interpolated(scores.numpy().astype("float64"), alpha, np.ones(8)), rel=1e-5)
    assert found <= 1 + np.log(7 / alpha)
    assert np.isfinite(gradient(lambda s: bounds.interpolated(s, alpha), scores)).all()


def test_gradient_of_the_interpolated_bound_is_that_of_differences():
    scores = random_scores(4, 4)
    found = gradient(lambda s: bounds.interpolated(s, 0.3), scores)
    step = 1e-5
    for place in np.ndindex(4, 4):
        offset = np.zeros((4, 4))
        offset[place] = step
        difference = bounds.interpolated(scores + offset, 0.3) - bounds.interpolated(scores - offset, 0.3)
        assert found[place] == pytest.approx(float(difference) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("alpha", [0.01, 0.5, 0.9])
def test_interpolated_bound_of_the_best_critic_is_below_the_truth(alpha):
    """4 s.e."""
    values = bounds.interpolated(1.0 + scores_of_best_critic(400, 32, 2, correlation_of(3.0, 2)), alpha).numpy()

    assert 2.0 < values.mean() < 3.0 + 4 * values.std() / np.sqrt(400)


# === Leading axes, types ===


@pytest.mark.parametrize(
    "function",
    [
        bounds.info_nce,
        lambda s: bounds.info_nce(s, symmetric=True),
        lambda s: bounds.interpolated(s, 0.4),
        lambda s: bounds.interpolated(s, 0.4, s[..., 0]),
        lambda s: bounds.nwj(*bounds.joint_and_marginal(s)),
        lambda s: bounds.donsker_varadhan(*bounds.joint_and_marginal(s)),
        lambda s: bounds.jensen_shannon(*bounds.joint_and_marginal(s)),
    ],
)
def test_leading_axes_stay_and_half_precision_is_computed_in_float32(function):
    scores = random_scores(3, 2, 5, 5)
    values = function(scores)

    assert values.shape == (3, 2)
    np.testing.assert_allclose(values[2, 1], function(scores[2, 1]), atol=1e-10)
    assert function(tf.cast(scores, tf.bfloat16)).dtype == tf.float32


# === Bad input ===


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bounds.info_nce(tf.ones((1, 1))), "`scores` must have at least 2 candidates"),
        (lambda: bounds.info_nce(tf.ones((4, 1))), "`scores` must have at least 2 candidates"),
        (lambda: bounds.info_nce(tf.ones(3)), "`scores` must be a matrix"),
        (lambda: bounds.info_nce(tf.ones((3, 2))), "`scores` must have a column for each row"),
        (lambda: bounds.info_nce(tf.ones((3, 4)), symmetric=True), "`scores` must be a square matrix"),
        (lambda: bounds.info_nce(tf.ones((3, 3)), temperature=0), "`temperature` must be positive"),
        (lambda: bounds.info_nce(tf.ones((3, 3)), temperature=float("nan")), "`temperature` must be positive"),
        (
            lambda: bounds.info_nce(tf.ones((3, 3)), symmetric=True, positives=tf.range(3)),
            "`positives` must be None for a symmetric bound",
        ),
        (lambda: bounds.joint_and_marginal(tf.ones((1, 1))), "`scores` must be a square matrix of at least 2 pairs"),
        (lambda: bounds.joint_and_marginal(tf.ones((2, 3))), "`scores` must be a square matrix"),
        (lambda: bounds.interpolated(tf.ones((1, 1)), 0.5), "`scores` must be a square matrix of at least 2 pairs"),
        (lambda: bounds.interpolated(tf.ones((3, 3)), 1.5), r"`alpha` must be in \[0, 1\]"),
        (lambda: bounds.interpolated(tf.ones((3, 3)), float("nan")), r"`alpha` must be in \[0, 1\]"),
        (lambda: bounds.nwj(tf.ones(()), tf.ones(3)), "`joint_scores` must have a last axis"),
        (lambda: bounds.donsker_varadhan(tf.ones(3), tf.ones(0)), "`marginal_scores` must have a last axis"),
    ],
)
def test_bounds_refuse(call, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        call()
