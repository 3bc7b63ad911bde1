"""`export_binary`: networks of +-1 weights and inputs as files that hold one bit a weight, and run by xnor and popcount.

A sum that lies at a threshold may fall on either side of it, by the order in which float numbers were added before; one bit
then differs, and the logits of that image with it. So most images must have Keras's logits, and all files its accuracy.
What is computed with bits alone is whole numbers and must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.binary import PackedModel, default_engine, pack
from zoo.compression.real_to_binary import RealToBinaryNet
from zoo.export import larq, litert, metadata, verify
from zoo.export.benchmark import gzip_size, measure
from zoo.export.bundle import check_target, model_name
from zoo.export.calibration import Calibration, dummy_inputs
from zoo.export.errors import VerificationError
from zoo.export.gate import Gate
from zoo.export.report import ENGINES, MANIFEST, ArtifactReport, ExportReport
from zoo.export.runners import open_artifact
from zoo.export.signatures import model_signatures, trace
from zoo.export.staging import records, staging
from zoo.files import publish
from zoo.model import Arrays, Runner, Signature, TaskMetric

QUANTIZATION = "binary"
SUFFIXES = {"lce": ".tflite", "packed": ".bits"}
# Share of the examples whose logits must be Keras's, and whose largest logit must be the same one
LEAST_EQUAL, LEAST_AGREEING = 0.9, 0.98
_EXAMPLES = 64


def export_binary(
    model: keras.Model,
    directory: str | Path,
    engine: str = "lce",
    calibration: Any = None,
    metric: TaskMetric | None = None,
    *,
    overwrite: bool = False,
    name: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Exports a binary network to a bundle: one file that was run and compared with Keras, and a manifest.

    The bundle appears whole, when the file has passed, or not at all.

    Args:
        model: for `"lce"` a model with `with_binary_kernels()`, a copy of itself whose kernels hold +-1; for `"packed"` a
            `zoo.compression.real_to_binary.RealToBinaryNet`.
        directory: path of the bundle. It must not exist, be empty, or be a bundle and `overwrite` be set.
        engine: str. `"lce"`: a LiteRT file for Larq Compute Engine, whose environment is made on first use; or `"packed"`:
            the file of `zoo.compression.binary.PackedModel`.
        calibration: example inputs of the main signature, which the file is judged on as well as on random ones. The
            model's own real inputs by default.
        metric: `zoo.model.TaskMetric` or None. What the file is judged by: the model's own by default, else the relative
            error of the outputs, at most 0.1.
        overwrite: bool. Whether to replace an existing bundle.
        name: str or None. Stem of the file: the method's or model's name by default.
        progress: callable or None. Takes one line at each stage.

    Returns:
        `ExportReport` with one artifact, of format `engine` and quantization `"binary"`.

    Raises:
        ValueError: for bad arguments, an unusable directory or a model that is not binary; a missing environment
            (`ExportError`), a file that differs from Keras (`VerificationError`) or is too bad at its task (`GateError`).
        OSError: if writing fails.
    """
    _check_model(model, engine)
    target = Path(directory).absolute()
    check_target(target, overwrite)
    export = _Export(model, engine, model_name(model, name), calibration, metric, progress or (lambda line: None))
    with staging(target) as work:
        root = work / "bundle"
        root.mkdir()
        report = export.run(root, work)
        (root / MANIFEST).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        publish(root, target)
    return report


