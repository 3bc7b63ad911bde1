"""The one place where arrays and texts become `tf.data` datasets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def to_dataset(data: dict[str, np.ndarray] | str | bytes) -> tf.data.Dataset:
    """Turns what a loader returns into a `tf.data.Dataset`.

    Args:
        data: dict of arrays with a common first axis, or a text as str or bytes.

    Returns:
        Finite dataset of dicts: an example each, or `{"text": line}` with the line's end kept.
    """
    import tensorflow as tf  # here, because discovering datasets imports every module of the package

    if isinstance(data, dict):
        return tf.data.Dataset.from_tensor_slices(data)

    def lines() -> Iterator[dict[str, str | bytes]]:
        # A generator, because a constant of the whole text would be copied into the graph.
        stream = io.BytesIO(data) if isinstance(data, bytes) else io.StringIO(data, newline="\n")
        for line in stream:
            yield {"text": line}

    dataset = tf.data.Dataset.from_generator(lines, output_signature={"text": tf.TensorSpec((), tf.string)})
    newline = b"\n" if isinstance(data, bytes) else "\n"
    count = data.count(newline) + int(bool(data) and not data.endswith(newline))
    return dataset.apply(tf.data.experimental.assert_cardinality(count))
