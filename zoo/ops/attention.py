"""Attention over a memory: masks, softmax and relative positions.

Every function uses only operations that convert to LiteRT built-ins and ONNX with dynamic shapes: masks are made by
reshape rather than by indexing with `None`, and masked scores are finite and small, since a constant such as -1e9 would
ruin the calibration of an integer export.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

# exp(-100) vanishes beside any score a trained network gives, and still leaves int8 calibration a usable range.
MASKED_SCORE = -100.0


def masked_softmax(scores: Any, mask: Any) -> Any:
    """Softmax over the last axis with exact zeros where masked; a row with nothing to attend to is all zeros.

    Args:
        scores: float tensor `(..., queries, keys)`.
        mask: bool tensor broadcastable to `scores`; true where attention is allowed.

    Returns:
        Tensor of the shape and dtype of `scores`; the computation is in float32 at least.
    """
    dtype = keras.backend.result_type(scores.dtype, "float32")
    masked = ops.where(mask, ops.cast(scores, dtype), ops.cast(MASKED_SCORE, dtype))
    probabilities = ops.softmax(masked, axis=-1) * ops.cast(mask, dtype)
    return ops.cast(probabilities, scores.dtype)


def causal_memory_mask(num_queries: Any, num_memory: int, same_length: bool = False) -> Any:
    """Mask of a window that follows a memory: everything in memory, and the window up to the query itself.

    Args:
        num_queries: int or scalar tensor L. Window length.
        num_memory: int M. Memory slots before the window.
        same_length: bool. Also hide the oldest keys so that every query sees M + 1 of them.

    Returns:
        Bool tensor `(1, 1, L, M + L)`.

    Reference:
        Dai et al. 2019, section 3.2; `same_length` as in the authors' evaluation.
    """
    queries = ops.reshape(ops.arange(num_queries, dtype="int32"), (1, 1, -1, 1))
    keys = ops.reshape(ops.arange(num_queries + num_memory, dtype="int32"), (1, 1, 1, -1))
    mask = keys <= queries + num_memory
    return ops.logical_and(mask, keys >= queries) if same_length else mask


def valid_slots_mask(count: Any, num_slots: int) -> Any:
    """Mask of the filled slots of a queue whose newest entry is its last.

    Args:
        count: int tensor `(batch,)`. Number of filled slots.
        num_slots: int. Capacity of the queue.

    Returns:
        Bool tensor `(batch, 1, 1, num_slots)`.
    """
    slots = ops.reshape(ops.arange(num_slots, dtype="int32"), (1, 1, 1, -1))
    return slots >= num_slots - ops.reshape(count, (-1, 1, 1, 1))


def sinusoid_positions(num_positions: Any, dim: int, clamp_length: int = -1) -> Any:
    """Sinusoids of the distances `num_positions - 1, ..., 1, 0`: all sines, then all cosines.

    Args:
        num_positions: int or scalar tensor K.
        dim: int, even. Width of an encoding.
        clamp_length: int. Larger distances are set to it, where it is positive.

    Returns:
        Float32 tensor `(K, dim)`.

    Raises:
        ValueError: if `dim` is odd.

    Reference:
        Dai et al. 2019, section 3.3 (R of equation 5).
    """
    if dim % 2:
        raise ValueError(f"`dim` must be even. Received: dim={dim}")
    distances = ops.cast(num_positions - 1 - ops.arange(num_positions, dtype="int32"), "float32")
    if clamp_length > 0:
        distances = ops.minimum(distances, float(clamp_length))
    return sinusoids(distances, dim)


def sinusoids(positions: Any, dim: int) -> Any:
    """Sinusoids of positions or distances: all sines, then all cosines.

    Args:
        positions: float tensor.
        dim: int, even. Width of an encoding.

    Returns:
        Float32 tensor of the shape of `positions` and one more axis of size `dim`.
    """
    frequencies = (1.0 / 10000 ** (np.arange(0, dim, 2) / dim)).astype("float32")
    angles = ops.expand_dims(positions, -1) * ops.convert_to_tensor(frequencies)
    return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)


def split_heads(x: Any, num_heads: int) -> Any:
    """Splits `(batch, length, heads * head_dim)` into `(batch, heads, length, head_dim)`.

    Args:
        x: float tensor whose last size is known.
        num_heads: int.
    """
    shape = ops.shape(x)
    split = ops.reshape(x, (shape[0], shape[1], num_heads, x.shape[-1] // num_heads))
    return ops.transpose(split, (0, 2, 1, 3))


def merge_heads(x: Any) -> Any:
    """Joins `(batch, heads, length, head_dim)` to `(batch, length, heads * head_dim)`: undoes `split_heads`."""
    merged = ops.transpose(x, (0, 2, 1, 3))
    return ops.reshape(merged, (ops.shape(merged)[0], ops.shape(merged)[1], x.shape[1] * x.shape[3]))


def shared_matmul(x: Any, shared: Any) -> Any:
    """Multiplies every example by the same matrices.

    Args:
        x: float tensor `(batch, heads, length, dim)` of a known number of heads.
        shared: float tensor `(heads, dim, columns)`, or `(dim, columns)` for all heads alike.

    Returns:
        Float tensor `(batch, heads, length, columns)`.
    """
    if x.shape[1] > 1:
        return ops.matmul(x, shared)
    # With one head TensorFlow 2.21 writes beyond its memory: github.com/tensorflow/tensorflow/issues/117700
    matrix = ops.reshape(shared, ops.shape(shared)[-2:])
    return ops.expand_dims(ops.matmul(ops.squeeze(x, 1), matrix), 1)


def relative_shift(scores: Any) -> Any:
    """Moves scores by distance to scores by key, in O(queries x keys).

    Column c of the input holds distance K - 1 - c; entry (i, j) of the output is input column j + (L - 1 - i). Entries
    of keys that lie after their query hold leftovers of the next row and must be masked.

    Args:
        scores: float tensor `(batch, heads, L, K)`.

    Returns:
        Tensor `(batch, heads, L, K)`.

    Reference:
        Dai et al. 2019, appendix B.
    """
    shape = ops.shape(scores)
    batch, heads, queries, keys = (shape[i] for i in range(4))
    padded = ops.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0)))
    flat = ops.reshape(padded, (batch, heads, (keys + 1) * queries))
    # `slice`, since the gradient of indexing costs as much as all products of the layer together.
    shifted = ops.slice(flat, (0, 0, queries), (batch, heads, keys * queries))
    return ops.reshape(shifted, (batch, heads, queries, keys))


def take_distances(scores: Any, distances: Any) -> Any:
    """Picks, for every query and key, the score of their distance: the general form of `relative_shift`.

    Args:
        scores: float tensor `(batch, heads, L, P)`; column c holds distance P - 1 - c.
        distances: int tensor `(batch, L, K)` with values in [0, P).

    Returns:
        Tensor `(batch, heads, L, K)`.
    """
    columns = ops.expand_dims(ops.shape(scores)[-1] - 1 - distances, 1)
    columns = ops.broadcast_to(columns, (*(ops.shape(scores)[i] for i in range(3)), ops.shape(distances)[-1]))
    return ops.take_along_axis(scores, columns, axis=-1)
