"""Transformer-XH: attention that hops between linked texts.

Zhao, Xiong, Rosset, Song, Bennett, Tiwary, ICLR 2020, https://openreview.net/forum?id=r1eIiCNYwS.

Several short texts are nodes of a graph. A BERT encoder reads each by itself; in its last K layers the first token of a text,
its hub, also attends to the hubs of the texts that link to it. The next layer's ordinary attention brings what a hub has
received to the other tokens, so that K layers carry information over K edges:

    H_t   = BertLayer(H~_t)                                       in every text t
    h^_t  = sum_s softmax_s(q^_t . k^_s / sqrt(d_k)) v^_s         over the texts s with an edge to t
    h~_t0 = W [h_t0 ; h^_t] + b                                   in the hub's place; no residual, no normalisation

Undefined there and chosen here: a text that nothing links to has h^ = 0. `hop_attention="gat"` is what the authors' released
code runs instead of the second line, a graph attention network's score with shared projections.

Differs from the paper: weights start at random, where theirs are those of BERT-base except for the hops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from zoo.arguments import require
from zoo.datasets.fever import LABELS
from zoo.layers.transformer_encoder import TransformerEncoderLayer
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.ops import masked_softmax, merge_heads, split_heads
from zoo.ops.attention import MASKED_SCORE
from zoo.sequence.evidence_graphs import (
    IGNORED,
    Document,
    Edge,
    claim_graph,
    fully_connected,
    mention_edges,
    question_graph,
    stack_graphs,
)
from zoo.sequence.text_model import TextModel

HOP_ATTENTIONS = ("dot", "gat")
# Longest answer, in tokens.
LONGEST_SPAN = 10
EVALUATION_BATCH = 100


# === Hop attention ===


@keras.saving.register_keras_serializable(package="zoo")
class HopAttention(keras.layers.Layer):
    """Attention between the hubs of linked texts.

    Args:
        num_heads: int. Divides the width of the hubs.
        hop_attention: str. `"dot"`, the paper's scaled dot product, or `"gat"`, the released code's: one projection W shared
            by all heads, scores LeakyReLU(a_t . W h_t + a_s . W h_s), and after the sum of W h_s a second shared projection
            of h_t and a ReLU.
        initializer_stddev: float. Kernels of `"dot"` start from N(0, stddev^2); weights of `"gat"` are Glorot normal.

    Reference:
        Zhao et al. 2020, section 3; Velickovic et al. 2018 for `"gat"`.
    """

    def __init__(
        self,
        num_heads: int,
        hop_attention: Literal["dot", "gat"] = "dot",
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(hop_attention in HOP_ATTENTIONS, "hop_attention", f"one of {HOP_ATTENTIONS}", hop_attention)
        self.num_heads = num_heads
        self.hop_attention = hop_attention
        self.initializer_stddev = initializer_stddev

    def build(self, input_shape: Any) -> None:
        """Creates the projections for hubs `(batch, nodes, hidden_dim)`."""
        dim = input_shape[-1]
        head_dim = dim // self.num_heads
        if self.hop_attention == "dot":
            self.query, self.key, self.value = (
                self._dense(name, dim, dim, keras.initializers.RandomNormal(stddev=self.initializer_stddev), True)
                for name in ("query", "key", "value")
            )
            return
        self.shared, self.residual = (
            self._dense(name, head_dim, head_dim, _glorot(), False) for name in ("shared", "residual")
        )
        self.source_vector, self.target_vector = (
            self.add_weight(name=name, shape=(self.num_heads, head_dim), initializer=_glorot())
            for name in ("source_vector", "target_vector")
        )

    def _dense(self, name: str, inputs: int, units: int, initializer: Any, use_bias: bool) -> keras.layers.Dense:
        layer = keras.layers.Dense(
            units, use_bias=use_bias, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
        )
        layer.build((None, None, inputs))
        return layer

    def call(self, hubs: Any, edges: Any) -> tuple[Any, Any]:
        """Attends.

        Args:
            hubs: float tensor `(batch, nodes, hidden_dim)`.
            edges: bool tensor `(batch, 1, nodes, nodes)`: entry (t, s) says that t receives from s.

        Returns:
            Tuple of h^ `(batch, nodes, hidden_dim)` and the attention weights `(batch, heads, nodes, nodes)`, zeros where
            nothing is received.
        """
        if self.hop_attention == "dot":
            query, key, value = (
                split_heads(layer(hubs), self.num_heads) for layer in (self.query, self.key, self.value)
            )
            scores = ops.matmul(query / math.sqrt(query.shape[-1]), ops.transpose(key, (0, 1, 3, 2)))
            weights = masked_softmax(scores, edges)
            return merge_heads(ops.matmul(weights, value)), weights
        heads = split_heads(hubs, self.num_heads)
        value = self.shared(heads)
        source, target = (
            ops.sum(value * ops.expand_dims(ops.cast(vector, value.dtype), 1), axis=-1)
            for vector in (self.source_vector, self.target_vector)
        )
        scores = ops.expand_dims(target, 3) + ops.expand_dims(source, 2)
        weights = masked_softmax(ops.maximum(scores, 0.2 * scores), edges)
        return merge_heads(ops.relu(ops.matmul(weights, value) + self.residual(heads))), weights

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "hop_attention": self.hop_attention,
            "initializer_stddev": self.initializer_stddev,
        }


def _glorot() -> keras.initializers.Initializer:
    """Glorot normal with the gain of a ReLU, sqrt(2)."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_avg", distribution="untruncated_normal")


