"""What the experiments on lightweight and dynamic convolutions share: recipes, and models with other mixers of positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from zoo.experiments import language_models as lm
from zoo.experiments import translation
from zoo.layers.lightweight_convolution import ConvolutionModule
from zoo.layers.multi_head_attention import MultiHeadAttention
from zoo.sequence.convolutional_models import ConvolutionalEncoderDecoder, ConvolutionalLanguageModel
from zoo.training.recipe import Recipe

Model = ConvolutionalLanguageModel | ConvolutionalEncoderDecoder
# Of a model, a kernel size and a padding.
MixerFactory = Callable[[Model, int, str], keras.layers.Layer]

# At least twice the longest name with its end: half of the window lies on either side.
WHOLE_TEXT = 128


def recipes(method: str) -> dict[str, Recipe]:
    """Returns the recipes of either method: Austen's characters, and names of ISO standards."""
    return {
        "austen": Recipe(
            method=method,
            preset="austen",
            dataset="austen",
            epochs=12,
            steps_per_epoch=300,
            prepare=lm.prepare,
            overrides=lm.vocabulary,
            data=lm.stream_data(batch_size=16),
            compile=lm.compiler(peak=2e-3, warmup_steps=200, clip_norm=0.25, final=1e-5),
            evaluate=lm.evaluate,
            monitor="val_bits_per_character",
        ),
        "iso_names": Recipe(
            method=method,
            preset="iso_names",
            dataset="iso_names",
            epochs=20,
            steps_per_epoch=100,
            prepare=translation.prepare,
            overrides=translation.vocabulary,
            data=translation.pair_data(batch_size=64),
            compile=translation.compiler(peak=2e-3, warmup_steps=100),
            evaluate=translation.evaluate,
            monitor="val_loss",
        ),
    }


# === Mixers ===


@keras.saving.register_keras_serializable(package="zoo_experiments")
class SelfAttention(keras.layers.Layer):
    """Self-attention with the call of a `ConvolutionModule`, over as many positions as a kernel has taps.

    Args:
        kernel_size: int. Positions that a query sees.
        num_heads: int.
        padding: str. `"same"` (as many on either side) or `"causal"`.
    """

    def __init__(self, kernel_size: int, num_heads: int, padding: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_size = kernel_size
        self.padding = padding
        self.attention = MultiHeadAttention(num_heads, dtype=self.dtype_policy, name="attention")

    def build(self, input_shape: Any) -> None:
        """Creates the projections."""
        self.attention.build(input_shape)

    def call(self, inputs: Any, padding_mask: Any = None, history: Any = None, training: bool | None = None) -> Any:
        """Attends, see `ConvolutionModule.call`."""
        length = ops.shape(inputs)[1]
        before = 0 if history is None else self.kernel_size - 1
        context = inputs if history is None else ops.concatenate([history, inputs], axis=1)
        queries = ops.reshape(ops.arange(length), (1, 1, -1, 1)) + before
        keys = ops.reshape(ops.arange(length + before), (1, 1, 1, -1))
        if self.padding == "causal":
            mask = ops.logical_and(keys <= queries, keys > queries - self.kernel_size)
        else:
            mask = ops.abs(keys - queries) <= self.kernel_size // 2
        if history is not None:
            # What was never read is all zeros, which no normalised input is.
            padding_mask = ops.any(ops.not_equal(context, 0), axis=-1)
        if padding_mask is not None:
            mask = ops.logical_and(mask, ops.expand_dims(ops.expand_dims(padding_mask, 1), 1))
        outputs = self.attention(inputs, context, mask, training=training)
        return outputs if history is None else (outputs, context[:, length:])


def convolution(conv_type: str, *, share: bool = True, softmax: bool = True) -> MixerFactory:
    """Returns a factory of convolution modules.

    Args:
        conv_type: str. `"lightweight"` or `"dynamic"`.
        share: bool. One kernel for all channels of a head instead of one each.
        softmax: bool. Whether kernels are normalised.
    """

    def make(model: Model, kernel_size: int, padding: str) -> keras.layers.Layer:
        heads = model.num_heads if share else model.hidden_dim
        return ConvolutionModule(conv_type, kernel_size, heads, padding=padding, weight_softmax=softmax, name="mixer")

    return make


def attention(windowed: bool) -> MixerFactory:
    """Returns a factory of self-attention, over the taps of the convolution in its place or over the whole text."""

    def make(model: Model, kernel_size: int, padding: str) -> keras.layers.Layer:
        return SelfAttention(kernel_size if windowed else WHOLE_TEXT, model.num_heads, padding, name="mixer")

    return make


MIXERS: Mapping[str, MixerFactory] = {
    "self-attention": attention(windowed=False),
    "self-attention, windows": attention(windowed=True),
    "depthwise": convolution("lightweight", share=False, softmax=False),
    "depthwise, softmax": convolution("lightweight", share=False),
    "LightConv": convolution("lightweight"),
    "DynamicConv": convolution("dynamic"),
    "DynamicConv, no softmax": convolution("dynamic", softmax=False),
}


@functools.cache
def with_mixer(base: type[Model], arm: str) -> type[Model]:
    """Returns a class of models with the mixer of an arm."""
    return type(f"{base.__name__} of {arm}", (base,), {"make_mixer": MIXERS[arm]})


def equal_size(build: Callable[[int], keras.Model], intermediate_dim: int, parameters: int) -> keras.Model:
    """Builds a model whose feed-forward networks are as wide as makes it have a number of parameters.

    Args:
        build: callable from `intermediate_dim` to a built model.
        intermediate_dim: int. A first guess.
        parameters: int. What is wanted.
    """
    first, second = (build(width).count_params() for width in (intermediate_dim, intermediate_dim + 1))
    return build(intermediate_dim + round((parameters - first) / (second - first)))
