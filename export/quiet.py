"""Silence for converters that print from C++."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Redirects the file descriptors 1 and 2, and Python's warnings and logs below ERROR, while the block runs.

    The redirection is process-wide, so keep the block as small as the noisy call. What was printed is logged at DEBUG
    level afterwards; exceptions pass through.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    previous = logging.root.manager.disable
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        saved = [(number, os.dup(number)) for number in (1, 2)]
        warnings.simplefilter("ignore")
        logging.disable(max(previous, logging.WARNING))
        try:
            for number, _ in saved:
                os.dup2(sink.fileno(), number)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            logging.disable(previous)
            sink.seek(0)
            logging.getLogger(__name__).debug("Silenced: %s", sink.read().decode(errors="replace"))


@contextlib.contextmanager
def collect_errors(name: str) -> Iterator[list[str]]:
    """Collects the ERROR messages of a logger instead of printing them.

    Args:
        name: str. Name of the logger; its children report to it.
    """
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
