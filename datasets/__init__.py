"""Real data behind one interface: `load` for `tf.data`, `load_arrays` and `load_text` for NumPy and plain text.

A dataset is a module of this folder with an `INFO` and a `load(split, **options)`; it is found by its existence.
Importing this package imports no TensorFlow.
"""

from zoo.datasets.registry import info, list_datasets, load, load_arrays, load_text
from zoo.datasets.specs import DatasetInfo

__all__ = ["DatasetInfo", "info", "list_datasets", "load", "load_arrays", "load_text"]
