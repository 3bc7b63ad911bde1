"""Transformer-XL: attentive language models beyond a fixed-length context.

Dai, Yang, Yang, Carbonell, Le, Salakhutdinov, ACL 2019, https://arxiv.org/abs/1901.02860.

A text is read window by window. Each layer keeps the inputs it had in earlier windows and attends to them without
sending gradients there (segment-level recurrence); positions enter only as the distance between query and key, so that
what is remembered stays valid (the four-term relative attention of `RelativeMultiHeadAttention`).

The memory here is a queue of fixed length, newest slot last, with a count of the slots that are filled; empty slots are
masked. The authors' PyTorch code starts with an empty memory, which is the same function; their TensorFlow code attends
to zeros, which `mask_empty=False` gives. State is batch-first, as Keras and `tf.data` have it. Layer normalisation gains
start from one (the authors' TensorFlow code; their PyTorch code draws them around one).
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from zoo.layers import AdaptiveEmbedding, AdaptiveLogSoftmax, RelativeTransformerLayer
from zoo.model import Spec
from zoo.ops import causal_memory_mask, sinusoid_positions, valid_slots_mask
from zoo.sequence.recurrent_language_model import RecurrentLanguageModel, State


@keras.saving.register_keras_serializable(package="zoo")
class TransformerXL(RecurrentLanguageModel):
    """A decoder-only language model with segment-level recurrence and relative attention.

    Args:
        vocabulary_size: int.
        num_layers: int.
        hidden_dim: int. Width of the residual stream.
        num_heads: int.
        intermediate_dim: int. Width inside the feed-forward networks.
        head_dim: int or None. Width of a head, `hidden_dim // num_heads` by default.
        window_length: int. Tokens read at a time in training.
        memory_length: int. Slots of memory; 0 disables recurrence. No weight depends on it.
        dropout: float.
        attention_dropout: float. Rate on attention probabilities.
        position: str. `"xl"`, `"shaw"` (learned distances) or `"absolute"` (sinusoids of the place in the window, added
            to the embeddings).
        max_distance: int or None. Longest learned distance, which larger ones share (`"shaw"` only); what a window with
            its memory spans by default.
        untie_biases: bool. One pair of attention biases per layer instead of one for all.
        pre_norm: bool. Normalise before each part instead of after.
        clamp_length: int. Larger distances count as this one, where it is positive.
        same_length: bool. Every query sees the same number of keys (for evaluation).
        mask_empty: bool. Ignore memory slots that were never filled.
        cutoffs: sequence of int. Bins of the adaptive embedding and softmax; none by default.
        cutoff_divisor: int. Ratio of the embedding widths of neighbouring bins.
        tie_projections: bool. Whether the softmax uses the embedding's projections of all bins but the first.
        project_first_bin: bool. Whether the first bin is projected too, though it is as wide as the model.
        initializer_stddev: float.

    Example:
        >>> model = zoo.get("transformer_xl")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)

    Reference:
        Dai et al. 2019, section 3.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        head_dim: int | None = None,
        window_length: int = 64,
        memory_length: int = 64,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        position: str = "xl",
        max_distance: int | None = None,
        untie_biases: bool = False,
        pre_norm: bool = False,
        clamp_length: int = -1,
        same_length: bool = False,
        mask_empty: bool = True,
        cutoffs: Sequence[int] = (),
        cutoff_divisor: int = 1,
        tie_projections: bool = True,
        project_first_bin: bool = True,
        initializer_stddev: float = 0.02,
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
        )
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"`{name}` must be positive. Received: {name}={value}")
        if memory_length < 0:
            raise ValueError(f"`memory_length` must not be negative. Received: memory_length={memory_length}")
        if head_dim is None and hidden_dim % num_heads:
            raise ValueError(
                f"`num_heads` must divide `hidden_dim` unless `head_dim` is given. Received: {hidden_dim=}, {num_heads=}"
            )
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.head_dim = head_dim or hidden_dim // num_heads
        self.window_length = window_length
        self.memory_length = memory_length
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.position = position
        self.max_distance = self._span if max_distance is None else max_distance
        self.untie_biases = untie_biases
        self.pre_norm = pre_norm
        self.clamp_length = clamp_length
        self.same_length = same_length
        self.mask_empty = mask_empty
        self.cutoffs = tuple(cutoffs)
        self.cutoff_divisor = cutoff_divisor
        self.tie_projections = tie_projections
        self.project_first_bin = project_first_bin
        self.initializer_stddev = initializer_stddev

        # === Layers ===
        self.embedding = AdaptiveEmbedding(
            vocabulary_size,
            hidden_dim,
            cutoffs=self.cutoffs,
            divisor=cutoff_divisor,
            initializer_stddev=initializer_stddev,
            project_first_bin=project_first_bin,
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.logits_layer = AdaptiveLogSoftmax(self.embedding, tie_projections, dtype=self.dtype_policy, name="logits")
        self.transformer_layers = [
            RelativeTransformerLayer(
                num_heads,
                self.head_dim,
                hidden_dim,
                intermediate_dim,
                dropout=dropout,
                attention_dropout=attention_dropout,
                position=position,
                max_distance=self.max_distance,
                pre_norm=pre_norm,
                initializer_stddev=initializer_stddev,
                dtype=self.dtype_policy,
                name=f"layer_{index}",
            )
            for index in range(num_layers)
        ]
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self._add_biases()

    @property
    def _span(self) -> int:
        """Largest distance between a query and a key."""
        return self.window_length + self.memory_length - 1

    def _add_biases(self) -> None:
        """Creates u and w, `(1 or num_layers, num_heads, head_dim)`."""
        self.attention_biases = []
        if self.position != "xl":
            return
        for name in ("content_bias", "position_bias"):
            bias = self.add_weight(
                name=name,
                shape=(self.num_layers if self.untie_biases else 1, self.num_heads, self.head_dim),
                initializer=keras.initializers.RandomNormal(stddev=self.initializer_stddev),
            )
            self.attention_biases.append(bias)

    # === State ===

    def state_specs(self) -> dict[str, Spec]:
        """Returns `memory` and `memory_count`."""
        slots = ("batch", self.num_layers, self.memory_length, self.hidden_dim)
        return {
            "memory": Spec(slots, "float32", "Inputs each layer had for earlier tokens, newest last."),
            "memory_count": Spec(("batch",), "int32", "Number of filled memory slots.", 0, self.memory_length),
        }

    # === Forward pass ===

    def forward(self, token_ids: Any, state: State, training: bool | None = None) -> tuple[Any, State]:
        """Reads one window, see `RecurrentLanguageModel.forward`."""
        hidden = self.embed(token_ids, training)
        mask = self._mask(ops.shape(token_ids)[1], state["memory_count"])
        encodings = self._encodings(self.memory_length + ops.shape(token_ids)[1], training)
        memory = ops.stop_gradient(state["memory"])
        states = []
        for index, layer in enumerate(self.transformer_layers):
            states.append(hidden)
            positions = {"positions": encodings, **self._biases(index)}
            hidden, _ = layer(hidden, memory[:, index], mask, training=training, **positions)
        return self.to_logits(hidden, training), self._remember(state, states)

    def embed(self, token_ids: Any, training: bool | None = None) -> Any:
        """Returns embeddings `(batch, length, hidden_dim)`, scaled by the root of the width."""
        hidden = self.embedding(token_ids) * self.hidden_dim**0.5
        if self.position == "absolute":
            places = ops.flip(self._sinusoids(ops.shape(token_ids)[1]), axis=0)
            hidden = hidden + ops.cast(places, hidden.dtype)
        return self.dropout_layer(hidden, training=training)

    def to_logits(self, hidden: Any, training: bool | None = None) -> Any:
        """Returns float32 logits `(batch, length, vocabulary_size)`."""
        return ops.cast(self.logits_layer(self.dropout_layer(hidden, training=training)), "float32")

    def _mask(self, length: Any, memory_count: Any) -> Any:
        causal = causal_memory_mask(length, self.memory_length, self.same_length)
        if not self.mask_empty or not self.memory_length:
            return causal
        filled = valid_slots_mask(memory_count, self.memory_length)
        window = ops.ones((1, 1, 1, length), "bool")
        filled = ops.concatenate([filled, ops.broadcast_to(window, (ops.shape(filled)[0], 1, 1, length))], axis=-1)
        return ops.logical_and(causal, filled)

    def _encodings(self, num_keys: Any, training: bool | None) -> Any:
        if self.position != "xl":
            return None
        return self.dropout_layer(self._sinusoids(num_keys), training=training)

    def _sinusoids(self, num_positions: Any) -> Any:
        return sinusoid_positions(num_positions, self.hidden_dim, self.clamp_length)

    def _biases(self, index: int) -> dict[str, Any]:
        if not self.attention_biases:
            return {}
        content, position = (bias[index if self.untie_biases else 0] for bias in self.attention_biases)
        return {"content_bias": content, "position_bias": position}

    def _remember(self, state: State, states: list[Any]) -> State:
        """Appends the layers' inputs to the memory and drops the oldest slots."""
        if not self.memory_length:
            return state
        new = ops.cast(ops.stop_gradient(ops.stack(states, axis=1)), "float32")
        memory = ops.concatenate([state["memory"], new], axis=2)[:, :, -self.memory_length :]
        count = ops.minimum(state["memory_count"] + ops.shape(new)[2], self.memory_length)
        return {"memory": memory, "memory_count": count}

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
            "head_dim": self.head_dim,
            "window_length": self.window_length,
            "memory_length": self.memory_length,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "position": self.position,
            "max_distance": self.max_distance,
            "untie_biases": self.untie_biases,
            "pre_norm": self.pre_norm,
            "clamp_length": self.clamp_length,
            "same_length": self.same_length,
            "mask_empty": self.mask_empty,
            "cutoffs": list(self.cutoffs),
            "cutoff_divisor": self.cutoff_divisor,
            "tie_projections": self.tie_projections,
            "project_first_bin": self.project_first_bin,
            "initializer_stddev": self.initializer_stddev,
        }
