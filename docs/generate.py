"""Writes the generated parts of the documentation: pages of methods and of experiments, the export matrix, the README's
table of methods.

    python docs/generate.py            # writes
    python docs/generate.py --check    # writes nothing, names what is out of date, and exits with 1 if anything is

Sources: the catalog, the metadata of shipped presets, `docs/results/<method>.json` (`zoo reproduce`) and
`docs/results/export/<method>.json` (`zoo export --skip-refused --json`). Loads no TensorFlow; same sources, same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import catalog
from zoo.catalog import Method, Preset
from zoo.cli.terminal import EXPERIMENTS
from zoo.export import ArtifactReport, ExportReport
from zoo.files import atomic_file
from zoo.metadata import METADATA, WEIGHTS, Metadata

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- methods:begin (python docs/generate.py) -->", "<!-- methods:end -->"
GENERATED = "<!-- Written by docs/generate.py: do not edit. -->"
# What one does first with a trained model of a task
_USES = {
    "language_modeling": 'print(model.generate("It is a truth ", max_new_tokens=100, seed=0))',
    "density_estimation": "images = model.sample(16, seed=0)",
    "image_generation": "images = model.sample(16, seed=0)",
}
_NO_TABLES = ("method", "claim", "verdict", "command", "settings", "versions")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks all generated files; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything is out of date")
    check = parser.parse_args(arguments).check
    wanted = pages(ROOT)
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    left = [path for path in sorted((ROOT / "docs" / "methods").glob("*.md")) if path not in wanted]
    if not check:
        for path in stale:
            with atomic_file(path) as file:
                file.write_text(wanted[path], encoding="utf-8")
        for path in left:
            path.unlink()
    for path in [*stale, *left]:
        sys.stdout.write(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}\n")
    return 1 if check and (stale or left) else 0


def pages(root: Path) -> dict[Path, str]:
    """Returns the content of every generated file.

    Args:
        root: path of the repository, whose README and `docs/results` are read.
    """
    methods = [method for method in map(catalog.info, catalog.list_models()) if method.module.startswith("zoo.")]
    results = root / "docs" / "results"
    exports = {method.name: _export(results / "export" / f"{method.name}.json") for method in methods}
    written = {
        root / "docs" / "methods" / f"{method.name}.md": method_page(method, results, exports[method.name])
        for method in methods
    }
    written |= {
        results / f"{name}.md": experiment_page(name, results)
        for name in EXPERIMENTS
        if (results / f"{name}.json").is_file()
    }
    written[results / "export.md"] = export_page(exports)
    readme = root / "README.md"
    written[readme] = with_table(readme.read_text(encoding="utf-8"), methods)
    return written


def _export(path: Path) -> ExportReport | None:
    return ExportReport.from_dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


# === Markdown ===


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _bytes(size: int | None) -> str:
    if size is None:
        return ""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


# === README ===


def with_table(readme: str, methods: Sequence[Method]) -> str:
    """Returns the README with the table of methods between its markers.

    Raises:
        ValueError: if a marker is missing.
    """
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md must hold the markers {BEGIN!r} and {END!r}. Received: at most one of them")
    before, rest = readme.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    rows = [
        (f"[`{m.name}`](docs/methods/{m.name}.md)", m.task.replace("_", " "), _trained(m), _paper_link(m))
        for m in methods
    ]
    return f"{before}{BEGIN}\n{table(('method', 'task', 'shipped weights', 'paper'), rows)}\n{END}{after}"


def _trained(method: Method) -> str:
    shipped = []
    for name, preset in method.presets.items():
        if preset.trained:
            metrics = [f"{key.replace('_', ' ')} {value:.3f}" for key, value in _test_metrics(preset).items()]
            shipped.append(f"`{name}`: {', '.join(metrics)}")
    return "\n".join(shipped) or "none yet"


def _test_metrics(preset: Preset) -> dict[str, float]:
    return {key: value for key, value in preset.metrics.items() if key.startswith("test_")}


def _paper_link(method: Method) -> str:
    return f"[{method.paper.published}]({method.paper.url})"


# === Method pages ===


def method_page(method: Method, results: Path, export: ExportReport | None) -> str:
    """Returns the page of a method.

    Args:
        method: `Method`.
        results: path of `docs/results`.
        export: `ExportReport` or None, if no export was recorded.
    """
    paper = method.paper
    facts = f"`{method.name}` · {method.task.replace('_', ' ')} · {', '.join(method.tags)}".removesuffix(" · ")
    return _join(
        [
            f"# {method.title}",
            GENERATED,
            facts,
            method.summary,
            f"{paper.authors}: [{paper.title}]({paper.url}). {method.paper.published}.",
            "\n".join(f"- {note}" for note in method.notes),
            *_use_section(method),
            *_presets_section(method),
            *_weights_section(method),
            *_experiment_section(method.name, results),
            *_export_section(method, export),
        ]
    )


def _use_section(method: Method) -> list[str]:
    name = method.name
    trained, use = method.preset().trained, method.example or _USES.get(method.task)
    arguments = f'"{name}"' if trained else f'"{name}", weights=None'
    model = [
        "import zoo",
        "",
        f"model = zoo.get({arguments})",
        "outputs = model.run(None, **model.dummy_inputs())  # its first signature, on random valid inputs",
        *([use] if trained and use else []),
    ]
    commands = [f"zoo train {name} --output runs/{name}"]
    if trained:
        commands = [f"zoo evaluate {name}", f"zoo export {name} --output bundle", *commands]
    blocks = ["```python", *model, "```", "", "```bash", *commands, "```"]
    return ["## Use", "\n".join(blocks)]


def _presets_section(method: Method) -> list[str]:
    rows = [
        (
            f"`{name}`" + (" (default)" if name == method.default_preset else ""),
            "" if preset.parameters is None else _number(preset.parameters),
            "shipped" if preset.trained else "",
            preset.description,
        )
        for name, preset in method.presets.items()
    ]
    configs = [
        f"`{name}`: " + ", ".join(f"{key}={value!r}" for key, value in preset.config.items())
        for name, preset in method.presets.items()
    ]
    details = "<details><summary>Constructor arguments</summary>\n\n{}\n\n</details>"
    listed = details.format("\n".join(f"- {line}" for line in configs))
    return ["## Presets", table(("preset", "parameters", "weights", "for"), rows), listed]


def _weights_section(method: Method) -> list[str]:
    parts = [_weights_of(preset) for preset in method.presets.values() if preset.weights is not None]
    return ["## Shipped weights", *parts] if parts else []


def _weights_of(preset: Preset) -> str:
    metadata = Metadata.from_json((preset.weights / METADATA).read_bytes())
    dataset = metadata.dataset
    rows = [
        *((name.replace("_", " "), f"{value:.4f}") for name, value in metadata.metrics.items()),
        ("data", ", ".join(str(dataset[key]) for key in ("name", "licence") if key in dataset)),
        ("evaluated on", dataset.get("evaluated_on", "")),
        ("command", f"`{metadata.training['command']}`" if "command" in metadata.training else ""),
        ("updates", _number(metadata.training.get("steps", ""))),
        ("weights", f"{_bytes((preset.weights / WEIGHTS).stat().st_size)}, SHA-256 `{metadata.weights_sha256}`"),
        ("licence", metadata.licence),
        ("made", f"{metadata.created}, " + ", ".join(f"{k} {v}" for k, v in metadata.versions.items())),
    ]
    return f"### {preset.name}\n\n" + table(("", ""), [row for row in rows if row[1]])


# === The experiment ===


def experiment_page(name: str, results: Path) -> str:
    """Returns the page of an experiment across methods.

    Args:
        name: str.
        results: path of `docs/results`.
    """
    title = f"# {name.replace('_', ' ').capitalize()}"
    return _join([title, GENERATED, *_experiment_section(name, results, "What was compared")])


def _experiment_section(name: str, results: Path, title: str = "The paper's claim, tried") -> list[str]:
    path = results / f"{name}.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    settings = ", ".join(f"{key} {_number(value)}" for key, value in found["settings"].items())
    image = results / f"{name}.png"
    return [
        f"## {title}",
        f"Claim: {found['claim']}",
        f"Verdict: {found['verdict']}",
        f"![Results of the experiment](../results/{image.name})" if image.is_file() else "",
        *(f"![More results](../results/{each.name})" for each in sorted(results.glob(f"{name}_*.png"))),
        *(part for key, value in found.items() if key not in _NO_TABLES for part in _result(key, value)),
        f"Repeat it: `{found['command']}` ({settings}).",
    ]


def _result(key: str, value: Any) -> list[str]:
    """Returns a heading and the numbers of one result, in the form that fits them."""
    heading = f"### {key.replace('_', ' ').capitalize()}"
    if not isinstance(value, Mapping):
        return [
            heading,
            _number(value) if isinstance(value, int | float | str) else f"```json\n{json.dumps(value)}\n```",
        ]
    if _is_spread(value):
        return [heading, _spread(value)]
    if value and all(isinstance(row, Mapping) and not _is_spread(row) for row in value.values()):
        columns = list(dict.fromkeys(column for row in value.values() for column in row))
        rows = [(name, *(_value(row.get(column, "")) for column in columns)) for name, row in value.items()]
        return [heading, table(("", *columns), rows)]
    return [heading, table(("", "value"), [(name, _value(item)) for name, item in value.items()])]


def _is_spread(value: Any) -> bool:
    return isinstance(value, Mapping) and {"mean", "std"} <= set(value) <= {"mean", "std", "seeds"}


def _spread(value: Mapping[str, float]) -> str:
    # One run has no spread
    if value.get("seeds") == 1:
        return f"{value['mean']:.4g} (1 seed)"
    seeds = f" ({value['seeds']} seeds)" if "seeds" in value else ""
    return f"{value['mean']:.4g} ± {value['std']:.2g}{seeds}"


def _value(value: Any) -> str:
    if _is_spread(value):
        return _spread(value)
    return ", ".join(map(_number, value)) if isinstance(value, list) else _number(value)


# === Exports ===


def _export_section(method: Method, export: ExportReport | None) -> list[str]:
    if export is None:
        return []
    return [
        "## Export",
        artifacts_table(export),
        *_signatures_section(export),
        "How to run the files: [the export guide](../export.md).",
    ]


def artifacts_table(export: ExportReport) -> str:
    """Returns size, error, task metric and latency of every artifact, and what was refused."""
    rows = [_artifact_row(artifact) for artifact in export.artifacts]
    rows += [(entry["format"], entry["quantization"], "refused", "", "", "") for entry in export.refused]
    return table(("format", "quantisation", "size", "largest relative error", "metric (Keras)", "latency in ms"), rows)


def _artifact_row(artifact: ArtifactReport) -> tuple[str, ...]:
    error, metric = artifact.max_relative_error, artifact.metric
    return (
        artifact.format,
        artifact.quantization + (f" ({artifact.variant})" if artifact.variant else ""),
        _bytes(artifact.size),
        "not run" if error is None else f"{error:.1e}",
        f"{metric.name} {metric.value:.5g} ({metric.reference:.5g})" if metric else "",
        "\n".join(f"{name} {value:.3g}" for name, value in artifact.latency_ms.items()),
    )


def _signatures_section(export: ExportReport) -> list[str]:
    rows = []
    for name, signature in export.signatures.items():
        for kind in ("inputs", "outputs"):
            for tensor, spec in signature[kind].items():
                shape = ", ".join(map(str, spec["shape"]))
                rows.append((name, kind[:-1], f"`{tensor}`", f"{spec['dtype']} ({shape})", spec["description"]))
    return ["### Signatures", table(("signature", "", "name", "type", "meaning"), rows)]


def export_page(exports: Mapping[str, ExportReport | None]) -> str:
    """Returns the export matrix of all methods.

    Args:
        exports: mapping from method name to `ExportReport` or None.
    """
    recorded = {name: export for name, export in exports.items() if export is not None}
    missing = [f"`{name}`" for name in exports if name not in recorded]
    parts = [
        "# Export: what passes, how large, how fast",
        GENERATED,
        "Every artifact was run in its own runtime. Errors are relative to the size of an output; metrics are computed on "
        "held-out data through the artifact, Keras's value in brackets; latencies are medians of one call with one example "
        "on one thread. How to export and run: [the export guide](../export.md).",
    ]
    for name, export in recorded.items():
        made = ", ".join(f"{package} {version}" for package, version in export.versions.items())
        reasons = "\n".join(f"- {e['format']}/{e['quantization']}: {e['reason']}" for e in export.refused)
        parts += [f"## {name}", artifacts_table(export), reasons and f"Refused:\n\n{reasons}", f"Made with {made}."]
    if missing:
        parts.append(f"No export is recorded for {', '.join(missing)}.")
    return _join(parts)


if __name__ == "__main__":
    sys.exit(main())
