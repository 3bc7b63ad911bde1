"""Contiguous streams of tokens: the data form of models that carry state from batch to batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


def token_windows(token_ids: np.ndarray, batch_size: int, window_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into parallel streams and the streams into windows.

    Row b of every window continues row b of the window before. What does not fill the last window is dropped.

    Args:
        token_ids: int array `(length,)`.
        batch_size: int. Number of parallel streams.
        window_length: int.

    Returns:
        Tuple of inputs and next-token targets, int32 arrays `(windows, batch_size, window_length)`.

    Raises:
        ValueError: if the text is too short for one window.
    """
    num_windows = (len(token_ids) - 1) // batch_size // window_length
    if num_windows < 1:
        raise ValueError(
            f"`token_ids` must hold more than {batch_size * window_length} tokens for one window of "
            f"{batch_size} streams. Received: {len(token_ids)}"
        )
    used = batch_size * num_windows * window_length

    def cut(ids: np.ndarray) -> np.ndarray:
        streams = ids[:used].reshape(batch_size, num_windows, window_length)
        return np.ascontiguousarray(streams.transpose(1, 0, 2), dtype="int32")

    return cut(token_ids), cut(token_ids[1:])


def token_streams(token_ids: np.ndarray, batch_size: int, window_length: int, repeat: bool = False) -> tf.data.Dataset:
    """Makes a data set of `({"token_ids", "stream_start"}, targets)` batches.

    Args:
        token_ids: int array `(length,)`.
        batch_size: int. Number of parallel streams.
        window_length: int.
        repeat: bool. Begin anew at the end, for training by number of steps.

    Returns:
        A `tf.data.Dataset`; `stream_start` `(batch_size,)` is true in the first batch of each pass.
    """
    import tensorflow as tf

    inputs, targets = token_windows(token_ids, batch_size, window_length)
    starts = np.zeros((len(inputs), batch_size), bool)
    starts[0] = True
    dataset = tf.data.Dataset.from_tensor_slices(({"token_ids": inputs, "stream_start": starts}, targets))
    return dataset.repeat() if repeat else dataset
