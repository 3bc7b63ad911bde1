"""What must hold of trained weights and of exports: `SHIPPED_CHECKS`, `EXPORT_CHECKS`, `SLOW_EXPORT_CHECKS`.

Each is a function of a `Subject` that raises; `check_total_size` is of all weights together.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from conformance.signature_checks import relative_error
from conformance.subject import Subject

from zoo import datasets
from zoo.export import FORMATS, export_model
from zoo.export.runners import open_artifact
from zoo.metadata import WEIGHTS

MEGABYTE = 2**20
LARGEST_WEIGHTS = 3 * MEGABYTE
LARGEST_TOTAL = 60 * MEGABYTE
EXPORT_TOLERANCE = 1e-4
METRIC_TOLERANCE = 1e-3


# === Shipped weights ===


def check_weights(subject: Subject) -> None:
    """Trained weights load, are those that the metadata describe, and are small."""
    model, path = subject.model, subject.preset.weights / WEIGHTS
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.metadata.weights_sha256 == digest, f"{path} is not what its metadata describe"
    assert all(np.isfinite(weight).all() for weight in model.get_weights()), "Trained weights must be finite"
    size = path.stat().st_size
    assert size <= LARGEST_WEIGHTS, f"Shipped weights may have at most {LARGEST_WEIGHTS} bytes. Received: {size}"


def check_metadata(subject: Subject) -> None:
    """The metadata say what was trained, on what, how, by which versions, and how good it is."""
    metadata, preset = subject.model.metadata, subject.preset
    found = (metadata.method, metadata.preset)
    assert found == (subject.method.name, preset.name), f"The metadata are of another preset. Received: {found}"
    parameters = (preset.parameters, metadata.parameters, subject.model.count_params())
    assert len(set(parameters)) == 1, f"Facts, metadata and model have different numbers of parameters: {parameters}"
    _check_has("dataset", metadata.dataset, ("name", "split", "sha256", "licence"))
    _check_has("training", metadata.training, ("command", "seed", "steps"))
    _check_has("versions", metadata.versions, ("python", "method-zoo", "tensorflow", "keras", "numpy"))
    assert metadata.licence, "The licence of the weights is missing"
    known = datasets.info(metadata.dataset["name"]).sha256
    assert metadata.dataset["sha256"] == known, f"Trained on another version of the data set, which has SHA-256 {known}"
    splits = [name for name in metadata.metrics if name.startswith(("test_", "validation_"))]
    assert any(name.startswith("test_") for name in splits), f"There is no test metric. Received: {metadata.metrics}"


def _check_has(field: str, record: dict, names: Iterable[str]) -> None:
    missing = [name for name in names if record.get(name) in (None, "")]
    assert not missing, f"`{field}` of the metadata lacks {missing}. Received: {record}"


def check_metric(subject: Subject) -> None:
    """Evaluating the shipped weights on the test split gives the recorded metrics."""
    metadata = subject.model.metadata
    measured = subject.recipe.evaluate(subject.model, metadata.evaluation_dataset, "test")
    recorded = {name: value for name, value in metadata.metrics.items() if name.startswith("test_")}
    missing = {f"test_{name}" for name in measured} ^ set(recorded)
    assert recorded and not missing, f"Measured and recorded metrics are not the same ones: {sorted(missing)}"
    for name, value in measured.items():
        wanted = recorded[f"test_{name}"]
        error = abs(value - wanted)
        # Written so that NaN fails
        assert error <= METRIC_TOLERANCE * abs(wanted), f"{name} is recorded as {wanted}. Received: {value}"


def check_total_size(directory: Path) -> None:
    """All shipped presets together are small enough for a package."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert size <= LARGEST_TOTAL, f"Shipped weights may have {LARGEST_TOTAL} bytes together. Received: {size}"


# === Export ===


def check_export(subject: Subject) -> None:
    """All signatures export to all formats, verified, within tolerance, with built-in operators only."""
    _, report = subject.bundle
    found = sorted(artifact.label for artifact in report.artifacts)
    assert found == sorted(f"{format}/none" for format in FORMATS), f"Artifacts are missing. Received: {found}"
    for artifact in report.artifacts:
        assert artifact.verified, f"{artifact.label} was not verified: {artifact.notes}"
        lacking = set(subject.signatures) - set(artifact.errors)
        assert not lacking, f"{artifact.label} was not compared with Keras in {sorted(lacking)}"
        for name, error in artifact.errors.items():
            within = error.max_relative <= EXPORT_TOLERANCE
            assert within, f"{artifact.label}, {name!r}: must be within {EXPORT_TOLERANCE}. Received: {error}"
    foreign = [name for name in report.artifact("litert").ops if name.startswith(("Flex", "custom:", "builtin:"))]
    assert not foreign, f"The LiteRT file needs other than built-in operators: {foreign}"


def check_exported_runs(subject: Subject) -> None:
    """Exported files, run by their runtimes, give Keras's outputs at batch 1 and 3: not taken from the report."""
    directory, report = subject.bundle
    for artifact in report.artifacts:
        run = open_artifact(artifact.format, {name: directory / path for name, path in artifact.paths.items()})
        for batch_size in (1, 3):
            for name in subject.signatures:
                inputs = subject.model.dummy_inputs(name, batch_size=batch_size, seed=11 + batch_size)
                wanted, found = subject.model.run(name, **inputs), run(name, inputs)
                what = f"{artifact.label}, {name!r} at batch {batch_size}"
                assert set(wanted) == set(found), f"{what}: expected {sorted(wanted)}. Received: {sorted(found)}"
                for key, value in wanted.items():
                    error = relative_error(value, found[key]) if value.dtype == found[key].dtype else np.inf
                    assert error <= EXPORT_TOLERANCE, f"{what}: the relative error of {key!r} is {error:.2g}"


def check_float16_export(subject: Subject) -> None:
    """Every method survives float16 weights."""
    report = export_model(subject.model, subject.work / "float16", FORMATS[1:], "float16", benchmark=False)
    assert all(artifact.verified for artifact in report.artifacts), f"Not verified: {report.artifacts}"


def check_recorded_exports(subject: Subject) -> None:
    """Each quantised export ends as the metadata record: it passes with that metric, or is refused.

    Records are `{"<format>/<mode>": {"value": ...}}`, or `{"refused": reason}` where the gate refused.
    """
    metadata = subject.model.metadata
    records = metadata.export if metadata else {}
    if not records:
        return
    formats, modes = (sorted(set(parts)) for parts in zip(*(label.split("/") for label in records), strict=True))
    report = export_model(subject.model, subject.work / "recorded", formats, modes, benchmark=False, skip_refused=True)
    passed = {artifact.label: artifact.metric.value for artifact in report.artifacts}
    for label, record in records.items():
        refused = "refused" in record
        assert refused != (label in passed), (
            f"{label} is recorded as {record}. Received: {passed.get(label, 'refused')}"
        )
        if not refused:
            error = abs(passed[label] - record["value"])
            within = error <= METRIC_TOLERANCE * abs(record["value"])
            assert within, f"{label} is recorded with {record['value']}. Received: {passed[label]}"


SHIPPED_CHECKS = (check_weights, check_metadata, check_metric)
EXPORT_CHECKS = (check_export, check_exported_runs)
SLOW_EXPORT_CHECKS = (check_float16_export, check_recorded_exports)
