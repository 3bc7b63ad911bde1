"""From a model to verified artifacts in a directory: the steps of every export, in order."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.compression.bit_plan import BitPlan, Codes, SizeReport, integer_weights, size_report
from zoo.export import benchmark, litert, metadata, onnx, verify
from zoo.export.calibration import Calibration, dummy_inputs
from zoo.export.errors import ExportError, GateError
from zoo.export.gate import Gate
from zoo.export.learned import LEARNED, learned_litert, learned_onnx
from zoo.export.onnx_quantize import onnx_candidates
from zoo.export.packed import pack_flatbuffer, pack_graphs
from zoo.export.quantize import Candidate, litert_candidates
from zoo.export.report import EXACT, ArtifactReport, ExportReport
from zoo.export.runners import open_artifact
from zoo.export.saved_model import saved_model_ops, write_saved_model
from zoo.export.signatures import model_signatures, trace
from zoo.export.staging import records
from zoo.model import Signature, TaskMetric

# Above this share of non-zero weights, the indices of sparse storage cost more than the zeros
_SPARSE = 0.5


class Graphs:
    """Signatures in the forms that artifacts are made of, each made when first needed.

    Args:
        signatures: dict from name to `zoo.model.Signature`.
        work: path of an empty directory.
        assets: callable that returns the files of the SavedModel, by name.
        allow_flex: bool. See `zoo.export.litert.convert`.
        opset: int. ONNX operator set.
    """

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        work: Path,
        assets: Callable[[], dict[str, bytes]],
        allow_flex: bool,
        opset: int,
    ):
        self.signatures, self.work, self.assets = signatures, work, assets
        self.allow_flex, self.opset = allow_flex, opset

    @cached_property
    def traced(self) -> dict[str, Any]:
        """The traced signatures."""
        return trace(self.signatures)

    @cached_property
    def saved_model(self) -> Path:
        """The SavedModel: an artifact itself, and what LiteRT is converted from."""
        scratch, path = self.work / "assets", self.work / "saved_model"
        scratch.mkdir(parents=True)
        write_saved_model(self.traced, path, self.assets(), scratch)
        return path

    def litert(self, configure: Callable[[Any], None] | None = None) -> bytes:
        """Returns a flatbuffer; see `zoo.export.litert.convert`."""
        return litert.convert(self.saved_model, list(self.signatures), allow_flex=self.allow_flex, configure=configure)

    @cached_property
    def litert_base(self) -> bytes:
        """The float32 flatbuffer."""
        return self.litert()

    def onnx(self, output_shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the graphs by signature, their outputs' dimensions named."""
        return {
            name: onnx.convert(traced, name, opset=self.opset, output_dimensions=output_shapes[name])
            for name, traced in self.traced.items()
        }


