"""Multi-head attention over a given context, as between decoder and encoder."""

import math
from typing import Any

import keras
from keras import ops

from zoo.arguments import require
from zoo.ops import masked_softmax, merge_heads, split_heads


@keras.saving.register_keras_serializable(package="zoo")
class MultiHeadAttention(keras.layers.Layer):
    """Scaled dot-product attention in several heads.

    Beside `keras.layers.MultiHeadAttention` it exports with dynamic lengths, quantises (masked scores are small), and
    gives zeros to a query with nothing to attend to.

    Args:
        num_heads: int. Divides the width of the inputs.
        attention_dropout: float. Rate on attention probabilities.
        kernel_initializer: Keras initializer of the four projections, or its name. Glorot uniform by default.

    Reference:
        Vaswani et al. 2017, section 3.2.
    """

    def __init__(
        self,
        num_heads: int,
        attention_dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_heads >= 1, "num_heads", "positive", num_heads)
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropout_layer = keras.layers.Dropout(attention_dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the projections for inputs and context `(batch, length, dim)`."""
        dim = input_shape[-1]
        require(dim % self.num_heads == 0, "num_heads", f"a divisor of the {dim} channels", self.num_heads)
        for name in ("query", "key", "value", "outer"):
            # A clone draws anew; one instance would give all four the same kernel.
            projection = keras.layers.Dense(
                dim, kernel_initializer=self.kernel_initializer.clone(), dtype=self.dtype_policy, name=name
            )
            projection.build((None, None, dim))
            setattr(self, name, projection)

    def call(self, inputs: Any, context: Any, attention_mask: Any, training: bool | None = None) -> Any:
        """Attends.

        Args:
            inputs: float tensor `(batch, length, dim)`.
            context: float tensor `(batch, keys, dim)`.
            attention_mask: bool tensor broadcastable to `(batch, heads, length, keys)`, true where attention is allowed.
            training: bool or None.

        Returns:
            Float tensor `(batch, length, dim)`.
        """
        query, key, value = (
            split_heads(projection(values), self.num_heads)
            for projection, values in ((self.query, inputs), (self.key, context), (self.value, context))
        )
        scores = ops.matmul(query / math.sqrt(query.shape[-1]), ops.transpose(key, (0, 1, 3, 2)))
        weights = self.dropout_layer(masked_softmax(scores, attention_mask), training=training)
        return self.outer(merge_heads(ops.matmul(weights, value)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "attention_dropout": self.attention_dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
