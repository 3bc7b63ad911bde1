"""Tokenizers of word pieces in the Hugging Face format: trained here, or made of others' vocabulary files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import (
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from zoo.arguments import require
from zoo.sequence.tokenizer import load_tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MODELS = ("wordpiece", "unigram", "bpe")
# Where a word begins, in tokenizers that write spaces
SPACE = "▁"


class SpecialIds(NamedTuple):
    """Ids of the tokens that frame, separate, mask and pad."""

    padding: int
    start: int
    separator: int
    mask: int


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Returns the special tokens of a tokenizer.

    Raises:
        ValueError: if it lacks one.
    """
    names = (("[PAD]", "<pad>"), ("[CLS]",), ("[SEP]",), ("[MASK]",))
    found = [next((i for name in group if (i := tokenizer.token_to_id(name)) is not None), None) for group in names]
    lacking = [group[0] for group, index in zip(names, found, strict=True) if index is None]
    require(not lacking, "tokenizer", f"one with the tokens {[group[0] for group in names]}", f"none for {lacking}")
    return SpecialIds(*found)


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Returns which pieces begin a word, bool `(vocabulary_size,)`: all but those that go on with one."""
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] == "WordPiece":
        return np.array([not piece.startswith(model["continuing_subword_prefix"]) for piece in pieces])
    # A piece without any letter or digit is punctuation, a word of its own
    return np.array([piece.startswith(SPACE) or not any(map(str.isalnum, piece)) for piece in pieces])


# === Text to ids ===


def encode_pairs(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, length: int, truncate: bool
) -> dict[str, np.ndarray]:
    """Turns texts or pairs of texts into padded ids, with the special tokens that the tokenizer puts in.

    Args:
        tokenizer: `Tokenizer`. Truncation and padding that it would do itself are not done.
        texts: sequence of str.
        pairs: sequence of str or None.
        length: int. Tokens of a row.
        truncate: bool. Whether to cut texts that are too long, at their end, the longer of a pair first.

    Returns:
        Dict of int32 arrays `(texts, length)`: `token_ids`, `segment_ids`, `padding_mask`.

    Raises:
        ValueError: for no text, one that is empty or no string, or too long and not to be cut, and pairs of another
            number.
    """
    require(not isinstance(texts, str) and len(texts) > 0, "texts", "a sequence of at least one text", repr(texts))
    pairs = [] if pairs is None else pairs
    require(len(pairs) in (0, len(texts)), "pairs", f"None or {len(texts)} texts", len(pairs))
    for name, group in (("texts", texts), ("pairs", pairs)):
        for index, text in enumerate(group):
            valid = isinstance(text, str) and bool(text.strip())
            require(valid, name, "strings that are not empty", f"{text!r} at place {index}")
    tokenizer = own_copy(tokenizer)
    if truncate:
        tokenizer.enable_truncation(length)
    encodings = tokenizer.encode_batch(list(zip(texts, pairs, strict=True)) if pairs else list(texts))
    expected = f"of at most {length} tokens each; truncate=True cuts them"
    for index, encoding in enumerate(encodings):
        count = len(encoding.ids)
        require(count <= length, "texts, pairs" if pairs else "texts", expected, f"{count} at place {index}")
    return padded(encodings, length, special_ids(tokenizer).padding)


def padded(encodings: Sequence[Encoding], length: int, padding: int) -> dict[str, np.ndarray]:
    """Returns encodings of at most `length` tokens as padded arrays, see `encode_pairs`."""
    arrays = {
        "token_ids": np.full((len(encodings), length), padding, "int32"),
        "segment_ids": np.zeros((len(encodings), length), "int32"),
        "padding_mask": np.zeros((len(encodings), length), "int32"),
    }
    for row, encoding in enumerate(encodings):
        count = len(encoding.ids)
        arrays["token_ids"][row, :count] = encoding.ids
        arrays["segment_ids"][row, :count] = encoding.type_ids
        arrays["padding_mask"][row, :count] = 1
    return arrays


def own_copy(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a copy of a tokenizer that neither cuts nor pads."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def encode_sentences(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each sentence, int32, without special tokens."""
    encodings = own_copy(tokenizer).encode_batch_fast(list(sentences), add_special_tokens=False)
    return [np.array(encoding.ids, "int32") for encoding in encodings]


