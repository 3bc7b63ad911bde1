"""Reformer: a Transformer for very long sequences.

Kitaev, Kaiser, Levskaya 2020, https://arxiv.org/abs/2001.04451.

Attention looks only where it matters. Queries and keys are the same vectors, up to the keys' length, so that a query cares
most for vectors that point in its direction; these are found by hashing:

    bucket    h(q) = argmax [q R ; -q R]          R random: neighbours fall into one bucket, opposites never
    order     sort positions by (bucket, position), cut the sorted sequence into chunks
    attend    every chunk to itself and the chunk before it, within buckets
    rounds    all that several times, with other R; a softmax over the union of what the rounds found

Memory does not grow with depth: layers are reversible, their activations are computed again from their outputs in the
backward pass (`zoo.layers.reversible`). Feed-forward networks and the loss are computed chunk by chunk; positions of long
sequences are pairs of coordinates with a small table each.

`Reformer` is the language model; `ReformerEncoderDecoder` is the reversible Transformer of the paper's translations.

What differs from the authors' code: attention within buckets only and the correction for keys found twice, as in the paper's
equations, are the default here, and the first chunk does not look back to the last one; options restore the later code. A
position attends to itself only where there is nothing else. The paper lowers its score by 1e5 for that; here it is left out
and put back where nothing else is left, which is the same in float32 and spares integer exports such numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.layers import FeedForward
from zoo.layers.multi_head_attention import MultiHeadAttention
from zoo.layers.reversible import Branch, chunked, folded, replayed_dropout, run_and_plan, run_branches
from zoo.model import Spec
from zoo.ops import masked_softmax, shared_matmul, sinusoids, split_heads
from zoo.ops.attention import MASKED_SCORE
from zoo.sequence.encoder_decoder import PADDING_ID, EncoderDecoder
from zoo.sequence.recurrent_language_model import State
from zoo.sequence.window_language_model import WindowLanguageModel

ATTENTION_KINDS = ("lsh", "local", "full", "full_shared_qk")


# === Hashing ===


def hash_buckets(vectors: Any, rotations: Any, num_buckets: int | Sequence[int]) -> Any:
    """Hashes vectors, so that those that point in similar directions are likely to fall into one bucket.

    Args:
        vectors: float tensor `(batch, heads, length, dim)`. No gradient flows through a hash.
        rotations: float tensor `(heads, dim, rounds, sum(num_buckets) / 2)`.
        num_buckets: even int, or sequence of even ints b_1, b_2, ... whose product is the number of buckets: a vector is
            hashed with each of them, and its bucket is h_1 + b_1 h_2 + ...

    Returns:
        int32 tensor `(batch, heads, rounds, length)`.

    Reference:
        Kitaev et al. 2020, section 2; Andoni et al. 2015.
    """
    factors = _factors(num_buckets)
    heads, dim, rounds, width = rotations.shape
    vectors = ops.cast(ops.stop_gradient(vectors), rotations.dtype)
    rotated = shared_matmul(vectors, ops.reshape(rotations, (heads, dim, rounds * width)))
    rotated = ops.reshape(rotated, (-1, heads, vectors.shape[2], rounds, width))
    buckets, start, scale = 0, 0, 1
    for factor in factors:
        part = rotated[..., start : start + factor // 2]
        # Not the argmax of Keras, whose care for -0.0 does not deploy
        found = tf.argmax(ops.concatenate([part, -part], axis=-1), axis=-1, output_type=tf.int32)
        buckets, start, scale = buckets + scale * found, start + factor // 2, scale * factor
    return ops.transpose(buckets, (0, 1, 3, 2))


def _factors(num_buckets: int | Sequence[int]) -> tuple[int, ...]:
    return (num_buckets,) if isinstance(num_buckets, int) else tuple(num_buckets)


def unit_keys(query: Any, epsilon: float = 1e-6) -> Any:
    """Returns q / |q|, with epsilon on the mean square as in the authors' code."""
    size = ops.mean(ops.square(query), axis=-1, keepdims=True)
    return query * (ops.rsqrt(size + epsilon) / math.sqrt(query.shape[-1]))


# === Attention within what the rounds found ===


def attend(
    query: Any,
    key: Any,
    value: Any,
    own_value: Any,
    allowed: Any,
    log_counts: Any = None,
    rate: float = 0.0,
    seed: Any = None,
) -> tuple[Any, Any, Any]:
    """Attends; a query with nothing else attends to itself.

    Args:
        query: float tensor `(..., queries, dim)`.
        key: float tensor `(..., keys, dim)`.
        value: float tensor `(..., keys, value_dim)`.
        own_value: float tensor `(..., queries, value_dim)`: the values of the queries' own positions.
        allowed: bool tensor broadcastable to `(..., queries, keys)`, false at the queries' own positions.
        log_counts: float tensor `(..., queries, keys)` or None. Lowers scores.
        rate: float. Dropout of attention weights.
        seed: int32 tensor `(2,)` or None, see `replayed_dropout`.

    Returns:
        Tuple of the outputs `(..., queries, value_dim)`, the logarithm of the softmax's denominator `(..., queries, 1)` and
        whether a query found only itself, as 1 or 0 of the same shape; both at least float32.
    """
    dtype = keras.backend.result_type(query.dtype, "float32")
    scores = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), dtype)
    if log_counts is not None:
        scores = scores - ops.cast(log_counts, dtype)
    masked = ops.where(allowed, scores, ops.cast(MASKED_SCORE, dtype))
    highest = ops.stop_gradient(ops.max(masked, axis=-1, keepdims=True))
    weights = ops.exp(masked - highest) * ops.cast(allowed, dtype)
    total = ops.sum(weights, axis=-1, keepdims=True)
    alone = ops.cast(total <= 0, dtype)
    total = total + alone
    outputs = ops.cast(
        ops.matmul(ops.cast(replayed_dropout(weights, rate, folded(seed, 0)), value.dtype), value), dtype
    )
    outputs = outputs / total + replayed_dropout(alone, rate, folded(seed, 1)) * ops.cast(own_value, dtype)
    return ops.cast(outputs, value.dtype), highest + ops.log(total), alone


def full_shared_attention(
    query: Any, value: Any, valid: Any = None, causal: bool = True, rate: float = 0.0, seed: Any = None
) -> Any:
    """Attention with shared queries and keys over all positions.

    Args:
        query: float tensor `(batch, length, dim)`.
        value: float tensor `(batch, length, value_dim)`.
        valid: bool tensor `(batch, length)` or None. False at keys to leave out.
        causal: bool. Attend to earlier positions only.
        rate: float. Dropout of attention weights.
        seed: int32 tensor `(2,)` or None, see `replayed_dropout`.

    Returns:
        Float tensor `(batch, length, value_dim)`.
    """
    positions = ops.arange(query.shape[1], dtype="int32")
    queries, keys = ops.reshape(positions, (1, -1, 1)), ops.reshape(positions, (1, 1, -1))
    allowed = keys < queries if causal else ops.not_equal(keys, queries)
    if valid is not None:
        allowed = ops.logical_and(allowed, ops.expand_dims(valid, 1))
    return attend(query, unit_keys(query), value, value, allowed, rate=rate, seed=seed)[0]


