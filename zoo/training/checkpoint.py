"""Checkpoints of a running training: everything that the next step depends on, in one file written atomically."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from zoo.files import atomic_file


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the state of a training between epochs and takes it up again.

    The file holds weights, optimiser moments, random-generator states, the carried stream state, the metric history and
    the best weights so far. Data sets must be endless and repeatable, since a resumed run skips what was read.

    Args:
        path: path of the file, or None to keep the best weights and write no file.
        monitor: str. Validation metric whose smallest value marks the best weights.
        minutes: float. Least time between two files; the last epoch is always saved.
        settings: JSON-able dict that a resumed run must share, such as the seed.
        higher_is_better: bool. Whether the largest value marks the best weights instead.
    """

    def __init__(
        self,
        path: str | Path | None,
        monitor: str,
        minutes: float = 5.0,
        settings: Any = None,
        higher_is_better: bool = False,
    ) -> None:
        super().__init__()
        self.path = None if path is None else Path(path)
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.minutes = minutes
        self.settings = settings
        self.history: list[dict[str, float]] = []
        self.best_value = float("inf")
        self.best_weights: list[np.ndarray] = []
        self._saved_at = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Records metrics and best weights, and saves when it is time."""
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if self.monitor not in logs:
            raise ValueError(f"`monitor` must be one of {sorted(logs)}. Received: monitor={self.monitor!r}")
        self.history.append(logs)
        value = -logs[self.monitor] if self.higher_is_better else logs[self.monitor]
        if value < self.best_value:
            self.best_value = value
            self.best_weights = self.model.get_weights()
        last = epoch + 1 == self.params["epochs"]
        if last or time.monotonic() - self._saved_at >= 60 * self.minutes:
            self.save()
            self._saved_at = time.monotonic()

    @property
    def exists(self) -> bool:
        """Whether there is a file to go on from."""
        return self.path is not None and self.path.exists()

    def save(self) -> None:
        """Writes the file, where there is to be one."""
        if self.path is None:
            return
        arrays = {f"variable_{i}": np.asarray(v) for i, v in enumerate(self._variables())}
        arrays |= {f"best_{i}": value for i, value in enumerate(self.best_weights)}
        arrays |= {f"stream_{i}": v.numpy() for i, v in enumerate(getattr(self.model, "stream_variables", []))}
        progress = {"history": self.history, "best_value": self.best_value, "settings": self.settings}
        arrays["progress"] = np.frombuffer(json.dumps(progress).encode(), "uint8")
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        with atomic_file(self.path) as file:
            file.write_bytes(buffer.getvalue())

    def restore(self, model: keras.Model) -> int:
        """Puts a model back into the saved state.

        Args:
            model: `keras.Model`, built and compiled as the saved one was.

        Returns:
            The number of epochs that are done.

        Raises:
            FileNotFoundError: if there is no file.
            ValueError: if the file is damaged or belongs to another model or other settings.
        """
        self.set_model(model)
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = dict(file)
            progress = json.loads(arrays.pop("progress").tobytes())
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib, NumPy and JSON each raise their own
            raise ValueError(f"Damaged training checkpoint: {error}. Received: {self.path}") from error
        saved, own = progress["settings"], json.loads(json.dumps(self.settings))
        if saved != own:
            saved, own = _differing(saved, own)
            raise ValueError(f"The checkpoint was made with other settings: {saved}. Received: {own}")
        self._assign(arrays)
        self.history = progress["history"]
        self.best_value = progress["best_value"]
        return len(self.history)

    def _variables(self) -> list[Any]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def _assign(self, arrays: dict[str, np.ndarray]) -> None:
        variables = self._variables()
        saved = _numbered(arrays, "variable")
        if [v.shape for v in variables] != [value.shape for value in saved]:
            raise ValueError(f"The checkpoint belongs to a model of other shapes. Received: {self.path}")
        for variable, value in zip(variables, saved, strict=True):
            variable.assign(value)
        self.best_weights = _numbered(arrays, "best")
        if stream := _numbered(arrays, "stream"):
            self.model.restore_stream(stream)


def _differing(saved: Any, own: Any) -> tuple[Any, Any]:
    """Returns two settings without what is the same in both."""
    if not (isinstance(saved, dict) and isinstance(own, dict)):
        return saved, own
    names = [name for name in {**saved, **own} if saved.get(name) != own.get(name)]
    parts = {name: _differing(saved.get(name), own.get(name)) for name in names}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def _numbered(arrays: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    count = sum(name.startswith(f"{prefix}_") for name in arrays)
    return [arrays[f"{prefix}_{i}"] for i in range(count)]
