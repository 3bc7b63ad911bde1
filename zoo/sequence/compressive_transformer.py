"""Compressive Transformer: what falls out of the memory is compressed and remembered longer.

Rae, Potapenko, Jayakumar, Hillier, Lillicrap, ICLR 2020, https://arxiv.org/abs/1911.05507.

A Transformer-XL with a second queue. After each window, the oldest `window_length` states of the memory are evicted; a
compression function turns every `compression_rate` of them into one slot of the compressed memory, which the same
attention reads. The compression functions learn from a loss of their own, whose gradient reaches nothing else, and the
language-model loss does not reach them.

Two of the paper's open points are decided as its public re-implementations do: a compressed slot counts as one step of
relative distance (`compressed_position="slot"`), and the reconstruction losses are mean squared errors
(`reconstruction_norm="mse"`; `"l2"` is the paper's unsquared norm). Evicted states never filled are not compressed into
slots that count, unless `mask_empty=False`, which is the algorithm as printed, starting from zeros that are attended.
"""

from typing import Any

import keras
from keras import ops

from zoo.model import Signature, Spec
from zoo.ops import causal_memory_mask, valid_slots_mask
from zoo.sequence.recurrent_language_model import State
from zoo.sequence.transformer_xl import TransformerXL

COMPRESSIONS = ("conv1d", "max_pool", "mean_pool", "dilated_conv", "most_used")
COMPRESSION_LOSSES = ("attention_reconstruction", "auto_encoding", "bptt", "none")


