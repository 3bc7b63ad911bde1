"""What encoders of the BERT type share below their heads: embeddings, a stack of layers, a pooler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.layers.text_embedding import TextEmbedding
from zoo.layers.transformer_encoder import TransformerEncoderLayer
from zoo.ops.activations import ACTIVATIONS


@keras.saving.register_keras_serializable(package="zoo")
class TextBackbone(keras.layers.Layer):
    """Embeds tokens, applies layers of a transformer, pools the first token.

    Args:
        vocabulary_size: int.
        num_layers: int. Steps of the stack.
        hidden_dim: int. Width of the layers.
        num_heads: int. Divides `hidden_dim`.
        intermediate_dim: int. Width inside the feed-forward networks.
        embedding_dim: int or None. Width of the embeddings; one affine map leads from there to another `hidden_dim`, the
            default.
        max_sequence_length: int. Positions that are learned. Defaults to 512.
        num_segments: int. Defaults to 2.
        dropout: float. Defaults to 0.
        attention_dropout: float. Rate on attention probabilities. Defaults to 0.
        activation: str. One of `ACTIVATIONS`. Defaults to `"gelu"`.
        layer_norm_epsilon: float.
        initializer_stddev: float. Kernels and tables start from a normal distribution cut at two of these.
        use_pooler: bool. Whether there is a pooler.
        order: sequence of int or None. Which layer, numbered from 0, each step applies; one after the other by default.
    """

    # Constructor arguments that the weights depend on
    weight_arguments: tuple[str, ...] = (
        "vocabulary_size",
        "num_layers",
        "hidden_dim",
        "num_heads",
        "intermediate_dim",
        "embedding_dim",
        "max_sequence_length",
        "num_segments",
    )

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        embedding_dim: int | None = None,
        max_sequence_length: int = 512,
        num_segments: int = 2,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation: str = "gelu",
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        use_pooler: bool = True,
        order: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        embedding_dim = hidden_dim if embedding_dim is None else embedding_dim
        sizes = dict(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            embedding_dim=embedding_dim,
            max_sequence_length=max_sequence_length,
            num_segments=num_segments,
        )
        for name, value in sizes.items():
            require(value >= 1, name, "positive", value)
        require(hidden_dim % num_heads == 0, "num_heads", f"a divisor of `hidden_dim` {hidden_dim}", num_heads)
        require(activation in ACTIVATIONS, "activation", f"one of {list(ACTIVATIONS)}", activation)
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            require(0 <= rate < 1, name, "in [0, 1)", rate)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.embedding_dim = embedding_dim
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation = activation
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_stddev = initializer_stddev
        self.use_pooler = use_pooler
        self.embedding = TextEmbedding(
            vocabulary_size,
            embedding_dim,
            max_sequence_length,
            num_segments,
            dropout,
            layer_norm_epsilon,
            initializer_stddev,
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.embedding_map = None if embedding_dim == hidden_dim else self._dense("embedding_map")
        self.pooler = self._dense("pooler", "tanh") if use_pooler else None
        self.order = list(range(num_layers) if order is None else order)
        self.encoder_layers = [self._layer(index) for index in range(max(self.order) + 1)]

    def kernel_initializer(self) -> keras.initializers.Initializer:
        """Returns a new initializer of kernels."""
        return keras.initializers.TruncatedNormal(stddev=self.initializer_stddev)

    def _dense(self, name: str, activation: str | None = None) -> keras.layers.Dense:
        return keras.layers.Dense(
            self.hidden_dim,
            activation=activation,
            kernel_initializer=self.kernel_initializer(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _layer(self, index: int) -> TransformerEncoderLayer:
        return TransformerEncoderLayer(
            self.num_heads,
            self.intermediate_dim,
            self.dropout,
            self.attention_dropout,
            ACTIVATIONS[self.activation],
            self.layer_norm_epsilon,
            kernel_initializer=self.kernel_initializer(),
            dtype=self.dtype_policy,
            name=f"layer_{index}",
        )

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables, from sizes alone."""
        self.embedding.build()
        if self.embedding_map is not None:
            self.embedding_map.build((None, None, self.embedding_dim))
        for index, layer in enumerate(self.encoder_layers):
            self.share_parts(index)
            layer.build((None, None, self.hidden_dim))
        if self.pooler is not None:
            self.pooler.build((None, self.hidden_dim))

    def share_parts(self, index: int) -> None:
        """Lets a layer that is about to be built use parts of earlier ones."""

    def hidden_states(self, inputs: Any, training: bool | None = None) -> list[Any]:
        """Returns what goes into the first layer and what comes out of each one applied, `(batch, length, hidden_dim)`.

        Args:
            inputs: see `call`.
            training: bool or None.

        Raises:
            ValueError: see `call`.
        """
        _check_shapes(inputs)
        token_ids, mask = inputs["token_ids"], inputs.get("padding_mask")
        hidden = self.embedding(token_ids, inputs.get("segment_ids"), training=training)
        if self.embedding_map is not None:
            hidden = self.embedding_map(hidden)
        mask = ops.ones_like(token_ids) if mask is None else mask
        attention_mask = ops.reshape(mask, (-1, 1, 1, ops.shape(token_ids)[1])) > 0
        states = [hidden]
        for index in self.order:
            states.append(self.encoder_layers[index](states[-1], attention_mask, training=training))
        return states

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Encodes.

        Args:
            inputs: dict of int tensors `(batch, length)`: `token_ids`; `padding_mask`, 1 at tokens and 0 at padding, all 1
                by default; `segment_ids`, all 0 by default.
            training: bool or None.

        Returns:
            Dict of `sequence_output` `(batch, length, hidden_dim)` and, with a pooler, `pooled_output` `(batch,
            hidden_dim)`.

        Raises:
            ValueError: for inputs of several shapes, and for more tokens than there are positions.
        """
        hidden = self.hidden_states(inputs, training)[-1]
        outputs = {"sequence_output": hidden}
        if self.pooler is not None:
            outputs["pooled_output"] = self.pooler(ops.reshape(hidden[:, :1], (-1, self.hidden_dim)))
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "embedding_dim": self.embedding_dim,
            "max_sequence_length": self.max_sequence_length,
            "num_segments": self.num_segments,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_stddev": self.initializer_stddev,
            "use_pooler": self.use_pooler,
            "order": self.order,
        }


def _check_shapes(inputs: Any) -> None:
    """Refuses what would be reshaped or broadcast without a word; sizes that are not known yet pass."""
    shape = tf.TensorShape(inputs["token_ids"].shape)
    for name in ("padding_mask", "segment_ids"):
        if inputs.get(name) is not None:
            found = tf.TensorShape(inputs[name].shape)
            require(shape.is_compatible_with(found), name, f"of the shape of `token_ids`, {shape}", f"shape={found}")
