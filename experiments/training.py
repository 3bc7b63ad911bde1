"""What trainings of recipes and experiments share: an optimiser, data that may not be at hand, compiled signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from zoo.datasets import load_arrays
from zoo.experiments.report import Progress
from zoo.model import Arrays, Runner, ZooModel


def cosine_adam(learning_rate: float, **compile_arguments: Any) -> Callable[[keras.Model, int], None]:
    """Returns the `compile` function of a recipe: Adam, its learning rate falling to 0 along a cosine.

    Args:
        learning_rate: float. At the start.
        **compile_arguments: further arguments of `keras.Model.compile`.
    """

    def compile_model(model: keras.Model, num_updates: int) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_updates)
        # XLA takes longer to compile small dense graphs than it saves on a CPU.
        model.compile(optimizer=keras.optimizers.Adam(schedule), jit_compile=False, **compile_arguments)

    return compile_model


def available_dataset(name: str, progress: Progress) -> str:
    """Returns the name of a data set, or of the embedded part of it, `<name>_sample`, where the whole cannot be had.

    Args:
        name: str. `"mnist"` or `"fashion_mnist"`.
        progress: callable that is told so.
    """
    try:
        load_arrays(name, "train")
    except (ConnectionError, FileNotFoundError) as error:
        progress(f"{name}_sample instead of {name}: {error}")
        return f"{name}_sample"
    return name


def signature_runner(model: ZooModel) -> Runner:
    """Returns what runs the signatures of a model in Keras, compiled."""
    functions = {
        name: tf.function(signature.function, reduce_retracing=True) for name, signature in model.signatures().items()
    }

    def run(signature: str, inputs: Arrays) -> Arrays:
        outputs = functions[signature](**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run
