import gzip
import io
import pathlib
import tarfile
import zipfile

import pytest

from zoo.datasets import source
from zoo.datasets.source import Source

CONTENT = bytes(range(256)) * 40


def make_zip(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def make_tar(kind=tarfile.REGTYPE, **members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def archive_id(value):
    # Archives hold the time, and workers must collect the same tests
    return "archive" if isinstance(value, bytes) else value


def make_source(url="http://example.invalid/file.bin", packed=None, **fields):
    archive_sha256 = None if packed is None else source.sha256(packed)
    return Source("file.bin", url, source.sha256(CONTENT), len(CONTENT), archive_sha256, **fields)


def put(cache, name, data):
    path = cache / "toy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def names(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


# === What lies in the cache ===


def test_cached_file_is_read_without_network(cache, no_sockets):
    put(cache, "file.bin", CONTENT)

    assert source.read("toy", make_source()) == CONTENT


def test_a_cache_that_cannot_be_written_can_be_read(cache, no_sockets, monkeypatch):
    put(cache, "file.bin", CONTENT)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    for name in ("mkdir", "write_bytes", "replace", "touch", "unlink"):
        monkeypatch.setattr(pathlib.Path, name, refuse)
    assert source.read("toy", make_source()) == CONTENT


@pytest.mark.parametrize("broken", [b"", CONTENT[:-1], b"x" + CONTENT[1:], CONTENT + b"x"])
def test_corrupt_cached_file_is_refused_and_kept(cache, no_sockets, broken):
    path = put(cache, "file.bin", broken)

    with pytest.raises(ValueError, match=r"truncated or corrupt.*Delete it.*Received") as error:
        source.read("toy", make_source())

    for part in (str(path), source.sha256(CONTENT), source.sha256(broken), "http://example.invalid/file.bin"):
        assert part in str(error.value)
    assert path.read_bytes() == broken


def test_offline_error_names_the_file_the_place_and_the_address(cache, no_sockets):
    with pytest.raises(FileNotFoundError, match="ZOO_OFFLINE") as error:
        source.read("toy", make_source())

    assert str(cache / "toy" / "file.bin") in str(error.value)
    assert "http://example.invalid/file.bin" in str(error.value)
    assert not cache.exists()


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_variable(monkeypatch, value, expected):
    monkeypatch.setenv("ZOO_OFFLINE", value)

    assert source.is_offline() is expected


def test_cache_directory_is_the_variable_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    assert source.cache_dir() == tmp_path

    monkeypatch.delenv("ZOO_DATA_DIR")
    assert source.cache_dir().name == "method-zoo"


def test_cache_directory_that_is_a_file_is_one_clear_error(tmp_path, monkeypatch, no_sockets):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path / "file"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)

    with pytest.raises(OSError, match="Cannot create the data folder"):
        source.read("toy", make_source())


# === Archives ===


def test_cached_archives_are_unpacked_without_network(cache, no_sockets):
    for packed, name, member in (
        (gzip.compress(CONTENT), "a.gz", None),
        (make_zip(inside=CONTENT), "b.zip", "inside"),
        (make_tar(before=b"other", inside=CONTENT), "c.tar.gz", "inside"),
    ):
        put(cache, name, packed)
        wanted = make_source(f"http://example.invalid/{name}", packed, member=member)

        assert source.read("toy", wanted) == CONTENT
        assert (cache / "toy" / "file.bin").read_bytes() == CONTENT
        (cache / "toy" / "file.bin").unlink()


def test_archive_of_another_hash_is_never_parsed(cache, no_sockets, monkeypatch):
    put(cache, "a.gz", gzip.compress(b"other"))
    monkeypatch.setattr(source, "gunzip", lambda *args: pytest.fail("an unverified archive was parsed"))

    with pytest.raises(ValueError, match="truncated or corrupt"):
        source.read("toy", make_source("http://example.invalid/a.gz", gzip.compress(CONTENT)))
    assert names(cache) == ["a.gz"]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (gzip.compress(CONTENT)[:-9], "valid gzip"),
        (b"\x1f\x8b" + gzip.compress(CONTENT)[9:], "valid gzip"),
        (b"not a gzip file", "valid gzip"),
        (gzip.compress(CONTENT + b"x"), "at most 10,240 bytes"),
        (gzip.compress(bytes(50_000_000)), "at most 10,240 bytes"),
        (gzip.compress(CONTENT[:-1]), "must have SHA-256"),
    ],
    ids=archive_id,
)
def test_bad_gzip_files_are_refused_and_leave_nothing(cache, no_sockets, packed, message):
    put(cache, "a.gz", packed)

    with pytest.raises(ValueError, match=message):
        source.read("toy", make_source("http://example.invalid/a.gz", packed))
    assert names(cache) == ["a.gz"]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (make_zip(inside=CONTENT)[:-30], "valid zip"),
        (b"not a zip file", "valid zip"),
        (make_zip(other=CONTENT), "must hold 'inside'"),
        (make_zip(inside=bytes(50_000_000)), "at most 10,240 bytes"),
        (make_zip(inside=CONTENT[::-1]), "must have SHA-256"),
    ],
    ids=archive_id,
)
def test_bad_zip_files_are_refused_and_leave_nothing(cache, no_sockets, packed, message):
    put(cache, "b.zip", packed)

    with pytest.raises(ValueError, match=message):
        source.read("toy", make_source("http://example.invalid/b.zip", packed, member="inside"))
    assert names(cache) == ["b.zip"]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (make_tar(inside=CONTENT)[:100], r"valid tar\.gz"),
        (gzip.compress(gzip.decompress(make_tar(inside=CONTENT))[:6000]), r"valid tar\.gz"),
        (b"not an archive", r"valid tar\.gz"),
        (make_zip(inside=CONTENT), r"valid tar\.gz"),
        (make_tar(other=CONTENT), r"must hold the file 'inside'.*'other'"),
        (make_tar(tarfile.DIRTYPE, inside=b""), "must hold the file 'inside'"),
        (make_tar(tarfile.SYMTYPE, inside=b""), "must hold the file 'inside'"),
        (make_tar(inside=bytes(50_000_000)), "at most 10,240 bytes"),
        (make_tar(inside=CONTENT[::-1]), "must have SHA-256"),
    ],
    ids=archive_id,
)
def test_bad_tar_files_are_refused_and_leave_nothing(cache, no_sockets, packed, message):
    put(cache, "c.tar.gz", packed)

    with pytest.raises(ValueError, match=message):
        source.read("toy", make_source("http://example.invalid/c.tar.gz", packed, member="inside"))
    assert names(cache) == ["c.tar.gz"]


