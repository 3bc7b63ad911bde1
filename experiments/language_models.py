"""What the experiments with character language models share: data, evaluation, the n-gram baseline."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from zoo import datasets
from zoo.sequence.recurrent_language_model import RecurrentLanguageModel
from zoo.sequence.tokenizer import character_tokenizer, encode_text, load_tokenizer
from zoo.training.metrics import BitsPerToken
from zoo.training.optimizers import StreamAdam
from zoo.training.recipe import TrainingData
from zoo.training.streams import token_streams, token_windows

SPLITS = ("train", "validation", "test")
EVALUATION_STREAMS = 8


@functools.cache
def tokenizer_json(dataset: str) -> bytes:
    """Returns a character tokenizer that covers every split of a text."""
    return character_tokenizer("".join(datasets.load_text(dataset, split) for split in SPLITS))


@functools.cache
def token_ids(dataset: str, split: str) -> np.ndarray:
    """Returns a split of a text as ids `(length,)`."""
    return encode_text(load_tokenizer(tokenizer_json(dataset)), datasets.load_text(dataset, split))


def vocabulary(dataset: str) -> dict[str, int]:
    """Returns the constructor argument that depends on the text."""
    return {"vocabulary_size": load_tokenizer(tokenizer_json(dataset)).get_vocab_size()}


def prepare(model: RecurrentLanguageModel, dataset: str) -> None:
    """Gives a model the tokenizer of a text."""
    model.set_assets({"tokenizer.json": tokenizer_json(dataset)})


def stream_data(batch_size: int, windows: int = 1) -> Callable:
    """Returns the `data` function of a recipe.

    Args:
        batch_size: int. Parallel streams in training.
        windows: int. Windows of the model per training batch.
    """

    def data(model: RecurrentLanguageModel, dataset: str, seed: int) -> TrainingData:
        length = windows * model.window_length
        # Every seed reads the text from another place, as a circle.
        ids = np.roll(
            token_ids(dataset, "train"), -np.random.default_rng(seed).integers(len(token_ids(dataset, "train")))
        )
        validation = token_streams(token_ids(dataset, "validation"), EVALUATION_STREAMS, model.window_length)
        return TrainingData(token_streams(ids, batch_size, length, repeat=True), validation)

    return data


def compiler(peak: float, warmup_steps: int, clip_norm: float, final: float, **optimizer: object) -> Callable:
    """Returns the `compile` function of a recipe: Adam, linear warm-up, cosine decay, clipped gradients.

    Args:
        peak: float. Largest learning rate.
        warmup_steps: int.
        clip_norm: float. Largest gradient norm of each group of weights.
        final: float. Last learning rate.
        **optimizer: further arguments of `StreamAdam`.
    """

    def compile_model(model: keras.Model, num_updates: int) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(
            1e-6,
            decay_steps=max(num_updates - warmup_steps, 1),
            alpha=final / peak,
            warmup_target=peak,
            warmup_steps=warmup_steps,
        )
        model.compile(
            StreamAdam(schedule, clip_norm=clip_norm, **optimizer),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[BitsPerToken()],
            jit_compile=False,  # measured on CPU: XLA makes the steps no faster and compiling takes minutes
        )

    return compile_model


def evaluate(model: RecurrentLanguageModel, dataset: str, split: str) -> dict[str, float]:
    """Returns bits per character of a split, read once in eight streams with memory carried along."""
    if not model.compiled:
        compiler(1e-3, 1, 1.0, 1e-3)(model, 2)
    streams = token_streams(token_ids(dataset, split), EVALUATION_STREAMS, model.window_length)
    results = model.evaluate(streams, verbose=0, return_dict=True)
    return {"bits_per_character": float(results["bits_per_character"])}


def fit_arm(
    model: RecurrentLanguageModel, dataset: str, updates: int, seed: int, windows: int = 1, **optimizer: object
) -> None:
    """Trains one arm of an experiment: 16 streams, or fewer of several windows each at the same number of tokens.

    Args:
        model: built model.
        dataset: str.
        updates: int.
        seed: int. Where in the text the streams begin.
        windows: int. Windows per update.
        **optimizer: arguments of `StreamAdam` beyond the shared ones.
    """
    data = stream_data(16 // windows, windows)(model, dataset, seed)
    compiler(peak=2e-3, warmup_steps=100, clip_norm=0.25, final=1e-5, **optimizer)(model, updates)
    model.fit(data.train, steps_per_epoch=updates, epochs=1, verbose=0, shuffle=False)


def character_bits(model: RecurrentLanguageModel, ids: np.ndarray) -> np.ndarray:
    """Returns the bits every character of a text costs, read in eight streams with memory carried along.

    Args:
        model: `RecurrentLanguageModel`.
        ids: int array `(length,)`.

    Returns:
        Float array `(EVALUATION_STREAMS, characters of a stream)`.
    """
    windows, targets = token_windows(ids, EVALUATION_STREAMS, model.window_length)
    read = tf.function(lambda window, state: model.forward(window, state, training=False))
    state = model.initial_state(EVALUATION_STREAMS)
    bits = []
    for window, target in zip(windows, targets, strict=True):
        logits, state = read(tf.constant(window), state)
        nats = keras.ops.sparse_categorical_crossentropy(target, logits, from_logits=True)
        bits.append(np.asarray(nats) / np.log(2))
    return np.concatenate(bits, axis=1)


def ngram_bits_per_character(train: np.ndarray, test: np.ndarray, vocabulary_size: int, order: int = 5) -> float:
    """Returns bits per character of an n-gram model with Witten-Bell smoothing, backing off to shorter contexts.

    Args:
        train: int array `(length,)`.
        test: int array `(length,)`.
        vocabulary_size: int.
        order: int. Characters in an n-gram, the predicted one included.

    Reference:
        Witten and Bell 1991, method C: lambda(h) = N(h) / (N(h) + T(h)).
    """
    probability = np.full(len(test) - order + 1, 1.0 / vocabulary_size)
    for length in range(1, order + 1):
        grams, contexts = _codes(train, length, vocabulary_size), _codes(train, length - 1, vocabulary_size)
        contexts = contexts[: len(grams)]
        kinds, counts = np.unique(grams, return_counts=True)
        seen, total = np.unique(contexts, return_counts=True)
        distinct_contexts, distinct = np.unique(kinds // vocabulary_size, return_counts=True)
        shift = order - length
        test_grams = _codes(test[shift:], length, vocabulary_size)
        test_contexts = test_grams // vocabulary_size
        gram_count = _lookup(kinds, counts, test_grams)
        context_count = _lookup(seen, total, test_contexts)
        context_kinds = _lookup(distinct_contexts, distinct, test_contexts)
        known = context_count > 0
        mixed = (gram_count + context_kinds * probability) / np.maximum(context_count + context_kinds, 1)
        probability = np.where(known, mixed, probability)
    return float(-np.log2(probability).mean())


def _codes(ids: np.ndarray, length: int, base: int) -> np.ndarray:
    """Returns the n-grams of a text as numbers, `(len(ids) - length + 1,)`."""
    codes = np.zeros(len(ids) - length + 1, "int64")
    for offset in range(length):
        codes = codes * base + ids[offset : len(ids) - length + 1 + offset]
    return codes


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the values of keys (sorted), 0 where a key is missing."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
