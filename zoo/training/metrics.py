"""Metrics in the units papers report."""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="zoo")
class BitsPerToken(keras.metrics.Mean):
    """Cross-entropy of the next token in bits: bits per character for a character model.

    Args:
        name: str.

    `update_state` takes int targets `(batch, length)` and logits `(batch, length, vocabulary_size)`.
    """

    def __init__(self, name: str = "bits_per_character", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch."""
        nats = ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        return super().update_state(nats / math.log(2), sample_weight=sample_weight)
