"""The one objective of skip-gram, masked words, next sentences and spans: to find the right candidate among others.

    L = -E[f(a, b) - log sum_{b' in candidates} exp f(a, b')]

A cross-entropy over N candidates, and log N less the InfoNCE bound on I(A; B), `zoo.information.bounds.info_nce`. What the
instances differ in is what a and b are, how the critic f encodes them, and where the other candidates come from:

| | a | b | candidates |
|---|---|---|---|
| skip-gram | a word | a word near by | words drawn by frequency, or all |
| masked words | a text with a gap, at the gap | the word that was there | words drawn by frequency, or all |
| next sentence | a pair of segments | whether the second follows the first | yes and no |
| spans | a text with a gap | the words that were there, encoded | spans of other texts |

Reference: Kong et al. 2020, sections 2 and 3 (https://arxiv.org/abs/1910.08350).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from zoo.arguments import require
from zoo.information import bounds

# Words are drawn with their frequencies to this power
PROPOSAL_POWER = 0.75


class Contrast(NamedTuple):
    """What `contrast` gives for each context, in nats.

    Args:
        loss: float tensor `(...)`. Cross-entropy of the right candidate.
        bound: float tensor `(...)`. Logarithm of the number of candidates, less the loss: its mean bounds the information.
    """

    loss: Any
    bound: Any


def contrast(scores: Any, positives: Any, mask: Any = None) -> Contrast:
    """Compares the right candidate of each context with the others, by InfoNCE.

    Args:
        scores: float tensor `(..., N)`. A row of candidates for each context.
        positives: int tensor `(...)`. Column of each context's right candidate.
        mask: bool tensor like `scores`, or None. False where a candidate does not count, as one equal to the right one.

    Returns:
        `Contrast`, without averaging over contexts.

    Reference:
        Kong et al. 2020, section 2.
    """
    # A row of its own for each context: the bound averages over rows
    rows = None if mask is None else ops.expand_dims(mask, -2)
    scores = ops.expand_dims(scores, -2)
    bound = bounds.info_nce(scores, positives=ops.expand_dims(positives, -1), mask=rows)
    counted = ops.shape(scores)[-1] if mask is None else ops.sum(ops.cast(mask, bound.dtype), axis=-1)
    return Contrast(ops.log(ops.cast(counted, bound.dtype)) - bound, bound)


def weighted_mean(values: Any, weights: Any) -> Any:
    """Returns the mean of values by weights, 0 where these are all 0."""
    return ops.sum(weights * values) / ops.maximum(ops.sum(weights), 1e-5)


def proposal(counts: Any, power: float = PROPOSAL_POWER) -> np.ndarray:
    """Returns the distribution from which wrong words are drawn: frequencies to a power, unseen words as if seen once.

    Args:
        counts: int array `(vocabulary_size,)`. How often each word occurs.
        power: float. 0 draws all words alike, 1 as often as they occur.

    Returns:
        Float64 array `(vocabulary_size,)` of sum 1.

    Raises:
        ValueError: for counts that are no vector, or negative.

    Reference:
        Mikolov et al. 2013, section 2.2.
    """
    counts = np.asarray(counts, "float64")
    valid = counts.ndim == 1 and counts.size > 0 and np.isfinite(counts).all() and (counts >= 0).all()
    require(valid, "counts", "a vector of numbers that are not negative", f"shape={counts.shape}")
    weights = np.maximum(counts, 1.0) ** power
    return weights / weights.sum()
