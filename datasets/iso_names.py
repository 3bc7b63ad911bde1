"""Names of countries, regions, languages, currencies and scripts in English and in German or French, from pycountry."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np

from zoo.datasets.source import sha256
from zoo.datasets.specs import DatasetInfo, combined_sha256
from zoo.datasets.texts import SPLITS

VERSION = "26.2.16"
# Names longer than this, 1 % of them, are left out.
MAXIMUM_CHARACTERS = 48
# Catalogues by ISO standard: the SHA-256 of the German and of the French one.
SHA256 = {
    "iso15924": (
        "91cfabfcd0d43e75da5bf774cea365ab2dc0b737bafad410f6b51bf2e516583e",
        "1a58ba65af982324748a60ba7e9bf7c6fc09f7126af6260cad777cacfaf2ba8e",
    ),
    "iso3166-1": (
        "eb58cdf4cab2459f90434b2d6f8e293a7f7116f767cb5dcfd15064b055179f1b",
        "d31aaea143b639a5db97938f055c3ba82498a950497224d9be3806d6782c3be6",
    ),
    "iso3166-2": (
        "4c3d180ce6e1c92a715423fcedb931f7f097a52b51e0007d6317d046433beb73",
        "0b7cc99b53a9b19c14826f21fa72c1efdcf00edabff328e0d27346255ec7b328",
    ),
    "iso3166-3": (
        "44ea7d672cab689b332da5f1cba4e82528f587631301e0c553d629cdc5afaede",
        "fe452a9d28a1d4558033167a2a717ba444c5f6407bde7c8f1c7512012d092064",
    ),
    "iso4217": (
        "82b6355b54f1348c8a626fefd9ec20988144cb8f0549d28501476acb324b18ba",
        "493d063fed6ae39eb15f38b3b9828345ba866160e1de2edd5fd72978cb037b18",
    ),
    "iso639-3": (
        "17e84bcd5648a5162b1e06227320617166c75d27beb96daec786f6a5629d8455",
        "4efba243b7b93e28b34784882dabaf4151cb214edd58627afd83ee21fbab91a2",
    ),
    "iso639-5": (
        "acc27a07862df2bb5b78bbd66b0f937036cec5ff2081fcad7e540e2a5294f239",
        "c3880ad3dd4a4a967e8798ec1cc50ef2b06a876e42688f830ab18064e04000b5",
    ),
}
LANGUAGES = ("de", "fr")

INFO = DatasetInfo(
    name="iso_names",
    description=(
        "English names of ISO standards and their translations, German by default or French (option `language`), of at "
        f"most {MAXIMUM_CHARACTERS} characters each, read from the installed package pycountry {VERSION} (extra `names`). "
        "Names that are the same in both languages, seven of ten, are left out. Split by the hash of the English name: "
        "about 80 % train, 10 % validation, 10 % test; sizes are those of German."
    ),
    licence="LGPL-2.1; read from the installed package, never copied",
    source="https://github.com/pycountry/pycountry",
    features={"source": "str, the English name", "target": "str, the German or French one"},
    splits={"train": 3408, "validation": 399, "test": 375},
    unit="examples",
    embedded=False,
    sha256=combined_sha256({f"{name}.mo": german for name, (german, _) in SHA256.items()}),
)

_MAGIC = 0x950412DE


def load(split: str, language: str = "de") -> dict[str, np.ndarray]:
    """Returns the pairs of a split.

    Args:
        split: str.
        language: str. `"de"` or `"fr"`.

    Returns:
        Dict of the str arrays `source` and `target` `(examples,)`, sorted by source.

    Raises:
        ImportError: if pycountry is not installed.
        ValueError: for an unknown language or another version of pycountry.
    """
    if language not in LANGUAGES:
        raise ValueError(f"`language` must be one of {LANGUAGES}. Received: language={language!r}")
    pairs = {}
    for name, hashes in SHA256.items():
        content = _read(f"{language}/LC_MESSAGES/{name}.mo", hashes[LANGUAGES.index(language)])
        for source, target in read_mo(content).items():
            if _fits(source) and _fits(target):
                pairs.setdefault(source, target)
    chosen = [(s, t) for s, t in sorted(pairs.items()) if s != t and split_of(s) == split]
    sources, targets = zip(*chosen, strict=True)
    return {"source": np.array(sources), "target": np.array(targets)}


def _fits(text: str) -> bool:
    return 0 < len(text) <= MAXIMUM_CHARACTERS and text.isprintable()


def split_of(source: str) -> str:
    """Returns the split of a name: the same one in every language and version."""
    place = int(sha256(source.encode())[:8], 16) % 10
    return SPLITS[max(place - 7, 0)]


def _read(path: str, expected_sha256: str) -> bytes:
    package = importlib.util.find_spec("pycountry")
    if package is None or package.origin is None:
        raise ImportError('The data set iso_names needs pycountry: pip install "method-zoo[names]"')
    file = Path(package.origin).parent / "locales" / path
    content = file.read_bytes() if file.is_file() else b""
    if sha256(content) != expected_sha256:
        raise ValueError(
            f"The data set iso_names is that of pycountry {VERSION}: install this version. "
            f"Received: {file} with SHA-256 {sha256(content)}"
        )
    return content


def read_mo(content: bytes) -> dict[str, str]:
    """Reads a catalogue of translations in the binary format of GNU gettext.

    Contexts are dropped; so are the header and messages with plurals.

    Args:
        content: bytes of a `.mo` file.

    Returns:
        Dict from message to translation, both in UTF-8.

    Raises:
        ValueError: if it is no such file or damaged.
    """
    try:
        magic, revision, count, originals, translations = struct.unpack_from("<5I", content)
        if (magic, revision) != (_MAGIC, 0):
            raise ValueError(f"magic number {magic:#x}, revision {revision}")
        pairs = ((_string(content, originals + 8 * i), _string(content, translations + 8 * i)) for i in range(count))
        found = {source.rpartition("\x04")[2]: target for source, target in pairs}
    except (struct.error, ValueError) as error:
        raise ValueError(f"Expected a little-endian catalogue of GNU gettext. Received: {error}") from error
    return {source: target for source, target in found.items() if source and "\x00" not in source}


def _string(content: bytes, entry: int) -> str:
    length, offset = struct.unpack_from("<2I", content, entry)
    if offset + length > len(content):
        raise ValueError(f"a string at {offset} of {length} bytes in a file of {len(content)}")
    return content[offset : offset + length].decode()
