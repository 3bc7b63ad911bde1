import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.metadata import Metadata, parse_json

FIELDS = {
    "method": "toy",
    "preset": "base",
    "parameters": 36,
    "weights_sha256": "0" * 64,
    "files": {"config.json": "1" * 64, "text.txt": "2" * 64},
    "metrics": {"test_error": 0.25},
    "dataset": {"name": "digits", "options": {"size": 8}},
    "training": {"seed": 1, "steps": 100},
    "export": {},
    "versions": {"keras": "3.15.1"},
    "licence": "Apache-2.0",
    "created": "2026-01-31",
    "format_version": 1,
}


def checksummed(fields):
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, "checksum": digest})


def test_metadata_round_trip():
    metadata = Metadata(**FIELDS)

    assert Metadata.from_json(metadata.to_json().encode()) == metadata


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", 3, "`method` must be of type str"),
        ("parameters", 36.0, "`parameters` must be of type int"),
        ("parameters", True, "`parameters` must be of type int"),
        ("parameters", -1, "`parameters` must not be negative"),
        ("weights_sha256", "0" * 63, "SHA-256 of 'weights_sha256'"),
        ("weights_sha256", "G" * 64, "SHA-256 of 'weights_sha256'"),
        ("files", {}, "`files` must name 'config.json'"),
        ("files", {"config.json": "x"}, "SHA-256 of 'config.json'"),
        ("files", [], "`files` must be of type dict"),
        ("metrics", {"error": "low"}, "`metrics` must hold finite numbers"),
        ("metrics", {"error": True}, "`metrics` must hold finite numbers"),
        ("dataset", "digits", "`dataset` must be of type dict"),
        ("versions", {"keras": 3}, "`versions.keras` must be of type str"),
        ("created", "yesterday", "`created` must be an ISO date"),
        ("author", "me", r"unknown fields \['author'\]"),
    ],
)
def test_metadata_names_the_wrong_field(field, value, message):
    with pytest.raises(ValueError, match=message):
        Metadata.from_json(checksummed({**FIELDS, field: value}).encode())


@pytest.mark.parametrize("field", [*FIELDS, "checksum"])
def test_metadata_names_the_missing_field(field):
    fields = json.loads(checksummed(FIELDS))
    del fields[field]
    with pytest.raises(ValueError, match=field):
        Metadata.from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b"1" * 5000,
        b" " * (1 << 20) + b"1",
    ],
)
def test_json_is_read_strictly(data):
    with pytest.raises(ValueError, match="`file"):
        parse_json(data, "file")


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["replace", "insert", "delete"]), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    for place, kind, byte in edits:
        position = int(place * (len(data) - 1))
        new = b"" if kind == "delete" else bytes([byte])
        data = data[:position] + new + data[position + (kind != "insert") :]
    return data


@settings(deadline=None, derandomize=True, max_examples=300)
@given(edits=EDITS)
def test_edited_metadata_is_refused_or_means_the_same(edits):
    original = Metadata(**FIELDS)
    try:
        assert Metadata.from_json(edited(original.to_json().encode(), edits)) == original
    except ValueError:
        pass
