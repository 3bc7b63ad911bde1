"""`verify_bundle`: whether a bundle is what its manifest says, and still computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from zoo.export import litert, verify
from zoo.export.calibration import Calibration
from zoo.export.errors import ExportError, VerificationError
from zoo.export.gate import Gate
from zoo.export.report import EXACT, MANIFEST, ArtifactReport, ExportReport, read_manifest
from zoo.export.runners import open_artifact
from zoo.export.signatures import model_signatures
from zoo.export.staging import record
from zoo.model import Signature, TaskMetric


def verify_bundle(
    directory: str | Path,
    model: keras.Model | None = None,
    *,
    signatures: Mapping[str, Signature] | None = None,
    calibration: Any = None,
    metric: TaskMetric | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Checks a bundle: every file's hash, and every artifact in its own runtime against Keras.

    Args:
        directory: path of a bundle that `export_model` wrote.
        model: Keras model it was made from, or None: rebuilt by `zoo.get` from the method and preset in the manifest.
            Without either, only the hashes are checked, and the artifacts' `verified` is False.
        signatures: as passed to `export_model`.
        calibration: as passed to `export_model`.
        metric: as passed to `export_model`.
        progress: callable or None. Takes one line at each stage.

    Returns:
        The manifest's `ExportReport`, with errors and metrics as found now.

    Raises:
        ValueError: if the manifest is missing, damaged or leaves the directory, a file is missing or altered, or the
            model is another; `VerificationError` and `GateError` if an artifact fails.
    """
    say = progress or (lambda line: None)
    root = Path(directory)
    report = read_manifest(root)
    say("Checking the hashes")
    check_files(root, report)
    model = model if model is not None else _rebuild(report)
    for artifact in report.artifacts:
        artifact.errors, artifact.metric, artifact.verified = {}, None, False
    if model is None:
        return report
    chosen = model_signatures(model, signatures)
    _check_model(report, model, chosen)
    examples = Calibration(model, chosen, calibration)
    say("Running Keras on the example inputs")
    reference = verify.Reference(model, chosen, examples)
    gate = Gate(model, chosen, examples, metric)
    for artifact in report.artifacts:
        say(f"Verifying {artifact.label}")
        _verify(root, artifact, reference, gate)
    return report


def _verify(root: Path, artifact: ArtifactReport, reference: verify.Reference, gate: Gate) -> None:
    if any(op.startswith(litert.FLEX) for op in artifact.ops):
        return
    run = open_artifact(artifact.format, {name: root / path for name, path in artifact.paths.items()})
    tolerance = verify.TOLERANCE if artifact.quantization in EXACT else None
    artifact.errors = reference.compare(artifact.label, run, tolerance)
    artifact.metric = gate.measure(run)
    if artifact.quantization != "none":
        gate.check(artifact.label, artifact.metric)
    artifact.verified = True


def check_files(root: Path, report: ExportReport) -> None:
    """Compares the files of a bundle with the records of its manifest.

    Raises:
        VerificationError: for a missing, additional or altered file.
    """
    present = {str(path.relative_to(root).as_posix()) for path in root.rglob("*") if path.is_file()} - {MANIFEST}
    if present != set(report.files):
        missing, extra = sorted(set(report.files) - present), sorted(present - set(report.files))
        raise VerificationError(f"The files are not those of the manifest. Received: {missing=}, {extra=}")
    for name, expected in report.files.items():
        found = record(root / name)
        if found != expected:
            raise VerificationError(f"{name} was altered: the manifest says {expected}. Received: {found}")


def _rebuild(report: ExportReport) -> keras.Model | None:
    method = report.metadata.get("method")
    if method is None:
        return None
    from zoo.catalog import get

    try:
        return get(method, preset=report.metadata.get("preset"))
    except ValueError as error:
        raise ExportError(f"The model cannot be rebuilt from the catalog: pass `model=`. {error}") from error


def _check_model(report: ExportReport, model: keras.Model, signatures: Mapping[str, Signature]) -> None:
    wanted = report.metadata.get("weights_sha256")
    found = getattr(getattr(model, "metadata", None), "weights_sha256", wanted)
    if wanted != found:
        raise ExportError(
            f"The bundle was made from other weights ({wanted}): pass the model it was made from. Received: {found}"
        )
    described = {name: sorted(entry["inputs"]) for name, entry in report.signatures.items()}
    offered = {name: sorted(signature.inputs) for name, signature in signatures.items()}
    if described != offered:
        raise ExportError(f"The bundle has the signatures and inputs {described}. Received: {offered}")
