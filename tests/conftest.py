"""Shared fixtures. One thread per process: tests run in parallel, and single-threaded sums are reproducible."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# As the command line does, so that what it computes here equals what it computes in a process of its own
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import sys
from pathlib import Path
from types import ModuleType

import pytest

# `--import-mode=importlib` leaves sys.path alone, so that a module of tests can import only what is installed. Bare packages
# give folders with modules that several tests share a name, without one for all that lies beside them.
for _name in ("conformance", "generative"):
    _package = ModuleType(_name)
    _package.__path__ = [str(Path(__file__).parent / _name)]
    sys.modules[_name] = _package


def pytest_collection_modifyitems(items):
    """Refuses names of tests that hold an address: processes that share the work would collect different tests."""
    if addresses := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"Names of tests must not hold addresses; give `ids` that do not: {addresses}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keeps the tests of a file in one process, and those of a method in the conformance suite: they share what is slow."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrMethod(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            return test.partition("[")[2].partition("-")[0] if file.endswith("/test_conformance.py") else file

    return ByFileOrMethod(config, log)


@pytest.fixture(scope="session")
def larq_environment():
    """Makes the environment of Larq Compute Engine, or skips: there may be no network or no fitting Python."""
    from zoo.export import ExportError, larq

    try:
        return larq.environment_python()
    except ExportError as error:
        pytest.skip(f"No environment for Larq Compute Engine: {error}")


@pytest.fixture(scope="session")
def random_binary_network():
    """Returns a function that makes a `RealToBinaryNet` with random weights and statistics from constructor arguments."""
    import keras
    import numpy as np

    import zoo

    def make(seed=0, **changes):
        keras.utils.set_random_seed(seed)
        model = zoo.get("real_to_binary", weights=None, **changes)
        rng = np.random.default_rng(seed)
        for variable in model.weights:
            if variable.path.endswith(("moving_mean", "beta", "gamma", "alpha")):
                # Scales below zero turn comparisons round
                variable.assign(rng.normal(0.3, 0.5, variable.shape))
            elif variable.path.endswith("moving_variance"):
                variable.assign(rng.uniform(1, 30, variable.shape))
        return model

    return make


@pytest.fixture(autouse=True)
def _seeded():
    """Gives every test the same random start, whatever ran before it."""
    import sys

    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(0)
