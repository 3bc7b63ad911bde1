"""The command `zoo`. Importing it loads no TensorFlow: the commands that need a model do, when they run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

_GROUPS = ("browsing", "demo", "training", "finetuning", "generation", "exporting", "compression")
_DEBUG = "ZOO_DEBUG"
_EPILOG = (
    "NAME is a method of the catalog (zoo list); DIR is a preset directory, such as `zoo train` writes. "
    "Exit codes: 0 done, 1 failed (verification, gate, download, reading or writing), 2 bad input. "
    f"{_DEBUG}=1 shows the stack trace of an error."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: sequence of str or None. The words after `zoo`; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad input.

    Raises:
        SystemExit: after `--help` and `--version` (code 0) and for words that are no command (code 2).
    """
    # Before TensorFlow is imported, or it fills the terminal with notes on the machine
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow leaves its fastest kernels off on some processors that they suit
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    options = build_parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("zoo: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has enough; Python would complain once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        return _report(error)


def _report(error: Exception) -> int:
    """Writes one line about an error and returns the exit code for it."""
    if os.environ.get(_DEBUG, "0") != "0":
        traceback.print_exception(error)
    line = " ".join(str(error).split()) or type(error).__name__
    sys.stderr.write(f"zoo: error: {line}\n")
    return _exit_code(error)


def _exit_code(error: Exception) -> int:
    from zoo.export import ExportError

    if isinstance(error, FileNotFoundError):
        return 2
    return 1 if isinstance(error, ExportError | OSError | ImportError) else 2


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with all commands; each sets `run`, a callable that takes the parsed options."""
    parser = argparse.ArgumentParser(
        prog="zoo",
        description="A model zoo: list, train, run, export and verify its methods.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in _GROUPS:
        importlib.import_module(f"zoo.cli.{group}").add_commands(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import zoo

        sys.stdout.write(f"zoo {zoo.__version__}\n")
        parser.exit()
