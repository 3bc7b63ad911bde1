"""Shared fixtures. One thread per process: tests run in parallel, and single-threaded sums are reproducible."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest


@pytest.fixture(autouse=True)
def _seeded():
    """Gives every test the same random start, whatever ran before it."""
    import sys

    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(0)
