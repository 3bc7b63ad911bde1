"""What BERTs and ALBERTs of Hugging Face have in common: heads, copies of weights, tokenizers, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.hugging_face import (
    TOKENIZER_FILES,
    TOKENIZER_SETTINGS,
    Places,
    assign,
    check_model,
    collect,
    layer_places,
    read_config,
    read_files,
    read_tensors,
    take_copy,
    tensor_shapes,
    translate,
    with_defaults,
    write_directory,
)
from zoo.language.backbone import TextBackbone
from zoo.language.text_encoder import TOKENIZER, TextEncoder
from zoo.language.tokenizers import tokenizer_of
from zoo.metadata import CONFIG, dump_json, parse_json

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Their constructors' defaults, for what a configuration leaves out
DEFAULTS: dict[str, Any] = {
    "add_cross_attention": False,
    "initializer_range": 0.02,
    "is_decoder": False,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_hidden_layers": 12,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "type_vocab_size": 2,
}
REQUIRED = {
    "add_cross_attention": False,
    "is_decoder": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}
# Our names of constructor arguments, theirs in the configuration
SIZES = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_stddev": "initializer_range",
}
TASKS = {
    "classification": "SequenceClassification",
    "token_classification": "TokenClassification",
    "question_answering": "QuestionAnswering",
}
LONGEST_SIGNATURE = 128


class EncoderFormat:
    """How a method's models are stored by Hugging Face; subclasses fill in names."""

    model_class: type[TextEncoder]
    model_type: str
    # What their classes' names begin with
    family: str
    defaults: Mapping[str, Any]
    sizes: Mapping[str, str]
    # Names of layers
    pooler: str
    transform: str
    transform_norm: str
    predictions: str
    sentence: str
    sentence_loss: str
    head_dropout: str

    def backbone_layers(self, backbone: TextBackbone) -> Iterator[tuple[str, keras.layers.Layer]]:
        """Yields their names of the stack's layers, and the layers; one layer may have several names."""
        raise NotImplementedError(f"{type(self).__name__} names no layers.")

    def constants(self, model: TextEncoder) -> dict[str, np.ndarray]:
        """Returns tensors that theirs has and ours needs not, because they do nothing there."""
        return {}

    # === Reading ===

    def read(self, directory: Path, overrides: Mapping[str, Any]) -> TextEncoder:
        """Builds a model of a directory, see `from_hugging_face` of the methods."""
        config = read_config(directory)
        shapes = {_modern(name): shape for name, shape in tensor_shapes(directory).items()}
        arguments = self.constructor_arguments(config, shapes)
        names = self.model_class.head_arguments if "head" in overrides else ()
        head = {name: value for name, value in overrides.items() if name in names}
        kept = {name: value for name, value in overrides.items() if name not in names}
        model = self.model_class(**{**arguments, **kept}).build_from_signature()
        tensors = {_modern(name): value for name, value in read_tensors(directory, model.count_params()).items()}
        prefix = f"{self.model_type}."
        bare = not any(name.startswith(prefix) for name in shapes)
        self._drop_copies(model, tensors, "" if bare else prefix)
        assign(self.places(model, "" if bare else prefix), tensors)
        self._take_assets(model, config, directory)
        return model.fit_head(**head) if head else model

    def constructor_arguments(self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Returns the arguments of our class for a configuration and the names and shapes of its weights.

        Which head there is, the weights say: the configuration may name another that was loaded last.

        Raises:
            ValueError: for a model that ours is not.
        """
        check_model(config, self.model_type, self.architectures(), f"a {self.family!r} encoder")
        given = with_defaults(config, {**DEFAULTS, **self.defaults}, REQUIRED)
        arguments = {ours: given[theirs] for ours, theirs in {**SIZES, **self.sizes}.items()}
        head = self._head(config, shapes)
        dropout = given[self.head_dropout]
        arguments |= {
            "activation": translate("hidden_act", given["hidden_act"], ACTIVATIONS),
            "head": head,
            "sequence_length": min(LONGEST_SIGNATURE, given["max_position_embeddings"]),
            "sentence_loss": self.sentence_loss if _any(shapes, self.sentence) else "none",
            "use_pooler": _any(shapes, self.pooler) or _any(shapes, f"{self.model_type}.{self.pooler}"),
            "head_dropout": given["hidden_dropout_prob"] if dropout is None else dropout,
        }
        if head in ("classification", "token_classification"):
            arguments["num_classes"] = shapes.get("classifier.bias", shapes.get("classifier.weight", (0,)))[0]
        return arguments

    def architectures(self) -> list[str]:
        """Returns the classes of theirs that ours can be."""
        tasks = ("PreTraining", "MaskedLM", *TASKS.values())
        return [f"{self.family}Model", *(f"{self.family}For{task}" for task in tasks)]

    def _head(self, config: Mapping[str, Any], shapes: Mapping[str, Any]) -> str | None:
        if _any(shapes, self.predictions):
            return "masked_lm"
        if _any(shapes, "qa_outputs"):
            return "question_answering"
        if not _any(shapes, "classifier"):
            return None
        named = config.get("architectures") or []
        found = [
            ours for ours in ("classification", "token_classification") if f"{self.family}For{TASKS[ours]}" in named
        ]
        if len(found) != 1:
            raise ValueError(
                f"`architectures` in {CONFIG!r} must say what the classifier is for, a text or its tokens. Received: {named}"
            )
        return found[0]

    def _drop_copies(self, model: TextEncoder, tensors: dict[str, np.ndarray], prefix: str) -> None:
        bias = f"{self.predictions}.bias"
        copies = {
            f"{self.predictions}.decoder.weight": f"{prefix}embeddings.word_embeddings.weight",
            f"{self.predictions}.decoder.bias": bias,
        }
        if model.head == "masked_lm" and bias not in tensors and f"{self.predictions}.decoder.bias" in tensors:
            tensors[bias] = tensors[f"{self.predictions}.decoder.bias"]
        for name, original in copies.items():
            take_copy(tensors, name, tensors.get(original), f"equal to {original!r}")
        positions = np.arange(model.backbone.max_sequence_length)[None]
        take_copy(tensors, f"{prefix}embeddings.position_ids", positions, "the numbers of the positions")
        for name, value in self.constants(model).items():
            take_copy(tensors, prefix + name, value, "what does nothing, for our model has no such layer")

    def places(self, model: TextEncoder, prefix: str) -> Places:
        """Returns the places of all weights.

        Args:
            model: built `TextEncoder`.
            prefix: str. What their names of the backbone's weights begin with.
        """
        embedding, backbone = model.backbone.embedding, model.backbone
        layers = {
            "embeddings.word_embeddings": embedding.token,
            "embeddings.position_embeddings": embedding.position,
            "embeddings.token_type_embeddings": embedding.segment,
            "embeddings.LayerNorm": embedding.norm,
            **dict(self.backbone_layers(backbone)),
            **({self.pooler: backbone.pooler} if backbone.pooler is not None else {}),
        }
        found = layer_places((prefix + name, layer) for name, layer in layers.items())
        return {**found, **self._head_places(model)}

    def _head_places(self, model: TextEncoder) -> Places:
        head = model.head_layer
        if head is None:
            return {}
        if model.head == "question_answering":
            return layer_places([("qa_outputs", head.span)])
        if model.head != "masked_lm":
            return layer_places([("classifier", head.classifier)])
        layers = [(self.transform, head.transform), (self.transform_norm, head.norm)]
        if head.sentence is not None:
            layers.append((self.sentence, head.sentence))
        return {**layer_places(layers), f"{self.predictions}.bias": (head.bias, None)}

    def _take_assets(self, model: TextEncoder, config: Mapping[str, Any], directory: Path) -> None:
        files = read_files(directory, (*TOKENIZER_FILES, TOKENIZER_SETTINGS))
        settings = parse_json(files.pop(TOKENIZER_SETTINGS, b"{}"), TOKENIZER_SETTINGS)
        tokenizer = tokenizer_of(files, settings)
        if tokenizer is not None:
            model.set_assets({TOKENIZER: tokenizer})
        names = config.get("id2label")
        if model.head in ("classification", "token_classification") and isinstance(names, dict):
            labels = [names.get(str(index)) for index in range(len(names))]
            if any(name != f"LABEL_{index}" for index, name in enumerate(labels)):
                model.labels = labels

    # === Writing ===

    def write(self, model: TextEncoder, directory: str | Path) -> Path:
        """Writes a directory, see `TextEncoder.save_to_hugging_face`."""
        prefix = f"{self.model_type}." if model.head else ""
        constants = {prefix + name: value for name, value in self.constants(model).items()}
        tensors = {**collect(self.places(model, prefix)), **constants}
        return write_directory(directory, self.config(model), tensors, _tokenizer_files(model))

    def config(self, model: TextEncoder) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        arguments = model.get_config()
        names = dict(enumerate(model.labels or [f"LABEL_{index}" for index in range(model.num_classes)]))
        activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        return {
            "architectures": [self.architecture(model)],
            "model_type": self.model_type,
            **REQUIRED,
            **{theirs: arguments[ours] for ours, theirs in {**SIZES, **self.sizes}.items()},
            "hidden_act": activations[arguments["activation"]],
            self.head_dropout: model.head_dropout,
            "id2label": {str(index): name for index, name in names.items()},
            "label2id": {name: index for index, name in names.items()},
        }

    def architecture(self, model: TextEncoder) -> str:
        """Returns the class of theirs that a model is."""
        if model.head is None:
            return f"{self.family}Model"
        pretraining = "MaskedLM" if model.sentence_loss == "none" else "PreTraining"
        return f"{self.family}For{TASKS.get(model.head, pretraining)}"


def _any(shapes: Mapping[str, Any], layer: str) -> bool:
    return any(name.startswith(f"{layer}.") for name in shapes)


def _modern(name: str) -> str:
    """Returns a name as it is now: normalisations had other ones in the first checkpoints."""
    layer, _, last = name.rpartition(".")
    renamed = {"gamma": "weight", "beta": "bias"}
    return f"{layer}.{renamed[last]}" if last in renamed and layer.endswith("LayerNorm") else name


def _tokenizer_files(model: TextEncoder) -> dict[str, bytes]:
    if TOKENIZER not in model.assets:
        return {}
    known = {
        "pad_token": ("[PAD]", "<pad>"),
        "unk_token": ("[UNK]", "<unk>"),
        "cls_token": ("[CLS]",),
        "sep_token": ("[SEP]",),
        "mask_token": ("[MASK]",),
    }
    found = {
        role: name for role, names in known.items() for name in names if model.tokenizer.token_to_id(name) is not None
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.backbone.max_sequence_length,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **found,
    }
    return {TOKENIZER: model.assets[TOKENIZER], TOKENIZER_SETTINGS: dump_json(settings).encode()}
