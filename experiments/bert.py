"""BERT: how its checkpoint is trained. What parameter sharing changes, and the order of sentences, is ALBERT's experiment."""

from __future__ import annotations

from zoo.experiments.language_encoders import adamw, evaluate, prepare, pretraining_data
from zoo.training.recipe import Recipe

RECIPES = {
    "docstrings": Recipe(
        method="bert",
        preset="docstrings",
        dataset="docstrings",
        epochs=12,
        steps_per_epoch=500,
        data=pretraining_data(max_ngram=1, whole_words=False),
        compile=adamw(1e-3),
        evaluate=evaluate,
        monitor="val_loss",
        prepare=prepare,
    )
}
