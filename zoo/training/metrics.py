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


@keras.saving.register_keras_serializable(package="zoo")
class LabelAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Share of int labels that get the largest logit; labels below 0 are left out.

    Args:
        name: str.

    `update_state` takes labels `(batch, ...)` and logits `(batch, ..., num_classes)`.
    """

    def __init__(self, name: str = "accuracy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch."""
        labels, logits = _flat(y_true, y_pred)
        return super().update_state(labels, logits, ops.cast(labels >= 0, "float32"))


@keras.saving.register_keras_serializable(package="zoo")
class MacroF1(keras.metrics.F1Score):
    """Mean over all classes of F1, the harmonic mean of precision and recall; labels below 0 are left out.

    A class that is neither there nor predicted counts as 0.

    Args:
        name: str.

    `update_state` takes int labels `(batch, ...)` and logits `(batch, ..., num_classes)`.
    """

    def __init__(self, name: str = "macro_f1", **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "average": "macro", "threshold": None, "name": name})

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Adds a batch."""
        labels, logits = _flat(y_true, y_pred)
        classes = logits.shape[-1]
        # One class each, also where logits are equal
        predicted = ops.one_hot(ops.argmax(logits, axis=-1), classes)
        return super().update_state(ops.one_hot(labels, classes), predicted, ops.cast(labels >= 0, "float32"))


def _flat(labels: Any, logits: Any) -> tuple[Any, Any]:
    logits = ops.convert_to_tensor(logits)
    return ops.reshape(ops.cast(labels, "int32"), (-1,)), ops.reshape(logits, (-1, logits.shape[-1]))
