"""Kernels of bit-packed convolutions, compiled by numba; imported only where they run.

A word holds 64 channels, the lowest bit the first; bit 1 stands for +1 and bit 0 for -1. Of `n` products of +-1,
`popcount(x xor w)` are -1, so that their sum is `n - 2 popcount`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

WORD = 64


@intrinsic
def _popcount(typing_context: Any, word: Any) -> Any:
    """Number of ones of a word: one instruction, and of vectors of words where the processor has it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@numba.njit(cache=True, nogil=True)
def pack_bits(x: np.ndarray, threshold: np.ndarray, flipped: np.ndarray, bits: np.ndarray) -> None:
    """Compares features with thresholds and packs the outcomes.

    Args:
        x: float32 array `(batch, height, width, channels)`.
        threshold: float32 array `(channels,)`.
        flipped: bool array `(channels,)`. Whether the bit is `x <= threshold` rather than `x >= threshold`.
        bits: uint64 array `(batch, height, width, words)`, overwritten; bits beyond the channels are 0.
    """
    batch, height, width, channels = x.shape
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                for k in range(bits.shape[3]):
                    word = np.uint64(0)
                    for c in range(k * WORD, min((k + 1) * WORD, channels)):
                        value = x[n, i, j, c]
                        one = value <= threshold[c] if flipped[c] else value >= threshold[c]
                        word |= np.uint64(one) << np.uint64(c - k * WORD)
                    bits[n, i, j, k] = word


@numba.njit(cache=True, nogil=True)
def xnor_convolution(
    bits: np.ndarray, kernel: np.ndarray, ones: np.ndarray, geometry: tuple[int, ...], sums: np.ndarray
) -> None:
    """Convolves packed bits with packed kernels.

    Args:
        bits: uint64 array `(batch, height, width, words)`.
        kernel: uint64 array `(taps, words, filters)`; filters last, so that one vector instruction counts for several.
        ones: uint64 array `(words,)`. What lies outside of the image where it is padded by +1.
        geometry: tuple of int: kernel size, strides, padding above, padding on the left, whether padding is +1 rather
            than 0, channels.
        sums: int32 array `(batch, output height, output width, filters)`, overwritten.
    """
    size, strides, top, left, pad_with_ones, channels = geometry
    batch, height, width, words = bits.shape
    filters = sums.shape[3]
    counts = np.zeros(filters, np.int64)
    for n in range(batch):
        for i in range(sums.shape[1]):
            for j in range(sums.shape[2]):
                counts[:] = 0
                taps = 0
                for tap in range(size * size):
                    row = i * strides + tap // size - top
                    column = j * strides + tap % size - left
                    inside = 0 <= row < height and 0 <= column < width
                    if not inside and not pad_with_ones:
                        continue
                    taps += 1
                    for k in range(words):
                        word = bits[n, row, column, k] if inside else ones[k]
                        for o in range(filters):
                            counts[o] += np.int64(_popcount(word ^ kernel[tap, k, o]))
                for o in range(filters):
                    sums[n, i, j, o] = taps * channels - 2 * counts[o]


@numba.njit(cache=True, nogil=True)
def scale_and_add(
    sums: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    channels: np.ndarray,
    gates: np.ndarray,
    slope: np.ndarray,
    shortcut: np.ndarray,
    out: np.ndarray,
) -> None:
    """Ends a half block: scales the sums, applies PReLU, adds the shortcut.

    Args:
        sums: int32 array `(batch, height, width, filters)`.
        rows: float32 array `(height,)`. Scales, as the next three.
        columns: float32 array `(width,)`.
        channels: float32 array `(filters,)`.
        gates: float32 array `(batch, filters)`.
        slope: float32 array `(filters,)`.
        shortcut: float32 array of the shape of `sums`.
        out: float32 array of that shape, overwritten.
    """
    batch, height, width, filters = sums.shape
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                for o in range(filters):
                    v = np.float32(sums[n, i, j, o]) * rows[i] * columns[j] * channels[o] * gates[n, o]
                    out[n, i, j, o] = (v if v > 0 else slope[o] * v) + shortcut[n, i, j, o]
