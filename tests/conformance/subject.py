"""What a check is told of a method: `Subject`."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import zoo
from zoo import checkpoints
from zoo.catalog import Method
from zoo.export import FORMATS, ExportReport, export_model
from zoo.model import Arrays, Signature, TaskMetric, ZooModel
from zoo.training.checkpoint import TrainingCheckpoint
from zoo.training.recipe import Recipe
from zoo.training.run import find_recipe

SEED = 7
# Rows of the one training batch that `fit` has to learn by heart, and how many steps its last phase gets.
ROWS = 4
STEPS = 100
# Steps after which two trainings under one seed are compared.
SHORT = 3
# Outputs of float exports are compared; a task takes a quarter of the time, and `check_recorded_exports` measures it.
NO_METRIC = TaskMetric("none", lambda run: 0.0, higher_is_better=False)


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training showed.

    Args:
        losses: float array `(steps,)`, of all phases; the last one has `STEPS` of them.
        weights: list of arrays. All variables after `SHORT` steps.
        resumed_weights: list of arrays. The same, of a training that goes on from a checkpoint of the start.
    """

    losses: np.ndarray
    weights: list[np.ndarray]
    resumed_weights: list[np.ndarray]


class Subject:
    """A method under test; what is slow is made once, when first needed.

    Args:
        method: `Method`.
        recipe: `Recipe` of the preset that is tested.
        work: path of an empty directory.
        preset: str or None. The default one by default.
    """

    def __init__(self, method: Method, recipe: Recipe, work: Path, preset: str | None = None):
        self.method, self.recipe, self.work = method, recipe, work
        self.preset = method.preset(preset)

    @classmethod
    def of_method(cls, name: str, work: Path, preset: str | None = None) -> "Subject":
        """Returns a method of the catalog."""
        return cls(zoo.info(name), find_recipe(name, preset), work, preset)

    @property
    def dataset(self) -> str:
        """The data set of the recipe, or the embedded part of it: tests never download."""
        return self.recipe.evaluation_dataset or self.recipe.dataset

    # === Models ===

    def build(self, **arguments: Any) -> ZooModel:
        """Returns a new model as a training begins with it; the same weights each time."""
        keras.utils.set_random_seed(SEED)
        arguments = {**self.recipe.overrides(self.dataset), **arguments}
        model = checkpoints.build(self.method, self.preset, arguments)
        self.recipe.prepare(model, self.dataset)
        return model

    @cached_property
    def model(self) -> ZooModel:
        """A model to look at, which no check changes: trained where weights are shipped."""
        if self.preset.trained:
            return checkpoints.load_preset(self.preset.weights, method=self.method)
        return self.build()

    # === Signatures ===

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """The signatures of `model`."""
        return self.model.signatures()

    def examples(self, batch_size: int = 3) -> Iterator[tuple[str, Arrays]]:
        """Yields the name of every signature with random valid inputs."""
        for name in self.signatures:
            yield name, self.model.dummy_inputs(name, batch_size=batch_size, seed=batch_size)

    # === Training ===

    @cached_property
    def training(self) -> Training:
        """One training."""
        return self.train()

    def train(self) -> Training:
        """Runs `fit` on one batch, over and over, with the recipe's optimiser and loss."""
        # As `zoo.training.run.train` does: without it some operations add in any order.
        tf.config.experimental.enable_op_determinism()
        model, steps = self.build(), round(STEPS / (1 - self.recipe.last_phase))
        self.recipe.compile(model, steps)
        model.optimizer.build(model.trainable_variables)
        checkpoint, snapshot = TrainingCheckpoint(self.work / "training.npz", "loss"), _Snapshot(SHORT)
        checkpoint.set_model(model)
        checkpoint.save()
        data = tf.data.Dataset.from_tensors(self._first_batch(model)).repeat()
        arguments = {"steps_per_epoch": 1, "shuffle": False, "verbose": 0}
        history = model.fit(data, epochs=steps, callbacks=[snapshot], **arguments)
        checkpoint.restore(model)
        # By the step that is there already: to trace another takes longer than all steps
        model.fit(data, epochs=SHORT, **arguments)
        return Training(np.array(history.history["loss"]), snapshot.weights, values(model))

    def _first_batch(self, model: ZooModel) -> Any:
        """Returns the first rows of what the recipe trains with."""
        batch = next(iter(self.recipe.data(model, self.dataset, SEED).train))
        return keras.tree.map_structure(lambda tensor: tensor[:ROWS], batch)

    # === Export ===

    @cached_property
    def bundle(self) -> tuple[Path, ExportReport]:
        """All signatures in all formats, in float32."""
        directory = self.work / "bundle"
        return directory, export_model(self.model, directory, FORMATS, "none", metric=NO_METRIC, benchmark=False)


class _Snapshot(keras.callbacks.Callback):
    def __init__(self, epoch: int):
        super().__init__()
        self.epoch, self.weights = epoch, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch + 1 == self.epoch:
            self.weights = values(self.model)


def values(model: keras.Model) -> list[np.ndarray]:
    """Returns copies of all variables of a model."""
    return [variable.value.numpy() for variable in model.variables]
