"""Chains of WordNet's nouns, each a kind of the next: facts that take several steps to connect."""

from __future__ import annotations

import bz2

import numpy as np

from zoo.datasets import source
from zoo.datasets.specs import DatasetInfo
from zoo.datasets.texts import SPLITS

FILE = "wordnet_chains.txt.bz2"
FILE_SHA256 = "37c6eaad3ae80da0046a9d54b9f3c55d97a28d078f093fab2858872c71a2cebd"
LENGTH = 4

INFO = DatasetInfo(
    name="wordnet_chains",
    description=(
        "Chains of four nouns of WordNet 3.0, each a kind of the next, as in pug, dog, canine, carnivore: of animals, "
        "artifacts and food, each noun by the first word of its synonyms and its first hypernym, where this word is "
        "lower-case and names nothing else. Split by the hash of the first noun: about 80 % train, 10 % validation, 10 % "
        "test. The later nouns of chains occur in all splits."
    ),
    licence="WordNet 3.0 licence (Princeton University; permissive, with notice)",
    source="https://wordnet.princeton.edu/",
    features={"chain": "str (4,), a noun and its three next hypernyms; words of a noun are joined by _"},
    splits={"train": 4140, "validation": 519, "test": 511},
    unit="examples",
    embedded=True,
    sha256=FILE_SHA256,
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the chains of a split, sorted by their first noun."""
    lines = bz2.decompress(source.read_embedded("wordnet_chains", FILE, FILE_SHA256)).decode().splitlines()
    parents = dict(line.split("\t") for line in lines)
    chains = [chain for noun in parents if split_of(noun) == split and (chain := chain_of(noun, parents))]
    return {"chain": np.array(chains)}


def chain_of(noun: str, parents: dict[str, str]) -> list[str] | None:
    """Returns a noun and its next hypernyms, None where there are too few."""
    chain = [noun]
    while len(chain) < LENGTH and (parent := parents[chain[-1]]):
        chain.append(parent)
    return chain if len(chain) == LENGTH else None


def split_of(noun: str) -> str:
    """Returns the split of the chain that begins with a noun."""
    place = int(source.sha256(noun.encode())[:8], 16) % 10
    return SPLITS[max(place - 7, 0)]
