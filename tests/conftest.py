"""Shared fixtures. One thread per process: tests run in parallel, and single-threaded sums are reproducible."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest


@pytest.fixture(scope="session")
def larq_environment():
    """Makes the environment of Larq Compute Engine, or skips: there may be no network or no fitting Python."""
    from zoo.export import ExportError, larq

    try:
        return larq.environment_python()
    except ExportError as error:
        pytest.skip(f"No environment for Larq Compute Engine: {error}")


@pytest.fixture(autouse=True)
def _seeded():
    """Gives every test the same random start, whatever ran before it."""
    import sys

    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(0)
