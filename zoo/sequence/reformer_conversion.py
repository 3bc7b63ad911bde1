"""Reformers of Hugging Face: a directory with `config.json` and `model.safetensors` of a `ReformerModelWithLMHead`.

`zoo.get("reformer", weights=directory)` calls `from_hugging_face`. Nothing is unpickled and no code comes out of a file: the
configuration is JSON, the weights are named arrays, each of which must have its place in the model, and the model no other.

Their model attends across buckets, counts keys found twice twice, and lets the first chunk look back to the last one. It
draws rotations by PyTorch's generator and we by NumPy's: logits are equal where both are given the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.metadata import CONFIG, MAXIMUM_ASSET, MAXIMUM_JSON, parse_json
from zoo.sequence.reformer import LSHAttention, Reformer

WEIGHTS = "model.safetensors"
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
    config = parse_json(_read(directory, CONFIG), CONFIG)
    model = Reformer(**{**constructor_arguments(config), **(overrides or {})}).build_from_signature()
    _assign(places(model), _tensors(_file(directory, WEIGHTS, 8 * model.count_params() + MAXIMUM_ASSET)))
    return model


# === Configuration ===


def constructor_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `Reformer` for their configuration.

    Raises:
        ValueError: for a model that ours is not.
    """
    kinds = config.get("architectures") or ["ReformerModelWithLMHead"]
    if config.get("model_type") != "reformer" or "ReformerModelWithLMHead" not in kinds:
        found = {name: config.get(name) for name in ("model_type", "architectures")}
        raise ValueError(f"`{CONFIG}` must be of a 'ReformerModelWithLMHead'. Received: {found}")
    given = {**DEFAULTS, **{name: value for name, value in config.items() if name in DEFAULTS}}
    for name, value in given.items():
        _check_kind(name, value)
    for name, value in REQUIRED.items():
        if given[name] != value:
            raise ValueError(f"`{name}` in {CONFIG!r} must be {value}. Received: {given[name]!r}")
    if given["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_act` in {CONFIG!r} must be one of {list(ACTIVATIONS)}. Received: {given['hidden_act']!r}"
        )
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
        "activation": ACTIVATIONS[given["hidden_act"]],
        "dropout": given["hidden_dropout_prob"],
        "lsh_attention_dropout": given["lsh_attention_probs_dropout_prob"],
        "local_attention_dropout": given["local_attention_probs_dropout_prob"],
        "feed_forward_chunks": _number_of_chunks(length, given["chunk_size_feed_forward"]),
        "loss_chunks": _number_of_chunks(length, given["chunk_size_lm_head"]),
        "epsilon": given["layer_norm_eps"],
    }


def _check_kind(name: str, value: Any) -> None:
    default = DEFAULTS[name]
    kinds = (
        (int, list, type(None)) if default is None else (int, float) if isinstance(default, float) else (type(default),)
    )
    items = value if isinstance(value, list) and name != "attn_layers" else ()
    if type(value) not in kinds or any(type(item) is not int for item in items):
        raise ValueError(f"`{name}` in {CONFIG!r} must be of the kind of {default!r}. Received: {value!r}")


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


def places(model: Reformer) -> dict[str, tuple[keras.Variable, Sequence[int] | None]]:
    """Returns, by their name of each weight, our variable, and their shape where it is not ours or its transpose's."""
    found: dict[str, tuple[keras.Variable, Sequence[int] | None]] = {
        "reformer.embeddings.word_embeddings.weight": (model.embedding.embeddings, None)
    }
    tables = model.positions.tables
    if model.axial_shape is None:
        found["reformer.embeddings.position_embeddings.embedding.weight"] = (tables[0], None)
    else:
        for axis, table in enumerate(tables):
            shape = [1] * len(tables) + [table.shape[1]]
            shape[axis] = table.shape[0]
            found[f"reformer.embeddings.position_embeddings.weights.{axis}"] = (table, shape)
    for index, block in enumerate(model.blocks):
        prefix = f"reformer.encoder.layers.{index}."
        for name, part in _parts(block):
            for theirs, ours in (("weight", "gamma"), ("bias", "beta"), ("weight", "kernel"), ("bias", "bias")):
                variable = getattr(part, ours, None)
                if variable is not None:
                    found[f"{prefix}{name}.{theirs}"] = (variable, None)
    found["reformer.encoder.layer_norm.weight"] = (model.norm.gamma, None)
    found["reformer.encoder.layer_norm.bias"] = (model.norm.beta, None)
    found["lm_head.decoder.weight"] = (model.logits_layer.kernel, None)
    found["lm_head.bias"] = (model.logits_layer.bias, None)
    return found


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


def _assign(
    expected: Mapping[str, tuple[keras.Variable, Sequence[int] | None]], tensors: dict[str, np.ndarray]
) -> None:
    _drop_copies(tensors)
    missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"The weights must be those of the model that {CONFIG!r} describes. Received: {len(missing)} missing "
            f"{missing[:5]}, {len(unknown)} unknown {unknown[:5]}"
        )
    values = {}
    for name, (variable, shape) in expected.items():
        # A dense layer of theirs holds the transpose of ours
        turned = variable.name == "kernel"
        wanted = tuple(shape or (variable.shape[::-1] if turned else variable.shape))
        value = tensors[name]
        if value.shape != wanted:
            raise ValueError(f"Weight {name!r} must have shape {wanted}. Received: shape={value.shape}")
        if not (np.issubdtype(value.dtype, np.floating) and np.isfinite(value).all()):
            raise ValueError(
                f"Weight {name!r} must hold finite numbers. Received: dtype={value.dtype}, or NaN or infinity"
            )
        values[name] = (value.T if turned else value).reshape(variable.shape)
    # Only now, so that no half of a model is loaded
    for name, (variable, _) in expected.items():
        variable.assign(values[name])


def _drop_copies(tensors: dict[str, np.ndarray]) -> None:
    """Drops what is stored twice or is no weight, after checking that it is what it should be."""
    first, second = "lm_head.bias", "lm_head.decoder.bias"
    if second in tensors:
        copy = tensors.pop(second)
        if not np.array_equal(tensors.setdefault(first, copy), copy):
            raise ValueError(f"{first!r} and {second!r} must be equal. Received: different values")
    for name in list(tensors):
        constant = MASK_VALUES.get(name.rpartition(".")[2])
        if constant is not None:
            value = tensors.pop(name)
            if value.size != 1 or float(value.reshape(())) != np.float32(constant):
                raise ValueError(f"{name!r} must be {constant}. Received: {value}")


# === Files ===


def _file(directory: Path, name: str, limit: int) -> Path:
    path = directory / name
    if not path.is_file():
        found = sorted(entry.name for entry in directory.iterdir())[:20]
        raise ValueError(
            f"A Hugging Face directory must hold {name!r}; pickled weights and parts of weights are not read. "
            f"Received: {found} in {str(directory)!r}"
        )
    if path.stat().st_size > limit:
        raise ValueError(f"{name!r} may have at most {limit} bytes. Received: {path.stat().st_size}")
    return path


def _read(directory: Path, name: str) -> bytes:
    return _file(directory, name, MAXIMUM_JSON).read_bytes()


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"Weights of Hugging Face need safetensors: pip install 'method-zoo[hub]'. Received: {str(path)!r}"
        ) from error
    try:
        return load_file(path)
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name!r} is no valid weights file for NumPy: {error}. Received: {str(path)!r}"
        ) from error
