"""Variational autoencoders: how their checkpoints are trained, and how their latents differ from a plain autoencoder's.

Binary digits of 8 x 8 pixels, the same layers and the same budget for both. Every decoded image is thresholded at one half
and held against the test images and a fixed linear classifier. Beside the standard normal, which a plain autoencoder knows
nothing of, codes for it are drawn from the Gaussian of its own training codes.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from zoo.catalog import info
from zoo.datasets import load_arrays
from zoo.experiments.autoencoder import batches, shuffled_images
from zoo.experiments.image_grids import tiled
from zoo.experiments.report import Ledger, Progress, mean_and_std, spread, write_results
from zoo.experiments.sample_quality import CONFIDENT, class_counts, nearest_distances
from zoo.experiments.training import available_dataset, cosine_adam
from zoo.generative.autoencoder import Autoencoder
from zoo.generative.image_networks import EVALUATION_SEED, ImageAutoencoder
from zoo.generative.vae import EVALUATION_SAMPLES, VAE
from zoo.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Images whose likelihood is estimated with 500 samples, and passes over the images that the plain bound is averaged over
NUM_IMPORTANCE_SAMPLES = 500
MOST_IMAGES = 500
BOUND_DRAWS = 8


# === Recipes ===


def evaluate(model: VAE, dataset: str, split: str) -> dict[str, float]:
    """Returns bounds on the log-likelihood of a split's images, in nats per image; `nats_500` of the first 500 of them."""
    images = model.held_out_images(dataset, split)
    return {
        "elbo": bound(model, images),
        f"nats_{EVALUATION_SAMPLES}": model.held_out_nats(
            lambda name, inputs: model.run(name, **inputs), dataset, split
        ),
        f"nats_{NUM_IMPORTANCE_SAMPLES}": log_likelihood(model, images[:MOST_IMAGES]),
    }


def bound(model: VAE, images: np.ndarray) -> float:
    """Returns the mean evidence lower bound: of single samples, averaged over a few passes."""
    draws = [model.log_likelihood(images, 1, EVALUATION_SEED + index) for index in range(BOUND_DRAWS)]
    return float(np.mean(draws))


def log_likelihood(model: VAE, images: np.ndarray) -> float:
    """Returns the mean importance-weighted bound of many samples."""
    return float(model.log_likelihood(images, NUM_IMPORTANCE_SAMPLES, EVALUATION_SEED).mean())


def paper_optimizer(model: keras.Model, num_updates: int) -> None:
    """Compiles a model with the paper's optimiser, which keeps its learning rate whatever the number of updates."""
    model.compile(optimizer=keras.optimizers.Adagrad(0.02), jit_compile=False)


SLOW_ADAM, FAST_ADAM = cosine_adam(1e-3), cosine_adam(2e-3)


def _recipe(
    preset: str,
    dataset: str,
    epochs: int,
    steps_per_epoch: int = 500,
    compile_model: Callable[[keras.Model, int], None] = SLOW_ADAM,
) -> Recipe:
    return Recipe(
        method="vae",
        preset=preset,
        dataset=dataset,
        evaluation_dataset=None if dataset == "digits" else f"{dataset}_sample",
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        data=shuffled_images(100),
        compile=compile_model,
        evaluate=evaluate,
        monitor="val_loss",
    )


RECIPES = {
    "digits": _recipe("digits", "digits", epochs=250, steps_per_epoch=13, compile_model=FAST_ADAM),
    "digits_2d": _recipe("digits_2d", "digits", epochs=250, steps_per_epoch=13, compile_model=FAST_ADAM),
    "mnist": _recipe("mnist", "mnist", epochs=40),
    "mnist_2d": _recipe("mnist_2d", "mnist", epochs=40),
    "fashion_mnist": _recipe("fashion_mnist", "fashion_mnist", epochs=40),
    "aevb_mnist_20": _recipe("aevb_mnist_20", "mnist", epochs=200, compile_model=paper_optimizer),
}


# === Experiment ===


