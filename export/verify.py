"""Whether an artifact computes what Keras computes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from zoo.compression.compressed import CompressedModel
from zoo.export.calibration import Calibration, dummy_inputs, real_inputs
from zoo.export.errors import VerificationError
from zoo.export.report import SignatureError
from zoo.model import Arrays, Runner, Signature

TOLERANCE = 1e-4
# For models that round their activations, where a value on the edge of a step may round the other way: the largest
# distance from Keras over all examples, relative to the size of the outputs.
ROUNDED_TOLERANCE = 0.1
BATCHES = (1, 3)
_REAL_CALLS = 2


def keras_runner(signatures: Mapping[str, Signature], traced: bool = False) -> Runner:
    """Runs signatures in Keras itself: the reference.

    Args:
        signatures: dict from name to `zoo.model.Signature`.
        traced: bool. Whether to compile them, for speed. The eager reference also sees what tracing got wrong.
    """
    functions = {
        name: tf.function(item.function, autograph=False, reduce_retracing=True) if traced else item.function
        for name, item in signatures.items()
    }

    def run(name: str, inputs: Arrays) -> Arrays:
        outputs = functions[name](**{key: tf.constant(value) for key, value in inputs.items()})
        return {key: np.asarray(value) for key, value in outputs.items()}

    return run


class Reference:
    """Example calls of every signature with what Keras answers.

    Args:
        model: Keras model.
        signatures: dict from name to `zoo.model.Signature`.
        calibration: `Calibration`. Its real inputs are used as well as random ones.
    """

    def __init__(self, model: keras.Model, signatures: Mapping[str, Signature], calibration: Calibration):
        run = keras_runner(signatures)
        self.calls: dict[str, list[tuple[Arrays, Arrays]]] = {
            name: [(inputs, run(name, inputs)) for inputs in _examples(model, name, signature, calibration)]
            for name, signature in signatures.items()
        }
        self._rounds = _rounds_activations(model)
        # A compressed artifact is measured on real inputs where there are any: random ones lie outside of the ranges
        # it was made for, and need only run.
        self._measured = {name: calls[len(BATCHES) :] or calls for name, calls in self.calls.items()}

    def compare(self, artifact: str, run: Runner, tolerance: float | None) -> dict[str, SignatureError]:
        """Runs an artifact on every example.

        Args:
            artifact: str. Its name in messages.
            run: `Runner` of the artifact.
            tolerance: float or None. Largest difference, relative to `max(1, largest value of the output)`; `None`
                measures only, on real inputs where there are any, but still refuses wrong names, shapes, types and
                non-finite values. A model that rounds its activations is held to `ROUNDED_TOLERANCE` instead.

        Returns:
            Dict from signature to the worst `SignatureError`.

        Raises:
            VerificationError: naming artifact, signature, output, index and both values.
        """
        return {name: self._compare(artifact, name, run, tolerance) for name in self.calls}

    def _compare(self, artifact: str, name: str, run: Runner, tolerance: float | None) -> SignatureError:
        errors, pairs = [], []
        for call in self.calls[name]:
            inputs, expected = call
            where = f"{artifact}, signature {name!r}, inputs { ({key: value.shape for key, value in inputs.items()}) }"
            received = _run(where, run, name, inputs)
            error = compare_outputs(where, expected, received, None if self._rounds else tolerance)
            if tolerance is not None or any(call is measured for measured in self._measured[name]):
                errors.append(error)
            pairs.append((expected, received))
        if tolerance is not None and self._rounds:
            _check_rounded(f"{artifact}, signature {name!r}", pairs)
        return functools.reduce(_worse, errors)


def _rounds_activations(model: keras.Model) -> bool:
    return isinstance(model, CompressedModel) and any(stage.deployment() is not None for stage in model.stages)


def _check_rounded(where: str, pairs: Sequence[tuple[Arrays, Arrays]]) -> None:
    distance = relative_distance(pairs)
    # Written so that NaN fails.
    if not distance <= ROUNDED_TOLERANCE:
        raise VerificationError(
            f"{where}: outputs are {distance:.3g} away from Keras, relative to their size, where activations that round "
            f"the other way may make {ROUNDED_TOLERANCE}. Received: {distance:.3g}"
        )


def _examples(model: keras.Model, name: str, signature: Signature, calibration: Calibration) -> Iterator[Arrays]:
    for seed, batch_size in enumerate(BATCHES):
        yield dummy_inputs(model, name, signature, batch_size, seed)
    yield from calibration.real(name)[:_REAL_CALLS]
    yield from real_inputs(model, name, BATCHES[-1], _REAL_CALLS)


def _run(where: str, run: Runner, name: str, inputs: Arrays) -> Arrays:
    try:
        return run(name, inputs)
    except Exception as error:  # every runtime raises its own kinds
        raise VerificationError(f"{where}: the runtime failed. Received: {type(error).__name__}: {error}") from error


def _worse(first: SignatureError, second: SignatureError) -> SignatureError:
    worst = second if second.max_relative > first.max_relative else first
    return dataclasses.replace(worst, max_absolute=max(first.max_absolute, second.max_absolute))


def compare_outputs(where: str, expected: Arrays, received: Arrays, tolerance: float | None) -> SignatureError:
    """Compares the outputs of one call.

    Integers and booleans must be equal when there is a tolerance. NaN and infinities must stand where Keras has them.

    Args:
        where: str. Beginning of messages.
        expected: Keras's outputs.
        received: the artifact's.
        tolerance: float or None, see `Reference.compare`.

    Raises:
        VerificationError: if they differ by more than that.
    """
    if set(expected) != set(received):
        raise VerificationError(f"{where}: expected the outputs {sorted(expected)}. Received: {sorted(received)}")
    errors = []
    for name, wanted in expected.items():
        error = _compare_one(f"{where}, output {name!r}", name, wanted, received[name])
        limit = tolerance if wanted.dtype.kind == "f" else 0.0
        if tolerance is not None and error.max_relative > limit:
            raise VerificationError(
                f"{where}, output {name!r} at index {error.index}: Keras gives {error.expected:.9g} and the artifact "
                f"{error.received:.9g}; the largest error is {error.max_absolute:.3g}, relative to the output's scale "
                f"{error.max_relative:.3g} where {limit:.3g} is allowed. Received: {error.received:.9g}"
            )
        errors.append(error)
    return functools.reduce(_worse, errors)


def _compare_one(where: str, name: str, wanted: np.ndarray, got: np.ndarray) -> SignatureError:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise VerificationError(
            f"{where}: expected shape {wanted.shape} and dtype {wanted.dtype}. "
            f"Received: shape={got.shape}, dtype={got.dtype}"
        )
    wide, other = wanted.astype(np.float64), got.astype(np.float64)
    agree = np.isfinite(wide) & np.isfinite(other)
    # Two NaNs, or two infinities of the same sign, agree.
    odd = ~agree & ~((np.isnan(wide) & np.isnan(other)) | (wide == other))
    if odd.any():
        index = tuple(int(axis) for axis in np.argwhere(odd)[0])
        raise VerificationError(
            f"{where} at index {index}: Keras gives {wide[index]}, the artifact another non-finite value "
            f"({int(odd.sum())} such values). Received: {other[index]}"
        )
    difference = np.where(agree, np.abs(np.where(agree, wide, 0) - np.where(agree, other, 0)), 0.0)
    if not difference.size:
        return SignatureError(0.0, 0.0, name, (), 0.0, 0.0)
    scale = max(1.0, float(np.abs(wide[agree]).max(initial=0.0))) if wanted.dtype.kind == "f" else 1.0
    index = tuple(int(axis) for axis in np.unravel_index(int(difference.argmax()), difference.shape))
    largest = float(difference[index])
    return SignatureError(largest, largest / scale, name, index, float(wide[index]), float(other[index]))


def relative_distance(pairs: Sequence[tuple[Arrays, Arrays]]) -> float:
    """Returns the largest, over outputs, of `|received - expected| / |expected|` in the L2 norm over all calls.

    Integers and booleans count as the share of values that differ.

    Args:
        pairs: sequence of the outputs of a call, expected and received.
    """
    errors = []
    for name in pairs[0][0]:
        wanted = np.concatenate([np.ravel(expected[name]) for expected, _ in pairs])
        got = np.concatenate([np.ravel(received[name]) for _, received in pairs])
        if wanted.dtype.kind != "f":
            errors.append(float(np.mean(wanted != got)))
            continue
        known = np.isfinite(wanted)
        size = float(np.linalg.norm(wanted[known].astype(np.float64)))
        distance = float(np.linalg.norm((got[known] - wanted[known]).astype(np.float64)))
        errors.append(distance / size if size else distance)
    # Not max(): it may drop NaN.
    return float(np.max(errors))
