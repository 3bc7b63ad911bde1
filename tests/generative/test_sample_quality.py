"""Measures of samples, held against closed forms, SciPy, scikit-learn, and loops over all points."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import norm
from sklearn.neighbors import KernelDensity

from zoo.datasets import load_arrays
from zoo.experiments import sample_quality as module
from zoo.experiments.sample_quality import (
    FeatureClassifier,
    best_parzen_sigma,
    class_counts,
    frechet_distance,
    nearest_distances,
    nearest_neighbour_accuracy,
    num_modes,
    parzen_log_likelihood,
    precision_and_recall,
    sample_quality,
    scaled_images,
    squared_distances,
)


def rows(count, features=4, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, features)) + shift


@pytest.fixture(params=[1000, 7])
def chunk(request, monkeypatch):
    """Distances all at once, and in parts."""
    monkeypatch.setattr(module, "CHUNK", request.param)


# === Distances ===


def test_distances_are_those_of_a_loop(chunk):
    first, second = rows(15), rows(23, seed=1)
    loop = np.array([[np.linalg.norm(row - other) for other in second] for row in first])

    np.testing.assert_allclose(squared_distances(first, second), loop**2, rtol=1e-9)
    np.testing.assert_allclose(nearest_distances(first, second), loop.min(axis=1), rtol=1e-9)


def test_frechet_distance_agrees_with_scipy():
    first, second = rows(50) @ rows(4, seed=2), 0.5 + rows(60, seed=1) @ rows(4, seed=3)
    covariances = [np.cov(points, rowvar=False) for points in (first, second)]
    trace = np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    expected = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2) + trace

    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_in_one_dimension_is_that_of_means_and_deviations():
    first, second = rows(40, 1), 3 * rows(50, 1, seed=1) + 2
    expected = (first.mean() - second.mean()) ** 2 + (first.std(ddof=1) - second.std(ddof=1)) ** 2

    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_from_itself_is_nothing_even_in_a_plane():
    points = rows(30)
    points[:, 3] = points[:, 2]

    assert frechet_distance(points, points) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(points, points + 2.0) == pytest.approx(16.0, rel=1e-9)


def loop_precision(real, fake, k):
    """The share of samples inside a ball around some image, as the paper says it."""
    inside = 0
    for sample in fake:
        for index, image in enumerate(real):
            others = np.delete(real, index, axis=0)
            radius = np.sort(np.linalg.norm(others - image, axis=1))[k - 1]
            if np.linalg.norm(sample - image) <= radius:
                inside += 1
                break
    return inside / len(fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_a_loop(k, chunk):
    real, fake = rows(25, 3), rows(30, 3, seed=1, shift=1.5)
    found = precision_and_recall(real, fake, k)

    assert found == pytest.approx((loop_precision(real, fake, k), loop_precision(fake, real, k)))
    assert 0.1 < min(found) and max(found) < 0.95


def test_lost_modes_cost_recall_and_noise_costs_precision():
    real = np.concatenate([rows(100), rows(100, seed=1, shift=50.0)])
    half = np.concatenate([rows(100, seed=2), rows(100, seed=3)])
    noisy = np.concatenate([real + 0.01, rows(200, seed=4, shift=-80.0)])
    lost, spoiled = precision_and_recall(real, half), precision_and_recall(real, noisy)

    assert lost[0] > 0.7 and 0.3 < lost[1] <= 0.5
    assert spoiled[0] == pytest.approx(0.5, abs=0.01) and spoiled[1] > 0.98
    assert precision_and_recall(real, real) == (1.0, 1.0)
    assert precision_and_recall(real, rows(50, shift=-300.0)) == (0.0, 0.0)


def test_nearest_neighbour_accuracy_is_that_of_a_loop(chunk):
    real, fake = rows(20, 2), rows(20, 2, seed=1, shift=0.8)
    points = np.concatenate([real, fake])
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(40, np.inf))
    expected = np.mean((distances.argmin(axis=1) < 20) == (np.arange(40) < 20))

    assert nearest_neighbour_accuracy(real, fake) == expected


def test_nearest_neighbour_accuracy_of_one_distribution_of_two_and_of_copies():
    real = rows(1000)
    # Decisions of neighbours go together: four deviations of as many independent ones, doubled
    assert abs(nearest_neighbour_accuracy(real, rows(1000, seed=1)) - 0.5) < 2 * 4 * 0.5 / 2000**0.5
    assert nearest_neighbour_accuracy(real, rows(1000, seed=1, shift=30.0)) == 1.0
    assert nearest_neighbour_accuracy(real, real + 1e-6) == 0.0


@pytest.mark.parametrize(
    ("measure", "wrong"),
    [
        (frechet_distance, np.zeros((5, 3))),
        (frechet_distance, np.zeros((1, 4))),
        (frechet_distance, np.full((5, 4), np.nan)),
        (precision_and_recall, np.zeros((3, 4))),
        (precision_and_recall, np.zeros(4)),
        (nearest_neighbour_accuracy, np.zeros((4, 4))),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(measure, wrong):
    with pytest.raises(ValueError, match=r"must be .*Received: "):
        measure(rows(10), wrong)


def test_the_number_of_neighbours_must_be_positive():
    with pytest.raises(ValueError, match=r"`num_neighbours` must be at least 1. Received: 0"):
        precision_and_recall(rows(10), rows(10), 0)


# === Densities ===


def test_parzen_window_of_one_sample_is_a_gaussian():
    images = rows(30, 3)
    expected = norm.logpdf(images, 0.5, 0.7).sum(axis=1).mean()

    assert parzen_log_likelihood(np.full((1, 3), 0.5), images, 0.7) == pytest.approx(expected, rel=1e-9)


def test_parzen_window_agrees_with_scikit_learn(chunk):
    samples, images = rows(40, 3), rows(25, 3, seed=1)
    expected = KernelDensity(bandwidth=0.3).fit(samples).score_samples(images).mean()

    assert parzen_log_likelihood(samples, images, 0.3) == pytest.approx(expected, rel=1e-9)


def test_the_width_of_the_window_is_the_likeliest_one():
    samples, validation = rows(200, 2), rows(100, 2, seed=1)
    candidates = [0.01, 0.1, 0.4, 2.0, 10.0]
    values = {sigma: parzen_log_likelihood(samples, validation, sigma) for sigma in candidates}

    assert best_parzen_sigma(samples, validation, candidates) == max(values, key=values.get) == 0.4
    with pytest.raises(ValueError, match=r"`sigma` must be positive and finite. Received: 0"):
        parzen_log_likelihood(samples, validation, 0)


# === Classes ===


def test_classes_are_counted_where_samples_are_sure():
    probabilities = np.array([[0.95, 0.05, 0.0]] * 50 + [[0.1, 0.9, 0.0]] * 49 + [[0.04, 0.0, 0.96]])

    assert class_counts(probabilities).tolist() == [50, 49, 1]
    # 0.9 is not more than 0.9, and one of a hundred is not more than a hundredth
    assert class_counts(probabilities, 0.9).tolist() == [50, 0, 1]
    assert num_modes(probabilities) == 1
    assert num_modes(np.repeat(np.eye(3), [95, 3, 2], axis=0)) == 3


@pytest.fixture(scope="module")
def classifier():
    return FeatureClassifier.of("digits")


def test_features_are_the_layer_before_the_probabilities(classifier):
    images = scaled_images("digits", "test")[:20]
    features = classifier.features(images)
    logits = features @ classifier.network.coefs_[-1] + classifier.network.intercepts_[-1]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert features.shape == (20, module.HIDDEN_DIMS[-1])
    np.testing.assert_allclose(classifier.probabilities(images), expected, rtol=1e-9)


def test_the_classifier_is_good_and_the_same_each_time(classifier):
    arrays = load_arrays("digits", "train")
    again = FeatureClassifier.fitted(scaled_images("digits", "train"), arrays["label"])
    images, labels = scaled_images("digits", "test"), load_arrays("digits", "test")["label"]

    assert classifier.accuracy(images, labels) > 0.95
    np.testing.assert_array_equal(again.features(images), classifier.features(images))
    assert classifier.features(images.astype(np.float32)).dtype == np.float64


def test_training_images_are_better_samples_than_worse_ones(classifier):
    test, train = (scaled_images("digits", split) for split in ("test", "train"))
    chosen = train[np.random.default_rng(0).permutation(len(train))[: len(test)]]
    noise = np.random.default_rng(0).random(test.shape)
    good, faded, bad = (sample_quality(classifier, test, images) for images in (chosen, 0.7 * chosen, noise))

    assert good["frechet_distance"] < faded["frechet_distance"] < bad["frechet_distance"]
    assert good["modes"] == 10 > bad["modes"]
    assert min(good["precision"], good["recall"]) > 0.85 > 0.2 > bad["precision"]
    assert abs(good["nearest_neighbour_accuracy"] - 0.5) < 0.1 < 0.4 < bad["nearest_neighbour_accuracy"] - 0.5
    assert good["confident"] > bad["confident"]
