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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(intermediate_dim >= 1, "intermediate_dim", "positive", intermediate_dim)
        self.intermediate_dim = intermediate_dim
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_stddev = initializer_stddev
        self.attention = MultiHeadAttention(
            num_heads,
            attention_dropout,
            keras.initializers.RandomNormal(stddev=initializer_stddev),
            dtype=self.dtype_policy,
            name="attention",
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.attention_norm, self.feed_forward_norm = (
            keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name=name)
            for name in ("attention_norm", "feed_forward_norm")
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs `(batch, length, hidden_dim)`."""
        self.feed_forward = FeedForward(
            input_shape[-1],
            self.intermediate_dim,
            activation=self.activation,
            initializer_stddev=self.initializer_stddev,
            outer_dropout=self.dropout_layer.rate,
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        for layer in (self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm):
            layer.build(input_shape)

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
            "num_heads": self.attention.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "dropout": self.dropout_layer.rate,
            "attention_dropout": self.attention.attention_dropout,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_stddev": self.initializer_stddev,
        }
