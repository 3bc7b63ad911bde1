"""Weights in Keras's own HDF5 layout: reproducible bytes, and no reading of what does not fit the model exactly."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from zoo.metadata import WEIGHTS


def _optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    return [value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)]


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


@contextlib.contextmanager
def _keras_datasets(model: keras.Model) -> Iterator[dict[str, h5py.Dataset]]:
    """Yields what Keras stores of a model, checked to be all of its weights and nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / WEIGHTS
        keras.saving.save_weights(model, path, objects_to_skip=_optimizers(model))
        with h5py.File(path) as file:
            datasets = _datasets(file)
            stored, weights = sum(_sizes(datasets.values())), sum(_sizes(model.weights))
            if stored != weights:
                raise ValueError(
                    f"Keras must store exactly the weights of {type(model).__name__}: optimizers must be attributes of "
                    f"the model, and layers store their own variables. "
                    f"Received: {weights} values in weights, {stored} stored"
                )
            yield datasets


def _sizes(arrays: Iterable[Any]) -> list[int]:
    return [math.prod(array.shape) for array in arrays]


def write_weights(model: keras.Model, path: Path, dtype: str = "float32") -> None:
    """Writes the weights of a built model.

    Args:
        model: built `keras.Model`.
        path: path that ends in `.weights.h5`.
        dtype: str. `"float16"` stores floating-point weights as such, `"float32"` as they are.

    Raises:
        ValueError: for NaN or infinite weights, also where they became infinite as float16.
    """
    with _keras_datasets(model) as datasets, h5py.File(path, "w") as target:
        # Written anew because Keras adds automatic layer names, which differ from process to process
        for name, dataset in sorted(datasets.items()):
            target.create_dataset(name, data=_stored(name, dataset, dtype), track_times=False)


def _stored(name: str, dataset: h5py.Dataset, dtype: str) -> np.ndarray:
    value = np.array(dataset)
    if dataset.attrs.get("dtype") == "bfloat16":
        value = value.view(keras.ops.convert_to_numpy(keras.ops.zeros((), "bfloat16")).dtype).astype("float32")
    if not np.issubdtype(value.dtype, np.floating):
        return value
    if dtype == "float16":
        with np.errstate(over="ignore"):  # said better below
            value = value.astype(dtype)
    if not np.isfinite(value).all():
        raise ValueError(
            f"All weights must be finite as {value.dtype}. "
            f"Received: {int((~np.isfinite(value)).sum())} NaN or infinite values in {name!r}"
        )
    return value


def read_weights(model: keras.Model, path: Path) -> None:
    """Reads weights into a built model: every one, and nothing else.

    Args:
        model: built `keras.Model`.
        path: path of a file whose hash has been checked.

    Raises:
        ValueError: for anything that `write_weights` would not have written for this model.
    """
    with _keras_datasets(model) as datasets:
        expected = {name: dataset.shape for name, dataset in datasets.items()}
    try:
        with h5py.File(path, "r") as file:
            _check_links(file)
            _check_datasets(_datasets(file), expected)
        keras.saving.load_weights(model, path, objects_to_skip=_optimizers(model))
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"`{path.name}` is no valid weights file: {error}") from error


def _check_links(file: h5py.File) -> None:
    def visit(name: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> str | None:
        return None if isinstance(link, h5py.HardLink) else f"{type(link).__name__} {name!r}"

    # What the visitor returns ends the visit; what it raises breaks h5py's locks
    if found := file.visititems_links(visit):
        raise ValueError(f"A weights file must not hold links. Received: {found}")


def _check_datasets(datasets: dict[str, h5py.Dataset], expected: dict[str, tuple[int, ...]]) -> None:
    missing, unknown = sorted(expected.keys() - datasets), sorted(datasets.keys() - expected)
    if missing or unknown:
        raise ValueError(
            f"The weights must be those of the model. Received: {len(missing)} missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}"
        )
    for name, dataset in datasets.items():
        if dataset.shape != expected[name]:
            raise ValueError(f"Weight {name!r} must have shape {expected[name]}. Received: shape={dataset.shape}")
        # Full contiguous storage in this file: no filter to run, no size that the file does not have
        stored = dataset.id.get_storage_size() == dataset.nbytes and not dataset.chunks
        if dataset.is_virtual or dataset.external or dataset.dtype.kind not in "fiub" or not stored:
            raise ValueError(
                f"Weight {name!r} must be stored as plain numbers in the file itself. Received: dtype={dataset.dtype}, "
                f"virtual={dataset.is_virtual}, external={dataset.external}, chunks={dataset.chunks}, "
                f"{dataset.id.get_storage_size()} of {dataset.nbytes} bytes"
            )
