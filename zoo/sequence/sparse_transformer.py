"""Sparse Transformer: attention factorised into two patterns of about sqrt(n) keys each.

Child, Gray, Radford, Sutskever 2019, https://arxiv.org/abs/1904.10509.

A sequence of length n is cut into rows of l positions, l about the root of n. Two sets of keys per query, one of them near
and one of them spread over the whole past, let every earlier position reach every later one in two steps:

    strided   near: the last l positions                  far: every l-th position before
    fixed     near: the own row up to the query           far: the last c columns of every row

Every set is computed block by block, so that time and memory grow with n sqrt(n); no n x n matrix is ever made. The rest is
what made the network trainable at 100 layers: pre-activation residual blocks, initialisation scaled by depth, an output layer
that starts from zero, positions as coordinates (row and column, or row, column and channel), and attention and feed-forward
networks that are computed again in the backward pass rather than kept.

Two models: `SparseTransformer` reads text, position i predicting token i + 1; `SparseImageTransformer` is a density of
images, position i predicting its own value from the values before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.generative.image_levels import check_levels
from zoo.layers import FeedForward
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric, ZooModel
from zoo.ops import masked_softmax, split_heads
from zoo.sequence.recurrent_language_model import State
from zoo.sequence.window_language_model import WindowLanguageModel

# Near and far keys of each pattern; "full" is what both are compared to.
PATTERNS = {"strided": ("local", "stride"), "fixed": ("row", "summary"), "full": ("full",)}
COMBINATIONS = ("interleaved", "merged", "heads")
INITIALIZER_SCALE = 0.125


# === Patterns ===


class KeySet:
    """One set of keys, as blocks of queries that attend to blocks of keys.

    Tensors go from `(batch, heads, n, dim)` to `(batch, heads, blocks, rows, dim)` and back; masks say which keys of its
    block a query sees. n must be a multiple of the stride.

    Args:
        length: int. Number of positions n.
        stride: int. Positions in a row l.
        reach: int. How many positions back the local set of a strided pattern goes.
        exclusive: bool. Leave out what the near set of the same pattern holds, for the union of both.
    """

    def __init__(self, length: int, stride: int, reach: int = 0, exclusive: bool = False) -> None:
        self.length, self.stride, self.reach, self.exclusive = length, stride, reach, exclusive
        self.rows = length // stride

    def queries(self, x: Any) -> Any:
        """Lays out queries, or what belongs to them, in blocks."""
        return self._split(x)

    def keys(self, x: Any) -> Any:
        """Lays out keys or values in blocks."""
        return self._split(x)

    def restore(self, x: Any) -> Any:
        """Undoes `queries`."""
        shape = ops.shape(x)
        return ops.reshape(x, (shape[0], shape[1], self.length, shape[4]))

    def mask(self) -> np.ndarray:
        """Returns a bool array broadcastable to `(heads, blocks, rows, keys)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no mask.")

    def _split(self, x: Any) -> Any:
        shape = ops.shape(x)
        return ops.reshape(x, (shape[0], shape[1], shape[2] // self.stride, self.stride, shape[3]))


class FullSet(KeySet):
    """All earlier positions: one block."""

    def _split(self, x: Any) -> Any:
        return ops.expand_dims(x, 2)

    def mask(self) -> np.ndarray:
        """Returns the lower triangle."""
        return np.tri(self.length, dtype=bool)[None, None]


class LocalSet(KeySet):
    """The `reach` positions before a query and itself: every row attends to itself and the row before."""

    def keys(self, x: Any) -> Any:
        """Lays out every row after the row before it."""
        padded = ops.pad(x, ((0, 0), (0, 0), (self.stride, 0), (0, 0)))
        before = ops.slice(padded, (0, 0, 0, 0), ops.shape(x))
        return ops.concatenate([self._split(before), self._split(x)], axis=3)

    def mask(self) -> np.ndarray:
        """Returns the band; the first row has none before it."""
        distance = self.stride + np.arange(self.stride)[:, None] - np.arange(2 * self.stride)
        band = np.tile((distance >= 0) & (distance <= self.reach), (self.rows, 1, 1))
        band[0, :, : self.stride] = False
        return band[None]


class StrideSet(KeySet):
    """Every l-th position before a query: columns become rows."""

    def _split(self, x: Any) -> Any:
        return ops.transpose(super()._split(x), (0, 1, 3, 2, 4))

    def restore(self, x: Any) -> Any:
        """Undoes `queries`."""
        return super().restore(ops.transpose(x, (0, 1, 3, 2, 4)))

    def mask(self) -> np.ndarray:
        """Returns the lower triangle over rows, without the distances that the local set has."""
        distance = self.stride * (np.arange(self.rows)[:, None] - np.arange(self.rows))
        return (distance >= 0 if not self.exclusive else distance > self.reach)[None, None]


class RowSet(KeySet):
    """The own row up to the query."""

    def mask(self) -> np.ndarray:
        """Returns the lower triangle within a row."""
        return np.tri(self.stride, dtype=bool)[None, None]


class SummarySet(KeySet):
    """A few columns at the end of every row; heads may have different ones.

    Args:
        first_columns: sequence of int. First summary column of every head.
        width: int. Number of summary columns c.
    """

    def __init__(self, *args: Any, first_columns: Sequence[int], width: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_columns, self.width = first_columns, width

    def queries(self, x: Any) -> Any:
        """Keeps all queries in one block."""
        return ops.expand_dims(x, 2)

    def keys(self, x: Any) -> Any:
        """Picks the summary columns of every row."""
        rows = super()._split(x)
        if len(set(self.first_columns)) == 1:
            return self._columns(rows, self.first_columns[0])
        heads = [self._columns(rows[:, i : i + 1], first) for i, first in enumerate(self.first_columns)]
        return ops.concatenate(heads, axis=1)

    def _columns(self, rows: Any, first: int) -> Any:
        chosen = rows[:, :, :, first : first + self.width]
        shape = ops.shape(chosen)
        return ops.reshape(chosen, (shape[0], shape[1], 1, self.rows * self.width, shape[4]))

    def mask(self) -> np.ndarray:
        """Returns which summary positions come before a query, without its own row for the union."""
        first = (
            np.unique(self.first_columns)[::-1] if len(set(self.first_columns)) == 1 else np.array(self.first_columns)
        )
        columns = first[:, None] + np.arange(self.width)
        keys = (np.arange(self.rows)[:, None] * self.stride + columns[:, None]).reshape(len(first), 1, -1)
        queries = np.arange(self.length)[None, :, None]
        seen = keys // self.stride < queries // self.stride if self.exclusive else keys <= queries
        return seen[:, None]


KEY_SETS = {"full": FullSet, "local": LocalSet, "stride": StrideSet, "row": RowSet}


def attend(query: Any, key: Any, value: Any, sets: Sequence[KeySet]) -> Any:
    """Attends to the union of disjoint sets of keys; a query with no key gets zeros.

    Args:
        query: float tensor `(batch, heads, n, key_dim)`, already scaled.
        key: float tensor of the same shape.
        value: float tensor `(batch, heads, n, value_dim)`.
        sets: sequence of `KeySet`.

    Returns:
        Tensor `(batch, heads, n, value_dim)`.
    """
    scores = [ops.matmul(s.queries(query), ops.swapaxes(s.keys(key), -1, -2)) for s in sets]
    masks = [ops.expand_dims(ops.convert_to_tensor(s.mask()), 0) for s in sets]
    if len(sets) == 1:
        weights = [masked_softmax(scores[0], masks[0])]
    else:
        # One softmax over all sets needs the scores of a query side by side
        together = ops.concatenate([s.restore(x) for s, x in zip(sets, scores, strict=True)], axis=-1)
        seen = [
            s.restore(ops.broadcast_to(mask, (1, *ops.shape(x)[1:])))
            for s, mask, x in zip(sets, masks, scores, strict=True)
        ]
        together = masked_softmax(together, ops.concatenate(seen, axis=-1))
        ends = np.cumsum([x.shape[-1] for x in scores])
        weights = [s.queries(x) for s, x in zip(sets, ops.split(together, ends[:-1].tolist(), axis=-1), strict=True)]
    parts = [s.restore(ops.matmul(w, s.keys(value))) for s, w in zip(sets, weights, strict=True)]
    return sum(parts[1:], parts[0])


# === Layers ===


def quick_gelu(x: Any) -> Any:
    """`x sigmoid(1.702 x)`: the paper's approximation of GELU."""
    return x * ops.sigmoid(1.702 * x)


keras.saving.register_keras_serializable(package="zoo")(quick_gelu)


def _initializer(fan_in: int, scale: float = 1.0) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=INITIALIZER_SCALE * scale / math.sqrt(fan_in))


@keras.saving.register_keras_serializable(package="zoo")
class SparseAttention(keras.layers.Layer):
    """Causal multi-head attention to sparse sets of keys.

    Args:
        num_heads: int.
        key_dim: int. Width of queries and keys of all heads together.
        head_sets: sequence of tuples of str: the sets of keys, `"full"`, `"local"`, `"stride"`, `"row"` or `"summary"`, of
            each group of neighbouring heads; groups are of one size.
        stride: int. Positions in a row l.
        summary_width: int. Summary columns of a row c.
        num_summaries: int. Different groups of summary columns that heads take in turn.
        local_inclusive: bool. Whether the local set is the query and l positions before it, as the paper writes, rather
            than l - 1, as the released kernels compute.
        output_scale: float. Factor on the initial output kernel.

    Reference:
        Child et al. 2019, sections 4.2, 4.3 and 5.5.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        head_sets: Sequence[Sequence[str]],
        stride: int,
        summary_width: int = 1,
        num_summaries: int = 1,
        local_inclusive: bool = True,
        output_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.head_sets = tuple(map(tuple, head_sets))
        self.stride = stride
        self.summary_width = summary_width
        self.num_summaries = num_summaries
        self.local_inclusive = local_inclusive
        self.output_scale = output_scale

    def build(self, input_shape: Any) -> None:
        """Creates the projections for `(batch, length, dim)`."""
        dim = input_shape[-1]
        self.query = self._dense(self.key_dim, dim, "query")
        self.key = self._dense(self.key_dim, dim, "key")
        self.value = self._dense(dim, dim, "value")
        self.output_dense = self._dense(dim, dim, "output", self.output_scale)
        for dense in (self.query, self.key, self.value, self.output_dense):
            dense.build(input_shape)

    def _dense(self, units: int, fan_in: int, name: str, scale: float = 1.0) -> keras.layers.Dense:
        initializer = _initializer(fan_in, scale)
        return keras.layers.Dense(units, kernel_initializer=initializer, dtype=self.dtype_policy, name=name)

    def call(self, inputs: Any) -> Any:
        """Attends within `(batch, length, dim)`; the length must be known."""
        length = inputs.shape[1]
        padded = math.ceil(length / self.stride) * self.stride
        query = self.query(inputs) * (self.key_dim // self.num_heads) ** -0.5
        # Padding follows all positions, so that no query sees it
        query, key, value = (self._heads(x, padded - length) for x in (query, self.key(inputs), self.value(inputs)))
        size = self.num_heads // len(self.head_sets)
        groups = []
        for index, names in enumerate(self.head_sets):
            heads = range(index * size, (index + 1) * size)
            part = (x[:, heads.start : heads.stop] for x in (query, key, value))
            groups.append(attend(*part, self.key_sets(names, padded, heads)))
        attended = ops.concatenate(groups, axis=1) if len(groups) > 1 else groups[0]
        merged = ops.transpose(attended, (0, 2, 1, 3))
        merged = ops.reshape(merged, (ops.shape(merged)[0], padded, inputs.shape[-1]))
        return self.output_dense(merged[:, :length])

    def key_sets(self, names: Sequence[str], length: int, heads: Sequence[int]) -> list[KeySet]:
        """Returns the sets of keys of some heads for a length that is a multiple of the stride."""
        reach = self.stride if self.local_inclusive else self.stride - 1
        exclusive = len(names) > 1
        sets = []
        for name in names:
            if name == "summary":
                first = [self.stride - self.summary_width * (head % self.num_summaries + 1) for head in heads]
                columns = dict(first_columns=first, width=self.summary_width)
                sets.append(SummarySet(length, self.stride, reach, exclusive, **columns))
            else:
                sets.append(KEY_SETS[name](length, self.stride, reach, exclusive))
        return sets

    def _heads(self, x: Any, padding: int) -> Any:
        x = ops.pad(x, ((0, 0), (0, padding), (0, 0))) if padding else x
        return split_heads(x, self.num_heads)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "head_sets": self.head_sets,
            "stride": self.stride,
            "summary_width": self.summary_width,
            "num_summaries": self.num_summaries,
            "local_inclusive": self.local_inclusive,
            "output_scale": self.output_scale,
        }


@keras.saving.register_keras_serializable(package="zoo")
class SparseTransformerBlock(keras.layers.Layer):
    """`H + a + b` with `a = dropout(attention(LN(H)))` and `b = dropout(ff(LN(H + a)))`.

    Args:
        attention: `SparseAttention`.
        intermediate_dim: int. Width inside the feed-forward network.
        depth: int. Number of blocks in the network: output kernels start smaller by sqrt(2 depth).
        dropout: float.
        recompute: bool. Compute attention and feed-forward network again in the backward pass instead of keeping what is
            inside them. Dropout, which lies outside, is drawn once.

    Reference:
        Child et al. 2019, sections 5.2 and 5.4.
    """

    def __init__(
        self,
        attention: SparseAttention,
        intermediate_dim: int,
        depth: int,
        dropout: float = 0.0,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attention = attention
        self.intermediate_dim = intermediate_dim
        self.depth = depth
        self.dropout = dropout
        self.recompute = recompute
        self.attention_norm, self.feed_forward_norm = (
            keras.layers.LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name=name)
            for name in ("attention_norm", "feed_forward_norm")
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for `(batch, length, dim)`."""
        dim = input_shape[-1]
        self.feed_forward = FeedForward(
            dim,
            self.intermediate_dim,
            activation=quick_gelu,
            inner_initializer=_initializer(dim),
            outer_initializer=_initializer(self.intermediate_dim, (2 * self.depth) ** -0.5),
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        for layer in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Applies the block."""
        attended = self.dropout_layer(self._part(self.attention, self.attention_norm, inputs), training=training)
        hidden = inputs + attended
        return hidden + self.dropout_layer(
            self._part(self.feed_forward, self.feed_forward_norm, hidden), training=training
        )

    def _part(self, layer: keras.layers.Layer, norm: keras.layers.Layer, hidden: Any) -> Any:
        def part(x: Any) -> Any:
            return layer(norm(x))

        return keras.remat(part)(hidden) if self.recompute else part(hidden)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "attention": keras.saving.serialize_keras_object(self.attention),
            "intermediate_dim": self.intermediate_dim,
            "depth": self.depth,
            "dropout": self.dropout,
            "recompute": self.recompute,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SparseTransformerBlock:
        """Makes a layer of its configuration."""
        return cls(**{**config, "attention": keras.saving.deserialize_keras_object(config["attention"])})


class SparseNetwork(keras.Model):
    """The network of both models: embedding, blocks, logits.

    Args:
        vocabulary_size: int.
        num_layers: int. Number of residual blocks.
        hidden_dim: int.
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward networks; the paper's is four times `hidden_dim`, or twice
            in its "half-size" networks.
        position_shape: sequence of int. Positions are coordinates in an array of this shape, such as rows and columns.
        stride: int. Positions in a row l of the patterns.
        pattern: str. `"strided"`, `"fixed"` or `"full"`.
        combine: str. How near and far keys share the network: `"interleaved"` (blocks take turns), `"merged"` (every head
            sees both) or `"heads"` (half of the heads each).
        summary_width: int. Summary columns of a row c (`"fixed"` only).
        num_summaries: int. Different groups of summary columns that heads take in turn (`"fixed"` only).
        local_inclusive: bool. Whether the local keys are the query and l positions before it, rather than l - 1.
        key_dim: int or None. Width of queries and keys of all heads together, `hidden_dim` by default.
        dropout: float. Rate on the outputs of attention and feed-forward networks.
        recompute: bool. Compute attention and feed-forward networks again in the backward pass instead of keeping what is
            inside them.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        position_shape: Sequence[int],
        stride: int,
        pattern: str,
        combine: str = "interleaved",
        summary_width: int = 1,
        num_summaries: int = 1,
        local_inclusive: bool = True,
        key_dim: int | None = None,
        dropout: float = 0.0,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        key_dim = key_dim or hidden_dim
        sizes = dict(vocabulary_size=vocabulary_size, num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads)
        sizes |= dict(intermediate_dim=intermediate_dim, stride=stride, num_summaries=num_summaries)
        for name, value in sizes.items():
            require(value >= 1, name, "at least 1", value)
        require(pattern in PATTERNS, "pattern", f"one of {tuple(PATTERNS)}", pattern)
        require(combine in COMBINATIONS, "combine", f"one of {COMBINATIONS}", combine)
        for name, value in (("hidden_dim", hidden_dim), ("key_dim", key_dim)):
            require(value % num_heads == 0, name, f"a multiple of num_heads={num_heads}", value)
        split = combine != "heads" or num_heads % 2 == 0
        require(split, "num_heads", "even where combine='heads'", num_heads)
        valid = 1 <= summary_width <= stride // num_summaries
        require(valid, "summary_width", f"from 1 to stride // num_summaries = {stride // num_summaries}", summary_width)
        valid = len(position_shape) > 0 and min(position_shape) >= 1
        require(valid, "position_shape", "one or more positive sizes", position_shape)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.position_shape = tuple(position_shape)
        self.stride = stride
        self.pattern = pattern
        self.combine = combine
        self.summary_width = summary_width
        self.num_summaries = num_summaries
        self.local_inclusive = local_inclusive
        self.key_dim = key_dim
        self.dropout = dropout
        self.recompute = recompute

        # === Layers ===
        self.embedding = self._table(vocabulary_size, hidden_dim, "embedding")
        self.position_tables = [
            self._table(size, hidden_dim * len(self.position_shape), f"positions_{axis}")
            for axis, size in enumerate(self.position_shape)
        ]
        self.blocks = [self._block(index) for index in range(num_layers)]
        self.norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name="norm")
        self.logits_layer = keras.layers.Dense(
            vocabulary_size, use_bias=False, kernel_initializer="zeros", dtype=self.dtype_policy, name="logits"
        )

    @property
    def num_positions(self) -> int:
        """Longest sequence the network reads."""
        return math.prod(self.position_shape)

    def _table(self, size: int, fan_in: int, name: str) -> keras.layers.Embedding:
        return keras.layers.Embedding(
            size, self.hidden_dim, embeddings_initializer=_initializer(fan_in), dtype=self.dtype_policy, name=name
        )

    def head_sets(self, index: int) -> list[tuple[str, ...]]:
        """Returns the sets of keys of the groups of heads in a block; where blocks take turns, near keys come first."""
        sets = PATTERNS[self.pattern]
        if self.combine == "merged":
            return [sets]
        if self.combine == "heads":
            return [(name,) for name in sets]
        return [(sets[index % len(sets)],)]

    def _block(self, index: int) -> SparseTransformerBlock:
        attention = SparseAttention(
            self.num_heads,
            self.key_dim,
            self.head_sets(index),
            self.stride,
            summary_width=self.summary_width,
            num_summaries=self.num_summaries,
            local_inclusive=self.local_inclusive,
            output_scale=(2 * self.num_layers) ** -0.5,
            dtype=self.dtype_policy,
            name="attention",
        )
        return SparseTransformerBlock(
            attention,
            self.intermediate_dim,
            self.num_layers,
            dropout=self.dropout,
            recompute=self.recompute,
            dtype=self.dtype_policy,
            name=f"block_{index}",
        )

    def network(self, token_ids: Any, shift: bool, training: bool | None = None) -> Any:
        """Returns float32 logits `(batch, length, vocabulary_size)`.

        Args:
            token_ids: int tensor `(batch, length)`.
            shift: bool. Whether a position sees the token before it, and the first one nothing, rather than its own.
            training: bool or None.
        """
        length = token_ids.shape[1]
        valid = length is not None and length <= self.num_positions
        require(valid, "token_ids", f"of at most {self.num_positions} positions, a number known", f"length={length}")
        hidden = self.embedding(token_ids)
        if shift:
            hidden = ops.pad(hidden[:, :-1], ((0, 0), (1, 0), (0, 0)))
        coordinates = np.unravel_index(np.arange(length), self.position_shape)
        for table, places in zip(self.position_tables, coordinates, strict=True):
            hidden = hidden + table(ops.convert_to_tensor(places.astype("int32")))
        for block in self.blocks:
            hidden = block(hidden, training=training)
        return ops.cast(self.logits_layer(self.norm(hidden)), "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "position_shape": self.position_shape,
            "stride": self.stride,
            "pattern": self.pattern,
            "combine": self.combine,
            "summary_width": self.summary_width,
            "num_summaries": self.num_summaries,
            "local_inclusive": self.local_inclusive,
            "key_dim": self.key_dim,
            "dropout": self.dropout,
            "recompute": self.recompute,
        }


# === Text ===


@keras.saving.register_keras_serializable(package="zoo")
class SparseTransformer(SparseNetwork, WindowLanguageModel):
    """A language model with sparse attention.

    Position i sees the tokens up to its own and predicts the next one: the paper's shift to the right, with the token before
    the window in the place of its start vector.

    Args:
        **kwargs: those of `SparseNetwork`.

    Example:
        >>> model = zoo.get("sparse_transformer")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)

    Reference:
        Child et al. 2019, section 7.2.
    """

    @property
    def window_length(self) -> int:
        """Tokens read at a time."""
        return self.num_positions

    def read(self, token_ids: Any, state: State | None = None, training: bool | None = None) -> Any:
        """Reads one window, see `WindowLanguageModel.read`."""
        return self.network(token_ids, shift=False, training=training)


# === Images ===


@keras.saving.register_keras_serializable(package="zoo")
class SparseImageTransformer(SparseNetwork, ZooModel):
    """A density of images with sparse attention: every value given the values before it, row by row.

    Takes images `(batch, *position_shape)` of whole numbers below `vocabulary_size` and gives, for every value, the logits
    of its distribution given those before, `(batch, *position_shape, vocabulary_size)`; `fit` takes the same images as
    targets.

    Args:
        **kwargs: those of `SparseNetwork`.

    Example:
        >>> model = zoo.get("sparse_transformer", preset="digits")
        >>> images = model.sample(16)

    Reference:
        Child et al. 2019, sections 7.1 and 7.3.
    """

    def call(self, image: Any, training: bool | None = None) -> Any:
        """Returns logits, see the class."""
        return self._logits(image, training)

    def _logits(self, image: Any, training: bool | None = False) -> Any:
        shape = (ops.shape(image)[0], *self.position_shape)
        token_ids = ops.cast(ops.reshape(image, (shape[0], self.num_positions)), "int32")
        logits = self.network(token_ids, shift=True, training=training)
        return ops.reshape(logits, (*shape, self.vocabulary_size))

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables."""
        self.build_from_signature()

    # === Use ===

    def log_prob(self, image: Any) -> np.ndarray:
        """Returns the log-probability of images in nats.

        Args:
            image: array-like `(batch, *position_shape)`. Whole numbers below `vocabulary_size`.

        Returns:
            float32 array `(batch,)`.

        Raises:
            ValueError: for another shape and values that are no such numbers.
        """
        image = np.asarray(image)
        check_levels(image, self.position_shape, self.vocabulary_size)
        return self.run("log_prob", image=image.astype("int32"))["log_prob"]

    def bits_per_dimension(self, log_prob: float | np.ndarray) -> float | np.ndarray:
        """Converts log-probabilities of images to bits per value."""
        return -log_prob / (self.num_positions * math.log(2.0))

    def sample(self, num_samples: int, temperature: float = 1.0, seed: int | None = None) -> np.ndarray:
        """Draws images, value by value: one pass of the network each.

        Args:
            num_samples: int.
            temperature: float. Divides the logits; below 1 samples are more typical and less varied.
            seed: int or None. Fresh noise by default.

        Returns:
            int32 array `(num_samples, *position_shape)`.
        """
        require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        require(0 < temperature < math.inf, "temperature", "finite and positive", temperature)
        shape = (num_samples, self.num_positions, self.vocabulary_size)
        noise = np.random.default_rng(seed).gumbel(size=(shape[1], shape[0], shape[2])).astype("float32")
        return np.asarray(self._sample(tf.constant(noise), tf.constant(temperature, "float32")))

    @tf.function(reduce_retracing=True)
    def _sample(self, noise: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
        num_samples = tf.shape(noise)[1]

        def turn(place: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            logits = self.network(token_ids, shift=True)[:, place] / temperature
            chosen = tf.argmax(logits + noise[place], axis=-1, output_type=tf.int32)
            here = tf.range(self.num_positions) == place
            return place + 1, tf.where(here, chosen[:, tf.newaxis], token_ids)

        start = tf.zeros((num_samples, self.num_positions), tf.int32)
        _, token_ids = tf.while_loop(lambda place, _: place < self.num_positions, turn, (0, start))
        return tf.reshape(token_ids, (num_samples, *self.position_shape))

    # === Deployment ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `log_prob` and `predict`."""
        levels = Spec(("batch", *self.position_shape), "int32", "Image of levels.", 0, self.vocabulary_size - 1)
        return {
            "log_prob": Signature(
                self._log_prob, {"image": levels}, {"log_prob": "Log-probability in nats, (batch,)."}
            ),
            "predict": Signature(
                lambda image: {"logits": self._logits(image)},
                {"image": levels},
                {"logits": "Logits of every value given those before it."},
            ),
        }

    def _log_prob(self, image: Any) -> dict[str, Any]:
        log_probabilities = ops.log_softmax(self._logits(image), axis=-1)
        # A product with one-hot vectors, since no gather over a batch of this rank deploys everywhere
        chosen = ops.sum(log_probabilities * ops.one_hot(image, self.vocabulary_size), axis=-1)
        return {"log_prob": ops.sum(ops.reshape(chosen, (-1, self.num_positions)), axis=1)}

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns bits per dimension of the test images; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        return TaskMetric("bits_per_dimension", self._held_out_bits, higher_is_better=False, relative_tolerance=0.01)

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields validation images of the data set the checkpoint names; nothing without a checkpoint."""
        if self.metadata is not None:
            for images in self._images("validation", batch_size):
                if len(images) == batch_size:
                    yield {"image": images}

    def _held_out_bits(self, run: Runner) -> float:
        nats = [run("log_prob", {"image": images})["log_prob"] for images in self._images("test", 64)]
        return float(self.bits_per_dimension(np.concatenate(nats).mean(dtype="float64")))

    def _images(self, split: str, batch_size: int) -> Iterator[np.ndarray]:
        from zoo.datasets import load_arrays

        levels = load_arrays(self.metadata.evaluation_dataset, split)["image"].astype("int32")
        images = levels.reshape(len(levels), *self.position_shape)
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
