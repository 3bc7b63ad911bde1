"""Reformers of Hugging Face: a directory with `config.json` and `model.safetensors` of a `ReformerModelWithLMHead`.

`zoo.get("reformer", weights=directory)` calls `from_hugging_face`. Nothing is unpickled and no code comes out of a file: the
configuration is JSON, the weights are named arrays, each of which must have its place in the model, and the model no other.

Their model attends across buckets, counts keys found twice twice, and lets the first chunk look back to the last one. It
draws rotations by PyTorch's generator and we by NumPy's: logits are equal where both are given the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.hugging_face import (
    Places,
    assign,
    check_model,
    layer_places,
    read_config,
    read_tensors,
    take_copy,
    translate,
    with_defaults,
)
from zoo.sequence.reformer import LSHAttention, Reformer

# Their constructor's defaults, for what a configuration leaves out
DEFAULTS: dict[str, Any] = {
    "attention_head_size": 64,
    "attn_layers": ["local", "lsh", "local", "lsh", "local", "lsh"],
    "axial_pos_embds": True,
    "axial_pos_embds_dim": [64, 192],
    "axial_pos_shape": [64, 64],
    "chunk_size_feed_forward": 0,
    "chunk_size_lm_head": 0,
    "feed_forward_size": 512,
    "hash_seed": None,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.05,
    "hidden_size": 256,
    "is_decoder": False,
    "layer_norm_eps": 1e-12,
    "local_attention_probs_dropout_prob": 0.05,
    "local_attn_chunk_length": 64,
    "local_num_chunks_after": 0,
    "local_num_chunks_before": 1,
    "lsh_attention_probs_dropout_prob": 0.0,
    "lsh_attn_chunk_length": 64,
    "lsh_num_chunks_after": 0,
    "lsh_num_chunks_before": 1,
    "max_position_embeddings": 4096,
    "num_attention_heads": 12,
    "num_buckets": None,
    "num_hashes": 1,
    "sinusoidal_pos_embds": False,
    "tie_word_embeddings": False,
    "vocab_size": 320,
}
# What a language model of theirs must have, and ours has too
REQUIRED = {
    "is_decoder": True,
    "local_num_chunks_after": 0,
    "local_num_chunks_before": 1,
    "lsh_num_chunks_after": 0,
    "lsh_num_chunks_before": 1,
    "sinusoidal_pos_embds": False,
    "tie_word_embeddings": False,
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu"}
# Constants that older versions stored among the weights
MASK_VALUES = {
    "self_mask_value_float16": -1e3,
    "self_mask_value_float32": -1e5,
    "mask_value_float16": -1e4,
    "mask_value_float32": -1e9,
}


def from_hugging_face(directory: str | Path, overrides: Mapping[str, Any] | None = None) -> Reformer:
    """Builds a model of a Hugging Face directory.

    Args:
        directory: path with `config.json` and `model.safetensors`.
        overrides: mapping or None. Constructor arguments that replace what the configuration says.

    Returns:
        A built `Reformer`.

    Raises:
        ImportError: without the package `safetensors`.
        ValueError: for another model, a configuration that ours does not have, files that are missing or too large, and
            weights that do not fit one by one.
    """
    directory = Path(directory)
    arguments = constructor_arguments(read_config(directory))
    model = Reformer(**{**arguments, **(overrides or {})}).build_from_signature()
    tensors = read_tensors(directory, model.count_params())
    _drop_copies(tensors)
    assign(places(model), tensors)
    return model


# === Configuration ===


def constructor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `Reformer` for their configuration.

    Raises:
        ValueError: for a model that ours is not.
    """
    check_model(config, "reformer", ["ReformerModelWithLMHead"], "a 'ReformerModelWithLMHead'")
    given = with_defaults(config, DEFAULTS, REQUIRED)
    axial = given["axial_pos_embds"]
    length = math.prod(given["axial_pos_shape"]) if axial else given["max_position_embeddings"]
    return {
        "vocabulary_size": given["vocab_size"],
        "num_layers": len(given["attn_layers"]),
        "hidden_dim": given["hidden_size"],
        "num_heads": given["num_attention_heads"],
        "intermediate_dim": given["feed_forward_size"],
        "window_length": length,
        "attention_layers": given["attn_layers"],
        "key_dim": given["attention_head_size"],
        "chunk_length": given["lsh_attn_chunk_length"],
        "local_chunk_length": given["local_attn_chunk_length"],
        "num_rounds": given["num_hashes"],
        "num_buckets": given["num_buckets"] or automatic_buckets(length, given),
        "attend_across_buckets": True,
        "allow_duplicates": True,
        "wrap_chunks": True,
        "hash_seed": given["hash_seed"] or 0,
        "axial_shape": given["axial_pos_shape"] if axial else None,
        "axial_dims": given["axial_pos_embds_dim"] if axial else None,
        "activation": translate("hidden_act", given["hidden_act"], ACTIVATIONS),
        "dropout": given["hidden_dropout_prob"],
        "lsh_attention_dropout": given["lsh_attention_probs_dropout_prob"],
        "local_attention_dropout": given["local_attention_probs_dropout_prob"],
        "feed_forward_chunks": _number_of_chunks(length, given["chunk_size_feed_forward"]),
        "loss_chunks": _number_of_chunks(length, given["chunk_size_lm_head"]),
        "epsilon": given["layer_norm_eps"],
    }


