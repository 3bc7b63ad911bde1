"""One `Subject` a method for all checks; the checks of one method run in one process."""

import shutil

import pytest

import zoo


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
