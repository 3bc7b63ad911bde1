"""BERTs of Hugging Face: a directory with `config.json` and `model.safetensors`, read and written.

`zoo.get("bert", weights=directory)` calls `from_hugging_face`, `save_to_hugging_face` of a model `to_hugging_face`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from zoo.language.backbone import TextBackbone
from zoo.language.bert import Bert
from zoo.language.conversion import EncoderFormat
from zoo.language.text_encoder import TextEncoder


class BertFormat(EncoderFormat):
    """Names in BERTs of Hugging Face."""

    model_class = Bert
    model_type = "bert"
    family = "Bert"
    defaults = {
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "vocab_size": 30522,
    }
    sizes = {}
    pooler = "pooler.dense"
    transform = "cls.predictions.transform.dense"
    transform_norm = "cls.predictions.transform.LayerNorm"
    predictions = "cls.predictions"
    sentence = "cls.seq_relationship"
    sentence_loss = "nsp"
    head_dropout = "classifier_dropout"

    def backbone_layers(self, backbone: TextBackbone) -> Iterator[tuple[str, keras.layers.Layer]]:
        """Yields their names of the stack's layers, and the layers."""
        for index, layer in enumerate(backbone.encoder_layers):
            prefix = f"encoder.layer.{index}"
            for name in ("query", "key", "value"):
                yield f"{prefix}.attention.self.{name}", getattr(layer.attention, name)
            yield f"{prefix}.attention.output.dense", layer.attention.outer
            yield f"{prefix}.attention.output.LayerNorm", layer.attention_norm
            yield f"{prefix}.intermediate.dense", layer.feed_forward.inner
            yield f"{prefix}.output.dense", layer.feed_forward.outer
            yield f"{prefix}.output.LayerNorm", layer.feed_forward_norm


def from_hugging_face(directory: str | Path, overrides: Mapping[str, Any] | None = None) -> Bert:
    """Builds a model of a Hugging Face directory.

    Args:
        directory: path with `config.json`, `model.safetensors` and, to read text, `tokenizer.json` or `vocab.txt`.
        overrides: mapping or None. Constructor arguments that replace what the configuration says. Another `head` than that
            of the weights starts at random.

    Returns:
        A built `Bert`.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: for another model, a configuration that ours does not have, files that are missing or too large, weights
            that do not fit one by one, and a tokenizer of another vocabulary.
    """
    return BertFormat().read(Path(directory), overrides or {})


def to_hugging_face(model: TextEncoder, directory: str | Path) -> Path:
    """Writes a model as a directory of Hugging Face's, see `TextEncoder.save_to_hugging_face`."""
    return BertFormat().write(model, directory)
