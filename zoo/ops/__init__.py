"""Pure functions of tensors, written so that they export to every format."""

from zoo.ops.attention import (
    causal_memory_mask,
    masked_softmax,
    relative_shift,
    sinusoid_positions,
    take_distances,
    valid_slots_mask,
)

__all__ = [
    "causal_memory_mask",
    "masked_softmax",
    "relative_shift",
    "sinusoid_positions",
    "take_distances",
    "valid_slots_mask",
]
