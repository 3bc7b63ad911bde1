"""The comparison of all long-range language models."""

import numpy as np
import pytest

from zoo.experiments import long_range_language_models as experiment
from zoo.experiments.report import Ledger


@pytest.mark.parametrize("arm", experiment.ARMS)
def test_every_arm_has_the_size_and_sees_as_far(arm):
    model = experiment.build(arm)

    assert abs(model.count_params() - experiment.PARAMETERS) < 150
    assert experiment.CHARACTERS % model.window_length == 0
    config = model.get_config()
    assert config.get("max_span", model.window_length + config.get("memory_length", 0)) == 256


def test_the_verdict_follows_the_numbers(tmp_path):
    ledger = Ledger(tmp_path / "runs.json", {})
    gains = dict.fromkeys(experiment.ARMS, 0.5) | {experiment.FULL: 0.0, "Reformer": -0.25}
    for seed in range(2):
        for arm, gain in gains.items():
            # One arm is better with one seed and worse with the other
            value = 3 - (gain if arm != "LightConv" else gain * (-1) ** seed)
            ledger.run(arm, seed, lambda value=value: {"bits_per_character": value}, print)

    verdict = experiment._verdict(ledger)

    assert "worse in every seed: Reformer (-0.250); neither: LightConv (+0.000)." in verdict
    assert "Transformer-XL (+0.500)" in verdict and "3.000" in verdict
    assert np.isclose(np.mean(ledger.values(experiment.FULL, "bits_per_character")), 3)


@pytest.mark.slow
def test_a_run_measures_what_the_table_shows():
    first, other = (experiment.run("DynamicConv", updates=2, seed=seed) for seed in (0, 1))

    assert np.isfinite(first["bits_per_character"]) and first["parameters"] == other["parameters"]
    assert first["int8_kilobytes"] > 0.9 * first["parameters"] / 1000 and first["int8_milliseconds"] > 0
    assert "int8_kilobytes" not in other and other["training_megabytes"] >= 0
