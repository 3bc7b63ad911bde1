import importlib.util
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from zoo import datasets
from zoo.datasets import iso_names, source


def make_mo(pairs, magic=0x950412DE, revision=0):
    """Writes a catalogue as `msgfmt` does: a header, two tables of lengths and offsets, then the strings."""
    entries = [text.encode() for column in zip(*pairs.items(), strict=True) for text in column]
    start, tables, strings = 28 + 16 * len(pairs), b"", b""
    for entry in entries:
        tables += struct.pack("<2I", len(entry), start + len(strings))
        strings += entry + b"\x00"
    return struct.pack("<7I", magic, revision, len(pairs), 28, 28 + 8 * len(pairs), 0, start) + tables + strings


PAIRS = {
    "": "header",
    "Albania": "Albanien",
    "name\x04Chad": "Tschad",
    "dog\x00dogs": "Hund\x00Hunde",
    "Mongo": "Mongo",
}


def test_catalogues_lose_header_contexts_and_plurals():
    assert iso_names.read_mo(make_mo(PAIRS)) == {"Albania": "Albanien", "Chad": "Tschad", "Mongo": "Mongo"}


@pytest.mark.parametrize("length", range(0, len(make_mo(PAIRS)) - 1, 9))
def test_truncated_catalogues_are_refused(length):
    with pytest.raises(ValueError, match="catalogue of GNU gettext"):
        iso_names.read_mo(make_mo(PAIRS)[:length])


@pytest.mark.parametrize(
    "content",
    [make_mo(PAIRS, magic=0xDE120495), make_mo(PAIRS, revision=1), make_mo(PAIRS).replace(b"Alb", b"\xff\xfe\xfd")],
)
def test_other_files_are_refused(content):
    with pytest.raises(ValueError, match="catalogue of GNU gettext"):
        iso_names.read_mo(content)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stands in for pycountry: every catalogue holds the same pairs."""
    content = make_mo({**{f"name {i}": f"Name {i}" for i in range(100)}, "Mongo": "Mongo", "x" * 49: "y", "a\tb": "c"})
    for language in iso_names.LANGUAGES:
        folder = tmp_path / "locales" / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        for name in iso_names.SHA256:
            (folder / f"{name}.mo").write_bytes(content)
    hashes = dict.fromkeys(iso_names.SHA256, (source.sha256(content),) * 2)
    monkeypatch.setattr(iso_names, "SHA256", hashes)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    return tmp_path


def test_pairs_that_differ_are_split_by_their_source(package):
    parts = {split: datasets.load_arrays("iso_names", split) for split in iso_names.SPLITS}
    names = [str(name) for part in parts.values() for name in part["source"]]
    assert sorted(names) == sorted(f"name {i}" for i in range(100))
    assert len(parts["train"]["source"]) > 60 and min(len(part["source"]) for part in parts.values()) > 2
    for split, part in parts.items():
        assert list(part["source"]) == sorted(part["source"])
        np.testing.assert_array_equal([name.capitalize() for name in part["source"]], part["target"])
        assert {iso_names.split_of(str(name)) for name in part["source"]} == {split}


def test_another_version_is_refused(package):
    (package / "locales" / "fr" / "LC_MESSAGES" / "iso4217.mo").write_bytes(make_mo({"": ""}))
    datasets.load_arrays("iso_names", "test")
    with pytest.raises(
        ValueError, match=r"that of pycountry 26\.2\.16: install this version\. Received: .*iso4217\.mo"
    ):
        datasets.load_arrays("iso_names", "test", language="fr")
    with pytest.raises(ValueError, match=r"`language` must be one of .* Received: language='es'"):
        datasets.load_arrays("iso_names", "test", language="es")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "method-zoo\[names\]"'):
        datasets.load_arrays("iso_names", "test")


def test_names_have_the_stated_sizes():
    for split, size in datasets.info("iso_names").splits.items():
        part = datasets.load_arrays("iso_names", split)
        assert len(part["source"]) == len(part["target"]) == size
        assert (part["source"] != part["target"]).all()
        assert max(map(len, np.concatenate([part["source"], part["target"]]))) <= iso_names.MAXIMUM_CHARACTERS
    train, test = (set(datasets.load_arrays("iso_names", split)["source"]) for split in ("train", "test"))
    assert not train & test