def lsh_attention(
    query: Any,
    value: Any,
    buckets: Any,
    chunk_length: int,
    num_buckets: int,
    valid: Any = None,
    causal: bool = True,
    attend_across_buckets: bool = False,
    allow_duplicates: bool = False,
    wrap_chunks: bool = False,
    rate: float = 0.0,
    seed: Any = None,
) -> Any:
    """Attention with shared queries and keys over the keys that share a bucket in one of several rounds.

    Exact, that is equal to a softmax over the union of all buckets of a query, where no bucket has more than `chunk_length`
    members. Members of larger buckets may miss each other.

    Args:
        query: float tensor `(batch, length, dim)`; the length a multiple of `chunk_length`, and larger.
        value: float tensor `(batch, length, value_dim)`.
        buckets: int32 tensor `(batch, rounds, length)`, below `num_buckets`.
        chunk_length: int. Positions of a chunk of the sorted sequence.
        num_buckets: int.
        valid: bool tensor broadcastable to `(batch, length)`, or None. False at padding.
        causal: bool. Attend to earlier positions only; every chunk looks back to one more chunk, and ahead if not causal.
        attend_across_buckets: bool. Attend to all keys of the chunks, whatever their bucket.
        allow_duplicates: bool. Count a key that several rounds found several times, rather than correct for it.
        wrap_chunks: bool. The chunk before the first one of a round is the last one of the round before it, cyclically.
        rate: float. Dropout of attention weights.
        seed: int32 tensor `(2,)` or None, see `replayed_dropout`.

    Returns:
        Float tensor `(batch, length, value_dim)`.

    Reference:
        Kitaev et al. 2020, section 2 and appendix A.
    """
    rounds, length = buckets.shape[1], query.shape[1]
    chunks, after = length // chunk_length, 0 if causal else 1
    if valid is not None:
        # A bucket of its own, which comes last and so moves nobody else
        buckets = ops.where(ops.expand_dims(valid, 1), buckets, num_buckets)
    order, inverse = _sorted_order(buckets, num_buckets)

    def cut(x: Any, width: int) -> Any:
        return ops.reshape(x, (-1, rounds * chunks, chunk_length, width))

    def look(ids: Any, filler: int) -> Any:
        """Lays the numbers of a sorted sequence out for queries and for keys; keys outside have the filler."""
        by_round = ops.reshape(ids, (-1, rounds, chunks, chunk_length))
        own = ops.reshape(ids, (-1, rounds * chunks, chunk_length))
        if wrap_chunks:
            keys = _with_neighbours(own, 1, after)
        else:
            padded = ops.pad(by_round, ((0, 0), (0, 0), (1, after), (0, 0)), constant_values=filler)
            parts = [padded[:, :, i : i + chunks] for i in range(2 + after)]
            keys = ops.reshape(ops.concatenate(parts, axis=3), (-1, rounds * chunks, (2 + after) * chunk_length))
        return ops.expand_dims(own, 3), ops.expand_dims(keys, 2)

    def in_order(ids: Any) -> Any:
        return tf.gather(ops.reshape(ids, (-1, rounds * length)), order, batch_dims=1)

    # Queries and values are sorted together, once per round
    width = query.shape[-1]
    places = order % length
    gathered = _permute(ops.concatenate([query, value], axis=-1), places, inverse)
    gathered = cut(gathered, width + value.shape[-1])
    queries, values = gathered[..., :width], gathered[..., width:]
    keys_values = _with_neighbours(ops.concatenate([unit_keys(queries), values], axis=-1), 1, after)

    own_places, key_places = look(places, length)
    allowed = key_places < own_places if causal else ops.not_equal(key_places, own_places)
    own_buckets, key_buckets = look(in_order(buckets), num_buckets)
    if not attend_across_buckets:
        allowed = ops.logical_and(allowed, ops.equal(own_buckets, key_buckets))
    elif valid is not None or not causal:
        allowed = ops.logical_and(allowed, key_buckets < num_buckets)

    log_counts = None
    if rounds > 1 and not allow_duplicates:
        ids = ops.reshape(inverse % length, buckets.shape) // chunk_length if attend_across_buckets else buckets
        counts = 1.0
        for shift in range(1, rounds):
            others = ops.concatenate([ids[:, shift:], ids[:, :shift]], axis=1)
            own_ids, key_ids = look(in_order(others), -9)
            if attend_across_buckets:
                distance = own_ids - key_ids
                shared = ops.logical_and(distance >= -after, distance <= 1)
            else:
                shared = ops.equal(own_ids, key_ids)
            counts = counts + ops.cast(shared, "float32")
        log_counts = ops.log(counts)

    outputs, log_totals, alone = attend(
        queries, keys_values[..., :width], keys_values[..., width:], values, allowed, log_counts, rate, seed
    )
    outputs = _permute(ops.reshape(outputs, (-1, rounds * length, value.shape[-1])), inverse, order)
    outputs = ops.reshape(outputs, (-1, rounds, length, value.shape[-1]))
    if rounds == 1:
        return ops.squeeze(outputs, 1)
    found = ops.concatenate([log_totals, alone], axis=-1)
    found = _permute(ops.reshape(found, (-1, rounds * length, 2)), inverse, order)
    found = ops.reshape(found, (-1, rounds, length, 2))
    weights = ops.cast(_round_weights(found[..., :1], found[..., 1:]), outputs.dtype)
    return ops.sum(weights * outputs, axis=1)


def _round_weights(log_totals: Any, alone: Any) -> Any:
    """Softmax over rounds (axis 1); a round in which a query found only itself counts only if they all are such."""
    nowhere = ops.min(alone, axis=1, keepdims=True)
    counts = ops.stop_gradient(1 - alone + nowhere)
    highest = ops.stop_gradient(ops.max(log_totals - 2 * abs(MASKED_SCORE) * (1 - counts), axis=1, keepdims=True))
    weights = ops.exp(ops.minimum(log_totals - highest, 0.0)) * counts
    return weights / ops.sum(weights, axis=1, keepdims=True)


def _sorted_order(buckets: Any, num_buckets: int) -> tuple[Any, Any]:
    """Sorts every round by (bucket, position).

    Args:
        buckets: int32 tensor `(batch, rounds, length)`, at most `num_buckets`.
        num_buckets: int.

    Returns:
        Two int32 tensors `(batch, rounds * length)` of places in the flattened rounds: which one comes next, and where one
        went.
    """
    rounds, length = buckets.shape[1:]
    positions = ops.reshape(ops.arange(length, dtype="int32"), (1, 1, -1))
    dtype = "int32" if (num_buckets + 1) * length < 2**31 else "int64"
    keys = ops.cast(buckets, dtype) * length + ops.cast(positions, dtype)
    # All keys differ, so that no order is left to the runtime
    order = tf.math.top_k(-keys, k=length)[1]
    inverse = tf.math.top_k(-order, k=length)[1]
    starts = ops.reshape(ops.arange(rounds, dtype="int32") * length, (1, -1, 1))
    return ops.reshape(order + starts, (-1, rounds * length)), ops.reshape(inverse + starts, (-1, rounds * length))


def _permute(values: Any, places: Any, back: Any) -> Any:
    """Gathers rows, with a gradient that gathers too rather than scatters.

    Args:
        values: float tensor `(batch, length, dim)`.
        places: int tensor `(batch, rounds * length)`, a permutation of the length for every round.
        back: int tensor of the same shape: where row i of round r went, at r * length + i.
    """
    repeats = places.shape[1] // values.shape[1]
    length, dim = values.shape[1:]

    @tf.custom_gradient
    def gather(x: Any) -> tuple[Any, Any]:
        def gradient(change: Any) -> Any:
            returned = tf.gather(change, back, batch_dims=1)
            return returned if repeats == 1 else tf.reduce_sum(tf.reshape(returned, (-1, repeats, length, dim)), 1)

        return tf.gather(x, places, batch_dims=1), gradient

    return gather(values)


