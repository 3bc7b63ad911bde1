"""A TensorFlow / Keras 3 model zoo with verified export to SavedModel, LiteRT and ONNX.

Importing `zoo` loads no TensorFlow; asking for a model does.
"""

import importlib
from typing import Any

from zoo.catalog import Method, Paper, Preset, get, info, list_models, register, unregister

__version__ = "0.1.0"

__all__ = ["Method", "Paper", "Preset", "get", "info", "list_models", "register", "unregister"]

_SUBMODULES = (
    "catalog",
    "checkpoints",
    "cli",
    "datasets",
    "experiments",
    "export",
    "layers",
    "model",
    "ops",
    "training",
)


def __getattr__(name: str) -> Any:
    if name == "ZooModel":
        return importlib.import_module("zoo.model").ZooModel
    if name in _SUBMODULES:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
