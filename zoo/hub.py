"""Presets from `https://` and `hf://` addresses: downloaded once, verified file by file, kept in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from zoo.files import atomic_directory, restore_directory, sha256
from zoo.metadata import CONFIG, MAXIMUM_ASSET, MAXIMUM_JSON, METADATA, WEIGHTS, Metadata

_logger = logging.getLogger(__name__)

_SCHEMES = ("https://", "hf://")
_SECONDS = 30
_BLOCK = 1 << 20
_PART = r"(?!\.+(?:/|@|$))[\w.-]+"  # one name of a path, neither "." nor ".."
_HF_ADDRESS = re.compile(rf"hf://({_PART}/{_PART})((?:/{_PART})*)(?:@({_PART}(?:/{_PART})*))?")

# `download(name, directory, digest, limit)` puts one file of a preset into a directory.
Download = Callable[[str, Path, str | None, int], None]


def is_address(source: object) -> bool:
    """Whether a source of a preset is an address rather than a path."""
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def is_offline(offline: bool | None = None) -> bool:
    """Returns `offline`, or for `None` whether the environment variable `ZOO_OFFLINE` is set, and not to 0."""
    return os.environ.get("ZOO_OFFLINE", "0") not in ("", "0") if offline is None else offline


def cache_directory() -> Path:
    """Returns where downloaded presets are kept: `$ZOO_CACHE_DIR/presets`, by default in the user's cache directory."""
    root = os.environ.get("ZOO_CACHE_DIR") or platformdirs.user_cache_dir("method-zoo", appauthor=False)
    return Path(root) / "presets"


def fetch(source: str, offline: bool | None = None) -> Path:
    """Returns the local copy of a preset; downloads what is not in the cache.

    A preset that is in the cache is asked for anew, since its address may have got another one, unless the address pins
    the hash of its metadata.

    Args:
        source: str. `https://` or `hf://user/repository[/folder][@revision]` address of a preset directory, which may
            end with `#sha256=` and the hash of its `metadata.json`.
        offline: bool or None. See `is_offline`.

    Returns:
        A directory in the cache, every file of which has the SHA-256 that its metadata names.

    Raises:
        ConnectionError: if a download fails.
        FileNotFoundError: if offline and not in the cache.
        ImportError: if an `hf://` address is given without the package `huggingface_hub`.
        ValueError: for a malformed address, or files that have another hash or are too large.
    """
    address, digest = _split(source)
    directory = cache_directory() / _cache_name(address)
    restore_directory(directory)
    may_have_changed = digest is None and not is_offline(offline)
    if not may_have_changed and _is_whole(directory, digest):
        return directory
    if is_offline(offline):
        raise FileNotFoundError(f"Offline, and the cache {str(directory)!r} has no whole copy. Received: {source!r}")
    download = _hf_download(address) if address.startswith("hf://") else _https_download(address)
    _update(directory, download, digest)
    return directory


def fetch_hugging_face(source: str, limits: Mapping[str, int], offline: bool | None = None) -> Path | None:
    """Returns the local copy of a model in Hugging Face's own layout, or None where an address is not one of such.

    A copy is of one commit. The hub is asked which one the address means, unless offline; then it is the newest in the
    cache.

    Args:
        source: str. Address; `hf://user/repository[/folder][@revision]` may be of such a model.
        limits: mapping from the names of the files that are wanted to their largest sizes in bytes. Those that do not exist
            are left out.
        offline: bool or None. See `is_offline`.

    Raises:
        ConnectionError: if a download fails.
        ImportError: without the package `huggingface_hub`.
        ValueError: for a malformed address and for files that are too large.
    """
    address, digest = _split(source)
    if not address.startswith("hf://") or digest is not None:
        return None
    name = f"{_cache_name(address)}-"
    if is_offline(offline):
        copies = [path for path in cache_directory().glob(f"{name}*") if path.is_dir()]
        return max(copies, key=lambda path: path.stat().st_mtime, default=None)
    huggingface_hub, http_error = _hub_package(address)
    repository, folder, revision = _HF_ADDRESS.fullmatch(address).groups()
    prefix = f"{folder}/".lstrip("/")
    try:
        if huggingface_hub.file_exists(repository, f"{prefix}{METADATA}", revision=revision):
            return None
        url = huggingface_hub.hf_hub_url(repository, f"{prefix}{CONFIG}", revision=revision)
        commit = huggingface_hub.get_hf_file_metadata(url).commit_hash
        wanted = [file for file in limits if huggingface_hub.file_exists(repository, prefix + file, revision=commit)]
    except (OSError, http_error) as error:
        raise ConnectionError(f"Download of {CONFIG!r} failed: {error}. Received: {address!r}") from error
    directory = cache_directory() / f"{name}{commit[:16]}"
    restore_directory(directory)
    if not directory.is_dir():
        download = _hf_download(f"{address.partition('@')[0]}@{commit}")
        with atomic_directory(directory) as temporary:
            for file in wanted:
                download(file, temporary, None, limits[file])
    return directory


