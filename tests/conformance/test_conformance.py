"""Every check on every method of the catalog: a method that is registered is a method that passes."""

import itertools

import pytest
from conformance.checks import MODEL_CHECKS, SLOW_MODEL_CHECKS
from conformance.shipping_checks import (
    EXPORT_CHECKS,
    SHIPPED_CHECKS,
    SLOW_EXPORT_CHECKS,
    check_metric,
    check_total_size,
)
from conformance.signature_checks import SIGNATURE_CHECKS
from conformance.subject import Subject

import zoo
from zoo import datasets
from zoo.catalog import SHIPPED_WEIGHTS


def label(check):
    return check.__name__.removeprefix("check_")


def shipped_checks():
    """Yields method, preset and check; to measure is slow, so that the quick suite measures one preset of each method."""
    for method in map(zoo.info, zoo.list_models()):
        trained = [name for name, preset in method.presets.items() if preset.trained]
        measured = method.default_preset if method.default_preset in trained else next(iter(trained), None)
        for name, check in itertools.product(trained, SHIPPED_CHECKS):
            slow = check is check_metric and name != measured
            label_of = f"{method.name}-{name}-{label(check)}"
            yield pytest.param(method.name, name, check, id=label_of, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("check", [*MODEL_CHECKS, *SIGNATURE_CHECKS, *EXPORT_CHECKS], ids=label)
def test_method(subject, check):
    check(subject)


@pytest.mark.slow
@pytest.mark.parametrize("check", [*SLOW_MODEL_CHECKS, *SLOW_EXPORT_CHECKS], ids=label)
def test_method_slowly(subject, check):
    check(subject)


def test_shipped_weights_are_small_together():
    check_total_size(SHIPPED_WEIGHTS)


SHIPPED = list(shipped_checks())
# Without the condition pytest would report an empty parametrisation as a skipped test
if SHIPPED:

    @pytest.mark.parametrize(("name", "preset", "check"), SHIPPED)
    def test_shipped_weights(name, preset, check, tmp_path, monkeypatch):
        subject = Subject.of_method(name, tmp_path, preset)
        if check is check_metric and not datasets.info(subject.dataset).embedded:
            # No part of this data set may be embedded, and tests never download
            monkeypatch.setenv("ZOO_OFFLINE", "1")
            try:
                datasets.load_arrays(subject.dataset, "test")
            except FileNotFoundError as error:
                pytest.skip(str(error))
        check(subject)