CLAIM = (
    "Trained on the bound, latents fill a continuous space that can be sampled, which those of a plain autoencoder do not; "
    "and more latents than needed are left unused rather than overfitted (paper, sections 2.3, 4 and 5)."
)
VARIATIONAL, PLAIN, FITTED = "VAE", "autoencoder", "autoencoder, Gaussian of its codes"
LATENT_DIMS = (2, 8, 32)
SAMPLE_MEASURES = ("nearest_test_distance", "smallest_class", "confident")
NUM_SAMPLES, NUM_PATHS, PATH_STEPS = 1000, 200, 9
ACTIVE = 0.01
# A loss of bound from 8 to 32 latents that counts as none, in nats
TOLERANCE = 0.5
PLANE_CELLS = 40


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 3000,
    plane_updates: int = 10_000,
    progress: Progress = lambda message: None,
) -> None:
    """Trains both models on digits and writes `vae.json` and `vae.png`; on MNIST, `vae_latent_planes.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Updates of every run, of 100 images each.
        plane_updates: int. Updates of the two models of MNIST in a plane.
        progress: callable that takes one line per run.
    """
    settings = {
        "dataset": "digits, black and white from 8 of 16 on",
        "split": "test",
        "updates": updates,
        "batch_size": 100,
    }
    ledger = Ledger(directory / "vae.runs.json", settings)
    judge = Judge.on_digits()
    for seed in range(seeds):
        for dim in LATENT_DIMS:

            def run(kind: str, dim: int = dim, seed: int = seed) -> dict[str, float]:
                return measure(train_arm(kind, dim, updates, seed), judge, seed)

            for kind in (VARIATIONAL, PLAIN):
                ledger.run(_arm(kind, dim), seed, lambda kind=kind, run=run: run(kind), progress)
    progress("figures")
    dataset = available_dataset("mnist", progress)
    planes = {kind: train_plane(kind, dataset, plane_updates) for kind in (VARIATIONAL, PLAIN)}
    codes = {kind: plane_codes(model, dataset) for kind, model in planes.items()}
    shown = {
        (kind, dim): train_arm(kind, dim, updates, seed=0) for kind in (VARIATIONAL, PLAIN) for dim in LATENT_DIMS[:2]
    }
    write_results(
        "vae",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce vae --seeds {seeds} --updates {updates}",
        tables=_tables(ledger, judge, codes),
        figure=_figure(ledger, shown),
        more_figures={"latent_planes": _plane_figure(planes, codes)},
        settings={**settings, "seeds": seeds, "plane_dataset": dataset, "plane_updates": plane_updates},
    )


def _arm(kind: str, latent_dim: int) -> str:
    return f"{kind}, {latent_dim}"


# === Training ===


def binary_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stored pixels, thresholded at 8 of 16, and labels of a split.

    No run is chosen by validation images, so that they are part of `"train"` here.
    """
    parts = [load_arrays("digits", part) for part in (("train", "validation") if split == "train" else (split,))]
    levels = np.concatenate([part["image"] for part in parts])[..., None]
    return np.where(levels >= 8, 16, 0).astype("uint8"), np.concatenate([part["label"] for part in parts])


def train_arm(kind: str, latent_dim: int, updates: int, seed: int) -> ImageAutoencoder:
    """Trains a model of binary digits with the layers of the preset `digits`."""
    keras.utils.set_random_seed(seed)
    config = {**info("vae").preset("digits").config, "latent_dim": latent_dim}
    model = VAE(**config) if kind == VARIATIONAL else Autoencoder(**config)
    return _fit(model, binary_digits("train")[0], updates, seed, learning_rate=2e-3)


def train_plane(kind: str, dataset: str, updates: int) -> ImageAutoencoder:
    """Trains a model of black and white MNIST with two latents and the layers of the presets `mnist_2d`."""
    keras.utils.set_random_seed(0)
    config = info("vae").preset("mnist_2d").config
    model = VAE(**config) if kind == VARIATIONAL else Autoencoder(**config)
    return _fit(model, black_and_white(load_arrays(dataset, "train")["image"]), updates, 0, learning_rate=1e-3)


def black_and_white(levels: np.ndarray) -> np.ndarray:
    """Returns MNIST's pixels as 0 or 255, `(num_images, height, width, channels)`."""
    return np.where(levels >= 128, 255, 0).astype("uint8")[..., None]


def _fit(
    model: ImageAutoencoder, levels: np.ndarray, updates: int, seed: int, learning_rate: float
) -> ImageAutoencoder:
    cosine_adam(learning_rate)(model, updates)
    model.fit(batches(model, levels, 100, seed), steps_per_epoch=updates, shuffle=False, verbose=0)
    return model


# === Measures ===