def _with_neighbours(x: Any, before: int, after: int) -> Any:
    """Lays out every chunk of `(batch, chunks, positions, ...)` between its neighbours, cyclically."""
    parts = [x]
    if before:
        parts = [ops.concatenate([x[:, -1:], x[:, :-1]], axis=1), *parts]
    if after:
        parts = [*parts, ops.concatenate([x[:, 1:], x[:, :1]], axis=1)]
    return ops.concatenate(parts, axis=2)


# === Layers ===


class _Heads(keras.layers.Layer):
    """What both kinds of attention share: projections without biases, in heads.

    Args:
        num_heads: int.
        key_dim: int. Width of a head.
        chunk_length: int or None. Positions of a chunk; None, or a sequence of no more, for attention to all positions.
        causal: bool.
        attention_dropout: float. Rate on attention weights, in training.
    """

    projections: tuple[str, ...] = ()

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        chunk_length: int | None = None,
        causal: bool = True,
        attention_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # Rotations keep their precision: a bucket must not depend on the rounding
        super().__init__(**{"autocast": False, **kwargs})
        for name, given in (("num_heads", num_heads), ("key_dim", key_dim), ("chunk_length", chunk_length)):
            require(given is None or given >= 1, name, "at least 1", given)
        require(0 <= attention_dropout < 1, "attention_dropout", "in [0, 1)", attention_dropout)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.chunk_length = chunk_length
        self.causal = causal
        self.attention_dropout = attention_dropout

    def build(self, input_shape: Any) -> None:
        """Creates the projections for `(batch, length, dim)`."""
        dim = input_shape[-1]
        for name in self.projections:
            setattr(self, name, self._dense(self.num_heads * self.key_dim, dim, name))
        self.output_dense = self._dense(dim, self.num_heads * self.key_dim, "output")

    def _dense(self, units: int, inputs: int, name: str) -> keras.layers.Dense:
        dense = keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy, name=name)
        dense.build((None, None, inputs))
        return dense

    def _split(self, x: Any, padded: int) -> Any:
        """Returns heads `(batch, heads, padded, key_dim)`."""
        length = x.shape[1]
        x = ops.pad(x, ((0, 0), (0, padded - length), (0, 0))) if padded > length else x
        return split_heads(x, self.num_heads)

    def _fold(self, x: Any) -> Any:
        return ops.reshape(x, (-1, *x.shape[2:]))

    def _merge(self, x: Any, length: int) -> Any:
        """Returns `(batch, length, dim)` of folded heads."""
        x = ops.reshape(x, (-1, self.num_heads, *x.shape[1:]))[:, :, :length]
        merged = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, length, self.num_heads * self.key_dim))
        return self.output_dense(merged)

    def _padded(self, length: int) -> int:
        return -(-length // self.chunk_length) * self.chunk_length

    def _is_full(self, length: int) -> bool:
        return self.chunk_length is None or length <= self.chunk_length

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "chunk_length": self.chunk_length,
            "causal": self.causal,
            "attention_dropout": self.attention_dropout,
        }


