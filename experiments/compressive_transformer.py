"""Compressive Transformer: how the shipped checkpoint is trained, and whether compressing beats dropping."""

from zoo.experiments import language_models as lm
from zoo.training.recipe import Recipe

RECIPES = {
    "austen": Recipe(
        method="compressive_transformer",
        preset="austen",
        dataset="austen",
        epochs=40,
        steps_per_epoch=200,
        prepare=lm.prepare,
        overrides=lm.vocabulary,
        data=lm.stream_data(batch_size=16),
        compile=lm.compiler(peak=2e-3, warmup_steps=200, clip_norm=0.25, final=1e-5, clip_groups=["compression_"]),
        evaluate=lm.evaluate,
        monitor="val_bits_per_character",
    )
}
