"""Statistics of batch normalisation, taken anew from weights as they are."""

from __future__ import annotations

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
    if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers()):
        return
    run = tf.function(lambda inputs: model(inputs, training=True), reduce_retracing=True)
    for batch in data.take(batches):
        run(keras.utils.unpack_x_y_sample_weight(batch)[0])


class RefreshStatistics(keras.callbacks.Callback):
    """Calls `refresh_statistics` before every validation.

    Args:
        data: `tf.data.Dataset` of training batches.
        batches: int. Number of batches.
    """

    def __init__(self, data: tf.data.Dataset, batches: int = 50) -> None:
        super().__init__()
        self.data, self.batches = data, batches

    def on_test_begin(self, logs: Any = None) -> None:
        """Refreshes the model's statistics."""
        refresh_statistics(self.model, self.data, self.batches)
