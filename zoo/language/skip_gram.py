"""Skip-gram: vectors of words that tell which words stand near by.

Mikolov, Sutskever, Chen, Corrado, Dean, NIPS 2013 (word2vec), https://arxiv.org/abs/1310.4546.

Each word w has two vectors: u_w for the word in the middle, v_c for a word c beside it. For every pair (w, c) within a
window, whose size is drawn anew for each word in the middle, one of two losses:

    softmax    -log exp(u_w' v_c) / sum over candidates of exp(u_w' v)          InfoNCE; all words, or c and K drawn ones
    sgns       -log sigmoid(u_w' v_c) - sum_k log sigmoid(-u_w' v_k)            negative sampling, K drawn ones

Words are drawn with their frequencies to the power 3/4. Frequent words are left out at random before windows are cut.

Negative sampling is no InfoNCE: its optimum is u_w' v_c = log p(c | w) / q(c) - log K (PMI - log K, Levy and Goldberg 2014).
That of the softmax over drawn words is the same up to any function of w; over all words it is log p(c | w), up to such a one.

Differs from the released program: a drawn word that happens to be c is masked in the softmax and kept in negative sampling,
as the formulas are; documents are read whole, without limit to the length of a sentence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from zoo.arguments import require
from zoo.language.contrastive import contrast, proposal
from zoo.model import Arrays, Runner, Signature, Spec, TaskMetric
from zoo.sequence.text_model import TextModel
from zoo.sequence.tokenizer import load_tokenizer

LOSSES = ("sgns", "softmax")
UNKNOWN = "[UNK]"
# A word begins with a letter; names such as n_samples are words
WORD = r"\p{L}[\p{L}\p{N}_]*"
# Words that the signature `predict` returns
NUM_NEIGHBORS = 10
HELD_OUT_SEED = 0
HELD_OUT_PAIRS = 5000
# Candidates of the held-out task, the right one among them
NUM_CANDIDATES = 20


# === Text ===


def word_tokenizer(texts: Iterable[str], vocabulary_size: int) -> bytes:
    """Makes a tokenizer of the most frequent words of texts, in lower case and without accents; other signs are dropped.

    Args:
        texts: iterable of str.
        vocabulary_size: int. Words, with `[UNK]` for all others, which is 0. The rest is in order of frequency.

    Returns:
        The content of a `tokenizer.json`.

    Raises:
        ValueError: if the texts have fewer words.
    """
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary_size, special_tokens=[UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    require(found == vocabulary_size, "vocabulary_size", f"at most what the texts give, {found}", vocabulary_size)
    return tokenizer.to_str().encode()


def encode_words(tokenizer_json: bytes, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the words of each text as int32 ids; unknown ones are left out, so that their neighbours are neighbours."""
    tokenizer = load_tokenizer(tokenizer_json)
    unknown = tokenizer.token_to_id(UNKNOWN)
    encoded = (np.array(encoding.ids, "int32") for encoding in tokenizer.encode_batch_fast(list(texts)))
    return [ids[ids != unknown] for ids in encoded]


@functools.lru_cache(maxsize=8)
def load_words(tokenizer_json: bytes, dataset: str, split: str) -> list[np.ndarray]:
    """Returns the words of each text of a split of a data set."""
    from zoo.datasets import load_arrays

    return encode_words(tokenizer_json, load_arrays(dataset, split)["text"].tolist())


# === Pairs ===


class Corpus(NamedTuple):
    """What is drawn from.

    Args:
        documents: sequence of int arrays. Words of each text.
        counts: int array `(vocabulary_size,)`. How often each word occurs, by which words are left out and drawn.
    """

    documents: Sequence[np.ndarray]
    counts: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], vocabulary_size: int) -> Corpus:
        """Counts the words of documents."""
        words = np.concatenate(documents) if len(documents) else np.zeros(0, "int32")
        require(len(words) > 0, "documents", "texts with words", f"{len(documents)} texts without")
        return cls(documents, np.bincount(words, minlength=vocabulary_size))


def keep_probabilities(counts: np.ndarray, threshold: float) -> np.ndarray:
    """Returns with which probability a word stays in the text: min(1, sqrt(t / f) + t / f) of its frequency f.

    Args:
        counts: int array `(vocabulary_size,)`.
        threshold: float. t, near which words begin to be left out.

    Reference:
        Mikolov et al. 2013, section 2.3, with the formula of the program.
    """
    ratio = threshold * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