def _check_model(model: keras.Model, engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {ENGINES}. Received: engine={engine!r}")
    kind = type(model).__name__
    if engine == "lce" and not hasattr(model, "with_binary_kernels"):
        raise ValueError(f"`model` must have `with_binary_kernels()`, as RealToBinaryNet has. Received: {kind}")
    if engine == "packed" and not isinstance(model, RealToBinaryNet):
        raise ValueError(f"`model` must be a RealToBinaryNet for the engine 'packed'. Received: {kind}")


class _Export:
    """One binary network on its way out."""

    def __init__(
        self,
        model: keras.Model,
        engine: str,
        name: str,
        calibration: Any,
        metric: TaskMetric | None,
        progress: Callable[[str], None],
    ) -> None:
        self.model, self.engine, self.name, self.progress = model, engine, name, progress
        # The main signature alone: it is what these files hold
        self.signature, signature = next(iter(model_signatures(model, None).items()))
        self.signatures: dict[str, Signature] = {self.signature: signature}
        self.calibration = Calibration(model, self.signatures, calibration)
        self.metric = metric

    def run(self, root: Path, scratch: Path) -> ExportReport:
        """Writes the file, checks and measures it."""
        path = root / f"{self.name}{SUFFIXES[self.engine]}"
        self.progress("Running Keras on the example inputs")
        reference = verify.Reference(self.model, self.signatures, self.calibration)
        traced = trace(self.signatures)[self.signature]
        shapes = metadata.output_shapes(traced, *reference.calls[self.signature][-1])
        descriptions = {self.signature: metadata.describe_signature(traced, shapes)}
        if self.engine == "lce":
            ops = self._write_lce(path, scratch / "saved_model", descriptions)
        else:
            ops = self._write_packed(path)
        paths = {self.signature: path}
        artifact = ArtifactReport(
            self.engine,
            QUANTIZATION,
            records(root, [path]),
            {self.signature: path.name},
            ops,
            gzip_size=gzip_size([path]),
        )
        artifact.notes.append(f"{artifact.size:,} bytes, {artifact.gzip_size:,} after gzip. {_NOTES[self.engine]}")
        self.progress(f"Verifying {artifact.label}")
        self._verify(artifact, open_artifact(self.engine, paths), reference)
        self.progress(f"Measuring {artifact.label}")
        one = {self.signature: dummy_inputs(self.model, self.signature, self.signatures[self.signature], 1, 0)}
        artifact.latency_ms, artifact.memory_bytes = measure(self.engine, paths, one, scratch)
        facts = metadata.describe_model(self.model)
        return ExportReport(self.name, descriptions, [artifact], facts, self._versions())

    def _versions(self) -> dict[str, str]:
        own = {"larq-compute-engine": larq.VERSION} if self.engine == "lce" else {}
        return {**metadata.versions(), **own}

    # === Writing ===

    def _write_lce(self, path: Path, saved_model: Path, descriptions: Mapping[str, Any]) -> dict[str, int]:
        if not larq.environment_path().exists():
            self.progress("Making the environment of Larq Compute Engine (once; a download of 100 MB)")
        larq.environment_python()
        self.progress("Converting by Larq Compute Engine")
        ops = larq.convert(larq.write_static_saved_model(self.model, saved_model), path)
        facts = {
            "name": self.name,
            "model": metadata.describe_model(self.model),
            "signatures": descriptions,
            "quantization": QUANTIZATION,
            "variant": "",
            "versions": self._versions(),
        }
        path.write_bytes(litert.embed(path.read_bytes(), {metadata.KEY: metadata.encode(facts)}, {}))
        return ops

    def _write_packed(self, path: Path) -> dict[str, int]:
        self.progress("Packing")
        packed = PackedModel.load(pack(self.model).save(path), default_engine())
        for images in self._examples():
            check_sums(self.model, packed, images["image"])
        return {}

    # === Verifying ===

    def _examples(self) -> Iterator[Arrays]:
        """Yields random inputs, and real ones where there are any, at most `_EXAMPLES` of each."""
        signature = self.signatures[self.signature]
        yield dummy_inputs(self.model, self.signature, signature, _EXAMPLES, 1)
        real = self.calibration.real(self.signature)
        if real:
            yield {key: np.concatenate([item[key] for item in real])[:_EXAMPLES] for key in real[0]}

    def _verify(self, artifact: ArtifactReport, run: Runner, reference: verify.Reference) -> None:
        artifact.errors = reference.compare(artifact.label, run, None)
        artifact.notes.append(self._agreement(artifact.label, run))
        gate = Gate(self.model, self.signatures, self.calibration, self.metric)
        artifact.metric = gate.measure(run)
        gate.check(artifact.label, artifact.metric)
        artifact.verified = True

    def _agreement(self, label: str, run: Runner) -> str:
        """Compares the first output example by example; returns what came out of it.

        Raises:
            VerificationError: if too many examples differ.
        """
        keras_run = verify.keras_runner(self.signatures)
        equal, same = [], []
        for inputs in self._examples():
            wanted, found = (next(iter(each(self.signature, inputs).values())) for each in (keras_run, run))
            wanted, found = wanted.reshape(len(wanted), -1), found.reshape(len(found), -1)
            errors = np.abs(wanted - found).max(axis=1) / max(1.0, np.abs(wanted).max())
            equal.append(errors <= verify.TOLERANCE)
            same.append(wanted.argmax(axis=1) == found.argmax(axis=1))
        shares = [float(np.mean(np.concatenate(each))) for each in (equal, same)]
        if shares[0] < LEAST_EQUAL or shares[1] < LEAST_AGREEING:
            raise VerificationError(
                f"{label}: at least {LEAST_EQUAL:.0%} of the examples must have Keras's outputs within "
                f"{verify.TOLERANCE:g} of their scale, and {LEAST_AGREEING:.0%} the same largest one. "
                f"Received: {shares[0]:.1%} and {shares[1]:.1%}"
            )
        return f"{shares[0]:.1%} of the examples have Keras's outputs, {shares[1]:.1%} the same largest one."


def check_sums(model: RealToBinaryNet, packed: PackedModel, image: Any) -> None:
    """Compares every binary convolution with Keras, each given Keras's own features.

    Args:
        model: `RealToBinaryNet` that was packed.
        packed: `PackedModel`.
        image: array-like `(batch, image_size, image_size, num_channels)` in [0, 1].

    Raises:
        VerificationError: if a sum differs.
    """
    x = model.stem(tf.constant(image))
    for index, half in enumerate(half for block in model.blocks for half in block.halves):
        wanted = np.asarray(half.conv(half.norm(x)))
        differing = int(np.sum(packed.sums(index, np.asarray(x)) != wanted))
        if differing:
            raise VerificationError(
                f"The sums of binary convolution {index} must be Keras's. Received: {differing} other ones of {wanted.size}"
            )
        x = half(x)


_NOTES = {
    "lce": (
        f"Runs in Larq Compute Engine {larq.VERSION} (zoo.export.larq, and its libraries for Android and Arm64), one image "
        "a call; the stock LiteRT runtime lacks its operators."
    ),
    "packed": "Runs in zoo.compression.binary.PackedModel: by numba, or slower by NumPy alone.",
}
