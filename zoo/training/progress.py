"""What a person sees of a training: a bar over all steps, and one line per epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress(keras.callbacks.Callback):
    """Shows the progress of `fit` on a console; a context manager, so that an error leaves the terminal in order.

    On a terminal a bar runs over the steps, with loss and metrics of the running epoch. Everywhere each finished epoch
    adds a line.

    Args:
        console: `rich.console.Console`.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, metrics="")
        self._epoch_start = 0.0

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Sets the bar to the epoch, which is not the first one of a resumed training."""
        self._epoch_start = time.monotonic()
        epochs, steps = self.params["epochs"], self.params["steps"]
        total = steps * epochs if steps else None
        self._bar.update(
            self._task, description=f"epoch {epoch + 1}/{epochs}", total=total, completed=epoch * (steps or 0)
        )

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Moves the bar."""
        self._bar.update(self._task, advance=1, metrics=_format(logs))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the line of the epoch."""
        seconds = time.monotonic() - self._epoch_start
        line = f"epoch {epoch + 1}/{self.params['epochs']}  {_format(logs)}  {seconds:.0f} s"
        self._console.print(line, soft_wrap=True)


def _format(logs: Mapping[str, Any] | None) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
