"""Statistics of batch normalisation, taken anew from weights as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def refresh_statistics(model: keras.Model, data: tf.data.Dataset, batches: int = 50) -> None:
    """Runs a model on training batches without training it, so that its moving averages fit its present weights.

    Rounded weights jump from step to step, also at small learning rates: averages over the last steps are then of other
    networks than the one that is left. Does nothing to a model without batch normalisation.

    Args:
        model: built `keras.Model`.
        data: `tf.data.Dataset` of training batches `(inputs, ...)`.
        batches: int. Number of batches.
    """
    if _is_normalized(model):
        _run(_pass(model), data.take(batches))


def _is_normalized(model: keras.Model) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers())


def _pass(model: keras.Model) -> Callable[[Any], Any]:
    return tf.function(lambda inputs: model(inputs, training=True), reduce_retracing=True)


def _run(function: Callable[[Any], Any], data: tf.data.Dataset) -> None:
    for batch in data:
        function(keras.utils.unpack_x_y_sample_weight(batch)[0])


class RefreshStatistics(keras.callbacks.Callback):
    """Does what `refresh_statistics` does before every validation, with the same batches each time.

    Args:
        data: `tf.data.Dataset` of training batches.
        batches: int. Number of batches, which are kept in memory.
    """

    def __init__(self, data: tf.data.Dataset, batches: int = 50) -> None:
        super().__init__()
        self.data = data.take(batches).cache()
        self._function: Callable[[Any], Any] | None = None

    def on_test_begin(self, logs: Any = None) -> None:
        """Refreshes the model's statistics."""
        if _is_normalized(self.model):
            self._function = self._function or _pass(self.model)
            _run(self._function, self.data)
