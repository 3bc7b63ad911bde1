"""`export_model`: a directory with verified artifacts and a manifest; `export_file`: a single artifact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from zoo.export.onnx import DEFAULT_OPSET, OPSETS
from zoo.export.pipeline import Pipeline
from zoo.export.report import FORMATS, MANIFEST, QUANTIZATIONS, SCHEMA, ArtifactReport, ExportReport
from zoo.export.staging import staging
from zoo.files import publish
from zoo.model import Signature, TaskMetric

_KERAS_FORMATS = {"tf_saved_model": "saved_model", "litert": "litert", "onnx": "onnx"}


def export_model(
    model: keras.Model,
    directory: str | Path,
    formats: Iterable[str] = FORMATS,
    quantization: str | Iterable[str] = "none",
    calibration: Any = None,
    metric: TaskMetric | None = None,
    *,
    signatures: Mapping[str, Signature] | None = None,
    allow_flex: bool = False,
    opset: int = DEFAULT_OPSET,
    overwrite: bool = False,
    name: str | None = None,
    benchmark: bool = True,
    skip_refused: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Exports a model to a bundle: artifacts that were run and compared with Keras, and a manifest.

    The bundle appears whole, when everything in it has passed, or not at all.

    Args:
        model: a `zoo.model.ZooModel`, or any built Keras 3 model, whose call becomes the signature `predict`.
        directory: path of the bundle. It must not exist, be empty, or be a bundle and `overwrite` be set.
        formats: iterable of `"saved_model"`, `"litert"` and `"onnx"`.
        quantization: one or several of `"none"`, `"float16"`, `"dynamic_int8"`, `"weight_only_int8"`, `"int4"`,
            `"int8"` and `"bit_plan"` (the bits of each weight that `zoo.compression.learn_bitwidths` or `quantize_aware`
            gave it). Each gives one artifact in LiteRT and ONNX; a SavedModel is always float32.
        calibration: example inputs, for `"int8"` and for models without a task metric: an iterable of inputs of the
            first signature, or a dict of such iterables by signature. The model's own real inputs by default.
        metric: `zoo.model.TaskMetric` or None. What quantized artifacts are judged by: the model's own by default,
            else the relative error of the outputs, at most 0.1.
        signatures: dict from name to `zoo.model.Signature`, or None. Replaces the model's own.
        allow_flex: bool. Whether a LiteRT file may need TensorFlow's operators; such a file cannot be verified.
        opset: int. ONNX operator set, 18 to 21; `"bit_plan"` needs 25 and takes it.
        overwrite: bool. Whether to replace an existing bundle.
        name: str or None. Stem of the files: the method's or model's name by default.
        benchmark: bool. Whether to measure latency and memory.
        skip_refused: bool. Whether to leave out quantized artifacts that are refused, and record the reasons, instead
            of raising.
        progress: callable or None. Takes one line at each stage.

    Returns:
        `ExportReport`.

    Raises:
        ValueError: for bad arguments, an unusable directory (`ExportError`) or a model that cannot be exported so,
            an artifact that differs from Keras (`VerificationError`) or is too bad at its task (`GateError`).
        OSError: if writing fails.
    """
    plan = _plan(formats, quantization, opset)
    target = Path(directory).absolute()
    check_target(target, overwrite)
    name = model_name(model, name)
    return _write_bundle(
        model,
        target,
        plan,
        name,
        lambda mode: name if mode == "none" else f"{name}.{mode}",
        signatures=signatures,
        calibration=calibration,
        metric=metric,
        allow_flex=allow_flex,
        opset=opset,
        benchmark=benchmark,
        skip_refused=skip_refused,
        progress=progress,
    )


def _write_bundle(
    model: keras.Model,
    target: Path,
    plan: list[tuple[str, str]],
    name: str,
    stem: Callable[[str], str],
    *,
    benchmark: bool = True,
    skip_refused: bool = False,
    progress: Callable[[str], None] | None = None,
    signatures: Mapping[str, Signature] | None = None,
    calibration: Any = None,
    metric: TaskMetric | None = None,
    allow_flex: bool = False,
    opset: int = DEFAULT_OPSET,
) -> ExportReport:
    with staging(target) as work:
        pipeline = Pipeline(
            model,
            work,
            name,
            stem,
            signatures=signatures,
            calibration=calibration,
            metric=metric,
            allow_flex=allow_flex,
            opset=opset,
            measure_speed=benchmark,
            progress=progress or _silent,
        )
        report = pipeline.run(plan, skip_refused)
        manifest = json.dumps(report.to_dict(), indent=1) + "\n"
        (pipeline.root / MANIFEST).write_text(manifest, encoding="utf-8")
        publish(pipeline.root, target)
    return report