@keras.saving.register_keras_serializable(package="zoo")
class Compression(keras.layers.Layer):
    """A compression function of one layer: `(batch, n, dim)` to `(batch, n // rate, dim)`.

    Where the rate does not divide n, the oldest states are dropped.

    Args:
        rate: int. States that become one slot.
        function: str. `"conv1d"`, `"max_pool"`, `"mean_pool"`, `"dilated_conv"` or `"most_used"`.
        decoder: bool. Also hold the transposed convolution that an auto-encoding loss trains.

    Reference:
        Rae et al. 2020, section 3.1.
    """

    def __init__(self, rate: int, function: str = "conv1d", decoder: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.function = function
        self.decoder = decoder
        self.stages: list[keras.layers.Layer] = []
        self.inverse = None

    def build(self, input_shape: Any) -> None:
        """Creates the convolutions."""
        dim = input_shape[-1]
        if self.function == "dilated_conv":
            self.stages.append(self._convolution(dim, "dilated", dilation_rate=2, padding="same", activation="relu"))
        if self.function in ("conv1d", "dilated_conv"):
            self.stages.append(self._convolution(dim, "strided", strides=self.rate))
        for stage in self.stages:
            stage.build((None, None, dim))
        if self.decoder:
            self.inverse = keras.layers.Conv1DTranspose(
                dim, self.rate, strides=self.rate, dtype=self.dtype_policy, name="inverse"
            )
            self.inverse.build((None, None, dim))

    def _convolution(self, dim: int, name: str, **kwargs: Any) -> keras.layers.Conv1D:
        return keras.layers.Conv1D(dim, self.rate, dtype=self.dtype_policy, name=name, **kwargs)

    def call(self, inputs: Any, usage: Any = None) -> Any:
        """Compresses.

        Args:
            inputs: float tensor `(batch, n, dim)`, oldest first.
            usage: float tensor `(batch, n)`: attention each state received (`"most_used"` only).

        Returns:
            Float tensor `(batch, n // rate, dim)`.
        """
        kept = self.kept(inputs)
        if self.function == "most_used":
            return _most_used(inputs, usage, inputs.shape[1] // self.rate)
        if self.function in ("max_pool", "mean_pool"):
            groups = ops.reshape(kept, (-1, kept.shape[1] // self.rate, self.rate, kept.shape[2]))
            return ops.max(groups, axis=2) if self.function == "max_pool" else ops.mean(groups, axis=2)
        for stage in self.stages:
            kept = stage(kept)
        return kept

    def kept(self, inputs: Any) -> Any:
        """Drops the oldest states that do not fill a slot."""
        return inputs[:, inputs.shape[1] % self.rate :]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "rate": self.rate, "function": self.function, "decoder": self.decoder}


@keras.saving.register_keras_serializable(package="zoo")
class CompressiveTransformer(TransformerXL):
    """A Transformer-XL with a compressed memory.

    Takes every argument of `TransformerXL` and:

    Args:
        compressed_memory_length: int. Slots of compressed memory.
        compression_rate: int. States that become one slot.
        compression: str. `"conv1d"`, `"max_pool"`, `"mean_pool"`, `"dilated_conv"` or `"most_used"`.
        compression_loss: str. `"attention_reconstruction"`, `"auto_encoding"`, `"bptt"` (the language-model loss trains the
            compression through the windows of one batch) or `"none"`.
        reconstruction_norm: str. `"mse"` or `"l2"`.
        compressed_position: str. A compressed slot is one step away from the next (`"slot"`) or `compression_rate`
            steps (`"time"`).

    Training windows may be several `window_length` long; they are read one after the other.

    Example:
        >>> model = zoo.get("compressive_transformer")
        >>> model.generate("It is a truth universally acknowledged, ", max_new_tokens=100)

    Reference:
        Rae et al. 2020, section 3, algorithms 1 and 2.
    """

    def __init__(
        self,
        *args: Any,
        compressed_memory_length: int = 64,
        compression_rate: int = 3,
        compression: str = "conv1d",
        compression_loss: str = "attention_reconstruction",
        reconstruction_norm: str = "mse",
        compressed_position: str = "slot",
        **kwargs: Any,
    ) -> None:
        self.compressed_memory_length = compressed_memory_length
        self.compression_rate = compression_rate
        super().__init__(*args, **kwargs)
        _check_choice("compression", compression, COMPRESSIONS)
        _check_choice("compression_loss", compression_loss, COMPRESSION_LOSSES)
        _check_choice("reconstruction_norm", reconstruction_norm, ("mse", "l2"))
        _check_choice("compressed_position", compressed_position, ("slot", "time"))
        if self.same_length:
            raise ValueError("`same_length` would hide the compressed memory. Received: same_length=True")
        if self.memory_length < self.window_length:
            raise ValueError(
                "`memory_length` must be at least `window_length`. "
                f"Received: memory_length={self.memory_length}, window_length={self.window_length}"
            )
        if not 1 <= compression_rate <= self.window_length or compressed_memory_length < 1:
            raise ValueError(
                f"`compression_rate` must be in [1, {self.window_length}] and `compressed_memory_length` positive. "
                f"Received: {compression_rate=}, {compressed_memory_length=}"
            )
        self.compression = compression
        self.compression_loss = compression_loss
        self.reconstruction_norm = reconstruction_norm
        self.compressed_position = compressed_position
        self.compressors = [
            Compression(
                compression_rate,
                compression,
                decoder=compression_loss == "auto_encoding",
                dtype=self.dtype_policy,
                name=f"compression_{index}",
            )
            for index in range(self.num_layers)
        ]

    @property
    def _span(self) -> int:
        return super()._span + self.compressed_memory_length

    @property
    def _num_slots(self) -> int:
        """Keys before the window."""
        return self.compressed_memory_length + self.memory_length

    # === State ===

    def state_specs(self) -> dict[str, Spec]:
        """Returns `memory`, `compressed_memory` and their counts."""
        compressed = ("batch", self.num_layers, self.compressed_memory_length, self.hidden_dim)
        return {
            **super().state_specs(),
            "compressed_memory": Spec(compressed, "float32", "Compressed older states of each layer, newest last."),
            "compressed_count": Spec(
                ("batch",), "int32", "Number of filled compressed slots.", 0, self.compressed_memory_length
            ),
        }

    def decoding_specs(self) -> dict[str, Spec]:
        """Returns the window state and the part of the current window that was read, oldest first."""
        window = ("batch", self.num_layers, self.window_length, self.hidden_dim)
        specs = {
            **self.state_specs(),
            "window": Spec(window, "float32", "Inputs each layer had for the current window's tokens, oldest first."),
            "window_count": Spec(
                ("batch",), "int32", "Number of tokens read in the current window.", 0, self.window_length - 1
            ),
        }
        if self.compression == "most_used":
            usage = ("batch", self.num_layers, self.window_length)
            specs["window_usage"] = Spec(usage, "float32", "Attention the states evicted next received so far.", 0, 1e6)
        return specs

    # === Forward pass ===

    def forward(self, token_ids: Any, state: State, training: bool | None = None) -> tuple[Any, State]:
        """Reads whole windows, one after the other, see `RecurrentLanguageModel.forward`."""
        length = token_ids.shape[1]
        if length is None or length % self.window_length:
            raise ValueError(
                f"The memory advances by whole windows: the length of `token_ids` must be a multiple of "
                f"{self.window_length}. Received: token_ids of shape {tuple(token_ids.shape)}"
            )
        logits = []
        for window in ops.split(token_ids, length // self.window_length, axis=1):
            window_logits, states, probabilities = self.read_window(window, state, training)
            state = self._advance(state, states, probabilities, training)
            logits.append(window_logits)
        return ops.concatenate(logits, axis=1), state

    def read(self, token_ids: Any, state: State, training: bool | None = None) -> Any:
        """Returns logits for a text of any length, read window by window."""
        length = token_ids.shape[1]
        whole = (length or 0) // self.window_length * self.window_length
        logits = []
        if whole:
            whole_logits, state = self.forward(token_ids[:, :whole], state, training)
            logits.append(whole_logits)
        if length != whole:
            logits.append(self.read_window(token_ids[:, whole:], state, training)[0])
        return ops.concatenate(logits, axis=1)

    def read_window(
        self, token_ids: Any, state: State, training: bool | None = None
    ) -> tuple[Any, list[Any], list[Any]]:
        """Reads at most one window and leaves the memory alone.

        Args:
            token_ids: int tensor `(batch, length)`.
            state: dict of tensors, as `state_specs` describes.
            training: bool or None.

        Returns:
            Tuple of logits `(batch, length, vocabulary_size)`; the layers' inputs, each `(batch, length, hidden_dim)`;
            and their attention `(batch, heads, length, compressed slots + memory slots + length)`.
        """
        length = ops.shape(token_ids)[1]
        hidden = self.embed(token_ids, training)
        mask = self._slots_mask(state, length, causal_memory_mask(length, self._num_slots))
        places = self._places(length, training)
        states, probabilities = [], []
        for index, layer in enumerate(self.transformer_layers):
            states.append(hidden)
            hidden, attention = layer(
                hidden, self._slots(state, index), mask, training=training, **places, **self._biases(index)
            )
            probabilities.append(attention)
        return self.to_logits(hidden, training), states, probabilities

    def _slots(self, state: State, index: int) -> Any:
        """Returns the keys before the window of a layer, oldest first."""
        compressed = state["compressed_memory"][:, index]
        if self.compression_loss != "bptt":
            compressed = ops.stop_gradient(compressed)
        return ops.concatenate([compressed, ops.stop_gradient(state["memory"][:, index])], axis=1)

    def _slots_mask(self, state: State, length: Any, window_mask: Any) -> Any:
        """Hides empty slots from a mask `(batch or 1, 1, queries, slots + length)`."""
        if not self.mask_empty:
            return window_mask
        filled = [
            valid_slots_mask(state["compressed_count"], self.compressed_memory_length),
            valid_slots_mask(state["memory_count"], self.memory_length),
            ops.broadcast_to(ops.ones((1, 1, 1, length), "bool"), (ops.shape(state["memory_count"])[0], 1, 1, length)),
        ]
        return ops.logical_and(window_mask, ops.concatenate(filled, axis=-1))

    def _places(self, length: Any, training: bool | None) -> dict[str, Any]:
        """Returns the position arguments of attention for a window that starts at its first token."""
        if self.compressed_position == "slot":
            return {"positions": self._encodings(self._num_slots + length, training)}
        keys = ops.concatenate([self._key_times(), ops.arange(length, dtype="int32")], axis=0)
        return self._timed_places(ops.reshape(ops.arange(length, dtype="int32"), (1, -1)), keys, length, training)

    def _key_times(self) -> Any:
        """Returns the time of every slot before the window, whose first token is time 0."""
        step = self.compression_rate if self.compressed_position == "time" else 1
        oldest = -self.memory_length - step * self.compressed_memory_length
        compressed = ops.arange(oldest, -self.memory_length, step, dtype="int32")
        return ops.concatenate([compressed, ops.arange(-self.memory_length, 0, dtype="int32")], axis=0)

    def _timed_places(self, queries: Any, keys: Any, length: Any, training: bool | None) -> dict[str, Any]:
        """Returns position arguments from the times of queries `(batch or 1, L)` and keys `(K,)`."""
        step = self.compression_rate if self.compressed_position == "time" else 1
        num_positions = step * self.compressed_memory_length + self.memory_length + length
        distances = ops.expand_dims(queries, 2) - ops.reshape(keys, (1, 1, -1))
        distances = ops.clip(distances, 0, num_positions - 1)
        return {"positions": self._encodings(num_positions, training), "distances": distances}

    # === Memory update ===

    def _advance(self, state: State, states: list[Any], probabilities: list[Any], training: bool | None) -> State:
        """Evicts, compresses and remembers; adds the compression losses in training."""
        compressed = []
        for index, compressor in enumerate(self.compressors):
            evicted = ops.stop_gradient(state["memory"][:, index, : self.window_length])
            new = compressor(evicted, usage=self._usage(probabilities[index]))
            compressed.append(new)
            if training:
                self._add_compression_loss(index, states[index], evicted, new, state)
        return {**self._remember(state, states), **self._remember_compressed(state, ops.stack(compressed, axis=1))}

    def _usage(self, probabilities: Any) -> Any:
        """Returns the mean attention that each state evicted next received, `(batch, window_length)`."""
        start = self.compressed_memory_length
        return ops.mean(probabilities[..., start : start + self.window_length], axis=(1, 2))

    def _remember_compressed(self, state: State, new: Any) -> State:
        if self.compression_loss != "bptt":
            new = ops.stop_gradient(new)
        queue = ops.concatenate([state["compressed_memory"], ops.cast(new, "float32")], axis=2)
        added = self._evicted_count(state) // self.compression_rate
        count = ops.minimum(state["compressed_count"] + added, self.compressed_memory_length)
        return {"compressed_memory": queue[:, :, -self.compressed_memory_length :], "compressed_count": count}

    def _evicted_count(self, state: State) -> Any:
        """Returns how many of the states evicted next were ever filled, `(batch,)`."""
        spared = self.memory_length - self.window_length
        return ops.clip(state["memory_count"] - spared, 0, self.window_length)

    # === Compression losses ===

    def _add_compression_loss(self, index: int, hidden: Any, evicted: Any, compressed: Any, state: State) -> None:
        if self.compression_loss == "attention_reconstruction":
            layer, hidden = self.transformer_layers[index], ops.stop_gradient(hidden)
            target = layer.reconstruct(hidden, evicted)
            error = target - layer.reconstruct(hidden, compressed)
        elif self.compression_loss == "auto_encoding":
            compressor = self.compressors[index]
            error = compressor.kept(evicted) - compressor.inverse(compressed)
        else:
            return
        self.add_loss(self._mean_error(ops.cast(error, "float32"), state))

    def _mean_error(self, error: Any, state: State) -> Any:
        """Averages an error `(batch, length, dim)` over the rows whose evicted states were all filled."""
        squared = ops.square(error)
        if self.reconstruction_norm == "mse":
            by_row = ops.mean(squared, axis=(1, 2))
        else:
            # The floor keeps the gradient of the root finite where the reconstruction is perfect.
            by_row = ops.sqrt(ops.maximum(ops.sum(squared, axis=(1, 2)), 1e-12))
        if not self.mask_empty:
            return ops.mean(by_row)
        return ops.mean(by_row * ops.cast(ops.equal(self._evicted_count(state), self.window_length), "float32"))

    # === Token by token ===

    def decode_token(self, token_ids: Any, state: State) -> tuple[Any, State]:
        """Reads one token; at the end of a window the memory advances."""
        logits, window = self._decode(token_ids, state)
        state = {**state, **window}
        full = ops.all(ops.equal(state["window_count"], self.window_length))
        return logits, ops.cond(full, lambda: self._close_window(state), lambda: state)

    def _decode(self, token_ids: Any, state: State) -> tuple[Any, State]:
        hidden = self.embed(token_ids)
        mask = self._decoding_mask(state)
        places = self._decoding_places(state["window_count"])
        states, probabilities = [], []
        for index, layer in enumerate(self.transformer_layers):
            states.append(hidden)
            slots = ops.concatenate([self._slots(state, index), state["window"][:, index]], axis=1)
            hidden, attention = layer(hidden, slots, mask, training=False, **places, **self._biases(index))
            probabilities.append(attention)
        return self.to_logits(hidden), self._extend_window(state, states, probabilities)

    def _decoding_mask(self, state: State) -> Any:
        places = ops.reshape(ops.arange(self.window_length, dtype="int32"), (1, 1, 1, -1))
        read = places < ops.reshape(state["window_count"], (-1, 1, 1, 1))
        before = ops.ones((1, 1, 1, self._num_slots), "bool")
        batch = ops.shape(state["window_count"])[0]
        mask = ops.concatenate([ops.broadcast_to(before, (batch, 1, 1, self._num_slots)), read], axis=-1)
        mask = ops.concatenate([mask, ops.ones((batch, 1, 1, 1), "bool")], axis=-1)
        return self._slots_mask(state, self.window_length + 1, mask)

    def _decoding_places(self, window_count: Any) -> dict[str, Any]:
        """Returns position arguments of one query whose place in the window differs between rows."""
        keys = ops.concatenate([self._key_times(), ops.arange(self.window_length, dtype="int32")], axis=0)
        places = self._timed_places(ops.reshape(window_count, (-1, 1)), keys, self.window_length, training=False)
        own = ops.zeros_like(places["distances"][:, :, :1])
        return {**places, "distances": ops.concatenate([places["distances"], own], axis=-1)}

    def _extend_window(self, state: State, states: list[Any], probabilities: list[Any]) -> State:
        places = ops.reshape(ops.arange(self.window_length, dtype="int32"), (1, 1, -1, 1))
        here = ops.equal(places, ops.reshape(state["window_count"], (-1, 1, 1, 1)))
        new = ops.cast(ops.stack(states, axis=1), "float32")
        extended = {
            "window": ops.where(here, new, state["window"]),
            "window_count": state["window_count"] + 1,
        }
        if self.compression == "most_used":
            usage = ops.stack([self._usage(attention) for attention in probabilities], axis=1)
            extended["window_usage"] = state["window_usage"] + ops.cast(usage, "float32")
        return extended

    def _close_window(self, state: State) -> State:
        return {**_zeros_like(state), **self._compress_window(state)}

    def _compress_window(self, state: State) -> State:
        """Advances the memory by the window in the state; returns the new window state."""
        states = [state["window"][:, index] for index in range(self.num_layers)]
        usage = state.get("window_usage")
        compressed = [
            compressor(
                state["memory"][:, index, : self.window_length], usage=None if usage is None else usage[:, index]
            )
            for index, compressor in enumerate(self.compressors)
        ]
        return {**self._remember(state, states), **self._remember_compressed(state, ops.stack(compressed, axis=1))}

    # === Deployment ===

    @property
    def maximum_sizes(self) -> dict[str, int]:
        """A signature reads at most one window."""
        return {"time": self.window_length}

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`, `step` (one whole window), and, to read token by token, `decode` and `compress`.

        `decode` reads a token and extends the window; after `window_length` of them, `compress` turns window, memory and
        compressed memory into the next ones, and the window starts again with `window_count` 0.
        """
        inherited = super().signatures()
        predict, step = inherited["predict"], inherited["step"]
        whole = Signature(
            step.function, {**step.inputs, "token_ids": self.token_spec(self.window_length)}, step.outputs
        )
        specs = self.decoding_specs()
        window = {name: spec for name, spec in specs.items() if name.startswith("window")}
        decode_outputs = {"logits": predict.outputs["logits"], **_next_names(window)}
        decode = Signature(self._decode_signature, {"token_ids": self.token_spec(1), **specs}, decode_outputs)
        compress_inputs = {name: spec for name, spec in specs.items() if name != "window_count"}
        compress = Signature(self._compress_signature, compress_inputs, _next_names(self.state_specs()))
        return {"predict": predict, "step": whole, "decode": decode, "compress": compress}

    def _decode_signature(self, token_ids: Any, **state: Any) -> dict[str, Any]:
        logits, window = self._decode(token_ids, state)
        return {"logits": logits, **{f"{name}_out": value for name, value in window.items()}}

    def _compress_signature(self, **state: Any) -> dict[str, Any]:
        return {f"{name}_out": value for name, value in self._compress_window(state).items()}

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        return {
            **config,
            "compressed_memory_length": self.compressed_memory_length,
            "compression_rate": self.compression_rate,
            "compression": self.compression,
            "compression_loss": self.compression_loss,
            "reconstruction_norm": self.reconstruction_norm,
            "compressed_position": self.compressed_position,
        }


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={value!r}")


def _most_used(states: Any, usage: Any, num_kept: int) -> Any:
    """Keeps the states `(batch, n, dim)` of the largest usage `(batch, n)`, in temporal order."""
    chosen = ops.top_k(usage, num_kept, sorted=False)[1]
    # Ascending order through top_k of the negated indices: the sort that every export format knows.
    chosen = -ops.top_k(-chosen, num_kept)[0]
    return ops.take_along_axis(states, ops.expand_dims(chosen, -1), axis=1)


def _zeros_like(state: State) -> State:
    return {name: ops.zeros_like(value) for name, value in state.items()}


def _next_names(specs: dict[str, Spec]) -> dict[str, str]:
    return {f"{name}_out": f"Next call's `{name}`." for name in specs}
