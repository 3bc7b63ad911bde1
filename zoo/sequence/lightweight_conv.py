"""LightConv: convolutions with normalised kernels, shared by groups of channels, in the place of self-attention.

Wu, Fan, Baevski, Dauphin, Auli, ICLR 2019, https://arxiv.org/abs/1901.10430, section 3. The layer is
`zoo.layers.lightweight_convolution.LightweightConv1D`, the models are those of `zoo.sequence.convolutional_models`.
"""

import keras

from zoo.sequence.convolutional_models import ConvolutionalEncoderDecoder, ConvolutionalLanguageModel


@keras.saving.register_keras_serializable(package="zoo")
class LightweightConv(ConvolutionalLanguageModel):
    """A causal language model of lightweight convolutions. Takes the arguments of `ConvolutionalLanguageModel`.

    Example:
        >>> model = zoo.get("lightweight_conv")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)
    """

    conv_type = "lightweight"


@keras.saving.register_keras_serializable(package="zoo")
class LightweightConvEncoderDecoder(ConvolutionalEncoderDecoder):
    """An encoder-decoder of lightweight convolutions. Takes the arguments of `ConvolutionalEncoderDecoder`."""

    conv_type = "lightweight"