@keras.saving.register_keras_serializable(package="zoo")
class LSHAttention(_Heads):
    """Attention with shared queries and keys, over all keys or over those that hashing finds.

    Args:
        num_heads: int.
        key_dim: int. Width of a head.
        chunk_length: int or None. Chunks of the sorted sequence. For None, and for a sequence of at most one chunk, a
            position attends to all others.
        causal: bool. Attend to earlier positions only.
        attention_dropout: float. Rate on attention weights, in training.
        num_rounds: int. Rounds of hashing.
        num_buckets: even int, sequence of even ints (factors of the number), or None for twice the number of chunks.
        attend_across_buckets: bool. Attend to everything in the chunks.
        allow_duplicates: bool. Count a key found twice twice.
        wrap_chunks: bool. Let the first chunk look back to a last one. Needs `allow_duplicates`.
        hash_seed: int. Determines the hash where no seed is given, so in inference.

    Reference:
        Kitaev et al. 2020, section 2.
    """

    projections = ("query_key", "value")

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        chunk_length: int | None = 64,
        causal: bool = True,
        attention_dropout: float = 0.0,
        num_rounds: int = 1,
        num_buckets: int | Sequence[int] | None = None,
        attend_across_buckets: bool = False,
        allow_duplicates: bool = False,
        wrap_chunks: bool = False,
        hash_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, key_dim, chunk_length, causal, attention_dropout, **kwargs)
        require(num_rounds >= 1, "num_rounds", "at least 1", num_rounds)
        require(hash_seed >= 0, "hash_seed", "at least 0", hash_seed)
        require(allow_duplicates or not wrap_chunks, "wrap_chunks", "False unless allow_duplicates=True", wrap_chunks)
        self.num_rounds = num_rounds
        self.num_buckets = _checked_buckets(num_buckets)
        self.attend_across_buckets = attend_across_buckets
        self.allow_duplicates = allow_duplicates
        self.wrap_chunks = wrap_chunks
        self.hash_seed = hash_seed

    def call(
        self, inputs: Any, padding_mask: Any = None, rotations: Any = None, buckets: Any = None, seed: Any = None
    ) -> tuple[Any, Any]:
        """Attends.

        Args:
            inputs: float tensor `(batch, length, dim)` of a known length.
            padding_mask: bool tensor `(batch, length)` or None. False at positions that nobody may attend to.
            rotations: float tensor as `rotation_shape` says, or None for random ones.
            buckets: int32 tensor `(batch, heads, rounds, length)` or None, for what the hash gives.
            seed: int32 tensor `(2,)` or None. Draws rotations and dropout; without it there is no dropout, and rotations
                are those of `hash_seed`.

        Returns:
            Tuple of outputs `(batch, length, dim)` and the buckets, None where nothing was hashed.
        """
        length = inputs.shape[1]
        full = self._is_full(length)
        padded = length if full else self._padded(length)
        query, value = (self._split(dense(inputs), padded) for dense in (self.query_key, self.value))
        valid = None
        if padding_mask is not None:
            tail = ((0, 0), (0, padded - length))
            valid = ops.repeat(ops.pad(padding_mask, tail), self.num_heads, axis=0)
        elif padded > length:
            valid = ops.expand_dims(ops.arange(padded, dtype="int32") < length, 0)
        options = dict(valid=valid, causal=self.causal, rate=self.attention_dropout, seed=folded(seed, 1))
        if full:
            attended = full_shared_attention(self._fold(query), self._fold(value), **options)
            return self._merge(attended, length), None
        factors = self.bucket_factors(length)
        if buckets is None:
            if rotations is None:
                rotations = self.draw_rotations(length, folded(seed, 0))
            buckets = hash_buckets(query[:, :, :length], rotations, factors)
        attended = lsh_attention(
            self._fold(query),
            self._fold(value),
            self._fold(ops.pad(buckets, ((0, 0), (0, 0), (0, 0), (0, padded - length)))),
            self.chunk_length,
            math.prod(factors),
            attend_across_buckets=self.attend_across_buckets,
            allow_duplicates=self.allow_duplicates,
            wrap_chunks=self.wrap_chunks,
            **options,
        )
        return self._merge(attended, length), buckets

    def bucket_factors(self, length: int) -> tuple[int, ...]:
        """Returns the factors of the number of buckets for a sequence of this length."""
        return _factors(self.num_buckets or 2 * (self._padded(length) // self.chunk_length))

    def rotation_shape(self, length: int) -> tuple[int, int, int, int]:
        """Returns the shape of the rotations that hash a sequence of this length."""
        return self.num_heads, self.key_dim, self.num_rounds, sum(self.bucket_factors(length)) // 2

    def draw_rotations(self, length: int, seed: Any = None) -> Any:
        """Returns rotations drawn with a seed; without one the constants of `hash_seed`."""
        shape = self.rotation_shape(length)
        if seed is not None:
            return tf.random.stateless_normal(shape, seed)
        drawn = np.random.default_rng(self.hash_seed).standard_normal(shape).astype("float32")
        return ops.convert_to_tensor(drawn)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_rounds": self.num_rounds,
            "num_buckets": self.num_buckets,
            "attend_across_buckets": self.attend_across_buckets,
            "allow_duplicates": self.allow_duplicates,
            "wrap_chunks": self.wrap_chunks,
            "hash_seed": self.hash_seed,
        }


def _checked_buckets(num_buckets: Any) -> int | tuple[int, ...] | None:
    if num_buckets is None:
        return None
    factors = _factors(num_buckets)
    valid = len(factors) > 0 and all(factor >= 2 and factor % 2 == 0 for factor in factors)
    require(valid, "num_buckets", "None, a positive even number, or one or more of them", num_buckets)
    return num_buckets if isinstance(num_buckets, int) else factors


@keras.saving.register_keras_serializable(package="zoo")
class LocalAttention(_Heads):
    """Attention within a chunk and to the chunk before it; to the chunk after it too, if not causal.

    Args:
        num_heads: int.
        key_dim: int. Width of a head.
        chunk_length: int or None. For None, and for a sequence of at most one chunk, a position attends to all others.
        causal: bool. Attend to positions up to the own one only.
        attention_dropout: float. Rate on attention weights, in training.
    """

    projections = ("query", "key", "value")

    def call(self, inputs: Any, padding_mask: Any = None, seed: Any = None) -> Any:
        """Attends.

        Args:
            inputs: float tensor `(batch, length, dim)` of a known length.
            padding_mask: bool tensor `(batch, length)` or None. False at positions that nobody may attend to.
            seed: int32 tensor `(2,)` or None. Draws dropout; without it there is none.

        Returns:
            Float tensor `(batch, length, dim)`.
        """
        length = inputs.shape[1]
        full = self._is_full(length)
        size = length if full else self.chunk_length
        padded = length if full else self._padded(length)
        before, after = (0, 0) if full else (1, 0 if self.causal else 1)

        def chunks(dense: keras.layers.Layer) -> Any:
            folded_heads = self._fold(self._split(dense(inputs), padded))
            return ops.reshape(folded_heads, (-1, padded // size, size, self.key_dim))

        query = chunks(self.query) * self.key_dim**-0.5
        key, value = (_with_neighbours(chunks(dense), before, after) for dense in (self.key, self.value))
        scores = ops.matmul(query, ops.swapaxes(key, -1, -2))
        weights = masked_softmax(scores, self._allowed(length, padded, size, before, after, padding_mask))
        weights = replayed_dropout(weights, self.attention_dropout, seed)
        attended = ops.reshape(ops.matmul(weights, value), (-1, padded, self.key_dim))
        return self._merge(attended, length)

    def _allowed(self, length: int, padded: int, size: int, before: int, after: int, padding_mask: Any) -> Any:
        """Returns which keys a query sees, broadcastable to `(batch * heads, chunks, size, keys)`."""
        num_keys = (before + 1 + after) * size
        offsets = np.arange(num_keys) - before * size
        starts = np.arange(0, padded, size)[:, None]
        exists = (starts + offsets >= 0) & (starts + offsets < length)
        allowed = ops.convert_to_tensor(exists[None, :, None, :])
        if self.causal:
            past = offsets[None, :] <= np.arange(size)[:, None]
            allowed = ops.logical_and(allowed, ops.convert_to_tensor(past[None, None]))
        if padding_mask is None:
            return allowed
        valid = ops.repeat(ops.pad(padding_mask, ((0, 0), (0, padded - length))), self.num_heads, axis=0)
        chunks = ops.reshape(valid, (-1, padded // size, size))
        return ops.logical_and(allowed, ops.expand_dims(_with_neighbours(chunks, before, after), 2))


@keras.saving.register_keras_serializable(package="zoo")
class AxialPositionEmbedding(keras.layers.Layer):
    """Positions as coordinates in an array, each with a table of its own; a position's vector is theirs side by side.

    Args:
        shape: sequence of int. Sizes n_1, n_2, ... of the array; the last coordinate changes fastest.
        dims: sequence of int. Widths d_1, d_2, ... of the tables: n_1 d_1 + n_2 d_2 + ... parameters.
        initializer: Keras initializer of the tables.

    Reference:
        Kitaev et al. 2020, appendix of the released code; Ho et al. 2019.
    """

    def __init__(self, shape: Sequence[int], dims: Sequence[int], initializer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        valid = len(shape) == len(dims) > 0 and min(*shape, *dims) >= 1
        require(valid, "shape and dims", "equally many positive sizes", f"shape={shape}, dims={dims}")
        self.shape = tuple(shape)
        self.dims = tuple(dims)
        self.initializer = keras.initializers.get(initializer or keras.initializers.RandomNormal(stddev=1.0))

    def build(self, input_shape: Any = None) -> None:
        """Creates the tables."""
        self.tables = [
            self.add_weight(name=f"table_{axis}", shape=sizes, initializer=self.initializer)
            for axis, sizes in enumerate(zip(self.shape, self.dims, strict=True))
        ]

    def call(self, length: int) -> Any:
        """Returns the vectors `(length, sum(dims))` of the first positions."""
        parts = []
        for axis, (table, dim) in enumerate(zip(self.tables, self.dims, strict=True)):
            alone = [1] * len(self.shape)
            alone[axis] = self.shape[axis]
            spread = ops.broadcast_to(ops.reshape(table, (*alone, dim)), (*self.shape, dim))
            parts.append(ops.reshape(spread, (math.prod(self.shape), dim)))
        return ops.concatenate(parts, axis=-1)[:length]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        initializer = keras.initializers.serialize(self.initializer)
        return {**super().get_config(), "shape": self.shape, "dims": self.dims, "initializer": initializer}


@keras.saving.register_keras_serializable(package="zoo")
class ReplayedFeedForward(FeedForward):
    """A feed-forward network whose dropout can be repeated."""

    def call(self, inputs: Any, seed: Any = None) -> Any:
        """Applies the network; a seed draws its dropout, without one there is none."""
        hidden = replayed_dropout(self.inner(inputs), self.dropout, folded(seed, 0))
        return replayed_dropout(self.outer(hidden), self.dropout, folded(seed, 1))


@keras.saving.register_keras_serializable(package="zoo")
class ReformerBlock(keras.layers.Layer):
    """`y1 = x1 + attention(LN(x2))` and `y2 = x2 + feed_forward(LN(y1))`.

    Args:
        attention: `LSHAttention` or `LocalAttention`.
        intermediate_dim: int. Width inside the feed-forward network.
        activation: str or callable.
        dropout: float. Rate on what both networks give, and inside the feed-forward network.
        feed_forward_chunks: int. Pieces of the sequence for which the feed-forward network is computed one after another.
        epsilon: float. Of the layer normalisations.

    Reference:
        Kitaev et al. 2020, section 3, equation 9.
    """

    def __init__(
        self,
        attention: LSHAttention | LocalAttention,
        intermediate_dim: int,
        activation: Any = "relu",
        dropout: float = 0.0,
        feed_forward_chunks: int = 1,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.attention = attention
        self.intermediate_dim = intermediate_dim
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.feed_forward_chunks = feed_forward_chunks
        self.epsilon = epsilon
        self.attention_norm, self.feed_forward_norm = (
            _layer_norm(epsilon, self.dtype_policy, name) for name in ("attention_norm", "feed_forward_norm")
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights for streams `(batch, length, dim)`."""
        self.feed_forward = _feed_forward(
            input_shape[-1], self.intermediate_dim, self.activation, self.dropout, self.dtype_policy
        )
        for layer in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build(input_shape)

    def branches(self, padding_mask: Any = None, rotations: Any = None) -> list[Branch]:
        """Returns both branches; the arguments are those of the attention."""

        def attend_branch(inputs: Any, context: Any, seed: Any, plan: Any) -> tuple[Any, Any]:
            normed = self.attention_norm(inputs)
            if isinstance(self.attention, LSHAttention):
                attended, plan = self.attention(normed, padding_mask, rotations, plan, folded(seed, 0))
            else:
                attended = self.attention(normed, padding_mask, folded(seed, 0))
            return replayed_dropout(attended, self.dropout, folded(seed, 1)), plan

        def feed_branch(inputs: Any, context: Any, seed: Any, plan: Any) -> tuple[Any, Any]:
            return self.feed_forward(self.feed_forward_norm(inputs), seed), None

        return [Branch(attend_branch), Branch(feed_branch, self.feed_forward_chunks)]

    def call(self, first: Any, second: Any, seed: Any = None) -> tuple[Any, Any]:
        """Applies the block to both streams."""
        return run_branches(self.branches(), first, second, seed=seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "attention": keras.saving.serialize_keras_object(self.attention),
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "feed_forward_chunks": self.feed_forward_chunks,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ReformerBlock:
        """Makes a layer of its configuration."""
        return cls(**{**config, "attention": keras.saving.deserialize_keras_object(config["attention"])})


def _layer_norm(epsilon: float, dtype: Any, name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)


def _feed_forward(dim: int, intermediate_dim: int, activation: Any, dropout: float, dtype: Any) -> ReplayedFeedForward:
    return ReplayedFeedForward(
        dim,
        intermediate_dim,
        activation=activation,
        dropout=dropout,
        inner_initializer="glorot_uniform",
        outer_initializer="glorot_uniform",
        dtype=dtype,
        name="feed_forward",
    )


def _embedding(size: int, dim: int, dtype: Any, name: str) -> keras.layers.Embedding:
    """Returns a table whose values have variance 1 / dim."""
    limit = math.sqrt(3 / dim)
    initializer = keras.initializers.RandomUniform(-limit, limit)
    return keras.layers.Embedding(size, dim, embeddings_initializer=initializer, dtype=dtype, name=name)


# === Language model ===


@keras.saving.register_keras_serializable(package="zoo")
class Reformer(WindowLanguageModel):
    """A language model for long windows.

    Every training step draws new rotations; inference uses those of `hash_seed`, so that it is deterministic, also when
    exported. Later tokens of a window can change which earlier ones meet in a chunk, where buckets hold more than a chunk;
    apart from that a position depends on those before it only.

    Args:
        vocabulary_size: int.
        num_layers: int. Number of reversible blocks.
        hidden_dim: int. Width of each of both streams.
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward networks.
        window_length: int or None. Longest sequence; the product of `axial_shape` by default.
        attention_layers: sequence of str: the attention of the first blocks, repeated for the others: `"lsh"`, `"local"`,
            `"full"`, or `"full_shared_qk"`, which is what `"lsh"` approximates.
        key_dim: int or None. Width of a head, `hidden_dim / num_heads` by default.
        chunk_length: int. Chunks of LSH attention.
        local_chunk_length: int. Chunks of local attention.
        num_rounds: int. Rounds of hashing.
        num_buckets: even int, sequence of even ints (factors), or None for twice the number of chunks.
        attend_across_buckets: bool. See `LSHAttention`, as for the next three.
        allow_duplicates: bool.
        wrap_chunks: bool.
        hash_seed: int.
        axial_shape: sequence of int or None. Positions are coordinates in an array of this shape; without it every position
            has a vector of its own.
        axial_dims: sequence of int or None. Widths of the coordinates' tables; their sum is `hidden_dim`.
        activation: str. Of the feed-forward networks: `"relu"` for text, `"gelu"` for images.
        dropout: float. Rate on embeddings, on what each part gives, inside feed-forward networks and before the logits.
        lsh_attention_dropout: float. Rate on attention weights where queries and keys are shared.
        local_attention_dropout: float. Rate on attention weights where they are not.
        feed_forward_chunks: int. Pieces of the sequence for which feed-forward networks are computed one after another.
        loss_chunks: int. Pieces of the sequence for which logits and loss are computed one after another in `fit`; the
            logits of a whole batch are then never in memory.
        epsilon: float. Of the layer normalisations.
        reversible: bool. Compute activations again in the backward pass. Without it they are kept; the numbers are the same.

    Example:
        >>> model = zoo.get("reformer")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)

    Reference:
        Kitaev et al. 2020.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        window_length: int | None = None,
        attention_layers: Sequence[str] = ("lsh",),
        key_dim: int | None = None,
        chunk_length: int = 64,
        local_chunk_length: int = 64,
        num_rounds: int = 2,
        num_buckets: int | Sequence[int] | None = None,
        attend_across_buckets: bool = False,
        allow_duplicates: bool = False,
        wrap_chunks: bool = False,
        hash_seed: int = 0,
        axial_shape: Sequence[int] | None = None,
        axial_dims: Sequence[int] | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        lsh_attention_dropout: float = 0.0,
        local_attention_dropout: float = 0.0,
        feed_forward_chunks: int = 1,
        loss_chunks: int = 1,
        epsilon: float = 1e-6,
        reversible: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = dict(vocabulary_size=vocabulary_size, num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads)
        sizes |= dict(intermediate_dim=intermediate_dim, chunk_length=chunk_length, num_rounds=num_rounds)
        sizes |= dict(
            local_chunk_length=local_chunk_length, feed_forward_chunks=feed_forward_chunks, loss_chunks=loss_chunks
        )
        for name, size in sizes.items():
            require(size >= 1, name, "at least 1", size)
        valid = key_dim is not None or hidden_dim % num_heads == 0
        require(valid, "hidden_dim", f"a multiple of num_heads={num_heads} where no key_dim is given", hidden_dim)
        valid = len(attention_layers) > 0 and set(attention_layers) <= set(ATTENTION_KINDS)
        require(valid, "attention_layers", f"one or more of {ATTENTION_KINDS}", attention_layers)
        require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)
        require(hash_seed >= 0, "hash_seed", "at least 0", hash_seed)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.window_length = _checked_window(window_length, axial_shape, axial_dims, hidden_dim)
        valid = self.window_length % loss_chunks == 0
        require(valid, "loss_chunks", f"a divisor of window_length={self.window_length}", loss_chunks)
        self.attention_layers = tuple(attention_layers)
        self.key_dim = key_dim or hidden_dim // num_heads
        self.chunk_length = chunk_length
        self.local_chunk_length = local_chunk_length
        self.num_rounds = num_rounds
        self.num_buckets = _checked_buckets(num_buckets)
        self.attend_across_buckets = attend_across_buckets
        self.allow_duplicates = allow_duplicates
        self.wrap_chunks = wrap_chunks
        self.hash_seed = hash_seed
        self.axial_shape = axial_shape and tuple(axial_shape)
        self.axial_dims = axial_dims and tuple(axial_dims)
        self.activation = activation
        self.dropout = dropout
        self.lsh_attention_dropout = lsh_attention_dropout
        self.local_attention_dropout = local_attention_dropout
        self.feed_forward_chunks = feed_forward_chunks
        self.loss_chunks = loss_chunks
        self.epsilon = epsilon
        self.reversible = reversible

        # === Layers ===
        self.embedding = _embedding(vocabulary_size, hidden_dim, self.dtype_policy, "embedding")
        table_limit = math.sqrt(3 / hidden_dim)
        self.positions = AxialPositionEmbedding(
            self.axial_shape or (self.window_length,),
            self.axial_dims or (hidden_dim,),
            None if axial_shape else keras.initializers.RandomUniform(-table_limit, table_limit),
            dtype=self.dtype_policy,
            name="positions",
        )
        self.blocks = [
            ReformerBlock(
                self._attention(index),
                intermediate_dim,
                activation,
                dropout,
                feed_forward_chunks,
                epsilon,
                dtype=self.dtype_policy,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.norm = _layer_norm(epsilon, self.dtype_policy, "norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.logits_layer = keras.layers.Dense(vocabulary_size, dtype=self.dtype_policy, name="logits")
        self.seed_generator = keras.random.SeedGenerator()

    def _attention(self, index: int) -> LSHAttention | LocalAttention:
        kind = self.attention_layers[index % len(self.attention_layers)]
        common = dict(num_heads=self.num_heads, key_dim=self.key_dim, dtype=self.dtype_policy, name="attention")
        if kind in ("local", "full"):
            chunk_length = self.local_chunk_length if kind == "local" else None
            return LocalAttention(chunk_length=chunk_length, attention_dropout=self.local_attention_dropout, **common)
        return LSHAttention(
            chunk_length=self.chunk_length if kind == "lsh" else None,
            attention_dropout=self.lsh_attention_dropout,
            num_rounds=self.num_rounds,
            num_buckets=self.num_buckets,
            attend_across_buckets=self.attend_across_buckets,
            allow_duplicates=self.allow_duplicates,
            wrap_chunks=self.wrap_chunks,
            hash_seed=self.hash_seed + index,
            **common,
        )

    def build_from_signature(self) -> Reformer:
        """Creates all variables from shapes alone: a forward pass of the longest window may take minutes."""
        if not self.built:
            self.embedding.build((None, None))
            self.positions.build()
            for block in self.blocks:
                block.build((None, self.window_length, self.hidden_dim))
            self.norm.build((None, None, 2 * self.hidden_dim))
            self.logits_layer.build((None, None, 2 * self.hidden_dim))
            self.built = True
        return self

    # === Forward pass ===

    def read(
        self,
        token_ids: Any,
        state: State | None = None,
        training: bool | None = None,
        rotations: Mapping[int, Any] | None = None,
        seed: Any = None,
    ) -> Any:
        """Reads one window, see `WindowLanguageModel.read`.

        Args:
            token_ids: int tensor `(batch, length)` of at most `window_length` tokens, their number known.
            state: dict of tensors or None. Tokens behind `"length"`, where it is there, are none.
            training: bool or None.
            rotations: mapping from layers to the rotations of their hash, see `LSHAttention.rotation_shape`, or None.
            seed: int32 tensor `(2,)` or None. What dropout and rotations of a training step are drawn with; by default a new
                one at every call.

        Returns:
            Float32 logits `(batch, length, vocabulary_size)` of the tokens that follow.
        """
        return self.logits(self.hidden(token_ids, state, training, rotations, seed))

    def hidden(
        self,
        token_ids: Any,
        state: State | None = None,
        training: bool | None = None,
        rotations: Mapping[int, Any] | None = None,
        seed: Any = None,
    ) -> Any:
        """Returns what `logits` takes, `(batch, length, 2 * hidden_dim)`; arguments as of `read`."""
        self.build_from_signature()
        length = token_ids.shape[1]
        valid = length is not None and 1 <= length <= self.window_length
        require(valid, "token_ids", f"of 1 to {self.window_length} positions, a number known", f"length={length}")
        padding_mask = None
        if state and "length" in state:
            places = ops.reshape(ops.arange(length, dtype="int32"), (1, -1))
            padding_mask = places < ops.reshape(state["length"], (-1, 1))
        embedded = self.dropout_layer(self.embedding(token_ids), training=training) + self.positions(length=length)
        stream = _stream(embedded)
        if training and seed is None:
            seed = tf.cast(self.seed_generator.next(), tf.int32)
        branches = [
            branch
            for index, block in enumerate(self.blocks)
            for branch in block.branches(padding_mask, (rotations or {}).get(index))
        ]
        first, second = self.run_stack(branches, stream, seed if training else None, bool(training))
        return self.dropout_layer(self.norm(ops.concatenate([first, second], axis=-1)), training=training)

    def run_stack(self, branches: Sequence[Branch], stream: Any, seed: Any, training: bool) -> tuple[Any, Any]:
        """Runs the branches of all blocks from two copies of the embedded tokens; returns both streams."""
        recompute = self.reversible and training
        return run_branches(branches, stream, stream, seed=seed, precise=training, recompute=recompute)

    def logits(self, hidden: Any) -> Any:
        """Returns float32 logits of what `hidden` gives."""
        return ops.cast(self.logits_layer(hidden), "float32")

    # === Training ===

    def train_step(self, data: Any) -> dict[str, Any]:
        """Updates the weights; called by `fit`. With `loss_chunks` logits and loss are computed piece by piece."""
        if self.loss_chunks == 1:
            return super().train_step(data)
        inputs, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        token_ids = inputs["token_ids"] if isinstance(inputs, Mapping) else inputs
        with tf.GradientTape() as tape:
            hidden = self.hidden(token_ids, training=True)
        loss, of_hidden, of_output = self.chunked_loss(hidden, targets, sample_weight)
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(token_ids)[0])
        below = tape.gradient(hidden, self.trainable_variables, of_hidden)
        output = {id(variable): gradient for variable, gradient in of_output}
        gradients = [output.get(id(v), found) for v, found in zip(self.trainable_variables, below, strict=True)]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.get_metrics_result()

    def chunked_loss(
        self, hidden: Any, targets: Any, sample_weight: Any = None
    ) -> tuple[Any, Any, list[tuple[keras.Variable, Any]]]:
        """Computes logits, loss, metrics and gradients for one piece of the sequence after another.

        Args:
            hidden: float tensor `(batch, length, 2 * hidden_dim)`.
            targets: int tensor `(batch, length)`.
            sample_weight: float tensor `(batch,)` or `(batch, length)`, or None.

        Returns:
            Tuple of the loss, its gradient with respect to `hidden`, and pairs of a variable of the output layer and its
            gradient; gradients are scaled as the optimiser wants them.

        Raises:
            ValueError: for a compiled loss that is no average over the batch.
        """
        reduction = getattr(self.loss, "reduction", "sum_over_batch_size")
        averages = reduction == "sum_over_batch_size"
        require(averages, "loss", "averaged over the batch where loss_chunks > 1", f"reduction={reduction!r}")
        # Metrics average over a piece: pieces of one size count alike
        length = hidden.shape[1]
        require(length % self.loss_chunks == 0, "token_ids", f"of a multiple of {self.loss_chunks} positions", length)
        variables = self.logits_layer.trainable_variables
        total, of_hidden, of_output = 0.0, [], [0.0] * len(variables)
        by_position = sample_weight is not None and len(sample_weight.shape) == 2
        pieces = chunked(hidden, self.loss_chunks)
        weights = chunked(sample_weight, self.loss_chunks) if by_position else [sample_weight] * len(pieces)
        for piece, target, weight in zip(pieces, chunked(targets, self.loss_chunks), weights, strict=True):
            with tf.control_dependencies(of_hidden[-1:]), tf.GradientTape() as tape:
                piece = tf.identity(piece)
                tape.watch(piece)
                logits = self.logits(piece)
                loss = (
                    self.compute_loss(y=target, y_pred=logits, sample_weight=weight, training=True) / self.loss_chunks
                )
                scaled = self.optimizer.scale_loss(loss)
            change, *changes = tape.gradient(scaled, [piece, *variables])
            self.compute_metrics(None, target, logits, weight)
            total = total + loss
            of_hidden.append(change)
            of_output = [a + b for a, b in zip(of_output, changes, strict=True)]
        return total, ops.concatenate(of_hidden, axis=1), list(zip(variables, of_output, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "window_length": self.window_length,
            "attention_layers": self.attention_layers,
            "key_dim": self.key_dim,
            "chunk_length": self.chunk_length,
            "local_chunk_length": self.local_chunk_length,
            "num_rounds": self.num_rounds,
            "num_buckets": self.num_buckets,
            "attend_across_buckets": self.attend_across_buckets,
            "allow_duplicates": self.allow_duplicates,
            "wrap_chunks": self.wrap_chunks,
            "hash_seed": self.hash_seed,
            "axial_shape": self.axial_shape,
            "axial_dims": self.axial_dims,
            "activation": self.activation,
            "dropout": self.dropout,
            "lsh_attention_dropout": self.lsh_attention_dropout,
            "local_attention_dropout": self.local_attention_dropout,
            "feed_forward_chunks": self.feed_forward_chunks,
            "loss_chunks": self.loss_chunks,
            "epsilon": self.epsilon,
            "reversible": self.reversible,
        }


def _stream(embedded: Any) -> Any:
    """Returns a residual stream. It keeps float32 where layers compute in less, or else it could not be reconstructed."""
    return ops.cast(embedded, keras.backend.result_type(embedded.dtype, "float32"))


def _checked_window(
    window_length: int | None, axial_shape: Sequence[int] | None, axial_dims: Sequence[int] | None, hidden_dim: int
) -> int:
    if axial_shape is None:
        require(axial_dims is None, "axial_dims", "None where there is no axial_shape", axial_dims)
        given = window_length is not None and window_length >= 1
        require(given, "window_length", "at least 1 where there is no axial_shape", window_length)
        return window_length
    positive = len(axial_shape) > 0 and min(axial_shape) >= 1
    require(positive, "axial_shape", "one or more positive sizes", axial_shape)
    fits = axial_dims is not None and len(axial_dims) == len(axial_shape) and min(axial_dims) >= 1
    fits = fits and sum(axial_dims) == hidden_dim
    require(fits, "axial_dims", f"{len(axial_shape)} positive widths with the sum hidden_dim={hidden_dim}", axial_dims)
    length = math.prod(axial_shape)
    fits = window_length in (None, length)
    require(fits, "axial_shape", f"sizes with the product window_length={window_length}", axial_shape)
    return length


# === Encoder-decoder ===


@keras.saving.register_keras_serializable(package="zoo")
class ReversibleTransformerBlock(keras.layers.Layer):
    """A block of a Transformer whose parts are branches of a reversible network.

    Args:
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward network.
        reads_memory: bool. Attend to an encoder's outputs too, between self-attention and feed-forward network.
        activation: str or callable.
        dropout: float. Rate on what each part gives, and inside the feed-forward network.
        epsilon: float. Of the layer normalisations.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        reads_memory: bool = False,
        activation: Any = "relu",
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.reads_memory = reads_memory
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.epsilon = epsilon

    def build(self, input_shape: Any) -> None:
        """Creates the weights for streams `(batch, length, dim)`."""
        names = ("self_attention", "memory_attention") if self.reads_memory else ("self_attention",)
        for name in names:
            attention = MultiHeadAttention(self.num_heads, dtype=self.dtype_policy, name=name)
            setattr(self, name, attention)
            attention.build(input_shape)
        self.feed_forward = _feed_forward(
            input_shape[-1], self.intermediate_dim, self.activation, self.dropout, self.dtype_policy
        )
        self.feed_forward.build(input_shape)
        for name in (*names, "feed_forward"):
            norm = _layer_norm(self.epsilon, self.dtype_policy, f"{name}_norm")
            setattr(self, f"{name}_norm", norm)
            norm.build(input_shape)

    def branches(self, attention_mask: Any, memory_mask: Any = None, earlier: Any = None) -> list[Branch]:
        """Returns the branches, which take an encoder's outputs as context.

        Args:
            attention_mask: bool tensor broadcastable to `(batch, heads, length, keys)`, for the self-attention.
            memory_mask: bool tensor broadcastable to `(batch, heads, length, source)`, or None.
            earlier: callable or None. Makes the keys of the self-attention of its inputs; they are its plan. By default the
                inputs themselves.
        """

        def attend_self(inputs: Any, context: Any, seed: Any, plan: Any) -> tuple[Any, Any]:
            normed = self.self_attention_norm(inputs)
            keys = normed if earlier is None else earlier(normed)
            attended = self.self_attention(normed, keys, attention_mask)
            return replayed_dropout(attended, self.dropout, seed), None if earlier is None else keys

        def attend_memory(inputs: Any, context: Any, seed: Any, plan: Any) -> tuple[Any, Any]:
            attended = self.memory_attention(self.memory_attention_norm(inputs), context, memory_mask)
            return replayed_dropout(attended, self.dropout, seed), None

        def feed(inputs: Any, context: Any, seed: Any, plan: Any) -> tuple[Any, Any]:
            return self.feed_forward(self.feed_forward_norm(inputs), seed), None

        parts = [attend_self, attend_memory, feed] if self.reads_memory else [attend_self, feed]
        return [Branch(part) for part in parts]

    def call(self, first: Any, second: Any, attention_mask: Any, context: Any = None, memory_mask: Any = None) -> Any:
        """Applies the block to both streams."""
        return run_branches(self.branches(attention_mask, memory_mask), first, second, context)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "reads_memory": self.reads_memory,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="zoo")
class ReformerEncoderDecoder(EncoderDecoder):
    """The reversible Transformer of the translation experiments: full attention, both stacks reversible.

    The streams are averaged after each stack, as in the authors' code.

    Args:
        vocabulary_size: int. Of the target.
        source_vocabulary_size: int.
        num_layers: int. Blocks of the encoder, and of the decoder.
        hidden_dim: int.
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward networks.
        target_length: int. Most tokens that can be written one by one.
        activation: str. Of the feed-forward networks.
        dropout: float. Rate on embeddings, on what each part gives, and inside feed-forward networks.
        epsilon: float. Of the layer normalisations.
        reversible: bool. Compute activations again in the backward pass.

    Reference:
        Kitaev et al. 2020, section 5, table 4.
    """

    def __init__(
        self,
        vocabulary_size: int,
        source_vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        target_length: int = 256,
        activation: str = "relu",
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        reversible: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = dict(
            vocabulary_size=vocabulary_size, source_vocabulary_size=source_vocabulary_size, num_layers=num_layers
        )
        sizes |= dict(hidden_dim=hidden_dim, num_heads=num_heads, intermediate_dim=intermediate_dim)
        for name, size in dict(**sizes, target_length=target_length).items():
            require(size >= 1, name, "at least 1", size)
        valid = hidden_dim % num_heads == 0 and hidden_dim % 2 == 0
        require(valid, "hidden_dim", f"even and a multiple of num_heads={num_heads}", hidden_dim)
        require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)
        self.vocabulary_size = vocabulary_size
        self.source_vocabulary_size = source_vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.target_length = target_length
        self.activation = activation
        self.dropout = dropout
        self.epsilon = epsilon
        self.reversible = reversible

        # === Layers ===
        dtype = self.dtype_policy
        self.source_embedding = _embedding(source_vocabulary_size, hidden_dim, dtype, "source_embedding")
        self.target_embedding = _embedding(vocabulary_size, hidden_dim, dtype, "target_embedding")
        self.encoder_blocks, self.decoder_blocks = (
            [
                ReversibleTransformerBlock(
                    num_heads,
                    intermediate_dim,
                    reads_memory,
                    activation,
                    dropout,
                    epsilon,
                    dtype=dtype,
                    name=f"{part}_{i}",
                )
                for i in range(num_layers)
            ]
            for part, reads_memory in (("encoder", False), ("decoder", True))
        )
        self.encoder_norm, self.decoder_norm = (
            _layer_norm(epsilon, dtype, name) for name in ("encoder_norm", "decoder_norm")
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=dtype)
        self.logits_layer = keras.layers.Dense(vocabulary_size, dtype=dtype, name="logits")
        self.seed_generator = keras.random.SeedGenerator()

    def build_from_signature(self) -> ReformerEncoderDecoder:
        """Creates all variables from shapes alone."""
        if not self.built:
            self.source_embedding.build((None, None))
            self.target_embedding.build((None, None))
            shape = (None, None, self.hidden_dim)
            layers = (
                *self.encoder_blocks,
                *self.decoder_blocks,
                self.encoder_norm,
                self.decoder_norm,
                self.logits_layer,
            )
            for layer in layers:
                layer.build(shape)
            self.built = True
        return self

    def encode(self, source_ids: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Reads a source, see `EncoderDecoder.encode`."""
        self.build_from_signature()
        source_mask = ops.not_equal(source_ids, PADDING_ID)
        places = ops.reshape(ops.arange(ops.shape(source_ids)[1], dtype="int32"), (1, -1))
        stream = self._embedded(self.source_embedding, source_ids, places, training)
        mask = _over_heads(source_mask)
        branches = [branch for block in self.encoder_blocks for branch in block.branches(mask)]
        first, second = run_branches(branches, stream, stream, **self._pass(training))
        return self.encoder_norm((first + second) / 2), source_mask

    def state_specs(self) -> dict[str, Spec]:
        """Returns what self-attention has read so far, of every block, and the number of tokens."""
        shape = ("batch", self.num_layers, self.target_length, self.hidden_dim)
        return {
            "decoded": Spec(shape, "float32", "Keys of every block's self-attention, oldest first, then anything."),
            "length": Spec(("batch",), "int32", "Number of tokens read.", 0, self.target_length - 1),
        }

    def decode(
        self, target_ids: Any, memory: Any, source_mask: Any, state: State | None = None, training: bool | None = None
    ) -> tuple[Any, State | None]:
        """Reads target tokens, see `EncoderDecoder.decode`; without a state there are none before them, and none after."""
        self.build_from_signature()
        memory, memory_mask = _stream(memory), _over_heads(source_mask)
        new = ops.reshape(ops.arange(ops.shape(target_ids)[1], dtype="int32"), (1, -1))
        if state is None:
            stream = self._embedded(self.target_embedding, target_ids, new, training)
            mask = _not_after(new, new)
            branches = [branch for block in self.decoder_blocks for branch in block.branches(mask, memory_mask)]
            first, second = run_branches(branches, stream, stream, memory, **self._pass(training))
            return self._logits(first, second), None
        places = new + ops.reshape(state["length"], (-1, 1))
        slots = ops.reshape(ops.arange(self.target_length, dtype="int32"), (1, -1))
        written = ops.cast(ops.equal(ops.expand_dims(slots, 2), ops.expand_dims(places, 1)), "float32")
        kept = 1 - ops.sum(written, axis=2, keepdims=True)
        mask = _not_after(slots, places)

        def appender(index: int) -> Any:
            def append(inputs: Any) -> Any:
                decoded = state["decoded"][:, index]
                return kept * decoded + ops.matmul(written, ops.cast(inputs, "float32"))

            return append

        blocks = enumerate(self.decoder_blocks)
        branches = [b for index, block in blocks for b in block.branches(mask, memory_mask, appender(index))]
        stream = self._embedded(self.target_embedding, target_ids, places, training)
        (first, second), plans = run_and_plan(branches, stream, stream, memory, self._pass(training)["seed"])
        decoded = ops.stack([plan for plan in plans if plan is not None], axis=1)
        length = ops.minimum(state["length"] + ops.shape(target_ids)[1], self.target_length)
        return self._logits(first, second), {"decoded": decoded, "length": length}

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns logits; see the class for `inputs`."""
        memory, source_mask = self.encode(inputs["source_ids"], training)
        return self.decode(inputs["target_ids"], memory, source_mask, None, training)[0]

    def generate(self, source: Any, max_new_tokens: int = 64) -> Any:
        """Writes the target of a source, see `EncoderDecoder.generate`; at most `target_length` tokens."""
        valid = 1 <= max_new_tokens <= self.target_length
        require(valid, "max_new_tokens", f"between 1 and target_length={self.target_length}", max_new_tokens)
        return super().generate(source, max_new_tokens)

    def _pass(self, training: bool | None) -> dict[str, Any]:
        seed = tf.cast(self.seed_generator.next(), tf.int32) if training and self.dropout else None
        training = bool(training)
        return {"seed": seed, "precise": training, "recompute": self.reversible and training}

    def _embedded(self, table: keras.layers.Embedding, ids: Any, places: Any, training: bool | None) -> Any:
        embedded = _stream(self.dropout_layer(table(ids), training=training))
        return embedded + ops.cast(sinusoids(ops.cast(places, "float32"), self.hidden_dim), embedded.dtype)

    def _logits(self, first: Any, second: Any) -> Any:
        return ops.cast(self.logits_layer(self.decoder_norm((first + second) / 2)), "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "source_vocabulary_size": self.source_vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "target_length": self.target_length,
            "activation": self.activation,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "reversible": self.reversible,
        }


def _over_heads(mask: Any) -> Any:
    """Makes a mask of keys `(batch, keys)` one for all heads and queries."""
    return ops.expand_dims(ops.expand_dims(mask, 1), 1)


def _not_after(keys: Any, queries: Any) -> Any:
    """Returns the mask `(batch, 1, queries, keys)` of keys up to each query, from places `(batch, ...)`."""
    return ops.expand_dims(ops.expand_dims(keys, 1) <= ops.expand_dims(queries, 2), 1)
