"""Small networks for real devices: quantisation-aware training, learned bit widths, pruning and clustering of any model.

`quantize_aware`, `learn_bitwidths`, `prune`, `prune_at_initialization` and `cluster` take a built Keras 3 model and return
one to `fit`; `strip` gives the plain model back. A budget is all that learned bit widths need:

    model = learn_bitwidths(model, weight_budget_kb=70, activation_budget_kb=92)

Importing this package loads no TensorFlow; the first use does.
"""

import importlib
from typing import Any

_LAZY = {
    "BitPlan": "zoo.compression.bit_plan",
    "CompressedModel": "zoo.compression.compressed",
    "LearnedBitwidthStage": "zoo.compression.mixed_precision_dnn",
    "Stage": "zoo.compression.compressed",
    "sparsity": "zoo.compression.compressed",
    "strip": "zoo.compression.compressed",
    "calibrate": "zoo.compression.tfmot",
    "choose_masks": "zoo.compression.signal_propagation_pruning",
    "cluster": "zoo.compression.tfmot",
    "connection_sensitivity": "zoo.compression.signal_propagation_pruning",
    "enforce_isometry": "zoo.compression.signal_propagation_pruning",
    "integer_weights": "zoo.compression.bit_plan",
    "learn_bitwidths": "zoo.compression.mixed_precision_dnn",
    "materialize_channels": "zoo.compression.channels",
    "prune": "zoo.compression.tfmot",
    "prune_at_initialization": "zoo.compression.signal_propagation_pruning",
    "quantize_aware": "zoo.compression.tfmot",
    "sculpt": "zoo.compression.signal_propagation_pruning",
    "size_report": "zoo.compression.bit_plan",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo.compression' has no attribute {name!r}")
