"""What the signatures of every method must do: `SIGNATURE_CHECKS`, each a function of a `Subject` that raises."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from conformance.checks import same
from conformance.subject import Subject, values

from zoo.model import Arrays, Signature, Spec

VERBS = (
    "predict", "encode", "decode", "reconstruct", "sample", "log_prob", "step", "adapt", "generate", "compress",
    "interpolate",
    "score", "estimate", "encode_context", "discriminate",
)  # fmt: skip
DTYPES = ("float32", "int32", "bool")
# Largest difference between a row alone and in a batch, relative to the output's scale: sums in another order.
BATCH_TOLERANCE = 1e-5
JIT_TOLERANCE = 1e-4


# === Declarations ===


def check_signature_names(subject: Subject) -> None:
    """Signatures are called by the verbs of the catalog; names and meanings are there; the batch is first and dynamic."""
    for name, signature in subject.signatures.items():
        assert name in VERBS, f"A signature must be called one of {VERBS}. Received: {name!r}"
        assert signature.inputs and signature.outputs, f"{name!r} must declare inputs and outputs"
        shared = sorted(set(signature.inputs) & set(signature.outputs))
        assert not shared, f"An input and an output of {name!r} share a name: {shared}"
        for key, text in signature.outputs.items():
            assert key.isidentifier() and text, f"Output {key!r} of {name!r} must be an identifier with a meaning"
        for key, spec in signature.inputs.items():
            _check_spec(f"{key!r} of {name!r}", key, spec)
        batched = [key for key, spec in signature.inputs.items() if spec.shape[:1] == ("batch",)]
        assert batched, f"No input of {name!r} has 'batch' as its first dimension: {signature.inputs}"
        dynamic = {size for spec in signature.inputs.values() for size in spec.shape if isinstance(size, str)}
        unknown = sorted(dynamic - {"batch"} - set(signature.sizes))
        assert not unknown, f"{name!r} gives no example size of the dimensions {unknown}"


def _check_spec(what: str, key: str, spec: Spec) -> None:
    assert key.isidentifier() and spec.description, f"Input {what} must be an identifier with a meaning"
    assert spec.dtype in DTYPES, f"Input {what} must be of one of {DTYPES}. Received: {spec.dtype!r}"
    assert "batch" not in spec.shape[1:], f"Input {what} must have 'batch' first. Received: {spec.shape}"


def check_outputs(subject: Subject) -> None:
    """A signature returns exactly what it declares, a row for every row of the batch, at any batch size."""
    for batch_size in (1, 3):
        for name, inputs in subject.examples(batch_size):
            declared = set(subject.signatures[name].outputs)
            outputs = subject.model.run(name, **inputs)
            assert set(outputs) == declared, f"{name!r} declares {sorted(declared)}. Received: {sorted(outputs)}"
            for key, value in outputs.items():
                what = f"Output {key!r} of {name!r}"
                assert value.dtype.name in DTYPES, f"{what} must be of one of {DTYPES}. Received: {value.dtype}"
                assert value.shape[:1] == (batch_size,), f"{what} must have {batch_size} rows. Received: {value.shape}"
                _check_carried(what, key, value, inputs)


def _check_carried(what: str, key: str, value: np.ndarray, inputs: Arrays) -> None:
    """Holds state that comes out against what goes in at the next call."""
    state = inputs.get(key.removesuffix("_out")) if key.endswith("_out") else None
    if state is not None:
        fits = (value.shape, value.dtype) == (state.shape, state.dtype)
        assert fits, (
            f"{what} must be of {state.dtype} {state.shape} to go in again. Received: {value.dtype} {value.shape}"
        )


# === Values ===


def check_finite(subject: Subject) -> None:
    """Valid inputs give finite outputs: random ones, the ends of the valid range, and recorded real ones."""
    for name, signature in subject.signatures.items():
        for what, inputs in _telling_inputs(subject, name, signature):
            for key, value in subject.model.run(name, **inputs).items():
                bad = int((~np.isfinite(value)).sum())
                assert not bad, f"{bad} values of {key!r} of {name!r} are NaN or infinite on {what} inputs"


def _telling_inputs(subject: Subject, name: str, signature: Signature) -> Iterator[tuple[str, Arrays]]:
    drawn = subject.model.dummy_inputs(name, batch_size=2)
    yield "random", drawn
    for end in ("minimum", "maximum"):
        limits = {key: getattr(spec, end) for key, spec in signature.inputs.items()}
        yield (
            end,
            {key: value if limits[key] is None else np.full_like(value, limits[key]) for key, value in drawn.items()},
        )
    yield "zero", {key: _nearest_to_zero(signature.inputs[key], value) for key, value in drawn.items()}
    for inputs in itertools.islice(subject.model.real_inputs(name, batch_size=2), 2):
        yield "real", inputs


def _nearest_to_zero(spec: Spec, value: np.ndarray) -> np.ndarray:
    low, high = (-np.inf if spec.minimum is None else spec.minimum), (np.inf if spec.maximum is None else spec.maximum)
    return np.full_like(value, min(max(0, low), high))


def check_batch_independence(subject: Subject) -> None:
    """A row's outputs do not depend on the other rows of its batch."""
    for name, inputs in subject.examples(3):
        together = subject.model.run(name, **inputs)
        batched = {key for key, spec in subject.signatures[name].inputs.items() if spec.shape[:1] == ("batch",)}
        for row in range(3):
            chosen = {key: value[row : row + 1] if key in batched else value for key, value in inputs.items()}
            for key, alone in subject.model.run(name, **chosen).items():
                error = relative_error(together[key][row : row + 1], alone)
                assert error <= BATCH_TOLERANCE, (
                    f"Row {row} of {key!r} of {name!r} depends on the other rows. Received: a relative error of {error:.2g}"
                )


