"""What the image classifiers of this catalog share: how stored images are read, and the accuracy they are judged by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from zoo.arguments import require
from zoo.compression.compressed import CompressedModel
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel

EVALUATION_BATCH = 500


class ImageClassifier(ZooModel):
    """A model from images in [0, 1], `(batch, height, width, channels)`, to logits.

    Subclasses set `input_size`: height, width and channels.
    """

    input_size: tuple[int, int, int]
    head = "classification"
    head_arguments = ("head", "num_classes")

    def preprocess(self, images: Any) -> np.ndarray:
        """Returns stored images as the model takes them.

        Args:
            images: uint8 array `(num_images, height, width)` or `(num_images, height, width, channels)`.

        Returns:
            float32 array `(num_images, height, width, channels)` in [0, 1].

        Raises:
            ValueError: for images of another size.
        """
        images = np.asarray(images)
        images = images[..., None] if images.ndim == 3 else images
        if images.shape[1:] != self.input_size:
            raise ValueError(f"`images` must have shape (number, *{self.input_size}). Received: shape={images.shape}")
        return images.astype("float32") / 255.0

    def predict_signature(self, logits: Callable[[tf.Tensor], tf.Tensor]) -> dict[str, Signature]:
        """Returns the signature `predict` of a function from images to logits."""
        return {
            "predict": Signature(
                lambda image: {"logits": tf.cast(logits(image), "float32")},
                {"image": Spec(("batch", *self.input_size), "float32", "Images, scaled to [0, 1].", 0.0, 1.0)},
                {"logits": "Unnormalised log-probability of each class, (batch, num_classes)."},
            )
        }

    # === Another head ===

    def with_head(self, head: str | None = "classification", **arguments: Any) -> ImageClassifier:
        """Returns a new model with copies of all of this one's weights but those of its last dense layer.

        Args:
            head: str. `"classification"`.
            **arguments: constructor arguments that change, such as `num_classes`.

        Raises:
            ValueError: for another head, and for arguments that change the backbone's weights.
        """
        require(head == self.head, "head", repr(self.head), repr(head))
        model = type(self).from_config({**self.get_config(), "name": None, **arguments}).build_from_signature()
        own, new = ([id(variable) for variable in each.head_variables()] for each in (self, model))
        ours = [variable for variable in self.weights if id(variable) not in own]
        theirs = [variable for variable in model.weights if id(variable) not in new]
        fits = [variable.shape for variable in ours] == [variable.shape for variable in theirs]
        require(fits, "arguments", "such that the backbone's weights stay as they are", arguments)
        for variable, other in zip(ours, theirs, strict=True):
            other.assign(variable)
        return model

    def layers_in_order(self) -> list[keras.layers.Layer]:
        """Returns the layers with weights on the way from the image to the logits."""
        return [layer for layer in self.layers if layer.weights]

    def head_variables(self) -> list[keras.Variable]:
        """Returns the variables that belong to the classes: those of the last dense layer."""
        return [variable for layer in self.layer_groups()["head"] for variable in layer.weights]

    def layer_groups(self) -> dict[str, list[keras.layers.Layer]]:
        """Returns `"layer_0"` and so on, each with the normalisation that follows, and the last dense layer as `"head"`."""
        groups: list[list[keras.layers.Layer]] = []
        for layer in self.layers_in_order():
            if any(len(variable.shape) > 1 for variable in layer.weights):
                groups.append([])
            groups[-1].append(layer)
        return {**{f"layer_{index}": group for index, group in enumerate(groups[:-1])}, "head": groups[-1]}

    # === Held-out data ===

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields validation images of the data set the checkpoint names; nothing without a checkpoint.

        Args:
            signature: str.
            batch_size: int. Number of images; an incomplete last batch is left out.
        """
        if self.metadata is not None:
            for images, _ in self.labelled_images(self.metadata.evaluation_dataset, "validation", batch_size):
                if len(images) == batch_size:
                    yield {"image": images}

    def task_metric(self) -> TaskMetric | None:
        """Returns the accuracy on the test images; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "accuracy", lambda run: self.accuracy(run, dataset, "test"), higher_is_better=True, absolute_tolerance=0.01
        )

    def accuracy(self, run: Runner, dataset: str, split: str) -> float:
        """Returns the share of a split's images that the signature `predict` gives their label.

        Args:
            run: `Runner`.
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        hits = [
            run("predict", {"image": images})["logits"].argmax(axis=1) == labels
            for images, labels in self.labelled_images(dataset, split, EVALUATION_BATCH)
        ]
        return float(np.mean(np.concatenate(hits)))

    def labelled_images(self, dataset: str, split: str, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches of images, as the model takes them, with labels."""
        from zoo.datasets import load_arrays

        arrays = load_arrays(dataset, split)
        for start in range(0, len(arrays["label"]), batch_size):
            chosen = slice(start, start + batch_size)
            yield self.preprocess(arrays["image"][chosen]), arrays["label"][chosen]


class CompressedClassifier(ImageClassifier, CompressedModel):
    """An image classifier of the catalog that is a `CompressedModel`: its stages are a part of it, in presets too."""

    # Of the class, as in `ZooModel`: there is no wrapped checkpoint to ask.
    metadata = None

    @property
    def assets(self) -> dict[str, bytes]:
        """None."""
        return {}

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Refuses any."""
        ZooModel.set_assets(self, assets)

    def save_to_preset(self, directory: str | Path, **kwargs: Any) -> Path:
        """Writes a preset directory, as every model of the catalog does."""
        return ZooModel.save_to_preset(self, directory, **kwargs)

    def layers_in_order(self) -> list[keras.layers.Layer]:
        """Returns the layers of the wrapped network that have weights."""
        return [layer for layer in self.model.layers if layer.weights]

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`, which computes as training does."""
        signature = self.predict_signature(lambda image: self.model(image, training=False))
        return self._compressed(signature, self._deployed)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressedClassifier:
        """Makes the model anew."""
        return cls(**config)


def check_image_shape(input_shape: Sequence[int]) -> None:
    """Refuses what is not height, width and channels.

    Raises:
        ValueError: naming `input_shape`.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"`input_shape` must be height, width and channels. Received: input_shape={input_shape!r}")


@contextlib.contextmanager
def default_policy(dtype: Any) -> Iterator[None]:
    """Within this context, layers are made with a model's dtype policy, which functions that make networks do not take.

    Args:
        dtype: dtype policy, its name, or None for the present one.
    """
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(previous if dtype is None else keras.dtype_policies.get(dtype))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
