"""Training: recipes, resumable runs, fine-tuning, optimisers, schedules, metrics, mixout.

Importing this package loads no TensorFlow; the first use does.
"""

import importlib
from typing import Any

_LAZY = {
    "Mixout": "zoo.training.mixout",
    "ReferenceDecay": "zoo.training.mixout",
    "evaluate": "zoo.training.finetuning",
    "finetune": "zoo.training.finetuning",
    "read_task": "zoo.training.task",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo.training' has no attribute {name!r}")
