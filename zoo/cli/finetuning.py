"""`zoo finetune`: a new head on a pretrained model, trained on a labelled data set or on files of one's own."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import catalog
from zoo.cli.terminal import (
    add_command,
    add_json,
    add_source,
    check_source,
    console,
    duration,
    import_tensorflow,
    is_directory,
    natural,
    positive,
    require_extra,
    share,
    stages,
    write_json,
)
from zoo.cli.training import divergence_is_failure, tensorboard

if TYPE_CHECKING:
    import keras

    from zoo.training.task import Task

_HEADS = ("classification", "token_classification", "question_answering")


def add_commands(commands: Any) -> None:
    """Adds the command to a parser."""
    parser = add_command(
        commands, "finetune", finetune, "Put a head on a pretrained model and train it on labelled data, also your own."
    )
    add_source(parser)
    parser.add_argument(
        "--weights", metavar="DIR|ADDRESS", help="weights of the method: a directory, or an hf:// or https:// address"
    )
    parser.add_argument("--head", choices=_HEADS, default="classification", help="(default: classification)")
    _add_data(parser)
    _add_training(parser)
    add_json(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        required=True,
        metavar="NAME|FILE",
        help="labelled data set, or .csv or .jsonl file of the train split",
    )
    group.add_argument("--validation", metavar="FILE", help="validation split (default: a tenth of the train split)")
    group.add_argument("--test", metavar="FILE", help="test split")
    group.add_argument("--text-column", default="text", help="column of the text (default: text)")
    group.add_argument("--pair-column", help="column of a second text (default: text_pair, where there is one)")
    group.add_argument("--label-column", default="label", help="column of the label (default: label)")
    group.add_argument("--examples", type=positive, help="train examples of a data set that has this option")
    group.add_argument("--sequence-length", type=positive, help="tokens of a text (default: the model's)")


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=positive, default=3, help="(default: 3)")
    group.add_argument("--batch-size", type=positive, default=32, help="(default: 32)")
    group.add_argument(
        "--learning-rate",
        type=duration,
        default=5e-5,
        help="largest one; small models take ten times more (default: 5e-5)",
    )
    group.add_argument("--weight-decay", type=duration, default=0.01, help="of kernels (default: 0.01)")
    group.add_argument(
        "--layer-decay", type=share, default=1.0, help="factor on the rate from a layer to the one below (default: 1)"
    )
    group.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="GROUP",
        help="embeddings, layers:K or backbone; may be repeated",
    )
    group.add_argument(
        "--mixout", type=share, default=0.0, metavar="P", help="mix with pretrained weights (default: 0)"
    )
    group.add_argument("--class-weight", choices=("balanced",), help="let all classes count the same")
    group.add_argument("--monitor", metavar="METRIC", help="validation metric that picks the epoch, such as accuracy")
    group.add_argument("--mixed-precision", action="store_true", help="train under mixed_bfloat16")
    group.add_argument("--seed", type=natural, default=0, help="same seed, same weights (default: 0)")
    group.add_argument("--output", type=Path, help="directory (default: runs/METHOD/DATA)")
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the directory")
    group.add_argument("--checkpoint-minutes", type=duration, default=5.0, help="least time between checkpoints")
    group.add_argument("--tensorboard", action="store_true", help="write logs for TensorBoard (extra: tensorboard)")


def finetune(options: argparse.Namespace) -> None:
    """Runs `zoo finetune`."""
    from zoo.files import check_writable
    from zoo.training.task import read_task

    _check_source(options)
    output = check_writable(options.output or Path("runs") / Path(options.source).name / Path(options.dataset).stem)
    if options.tensorboard:
        require_extra("tensorboard", "tensorboard", "--tensorboard")
    task = read_task(
        options.dataset,
        options.head,
        validation=options.validation,
        test=options.test,
        text_column=options.text_column,
        pair_column=options.pair_column,
        label_column=options.label_column,
        examples=options.examples,
    )
    with stages() as say:
        say("Loading the model")
        model = _load(task, options)
    _fit(model, task, output, options)
    if options.json:
        write_json({"preset": str(output / "preset"), "labels": task.labels, "metrics": model.metadata.metrics})
        return
    screen = console()
    for name, value in model.metadata.metrics.items():
        screen.print(f"{name}: {value:.6g}")
    screen.print(f"Fine-tuned preset: {output / 'preset'}", soft_wrap=True)


def _check_source(options: argparse.Namespace) -> None:
    if options.weights is None:
        check_source(options.source, options.preset, takes_weights=True)
        return
    if is_directory(options.source):
        raise ValueError(
            f"`--weights` belongs to a method's name; a directory has its own weights. Received: {options.source!r}"
        )
    catalog.info(options.source)
    if options.preset is not None:
        raise ValueError(f"`--weights` takes the place of a preset. Received: --preset {options.preset}")


def _load(task: Task, options: argparse.Namespace) -> keras.Model:
    """Returns the model with the head of the task, whose random weights the seed decides."""
    import_tensorflow()
    import keras

    keras.utils.set_random_seed(options.seed)
    head = {"head": task.head} | ({} if task.num_classes is None else {"num_classes": task.num_classes})
    length = {} if options.sequence_length is None else {"sequence_length": options.sequence_length}
    if options.weights is None and is_directory(options.source):
        from zoo import checkpoints

        model = checkpoints.load_preset(options.source, overrides={**head, **length})
    else:
        weights = "default" if options.weights is None else options.weights
        model = catalog.get(options.source, options.preset, weights=weights, **head, **length)
    if getattr(model, "labels", None) not in (None, task.labels):
        # A head of as many classes, but of others
        origin, model = model.metadata, model.with_head(**head)
        model.pretrained = origin
    return model


def _fit(model: keras.Model, task: Task, output: Path, options: argparse.Namespace) -> None:
    from zoo.training import finetuning
    from zoo.training.progress import TrainingProgress

    with TrainingProgress(console(stderr=True)) as progress, divergence_is_failure():
        finetuning.finetune(
            model,
            task,
            output,
            epochs=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            layer_decay=options.layer_decay,
            freeze=options.freeze,
            mixout=options.mixout,
            class_weight=options.class_weight,
            mixed_precision=options.mixed_precision,
            monitor=options.monitor,
            seed=options.seed,
            resume=options.resume,
            checkpoint_minutes=options.checkpoint_minutes,
            callbacks=[progress, *tensorboard(output, options.tensorboard)],
            command=_command(options),
        )


# What the result does not depend on
_UNRECORDED = ("run", "source", "output", "resume", "checkpoint_minutes", "tensorboard", "json")


def _command(options: argparse.Namespace) -> str:
    """Returns the command line that repeats a training."""
    words = ["zoo", "finetune", options.source]
    for name, value in vars(options).items():
        given = value is not None and value is not False and value != []
        if given and name not in _UNRECORDED:
            words += _words(f"--{name.replace('_', '-')}", value)
    return shlex.join(words)


def _words(flag: str, value: Any) -> Sequence[str]:
    if value is True:
        return [flag]
    return [word for each in (value if isinstance(value, list) else [value]) for word in (flag, str(each))]
