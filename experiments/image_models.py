"""Generative models of images side by side, on MNIST and Fashion-MNIST: likelihoods, samples, interpolations, quantisation.

The models are the shipped checkpoints, so that nothing is trained here but the network of NICE's paper, which is too large
to ship. Samples are compared with as many test images, in the features of one classifier for each data set; what it says of
training images is the best that a model could do.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import catalog
from zoo.datasets import load_arrays
from zoo.experiments import image_flows, nice, vae
from zoo.experiments.image_grids import show_rows
from zoo.experiments.report import Ledger, Progress, spread, write_results
from zoo.experiments.sample_quality import FeatureClassifier, sample_quality, scaled_images
from zoo.experiments.training import available_dataset
from zoo.export import ExportError, export_model
from zoo.export.runners import open_artifact
from zoo.generative.image_flow import ImageFlow
from zoo.model import ZooModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = (
    "Flows give exact likelihoods, better ones with affine couplings and several scales than NICE; adversarial networks and "
    "variational autoencoders give better samples than flows of this size; every model with an encoder finds a way between "
    "two given images (Dinh et al. 2014 and 2017; Kingma, Dhariwal 2018; Kingma, Welling 2014; Goodfellow et al. 2014)."
)
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
FLOWS = {"nice": "NICE", "real_nvp": "Real NVP", "glow": "Glow"}
MODELS = {**FLOWS, "vae": "VAE", "gan": "DCGAN"}
IMAGES, PAPER = "training images", "NICE, paper's network"
# On MNIST with 1,500 epochs (NICE, table 1)
PAPER_NATS = 1980.50
NUM_SAMPLES = 2000
NUM_SHOWN, SHAPE = 12, (28, 28)
PRECISIONS = ("none", "dynamic_int8", "int8")


def reproduce(directory: Path, seeds: int = 3, updates: int = 7500, progress: Progress = lambda message: None) -> None:
    """Judges the checkpoints, and writes `image_models.json`, `.png`, `_interpolations.png` and `_quantized.png`.

    Args:
        directory: path of the results.
        seeds: int. Sets of samples of each model.
        updates: int. Updates of the network of NICE's paper, of 200 images each.
        progress: callable that takes one line per run.
    """
    data = {name: available_dataset(name, progress) for name in DATASETS}
    settings = {"datasets": list(data.values()), "split": "test", "num_samples": NUM_SAMPLES, "updates": updates}
    ledger = Ledger(directory / "image_models.runs.json", settings)
    for name, dataset in data.items():
        for method, title in MODELS.items():
            arm = f"{title}, {name}"
            ledger.run(f"{arm}, likelihood", 0, lambda m=method, n=name, d=dataset: likelihood(m, n, d), progress)
            for seed in range(seeds):
                ledger.run(arm, seed, lambda m=method, n=name, d=dataset, s=seed: quality(m, n, d, s), progress)
        ledger.run(f"{IMAGES}, {name}", 0, lambda d=dataset: _quality(d, scaled_images(d, "train")), progress)
    ledger.run(PAPER, 0, lambda: run_paper_network(data["mnist"], updates), progress)
    for method, title in FLOWS.items():
        for precision in PRECISIONS:
            ledger.run(f"{title}, {precision}", 0, lambda m=method, p=precision: run_quantized(m, p), progress)
    progress("figures")
    write_results(
        "image_models",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce image_models --seeds {seeds} --updates {updates}",
        tables=_tables(ledger),
        figure=_sample_figure(ledger),
        more_figures={"interpolations": _interpolation_figure(data), "quantized": _quantized_figure(ledger)},
        settings={**settings, "seeds": seeds},
    )


# === Runs ===


def likelihood(method: str, preset: str, dataset: str) -> dict[str, float]:
    """Returns what a checkpoint's likelihood of the test images is, where it has one.

    Returns:
        Dict of `nats` of an image and `bits_per_dimension`, those of a VAE its importance-weighted bound; bits only where
        images have grey levels.
    """
    if method == "gan":
        return {}
    model = catalog.get(method, preset)
    if isinstance(model, ImageFlow):
        return image_flows.evaluate(model, dataset, "test")
    nats = vae.log_likelihood(model, model.held_out_images(dataset, "test")[: vae.MOST_IMAGES])
    black_and_white = model.likelihood == "bernoulli"
    return {"nats": nats} | ({} if black_and_white else {"bits_per_dimension": -nats / math.prod(SHAPE) / math.log(2)})


def quality(method: str, preset: str, dataset: str, seed: int) -> dict[str, Any]:
    """Draws samples of a checkpoint; returns the measures of `sample_quality`, and the first samples, `shown`."""
    samples = samples_of(catalog.get(method, preset), seed)
    return {**_quality(dataset, samples), "shown": _rounded(samples[:NUM_SHOWN])}


def samples_of(model: ZooModel, seed: int) -> np.ndarray:
    """Returns samples of a model, `(NUM_SAMPLES, height, width)`, clipped to [0, 1]."""
    parts = [model.sample(NUM_SAMPLES // 10, seed=10 * seed + part) for part in range(10)]
    return _unit(model, np.concatenate(parts))


def _unit(model: ZooModel, images: np.ndarray) -> np.ndarray:
    low, high = getattr(model, "value_range", (0.0, 1.0))
    images = images.reshape(*images.shape[: images.ndim - len(model_shape(model))], *SHAPE)
    return np.clip((images - low) / (high - low), 0, 1)


def model_shape(model: ZooModel) -> tuple[int, ...]:
    """Returns the shape of one image as a model gives it."""
    return image_flows.image_shape(model) if isinstance(model, ImageFlow) else model.image_shape


def _quality(dataset: str, samples: np.ndarray) -> dict[str, float]:
    test = scaled_images(dataset, "test")[:NUM_SAMPLES]
    return sample_quality(FeatureClassifier.of(dataset), test, samples[: len(test)])


def _rounded(images: np.ndarray) -> list:
    return np.round(images, 2).tolist()


def run_paper_network(dataset: str, updates: int) -> dict[str, Any]:
    """Trains the network of NICE's paper, for a small part of the paper's epochs."""
    used = dataclasses.replace(nice.RECIPES["nice_mnist"], dataset=dataset)
    epochs = max(updates // used.steps_per_epoch, 1)
    keras.utils.set_random_seed(0)
    model, curve = image_flows.train_arm(used, {}, 0, epochs)
    found = image_flows.evaluate(model, dataset, "test")
    return {**found, "epochs": epochs, "curve": curve, "shown": _rounded(samples_of(model, 0)[:NUM_SHOWN])}


def run_quantized(method: str, precision: str) -> dict[str, Any]:
    """Exports a flow of MNIST to ONNX; returns `nats` through the file, its `size` in bytes and samples of fixed noise.

    The gate of exports is left open, so that precisions that it refuses can be seen too; `refused` says why there is no
    file where it is of no use at all.
    """
    model = catalog.get(method, "mnist")
    metric = model.task_metric()
    rng = np.random.default_rng(0)
    noise = model.signatures()["sample"].inputs["noise"].draw(rng, {"batch": NUM_SHOWN})
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        anything = dataclasses.replace(metric, absolute_tolerance=math.inf)
        try:
            report = export_model(model, bundle, ["onnx"], precision, metric=anything, benchmark=False)
        except ExportError as error:
            return {"refused": str(error)}
        (artifact,) = report.artifacts
        run = open_artifact("onnx", {name: bundle / path for name, path in artifact.paths.items()})
        images = run("sample", {"noise": noise})["image"]
    change = artifact.metric
    passes = metric.worsening(change.reference, change.value) <= metric.allowed(change.reference)
    # What quantisation has broken may be no number
    shown = _rounded(np.nan_to_num(_unit(model, images)))
    return {"nats": change.value, "size": artifact.size, "passes": bool(passes), "shown": shown}


# === Results ===


def _tables(ledger: Ledger) -> dict[str, Any]:
    runs = ledger.content["runs"]
    measures = [key for key in runs[f"{IMAGES}, mnist"]["0"]]
    return {
        "likelihood": {
            f"{title}, {name}": runs[f"{title}, {name}, likelihood"]["0"]
            for name in DATASETS
            for title in MODELS.values()
        }
        | {PAPER: {key: runs[PAPER]["0"][key] for key in ("nats", "bits_per_dimension", "epochs")}},
        "samples": {
            arm: {key: spread(ledger.values(arm, key)) for key in measures}
            for name in DATASETS
            for arm in (f"{IMAGES}, {name}", *(f"{title}, {name}" for title in MODELS.values()))
        },
        "quantized": {
            f"{title}, {precision}": {
                key: value for key, value in runs[f"{title}, {precision}"]["0"].items() if key != "shown"
            }
            for title in FLOWS.values()
            for precision in PRECISIONS
        },
    }


def _verdict(ledger: Ledger) -> str:
    runs = ledger.content["runs"]

    def bits(title: str, name: str) -> float:
        return runs[f"{title}, {name}, likelihood"]["0"].get("bits_per_dimension", math.nan)

    sentences = []
    for name, label in DATASETS.items():
        found = {title: bits(title, name) for title in FLOWS.values()}
        holds = max(found["Real NVP"], found["Glow"]) < found["NICE"]
        listed = ", ".join(f"{title} {value:.2f}" for title, value in found.items())
        distances = {title: ledger.values(f"{title}, {name}", "frechet_distance") for title in MODELS.values()}
        flows = [value for title in FLOWS.values() for value in distances[title]]
        better = [title for title in ("VAE", "DCGAN") if max(distances[title]) < min(flows)]
        sentences.append(
            f"{label}: {listed} bits per dimension, so that the order of the papers {'shows' if holds else 'does not show'}; "
            f"samples are nearer to test images than those of every flow, in every set, for {' and '.join(better) or 'none'} "
            f"({', '.join(f'{title} {spread(values)}' for title, values in distances.items())}; training images "
            f"{runs[f'{IMAGES}, {name}']['0']['frechet_distance']:.3f})."
        )
    paper = runs[PAPER]["0"]
    kept = [arm for arm in _quantized_arms() if runs[arm]["0"].get("passes") and not arm.endswith("none")]
    return " ".join(sentences) + (
        f" The network of NICE's paper reaches {paper['nats']:.1f} nats after {paper['epochs']} epochs, {PAPER_NATS} in the "
        f"paper after 1,500: {PAPER_NATS - paper['nats']:.1f} nats short. Within 0.05 nats of Keras when quantised: "
        f"{'; '.join(kept) or 'none'}."
    )


def _quantized_arms() -> list[str]:
    return [f"{title}, {precision}" for title in FLOWS.values() for precision in PRECISIONS]


# === Figures ===


def _sample_figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(DATASETS)), DATASETS.items(), strict=True):
        rows = {title: ledger.content["runs"][f"{title}, {name}"]["0"]["shown"] for title in MODELS.values()}
        if name == "mnist":
            rows[PAPER] = ledger.content["runs"][PAPER]["0"]["shown"]
        show_rows(axes, rows, f"Samples of {label}")
    return figure


def _interpolation_figure(data: Mapping[str, str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(DATASETS)), DATASETS.items(), strict=True):
        levels = load_arrays(data[name], "test")["image"]
        # The first test image, and the first of another class
        labels = load_arrays(data[name], "test")["label"]
        pair = levels[[0, int(np.argmax(labels != labels[0]))]]
        ends = pair / 255.0
        time = np.linspace(0, 1, NUM_SHOWN)[:, None, None]
        rows = {"pixels": (1 - time) * ends[0] + time * ends[1]}
        for method, title in {**FLOWS, "vae": "VAE", "autoencoder": "autoencoder"}.items():
            if catalog.info(method).presets.get(name) is None:
                continue
            model = catalog.get(method, name)
            stored = pair.reshape(2, *model_shape(model))
            images = model.dequantize(stored, seed=0) if method in FLOWS else model.preprocess(stored)
            rows[title] = _unit(model, model.interpolate(images[:1], images[1:], NUM_SHOWN)[0])
        show_rows(axes, rows, f"From one image of {label} to another")
    return figure


def _quantized_figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, title in zip(figure.subplots(len(FLOWS), 1), FLOWS.values(), strict=True):
        runs = {precision: ledger.content["runs"][f"{title}, {precision}"]["0"] for precision in PRECISIONS}
        rows = {
            f"{'float32' if name == 'none' else name}: {run['nats']:.2f} nats, {run['size'] / 1e6:.2f} MB": run["shown"]
            for name, run in runs.items()
            if "shown" in run
        }
        show_rows(axes, rows, f"{title} in ONNX Runtime: the same noise, nats of MNIST's test images")
    return figure
