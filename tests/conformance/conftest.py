"""One `Subject` a method for all checks; the checks of one method run in one process."""

import shutil

import pytest

import zoo

LONG = {
    "glow-export",
    "nice-jit_compile",
    "real_nvp-export",
    "real_nvp-jit_compile",
    "real_to_binary-fit",
}


@pytest.fixture(scope="session", params=zoo.list_models())
def subject(request, tmp_path_factory):
    """A method of the catalog, with what several checks need of it made once."""
    from conformance.subject import Subject

    work = tmp_path_factory.mktemp(request.param)
    yield Subject.of_method(request.param, work)
    shutil.rmtree(work)


def pytest_collection_modifyitems(items):
    """Marks what takes a minute or more."""
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "subject" in parameters:
            check = parameters["check"].__name__.removeprefix("check_")
            if f"{parameters['subject']}-{check}" in LONG:
                item.add_marker(pytest.mark.slow)
