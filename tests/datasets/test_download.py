import gzip
import io
import tarfile
from pathlib import Path

import pytest

from zoo.datasets import source
from zoo.datasets.source import Source

CONTENT = bytes(range(256)) * 8000  # 2 MB: several chunks


def make_source(server, name="file.bin", **fields):
    return Source("file.bin", f"{server.url}/{name}", source.sha256(CONTENT), len(CONTENT), **fields)


def names():
    return sorted(path.name for path in source.cache_dir().rglob("*") if path.is_file())


def test_download_is_kept_and_used_again(server, capfd):
    server.files["/file.bin"] = CONTENT

    assert source.read("toy", make_source(server)) == CONTENT
    assert source.read("toy", make_source(server)) == CONTENT

    assert server.requests == [("/file.bin", None)]
    assert names() == ["file.bin"]
    assert (source.cache_dir() / "toy" / "file.bin").read_bytes() == CONTENT
    assert capfd.readouterr().out == ""


def test_gzip_download_is_verified_and_unpacked(server):
    packed = gzip.compress(CONTENT)
    server.files["/file.bin.gz"] = packed

    assert source.read("toy", make_source(server, "file.bin.gz", archive_sha256=source.sha256(packed))) == CONTENT
    assert names() == ["file.bin", "file.bin.gz"]


def test_archive_of_several_files_is_downloaded_once(server):
    contents = {"a.bin": CONTENT, "b.bin": CONTENT[::-1]}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"folder/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    packed = server.files["/both.tar.gz"] = stream.getvalue()

    for name, data in contents.items():
        hashes = {"sha256": source.sha256(data), "archive_sha256": source.sha256(packed)}
        wanted = Source(name, f"{server.url}/both.tar.gz", size=len(data), member=f"folder/{name}", **hashes)
        assert source.read("toy", wanted) == data

    assert server.requests == [("/both.tar.gz", None)]
    assert names() == ["a.bin", "b.bin", "both.tar.gz"]


@pytest.mark.parametrize("archived", [False, True])
def test_other_content_is_refused_and_leaves_nothing(server, archived, monkeypatch):
    server.files["/file.bin"] = CONTENT[::-1]
    monkeypatch.setattr(source, "gunzip", lambda *args: pytest.fail("an unverified archive was parsed"))
    wanted = make_source(server, archive_sha256="0" * 64 if archived else None)

    with pytest.raises(ValueError, match=r"not the expected file and was deleted.*Received") as error:
        source.read("toy", wanted)

    assert source.sha256(CONTENT[::-1]) in str(error.value)
    assert names() == []


def test_interrupted_download_is_resumed(server):
    server.files["/file.bin"] = CONTENT
    server.break_after = 1_000_000

    with pytest.raises(ConnectionError, match="run it again to resume"):
        source.read("toy", make_source(server))
    (part,) = names()
    assert part == "file.bin.part"
    have = (source.cache_dir() / "toy" / part).stat().st_size
    assert 0 < have <= 1_000_000

    server.break_after = None
    assert source.read("toy", make_source(server)) == CONTENT
    assert server.requests == [("/file.bin", None), ("/file.bin", f"bytes={have}-")]
    assert names() == ["file.bin"]


def test_server_without_ranges_starts_over(server):
    server.files["/file.bin"] = CONTENT
    server.ranges = False
    (source.cache_dir() / "toy").mkdir(parents=True)
    (source.cache_dir() / "toy" / "file.bin.part").write_bytes(CONTENT[:1000])

    assert source.read("toy", make_source(server)) == CONTENT


def test_complete_part_is_used(server):
    server.files["/file.bin"] = CONTENT
    (source.cache_dir() / "toy").mkdir(parents=True)
    (source.cache_dir() / "toy" / "file.bin.part").write_bytes(CONTENT)

    assert source.read("toy", make_source(server)) == CONTENT
    assert names() == ["file.bin"]


def test_wrong_part_is_deleted_so_that_the_next_try_succeeds(server):
    server.files["/file.bin"] = CONTENT
    (source.cache_dir() / "toy").mkdir(parents=True)
    (source.cache_dir() / "toy" / "file.bin.part").write_bytes(b"of another file")

    with pytest.raises(ValueError, match="not the expected file"):
        source.read("toy", make_source(server))
    assert names() == []
    assert source.read("toy", make_source(server)) == CONTENT


def test_missing_page_and_dead_server_are_clear_errors(server):
    with pytest.raises(ConnectionError, match=r"Could not download http://127\.0\.0\.1:\d+/file\.bin.*404"):
        source.read("toy", make_source(server))

    with pytest.raises(ConnectionError, match="Could not download"):
        source.download("http://127.0.0.1:9/file.bin", source.cache_dir() / "toy" / "file.bin", "0" * 64)
    assert names() == []


def test_failure_after_the_transfer_leaves_no_file(server, monkeypatch):
    packed = gzip.compress(CONTENT)
    server.files["/file.bin.gz"] = packed

    def full(self, data):
        self.open("wb").write(data[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        source.read("toy", make_source(server, "file.bin.gz", archive_sha256=source.sha256(packed)))
    assert names() == ["file.bin.gz"]


def test_offline_never_asks_the_server(server, monkeypatch):
    server.files["/file.bin"] = CONTENT
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    with pytest.raises(FileNotFoundError, match="ZOO_OFFLINE"):
        source.read("toy", make_source(server))
    assert server.requests == []
