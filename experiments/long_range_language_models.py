"""Every long-range method as a character language model, with equal numbers of parameters, updates and characters.

All arms see about 256 characters back: those with a window read 256 at a time, those with a memory 128 with what came before
them. The width inside the feed-forward networks makes up for what the attentions cost in parameters. Every run is a process
of its own, so that its memory is its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from zoo import catalog
from zoo.experiments import language_models as lm
from zoo.experiments.memory import resident_megabytes
from zoo.experiments.report import Ledger, Progress, mean_and_std, spread, write_results
from zoo.export import export_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zoo.sequence.recurrent_language_model import RecurrentLanguageModel

CLAIM = (
    "Methods that attend to a long past at less than quadratic cost model text as well as full attention of the same size "
    "(the papers of all methods, each with its own data and budget)."
)
FULL = "full attention"
WINDOW = dict(window_length=256)
MEMORY = dict(window_length=128)
GRID = dict(position_shape=[16, 16], stride=16)
# Catalog name and arguments beside SIZES
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    FULL: ("transformer_xl", dict(**WINDOW, memory_length=0, position="absolute")),
    "Transformer-XL": ("transformer_xl", dict(**MEMORY, memory_length=128)),
    "Compressive Transformer": (
        "compressive_transformer",
        dict(**MEMORY, memory_length=128, compressed_memory_length=64, compression_rate=2),
    ),
    "Sparse Transformer": (
        "sparse_transformer",
        dict(**GRID, pattern="fixed", combine="merged", summary_width=4, num_summaries=2),
    ),
    "adaptive span": ("adaptive_span", dict(**MEMORY, max_span=256, span_init=0.0)),
    "Reformer": (
        "reformer",
        dict(axial_shape=[16, 16], axial_dims=[16, 48], attention_layers=["local", "lsh"], chunk_length=32),
    ),
    "LightConv": ("lightweight_conv", dict(**WINDOW, kernel_sizes=[15, 31])),
    "DynamicConv": ("dynamic_conv", dict(**WINDOW, kernel_sizes=[15, 31])),
}
SIZES = dict(num_layers=2, hidden_dim=64, num_heads=4)
PARAMETERS = 150_000
CHARACTERS = 2048
DATASET = "austen"


def reproduce(directory: Path, seeds: int = 3, updates: int = 800, progress: Progress = lambda message: None) -> None:
    """Trains every method and writes `long_range_language_models.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Training steps of 2,048 characters.
        progress: callable that takes one line per run.
    """
    settings = {**SIZES, "parameters": PARAMETERS, "characters_per_update": CHARACTERS, "updates": updates}
    settings |= {"dataset": DATASET, "split": "validation"}
    ledger = Ledger(directory / "long_range_language_models.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, functools.partial(_alone, run, arm, updates, seed), progress)
    write_results(
        "long_range_language_models",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce long_range_language_models --seeds {seeds} --updates {updates}",
        tables={"methods": _table(ledger)},
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds},
    )


# === Runs ===


def _alone(function: Any, *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def build(arm: str) -> RecurrentLanguageModel:
    """Returns the model of an arm, as wide in its feed-forward networks as the number of parameters allows."""
    method, options = ARMS[arm]
    arguments = {**SIZES, **lm.vocabulary(DATASET), **options}

    def make(intermediate_dim: int) -> RecurrentLanguageModel:
        return catalog.get(method, weights=None, intermediate_dim=intermediate_dim, **arguments)

    few, many = (make(width).count_params() for width in (64, 128))
    width = round(64 + 64 * (PARAMETERS - few) / (many - few))
    if width < 1:
        raise ValueError(f"{arm!r} has too many parameters without its feed-forward networks. Received: {few} at 64")
    return make(width)


def run(arm: str, updates: int, seed: int) -> dict[str, Any]:
    """Trains one arm; returns its bits per character, CPU time and memory of training, and the exported model's cost."""
    keras.utils.set_random_seed(seed)
    model = build(arm)
    data = lm.stream_data(CHARACTERS // model.window_length)(model, DATASET, seed)
    lm.compiler(peak=2e-3, warmup_steps=100, clip_norm=0.25, final=1e-5)(model, updates)
    before = resident_megabytes("VmRSS")
    start = time.process_time()
    model.fit(data.train, steps_per_epoch=updates, epochs=1, verbose=0, shuffle=False)
    found = {
        "cpu_milliseconds_per_update": 1e3 * (time.process_time() - start) / updates,
        "training_megabytes": resident_megabytes("VmHWM") - before,
        "bits_per_character": lm.evaluate(model, DATASET, "validation")["bits_per_character"],
        "parameters": model.count_params(),
    }
    return found | (_exported(model) if seed == 0 else {})


def _exported(model: RecurrentLanguageModel) -> dict[str, float]:
    lm.prepare(model, DATASET)
    with tempfile.TemporaryDirectory() as scratch:
        report = export_model(model, Path(scratch) / "bundle", ["litert"], "dynamic_int8")
    (artifact,) = report.artifacts
    return {"int8_kilobytes": artifact.size / 1e3, "int8_milliseconds": artifact.latency_ms["predict"]}


# === Results ===


def _table(ledger: Ledger) -> dict[str, dict[str, Any]]:
    rows = {}
    for arm in ARMS:
        first = ledger.content["runs"][arm]["0"]
        rows[arm] = {
            "bits_per_character": mean_and_std(ledger.values(arm, "bits_per_character")),
            **{
                key: statistics.median(ledger.values(arm, key))
                for key in ("cpu_milliseconds_per_update", "training_megabytes")
            },
            **{key: first[key] for key in ("parameters", "int8_kilobytes", "int8_milliseconds")},
        }
    return rows


def _verdict(ledger: Ledger) -> str:
    full = ledger.values(FULL, "bits_per_character")
    better, worse, level = [], [], []
    for arm in ARMS:
        if arm == FULL:
            continue
        gaps = [b - a for a, b in zip(ledger.values(arm, "bits_per_character"), full, strict=True)]
        found = better if min(gaps) > 0 else worse if max(gaps) < 0 else level
        found.append(f"{arm} ({statistics.fmean(gaps):+.3f})")
    parts = {"Better than full attention in every seed": better, "worse in every seed": worse, "neither": level}
    return "; ".join(f"{name}: {', '.join(arms) or 'none'}" for name, arms in parts.items()) + (
        f". In brackets the bits per character gained on full attention, which has {spread(full)}."
    )


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for arm in ARMS:
        bits = mean_and_std(ledger.values(arm, "bits_per_character"))
        cost = statistics.median(ledger.values(arm, "cpu_milliseconds_per_update"))
        axes.errorbar(cost, bits["mean"], bits["std"], fmt="o", capsize=3)
        place = (6, -12) if arm == "DynamicConv" else (6, 4)
        axes.annotate(arm, (cost, bits["mean"]), xytext=place, textcoords="offset points", fontsize=9)
    axes.set(
        xlabel="CPU milliseconds per update of 2,048 characters",
        ylabel="bits per character, validation",
        title=f"Character language models of {PARAMETERS // 1000},000 parameters",
    )
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    return figure
