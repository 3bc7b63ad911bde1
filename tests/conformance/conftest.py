"""Makes the modules of this folder importable as `conformance.<module>`, and one `Subject` a method for all checks."""

import shutil
import sys
import types
from pathlib import Path

import pytest

import zoo

# `--import-mode=importlib` leaves sys.path alone, so that a module of tests can import only what is installed. A bare
# package does not: it adds no other folder of tests/ to what `import` finds.
_package = types.ModuleType("conformance")
_package.__path__ = [str(Path(__file__).parent)]
sys.modules.setdefault("conformance", _package)


@pytest.fixture(scope="session", params=zoo.list_models())
def subject(request, tmp_path_factory):
    """A method of the catalog, with what several checks need of it made once."""
    from conformance.subject import Subject

    work = tmp_path_factory.mktemp(request.param)
    yield Subject.of_method(request.param, work)
    shutil.rmtree(work)


def pytest_collection_modifyitems(config, items):
    """Keeps a method's checks in one process under `pytest -n 2 --dist loadgroup`."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "subject" in parameters:
            item.add_marker(pytest.mark.xdist_group(parameters["subject"]))
