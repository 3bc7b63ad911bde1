"""`TextEncoder`: a backbone of the BERT type with a head, as Keras models that pretrain, fine-tune and deploy."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.language.backbone import TextBackbone
from zoo.language.heads import HEADS, Head, make_head
from zoo.language.pretraining_data import SENTENCE_LOSSES, held_out_examples
from zoo.language.tokenizers import encode_pairs, special_ids
from zoo.metadata import dump_json, parse_json
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.sequence.text_model import TextModel

if TYPE_CHECKING:
    from zoo.training.task import Task

TOKENIZER = "tokenizer.json"
LABELS = "labels.json"
EVALUATION_BATCH = 50
# Held-out sequences by which compressed artifacts are judged
NUM_JUDGED = 500


class TextEncoder(TextModel):
    """Base of BERT-like models; subclasses give it a backbone by `set_backbone`.

    Args:
        head: str or None. `"masked_lm"` (pretraining, see `MaskedLMHead`), `"classification"`, `"token_classification"`,
            `"question_answering"`, or None for the hidden states themselves.
        sentence_loss: str. What the second half of pretraining judges: `"sop"`, whether two segments were swapped,
            `"nsp"`, whether the second one is from another text, or `"none"`.
        num_classes: int. Of the two classifications. Defaults to 2.
        head_dropout: float. Rate in the heads of both classifications. Defaults to 0.1.
        sequence_length: int. Tokens in exported signatures and where inputs are made from text. Defaults to 128.
        mask_selection_length: int. Tokens that are masked at most, in signatures and data. Defaults to 20.
    """

    backbone: TextBackbone
    head_arguments = ("head", "num_classes", "sentence_loss")
    # What `call` takes
    input_names: tuple[str, ...] = ("token_ids", "segment_ids", "padding_mask", "mask_positions")

    def __init__(
        self,
        head: str | None = None,
        sentence_loss: str = "sop",
        num_classes: int = 2,
        head_dropout: float = 0.1,
        sequence_length: int = 128,
        mask_selection_length: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(head is None or head in HEADS, "head", f"None or one of {list(HEADS)}", repr(head))
        require(sentence_loss in SENTENCE_LOSSES, "sentence_loss", f"one of {SENTENCE_LOSSES}", repr(sentence_loss))
        require(num_classes >= 2, "num_classes", "at least 2", num_classes)
        require(0 <= head_dropout < 1, "head_dropout", "in [0, 1)", head_dropout)
        require(mask_selection_length >= 1, "mask_selection_length", "positive", mask_selection_length)
        self.head = head
        self.sentence_loss = sentence_loss
        self.num_classes = num_classes
        self.head_dropout = head_dropout
        self.sequence_length = sequence_length
        self.mask_selection_length = mask_selection_length
        self._labels: list[str] | None = None

    def set_backbone(self, backbone: TextBackbone) -> None:
        """Takes a backbone and puts the head on it."""
        longest = backbone.max_sequence_length
        require(1 <= self.sequence_length <= longest, "sequence_length", f"from 1 to {longest}", self.sequence_length)
        self.backbone = backbone
        self.vocabulary_size = backbone.vocabulary_size
        self.head_layer = self._make_head() if self.head else None
        if self.head_layer is not None and not self.head_layer.needs_pooler and backbone.pooler is not None:
            # It would get no gradient, and decay
            backbone.pooler.trainable = False

    def _make_head(self) -> Head:
        sentence_classes = 0 if self.sentence_loss == "none" else 2
        head = make_head(self.head, self.backbone, sentence_classes, self.num_classes, self.head_dropout)
        if head.needs_pooler:
            require(self.backbone.use_pooler, "use_pooler", f"True for the head {self.head!r}", False)
        return head

    def build_from_signature(self) -> TextEncoder:
        """Creates all variables from sizes alone: a forward pass of the largest presets takes long."""
        if not self.built:
            self.backbone.build()
            if self.head_layer is not None:
                self.head_layer.build()
            # Keras gives sublayers that did not take part in `build` no build of their own
            self.backbone.built = self.built = True
            if self.head_layer is not None:
                self.head_layer.built = True
        return self

    # === Forward pass ===

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Encodes and applies the head. Values are not looked at: `run` is the way that checks them.

        Args:
            inputs: dict of int tensors `(batch, length)`: `token_ids`, below `vocabulary_size`; `padding_mask`, 1 at tokens
                and 0 at padding, all 1 by default; `segment_ids`, all 0 by default. For masked tokens `mask_positions`
                `(batch, predictions)`.
            training: bool or None.

        Returns:
            Float32 tensor or dict of such: what the head gives, or `sequence_output` and `pooled_output` without one.

        Raises:
            ValueError: for inputs of other names, types or shapes, and for more tokens than there are positions. Tokens
                beyond the vocabulary raise what TensorFlow does.
        """
        self.check_inputs(inputs)
        self.build_from_signature()
        encoded = self.backbone(inputs, training=training)
        if self.head_layer is None:
            return {name: ops.cast(value, "float32") for name, value in encoded.items()}
        return self.head_layer(encoded, inputs, self.backbone.embedding.token.embeddings, training=training)

    def check_inputs(self, inputs: Any) -> None:
        """Refuses what `call` does not take, by names, types and ranks alone.

        Args:
            inputs: see `call`.

        Raises:
            ValueError: for anything else than a dict with int `token_ids` of rank 2, and for unknown names.
        """
        named = isinstance(inputs, Mapping)
        tokens = inputs.get("token_ids") if named else None
        fits = hasattr(tokens, "shape") and tf.TensorShape(tokens.shape).rank in (2, None)
        fits = fits and "int" in keras.backend.standardize_dtype(tokens.dtype)
        received = {name: _kind(value) for name, value in inputs.items()} if named else _kind(inputs)
        require(fits, "inputs", "a dict with `token_ids` int (batch, length)", received)
        unknown = sorted(set(inputs) - set(self.input_names))
        require(not unknown, "inputs", f"a dict of no other names than {list(self.input_names)}", unknown)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the head's loss, or the one that `compile` was given."""
        if getattr(self, "loss", None) is not None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        require(self.head_layer is not None, "head", "set to train without a loss of your own", None)
        return self.head_layer.loss(y, y_pred, sample_weight)

    # === Another head ===

    def with_head(self, head: str | None, **arguments: Any) -> TextEncoder:
        """Returns a new model with copies of this one's backbone and tokenizer, and a new head.

        Args:
            head: str or None. See the constructor.
            **arguments: constructor arguments that change, such as `num_classes`; none of the backbone's sizes.

        Raises:
            ValueError: for arguments that change the backbone's weights.
        """
        for name in self.backbone.weight_arguments:
            value = getattr(self.backbone, name)
            given = arguments.get(name, value)
            require(given == value, name, f"{value!r}, as the weights are", repr(given))
        config = {**self.get_config(), "name": None, "head": head, **arguments}
        model = type(self).from_config(config).build_from_signature()
        for ours, theirs in zip(self._trunk(), model._trunk(), strict=True):
            if ours is not None and theirs is not None:
                theirs.set_weights(ours.get_weights())
        model.set_assets({name: data for name, data in self.assets.items() if name == TOKENIZER})
        return model

    def _trunk(self) -> list[keras.layers.Layer | None]:
        backbone = self.backbone
        return [backbone.embedding, backbone.embedding_map, *backbone.encoder_layers, backbone.pooler]

    def layer_groups(self) -> dict[str, list[keras.layers.Layer]]:
        """Returns `"embeddings"`, `"layer_0"` and so on, once each where steps share a layer, `"pooler"` and `"head"`."""
        backbone = self.backbone
        groups = {
            "embeddings": [backbone.embedding, backbone.embedding_map],
            **{layer.name: [layer] for layer in backbone.encoder_layers},
            "pooler": [backbone.pooler],
            "head": [self.head_layer],
        }
        present = {name: [layer for layer in group if layer is not None] for name, group in groups.items()}
        return {name: group for name, group in present.items() if group}

    # === Text ===

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, or None."""
        return self._labels

    @labels.setter
    def labels(self, labels: Sequence[str] | None) -> None:
        fits = labels is None or (len(labels) == self.num_classes and all(isinstance(label, str) for label in labels))
        require(fits, "labels", f"None or {self.num_classes} strings", labels)
        self._labels = labels and list(labels)

    @property
    def assets(self) -> dict[str, bytes]:
        """The tokenizer and the names of classes, where there are such."""
        labels = {LABELS: dump_json(self._labels).encode()} if self._labels else {}
        return {**super().assets, **labels}

    def set_assets(self, assets: Mapping[str, bytes]) -> None:
        """Sets what `assets` gives.

        Raises:
            ValueError: for other files, malformed ones, and a tokenizer of another vocabulary size.
        """
        super().set_assets({name: data for name, data in assets.items() if name != LABELS})
        if LABELS in assets:
            self.labels = parse_json(assets[LABELS], LABELS)

    def text_inputs(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, truncate: bool = False
    ) -> dict[str, np.ndarray]:
        """Turns texts, or pairs of texts, into inputs of `sequence_length` tokens.

        Args:
            texts: sequence of str, none of them empty.
            pairs: sequence of str or None. Second segments.
            truncate: bool. Cut what is too long, the longer segment first, rather than refuse it.

        Returns:
            Dict of int32 arrays `(texts, sequence_length)`: `token_ids`, `segment_ids`, `padding_mask`.

        Raises:
            ValueError: for an empty text, one that is too long, and for a model without tokenizer.
        """
        return encode_pairs(self.tokenizer, texts, pairs, self.sequence_length, truncate)

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Returns, for each mask in a text, the likeliest tokens and their probabilities.

        Args:
            text: str with the tokenizer's mask token, `[MASK]`, in it.
            top_k: int.

        Raises:
            ValueError: for a text without mask, a model with another head, and a bad argument.
        """
        require(self.head == "masked_lm", "head", "'masked_lm' to fill masks", repr(self.head))
        require(top_k >= 1, "top_k", "positive", top_k)
        inputs = self.text_inputs([text])
        places = np.flatnonzero(inputs["token_ids"][0] == special_ids(self.tokenizer).mask)
        require(len(places) > 0, "text", "a text with the tokenizer's mask token", repr(text))
        outputs = self({**inputs, "mask_positions": places[None].astype("int32")}, training=False)
        probabilities = np.asarray(ops.softmax(outputs["masked_lm_logits"][0]))
        best = np.argsort(-probabilities, axis=-1)[:, :top_k]
        return [
            [(self.tokenizer.id_to_token(int(token)), float(row[token])) for token in tokens]
            for row, tokens in zip(probabilities, best, strict=True)
        ]

    # === Signatures and held-out data ===

    def token_specs(self) -> dict[str, Spec]:
        """Returns the tokens that every signature takes."""
        shape = ("batch", self.sequence_length)
        return {
            "token_ids": Spec(shape, "int32", "Tokens, the first one [CLS].", 0, self.vocabulary_size - 1),
            "segment_ids": Spec(shape, "int32", "Segment of each token.", 0, self.backbone.num_segments - 1),
            "padding_mask": Spec(shape, "int32", "1 at tokens, 0 at padding.", 0, 1),
        }

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`, the head's outputs, where there is a head, and `encode`."""

        def predict(**inputs: Any) -> dict[str, Any]:
            return self.head_layer.named(self(inputs, training=False))

        def encode(**inputs: Any) -> dict[str, Any]:
            outputs = self.backbone(inputs, training=False)
            return {name: ops.cast(value, "float32") for name, value in outputs.items()}

        meanings = {"sequence_output": "Hidden states of the last layer, (batch, sequence_length, hidden_dim)."}
        if self.backbone.use_pooler:
            meanings["pooled_output"] = "The first token, pooled, (batch, hidden_dim)."
        signatures = {"encode": Signature(encode, self.token_specs(), meanings)}
        if self.head_layer is None:
            return signatures
        specs = {**self.token_specs(), **self.head_layer.specs(self.sequence_length, self.mask_selection_length)}
        return {"predict": Signature(predict, specs, self.head_layer.outputs()), **signatures}

    def held_out(self, dataset: str, split: str) -> tuple[Arrays, Arrays]:
        """Returns masked sequences of a held-out split, as inputs and targets; the same ones each time.

        Single whole words are masked, whatever the training masks, so that models can be compared.

        Args:
            dataset: str. Name for `zoo.datasets.load`; its `text` is documents of one sentence a line.
            split: str.
        """
        require(self.head == "masked_lm", "head", "'masked_lm' for held-out masked text", repr(self.head))
        sizes = self.sequence_length, self.mask_selection_length
        return held_out_examples(self.assets[TOKENIZER], dataset, split, self.sentence_loss, *sizes)

    def scores(self, run: Runner, dataset: str, split: str, count: int | None = None) -> dict[str, float]:
        """Returns how well a split's masked tokens and segments are recognised.

        Args:
            run: `Runner`.
            dataset: str. See `held_out`.
            split: str.
            count: int or None. Sequences to look at, all by default.

        Returns:
            Dict of `masked_lm_accuracy`, `masked_lm_loss` in nats per masked token and, where segments are judged,
            `sentence_accuracy`.
        """
        inputs, targets = ({k: v[:count] for k, v in part.items()} for part in self.held_out(dataset, split))
        total, correct, hits = 0.0, 0.0, []
        for start in range(0, len(targets["mask_ids"]), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            outputs = run("predict", {name: array[rows] for name, array in inputs.items()})
            ids, weights = targets["mask_ids"][rows], targets["mask_weights"][rows]
            logits = outputs["masked_lm_logits"].astype("float64")
            highest = logits.max(axis=-1, keepdims=True)
            log_total = np.log(np.exp(logits - highest).sum(axis=-1)) + highest[..., 0]
            own = np.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
            total += float((weights * (log_total - own)).sum())
            correct += float((weights * (logits.argmax(axis=-1) == ids)).sum())
            if "sentence_logits" in outputs:
                hits.append(outputs["sentence_logits"].argmax(axis=-1) == targets["sentence_label"][rows])
        tokens = float(targets["mask_weights"].sum())
        found = {"masked_lm_accuracy": correct / tokens, "masked_lm_loss": total / tokens}
        return {**found, "sentence_accuracy": float(np.concatenate(hits).mean())} if hits else found

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields validation texts, masked for the head of pretraining, of the data set the checkpoint names.

        Nothing without a checkpoint, and for one that was fine-tuned on files.
        """
        if self.metadata is not None and (task := self._task()):
            inputs, _ = task.encode(self, "validation")
            for start in range(0, len(inputs["token_ids"]) - batch_size + 1, batch_size):
                yield {name: array[start : start + batch_size] for name, array in inputs.items()}
        if self.metadata is None or self.head != "masked_lm":
            return
        inputs, _ = self.held_out(self.metadata.evaluation_dataset, "validation")
        names = self._signature(signature).inputs
        for start in range(0, len(inputs["token_ids"]) - batch_size + 1, batch_size):
            yield {name: inputs[name][start : start + batch_size] for name in names}

    def task_metric(self) -> TaskMetric | None:
        """Returns the accuracy on the test split, of classes or on masked tokens.

        `None` without a checkpoint, and for one that was fine-tuned on files.
        """
        if self.metadata is not None and (task := self._task()):
            return TaskMetric(
                "accuracy",
                lambda run: task.scores(self, run, "test")["accuracy"],
                higher_is_better=True,
                absolute_tolerance=0.01,
            )
        if self.metadata is None or self.head != "masked_lm":
            return None
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "masked_lm_accuracy",
            lambda run: self.scores(run, dataset, "test", NUM_JUDGED)["masked_lm_accuracy"],
            higher_is_better=True,
            absolute_tolerance=0.01,
        )

    def _task(self) -> Task | None:
        """Returns the labelled data of the catalog that the checkpoint was fine-tuned on."""
        from zoo.training.task import recorded_task

        return recorded_task(self.metadata)

    # === Hugging Face ===

    def save_to_hugging_face(self, directory: str | Path) -> Path:
        """Writes a directory that Hugging Face's transformers load: configuration, safetensors, tokenizer.

        Args:
            directory: path. It must not exist, or be empty.

        Returns:
            The directory.

        Raises:
            ImportError: without the package `safetensors`.
            ValueError: for a directory that holds something.
        """
        module = importlib.import_module(f"{type(self).__module__}_conversion")
        return module.to_hugging_face(self, directory)

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        keras_own = ("name", "dtype", "trainable")
        backbone = {key: value for key, value in self.backbone.get_config().items() if key not in keras_own}
        return {
            **super().get_config(),
            **backbone,
            "head": self.head,
            "sentence_loss": self.sentence_loss,
            "num_classes": self.num_classes,
            "head_dropout": self.head_dropout,
            "sequence_length": self.sequence_length,
            "mask_selection_length": self.mask_selection_length,
        }


def _kind(value: Any) -> str:
    """Returns what an input is, for an error: type and shape of a tensor."""
    if not hasattr(value, "shape"):
        return type(value).__name__
    return f"{keras.backend.standardize_dtype(value.dtype)} {value.shape}"
