"""InfoWord: an encoder that learns what is missing from a text, words one by one and spans as wholes.

Kong, de Masson d'Autume, Ling, Yu, Dai, Yogatama, ICLR 2020, "A Mutual Information Maximization Perspective of Language
Representation Learning", https://arxiv.org/abs/1910.08350. No code was published.

Masked language models bound the information between two views of a text, a with a gap and b what was in it, by InfoNCE:

    I(A; B) >= E[f(a, b) - log sum_{b' in candidates} exp f(a, b')] + log N,        f(a, b) = g_b(b)' g_a(a)

    mlm        a: the state at a masked word     b: a row of the word table          candidates: all words
    mlm_nce    the same                                                              the right word and drawn ones
    nsp        a: the pooled first token         b: one of two vectors               follows, does not
    dim        a: state of [CLS] of the text     b: state of [CLS] of the span,      spans of the other texts
               with a span masked                   by the same encoder              of the batch
    infoword   dim and mlm_nce, weighted

`dim` is Deep InfoMax for text: it asks of one vector of a text to know any of its spans. After pretraining only the encoder
is used. The bound is a diagnostic: it is at most log N.

Choices where the paper is silent: a span has 1 to 5 tokens, uniformly, anywhere in a segment; its own positions begin at 0;
drawn words follow frequencies to the power 3/4; there is one span a text; an option divides scores by sqrt(hidden_dim).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo.arguments import require
from zoo.language import bert_conversion
from zoo.language.bert import Bert
from zoo.language.contrastive import Contrast, contrast, proposal, weighted_mean
from zoo.language.heads import Head, MaskedLMHead, Outputs
from zoo.language.pretraining_data import HELD_OUT_SEED, Document, Masking, training_batches
from zoo.language.text_encoder import NUM_JUDGED, TOKENIZER
from zoo.language.tokenizers import SpecialIds, special_ids
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.ops.activations import ACTIVATIONS

# What each objective maximises; "nsp" is the second head alone, which the others may have beside
OBJECTIVES = {"mlm": ("mlm",), "mlm_nce": ("mlm_nce",), "nsp": (), "dim": ("dim",), "infoword": ("mlm_nce", "dim")}
SPAN_POSITIONS = ("zero", "original")
# Spans that a text's own is found among, when the model is judged
NUM_CANDIDATES = 64


# === Views of a text ===


def uncorrupted(token_ids: np.ndarray, positions: np.ndarray, targets: Arrays) -> np.ndarray:
    """Returns the tokens as they were before masking, int32 `(batch, length)`.

    Args:
        token_ids: int array `(batch, length)`.
        positions: int array `(batch, predictions)`.
        targets: dict of `mask_ids` and `mask_weights`, see `mask_tokens`.
    """
    tokens = token_ids.copy()
    rows, places = np.nonzero(targets["mask_weights"] > 0)
    tokens[rows, positions[rows, places]] = targets["mask_ids"][rows, places]
    return tokens


def draw_spans(maskable: np.ndarray, ngram_max: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws a span of each text: its length from 1 to `ngram_max`, uniformly where so many fit, and where it begins.

    Args:
        maskable: bool array `(batch, length)`. False at special tokens and padding, which no span holds.
        ngram_max: int.
        rng: NumPy generator.

    Returns:
        Int arrays `(batch,)` of first places and lengths; the length is 0 where there is no token.
    """
    # How many tokens in a row begin at each place
    runs = np.zeros(maskable.shape, "int64")
    following = np.zeros(len(maskable), "int64")
    for place in range(maskable.shape[1] - 1, -1, -1):
        following = np.where(maskable[:, place], following + 1, 0)
        runs[:, place] = following
    lengths = np.minimum(rng.integers(1, ngram_max + 1, len(maskable)), runs.max(axis=1))
    fits = runs >= np.maximum(lengths, 1)[:, None]
    return np.where(fits, rng.random(maskable.shape), -1.0).argmax(axis=1), lengths


