"""Runs a recipe: build, compile, fit, evaluate, save."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from zoo import catalog, checkpoints
from zoo.model import ZooModel
from zoo.training.checkpoint import TrainingCheckpoint
from zoo.training.recipe import Recipe, TrainingData

STRATEGIES = ("none", "mirrored")


def find_recipe(method: str, preset: str | None = None) -> Recipe:
    """Returns the recipe of a preset.

    Raises:
        ValueError: for an unknown method or preset, and for a preset without a recipe.
    """
    chosen = catalog.info(method).preset(preset)
    recipes = importlib.import_module(f"zoo.experiments.{method}").RECIPES
    if chosen.name not in recipes:
        raise ValueError(f"{method!r} has recipes for {sorted(recipes)}. Received: preset={chosen.name!r}")
    return recipes[chosen.name]


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    dataset: str | None = None,
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    resume: bool = False,
    mixed_precision: bool = False,
    strategy: str = "none",
    checkpoint_minutes: float = 5.0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> ZooModel:
    """Trains a preset and saves it.

    Args:
        recipe: `Recipe`.
        output: directory: `training.npz` while it runs, `logs/` for TensorBoard, `preset/` in the end.
        dataset: str or None. Replaces the recipe's data set.
        epochs: int or None. Replaces the recipe's length; the learning-rate schedule follows.
        steps_per_epoch: int or None. Replaces the recipe's.
        seed: int. Same seed, same weights, on one machine.
        resume: bool. Go on from `training.npz` where it exists.
        mixed_precision: bool. Train under `mixed_bfloat16`.
        strategy: str. `"none"` or `"mirrored"` (`tf.distribute.MirroredStrategy` over the visible devices).
        checkpoint_minutes: float. Least time between two checkpoints.
        callbacks: sequence of Keras callbacks, such as a progress bar.

    Returns:
        The model with the best validated weights.

    Raises:
        ValueError: for a bad setting, or `resume` with a checkpoint of other settings.
        RuntimeError: if the loss is no longer finite.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {STRATEGIES}. Received: strategy={strategy!r}")
    output = Path(output)
    dataset = dataset or recipe.dataset
    epochs = epochs or recipe.epochs
    steps_per_epoch = steps_per_epoch or recipe.steps_per_epoch
    settings = dict(
        method=recipe.method, preset=recipe.preset, dataset=dataset, seed=seed, steps_per_epoch=steps_per_epoch,
        epochs=epochs, mixed_precision=mixed_precision,
    )  # fmt: skip
    checkpoint = TrainingCheckpoint(output / "training.npz", recipe.monitor, checkpoint_minutes, settings)

    def make() -> ZooModel:
        with _scope(strategy):
            model = catalog.get(recipe.method, recipe.preset, weights=None, **recipe.overrides(dataset))
            recipe.prepare(model, dataset)
            recipe.compile(model, epochs * steps_per_epoch)
        return model

    model = fit_best(
        make,
        lambda model: recipe.data(model, dataset, seed),
        checkpoint,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        resume=resume,
        mixed_precision=mixed_precision,
        preparations=recipe.callbacks,
        callbacks=callbacks,
    )
    _save(model, recipe, output, settings, checkpoint.history)
    return model


def fit_best(
    make: Callable[[], keras.Model],
    data: Callable[[keras.Model], TrainingData],
    checkpoint: TrainingCheckpoint,
    *,
    epochs: int,
    steps_per_epoch: int,
    seed: int,
    resume: bool,
    mixed_precision: bool,
    preparations: Callable[[TrainingData], Sequence[keras.callbacks.Callback]],
    callbacks: Sequence[keras.callbacks.Callback],
) -> keras.Model:
    """Makes a model, trains it, and leaves the best weights in it; a resumed training equals an unbroken one.

    Args:
        make: callable that returns the compiled model; called with the seed and the precision set.
        data: callable of the model to `TrainingData`.
        checkpoint: `TrainingCheckpoint`.
        epochs: int.
        steps_per_epoch: int.
        seed: int.
        resume: bool. Go on from the checkpoint's file where it exists.
        mixed_precision: bool.
        preparations: callable of `TrainingData` to callbacks that act before the checkpoint, at the end of an epoch too.
        callbacks: sequence of further callbacks.

    Raises:
        ValueError: for a training that is there and not to be resumed, or has other settings.
        RuntimeError: if the loss is no longer finite.
    """
    if checkpoint.exists and not resume:
        raise ValueError(
            f"A training is there already; resume it or choose another directory. Received: {checkpoint.path.parent}"
        )
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    previous = keras.config.dtype_policy()
    if mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make()
        done = checkpoint.restore(model) if checkpoint.exists else 0
        found = data(model)
        model.fit(
            found.train.skip(done * steps_per_epoch),
            validation_data=found.validation,
            initial_epoch=done,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[
                *preparations(found),
                checkpoint,
                keras.callbacks.TerminateOnNaN(raise_error=True),
                *callbacks,
            ],
        )
    finally:
        keras.config.set_dtype_policy(previous)
    model.set_weights(checkpoint.best_weights)
    return model


def _scope(strategy: str) -> Any:
    chosen = tf.distribute.MirroredStrategy() if strategy == "mirrored" else tf.distribute.get_strategy()
    return chosen.scope()


def _save(model: ZooModel, recipe: Recipe, output: Path, settings: dict[str, Any], history: list) -> None:
    """Saves the preset with the metrics of what is stored: weights rounded to float16."""
    dataset = dataset_record(settings["dataset"])
    if recipe.evaluation_dataset and settings["dataset"] == recipe.dataset:
        dataset["evaluated_on"] = recipe.evaluation_dataset
    record = dict(
        method=recipe.method,
        preset=recipe.preset,
        weights_dtype="float16",
        dataset=dataset,
        training={**settings, "steps": len(history) * settings["steps_per_epoch"], "command": command(settings)},
        **recipe.metadata,
    )
    stored = checkpoints.load_preset(model.save_to_preset(output / "preset", **record))
    metrics = {
        f"{split}_{name}": value
        for split in ("validation", "test")
        for name, value in recipe.evaluate(stored, stored.metadata.evaluation_dataset, split).items()
    }
    stored.save_to_preset(output / "preset", metrics=metrics, **record)


def dataset_record(name: str) -> dict[str, Any]:
    """Returns what a checkpoint's metadata says of its data set."""
    from zoo import datasets

    info = datasets.info(name)
    return {"name": name, "split": "train", "sha256": info.sha256, "licence": info.licence}


def command(settings: dict[str, Any]) -> str:
    """Returns the command line that repeats a training."""
    words = ["zoo", "train", settings["method"], "--preset", settings["preset"], "--dataset", settings["dataset"]]
    words += [
        "--epochs",
        settings["epochs"],
        "--steps-per-epoch",
        settings["steps_per_epoch"],
        "--seed",
        settings["seed"],
    ]
    words += ["--mixed-precision"] if settings["mixed_precision"] else []
    return shlex.join(map(str, words))