def _split(source: str) -> tuple[str, str | None]:
    address, mark, fragment = source.partition("#")
    if not address.startswith(_SCHEMES):
        raise ValueError(f"An address must begin with {' or '.join(_SCHEMES)}. Received: {source!r}")
    if mark and not re.fullmatch(r"sha256=[0-9a-f]{64}", fragment):
        raise ValueError(
            f"An address may end with '#sha256=' and 64 lower-case hexadecimal digits. Received: {source!r}"
        )
    if address.startswith("hf://") and not _HF_ADDRESS.fullmatch(address):
        raise ValueError(f"The address must be hf://user/repository[/folder][@revision]. Received: {source!r}")
    return address.rstrip("/"), fragment.removeprefix("sha256=") or None


def _cache_name(address: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", address)[-60:].strip("-")
    return f"{readable}-{hashlib.sha256(address.encode()).hexdigest()[:16]}"


def _listed(metadata: Metadata) -> list[tuple[str, str, int]]:
    """Returns name, hash and largest size of every file that the metadata vouches for."""
    others = [
        (name, digest, MAXIMUM_JSON if name == CONFIG else MAXIMUM_ASSET) for name, digest in metadata.files.items()
    ]
    return [*others, (WEIGHTS, metadata.weights_sha256, metadata.maximum_weights)]


def _is_whole(directory: Path, digest: str | None) -> bool:
    path = directory / METADATA
    if not path.is_file() or digest not in (None, sha256(path)):
        return False
    listed = _listed(Metadata.from_json(path.read_bytes()))
    return all((directory / name).is_file() and sha256(directory / name) == known for name, known, _ in listed)


def _update(directory: Path, download: Download, digest: str | None) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        download(METADATA, Path(scratch), digest, MAXIMUM_JSON)
        data = (Path(scratch) / METADATA).read_bytes()
    if digest is None:
        pin = f"#sha256={hashlib.sha256(data).hexdigest()}"
        _logger.warning("Nothing vouches for the metadata of this preset; once you trust it, pin it by adding %s", pin)
    metadata = Metadata.from_json(data)
    if _is_whole(directory, hashlib.sha256(data).hexdigest()):
        return
    with atomic_directory(directory) as temporary:
        (temporary / METADATA).write_bytes(data)
        for name, known, limit in _listed(metadata):
            download(name, temporary, known, limit)


def _https_download(address: str) -> Download:
    import pooch
    import requests

    def stream(url: str, output_file: str, limit: int) -> None:
        with requests.get(url, stream=True, timeout=_SECONDS) as response, Path(output_file).open("wb") as file:
            response.raise_for_status()
            if not all(hop.url.startswith(_SCHEMES) for hop in (*response.history, response)):
                raise ValueError(f"An address must not lead away from https://. Received: {response.url!r}")
            for block in response.iter_content(_BLOCK):
                if file.tell() + len(block) > limit:
                    raise ValueError(f"The file may have at most {limit} bytes. Received: more, from {url!r}")
                file.write(block)

    def download(name: str, directory: Path, digest: str | None, limit: int) -> None:
        url = f"{address}/{name}"
        try:
            pooch.retrieve(url, digest, name, directory, downloader=lambda url, file, _: stream(url, file, limit))
        except requests.RequestException as error:
            raise ConnectionError(f"Download failed: {error}. Received: {url!r}") from error

    return download


def _hub_package(address: str) -> tuple[Any, type[Exception]]:
    """Returns the package `huggingface_hub`, and what it raises for an answer that is none."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise ImportError(
            f"hf:// addresses need huggingface_hub: pip install 'method-zoo[hub]'. Received: {address!r}"
        ) from error
    return huggingface_hub, HTTPError


def _hf_download(address: str) -> Download:
    huggingface_hub, http_error = _hub_package(address)
    repository, folder, revision = _HF_ADDRESS.fullmatch(address).groups()

    def download(name: str, directory: Path, digest: str | None, limit: int) -> None:
        file = f"{folder}/{name}".lstrip("/")
        try:
            url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
            size = huggingface_hub.get_hf_file_metadata(url).size
            if size is None or size > limit:
                raise ValueError(f"{file!r} may have at most {limit} bytes. Received: {size} at {address!r}")
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                # Into a folder: the hub's own cache holds links, which lead out of the preset directory
                found = huggingface_hub.hf_hub_download(repository, file, revision=revision, local_dir=scratch)
                if digest not in (None, sha256(found)):
                    raise ValueError(f"{file!r} must have SHA-256 {digest}. Received: {sha256(found)} at {address!r}")
                Path(found).replace(directory / name)
        except (OSError, http_error) as error:
            raise ConnectionError(f"Download of {file!r} failed: {error}. Received: {address!r}") from error

    return download
