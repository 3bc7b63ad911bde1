"""`Spec`, `Signature` and `TaskMetric`: what every method builds on."""

import numpy as np
import pytest

from zoo.model import Signature, Spec, TaskMetric


def metric(**options):
    return TaskMetric("score", lambda run: 0.0, **options)


@pytest.mark.parametrize(
    ("options", "value", "worsening"),
    [
        (dict(higher_is_better=True), 4.0, 1.0),
        (dict(higher_is_better=True), 6.0, -1.0),
        (dict(higher_is_better=False), 6.0, 1.0),
        (dict(higher_is_better=True, two_sided=True), 6.0, 1.0),
        (dict(higher_is_better=True, two_sided=True), 4.0, 1.0),
    ],
)
def test_worsening(options, value, worsening):
    assert metric(**options).worsening(5.0, value) == worsening


def test_tolerances_add_up():
    chosen = metric(higher_is_better=False, relative_tolerance=0.01, absolute_tolerance=0.5)
    assert chosen.allowed(-10.0) == pytest.approx(0.6)


def signature(**options):
    inputs = {
        "x": Spec(("batch", "time", 3)),
        "ids": Spec(("batch", "time"), "int32", minimum=0, maximum=4),
        "flag": Spec(("batch",), "bool"),
    }
    return Signature(lambda **inputs: inputs, inputs, {"y": "Nothing."}, {"time": 5}, **options)


def good():
    return {"x": np.zeros((2, 5, 3)), "ids": np.zeros((2, 5), int), "flag": np.zeros(2, bool)}


def test_checked_inputs_have_the_declared_types():
    checked = signature().check(good())
    assert {name: str(value.dtype) for name, value in checked.items()} == {
        "x": "float32",
        "ids": "int32",
        "flag": "bool",
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(x=np.zeros((2, 5))), ValueError, "`x` must have shape"),
        (dict(x=np.zeros((2, 5, 4))), ValueError, "`x` must have shape"),
        (dict(ids=np.zeros((2, 6), int)), ValueError, "dimension 'time' is 5 in `x`"),
        (dict(x=np.full((2, 5, 3), np.inf)), ValueError, "`x` must be finite"),
        (dict(ids=np.full((2, 5), 5)), ValueError, r"`ids` must be in \[0, 4\]"),
        (dict(ids=np.zeros((2, 5))), TypeError, "`ids` must be of dtype int32"),
        (dict(flag=np.zeros(2)), TypeError, "`flag` must be of dtype bool"),
        (dict(x=np.zeros((2, 0, 3)), ids=np.zeros((2, 0), int)), ValueError, "must not be empty"),
    ],
)
def test_bad_inputs_are_named(change, error, message):
    with pytest.raises(error, match=message):
        signature().check({**good(), **change})


def test_largest_sizes_and_names():
    with pytest.raises(ValueError, match="at most 4 along dimension 'time'"):
        signature(maximum_sizes={"time": 4}).check(good())
    with pytest.raises(ValueError, match="Expected inputs"):
        signature().check({"x": good()["x"]})
    with pytest.raises(ValueError, match="share a name"):
        Signature(lambda x: {"x": x}, {"x": Spec(("batch",))}, {"x": "Itself."})


def test_drawn_inputs_are_valid():
    rng = np.random.default_rng(0)
    drawn = {name: spec.draw(rng, {"batch": 3, "time": 7}) for name, spec in signature().inputs.items()}
    signature().check(drawn)
    assert set(np.unique(drawn["ids"])) == set(range(5))
    bounded = Spec(("batch",), minimum=-2.0, maximum=-1.0).draw(rng, {"batch": 100})
    assert -2 <= bounded.min() < bounded.max() <= -1
