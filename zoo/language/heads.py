"""Heads of text encoders: small layers on what a backbone gives, each with its loss and the outputs it deploys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import ops

from zoo.model import Spec
from zoo.ops.activations import ACTIVATIONS

if TYPE_CHECKING:
    from zoo.language.backbone import TextBackbone

Outputs = dict[str, Any]


class Head(keras.layers.Layer):
    """Base of heads.

    Args:
        hidden_dim: int. Width of what the backbone gives.
        initializer_stddev: float. Kernels start from a normal distribution cut at two of these.
    """

    # Whether it reads the pooled first token
    needs_pooler = False

    def __init__(self, hidden_dim: int, initializer_stddev: float = 0.02, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.initializer_stddev = initializer_stddev

    def dense(self, name: str, units: int, activation: Any = None) -> keras.layers.Dense:
        """Returns a dense layer that starts as the backbone's."""
        return keras.layers.Dense(
            units,
            activation=activation,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=self.initializer_stddev),
            dtype=self.dtype_policy,
            name=name,
        )

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Any:
        """Applies the head.

        Args:
            encoded: dict. Outputs of the backbone.
            inputs: dict. Inputs of the model.
            table: float tensor `(vocabulary_size, embedding_dim)`. The backbone's token embeddings.
            training: bool or None.

        Returns:
            Float32 tensor, or dict of such.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no call.")

    def loss(self, targets: Any, outputs: Any, sample_weight: Any = None) -> Any:
        """Returns the scalar loss of a batch."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def specs(self, length: int, predictions: int) -> dict[str, Spec]:
        """Returns inputs of the deployed model beyond its tokens.

        Args:
            length: int. Tokens of a sequence.
            predictions: int. Masked tokens of a sequence.
        """
        return {}

    def outputs(self) -> dict[str, str]:
        """Returns what the deployed model gives: name and meaning."""
        raise NotImplementedError(f"{type(self).__name__} defines no outputs.")

    def named(self, outputs: Any) -> Outputs:
        """Returns the outputs of `call` as a dict."""
        return outputs if isinstance(outputs, Mapping) else dict.fromkeys(self.outputs(), outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "initializer_stddev": self.initializer_stddev,
        }


def cross_entropy(labels: Any, logits: Any, sample_weight: Any = None) -> Any:
    """Returns the mean cross-entropy of labels; those below 0 are left out.

    Args:
        labels: int tensor.
        logits: float tensor with one more axis, of classes.
        sample_weight: float tensor or None. Broadcast over further axes of the labels.
    """
    weights = ops.cast(labels >= 0, logits.dtype)
    if sample_weight is not None:
        shape = (-1,) + (1,) * (len(labels.shape) - 1)
        weights = weights * ops.reshape(ops.cast(sample_weight, logits.dtype), shape)
    nats = ops.sparse_categorical_crossentropy(ops.maximum(labels, 0), logits, from_logits=True)
    return ops.sum(weights * nats) / ops.maximum(ops.sum(weights), 1e-5)


