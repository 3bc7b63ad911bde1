import bz2
import dataclasses
import hashlib
import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.datasets import austen, austen_full, enwik8, load_text, novels, pydoc_topics, source, texts, tiny_shakespeare

SPLITS = ("train", "validation", "test")


def whole(name):
    return "".join(load_text(name, split) for split in SPLITS)


# === Cutting ===


@given(st.text(alphabet="ab\n", max_size=60), st.sampled_from(["", "\n\n", "b"]))
def test_cut_covers_the_text_once_in_order(text, boundary):
    parts = texts.cut(text, 0.5, 0.25, boundary)

    assert list(parts) == list(SPLITS)
    assert "".join(parts.values()) == text
    assert parts["train"] == text or parts["train"].endswith(boundary)
    as_bytes = texts.cut(text.encode(), 0.5, 0.25, boundary)
    assert [part.decode() for part in as_bytes.values()] == list(parts.values())


def test_cut_without_boundary_is_exact():
    assert texts.cut("abcdefghij", 0.8, 0.1) == {"train": "abcdefgh", "validation": "i", "test": "j"}


# === Normalising novels ===


def test_normalise_joins_wrapped_lines_into_paragraphs():
    lines = [
        "",
        "CHAPTER 1",
        "",
        "",
        "It is a truth  universally ",
        "  acknowledged, that a well-",
        "bred man--",
        "so _they_ say.*",
        "",
        " * * * * *",
        "",
        "[At this point Volume 1 ends.]",
        "",
        "“Café” cost £5—or ‘more’…",
        "",
    ]

    assert novels.normalise(lines) == (
        "CHAPTER 1\n\nIt is a truth universally acknowledged, that a well-bred man--so they say.\n\n"
        "\"Cafe\" cost L5--or 'more'...\n"
    )


def test_normalise_stops_at_the_publishers_note():
    assert novels.normalise(["The end.", "", "A NOTE ON THE TEXT", "", "Copyright."]) == "The end.\n"


def test_normalise_refuses_characters_outside_the_alphabet():
    with pytest.raises(ValueError, match=r"Received also: \['#', 'ж'\]"):
        novels.normalise(["a # ж"])


def test_alphabet_is_small_and_sorted():
    assert len(novels.ALPHABET) == 76
    assert list(novels.ALPHABET) == sorted(set(novels.ALPHABET))


# === austen ===


def test_austen_is_the_recorded_text():
    text = whole("austen")

    assert hashlib.sha256(text.encode()).hexdigest() == austen.INFO.sha256
    assert hashlib.sha256((source.EMBEDDED / "austen" / austen.FILE).read_bytes()).hexdigest() == austen.FILE_SHA256
    assert text.startswith("SENSE AND SENSIBILITY\n\nby Jane Austen\n")
    assert "It is a truth universally acknowledged, that a single man in possession of a good fortune" in text
    assert "Gutenberg" not in text


def test_austen_has_the_normalised_form():
    text = whole("austen")

    assert set(text) <= set(novels.ALPHABET)
    for never in ("  ", " \n", "\n ", "\n\n\n", "_", "*", "["):
        assert never not in text


def test_austen_splits_begin_at_paragraphs_and_share_the_train_alphabet():
    train, validation, test = (load_text("austen", split) for split in SPLITS)

    assert train.endswith("\n\n") and validation.endswith("\n\n") and test.endswith("\n")
    assert set(validation + test) <= set(train)


def test_austen_has_its_licence_beside_it():
    assert "public domain" in (source.EMBEDDED / "austen" / "LICENSE.md").read_text()


# === austen_full ===


def make_rda(strings, name="novel", kind=16):
    def text(value):
        return struct.pack(">ii", 0x00040009, len(value)) + value

    vector = struct.pack(">ii", kind, len(strings)) + b"".join(map(text, strings))
    header = b"RDX2\nX\n" + struct.pack(">iii", 2, 0x30400, 0x20300)
    return header + struct.pack(">ii", 0x402, 1) + text(name.encode()) + vector + struct.pack(">i", 254)


def test_rda_gives_its_lines():
    assert austen_full.read_rda(bz2.compress(make_rda([b"A", b"", "é".encode()]))) == ["A", "", "é"]


@pytest.mark.parametrize("length", range(0, len(make_rda([b"A", b"bc"])), 3))
def test_truncated_rda_is_refused(length):
    with pytest.raises(ValueError, match="R data file of one character vector"):
        austen_full.read_rda(bz2.compress(make_rda([b"A", b"bc"])[:length]))


