"""Example inputs by which activation ranges are measured and compressed artifacts are judged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from zoo.export.errors import ExportError
from zoo.model import Arrays, Signature

LIMIT = 64


class Calibration:
    """Example inputs of each signature, at most `LIMIT` calls each.

    Args:
        model: Keras model. A `zoo.model.ZooModel` brings real inputs itself.
        signatures: dict from name to `zoo.model.Signature`.
        given: None, or an iterable of inputs of the first signature, or a dict of such iterables by signature. An
            input is a dict of arrays, or, for a signature with one input, an array or an `(inputs, targets)` tuple.

    Raises:
        ValueError: for unknown signatures, empty data, or inputs that do not fit.
    """

    def __init__(self, model: keras.Model, signatures: Mapping[str, Signature], given: Any = None):
        if given is not None and not isinstance(given, Mapping):
            given = {next(iter(signatures)): given}
        unknown = sorted(set(given or ()) - set(signatures))
        if unknown:
            raise ValueError(f"`calibration` may name the signatures {list(signatures)}. Received: {unknown}")
        self._model = model
        self._signatures = signatures
        self._given = {name: _read(signatures[name], name, data) for name, data in (given or {}).items()}
        self._real: dict[str, list[Arrays]] = {}

    def real(self, name: str) -> list[Arrays]:
        """Returns the given or recorded inputs of a signature; an empty list where there are none."""
        if name in self._given:
            return self._given[name]
        if name not in self._real:
            self._real[name] = real_inputs(self._model, name, 1, LIMIT)
        return self._real[name]

    def required(self) -> dict[str, list[Arrays]]:
        """Returns real inputs of every signature.

        Raises:
            ExportError: if a signature has none.
        """
        missing = [name for name in self._signatures if not self.real(name)]
        if missing:
            raise ExportError(
                f"int8 measures activation ranges on real inputs, and there are none: pass `calibration=` with a dict "
                f"from signature to inputs, or on the command line `--calibration FILE` with texts. "
                f"Received: no data for {missing}"
            )
        return {name: self.real(name) for name in self._signatures}

    def any(self, name: str) -> list[Arrays]:
        """Returns real inputs of a signature, or random valid ones where there are none."""
        return self.real(name) or [
            dummy_inputs(self._model, name, self._signatures[name], 2, seed) for seed in range(8)
        ]


def real_inputs(model: keras.Model, name: str, batch_size: int, number: int) -> list[Arrays]:
    """Returns inputs of a signature from the data set of a model that has one; an empty list otherwise."""
    if not hasattr(model, "real_inputs") or name not in model.signatures():
        return []
    return list(itertools.islice(model.real_inputs(name, batch_size=batch_size), number))


def dummy_inputs(model: keras.Model, name: str, signature: Signature, batch_size: int, seed: int) -> Arrays:
    """Returns random valid inputs of a signature; the model's own where it has a way to make them."""
    if hasattr(model, "dummy_inputs") and name in model.signatures():
        return model.dummy_inputs(name, batch_size=batch_size, seed=seed)
    rng = np.random.default_rng(seed)
    sizes = {"batch": batch_size, **signature.sizes}
    return {key: spec.draw(rng, sizes) for key, spec in signature.inputs.items()}


def _read(signature: Signature, name: str, data: Iterable[Any]) -> list[Arrays]:
    try:
        items = [signature.check(_named(signature, item)) for item in itertools.islice(data, LIMIT)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"`calibration` of signature {name!r} does not fit: {error}") from error
    if not items:
        raise ValueError(f"`calibration` must hold at least one input. Received: none for signature {name!r}")
    return items


def _named(signature: Signature, item: Any) -> dict[str, Any]:
    if isinstance(item, tuple):
        item = item[0]
    if not isinstance(item, Mapping):
        if len(signature.inputs) != 1:
            raise TypeError(f"expected a dict with {sorted(signature.inputs)}. Received: {type(item).__name__}")
        item = {next(iter(signature.inputs)): item}
    return {key: np.asarray(value) for key, value in item.items()}
