"""Character tokenizers in the Hugging Face `tokenizers` format, which other languages read too."""

import functools

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


def character_tokenizer(text: str) -> bytes:
    """Builds a tokenizer whose tokens are the characters of a text, in code-point order.

    Args:
        text: str. Not empty.

    Returns:
        The content of a `tokenizer.json`.
    """
    if not text:
        raise ValueError("`text` must not be empty. Received: ''")
    tokenizer = Tokenizer(models.WordLevel({character: index for index, character in enumerate(sorted(set(text)))}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer.to_str().encode()


@functools.lru_cache(maxsize=8)
def load_tokenizer(content: bytes) -> Tokenizer:
    """Reads a `tokenizer.json`.

    Raises:
        ValueError: if it is malformed.
    """
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises bare `Exception`
        raise ValueError(f"Malformed tokenizer.json: {error}. Received: {len(content)} bytes") from error


def encode_text(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Turns text into ids, one a character.

    A table lookup: the library itself keeps the offsets of every token, which is slow and large for a whole novel.

    Args:
        tokenizer: a `Tokenizer` that `character_tokenizer` made.
        text: str. Not empty.

    Returns:
        Int32 array `(length,)`.

    Raises:
        ValueError: for an empty text and for characters outside the vocabulary, which are named.
    """
    if not text:
        raise ValueError("The text must not be empty. Received: ''")
    vocabulary = tokenizer.get_vocab()
    unknown = sorted(set(text) - set(vocabulary))
    if unknown:
        raise ValueError(f"Characters outside the vocabulary: {unknown}. Received: {text[:40]!r}")
    table = np.zeros(max(map(ord, vocabulary)) + 1, "int32")
    for character, index in vocabulary.items():
        table[ord(character)] = index
    return table[np.frombuffer(text.encode("utf-32-le"), "uint32")]


def decode_ids(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Turns ids `(length,)` into text."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
