"""Claims about WordNet's hypernyms that take one, two or three sentences of evidence to verify."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from zoo.datasets import wordnet_chains
from zoo.datasets.fever import LABELS
from zoo.datasets.specs import DatasetInfo

RELATIONS = ("parent", "grandparent", "great-grandparent")
NUM_SENTENCES = 6
# What a claim of three steps needs: itself, and two sentences that end in the wrong noun.
FEWEST_SENTENCES = 5

Link = tuple[str, str]

INFO = DatasetInfo(
    name="wordnet_claims",
    description=(
        "Claims such as 'pug grandparent canine' (in words: what a pug is a kind of is a kind of canine), made of "
        "`wordnet_chains`, with sentences of an imagined encyclopedia, whose page 'pug' says 'parent dog'. One third each "
        "are supported, refuted (the claim names a noun of another chain that sentences lead to) and not decidable (a "
        "needed sentence is missing, which is the first one only for claims of one step); one third each take one, two and "
        "three sentences. No sentence by itself says whether a claim of several steps holds. Option `num_sentences`, at "
        "least 5, sets how many there are; 6 by default."
    ),
    licence=wordnet_chains.INFO.licence,
    source=wordnet_chains.INFO.source,
    features={
        "claim": "str (), noun, relation, noun",
        "title": "str (num_sentences,), a noun each, in random order",
        "evidence": "str (num_sentences,), the sentences of these pages",
        "evidence_label": "int32 (num_sentences,), 1 where a sentence is needed, up to the missing one if one is missing",
        "label": f"int32 (), place in {LABELS}",
        "num_evidence": "int32 (), sentences that the claim takes, 1..3",
    },
    splits={"train": 10_000, "validation": 1_000, "test": 2_000},
    unit="examples",
    embedded=True,
    sha256="a76ef16f7329b02cbed8c1ef2c380b22162aea9b04a073e361dec715d5033468",
)


def load(split: str, num_sentences: int = NUM_SENTENCES) -> dict[str, np.ndarray]:
    """Returns the claims of a split, the same ones each time.

    Args:
        split: str.
        num_sentences: int. Sentences of each claim.

    Returns:
        Dict of arrays, see `INFO.features`.

    Raises:
        ValueError: for fewer than five sentences.
    """
    if num_sentences < FEWEST_SENTENCES:
        raise ValueError(
            f"`num_sentences` must be at least {FEWEST_SENTENCES}. Received: num_sentences={num_sentences}"
        )
    chains = wordnet_chains.load(split)["chain"].tolist()
    # Python's generator, whose numbers are the same in every version.
    rng = random.Random(split)
    claims = [_claim(chains, index % 3, index // 3 % 3 + 1, num_sentences, rng) for index in range(INFO.splits[split])]
    names = ("claim", "title", "evidence", "evidence_label", "label", "num_evidence")
    arrays = {name: np.array(values) for name, values in zip(names, zip(*claims, strict=True), strict=True)}
    return {name: array if array.dtype.kind == "U" else array.astype("int32") for name, array in arrays.items()}


def _claim(
    chains: Sequence[Sequence[str]], label: int, steps: int, num_sentences: int, rng: random.Random
) -> tuple[str, list[str], list[str], list[int], int, int]:
    gold, other, *rest = _disjoint(chains, num_sentences + 2, rng)
    needed = _links(gold, steps, rng)
    # The last links of another chain: sentences lead to the wrong noun as they do to the right one.
    wrong = _links(other, steps, rng)[-2:]
    subject = needed[0][0]
    claimed = needed[-1][1] if LABELS[label] == "SUPPORTS" else wrong[-1][1]
    beyond: list[Link] = []
    if LABELS[label] == "NOT ENOUGH INFO":
        missing = rng.randrange(1, steps) if steps > 1 else 0
        needed, beyond = needed[:missing], needed[missing + 1 :]
    unneeded = beyond + wrong
    unneeded += [_links(chain, 1, rng)[0] for chain in rest[: num_sentences - len(needed) - len(unneeded)]]
    sentences = [(link, 1) for link in needed] + [(link, 0) for link in unneeded]
    rng.shuffle(sentences)
    titles = [child for (child, _), _ in sentences]
    evidence = [f"{RELATIONS[0]} {parent}" for (_, parent), _ in sentences]
    flags = [flag for _, flag in sentences]
    return f"{subject} {RELATIONS[steps - 1]} {claimed}", titles, evidence, flags, label, steps


def _links(chain: Sequence[str], number: int, rng: random.Random) -> list[Link]:
    """Returns consecutive links of a chain."""
    start = rng.randrange(len(chain) - number)
    return [(chain[start + step], chain[start + step + 1]) for step in range(number)]


def _disjoint(chains: Sequence[Sequence[str]], number: int, rng: random.Random) -> list[Sequence[str]]:
    """Draws chains that share no noun."""
    chosen: list[Sequence[str]] = []
    nouns: set[str] = set()
    while len(chosen) < number:
        chain = chains[rng.randrange(len(chains))]
        if nouns.isdisjoint(chain):
            chosen.append(chain)
            nouns.update(chain)
    return chosen
