"""What models share that read a whole source text and write a target text: translation and its like.

Three ids have a meaning: 0 is padding, 1 begins a target, 2 ends a text. Targets are shifted outside of the model, as
KerasHub's are: its input begins with 1, and its label at a position is the input at the next one (`shifted` makes the
former from the latter).
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.sequence.text_model import TextModel
from zoo.sequence.tokenizer import decode_ids, encode_text, load_tokenizer

State = dict[str, Any]

PADDING_ID, START_ID, END_ID = 0, 1, 2
# In the order of those ids. They come before all printed characters, so that a character tokenizer numbers them so.
SPECIAL_CHARACTERS = "\x00\x02\x03"
# Longest text; that of the authors of most translation models.
MAXIMUM_LENGTH = 1024
_EVALUATION_BATCH = 64


def shifted(labels: np.ndarray) -> np.ndarray:
    """Returns the decoder's inputs `(batch, length)` for labels `(batch, length)`: one place later, after a 1."""
    return np.concatenate([np.full_like(labels[:, :1], START_ID), labels[:, :-1]], axis=1)


@keras.saving.register_keras_serializable(package="zoo")
class LabelSmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy against a mixture of the label and the uniform distribution, averaged over what is no padding.

    Args:
        label_smoothing: float in [0, 1). Share of the uniform distribution.

    Called with int labels `(batch, length)` and logits `(batch, length, vocabulary_size)`.

    Reference:
        Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4.
    """

    def __init__(self, label_smoothing: float = 0.1, name: str = "label_smoothed_cross_entropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        require(0 <= label_smoothing < 1, "label_smoothing", "in [0, 1)", label_smoothing)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of every position `(batch, length)`, such that its mean is that over what is no padding."""
        log_probs = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        labels = ops.expand_dims(ops.cast(y_true, "int32"), -1)
        of_label = -ops.squeeze(ops.take_along_axis(log_probs, labels, axis=-1), -1)
        of_uniform = -ops.mean(log_probs, axis=-1)
        losses = (1 - self.label_smoothing) * of_label + self.label_smoothing * of_uniform
        real = ops.cast(ops.not_equal(y_true, PADDING_ID), "float32")
        return losses * real / ops.maximum(ops.mean(real), keras.config.epsilon())

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "label_smoothing": self.label_smoothing}


