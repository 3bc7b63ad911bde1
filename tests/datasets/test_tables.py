import dataclasses
import hashlib

import numpy as np
import pytest

from zoo.datasets import breast_cancer, diabetes, load_arrays

SPLITS = ("train", "validation", "test")
TABLES = {"breast_cancer": (breast_cancer, "label"), "diabetes": (diabetes, "target")}


@pytest.mark.parametrize("name", TABLES)
def test_splits_hold_every_row_once(name):
    from sklearn import datasets

    module, key = TABLES[name]
    parts = [load_arrays(name, split) for split in SPLITS]
    bunch = datasets.load_breast_cancer() if name == "breast_cancer" else datasets.load_diabetes(scaled=False)
    rows = np.concatenate([np.column_stack([part["features"], part[key]]) for part in parts])
    expected = np.column_stack([bunch.data, bunch.target]).astype("float32")

    assert [len(part[key]) for part in parts] == list(module.INFO.splits.values())
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_breast_cancer_is_stratified():
    for split in SPLITS:
        arrays = load_arrays("breast_cancer", split)
        assert (arrays["features"].dtype, arrays["label"].dtype) == (np.float32, np.int32)
        assert arrays["label"].mean() == pytest.approx(357 / 569, abs=0.02)


def test_diabetes_is_stratified():
    whole = np.concatenate([load_arrays("diabetes", split)["target"] for split in SPLITS])
    for split in SPLITS:
        arrays = load_arrays("diabetes", split)
        assert (arrays["features"].dtype, arrays["target"].dtype) == (np.float32, np.float32)
        assert arrays["target"].mean() == pytest.approx(whole.mean(), abs=2.0)
        assert arrays["target"].std() == pytest.approx(whole.std(), rel=0.05)


@pytest.mark.parametrize("name", TABLES)
def test_splits_stay_the_same(name):
    _, key = TABLES[name]
    parts = [load_arrays(name, split) for split in SPLITS]
    digest = hashlib.sha256(b"".join(part["features"].tobytes() + part[key].tobytes() for part in parts)).hexdigest()

    assert (
        digest
        == {
            "breast_cancer": "9db7d02b1a8fa44a8ea4f04672603498ea84cfccfc9e3e571415eac4746157f4",
            "diabetes": "65365d28213a52bc680f0624b8fff632fb4bda19530958dbbc2f532441ee439d",
        }[name]
    )


@pytest.mark.parametrize("name", TABLES)
def test_other_tables_are_refused(name, monkeypatch):
    module, _ = TABLES[name]
    monkeypatch.setattr(module, "INFO", dataclasses.replace(module.INFO, sha256="0" * 64))

    with pytest.raises(ValueError, match=r"installed scikit-learn must hold data.*Received: "):
        load_arrays(name, "train")