def relative_error(wanted: np.ndarray, found: np.ndarray) -> float:
    """Returns the largest difference, relative to `max(1, largest value)`; infinite for other shapes or any NaN."""
    if wanted.shape != found.shape:
        return np.inf
    difference = np.abs(wanted.astype("float64") - found)
    if not np.isfinite(difference).all():
        return np.inf
    return float(difference.max(initial=0.0) / max(1.0, np.abs(wanted).max(initial=0.0)))


def check_purity(subject: Subject) -> None:
    """A signature is a function of its inputs: nothing is remembered from call to call, no variable changes."""
    before = values(subject.model)
    for name, inputs in subject.examples(3):
        first = subject.model.run(name, **inputs)
        subject.model.run(name, **subject.model.dummy_inputs(name, batch_size=3, seed=99))
        for _ in range(2):
            again = subject.model.run(name, **inputs)
            assert same(first, again), f"{name!r} gives other outputs when called again with the same inputs"
    after = values(subject.model)
    changed = sum(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not changed, f"Calling the signatures changed {changed} variables of the model"


def check_jit_compile(subject: Subject) -> None:
    """XLA gives the eager outputs of the main signature; operations that XLA does not have may keep it from compiling."""
    name, inputs = next(subject.examples())
    compiled = tf.function(subject.signatures[name].function, jit_compile=True, autograph=False)
    try:
        outputs = compiled(**{key: tf.constant(value) for key, value in inputs.items()})
    except tf.errors.InvalidArgumentError as error:
        assert "unsupported operations" in str(error), f"XLA fails on {name!r}: {error}"
        return
    for key, value in subject.model.run(name, **inputs).items():
        error = relative_error(value, outputs[key].numpy())
        assert error <= JIT_TOLERANCE, f"XLA's {key!r} of {name!r} has a relative error of {error:.2g}"


# === Errors ===


def check_bad_inputs(subject: Subject) -> None:
    """Each kind of bad input gets an error that names the input."""
    for name, signature in subject.signatures.items():
        valid = subject.model.dummy_inputs(name, batch_size=2)
        for key, spec in signature.inputs.items():
            for what, value in _bad_values(signature, key, spec, valid[key]):
                _expect_error(subject, name, key, what, {**valid, key: value})
            _expect_error(subject, name, key, "missing", {other: valid[other] for other in valid if other != key})
        _expect_error(subject, name, "not_an_input", "unknown", {**valid, "not_an_input": np.zeros(1, "float32")})


def _bad_values(signature: Signature, key: str, spec: Spec, value: np.ndarray) -> Iterator[tuple[str, Any]]:
    yield "of a higher rank", value[None]
    yield "of a wrong dtype", np.full(value.shape, "text") if spec.dtype == "float32" else value.astype("float32") + 0.5
    if spec.shape:
        yield "of a lower rank", value[0]
        yield "empty", value[:0]
    for axis, size in enumerate(spec.shape):
        if isinstance(size, int):
            yield f"of a wrong size along axis {axis}", np.repeat(value, 2, axis=axis)
        elif size in signature.maximum_sizes:
            times = signature.maximum_sizes[size] // value.shape[axis] + 1
            yield "too long", np.concatenate([value] * times, axis=axis)
    if spec.dtype == "float32":
        yield "NaN", _with_one(value, np.nan)
        yield "infinite", _with_one(value, np.inf)
    if spec.minimum is not None:
        yield "too small", _with_one(value, spec.minimum - 1)
    if spec.maximum is not None:
        yield "too large", _with_one(value, spec.maximum + 1)


def _with_one(value: np.ndarray, entry: float) -> np.ndarray:
    changed = np.array(value)
    changed.flat[changed.size - 1] = entry
    return changed


def _expect_error(subject: Subject, name: str, key: str, what: str, inputs: Arrays) -> None:
    try:
        subject.model.run(name, **inputs)
    except (ValueError, TypeError) as error:
        named = f"`{key}`" in str(error) or f"'{key}'" in str(error)
        assert named, f"{key!r} of {name!r}, {what}: the error must name it. Received: {error}"
        assert "Received: " in str(error), f"{key!r} of {name!r}, {what}: must say what came. Received: {error}"
        return
    raise AssertionError(f"{key!r} of {name!r} is accepted although {what}")


SIGNATURE_CHECKS = (
    check_signature_names,
    check_outputs,
    check_finite,
    check_batch_independence,
    check_purity,
    check_jit_compile,
    check_bad_inputs,
)
