"""The transformer layer of the Transformer-XL family."""

from typing import Any

import keras
from keras import ops

from zoo.layers.feed_forward import FeedForward
from zoo.layers.relative_attention import RelativeMultiHeadAttention


@keras.saving.register_keras_serializable(package="zoo")
class RelativeTransformerLayer(keras.layers.Layer):
    """Relative attention and feed-forward network, each with a residual connection and layer normalisation.

    Args:
        num_heads: int.
        head_dim: int. Width of a head.
        hidden_dim: int. Width of the residual stream.
        intermediate_dim: int. Width inside the feed-forward network.
        dropout: float. Rate after attention and in the feed-forward network.
        attention_dropout: float. Rate on attention probabilities.
        position: str. `"xl"`, `"shaw"` or `"absolute"`, see `RelativeMultiHeadAttention`.
        max_distance: int. Longest learned distance (`"shaw"` only).
        pre_norm: bool. Normalise the input of each part instead of its sum with the residual.
        initializer_stddev: float. Kernels start from N(0, stddev^2).

    Reference:
        Dai et al. 2019, section 3.3, the N-layer summary.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        hidden_dim: int,
        intermediate_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        position: str = "xl",
        max_distance: int = 0,
        pre_norm: bool = False,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.pre_norm = pre_norm
        self.attention = RelativeMultiHeadAttention(
            num_heads,
            head_dim,
            position=position,
            attention_dropout=attention_dropout,
            max_distance=max_distance,
            initializer_stddev=initializer_stddev,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.feed_forward = FeedForward(
            hidden_dim,
            intermediate_dim,
            dropout=dropout,
            initializer_stddev=initializer_stddev,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=self.dtype_policy, name="attention_norm"
        )
        self.feed_forward_norm = keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=self.dtype_policy, name="feed_forward_norm"
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for windows `(batch, length, hidden_dim)`."""
        for layer in (self.attention, self.feed_forward, self.attention_norm, self.feed_forward_norm):
            layer.build(input_shape)

    def call(
        self, inputs: Any, memory: Any, mask: Any, training: bool | None = None, **positions: Any
    ) -> tuple[Any, Any]:
        """Applies the layer.

        Args:
            inputs: float tensor `(batch, L, hidden_dim)`.
            memory: float tensor `(batch, M, hidden_dim)`: earlier inputs of this layer.
            mask: bool tensor broadcastable to `(batch, heads, L, M + L)`.
            training: bool or None.
            **positions: the position arguments of `RelativeMultiHeadAttention.call`.

        Returns:
            Tuple of output `(batch, L, hidden_dim)` and attention probabilities `(batch, heads, L, M + L)`.
        """
        if self.pre_norm:
            attended, probabilities = self.attention(
                self.attention_norm(inputs), self.attention_norm(memory), mask, training=training, **positions
            )
            hidden = inputs + self.dropout_layer(attended, training=training)
            return hidden + self.feed_forward(self.feed_forward_norm(hidden), training=training), probabilities
        attended, probabilities = self.attention(inputs, memory, mask, training=training, **positions)
        hidden = self.attention_norm(inputs + self.dropout_layer(attended, training=training))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden, training=training)), probabilities

    def reconstruct(self, inputs: Any, memory: Any) -> Any:
        """Reads a memory by content alone with frozen weights, see `RelativeMultiHeadAttention.content_attention`."""
        if self.pre_norm:
            inputs, memory = (self._frozen_norm(x) for x in (inputs, memory))
        return self.attention.content_attention(inputs, memory)

    def _frozen_norm(self, x: Any) -> Any:
        mean, variance = ops.moments(x, axes=-1, keepdims=True)
        gain, bias = (ops.stop_gradient(ops.cast(w, x.dtype)) for w in self.attention_norm.weights)
        return (x - mean) * ops.rsqrt(variance + self.attention_norm.epsilon) * gain + bias

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        attention = self.attention.get_config()
        shared = ("num_heads", "head_dim", "attention_dropout", "position", "max_distance", "initializer_stddev")
        return {
            **super().get_config(),
            **{key: attention[key] for key in shared},
            "hidden_dim": self.feed_forward.hidden_dim,
            "intermediate_dim": self.feed_forward.intermediate_dim,
            "dropout": self.dropout,
            "pre_norm": self.pre_norm,
        }
