"""How good samples of images are: distances between sets, in the features of a fixed classifier of the same images.

No single number says it: samples may be faithful but few (precision without recall), or varied but wrong. All measures but
those of single samples depend on the number of images, so that only sets of one size can be compared.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zoo.arguments import require
from zoo.datasets import load_arrays

# Hidden layers of the classifier; the last one gives the features, few enough for covariances of a few hundred images.
HIDDEN_DIMS = (128, 32)
# Updates of the classifier and images of each: few, or it learns the training images by heart and sees all others as unlike.
CLASSIFIER_UPDATES, CLASSIFIER_BATCH = 400, 100
# Of data sets of many images
LEAST_EPOCHS = 3
# A class is found if this share of samples is of it, for sure.
SMALLEST_SHARE = 0.01
CONFIDENT = 0.9
NUM_NEIGHBOURS = 3
# Rows whose distances to all others are held at once.
CHUNK = 1000


# === Distances ===


def squared_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the squared Euclidean distance of each row from each of the others, `(count, other_count)`."""
    rows, others = (np.asarray(values, np.float64) for values in (rows, others))
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2.0 * rows @ others.T
    return squares.clip(0.0)


def nearest_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distance of each row from the nearest of the others, `(count,)`."""
    return np.sqrt(_by_rows(rows, lambda chunk, start: squared_distances(chunk, others).min(axis=1)))


def _by_rows(rows: np.ndarray, function: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    starts = range(0, len(rows), CHUNK)
    return np.concatenate([function(rows[start : start + CHUNK], start) for start in starts])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the squared Frechet (Wasserstein-2) distance of Gaussians fitted to two sets of features.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

    Args:
        first: array `(count, features)`.
        second: array `(other_count, features)`.

    Reference:
        Heusel et al. 2017, section 3, with another classifier's features.
    """
    _check_features(first, second, 2)
    first, second = (np.asarray(rows, np.float64) for rows in (first, second))
    covariances = [np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T
    # The same eigenvalues as C1 C2, of a symmetric matrix
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    trace = sum(np.trace(covariance) for covariance in covariances) - 2.0 * np.sqrt(product.clip(0.0)).sum()
    return float(np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2) + max(trace, 0.0))


def precision_and_recall(
    real: np.ndarray, fake: np.ndarray, num_neighbours: int = NUM_NEIGHBOURS
) -> tuple[float, float]:
    """Returns the share of samples among the images, and of images among the samples.

    A point is among a set if it is no further from one of its points than that one's k-th nearest neighbour in the set.

    Args:
        real: array `(count, features)`. Features of images.
        fake: array `(other_count, features)`. Features of samples.
        num_neighbours: int. k.

    Reference:
        Kynkaanniemi et al. 2019, section 2.
    """
    _check_features(real, fake, num_neighbours + 1)
    require(num_neighbours >= 1, "num_neighbours", "at least 1", num_neighbours)
    return _share_among(fake, real, num_neighbours), _share_among(real, fake, num_neighbours)


def _share_among(points: np.ndarray, references: np.ndarray, num_neighbours: int) -> float:
    # A reference is its own nearest one, at the distance 0
    radii = _by_rows(
        references,
        lambda chunk, start: np.partition(_with_themselves(chunk, start, references, 0.0), num_neighbours, axis=1)[
            :, num_neighbours
        ],
    )
    inside = _by_rows(points, lambda chunk, start: (squared_distances(chunk, references) <= radii).any(axis=1))
    return float(inside.mean())


def _with_themselves(chunk: np.ndarray, start: int, rows: np.ndarray, value: float) -> np.ndarray:
    """Returns squared distances of a part of rows from all of them, those of a row from itself set to a value."""
    squares = squared_distances(chunk, rows)
    places = np.arange(len(chunk))
    squares[places, start + places] = value
    return squares