@keras.saving.register_keras_serializable(package="zoo")
class TransformerXHLayer(keras.layers.Layer):
    """A BERT layer in every text, then a hop of the hubs.

    Args:
        num_heads: int. Of both attentions.
        intermediate_dim: int. Width inside the feed-forward network.
        hop_attention: str. See `HopAttention`.
        dropout: float.
        attention_dropout: float. Rate on the probabilities of attention inside a text.
        initializer_stddev: float.

    Reference:
        Zhao et al. 2020, section 3.
    """

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        hop_attention: Literal["dot", "gat"] = "dot",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initializer_stddev = initializer_stddev
        self.sequence_layer = TransformerEncoderLayer(
            num_heads,
            intermediate_dim,
            dropout=dropout,
            attention_dropout=attention_dropout,
            initializer_stddev=initializer_stddev,
            dtype=self.dtype_policy,
            name="sequence_layer",
        )
        self.hop = HopAttention(num_heads, hop_attention, initializer_stddev, dtype=self.dtype_policy, name="hop")

    def build(self, input_shape: Any) -> None:
        """Creates the weights for texts `(texts, length, hidden_dim)`."""
        dim = input_shape[-1]
        # The bias as PyTorch starts it, which is what "default" means in the authors' code.
        bound = 1 / math.sqrt(2 * dim)
        self.combine = keras.layers.Dense(
            dim,
            kernel_initializer=keras.initializers.RandomNormal(stddev=self.initializer_stddev),
            bias_initializer=keras.initializers.RandomUniform(-bound, bound),
            dtype=self.dtype_policy,
            name="combine",
        )
        self.sequence_layer.build(input_shape)
        self.hop.build((None, None, dim))
        self.combine.build((None, None, 2 * dim))

    def call(self, hidden: Any, attention_mask: Any, edges: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Applies the layer.

        Args:
            hidden: float tensor `(batch * nodes, length, hidden_dim)`.
            attention_mask: bool tensor `(batch * nodes, 1, 1, length)`.
            edges: bool tensor `(batch, 1, nodes, nodes)`.
            training: bool or None.

        Returns:
            Tuple of a tensor like `hidden` and the hop's attention weights.
        """
        hidden = self.sequence_layer(hidden, attention_mask, training=training)
        shape = (ops.shape(edges)[0], ops.shape(edges)[-1], hidden.shape[-1])
        hubs = ops.reshape(hidden[:, :1], shape)
        received, weights = self.hop(hubs, edges)
        hubs = self.combine(ops.concatenate([hubs, received], axis=-1))
        hubs = ops.reshape(hubs, (-1, 1, hidden.shape[-1]))
        return ops.concatenate([hubs, hidden[:, 1:]], axis=1), weights

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        sequence = self.sequence_layer.get_config()
        shared = ("num_heads", "intermediate_dim", "dropout", "attention_dropout", "initializer_stddev")
        return {
            **super().get_config(),
            **{key: sequence[key] for key in shared},
            "hop_attention": self.hop.hop_attention,
        }


# === The encoder ===


class TransformerXH(TextModel):
    """The encoder of linked texts, which the models of both tasks are made of.

    Args:
        vocabulary_size: int.
        num_layers: int. All layers N.
        hidden_dim: int.
        num_heads: int. Divides `hidden_dim`.
        intermediate_dim: int. Width inside the feed-forward networks.
        num_hop_layers: int. Of the layers, how many at the end hop (K). Defaults to 3.
        hop_attention: str. `"dot"` or `"gat"`, see `HopAttention`. Defaults to `"dot"`.
        num_nodes: int. Texts of a graph, in signatures and where graphs are made from text; graphs of `fit` and `call` may
            have any number.
        sequence_length: int. Tokens of a text, likewise.
        max_sequence_length: int. Learned positions. Defaults to 512.
        dropout: float. Defaults to 0.1.
        attention_dropout: float. Rate on the probabilities of attention inside a text. Defaults to 0.1.
        freeze_pooler: bool. Leave the pooler as it is, as the authors' training does with BERT's. Never freeze one that
            starts at random. Defaults to False.
        initializer_stddev: float. Kernels start from N(0, stddev^2). Defaults to 0.02.

    Reference:
        Zhao et al. 2020, section 3.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        num_hop_layers: int = 3,
        hop_attention: Literal["dot", "gat"] = "dot",
        num_nodes: int = 5,
        sequence_length: int = 128,
        max_sequence_length: int = 512,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        freeze_pooler: bool = False,
        initializer_stddev: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = dict(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            intermediate_dim=intermediate_dim,
            num_nodes=num_nodes,
            sequence_length=sequence_length,
        )
        for name, value in sizes.items():
            require(value >= 1, name, "positive", value)
        require(hidden_dim % num_heads == 0, "num_heads", f"a divisor of `hidden_dim` {hidden_dim}", num_heads)
        require(0 <= num_hop_layers <= num_layers, "num_hop_layers", f"from 0 to {num_layers}", num_hop_layers)
        require(hop_attention in HOP_ATTENTIONS, "hop_attention", f"one of {HOP_ATTENTIONS}", hop_attention)
        require(sequence_length <= max_sequence_length, "sequence_length", f"<= {max_sequence_length}", sequence_length)
        self.vocabulary_size = vocabulary_size
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.num_hop_layers = num_hop_layers
        self.hop_attention = hop_attention
        self.num_nodes = num_nodes
        self.sequence_length = sequence_length
        self.max_sequence_length = max_sequence_length
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.freeze_pooler = freeze_pooler
        self.initializer_stddev = initializer_stddev

        # === Layers ===
        self.token_embedding, self.position_embedding, self.segment_embedding = (
            keras.layers.Embedding(size, hidden_dim, self._normal(), dtype=self.dtype_policy, name=f"{name}_embedding")
            for name, size in (("token", vocabulary_size), ("position", max_sequence_length), ("segment", 2))
        )
        self.embedding_norm = keras.layers.LayerNormalization(
            epsilon=1e-12, dtype=self.dtype_policy, name="embedding_norm"
        )
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        options = dict(
            dropout=dropout,
            attention_dropout=attention_dropout,
            initializer_stddev=initializer_stddev,
            dtype=self.dtype_policy,
        )
        self.sequence_layers = [
            TransformerEncoderLayer(num_heads, intermediate_dim, **options, name=f"layer_{index}")
            for index in range(num_layers - num_hop_layers)
        ]
        self.hop_layers = [
            TransformerXHLayer(num_heads, intermediate_dim, hop_attention, **options, name=f"layer_{index}")
            for index in range(num_layers - num_hop_layers, num_layers)
        ]
        self.pooler = self._dense("pooler", hidden_dim, activation="tanh")
        self.pooler.trainable = not freeze_pooler

    def _normal(self) -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(stddev=self.initializer_stddev)

    def _dense(self, name: str, units: int, activation: str | None = None) -> keras.layers.Dense:
        return keras.layers.Dense(
            units, activation=activation, kernel_initializer=self._normal(), dtype=self.dtype_policy, name=name
        )

    def encode(self, inputs: Any, training: bool | None = None) -> tuple[Any, list[Any]]:
        """Reads the texts of a graph.

        Args:
            inputs: dict of int tensors: `token_ids`, `segment_ids` (0 or 1) and `padding_mask` (1 at tokens) `(batch, nodes,
                length)`; `adjacency` `(batch, nodes, nodes)`, whose entry (t, s) is 1 where text t receives from text s;
                `node_mask` `(batch, nodes)`, 1 at texts. Edges of texts that are masked are ignored.
            training: bool or None.

        Returns:
            Tuple of hidden states `(batch, nodes, length, hidden_dim)` and a list of the attention weights of each hop,
            `(batch, heads, nodes, nodes)`.
        """
        batch, nodes, length = (ops.shape(inputs["token_ids"])[axis] for axis in range(3))
        flat = (-1, length)
        token_ids, segment_ids, mask = (
            ops.reshape(inputs[name], flat) for name in ("token_ids", "segment_ids", "padding_mask")
        )
        hidden = self.token_embedding(token_ids) + self.segment_embedding(segment_ids)
        hidden = hidden + self.position_embedding(ops.arange(length, dtype="int32"))
        hidden = self.dropout_layer(self.embedding_norm(hidden), training=training)
        attention_mask = ops.reshape(mask, (-1, 1, 1, length)) > 0
        for layer in self.sequence_layers:
            hidden = layer(hidden, attention_mask, training=training)
        edges, weights = _existing_edges(inputs["adjacency"], inputs["node_mask"]), []
        for layer in self.hop_layers:
            hidden, hop_weights = layer(hidden, attention_mask, edges, training=training)
            weights.append(hop_weights)
        return ops.reshape(hidden, (batch, nodes, length, self.hidden_dim)), weights

    def pool(self, hidden: Any, training: bool | None = None) -> Any:
        """Returns the hubs `(batch, nodes, hidden_dim)` of hidden states, through the pooler and dropout."""
        shape = ops.shape(hidden)
        hubs = ops.reshape(hidden[:, :, :1], (shape[0], shape[1], self.hidden_dim))
        return self.dropout_layer(self.pooler(hubs), training=training)

    # === Training ===

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean over graphs of `graph_losses`, weighted where there are weights."""
        losses = self.graph_losses(x, y, y_pred)
        return ops.mean(losses if sample_weight is None else losses * ops.cast(sample_weight, losses.dtype))

    def graph_losses(self, inputs: Any, targets: Any, outputs: Any) -> Any:
        """Returns the loss of each graph, `(batch,)`, from inputs, targets and the outputs of `call`."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    # === Signatures ===

    def graph_specs(self) -> dict[str, Spec]:
        """Returns the inputs of a signature."""
        texts, count = ("batch", self.num_nodes, self.sequence_length), ("batch", self.num_nodes)
        return {
            "token_ids": Spec(texts, "int32", "Tokens of each text, its hub first.", 0, self.vocabulary_size - 1),
            "segment_ids": Spec(texts, "int32", "Segment of each token.", 0, 1),
            "padding_mask": Spec(texts, "int32", "1 at tokens, 0 at padding.", 0, 1),
            "adjacency": Spec((*count, self.num_nodes), "int32", "1 at (t, s) where text t receives from s.", 0, 1),
            "node_mask": Spec(count, "int32", "1 at texts, 0 at padding.", 0, 1),
        }

    # === Config ===

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "num_hop_layers": self.num_hop_layers,
            "hop_attention": self.hop_attention,
            "num_nodes": self.num_nodes,
            "sequence_length": self.sequence_length,
            "max_sequence_length": self.max_sequence_length,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "freeze_pooler": self.freeze_pooler,
            "initializer_stddev": self.initializer_stddev,
        }


