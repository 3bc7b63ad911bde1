"""`zoo compress`: makes a trained model smaller by a short training, and shows what it cost and gained."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.terminal import (
    Say,
    add_command,
    add_json,
    add_source,
    check_source,
    console,
    duration,
    experiment,
    load_model,
    natural,
    positive,
    stages,
    write_json,
)

if TYPE_CHECKING:
    import keras

    from zoo.training.recipe import Recipe

_PATTERNS = ("unstructured", "2x4", "channel")


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = add_command(
        commands, "compress", compress, "Prune, cluster and quantise a trained model by a short training."
    )
    add_source(parser)
    parser.add_argument("--prune", type=duration, metavar="SHARE", help="share of zeros in every kernel, such as 0.8")
    parser.add_argument("--pattern", choices=_PATTERNS, default="unstructured", help="(default: unstructured)")
    parser.add_argument("--cluster", type=positive, metavar="VALUES", help="distinct values in every kernel")
    parser.add_argument("--quantize-aware", type=positive, metavar="BITS", help="bits of weights, 2 to 8")
    parser.add_argument("--activations", type=natural, default=8, metavar="BITS", help="0 for float (default: 8)")
    parser.add_argument("--block-size", type=positive, help="input elements that share a range (int4 language models)")
    parser.add_argument("--budget-kb", type=duration, metavar="KB", help="learn bit widths to fit the weights into it")
    parser.add_argument(
        "--activation-budget-kb", type=duration, metavar="KB", help="the same for the activations of one example"
    )
    parser.add_argument("--epochs", type=positive, default=1, help="length of the training (default: 1)")
    parser.add_argument("--steps-per-epoch", type=positive, help="updates of an epoch (default: the recipe's)")
    parser.add_argument("--learning-rate-scale", type=duration, default=0.1, help="of the recipe's (default: 0.1)")
    parser.add_argument("--dataset", help="data set of the same form in place of the recipe's")
    parser.add_argument("--seed", type=natural, default=0, help="(default: 0)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="model.keras, bundle/ and size.png")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    add_json(parser)


def compress(options: argparse.Namespace) -> None:
    """Runs `zoo compress`."""
    from zoo.files import check_writable

    check_source(options.source, options.preset)
    learned = options.budget_kb or options.activation_budget_kb
    if options.prune is None and not any((options.cluster, options.quantize_aware, learned)):
        raise ValueError("Say how: --prune, --cluster, --quantize-aware or --budget-kb. Received: none of them")
    if options.quantize_aware and learned:
        raise ValueError("--budget-kb learns the bits that --quantize-aware sets. Received: both")
    check_writable(options.output)
    if (options.output / "model.keras").exists() and not options.overwrite:
        raise ValueError(f"A result is there already: pass --overwrite. Received: --output {options.output}")
    with stages() as say, tempfile.TemporaryDirectory() as scratch:
        say("Loading the model")
        model = load_model(options.source, options.preset)
        recipe = _recipe(model)
        compressed = _compressed(model, recipe, options)
        say("Measuring the model as it is")
        before = _measure(model, ("none", "dynamic_int8"), Path(scratch) / "bundle", False, say)
    _fit(compressed, recipe, options)
    with stages() as say:
        say("Measuring the compressed model")
        after = _measure(compressed, _forms(options), options.output / "bundle", options.overwrite, say)
        from zoo.files import atomic_file

        with atomic_file(options.output / "model.keras") as file:
            compressed.save(file)
    _draw({"before": before, "after": after}, options)
    _show({"before": before, "after": after}, _sizes(compressed), options)


def _recipe(model: keras.Model) -> Recipe:
    metadata = model.metadata
    if not metadata.dataset:
        raise ValueError(f"The preset must have a recorded data set to train on. Received: {metadata.method}")
    if "task" in metadata.training:
        raise ValueError(
            f"A fine-tuned preset is compressed in Python: this command trains by the recipe of its method. "
            f"Received: {metadata.method}, fine-tuned on {metadata.dataset['name']}"
        )
    experiment(metadata.method)
    from zoo import catalog
    from zoo.training.run import find_recipe

    known = metadata.preset in catalog.info(metadata.method).presets
    return find_recipe(metadata.method, metadata.preset if known else None)


def _compressed(model: keras.Model, recipe: Recipe, options: argparse.Namespace) -> keras.Model:
    from zoo import compression

    steps = options.epochs * (options.steps_per_epoch or recipe.steps_per_epoch)
    if options.prune is not None:
        # Two of four are chosen once; shares grow over the first half of the training
        gradual = dict(schedule="polynomial", end_step=max(1, steps // 2), frequency=max(1, steps // 50))
        schedule = {} if options.pattern == "2x4" else gradual
        model = compression.prune(model, options.prune, pattern=options.pattern, **schedule)
    if options.cluster:
        model = compression.cluster(model, options.cluster)
    if options.quantize_aware:
        model = compression.quantize_aware(
            model, options.quantize_aware, options.activations or None, block_size=options.block_size
        )
    if options.budget_kb or options.activation_budget_kb:
        budgets = (options.budget_kb, options.activation_budget_kb)
        model = compression.learn_bitwidths(model, *budgets, activation_bits=options.activations or None)
    return model


def _fit(model: keras.Model, recipe: Recipe, options: argparse.Namespace) -> None:
    from zoo.training.fine_tune import fine_tune
    from zoo.training.progress import TrainingProgress

    with TrainingProgress(console(stderr=True)) as progress:
        fine_tune(
            model,
            recipe,
            epochs=options.epochs,
            steps_per_epoch=options.steps_per_epoch,
            dataset=options.dataset,
            learning_rate_scale=options.learning_rate_scale,
            seed=options.seed,
            callbacks=[progress],
        )


# === Before and after ===


def _forms(options: argparse.Namespace) -> tuple[str, ...]:
    """Returns the quantization modes that hold what was trained."""
    if options.budget_kb or options.activation_budget_kb:
        return ("none", "bit_plan")
    if not options.quantize_aware:
        return ("none", "dynamic_int8")
    return ("none", "int8" if options.activations else "int4" if options.quantize_aware <= 4 else "dynamic_int8")


def _measure(model: keras.Model, modes: Sequence[str], bundle: Path, overwrite: bool, say: Say) -> list[dict[str, Any]]:
    """Returns a row for each LiteRT artifact; those that fail their gate are left out."""
    from zoo.compression.costs import bit_operations
    from zoo.export import export_model

    inputs = next(iter(model.signatures().values())).inputs
    example = model.dummy_inputs(batch_size=1)
    operations = bit_operations(model, example[next(iter(inputs))])
    report = export_model(
        model, bundle, ["litert", "onnx"], modes, skip_refused=True, overwrite=overwrite, progress=say
    )
    return [
        {
            "artifact": artifact.label,
            "metric": artifact.metric.name,
            "value": artifact.metric.value,
            "bytes": artifact.size,
            "gzip_bytes": artifact.gzip_size,
            "latency_ms": artifact.latency_ms,
            "bit_operations": operations,
        }
        for artifact in report.artifacts
    ] + [{"artifact": f"{r['format']}/{r['quantization']}", "refused": r["reason"]} for r in report.refused]


def _sizes(model: keras.Model) -> dict[str, float | bool]:
    """Returns the KB that learned bits take, and whether the budgets are kept; nothing for other compressions."""
    from zoo import compression

    stage = model.stage(compression.LearnedBitwidthStage)
    if stage is None:
        return {}
    sizes = {"weight_kb": stage.weight_kb()}
    if stage.activation_budget_kb is not None:
        sizes["activation_kb"] = stage.activation_kb()
    return {**sizes, "kept": bool(stage.within_budgets())}


def _draw(rows: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Writes the figure `size.png`, where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    from zoo.files import atomic_file

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for (when, entries), marker in zip(rows.items(), "os", strict=True):
        for row in (row for row in entries if "refused" not in row):
            axes.plot(row["bytes"] / 1e3, row["value"], marker, label=f"{row['artifact']}, {when}")
            axes.set(ylabel=row["metric"])
    axes.set(xlabel="size of the file, kB", title=f"{options.source}, before and after", xscale="log")
    axes.legend()
    with atomic_file(options.output / "size.png") as file:
        figure.savefig(file, format="png", dpi=120)


def _show(rows: dict[str, list[dict[str, Any]]], sizes: dict[str, float | bool], options: argparse.Namespace) -> None:
    if options.json:
        write_json({**rows, "sizes": sizes} if sizes else rows)
        return
    from rich.table import Table

    # Narrow enough for 80 columns, where long names of artifacts go on in the next line
    table = Table("", title=f"{options.source}, before and after")
    table.add_column("artifact", overflow="fold")
    for column in ("metric", "bytes", "gzip", "ms", "bit ops"):
        table.add_column(column, justify="right")
    for when, entries in rows.items():
        for row in entries:
            if "refused" in row:
                table.add_row(when, row["artifact"], "refused")
                continue
            metric, latency = f"{row['metric']} {row['value']:.4g}", next(iter(row["latency_ms"].values()))
            size, packed = f"{row['bytes']:,}", f"{row['gzip_bytes']:,}"
            operations = f"{row['bit_operations']:.3g}"
            table.add_row(when, row["artifact"], metric, size, packed, f"{latency:.3g}", operations)
    screen = console()
    screen.print(table)
    for row in rows["after"]:
        if "refused" in row:
            screen.print(f"Refused: {row['refused']}")
    if sizes:
        taken = [f"{name.removesuffix('_kb')}s {size:.4g} KB" for name, size in sizes.items() if name != "kept"]
        screen.print(f"Learned bits: {', '.join(taken)}; the budget is {'kept' if sizes['kept'] else 'not kept'}.")
    screen.print(f"Model: {options.output / 'model.keras'}; files: {options.output / 'bundle'}", soft_wrap=True)
