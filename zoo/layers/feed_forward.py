"""Position-wise feed-forward network of a transformer."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="zoo")
class FeedForward(keras.layers.Layer):
    """`W2 dropout(activation(W1 x + b1)) + b2`, then dropout.

    Args:
        hidden_dim: int. Width of input and output.
        intermediate_dim: int. Width in between.
        activation: str or callable. Defaults to `"relu"`.
        dropout: float. Rate inside and, unless `outer_dropout` says otherwise, after the network.
        initializer_stddev: float. Kernels start from N(0, stddev^2), biases from zero.
        inner_initializer: Keras initializer of W1 instead.
        outer_initializer: Keras initializer of W2 instead.
        inner_bias_initializer: Keras initializer of b1 instead.
        outer_bias_initializer: Keras initializer of b2 instead.
        outer_dropout: float or None. Rate after the network.

    Input and output: float tensor `(batch, length, hidden_dim)`.
    """

    def __init__(
        self,
        hidden_dim: int,
        intermediate_dim: int,
        activation: Any = "relu",
        dropout: float = 0.0,
        initializer_stddev: float = 0.02,
        inner_initializer: Any = None,
        outer_initializer: Any = None,
        inner_bias_initializer: Any = None,
        outer_bias_initializer: Any = None,
        outer_dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.intermediate_dim = intermediate_dim
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.initializer_stddev = initializer_stddev
        self.inner_initializer = keras.initializers.get(inner_initializer)
        self.outer_initializer = keras.initializers.get(outer_initializer)
        self.inner_bias_initializer = keras.initializers.get(inner_bias_initializer)
        self.outer_bias_initializer = keras.initializers.get(outer_bias_initializer)
        self.outer_rate = dropout if outer_dropout is None else outer_dropout
        self.supports_masking = True
        self.inner = self._dense(
            intermediate_dim, "inner", self.activation, self.inner_initializer, self.inner_bias_initializer
        )
        self.outer = self._dense(hidden_dim, "outer", None, self.outer_initializer, self.outer_bias_initializer)
        self.inner_dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.outer_dropout = keras.layers.Dropout(self.outer_rate, dtype=self.dtype_policy)

    def _dense(
        self, units: int, name: str, activation: Any, initializer: Any, bias_initializer: Any
    ) -> keras.layers.Dense:
        initializer = initializer or keras.initializers.RandomNormal(stddev=self.initializer_stddev)
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=initializer,
            bias_initializer=bias_initializer or "zeros",
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, input_shape: Any) -> None:
        """Creates the kernels."""
        self.inner.build(input_shape)
        self.outer.build((*input_shape[:-1], self.intermediate_dim))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Applies the network."""
        hidden = self.inner_dropout(self.inner(inputs), training=training)
        return self.outer_dropout(self.outer(hidden), training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "initializer_stddev": self.initializer_stddev,
            "inner_initializer": keras.initializers.serialize(self.inner_initializer),
            "outer_initializer": keras.initializers.serialize(self.outer_initializer),
            "inner_bias_initializer": keras.initializers.serialize(self.inner_bias_initializer),
            "outer_bias_initializer": keras.initializers.serialize(self.outer_bias_initializer),
            "outer_dropout": self.outer_rate,
        }
