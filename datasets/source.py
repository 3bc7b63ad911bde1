"""Where data files come from: the package itself, the cache, or a download into the cache.

Every byte is checked against a SHA-256 written in the loader before anything parses it. A download resumes where it was
interrupted, is moved into place only when its hash fits, and leaves nothing behind when it does not. Reading never
writes, so a cache that is already filled may be read-only.

Environment variables: `ZOO_DATA_DIR` is the cache (default: the platform's user cache, `method-zoo`), with one folder a
dataset; `ZOO_OFFLINE=1` forbids the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from zoo.files import atomic_file

EMBEDDED = Path(__file__).resolve().parent / "data"
_CHUNK = 1 << 18
_TIMEOUT = (15, 60)  # seconds to connect, seconds between two packets


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of a dataset and where it can be downloaded.

    Args:
        file: str. Name of the file in the dataset's folder of the cache.
        url: str. Address of the file, or of the archive that holds it.
        sha256: str. Hexadecimal SHA-256 of the file.
        size: int. Size of the file in bytes; nothing larger is ever unpacked.
        archive_sha256: str or None. SHA-256 of the archive; `None` where `url` is the file itself.
        member: str or None. Name inside a zip or a tar.gz archive; `None` for a gzip file.
    """

    file: str
    url: str
    sha256: str
    size: int
    archive_sha256: str | None = None
    member: str | None = None


