"""What the experiments with translations of short texts share: data, training, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from zoo import datasets
from zoo.sequence.encoder_decoder import (
    SPECIAL_CHARACTERS,
    START_ID,
    EncoderDecoder,
    LabelSmoothedCrossEntropy,
)
from zoo.sequence.tokenizer import character_tokenizer, load_tokenizer
from zoo.training.recipe import TrainingData

SPLITS = ("train", "validation", "test")
# Texts of similar lengths share a batch: edges of their classes, in tokens.
LENGTH_CLASSES = (11, 16, 24)
VALIDATION_BATCH = 128


@functools.cache
def tokenizer_json(dataset: str) -> bytes:
    """Returns a character tokenizer of both languages that covers every split."""
    texts = [text for split in SPLITS for texts in datasets.load_arrays(dataset, split).values() for text in texts]
    return character_tokenizer(SPECIAL_CHARACTERS + "".join(texts))


def vocabulary(dataset: str) -> dict[str, int]:
    """Returns the constructor argument that depends on the texts."""
    return {"vocabulary_size": load_tokenizer(tokenizer_json(dataset)).get_vocab_size()}


def prepare(model: EncoderDecoder, dataset: str) -> None:
    """Gives a model the tokenizer of a data set."""
    model.set_assets({"tokenizer.json": tokenizer_json(dataset)})


# === Training ===


def pair_data(batch_size: int) -> Callable[[EncoderDecoder, str, int], TrainingData]:
    """Returns the `data` function of a recipe: shuffled batches of pairs of similar lengths."""

    def data(model: EncoderDecoder, dataset: str, seed: int) -> TrainingData:
        train, validation = (_pairs(model, dataset, split) for split in ("train", "validation"))
        shuffled = train.shuffle(20_000, seed=seed).repeat()
        return TrainingData(_batches(shuffled, batch_size), _batches(validation, VALIDATION_BATCH))

    return data


def _pairs(model: EncoderDecoder, dataset: str, split: str) -> tf.data.Dataset:
    data = datasets.load_arrays(dataset, split)
    pairs = tuple(model.encode_texts(data[name]) for name in ("source", "target"))
    return tf.data.Dataset.from_tensor_slices(pairs)


def _batches(pairs: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    def trim(source_ids: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(ids[: tf.math.count_nonzero(ids, dtype=tf.int32)] for ids in (source_ids, labels))

    def longer(source_ids: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.maximum(tf.size(source_ids), tf.size(labels))

    def inputs(source_ids: tf.Tensor, labels: tf.Tensor) -> tuple:
        starts = tf.fill((tf.shape(labels)[0], 1), START_ID)
        return {"source_ids": source_ids, "target_ids": tf.concat([starts, labels[:, :-1]], axis=1)}, labels

    batch_sizes = [batch_size] * (len(LENGTH_CLASSES) + 1)
    batched = pairs.map(trim).bucket_by_sequence_length(longer, LENGTH_CLASSES, batch_sizes)
    return batched.map(inputs)


def compiler(peak: float, warmup_steps: int, label_smoothing: float = 0.1) -> Callable[[keras.Model, int], None]:
    """Returns the `compile` function of a recipe: Adam, linear warm-up, cosine decay to zero, smoothed labels."""

    def compile_model(model: keras.Model, num_updates: int) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(num_updates - warmup_steps, 1), warmup_target=peak, warmup_steps=warmup_steps
        )
        optimizer = keras.optimizers.Adam(schedule, beta_2=0.98, global_clipnorm=1.0)
        # XLA would compile every shape of a batch anew.
        model.compile(optimizer, LabelSmoothedCrossEntropy(label_smoothing), jit_compile=False)

    return compile_model


# === Evaluation ===


def evaluate(model: EncoderDecoder, dataset: str, split: str) -> dict[str, float]:
    """Returns how well a model translates the texts of a split.

    Returns:
        Dict of `exact_match` (share of greedy translations without an error), `character_error_rate` (edits per
        character of the true translations) and `bits_per_character` (teacher forced).
    """
    data = datasets.load_arrays(dataset, split)
    truths = data["target"].tolist()
    found = translate(model, data["source"].tolist())
    edits = [edit_distance(a, b) for a, b in zip(found, truths, strict=True)]
    return {
        "exact_match": float(np.mean([edit == 0 for edit in edits])),
        "character_error_rate": sum(edits) / sum(map(len, truths)),
        "bits_per_character": model.bits_per_token(lambda name, inputs: model.run(name, **inputs), split, dataset),
    }


def translate(model: EncoderDecoder, sources: list[str], batch_size: int = 128) -> list[str]:
    """Returns greedy translations; texts of similar lengths share a batch."""
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    targets = dict.fromkeys(order, "")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found = model.generate([sources[row] for row in rows], max_new_tokens=64)
        targets.update(zip(rows, found, strict=True))
    return [targets[index] for index in range(len(sources))]


def edit_distance(first: str, second: str) -> int:
    """Returns the least number of characters to insert, delete or replace (Levenshtein)."""
    distances = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        diagonal, distances[0] = distances[0], i
        for j, b in enumerate(second, start=1):
            diagonal, distances[j] = distances[j], min(distances[j] + 1, distances[j - 1] + 1, diagonal + (a != b))
    return distances[-1]
