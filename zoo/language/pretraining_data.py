"""What BERT and ALBERT are pretrained on: pairs of segments, swapped or strangers, with masked words.

A sentence is an int array of token ids, a document a list of sentences. Everything random comes from a NumPy generator.

Differs from the authors' scripts: a rest of a single sentence gives no pair, where theirs pairs it with another text, and
then calls it swapped too; a first sentence as long as the whole sequence takes the next one too, for there to be a pair.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from zoo.arguments import require
from zoo.language.tokenizers import SpecialIds, encode_sentences, special_ids, word_starts
from zoo.model import Arrays
from zoo.sequence.tokenizer import load_tokenizer

SENTENCE_LOSSES = ("sop", "nsp", "none")
Document = list[np.ndarray]

MASK_RATE = 0.15
SHORT_RATE = 0.1
# Of masked tokens, how many become the mask and how many another token; the rest stays
REPLACED, RANDOM = 0.8, 0.1
HELD_OUT_SEED = 0
HELD_OUT_SEQUENCES = 2000


# === Segment pairs ===


class Pair(NamedTuple):
    """Two segments and how they belong together.

    Args:
        first: int array. Tokens.
        second: int array.
        label: int. 0 if the second follows the first; 1 if they were swapped, or come from two documents.
        documents: tuple of two ints. Where the segments come from.
        sentences: tuple of two pairs of ints. First sentence of each segment and the one after its last.
    """

    first: np.ndarray
    second: np.ndarray
    label: int
    documents: tuple[int, int]
    sentences: tuple[tuple[int, int], tuple[int, int]]


def encode_documents(tokenizer_json: bytes, texts: Sequence[str]) -> list[Document]:
    """Turns texts of one sentence a line into documents; those with fewer than two sentences are left out.

    Args:
        tokenizer_json: bytes. Content of a `tokenizer.json`.
        texts: sequence of str.
    """
    lines = [text.split("\n") for text in texts]
    encoded = iter(encode_sentences(load_tokenizer(tokenizer_json), [line for part in lines for line in part]))
    documents = [[ids for _, ids in zip(part, encoded, strict=False) if len(ids)] for part in lines]
    return [document for document in documents if len(document) > 1]


def segment_pairs(
    documents: Sequence[Document],
    length: int,
    sentence_loss: str,
    rng: np.random.Generator,
    short_rate: float = SHORT_RATE,
) -> Iterator[Pair]:
    """Yields one pass over documents as pairs of segments, document by document.

    Args:
        documents: sequence of documents of at least two sentences.
        length: int. Tokens of a sequence, special ones included.
        sentence_loss: str. `"sop"`: consecutive segments of one document, swapped with probability 1/2. `"nsp"`: the second
            one comes from another document with probability 1/2. `"none"`: consecutive segments.
        rng: NumPy generator.
        short_rate: float. Share of chunks that are to have a random length from 2 tokens on.

    Raises:
        ValueError: for another loss, a length without room, and a single document where others are needed.

    Reference:
        Devlin et al. 2019, appendix A.2; Lan et al. 2020, section 3.1.
    """
    require(sentence_loss in SENTENCE_LOSSES, "sentence_loss", f"one of {SENTENCE_LOSSES}", repr(sentence_loss))
    require(length >= 5, "length", "at least 5: two tokens and three special ones", length)
    enough = len(documents) >= (2 if sentence_loss == "nsp" else 1)
    require(enough, "documents", "at least two for sentences from others", len(documents))
    room = length - 3
    for index, document in enumerate(documents):
        start = 0
        while start < len(document):
            target = int(rng.integers(2, room + 1)) if rng.random() < short_rate else room
            end = _chunk_end(document, start, target)
            if end - start < 2:
                break
            cut = int(rng.integers(start + 1, end))
            if sentence_loss == "nsp" and rng.random() < 0.5:
                yield _with_stranger(documents, index, (start, cut), target, rng)
                # What the stranger took the place of is used again
                start = cut
                continue
            swapped = sentence_loss == "sop" and rng.random() < 0.5
            spans = ((cut, end), (start, cut)) if swapped else ((start, cut), (cut, end))
            first, second = (np.concatenate(document[a:b]) for a, b in spans)
            yield Pair(first, second, int(swapped), (index, index), spans)
            start = end


def _chunk_end(document: Document, start: int, target: int) -> int:
    """Returns where sentences from a start on reach a number of tokens, but at least two of them."""
    end, size = start, 0
    while end < len(document) and (size < target or end - start < 2):
        size += len(document[end])
        end += 1
    return end


def _with_stranger(
    documents: Sequence[Document], index: int, span: tuple[int, int], target: int, rng: np.random.Generator
) -> Pair:
    first = np.concatenate(documents[index][span[0] : span[1]])
    other = int(rng.integers(len(documents) - 1))
    other += other >= index
    start = int(rng.integers(len(documents[other])))
    end, size = start, 0
    while end < len(documents[other]) and (end == start or size < target - len(first)):
        size += len(documents[other][end])
        end += 1
    return Pair(first, np.concatenate(documents[other][start:end]), 1, (index, other), (span, (start, end)))


def trim(first: np.ndarray, second: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Takes tokens from the longer of two segments, one at a time from its front or back, until both fit.

    Of two equally long ones the second gives first.
    """
    excess = max(len(first) + len(second) - room, 0)
    alone = min(excess, abs(len(first) - len(second)))
    from_first, from_second = (alone, 0) if len(first) > len(second) else (0, alone)
    from_first += (excess - alone) // 2
    from_second += excess - alone - (excess - alone) // 2
    return _cut(first, from_first, rng), _cut(second, from_second, rng)