def cache_dir() -> Path:
    """Returns the folder that downloaded datasets are kept in (it need not exist)."""
    chosen = os.environ.get("ZOO_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("method-zoo"))


def is_offline() -> bool:
    """Returns whether `ZOO_OFFLINE` forbids the network."""
    return os.environ.get("ZOO_OFFLINE", "") not in ("", "0")


def sha256(data: bytes) -> str:
    """Returns the hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def _checked(path: Path, expected: str, remedy: str) -> bytes:
    data = path.read_bytes()
    if sha256(data) != expected:
        raise ValueError(
            f"The data file {path} is truncated or corrupt: expected SHA-256 {expected}. {remedy} "
            f"Received: SHA-256 {sha256(data)} ({len(data):,} bytes)"
        )
    return data


def read_embedded(dataset: str, file: str, expected_sha256: str) -> bytes:
    """Reads a data file that comes with the package.

    Args:
        dataset: str. Folder under the package's data.
        file: str. Name of the file.
        expected_sha256: str. Hexadecimal SHA-256 of the file.

    Returns:
        bytes.

    Raises:
        FileNotFoundError: if the installation lacks the file.
        ValueError: if the file is not the one that was shipped.
    """
    path = EMBEDDED / dataset / file
    if not path.is_file():
        raise FileNotFoundError(f"The installation lacks the data file {path}. Reinstall the package.")
    return _checked(path, expected_sha256, "Reinstall the package.")


def read(dataset: str, source: Source) -> bytes:
    """Reads a data file from the cache, downloading it first where it is missing.

    Args:
        dataset: str. Folder in the cache.
        source: `Source`.

    Returns:
        bytes whose SHA-256 is `source.sha256`.

    Raises:
        FileNotFoundError: if the file is missing and `ZOO_OFFLINE` is set.
        ValueError: if the cached or the downloaded file is not the expected one.
        ConnectionError: if the download fails.
        OSError: if the cache cannot be written.
    """
    path = cache_dir() / dataset / source.file
    if not path.is_file():
        _fetch(path, source)
    return _checked(path, source.sha256, f"Delete it and it is downloaded again from {source.url}.")


def _fetch(path: Path, source: Source) -> None:
    if source.archive_sha256 is None:
        download(source.url, path, source.sha256)
        return
    archive = path.with_name(source.url.rsplit("/", 1)[-1])
    if not archive.is_file():
        download(source.url, archive, source.archive_sha256, wanted=path)
    packed = _checked(archive, source.archive_sha256, f"Delete it and it is downloaded again from {source.url}.")
    unpacked = _unpack(packed, source)
    if sha256(unpacked) != source.sha256:
        raise ValueError(
            f"The file {source.file} in {archive} must have SHA-256 {source.sha256}. Received: {sha256(unpacked)}"
        )
    with atomic_file(path) as temporary:
        temporary.write_bytes(unpacked)


def _unpack(packed: bytes, source: Source) -> bytes:
    if source.member is None:
        return gunzip(packed, source.size)
    unpack = untar if source.url.endswith(".tar.gz") else unzip
    return unpack(packed, source.member, source.size)


def gunzip(packed: bytes, size: int) -> bytes:
    """Decompresses a gzip file to at most `size` bytes.

    Raises:
        ValueError: if it is no valid gzip file, is truncated, or holds more than `size` bytes.
    """
    with _refusing("gzip"), gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        return _read_bounded(stream, size)


def unzip(packed: bytes, member: str, size: int) -> bytes:
    """Decompresses one member of a zip archive to at most `size` bytes. Nothing is written to disk.

    Raises:
        ValueError: if it is no valid zip archive, lacks the member, or the member holds more than `size` bytes.
    """
    with _refusing("zip"), zipfile.ZipFile(io.BytesIO(packed)) as archive:
        if member not in archive.namelist():
            raise ValueError(f"The zip archive must hold {member!r}. Received: {archive.namelist()[:5]}")
        with archive.open(member) as stream:
            return _read_bounded(stream, size)


def untar(packed: bytes, member: str, size: int) -> bytes:
    """Decompresses one file of a tar.gz archive to at most `size` bytes. Nothing is written to disk.

    Raises:
        ValueError: if it is no valid archive, lacks the file, or the file holds more than `size` bytes.
    """
    with _refusing("tar.gz"), tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for entry in archive:
            if entry.name == member and entry.isfile():
                return _read_bounded(archive.extractfile(entry), size)
        raise ValueError(f"The tar archive must hold the file {member!r}. Received: {archive.getnames()[:5]}")


@contextlib.contextmanager
def _refusing(kind: str) -> Iterator[None]:
    # Encrypted members raise RuntimeError, unknown compression methods NotImplementedError (its subclass).
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
        raise ValueError(f"Expected a valid {kind} file. Received: {error}") from error


def _read_bounded(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size + 1)
    if len(data) > size:
        raise ValueError(f"The archive must unpack to at most {size:,} bytes. Received: more than that")
    return data


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Cannot create the data folder {folder}: set ZOO_DATA_DIR to a writable one. Received: {error}"
        ) from error


def download(url: str, path: Path, expected_sha256: str, wanted: Path | None = None) -> None:
    """Downloads a file into the cache; an interrupted download goes on where it stopped the next time.

    Args:
        url: str. Address.
        path: path to download to.
        expected_sha256: str. Hexadecimal SHA-256 of the download.
        wanted: path or None. File that is needed from the download, named in the offline error.

    Raises:
        FileNotFoundError: if `ZOO_OFFLINE` is set.
        ValueError: if the download has another hash; it is deleted.
        ConnectionError: if the server cannot be reached or the transfer breaks; what arrived is kept for resuming.
        OSError: if the cache cannot be written.
    """
    wanted = wanted or path
    if is_offline():
        raise FileNotFoundError(
            f"The data file {wanted.name} is missing and ZOO_OFFLINE forbids downloading it. "
            f"Put it at {wanted} (from {url}), point ZOO_DATA_DIR to a cache that has it, or unset ZOO_OFFLINE."
        )
    import pooch
    import requests

    _make_folder(path.parent)
    try:
        pooch.retrieve(
            url, f"sha256:{expected_sha256}", fname=path.name, path=path.parent, downloader=_resuming_downloader(path)
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"Could not download {url}. What has arrived is kept: run it again to resume. Received: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"The download of {url} is not the expected file and was deleted: expected SHA-256 {expected_sha256}. "
            f"Received: {error}"
        ) from error


def _resuming_downloader(path: Path) -> Any:
    """Returns a pooch downloader that collects the file in `<path>.part` and hands it over when it is complete."""
    part = path.with_name(path.name + ".part")

    def run(url: str, output_file: str, _: Any) -> None:
        _transfer(url, part)
        part.replace(output_file)

    return run


def _transfer(url: str, part: Path) -> None:
    import requests

    have = part.stat().st_size if part.exists() else 0
    # Compressed on the way, the bytes on disk could not be counted in the server's ranges.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # The part is as long as the file or longer: take it as complete, its hash decides.
            return
        response.raise_for_status()
        resumed = have and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if resumed else "wb") as stream, _progress(part, response, have if resumed else 0) as show:
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)
                show(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _progress(part: Path, response: Any, have: int) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    length = response.headers.get("Content-Length")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(part.stem, total=have + int(length) if length else None, completed=have)
        yield lambda count: progress.advance(task, count)
