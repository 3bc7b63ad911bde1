"""Transformer-XH: how its checkpoint is trained, and whether attention that hops between texts puts evidence together.

Claims take one, two or three sentences of WordNet to verify. A sentence links to those about the noun it mentions. Nouns are
placeholders, numbered anew in each claim, so that no fact can be learned by heart. Beside models with zero to three hops: the
released code's hop attention, the mean of all hubs on top of a model without hops, all sentences in one sequence, and all
sentences connected, where attention itself must find which ones belong together.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from zoo import catalog
from zoo.datasets import load_arrays, wordnet_claims
from zoo.datasets.fever import LABELS
from zoo.experiments.report import Ledger, Progress, difference, write_results
from zoo.experiments.training import cosine_adam
from zoo.model import Arrays, Runner
from zoo.sequence.evidence_graphs import IGNORED, SEPARATOR, word_tokenizer
from zoo.sequence.transformer_xh import EVALUATION_BATCH, TransformerXHVerifier
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Names that a claim with nine sentences may hold.
NUM_PLACEHOLDERS = 20
BATCH = 32

Claims = Mapping[str, np.ndarray]


# === Recipe ===


def prepare(model: TransformerXHVerifier, dataset: str) -> None:
    """Sets the tokenizer: the relations and placeholders."""
    model.set_assets({"tokenizer.json": word_tokenizer(wordnet_claims.RELATIONS, NUM_PLACEHOLDERS)})


def shuffled_claims(model: TransformerXHVerifier, claims: Claims, seed: int) -> tf.data.Dataset:
    """Returns endless shuffled batches of claims.

    Args:
        model: makes graphs of the claims.
        claims: mapping of arrays, see `TransformerXHVerifier.claim_arrays`.
        seed: int.
    """
    slices = tf.data.Dataset.from_tensor_slices(model.claim_arrays(claims))
    shuffled = slices.shuffle(len(claims["label"]), seed=seed).repeat()
    return shuffled.batch(BATCH, drop_remainder=True)


def _data(model: TransformerXHVerifier, dataset: str, seed: int) -> TrainingData:
    validation = tf.data.Dataset.from_tensor_slices(model.claim_arrays(load_arrays(dataset, "validation")))
    return TrainingData(shuffled_claims(model, load_arrays(dataset, "train"), seed), validation.batch(EVALUATION_BATCH))


def _evaluate(model: TransformerXHVerifier, dataset: str, split: str) -> dict[str, float]:
    """Returns the accuracy of a split, of all claims and by the sentences they take."""
    hits = model.hits(_runner(model), dataset, split)
    return {"accuracy": float(hits.mean()), **_by_evidence(hits, load_arrays(dataset, split))}


def _runner(model: TransformerXHVerifier) -> Runner:
    predict = tf.function(model.signatures()["predict"].function, reduce_retracing=True)

    def run(signature: str, inputs: Arrays) -> Arrays:
        outputs = predict(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run


def _by_evidence(hits: np.ndarray, claims: Claims) -> dict[str, float]:
    return {
        f"accuracy_{number}_evidence": float(hits[claims["num_evidence"] == number].mean())
        for number in range(1, len(wordnet_claims.RELATIONS) + 1)
    }


RECIPES = {
    "wordnet": Recipe(
        method="transformer_xh",
        preset="wordnet",
        dataset="wordnet_claims",
        epochs=8,
        steps_per_epoch=150,
        data=_data,
        compile=cosine_adam(2e-3),
        evaluate=_evaluate,
        monitor="val_loss",
        prepare=prepare,
        metadata={"licence": "WordNet 3.0 licence"},
    )
}


# === Experiment ===

CLAIM = (
    "Hop attention puts evidence of several texts together: it gains on claims that take several sentences and not on those "
    "that take one (paper, section 5: gains are largest where several pieces of evidence are needed)."
)
WITHOUT = "no hop"
ONE_SEQUENCE = "one sequence"
MEAN = "no hop, mean of hubs"
CONNECTED = "3 hops, all connected"
# What each arm changes in the experiment's network.
ARMS: Mapping[str, Mapping[str, Any]] = {
    WITHOUT: {"num_hop_layers": 0},
    "1 hop": {"num_hop_layers": 1},
    "2 hops": {"num_hop_layers": 2},
    "3 hops": {"num_hop_layers": 3},
    "3 hops, gat": {"num_hop_layers": 3, "hop_attention": "gat"},
    CONNECTED: {"num_hop_layers": 3, "link_mentions": False},
    MEAN: {"num_hop_layers": 0},
    ONE_SEQUENCE: {"num_hop_layers": 0, "num_nodes": 1, "sequence_length": 35},
}
HOPS = (WITHOUT, "1 hop", "2 hops", "3 hops")
SHOWN = "3 hops"
# The preset `wordnet`, narrower: eight arms with three seeds take about 25 minutes on one core.
NETWORK = {"hidden_dim": 32, "intermediate_dim": 64, "initializer_stddev": 0.15}
LEARNING_RATE = 3e-3
NUMBERS_OF_SENTENCES = (5, 6, 7, 8, 9)
# Claims that accuracy by the number of sentences is measured on.
NUM_MEASURED = 450


@keras.saving.register_keras_serializable(package="zoo")
class MeanVerifier(TransformerXHVerifier):
    """A baseline: one label from the mean of all hubs, where a graph network on top of an encoder would be."""

    def mixture(self, scores: Any, logits: Any, node_mask: Any) -> Any:
        """Returns log-probabilities of the mean logits, which are those of the mean hub."""
        mask = ops.expand_dims(ops.cast(node_mask, logits.dtype), -1)
        total = ops.sum(logits * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1.0)
        return ops.log_softmax(total, axis=-1)


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 600,
    network: Mapping[str, Any] = NETWORK,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm with every seed and writes `transformer_xh.json`, `.png` and `_attention.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of an arm, of 32 claims each.
        network: mapping. Constructor arguments that differ from the preset `wordnet`.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": "wordnet_claims", "split": "test", "updates": updates, "batch_size": BATCH, **network}
    ledger = Ledger(directory / "transformer_xh.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: _run(arm, network, updates, seed), progress)
    keys = [f"accuracy_{number}_evidence" for number in (1, 2, 3)]
    gains = {
        arm: {key: {**difference(ledger, WITHOUT, arm, key), "least": _least_gain(ledger, arm, key)} for key in keys}
        for arm in ARMS
        if arm != WITHOUT
    }
    tables = {
        **{key: ledger.summary(key) for key in ("accuracy", *keys)},
        "gain_over_no_hop": gains,
        "attention_to_needed_sentences_if_all_connected": ledger.values(CONNECTED, "attention_to_needed"),
        "parameters": {arm: ledger.values(arm, "parameters")[0] for arm in ARMS},
        "accuracy_by_number_of_sentences": {arm: _mean_by_sentences(ledger, arm) for arm in (WITHOUT, SHOWN)},
    }
    write_results(
        "transformer_xh",
        directory,
        claim=CLAIM,
        verdict=verdict(gains[SHOWN], ledger.summary("accuracy_2_evidence"), ledger.summary("accuracy_3_evidence")),
        command=f"zoo reproduce transformer_xh --seeds {seeds} --updates {updates}",
        tables=tables,
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds},
        more_figures={"attention": _attention_figure(ledger)},
    )


def _build(arm: str, network: Mapping[str, Any]) -> TransformerXHVerifier:
    config = {**catalog.info("transformer_xh").preset("wordnet").config, **network, **ARMS[arm]}
    model = (MeanVerifier if arm == MEAN else TransformerXHVerifier)(**config).build_from_signature()
    prepare(model, "wordnet_claims")
    return model


def _claims(arm: str, split: str, num_sentences: int = wordnet_claims.NUM_SENTENCES) -> Claims:
    """Returns the claims of a split as an arm reads them."""
    claims = _loaded(split, num_sentences)
    if arm != ONE_SEQUENCE:
        return claims
    # One text of all sentences: there is no sentence left to choose.
    pages = zip(claims["title"][:, 1:].tolist(), claims["evidence"].tolist(), strict=True)
    joined = [[f" {SEPARATOR} ".join(_alternate(sentences, titles))] for titles, sentences in pages]
    return {
        **claims,
        "title": claims["title"][:, :1],
        "evidence": np.array(joined),
        "evidence_label": np.full((len(joined), 1), IGNORED, "int32"),
    }


@functools.cache
def _loaded(split: str, num_sentences: int) -> Claims:
    """Makes claims once for all arms."""
    return load_arrays("wordnet_claims", split, num_sentences=num_sentences)


def _alternate(sentences: Sequence[str], titles: Sequence[str]) -> list[str]:
    """Returns the first sentence, then each further title and its sentence."""
    return [sentences[0], *(text for pair in zip(titles, sentences[1:], strict=True) for text in pair)]


def _run(arm: str, network: Mapping[str, Any], updates: int, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    model = _build(arm, network)
    cosine_adam(LEARNING_RATE)(model, updates)
    data = shuffled_claims(model, _claims(arm, "train"), seed)
    model.fit(data, steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)
    claims, run = _claims(arm, "test"), _runner(model)
    hits = _hits(model, run, claims)
    found = {"parameters": model.count_params(), "accuracy": float(hits.mean()), **_by_evidence(hits, claims)}
    if arm in (WITHOUT, SHOWN):
        found["accuracy_by_sentences"] = {
            str(number): float(_hits(model, run, _first(_claims(arm, "test", number))).mean())
            for number in NUMBERS_OF_SENTENCES
        }
    if arm == CONNECTED:
        found["attention_to_needed"], found["example"] = _hop_weights(model, _first(claims))
    return found


def _first(claims: Claims) -> Claims:
    return {name: array[:NUM_MEASURED] for name, array in claims.items()}


def _hits(model: TransformerXHVerifier, run: Runner, claims: Claims) -> np.ndarray:
    inputs, targets = model.claim_arrays(claims)
    count = len(targets["label"])
    labels = [
        run("predict", {name: array[start : start + EVALUATION_BATCH] for name, array in inputs.items()})["label_probs"]
        for start in range(0, count, EVALUATION_BATCH)
    ]
    return np.concatenate(labels).argmax(axis=1) == targets["label"]


def _hop_weights(model: TransformerXHVerifier, claims: Claims) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the share of attention between needed sentences, and all of it for one claim of three sentences.

    The share is that of the head and hop where it is largest, over claims that several given sentences are needed for.
    """
    inputs, targets = model.claim_arrays(claims)
    _, layers = model.encode({name: tf.constant(array) for name, array in inputs.items()})
    weights = np.stack([layer.numpy() for layer in layers], axis=1)
    needed = targets["node_labels"] == 1
    count = needed.sum(axis=1)
    several = count > 1
    between = (weights * needed[:, None, None, None, :]).sum(-1)
    share = (between * needed[:, None, None, :]).sum(-1)[several] / count[several, None, None]
    expected = (count[several] - 1).mean() / (needed.shape[1] - 1)
    chosen = np.flatnonzero((claims["num_evidence"] == 3) & (targets["label"] == LABELS.index("SUPPORTS")))[0]
    order = np.argsort(~needed[chosen], kind="stable")
    example = {
        "claim": str(claims["claim"][chosen]),
        "evidence": [f"{claims['title'][chosen][node]} {claims['evidence'][chosen][node]}" for node in order],
        "num_needed": int(count[chosen]),
        # The strongest head of each hop.
        "weights": weights[chosen].max(axis=1)[:, order][:, :, order].round(4).tolist(),
    }
    return {"share": float(share.mean(axis=0).max()), "without_preference": float(expected)}, example


