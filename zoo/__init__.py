"""A TensorFlow / Keras 3 model zoo with verified export to SavedModel, LiteRT and ONNX.

Importing `zoo` loads no TensorFlow; asking for a model does.
"""

import importlib
from typing import Any

from zoo.catalog import Method, Paper, Preset, get, info, list_models, register, unregister

__version__ = "0.1.0"

__all__ = ["Method", "Paper", "Preset", "get", "info", "list_models", "register", "unregister"]

_LAZY = {"ZooModel": "zoo.model", "load_model": "zoo.saving"}
_SUBMODULES = (
    "catalog",
    "checkpoints",
    "cli",
    "compression",
    "datasets",
    "experiments",
    "export",
    "information",
    "layers",
    "model",
    "ops",
    "saving",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