def _existing_edges(adjacency: Any, node_mask: Any) -> Any:
    """Returns the edges between texts that exist, bool `(batch, 1, nodes, nodes)`."""
    nodes = ops.shape(node_mask)[1]
    exists = node_mask > 0
    between = ops.logical_and(ops.reshape(exists, (-1, 1, 1, nodes)), ops.reshape(exists, (-1, 1, nodes, 1)))
    return ops.logical_and(ops.reshape(adjacency, (-1, 1, nodes, nodes)) > 0, between)


def _mean_where(values: Any, mask: Any) -> Any:
    """Returns the mean of values over the last axis where a mask holds; 0 where it holds nowhere."""
    mask = ops.cast(mask, values.dtype)
    return ops.sum(values * mask, axis=-1) / ops.maximum(ops.sum(mask, axis=-1), 1.0)


def _node_loss(labels: Any, scores: Any) -> Any:
    """Returns the mean cross-entropy of labelled nodes, `(batch,)`; nodes labelled -1 are left out."""
    targets = ops.cast(labels, scores.dtype)
    losses = ops.maximum(scores, 0.0) - scores * targets + ops.log1p(ops.exp(-ops.absolute(scores)))
    return _mean_where(losses, ops.not_equal(labels, IGNORED))


def _pick(log_probs: Any, positions: Any) -> Any:
    """Returns the entries of the last axis at given positions; of the first one where a position is negative."""
    places = ops.expand_dims(ops.maximum(positions, 0), -1)
    return ops.squeeze(ops.take_along_axis(log_probs, places, axis=-1), -1)