def _least_gain(ledger: Ledger, arm: str, key: str) -> float:
    pairs = zip(ledger.values(arm, key), ledger.values(WITHOUT, key), strict=True)
    return min(value - without for value, without in pairs)


def _mean_by_sentences(ledger: Ledger, arm: str) -> dict[str, float]:
    runs = ledger.values(arm, "accuracy_by_sentences")
    return {number: statistics.fmean(run[number] for run in runs) for number in runs[0]}


def verdict(gains: Mapping[str, Mapping[str, float]], two: Mapping[str, Any], three: Mapping[str, Any]) -> str:
    """Says what the numbers show.

    Args:
        gains: mapping from `accuracy_<n>_evidence` to `mean` and `least` gain of three hops over none.
        two: mapping from arm to the `mean` accuracy on claims of two sentences.
        three: the same of three sentences.

    Returns:
        str.
    """
    one_gain, two_gain, three_gain = (gains[f"accuracy_{number}_evidence"] for number in (1, 2, 3))
    several = min(two_gain["least"], three_gain["least"]) > 0
    shown = several and one_gain["mean"] < 0.25 * min(two_gain["mean"], three_gain["mean"])
    order = [three[arm]["mean"] for arm in HOPS]
    by_hops = ", ".join(f"{value:.3f}" for value in order)
    rises = all(more > fewer for fewer, more in itertools.pairwise(order))
    return (
        f"{'Shows' if shown else 'Does not show'}: three hops over none gain {one_gain['mean']:+.3f} in accuracy on claims "
        f"of one sentence, {two_gain['mean']:+.3f} of two and {three_gain['mean']:+.3f} of three; two and three gain "
        f"{'in every seed' if several else 'not in every seed'}. Accuracy on three sentences "
        f"{'rises' if rises else 'does not rise'} with every hop ({by_hops} for 0 to 3). "
        f"On two sentences: {ONE_SEQUENCE} {two[ONE_SEQUENCE]['mean']:.3f}, {MEAN} {two[MEAN]['mean']:.3f}, {CONNECTED} "
        f"{two[CONNECTED]['mean']:.3f}."
    )


