"""The layer of BERT: self-attention and a feed-forward network, each followed by addition and normalisation."""

from typing import Any

import keras

from zoo.arguments import require
from zoo.layers.feed_forward import FeedForward
from zoo.layers.multi_head_attention import MultiHeadAttention


@keras.saving.register_keras_serializable(package="zoo")
class TransformerEncoderLayer(keras.layers.Layer):
    """Bidirectional self-attention and feed-forward network with residuals, normalised after each addition.

    Args:
        num_heads: int. Divides the width of the inputs.
        intermediate_dim: int. Width inside the feed-forward network.
        dropout: float. Rate after attention and after the feed-forward network.
        attention_dropout: float. Rate on attention probabilities.
        activation: str or callable. Of the feed-forward network. Defaults to `"gelu"`, the exact one.
        layer_norm_epsilon: float.
        initializer_stddev: float. Kernels start from N(0, stddev^2), biases from zero.
        kernel_initializer: Keras initializer of all kernels instead.

    Reference:
        Devlin et al. 2019, section 3.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation: Any = "gelu",
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        kernel_initializer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(intermediate_dim >= 1, "intermediate_dim", "positive", intermediate_dim)
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.attention_dropout = attention_dropout
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_stddev = initializer_stddev
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.attention = self.feed_forward = None

    def share_attention(self, other: "TransformerEncoderLayer") -> None:
        """Makes a layer that is not built yet use the attention of one that is, and the normalisation after it."""
        self.attention, self.attention_norm = other.attention, other.attention_norm

    def share_feed_forward(self, other: "TransformerEncoderLayer") -> None:
        """Makes a layer that is not built yet use the feed-forward network of one that is, and its normalisation."""
        self.feed_forward, self.feed_forward_norm = other.feed_forward, other.feed_forward_norm

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs `(batch, length, hidden_dim)`, but for what is shared with another layer."""
        if self.attention is None:
            self.attention = MultiHeadAttention(
                self.num_heads,
                self.attention_dropout,
                self.kernel_initializer or keras.initializers.RandomNormal(stddev=self.initializer_stddev),
                dtype=self.dtype_policy,
                name="attention",
            )
            self.attention_norm = self._norm("attention_norm")
        if self.feed_forward is None:
            self.feed_forward_norm = self._norm("feed_forward_norm")
            self.feed_forward = FeedForward(
                input_shape[-1],
                self.intermediate_dim,
                activation=self.activation,
                initializer_stddev=self.initializer_stddev,
                inner_initializer=self.kernel_initializer and self.kernel_initializer.clone(),
                outer_initializer=self.kernel_initializer and self.kernel_initializer.clone(),
                outer_dropout=self.dropout_layer.rate,
                dtype=self.dtype_policy,
                name="feed_forward",
            )
        for layer in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            if not layer.built:
                layer.build(input_shape)

    def _norm(self, name: str) -> keras.layers.Layer:
        return keras.layers.LayerNormalization(epsilon=self.layer_norm_epsilon, dtype=self.dtype_policy, name=name)

    def call(self, inputs: Any, attention_mask: Any, training: bool | None = None) -> Any:
        """Applies the layer.

        Args:
            inputs: float tensor `(batch, length, hidden_dim)`.
            attention_mask: bool tensor broadcastable to `(batch, heads, length, length)`, true where attention is allowed;
                a row without any gets zeros from attention.
            training: bool or None.

        Returns:
            Float tensor `(batch, length, hidden_dim)`.
        """
        attended = self.attention(inputs, inputs, attention_mask, training=training)
        hidden = self.attention_norm(inputs + self.dropout_layer(attended, training=training))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden, training=training))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout_layer.rate,
            "attention_dropout": self.attention_dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_stddev": self.initializer_stddev,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