@dataclasses.dataclass(frozen=True)
class Judge:
    """What decoded digits are held against.

    Args:
        images: binary array `(num_images, features)`. Test images.
        labels: int array `(num_images,)`.
        classifier: fitted scikit-learn classifier of binary digits.
    """

    images: np.ndarray
    labels: np.ndarray
    classifier: LogisticRegression

    @classmethod
    def on_digits(cls) -> Judge:
        """Fits the classifier to the training digits."""
        (train, train_labels), (test, test_labels) = map(binary_digits, ("train", "test"))
        classifier = LogisticRegression(max_iter=2000).fit(cls.features(train > 0), train_labels)
        return cls(cls.features(test > 0), test_labels, classifier)

    @staticmethod
    def features(images: np.ndarray) -> np.ndarray:
        """Returns images of any shape, thresholded at one half, as rows of 0 and 1."""
        return (np.asarray(images).reshape(len(images), -1) > 0.5).astype(np.float64)

    def confidence(self, images: np.ndarray) -> np.ndarray:
        """Returns the classifier's largest probability for each image."""
        return self.classifier.predict_proba(self.features(images)).max(axis=1)

    def judge(self, images: np.ndarray) -> dict[str, float]:
        """Returns how near samples are to test images, how many the rarest class has, and how many are clearly of one."""
        rows = self.features(images)
        counts = class_counts(self.classifier.predict_proba(rows))
        return {
            "nearest_test_distance": float(nearest_distances(rows, self.images).mean()),
            "smallest_class": int(counts.min()),
            "confident": float(np.mean(self.confidence(images) > CONFIDENT)),
        }


def measure(model: ImageAutoencoder, judge: Judge, seed: int) -> dict[str, float]:
    """Returns all measures of a trained model."""
    images = model.preprocess(binary_digits("test")[0])
    normal = np.random.default_rng(seed).standard_normal((NUM_SAMPLES, model.latent_dim)).astype(np.float32)
    found = {**judge.judge(model.decode(normal)), "path_confidence": path_confidence(model, images, judge)}
    if isinstance(model, VAE):
        mean, _ = model.encode(images)
        kl = model.predict(images, batch_size=len(images), verbose=0)["kl"]
        return {
            **found,
            "elbo": bound(model, images),
            "nats_500": log_likelihood(model, images),
            "kl": float(kl.sum(axis=1).mean()),
            "active_units": int(np.sum(mean.var(axis=0) > ACTIVE)),
        }
    loss = model.predict(images, batch_size=len(images), verbose=0)["loss"]
    codes = model.encode(model.preprocess(binary_digits("train")[0]))
    drawn = np.random.default_rng(seed).multivariate_normal(
        codes.mean(axis=0), np.cov(codes, rowvar=False), NUM_SAMPLES
    )
    fitted = judge.judge(model.decode(drawn.astype(np.float32)))
    return {
        **found,
        "reconstruction": float(loss.mean()),
        **{f"fitted_{name}": value for name, value in fitted.items()},
    }


def path_confidence(model: ImageAutoencoder, images: np.ndarray, judge: Judge) -> float:
    """Returns the share of images strictly between two test images that the classifier is confident of."""
    pairs = np.random.default_rng(EVALUATION_SEED).integers(0, len(images), (2, NUM_PATHS))
    between = model.interpolate(images[pairs[0]], images[pairs[1]], PATH_STEPS)[:, 1:-1]
    return float(np.mean(judge.confidence(between.reshape(-1, *images.shape[1:])) > CONFIDENT))


