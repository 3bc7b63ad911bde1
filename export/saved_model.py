"""SavedModel: every signature, every weight once, the model's files as assets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from zoo.export.quiet import quiet
from zoo.export.signatures import Traced, function_nodes

DEFAULT_KEY = "serving_default"


def write_saved_model(traced: Mapping[str, Traced], path: Path, assets: Mapping[str, bytes], scratch: Path) -> None:
    """Writes a SavedModel with one signature each, and `serving_default` as another name of the first.

    The module that is saved tracks the raw variables only: a tracked Keras model would store every weight twice, and
    make the LiteRT converter leave the weights out.

    Args:
        traced: dict from signature name to `Traced`.
        path: path of the directory to make.
        assets: dict from file name to content, stored under `assets/`.
        scratch: path of an existing directory for the files of the assets, which must outlive the call.

    Raises:
        OSError: if writing fails.
    """
    module = tf.Module()
    module.weights = list({id(v): v for item in traced.values() for v in item.concrete.graph.variables}.values())
    module.files = [_asset(scratch, name, content) for name, content in assets.items()]
    functions = {name: item.concrete for name, item in traced.items()}
    functions.setdefault(DEFAULT_KEY, next(iter(functions.values())))
    try:
        with quiet():
            tf.saved_model.save(module, str(path), signatures=functions)
    except tf.errors.OpError as error:
        # TensorFlow's own file system reports a full disk so.
        raise OSError(f"Writing the SavedModel failed: {error.message}") from error


def _asset(scratch: Path, name: str, content: bytes) -> tf.saved_model.Asset:
    file = scratch / name
    file.write_bytes(content)
    return tf.saved_model.Asset(str(file))


def saved_model_ops(path: Path) -> dict[str, int]:
    """Returns how often each operation occurs in a SavedModel's graphs, variable handling left out."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    skipped = {"Placeholder", "Const", "Identity", "NoOp", "ReadVariableOp", "VarHandleOp"}
    counts: dict[str, int] = {}
    for meta_graph in proto.meta_graphs:
        for node in function_nodes(meta_graph.graph_def):
            if node.op not in skipped:
                counts[node.op] = counts.get(node.op, 0) + 1
    return dict(sorted(counts.items()))
