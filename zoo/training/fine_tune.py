"""A short training that starts from trained weights, by the recipe of their method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from zoo.training.recipe import Recipe
from zoo.training.statistics import refresh_statistics


@keras.saving.register_keras_serializable(package="zoo")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate times a factor.

    Args:
        rate: float or `LearningRateSchedule`.
        factor: float.
    """

    def __init__(self, rate: Any, factor: float) -> None:
        self.rate = rate
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a step."""
        return self.factor * (self.rate(step) if callable(self.rate) else self.rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"rate": keras.saving.serialize_keras_object(self.rate), "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaledSchedule:
        """Rebuilds the inner schedule."""
        return cls(keras.saving.deserialize_keras_object(config["rate"]), config["factor"])


def fine_tune(
    model: keras.Model,
    recipe: Recipe,
    *,
    epochs: int = 1,
    steps_per_epoch: int | None = None,
    dataset: str | None = None,
    learning_rate_scale: float = 0.1,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains a model on, as its recipe trains it from scratch, at a smaller learning rate.

    Args:
        model: trained `ZooModel`, or a `zoo.compression.CompressedModel` of one.
        recipe: `Recipe` of the method.
        epochs: int.
        steps_per_epoch: int or None. The recipe's by default.
        dataset: str or None. The recipe's by default.
        learning_rate_scale: float. Factor on the recipe's learning rates.
        seed: int.
        callbacks: sequence of Keras callbacks.

    Raises:
        RuntimeError: if the loss is no longer finite.
    """
    keras.utils.set_random_seed(seed)
    steps = steps_per_epoch or recipe.steps_per_epoch
    recipe.compile(model, epochs * steps)
    # The attribute would give the rate of the first step, where the recipe has a schedule
    rate = keras.saving.deserialize_keras_object(model.optimizer.get_config()["learning_rate"])
    model.optimizer.learning_rate = ScaledSchedule(rate, learning_rate_scale)
    data = recipe.data(getattr(model, "model", model), dataset or recipe.dataset, seed)
    model.fit(
        data.train,
        validation_data=data.validation,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=0,
        callbacks=[*recipe.callbacks(data), keras.callbacks.TerminateOnNaN(raise_error=True), *callbacks],
    )
    refresh_statistics(model, data.train)
