"""What the experiments with BERT and ALBERT share: pretraining data, optimisers, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from zoo.datasets import docstrings
from zoo.experiments.training import signature_runner
from zoo.language.pretraining_data import Masking, load_documents, training_batches
from zoo.language.text_encoder import EVALUATION_BATCH, TextEncoder
from zoo.model import Arrays
from zoo.training.optimizers import decay_kernels_only
from zoo.training.recipe import TrainingData
from zoo.training.schedules import WarmupLinearDecay

BATCH = 32
# Share of a training in which the learning rate rises
WARMUP = 0.1


def prepare(model: TextEncoder, dataset: str) -> None:
    """Sets the tokenizer: the pieces of `docstrings`, whatever the texts."""
    model.set_assets({"tokenizer.json": docstrings.tokenizer_json()})


def pretraining_data(max_ngram: int, whole_words: bool) -> Callable[[TextEncoder, str, int], TrainingData]:
    """Returns the `data` function of a recipe.

    Args:
        max_ngram: int. Most words masked in a row.
        whole_words: bool. Mask words rather than pieces.
    """

    def data(model: TextEncoder, dataset: str, seed: int) -> TrainingData:
        tokenizer = docstrings.tokenizer_json()
        sizes = (model.sequence_length, model.mask_selection_length, model.sentence_loss)
        masking = Masking(*sizes, max_ngram, whole_words)
        documents = load_documents(tokenizer, dataset, "train")

        def batches() -> Iterator[tuple[Arrays, Arrays]]:
            return training_batches(tokenizer, documents, masking, BATCH, seed)

        validation = tf.data.Dataset.from_tensor_slices(model.held_out(dataset, "validation"))
        signature = keras.tree.map_structure(
            lambda spec: tf.TensorSpec((BATCH, *spec.shape), spec.dtype), validation.element_spec
        )
        train = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)
        return TrainingData(train, validation.batch(EVALUATION_BATCH))

    return data


def adamw(peak: float) -> Callable[[keras.Model, int], None]:
    """Returns the `compile` function of a recipe: AdamW as BERT's, with warm-up, linear decay and clipped gradients.

    Args:
        peak: float. Learning rate, see `WarmupLinearDecay`.
    """

    def compile_model(model: keras.Model, num_updates: int) -> None:
        schedule = WarmupLinearDecay(peak, int(WARMUP * num_updates), num_updates)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0)
        model.compile(optimizer=decay_kernels_only(optimizer), jit_compile=False)

    return compile_model


def lamb(peak: float) -> Callable[[keras.Model, int], None]:
    """Returns the same with Keras's LAMB.

    Beside the authors' it corrects the moments' bias, decays weights apart from the step whose length it sets, and sets
    that length for biases and normalisations too.

    Args:
        peak: float. Learning rate: the length of a step, relative to that of the weights.
    """

    def compile_model(model: keras.Model, num_updates: int) -> None:
        schedule = WarmupLinearDecay(peak, int(WARMUP * num_updates), num_updates)
        optimizer = keras.optimizers.Lamb(schedule, weight_decay=0.01, epsilon=1e-6, global_clipnorm=1.0)
        model.compile(optimizer=decay_kernels_only(optimizer), jit_compile=False)

    return compile_model


def evaluate(model: TextEncoder, dataset: str, split: str) -> dict[str, float]:
    """Returns accuracy and loss on masked tokens, and accuracy on sentences, of a split."""
    return model.scores(signature_runner(model), dataset, split)
