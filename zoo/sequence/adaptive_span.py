"""Adaptive attention span: every head of a Transformer learns how far it looks back.

Sukhbaatar, Grave, Bojanowski, Joulin, ACL 2019, https://arxiv.org/abs/1905.07799.

A text is read window by window; each layer remembers its inputs and attends to the `max_span` positions before a token,
never to the token itself. A soft mask m of the distance, with one learned span z per head, multiplies the attention inside
its normalisation (equation 4), and a penalty on the spans keeps them short (equation 5). What no head of a layer reaches is
dropped before anything is computed from it, so that time and memory follow the learned spans, not the limit.

Where paper and released code differ, the code is followed: the mask counts distances from zero (`distance_offset=1`), so
that a head of span zero sees as many tokens as the ramp is long, and slots of an empty memory are attended to as zeros
(`mask_empty=False`). `dynamic=True` is the paper's extension: spans that depend on the token.

Here `m exp(s)` is computed as `exp(s + log m)`: the mask has no batch dimension, so that it costs one addition. All memories
are kept in one tensor, layer after layer, because `AdaptiveSpanTransformer.trim` makes them of different lengths.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.layers import FeedForward, RelativeMultiHeadAttention
from zoo.model import Spec
from zoo.ops import masked_softmax, shared_matmul, valid_slots_mask
from zoo.sequence.recurrent_language_model import RecurrentLanguageModel, State

# Keys are dropped in blocks of this many
BLOCK = 64
DYNAMIC_BIAS = -4.0


# === Spans ===


@keras.saving.register_keras_serializable(package="zoo")
class ClipToInterval(keras.constraints.Constraint):
    """Keeps a weight in [0, maximum]; the optimiser applies it after each step.

    Args:
        maximum: float.
    """

    def __init__(self, maximum: float = 1.0) -> None:
        self.maximum = maximum

    def __call__(self, weight: Any) -> Any:
        """Returns the clipped weight."""
        return ops.clip(weight, 0.0, self.maximum)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {"maximum": self.maximum}


def span_mask(distances: Any, spans: Any, ramp: int, distance_offset: int = 1) -> Any:
    """Returns m_z(x) = min(max((R + z - x) / R, 0), 1): one up to the span, then falling to zero along the ramp.

    Args:
        distances: int tensor. Steps back from query to key, at least 1.
        spans: float tensor that broadcasts with `distances`. z, in tokens.
        ramp: int. R, in tokens.
        distance_offset: int. x is the distance less this number.

    Returns:
        Float tensor of the dtype of `spans`.

    Reference:
        Sukhbaatar et al. 2019, section 2.2.
    """
    return ops.clip((ramp + spans - ops.cast(distances - distance_offset, spans.dtype)) / ramp, 0.0, 1.0)


@keras.saving.register_keras_serializable(package="zoo")
class AdaptiveSpanAttention(RelativeMultiHeadAttention):
    """Attention to the positions before a token, as far back as each head's span.

    Args:
        num_heads: int.
        head_dim: int. Width of a head.
        max_span: int. S, the span of z' = 1.
        memory_length: int. Positions that can be remembered; the spans are clipped to it.
        ramp: int. R.
        span_init: float in [0, 1]. z' of every head at the start.
        span_penalty: float. lambda; the loss of training gets lambda times the mean span of the heads.
        distance_offset: int. 1 (released code) or 0 (paper).
        dynamic: bool. Spans S sigmoid(v . x + b) of the token x instead.
        attention_dropout: float. Rate on attention probabilities.

    Reference:
        Sukhbaatar et al. 2019, sections 2.1 to 2.3.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_span: int,
        memory_length: int,
        ramp: int = 32,
        span_init: float = 0.0,
        span_penalty: float = 2e-6,
        distance_offset: int = 1,
        dynamic: bool = False,
        attention_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_heads, head_dim, position="absolute", attention_dropout=attention_dropout, **kwargs)
        self.max_span = max_span
        self.memory_length = memory_length
        self.ramp = ramp
        self.span_init = span_init
        self.span_penalty = span_penalty
        self.distance_offset = distance_offset
        self.dynamic = dynamic
        # How many keys a product has depends on the spans, and XLA compiles no such shapes
        self.supports_jit = False
        if dynamic:
            # In float32 under every policy: bfloat16 cannot tell 1000 tokens from 1002
            self.span_dense = keras.layers.Dense(
                num_heads,
                kernel_initializer=fan_in_uniform(),
                bias_initializer=keras.initializers.Constant(DYNAMIC_BIAS),
                dtype=self.variable_dtype,
                name="span",
            )

    def _initializer(self) -> keras.initializers.Initializer:
        return fan_in_uniform()

    def build(self, input_shape: Any) -> None:
        """Creates the kernels and the spans."""
        super().build(input_shape)
        if self.dynamic:
            self.span_dense.build(input_shape)
            return
        self.span = self.add_weight(
            name="span",
            shape=(self.num_heads,),
            initializer=keras.initializers.Constant(self.span_init),
            constraint=ClipToInterval(self.memory_length / self.max_span),
            autocast=False,
        )

    def call(
        self,
        inputs: Any,
        memory: Any,
        positions: Any,
        filled: Any = None,
        num_keys: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, Any]:
        """Attends from the window to the positions before each token.

        Args:
            inputs: float tensor `(batch, L, dim)`.
            memory: float tensor `(batch, M, dim)`: inputs of this layer before the window, oldest first.
            positions: float tensor `(M, head_dim)`: what stands for the distances M .. 1.
            filled: int tensor `(batch,)` or None. Memory slots that hold something; all by default.
            num_keys: int, or None for as many positions before a token as the spans need. All is never wrong.
            training: bool or None.

        Returns:
            Tuple of output `(batch, L, dim)` and attention probabilities `(batch, heads, L, num_keys + L)`.
        """
        length, slots = ops.shape(inputs)[1], memory.shape[1]
        absorb = self._is_short(inputs.shape[1], slots, inputs.shape[-1])
        spans = self.spans(inputs)
        if training and self.span_penalty:
            self.add_loss(self.span_penalty * ops.mean(spans))
        if num_keys is None:
            num_keys = self.needed_keys(spans)
        # The saving: nothing below knows of positions that no head reaches
        memory, positions = memory[:, slots - num_keys :], positions[slots - num_keys :]
        context = ops.concatenate([memory, inputs], axis=1)
        query = self._scaled(self._heads(self.query(inputs)))
        scores = (self._scores_absorbed if absorb else self._scores)(query, context, self.key)
        scores = scores + self._scores_by_distance(query, positions)
        log_mask, allowed = self._log_mask(spans, length, num_keys)
        if filled is not None:
            allowed = ops.logical_and(allowed, valid_slots_mask_with_window(filled, num_keys, length))
        masked = masked_softmax(ops.cast(scores, log_mask.dtype) + log_mask, allowed)
        probabilities = ops.cast(masked, scores.dtype)
        weights = self.dropout_layer(probabilities, training=training)
        attended = self._attend_absorbed(weights, context) if absorb else self._attend(weights, context)
        return self.output_dense(attended), probabilities

    def spans(self, inputs: Any) -> Any:
        """Returns z in tokens, `(1, heads, 1, 1)` or, if dynamic, `(batch, heads, L, 1)`."""
        if not self.dynamic:
            span = ops.reshape(ops.convert_to_tensor(self.span), (1, -1, 1, 1))
            return self.max_span * ops.clip(span, 0.0, 1.0)
        share = ops.sigmoid(self.span_dense(inputs))
        return self.max_span * ops.expand_dims(ops.transpose(share, (0, 2, 1)), -1)

    def needed_keys(self, spans: Any) -> Any:
        """Returns how many positions before a token the longest span and its ramp reach, up to a whole block more."""
        longest = ops.cast(ops.ceil(ops.max(spans)), "int32") + self.ramp
        unused = self.memory_length - ops.minimum(longest, self.memory_length)
        return self.memory_length - unused // BLOCK * BLOCK

    def constant_needed_keys(self) -> int:
        """Returns `needed_keys` for the present weights as a number, also while a graph is traced.

        Raises:
            ValueError: if a span is longer than the memory, as weights of a model with a longer one may be.
        """
        if self.dynamic:
            return self.memory_length
        with tf.init_scope():
            spans = self.spans(None)
            longest = float(ops.max(spans))
            require(longest <= self.memory_length, self.span.path, f"at most {self.memory_length} tokens", longest)
            return int(self.needed_keys(spans))

    def _scores_by_distance(self, query: Any, positions: Any) -> Any:
        """Returns q . p of every query and key, `(batch, heads, L, keys + L)`: column c of query i moves to key i + c."""
        length = ops.shape(query)[2]
        table = ops.cast(positions, query.dtype)
        # L + 1 columns of zeros, of which each row of the reshaped scores begins one further left
        table = ops.concatenate([table, ops.zeros((length + 1, self.head_dim), query.dtype)], axis=0)
        scores = shared_matmul(query, ops.transpose(table))
        batch, heads, _, columns = (ops.shape(scores)[i] for i in range(4))
        flat = ops.reshape(scores, (batch, heads, length * columns))
        kept = ops.slice(flat, (0, 0, 0), (batch, heads, length * (columns - 1)))
        return ops.reshape(kept, (batch, heads, length, columns - 1))

    def _log_mask(self, spans: Any, length: Any, num_keys: Any) -> tuple[Any, Any]:
        """Returns log m, zero where m is zero, and where m is not zero: both `(batch or 1, heads, L, num_keys + L)`."""
        queries = ops.reshape(ops.arange(length, dtype="int32"), (1, 1, -1, 1))
        keys = ops.reshape(ops.arange(num_keys + length, dtype="int32"), (1, 1, 1, -1))
        distances = num_keys + queries - keys
        mask = span_mask(distances, spans, self.ramp, self.distance_offset)
        reachable = ops.logical_and(distances >= 1, distances <= num_keys)
        allowed = ops.logical_and(reachable, mask > 0)
        return ops.log(ops.where(allowed, mask, ops.ones_like(mask))), allowed

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **keras.layers.Layer.get_config(self),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "max_span": self.max_span,
            "memory_length": self.memory_length,
            "ramp": self.ramp,
            "span_init": self.span_init,
            "span_penalty": self.span_penalty,
            "distance_offset": self.distance_offset,
            "dynamic": self.dynamic,
            "attention_dropout": self.attention_dropout,
        }


