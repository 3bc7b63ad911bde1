"""WordNet's chains and claims, and Wikipedia's mentions."""

import hashlib
import itertools

import numpy as np
import pytest

from zoo.datasets import info, load_arrays, wordnet_chains, wordnet_claims
from zoo.sequence.evidence_graphs import mentions

SPLITS = ("train", "validation", "test")
NEI, REFUTES, SUPPORTS = range(3)


@pytest.fixture(scope="module")
def claims():
    return load_arrays("wordnet_claims", "test")


def follow(subject, pages, steps):
    """Walks from a noun by the given pages; None where a page is missing."""
    for _ in range(steps):
        subject = pages.get(subject)
    return subject


def rows(claims):
    for index, claim in enumerate(claims["claim"].tolist()):
        subject, relation, claimed = claim.split()
        titles, texts = claims["title"][index].tolist(), claims["evidence"][index].tolist()
        pages = {title: text.removeprefix("parent ") for title, text in zip(titles, texts, strict=True)}
        yield index, subject, wordnet_claims.RELATIONS.index(relation) + 1, claimed, pages


def test_chains_are_hypernyms_of_wordnet():
    chains = load_arrays("wordnet_chains", "train")["chain"].tolist()

    assert ["puppy", "pup", "young_mammal", "young"] in chains
    parents = {}
    for chain in chains:
        assert len(set(chain)) == 4
        for noun, parent in itertools.pairwise(chain):
            assert parents.setdefault(noun, parent) == parent


def test_splits_of_chains_share_no_first_noun():
    first = [set(load_arrays("wordnet_chains", split)["chain"][:, 0].tolist()) for split in SPLITS]

    assert sum(map(len, first)) == len(set.union(*first)) == 5170
    assert all(
        wordnet_chains.split_of(noun) == split for split, nouns in zip(SPLITS, first, strict=True) for noun in nouns
    )


def test_labels_follow_from_the_sentences(claims):
    for index, subject, steps, claimed, pages in rows(claims):
        assert len(pages) == wordnet_claims.NUM_SENTENCES and steps == claims["num_evidence"][index]
        reached = follow(subject, pages, steps)
        label = NEI if reached is None else SUPPORTS if reached == claimed else REFUTES
        assert label == claims["label"][index]


def test_needed_sentences_are_the_way_from_the_first_noun(claims):
    for index, subject, steps, _, pages in rows(claims):
        way = [noun for step in range(steps) if (noun := follow(subject, pages, step)) in pages]
        marked = claims["title"][index][claims["evidence_label"][index] == 1].tolist()
        assert sorted(marked) == sorted(way)


def test_no_single_sentence_tells_the_label_of_several_steps(claims):
    """What a sentence shows beside its claim: where it begins and ends. The same for each label."""
    for _, subject, steps, claimed, pages in rows(claims):
        if steps > 1:
            assert subject in pages and claimed in pages.values()
            assert pages[subject] != claimed


def test_labels_and_steps_are_balanced(claims):
    pairs = claims["num_evidence"] * 3 + claims["label"]
    counts = np.unique(pairs, return_counts=True)[1]

    assert len(counts) == 9 and counts.max() - counts.min() <= 1


def test_number_of_sentences_is_an_option():
    longer = load_arrays("wordnet_claims", "validation", num_sentences=9)

    assert longer["evidence"].shape == longer["evidence_label"].shape == (1000, 9)
    assert all(len(set(titles)) == 9 for titles in longer["title"].tolist())
    with pytest.raises(ValueError, match=r"`num_sentences` must be at least 5. Received: num_sentences=4"):
        load_arrays("wordnet_claims", "validation", num_sentences=4)


def test_claims_stay_the_same():
    names = ("claim", "title", "evidence", "evidence_label", "label", "num_evidence")
    lines = []
    for split in SPLITS:
        columns = [load_arrays("wordnet_claims", split)[name].tolist() for name in names]
        lines += [repr(row) for row in zip(*columns, strict=True)]

    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == info("wordnet_claims").sha256


def test_articles_mention_what_they_link_to():
    articles = load_arrays("wikipedia_mentions", "test")
    pairs = [
        (text, title, linked)
        for text, titles, texts in zip(articles["text"], articles["linked_title"], articles["linked_text"], strict=True)
        for title, linked in zip(titles, texts, strict=True)
    ]
    linked = [(text, title, other) for text, title, other in pairs if title]

    assert len(linked) > 300
    assert all(mentions(str(text), str(title)) and other for text, title, other in linked)
    assert not any(other for _, title, other in pairs if not title)


def test_linked_texts_are_those_of_their_articles():
    splits = [load_arrays("wikipedia_mentions", split) for split in SPLITS]
    texts = {str(t): str(text) for part in splits for t, text in zip(part["title"], part["text"], strict=True)}
    assert len(texts) == sum(info("wikipedia_mentions").splits.values())
    for part in splits:
        for titles, others in zip(part["linked_title"].tolist(), part["linked_text"].tolist(), strict=True):
            assert [texts.get(title, "") for title in titles] == others