# === Fact verification ===


@keras.saving.register_keras_serializable(package="zoo")
class TransformerXHVerifier(TransformerXH):
    """Verifies claims: a graph of pieces of evidence gives one of three labels.

    Every text scores its own weight and says its own label; the label's probability is the mixture
    p(y) = sum_t softmax_t(s)_t softmax(c_t)_y.

    `fit` takes the inputs of `encode` and targets `{"label": (batch,), "node_labels": (batch, nodes)}`: the place of the
    label in `LABELS`, and whether a text is needed (1), not (0) or unknown (-1).

    Args:
        double_softmax: bool. The released trainer's loss, which takes p(y) for logits. Defaults to False.
        link_mentions: bool. Where graphs are made from text, link a page to those whose titles it mentions, instead of all
            to all as in the paper. Defaults to False.
        **kwargs: arguments of `TransformerXH`.

    Example:

    ```python
    model = zoo.get("transformer_xh")
    pages = [("pug", ["parent dog"]), ("dog", ["parent canine"]), ("lynx", ["parent feline"])]
    model.verify("pug grandparent canine", pages)               # {"label": "SUPPORTS", ...}
    ```

    Reference:
        Zhao et al. 2020, section 4.2.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        double_softmax: bool = False,
        link_mentions: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary_size, num_layers, hidden_dim, num_heads, intermediate_dim, **kwargs)
        self.double_softmax = double_softmax
        self.link_mentions = link_mentions
        self.score_layer = self._dense("node_score", 1)
        self.class_layer = self._dense("class_logits", len(LABELS))

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Returns `label_probs` `(batch, 3)`, their logarithms `label_log_probs` and `node_scores` `(batch, nodes)`."""
        hidden, _ = self.encode(inputs, training)
        pooled = self.pool(hidden, training)
        scores, logits = (ops.cast(layer(pooled), "float32") for layer in (self.score_layer, self.class_layer))
        scores = ops.squeeze(scores, -1)
        log_probs = self.mixture(scores, logits, inputs["node_mask"])
        return {"label_probs": ops.exp(log_probs), "label_log_probs": log_probs, "node_scores": scores}

    def mixture(self, scores: Any, logits: Any, node_mask: Any) -> Any:
        """Returns the logarithm of the mixture of all texts' labels.

        Args:
            scores: float tensor `(batch, nodes)`.
            logits: float tensor `(batch, nodes, 3)`.
            node_mask: int tensor `(batch, nodes)`. A graph without any text is the mixture of its padding.

        Returns:
            Float tensor `(batch, 3)`.
        """
        masked = ops.where(node_mask > 0, scores, ops.cast(MASKED_SCORE, scores.dtype))
        weights = ops.exp(ops.log_softmax(masked, axis=-1))
        # A logarithm of sums of exponentials of differences, so that rare labels keep a gradient.
        log_probs = ops.log_softmax(logits, axis=-1)
        highest = ops.stop_gradient(ops.max(log_probs, axis=1, keepdims=True))
        mixed = ops.sum(ops.expand_dims(weights, -1) * ops.exp(log_probs - highest), axis=1)
        return ops.log(mixed + 1e-20) + ops.squeeze(highest, 1)

    def graph_losses(self, inputs: Any, targets: Any, outputs: Any) -> Any:
        """Returns -log p(label) + the mean cross-entropy of the nodes' scores, of each graph."""
        log_probs = outputs["label_log_probs"]
        if self.double_softmax:
            log_probs = ops.log_softmax(outputs["label_probs"], axis=-1)
        existing = ops.where(inputs["node_mask"] > 0, targets["node_labels"], IGNORED)
        return _node_loss(existing, outputs["node_scores"]) - _pick(log_probs, targets["label"])

    # === Signatures and held-out data ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`."""

        def predict(**inputs: Any) -> dict[str, Any]:
            outputs = self(inputs, training=False)
            return {name: outputs[name] for name in ("label_probs", "node_scores")}

        outputs = {
            "label_probs": f"Probabilities of {', '.join(LABELS)}, (batch, 3).",
            "node_scores": "Score of each text as evidence, (batch, num_nodes).",
        }
        return {"predict": Signature(predict, self.graph_specs(), outputs)}

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields validation claims of the data set the checkpoint names; nothing without a checkpoint."""
        if self.metadata is not None:
            for inputs, _ in self.labelled_claims(self.metadata.evaluation_dataset, "validation", batch_size):
                if len(inputs["node_mask"]) == batch_size:
                    yield inputs

    def task_metric(self) -> TaskMetric | None:
        """Returns the accuracy on the test claims; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "accuracy",
            lambda run: float(np.mean(self.hits(run, dataset, "test"))),
            higher_is_better=True,
            absolute_tolerance=0.01,
        )

    def hits(self, run: Runner, dataset: str, split: str) -> np.ndarray:
        """Returns for each claim of a split whether the most probable label is its label.

        Args:
            run: `Runner`.
            dataset: str. Name for `zoo.datasets.load`.
            split: str.
        """
        batches = self.labelled_claims(dataset, split, EVALUATION_BATCH)
        return np.concatenate([run("predict", x)["label_probs"].argmax(axis=1) == y["label"] for x, y in batches])

    def labelled_claims(self, dataset: str, split: str, batch_size: int) -> Iterator[tuple[Arrays, Arrays]]:
        """Yields batches of a split as inputs and targets."""
        from zoo.datasets import load_arrays

        inputs, targets = self.claim_arrays(load_arrays(dataset, split))
        for start in range(0, len(targets["label"]), batch_size):
            chosen = slice(start, start + batch_size)
            yield tuple({name: array[chosen] for name, array in arrays.items()} for arrays in (inputs, targets))

    def claim_arrays(self, claims: Arrays) -> tuple[Arrays, Arrays]:
        """Turns claims into what `fit` takes.

        Args:
            claims: dict of arrays: str `claim` `(batch,)`, `title` and `evidence` `(batch, sentences)`, int `label` and
                `evidence_label`, as the data set `wordnet_claims` has them.

        Returns:
            Tuple of inputs and targets.
        """
        columns = zip(claims["claim"].tolist(), claims["title"].tolist(), claims["evidence"].tolist(), strict=True)
        num_nodes = max(self.num_nodes, claims["evidence"].shape[1])
        graphs = [
            self._graph(claim, [(title, [text]) for title, text in zip(titles, texts, strict=True)], num_nodes)
            for claim, titles, texts in columns
        ]
        padding = ((0, 0), (0, num_nodes - claims["evidence"].shape[1]))
        node_labels = np.pad(claims["evidence_label"], padding, constant_values=IGNORED)
        return stack_graphs(graphs), {"label": claims["label"], "node_labels": node_labels}

    def _graph(self, claim: str, evidence: Sequence[Document], num_nodes: int) -> Arrays:
        edges = mention_edges(evidence) if self.link_mentions else fully_connected(len(evidence))
        return claim_graph(self.tokenizer, claim, evidence, edges, num_nodes, self.sequence_length)

    def verify(self, claim: str, evidence: Sequence[Document]) -> dict[str, Any]:
        """Verifies one claim.

        Args:
            claim: str.
            evidence: sequence of pairs of a page's title and sentences from it; at most `num_nodes`. Texts are cut off at
                `sequence_length` tokens.

        Returns:
            Dict: the most probable `label`, the `probabilities` of all, and how much each text is `evidence`, in [0, 1].

        Raises:
            ValueError: for no evidence or too much, an empty text, and for a model without tokenizer.
        """
        outputs = self.run("predict", **stack_graphs([self._graph(claim, evidence, self.num_nodes)]))
        probabilities = dict(zip(LABELS, map(float, outputs["label_probs"][0]), strict=True))
        scores = 1 / (1 + np.exp(-outputs["node_scores"][0, : len(evidence)]))
        label = max(probabilities, key=probabilities.__getitem__)
        return {"label": label, "probabilities": probabilities, "evidence": scores.tolist()}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "double_softmax": self.double_softmax,
            "link_mentions": self.link_mentions,
        }