# === Making tokenizers ===


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, model: str = "wordpiece", lowercase: bool = True
) -> bytes:
    """Trains a tokenizer.

    Args:
        texts: iterable of str.
        vocabulary_size: int. Pieces, `SPECIAL_TOKENS` included.
        model: str. `"wordpiece"`, as BERT's, `"unigram"`, as ALBERT's, or `"bpe"`.
        lowercase: bool. Lower-case texts and drop accents.

    Returns:
        The content of a `tokenizer.json`.

    Raises:
        ValueError: for another model, and if the texts do not give that many pieces.
    """
    require(model in MODELS, "model", f"one of {MODELS}", repr(model))
    options = dict(vocab_size=vocabulary_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    if model == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
        _read_as_bert(tokenizer, lowercase)
        trainer = trainers.WordPieceTrainer(**options)
    else:
        unigram = model == "unigram"
        tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="[UNK]"))
        cleaned = [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()] if lowercase else []
        tokenizer.normalizer = normalizers.Sequence([*cleaned, normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**options, unk_token="[UNK]") if unigram else trainers.BpeTrainer(**options)
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    require(found == vocabulary_size, "vocabulary_size", f"what the texts give, {found}", vocabulary_size)
    if model == "wordpiece":
        # The trainer numbers equally frequent pieces in an order that changes from run to run
        pieces = sorted(set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS))
        vocabulary = {piece: index for index, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
        tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    _frame(tokenizer)
    return tokenizer.to_str().encode()


def _read_as_bert(tokenizer: Tokenizer, lowercase: bool, **options: Any) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, **options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _frame(tokenizer: Tokenizer) -> None:
    """Makes it write `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`."""
    ids = special_ids(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids.start), ("[SEP]", ids.separator)],
    )


def wordpiece_from_vocabulary(content: bytes, settings: Mapping[str, Any]) -> bytes:
    """Makes a tokenizer of BERT's `vocab.txt`, one piece a line.

    Args:
        content: bytes, UTF-8.
        settings: mapping. What `tokenizer_config.json` says: `do_lower_case`, `strip_accents`, `tokenize_chinese_chars`.

    Returns:
        The content of a `tokenizer.json`.

    Raises:
        ValueError: if it is malformed or lacks the special tokens.
    """
    try:
        pieces = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`vocab.txt` must be UTF-8: {error}. Received: {len(content)} bytes") from error
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    lacking = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    valid = len(vocabulary) == len(pieces) and not lacking
    require(valid, "vocab.txt", "distinct pieces with all special tokens", f"{len(pieces)} lines, without {lacking}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    accents = settings.get("strip_accents")
    _read_as_bert(
        tokenizer,
        settings.get("do_lower_case", True),
        strip_accents=accents,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    _frame(tokenizer)
    return tokenizer.to_str().encode()


# === SentencePiece ===

# The model, and the kinds of pieces that are symbols, as SentencePiece numbers them
_UNIGRAM, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


def unigram_from_sentencepiece(content: bytes, settings: Mapping[str, Any]) -> bytes:
    """Makes a tokenizer of a SentencePiece unigram model, ALBERT's `spiece.model`.

    Args:
        content: bytes. A serialised `ModelProto`.
        settings: mapping. What `tokenizer_config.json` says: `do_lower_case`, `keep_accents`.

    Returns:
        The content of a `tokenizer.json`.

    Raises:
        ImportError: without the package `sentencepiece`.
        ValueError: if it is malformed, another kind of model, or lacks the special tokens.
    """
    model = _parse_sentencepiece(content)
    kind, pieces = model.trainer_spec.model_type, model.pieces
    unknown = [index for index, piece in enumerate(pieces) if piece.type == _UNKNOWN]
    valid = kind == _UNIGRAM and len(unknown) == 1
    require(valid, "spiece.model", "a unigram model with one unknown piece", f"type {kind}, unknown pieces {unknown}")
    # Pieces such as "5," would hide the number from what was learned without them
    vocabulary = [(each.piece, each.score - 100 if _ends_number(each.piece) else each.score) for each in pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unknown[0], byte_fallback=False))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = [each.piece for each in pieces if each.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    tokenizer.add_special_tokens(special)
    _frame(tokenizer)
    return tokenizer.to_str().encode()


def _ends_number(piece: str) -> bool:
    return len(piece) >= 2 and piece[-1] == "," and piece[-2].isdigit()


def _parse_sentencepiece(content: bytes) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError as error:
        raise ImportError("A `spiece.model` needs sentencepiece: pip install 'method-zoo[hub]'") from error
    try:
        return ModelProto.FromString(content)
    except DecodeError as error:
        raise ValueError(f"`spiece.model` is no valid model: {error}. Received: {len(content)} bytes") from error


def tokenizer_of(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> bytes | None:
    """Returns a `tokenizer.json` made of what a directory holds; None if there is nothing to make it of.

    Args:
        files: mapping from names of files to their content: `tokenizer.json`, `vocab.txt` or `spiece.model`.
        settings: mapping. What `tokenizer_config.json` says.
    """
    if "tokenizer.json" in files:
        load_tokenizer(files["tokenizer.json"])
        return files["tokenizer.json"]
    if "vocab.txt" in files:
        return wordpiece_from_vocabulary(files["vocab.txt"], settings)
    if "spiece.model" in files:
        return unigram_from_sentencepiece(files["spiece.model"], settings)
    return None
