"""The experiment that exports fine-tuned text classifiers."""

import json

import pytest

from zoo.experiments import fine_tuned_encoders as experiment
from zoo.experiments.report import Ledger


def file_result(accuracy, kilobytes, accepted):
    return {"accuracy": accuracy, "kilobytes": kilobytes, "accepted": accepted, "milliseconds": 2.0}


def test_the_verdict_follows_the_numbers(tmp_path):
    ledger = Ledger(tmp_path / "runs.json", {})
    for seed in range(2):
        for method, lost in (("bert", 0.0), ("albert", 0.1)):
            files = {name: file_result(0.8 - lost * name.endswith("/int8"), 1000.0, True) for name in experiment.FILES}
            files["litert/int8"] = file_result(0.8 - lost, 250.0, lost == 0 or seed == 0)
            ledger.run(method, seed, lambda files=files: {"accuracy": 0.8, **files}, print)

    verdict = experiment.verdict(ledger)
    rows = experiment.table(ledger, "albert")

    assert "bert as litert/int8 +0.000 in 25% of the size, accepted in 2 of 2 trainings" in verdict
    assert "albert as litert/int8 -0.100 in 25% of the size, accepted in 1 of 2 trainings" in verdict
    assert rows["litert/int8"]["accepted"] == "1 of 2" and rows["keras"]["accuracy"]["mean"] == pytest.approx(0.8)


@pytest.mark.slow
def test_the_experiment_runs(tmp_path):
    network = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 16}
    experiment.reproduce(tmp_path, seeds=1, examples=40, epochs=1, weights=None, network=network)

    found = json.loads((tmp_path / "fine_tuned_encoders.json").read_text())
    assert set(found["bert"]) == {"keras", *experiment.FILES}
    assert found["albert"]["onnx/int8"]["kilobytes"] < 0.7 * found["albert"]["onnx/none"]["kilobytes"]
    assert (tmp_path / "fine_tuned_encoders.png").stat().st_size > 10_000