def valid_slots_mask_with_window(filled: Any, num_slots: Any, length: Any) -> Any:
    """Mask `(batch, 1, 1, num_slots + length)` of the filled slots and the whole window after them."""
    return valid_slots_mask(filled + length, num_slots + length)


def fan_in_uniform() -> keras.initializers.Initializer:
    """Returns the initialiser U(-1 / sqrt(n), 1 / sqrt(n)) of kernels with n inputs."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def bias_uniform(fan_in: int) -> keras.initializers.Initializer:
    """Returns the same distribution for a bias, whose shape does not tell the number of inputs."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class AdaptiveSpanLayer(keras.layers.Layer):
    """Adaptive-span attention and a feed-forward network, each added to its input and normalised.

    Args:
        num_heads: int.
        hidden_dim: int. Width of the residual stream.
        intermediate_dim: int. Width inside the feed-forward network.
        dropout: float. Rate on attention probabilities and inside the feed-forward network.
        attention: dict. Further arguments of `AdaptiveSpanAttention`.

    Reference:
        Sukhbaatar et al. 2019, section 2.1.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float,
        attention: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.attention = AdaptiveSpanAttention(
            num_heads,
            hidden_dim // num_heads,
            attention_dropout=dropout,
            dtype=self.dtype_policy,
            name="attention",
            **attention,
        )
        self.feed_forward = FeedForward(
            hidden_dim,
            intermediate_dim,
            dropout=dropout,
            inner_initializer=fan_in_uniform(),
            outer_initializer=fan_in_uniform(),
            inner_bias_initializer=bias_uniform(hidden_dim),
            outer_bias_initializer=bias_uniform(intermediate_dim),
            outer_dropout=0.0,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.attention_norm, self.feed_forward_norm = (
            keras.layers.LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name=name)
            for name in ("attention_norm", "feed_forward_norm")
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights for windows `(batch, length, hidden_dim)`."""
        for layer in (self.attention, self.feed_forward, self.attention_norm, self.feed_forward_norm):
            layer.build(input_shape)

    def call(self, inputs: Any, memory: Any, positions: Any, training: bool | None = None, **options: Any) -> Any:
        """Applies the layer; takes the arguments of `AdaptiveSpanAttention.call`."""
        attended, _ = self.attention(inputs, memory, positions, training=training, **options)
        hidden = self.attention_norm(inputs + attended)
        return self.feed_forward_norm(hidden + self.feed_forward(hidden, training=training))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = self.attention.get_config()
        names = ("max_span", "memory_length", "ramp", "span_init", "span_penalty", "distance_offset", "dynamic")
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout,
            "attention": {name: own[name] for name in names},
        }


