"""Durable writing and hashing: what is read is whole, what was there before survives a failure."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20


def sha256(path: str | Path) -> str:
    """Returns the SHA-256 of a file as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Asks the system to put a file, or a directory's list of names, on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows has no handle of a directory to flush
    # Windows flushes only handles that may write
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        if not path.is_symlink():
            _sync(path)
    _sync(root)


def _temporary(path: Path) -> Path:
    # Whole name kept at the end: writers choose a format by the suffix
    return path.with_name(f".{secrets.token_hex(6)}.{path.name}")


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Writes a file that appears at its path only when it is whole.

    Missing parent directories are made. A file that was there is replaced in one step, and stays if the body raises.

    Args:
        path: path of the file.

    Yields:
        Path of a temporary file in the same folder and with the same suffix, for the body to create.

    Raises:
        ValueError: if the path is a directory.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`path` must be a file, not a directory. Received: path={str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def restore_directory(path: str | Path) -> None:
    """Ends what a killed `atomic_directory` left: the old directory comes back, or goes where the new one stands."""
    path = Path(path)
    old = _replaced(path)
    if not old.is_dir():
        return
    if path.exists():
        shutil.rmtree(old)
    else:
        old.replace(path)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Writes a directory that appears at its path only when it is whole.

    Missing parent directories are made. A directory that was there is moved aside, and removed once the new one stands;
    it stays if the body raises. No system call replaces a full directory, so a process killed between the two renames
    leaves the old one moved aside: `restore_directory`, which the next writer calls too, puts it back.

    Args:
        path: path of the directory.

    Yields:
        Path of a temporary directory in the same folder, made and empty.

    Raises:
        ValueError: if the path is a file.
    """
    path = Path(path).resolve()  # where it is a link, the directory is replaced and not the link
    if path.exists() and not path.is_dir():
        raise ValueError(f"`path` must be a directory, not a file. Received: path={str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_directory(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(new: Path, path: Path) -> None:
    """Moves a finished file or directory to its place, replacing what is there.

    Args:
        new: path on the same file system as `path`.
        path: path. A directory there is moved aside first, and comes back if the move fails.
    """
    _sync_tree(new)
    if not path.is_dir():
        new.replace(path)
        _sync(path.parent)
        return
    old = _replaced(path)
    restore_directory(path)
    path.replace(old)
    try:
        new.replace(path)
    except OSError:
        restore_directory(path)
        raise
    _sync(path.parent)
    shutil.rmtree(old)


def check_writable(directory: str | Path) -> Path:
    """Checks, before long work, that a directory can be written to or made; makes nothing.

    Args:
        directory: path of a directory, which need not exist.

    Returns:
        The directory.

    Raises:
        ValueError: if it, or the nearest parent that exists, is a file or does not let files be made in it.
    """
    directory = Path(directory)
    nearest = next(parent for parent in (directory, *directory.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise ValueError(f"`directory` must not be a file or lie in one. Received: directory={str(directory)!r}")
    try:
        # Only trying tells: permission bits say nothing about read-only systems, quotas or the superuser
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ValueError(
            f"`directory` must be writable: {error.strerror} in {str(nearest)!r}. "
            f"Received: directory={str(directory)!r}"
        ) from error
    return directory