@keras.saving.register_keras_serializable(package="zoo")
class MaskedLMHead(Head):
    """Says what masked tokens were and, where there are two segments to judge, how they belong together.

    The output matrix is the table of token embeddings, at its width.

    Args:
        hidden_dim: int.
        embedding_dim: int. Width of the table.
        vocabulary_size: int.
        sentence_classes: int. 2 for a head on the pooled first token beside, 0 for none.
        activation: callable or its name.
        layer_norm_epsilon: float.
        initializer_stddev: float.

    Targets: dict of `mask_ids` int `(batch, predictions)`, `mask_weights` (1 at predictions, 0 at filler) and, with the
    second head, `sentence_label` int `(batch,)`.

    Reference:
        Devlin et al. 2019, section 3.1 and appendix A.1; Lan et al. 2020, section 3.1.
    """

    def __init__(
        self,
        hidden_dim: int,
        embedding_dim: int,
        vocabulary_size: int,
        sentence_classes: int = 2,
        activation: Any = "gelu",
        layer_norm_epsilon: float = 1e-12,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(hidden_dim, initializer_stddev, **kwargs)
        self.embedding_dim = embedding_dim
        self.vocabulary_size = vocabulary_size
        self.sentence_classes = sentence_classes
        self.activation = keras.activations.get(activation)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.needs_pooler = sentence_classes > 0
        self.transform = self.dense("transform", embedding_dim, self.activation)
        self.norm = keras.layers.LayerNormalization(epsilon=layer_norm_epsilon, dtype=self.dtype_policy, name="norm")
        self.sentence = self.dense("sentence", sentence_classes) if sentence_classes else None

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables, from sizes alone."""
        self.transform.build((None, None, self.hidden_dim))
        self.norm.build((None, None, self.embedding_dim))
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")
        if self.sentence is not None:
            self.sentence.build((None, self.hidden_dim))

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Outputs:
        """Returns `masked_lm_logits` `(batch, predictions, vocabulary_size)` and, with the second head, `sentence_logits`.

        Predictions are at `mask_positions` of the inputs, or at every token where there is no such input.
        """
        return {
            "masked_lm_logits": self.word_logits(self.states(encoded, inputs), table),
            **self.sentence_outputs(encoded),
        }

    def states(self, encoded: Outputs, inputs: Outputs) -> Any:
        """Returns what is compared with the table at each prediction, `(batch, predictions, embedding_dim)`."""
        hidden = encoded["sequence_output"]
        if "mask_positions" in inputs:
            hidden = tf.gather(hidden, inputs["mask_positions"], batch_dims=1)
        return self.norm(self.transform(hidden))

    def word_logits(self, states: Any, table: Any) -> Any:
        """Returns logits of all words."""
        count = ops.shape(states)[1]
        hidden = ops.reshape(states, (-1, self.embedding_dim))
        # The table as its rows lie: a converter stores it once
        logits = tf.matmul(hidden, ops.cast(table, hidden.dtype), transpose_b=True)
        logits = ops.cast(logits, "float32") + ops.cast(self.bias, "float32")
        return ops.reshape(logits, (-1, count, self.vocabulary_size))

    def sentence_outputs(self, encoded: Outputs) -> Outputs:
        """Returns `sentence_logits` where there is the second head."""
        if self.sentence is None:
            return {}
        return {"sentence_logits": ops.cast(self.sentence(encoded["pooled_output"]), "float32")}

    def loss(self, targets: Outputs, outputs: Outputs, sample_weight: Any = None) -> Any:
        """Returns the weighted mean over masked tokens, plus the mean over sentence labels."""
        logits = outputs["masked_lm_logits"]
        weights = ops.cast(targets["mask_weights"], logits.dtype)
        if sample_weight is not None:
            weights = weights * ops.reshape(ops.cast(sample_weight, logits.dtype), (-1, 1))
        nats = ops.sparse_categorical_crossentropy(targets["mask_ids"], logits, from_logits=True)
        loss = ops.sum(weights * nats) / (ops.sum(weights) + 1e-5)
        if self.sentence is None:
            return loss
        return loss + cross_entropy(targets["sentence_label"], outputs["sentence_logits"], sample_weight)

    def specs(self, length: int, predictions: int) -> dict[str, Spec]:
        """Returns the positions to predict."""
        description = "Positions to predict; repeat one where there are fewer."
        return {"mask_positions": Spec(("batch", predictions), "int32", description, 0, length - 1)}

    def outputs(self) -> dict[str, str]:
        """Returns the names of the logits."""
        outputs = {
            "masked_lm_logits": "Logits of the token at each position, (batch, mask_selection_length, vocabulary_size)."
        }
        if self.sentence is not None:
            outputs["sentence_logits"] = (
                "Logits of 0, segments as they followed, and 1, swapped or strangers, (batch, 2)."
            )
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "embedding_dim": self.embedding_dim,
            "vocabulary_size": self.vocabulary_size,
            "sentence_classes": self.sentence_classes,
            "activation": keras.activations.serialize(self.activation),
            "layer_norm_epsilon": self.layer_norm_epsilon,
        }


class _Classifier(Head):
    """An affine map to classes after dropout.

    Args:
        hidden_dim: int.
        num_classes: int.
        dropout: float.
        initializer_stddev: float.
    """

    def __init__(
        self, hidden_dim: int, num_classes: int, dropout: float = 0.1, initializer_stddev: float = 0.02, **kwargs: Any
    ) -> None:
        super().__init__(hidden_dim, initializer_stddev, **kwargs)
        self.num_classes = num_classes
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.classifier = self.dense("classifier", num_classes)

    def build(self, input_shape: Any = None) -> None:
        """Creates the map."""
        self.classifier.build((None, self.hidden_dim))

    def _classify(self, hidden: Any, training: bool | None) -> Any:
        return ops.cast(self.classifier(self.dropout_layer(hidden, training=training)), "float32")

    def loss(self, targets: Any, outputs: Any, sample_weight: Any = None) -> Any:
        """Returns the mean cross-entropy of int labels; those below 0 are left out."""
        return cross_entropy(targets, outputs, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "num_classes": self.num_classes, "dropout": self.dropout_layer.rate}


@keras.saving.register_keras_serializable(package="zoo")
class ClassificationHead(_Classifier):
    """Classes of whole texts, from the pooled first token; targets are int labels `(batch,)`."""

    needs_pooler = True

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Any:
        """Returns logits `(batch, num_classes)`."""
        return self._classify(encoded["pooled_output"], training)

    def outputs(self) -> dict[str, str]:
        """Returns the name of the logits."""
        return {"logits": "Logits of the classes, (batch, num_classes)."}


@keras.saving.register_keras_serializable(package="zoo")
class TokenClassificationHead(_Classifier):
    """Classes of tokens; targets are int labels `(batch, length)`, below 0 where none is wanted."""

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Any:
        """Returns logits `(batch, length, num_classes)`."""
        return self._classify(encoded["sequence_output"], training)

    def outputs(self) -> dict[str, str]:
        """Returns the name of the logits."""
        return {"logits": "Logits of the classes of each token, (batch, sequence_length, num_classes)."}


@keras.saving.register_keras_serializable(package="zoo")
class QuestionAnsweringHead(Head):
    """First and last token of an answer; targets are int `start_positions` and `end_positions` `(batch,)`."""

    def __init__(self, hidden_dim: int, initializer_stddev: float = 0.02, **kwargs: Any) -> None:
        super().__init__(hidden_dim, initializer_stddev, **kwargs)
        self.span = self.dense("span", 2)

    def build(self, input_shape: Any = None) -> None:
        """Creates the map."""
        self.span.build((None, None, self.hidden_dim))

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Outputs:
        """Returns `start_logits` and `end_logits`, `(batch, length)`."""
        logits = ops.cast(self.span(encoded["sequence_output"]), "float32")
        start, end = (ops.squeeze(part, -1) for part in ops.split(logits, 2, axis=-1))
        return {"start_logits": start, "end_logits": end}

    def loss(self, targets: Outputs, outputs: Outputs, sample_weight: Any = None) -> Any:
        """Returns the mean cross-entropy of both ends; positions below 0 are left out."""
        losses = [
            cross_entropy(targets[f"{end}_positions"], outputs[f"{end}_logits"], sample_weight)
            for end in ("start", "end")
        ]
        return (losses[0] + losses[1]) / 2

    def outputs(self) -> dict[str, str]:
        """Returns the names of the logits."""
        return {
            f"{end}_logits": f"Logits of the {word} token of the answer, (batch, sequence_length)."
            for end, word in (("start", "first"), ("end", "last"))
        }


HEADS = {
    "masked_lm": MaskedLMHead,
    "classification": ClassificationHead,
    "token_classification": TokenClassificationHead,
    "question_answering": QuestionAnsweringHead,
}


def make_head(name: str, backbone: TextBackbone, sentence_classes: int, num_classes: int, dropout: float) -> Head:
    """Returns a head that fits a backbone.

    Args:
        name: str. One of `HEADS`.
        backbone: `TextBackbone`.
        sentence_classes: int. Of `"masked_lm"`.
        num_classes: int. Of the two classifications.
        dropout: float. Of the two classifications.
    """
    arguments: dict[str, Any] = {
        "masked_lm": dict(
            embedding_dim=backbone.embedding_dim,
            vocabulary_size=backbone.vocabulary_size,
            sentence_classes=sentence_classes,
            activation=ACTIVATIONS[backbone.activation],
            layer_norm_epsilon=backbone.layer_norm_epsilon,
        ),
        "classification": dict(num_classes=num_classes, dropout=dropout),
        "token_classification": dict(num_classes=num_classes, dropout=dropout),
        "question_answering": {},
    }
    return HEADS[name](
        backbone.hidden_dim,
        **arguments[name],
        initializer_stddev=backbone.initializer_stddev,
        dtype=backbone.dtype_policy,
        name="head",
    )
