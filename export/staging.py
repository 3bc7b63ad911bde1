"""Output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zoo.export.report import FileRecord
from zoo.files import sha256


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yields an empty directory beside `target`, and removes it, with every parent it had to make, on any failure.

    Args:
        target: path that will be written when the block is done; the block itself moves the content there.

    Raises:
        ValueError: if nothing can be written beside `target`.
    """
    made: list[Path] = []
    try:
        try:
            _make_parents(target.parent, made)
            directory = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        except OSError as error:
            raise ValueError(
                f"The output directory cannot be written ({error.strerror}). Received: {str(target)!r}"
            ) from error
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except BaseException:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _make_parents(directory: Path, made: list[Path]) -> None:
    missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir()
        made.append(parent)


def records(root: Path, paths: list[Path]) -> dict[str, FileRecord]:
    """Returns hash and size of files, and of all files in directories, keyed by their path below `root`."""
    files = [child for path in paths for child in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return {str(file.relative_to(root).as_posix()): record(file) for file in files if file.is_file()}


def record(path: Path) -> FileRecord:
    """Returns the hash and size of a file."""
    return FileRecord(sha256(path), path.stat().st_size)
