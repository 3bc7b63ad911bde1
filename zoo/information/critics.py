"""Critics: layers that score pairs, f(x, y), for the bounds on mutual information.

A critic maps x `(K, x_dim)` and y `(M, y_dim)` to the scores of all pairs `(K, M)`, S[i, j] = f(x_i, y_j), or, with
`aligned=True`, to those of the pairs (x_i, y_i) alone, `(K,)`. In the matrices of `zoo.information.bounds`, x is the context
(or first view) and y the candidate (or second view). Leading axes before the last two are batches of such sets.

Reference: Poole et al. 2019, section 3 (https://arxiv.org/abs/1905.06922); Tschannen et al. 2020, section 3.2
(https://arxiv.org/abs/1907.13625).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from zoo.layers.chain import apply_chain, build_chain

CRITICS = ("bilinear", "inner", "separable", "mlp")


class Critic(keras.layers.Layer):
    """Base class: a layer of two inputs that scores their pairs."""

    def call(self, x: Any, y: Any, aligned: bool = False) -> Any:
        """Scores pairs.

        Args:
            x: float tensor `(..., K, x_dim)`.
            y: float tensor `(..., M, y_dim)`.
            aligned: bool. Whether to score only the pairs (x_i, y_i), at a K-th of the cost; M is then K.

        Returns:
            Tensor `(..., K, M)`, or `(..., K)` if aligned.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no scores.")


class EmbeddingCritic(Critic):
    """A critic that is an inner product of embeddings, `u(x)' v(y)`: all pairs cost one product of matrices.

    Subclasses implement `embed_x` and `embed_y`.
    """

    def embed_x(self, x: Any) -> Any:
        """Returns u(x), `(..., embedding_dim)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no embedding of x.")

    def embed_y(self, y: Any) -> Any:
        """Returns v(y), `(..., embedding_dim)`."""
        raise NotImplementedError(f"{type(self).__name__} defines no embedding of y.")

    def call(self, x: Any, y: Any, aligned: bool = False) -> Any:
        """Scores pairs; see `Critic`."""
        x, y = self.embed_x(x), self.embed_y(y)
        if aligned:
            return ops.sum(x * y, axis=-1)
        return ops.matmul(x, ops.swapaxes(y, -2, -1))


@keras.saving.register_keras_serializable(package="zoo")
class InnerProductCritic(EmbeddingCritic):
    """`x' y`, without weights: the encoders before it have to do all."""

    def build(self, x_shape: Sequence[int | None], y_shape: Sequence[int | None]) -> None:
        """Checks that the inputs are of one size.

        Raises:
            ValueError: if they are not.
        """
        if x_shape[-1] != y_shape[-1]:
            raise ValueError(f"`y` must have as many features as `x`, {x_shape[-1]}. Received: shape={tuple(y_shape)}")

    def embed_x(self, x: Any) -> Any:
        """Returns x."""
        return x

    def embed_y(self, y: Any) -> Any:
        """Returns y."""
        return y


@keras.saving.register_keras_serializable(package="zoo")
class BilinearCritic(EmbeddingCritic):
    """`x' W y`, a matrix without bias."""

    def build(self, x_shape: Sequence[int | None], y_shape: Sequence[int | None]) -> None:
        """Creates W, which maps y to the space of x."""
        self.projection = keras.layers.Dense(x_shape[-1], use_bias=False, dtype=self.dtype_policy, name="projection")
        self.projection.build(y_shape)

    def embed_x(self, x: Any) -> Any:
        """Returns x."""
        return x

    def embed_y(self, y: Any) -> Any:
        """Returns W y."""
        return self.projection(y)


@keras.saving.register_keras_serializable(package="zoo")
class SeparableCritic(EmbeddingCritic):
    """`g(x)' h(y)` of two networks.

    Args:
        hidden_dims: sequence of ints. Sizes of the hidden layers of each network. Defaults to `(100,)`.
        embedding_dim: int. Size of what they put out. Defaults to 100.
        activation: str or callable. Of the hidden layers. Defaults to `"relu"`.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        hidden_dims: Sequence[int] = (100,),
        embedding_dim: int = 100,
        activation: Any = "relu",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_dims = _sizes("hidden_dims", hidden_dims)
        (self.embedding_dim,) = _sizes("embedding_dim", (embedding_dim,))
        self.activation = keras.activations.get(activation)
        self.x_layers = self._network("x")
        self.y_layers = self._network("y")

    def _network(self, name: str) -> list[keras.layers.Dense]:
        hidden = _hidden_layers(self.hidden_dims, self.activation, self.dtype_policy, f"{name}_hidden")
        return [*hidden, keras.layers.Dense(self.embedding_dim, dtype=self.dtype_policy, name=f"{name}_embedding")]

    def build(self, x_shape: Sequence[int | None], y_shape: Sequence[int | None]) -> None:
        """Creates both networks."""
        build_chain(self.x_layers, x_shape)
        build_chain(self.y_layers, y_shape)

    def embed_x(self, x: Any) -> Any:
        """Returns g(x)."""
        return apply_chain(self.x_layers, x)

    def embed_y(self, y: Any) -> Any:
        """Returns h(y)."""
        return apply_chain(self.y_layers, y)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "hidden_dims": list(self.hidden_dims),
            "embedding_dim": self.embedding_dim,
            "activation": keras.activations.serialize(self.activation),
        }


