"""Text classifiers from a pretrained encoder to a phone: accuracy, size and latency of every file they are exported to.

BERT and ALBERT of this catalog learn which package a docstring is of, from a thousand examples; every file classifies the
whole test split. Files that the gate of an export would refuse are shown too, and said to be so.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import catalog
from zoo.experiments.language_encoders import prepare
from zoo.experiments.report import Ledger, Progress, mean_and_std, write_results
from zoo.export import export_model
from zoo.training.finetuning import finetune
from zoo.training.task import read_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLAIM = (
    "A pretrained encoder with a new head, exported with integer weights and activations, classifies as it does in Keras, "
    "in a file a quarter of the size."
)
METHODS = ("bert", "albert")
FORMATS = ("litert", "onnx")
PRECISIONS = ("none", "dynamic_int8", "int8")
FILES = tuple(f"{format}/{precision}" for format in FORMATS for precision in PRECISIONS)
DATASET, LEARNING_RATE = "docstring_packages", 5e-4


def reproduce(
    directory: Path,
    seeds: int = 3,
    examples: int = 1000,
    epochs: int = 5,
    weights: str | Path | None = "default",
    network: Mapping[str, Any] | None = None,
    progress: Progress = lambda message: None,
) -> None:
    """Fine-tunes and exports both encoders and writes `fine_tuned_encoders.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Trainings of each encoder; latency is measured for the first one.
        examples: int. Of the train split.
        epochs: int.
        weights: pretrained weights, see `zoo.get`.
        network: mapping or None. Constructor arguments that differ from the presets'.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": DATASET, "split": "test", "examples": examples, "epochs": epochs, **(network or {})}
    settings |= {"learning_rate": LEARNING_RATE}
    ledger = Ledger(directory / "fine_tuned_encoders.runs.json", settings)
    for seed in range(seeds):
        for method in METHODS:
            ledger.run(method, seed, lambda m=method, s=seed: run(m, s, examples, epochs, weights, network), progress)
    write_results(
        "fine_tuned_encoders",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce fine_tuned_encoders --seeds {seeds}",
        tables={method: table(ledger, method) for method in METHODS},
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds},
    )


def run(
    method: str,
    seed: int,
    examples: int,
    epochs: int,
    weights: str | Path | None = "default",
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Fine-tunes one encoder, exports it and judges every file by the whole test split.

    Returns:
        Dict of Keras's `accuracy` and, by file, of `accuracy`, `kilobytes`, `accepted` (whether the gate lets it pass) and,
        with the first seed, `milliseconds` of one text.
    """
    task = read_task(DATASET, examples=examples)
    keras.utils.set_random_seed(seed)
    head = {"head": "classification", "num_classes": task.num_classes}
    model = catalog.get(method, weights=weights, **head, **(network or {}))
    prepare(model, DATASET)
    with tempfile.TemporaryDirectory() as scratch:
        finetune(model, task, Path(scratch) / "run", epochs=epochs, learning_rate=LEARNING_RATE, seed=seed)
        gate = model.task_metric()
        report = export_model(
            model,
            Path(scratch) / "bundle",
            FORMATS,
            PRECISIONS,
            metric=dataclasses.replace(gate, absolute_tolerance=1.0),
            benchmark=seed == 0,
        )
    found: dict[str, Any] = {"accuracy": report.artifacts[0].metric.reference}
    for artifact in report.artifacts:
        change = artifact.metric
        found[artifact.label] = {
            "accuracy": change.value,
            "kilobytes": artifact.size / 1000,
            "accepted": gate.worsening(change.reference, change.value) <= gate.allowed(change.reference),
            **({"milliseconds": artifact.latency_ms["predict"]} if seed == 0 else {}),
        }
    return found


# === Results ===


def table(ledger: Ledger, method: str) -> dict[str, dict[str, Any]]:
    """Returns the numbers of Keras and of every file of a method."""
    rows: dict[str, dict[str, Any]] = {"keras": {"accuracy": mean_and_std(ledger.values(method, "accuracy"))}}
    for file in FILES:
        found = ledger.values(method, file)
        rows[file] = {
            "accuracy": mean_and_std([each["accuracy"] for each in found]),
            "accepted": f"{sum(each['accepted'] for each in found)} of {len(found)}",
            "kilobytes": statistics.fmean(each["kilobytes"] for each in found),
            "milliseconds": found[0]["milliseconds"],
        }
    return rows


def verdict(ledger: Ledger) -> str:
    """Says what the numbers of all runs show."""
    parts = []
    for method in METHODS:
        plain = ledger.values(method, "accuracy")
        for format in FORMATS:
            whole, small = (ledger.values(method, f"{format}/{mode}") for mode in ("none", "int8"))
            changes = [each["accuracy"] - before for each, before in zip(small, plain, strict=True)]
            share = small[0]["kilobytes"] / whole[0]["kilobytes"]
            accepted = sum(each["accepted"] for each in small)
            parts.append(
                f"{method} as {format}/int8 {statistics.fmean(changes):+.3f} in {share:.0%} of the size, accepted in "
                f"{accepted} of {len(small)} trainings"
            )
    return f"Change of accuracy on the test split: {'; '.join(parts)}."


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    accuracies, sizes = figure.subplots(1, 2)
    for index, method in enumerate(METHODS):
        rows = table(ledger, method)
        _bars(accuracies, index, method, [(row["accuracy"]["mean"], row["accuracy"]["std"]) for row in rows.values()])
        _bars(sizes, index, method, [(row["kilobytes"], 0.0) for name, row in rows.items() if name != "keras"])
    accuracies.set_xticks(range(len(FILES) + 1), ("keras", *FILES), rotation=30, ha="right")
    sizes.set_xticks(range(len(FILES)), FILES, rotation=30, ha="right")
    accuracies.set(ylabel="test accuracy", ylim=(0, 1), title="Accuracy (mean and standard deviation of seeds)")
    sizes.set(ylabel="kilobytes", title="Size of the file")
    for axes in (accuracies, sizes):
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize=8)
    return figure


def _bars(axes: Axes, index: int, label: str, values: list[tuple[float, float]]) -> None:
    width = 0.38
    places = np.arange(len(values)) + (index - 0.5) * width
    axes.bar(places, [mean for mean, _ in values], width, yerr=[std for _, std in values], capsize=3, label=label)
