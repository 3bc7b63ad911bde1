"""Glow: how its checkpoints are trained, and what invertible 1x1 convolutions are worth beside fixed permutations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from zoo.experiments import image_flows
from zoo.experiments.image_flows import GAUSSIAN
from zoo.experiments.report import Ledger, Progress, difference, spread, write_results
from zoo.generative.glow import Glow

# === Recipes ===

# Share of the updates in which the learning rate rises to its value.
WARM_UP = 0.05


def compile_model(model: Glow, num_updates: int) -> None:
    """Compiles a model with the paper's optimiser: Adam, its learning rate constant after a linear warm-up."""
    rate = keras.optimizers.schedules.PolynomialDecay(0.0, max(round(WARM_UP * num_updates), 1), 1e-3)
    # XLA takes longer to compile these graphs than it saves on a CPU.
    model.compile(optimizer=keras.optimizers.Adam(rate), jit_compile=False)


RECIPES = image_flows.recipes("glow", compile_model)


# === Experiment ===


CLAIM = (
    "Mixing channels by learned invertible 1x1 convolutions gives a higher likelihood than a fixed random permutation, and "
    "that a higher one than reversing the channels, for additive and for affine couplings; affine couplings do better than "
    "additive ones (paper, section 5.1 and figure 3)."
)
MIXINGS = {"1x1 convolution": "convolution", "random permutation": "shuffle", "reversal": "reverse"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    f"{coupling}, {name}": {"coupling": coupling, "permutation": permutation}
    for coupling in ("affine", "additive")
    for name, permutation in MIXINGS.items()
}
SHOWN = "affine, 1x1 convolution"
# Half the steps of the preset `digits`.
NETWORK = {"num_steps": 4}


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 1000,
    network: Mapping[str, Any] = NETWORK,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm on digits with every seed and writes `glow.json` and `glow.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every arm.
        updates: int. Budget of every trained arm.
        network: mapping. Constructor arguments that differ from the preset `digits`.
        progress: callable that takes one line per run.
    """
    used = RECIPES["digits"]
    epochs = max(updates // used.steps_per_epoch, 1)
    settings = {"dataset": "digits", "split": "test", "updates": updates, "batch_size": 128, "network": dict(network)}
    ledger = Ledger(directory / "glow.runs.json", settings)
    for seed in range(seeds):
        ledger.run(GAUSSIAN, seed, lambda seed=seed: image_flows.gaussian_baseline(seed), progress)
        for arm, changes in ARMS.items():

            def run(changes: Mapping[str, Any] = changes, seed: int = seed) -> dict[str, Any]:
                return image_flows.run_arm(used, {**network, **changes}, seed, epochs)

            ledger.run(arm, seed, run, progress)
    progress("figure")
    shown, _ = image_flows.train_arm(used, {**network, **ARMS[SHOWN]}, 0, epochs)
    pairs = {f"{better} instead of {worse}": (better, worse) for better, worse in _claimed_pairs()}
    write_results(
        "glow",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger),
        command=f"zoo reproduce glow --seeds {seeds} --updates {updates}",
        tables={
            "bits_per_dimension": ledger.summary("bits_per_dimension"),
            "nats": ledger.summary("nats"),
            "bits_per_dimension_saved": {
                name: difference(ledger, better, worse, "bits_per_dimension") for name, (better, worse) in pairs.items()
            },
        },
        figure=image_flows.figure_of_arms(ledger, [GAUSSIAN, *ARMS], shown, used),
        settings={**settings, "seeds": seeds},
    )


def _claimed_pairs() -> list[tuple[str, str]]:
    """Returns the pairs of arms of which the paper says that the first does better."""
    convolution, shuffle, reverse = MIXINGS
    mixings = [
        (f"{coupling}, {better}", f"{coupling}, {worse}")
        for coupling in ("affine", "additive")
        for better, worse in ((convolution, shuffle), (convolution, reverse), (shuffle, reverse))
    ]
    return mixings + [(f"affine, {name}", f"additive, {name}") for name in MIXINGS]


def _verdict(ledger: Ledger) -> str:
    bits = ", ".join(f"{arm} {spread(ledger.values(arm, 'bits_per_dimension'))}" for arm in (GAUSSIAN, *ARMS))
    compared = "; ".join(
        f"{better} against {worse}: {image_flows.comparison(ledger, better, worse)}"
        for better, worse in _claimed_pairs()
    )
    return f"Test bits per dimension at equal updates, less is better: {bits}. {compared}."
