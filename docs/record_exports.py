"""Exports shipped models in every format and precision, and records what passed: `python docs/record_exports.py NAME ...`.

Writes `docs/results/export/<method>.json`, and into the checkpoint's metadata which quantised artifacts passed their gate
and which were refused: what the conformance suite then holds them to.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import zoo
from zoo.compression.bit_plan import BitPlan
from zoo.export import FORMATS, QUANTIZATIONS, ExportReport
from zoo.files import atomic_file

RESULTS = Path(__file__).parent / "results" / "export"


def record(name: str) -> ExportReport:
    """Exports the default preset of a method and records the outcome."""
    model = zoo.get(name)
    with tempfile.TemporaryDirectory() as directory:
        report = zoo.export.export_model(
            model,
            Path(directory) / name,
            FORMATS,
            [mode for mode in QUANTIZATIONS if mode != "bit_plan" or has_bit_plan(model)],
            skip_refused=True,
            progress=lambda line: sys.stderr.write(line + "\n"),
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    with atomic_file(RESULTS / f"{name}.json") as file:
        file.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    known = model.metadata
    model.save_to_preset(
        zoo.info(name).preset().weights,
        method=known.method,
        preset=known.preset,
        weights_dtype="float16",
        metrics=known.metrics,
        dataset=known.dataset,
        training=known.training,
        licence=known.licence,
        export=outcome(report),
    )
    return report


def has_bit_plan(model: zoo.ZooModel) -> bool:
    """Returns whether the weights of a model were given bits."""
    try:
        BitPlan.of_model(model)
    except ValueError:
        return False
    return True


def outcome(report: ExportReport) -> dict[str, dict[str, Any]]:
    """Returns the record of the quantised artifacts: metric and size, or the reason of a refusal."""
    passed = {
        artifact.label: {"metric": artifact.metric.name, "value": artifact.metric.value, "size": artifact.size}
        for artifact in report.artifacts
        if artifact.quantization != "none" and artifact.format != "saved_model"
    }
    refused = {f"{item['format']}/{item['quantization']}": {"refused": item["reason"]} for item in report.refused}
    return {**passed, **refused}


if __name__ == "__main__":
    for method in sys.argv[1:] or zoo.list_models(trained=True):
        record(method)
