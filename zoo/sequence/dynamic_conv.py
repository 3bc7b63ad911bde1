"""DynamicConv: convolutions whose normalised kernels are predicted at every position, in the place of self-attention.

Wu, Fan, Baevski, Dauphin, Auli, ICLR 2019, https://arxiv.org/abs/1901.10430, section 4. The layer is
`zoo.layers.lightweight_convolution.DynamicConv1D`, the models are those of `zoo.sequence.convolutional_models`.
"""

import keras

from zoo.sequence.convolutional_models import ConvolutionalEncoderDecoder, ConvolutionalLanguageModel


@keras.saving.register_keras_serializable(package="zoo")
class DynamicConv(ConvolutionalLanguageModel):
    """A causal language model of dynamic convolutions. Takes the arguments of `ConvolutionalLanguageModel`.

    Example:
        >>> model = zoo.get("dynamic_conv")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)
    """

    conv_type = "dynamic"


@keras.saving.register_keras_serializable(package="zoo")
class DynamicConvEncoderDecoder(ConvolutionalEncoderDecoder):
    """An encoder-decoder of dynamic convolutions. Takes the arguments of `ConvolutionalEncoderDecoder`."""

    conv_type = "dynamic"
