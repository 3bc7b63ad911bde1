"""What it takes to train a preset: data, optimiser, length, and how the result is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from zoo.model import ZooModel


@dataclass(frozen=True)
class TrainingData:
    """Data sets of a training.

    Args:
        train: endless `tf.data.Dataset` of batches, the same for the same seed.
        validation: finite `tf.data.Dataset` of batches.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained.

    Args:
        method: str. Catalog name.
        preset: str.
        dataset: str. Name for `zoo.datasets.load`; `train` may replace it by another of the same form.
        epochs: int. An epoch is `steps_per_epoch` updates: the unit of validation and of checkpoints.
        steps_per_epoch: int.
        prepare: callable of (model, data set name): sets what the model takes from the data, such as a tokenizer.
        data: callable of (model, data set name, seed) to `TrainingData`.
        compile: callable of (model, number of updates): calls `model.compile`.
        evaluate: callable of (model, data set name, split) to metrics.
        monitor: str. Validation metric that picks the best epoch, smaller is better.
        overrides: callable of data set name to constructor arguments that depend on the data, such as the vocabulary.
        evaluation_dataset: str or None. Embedded part of the data set, whose held-out splits judge the checkpoint, so that
            anyone can repeat the number without a download; None for the data set itself.
        last_phase: float in [0, 1). Share of the updates before the last phase, where a training has several: losses of
            different phases cannot be compared.
        callbacks: callable of `TrainingData` to Keras callbacks that the training needs.
        metadata: mapping. What the checkpoint's metadata says beyond the metrics, such as the licence.
    """

    method: str
    preset: str
    dataset: str
    epochs: int
    steps_per_epoch: int
    data: Callable[[ZooModel, str, int], TrainingData]
    compile: Callable[[ZooModel, int], None]
    evaluate: Callable[[ZooModel, str, str], dict[str, float]]
    monitor: str
    prepare: Callable[[ZooModel, str], None] = lambda model, dataset: None
    overrides: Callable[[str], Mapping[str, Any]] = lambda dataset: {}
    evaluation_dataset: str | None = None
    last_phase: float = 0.0
    callbacks: Callable[[TrainingData], Sequence[keras.callbacks.Callback]] = lambda data: ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