# === Question answering ===


@keras.saving.register_keras_serializable(package="zoo")
class TransformerXHQuestionAnswerer(TransformerXH):
    """Answers questions from hyperlinked documents: the best document, and a span of its tokens.

    `fit` takes the inputs of `encode` and targets `(batch, nodes)`: `node_labels` (1 for a document with the answer, 0 for
    another, -1 ignored), `start_positions` and `end_positions` (first and last token, -1 outside the window);
    `question_graph` makes them from text.

    Args:
        **kwargs: arguments of `TransformerXH`.

    Reference:
        Zhao et al. 2020, section 4.1.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(vocabulary_size, num_layers, hidden_dim, num_heads, intermediate_dim, **kwargs)
        self.score_layer = self._dense("node_score", 1)
        self.span_layer = self._dense("span_logits", 2)

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Returns `node_scores` `(batch, nodes)` and logits of start and end, `span_logits` `(batch, nodes, length, 2)`."""
        hidden, _ = self.encode(inputs, training)
        scores = ops.squeeze(self.score_layer(self.pool(hidden, training)), -1)
        return {
            "node_scores": ops.cast(scores, "float32"),
            "span_logits": ops.cast(self.span_layer(hidden), "float32"),
        }

    def graph_losses(self, inputs: Any, targets: Any, outputs: Any) -> Any:
        """Returns cross-entropy of labelled nodes + half of that of start and end on answer nodes, of each graph."""
        answers = ops.equal(targets["node_labels"], 1)
        log_probs = ops.log_softmax(outputs["span_logits"], axis=2)
        losses = _node_loss(targets["node_labels"], outputs["node_scores"])
        for index, name in enumerate(("start_positions", "end_positions")):
            inside = ops.logical_and(answers, targets[name] >= 0)
            losses = losses - 0.5 * _mean_where(_pick(log_probs[..., index], targets[name]), inside)
        return losses

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `predict`."""
        outputs = {
            "node_scores": "Score of each document as the one with the answer, (batch, num_nodes).",
            "span_logits": "Logits of an answer's start and end, (batch, num_nodes, sequence_length, 2).",
        }
        return {"predict": Signature(lambda **inputs: self(inputs, training=False), self.graph_specs(), outputs)}

    def answer(self, question: str, documents: Sequence[Document], edges: Sequence[Edge]) -> dict[str, Any]:
        """Answers one question.

        Args:
            question: str.
            documents: sequence of pairs of a title and sentences; at most `num_nodes`. Texts are cut off at
                `sequence_length` tokens.
            edges: sequence of pairs `(source, target)`: which document links to which.

        Returns:
            Dict: the number of the best `document`, its `title`, and the `answer` found in it.

        Raises:
            ValueError: for no documents or too many, edges of documents that do not exist, an empty text, a question that
                leaves no place for a document, and for a model without tokenizer.
        """
        graph, _ = question_graph(self.tokenizer, question, documents, edges, self.num_nodes, self.sequence_length)
        inputs = stack_graphs([graph])
        node, start, end = (int(found[0]) for found in best_spans(inputs, self.run("predict", **inputs)))
        ids = inputs["token_ids"][0, node, start : end + 1].tolist()
        return {"document": node, "title": documents[node][0], "answer": self.tokenizer.decode(ids)}


def best_spans(inputs: Arrays, outputs: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the best document of each graph, of those of which anything is within the window, and the best span in it.

    The start is the best one in the document, segment 1; the end the best of the ten tokens from the start on.

    Args:
        inputs: dict of arrays. The inputs of `predict`.
        outputs: dict of arrays. Its outputs.

    Returns:
        Tuple of int arrays `(batch,)`: document, first and last token.

    Raises:
        ValueError: for a graph with no document within the window.
    """
    readable = (inputs["segment_ids"] == 1) & (inputs["padding_mask"] == 1) & (inputs["node_mask"][:, :, None] == 1)
    visible = readable.any(axis=2)
    for row, found in enumerate(visible.any(axis=1)):
        require(bool(found), "inputs", "graphs with tokens in segment 1", f"none in graph {row}")
    nodes = np.where(visible, outputs["node_scores"], -np.inf).argmax(axis=1)
    starts, ends = [], []
    for row, node in enumerate(nodes):
        logits = np.where(readable[row, node][:, None], outputs["span_logits"][row, node], -np.inf)
        start = int(logits[:, 0].argmax())
        starts.append(start)
        ends.append(start + int(logits[start : start + LONGEST_SPAN, 1].argmax()))
    return nodes, np.array(starts), np.array(ends)
