"""Models whose layers sum over neighbours where a Transformer has self-attention.

Wu, Fan, Baevski, Dauphin, Auli, "Pay Less Attention with Lightweight and Dynamic Convolutions", ICLR 2019,
https://arxiv.org/abs/1901.10430.

The convolutions are in `zoo.layers.lightweight_convolution`; which of the two a model has is said by its class. What a
decoder carries from token to token is the last k - 1 inputs of every convolution, however long the text is.

The language model normalises before each part and not after the last, as the authors' code does. It has no positions: a
stream has no end, and taps are ordered by themselves. The authors' sinusoids of the encoder-decoder differ in the step
between frequencies only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from zoo.arguments import require
from zoo.layers import AdaptiveEmbedding, AdaptiveLogSoftmax, FeedForward
from zoo.layers.lightweight_convolution import ConvolutionModule
from zoo.layers.multi_head_attention import MultiHeadAttention
from zoo.model import Spec
from zoo.ops import sinusoids
from zoo.sequence.encoder_decoder import MAXIMUM_LENGTH, PADDING_ID, EncoderDecoder
from zoo.sequence.recurrent_language_model import RecurrentLanguageModel, State


@keras.saving.register_keras_serializable(package="zoo")
class PaddedNormal(keras.initializers.RandomNormal):
    """N(0, stddev^2), and zeros in the row of padding."""

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Draws a table `(rows, width)`."""
        values = super().__call__(shape, dtype)
        real = ops.reshape(ops.arange(shape[0]) != PADDING_ID, (-1, 1))
        return values * ops.cast(real, values.dtype)


# === A layer and a stack of layers ===