def automatic_buckets(length: int, given: Mapping[str, Any]) -> int | list[int] | None:
    """Returns the number of buckets that their code picks for windows of a length where the configuration has none."""
    size = given["lsh_attn_chunk_length"]
    if length <= size:
        return None
    power = (2 * (length // size)).bit_length() - 1
    limit = 2 * max(math.isqrt(given["max_position_embeddings"] // size), size)
    return 2**power if 2**power <= limit else [2 ** (power // 2), 2 ** (power - power // 2)]


def _number_of_chunks(length: int, size: int) -> int:
    return -(-length // size) if size else 1


# === Weights ===


def places(model: Reformer) -> Places:
    """Returns the places of all weights."""
    positions = "reformer.embeddings.position_embeddings"
    tables = model.positions.tables
    if model.axial_shape is None:
        found = {f"{positions}.embedding.weight": (tables[0], None)}
    else:
        found = {}
        for axis, table in enumerate(tables):
            shape = [1] * len(tables) + [table.shape[1]]
            shape[axis] = table.shape[0]
            found[f"{positions}.weights.{axis}"] = (table, shape)
    # The bias of their logits is not beside the kernel
    logits = {
        "lm_head.decoder.weight": (model.logits_layer.kernel, None),
        "lm_head.bias": (model.logits_layer.bias, None),
    }
    return {**found, **layer_places(_layers(model)), **logits}


def _layers(model: Reformer) -> Iterator[tuple[str, keras.layers.Layer]]:
    yield "reformer.embeddings.word_embeddings", model.embedding
    for index, block in enumerate(model.blocks):
        for name, part in _parts(block):
            yield f"reformer.encoder.layers.{index}.{name}", part
    yield "reformer.encoder.layer_norm", model.norm


def _parts(block: keras.layers.Layer) -> Iterator[tuple[str, keras.layers.Layer]]:
    attention, forward = block.attention, block.feed_forward
    names = ("query_key", "value") if isinstance(attention, LSHAttention) else ("query", "key", "value")
    yield "attention.layer_norm", block.attention_norm
    for name in names:
        yield f"attention.self_attention.{name}", getattr(attention, name)
    yield "attention.output.dense", attention.output_dense
    yield "feed_forward.layer_norm", block.feed_forward_norm
    yield "feed_forward.dense.dense", forward.inner
    yield "feed_forward.output.dense", forward.outer


def _drop_copies(tensors: dict[str, np.ndarray]) -> None:
    """Drops what is stored twice or is no weight."""
    first, second = "lm_head.bias", "lm_head.decoder.bias"
    take_copy(tensors, second, tensors.setdefault(first, tensors[second]) if second in tensors else None, repr(first))
    for name in list(tensors):
        constant = MASK_VALUES.get(name.rpartition(".")[2])
        if constant is not None:
            expected = np.full(tensors[name].shape if tensors[name].size == 1 else (), constant, "float32")
            take_copy(tensors, name, expected, str(constant))
