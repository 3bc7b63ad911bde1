"""`zoo demo`: the whole way on shipped weights, from a trained model to verified files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoo.cli.exporting import show_report
from zoo.cli.terminal import add_command, console, load_model, stages
from zoo.export.report import read_manifest

METHOD = "compressive_transformer"
# Names the bundle in its manifest, so that only an earlier demo is ever replaced
NAME = "demo"
PROMPT = "It is a truth universally acknowledged, that "
QUANTIZATIONS = ("none", "dynamic_int8")


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = add_command(commands, "demo", demo, "Write text with a trained model, export it, verify the files.")
    parser.add_argument("--output", type=Path, default=Path("zoo-demo"), help="directory (default: zoo-demo)")


def demo(options: argparse.Namespace) -> None:
    """Runs `zoo demo`."""
    from zoo.files import check_writable

    directory = check_writable(options.output)
    _check_target(directory)
    screen = console()
    with stages() as say:
        say(f"Loading {METHOD}")
        model = load_model(METHOD)
        say("Generating text")
        text = model.generate(PROMPT, max_new_tokens=400, temperature=0.6, seed=0)
    screen.print(f"{METHOD} continues {PROMPT!r}:\n\n{PROMPT}{text}\n")
    with stages() as say:
        from zoo.export import export_model

        report = export_model(model, directory, quantization=QUANTIZATIONS, overwrite=True, name=NAME, progress=say)
    show_report(report, as_json=False)
    screen.print("Every artifact was run in its own runtime and compared with Keras. The files:")
    for name, record in sorted(report.files.items()):
        screen.print(f"  {record.size:>10,}  {directory / name}", soft_wrap=True)
    screen.print(f"Next: zoo verify {directory}; zoo generate {METHOD} --prompt 'Emma '; zoo list", soft_wrap=True)


def _check_target(directory: Path) -> None:
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        previous = read_manifest(directory).name == NAME
    except ValueError:
        previous = False
    if not previous:
        raise ValueError(f"`--output` holds something else than an earlier demo. Received: {str(directory)!r}")