def plane_codes(model: ImageAutoencoder, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codes of the test images of MNIST in the plane `(num_images, 2)`, and their labels."""
    arrays = load_arrays(dataset, "test")
    found = model.encode(model.preprocess(black_and_white(arrays["image"])))
    return found[0] if isinstance(found, tuple) else found, arrays["label"]


def empty_share(codes: np.ndarray, box: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the share of a box's cells, in `PLANE_CELLS` rows and columns, without any code."""
    edges = [np.linspace(low, high, PLANE_CELLS + 1) for low, high in zip(*box, strict=True)]
    return float(np.mean(np.histogram2d(*codes.T, bins=edges)[0] == 0))


def middle_box(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners of the box without the outermost hundredth on each side."""
    return np.quantile(codes, 0.01, axis=0), np.quantile(codes, 0.99, axis=0)


# === Results ===


def _tables(
    ledger: Ledger, judge: Judge, codes: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Mapping[str, Any]]:
    def row(kind: str, dim: int, names: Sequence[str], prefix: str = "") -> dict[str, Any]:
        return {name: mean_and_std(ledger.values(_arm(kind, dim), f"{prefix}{name}")) for name in names}

    samples: dict[str, Mapping[str, Any]] = {}
    for dim in LATENT_DIMS:
        for kind in (VARIATIONAL, PLAIN):
            samples[_arm(kind, dim)] = row(kind, dim, (*SAMPLE_MEASURES, "path_confidence"))
        samples[_arm(FITTED, dim)] = row(PLAIN, dim, SAMPLE_MEASURES, "fitted_")
    train = judge.judge(binary_digits("train")[0] > 0)
    samples["training images"] = {name: train[name] for name in ("nearest_test_distance", "confident")}
    samples["test images"] = {"confident": float(np.mean(judge.confidence(judge.images) > CONFIDENT))}
    return {
        "bounds_by_number_of_latents": {
            str(dim): row(VARIATIONAL, dim, ("elbo", "nats_500", "kl", "active_units")) for dim in LATENT_DIMS
        },
        "reconstruction_of_the_autoencoder_in_nats": {
            str(dim): row(PLAIN, dim, ("reconstruction",))["reconstruction"] for dim in LATENT_DIMS
        },
        "thousand_samples": samples,
        "accuracy_of_the_classifier": float(judge.classifier.score(judge.images, judge.labels)),
        "empty_share_of_the_plane_of_mnist": {
            kind: empty_share(points, middle_box(points)) for kind, (points, _) in codes.items()
        },
    }


def _verdict(ledger: Ledger) -> str:
    def all_of(kind: str, name: str, dim: int) -> list[float]:
        return ledger.values(_arm(kind, dim), name)

    def sampled_better(dim: int, prefix: str) -> bool:
        distance, smallest = (
            list(zip(all_of(VARIATIONAL, name, dim), all_of(PLAIN, f"{prefix}{name}", dim), strict=True))
            for name in ("nearest_test_distance", "smallest_class")
        )
        return all(ours < theirs for ours, theirs in distance) and all(ours > theirs for ours, theirs in smallest)

    normal, fitted = ([dim for dim in LATENT_DIMS if sampled_better(dim, prefix)] for prefix in ("", "fitted_"))
    few, some, many = LATENT_DIMS
    active = all_of(VARIATIONAL, "active_units", many)
    lost = statistics.fmean(all_of(VARIATIONAL, "elbo", some)) - statistics.fmean(all_of(VARIATIONAL, "elbo", many))
    pruned = 0 < min(active) and max(active) < many and lost <= TOLERANCE
    shows = {0: "does not show", len(LATENT_DIMS): "shows"}.get(len(normal), "shows in part")
    confident = {kind: statistics.fmean(all_of(kind, "confident", few)) for kind in (VARIATIONAL, PLAIN)}
    rarest = {kind: statistics.fmean(all_of(kind, "smallest_class", few)) for kind in (VARIATIONAL, PLAIN)}
    return (
        f"That the VAE can be sampled and the autoencoder cannot {shows}. Of {', '.join(map(str, LATENT_DIMS))} latents, its "
        f"samples are nearer to test images in every seed, and its rarest class is less rare, with {_listed(normal)}; where "
        f"codes for the autoencoder are drawn from the Gaussian of its own codes, with {_listed(fitted)}. That unneeded "
        f"latents are left unused {'shows' if pruned else 'does not show'}: of {many}, {spread(active)} are active, and the "
        f"bound changes by {-lost:+.2f} nats from {some} latents (no less than {-TOLERANCE} counts as no loss). Confidence "
        f"is to be read beside classes: with {few} latents {confident[PLAIN]:.0%} of the autoencoder's samples are "
        f"confident, and its rarest class has {rarest[PLAIN]:.0f} of {NUM_SAMPLES}; of the VAE's, "
        f"{confident[VARIATIONAL]:.0%} and {rarest[VARIATIONAL]:.0f}."
    )


def _listed(dims: Sequence[int]) -> str:
    return ", ".join(map(str, dims)) or "none"


# === Figures ===


def _figure(ledger: Ledger, shown: Mapping[tuple[str, int], ImageAutoencoder]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.4), layout="constrained")
    axes = figure.subplots(2, 3)
    test, labels = binary_digits("test")
    flat, deep = LATENT_DIMS[:2]
    for column, kind in enumerate((VARIATIONAL, PLAIN)):
        model = shown[kind, flat]
        codes = model.encode(model.preprocess(test))
        _show_codes(axes[0, column], codes[0] if isinstance(codes, tuple) else codes, labels)
        axes[0, column].set_title(f"{kind}: codes of test digits")
        _show_grid(axes[1, column], model, normal_quantiles(12))
        axes[1, column].set_title(f"{kind}: decoded at normal quantiles")
    _show_strips(axes[0, 2], {kind: shown[kind, deep] for kind in (VARIATIONAL, PLAIN)}, test)
    axes[0, 2].set_title(f"Between two test digits, {deep} latents")
    _show_bounds(axes[1, 2], ledger)
    return figure


def _plane_figure(planes: Mapping[str, ImageAutoencoder], codes: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 11.5), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (kind, model) in enumerate(planes.items()):
        points, labels = codes[kind]
        low, high = middle_box(points)
        _show_codes(axes[0, column], points, labels)
        margin = 0.15 * (high - low)
        axes[0, column].set(
            xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1])
        )
        empty = empty_share(points, (low, high))
        axes[0, column].set_title(f"{kind}: codes of MNIST's test images ({empty:.0%} of the middle is empty)")
        lines = (
            normal_quantiles(20)
            if kind == VARIATIONAL
            else [np.linspace(*ends, 20) for ends in zip(low, high, strict=True)]
        )
        _show_grid(axes[1, column], model, lines)
        where = "quantiles of the prior" if kind == VARIATIONAL else "even steps across the middle of its codes"
        axes[1, column].set_title(f"{kind}: decoded at {where}")
    return figure


def normal_quantiles(count: int) -> list[np.ndarray]:
    """Returns, for both axes of a plane, quantiles of the standard normal in the middle of equal shares."""
    normal = statistics.NormalDist()
    return [np.array([normal.inv_cdf((index + 0.5) / count) for index in range(count)])] * 2


def _show_codes(axes: Axes, codes: np.ndarray, labels: np.ndarray) -> None:
    points = axes.scatter(*codes.T, c=labels, s=4, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    bar = axes.figure.colorbar(points, ax=axes, ticks=range(10), pad=0.01)
    bar.ax.tick_params(length=0)
    bar.set_label("digit")
    axes.set(xlabel="latent 1", ylabel="latent 2")


def _show_grid(axes: Axes, model: ImageAutoencoder, lines: Sequence[np.ndarray]) -> None:
    """Draws decoded images over a plane: latent 1 to the right, latent 2 upwards."""
    right, up = np.meshgrid(lines[0], lines[1][::-1])
    latent = np.stack([right.ravel(), up.ravel()], axis=1).astype(np.float32)
    images = model.decode(latent).reshape(*right.shape, *model.image_shape[:2])
    axes.imshow(tiled(images), cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], xlabel=_range("latent 1", lines[0]), ylabel=_range("latent 2", lines[1]))


def _range(name: str, line: np.ndarray) -> str:
    return f"{name}, {line[0]:.2g} to {line[-1]:.2g}"


def _show_strips(axes: Axes, models: Mapping[str, ImageAutoencoder], levels: np.ndarray) -> None:
    rows, names = [], []
    for pair in ((0, 3), (4, 9), (1, 8), (2, 7)):
        for kind, model in models.items():
            images = model.preprocess(levels[list(pair)])
            path = model.interpolate(images[:1], images[1:], PATH_STEPS)[0]
            rows.append(np.concatenate([images[:1], path, images[1:]])[..., 0])
            names.append(kind)
    axes.imshow(tiled(np.stack(rows)), cmap="gray_r", vmin=0, vmax=1)
    height, width = (size + 2 for size in levels.shape[1:3])
    axes.set_yticks([height * row + height / 2 for row in range(len(rows))], names)
    axes.set_xticks([width / 2, width * (PATH_STEPS + 1.5)], ["image", "image"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _show_bounds(axes: Axes, ledger: Ledger) -> None:
    for name, label, marker in (("nats_500", "500 samples", "s"), ("elbo", "evidence lower bound", "o")):
        runs = [ledger.values(_arm(VARIATIONAL, dim), name) for dim in LATENT_DIMS]
        means = [statistics.fmean(run) for run in runs]
        bars = [(mean - min(run), max(run) - mean) for run, mean in zip(runs, means, strict=True)]
        axes.errorbar(LATENT_DIMS, means, np.abs(np.transpose(bars)), marker=marker, capsize=3, label=label)
    for dim, mean in zip(LATENT_DIMS, means, strict=True):
        active = statistics.fmean(ledger.values(_arm(VARIATIONAL, dim), "active_units"))
        axes.annotate(f"{active:.3g} active", (dim, mean), (0, -16), textcoords="offset points", ha="center")
    axes.set(
        xscale="log",
        xlabel="latents",
        ylabel="nats per test image",
        title="Bounds on the likelihood, and active latents",
    )
    axes.set_xticks(LATENT_DIMS, [str(dim) for dim in LATENT_DIMS])
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
