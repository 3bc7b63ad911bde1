"""What an export made, as data: `ExportReport` and its parts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("saved_model", "litert", "onnx")
QUANTIZATIONS = ("none", "float16", "dynamic_int8", "weight_only_int8", "int4", "int8", "bit_plan")
# Modes whose files compute what Keras computes.
EXACT = ("none", "bit_plan")
# Runtimes of networks with binary weights and activations
ENGINES = ("lce", "packed")
SCHEMA = "zoo-export/1"
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """A file of a bundle.

    Args:
        sha256: str. Hexadecimal digest of the content.
        size: int. Bytes.
    """

    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class SignatureError:
    """How far one signature of an artifact is from Keras.

    Args:
        max_absolute: float. Largest absolute difference over all outputs.
        max_relative: float. The largest ratio of an output's difference to `max(1, largest value of that output)`.
        output: str. The output with the largest relative difference.
        index: tuple of int. Where in that output.
        expected: float. Keras's value there.
        received: float. The artifact's value there.
    """

    max_absolute: float
    max_relative: float
    output: str
    index: tuple[int, ...]
    expected: float
    received: float


@dataclasses.dataclass(frozen=True)
class MetricChange:
    """The task metric before and after an artifact was made.

    Args:
        name: str. Metric and unit.
        reference: float. Value of the Keras model.
        value: float. Value of the artifact.
        allowed: float. Largest acceptable worsening.
    """

    name: str
    reference: float
    value: float
    allowed: float


@dataclasses.dataclass
class ArtifactReport:
    """One model in one format at one precision.

    Args:
        format: str. One of `FORMATS` or `ENGINES`.
        quantization: str. One of `QUANTIZATIONS`; `"binary"` for engines.
        files: dict from path in the bundle to `FileRecord`.
        paths: dict from signature to the file (for a SavedModel the directory) that holds it.
        ops: dict from operator name to how often it occurs.
        variant: str. Which of several recipes of a mode was shipped; empty where there is one.
        errors: dict from signature to `SignatureError`.
        metric: `MetricChange`, or None where it could not be computed.
        latency_ms: dict from signature to the median of one call at batch 1 on one thread, in milliseconds.
        memory_bytes: int or None. Growth of the resident memory of a fresh process that loads and runs it.
        gzip_size: int or None. Bytes of all files after gzip.
        verified: bool. Whether the artifact was run and compared with Keras.
        notes: list of str. What a user should know.
    """

    format: str
    quantization: str
    files: dict[str, FileRecord]
    paths: dict[str, str]
    ops: dict[str, int] = dataclasses.field(default_factory=dict)
    variant: str = ""
    errors: dict[str, SignatureError] = dataclasses.field(default_factory=dict)
    metric: MetricChange | None = None
    latency_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    memory_bytes: int | None = None
    gzip_size: int | None = None
    verified: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        """Format and precision in one word, such as `"litert/dynamic_int8"`."""
        return f"{self.format}/{self.quantization}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    @property
    def max_absolute_error(self) -> float | None:
        """Largest absolute difference from Keras over all signatures; None where nothing was run."""
        return max((error.max_absolute for error in self.errors.values()), default=None)

    @property
    def max_relative_error(self) -> float | None:
        """Largest relative difference from Keras over all signatures; None where nothing was run."""
        return max((error.max_relative for error in self.errors.values()), default=None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArtifactReport:
        """Builds a report from what `dataclasses.asdict` gave."""
        values = dict(values)
        values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
        values["errors"] = {
            name: SignatureError(**{**error, "index": tuple(error["index"])})
            for name, error in values["errors"].items()
        }
        values["metric"] = values["metric"] and MetricChange(**values["metric"])
        return cls(**values)


@dataclasses.dataclass
class ExportReport:
    """Everything an export made: the content of a bundle's `manifest.json`.

    Args:
        name: str. Name of the model, the stem of its files.
        signatures: dict from signature name to its inputs and outputs (shape, dtype, meaning).
        artifacts: list of `ArtifactReport`.
        metadata: dict. Method, preset, weights hash, licence, metrics and data set of the model.
        versions: dict from package name to the version that made the bundle.
        assets: dict from path in the bundle to `FileRecord`: tokenizer and such.
        refused: list of dicts with the `format`, `quantization` and `reason` of what was not shipped.
    """

    name: str
    signatures: dict[str, dict[str, Any]]
    artifacts: list[ArtifactReport]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    assets: dict[str, FileRecord] = dataclasses.field(default_factory=dict)
    refused: list[dict[str, str]] = dataclasses.field(default_factory=list)

    @property
    def files(self) -> dict[str, FileRecord]:
        """Every file of the bundle but the manifest itself."""
        merged = dict(self.assets)
        for artifact in self.artifacts:
            merged.update(artifact.files)
        return merged

    def artifact(self, format: str, quantization: str = "none") -> ArtifactReport:
        """Returns one artifact.

        Raises:
            ValueError: if the bundle has none such.
        """
        for artifact in self.artifacts:
            if (artifact.format, artifact.quantization) == (format, quantization):
                return artifact
        have = [artifact.label for artifact in self.artifacts]
        raise ValueError(f"No such artifact; there are {have}. Received: {format=}, {quantization=}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as values that JSON holds, with the derived numbers of each artifact."""
        values = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for artifact, entry in zip(self.artifacts, values["artifacts"], strict=True):
            entry["errors"] = {
                name: {**error, "index": list(error["index"])} for name, error in entry["errors"].items()
            }
            entry["derived"] = {
                "size": artifact.size,
                "max_absolute_error": artifact.max_absolute_error,
                "max_relative_error": artifact.max_relative_error,
            }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportReport:
        """Builds a report from what `to_dict` gave.

        Raises:
            ValueError: if the values are not those of a report.
        """
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA:
            received = values.get("schema") if isinstance(values, Mapping) else type(values).__name__
            raise ValueError(f"Not a manifest of schema {SCHEMA!r}. Received: {received!r}")
        fields = {name: value for name, value in values.items() if name != "schema"}
        try:
            fields["artifacts"] = [
                ArtifactReport.from_dict({key: value for key, value in entry.items() if key != "derived"})
                for entry in fields["artifacts"]
            ]
            fields["assets"] = {name: FileRecord(**record) for name, record in fields["assets"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The manifest is damaged. Received: {type(error).__name__}: {error}") from error

    def table(self) -> Table:
        """Returns a rich table, one row an artifact."""
        from rich import box
        from rich.table import Table

        metrics = {artifact.metric.name: artifact.metric.reference for artifact in self.artifacts if artifact.metric}
        caption = ", ".join(f"metric: {name}, {reference:.4g} in Keras" for name, reference in metrics.items())
        table = Table(box=box.SIMPLE_HEAD, title=f"Export of {self.name}", caption=caption or None)
        table.add_column("artifact", no_wrap=True)
        for column in ("size", "error", "metric", "latency", "memory"):
            table.add_column(column, justify="right")
        for artifact in self.artifacts:
            table.add_row(*_row(artifact))
        for entry in self.refused:
            table.add_row(f"{entry['format']}/{entry['quantization']}", "refused")
        return table


def _row(artifact: ArtifactReport) -> list[str]:
    metric = artifact.metric
    several = len(artifact.latency_ms) > 1
    latency = [f"{name + ' ' if several else ''}{value:.3g} ms" for name, value in artifact.latency_ms.items()]
    return [
        artifact.label + (f"\n  {artifact.variant}" if artifact.variant else ""),
        _bytes(artifact.size),
        "not run" if artifact.max_relative_error is None else f"{artifact.max_relative_error:.1e}",
        f"{metric.value:.4g}" if metric else "",
        "\n".join(latency),
        _bytes(artifact.memory_bytes),
    ]


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def read_manifest(root: Path) -> ExportReport:
    """Reads the manifest of a bundle without running anything.

    Raises:
        ValueError: if there is none, it is damaged, or it names files outside of the bundle.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ValueError(f"Not an export bundle: it has no {MANIFEST}. Received: {str(root)!r}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The manifest is damaged: {error}. Received: {str(root)!r}") from error
    report = ExportReport.from_dict(values)
    paths = [*report.files, *(path for artifact in report.artifacts for path in artifact.paths.values())]
    for name in paths:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not (root / name).resolve().is_relative_to(root.resolve()):
            raise ValueError(f"The manifest names a file outside of the bundle. Received: {name!r}")
    return report