# === Figures ===


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=[2, 1])
    _draw_bars(bars, ledger)
    for arm in (WITHOUT, SHOWN):
        mean = _mean_by_sentences(ledger, arm)
        lines.plot([int(number) for number in mean], list(mean.values()), marker="o", label=arm)
    lines.axhline(1 / 3, color="grey", linestyle=":", label="chance")
    lines.set(
        xlabel="sentences per claim (trained with 6)",
        ylabel="accuracy",
        title="More distracting sentences",
        xticks=NUMBERS_OF_SENTENCES,
        ylim=(0, 1.02),
    )
    lines.legend(fontsize=8)
    return figure


def _draw_bars(axes: Axes, ledger: Ledger) -> None:
    width = 0.85 / len(ARMS)
    for index, arm in enumerate(ARMS):
        summaries = [ledger.summary(f"accuracy_{number}_evidence")[arm] for number in (1, 2, 3)]
        places = np.arange(3) + (index - (len(ARMS) - 1) / 2) * width
        heights, spreads = ([summary[key] for summary in summaries] for key in ("mean", "std"))
        axes.bar(places, heights, width, yerr=spreads, capsize=2, label=arm)
    axes.axhline(1 / 3, color="grey", linestyle=":", label="chance")
    axes.set(
        xticks=range(3),
        xticklabels=["1", "2", "3"],
        xlabel="sentences that a claim takes",
        ylabel="test accuracy (mean, standard deviation of seeds)",
        title="Three labels, by needed evidence",
        ylim=(0, 1.02),
    )
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def _attention_figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    example = ledger.values(CONNECTED, "example")[0]
    layers, sentences, needed = example["weights"], example["evidence"], example["num_needed"]
    figure = Figure(figsize=(4.2 * len(layers) + 2, 5), layout="constrained")
    grid = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    for index, (axes, weights) in enumerate(zip(grid, layers, strict=True)):
        image = axes.imshow(weights, vmin=0, vmax=1, cmap="viridis")
        axes.set(xticks=range(len(sentences)), yticks=range(len(sentences)), title=f"hop {index + 1}", xlabel="from")
        axes.set_xticklabels([text.split()[0] for text in sentences], rotation=60, ha="right", fontsize=8)
        axes.set_yticklabels(sentences, fontsize=8)
        axes.plot([-0.5, needed - 0.5, needed - 0.5], [needed - 0.5, needed - 0.5, -0.5], color="red")
    grid[0].set_ylabel("receiving sentence")
    figure.colorbar(image, ax=grid, label="weight of the strongest head", shrink=0.7)
    title = f"{example['claim']} (supported; all sentences connected; the needed ones within the red square)"
    figure.suptitle(title, fontsize=10, y=1.05)
    return figure
