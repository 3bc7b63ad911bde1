"""`zoo list` and `zoo info`: what is in the catalog. They load no TensorFlow."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from zoo import catalog
from zoo.catalog import Method, Preset
from zoo.cli.terminal import add_command, add_json, console, write_json


def add_commands(commands: Any) -> None:
    """Adds the commands to a parser."""
    parser = add_command(commands, "list", list_methods, "List the methods.")
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help='glob over names, such as "nice*"')
    parser.add_argument("--task", help="only methods of a task, such as language_modeling")
    parser.add_argument("--trained", action="store_const", const=True, help="only methods with trained weights")
    add_json(parser)
    parser = add_command(commands, "info", show_method, "Show a method: paper, presets, sizes, recorded metrics.")
    parser.add_argument("name", metavar="NAME", help="method of the catalog")
    add_json(parser)


def list_methods(options: argparse.Namespace) -> None:
    """Runs `zoo list`."""
    names = catalog.list_models(options.pattern, task=options.task, trained=options.trained)
    methods = [catalog.info(name) for name in names]
    if options.json:
        write_json([_summary(method) for method in methods])
        return
    from rich.table import Table

    table = Table()
    table.add_column("method", no_wrap=True)
    # Folded in a narrow terminal rather than cut off: what is printed can be typed
    for column in ("task", "trained presets"):
        table.add_column(column, overflow="fold")
    table.add_column("summary")
    for method in methods:
        trained = ", ".join(_summary(method)["trained_presets"])
        table.add_row(method.name, method.task, trained, method.summary)
    console().print(table)


def _summary(method: Method) -> dict[str, Any]:
    trained = [name for name, preset in method.presets.items() if preset.trained]
    fields = {key: getattr(method, key) for key in ("name", "title", "task", "summary", "default_preset")}
    return {**fields, "presets": list(method.presets), "trained_presets": trained}


def show_method(options: argparse.Namespace) -> None:
    """Runs `zoo info`."""
    method = catalog.info(options.name)
    if options.json:
        write_json(_facts(method))
        return
    screen = console()
    screen.print(f"{method.title} ({method.name}): {method.task}")
    screen.print(method.summary)
    paper = method.paper
    if paper.url:
        screen.print(f"{paper.authors}: {paper.title}. {paper.published}. {paper.url}")
    screen.print(_presets_table(method))
    for note in method.notes:
        screen.print(f"Note: {note}")


def _facts(method: Method) -> dict[str, Any]:
    fields = {key: getattr(method, key) for key in ("tags", "notes", "module", "class_name")}
    presets = {name: _preset_facts(preset) for name, preset in method.presets.items()}
    return {**_summary(method), "paper": dataclasses.asdict(method.paper), **fields, "presets": presets}


def _preset_facts(preset: Preset) -> dict[str, Any]:
    return {
        "description": preset.description,
        "parameters": preset.parameters,
        "trained": preset.trained,
        "metrics": preset.metrics,
        "config": dict(preset.config),
    }


def _presets_table(method: Method) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column("preset", no_wrap=True)
    table.add_column("description")
    table.add_column("trained: recorded metrics", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for name, preset in method.presets.items():
        metrics = "\n".join(f"{metric} {value:.4g}" for metric, value in preset.metrics.items())
        mark = " (default)" if name == method.default_preset else ""
        parameters = "" if preset.parameters is None else f"{preset.parameters:,}"
        table.add_row(name + mark, preset.description, metrics or ("yes" if preset.trained else ""), parameters)
    return table
