"""Activations that Keras has no name for."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="zoo")
def gelu_tanh(x: Any) -> Any:
    """Returns 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the GELU of GPT and ALBERT; Keras's `"gelu"` is exact.

    Args:
        x: float tensor.
    """
    return keras.activations.gelu(x, approximate=True)


# Names for constructors, whose arguments are plain strings
ACTIVATIONS = {
    "gelu": keras.activations.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": keras.activations.relu,
    "silu": keras.activations.silu,
}