def nearest_neighbour_accuracy(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns how often the nearest other point is of the same set: 0.5 for two samples of one distribution.

    1 where the sets are apart; below 0.5 where samples are near copies of the images.

    Args:
        real: array `(count, features)`. Features of images.
        fake: array of the same shape. Features of samples.

    Reference:
        Lopez-Paz, Oquab 2017, with the nearest neighbour as in Xu et al. 2018.
    """
    _check_features(real, fake, 2)
    require(len(real) == len(fake), "fake", f"as many as `real`, {len(real)}", len(fake))
    rows = np.concatenate([real, fake])
    is_fake = np.arange(len(rows)) >= len(real)
    nearest = _by_rows(rows, lambda chunk, start: _with_themselves(chunk, start, rows, np.inf).argmin(axis=1))
    return float(np.mean(is_fake[nearest] == is_fake))


def _check_features(first: np.ndarray, second: np.ndarray, least: int) -> None:
    shapes = (np.shape(first), np.shape(second))
    matched = all(len(shape) == 2 and shape[0] >= least for shape in shapes) and shapes[0][1] == shapes[1][1]
    require(matched, "features", f"two sets of at least {least} rows of one size", f"shapes={shapes}")
    finite = all(np.isfinite(rows).all() for rows in (first, second))
    require(finite, "features", "finite", "NaN or infinite values")


# === Densities ===


def parzen_log_likelihood(samples: np.ndarray, images: np.ndarray, sigma: float) -> float:
    """Returns the mean log-density of images under a Gaussian kernel at each sample, in nats.

    It favours samples near the images' mean over likelier models (Theis et al. 2016): for the numbers of the first paper
    on adversarial networks only.

    Args:
        samples: array `(count, features)`.
        images: array `(other_count, features)`.
        sigma: float. Standard deviation of the kernel.

    Reference:
        Goodfellow et al. 2014, section 5; Breuleux et al. 2011.
    """
    require(0 < sigma < math.inf, "sigma", "positive and finite", sigma)
    features = samples.shape[1]
    constant = math.log(len(samples)) + 0.5 * features * math.log(2.0 * math.pi * sigma**2)

    def log_sums(chunk: np.ndarray, start: int) -> np.ndarray:
        return np.logaddexp.reduce(-0.5 * squared_distances(chunk, samples) / sigma**2, axis=1)

    return float(np.mean(_by_rows(images, log_sums)) - constant)


def best_parzen_sigma(samples: np.ndarray, validation: np.ndarray, candidates: Sequence[float]) -> float:
    """Returns the kernel under which validation images are likeliest."""
    return max(candidates, key=lambda sigma: parzen_log_likelihood(samples, validation, sigma))


# === Classes ===


def class_counts(probabilities: np.ndarray, confident: float = 0.0) -> np.ndarray:
    """Returns how many samples are of each class, `(classes,)`.

    Args:
        probabilities: array `(count, classes)`.
        confident: float. Least probability of a sample that counts.
    """
    chosen = probabilities[probabilities.max(axis=1) > confident].argmax(axis=1)
    return np.bincount(chosen, minlength=probabilities.shape[1])


def num_modes(probabilities: np.ndarray) -> int:
    """Returns how many classes more than a hundredth of the samples are of, at a confidence of more than 0.9."""
    return int(np.sum(class_counts(probabilities, CONFIDENT) > SMALLEST_SHARE * len(probabilities)))


@dataclasses.dataclass(frozen=True)
class FeatureClassifier:
    """A classifier of images whose last hidden layer gives the features that sets are compared by.

    Args:
        network: fitted scikit-learn `MLPClassifier`. Trained in float64, so that it is the same on all machines.
    """

    network: Any

    @classmethod
    def fitted(cls, images: np.ndarray, labels: np.ndarray) -> FeatureClassifier:
        """Trains the classifier.

        Args:
            images: array `(num_images, ...)`, in [0, 1].
            labels: int array `(num_images,)`.
        """
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        # The number of epochs is the end of the training, and no failure
        epochs = max(math.ceil(CLASSIFIER_UPDATES * CLASSIFIER_BATCH / len(images)), LEAST_EPOCHS)
        batch_size = min(CLASSIFIER_BATCH, len(images))
        network = MLPClassifier(HIDDEN_DIMS, batch_size=batch_size, max_iter=epochs, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return cls(network.fit(_rows(images), labels))

    @classmethod
    @functools.cache
    def of(cls, dataset: str) -> FeatureClassifier:
        """Returns the classifier of a data set's training images.

        Args:
            dataset: str. Name for `zoo.datasets.load`.
        """
        arrays = load_arrays(dataset, "train")
        return cls.fitted(scaled_images(dataset, "train"), arrays["label"])

    def features(self, images: np.ndarray) -> np.ndarray:
        """Returns the last hidden layer of images `(num_images, ...)`, `(num_images, features)`."""
        hidden = _rows(images)
        for weights, bias in zip(self.network.coefs_[:-1], self.network.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weights + bias, 0.0)
        return hidden

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each class for images `(num_images, ...)`, `(num_images, classes)`."""
        return self.network.predict_proba(_rows(images))

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Returns the share of images whose likeliest class is their label."""
        return float(np.mean(self.probabilities(images).argmax(axis=1) == labels))


def scaled_images(dataset: str, split: str) -> np.ndarray:
    """Returns the images of a split, in [0, 1]."""
    brightest = load_arrays(dataset, "train")["image"].max()
    return load_arrays(dataset, split)["image"] / float(brightest)


def _rows(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float64).reshape(len(images), -1)


def sample_quality(classifier: FeatureClassifier, images: np.ndarray, samples: np.ndarray) -> dict[str, float]:
    """Returns all measures in a classifier's features.

    Args:
        classifier: `FeatureClassifier` of the same kind of images.
        images: array `(count, ...)`, in [0, 1]. Held-out images.
        samples: array of the same shape.

    Returns:
        Dict: `frechet_distance` (0 at best), `modes` (classes found), `precision`, `recall`, `nearest_neighbour_accuracy`
        (0.5 at best) and `confident`, the share of samples that are clearly of one class.
    """
    real, fake = classifier.features(images), classifier.features(samples)
    precision, recall = precision_and_recall(real, fake)
    probabilities = classifier.probabilities(samples)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "modes": num_modes(probabilities),
        "precision": precision,
        "recall": recall,
        "nearest_neighbour_accuracy": nearest_neighbour_accuracy(real, fake),
        "confident": float(np.mean(probabilities.max(axis=1) > CONFIDENT)),
    }