@keras.saving.register_keras_serializable(package="zoo")
class ConcatenatedCritic(Critic):
    """A network on the concatenation of x and y, which puts out one number.

    The first layer is computed as the sum of a product with x and one with y, for every x and y once: what is done for all
    K M pairs begins after it. Start and number of parameters are those of a layer on the concatenation.

    Args:
        hidden_dims: sequence of ints, at least one. Sizes of the hidden layers. Defaults to `(200,)`.
        activation: str or callable. Of the hidden layers. Defaults to `"relu"`.
        **kwargs: arguments of `keras.layers.Layer`.
    """

    def __init__(self, hidden_dims: Sequence[int] = (200,), activation: Any = "relu", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_dims = _sizes("hidden_dims", hidden_dims)
        if not self.hidden_dims:
            raise ValueError(f"`hidden_dims` must hold at least one size. Received: hidden_dims={hidden_dims}")
        self.activation = keras.activations.get(activation)
        width = self.hidden_dims[0]
        self.x_projection = keras.layers.Dense(width, dtype=self.dtype_policy, name="x_projection")
        self.y_projection = keras.layers.Dense(width, use_bias=False, dtype=self.dtype_policy, name="y_projection")
        self.score_layers = [
            *_hidden_layers(self.hidden_dims[1:], self.activation, self.dtype_policy, "hidden"),
            keras.layers.Dense(1, dtype=self.dtype_policy, name="score"),
        ]

    def build(self, x_shape: Sequence[int | None], y_shape: Sequence[int | None]) -> None:
        """Creates the layers."""
        width, together = self.hidden_dims[0], x_shape[-1] + y_shape[-1]
        for layer, shape in ((self.x_projection, x_shape), (self.y_projection, y_shape)):
            # Glorot's range for a kernel of `together` rows, of which this one holds some.
            scale = (shape[-1] + width) / (together + width)
            layer.kernel_initializer = keras.initializers.VarianceScaling(scale, "fan_avg", "uniform")
            layer.build(shape)
        build_chain(self.score_layers, (*x_shape[:-1], width))

    def call(self, x: Any, y: Any, aligned: bool = False) -> Any:
        """Scores pairs; see `Critic`."""
        x, y = self.x_projection(x), self.y_projection(y)
        if not aligned:
            x, y = ops.expand_dims(x, -2), ops.expand_dims(y, -3)
        return ops.squeeze(apply_chain(self.score_layers, self.activation(x + y)), -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "hidden_dims": list(self.hidden_dims),
            "activation": keras.activations.serialize(self.activation),
        }


def make_critic(
    critic: Literal["bilinear", "inner", "separable", "mlp"],
    hidden_dims: Sequence[int] = (100,),
    embedding_dim: int = 100,
    activation: Any = "relu",
    **kwargs: Any,
) -> Critic:
    """Returns a critic by its name.

    Args:
        critic: str. `"bilinear"`, `"inner"`, `"separable"` or `"mlp"` (on the concatenation).
        hidden_dims: sequence of ints. Sizes of the hidden layers of `"separable"` and `"mlp"`.
        embedding_dim: int. Output size of the networks of `"separable"`.
        activation: str or callable. Of the hidden layers.
        **kwargs: arguments of `keras.layers.Layer`, such as `dtype`.

    Raises:
        ValueError: for an unknown name.
    """
    if critic == "bilinear":
        return BilinearCritic(**kwargs)
    if critic == "inner":
        return InnerProductCritic(**kwargs)
    if critic == "separable":
        return SeparableCritic(hidden_dims, embedding_dim, activation, **kwargs)
    if critic == "mlp":
        return ConcatenatedCritic(hidden_dims, activation, **kwargs)
    raise ValueError(f"`critic` must be one of {CRITICS}. Received: critic={critic!r}")


def _sizes(name: str, sizes: Sequence[int]) -> tuple[int, ...]:
    if any(size < 1 for size in sizes):
        raise ValueError(f"`{name}` must hold sizes of at least 1. Received: {name}={sizes}")
    return tuple(int(size) for size in sizes)


def _hidden_layers(sizes: Sequence[int], activation: Any, dtype: Any, name: str) -> list[keras.layers.Dense]:
    return [
        keras.layers.Dense(size, activation=activation, dtype=dtype, name=f"{name}_{index}")
        for index, size in enumerate(sizes)
    ]
