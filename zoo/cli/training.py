"""`zoo train`, `zoo evaluate` and `zoo reproduce`: everything that runs a recipe or an experiment."""

from __future__ import annotations

import argparse
import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import catalog
from zoo.cli.terminal import (
    EXPERIMENTS,
    add_command,
    add_json,
    add_source,
    console,
    duration,
    experiment,
    load_model,
    natural,
    positive,
    require_extra,
    stages,
    write_json,
)

if TYPE_CHECKING:
    import keras

    from zoo.metadata import Metadata
    from zoo.training.recipe import Recipe

_SPLITS = ("train", "validation", "test")
_STRATEGIES = ("none", "mirrored")
_METHOD_HELP = "method of the catalog"


def add_commands(commands: Any) -> None:
    """Adds the commands to a parser."""
    _add_train(commands)
    parser = add_command(
        commands, "evaluate", evaluate, "Compute a trained model's metrics anew, beside the recorded ones."
    )
    add_source(parser)
    parser.add_argument("--dataset", metavar="FILE", help="file of examples, for a model that was fine-tuned on files")
    parser.add_argument("--split", choices=_SPLITS, default="test", help="part of the data set (default: test)")
    add_json(parser)
    parser = add_command(commands, "reproduce", reproduce, "Repeat the experiment on a paper's claim.")
    parser.add_argument("method", metavar="METHOD", help=f"{_METHOD_HELP}, or {' or '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=positive, help="runs of every arm (default: the experiment's)")
    parser.add_argument("--updates", type=positive, help="training steps of a run (default: the experiment's)")
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="directory (default: docs/results)")


def _add_train(commands: Any) -> None:
    parser = add_command(commands, "train", train, "Train a preset by its recipe; killed, it goes on with --resume.")
    parser.add_argument("method", metavar="METHOD", help=_METHOD_HELP)
    parser.add_argument("--preset", help="preset to train (default: the method's own default)")
    parser.add_argument("--dataset", help="data set of the same form in place of the recipe's")
    parser.add_argument("--epochs", type=positive, help="number of epochs (default: the recipe's)")
    parser.add_argument("--steps-per-epoch", type=positive, help="updates of an epoch (default: the recipe's)")
    parser.add_argument("--seed", type=natural, default=0, help="same seed, same weights (default: 0)")
    parser.add_argument("--output", type=Path, help="directory (default: runs/METHOD/PRESET)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the directory")
    parser.add_argument("--mixed-precision", action="store_true", help="train under mixed_bfloat16")
    parser.add_argument("--strategy", choices=_STRATEGIES, default="none", help="over one or several devices")
    parser.add_argument("--checkpoint-minutes", type=duration, default=5.0, help="least time between checkpoints")
    parser.add_argument("--tensorboard", action="store_true", help="write logs for TensorBoard (extra: tensorboard)")


# === zoo train ===


def train(options: argparse.Namespace) -> None:
    """Runs `zoo train`."""
    from zoo import datasets
    from zoo.files import check_writable

    preset = catalog.info(options.method).preset(options.preset)
    output = check_writable(options.output or Path("runs") / options.method / preset.name)
    if options.dataset is not None:
        datasets.info(options.dataset)
    if options.tensorboard:
        require_extra("tensorboard", "tensorboard", "--tensorboard")
    recipe = _recipe(options.method, preset.name)
    _fit(recipe, output, options)
    screen = console()
    for name, value in _recorded_metrics(output / "preset").items():
        screen.print(f"{name}: {value:.6g}")
    screen.print(f"Trained preset: {output / 'preset'}", soft_wrap=True)


def _fit(recipe: Recipe, output: Path, options: argparse.Namespace) -> None:
    from zoo.training import run
    from zoo.training.progress import TrainingProgress

    with TrainingProgress(console(stderr=True)) as progress, divergence_is_failure():
        run.train(
            recipe,
            output,
            dataset=options.dataset,
            epochs=options.epochs,
            steps_per_epoch=options.steps_per_epoch,
            seed=options.seed,
            resume=options.resume,
            mixed_precision=options.mixed_precision,
            strategy=options.strategy,
            checkpoint_minutes=options.checkpoint_minutes,
            callbacks=[progress, *tensorboard(output, options.tensorboard)],
        )


@contextlib.contextmanager
def divergence_is_failure() -> Iterator[None]:
    """Turns Keras's error on a loss that is NaN or infinite into one that the command line reports."""
    try:
        yield
    except RuntimeError as error:
        # Anything else is a defect and keeps its trace
        if "NaN" not in str(error):
            raise
        raise OSError(f"Training diverged: {error}") from error


def _recorded_metrics(preset: Path) -> dict[str, float]:
    from zoo.metadata import METADATA, Metadata

    return Metadata.from_json((preset / METADATA).read_bytes()).metrics


def tensorboard(output: Path, wanted: bool) -> list[keras.callbacks.Callback]:
    """Returns the callback that writes logs for TensorBoard, where it is wanted."""
    import keras

    return [keras.callbacks.TensorBoard(str(output / "logs"))] if wanted else []


def _recipe(method: str, preset: str | None) -> Recipe:
    experiment(method)
    from zoo.training.run import find_recipe

    return find_recipe(method, preset)


# === zoo evaluate ===


def evaluate(options: argparse.Namespace) -> None:
    """Runs `zoo evaluate`."""
    with stages() as say:
        say("Loading the model")
        model = load_model(options.source, options.preset)
        metadata = model.metadata
        if not metadata.dataset:
            raise ValueError(f"The preset must have a recorded data set to be evaluated. Received: {options.source}")
        dataset = options.dataset or metadata.evaluation_dataset
        say(f"Reading {dataset}, {options.split}")
        found = _evaluated(model, options)
    recorded = {} if options.dataset is not None and not _is_test_file(options.dataset, metadata) else metadata.metrics
    metrics = {
        name: {"value": float(value), "recorded": recorded.get(f"{options.split}_{name}")}
        for name, value in found.items()
    }
    if options.json:
        facts = {"method": metadata.method, "preset": metadata.preset, "dataset": dataset, "split": options.split}
        write_json({**facts, "metrics": metrics})
        return
    from rich.table import Table

    table = Table("metric", title=f"{metadata.method} ({metadata.preset}) on {dataset}, {options.split}")
    table.add_column("value", justify="right")
    table.add_column("recorded", justify="right")
    for name, entry in metrics.items():
        recorded = "" if entry["recorded"] is None else f"{entry['recorded']:.6g}"
        table.add_row(name, f"{entry['value']:.6g}", recorded)
    console().print(table)


def _evaluated(model: keras.Model, options: argparse.Namespace) -> dict[str, float]:
    metadata = model.metadata
    if "task" in metadata.training:
        return _evaluated_task(model, options)
    if options.dataset is not None:
        raise ValueError(f"`--dataset` belongs to a model fine-tuned on files. Received: --dataset {options.dataset}")
    known = metadata.preset in catalog.info(metadata.method).presets
    # How a method is evaluated does not depend on its sizes: a custom preset is read like the default one
    recipe = _recipe(metadata.method, metadata.preset if known else None)
    return recipe.evaluate(model, metadata.evaluation_dataset, options.split)


def _is_test_file(path: str, metadata: Metadata) -> bool:
    from zoo.files import sha256

    return metadata.dataset.get("files", {}).get("test", {}).get("sha256") == sha256(path)


def _evaluated_task(model: keras.Model, options: argparse.Namespace) -> dict[str, float]:
    from zoo.training.finetuning import evaluate as evaluate_task
    from zoo.training.task import recorded_task

    task = recorded_task(model.metadata)
    if (task is None) != (options.dataset is not None):
        belongs = "must name a file" if task is None else "belongs to one fine-tuned on files"
        raise ValueError(f"`--dataset` {belongs}. Received: --dataset {options.dataset} for {options.source}")
    if task is None:
        from zoo.language.tasks import further_task

        return evaluate_task(model, further_task(model, model.metadata, options.dataset), "test")
    return evaluate_task(model, task, options.split)


# === zoo reproduce ===


def reproduce(options: argparse.Namespace) -> None:
    """Runs `zoo reproduce`."""
    from zoo.files import check_writable

    check_writable(options.output)
    require_extra("matplotlib", "plot", "The figure of an experiment")
    function = getattr(experiment(options.method), "reproduce", None)
    if function is None:
        raise ValueError(f"No experiment on the paper's claim comes with this method. Received: {options.method!r}")
    given = {name: getattr(options, name) for name in ("seeds", "updates") if getattr(options, name) is not None}
    unknown = sorted(set(given) - set(inspect.signature(function).parameters))
    if unknown:
        raise ValueError(f"The experiment of {options.method!r} has no such option. Received: --{' --'.join(unknown)}")
    with stages() as say:
        function(options.output, **given, progress=say)
    name = options.output / options.method
    console().print(f"Results: {name}.json, {name}.png", soft_wrap=True)