class EncoderDecoder(TextModel):
    """Base of models that read `source_ids` and write a target one token after the other.

    As a Keras model it takes `{"source_ids": (batch, source), "target_ids": (batch, target)}`, padded with 0, and gives
    logits `(batch, target, vocabulary_size)` of the tokens that follow those of the target (teacher forcing).

    Subclasses set `vocabulary_size` (of the target), `source_vocabulary_size` and `hidden_dim`, and implement `encode`,
    `state_specs` and `decode`.
    """

    source_vocabulary_size: int
    hidden_dim: int

    # === To be implemented ===

    def encode(self, source_ids: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Reads a source.

        Args:
            source_ids: int tensor `(batch, source)`, padded with 0.
            training: bool or None.

        Returns:
            Tuple of the memory `(batch, source, hidden_dim)` and a bool mask `(batch, source)`, false at padding.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no encoder.")

    def state_specs(self) -> dict[str, Spec]:
        """Returns the tensors that the decoder carries from token to token, batch first; zeros before the first."""
        raise NotImplementedError(f"{type(self).__name__} defines no state.")

    def decode(
        self, target_ids: Any, memory: Any, source_mask: Any, state: State, training: bool | None = None
    ) -> tuple[Any, State]:
        """Reads target tokens.

        Args:
            target_ids: int tensor `(batch, target)`.
            memory: float tensor `(batch, source, hidden_dim)`, as `encode` gives it.
            source_mask: bool tensor `(batch, source)`.
            state: dict of tensors, as `state_specs` describes: what earlier tokens left.
            training: bool or None.

        Returns:
            Tuple of float32 logits `(batch, target, vocabulary_size)` and the new state.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no decoder.")

    def initial_state(self, batch_size: Any) -> State:
        """Returns the state before the first token."""
        return {name: ops.zeros((batch_size, *spec.shape[1:]), spec.dtype) for name, spec in self.state_specs().items()}

    # === Keras model ===

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Returns logits; see the class for `inputs`."""
        memory, source_mask = self.encode(inputs["source_ids"], training)
        state = self.initial_state(ops.shape(inputs["source_ids"])[0])
        return self.decode(inputs["target_ids"], memory, source_mask, state, training)[0]

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables."""
        self.build_from_signature()

    # === Deployment ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict` (teacher forced), `encode` and `step` (one target token, state in, state out)."""
        source_ids = Spec(("batch", "source"), "int32", "Source ids, 0 at padding.", 0, self.source_vocabulary_size - 1)
        target_ids = Spec(("batch", "target"), "int32", "Target ids, the first 1.", 0, self.vocabulary_size - 1)
        target_id = Spec(("batch",), "int32", "The last token of the target.", 0, self.vocabulary_size - 1)
        memory = Spec(("batch", "source", self.hidden_dim), "float32", "What `encode` made of the source.")
        source_mask = Spec(("batch", "source"), "bool", "False at padding of the source.")
        logits = {"logits": "Unnormalised log-probabilities of the next token."}
        encoded = {"memory": memory.description, "source_mask": source_mask.description}
        specs = self.state_specs()
        carried = {f"{name}_out": f"Next call's `{name}`." for name in specs}
        inputs = {
            "predict": (self._predict, {"source_ids": source_ids, "target_ids": target_ids}, logits),
            "encode": (self._encode, {"source_ids": source_ids}, encoded),
            "step": (
                self._step,
                {"target_id": target_id, "memory": memory, "source_mask": source_mask, **specs},
                {**logits, **carried},
            ),
        }
        sizes = {"source": 12, "target": 10}
        longest = dict.fromkeys(sizes, MAXIMUM_LENGTH)
        return {name: Signature(*parts, sizes, longest) for name, parts in inputs.items()}

    def _predict(self, source_ids: Any, target_ids: Any) -> dict[str, Any]:
        return {"logits": self.call({"source_ids": source_ids, "target_ids": target_ids}, training=False)}

    def _encode(self, source_ids: Any) -> dict[str, Any]:
        memory, source_mask = self.encode(source_ids, training=False)
        return {"memory": ops.cast(memory, "float32"), "source_mask": source_mask}

    def _step(self, target_id: Any, memory: Any, source_mask: Any, **state: Any) -> dict[str, Any]:
        logits, state = self.decode(ops.reshape(target_id, (-1, 1)), memory, source_mask, state, training=False)
        carried = {f"{name}_out": value for name, value in state.items()}
        return {"logits": ops.reshape(logits, (-1, self.vocabulary_size)), **carried}

    # === Text ===

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Sets the tokenizer of both languages, see `TextModel.set_assets`.

        Raises:
            ValueError: also for vocabularies of two sizes, and a tokenizer without the three special tokens.
        """
        if assets and self.source_vocabulary_size != self.vocabulary_size:
            raise ValueError(
                "Only languages with one vocabulary have a tokenizer. Received: "
                f"source_vocabulary_size={self.source_vocabulary_size}, vocabulary_size={self.vocabulary_size}"
            )
        if "tokenizer.json" in assets:
            tokenizer = load_tokenizer(assets["tokenizer.json"])
            ids = [tokenizer.token_to_id(character) for character in SPECIAL_CHARACTERS]
            if ids != [PADDING_ID, START_ID, END_ID]:
                raise ValueError(f"The tokenizer must begin with the tokens {SPECIAL_CHARACTERS!r}. Received: {ids}")
        super().set_assets(assets)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the ids of texts `(batch, longest + 1)`, each followed by a 2 and padded with 0: sources, or labels.

        Raises:
            ValueError: for no texts, an empty one, or characters outside the vocabulary.
        """
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"`texts` must be a sequence of at least one text. Received: {texts!r}")
        rows = [encode_text(self.tokenizer, str(text)) for text in texts]
        ids = np.full((len(rows), max(map(len, rows)) + 1), PADDING_ID, "int32")
        for row, encoded in zip(ids, rows, strict=True):
            row[: len(encoded)] = encoded
            row[len(encoded)] = END_ID
        return ids

    def decode_texts(self, token_ids: np.ndarray) -> list[str]:
        """Returns the texts of ids `(batch, length)`, each up to its first 2."""
        lengths = np.where((token_ids == END_ID).any(1), (token_ids == END_ID).argmax(1), token_ids.shape[1])
        return [decode_ids(self.tokenizer, row[:n]) for row, n in zip(token_ids, lengths, strict=True)]

    def generate(
        self, source: str | Sequence[str] | np.ndarray, max_new_tokens: int = 64
    ) -> str | list[str] | np.ndarray:
        """Writes the target of a source, at every step its most likely token, until each target has ended.

        Args:
            source: str, sequence of str, or int array `(batch, source)` of ids padded with 0.
            max_new_tokens: int.

        Returns:
            The target, of the source's kind: str, list of str, or int32 array `(batch, max_new_tokens)` in which
            everything behind a 2 is 0.

        Raises:
            ValueError: for an empty source, one with characters or ids outside the vocabulary, or a bad setting.
        """
        require(
            1 <= max_new_tokens <= MAXIMUM_LENGTH, "max_new_tokens", f"between 1 and {MAXIMUM_LENGTH}", max_new_tokens
        )
        if isinstance(source, np.ndarray) and source.dtype.kind in "iu":
            return self._generate_ids(source, max_new_tokens)
        texts = [source] if isinstance(source, str) else list(source)
        targets = self.decode_texts(self._generate_ids(self.encode_texts(texts), max_new_tokens))
        return targets[0] if isinstance(source, str) else targets

    def _generate_ids(self, source_ids: np.ndarray, max_new_tokens: int) -> np.ndarray:
        self.build_from_signature()
        checked = self.signatures()["encode"].check({"source_ids": source_ids})["source_ids"]
        return self._greedy(tf.constant(checked), tf.constant(max_new_tokens)).numpy()

    @functools.cached_property
    def _greedy(self) -> Any:
        """The greedy loop as a graph, made once for sources of any size."""
        return tf.function(
            self._greedy_loop, input_signature=[tf.TensorSpec((None, None), "int32"), tf.TensorSpec((), "int32")]
        )

    def _greedy_loop(self, source_ids: tf.Tensor, max_new_tokens: tf.Tensor) -> tf.Tensor:
        memory, source_mask = self.encode(source_ids, training=False)
        batch = tf.shape(source_ids)[0]
        places = tf.range(max_new_tokens)[None]

        def turn(i: Any, token: Any, written: Any, state: State) -> tuple:
            logits, state = self.decode(token[:, None], memory, source_mask, state, training=False)
            likeliest = tf.argmax(logits[:, 0], axis=-1, output_type=tf.int32)
            # Nothing but padding follows an end.
            token = tf.where((token == END_ID) | (token == PADDING_ID), PADDING_ID, likeliest)
            return i + 1, token, tf.where(places == i, token[:, None], written), state

        def goes_on(i: Any, token: Any, *_: Any) -> Any:
            return (i < max_new_tokens) & tf.reduce_any((token != END_ID) & (token != PADDING_ID))

        start = (0, tf.fill((batch,), START_ID), tf.zeros((batch, max_new_tokens), tf.int32), self.initial_state(batch))
        return tf.while_loop(goes_on, turn, start)[2]

    # === Held-out data ===

    def task_metric(self) -> TaskMetric | None:
        """Returns bits per character (or token) of the recorded held-out targets, read through `predict`."""
        if self.metadata is None or not self.metadata.dataset:
            return None
        return TaskMetric("bits_per_character", self.bits_per_token, higher_is_better=False, relative_tolerance=0.02)

    def bits_per_token(self, run: Runner, split: str = "test", dataset: str | None = None) -> float:
        """Returns the bits that each token of the held-out targets costs, their ends included.

        Args:
            run: `Runner`: `lambda name, inputs: model.run(name, **inputs)`, or an exported artifact.
            split: str.
            dataset: str or None. The recorded one by default.
        """
        total, count = 0.0, 0
        for sources, labels in self._pairs(split, _EVALUATION_BATCH, dataset):
            logits = run("predict", {"source_ids": sources, "target_ids": shifted(labels)})["logits"]
            real = labels != PADDING_ID
            nats = ops.sparse_categorical_crossentropy(labels[real], logits[real].astype("float64"), from_logits=True)
            total, count = total + float(ops.sum(nats)), count + int(real.sum())
        return total / count / float(np.log(2))

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields recorded validation texts; for `step`, with what the first halves of the targets left."""
        if self.metadata is None or not self.metadata.dataset:
            return
        chosen = self.signatures()[signature]
        for sources, labels in self._pairs("validation", batch_size):
            if len(sources) < batch_size:
                return
            targets = shifted(labels)
            available = {"source_ids": sources, "target_ids": targets}
            if signature == "step":
                available.update(self._halfway(sources, targets))
            yield {name: np.asarray(available[name]) for name in chosen.inputs}

    def _halfway(self, sources: np.ndarray, targets: np.ndarray) -> Arrays:
        half = targets.shape[1] // 2
        encoded = self._encode(sources)
        state = self.initial_state(len(sources))
        if half:
            state = self.decode(targets[:, :half], encoded["memory"], encoded["source_mask"], state, training=False)[1]
        return {"target_id": targets[:, half], **encoded, **state}

    def _pairs(
        self, split: str, batch_size: int, dataset: str | None = None
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yields the ids of sources and labels of a data set with the features `source` and `target`."""
        from zoo import datasets

        data = datasets.load_arrays(dataset or self.metadata.dataset["name"], split)
        for start in range(0, len(data["source"]), batch_size):
            rows = slice(start, start + batch_size)
            yield self.encode_texts(data["source"][rows]), self.encode_texts(data["target"][rows])