class Pipeline:
    """One model on its way out.

    Args:
        model: Keras model.
        work: path of an empty directory: scratch space, and, under `bundle/`, what will be shipped.
        name: str. Name of the model.
        stem: callable from quantization mode to the stem of file names.
        signatures: see `zoo.export.signatures.model_signatures`.
        calibration: see `zoo.export.calibration.Calibration`.
        metric: see `zoo.export.gate.Gate`.
        allow_flex: bool. Whether a LiteRT file may hold TensorFlow's operators.
        opset: int. ONNX operator set.
        measure_speed: bool. Whether to measure latency and memory.
        progress: callable that takes one line at each stage.
    """

    def __init__(
        self,
        model: keras.Model,
        work: Path,
        name: str,
        stem: Callable[[str], str],
        *,
        signatures: Mapping[str, Signature] | None,
        calibration: Any,
        metric: TaskMetric | None,
        allow_flex: bool,
        opset: int,
        measure_speed: bool,
        progress: Callable[[str], None],
    ):
        self.model, self.work, self.name, self.stem = model, work, name, stem
        self.allow_flex, self.opset, self.measure_speed, self.progress = allow_flex, opset, measure_speed, progress
        self.root = work / "bundle"
        self.root.mkdir()
        self.signatures = model_signatures(model, signatures)
        self.calibration = Calibration(model, self.signatures, calibration)
        self.metric = metric
        self.assets = {name: content for name, content in getattr(model, "assets", {}).items() if _plain(name)}

    def run(self, plan: list[tuple[str, str]], skip_refused: bool) -> ExportReport:
        """Makes, checks and measures artifacts.

        Args:
            plan: list of format and quantization mode.
            skip_refused: bool. Whether to leave out, and record, quantized artifacts that are refused.

        Raises:
            ExportError: if the model cannot be exported so, an artifact fails its verification or its gate.
        """
        if any(mode == "int8" and format != "saved_model" for format, mode in plan):
            self.calibration.required()
        report = ExportReport(
            self.name, self.descriptions, [], metadata.describe_model(self.model), metadata.versions(), {}, []
        )
        for format, mode in plan:
            try:
                report.artifacts.append(self._artifact(format, mode))
            except ExportError as error:
                if mode == "none" or not skip_refused:
                    raise
                report.refused.append({"format": format, "quantization": mode, "reason": str(error)})
        if self.assets:
            directory = self.root / "assets"
            directory.mkdir()
            for name, content in self.assets.items():
                (directory / name).write_bytes(content)
            report.assets = records(self.root, [directory])
        return report

    # === What all artifacts share, made when first needed ===

    @cached_property
    def graphs(self) -> Graphs:
        """The model in float arithmetic."""
        self.progress("Tracing the signatures")
        return Graphs(self.signatures, self.work / "float", self._saved_assets, self.allow_flex, self.opset)

    @cached_property
    def learned(self) -> Graphs | None:
        """The model with the ranges that quantisation-aware training learned; None where there was none."""
        find = getattr(self.model, "learned_signatures", None)
        signatures = find() if find else None
        return signatures and Graphs(signatures, self.work / "learned", dict, self.allow_flex, self.opset)

    @cached_property
    def bit_plan(self) -> BitPlan:
        """The bits that each weight was trained with, or has learned."""
        try:
            return BitPlan.of_model(self.model)
        except ValueError as error:
            raise ExportError(f"The mode 'bit_plan' needs a model whose weights were given bits. {error}") from error

    @cached_property
    def codes(self) -> dict[str, Codes]:
        """The weights as integers of the bits of the plan."""
        return integer_weights(self.model, self.bit_plan)

    @cached_property
    def planned_size(self) -> SizeReport:
        """The size that the plan gives the model."""
        return size_report(self.model, self.bit_plan)

    @cached_property
    def reference(self) -> verify.Reference:
        """Keras's answers to example inputs."""
        self.progress("Running Keras on the example inputs")
        return verify.Reference(self.model, self.signatures, self.calibration)

    @cached_property
    def gate(self) -> Gate:
        """The task metric, with Keras's value."""
        self.progress("Computing Keras's task metric")
        return Gate(self.model, self.signatures, self.calibration, self.metric)

    @cached_property
    def descriptions(self) -> dict[str, dict[str, Any]]:
        """Names, shapes, types and meaning of all inputs and outputs."""
        described = {}
        for name, traced in self.graphs.traced.items():
            inputs, outputs = self.reference.calls[name][-1]
            described[name] = metadata.describe_signature(traced, metadata.output_shapes(traced, inputs, outputs))
        return described

    @cached_property
    def is_sparse(self) -> bool:
        """Whether most elements of the kernels are zero."""
        kernels = [np.asarray(v) for v in self.model.trainable_variables if len(v.shape) > 1]
        return sum(np.count_nonzero(k) for k in kernels) < _SPARSE * sum(k.size for k in kernels)

    @cached_property
    def output_shapes(self) -> dict[str, Any]:
        """The shapes of all outputs, by signature and name."""
        return {
            name: {key: value["shape"] for key, value in description["outputs"].items()}
            for name, description in self.descriptions.items()
        }

    @cached_property
    def onnx_base(self) -> dict[str, Any]:
        """The float32 graphs, by signature."""
        return self.graphs.onnx(self.output_shapes)

    def _saved_assets(self) -> dict[str, bytes]:
        return {**self.assets, metadata.FILE: metadata.encode(self._facts("none", ""))}

    def _facts(self, mode: str, variant: str) -> dict[str, Any]:
        return {
            "name": self.name,
            "model": metadata.describe_model(self.model),
            "signatures": self.descriptions,
            "quantization": mode,
            "variant": variant,
            "versions": metadata.versions(),
        }

    # === One artifact ===

    def _artifact(self, format: str, mode: str) -> ArtifactReport:
        if format == "saved_model" and mode != "none":
            report = self._artifact(format, "none")
            report.notes.append(f"A SavedModel has no {mode} form here: written in float32.")
            return report
        label, reasons = f"{format}/{mode}", []
        self.progress(f"Making {label}")
        candidates = self._candidates(format, mode)
        for candidate in candidates:
            attempt = Path(tempfile.mkdtemp(dir=self.work))
            try:
                report = self._attempt(format, mode, candidate, attempt)
            except ExportError as error:
                if len(candidates) == 1:
                    raise
                reasons.append(f"{candidate.variant}: {error}")
                continue
            for path in attempt.iterdir():
                path.rename(self.root / path.name)
            report.notes += [f"Not shipped: {reason}" for reason in reasons]
            return report
        raise GateError(f"{label}: no recipe is good enough. {' | '.join(reasons)}")

    def _candidates(self, format: str, mode: str) -> list[Candidate]:
        graphs = self.graphs
        if format == "saved_model":
            return [Candidate("", lambda: graphs.saved_model)]
        if mode == "bit_plan":
            pack = self._packed_litert if format == "litert" else self._packed_onnx
            return [Candidate(f"{self.planned_size.bits_per_weight:.2f} bits per weight", pack)]
        if mode == "int8" and self.learned:
            make = learned_litert if format == "litert" else learned_onnx
            return [Candidate(LEARNED, lambda: make(self.learned, self.calibration, self.output_shapes))]
        if format == "litert":
            return litert_candidates(mode, graphs.litert, lambda: graphs.litert_base, self.calibration, self.is_sparse)
        return onnx_candidates(mode, self.onnx_base, self.calibration)

    def _packed_litert(self) -> bytes:
        return pack_flatbuffer(self.graphs.litert_base, self.codes)

    def _packed_onnx(self) -> dict[str, Any]:
        return pack_graphs(self.onnx_base, self.codes)

    def _attempt(self, format: str, mode: str, candidate: Candidate, directory: Path) -> ArtifactReport:
        write = {"saved_model": self._write_saved_model, "litert": self._write_litert, "onnx": self._write_onnx}[format]
        paths, ops = write(candidate, mode, directory)
        report = ArtifactReport(
            format,
            mode,
            records(directory, sorted(directory.iterdir())),
            {name: path.name for name, path in paths.items()},
            ops,
            candidate.variant,
        )
        if mode == "bit_plan":
            report.notes.append(_size_note(dataclasses.replace(self.planned_size, file_bytes=report.size)))
        report.gzip_size = benchmark.gzip_size(directory / name for name in report.files)
        if any(op.startswith(litert.FLEX) for op in ops):
            return self._unverified(report)
        self._verify(report, paths)
        if self.measure_speed:
            self.progress(f"Measuring {report.label}")
            inputs = {name: dummy_inputs(self.model, name, item, 1, 0) for name, item in self.signatures.items()}
            report.latency_ms, report.memory_bytes = benchmark.measure(format, paths, inputs, self.work)
        return report

    def _unverified(self, report: ArtifactReport) -> ArtifactReport:
        if report.quantization != "none":
            raise GateError(f"{report.label}: a quantized file with Flex operators cannot be judged. Received: Flex")
        report.notes.append("Holds TensorFlow's operators (Flex), which cannot be run here: not verified.")
        return report

    def _verify(self, report: ArtifactReport, paths: dict[str, Path]) -> None:
        self.progress(f"Verifying {report.label}")
        run = open_artifact(report.format, paths)
        tolerance = verify.TOLERANCE if report.quantization in EXACT else None
        report.errors = self.reference.compare(report.label, run, tolerance)
        report.metric = self.gate.measure(run)
        if report.quantization != "none":
            self.gate.check(report.label, report.metric)
        report.verified = True

    def _write_saved_model(
        self, candidate: Candidate, mode: str, directory: Path
    ) -> tuple[dict[str, Path], dict[str, int]]:
        path = directory / "saved_model"
        shutil.copytree(candidate.build(), path)
        return dict.fromkeys(self.signatures, path), saved_model_ops(path)

    def _write_litert(self, candidate: Candidate, mode: str, directory: Path) -> tuple[dict[str, Path], dict[str, int]]:
        content = candidate.build()
        ops = litert.litert_ops(content)
        facts = metadata.encode(self._facts(mode, candidate.variant))
        path = directory / f"{self.stem(mode)}.tflite"
        path.write_bytes(litert.embed(content, {metadata.KEY: facts}, self.assets))
        return dict.fromkeys(self.signatures, path), ops

    def _write_onnx(self, candidate: Candidate, mode: str, directory: Path) -> tuple[dict[str, Path], dict[str, int]]:
        models = candidate.build()
        ops = onnx.onnx_ops(models)
        for model in models.values():
            metadata.set_onnx_properties(model, self._facts(mode, candidate.variant), self.assets)
        files = onnx.write(models, directory, self.stem(mode))
        return dict(zip(models, files, strict=False)), ops


def _size_note(size: SizeReport) -> str:
    return (
        f"{size.quantized_bytes:,.0f} bytes for the bits of {size.quantized_weights:,} weights and {size.float_bytes:,} "
        f"for the parameters in float: the file differs by {size.overhead:+.1%} from their sum."
    )


def _plain(name: str) -> bool:
    if Path(name).name != name or name in ("", ".", "..", metadata.FILE):
        raise ExportError(f"Names of assets must be plain file names. Received: {name!r}")
    return True