def word_pairs(
    documents: Sequence[np.ndarray], window: int, kept: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Makes the pairs of one pass over documents, in the order of the text.

    Args:
        documents: sequence of int arrays.
        window: int. Each word in the middle has a reach of its own, from 1 to this.
        kept: float array `(vocabulary_size,)`, see `keep_probabilities`.
        rng: NumPy generator.

    Returns:
        Two int32 arrays `(pairs,)`: words in the middle, and words beside them.
    """
    words = np.concatenate(documents)
    owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    stays = rng.random(len(words)) < kept[words]
    words, owners = words[stays], owners[stays]
    reach = rng.integers(1, window + 1, len(words))
    middles, others, places = [], [], []
    for distance in range(1, min(window, len(words) - 1) + 1):
        left = np.flatnonzero(owners[:-distance] == owners[distance:])
        for middle, other in ((left, left + distance), (left + distance, left)):
            within = reach[middle] >= distance
            middles.append(words[middle[within]])
            others.append(words[other[within]])
            places.append(middle[within])
    if not middles:
        return words[:0], words[:0]
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(middles)[order], np.concatenate(others)[order]


def draw_words(count: int, probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws words, int32 `(count,)`, with replacement."""
    edges = np.cumsum(probabilities)
    return np.searchsorted(edges, rng.random(count) * edges[-1], side="right").astype("int32")


def with_candidates(
    words: np.ndarray, contexts: np.ndarray, num_negatives: int, probabilities: np.ndarray, rng: np.random.Generator
) -> Arrays:
    """Puts drawn words beside the right ones.

    Args:
        words: int array `(pairs,)`.
        contexts: int array `(pairs,)`.
        num_negatives: int.
        probabilities: float array `(vocabulary_size,)`, see `zoo.language.contrastive.proposal`.
        rng: NumPy generator.

    Returns:
        Dict of int32 arrays, `word_ids` `(pairs,)` and `candidate_ids` `(pairs, 1 + num_negatives)`, the right one first.
    """
    drawn = draw_words(len(words) * num_negatives, probabilities, rng).reshape(len(words), num_negatives)
    return {"word_ids": words, "candidate_ids": np.concatenate([contexts[:, None], drawn], axis=1)}


def training_batches(model: SkipGram, corpus: Corpus, batch_size: int, seed: int) -> Iterator[Any]:
    """Yields batches without end: in each pass words are left out, windows and candidates drawn anew, in a new order.

    Args:
        model: `SkipGram`, whose settings say how.
        corpus: `Corpus`.
        batch_size: int. Pairs of a batch.
        seed: int. The same seed gives the same batches.

    Yields:
        Dicts of `with_candidates`; where all words are candidates, tuples of `{"word_ids": ...}` and the right words.

    Raises:
        ValueError: for texts with fewer pairs than a batch.
    """
    rng = np.random.default_rng(seed)
    kept = keep_probabilities(corpus.counts, model.subsample_threshold)
    probabilities = proposal(corpus.counts)
    while True:
        words, contexts = word_pairs(corpus.documents, model.window, kept, rng)
        require(len(words) >= batch_size, "documents", f"texts with {batch_size} pairs of words", len(words))
        order = rng.permutation(len(words))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            if model.num_negatives is None:
                yield {"word_ids": words[rows]}, contexts[rows]
            else:
                yield with_candidates(words[rows], contexts[rows], model.num_negatives, probabilities, rng)


@functools.lru_cache(maxsize=8)
def held_out_pairs(
    tokenizer_json: bytes, dataset: str, split: str, window: int, threshold: float, num_negatives: int
) -> Arrays:
    """Returns up to `HELD_OUT_PAIRS` pairs of a split with drawn words beside, the same ones each time.

    Words are left out and drawn by the frequencies of the train split.
    """
    size = load_tokenizer(tokenizer_json).get_vocab_size()
    counts = Corpus.of(load_words(tokenizer_json, dataset, "train"), size).counts
    rng = np.random.default_rng(HELD_OUT_SEED)
    documents = load_words(tokenizer_json, dataset, split)
    words, contexts = word_pairs(documents, window, keep_probabilities(counts, threshold), rng)
    rows = rng.permutation(len(words))[:HELD_OUT_PAIRS]
    return with_candidates(words[rows], contexts[rows], num_negatives, proposal(counts), rng)


def context_accuracy(run: Runner, pairs: Arrays) -> float:
    """Returns how often the word that really stood beside gets the best score.

    Args:
        run: `Runner` of a `SkipGram`.
        pairs: dict, see `held_out_pairs`.
    """
    scores, ids = run("score", pairs)["scores"], pairs["candidate_ids"]
    # A drawn word may be the right one; equal scores of other words are no hit
    others = np.where(ids[:, 1:] == ids[:, :1], -np.inf, scores[:, 1:])
    return float((scores[:, 0] > others.max(axis=1)).mean())


# === Model ===


@keras.saving.register_keras_serializable(package="zoo")
class SkipGram(TextModel):
    """Vectors of words, learned from the words beside them.

    The model's input, in `fit` and when called, is a dict of int tensors: `word_ids` `(batch,)` and `candidate_ids`
    `(batch, candidates)`, the right one first. Its output are the scores u'v of the candidates, float32
    `(batch, candidates)`. Without `candidate_ids` all words are candidates, and `fit` takes the right ones as targets.

    Args:
        vocabulary_size: int.
        embedding_dim: int.
        window: int. Largest distance of words that make a pair. Defaults to 5.
        num_negatives: int or None. Words drawn beside the right one; None makes all words candidates, which is for the loss
            `"softmax"`. Defaults to 5.
        loss: str. `"sgns"`, negative sampling, or `"softmax"`, InfoNCE over the candidates. Defaults to `"sgns"`.
        subsample_threshold: float. Frequency near which words begin to be left out. Defaults to 1e-5, for texts of a
            billion words; 1e-3 suits a million.
        **kwargs: arguments of `keras.Model`.

    Example:

    ```python
    model = zoo.get("skip_gram")                       # documentation of scientific Python packages
    model.most_similar("rows", top_k=5)
    model.analogy("matrix", "matrices", "array")       # matrix is to matrices as array is to ...
    ```

    Reference:
        Mikolov et al. 2013.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_dim: int,
        window: int = 5,
        num_negatives: int | None = 5,
        loss: str = "sgns",
        subsample_threshold: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(vocabulary_size >= 2, "vocabulary_size", "at least 2", vocabulary_size)
        require(embedding_dim >= 1, "embedding_dim", "positive", embedding_dim)
        require(window >= 1, "window", "positive", window)
        require(loss in LOSSES, "loss", f"one of {LOSSES}", repr(loss))
        some = num_negatives is not None and num_negatives >= 1
        all_words = num_negatives is None and loss == "softmax"
        require(some or all_words, "num_negatives", "positive, or None with the loss 'softmax'", num_negatives)
        require(subsample_threshold > 0, "subsample_threshold", "positive", subsample_threshold)
        self.vocabulary_size = vocabulary_size
        self.embedding_dim = embedding_dim
        self.window = window
        self.num_negatives = num_negatives
        self.loss_name = loss
        self.subsample_threshold = subsample_threshold
        reach = 0.5 / embedding_dim
        self.word_embedding = self._table("word_embedding", keras.initializers.RandomUniform(-reach, reach))
        self.context_embedding = self._table("context_embedding", keras.initializers.Zeros())

    def _table(self, name: str, initializer: keras.initializers.Initializer) -> keras.layers.Embedding:
        return keras.layers.Embedding(
            self.vocabulary_size, self.embedding_dim, initializer, dtype=self.dtype_policy, name=name
        )

    def build_from_signature(self) -> SkipGram:
        """Creates both tables."""
        if not self.built:
            self.word_embedding.build((None,))
            self.context_embedding.build((None, None))
            self.built = True
        return self

    def call(self, inputs: Mapping[str, Any], training: bool | None = None) -> Any:
        """Scores candidates.

        Args:
            inputs: dict of int tensors, see the class.
            training: bool or None. Without effect.

        Returns:
            Float32 tensor `(batch, candidates)`, or `(batch, vocabulary_size)`.
        """
        self.build_from_signature()
        vectors = self.word_embedding(inputs["word_ids"])
        if "candidate_ids" not in inputs:
            table = ops.cast(self.context_embedding.embeddings, vectors.dtype)
            return ops.cast(tf.matmul(vectors, table, transpose_b=True), "float32")
        candidates = self.context_embedding(inputs["candidate_ids"])
        return ops.cast(ops.sum(ops.expand_dims(vectors, 1) * candidates, axis=-1), "float32")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Returns the mean loss of pairs in nats; `y_pred` is what `call` returned."""
        require(sample_weight is None, "sample_weight", "None", type(sample_weight))
        if "candidate_ids" not in x:
            require(y is not None, "y", "the right words, where all are candidates", None)
            require(self.loss_name == "softmax", "x", "a dict with 'candidate_ids' for the loss 'sgns'", sorted(x))
            return ops.mean(contrast(y_pred, y).loss)
        require(y is None, "y", "None: the right candidate is the first", type(y))
        if self.loss_name == "sgns":
            right, wrong = y_pred[:, 0], y_pred[:, 1:]
            return ops.mean(ops.softplus(-right) + ops.sum(ops.softplus(wrong), axis=-1))
        ids = x["candidate_ids"]
        first = ops.arange(ops.shape(ids)[1]) == 0
        mask = ops.logical_or(ops.not_equal(ids, ids[:, :1]), first)
        return ops.mean(contrast(y_pred, ops.zeros_like(ids[:, 0]), mask).loss)

    # === Use ===

    def vector(self, word: str) -> np.ndarray:
        """Returns the vector of a word, float32 `(embedding_dim,)`.

        Raises:
            ValueError: for a word that the model does not know, and for a model without tokenizer.
        """
        return self.word_embedding.embeddings.numpy()[self._id(word)]

    def most_similar(self, word: str, top_k: int = 10) -> list[tuple[str, float]]:
        """Returns the words whose vectors have the most similar direction, and the cosines.

        Args:
            word: str.
            top_k: int.

        Raises:
            ValueError: see `vector`.
        """
        place = self._id(word)
        return self._nearest(self.unit_vectors()[place], [place], top_k)

    def analogy(self, first: str, second: str, third: str, top_k: int = 1) -> list[tuple[str, float]]:
        """Answers "`first` is to `second` as `third` is to ...", by the vectors nearest to second - first + third.

        Args:
            first: str.
            second: str.
            third: str.
            top_k: int.

        Returns:
            Words other than the three, and cosines.

        Raises:
            ValueError: see `vector`.
        """
        places = [self._id(word) for word in (first, second, third)]
        a, b, c = self.unit_vectors()[places]
        return self._nearest(b - a + c, places, top_k)

    def analogy_accuracy(self, questions: Sequence[tuple[str, str, str, str]]) -> float:
        """Returns the share of questions whose fourth word is the answer of `analogy` to the first three.

        Args:
            questions: sequence of four words each, all known.

        Raises:
            ValueError: for no question, and see `vector`.
        """
        require(len(questions) > 0, "questions", "at least one question", questions)
        places = np.array([[self._id(word) for word in question] for question in questions])
        units = self.unit_vectors()
        a, b, c = (units[column] for column in places[:, :3].T)
        similarities = (b - a + c) @ units.T
        np.put_along_axis(similarities, places[:, :3], -np.inf, axis=1)
        similarities[:, self._unknown()] = -np.inf
        return float((similarities.argmax(axis=1) == places[:, 3]).mean())

    def neighbor_recall(self, pairs: Sequence[tuple[str, str]], top_k: int = 10) -> float:
        """Returns the share of pairs of words of which the second is among the nearest to the first.

        Args:
            pairs: sequence of two words each, all known.
            top_k: int. How many words are looked at; by chance as many of all words.

        Raises:
            ValueError: for no pair, and see `vector`.
        """
        require(len(pairs) > 0, "pairs", "at least one pair", pairs)
        found = [second in dict(self.most_similar(first, top_k)) for first, second in pairs]
        return float(np.mean(found))

    def unit_vectors(self) -> np.ndarray:
        """Returns all words' vectors at length 1, float32 `(vocabulary_size, embedding_dim)`."""
        vectors = self.word_embedding.embeddings.numpy()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _id(self, word: str) -> int:
        found = self.tokenizer.token_to_id(word)
        if found is None or word == UNKNOWN:
            raise ValueError(f"`word` must be one of the model's {self.vocabulary_size} words. Received: {word!r}")
        return found

    def _unknown(self) -> list[int]:
        found = self.tokenizer.token_to_id(UNKNOWN)
        return [] if found is None else [found]

    def _nearest(self, query: np.ndarray, without: Sequence[int], top_k: int) -> list[tuple[str, float]]:
        require(top_k >= 1, "top_k", "positive", top_k)
        similarities = self.unit_vectors() @ (query / np.linalg.norm(query))
        similarities[[*without, *self._unknown()]] = -np.inf
        best = np.argsort(-similarities, kind="stable")[: min(top_k, int(np.isfinite(similarities).sum()))]
        return [(self.tokenizer.id_to_token(int(place)), float(similarities[place])) for place in best]

    # === Signatures and held-out data ===

    def signatures(self) -> dict[str, Signature]:
        """Returns `encode`, a word's vector; `predict`, the words nearest to a vector; `score`, words beside a word."""
        words = Spec(("batch",), "int32", "Words.", 0, self.vocabulary_size - 1)
        count = min(NUM_NEIGHBORS, self.vocabulary_size)

        def encode(word_ids: Any) -> dict[str, Any]:
            return {"embedding": ops.cast(self.word_embedding(word_ids), "float32")}

        def predict(query: Any) -> dict[str, Any]:
            units, table = (
                ops.cast(tf.math.l2_normalize(value, axis=-1), self.compute_dtype)
                for value in (query, tf.convert_to_tensor(self.word_embedding.embeddings))
            )
            similarities = ops.cast(tf.matmul(units, table, transpose_b=True), "float32")
            values, places = tf.math.top_k(similarities, count)
            return {"similarities": values, "neighbor_ids": places}

        def score(word_ids: Any, candidate_ids: Any) -> dict[str, Any]:
            return {"scores": self({"word_ids": word_ids, "candidate_ids": candidate_ids}, training=False)}

        candidates = Spec(("batch", "candidates"), "int32", "Words beside.", 0, self.vocabulary_size - 1)
        vectors = Spec(("batch", self.embedding_dim), "float32", "Vectors, as of words or sums of such.")
        return {
            "encode": Signature(encode, {"word_ids": words}, {"embedding": "Vectors, (batch, embedding_dim)."}),
            "predict": Signature(
                predict,
                {"query": vectors},
                {
                    "similarities": f"Cosines of the {count} words nearest to each vector, the largest first.",
                    "neighbor_ids": f"These words, (batch, {count}).",
                },
            ),
            "score": Signature(
                score,
                {"word_ids": words, "candidate_ids": candidates},
                {"scores": "How much likelier each candidate is beside the word than anywhere, in logarithm."},
                sizes={"candidates": NUM_CANDIDATES},
            ),
        }

    def held_out(self, dataset: str, split: str, num_negatives: int = NUM_CANDIDATES - 1) -> Arrays:
        """Returns pairs of a split with drawn words beside, see `held_out_pairs`.

        Args:
            dataset: str. Name for `zoo.datasets.load`, with a feature `text`.
            split: str.
            num_negatives: int. Drawn words.
        """
        tokenizer = self.tokenizer.to_str().encode()
        return held_out_pairs(tokenizer, dataset, split, self.window, self.subsample_threshold, num_negatives)

    def real_inputs(self, signature: str, batch_size: int = 1) -> Iterable[Arrays]:
        """Yields words of the validation split of the data set the checkpoint names; nothing without a checkpoint."""
        if self.metadata is None:
            return
        pairs = self.held_out(self.metadata.evaluation_dataset, "validation")
        pairs["query"] = self.word_embedding.embeddings.numpy()[pairs["word_ids"]]
        names = self._signature(signature).inputs
        for start in range(0, len(pairs["word_ids"]) - batch_size + 1, batch_size):
            yield {name: pairs[name][start : start + batch_size] for name in names}

    def task_metric(self) -> TaskMetric | None:
        """Returns how often the right word beside a word is told from 19 drawn ones; `None` without a checkpoint."""
        if self.metadata is None:
            return None
        dataset = self.metadata.evaluation_dataset
        return TaskMetric(
            "context_accuracy",
            lambda run: context_accuracy(run, self.held_out(dataset, "test")),
            higher_is_better=True,
            absolute_tolerance=0.01,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "embedding_dim": self.embedding_dim,
            "window": self.window,
            "num_negatives": self.num_negatives,
            "loss": self.loss_name,
            "subsample_threshold": self.subsample_threshold,
        }