@pytest.mark.parametrize(
    "data",
    [
        b"no bzip2",
        bz2.compress(make_rda([b"A"]))[:-8],
        bz2.compress(make_rda([b"A"], kind=13)),
        bz2.compress(make_rda([b"A"]).replace(b"RDX2", b"RDX9")),
        bz2.compress(make_rda([b"\xff"])),
        bz2.compress(make_rda([b"A"])[:-4] + struct.pack(">i", 0x402)),
    ],
)
def test_other_rda_files_are_refused(data):
    with pytest.raises(ValueError, match="R data file of one character vector"):
        austen_full.read_rda(data)


def test_rda_bomb_is_not_unpacked_past_the_limit():
    bomb = bz2.compress(make_rda([bytes(50_000_000)]))

    with pytest.raises(ValueError, match="unpacks to more than 4,194,304 bytes"):
        austen_full.read_rda(bomb)


def test_austen_full_holds_whole_novels_out(cache, no_sockets, monkeypatch):
    used = [novel for split in SPLITS for novel in austen_full.NOVELS[split]]
    assert sorted(used) == sorted(austen_full.SOURCES)
    sources = {}
    for novel, real in austen_full.SOURCES.items():
        data = bz2.compress(make_rda([novel.upper().encode(), b"", b"first", b"second"]))
        (cache / "austen_full").mkdir(parents=True, exist_ok=True)
        (cache / "austen_full" / real.file).write_bytes(data)
        sources[novel] = dataclasses.replace(real, sha256=source.sha256(data))
    monkeypatch.setattr(austen_full, "SOURCES", sources)

    assert load_text("austen_full", "test") == "NORTHANGERABBEY\n\nfirst second\n"
    assert load_text("austen_full", "validation") == "PERSUASION\n\nfirst second\n"
    assert load_text("austen_full", "train").count("first second\n") == 4


# === enwik8 ===


def make_enwik8(monkeypatch, cache, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", content)
    packed = stream.getvalue()
    (cache / "enwik8").mkdir(parents=True)
    (cache / "enwik8" / "enwik8.zip").write_bytes(packed)
    small = dataclasses.replace(
        enwik8.SOURCE, sha256=source.sha256(content), size=len(content), archive_sha256=source.sha256(packed)
    )
    monkeypatch.setattr(enwik8, "SOURCE", small)


def test_enwik8_is_cut_in_bytes(cache, no_sockets, monkeypatch):
    content = "<page>é\n".encode() * 200
    make_enwik8(monkeypatch, cache, content)

    parts = [load_text("enwik8", split) for split in SPLITS]

    assert [len(part) for part in parts] == [1620, 90, 90]
    assert b"".join(parts) == content


def test_enwik8_sizes_are_the_customary_ones():
    assert enwik8.INFO.splits == {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}
    assert int(0.9 * enwik8.SOURCE.size) == 90_000_000
    assert int((0.9 + 0.05) * enwik8.SOURCE.size) == 95_000_000


# === tiny_shakespeare ===


def test_tiny_shakespeare_is_cut_exactly(cache, no_sockets, monkeypatch):
    content = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
    (cache / "tiny_shakespeare").mkdir(parents=True)
    (cache / "tiny_shakespeare" / "input.txt").write_bytes(content)
    small = dataclasses.replace(tiny_shakespeare.SOURCE, sha256=source.sha256(content), size=len(content))
    monkeypatch.setattr(tiny_shakespeare, "SOURCE", small)

    assert whole("tiny_shakespeare") == content.decode()
    assert len(load_text("tiny_shakespeare", "train")) == int(0.9 * len(content))


def test_tiny_shakespeare_sizes_fit_the_file():
    size = tiny_shakespeare.SOURCE.size

    assert list(tiny_shakespeare.INFO.splits.values()) == [
        int(0.9 * size),
        int((0.9 + 0.05) * size) - int(0.9 * size),
        size - int((0.9 + 0.05) * size),
    ]


# === pydoc_topics ===


def test_pydoc_topics_are_the_running_pythons():
    from pydoc_data.topics import topics

    text = whole("pydoc_topics")

    assert hashlib.sha256(text.encode()).hexdigest() == pydoc_topics.INFO.sha256
    assert len(text) > 300_000
    assert topics["while"].strip() in text
    assert text.index(topics["assert"].strip()) < text.index(topics["with"].strip())