def test_zip_bomb_is_not_unpacked_past_the_limit(monkeypatch):
    asked = []
    original = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or original(self, n))

    with pytest.raises(ValueError, match="at most 100 bytes"):
        source.unzip(make_zip(inside=bytes(10_000_000)), "inside", 100)
    assert asked == [101]


def test_damaged_zip_member_is_refused():
    packed = bytearray(make_zip(inside=CONTENT))
    packed[60] ^= 0xFF

    with pytest.raises(ValueError, match="valid zip"):
        source.unzip(bytes(packed), "inside", len(CONTENT))


@pytest.mark.parametrize(("make", "name"), [(make_zip, "b.zip"), (make_tar, "c.tar.gz")])
def test_members_with_hostile_names_are_not_written(cache, no_sockets, make, name):
    packed = make(**{"../../evil": b"x", "/absolute/evil": b"x", "inside": CONTENT})
    put(cache, name, packed)

    assert source.read("toy", make_source(f"http://example.invalid/{name}", packed, member="inside")) == CONTENT
    assert names(cache.parent) == [name, "file.bin"]


# === The package's own files ===


def test_embedded_file_is_checked_before_use(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "EMBEDDED", tmp_path)
    with pytest.raises(FileNotFoundError, match="Reinstall"):
        source.read_embedded("toy", "file.bin", source.sha256(CONTENT))

    put(tmp_path, "file.bin", CONTENT[1:])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        source.read_embedded("toy", "file.bin", source.sha256(CONTENT))

    put(tmp_path, "file.bin", CONTENT)
    assert source.read_embedded("toy", "file.bin", source.sha256(CONTENT)) == CONTENT
