"""Bit-packed networks: one bit a weight in the file, xnor and popcount for the arithmetic, without TensorFlow.

`pack` takes a trained `RealToBinaryNet` apart: kernels become words of 64 weights; batch normalisation before a sign
becomes one threshold a channel, exact to the last bit; the gate reads the mean of the features, with which the
normalisation commutes. All else stays float32 and runs in NumPy.

    sign(BN(x)) = +1  <=>  x >= mu - beta sigma / gamma   (<= for gamma < 0)

The file is a hash, a JSON header and raw little-endian numbers; reading it runs no code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from zoo.files import atomic_file

if TYPE_CHECKING:
    from zoo.compression.real_to_binary import RealToBinaryNet

ENGINES = ("numba", "numpy")
WORD = 64
_MAGIC = b"ZOOBITS1"
_HASH, _LENGTH = 32, 8
_MAXIMUM_HEADER = 1 << 20
_MAXIMUM_FILE = 1 << 30
_DTYPES = {"float32": "<f4", "uint64": "<u8", "bool": "|b1"}
# Filters that NumPy counts at once: bounds its scratch memory
_CHUNK = 32


# === Bits ===


def num_words(channels: int) -> int:
    """Returns how many words hold one bit of every channel."""
    return -(-channels // WORD)


def pack_signs(positive: np.ndarray) -> np.ndarray:
    """Packs booleans along the last axis, the first into the lowest bit.

    Args:
        positive: bool array `(..., channels)`.

    Returns:
        uint64 array `(..., words)`; bits beyond the channels are 0.
    """
    channels = positive.shape[-1]
    padding = [(0, 0)] * (positive.ndim - 1) + [(0, num_words(channels) * WORD - channels)]
    packed = np.packbits(np.pad(positive, padding), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").astype(np.uint64)


def unpack_signs(bits: np.ndarray, channels: int) -> np.ndarray:
    """Returns the booleans `(..., channels)` that `pack_signs` packed."""
    octets = np.ascontiguousarray(bits.astype("<u8")).view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=channels, bitorder="little").astype(bool)


def pack_kernel(kernel: np.ndarray) -> np.ndarray:
    """Packs the signs of a convolution kernel.

    Args:
        kernel: float array `(size, size, channels, filters)`; 0 counts as positive.

    Returns:
        uint64 array `(size * size, words, filters)`.
    """
    size, _, channels, filters = kernel.shape
    positive = (kernel >= 0).reshape(size * size, channels, filters)
    return np.ascontiguousarray(pack_signs(positive.transpose(0, 2, 1)).transpose(0, 2, 1))


def fold_threshold(scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where `x * scale + offset`, computed in float32, stops being negative.

    The threshold `-offset / scale` is refined over neighbouring float32 numbers until the comparison agrees with the
    rounded sum for every `x`: rounding is monotone, so that there is one such place.

    Args:
        scale: float32 array `(channels,)`.
        offset: float32 array `(channels,)`.

    Returns:
        float32 thresholds, infinite where the sign never changes, and bools: whether the sign is + below the threshold.
    """
    scale, offset = np.float32(scale), np.float32(offset)
    flipped = scale < 0
    # Numbers in order: search the ranks of float32, for the first one that is positive where the order is reversed
    low = np.full(scale.shape, _rank(np.float32(-np.inf)), np.int64)
    high = np.full(scale.shape, _rank(np.float32(np.inf)), np.int64)
    while (high - low > 1).any():
        middle = (low + high) // 2
        reached = _is_positive(_unrank(middle), scale, offset) != flipped
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    # `high` is the first positive number, or of a falling line the first negative one
    threshold = _unrank(np.where(flipped, low, high))
    never = scale == 0
    threshold = np.where(never, np.where(offset >= 0, -np.inf, np.inf), threshold)
    return threshold.astype(np.float32), flipped


