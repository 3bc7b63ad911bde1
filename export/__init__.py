"""Verified export of Keras 3 models to SavedModel, LiteRT and ONNX.

Importing this package loads no TensorFlow; the first export does.
"""

import importlib
from typing import Any

from zoo.export.errors import ExportError, GateError, VerificationError
from zoo.export.report import ENGINES, FORMATS, QUANTIZATIONS, ArtifactReport, ExportReport

__all__ = [
    "ENGINES",
    "FORMATS",
    "QUANTIZATIONS",
    "ArtifactReport",
    "ExportError",
    "ExportReport",
    "GateError",
    "VerificationError",
    "export_binary",
    "export_file",
    "export_model",
    "read_metadata",
    "verify_bundle",
]

_LAZY = {
    "export_binary": "zoo.export.binary",
    "export_model": "zoo.export.bundle",
    "export_file": "zoo.export.bundle",
    "verify_bundle": "zoo.export.check",
    "read_metadata": "zoo.export.metadata",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'zoo.export' has no attribute {name!r}")
