"""Variational inference: how its checkpoint is trained, and how near each guide comes to posteriors that are known.

Posteriors: linear regression (diabetes), whose posterior and evidence are exact; logistic regression (breast cancer) and
eight schools, whose reference is a long run of NUTS. Guides: independent Gaussians, a full covariance, an inverse
autoregressive flow, all with the same number of updates and samples. Beside them: planar flows on a 2-D energy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from zoo.arguments import require
from zoo.experiments.report import Ledger, Progress, difference, mean_and_std, spread, write_results
from zoo.generative.posteriors import Posterior, as_posterior, breast_cancer_rows
from zoo.generative.variational_inference import ADVIStepSize, VariationalInference
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES = 16
VALIDATION_SAMPLES = 4096
LEARNING_RATE = 0.03


# === Recipes ===


def noise(num_samples: int, dataset: str) -> Callable[[VariationalInference, str, int], TrainingData]:
    """Returns the `data` function of a recipe: noise, since the observations are part of the target."""

    def data(model: VariationalInference, chosen: str, seed: int) -> TrainingData:
        require(chosen == dataset, "dataset", f"{dataset!r}, which the preset's target holds", repr(chosen))
        validation = model.noise(VALIDATION_SAMPLES, seed=seed + 1).take(1)
        return TrainingData(model.noise(num_samples, seed), validation)

    return data


def compile_model(model: VariationalInference, num_updates: int) -> None:
    """Compiles a model with Adam; the learning rate falls to zero, on a cosine, in the second half."""
    half = max(num_updates // 2, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, half, warmup_target=LEARNING_RATE, warmup_steps=num_updates - half
    )
    # XLA takes longer to compile these small graphs than it saves on a CPU.
    model.compile(optimizer=keras.optimizers.Adam(schedule), jit_compile=False)


def compile_advi(model: VariationalInference, num_updates: int) -> None:
    """Compiles a model with the step sizes of ADVI; of the scales the paper searches, 0.1 is the best one here."""
    model.compile(optimizer=ADVIStepSize(0.1), jit_compile=False)


def evaluate(model: VariationalInference, dataset: str, split: str) -> dict[str, float]:
    """Returns the ELBO in nats and, where rows are held out, their mean log predictive density in nats."""
    metrics = {"elbo": model.diagnostics()["elbo"]}
    if dataset == "breast_cancer":
        metrics["log_predictive"] = float(model.log_predictive(breast_cancer_rows(split)).mean())
    return metrics


def _recipe(preset: str, dataset: str, **changes: Any) -> Recipe:
    used = {"data": noise(SAMPLES, dataset), "compile": compile_model, "epochs": 60, **changes}
    return Recipe(
        method="variational_inference",
        preset=preset,
        dataset=dataset,
        steps_per_epoch=100,
        evaluate=evaluate,
        monitor="val_loss",
        **used,
    )


ADVI = {"data": noise(1, "breast_cancer"), "compile": compile_advi, "epochs": 100}
RECIPES = {
    "breast_cancer_iaf": _recipe("breast_cancer_iaf", "breast_cancer"),
    "diabetes_mean_field": _recipe("diabetes_mean_field", "diabetes"),
    "diabetes_full_rank": _recipe("diabetes_full_rank", "diabetes"),
    "advi_meanfield": _recipe("advi_meanfield", "breast_cancer", **ADVI),
    "advi_fullrank": _recipe("advi_fullrank", "breast_cancer", **ADVI),
}


# === Experiment ===


CLAIM = (
    "Optimisation recovers posterior means at a fraction of the cost of MCMC; independent Gaussians underestimate variance, "
    "and richer guides close a gap to the evidence that is known exactly (Blei et al. 2017, sections 2.1 and 5; Rezende and "
    "Mohamed 2015, section 6.1)."
)
REGRESSION = "diabetes_regression"
TARGETS = (REGRESSION, "breast_cancer_logistic", "eight_schools")
GUIDES = ("mean_field", "full_rank", "iaf")
NUTS = "NUTS"
ENERGY = "energy_1"
PLANAR = (2, 8, 32)
# Columns of the diabetes data whose weights are the most dependent: serum values s1 and s2.
PAIR = (4, 5)
CURVE_POINTS = 60
COMPARED_SAMPLES = 10_000


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 4000,
    nuts_samples: int = 2000,
    progress: Progress = lambda message: None,
) -> None:
    """Fits every guide to every posterior and writes `variational_inference.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Runs of every guide; NUTS runs once.
        updates: int. Updates of every guide, of 16 samples each.
        nuts_samples: int. Samples of each of two chains, after half as many for adaptation.
        progress: callable that takes one line per run.
    """
    settings = {"updates": updates, "samples": SAMPLES, "learning_rate": LEARNING_RATE, "nuts_samples": nuts_samples}
    ledger = Ledger(directory / "variational_inference.runs.json", settings)
    for target in TARGETS:
        ledger.run(_arm(target, NUTS), 0, lambda target=target: run_nuts(target, nuts_samples), progress)
    for seed in range(seeds):
        for target in TARGETS:
            reference = _reference(ledger, target)
            for guide in GUIDES:

                def run(target: str = target, guide: str = guide, seed: int = seed, reference: Any = reference) -> Any:
                    return run_guide(target, guide, seed, updates, reference)

                ledger.run(_arm(target, guide), seed, run, progress)
        for layers in PLANAR:
            arm = _arm(ENERGY, f"planar {layers}")
            ledger.run(arm, seed, lambda layers=layers, seed=seed: run_planar(layers, seed, updates), progress)
    _, _, evidence = exact_regression(as_posterior(REGRESSION))
    write_results(
        "variational_inference",
        directory,
        claim=CLAIM,
        verdict=_verdict(ledger, evidence),
        command=f"zoo reproduce variational_inference --seeds {seeds} --updates {updates}",
        tables={
            "log_evidence": {REGRESSION: evidence, ENERGY: energy_log_evidence()},
            **{key: _table(ledger, key) for key in ("elbo", "pareto_k", "mean_error", "sd_error", "seconds")},
        },
        figure=_figure(ledger, evidence),
        settings={**settings, "seeds": seeds},
    )


def _arm(target: str, method: str) -> str:
    return f"{target}: {method}"


def _table(ledger: Ledger, key: str) -> dict[str, Any]:
    """Summarises a number of those arms that have it."""
    chosen = {arm: runs for arm, runs in ledger.content["runs"].items() if key in next(iter(runs.values()))}
    summary = {arm: [run[key] for run in runs.values()] for arm, runs in chosen.items()}
    return {arm: mean_and_std(v) for arm, v in summary.items()}


def _reference(ledger: Ledger, target: str) -> Mapping[str, Any]:
    """Returns mean and standard deviation of the unconstrained latents: exact, or those of NUTS."""
    if target == REGRESSION:
        mean, covariance, _ = exact_regression(as_posterior(target))
        return {"mean": mean, "sd": np.sqrt(np.diag(covariance))}
    run = ledger.content["runs"][_arm(target, NUTS)]["0"]
    return {"mean": np.array(run["mean"]), "sd": np.array(run["sd"])}


def exact_regression(posterior: Posterior) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns mean, covariance and log evidence of `diabetes_regression` in closed form."""
    features, target = (posterior.data[name].astype("float64") for name in ("features", "target"))
    covariance = np.linalg.inv(features.T @ features / 0.5 + np.eye(features.shape[1]))
    mean = covariance @ features.T @ target / 0.5
    marginal = features @ features.T + 0.5 * np.eye(len(target))
    distance = target @ np.linalg.solve(marginal, target)
    return mean, covariance, float(-0.5 * (np.linalg.slogdet(2 * np.pi * marginal)[1] + distance))


def energy_log_evidence(limit: float = 6.0, step: float = 0.02) -> float:
    """Returns the log of the integral of exp(-U) over the plane, by summation."""
    _, log_density = _energy_grid(limit, step)
    return float(np.logaddexp.reduce(log_density.ravel()) + 2 * np.log(step))


def _energy_grid(limit: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(-limit, limit, step, dtype="float32")
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_density = as_posterior(ENERGY).log_prior({"z": tf.constant(points)}).numpy().astype("float64")
    return axis, log_density.reshape(len(axis), len(axis))


# === Runs ===


def run_guide(target: str, guide: str, seed: int, updates: int, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Fits a guide and compares it with the posterior.

    Args:
        target: str. Name of a posterior.
        guide: str.
        seed: int.
        updates: int.
        reference: mapping. Mean and standard deviation of the posterior, `(num_latents,)` each.

    Returns:
        Dict of the diagnostics, seconds of the fit (with tracing, as for NUTS), the curve of the ELBO, moments, and errors:
        the largest of the means, also in units of the posterior's standard deviation, and the largest relative one of the
        standard deviations.
    """
    model, seconds, curve = _fit(target, guide, seed, updates)
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((COMPARED_SAMPLES, model.surrogate.noise_dim)).astype("float32")
    samples = np.asarray(model.surrogate(tf.constant(drawn))[0], "float64")
    return {
        **model.diagnostics(),
        "seconds": seconds,
        "curve": curve,
        **_moments(samples),
        **_errors(samples, reference),
    }


def _fit(
    target: str, guide: str, seed: int, updates: int, **options: Any
) -> tuple[VariationalInference, float, list[list[float]]]:
    keras.utils.set_random_seed(seed)
    model = VariationalInference(target, guide, **options)
    compile_model(model, updates)
    steps = max(updates // CURVE_POINTS, 1)
    data = model.noise(SAMPLES, seed)
    start = time.perf_counter()
    history = model.fit(data, epochs=-(-updates // steps), steps_per_epoch=steps, shuffle=False, verbose=0)
    seconds = time.perf_counter() - start
    losses = history.history["loss"]
    return model, seconds, [[steps * (index + 1), -loss] for index, loss in enumerate(losses)]


def _moments(samples: np.ndarray) -> dict[str, Any]:
    moments = {"mean": samples.mean(0).tolist(), "sd": samples.std(0).tolist()}
    if samples.shape[1] > max(PAIR):
        moments["pair_covariance"] = np.cov(samples[:, PAIR].T).tolist()
    return moments


def _errors(samples: np.ndarray, reference: Mapping[str, Any]) -> dict[str, float]:
    mean, sd = np.asarray(reference["mean"]), np.asarray(reference["sd"])
    return {
        "mean_error": float(np.max(np.abs(samples.mean(0) - mean) / sd)),
        "mean_difference": float(np.max(np.abs(samples.mean(0) - mean))),
        "sd_error": float(np.max(np.abs(samples.std(0) / sd - 1.0))),
    }


def run_planar(layers: int, seed: int, updates: int) -> dict[str, Any]:
    """Fits a planar flow to a 2-D energy; returns its diagnostics, its gap to the evidence and, for seed 0, samples."""
    model, seconds, _ = _fit(ENERGY, "planar", seed, updates, num_layers=layers)
    found = model.diagnostics()
    run = {**found, "gap": energy_log_evidence() - found["elbo"], "seconds": seconds}
    # The figure shows one run.
    return {**run, "samples": np.round(model.sample(2000, seed=seed)["z"], 2).tolist()} if seed == 0 else run


def run_nuts(target: str, num_samples: int, num_chains: int = 2, seed: int = 0) -> dict[str, Any]:
    """Samples a posterior's unconstrained latents with the no-U-turn sampler of TensorFlow Probability.

    Args:
        target: str.
        num_samples: int. Samples of each chain, after half as many for adaptation.
        num_chains: int.
        seed: int.

    Returns:
        Dict of moments, seconds, the largest split R-hat and the smallest effective sample size; for the posterior
        that is known, errors too.
    """
    posterior = as_posterior(target)
    start = time.perf_counter()
    states = _nuts_states(posterior, num_samples, num_chains, seed)
    seconds = time.perf_counter() - start
    chains = tf.constant(states)
    samples = states.reshape(-1, posterior.num_latents).astype("float64")
    errors = {}
    if target == REGRESSION:
        mean, covariance, _ = exact_regression(posterior)
        errors = _errors(samples, {"mean": mean, "sd": np.sqrt(np.diag(covariance))})
    return {
        **_moments(samples),
        **errors,
        "seconds": seconds,
        "rhat": float(tf.reduce_max(tfp.mcmc.potential_scale_reduction(chains, split_chains=True))),
        "effective_samples": float(
            tf.reduce_min(tfp.mcmc.effective_sample_size(chains, cross_chain_dims=1, filter_beyond_positive_pairs=True))
        ),
    }


def _nuts_states(posterior: Posterior, num_samples: int, num_chains: int, seed: int) -> np.ndarray:
    """Returns states `(num_samples, num_chains, num_latents)`."""

    def log_joint(unconstrained: tf.Tensor) -> tf.Tensor:
        parts, log_det = posterior.constrain(unconstrained)
        return posterior.log_prob(parts) + log_det

    adaptation = max(num_samples // 2, 1)
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        tfp.mcmc.NoUTurnSampler(log_joint, step_size=0.1), num_adaptation_steps=max(int(0.8 * adaptation), 1)
    )

    @tf.function(autograph=False)
    def chain() -> tf.Tensor:
        return tfp.mcmc.sample_chain(
            num_results=num_samples,
            num_burnin_steps=adaptation,
            current_state=0.1 * tf.random.stateless_normal((num_chains, posterior.num_latents), (seed, 1)),
            kernel=kernel,
            trace_fn=None,
            seed=(seed, 2),
        )

    return chain().numpy()


# === Verdict ===


def _verdict(ledger: Ledger, evidence: float) -> str:
    elbo = {guide: ledger.values(_arm(REGRESSION, guide), "elbo") for guide in GUIDES}
    bounds = ", ".join(f"{spread(values)} with {guide}" for guide, values in elbo.items())
    nuts = ledger.content["runs"][_arm(REGRESSION, NUTS)]["0"]
    exact = np.sqrt(np.diag(exact_regression(as_posterior(REGRESSION))[1]))[list(PAIR)]
    sds = np.mean([np.array(sd)[list(PAIR)] for sd in ledger.values(_arm(REGRESSION, "mean_field"), "sd")], axis=0)
    seconds = statistics.fmean(ledger.values(_arm(REGRESSION, "full_rank"), "seconds"))
    gaps = ", ".join(f"{spread(ledger.values(_arm(ENERGY, f'planar {k}'), 'gap'))} with {k}" for k in PLANAR)
    return (
        f"Linear regression has log evidence {evidence:.3f}; the ELBO is {bounds}. Independent Gaussians give the weights of "
        f"s1 and s2 standard deviations of {sds[0]:.3f} and {sds[1]:.3f} where the posterior has {exact[0]:.3f} and "
        f"{exact[1]:.3f}. {_means(ledger)} {_order(ledger)} A full covariance took {seconds:.0f} s to fit, NUTS "
        f"{nuts['seconds']:.0f} s with {nuts['effective_samples']:.0f} effective samples; the largest relative error of a "
        f"standard deviation is {statistics.fmean(ledger.values(_arm(REGRESSION, 'full_rank'), 'sd_error')):.1%} and "
        f"{nuts['sd_error']:.1%}. Planar flows on a 2-D energy are {gaps} maps short of the evidence, in nats."
    )


def _means(ledger: Ledger) -> str:
    largest = max(max(ledger.values(_arm(REGRESSION, guide), "mean_difference")) for guide in GUIDES)
    agree = "agree" if largest <= 0.02 else "do not agree"
    return f"Means of all guides {agree} with the exact ones within 0.02 (largest difference {largest:.4f})."


def _order(ledger: Ledger) -> str:
    parts = []
    for target in TARGETS:
        arms = {guide: _arm(target, guide) for guide in GUIDES}
        gain = -difference(ledger, arms["full_rank"], arms["mean_field"], "elbo")["mean"]
        flow = -difference(ledger, arms["iaf"], arms["full_rank"], "elbo")["mean"]
        # Both numbers are means of draws: differences below two standard errors are none.
        error = 2 * max(max(ledger.values(arm, "elbo_error")) for arm in arms.values())
        holds = gain > error and flow > -error
        state = "holds" if holds else "does not hold"
        parts.append(f"{state} on {target} ({gain:+.2f} and {flow:+.2f} nats)")
    return f"The order mean_field < full_rank <= iaf of the ELBO {'; '.join(parts)}."


# === Figure ===

COLORS = {"mean_field": "tab:orange", "full_rank": "tab:blue", "iaf": "tab:green", NUTS: "tab:purple", "exact": "black"}
MARKERS = dict(zip(TARGETS, "osD", strict=True))


def _figure(ledger: Ledger, evidence: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    curves, ellipses, costs = upper.subplots(1, 3)
    _show_curves(curves, ledger, evidence)
    _show_ellipses(ellipses, ledger)
    _show_costs(costs, ledger)
    _show_planar(lower.subplots(1, 1 + len(PLANAR)), ledger)
    lower.suptitle("A 2-D energy (Rezende and Mohamed 2015) and planar flows fitted to it")
    return figure


def _show_curves(axes: Axes, ledger: Ledger, evidence: float) -> None:
    lowest = evidence
    for guide in GUIDES:
        for seed, curve in enumerate(ledger.values(_arm(REGRESSION, guide), "curve")):
            points = np.array(curve)
            axes.plot(*points.T, color=COLORS[guide], alpha=0.8, lw=1, label=guide if seed == 0 else None)
            lowest = min(lowest, points[len(points) // 2 :, 1].min())
    axes.axhline(evidence, color="black", ls="--", lw=1, label="exact log evidence")
    margin = max(evidence - lowest, 1.0)
    axes.set_ylim(evidence - 3 * margin, evidence + 0.3 * margin)
    axes.set(title="Linear regression, diabetes", xlabel="update", ylabel="ELBO in training (nats)")
    axes.legend(fontsize=8, loc="lower right")


def _show_ellipses(axes: Axes, ledger: Ledger) -> None:
    mean, covariance, _ = exact_regression(as_posterior(REGRESSION))
    pair = list(PAIR)
    shown = {"exact": (mean[pair], covariance[np.ix_(pair, pair)])}
    for method in (*GUIDES, NUTS):
        run = ledger.content["runs"][_arm(REGRESSION, method)]["0"]
        shown[method] = np.array(run["mean"])[pair], np.array(run["pair_covariance"])
    angle = np.linspace(0.0, 2 * np.pi, 200)
    for name, (center, matrix) in shown.items():
        # Holds 95 % of a Gaussian
        points = center[:, None] + 2.448 * np.linalg.cholesky(matrix) @ np.stack([np.cos(angle), np.sin(angle)])
        axes.plot(
            *points,
            color=COLORS[name],
            lw=3 if name == "exact" else 1.3,
            alpha=0.35 if name == "exact" else 1,
            label=name,
        )
    axes.set(title="95 % of the posterior", xlabel="weight of s1", ylabel="weight of s2")
    axes.legend(fontsize=8)


def _show_costs(axes: Axes, ledger: Ledger) -> None:
    for target in TARGETS:
        for method in (*GUIDES, NUTS):
            runs = ledger.content["runs"][_arm(target, method)].values()
            points = np.array([[run["seconds"], run["sd_error"]] for run in runs if "sd_error" in run])
            if len(points):
                axes.plot(*points.T, MARKERS[target], color=COLORS[method], ms=6, alpha=0.8)
    for target, marker in MARKERS.items():
        axes.plot([], [], marker, color="grey", label=target)
    for method in (*GUIDES, NUTS):
        axes.plot([], [], "s", color=COLORS[method], label=method)
    axes.set(xscale="log", yscale="log", xlabel="time (s)", ylabel="largest relative error of a standard deviation")
    axes.set_title("Error and cost (NUTS is the reference of the latter two)", fontsize=9)
    axes.legend(fontsize=7)


def _show_planar(all_axes: Any, ledger: Ledger) -> None:
    axis, log_density = _energy_grid(4.0, 0.05)
    extent = (axis[0], -axis[0]) * 2
    all_axes[0].imshow(np.exp(log_density), origin="lower", extent=extent, cmap="viridis")
    all_axes[0].set_title("exp(-U)")
    for axes, layers in zip(all_axes[1:], PLANAR, strict=True):
        run = ledger.content["runs"][_arm(ENERGY, f"planar {layers}")]["0"]
        samples = np.array(run["samples"])
        axes.hist2d(*samples.T, bins=60, range=[extent[:2]] * 2, cmap="viridis")
        axes.set_title(f"{layers} maps, gap {run['gap']:.2f} nats")
        axes.set_aspect("equal")
    for axes in all_axes:
        axes.set(xlabel="$z_1$")
    all_axes[0].set(ylabel="$z_2$")
