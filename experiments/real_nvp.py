"""Real NVP: how its checkpoints are trained, and what affine couplings, batch normalisation and scales are worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from zoo.experiments import image_flows
from zoo.experiments.image_flows import GAUSSIAN
from zoo.experiments.nice import RECIPES as NICE_RECIPES
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.generative.real_nvp import RealNVP

# === Recipes ===


def compile_model(model: RealNVP, num_updates: int) -> None:
    """Compiles a model with the paper's optimiser; its learning rate is constant, whatever the number of updates."""
    # XLA takes longer to compile these graphs than it saves on a CPU.
    model.compile(optimizer=keras.optimizers.Adam(1e-3), jit_compile=False)


RECIPES = image_flows.recipes("real_nvp", compile_model)


# === Experiment ===


CLAIM = (
    "Affine couplings, masked and in several scales, with batch normalisation give images a higher likelihood than NICE's "
    "additive couplings of flat vectors; scales save computation without loss (paper, sections 3 and 4)."
)
NICE = "NICE"
FULL = "Real NVP"
# What each arm changes in the experiment's network.
ARMS: Mapping[str, Mapping[str, Any]] = {
    FULL: {},
    "additive couplings": {"coupling": "additive"},
    "no batch normalisation": {"batch_norm": False},
    "nothing factored out": {"factor_out": False},
}
# Half the feature maps of the preset `digits`.
NETWORK = {"filters": 8}


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 1000,
    network: Mapping[str, Any] = NETWORK,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm on digits with every seed and writes `real_nvp.json` and `real_nvp.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Budget of every trained arm, NICE included.
        network: mapping. Constructor arguments that differ from the preset `digits`.
        progress: callable that takes one line per run.
    """
    used = RECIPES["digits"]
    epochs = max(updates // used.steps_per_epoch, 1)
    settings = {"dataset": "digits", "split": "test", "updates": updates, "batch_size": 128, "network": dict(network)}
    ledger = Ledger(directory / "real_nvp.runs.json", settings)
    for seed in range(seeds):
        ledger.run(GAUSSIAN, seed, lambda seed=seed: image_flows.gaussian_baseline(seed), progress)
        ledger.run(
            NICE, seed, lambda seed=seed: image_flows.run_arm(NICE_RECIPES["digits"], {}, seed, epochs), progress
        )
        for arm, changes in ARMS.items():

            def run(changes: Mapping[str, Any] = changes, seed: int = seed) -> dict[str, Any]:
                return image_flows.run_arm(used, {**network, **changes}, seed, epochs)

            ledger.run(arm, seed, run, progress)
    progress("figure")
    shown, _ = image_flows.train_arm(used, {**network, **ARMS[FULL]}, 0, epochs)
    arms = [GAUSSIAN, NICE, *ARMS]
    gains = {arm: difference(ledger, FULL, arm, "bits_per_dimension") for arm in arms if arm != FULL}
    write_results(
        "real_nvp",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, arms),
        command=f"zoo reproduce real_nvp --seeds {seeds} --updates {updates}",
        tables={
            "bits_per_dimension": ledger.summary("bits_per_dimension"),
            "nats": ledger.summary("nats"),
            "bits_per_dimension_saved_by_real_nvp": gains,
        },
        figure=image_flows.figure_of_arms(ledger, arms, shown, used),
        settings={**settings, "seeds": seeds},
    )


def _verdict(ledger: Ledger, arms: list[str]) -> str:
    bits = {arm: spread(ledger.values(arm, "bits_per_dimension")) for arm in arms}
    compared = "; ".join(
        f"{bits[arm]} {'for' if arm in (GAUSSIAN, NICE) else 'with'} {arm} ({image_flows.comparison(ledger, FULL, arm)})"
        for arm in arms
        if arm != FULL
    )
    return f"Test bits per dimension at equal updates, less is better: {bits[FULL]} for {FULL}, against {compared}."
