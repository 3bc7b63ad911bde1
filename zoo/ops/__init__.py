"""Pure functions of tensors, written so that they export to every format."""

from zoo.ops.attention import (
    causal_memory_mask,
    masked_softmax,
    merge_heads,
    relative_shift,
    shared_matmul,
    sinusoid_positions,
    sinusoids,
    split_heads,
    take_distances,
    valid_slots_mask,
)
from zoo.ops.probability import log_mean_exp, standard_normal_log_prob

__all__ = [
    "causal_memory_mask",
    "log_mean_exp",
    "masked_softmax",
    "merge_heads",
    "relative_shift",
    "shared_matmul",
    "sinusoid_positions",
    "sinusoids",
    "split_heads",
    "standard_normal_log_prob",
    "take_distances",
    "valid_slots_mask",
]
