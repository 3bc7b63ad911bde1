import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

import zoo.datasets as datasets
from zoo.datasets import registry

EMBEDDED_TEXTS = ("austen", "pydoc_topics")
EMBEDDED_ARRAYS = (
    "breast_cancer",
    "diabetes",
    "digits",
    "docstring_packages",
    "docstrings",
    "fashion_mnist_sample",
    "mnist_sample",
    "wikipedia_mentions",
    "wordnet_chains",
    "wordnet_claims",
)


def test_datasets_are_found_by_their_files():
    assert datasets.list_datasets() == [
        "austen",
        "austen_full",
        "breast_cancer",
        "cifar10",
        "diabetes",
        "digits",
        "docstring_packages",
        "docstrings",
        "enwik8",
        "fashion_mnist",
        "fashion_mnist_sample",
        "iso_names",
        "mnist",
        "mnist_sample",
        "pydoc_topics",
        "tiny_shakespeare",
        "wikipedia_mentions",
        "wikitext103",
        "wordnet_chains",
        "wordnet_claims",
    ]


@pytest.mark.parametrize("name", datasets.list_datasets())
def test_info_is_complete(name):
    facts = datasets.info(name)

    assert facts.name == name
    assert list(facts.splits) == ["train", "validation", "test"]
    assert all(size > 0 for size in facts.splits.values())
    assert facts.unit in ("examples", "characters", "bytes", "lines")
    assert re.fullmatch("[0-9a-f]{64}", facts.sha256)
    assert re.match("https?://", facts.source)
    assert facts.description and facts.licence and facts.features
    assert facts.embedded == (name in EMBEDDED_TEXTS + EMBEDDED_ARRAYS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.name = "other"


def test_no_tensorflow_until_a_dataset_is_made():
    code = (
        "import sys, zoo.datasets as d\n"
        "for n in d.list_datasets(): d.info(n)\n"
        "d.load_text('austen', 'test'); d.load_arrays('mnist_sample', 'test')\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'pooch', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", EMBEDDED_TEXTS)
def test_embedded_texts_need_no_network_and_have_the_stated_sizes(name, cache, no_sockets):
    for split, size in datasets.info(name).splits.items():
        text = datasets.load_text(name, split)
        assert isinstance(text, str)
        assert len(text) == size


@pytest.mark.parametrize("name", EMBEDDED_ARRAYS)
def test_embedded_arrays_need_no_network_and_have_the_stated_sizes(name, cache, no_sockets):
    for split, size in datasets.info(name).splits.items():
        arrays = datasets.load_arrays(name, split)
        assert set(arrays) == set(datasets.info(name).features)
        assert {len(array) for array in arrays.values()} == {size}


@pytest.mark.parametrize("call", [datasets.load, datasets.load_arrays, datasets.load_text])
def test_unknown_names_splits_and_options_offer_the_closest(call):
    with pytest.raises(ValueError, match=r"Did you mean 'austen'.*Received: name='autsen'"):
        call("autsen", "train")
    with pytest.raises(ValueError, match=r"Did you mean 'validation'\?.*Received: split='valid'"):
        call("austen", "valid")
    with pytest.raises(ValueError, match=r"Did you mean 'unit'\?.*Received: option='unti'"):
        call("wikitext103", "train", unti="word")
    with pytest.raises(ValueError, match=r"Known: none\. Received: option='shuffle'"):
        call("austen", "train", shuffle=True)


@pytest.mark.parametrize(
    "name", ["source", "registry", "build_embedded", "__init__", "../datasets/austen", "", None, 3]
)
def test_what_is_no_dataset_is_unknown(name):
    with pytest.raises(ValueError, match="Unknown name"):
        datasets.info(name)


def test_texts_and_arrays_are_not_mixed_up():
    with pytest.raises(ValueError, match=r"use `load_text`.*austen"):
        datasets.load_arrays("austen", "test")
    with pytest.raises(ValueError, match=r"use `load_arrays`.*mnist_sample"):
        datasets.load_text("mnist_sample", "test")


def test_arrays_as_tf_data():
    dataset = datasets.load("mnist_sample", "validation")
    arrays = datasets.load_arrays("mnist_sample", "validation")

    assert int(dataset.cardinality()) == 1000
    (batch,) = dataset.batch(1000).as_numpy_iterator()
    assert set(batch) == set(arrays)
    for name, array in arrays.items():
        assert batch[name].dtype == array.dtype
        np.testing.assert_array_equal(batch[name], array)


def test_text_as_tf_data_gives_lines_that_join_to_the_text():
    dataset = datasets.load("austen", "test")

    lines = [element["text"] for element in dataset.as_numpy_iterator()]

    assert b"".join(lines).decode() == datasets.load_text("austen", "test")
    assert len(lines) == int(dataset.cardinality()) > 100


@pytest.mark.parametrize("data", ["a\r\nb\u2028c\n\nd", "", "\n", b"a\n\xff\xfe\r\n\x00", b""])
def test_odd_texts_as_tf_data(data, monkeypatch):
    monkeypatch.setattr(registry, "_read", lambda *args: data)

    lines = [element["text"] for element in registry.load("austen", "test").as_numpy_iterator()]

    assert b"".join(lines) == (data if isinstance(data, bytes) else data.encode())
    assert all(line.count(b"\n") <= 1 for line in lines)


def test_no_split_gives_all_of_them():
    splits = datasets.load("digits")

    assert {name: int(dataset.cardinality()) for name, dataset in splits.items()} == datasets.info("digits").splits