def cut_spans(
    token_ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, ids: SpecialIds, size: int, original: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Writes spans as `[CLS] span [SEP]`.

    Args:
        token_ids: int array `(batch, length)`.
        starts: int array `(batch,)`.
        lengths: int array `(batch,)`.
        ids: `SpecialIds`.
        size: int. Tokens of a row.
        original: bool. Whether the span stays where it was, with padding around it.

    Returns:
        Int32 arrays `(batch, size)` of tokens and of their mask.
    """
    places = np.arange(size)[None]
    begin = starts[:, None] if original else np.ones((len(starts), 1), "int64")
    inside = (places >= begin) & (places < begin + lengths[:, None])
    source = np.clip(places - begin + starts[:, None], 0, token_ids.shape[1] - 1)
    spans = np.where(inside, np.take_along_axis(token_ids, source, axis=1), ids.padding)
    separator = (places == begin + lengths[:, None]) & (places > 0)
    spans = np.where(separator, ids.separator, spans)
    spans[:, 0] = ids.start
    return spans.astype("int32"), (inside | separator | (places == 0)).astype("int32")


# === Head ===


@keras.saving.register_keras_serializable(package="zoo")
class InfoWordHead(MaskedLMHead):
    """The head of masked words, which in training may compare each with drawn words only.

    Drawn words teach the scores f = log p(word | text) / q(word), of the distribution q that they are drawn from: what is
    predicted is f + log q.

    Args:
        hidden_dim: int.
        num_negatives: int. Words drawn for a batch, which all its masked words share; 0 compares with all words.
        predicts_words: bool. False freezes what only masked words train.
        **kwargs: arguments of `MaskedLMHead`.
    """

    def __init__(self, hidden_dim: int, num_negatives: int = 0, predicts_words: bool = True, **kwargs: Any) -> None:
        super().__init__(hidden_dim, **kwargs)
        self.num_negatives = num_negatives
        self.predicts_words = predicts_words
        self.seed_generator = keras.random.SeedGenerator()

    def build(self, input_shape: Any = None) -> None:
        """Creates all variables; q is uniform until `set_proposal`."""
        super().build(input_shape)
        size = self.vocabulary_size
        if self.num_negatives:
            uniform = keras.initializers.Constant(-np.log(size))
            self.log_proposal = self.add_weight(
                name="log_proposal",
                shape=(size,),
                initializer=uniform,
                trainable=False,
                autocast=False,
                dtype="float32",
            )
        if not self.predicts_words:
            self.transform.trainable = self.norm.trainable = self.bias.trainable = False

    def call(self, encoded: Outputs, inputs: Outputs, table: Any, training: bool | None = None) -> Outputs:
        """Returns `masked_lm_logits` as `MaskedLMHead`, in training with drawn words `masked_states` instead."""
        if training and self.num_negatives:
            return {"masked_states": self.states(encoded, inputs), **self.sentence_outputs(encoded)}
        return super().call(encoded, inputs, table, training)

    def word_logits(self, states: Any, table: Any) -> Any:
        """Returns logits of all words."""
        logits = super().word_logits(states, table)
        return logits + self.log_proposal if self.num_negatives else logits

    def draw_negatives(self) -> Any:
        """Draws words for a batch, int32 `(num_negatives,)`, with replacement."""
        logits = ops.expand_dims(self.log_proposal, 0)
        return keras.random.categorical(logits, self.num_negatives, "int32", self.seed_generator)[0]

    def contrast_words(self, states: Any, word_ids: Any, negative_ids: Any, table: Any) -> Contrast:
        """Compares masked words with others; those of the others that are the right word do not count.

        Args:
            states: float tensor `(batch, predictions, embedding_dim)`.
            word_ids: int tensor `(batch, predictions)`.
            negative_ids: int tensor `(negatives,)`.
            table: float tensor `(vocabulary_size, embedding_dim)`.
        """
        right, wrong = (ops.cast(ops.take(table, ids, axis=0), states.dtype) for ids in (word_ids, negative_ids))
        scores = ops.concatenate(
            [ops.sum(states * right, axis=-1, keepdims=True), ops.matmul(states, ops.transpose(wrong))], axis=-1
        )
        bias = ops.cast(self.bias, "float32")
        own, others = ops.take(bias, word_ids), ops.take(bias, negative_ids)
        others = ops.broadcast_to(others, (*ops.shape(word_ids), ops.shape(negative_ids)[0]))
        scores = ops.cast(scores, "float32") + ops.concatenate([ops.expand_dims(own, -1), others], axis=-1)
        differs = ops.not_equal(ops.expand_dims(word_ids, -1), negative_ids)
        mask = ops.concatenate([ops.ones_like(differs[..., :1]), differs], axis=-1)
        return contrast(scores, ops.zeros_like(word_ids), mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "num_negatives": self.num_negatives, "predicts_words": self.predicts_words}


class SpanQueue(keras.layers.Layer):
    """The last spans of past batches: vectors, and tokens to tell equal ones.

    Args:
        size: int. Spans that are kept.
        hidden_dim: int.
        span_length: int. Tokens of a span.
    """

    def __init__(self, size: int, hidden_dim: int, span_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.hidden_dim, self.span_length = size, hidden_dim, span_length

    def build(self, input_shape: Any = None) -> None:
        """Creates an empty queue: no token is -1."""
        options = dict(trainable=False, autocast=False)
        self.vectors = self.add_weight(
            name="vectors", shape=(self.size, self.hidden_dim), initializer="zeros", dtype="float32", **options
        )
        empty = keras.initializers.Constant(-1)
        self.tokens = self.add_weight(
            name="tokens", shape=(self.size, self.span_length), initializer=empty, dtype="int32", **options
        )

    def push(self, vectors: Any, tokens: Any, real: Any) -> None:
        """Puts spans in front; as many of the oldest fall out.

        Args:
            vectors: float tensor `(batch, hidden_dim)`.
            tokens: int tensor `(batch, span_length)`.
            real: bool tensor `(batch,)`. False for spans of padding.
        """
        tokens = ops.where(ops.expand_dims(real, -1), tokens, -1)
        for variable, new in ((self.vectors, ops.stop_gradient(vectors)), (self.tokens, tokens)):
            joined = ops.concatenate([ops.cast(new, variable.dtype), variable.value], axis=0)
            variable.assign(ops.reshape(joined[: self.size], variable.shape))


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class InfoWord(Bert):
    """BERT's encoder, pretrained by one InfoNCE objective in several instances.

    With the head `"masked_lm"` it pretrains by `objective`; `fit` takes what `pretraining_batches` yields. Another head, or
    none, makes it a BERT to be fine-tuned: see `with_head`.

    Args:
        vocabulary_size: int. As all sizes, see `Bert`.
        objective: str. `"mlm"`, `"mlm_nce"`, `"nsp"`, `"dim"` or `"infoword"`, see the module.
        mlm_weight: float. Of the loss on masked words, a mean over words. Defaults to 1.
        dim_weight: float. Of the loss on spans, a mean over spans. Defaults to 1.
        mlm_negatives: int. Words drawn for a batch; objectives with `mlm_nce` have them. Defaults to 1024.
        ngram_max: int. Tokens of the longest span. Defaults to 5.
        span_positions: str. Positions of a span's tokens: `"zero"`, counted from its own start, or `"original"`.
        share_masked_view: bool. Whether words and the span are missing from one copy of the text, which saves half of the
            work; words within the span are then not predicted. Defaults to False, a copy for each.
        queue_size: int. Spans of past batches that are candidates too. Defaults to 0.
        symmetric: bool. Whether to average with finding the text of a span. Defaults to False.
        temperature: float. Scores of spans are divided by it. Defaults to 1.
        normalise: bool. Whether the vectors of texts and spans are of length 1 when compared. Defaults to False.
        scale: bool. Whether scores of spans are divided by sqrt(hidden_dim). Defaults to False, as in the paper; small
            models learn better with it.
        sentence_loss: str. `"nsp"` adds BERT's second task to any objective, `"none"`, the default, does not.
        **kwargs: further arguments of `Bert`.

    Example:

    ```python
    model = zoo.get("infoword")
    text, span = model.embed(["Returns the mean along an axis."]), model.embed(["the mean"])
    scores = model.run("score", sentence_vec=text, span_vec=span)["scores"]
    ```

    Reference:
        Kong et al. 2020.
    """

    input_names = (*Bert.input_names, "span_ids", "span_mask", "sentence_ids")

    def __init__(
        self,
        *,
        objective: str = "infoword",
        mlm_weight: float = 1.0,
        dim_weight: float = 1.0,
        mlm_negatives: int = 1024,
        ngram_max: int = 5,
        span_positions: str = "zero",
        share_masked_view: bool = False,
        queue_size: int = 0,
        symmetric: bool = False,
        temperature: float = 1.0,
        normalise: bool = False,
        scale: bool = False,
        sentence_loss: str = "none",
        **kwargs: Any,
    ) -> None:
        require(objective in OBJECTIVES, "objective", f"one of {list(OBJECTIVES)}", repr(objective))
        fits = sentence_loss == "nsp" or (sentence_loss == "none" and objective != "nsp")
        require(fits, "sentence_loss", "'nsp', or 'none' with another objective than 'nsp'", repr(sentence_loss))
        for name, weight in (("mlm_weight", mlm_weight), ("dim_weight", dim_weight)):
            require(0 <= weight < np.inf, name, "finite and not negative", weight)
        for name, number in (("mlm_negatives", mlm_negatives), ("ngram_max", ngram_max)):
            require(number >= 1, name, "positive", number)
        require(span_positions in SPAN_POSITIONS, "span_positions", f"one of {SPAN_POSITIONS}", repr(span_positions))
        require(queue_size >= 0, "queue_size", "not negative", queue_size)
        require(0 < temperature < np.inf, "temperature", "positive and finite", temperature)
        # The head, which the base class makes, needs them
        self.objective = objective
        self.mlm_negatives = mlm_negatives
        super().__init__(sentence_loss=sentence_loss, **kwargs)
        room = self.sequence_length - 2
        require(ngram_max <= room, "ngram_max", f"at most `sequence_length` without [CLS] and [SEP], {room}", ngram_max)
        self.mlm_weight = mlm_weight
        self.dim_weight = dim_weight
        self.ngram_max = ngram_max
        self.span_positions = span_positions
        self.share_masked_view = share_masked_view
        self.queue_size = queue_size
        self.symmetric = symmetric
        self.temperature = temperature
        self.normalise = normalise
        self.scale = scale
        self.queue = None
        if self.pretrains and self.has_spans and queue_size:
            self.queue = SpanQueue(queue_size, self.backbone.hidden_dim, self.span_length, name="queue")
        names = (*OBJECTIVES[objective], *(["nsp"] if sentence_loss == "nsp" else [])) if self.pretrains else ()
        self.trackers = {
            f"{name}_{kind}": keras.metrics.Mean(name=f"{name}_{kind}") for name in names for kind in ("loss", "bound")
        }

    @property
    def pretrains(self) -> bool:
        """Whether the model has the head of pretraining."""
        return self.head == "masked_lm"

    @property
    def has_words(self) -> bool:
        """Whether the objective predicts masked words."""
        return bool({"mlm", "mlm_nce"} & set(OBJECTIVES[self.objective]))

    @property
    def has_spans(self) -> bool:
        """Whether the objective compares spans."""
        return "dim" in OBJECTIVES[self.objective]

    @property
    def draws_words(self) -> bool:
        """Whether masked words are compared with drawn ones."""
        return "mlm_nce" in OBJECTIVES[self.objective]

    @property
    def span_length(self) -> int:
        """Tokens of a row that holds a span."""
        return self.sequence_length if self.span_positions == "original" else self.ngram_max + 2

    def _make_head(self) -> Head:
        if not self.pretrains:
            return super()._make_head()
        backbone = self.backbone
        return InfoWordHead(
            backbone.hidden_dim,
            self.mlm_negatives if self.draws_words else 0,
            self.has_words,
            embedding_dim=backbone.embedding_dim,
            vocabulary_size=backbone.vocabulary_size,
            sentence_classes=2 if self.sentence_loss == "nsp" else 0,
            activation=ACTIVATIONS[backbone.activation],
            layer_norm_epsilon=backbone.layer_norm_epsilon,
            initializer_stddev=backbone.initializer_stddev,
            dtype=backbone.dtype_policy,
            name="head",
        )

    def build_from_signature(self) -> InfoWord:
        """Creates all variables from sizes alone."""
        if not self.built:
            if self.queue is not None:
                self.queue.build()
            super().build_from_signature()
        return self

    def set_proposal(self, counts: Any) -> None:
        """Sets from which distribution wrong words are drawn, see `zoo.language.contrastive.proposal`.

        Args:
            counts: int array `(vocabulary_size,)`. How often each token occurs.

        Raises:
            ValueError: for counts of another number, and for a model that draws no words.
        """
        draws = self.pretrains and self.draws_words
        require(draws, "objective", "one that draws words, with the head 'masked_lm'", repr(self.objective))
        size = np.shape(counts)
        require(size == (self.vocabulary_size,), "counts", f"{self.vocabulary_size} numbers", f"shape={size}")
        self.head_layer.log_proposal.assign(np.log(proposal(counts)))

    # === Forward pass ===

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Encodes and applies the head; for pretraining also encodes the two views of spans.

        Args:
            inputs: dict, see `TextEncoder`, and for objectives with spans `span_ids`, `span_mask` `(batch, span_length)` and,
                if views are apart, `sentence_ids` `(batch, length)`.
            training: bool or None.

        Returns:
            What the head gives; with spans a dict that has `sentence_vec` and `span_vec` `(batch, hidden_dim)` too.
        """
        self.check_inputs(inputs)
        if "span_ids" not in inputs:
            return super().call(inputs, training)
        spans_fit = self.pretrains and self.has_spans
        require(spans_fit, "objective", "one with spans, with the head 'masked_lm'", repr(self.objective))
        self.build_from_signature()
        encoded, outputs = self.backbone(inputs, training=training), {}
        if self.has_words or self.sentence_loss == "nsp":
            table = self.backbone.embedding.token.embeddings
            outputs = self.head_layer(encoded, inputs, table, training=training)
        if "sentence_ids" in inputs:
            encoded = self.backbone({**inputs, "token_ids": inputs["sentence_ids"]}, training=training)
        span = {"token_ids": inputs["span_ids"], "padding_mask": inputs["span_mask"]}
        spans = self.backbone(span, training=training)
        return {**outputs, "sentence_vec": self._first_token(encoded), "span_vec": self._first_token(spans)}

    def _first_token(self, encoded: Outputs) -> Any:
        first = encoded["sequence_output"][:, :1]
        return ops.cast(ops.reshape(first, (-1, self.backbone.hidden_dim)), "float32")

    def critic(self, sentence_vec: Any, span_vec: Any) -> Any:
        """Scores all pairs of texts and spans, float32 `(texts, spans)`."""
        divisor = self.temperature * (self.backbone.hidden_dim**0.5 if self.scale else 1.0)
        if self.normalise:
            sentence_vec, span_vec = (tf.math.l2_normalize(vec, axis=-1) for vec in (sentence_vec, span_vec))
        return tf.matmul(sentence_vec, span_vec, transpose_b=True) / divisor

    # === Objective ===

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the weighted sum of the objective's parts in nats, or the loss of another head.

        Out of training masked words are compared with all words, so that the loss of validation is that of `"mlm"`.
        """
        if not self.pretrains or getattr(self, "loss", None) is not None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        weights = {"mlm": self.mlm_weight, "mlm_nce": self.mlm_weight, "dim": self.dim_weight}
        total = 0.0
        for name, (found, counted) in self.contrasts(x, y, y_pred, training).items():
            loss = weighted_mean(found.loss, counted)
            total += weights.get(name, 1.0) * loss
            self.trackers[f"{name}_loss"].update_state(loss)
            self.trackers[f"{name}_bound"].update_state(weighted_mean(found.bound, counted))
        return total

    def contrasts(
        self, x: Outputs, y: Outputs, outputs: Outputs, training: bool = False
    ) -> dict[str, tuple[Contrast, Any]]:
        """Returns each part of the objective: losses and bounds, and a weight, 0 or 1, for each.

        Args:
            x: dict. Inputs of the model.
            y: dict. `mask_ids`, `mask_weights` and, for `"nsp"`, `sentence_label`.
            outputs: dict. What `call` returned.
            training: bool. Whether masked words are compared with drawn ones only.

        Returns:
            Dict by part: of words `(batch, predictions)`, of spans and sentences `(batch,)`.
        """
        found = {}
        for name in OBJECTIVES[self.objective]:
            if name == "dim":
                found[name] = self._contrast_spans(x, outputs, training)
            else:
                found[name] = self._contrast_words(y, outputs), ops.cast(y["mask_weights"], "float32")
        if self.sentence_loss == "nsp":
            labels = y["sentence_label"]
            counted = ops.cast(labels >= 0, "float32")
            found["nsp"] = contrast(outputs["sentence_logits"], ops.maximum(labels, 0)), counted
        return found

    def _contrast_words(self, y: Outputs, outputs: Outputs) -> Contrast:
        if "masked_lm_logits" in outputs:
            return contrast(outputs["masked_lm_logits"], y["mask_ids"])
        head, table = self.head_layer, self.backbone.embedding.token.embeddings
        return head.contrast_words(outputs["masked_states"], y["mask_ids"], head.draw_negatives(), table)

    def _contrast_spans(self, x: Outputs, outputs: Outputs, training: bool) -> tuple[Contrast, Any]:
        tokens, real = x["span_ids"], ops.any(x["padding_mask"] > 0, axis=-1)
        texts, spans = outputs["sentence_vec"], outputs["span_vec"]
        count = ops.shape(tokens)[0]
        places = ops.arange(count)
        own = ops.expand_dims(places, 1) == ops.expand_dims(places, 0)
        scores = self.critic(texts, spans)
        mask = ops.logical_or(own, ops.logical_and(_differ(tokens, tokens), ops.expand_dims(real, 0)))
        all_scores, all_masks = scores, mask
        if training and self.queue is not None:
            past = self.queue.tokens.value
            usable = ops.logical_and(_differ(tokens, past), past[:, 0] >= 0)
            all_scores = ops.concatenate([scores, self.critic(texts, self.queue.vectors.value)], axis=1)
            all_masks = ops.concatenate([mask, usable], axis=1)
            self.queue.push(spans, tokens, real)
        result = contrast(all_scores, places, all_masks)
        if self.symmetric:
            # The mask is its own transpose where both are real, and what is not has no weight
            back = contrast(ops.transpose(scores), places, mask)
            result = Contrast((result.loss + back.loss) / 2, (result.bound + back.bound) / 2)
        return result, ops.cast(real, "float32")

    # === Data ===

    def span_views(self, inputs: Arrays, targets: Arrays, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
        """Adds the views of spans to masked sequences, where the objective has spans.

        Args:
            inputs: dict of arrays, see `zoo.language.pretraining_data.mask_tokens`.
            targets: dict of arrays.
            rng: NumPy generator.

        Returns:
            Inputs and targets, new dicts.
        """
        if not self.has_spans:
            return inputs, targets
        ids = special_ids(self.tokenizer)
        tokens = uncorrupted(inputs["token_ids"], inputs["mask_positions"], targets)
        starts, lengths, inside = self._draw_spans(tokens, inputs["padding_mask"], ids, rng)
        original = self.span_positions == "original"
        span_ids, span_mask = cut_spans(tokens, starts, lengths, ids, self.span_length, original)
        gaps = np.where(inside, ids.mask, tokens).astype("int32")
        inputs = {**inputs, "span_ids": span_ids, "span_mask": span_mask}
        if not self.has_words:
            return {**inputs, "token_ids": gaps}, targets
        if not self.share_masked_view:
            return {**inputs, "sentence_ids": gaps}, targets
        inputs["token_ids"] = np.where(inside, ids.mask, inputs["token_ids"]).astype("int32")
        kept = ~np.take_along_axis(inside, inputs["mask_positions"], axis=1)
        return inputs, {**targets, "mask_weights": (targets["mask_weights"] * kept).astype("float32")}

    def _draw_spans(
        self, tokens: np.ndarray, padding_mask: np.ndarray, ids: SpecialIds, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns first places and lengths of spans, and which tokens are in them."""
        maskable = (padding_mask == 1) & (tokens != ids.start) & (tokens != ids.separator)
        starts, lengths = draw_spans(maskable, self.ngram_max, rng)
        places = np.arange(tokens.shape[1])[None] - starts[:, None]
        return starts, lengths, (places >= 0) & (places < lengths[:, None])

    def held_out_views(self, dataset: str, split: str) -> tuple[Arrays, Arrays]:
        """Returns masked sequences of a held-out split with views of spans, the same ones each time; see `held_out`."""
        inputs, targets = self.held_out(dataset, split)
        return self.span_views(inputs, targets, np.random.default_rng(HELD_OUT_SEED))

    # === Use ===

    def embed(self, texts: Sequence[str], truncate: bool = False) -> np.ndarray:
        """Returns vectors of texts, or of spans, `(texts, hidden_dim)`: the state of [CLS].

        Args:
            texts: sequence of str.
            truncate: bool. Cut what is too long rather than refuse it.

        Raises:
            ValueError: see `text_inputs`.
        """
        return self.run("encode", **self.text_inputs(texts, truncate=truncate))["cls"]

    def span_retrieval(
        self, run: Runner, dataset: str, split: str, num_candidates: int = NUM_CANDIDATES, count: int | None = None
    ) -> dict[str, float]:
        """Returns how well a text with a gap finds its span among those of other texts.

        Args:
            run: `Runner`.
            dataset: str. See `held_out`.
            split: str.
            num_candidates: int. Spans to choose from, a text's own among them.
            count: int or None. Texts to look at, all by default; what does not fill a group is left out.

        Returns:
            Dict of `span_recall`, the share of texts whose own span has the best score, and `span_bound`, InfoNCE in nats.
        """
        texts, spans = self.gaps_and_spans(dataset, split, count)
        vectors = (encode_all(run, view, num_candidates) for view in (texts, spans))

        def score(text: np.ndarray, span: np.ndarray) -> np.ndarray:
            return run("score", {"sentence_vec": text, "span_vec": span})["scores"]

        return retrieval(*vectors, spans["token_ids"], score, num_candidates)

    def gaps_and_spans(self, dataset: str, split: str, count: int | None = None) -> tuple[Arrays, Arrays]:
        """Returns held-out texts with a span masked, and the spans, both as inputs of `encode`; the same ones each time.

        Args:
            dataset: str. See `held_out`.
            split: str.
            count: int or None. Texts, all by default.
        """
        inputs, targets = ({k: v[:count] for k, v in part.items()} for part in self.held_out(dataset, split))
        ids, rng = special_ids(self.tokenizer), np.random.default_rng(HELD_OUT_SEED)
        tokens = uncorrupted(inputs["token_ids"], inputs["mask_positions"], targets)
        starts, lengths, inside = self._draw_spans(tokens, inputs["padding_mask"], ids, rng)
        gaps = np.where(inside, ids.mask, tokens).astype("int32")
        texts = {"token_ids": gaps, "segment_ids": inputs["segment_ids"], "padding_mask": inputs["padding_mask"]}
        original = self.span_positions == "original"
        span_ids, span_mask = cut_spans(tokens, starts, lengths, ids, tokens.shape[1], original)
        return texts, {"token_ids": span_ids, "segment_ids": np.zeros_like(span_ids), "padding_mask": span_mask}

    # === Signatures ===

    def signatures(self) -> dict[str, Signature]:
        """Returns the head's `predict`, where there is a head, `encode`, and `score`, of texts with spans."""

        def encode(**inputs: Any) -> dict[str, Any]:
            encoded = self.backbone(inputs, training=False)
            sequence = ops.cast(encoded["sequence_output"], "float32")
            return {"sequence_output": sequence, "cls": self._first_token(encoded)}

        def score(sentence_vec: Any, span_vec: Any) -> dict[str, Any]:
            return {"scores": self.critic(sentence_vec, span_vec)}

        meanings = {
            "sequence_output": "Hidden states of the last layer, (batch, sequence_length, hidden_dim).",
            "cls": "State of [CLS], the vector of the text or span, (batch, hidden_dim).",
        }
        width = self.backbone.hidden_dim
        inputs = {
            "sentence_vec": Spec(("batch", width), "float32", "Vectors of texts."),
            "span_vec": Spec(("candidates", width), "float32", "Vectors of spans."),
        }
        scores = {
            "scores": "How much likelier each span is in the text than anywhere, in logarithm, (batch, candidates)."
        }
        return {
            **super().signatures(),
            "encode": Signature(encode, self.token_specs(), meanings),
            "score": Signature(score, inputs, scores, sizes={"candidates": 5}),
        }

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields validation texts of the data set the checkpoint names, or their vectors; nothing without a checkpoint."""
        if signature != "score":
            yield from super().real_inputs(signature, batch_size)
        elif self.metadata is not None and self.pretrains:
            views = self.gaps_and_spans(self.metadata.evaluation_dataset, "validation", NUM_JUDGED)
            texts, spans = (self.run("encode", **view)["cls"] for view in views)
            for start in range(0, len(texts) - batch_size + 1, batch_size):
                yield {"sentence_vec": texts[start : start + batch_size], "span_vec": spans[:NUM_CANDIDATES]}

    def task_metric(self) -> TaskMetric | None:
        """Returns how often a text finds its span among 64, on the test split; `None` without a checkpoint.

        Models without spans are judged by masked words, as BERT.
        """
        if self.metadata is None or not (self.pretrains and self.has_spans):
            return super().task_metric()
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "span_recall",
            lambda run: self.span_retrieval(run, dataset, "test", count=NUM_JUDGED)["span_recall"],
            higher_is_better=True,
            absolute_tolerance=0.02,
        )

    def save_to_hugging_face(self, directory: str | Path) -> Path:
        """Writes a BERT that Hugging Face's transformers load: a pretrained model's encoder alone.

        Args:
            directory: path. It must not exist, or be empty.
        """
        model = self.with_head(None) if self.pretrains else self
        return bert_conversion.to_hugging_face(model, directory)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "objective": self.objective,
            "mlm_weight": self.mlm_weight,
            "dim_weight": self.dim_weight,
            "mlm_negatives": self.mlm_negatives,
            "ngram_max": self.ngram_max,
            "span_positions": self.span_positions,
            "share_masked_view": self.share_masked_view,
            "queue_size": self.queue_size,
            "symmetric": self.symmetric,
            "temperature": self.temperature,
            "normalise": self.normalise,
            "scale": self.scale,
        }


def encode_all(run: Runner, inputs: Arrays, batch_size: int) -> np.ndarray:
    """Returns the vectors of all inputs of `encode`, a batch at a time; an incomplete last batch is left out."""
    starts = range(0, len(inputs["token_ids"]) - batch_size + 1, batch_size)
    parts = ({name: value[start : start + batch_size] for name, value in inputs.items()} for start in starts)
    return np.concatenate([run("encode", part)["cls"] for part in parts])


def retrieval(
    texts: np.ndarray,
    spans: np.ndarray,
    span_ids: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    num_candidates: int,
) -> dict[str, float]:
    """Returns how well texts find their own spans, in groups; equal spans do not count as wrong ones.

    Args:
        texts: float array `(texts, dim)`.
        spans: float array of the same shape, of their spans.
        span_ids: int array `(texts, length)`. Tokens of the spans.
        score: callable of vectors of texts and of spans to all scores.
        num_candidates: int. Texts of a group; an incomplete last one is left out.

    Returns:
        Dict of `span_recall` and `span_bound`, see `InfoWord.span_retrieval`.
    """
    hits, bounds = [], []
    own = np.eye(num_candidates, dtype=bool)
    for start in range(0, len(texts) - num_candidates + 1, num_candidates):
        rows = slice(start, start + num_candidates)
        scores, ids = score(texts[rows], spans[rows]), span_ids[rows]
        others = (ids[:, None] != ids[None]).any(axis=-1)
        hits.append(np.diagonal(scores) > np.where(others, scores, -np.inf).max(axis=1))
        found = contrast(tf.constant(scores), tf.range(num_candidates), tf.constant(others | own))
        bounds.append(found.bound.numpy())
    return {"span_recall": float(np.mean(hits)), "span_bound": float(np.mean(bounds))}


def _differ(first: Any, second: Any) -> Any:
    """Returns where rows of tokens differ, bool `(rows of first, rows of second)`."""
    return ops.any(ops.not_equal(ops.expand_dims(first, 1), ops.expand_dims(second, 0)), axis=-1)


def pretraining_batches(
    model: InfoWord, documents: Sequence[Document], batch_size: int, seed: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields batches for `fit` without end: pairs of segments, masks and spans are drawn anew in each pass.

    Args:
        model: `InfoWord` with the head `"masked_lm"` and a tokenizer; its settings say what is drawn.
        documents: sequence of documents, see `zoo.language.pretraining_data.encode_documents`.
        batch_size: int.
        seed: int. The same seed gives the same batches.

    Yields:
        Tuples of inputs and targets.
    """
    sizes = (model.sequence_length, model.mask_selection_length, model.sentence_loss)
    masking = Masking(*sizes, whole_words=False)
    # A generator of its own: the objectives see the same masks
    rng = np.random.default_rng([seed, 1])
    for inputs, targets in training_batches(model.assets[TOKENIZER], documents, masking, batch_size, seed):
        yield model.span_views(inputs, targets, rng)


def token_counts(documents: Sequence[Document], vocabulary_size: int) -> np.ndarray:
    """Returns how often each token occurs in documents, int array `(vocabulary_size,)`."""
    return np.bincount(np.concatenate([line for document in documents for line in document]), minlength=vocabulary_size)