@keras.saving.register_keras_serializable(package="zoo")
class ConvolutionalLayer(keras.layers.Layer):
    """A layer of a Transformer around any module that mixes positions.

    Mixer, attention to an encoder's memory where asked for, and feed-forward network; each has a residual connection and
    a layer normalisation.

    Args:
        mixer: layer with the call of `ConvolutionModule` and its `kernel_size`.
        intermediate_dim: int. Width inside the feed-forward network.
        cross_attention_heads: int or None. Heads of the attention to a memory; no attention by default.
        dropout: float. Rate on what each part gives.
        attention_dropout: float. Rate on attention probabilities.
        pre_norm: bool. Normalise the input of each part instead of its sum with the residual.

    Reference:
        Wu et al. 2019, figure 2 and section 5.
    """

    def __init__(
        self,
        mixer: keras.layers.Layer,
        intermediate_dim: int,
        cross_attention_heads: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        pre_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mixer = mixer
        self.intermediate_dim = intermediate_dim
        self.cross_attention_heads = cross_attention_heads
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.pre_norm = pre_norm
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.mixer_norm = self._norm("mixer_norm")
        self.feed_forward_norm = self._norm("feed_forward_norm")
        self.cross_attention = None
        if cross_attention_heads:
            self.cross_attention = MultiHeadAttention(
                cross_attention_heads, attention_dropout, dtype=self.dtype_policy, name="cross_attention"
            )
            self.cross_attention_norm = self._norm("cross_attention_norm")

    def _norm(self, name: str) -> keras.layers.Layer:
        return keras.layers.LayerNormalization(epsilon=1e-5, dtype=self.dtype_policy, name=name)

    def build(self, input_shape: Any) -> None:
        """Creates the weights for inputs `(batch, length, dim)`."""
        self.feed_forward = FeedForward(
            input_shape[-1],
            self.intermediate_dim,
            inner_initializer="glorot_uniform",
            outer_initializer="glorot_uniform",
            dtype=self.dtype_policy,
            name="feed_forward",
        )
        parts = [self.mixer, self.mixer_norm, self.feed_forward, self.feed_forward_norm]
        if self.cross_attention is not None:
            parts += [self.cross_attention, self.cross_attention_norm]
        for part in parts:
            part.build((None, None, input_shape[-1]))

    def call(
        self,
        inputs: Any,
        padding_mask: Any = None,
        history: Any = None,
        memory: Any = None,
        memory_mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Applies the layer.

        Args:
            inputs: float tensor `(batch, length, dim)`.
            padding_mask: bool tensor `(batch, length)`, false at padding.
            history: float tensor `(batch, kernel_size - 1, dim)`: what earlier inputs left in the mixer.
            memory: float tensor `(batch, source, dim)`.
            memory_mask: bool tensor `(batch, 1, 1, source)`.
            training: bool or None.

        Returns:
            Float tensor `(batch, length, dim)`; with a `history` a tuple of it and the next history.
        """
        mixed = self.mixer(
            self._before(self.mixer_norm, inputs), padding_mask=padding_mask, history=history, training=training
        )
        mixed, next_history = (mixed, None) if history is None else mixed
        hidden = self._after(self.mixer_norm, inputs, mixed, training)
        if self.cross_attention is not None:
            query = self._before(self.cross_attention_norm, hidden)
            attended = self.cross_attention(query, memory, memory_mask, training=training)
            hidden = self._after(self.cross_attention_norm, hidden, attended, training)
        fed = self.feed_forward(self._before(self.feed_forward_norm, hidden), training=training)
        hidden = self._after(self.feed_forward_norm, hidden, fed, training)
        return hidden if history is None else (hidden, next_history)

    def _before(self, norm: keras.layers.Layer, inputs: Any) -> Any:
        return norm(inputs) if self.pre_norm else inputs

    def _after(self, norm: keras.layers.Layer, inputs: Any, outputs: Any, training: bool | None) -> Any:
        total = inputs + self.dropout_layer(outputs, training=training)
        return total if self.pre_norm else norm(total)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "mixer": keras.saving.serialize_keras_object(self.mixer),
            "intermediate_dim": self.intermediate_dim,
            "cross_attention_heads": self.cross_attention_heads,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "pre_norm": self.pre_norm,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ConvolutionalLayer":
        """Rebuilds the layer, its mixer included."""
        return cls(**{**config, "mixer": keras.saving.deserialize_keras_object(config["mixer"])})


def layer_kernel_sizes(kernel_sizes: Sequence[int], num_layers: int) -> list[int]:
    """Returns the kernel size of every layer: the last one given is that of all further layers."""
    return [kernel_sizes[min(index, len(kernel_sizes) - 1)] for index in range(num_layers)]


def history_spec(layers: Iterable[ConvolutionalLayer], hidden_dim: int) -> Spec:
    """Returns the spec of what a stack of causal layers carries: the last k - 1 inputs of every convolution."""
    rows = sum(layer.mixer.kernel_size - 1 for layer in layers)
    return Spec(("batch", rows, hidden_dim), "float32", "Last inputs of each layer's convolution, layer after layer.")


def read_causally(
    layers: Iterable[ConvolutionalLayer], hidden: Any, history: Any, training: bool | None = None, **memory: Any
) -> tuple[Any, Any]:
    """Applies a stack of causal layers.

    Args:
        layers: iterable of `ConvolutionalLayer`.
        hidden: float tensor `(batch, length, dim)`.
        history: float tensor as `history_spec` describes.
        training: bool or None.
        **memory: `memory` and `memory_mask` of the layers.

    Returns:
        Tuple of the last layer's output `(batch, length, dim)` and the next history.
    """
    start, histories = 0, []
    for layer in layers:
        stop = start + layer.mixer.kernel_size - 1
        own = ops.cast(history[:, start:stop], hidden.dtype)
        hidden, own = layer(hidden, history=own, training=training, **memory)
        histories.append(own)
        start = stop
    return hidden, ops.cast(ops.concatenate(histories, axis=1), "float32")


class _Convolutional:
    """Arguments that both models share, and the layers they make."""

    conv_type: str
    pre_norm: bool

    def _keep(self, **arguments: Any) -> None:
        """Checks and keeps the arguments that both models have."""
        for name in ("vocabulary_size", "hidden_dim", "num_heads", "intermediate_dim"):
            require(arguments[name] >= 1, name, "positive", arguments[name])
        sizes = tuple(arguments["kernel_sizes"])
        require(
            len(sizes) > 0 and min(sizes, default=0) >= 2, "kernel_sizes", "of one size or more, each at least 2", sizes
        )
        width, heads = arguments["hidden_dim"], arguments["num_heads"]
        require(width % heads == 0, "num_heads", f"a divisor of hidden_dim={width}", heads)
        self._shared = tuple(arguments)
        for name, value in {**arguments, "kernel_sizes": sizes}.items():
            setattr(self, name, value)

    def _kept(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self._shared}, "kernel_sizes": list(self.kernel_sizes)}

    def make_mixer(self, kernel_size: int, padding: str) -> keras.layers.Layer:
        """Returns the module that mixes the positions of one layer."""
        return ConvolutionModule(
            self.conv_type,
            kernel_size,
            self.num_heads,
            padding=padding,
            glu=self.glu,
            input_dropout=self.input_dropout,
            weight_dropout=self.weight_dropout,
            weight_softmax=self.weight_softmax,
            dtype=self.dtype_policy,
            name="mixer",
        )

    def _make_layers(self, name: str, num_layers: int, padding: str, **arguments: Any) -> list[ConvolutionalLayer]:
        return [
            ConvolutionalLayer(
                self.make_mixer(kernel_size, padding),
                self.intermediate_dim,
                dropout=self.dropout,
                pre_norm=self.pre_norm,
                dtype=self.dtype_policy,
                name=f"{name}_{index}",
                **arguments,
            )
            for index, kernel_size in enumerate(layer_kernel_sizes(self.kernel_sizes, num_layers))
        ]


# === Language model ===


class ConvolutionalLanguageModel(_Convolutional, RecurrentLanguageModel):
    """A causal language model of lightweight or dynamic convolutions; a subclass sets `conv_type`.

    Args:
        vocabulary_size: int.
        num_layers: int.
        hidden_dim: int. Width of the residual stream.
        num_heads: int. Groups of channels with kernels of their own.
        intermediate_dim: int. Width inside the feed-forward networks.
        kernel_sizes: sequence of int, each at least 2. Taps by layer; the last one is that of all further layers.
        window_length: int. Tokens read at a time in training; no weight depends on it.
        glu: bool. Gate the projections before the convolutions.
        weight_softmax: bool. Normalise the kernels.
        dropout: float. Rate on embeddings and on what each part of a layer gives.
        weight_dropout: float. Rate of DropConnect on normalised kernels.
        input_dropout: float. Rate on the convolution modules' inputs.
        cutoffs: sequence of int. Bins of the adaptive embedding and softmax; none by default.
        cutoff_divisor: int. Ratio of the embedding widths of neighbouring bins.

    Reference:
        Wu et al. 2019, sections 3 to 5 and 6.3.
    """

    pre_norm = True

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        kernel_sizes: Sequence[int] = (3, 7, 15, 31),
        window_length: int = 64,
        glu: bool = True,
        weight_softmax: bool = True,
        dropout: float = 0.0,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        cutoffs: Sequence[int] = (),
        cutoff_divisor: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_layers >= 1, "num_layers", "positive", num_layers)
        require(window_length >= 1, "window_length", "positive", window_length)
        self._keep(
            vocabulary_size=vocabulary_size, hidden_dim=hidden_dim, num_heads=num_heads,
            intermediate_dim=intermediate_dim, kernel_sizes=kernel_sizes, glu=glu, weight_softmax=weight_softmax,
            dropout=dropout, weight_dropout=weight_dropout, input_dropout=input_dropout,
        )  # fmt: skip
        self.num_layers = num_layers
        self.window_length = window_length
        self.cutoffs = tuple(cutoffs)
        self.cutoff_divisor = cutoff_divisor

        self.embedding = AdaptiveEmbedding(
            vocabulary_size,
            hidden_dim,
            cutoffs=self.cutoffs,
            divisor=cutoff_divisor,
            initializer_stddev=hidden_dim**-0.5,
            dtype=self.dtype_policy,
            name="embedding",
        )
        self.logits_layer = AdaptiveLogSoftmax(self.embedding, dtype=self.dtype_policy, name="logits")
        self.convolutional_layers = self._make_layers("layer", num_layers, "causal")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def state_specs(self) -> dict[str, Spec]:
        """Returns `history`."""
        return {"history": history_spec(self.convolutional_layers, self.hidden_dim)}

    def forward(self, token_ids: Any, state: State, training: bool | None = None) -> tuple[Any, State]:
        """Reads one window, see `RecurrentLanguageModel.forward`."""
        hidden = self.dropout_layer(self.embedding(token_ids) * self.hidden_dim**0.5, training=training)
        hidden, history = read_causally(self.convolutional_layers, hidden, state["history"], training)
        return ops.cast(self.logits_layer(hidden), "float32"), {"history": history}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            **self._kept(),
            "num_layers": self.num_layers,
            "window_length": self.window_length,
            "cutoffs": list(self.cutoffs),
            "cutoff_divisor": self.cutoff_divisor,
        }


# === Encoder-decoder ===


class ConvolutionalEncoderDecoder(_Convolutional, EncoderDecoder):
    """An encoder-decoder of lightweight or dynamic convolutions; a subclass sets `conv_type`.

    The decoder attends to the encoder, as a Transformer's does; only self-attention is replaced.

    Args:
        vocabulary_size: int. Of the target, or of both languages.
        num_encoder_layers: int.
        num_decoder_layers: int. The paper has one less than in the encoder.
        hidden_dim: int. Width of the residual stream.
        num_heads: int. Groups of channels with kernels of their own, and heads of the attention to the encoder.
        intermediate_dim: int. Width inside the feed-forward networks.
        source_vocabulary_size: int or None. By default source, target and output share one table of embeddings;
            otherwise each has its own.
        kernel_sizes: sequence of int, each at least 2. Taps by layer, of encoder and decoder; the last one is that of all
            further layers.
        glu: bool. Gate the projections before the convolutions.
        weight_softmax: bool. Normalise the kernels.
        dropout: float. Rate on embeddings and on what each part of a layer gives.
        attention_dropout: float. Rate on attention probabilities.
        weight_dropout: float. Rate of DropConnect on normalised kernels.
        input_dropout: float. Rate on the convolution modules' inputs.

    Reference:
        Wu et al. 2019, sections 3 to 5.
    """

    pre_norm = False

    def __init__(
        self,
        vocabulary_size: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        source_vocabulary_size: int | None = None,
        kernel_sizes: Sequence[int] = (3, 7, 15, 31),
        glu: bool = True,
        weight_softmax: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        input_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_encoder_layers >= 1, "num_encoder_layers", "positive", num_encoder_layers)
        require(num_decoder_layers >= 1, "num_decoder_layers", "positive", num_decoder_layers)
        require(hidden_dim % 2 == 0, "hidden_dim", "even", hidden_dim)
        self._keep(
            vocabulary_size=vocabulary_size, hidden_dim=hidden_dim, num_heads=num_heads,
            intermediate_dim=intermediate_dim, kernel_sizes=kernel_sizes, glu=glu, weight_softmax=weight_softmax,
            dropout=dropout, weight_dropout=weight_dropout, input_dropout=input_dropout,
        )  # fmt: skip
        self.num_encoder_layers = num_encoder_layers
        self.num_decoder_layers = num_decoder_layers
        self.attention_dropout = attention_dropout
        self.shares_embeddings = source_vocabulary_size is None
        self.source_vocabulary_size = source_vocabulary_size or vocabulary_size

        self.target_embedding = self._embedding(vocabulary_size, "target_embedding", self.shares_embeddings)
        self.source_embedding = self.target_embedding
        if not self.shares_embeddings:
            self.source_embedding = self._embedding(source_vocabulary_size, "source_embedding", True)
        self.encoder_layers = self._make_layers("encoder", num_encoder_layers, "same")
        self.decoder_layers = self._make_layers(
            "decoder",
            num_decoder_layers,
            "causal",
            cross_attention_heads=num_heads,
            attention_dropout=attention_dropout,
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def _embedding(self, vocabulary_size: int, name: str, tied: bool) -> keras.layers.Layer:
        initializer = PaddedNormal(stddev=self.hidden_dim**-0.5)
        return keras.layers.ReversibleEmbedding(
            vocabulary_size,
            self.hidden_dim,
            tie_weights=tied,
            embeddings_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    # === Forward pass ===

    def encode(self, source_ids: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Reads a source, see `EncoderDecoder.encode`."""
        source_mask = ops.not_equal(source_ids, PADDING_ID)
        positions = ops.reshape(ops.arange(ops.shape(source_ids)[1], dtype="int32"), (1, -1))
        hidden = self._embed(self.source_embedding, source_ids, positions, training)
        for layer in self.encoder_layers:
            hidden = layer(hidden, padding_mask=source_mask, training=training)
        return hidden, source_mask

    def state_specs(self) -> dict[str, Spec]:
        """Returns `history` and `position`."""
        return {
            "history": history_spec(self.decoder_layers, self.hidden_dim),
            "position": Spec(("batch",), "int32", "Number of target tokens read before.", 0, MAXIMUM_LENGTH - 1),
        }

    def decode(
        self, target_ids: Any, memory: Any, source_mask: Any, state: State, training: bool | None = None
    ) -> tuple[Any, State]:
        """Reads target tokens, see `EncoderDecoder.decode`."""
        length = ops.shape(target_ids)[1]
        places = ops.reshape(ops.arange(length, dtype="int32"), (1, -1))
        positions = ops.reshape(state["position"], (-1, 1)) + places
        hidden = self._embed(self.target_embedding, target_ids, positions, training)
        memory_mask = ops.reshape(source_mask, (ops.shape(source_mask)[0], 1, 1, ops.shape(source_mask)[1]))
        hidden, history = read_causally(
            self.decoder_layers,
            hidden,
            state["history"],
            training,
            memory=ops.cast(memory, hidden.dtype),
            memory_mask=memory_mask,
        )
        logits = ops.cast(self.target_embedding(hidden, reverse=True), "float32")
        return logits, {"history": history, "position": state["position"] + length}

    def _embed(self, embedding: keras.layers.Layer, token_ids: Any, positions: Any, training: bool | None) -> Any:
        hidden = embedding(token_ids) * self.hidden_dim**0.5
        encodings = sinusoids(ops.cast(positions, "float32"), self.hidden_dim)
        return self.dropout_layer(hidden + ops.cast(encodings, hidden.dtype), training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            **self._kept(),
            "num_encoder_layers": self.num_encoder_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "source_vocabulary_size": None if self.shares_embeddings else self.source_vocabulary_size,
            "attention_dropout": self.attention_dropout,
        }