def _cut(segment: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    front = int(rng.binomial(count, 0.5))
    return segment[front : len(segment) - (count - front)]


def join(pairs: Sequence[Pair], length: int, ids: SpecialIds, rng: np.random.Generator) -> Arrays:
    """Writes pairs as `[CLS] first [SEP] second [SEP]`, trimmed and padded.

    Returns:
        Dict of int32 arrays: `token_ids`, `segment_ids`, `padding_mask` `(pairs, length)`, `sentence_label` `(pairs,)`.
    """
    token_ids = np.full((len(pairs), length), ids.padding, "int32")
    segment_ids, mask = np.zeros((len(pairs), length), "int32"), np.zeros((len(pairs), length), "int32")
    for row, pair in enumerate(pairs):
        first, second = trim(pair.first, pair.second, length - 3, rng)
        tokens = np.concatenate([[ids.start], first, [ids.separator], second, [ids.separator]])
        token_ids[row, : len(tokens)] = tokens
        segment_ids[row, len(first) + 2 : len(tokens)] = 1
        mask[row, : len(tokens)] = 1
    labels = np.array([pair.label for pair in pairs], "int32")
    return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": mask, "sentence_label": labels}


# === Masks ===


def ngram_lengths(num_words: int, max_ngram: int, rng: np.random.Generator) -> np.ndarray:
    """Draws for each word of a sequence how many words a span from there has: n with probability proportional to 1/n.

    Near the end only lengths that fit are drawn.

    Args:
        num_words: int.
        max_ngram: int. Longest span N.
        rng: NumPy generator.

    Returns:
        Int array `(num_words,)`, from 1 to `max_ngram`.

    Reference:
        Lan et al. 2020, section 4.1.
    """
    harmonic = np.cumsum(1 / np.arange(1, max_ngram + 1))
    fitting = np.minimum(max_ngram, np.arange(num_words, 0, -1))
    draws = rng.random(num_words) * harmonic[fitting - 1]
    return np.minimum(np.searchsorted(harmonic, draws, side="right") + 1, fitting)


def masking_budget(num_tokens: int, maximum: int, rate: float = MASK_RATE) -> int:
    """Returns how many of a sequence's tokens may be masked."""
    return min(maximum, max(1, round(rate * num_tokens)))


def choose_positions(units: Sequence[np.ndarray], budget: int, max_ngram: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses which tokens of a sequence to predict: spans of words, in random order, until the budget is used.

    Args:
        units: sequence of int arrays. Positions of the tokens of each word.
        budget: int. Most positions.
        max_ngram: int. Most words of a span.
        rng: NumPy generator.

    Returns:
        Sorted int array of positions.
    """
    lengths = ngram_lengths(len(units), max_ngram, rng)
    ends = np.cumsum([0, *map(len, units)])
    taken, chosen, left = np.zeros(len(units), bool), [], budget
    for start in rng.permutation(len(units)):
        words = int(lengths[start])
        while words and ends[start + words] - ends[start] > left:
            words -= 1
        if words == 0 or taken[start : start + words].any():
            continue
        taken[start : start + words] = True
        chosen += units[start : start + words]
        left -= int(ends[start + words] - ends[start])
        if left == 0:
            break
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, "int64")


def word_units(token_ids: np.ndarray, maskable: np.ndarray, starts: np.ndarray | None) -> list[np.ndarray]:
    """Returns the positions of each word of a sequence, without special tokens.

    Args:
        token_ids: int array `(length,)`.
        maskable: bool array `(length,)`. False at special tokens and padding.
        starts: bool array `(vocabulary_size,)`, see `word_starts`; None makes every token a word.
    """
    places = np.flatnonzero(maskable)
    if starts is None or not len(places):
        return list(places[:, None])
    # A word begins at a piece that does, and after whatever cannot be masked
    begins = starts[token_ids[places]] | (np.diff(places, prepend=-2) > 1)
    return np.split(places, np.flatnonzero(begins)[1:]) if begins[0] else [places]


def corrupt(
    token_ids: np.ndarray, chosen: np.ndarray, mask_id: int, vocabulary_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Replaces chosen tokens: 80 % by the mask, 10 % by a token of the whole vocabulary; 10 % stay.

    Args:
        token_ids: int array.
        chosen: bool array of the same shape.
        mask_id: int.
        vocabulary_size: int.
        rng: NumPy generator.
    """
    draws = rng.random(token_ids.shape)
    others = rng.integers(0, vocabulary_size, token_ids.shape)
    replaced = np.where(draws < REPLACED, mask_id, np.where(draws < REPLACED + RANDOM, others, token_ids))
    return np.where(chosen, replaced, token_ids).astype(token_ids.dtype)


def mask_tokens(
    sequences: Arrays,
    ids: SpecialIds,
    vocabulary_size: int,
    maximum: int,
    rng: np.random.Generator,
    starts: np.ndarray | None = None,
    max_ngram: int = 1,
) -> tuple[Arrays, Arrays]:
    """Masks sequences.

    Args:
        sequences: dict of arrays, see `join`.
        ids: `SpecialIds`.
        vocabulary_size: int.
        maximum: int. Most masked tokens of a sequence.
        rng: NumPy generator.
        starts: bool array or None. Which pieces begin a word, to mask whole words; None masks pieces.
        max_ngram: int. Most words masked in a row.

    Returns:
        Tuple of inputs, `token_ids`, `segment_ids`, `padding_mask`, `mask_positions` `(batch, maximum)`, and targets,
        `mask_ids` and `mask_weights` `(batch, maximum)`, 0 in places without a mask, and `sentence_label`.
    """
    token_ids, padding_mask = sequences["token_ids"], sequences["padding_mask"]
    maskable = (padding_mask == 1) & (token_ids != ids.start) & (token_ids != ids.separator)
    positions, weights = np.zeros((len(token_ids), maximum), "int32"), np.zeros((len(token_ids), maximum), "float32")
    chosen = np.zeros(token_ids.shape, bool)
    for row, tokens in enumerate(token_ids):
        budget = masking_budget(int(padding_mask[row].sum()), maximum)
        found = choose_positions(word_units(tokens, maskable[row], starts), budget, max_ngram, rng)
        positions[row, : len(found)], weights[row, : len(found)] = found, 1
        chosen[row, found] = True
    mask_ids = np.where(weights == 1, np.take_along_axis(token_ids, positions, axis=1), 0).astype("int32")
    inputs = {
        "token_ids": corrupt(token_ids, chosen, ids.mask, vocabulary_size, rng),
        "segment_ids": sequences["segment_ids"],
        "padding_mask": padding_mask,
        "mask_positions": positions,
    }
    return inputs, {"mask_ids": mask_ids, "mask_weights": weights, "sentence_label": sequences["sentence_label"]}


# === Together ===


class Masking(NamedTuple):
    """How sequences are made.

    Args:
        length: int. Tokens of a sequence.
        maximum: int. Most masked tokens.
        sentence_loss: str. See `segment_pairs`.
        max_ngram: int. Most words masked in a row.
        whole_words: bool. Mask words rather than pieces.
    """

    length: int
    maximum: int
    sentence_loss: str
    max_ngram: int = 1
    whole_words: bool = True


def training_batches(
    tokenizer_json: bytes, documents: Sequence[Document], masking: Masking, batch_size: int, seed: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields batches without end: in each pass over the documents pairs and masks are drawn anew, in a new order.

    Args:
        tokenizer_json: bytes.
        documents: sequence of documents, see `encode_documents`.
        masking: `Masking`.
        batch_size: int.
        seed: int. The same seed gives the same batches.

    Yields:
        Tuples of inputs and targets, see `mask_tokens`.
    """
    rng = np.random.default_rng(seed)
    while True:
        pairs = list(segment_pairs(documents, masking.length, masking.sentence_loss, rng))
        require(len(pairs) >= batch_size, "documents", f"texts for {batch_size} pairs", len(pairs))
        order = rng.permutation(len(pairs))
        for start in range(0, len(pairs) - batch_size + 1, batch_size):
            chosen = [pairs[place] for place in order[start : start + batch_size]]
            yield masked_pairs(tokenizer_json, chosen, masking, rng)


def masked_pairs(
    tokenizer_json: bytes, pairs: Sequence[Pair], masking: Masking, rng: np.random.Generator
) -> tuple[Arrays, Arrays]:
    """Joins pairs and masks them, see `join` and `mask_tokens`."""
    ids, starts = _vocabulary(tokenizer_json)
    sequences = join(pairs, masking.length, ids, rng)
    kept = starts if masking.whole_words else None
    return mask_tokens(sequences, ids, len(starts), masking.maximum, rng, kept, masking.max_ngram)


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer_json: bytes) -> tuple[SpecialIds, np.ndarray]:
    tokenizer = load_tokenizer(tokenizer_json)
    return special_ids(tokenizer), word_starts(tokenizer)


@functools.lru_cache(maxsize=8)
def load_documents(tokenizer_json: bytes, dataset: str, split: str) -> list[Document]:
    """Returns a split of a data set of texts as documents."""
    from zoo.datasets import load_arrays

    return encode_documents(tokenizer_json, load_arrays(dataset, split)["text"].tolist())


@functools.lru_cache(maxsize=8)
def held_out_examples(
    tokenizer_json: bytes, dataset: str, split: str, sentence_loss: str, length: int, maximum: int
) -> tuple[Arrays, Arrays]:
    """Returns up to `HELD_OUT_SEQUENCES` sequences of a split with single words masked, the same ones each time.

    Args:
        tokenizer_json: bytes.
        dataset: str. Name for `zoo.datasets.load`.
        split: str.
        sentence_loss: str. See `segment_pairs`.
        length: int. Tokens of a sequence.
        maximum: int. Most masked tokens of a sequence.
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    pairs = list(segment_pairs(load_documents(tokenizer_json, dataset, split), length, sentence_loss, rng))
    chosen = [pairs[place] for place in rng.permutation(len(pairs))[:HELD_OUT_SEQUENCES]]
    return masked_pairs(tokenizer_json, chosen, Masking(length, maximum, sentence_loss), rng)
