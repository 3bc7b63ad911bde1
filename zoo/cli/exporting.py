"""`zoo export`, `zoo verify` and `zoo benchmark`: models on their way out, and bundles that are there."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import catalog
from zoo.cli.terminal import (
    Say,
    add_command,
    add_json,
    add_source,
    check_source,
    console,
    load_model,
    stages,
    write_json,
)
from zoo.export import ENGINES, FORMATS, QUANTIZATIONS, ExportReport
from zoo.export.report import read_manifest

if TYPE_CHECKING:
    import keras

_BENCHMARKED = ("none", "dynamic_int8")
_WEIGHTS_HELP = "preset directory the bundle was made from (default: the shipped preset it names)"


def add_commands(commands: Any) -> None:
    """Adds the commands to a parser."""
    _add_export(commands)
    parser = add_command(commands, "verify", verify, "Check a bundle: hashes, and every artifact against Keras.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="directory that `zoo export` wrote")
    parser.add_argument("--weights", metavar="DIR", help=_WEIGHTS_HELP)
    add_json(parser)
    parser = add_command(
        commands, "benchmark", benchmark, "Measure size, latency and memory of a bundle, or of a method's artifacts."
    )
    parser.add_argument(
        "source", metavar="BUNDLE|NAME", help="directory that `zoo export` wrote, or method or preset to export first"
    )
    parser.add_argument("--weights", metavar="DIR", help=_WEIGHTS_HELP)
    add_json(parser)


def _add_export(commands: Any) -> None:
    parser = add_command(commands, "export", export, "Export a trained model to a bundle of verified artifacts.")
    add_source(parser)
    parser.add_argument("--format", action="append", choices=FORMATS, help="may be repeated (default: all)")
    parser.add_argument(
        "--quantization", action="append", choices=QUANTIZATIONS, help="may be repeated (default: none)"
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="instead of formats, for binary networks: one bit a weight, for Larq Compute Engine or this library",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory of the bundle")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="texts that int8 measures ranges on (default: recorded data)"
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: 18)")
    parser.add_argument("--allow-flex", action="store_true", help="let LiteRT files need TensorFlow's operators")
    parser.add_argument("--skip-refused", action="store_true", help="leave out what fails its gate, and say so")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    add_json(parser)


# === zoo export ===


def export(options: argparse.Namespace) -> None:
    """Runs `zoo export`."""
    from zoo.files import check_writable

    check_source(options.source, options.preset)
    if options.engine is not None:
        _refuse_with_engine(options)
    check_writable(options.output)
    with stages() as say:
        say("Loading the model")
        model = load_model(options.source, options.preset)
        if options.engine is not None:
            report = _export_binary(model, options, say)
        else:
            report = _export_formats(model, options, say)
    show_report(report, options.json)
    if not options.json:
        console().print(f"Bundle: {options.output}", soft_wrap=True)


def _refuse_with_engine(options: argparse.Namespace) -> None:
    names = ("format", "quantization", "calibration", "opset", "allow_flex", "skip_refused")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if given:
        raise ValueError(f"`--engine` takes the place of formats and their options. Received: {' '.join(given)}")


def _export_binary(model: keras.Model, options: argparse.Namespace, say: Say) -> ExportReport:
    from zoo.export import export_binary

    return export_binary(model, options.output, options.engine, overwrite=options.overwrite, progress=say)


def _export_formats(model: keras.Model, options: argparse.Namespace, say: Say) -> ExportReport:
    chosen = {} if options.opset is None else {"opset": options.opset}
    if options.calibration is not None:
        from zoo.language.tasks import example_inputs

        chosen["calibration"] = example_inputs(model, options.calibration)
    return _export(
        model,
        options.output,
        say,
        formats=options.format or FORMATS,
        quantization=options.quantization or "none",
        allow_flex=options.allow_flex,
        skip_refused=options.skip_refused,
        overwrite=options.overwrite,
        **chosen,
    )


def _export(model: keras.Model, directory: Path, say: Say, **arguments: Any) -> ExportReport:
    from zoo.export import export_model

    return export_model(model, directory, progress=say, **arguments)


def show_report(report: ExportReport, as_json: bool) -> None:
    """Prints a report as a table or as JSON."""
    if as_json:
        write_json(report.to_dict())
        return
    screen = console()
    screen.print(report.table())
    for entry in report.refused:
        screen.print(f"Refused: {entry['reason']}")
    for artifact in report.artifacts:
        for note in artifact.notes:
            screen.print(f"{artifact.label}: {note}")


# === zoo verify ===


def verify(options: argparse.Namespace) -> None:
    """Runs `zoo verify`."""
    if not options.bundle.is_dir():
        raise FileNotFoundError(f"There is no such bundle. Received: {str(options.bundle)!r}")
    with stages() as say:
        say("Loading the model")
        model = _model_of_bundle(read_manifest(options.bundle), options.weights)
        from zoo.export import verify_bundle

        report = verify_bundle(options.bundle, model, progress=say)
    show_report(report, options.json)
    if options.json:
        return
    unverified = [artifact.label for artifact in report.artifacts if not artifact.verified]
    if unverified:
        console().print(f"Whole by its hashes, not run: {', '.join(unverified)}")
    else:
        console().print("Verified: every artifact was run in its own runtime and compared with Keras.")


def _model_of_bundle(report: ExportReport, weights: str | None) -> keras.Model | None:
    """Returns the model a bundle was made from; None where its manifest names no method of the catalog."""
    if weights is not None:
        return load_model(str(Path(weights).absolute()) if Path(weights).is_dir() else weights)
    method, preset = report.metadata.get("method"), report.metadata.get("preset")
    if method is None:
        return None
    known = catalog.info(method).presets if method in catalog.list_models() else {}
    if preset not in known or not known[preset].trained:
        raise ValueError(
            f"The bundle was made from weights that are not shipped: pass --weights with their preset directory. "
            f"Received: {method=}, {preset=}"
        )
    return load_model(method, preset)


# === zoo benchmark ===


def benchmark(options: argparse.Namespace) -> None:
    """Runs `zoo benchmark`."""
    directory = Path(options.source)
    with stages() as say:
        if (directory / "manifest.json").is_file():
            report = _measure_bundle(directory, options.weights, say)
        else:
            if options.weights is not None:
                raise ValueError(f"`--weights` belongs to a bundle. Received: {options.source!r}, which is none")
            report = _measure_export(options.source, say)
    show_report(report, options.json)


def _measure_export(source: str, say: Say) -> ExportReport:
    say("Loading the model")
    model = load_model(source)
    with tempfile.TemporaryDirectory() as scratch:
        return _export(model, Path(scratch) / "bundle", say, quantization=_BENCHMARKED, skip_refused=True)


def _measure_bundle(directory: Path, weights: str | None, say: Say) -> ExportReport:
    report = read_manifest(directory)
    say("Loading the model")
    model = _model_of_bundle(report, weights)
    if model is None:
        raise ValueError(f"The inputs come from the model: pass --weights DIR. Received: {str(directory)!r}")
    from zoo.export.benchmark import measure
    from zoo.export.check import check_files

    check_files(directory, report)
    inputs = {name: model.dummy_inputs(name, batch_size=1) for name in model.signatures()}
    with tempfile.TemporaryDirectory() as scratch:
        for artifact in report.artifacts:
            # What could not be run when it was made, because of TensorFlow's operators, cannot be run now
            if not artifact.verified:
                continue
            say(f"Measuring {artifact.label}")
            paths = {name: directory / path for name, path in artifact.paths.items()}
            artifact.latency_ms, artifact.memory_bytes = measure(artifact.format, paths, inputs, Path(scratch))
    return report