@keras.saving.register_keras_serializable(package="zoo")
class AdaptiveSpanTransformer(RecurrentLanguageModel):
    """A decoder-only language model whose heads learn their attention spans.

    A model with `span_init=1` and `span_penalty=0` has fixed spans of `max_span`: the baseline. Signatures take the spans as
    constants, so that exported graphs compute only what the spans need; `trim` also shortens the memories.

    Args:
        vocabulary_size: int.
        num_layers: int.
        hidden_dim: int. Width of the residual stream.
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward networks.
        window_length: int. Tokens read at a time in training.
        max_span: int. S: positions before a token that a head of full span attends to.
        ramp: int. R: tokens along which a span's mask falls to zero.
        span_init: float in [0, 1]. Spans at the start, as a share of `max_span`; of no effect with `dynamic`.
        span_penalty: float. lambda: the loss of training, in nats per token, gets lambda times the mean span of each layer.
        distance_offset: int. 1: the nearest token is at distance 0 of the mask (released code); 0: at 1 (paper).
        dynamic: bool. Spans that depend on the token.
        mask_empty: bool. Ignore memory slots that were never filled instead of attending to zeros.
        memory_lengths: sequence of int or None. Positions each layer remembers, `max_span` by default; its spans stay below.
        dropout: float. Rate on attention probabilities and inside the feed-forward networks.

    Example:
        >>> model = zoo.get("adaptive_span")
        >>> model.attention_spans()
        >>> model.trim().export("adaptive_span.tflite", format="litert")

    Reference:
        Sukhbaatar et al. 2019, section 2.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        window_length: int = 64,
        max_span: int = 256,
        ramp: int = 32,
        span_init: float = 0.0,
        span_penalty: float = 2e-6,
        distance_offset: int = 1,
        dynamic: bool = False,
        mask_empty: bool = False,
        memory_lengths: Sequence[int] | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = dict(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            window_length=window_length,
            max_span=max_span,
        )
        for name, value in sizes.items():
            require(value >= 1, name, "at least 1", value)
        require(hidden_dim % num_heads == 0, "num_heads", f"a divisor of hidden_dim={hidden_dim}", num_heads)
        require(1 <= ramp <= max_span, "ramp", f"in [1, max_span], with max_span={max_span}", ramp)
        require(0 <= span_init <= 1, "span_init", "in [0, 1]", span_init)
        require(span_penalty >= 0, "span_penalty", "at least 0", span_penalty)
        require(distance_offset in (0, 1), "distance_offset", "0 or 1", distance_offset)
        require(0 <= dropout < 1, "dropout", "in [0, 1)", dropout)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.window_length = window_length
        self.max_span = max_span
        self.ramp = ramp
        self.span_init = span_init
        self.span_penalty = span_penalty
        self.distance_offset = distance_offset
        self.dynamic = dynamic
        self.mask_empty = mask_empty
        self.memory_lengths = self._checked_lengths(memory_lengths)
        self.dropout = dropout

        # === Layers ===
        self.embedding = keras.layers.Embedding(
            vocabulary_size,
            hidden_dim,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0),
            dtype=self.dtype_policy,
            name="embedding",
        )
        # One table of the distances, farthest first, for all heads of all layers
        self.positions = self.add_weight(
            name="positions",
            shape=(max(self.memory_lengths), hidden_dim // num_heads),
            initializer=keras.initializers.RandomNormal(stddev=1.0),
        )
        spans = dict(
            max_span=max_span,
            ramp=ramp,
            span_init=span_init,
            span_penalty=span_penalty,
            distance_offset=distance_offset,
            dynamic=dynamic,
        )
        self.transformer_layers = [
            AdaptiveSpanLayer(
                num_heads,
                hidden_dim,
                intermediate_dim,
                dropout,
                attention={**spans, "memory_length": slots},
                dtype=self.dtype_policy,
                name=f"layer_{index}",
            )
            for index, slots in enumerate(self.memory_lengths)
        ]
        self.logits_layer = keras.layers.Dense(
            vocabulary_size,
            kernel_initializer=fan_in_uniform(),
            bias_initializer=bias_uniform(hidden_dim),
            dtype=self.dtype_policy,
            name="logits",
        )

    def _checked_lengths(self, memory_lengths: Sequence[int] | None) -> tuple[int, ...]:
        if memory_lengths is None:
            return (self.max_span,) * self.num_layers
        lengths = tuple(int(length) for length in memory_lengths)
        require(len(lengths) == self.num_layers, "memory_lengths", f"{self.num_layers} numbers", list(lengths))
        fits = all(1 <= length <= self.max_span for length in lengths)
        require(fits, "memory_lengths", f"in [1, max_span], with max_span={self.max_span}", list(lengths))
        longest = self.max_span if self.dynamic else self.span_init * self.max_span
        fits = min(lengths) >= longest
        require(fits, "memory_lengths", f"no shorter than the spans, which begin with {longest}", list(lengths))
        return lengths

    # === State ===

    def state_specs(self) -> dict[str, Spec]:
        """Returns `memory` and, where empty slots are told apart, `memory_count`."""
        memory = ("batch", sum(self.memory_lengths), self.hidden_dim)
        specs = {
            "memory": Spec(memory, "float32", "Inputs each layer had for earlier tokens: layer by layer, newest last.")
        }
        if self.mask_empty:
            most = max(self.memory_lengths)
            specs["memory_count"] = Spec(("batch",), "int32", "Number of tokens remembered.", 0, most)
        return specs

    # === Forward pass ===

    def forward(
        self, token_ids: Any, state: State, training: bool | None = None, num_keys: Sequence[int] | None = None
    ) -> tuple[Any, State]:
        """Reads one window, see `RecurrentLanguageModel.forward`.

        Args:
            token_ids: int tensor `(batch, length)`.
            state: dict of tensors, as `state_specs` describes.
            training: bool or None.
            num_keys: positions before a token that each layer computes with, or None for what the spans need.
        """
        hidden = self.embedding(token_ids)
        old, new = ops.stop_gradient(state["memory"]), []
        for index, (layer, slots) in enumerate(zip(self.transformer_layers, self.memory_lengths, strict=True)):
            start = sum(self.memory_lengths[:index])
            memory = old[:, start : start + slots]
            read = ops.cast(ops.stop_gradient(hidden), memory.dtype)
            new.append(ops.concatenate([memory, read], axis=1)[:, -slots:])
            hidden = layer(
                hidden,
                memory,
                ops.convert_to_tensor(self.positions)[-slots:],
                filled=state.get("memory_count"),
                num_keys=num_keys[index] if num_keys else None,
                training=training,
            )
        state = {**state, "memory": ops.concatenate(new, axis=1)}
        if self.mask_empty:
            count = state["memory_count"] + ops.shape(token_ids)[1]
            state["memory_count"] = ops.minimum(count, max(self.memory_lengths))
        return ops.cast(self.logits_layer(hidden), "float32"), state

    # === Spans ===

    def attention_spans(self) -> np.ndarray:
        """Returns the learned span of every head in tokens, its ramp included, `(num_layers, num_heads)`.

        Raises:
            ValueError: for dynamic spans, which are no property of the model but of each token.
        """
        require(not self.dynamic, "dynamic", "False: dynamic spans depend on the text", self.dynamic)
        spans = [np.reshape(layer.attention.spans(None), -1) for layer in self.transformer_layers]
        return np.minimum(np.stack(spans) + self.ramp, self.max_span)

    def trim(self) -> "AdaptiveSpanTransformer":
        """Returns the same function with memories and position table no longer than the spans need.

        It is what to export: state between calls shrinks from `num_layers * max_span` slots to what the longest head of
        each layer reaches. Trained further, its spans cannot grow beyond these memories.

        Raises:
            ValueError: for dynamic spans, which no memory but the longest is sure to hold.
        """
        lengths = [int(np.ceil(spans.max())) for spans in self.attention_spans()]
        lengths = [min(length, slots) for length, slots in zip(lengths, self.memory_lengths, strict=True)]
        config = {**self.get_config(), "memory_lengths": lengths, "span_init": 0.0}
        trimmed = type(self).from_config(config).build_from_signature()
        for own, other in zip(self.weights, trimmed.weights, strict=True):
            other.assign(own[-other.shape[0] :])  # the table of distances keeps its near end, all else is whole
        trimmed.set_assets(self.assets)
        trimmed.metadata = self.metadata
        return trimmed

    # === Deployment ===

    def _predict(self, token_ids: Any) -> dict[str, Any]:
        return {"logits": self._step(token_ids, **self.initial_state(ops.shape(token_ids)[0]))["logits"]}

    def _step(self, token_ids: Any, **state: Any) -> dict[str, Any]:
        # Deployed weights do not change: with constant numbers of keys every shape is known before the graph runs
        num_keys = [layer.attention.constant_needed_keys() for layer in self.transformer_layers] if self.built else None
        logits, state = self.forward(token_ids, state, training=False, num_keys=num_keys)
        return {"logits": logits, **{f"{name}_out": value for name, value in state.items()}}

    # === Config ===

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
            "max_span": self.max_span,
            "ramp": self.ramp,
            "span_init": self.span_init,
            "span_penalty": self.span_penalty,
            "distance_offset": self.distance_offset,
            "dynamic": self.dynamic,
            "mask_empty": self.mask_empty,
            "memory_lengths": list(self.memory_lengths),
            "dropout": self.dropout,
        }
