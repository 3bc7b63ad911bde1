"""Lightweight and dynamic convolutions: sums over neighbours whose weights are a softmax, shared by groups of channels.

With k taps, H heads and the weights `w`, output channel c of position i is

    sum over j of  w[h(c), j] * input[i + j - left, c]

where head h owns `dim / H` channels that lie side by side. A lightweight convolution learns `w`; a dynamic one predicts it
from position i alone. Causal convolutions have `left = k - 1`, so that the last tap is the position itself; others have
`left = k // 2`. What lies outside of the sequence counts as zero and keeps its share of the softmax.

Reference: Wu, Fan, Baevski, Dauphin, Auli, ICLR 2019, sections 3 and 4.
"""

import math
from typing import Any

import keras
from keras import ops

from zoo.arguments import require

PADDINGS = ("same", "causal")


def weighted_sum(context: Any, weights: Any) -> Any:
    """Sums neighbours with weights that differ from position to position, in time linear in the length.

    The positions are cut into blocks. In a block the sum is a product with a matrix whose row i holds the weights of
    position i, moved i columns to the right: a few matrix products are faster than k passes over the sequence.

    Args:
        context: float tensor `(batch, length + k - 1, dim)`. Position i sums over its rows i to i + k - 1.
        weights: float tensor `(batch, length, heads, k)`.

    Returns:
        Float tensor `(batch, length, dim)`.
    """
    length, heads, taps = (ops.shape(weights)[axis] for axis in (1, 2, 3))
    batch, dim = ops.shape(context)[0], context.shape[-1]
    block = _block_length(taps)
    if weights.shape[1] is not None and weights.shape[1] <= block:
        block, num_blocks, windows, rows = length, 1, context, weights
    else:
        num_blocks = (length + block - 1) // block
        extra = num_blocks * block - length
        # A block sees itself and the first k - 1 rows of the next one.
        padded = ops.pad(context, ((0, 0), (0, extra + block - taps + 1), (0, 0)))
        own = ops.reshape(padded[:, :-block], (-1, block, dim))
        following = ops.reshape(padded[:, block:], (-1, block, dim))
        windows = ops.concatenate([own, following[:, : taps - 1]], axis=1)
        rows = ops.reshape(ops.pad(weights, ((0, 0), (0, extra), (0, 0), (0, 0))), (-1, block, heads, taps))
    width = block + taps - 1
    values = ops.transpose(ops.reshape(windows, (-1, width, heads, dim // heads)), (0, 2, 1, 3))
    mixed = ops.matmul(_band(ops.transpose(rows, (0, 2, 1, 3)), block, heads, taps), values)
    merged = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (batch, num_blocks * block, dim))
    return merged[:, :length]


def _block_length(taps: int) -> int:
    """Returns a power of two that holds the k - 1 rows a block sees of the next one."""
    return max(16, 1 << (max(taps - 1, 1) - 1).bit_length())


def _band(rows: Any, block: int, heads: int, taps: int) -> Any:
    """Moves row i of `(n, heads, block, taps)` i columns to the right: `(n, heads, block, block + taps - 1)`.

    Read as one line, rows that are one longer than the matrix is wide shift by one each.
    """
    width = block + taps - 1
    line = ops.reshape(ops.pad(rows, ((0, 0), (0, 0), (0, 0), (0, block))), (-1, heads, block * (width + 1)))
    return ops.reshape(line[:, :, : block * width], (-1, heads, block, width))


class _HeadConvolution1D(keras.layers.Layer):
    """What both convolutions share: arguments, padding and DropConnect."""

    def __init__(
        self,
        kernel_size: int,
        num_heads: int,
        padding: str = "same",
        weight_dropout: float = 0.0,
        weight_softmax: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(kernel_size >= 1, "kernel_size", "positive", kernel_size)
        require(num_heads >= 1, "num_heads", "positive", num_heads)
        require(padding in PADDINGS, "padding", f"one of {PADDINGS}", repr(padding))
        require(0 <= weight_dropout < 1, "weight_dropout", "in [0, 1)", weight_dropout)
        self.kernel_size = kernel_size
        self.num_heads = num_heads
        self.padding = padding
        self.weight_dropout = weight_dropout
        self.weight_softmax = weight_softmax
        self.dropout_layer = keras.layers.Dropout(weight_dropout, dtype=self.dtype_policy)

    def _check_width(self, dim: int) -> None:
        require(dim % self.num_heads == 0, "num_heads", f"a divisor of the {dim} channels", self.num_heads)

    def next_history(self, inputs: Any, history: Any) -> Any:
        """Returns the last `kernel_size - 1` inputs `(batch, kernel_size - 1, dim)`: the history of the next call.

        Args:
            inputs: float tensor `(batch, length, dim)`.
            history: float tensor `(batch, kernel_size - 1, dim)`. That of this call.
        """
        return ops.concatenate([history, inputs], axis=1)[:, ops.shape(inputs)[1] :]

    def _context(self, inputs: Any, history: Any) -> Any:
        """Returns the inputs with what lies before and after them."""
        if history is not None:
            require(self.padding == "causal", "padding", "'causal' where there is a history", repr(self.padding))
            return ops.concatenate([history, inputs], axis=1)
        before = self.kernel_size - 1 if self.padding == "causal" else self.kernel_size // 2
        return ops.pad(inputs, ((0, 0), (before, self.kernel_size - 1 - before), (0, 0)))

    def _normalize(self, weights: Any) -> Any:
        """Softmax over the taps, in float32."""
        if not self.weight_softmax:
            return weights
        return ops.cast(ops.softmax(ops.cast(weights, "float32"), axis=-1), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "num_heads": self.num_heads,
            "padding": self.padding,
            "weight_dropout": self.weight_dropout,
            "weight_softmax": self.weight_softmax,
        }


@keras.saving.register_keras_serializable(package="zoo")
class LightweightConv1D(_HeadConvolution1D):
    """A depthwise convolution whose kernel is normalised over its taps and shared by groups of channels.

    Args:
        kernel_size: int k. Number of taps.
        num_heads: int H. Groups of channels, each with a kernel of its own.
        padding: str. `"same"` or `"causal"`.
        weight_dropout: float. Rate of DropConnect: in training each normalised weight is dropped for every position of
            every sequence on its own; those left are scaled up, not normalised again.
        weight_softmax: bool. Whether the kernel is normalised.

    Input and output: float tensor `(batch, length, dim)`.

    Reference:
        Wu et al. 2019, section 3.
    """

    def build(self, input_shape: Any) -> None:
        """Creates the kernel `(heads, taps)`."""
        self._check_width(input_shape[-1])
        # Glorot's bound with a fan-in of k and a fan-out of H k, as the authors' code has it.
        bound = math.sqrt(6 / (self.kernel_size + self.num_heads * self.kernel_size))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_heads, self.kernel_size),
            initializer=keras.initializers.RandomUniform(-bound, bound),
        )

    def normalized_kernel(self) -> Any:
        """Returns the weights of the taps `(heads, taps)`, oldest first."""
        return self._normalize(ops.convert_to_tensor(self.kernel))

    def call(self, inputs: Any, history: Any = None, training: bool | None = None) -> Any:
        """Convolves.

        Args:
            inputs: float tensor `(batch, length, dim)`.
            history: float tensor `(batch, kernel_size - 1, dim)`: what lies before the inputs (causal only); zeros by
                default.
            training: bool or None.

        Returns:
            Float tensor `(batch, length, dim)`.
        """
        context, kernel = self._context(inputs, history), self.normalized_kernel()
        if training and self.weight_dropout:
            shape = (ops.shape(inputs)[0], ops.shape(inputs)[1], self.num_heads, self.kernel_size)
            kernels = ops.broadcast_to(ops.reshape(kernel, (1, 1, self.num_heads, self.kernel_size)), shape)
            return weighted_sum(context, self.dropout_layer(kernels, training=training))
        return ops.depthwise_conv(context, self._by_channel(kernel, inputs.shape[-1]), padding="valid")

    def _by_channel(self, kernel: Any, dim: int) -> Any:
        """Repeats every head's taps for its channels: `(taps, dim, 1)`."""
        repeats = dim // self.num_heads
        by_head = ops.reshape(ops.transpose(kernel), (self.kernel_size, self.num_heads, 1))
        return ops.reshape(ops.tile(by_head, (1, 1, repeats)), (self.kernel_size, dim, 1))


@keras.saving.register_keras_serializable(package="zoo")
class DynamicConv1D(_HeadConvolution1D):
    """A lightweight convolution whose kernel is predicted, at every position from its own input.

    Takes the arguments of `LightweightConv1D`. Without `weight_softmax` its training is unstable (paper, section 4).

    Input and output: float tensor `(batch, length, dim)`.

    Reference:
        Wu et al. 2019, section 4.
    """

    def build(self, input_shape: Any) -> None:
        """Creates the projection from an input to its kernel."""
        dim = input_shape[-1]
        self._check_width(dim)
        # Linear layers of the authors' code begin so unless told otherwise.
        bound = 1 / math.sqrt(dim)
        self.projection = keras.layers.Dense(
            self.num_heads * self.kernel_size,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(input_shape)

    def normalized_kernel(self, inputs: Any) -> Any:
        """Returns the weights of the taps at every position `(batch, length, heads, taps)`, oldest first."""
        shape = (ops.shape(inputs)[0], ops.shape(inputs)[1], self.num_heads, self.kernel_size)
        return self._normalize(ops.reshape(self.projection(inputs), shape))

    def call(self, inputs: Any, history: Any = None, training: bool | None = None) -> Any:
        """Convolves, see `LightweightConv1D.call`."""
        kernels = self.dropout_layer(self.normalized_kernel(inputs), training=training)
        return weighted_sum(self._context(inputs, history), kernels)


CONVOLUTIONS = {"lightweight": LightweightConv1D, "dynamic": DynamicConv1D}


@keras.saving.register_keras_serializable(package="zoo")
class ConvolutionModule(keras.layers.Layer):
    """What stands in the place of self-attention: projection, gate, convolution, projection.

    Args:
        conv_type: str. `"lightweight"` or `"dynamic"`.
        kernel_size: int.
        num_heads: int.
        padding: str. `"same"` or `"causal"`.
        glu: bool. Project to twice the width and gate one half by the other.
        input_dropout: float. Rate on the module's input.
        weight_dropout: float. See `LightweightConv1D`, also for the rest.
        weight_softmax: bool.

    Reference:
        Wu et al. 2019, section 5 and figure 2.
    """

    def __init__(
        self,
        conv_type: str,
        kernel_size: int,
        num_heads: int,
        padding: str = "same",
        glu: bool = True,
        input_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        weight_softmax: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(conv_type in CONVOLUTIONS, "conv_type", f"one of {sorted(CONVOLUTIONS)}", repr(conv_type))
        self.conv_type = conv_type
        self.kernel_size = kernel_size
        self.glu = glu
        self.input_dropout = input_dropout
        self.convolution = CONVOLUTIONS[conv_type](
            kernel_size,
            num_heads,
            padding=padding,
            weight_dropout=weight_dropout,
            weight_softmax=weight_softmax,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.dropout_layer = keras.layers.Dropout(input_dropout, dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        dim = input_shape[-1]
        self.inner = keras.layers.Dense(2 * dim if self.glu else dim, dtype=self.dtype_policy, name="inner")
        self.outer = keras.layers.Dense(dim, dtype=self.dtype_policy, name="outer")
        for layer in (self.inner, self.convolution, self.outer):
            layer.build((None, None, dim))

    def call(self, inputs: Any, padding_mask: Any = None, history: Any = None, training: bool | None = None) -> Any:
        """Applies the module.

        Args:
            inputs: float tensor `(batch, length, dim)`.
            padding_mask: bool tensor `(batch, length)`, false where there is padding, which then counts as zero.
            history: float tensor `(batch, kernel_size - 1, dim)`: earlier inputs of the convolution (causal only).
            training: bool or None.

        Returns:
            Float tensor `(batch, length, dim)`; with a `history` a tuple of it and the next history.
        """
        hidden = self.projected(inputs, training)
        if padding_mask is not None:
            hidden = hidden * ops.cast(ops.expand_dims(padding_mask, -1), hidden.dtype)
        outputs = self.outer(self.convolution(hidden, history=history, training=training))
        return outputs if history is None else (outputs, self.convolution.next_history(hidden, history))

    def projected(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the convolution's input `(batch, length, dim)`."""
        hidden = self.inner(self.dropout_layer(inputs, training=training))
        return ops.glu(hidden, axis=-1) if self.glu else hidden

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        convolution = self.convolution.get_config()
        shared = ("kernel_size", "num_heads", "padding", "weight_dropout", "weight_softmax")
        return {
            **super().get_config(),
            **{name: convolution[name] for name in shared},
            "conv_type": self.conv_type,
            "glu": self.glu,
            "input_dropout": self.input_dropout,
        }
