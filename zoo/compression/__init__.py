"""Small networks for real devices: quantisation-aware training, pruning and clustering of any Keras 3 model.

`quantize_aware`, `prune` and `cluster` take a built model and return one to `fit`; `strip` gives the plain model back.
Importing this package loads no TensorFlow; the first use does.
"""

import importlib
from typing import Any

_LAZY = {
    "CompressedModel": "zoo.compression.compressed",
    "Stage": "zoo.compression.compressed",
    "sparsity": "zoo.compression.compressed",
    "strip": "zoo.compression.compressed",
    "calibrate": "zoo.compression.tfmot",
    "cluster": "zoo.compression.tfmot",
    "prune": "zoo.compression.tfmot",
    "quantize_aware": "zoo.compression.tfmot",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo.compression' has no attribute {name!r}")
