"""Fine-tuning: a head on a pretrained backbone, trained on little labelled data without losing what the backbone knows.

The optimiser is BERT's: AdamW with a rate that rises and falls on a line, and decay of kernels only (Devlin et al. 2019,
appendix A.3). Beside it there are what keeps a large model steady on few examples: rates that fall from the head to the
embeddings (Howard and Ruder 2018), frozen layers, and mixout (Lee, Cho and Kang 2020).
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.arguments import require
from zoo.config import write_config
from zoo.export.verify import keras_runner
from zoo.model import ZooModel
from zoo.training.checkpoint import TrainingCheckpoint
from zoo.training.optimizers import LayerwiseAdamW, decay_kernels_only
from zoo.training.recipe import TrainingData
from zoo.training.run import fit_best
from zoo.training.schedules import WarmupLinearDecay
from zoo.training.task import Task

_logger = logging.getLogger(__name__)

CLASS_WEIGHTS = (None, "balanced")
# Groups that are no hidden layers
_ENDS = ("embeddings", "pooler", "head")
# How many times more examples the largest class may have than the smallest without a word
_UNEQUAL = 3
_EVALUATION_BATCH = 100


def finetune(
    model: ZooModel,
    task: Task,
    output: str | Path | None = None,
    *,
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 5e-5,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    freeze: Sequence[str] = (),
    mixout: float = 0.0,
    class_weight: str | None = None,
    mixed_precision: bool = False,
    monitor: str | None = None,
    seed: int = 0,
    resume: bool = False,
    checkpoint_minutes: float = 5.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    command: str = "",
) -> ZooModel:
    """Trains a model with a head on labelled data, and leaves the weights of the best epoch in it.

    Args:
        model: `ZooModel` with the head of the task, such as `zoo.get(name, head="classification", num_classes=4)` gives.
        task: `Task`, see `zoo.training.read_task`.
        output: path of a directory, or None to write nothing: `training.npz` while it runs, `preset/` in the end.
        epochs: int. Passes over the train split. After each one the validation split is judged.
        batch_size: int.
        learning_rate: float. The peak, see `WarmupLinearDecay`. The default is for encoders of published sizes; small ones
            take ten times as much.
        warmup: float in [0, 1). Share of the updates in which the rate rises.
        weight_decay: float. Of kernels and embeddings.
        layer_decay: float in (0, 1]. The learning rate of a group of layers is that of the group above times this.
        freeze: sequence of str. What stays as it is: groups of `model.layer_groups()`, `"layers:3"` for the first three
            hidden ones, or `"backbone"` for all but the head.
        mixout: float in [0, 1). Probability with which weights are mixed with the pretrained ones; the head's are not.
        class_weight: str or None. `"balanced"` lets examples count as if all classes had equally many.
        mixed_precision: bool. Train under `mixed_bfloat16`.
        monitor: str or None. Metric of the validation split to choose the epoch by: one of the task's `metrics` or
            `"loss"`; the task's `monitor` by default.
        seed: int. Same seed and same model, same weights, on one machine.
        resume: bool. Go on from `training.npz` where it exists; the model must be as it was at the start.
        checkpoint_minutes: float. Least time between two checkpoints.
        callbacks: sequence of Keras callbacks.
        command: str. Recorded in the preset's metadata.

    Returns:
        The model itself; its `metadata` is set where a preset was written.

    Raises:
        ValueError: for a bad argument, an unknown group of layers, a model that does not fit the task, a training that is
            there and not to be resumed or has other settings.
        RuntimeError: if the loss is no longer finite.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        require(value >= 1, name, "positive", value)
    require(learning_rate > 0, "learning_rate", "positive", learning_rate)
    require(0 <= warmup < 1, "warmup", "in [0, 1)", warmup)
    require(weight_decay >= 0, "weight_decay", "0 or more", weight_decay)
    require(0 < layer_decay <= 1, "layer_decay", "in (0, 1]", layer_decay)
    require(0 <= mixout < 1, "mixout", "in [0, 1)", mixout)
    require(class_weight in CLASS_WEIGHTS, "class_weight", f"one of {CLASS_WEIGHTS}", repr(class_weight))
    task.check(model)
    groups = frozen_groups(model, freeze)
    class_weights = _class_weights(task, class_weight)
    monitor = monitor or task.monitor
    valid = ("loss", *task.metrics)
    require(monitor in valid, "monitor", f"one of {valid}", repr(monitor))
    origin = _origin(model)
    settings = {
        "task": task.options, "dataset": task.record, "epochs": epochs, "batch_size": batch_size,
        "learning_rate": learning_rate, "warmup": warmup, "weight_decay": weight_decay, "layer_decay": layer_decay,
        "freeze": list(freeze), "mixout": mixout, "class_weight": class_weight, "mixed_precision": mixed_precision,
        "monitor": monitor, "seed": seed, **({} if origin is None else {"pretrained": origin}),
    }  # fmt: skip
    inputs, targets = task.encode(model, "train")
    count = len(keras.tree.flatten(inputs)[0])
    batch_size = min(batch_size, count)
    steps_per_epoch = -(-count // batch_size)
    if task.labels is not None:
        model.labels = task.labels
    checkpoint = TrainingCheckpoint(
        None if output is None else Path(output) / "training.npz",
        f"val_{monitor}",
        checkpoint_minutes,
        # A resumed training must be of the same model, and a preset says elsewhere what that is
        {**settings, "model": json.loads(write_config(model))},
        higher_is_better=monitor != "loss",
    )
    learner = model
    with contextlib.ExitStack() as stack:

        def make() -> keras.Model:
            nonlocal learner
            learner = _copy(model, "mixed_bfloat16") if mixed_precision else model
            _reseed(learner, seed)
            stack.enter_context(_frozen(learner, groups))
            trained = _with_mixout(learner, mixout)
            require(bool(trained.trainable_variables), "freeze", "less than everything", list(freeze))
            updates = epochs * steps_per_epoch
            optimizer = decay_kernels_only(
                LayerwiseAdamW(
                    WarmupLinearDecay(learning_rate, int(warmup * updates), updates),
                    rate_multipliers(learner, trained.trainable_variables, layer_decay),
                    weight_decay=weight_decay,
                    epsilon=1e-6,
                    global_clipnorm=1.0,
                )
            )
            trained.compile(optimizer=optimizer, jit_compile=False, **task.compile_arguments())
            return trained

        trained = fit_best(
            make,
            lambda trained: TrainingData(
                _batches(inputs, targets, batch_size, seed, class_weights),
                tf.data.Dataset.from_tensor_slices(task.encode(learner, "validation")).batch(_EVALUATION_BATCH),
            ),
            checkpoint,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            seed=seed,
            resume=resume,
            mixed_precision=mixed_precision,
            preparations=lambda data: task.callbacks(learner, data.train),
            callbacks=callbacks,
        )
        fitted = trained.strip() if mixout else trained
        if fitted is not model:
            model.set_weights(fitted.get_weights())
    if output is not None:
        training = {**settings, "steps": epochs * steps_per_epoch, "command": command, "history": checkpoint.history}
        del training["dataset"]
        _save(model, task, Path(output) / "preset", training)
    return model


def evaluate(model: ZooModel, task: Task, split: str = "test") -> dict[str, float]:
    """Returns the metrics of a split.

    Args:
        model: `ZooModel` with the head of the task.
        task: `Task`.
        split: str. `"test"` by default.
    """
    task.check(model)
    return task.scores(model, keras_runner(model.signatures(), traced=True), split)


def _origin(model: ZooModel) -> dict[str, str] | None:
    """Returns what a preset's metadata says of the preset that a model starts from; None where it is not known."""
    origin = model.pretrained or model.metadata
    known = ("method", "preset", "weights_sha256", "licence")
    return None if origin is None else {name: getattr(origin, name) for name in known}


def _save(model: ZooModel, task: Task, directory: Path, training: Mapping[str, Any]) -> None:
    run = keras_runner(model.signatures(), traced=True)
    metrics = {
        f"{split}_{name}": value
        for split in ("validation", "test")
        if split in task.splits
        for name, value in task.scores(model, run, split).items()
    }
    licence = {"licence": training["pretrained"]["licence"]} if "pretrained" in training else {}
    model.save_to_preset(directory, dataset=task.record, training=training, metrics=metrics, **licence)


# === Layers ===


def frozen_groups(model: ZooModel, freeze: Sequence[str]) -> list[str]:
    """Returns the groups of layers that a choice means.

    Args:
        model: `ZooModel` with a backbone.
        freeze: see `finetune`.

    Raises:
        ValueError: for a group that the model does not have.
    """
    groups = list(model.layer_groups())
    hidden = [name for name in groups if name not in _ENDS]
    valid = f"of {groups}, 'layers:1' to 'layers:{len(hidden)}', or 'backbone'"
    require(not isinstance(freeze, str), "freeze", f"a sequence {valid}", repr(freeze))
    found: list[str] = []
    for each in freeze:
        first = re.fullmatch(r"layers:(\d+)", each)
        if each == "backbone":
            found += [name for name in groups if name != "head"]
        elif first and 1 <= int(first[1]) <= len(hidden):
            found += hidden[: int(first[1])]
        else:
            require(each in groups, "freeze", valid, repr(each))
            found.append(each)
    return found


@contextlib.contextmanager
def _frozen(model: ZooModel, groups: Sequence[str]) -> Iterator[None]:
    layers = [layer for name in groups for layer in model.layer_groups()[name]]
    # Outer layers before inner ones, to which setting passes on
    before = [(each, each.trainable) for layer in layers for each in layer._flatten_layers()]
    for layer in layers:
        layer.trainable = False
    try:
        yield
    finally:
        for layer, trainable in before:
            layer.trainable = trainable


def rate_multipliers(model: ZooModel, variables: Sequence[keras.Variable], decay: float) -> list[float]:
    """Returns for each variable the factor on its learning rate: a power of the decay, 1 for the pooler and the head.

    What several groups share has the factor of the last of them, what none has 1.

    Args:
        model: `ZooModel` with a backbone.
        variables: sequence of its variables.
        decay: float.

    Reference:
        Howard and Ruder 2018, section 3.2; Clark et al. 2020, "ELECTRA", appendix B.
    """
    groups = model.layer_groups()
    names = [name for name in groups if name not in ("pooler", "head")]
    factors = {
        id(variable): decay ** (len(names) - depth)
        for depth, name in enumerate(names)
        for layer in groups[name]
        for variable in layer.variables
    }
    return [factors.get(id(variable), 1.0) for variable in variables]


def _with_mixout(model: ZooModel, probability: float) -> keras.Model:
    if not probability:
        return model
    from zoo.training.mixout import Mixout

    heads = [layer.name for layer in model.layer_groups()["head"]]
    return Mixout(model, probability, exclude=[rf"(^|/){re.escape(name)}($|/)" for name in heads])


def _copy(model: ZooModel, dtype: str) -> ZooModel:
    copy = type(model).from_config({**model.get_config(), "dtype": dtype}).build_from_signature()
    copy.set_weights(model.get_weights())
    copy.set_assets(model.assets)
    return copy


def _reseed(model: keras.Model, seed: int) -> None:
    """Sets the model's own random generators, which were seeded when it was made."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            variable.assign([rng.integers(2**31), 0])


# === Examples ===


def _class_weights(task: Task, choice: str | None) -> np.ndarray | None:
    """Returns the weight of each class, None where all count as they are; says so where that hides small classes."""
    counts = task.class_counts()
    if choice is None:
        if counts and max(counts.values()) > _UNEQUAL * min(counts.values()):
            _logger.warning("Classes of the train split are unequal, and nothing makes up for it: %s", counts)
        return None
    require(task.head == "classification", "class_weight", f"None for the head {task.head!r}", repr(choice))
    names = task.labels or [str(label) for label in range(task.num_classes)]
    sizes = np.array([counts.get(name, 0) for name in names])
    return (sizes.sum() / (np.count_nonzero(sizes) * np.maximum(sizes, 1))).astype("float32")


def _batches(
    inputs: Any, targets: Any, batch_size: int, seed: int, class_weights: np.ndarray | None
) -> tf.data.Dataset:
    weights = () if class_weights is None else (class_weights[targets],)
    data = tf.data.Dataset.from_tensor_slices((inputs, targets, *weights))
    shuffled = data.shuffle(len(keras.tree.flatten(inputs)[0]), seed=seed).repeat()
    return shuffled.batch(batch_size, drop_remainder=True)