def _is_positive(x: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return x * scale + offset >= 0


def _rank(value: np.ndarray) -> np.ndarray:
    bits = np.asarray(value, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _unrank(rank: np.ndarray) -> np.ndarray:
    bits = np.where(rank < 0, -rank | 0x80000000, rank)
    return bits.astype(np.uint32).view(np.float32)


# === Convolution ===


def xnor_convolution(
    bits: np.ndarray,
    kernel: np.ndarray,
    channels: int,
    strides: int = 1,
    padding_value: int = 0,
    engine: Literal["numba", "numpy"] = "numba",
) -> np.ndarray:
    """Convolves packed signs with packed kernels, with `"same"` padding: `n - 2 popcount(x xor w)`.

    Args:
        bits: uint64 array `(batch, height, width, words)`.
        kernel: uint64 array `(size * size, words, filters)`.
        channels: int. Channels of the input.
        strides: int.
        padding_value: int. 0 or 1: what lies outside of the image.
        engine: str. `"numba"`, or `"numpy"`, which is slower and needs nothing else.

    Returns:
        int32 array `(batch, ceil(height / strides), ceil(width / strides), filters)`, exact.

    Raises:
        ValueError: for another engine or padding value, or shapes that do not fit.
        ImportError: for `"numba"` where it is not installed.
    """
    _check_engine(engine)
    if padding_value not in (0, 1):
        raise ValueError(f"`padding_value` must be 0 or 1. Received: padding_value={padding_value}")
    if strides < 1:
        raise ValueError(f"`strides` must be at least 1. Received: strides={strides}")
    size = math.isqrt(kernel.shape[0])
    fits = bits.ndim == 4 and kernel.ndim == 3 and size**2 == kernel.shape[0]
    if not fits or not bits.shape[3] == kernel.shape[1] == num_words(channels):
        raise ValueError(
            f"`bits` (batch, height, width, words) and `kernel` (taps, words, filters) must fit {channels} channels. "
            f"Received: {bits.shape} and {kernel.shape}"
        )
    padding = [same_padding(length, size, strides) for length in bits.shape[1:3]]
    if engine == "numpy":
        return _numpy_convolution(bits, kernel, channels, strides, padding, padding_value)
    shape = (bits.shape[0], *(-(-length // strides) for length in bits.shape[1:3]), kernel.shape[2])
    sums = np.empty(shape, np.int32)
    geometry = (size, strides, padding[0][0], padding[1][0], padding_value, channels)
    _kernels().xnor_convolution(bits, kernel, _ones(channels), geometry, sums)
    return sums


def _numpy_convolution(
    bits: np.ndarray, kernel: np.ndarray, channels: int, strides: int, padding: list[tuple[int, int]], value: int
) -> np.ndarray:
    size = math.isqrt(kernel.shape[0])
    (top, bottom), (left, right) = padding
    batch, height, width, _ = bits.shape
    padded = np.tile(_ones(channels), (batch, top + height + bottom, left + width + right, 1))
    padded[:, top : top + height, left : left + width] = bits
    words = _windows(padded, size, strides)
    sums = np.empty((*words.shape[:3], kernel.shape[2]), np.int32)
    for start in range(0, kernel.shape[2], _CHUNK):
        chosen = kernel.reshape(-1, kernel.shape[2]).T[start : start + _CHUNK]
        differing = np.bitwise_count(words[..., None, :] ^ chosen).sum(axis=-1, dtype=np.int32)
        sums[..., start : start + _CHUNK] = size * size * channels - 2 * differing
    if value == 0:
        # What the ones outside have added: the sum of the weights that lie there
        outside = np.ones((1, *padded.shape[1:3], 1), np.int32)
        outside[:, top : top + height, left : left + width] = 0
        weights = 2 * np.bitwise_count(kernel).sum(axis=1, dtype=np.int32) - channels
        sums -= _windows(outside, size, strides) @ weights
    return sums


def _windows(values: np.ndarray, size: int, strides: int) -> np.ndarray:
    """Returns `(batch, output height, output width, taps * channels)`."""
    views = np.lib.stride_tricks.sliding_window_view(values, (size, size), axis=(1, 2))[:, ::strides, ::strides]
    return views.transpose(0, 1, 2, 4, 5, 3).reshape(*views.shape[:3], -1)


def same_padding(size: int, kernel_size: int, strides: int) -> tuple[int, int]:
    """Returns how many places `"same"` padding adds before and after an axis."""
    total = max((-(-size // strides) - 1) * strides + kernel_size - size, 0)
    return total // 2, total - total // 2


def _ones(channels: int) -> np.ndarray:
    words = np.full(num_words(channels), np.iinfo(np.uint64).max, np.uint64)
    words[-1] >>= np.uint64(WORD * len(words) - channels)
    return words


def default_engine() -> str:
    """Returns `"numba"` where that is installed, else `"numpy"`."""
    return "numba" if importlib.util.find_spec("numba") else "numpy"


def _check_engine(engine: str) -> None:
    if engine not in ENGINES:
        raise ValueError(f"`engine` must be one of {ENGINES}. Received: engine={engine!r}")


def _kernels() -> ModuleType:
    try:
        return importlib.import_module("zoo.compression.xnor_kernels")
    except ImportError as error:
        raise ImportError(
            "The compiled kernels need numba: pip install 'method-zoo[binary]'; engine='numpy' runs without. "
            f"Received: {error}"
        ) from error


# === The packed network ===


class PackedModel:
    """A packed `RealToBinaryNet`.

    Args:
        config: dict. What the arrays mean: `stem`, `padding_value`, sizes, and a list of half blocks.
        arrays: dict from name to array.
        engine: str. `"numba"` or `"numpy"`.

    Raises:
        ValueError: for arrays that are not those of `config`, or an unknown engine.

    Example:

    ```python
    packed = pack(zoo.get("real_to_binary"))
    logits = packed.predict(images)
    packed.save("fashion.bits")
    packed = PackedModel.load("fashion.bits")
    ```
    """

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], engine: str = "numba") -> None:
        _check_engine(engine)
        self.config = dict(config)
        self.arrays = dict(arrays)
        self.engine = engine
        expected = _expected(_checked(self.config))
        found = {name: (str(value.dtype), value.shape) for name, value in self.arrays.items()}
        if found != expected:
            wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
            raise ValueError(f"`arrays` must be those that `config` says. Received: other ones in {wrong[:5]}")
        self._parts: list[dict[str, np.ndarray]] = [{} for _ in self.config["halves"]]
        for name, value in self.arrays.items():
            place, _, own = name.partition("/")
            if place.startswith("half_"):
                self._parts[int(place.removeprefix("half_"))][own] = value

    def predict(self, image: Any) -> np.ndarray:
        """Returns logits.

        Args:
            image: array-like `(batch, image_size, image_size, num_channels)` in [0, 1].

        Returns:
            float32 array `(batch, num_classes)`.

        Raises:
            ValueError: for another shape, NaN, or values out of [0, 1].
        """
        image = np.asarray(image, np.float32)
        wanted = (self.config["image_size"], self.config["image_size"], self.config["num_channels"])
        if image.ndim != 4 or image.shape[1:] != wanted or len(image) == 0:
            raise ValueError(f"`image` must have shape (batch, *{wanted}). Received: shape={image.shape}")
        if not ((image >= 0) & (image <= 1)).all():
            raise ValueError(f"`image` must be in [0, 1]. Received: values from {image.min()} to {image.max()}")
        x = self._stem(image)
        for index in range(len(self.config["halves"])):
            x = self._half(index, x)
        return x.mean(axis=(1, 2)) @ self.arrays["classifier/kernel"] + self.arrays["classifier/bias"]

    def _stem(self, image: np.ndarray) -> np.ndarray:
        size, strides = _STEMS[self.config["stem"]]
        kernel = self.arrays["stem/kernel"]
        x = _windows(_pad(image, size, strides, 0.0), size, strides) @ kernel.reshape(-1, kernel.shape[-1])
        x = _prelu(x * self.arrays["stem/scale"] + self.arrays["stem/offset"], self.arrays["stem/slope"])
        return _max_pool(x) if self.config["stem"] == "imagenet" else x

    def sums(self, index: int, x: np.ndarray) -> np.ndarray:
        """Returns what the binary convolution of a half block gives, before any scale.

        Args:
            index: int. Which half block.
            x: float32 array `(batch, height, width, channels)`: the input of the half block.

        Returns:
            int32 array `(batch, height / strides, width / strides, filters)`, exact.
        """
        half, part = self.config["halves"][index], self._parts[index]
        bits = self._bits(x, part["threshold"], part["flipped"])
        padding_value = self.config["padding_value"]
        return xnor_convolution(bits, part["kernel"], x.shape[-1], half["strides"], padding_value, self.engine)

    def _half(self, index: int, x: np.ndarray) -> np.ndarray:
        half, part = self.config["halves"][index], self._parts[index]
        sums, shortcut = self.sums(index, x), self._shortcut(part, half["strides"], x)
        batch, height, width, filters = sums.shape
        rows, columns, channels = (
            part[name].reshape(-1) if name in part else np.ones(length, np.float32)
            for name, length in (("alpha_height", height), ("alpha_width", width), ("alpha", filters))
        )
        gates = np.ones((batch, filters), np.float32)
        if "gate_reduce" in part:
            hidden = np.maximum(x.mean(axis=(1, 2)) @ part["gate_reduce"] + part["gate_bias"], 0)
            gates = _sigmoid(hidden @ part["gate_expand"])
        if self.engine == "numba":
            out = np.empty(sums.shape, np.float32)
            _kernels().scale_and_add(sums, rows, columns, channels, gates, part["slope"], shortcut, out)
            return out
        v = sums.astype(np.float32) * rows[:, None, None] * columns[:, None] * channels * gates[:, None, None]
        return _prelu(v, part["slope"]) + shortcut

    def _bits(self, x: np.ndarray, threshold: np.ndarray, flipped: np.ndarray) -> np.ndarray:
        if self.engine == "numpy":
            return pack_signs(np.where(flipped, x <= threshold, x >= threshold))
        bits = np.empty((*x.shape[:3], num_words(x.shape[3])), np.uint64)
        _kernels().pack_bits(np.ascontiguousarray(x), threshold, flipped, bits)
        return bits

    def _shortcut(self, part: Mapping[str, np.ndarray], strides: int, x: np.ndarray) -> np.ndarray:
        if "shortcut_kernel" not in part:
            return x
        x = _average_pool(x) if strides == 2 else x
        return (x @ part["shortcut_kernel"]) * part["shortcut_scale"] + part["shortcut_offset"]

    def sizes(self) -> dict[str, float]:
        """Returns bytes: of packed kernels, of all arrays, and of the same network in float32."""
        kernels = [value for value in self.arrays.values() if value.dtype == np.uint64]
        weights = sum(half["channels"] * half["filters"] * 9 for half in self.config["halves"])
        others = sum(value.nbytes for value in self.arrays.values() if value.dtype != np.uint64)
        packed = sum(value.nbytes for value in kernels)
        return {
            "binary_weights": weights,
            "kernel_bytes": packed,
            "packed_bytes": packed + others,
            "float32_bytes": 4 * weights + others,
            "ratio": (4 * weights + others) / (packed + others),
        }

    # === Files ===

    def save(self, path: str | Path) -> Path:
        """Writes one file, atomically: magic bytes, SHA-256 of what follows, length of the header, header, arrays."""
        arrays, offset, chunks = {}, 0, []
        for name, value in self.arrays.items():
            data = np.ascontiguousarray(value).astype(_DTYPES[str(value.dtype)]).tobytes()
            arrays[name] = {"dtype": str(value.dtype), "shape": list(value.shape), "offset": offset}
            offset += len(data)
            chunks.append(data)
        header = json.dumps({"config": self.config, "arrays": arrays}, sort_keys=True).encode()
        content = len(header).to_bytes(_LENGTH, "little") + header + b"".join(chunks)
        with atomic_file(path) as file:
            file.write_bytes(_MAGIC + hashlib.sha256(content).digest() + content)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, engine: str = "numba") -> PackedModel:
        """Reads a file that `save` wrote.

        Args:
            path: path.
            engine: str. `"numba"` or `"numpy"`.

        Raises:
            ValueError: for a file that is damaged or no packed model.
            FileNotFoundError: if there is none.
        """
        path = Path(path)
        size = path.stat().st_size
        if size > _MAXIMUM_FILE:
            raise ValueError(f"A packed model has at most {_MAXIMUM_FILE} bytes. Received: {size} in {str(path)!r}")
        data = path.read_bytes()
        start = len(_MAGIC) + _HASH
        content = data[start:]
        if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(content).digest() != data[len(_MAGIC) : start]:
            raise ValueError(f"Not a packed model, or a damaged one. Received: {str(path)!r}")
        length = int.from_bytes(content[:_LENGTH], "little")
        if length > min(_MAXIMUM_HEADER, len(content) - _LENGTH):
            raise ValueError(f"The header is longer than allowed. Received: {length} bytes in {str(path)!r}")
        try:
            header = json.loads(content[_LENGTH : _LENGTH + length])
            arrays = _read_arrays(header["arrays"], content[_LENGTH + length :])
            return cls(header["config"], arrays, engine)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"The header is none of a packed model: {error!r}. Received: {str(path)!r}") from error


def _read_arrays(records: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    arrays, end = {}, 0
    for name, record in sorted(records.items(), key=lambda item: item[1]["offset"]):
        dtype = np.dtype(_DTYPES[record["dtype"]])
        count = math.prod(record["shape"])
        if record["offset"] != end or count < 0 or end + count * dtype.itemsize > len(data):
            raise ValueError(f"Arrays must lie in the file, one after the other. Received: {name!r}: {record}")
        values = np.frombuffer(data, dtype, count, end).reshape(record["shape"])
        arrays[name] = values.astype(record["dtype"])
        end += count * dtype.itemsize
    if end != len(data):
        raise ValueError(f"A packed model must end with its last array. Received: {len(data) - end} bytes more")
    return arrays


_STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "strided": (3, 2)}


def _checked(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses a configuration that the arithmetic does not know."""
    halves = config["halves"]
    numbers = [config[name] for name in ("image_size", "num_channels", "num_classes")]
    numbers += [half[name] for half in halves for name in ("channels", "filters", "size")]
    channels = [half["channels"] for half in halves[1:]]
    valid = (
        len(halves) > 0
        and all(type(number) is int and number >= 1 for number in numbers)
        and channels == [half["filters"] for half in halves[:-1]]
        and all(half["strides"] in (1, 2) for half in halves)
        and type(config["gate_ratio"]) is int
        and config["gate_ratio"] >= 0
        and config["padding_value"] in (0, 1)
        and config["scale"] in ("none", "channel", "hwc")
        and config["stem"] in _STEMS
    )
    if not valid:
        raise ValueError(f"`config` must be that of a packed model. Received: config={config}")
    return config


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of every array of a packed model."""
    width, classes = config["halves"][0]["channels"], config["num_classes"]
    size, _ = _STEMS[config["stem"]]
    shapes = {"stem/kernel": (size, size, config["num_channels"], width)}
    shapes |= {f"stem/{name}": (width,) for name in ("scale", "offset", "slope")}
    for index, half in enumerate(config["halves"]):
        channels, filters = half["channels"], half["filters"]
        own = {"threshold": (channels,), "flipped": (channels,), "slope": (filters,)}
        own["kernel"] = (9, num_words(channels), filters)
        if config["scale"] != "none":
            own["alpha"] = (filters,)
        if config["scale"] == "hwc":
            own |= {"alpha_height": (half["size"], 1, 1), "alpha_width": (half["size"], 1)}
        if config["gate_ratio"]:
            hidden = channels // config["gate_ratio"]
            own |= {"gate_reduce": (channels, hidden), "gate_bias": (hidden,), "gate_expand": (hidden, filters)}
        if half["strides"] > 1 or channels != filters:
            own |= {"shortcut_kernel": (channels, filters), "shortcut_scale": (filters,), "shortcut_offset": (filters,)}
        shapes |= {f"half_{index}/{name}": shape for name, shape in own.items()}
    shapes |= {"classifier/kernel": (config["halves"][-1]["filters"], classes), "classifier/bias": (classes,)}
    dtypes = {"kernel": "uint64", "flipped": "bool"}
    return {
        name: (dtypes.get(name.split("/")[1], "float32") if name.startswith("half_") else "float32", shape)
        for name, shape in shapes.items()
    }


def _pad(x: np.ndarray, size: int, strides: int, value: float) -> np.ndarray:
    padding = [same_padding(length, size, strides) for length in x.shape[1:3]]
    return np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=value)


def _max_pool(x: np.ndarray) -> np.ndarray:
    windows = _windows(_pad(x, 3, 2, -np.inf), 3, 2)
    return windows.reshape(*windows.shape[:3], 9, -1).max(axis=3)


def _average_pool(x: np.ndarray) -> np.ndarray:
    for axis in (1, 2):
        size = x.shape[axis]
        # Of an odd size the last window has one value
        counts = np.minimum(size - np.arange(0, size, 2), 2).astype(np.float32)
        x = np.add.reduceat(x, np.arange(0, size, 2), axis) / np.expand_dims(counts, tuple(range(1, x.ndim - axis)))
    return x


def _prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + slope * np.minimum(x, 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


# === Packing ===


def pack(model: RealToBinaryNet, engine: Literal["numba", "numpy"] = "numba") -> PackedModel:
    """Packs a trained network.

    Args:
        model: `RealToBinaryNet` whose activations and weights are binary.
        engine: str. What the packed model runs on: `"numba"`, or `"numpy"`, which is slower and needs nothing else.

    Raises:
        ValueError: for a network that is not binary.
    """
    modes = (model.activation_mode, model.weight_mode)
    if model.real or modes != ("sign", "sign"):
        raise ValueError(
            f"`model` must have binary activations and weights. "
            f"Received: real={model.real}, activation_mode={modes[0]!r}, weight_mode={modes[1]!r}"
        )
    scale, offset = affine(model.stem.norm)
    arrays = {
        "stem/kernel": _values(model.stem.conv.kernel),
        "stem/scale": scale,
        "stem/offset": offset,
        "stem/slope": _values(model.stem.activation.alpha).reshape(-1),
        "classifier/kernel": _values(model.classifier.kernel),
        "classifier/bias": _values(model.classifier.bias),
    }
    halves = []
    size = model.stem.compute_output_shape((None, model.image_size, model.image_size, model.num_channels))[1]
    for index, half in enumerate(half for block in model.blocks for half in block.halves):
        size = -(-size // half.conv.strides)
        channels, filters = half.conv.kernel.shape[2:]
        halves.append({"channels": channels, "filters": filters, "strides": half.conv.strides, "size": size})
        arrays |= {f"half_{index}/{name}": value for name, value in _pack_half(half).items()}
    config = {
        "image_size": model.image_size,
        "num_channels": model.num_channels,
        "num_classes": model.num_classes,
        "stem": model.stem_kind,
        "scale": model.scale,
        "gate_ratio": model.gate_ratio if model.use_gate else 0,
        "padding_value": model.padding_value,
        "halves": halves,
    }
    return PackedModel(config, arrays, engine)


def _pack_half(half: Any) -> dict[str, np.ndarray]:
    scale, offset = affine(half.norm)
    threshold, flipped = fold_threshold(scale, offset)
    arrays = {
        "threshold": threshold,
        "flipped": flipped,
        "kernel": pack_kernel(_values(half.conv.kernel)),
        "slope": _values(half.activation.alpha).reshape(-1),
    }
    if half.scale is not None:
        arrays |= {variable.name: _values(variable) for variable in half.scale.weights}
    if half.gate is not None:
        reduce = _values(half.gate.reduce.kernel)
        # The mean of the normalised is the normalised mean
        arrays |= {
            "gate_reduce": scale[:, None] * reduce,
            "gate_bias": offset @ reduce,
            "gate_expand": _values(half.gate.expand.kernel),
        }
    if half.shortcut.conv is not None:
        kernel = _values(half.shortcut.conv.kernel)
        scale, offset = affine(half.shortcut.norm)
        arrays |= {
            "shortcut_kernel": kernel.reshape(kernel.shape[2:]), "shortcut_scale": scale, "shortcut_offset": offset
        }  # fmt: skip
    return arrays


def affine(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale and offset of a batch normalisation in inference, rounded as TensorFlow rounds them.

    Args:
        norm: `keras.layers.BatchNormalization`.
    """
    import tensorflow as tf

    scale = tf.math.rsqrt(norm.moving_variance.value + norm.epsilon) * norm.gamma.value
    return scale.numpy(), (norm.beta.value - norm.moving_mean.value * scale).numpy()


def _values(variable: Any) -> np.ndarray:
    return np.asarray(variable.numpy(), np.float32)
