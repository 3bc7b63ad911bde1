"""Which weight has how many bits: one plan for training, export and sizes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np

from zoo.compression.compressed import CompressedModel, Target, current_value, find_targets, select

LEAST, MOST = 1, 16
_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Codes:
    """A weight as integers: `values * scale`.

    Args:
        values: int64 array of the weight's shape, from `-2^(bits - 1)` to `2^(bits - 1) - 1`; with one bit, -1 and 1.
        scale: float32 array that is broadcast to the weight: a scalar, or a scale for each channel.
        bits: int. Width of a value.
        exponential: bool. Whether the values are signed powers of two, and `bits` the width of sign and exponent.
    """

    values: np.ndarray
    scale: np.ndarray
    bits: int
    exponential: bool = False

    def __post_init__(self) -> None:
        if not self._fit():
            raise ValueError(
                f"`values` must fit into {self.bits} bits{' as powers of two' if self.exponential else ''}. "
                f"Received: values from {self.values.min()} to {self.values.max()}"
            )

    def _fit(self) -> bool:
        magnitude = np.abs(self.values)
        if self.exponential:
            whole = (magnitude > 0).all() and (magnitude & (magnitude - 1) == 0).all()
            return bool(whole and np.log2(magnitude).max() < max(2 ** (self.bits - 1), 1))
        if self.bits == 1:
            return bool((magnitude == 1).all())
        return bool((self.values >= -(2 ** (self.bits - 1))).all() and (self.values < 2 ** (self.bits - 1)).all())

    def dequantized(self) -> np.ndarray:
        """Returns the float32 weight."""
        return self.values.astype("float32") * self.scale


class BitPlan(Mapping[str, int]):
    """Ordered patterns of weight paths with bit widths; the first pattern that a path matches counts.

    A plan is a mapping, so that `quantize_aware(model, bits=plan)` takes it.

    Args:
        bits: mapping from `fnmatch` pattern to bits, 1 to 16.

    Raises:
        ValueError: for an empty plan, or bits that are no such number.
    """

    def __init__(self, bits: Mapping[str, int]) -> None:
        for pattern, each in bits.items():
            if isinstance(each, bool) or each not in range(LEAST, MOST + 1):
                raise ValueError(f"`bits` must be from {LEAST} to {MOST}. Received: {each!r} for {pattern!r}")
        if not bits:
            raise ValueError("`bits` must name at least one pattern. Received: none")
        self._bits = {str(pattern): int(each) for pattern, each in bits.items()}

    @classmethod
    def of_model(cls, model: CompressedModel) -> BitPlan:
        """Returns the bit widths that a model was trained with, or has learned: an entry for each weight.

        Raises:
            ValueError: for a model that is not quantised.
        """
        from zoo.compression.mixed_precision_dnn import LearnedBitwidthStage
        from zoo.compression.tfmot import QuantizationStage

        stages = model.stages if isinstance(model, CompressedModel) else []
        for stage in stages:
            if isinstance(stage, LearnedBitwidthStage):
                return cls({_escaped(path): bits for path, bits in stage.weight_bits().items()})
            if isinstance(stage, QuantizationStage):
                patterns = stage.bits if isinstance(stage.bits, Mapping) else {"*": stage.bits}
                paths = [target.path for target in model.targets if stage.transforms(target)]
                return cls({_escaped(path): select(patterns, path) for path in paths})
        raise ValueError(
            f"`model` must come from `learn_bitwidths` or `quantize_aware`. Received: {type(model).__name__}"
        )

    def bits(self, path: str) -> int | None:
        """Returns the bit width of a weight; None for one that the plan leaves in float."""
        return select(self._bits, path)

    def kernels(self, model: keras.Model) -> BitPlan:
        """Returns the plan of a model's kernels alone, with an entry for each, as `quantize_aware` takes it."""
        found = {target.path: self.bits(target.path) for target in _targets(model) if target.kind == "kernel"}
        return BitPlan({_escaped(path): bits for path, bits in found.items() if bits is not None})

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON."""
        Path(path).write_text(self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> BitPlan:
        """Reads a plan that `save` wrote."""
        return cls.from_json(Path(path).read_text())

    def to_json(self) -> str:
        """Returns the plan as JSON, in order."""
        return json.dumps(self._bits, indent=1)

    @classmethod
    def from_json(cls, text: str) -> BitPlan:
        """Returns the plan that `to_json` wrote.

        Raises:
            ValueError: for a text that is no such plan.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"A bit plan must be a JSON object. Received: {type(content).__name__}")
        return cls(content)

    def __getitem__(self, pattern: str) -> int:
        return self._bits[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __repr__(self) -> str:
        return f"BitPlan({self._bits})"


def _escaped(path: str) -> str:
    """Returns the pattern that matches a path only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _targets(model: keras.Model) -> list[Target]:
    return model.targets if isinstance(model, CompressedModel) else find_targets(model)


def _final(model: keras.Model, target: Target) -> np.ndarray:
    value = model.transformed(target) if isinstance(model, CompressedModel) else current_value(target)
    return np.asarray(value, "float32")


# === Integers ===


def integer_weights(model: keras.Model, plan: BitPlan | None = None) -> dict[str, Codes]:
    """Returns the weights of a model as integers, by path.

    A model with learned bit widths has its own. Other weights get the grid of `quantize_aware`: symmetric, with a scale
    for each output channel, which reproduces a model that was trained so exactly and rounds any other.

    Args:
        model: built `keras.Model`.
        plan: `BitPlan`, or None for the model's own.

    Raises:
        ValueError: if there is no plan, it matches nothing, or differs from the bit widths that the model has learned.
    """
    learned = next((s for s in getattr(model, "stages", []) if hasattr(s, "integer_weights")), None)
    plan = BitPlan.of_model(model) if plan is None else plan
    if learned is not None:
        codes = learned.integer_weights(model)
        wrong = [path for path, each in codes.items() if plan.bits(path) != each.bits]
        if wrong:
            raise ValueError(f"`plan` must have the bits that the model has learned. Received: others for {wrong[:3]}")
        return codes
    codes = {}
    for target in _targets(model):
        bits = plan.bits(target.path)
        if bits is not None:
            codes[target.path] = _channel_codes(_final(model, target), target, bits)
    if not codes:
        raise ValueError(f"`plan` must match a weight of the model. Received: {plan}")
    return codes


def _channel_codes(weights: np.ndarray, target: Target, bits: int) -> Codes:
    inputs = tuple(axis for axis in range(weights.ndim) if axis not in target.channel_axes)
    # A vector, such as a bias, has one scale
    inputs = inputs or tuple(range(weights.ndim))
    if bits == 1:
        scale = np.abs(weights).mean(axis=inputs, keepdims=True)
        return Codes(np.where(weights < 0, -1, 1), scale, 1)
    scale = np.abs(weights).max(axis=inputs, keepdims=True) / (2 ** (bits - 1) - 1)
    scale = np.where(scale > 0, scale, 1).astype("float32")
    return Codes(np.round(weights / scale).astype("int64"), scale, bits)


# === Sizes ===


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """How large a model is.

    Args:
        quantized_weights: int. Number of weights that a plan gives bits.
        quantized_bytes: float. The sum of their bits.
        float_bytes: int. Everything else in float32, the moving statistics of normalisations included.
        file_bytes: int or None. Size of an exported file.
    """

    quantized_weights: int
    quantized_bytes: float
    float_bytes: int
    file_bytes: int | None = None

    @property
    def total_bytes(self) -> float:
        """The size that a file should have."""
        return self.quantized_bytes + self.float_bytes

    @property
    def bits_per_weight(self) -> float:
        """Mean bit width of the quantised weights."""
        return 8 * self.quantized_bytes / self.quantized_weights

    @property
    def overhead(self) -> float | None:
        """By which share a file is larger than it should be."""
        return None if self.file_bytes is None else self.file_bytes / self.total_bytes - 1


def size_report(model: keras.Model, plan: BitPlan, file: str | Path | None = None) -> SizeReport:
    """Returns the size that a plan gives a model, beside the size of a file.

    Args:
        model: built `keras.Model`.
        plan: `BitPlan`.
        file: path or None. An exported file.

    Raises:
        ValueError: if the plan matches no weight.
    """
    wrapped = model.model if isinstance(model, CompressedModel) else model
    bits = {id(target.variable): plan.bits(target.path) for target in _targets(model)}
    sizes = {id(variable): math.prod(variable.shape) for variable in wrapped.weights}
    quantized = {key: size for key, size in sizes.items() if bits.get(key) is not None}
    if not quantized:
        raise ValueError(f"`plan` must match a weight of the model. Received: {plan}")
    return SizeReport(
        sum(quantized.values()),
        sum(size * bits[key] for key, size in quantized.items()) / 8,
        _FLOAT_BYTES * sum(size for key, size in sizes.items() if key not in quantized),
        None if file is None else Path(file).stat().st_size,
    )
