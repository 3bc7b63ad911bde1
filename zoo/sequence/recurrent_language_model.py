"""What language models share that carry state from one window of a long text to the next.

A subclass says what its state is and how one window is read; this class brings training over contiguous streams, text
generation in constant time per token, tokenisation, and the metric compressed artifacts are judged by.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.sequence.text_model import TextModel
from zoo.sequence.tokenizer import decode_ids, encode_text
from zoo.training.streams import token_windows

State = dict[str, Any]


class CarriedState:
    """State kept between the steps of `fit` and `evaluate`, outside of what is saved with a model.

    It is created on the first batch, whose size fixes it. Rows whose stream starts anew begin from zeros.
    """

    def __init__(self) -> None:
        self.variables: dict[str, tf.Variable] = {}

    def read(self, initial: State, stream_start: Any) -> State:
        """Returns the carried state, zeroed in the rows where a stream starts.

        Args:
            initial: dict of tensors. The empty state, which gives shapes and types.
            stream_start: bool tensor `(batch,)`.
        """
        shapes = {name: tuple(value.shape) for name, value in initial.items()}
        if shapes != {name: tuple(value.shape) for name, value in self.variables.items()}:
            self._create(initial)
        return {name: self._restart(name, stream_start) for name in initial}

    def write(self, state: State) -> None:
        """Keeps the state for the next batch."""
        for name, value in state.items():
            self.variables[name].assign(value)

    def restore(self, values: State) -> None:
        """Sets the state to given values."""
        self._create(values)
        self.write(values)

    def _create(self, like: State) -> None:
        with tf.init_scope():
            self.variables = {
                name: tf.Variable(
                    tf.zeros(value.shape, value.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
                for name, value in like.items()
            }

    def _restart(self, name: str, stream_start: Any) -> Any:
        value = self.variables[name]
        keep = ops.reshape(ops.logical_not(stream_start), (-1,) + (1,) * (len(value.shape) - 1))
        return tf.convert_to_tensor(value) * tf.cast(keep, value.dtype)


class RecurrentLanguageModel(TextModel):
    """Base of language models with a memory.

    As a Keras model it takes `token_ids` `(batch, length)` and gives `logits` `(batch, length, vocabulary_size)` from an
    empty memory. For training and evaluation over long texts it takes `{"token_ids", "stream_start"}`, where row b of
    each batch continues row b of the batch before unless `stream_start[b]`; `zoo.training.token_streams` makes such
    data sets.

    Subclasses set `vocabulary_size` and `window_length` and implement `state_specs` and `forward`; where reading token
    by token differs from reading windows, also `decoding_specs` and `decode_token`.
    """

    window_length: int

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._runtime = _Runtime()

    # === State ===

    def state_specs(self) -> dict[str, Spec]:
        """Returns the tensors carried from window to window, batch first."""
        raise NotImplementedError(f"{type(self).__name__} defines no state.")

    def forward(self, token_ids: Any, state: State, training: bool | None = None) -> tuple[Any, State]:
        """Reads one window.

        Args:
            token_ids: int tensor `(batch, length)`.
            state: dict of tensors, as `state_specs` describes.
            training: bool or None.

        Returns:
            Tuple of logits `(batch, length, vocabulary_size)` and the new state.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward pass.")

    def read(self, token_ids: Any, state: State, training: bool | None = None) -> Any:
        """Returns the logits of `forward` alone; a subclass may read lengths here that do not end a window."""
        return self.forward(token_ids, state, training)[0]

    def decoding_specs(self) -> dict[str, Spec]:
        """Returns the tensors carried from token to token; by default the same as from window to window."""
        return self.state_specs()

    def decode_token(self, token_ids: Any, state: State) -> tuple[Any, State]:
        """Reads one token `(batch, 1)` and returns logits `(batch, 1, vocabulary_size)` and the new decoding state."""
        return self.forward(token_ids, state, training=False)

    def initial_state(self, batch_size: Any) -> State:
        """Returns the empty window state."""
        return _zeros(self.state_specs(), batch_size)

    def initial_decoding_state(self, batch_size: Any) -> State:
        """Returns the empty token state; it holds every tensor of the window state."""
        return _zeros(self.decoding_specs(), batch_size)

    # === Keras model ===

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns logits; see the class for what `inputs` may be."""
        if not isinstance(inputs, dict):
            return self.read(inputs, self.initial_state(ops.shape(inputs)[0]), training)
        token_ids, stream_start = inputs["token_ids"], inputs["stream_start"]
        if isinstance(token_ids, keras.KerasTensor) or token_ids.shape[0] is None:
            # Symbolic building: there is no stream to continue yet.
            return self.read(token_ids, self.initial_state(ops.shape(token_ids)[0]), training)
        carried = self._runtime.carried[bool(training)]
        state = carried.read(self.initial_state(token_ids.shape[0]), stream_start)
        logits, state = self.forward(token_ids, state, training)
        carried.write(state)
        return logits

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables."""
        self.build_from_signature()

    @property
    def stream_variables(self) -> list[tf.Variable]:
        """State carried between training batches, which a checkpoint of a running training must hold."""
        return list(self._runtime.carried[True].variables.values())

    def restore_stream(self, values: list[np.ndarray]) -> None:
        """Takes back the values of `stream_variables`, before a resumed training."""
        names = self.state_specs()
        self._runtime.carried[True].restore(dict(zip(names, values, strict=True)))

    # === Deployment ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict` (from an empty memory) and, where there is a memory, `step` (memory in, memory out)."""
        token_ids = self.token_spec(self.signature_length)
        logits = {"logits": "Unnormalised log-probabilities of the next token, at every position."}
        sizes = {"time": self.window_length}
        predict = Signature(self._predict, {"token_ids": token_ids}, logits, sizes, self.maximum_sizes)
        specs = self.state_specs()
        if not specs:
            return {"predict": predict}
        carried = {f"{name}_out": f"Next call's `{name}`." for name in specs}
        step = Signature(
            self._step, {"token_ids": token_ids, **specs}, {**logits, **carried}, sizes, self.maximum_sizes
        )
        return {"predict": predict, "step": step}

    @property
    def signature_length(self) -> int | str:
        """Length of the windows that signatures take: any, unless a subclass fixes it."""
        return "time"

    @property
    def maximum_sizes(self) -> dict[str, int]:
        """Longest window a signature takes."""
        return {}

    def token_spec(self, length: int | str) -> Spec:
        """Returns the spec of `token_ids` for windows of a length."""
        return Spec(("batch", length), "int32", "Token ids.", 0, self.vocabulary_size - 1)

    def _predict(self, token_ids: Any) -> dict[str, Any]:
        return {"logits": self.read(token_ids, self.initial_state(ops.shape(token_ids)[0]), training=False)}

    def _step(self, token_ids: Any, **state: Any) -> dict[str, Any]:
        logits, state = self.forward(token_ids, state, training=False)
        return {"logits": logits, **{f"{name}_out": value for name, value in state.items()}}

    # === Text ===

    def generate(
        self,
        prompt: str | Iterable[int],
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str | np.ndarray:
        """Continues a prompt. The cost of a token does not depend on how much text was read before it.

        Args:
            prompt: str, or iterable of token ids `(length,)`. Not empty.
            max_new_tokens: int.
            temperature: float. Divides the logits; 0 picks the most likely token.
            top_k: int or None. Sample among the k most likely tokens only.
            seed: int. Same seed, same text.

        Returns:
            The continuation, of the prompt's kind: str or int array `(max_new_tokens,)`.

        Raises:
            ValueError: for an empty prompt, one with characters or ids outside the vocabulary, or a bad setting.
        """
        if max_new_tokens < 1 or temperature < 0 or (top_k is not None and not 1 <= top_k <= self.vocabulary_size):
            raise ValueError(
                "`max_new_tokens` must be positive, `temperature` at least 0 and `top_k` between 1 and "
                f"{self.vocabulary_size}. Received: {max_new_tokens=}, {temperature=}, {top_k=}"
            )
        tokenizer = self.tokenizer if isinstance(prompt, str) else None
        ids = encode_text(tokenizer, prompt) if tokenizer else np.asarray(list(prompt))
        ids = _checked_prompt(self.token_spec("time"), ids)
        new = self._continue(ids, max_new_tokens, temperature, top_k or self.vocabulary_size, seed)
        return decode_ids(tokenizer, new) if tokenizer else new

    def _continue(self, ids: np.ndarray, max_new_tokens: int, temperature: float, top_k: int, seed: int) -> np.ndarray:
        self.build_from_signature()
        state, rest = self.read_prompt(ids)
        loop = self._compiled("loop", self._sample_loop)
        settings = (tf.constant(max_new_tokens), tf.constant(temperature, "float32"), tf.constant(top_k))
        return loop(tf.constant(rest), state, *settings, tf.constant([seed, 0])).numpy()

    def read_prompt(self, ids: np.ndarray) -> tuple[State, np.ndarray]:
        """Reads the whole windows of a prompt.

        Args:
            ids: int array `(length,)`.

        Returns:
            Tuple of the decoding state after them and of what remains, at least one token, whose logits the token loop
            gives.
        """
        num_windows = (len(ids) - 1) // self.window_length
        state = self.initial_decoding_state(1)
        read = self._compiled("forward", self.forward)
        for index in range(num_windows):
            window = ids[index * self.window_length : (index + 1) * self.window_length]
            window_state = {name: state[name] for name in self.state_specs()}
            state.update(read(tf.constant(window[None]), window_state)[1])
        return state, ids[num_windows * self.window_length :]

    def _sample_loop(
        self, rest: Any, state: State, max_new_tokens: Any, temperature: Any, top_k: Any, seed: Any
    ) -> tf.Tensor:
        """Reads the rest of the prompt and then its own samples, one token a turn."""
        num_prompt = tf.shape(rest)[0]
        num_turns = num_prompt + max_new_tokens - 1

        def turn(i: Any, token: Any, written: Any, state: State) -> tuple:
            token = tf.cond(i < num_prompt, lambda: rest[tf.minimum(i, num_prompt - 1)], lambda: token)
            logits, state = self.decode_token(tf.reshape(token, (1, 1)), state)
            token = _sample(logits[0, 0], temperature, top_k, tf.stack([seed[0], i]))
            written = written.write(tf.maximum(i - num_prompt + 1, 0), token)
            return i + 1, token, written, state

        start = (0, rest[0], tf.TensorArray(tf.int32, max_new_tokens, clear_after_read=False), state)
        written = tf.while_loop(lambda i, *_: i < num_turns, turn, start)[2]
        return written.stack()

    def _compiled(self, name: str, function: Any) -> Any:
        """Keeps one `tf.function` per model and use, so that a second call does not trace again."""
        functions = self._runtime.functions
        if name not in functions:
            functions[name] = tf.function(function, reduce_retracing=True)
        return functions[name]

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns bits per character (or token) on the recorded held-out text, read window by window."""
        if self.metadata is None or not self.metadata.dataset:
            return None
        return TaskMetric("bits_per_character", self._bits_per_token, higher_is_better=False, relative_tolerance=0.01)

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields windows of the recorded validation text with the states that reading it leads to."""
        if self.metadata is None or not self.metadata.dataset:
            return
        chosen = self.signatures()[signature]
        length = chosen.inputs["token_ids"].shape[1] if "token_ids" in chosen.inputs else 1
        length = length if isinstance(length, int) else self.window_length
        for token_ids, state in self._read_states(self._recorded_ids("validation"), batch_size, length):
            available = {"token_ids": token_ids, **state}
            yield {name: np.asarray(available[name]) for name in chosen.inputs}

    def _read_states(self, ids: np.ndarray, batch_size: int, length: int) -> Iterable[tuple[np.ndarray, State]]:
        """Yields windows and the (decoding) state before each, after enough text to fill the memory."""
        windows, _ = token_windows(ids[: 20_000 * batch_size], batch_size, self.window_length)
        state = self.initial_decoding_state(batch_size)
        read = self._compiled("forward", self.forward)
        for window in windows:
            yield window[:, :length], state
            state = {**state, **read(tf.constant(window), {name: state[name] for name in self.state_specs()})[1]}

    def _bits_per_token(self, run: Runner) -> float:
        windows, targets = token_windows(self._recorded_ids("test"), 8, self.window_length)
        state = {name: np.asarray(value) for name, value in self.initial_state(8).items()}
        signature = "step" if state else "predict"
        total = 0.0
        for window, target in zip(windows, targets, strict=True):
            outputs = run(signature, {"token_ids": window, **state})
            state = {name: outputs[f"{name}_out"] for name in state}
            total += _cross_entropy(outputs["logits"], target)
        return total / targets.size / np.log(2)

    def _recorded_ids(self, split: str) -> np.ndarray:
        from zoo import datasets

        text = datasets.load_text(self.metadata.dataset["name"], split)
        return encode_text(self.tokenizer, text)


class _Runtime:
    """What a model keeps while it is used; an object of its own, so that Keras does not track (and save) it."""

    def __init__(self) -> None:
        self.carried = {True: CarriedState(), False: CarriedState()}  # by `training`
        self.functions: dict[str, Any] = {}


def _zeros(specs: Mapping[str, Spec], batch_size: Any) -> State:
    return {name: ops.zeros((batch_size, *spec.shape[1:]), spec.dtype) for name, spec in specs.items()}


def _checked_prompt(spec: Spec, ids: np.ndarray) -> np.ndarray:
    if ids.ndim != 1 or not ids.size:
        raise ValueError(f"`prompt` must hold at least one token. Received: {ids.tolist()!r}")
    if ids.dtype.kind not in "iu" or ids.min() < spec.minimum or ids.max() > spec.maximum:
        raise ValueError(f"`prompt` must hold integers from {spec.minimum} to {spec.maximum}. Received: {ids}")
    return ids.astype("int32")


def _sample(logits: tf.Tensor, temperature: tf.Tensor, top_k: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    values, indices = tf.math.top_k(logits, k=top_k)
    scaled = values / tf.maximum(temperature, 1e-6)
    choice = tf.random.stateless_categorical(scaled[None], 1, seed, dtype=tf.int32)[0, 0]
    return indices[tf.where(temperature > 0, choice, 0)]


def _cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the summed cross-entropy in nats."""
    logits = logits.astype("float64")
    logits -= logits.max(-1, keepdims=True)
    log_normaliser = np.log(np.exp(logits).sum(-1))
    return float((log_normaliser - np.take_along_axis(logits, targets[..., None], -1)[..., 0]).sum())
