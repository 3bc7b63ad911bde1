"""Multi-head attention over a memory and the current window, with relative positions."""

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.ops import masked_softmax, merge_heads, relative_shift, shared_matmul, split_heads, take_distances

POSITIONS = ("xl", "shaw", "absolute")


@keras.saving.register_keras_serializable(package="zoo")
class RelativeMultiHeadAttention(keras.layers.Layer):
    """Transformer-XL attention: queries from the window, keys and values from memory and window together.

    The score of query i and key j at distance t is, before scaling by 1 / sqrt(head_dim),

        q_i . k_j  +  q_i . r_t  +  u . k_j  +  w . r_t

    with `r = R W_r` the projected sinusoids of the distance (`position="xl"`), or the first two terms with a learned `r`
    (`"shaw"`), or only the first (`"absolute"`: positions live in the embeddings). No projection has a bias.

    Short windows are computed in another order: projecting the few queries by the key kernel's transpose costs
    O(dim^2 + heads keys dim) where projecting every key costs O(keys dim^2), so that generating one token does not pay
    for its whole memory. Both orders give the same numbers up to rounding.

    Args:
        num_heads: int.
        head_dim: int. Width of a head.
        position: str. `"xl"`, `"shaw"` or `"absolute"`.
        attention_dropout: float. Rate on attention probabilities.
        max_distance: int. Longest learned distance (`"shaw"` only).
        initializer_stddev: float. Kernels start from N(0, stddev^2).

    Reference:
        Dai et al. 2019, section 3.3, equations for A^rel; Shaw et al. 2018.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        position: str = "xl",
        attention_dropout: float = 0.0,
        max_distance: int = 0,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if position not in POSITIONS:
            raise ValueError(f"`position` must be one of {POSITIONS}. Received: position={position!r}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.position = position
        self.attention_dropout = attention_dropout
        self.max_distance = max_distance
        self.initializer_stddev = initializer_stddev
        self.query = self._dense(num_heads * head_dim, "query")
        self.key = self._dense(num_heads * head_dim, "key")
        self.value = self._dense(num_heads * head_dim, "value")
        self.relative = self._dense(num_heads * head_dim, "relative") if position == "xl" else None
        self.dropout_layer = keras.layers.Dropout(attention_dropout, dtype=self.dtype_policy)

    def _initializer(self) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(stddev=self.initializer_stddev)

    def _dense(self, units: int, name: str) -> keras.layers.Dense:
        return keras.layers.Dense(
            units, use_bias=False, kernel_initializer=self._initializer(), dtype=self.dtype_policy, name=name
        )

    def build(self, input_shape: Any) -> None:
        """Creates the kernels for windows `(batch, length, dim)`."""
        dim = input_shape[-1]
        self.query.build(input_shape)
        self.key.build(input_shape)
        self.value.build(input_shape)
        if self.relative is not None:
            self.relative.build((None, dim))
        if self.position == "shaw":
            self.distance_table = self.add_weight(
                name="distance_table",
                shape=(self.max_distance + 1, self.num_heads, self.head_dim),
                initializer=self._initializer(),
            )
        self.output_dense = self._dense(dim, "output")
        self.output_dense.build((None, None, self.num_heads * self.head_dim))

    def call(
        self,
        inputs: Any,
        memory: Any,
        mask: Any,
        positions: Any = None,
        content_bias: Any = None,
        position_bias: Any = None,
        distances: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Any]:
        """Attends from the window to memory and window.

        Args:
            inputs: float tensor `(batch, L, dim)`.
            memory: float tensor `(batch, M, dim)`, oldest first.
            mask: bool tensor broadcastable to `(batch, heads, L, M + L)`.
            positions: float tensor `(P, dim)`: encodings of the distances P - 1 .. 0 (`"xl"`).
            content_bias: float tensor `(heads, head_dim)`: u (`"xl"`).
            position_bias: float tensor `(heads, head_dim)`: w (`"xl"`).
            distances: int tensor `(batch or 1, L, M + L)` or `None` for a key's plain distance in the concatenation.
            training: bool or None.

        Returns:
            Tuple of output `(batch, L, dim)` and attention probabilities `(batch, heads, L, M + L)`.
        """
        context = ops.concatenate([memory, inputs], axis=1)
        query = self._heads(self.query(inputs))
        absorb = self._is_short(inputs.shape[1], memory.shape[1], inputs.shape[-1])
        project = self._scores_absorbed if absorb else self._scores
        scores = project(self._scaled(query, content_bias), context, self.key)
        scores = scores + self._position_scores(query, positions, position_bias, distances, context, project)
        probabilities = masked_softmax(scores, mask)
        weights = self.dropout_layer(probabilities, training=training)
        attended = self._attend_absorbed(weights, context) if absorb else self._attend(weights, context)
        return self.output_dense(attended), probabilities

    def _is_short(self, length: int | None, num_memory: int | None, dim: int) -> bool:
        """Whether projecting queries is cheaper than projecting keys."""
        if length is None or num_memory is None:
            return False
        return length * self.num_heads <= min(dim // 2, num_memory + length)

    def content_attention(self, inputs: Any, memory: Any) -> Any:
        """Attends by content alone, with frozen projections and no mask: what a reconstruction loss compares.

        Args:
            inputs: float tensor `(batch, L, dim)`.
            memory: float tensor `(batch, Z, dim)`.

        Returns:
            Float tensor `(batch, L, heads * head_dim)`, before the output projection. Gradients reach `memory` and
            `inputs`, never this layer's kernels.

        Reference:
            Rae et al. 2020, algorithm 2.
        """
        kernels = (ops.stop_gradient(_cast(layer.kernel, inputs)) for layer in (self.query, self.key, self.value))
        query_kernel, key_kernel, value_kernel = kernels
        query = self._heads(ops.matmul(inputs, query_kernel))
        key = self._heads(ops.matmul(memory, key_kernel))
        value = self._heads(ops.matmul(memory, value_kernel))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / math.sqrt(self.head_dim)
        return merge_heads(ops.matmul(ops.softmax(scores, axis=-1), value))

    def _scaled(self, query: Any, bias: Any = None) -> Any:
        """Adds a bias `(heads, head_dim)` and scales: queries `(batch, heads, length, head_dim)` are fewer than scores."""
        biased = query if bias is None else query + _cast(ops.expand_dims(bias, 1), query)
        return biased / math.sqrt(self.head_dim)

    def _position_scores(
        self, query: Any, positions: Any, position_bias: Any, distances: Any, context: Any, project: Any
    ) -> Any:
        if self.position == "absolute":
            return 0.0
        if self.position == "xl":
            encodings = ops.expand_dims(_cast(positions, query), 0)
            scores = project(self._scaled(query, position_bias), encodings, self.relative)
        else:
            scores = self._learned_position_scores(self._scaled(query), ops.shape(context)[1])
        return relative_shift(scores) if distances is None else take_distances(scores, distances)

    def _learned_position_scores(self, query: Any, num_keys: Any) -> Any:
        distances = ops.minimum(num_keys - 1 - ops.arange(num_keys, dtype="int32"), self.max_distance)
        table = ops.take(_cast(self.distance_table, query), distances, axis=0)
        return shared_matmul(query, ops.transpose(table, (1, 2, 0)))

    def _scores(self, query: Any, context: Any, projection: keras.layers.Dense) -> Any:
        key = self._heads(projection(context))
        return _product(query, ops.transpose(key, (0, 1, 3, 2)))

    def _scores_absorbed(self, query: Any, context: Any, projection: keras.layers.Dense) -> Any:
        kernel = _cast(projection.kernel, query)
        own_columns = ops.tile(query, (1, 1, 1, self.num_heads)) * self._own_head(query)
        projected = shared_matmul(own_columns, ops.transpose(kernel))
        return _product(projected, ops.expand_dims(ops.transpose(context, (0, 2, 1)), 1))

    def _attend(self, weights: Any, context: Any) -> Any:
        return merge_heads(ops.matmul(weights, self._heads(self.value(context))))

    def _attend_absorbed(self, weights: Any, context: Any) -> Any:
        mixed = self.value(ops.matmul(weights, ops.expand_dims(context, 1)))
        return ops.sum(mixed * self._own_head(mixed), axis=1)

    def _own_head(self, like: Any) -> Any:
        """Returns ones where a column of a kernel belongs to a head, `(1, heads, 1, heads * head_dim)`.

        Masking keeps the kernels whole: exported graphs then hold them as plain matrices, which quantise, rather than as
        copies cut by head.
        """
        own = np.kron(np.eye(self.num_heads), np.ones(self.head_dim))
        return ops.cast(own[None, :, None, :], like.dtype)

    def _heads(self, x: Any) -> Any:
        """Splits `(batch, length, heads * head_dim)` into `(batch, heads, length, head_dim)`."""
        return split_heads(x, self.num_heads)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "position": self.position,
            "attention_dropout": self.attention_dropout,
            "max_distance": self.max_distance,
            "initializer_stddev": self.initializer_stddev,
        }


def _cast(x: Any, like: Any) -> Any:
    return ops.cast(x, like.dtype)


def _product(x: Any, matrices: Any) -> Any:
    """Multiplies `(batch, heads, L, d)` by `(batch or 1, heads or 1, d, columns)`."""
    return shared_matmul(x, ops.squeeze(matrices, 0)) if matrices.shape[0] == 1 else ops.matmul(x, matrices)
