"""ALBERTs of Hugging Face: a directory with `config.json` and `model.safetensors`, read and written.

`zoo.get("albert", weights=directory)` calls `from_hugging_face`, `save_to_hugging_face` of a model `to_hugging_face`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.language.albert import Albert
from zoo.language.backbone import TextBackbone
from zoo.language.conversion import EncoderFormat
from zoo.language.text_encoder import TextEncoder

MAP = "encoder.embedding_hidden_mapping_in"


class AlbertFormat(EncoderFormat):
    """Names in ALBERTs of Hugging Face."""

    model_class = Albert
    model_type = "albert"
    family = "Albert"
    defaults = {
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "embedding_size": 128,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 4096,
        "inner_group_num": 1,
        "intermediate_size": 16384,
        "num_attention_heads": 64,
        "num_hidden_groups": 1,
        "vocab_size": 30000,
    }
    sizes = {
        "embedding_dim": "embedding_size",
        "num_groups": "num_hidden_groups",
        "num_inner_layers": "inner_group_num",
    }
    pooler = "pooler"
    transform = "predictions.dense"
    transform_norm = "predictions.LayerNorm"
    predictions = "predictions"
    sentence = "sop_classifier.classifier"
    sentence_loss = "sop"
    head_dropout = "classifier_dropout_prob"

    def backbone_layers(self, backbone: TextBackbone) -> Iterator[tuple[str, keras.layers.Layer]]:
        """Yields their names of the stack's layers, and the layers."""
        if backbone.embedding_map is not None:
            yield MAP, backbone.embedding_map
        for index, layer in enumerate(backbone.encoder_layers):
            group, inner = divmod(index, backbone.num_inner_layers)
            prefix = f"encoder.albert_layer_groups.{group}.albert_layers.{inner}"
            for name in ("query", "key", "value"):
                yield f"{prefix}.attention.{name}", getattr(layer.attention, name)
            yield f"{prefix}.attention.dense", layer.attention.outer
            yield f"{prefix}.attention.LayerNorm", layer.attention_norm
            yield f"{prefix}.ffn", layer.feed_forward.inner
            yield f"{prefix}.ffn_output", layer.feed_forward.outer
            yield f"{prefix}.full_layer_layer_norm", layer.feed_forward_norm

    def constants(self, model: TextEncoder) -> dict[str, np.ndarray]:
        """Returns their map of an embedding that is as wide as the layers: the identity."""
        backbone = model.backbone
        if backbone.embedding_map is not None:
            return {}
        identity, zeros = np.eye(backbone.hidden_dim, dtype="float32"), np.zeros(backbone.hidden_dim, "float32")
        return {f"{MAP}.weight": identity, f"{MAP}.bias": zeros}

    def config(self, model: TextEncoder) -> dict[str, Any]:
        """Returns the content of `config.json`; whatever is shared in part becomes a group for each step, with copies."""
        config = super().config(model)
        return config if model.backbone.share == "all" else {**config, "num_hidden_groups": model.backbone.num_layers}


def from_hugging_face(directory: str | Path, overrides: Mapping[str, Any] | None = None) -> Albert:
    """Builds a model of a Hugging Face directory.

    Args:
        directory: path with `config.json`, `model.safetensors` and, to read text, `tokenizer.json` or `spiece.model`.
        overrides: mapping or None. Constructor arguments that replace what the configuration says. Another `head` than that
            of the weights starts at random.

    Returns:
        A built `Albert`.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: for another model, a configuration that ours does not have, files that are missing or too large, weights
            that do not fit one by one, and a tokenizer of another vocabulary.
    """
    return AlbertFormat().read(Path(directory), overrides or {})


def to_hugging_face(model: TextEncoder, directory: str | Path) -> Path:
    """Writes a model as a directory of Hugging Face's, see `TextEncoder.save_to_hugging_face`."""
    return AlbertFormat().write(model, directory)
