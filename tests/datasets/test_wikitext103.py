import dataclasses
import io
import zipfile

import numpy as np
import pytest

from zoo.datasets import load_arrays, load_text, source, wikitext103

TRAIN = " \n = Valkyria = \n \n the cat the dog\tthe cat @-@ the sat \n the cat sat rare \n"
VALIDATION = " \n the unseen cat \n"
TEST = " = Test = \n the dog"


@pytest.fixture
def small(cache, no_sockets, monkeypatch):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for split, text in (("train", TRAIN), ("valid", VALIDATION), ("test", TEST)):
            archive.writestr(f"wikitext-103-raw/wiki.{split}.raw", text)
    packed = stream.getvalue()
    path = cache / "wikitext103" / "wikitext-103-raw-v1.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed)
    changed = dataclasses.replace(wikitext103.SOURCE, sha256=source.sha256(packed), size=len(packed))
    monkeypatch.setattr(wikitext103, "SOURCE", changed)
    wikitext103.vocabulary.cache_clear()
    yield path
    wikitext103.vocabulary.cache_clear()


def test_characters_are_the_files_text(small):
    assert load_text("wikitext103", "train") == TRAIN
    assert load_text("wikitext103", "validation") == VALIDATION
    assert load_text("wikitext103", "test") == TEST


def test_vocabulary_is_sorted_by_frequency_and_hides_rare_words(small):
    # the: 5; <eos>: 5 lines; cat: 3; and below three: =, sat twice, Valkyria, dog, @-@, rare once: 8 unknown
    assert wikitext103.vocabulary(3) == ("<unk>", "<eos>", "the", "cat")
    assert wikitext103.vocabulary(2) == ("<eos>", "the", "<unk>", "cat", "=", "sat")
    assert len(wikitext103.vocabulary(1)) == 10


def test_words_are_indices_into_the_train_vocabulary(small):
    words = wikitext103.vocabulary(3)

    tokens = load_arrays("wikitext103", "validation", unit="word")["token"]

    assert tokens.dtype == np.int32
    assert [words[token] for token in tokens] == ["<eos>", "the", "<unk>", "cat", "<eos>"]
    fine = load_arrays("wikitext103", "test", unit="word", minimum_count=1)["token"]
    spelt = [wikitext103.vocabulary(1)[token] for token in fine]
    assert spelt == ["=", "<unk>", "=", "<eos>", "the", "dog", "<eos>"]


def test_truncated_archive_is_refused(small):
    small.write_bytes(small.read_bytes()[:-10])

    with pytest.raises(ValueError, match=r"wikitext-103-raw-v1\.zip is truncated or corrupt"):
        load_text("wikitext103", "test")


def test_bad_options_are_refused(small):
    with pytest.raises(ValueError, match=r"`unit` must be one of.*Received: unit='byte'"):
        load_text("wikitext103", "test", unit="byte")
    with pytest.raises(ValueError, match=r"`minimum_count` must be at least 1.*Received: minimum_count=0"):
        load_arrays("wikitext103", "test", unit="word", minimum_count=0)
    with pytest.raises(ValueError, match="use `load_arrays`"):
        load_text("wikitext103", "test", unit="word")