def export_file(
    model: keras.Model,
    filepath: str | Path,
    format: str = "tf_saved_model",
    verbose: bool = True,
    *,
    quantization: str = "none",
    overwrite: bool = True,
    **kwargs: Any,
) -> ExportReport:
    """Exports one artifact to a path, verified like a bundle's.

    Args:
        model: see `export_model`.
        filepath: path of a directory for a SavedModel, of a file otherwise. Several signatures give one ONNX file
            each: `model.onnx` becomes `model.<signature>.onnx`, with the weights in `model.weights.bin`.
        format: `"tf_saved_model"`, `"litert"` or `"onnx"`.
        verbose: bool. Whether to print the report as a table.
        quantization: str. One mode.
        overwrite: bool. Whether to replace what an earlier export left there.
        **kwargs: `calibration`, `metric`, `signatures`, `allow_flex`, `opset`, `benchmark` and `progress` of
            `export_model`.

    Returns:
        `ExportReport`, with paths relative to the directory of `filepath`.

    Raises:
        ValueError: see `export_model`.
        OSError: if writing fails.
    """
    if format not in _KERAS_FORMATS:
        raise ValueError(f"`format` must be one of {list(_KERAS_FORMATS)}. Received: format={format!r}")
    if not isinstance(quantization, str):
        raise ValueError(f"`quantization` must be one mode for one artifact. Received: quantization={quantization!r}")
    plan = _plan([_KERAS_FORMATS[format]], quantization, kwargs.get("opset", DEFAULT_OPSET))
    target = Path(filepath).absolute()
    _check_file_target(target, format, overwrite)
    with staging(target) as work:
        stem = _stem(target)
        report = _write_bundle(model, work / "one", plan, stem, lambda mode: stem, **kwargs)
        _place(report, work / "one", target, overwrite)
    if verbose:
        from rich.console import Console

        Console().print(report.table())
    return report


# === Arguments ===


def _plan(formats: Iterable[str], quantization: str | Iterable[str], opset: int) -> list[tuple[str, str]]:
    formats = _choices("formats", formats, FORMATS)
    modes = _choices("quantization", quantization, QUANTIZATIONS)
    if opset not in OPSETS:
        raise ValueError(f"`opset` must be from {OPSETS.start} to {OPSETS.stop - 1}. Received: opset={opset!r}")
    return [(format, mode) for format in formats for mode in (modes if format != "saved_model" else modes[:1])]


def _choices(argument: str, given: str | Iterable[str], valid: Sequence[str]) -> list[str]:
    chosen = [given] if isinstance(given, str) else list(given)
    if not chosen or any(choice not in valid for choice in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"`{argument}` must be one or several of {list(valid)}, each once. Received: {argument}={given!r}"
        )
    return chosen


def model_name(model: keras.Model, name: str | None) -> str:
    """Returns the stem of a bundle's files: a given one, or the method's or model's name.

    Raises:
        ValueError: for characters that do not belong into file names.
    """
    chosen = name or getattr(getattr(model, "metadata", None), "method", None) or getattr(model, "name", "model")
    if not re.fullmatch(r"\w[\w.-]*", chosen):
        raise ValueError(f"`name` must be made of letters, digits, '_', '-' and '.'. Received: name={chosen!r}")
    return chosen


def check_target(target: Path, overwrite: bool) -> None:
    """Refuses a directory that a bundle must not be written to.

    Args:
        target: path of the bundle.
        overwrite: bool. Whether it may replace another one.

    Raises:
        ValueError: for a directory that is neither empty nor a bundle, or a bundle that must stay.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_bundle(target):
        raise ValueError(f"`directory` exists and is no export bundle: it is left alone. Received: {str(target)!r}")
    if not overwrite:
        raise ValueError(f"`directory` holds a bundle: pass overwrite=True to replace it. Received: {str(target)!r}")


def is_bundle(directory: Path) -> bool:
    """Whether a directory has the manifest of an export bundle."""
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        return False


def _silent(line: str) -> None:
    """Takes progress that nobody asked for."""


# === A single artifact ===


def _stem(target: Path) -> str:
    return re.sub(r"[^\w.-]", "_", target.stem).lstrip(".-") or "model"


def _check_file_target(target: Path, format: str, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise ValueError(f"`filepath` exists: pass overwrite=True to replace it. Received: {str(target)!r}")
    if format == "tf_saved_model":
        usable = target.is_dir() and ((target / "saved_model.pb").is_file() or not any(target.iterdir()))
    else:
        usable = target.is_file()
    if not usable:
        raise ValueError(f"`filepath` exists and is no earlier {format!r} export. Received: {str(target)!r}")


def _place(report: ExportReport, bundle: Path, target: Path, overwrite: bool) -> None:
    """Moves the artifact of a bundle to where it was asked for, and the paths in its report with it."""
    (artifact,) = report.artifacts
    moves = _moves(artifact, target)
    taken = [str(path) for path in moves.values() if path != target and path.exists()]
    if taken and not overwrite:
        raise ValueError(f"Files of the export exist: pass overwrite=True to replace them. Received: {taken}")
    placed: list[Path] = []
    try:
        # Weights sort last among the files and go first: a graph must never be there without them.
        for source, destination in reversed(moves.items()):
            new = not destination.exists()
            publish(bundle / source, destination)
            if new:
                placed.append(destination)
    except BaseException:
        for path in placed:
            path.unlink()
        raise
    _rename(artifact, {source: destination.name for source, destination in moves.items()})
    report.assets = {}


def _moves(artifact: ArtifactReport, target: Path) -> dict[str, Path]:
    if len(set(artifact.paths.values())) == 1:
        (source,) = set(artifact.paths.values())
        return {source: target}
    return {source: target.parent / source for source in artifact.files}


def _rename(artifact: ArtifactReport, names: dict[str, str]) -> None:
    def renamed(path: str) -> str:
        first, *rest = path.split("/")
        return "/".join([names[first], *rest])

    artifact.files = {renamed(path): record for path, record in artifact.files.items()}
    artifact.paths = {signature: renamed(path) for signature, path in artifact.paths.items()}
