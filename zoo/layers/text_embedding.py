"""The embedding of BERT: token, segment and position, added, normalised and dropped out."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="zoo")
class TextEmbedding(keras.layers.Layer):
    """Sum of the embeddings of a token, of its segment and of its position, normalised.

    Args:
        vocabulary_size: int.
        dim: int. Width of the embeddings.
        max_sequence_length: int. Positions that are learned.
        num_segments: int. Defaults to 2.
        dropout: float. Rate after the normalisation.
        layer_norm_epsilon: float.
        initializer_stddev: float. Tables start from a truncated N(0, stddev^2).

    Reference:
        Devlin et al. 2019, figure 2.
    """

    def __init__(
        self,
        vocabulary_size: int,
        dim: int,
        max_sequence_length: int,
        num_segments: int = 2,
        dropout: float = 0.0,
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.max_sequence_length = max_sequence_length
        self.num_segments = num_segments
        self.initializer_stddev = initializer_stddev
        self.layer_norm_epsilon = layer_norm_epsilon
        self.token, self.position, self.segment = (
            keras.layers.Embedding(
                size,
                dim,
                keras.initializers.TruncatedNormal(stddev=initializer_stddev),
                dtype=self.dtype_policy,
                name=name,
            )
            for name, size in (
                ("token", vocabulary_size),
                ("position", max_sequence_length),
                ("segment", num_segments),
            )
        )
        self.norm = keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any = None) -> None:
        """Creates the tables."""
        for layer in (self.token, self.position, self.segment):
            layer.build((None, None))
        self.norm.build((None, None, self.dim))

    def call(self, token_ids: Any, segment_ids: Any = None, training: bool | None = None) -> Any:
        """Embeds.

        Args:
            token_ids: int tensor `(batch, length)` of at most `max_sequence_length` tokens.
            segment_ids: int tensor of the same shape, or None for the first segment throughout.
            training: bool or None.

        Returns:
            Float tensor `(batch, length, dim)`.

        Raises:
            ValueError: for more tokens than there are positions.
        """
        length = token_ids.shape[1]
        if length is not None and length > self.max_sequence_length:
            raise ValueError(
                f"`token_ids` may have at most {self.max_sequence_length} tokens, the positions of this model. "
                f"Received: {length}"
            )
        segments = ops.zeros_like(token_ids) if segment_ids is None else segment_ids
        hidden = self.token(token_ids) + self.segment(segments)
        hidden = hidden + self.position(ops.arange(ops.shape(token_ids)[1], dtype="int32"))
        return self.dropout_layer(self.norm(hidden), training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "dim": self.dim,
            "max_sequence_length": self.max_sequence_length,
            "num_segments": self.num_segments,
            "dropout": self.dropout_layer.rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_stddev": self.initializer_stddev,
        }
