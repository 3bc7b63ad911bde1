"""ALBERT: how its checkpoint is trained, and what its three changes to BERT do.

Parameters shared by all layers, by attention, by the feed-forward networks or not at all; embeddings of several widths; and
sentence-order against next-sentence prediction, each judged by its own task and, from the frozen pooled vector, by the other
one's. A bag of words of both segments is the floor of both tasks.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo import catalog
from zoo.datasets import docstrings
from zoo.experiments.language_encoders import BATCH, adamw, evaluate, lamb, prepare, pretraining_data
from zoo.experiments.report import Ledger, Progress, difference, mean_and_std, shows, spread, write_results
from zoo.experiments.training import signature_runner
from zoo.language.albert import Albert
from zoo.language.pretraining_data import (
    HELD_OUT_SEED,
    Masking,
    held_out_examples,
    load_documents,
    masked_pairs,
    segment_pairs,
)
from zoo.language.text_encoder import EVALUATION_BATCH
from zoo.model import Arrays
from zoo.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASET = "docstrings"
_data = pretraining_data(max_ngram=3, whole_words=True)

RECIPES = {
    preset: Recipe(
        method="albert",
        preset=preset,
        dataset=DATASET,
        epochs=12,
        steps_per_epoch=500,
        data=_data,
        compile=adamw(1e-3),
        evaluate=evaluate,
        monitor="val_loss",
        prepare=prepare,
    )
    for preset in ("docstrings", "docstrings_128")
}


# === Experiment ===

CLAIM = (
    "Sharing all layers' parameters divides their number by the depth at a small loss; so does a narrow embedding (paper, "
    "tables 3 and 4). Next-sentence prediction teaches topics: it leaves the order of sentences near chance, while "
    "sentence-order prediction is learned beyond topics (table 5)."
)
SHARED, NSP, LAMB, WORDS = "all shared", "next sentence", "all shared, LAMB", "bag of words"
# But for the order of its parts a BERT of this size
WIDE = "not shared, embedding 128"
SHARING = {
    "not shared": {"share": "none"},
    "ffn shared": {"share": "ffn"},
    "attention shared": {"share": "attention"},
    SHARED: {},
}
WIDTHS = {"embedding 32": {"embedding_dim": 32}, "embedding 128": {"embedding_dim": 128}}
# What each arm changes in the preset `docstrings`
ARMS: Mapping[str, Mapping[str, Any]] = {
    **SHARING,
    **WIDTHS,
    WIDE: {"share": "none", "embedding_dim": 128},
    NSP: {"sentence_loss": "nsp"},
}
TASKS = {"sop": "order of sentences", "nsp": "next sentence"}
LEARNING_RATE, LAMB_RATE = 1e-3, 2e-3
# Pairs that a probe of the pooled vector, and a bag of words, learn from
NUM_PROBED, NUM_BAGGED = 4000, 12_000
# Inverse weight decay of the bag of words, best for both tasks together on the validation split
BAG_STRENGTH = 0.1
# What counts as a small loss in nats, and as near chance
SMALL_LOSS, SMALL_CHANGE, NEAR_CHANCE = 0.3, 0.1, 0.58


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 3000,
    network: Mapping[str, Any] | None = None,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm with every seed and writes `albert.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm; LAMB runs with the first one only.
        updates: int. Updates of an arm, of 32 sequences each.
        network: mapping or None. Constructor arguments that differ from the preset `docstrings`.
        progress: callable that takes one line per run.
    """
    network = network or {}
    settings = {"dataset": DATASET, "split": "test", "updates": updates, "batch_size": BATCH, **network}
    ledger = Ledger(directory / "albert.runs.json", settings)
    ledger.run(WORDS, 0, _bag_of_words, progress)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, lambda arm=arm, seed=seed: _run(ARMS[arm], network, updates, seed), progress)
    ledger.run(LAMB, 0, lambda: _run({}, network, updates, 0, lamb(LAMB_RATE)), progress)
    tables = {
        **{key: _summary(ledger, key) for key in ("masked_lm_loss", "masked_lm_accuracy", "sentence_accuracy")},
        "loss_over_not_shared": {
            **{arm: difference(ledger, "not shared", arm, "masked_lm_loss") for arm in list(SHARING)[1:]},
            "all shared, embedding 128": difference(ledger, WIDE, "embedding 128", "masked_lm_loss"),
        },
        "loss_of_embedding_32_over_128": difference(ledger, "embedding 128", "embedding 32", "masked_lm_loss"),
        "accuracy_by_task": {
            arm: {TASKS[task]: _accuracy(ledger, arm, task) for task in TASKS} for arm in (SHARED, NSP, WORDS)
        },
        "parameters": {arm: ledger.values(arm, "parameters")[0] for arm in ARMS},
        "parameters_of_layers": {arm: ledger.values(arm, "layer_parameters")[0] for arm in ARMS},
        "parameters_of_embeddings": {arm: ledger.values(arm, "embedding_parameters")[0] for arm in ARMS},
    }
    write_results(
        "albert",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce albert --seeds {seeds} --updates {updates}",
        tables=tables,
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds},
    )


def _summary(ledger: Ledger, key: str) -> dict[str, Any]:
    """Returns mean and deviation of every trained arm; the bag of words has other numbers."""
    return {arm: mean_and_std(ledger.values(arm, key)) for arm in (*ARMS, LAMB)}


def _run(
    changes: Mapping[str, Any], network: Mapping[str, Any], updates: int, seed: int, compiled: Any = None
) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    config = {**catalog.info("albert").preset("docstrings").config, **network, **changes}
    model = Albert(**config).build_from_signature()
    prepare(model, DATASET)
    (compiled or adamw(LEARNING_RATE))(model, updates)
    data = _data(model, DATASET, seed).train
    model.fit(data, steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)
    backbone = model.backbone
    return {
        "parameters": model.count_params(),
        "layer_parameters": _parameters(backbone.encoder_layers),
        "embedding_parameters": _parameters([backbone.embedding]),
        **evaluate(model, DATASET, "test"),
        **{f"{task}_probe": _probe(model, task) for task in TASKS},
    }


def _parameters(layers: list[keras.layers.Layer]) -> int:
    """Returns the number of parameters of layers, those that several share counted once."""
    variables = {id(variable): variable for layer in layers for variable in layer.weights}
    return int(sum(np.prod(variable.shape) for variable in variables.values()))


# === Tasks on pairs of segments ===


def _held_out(model: Albert, task: str) -> tuple[Arrays, np.ndarray]:
    sizes = (model.sequence_length, model.mask_selection_length)
    inputs, targets = held_out_examples(docstrings.tokenizer_json(), DATASET, "test", task, *sizes)
    return inputs, targets["sentence_label"]


@functools.lru_cache(maxsize=4)
def _training_pairs(task: str, length: int, maximum: int, count: int) -> tuple[Arrays, np.ndarray]:
    tokenizer = docstrings.tokenizer_json()
    rng = np.random.default_rng(HELD_OUT_SEED)
    pairs = list(segment_pairs(load_documents(tokenizer, DATASET, "train"), length, task, rng))
    chosen = [pairs[place] for place in rng.permutation(len(pairs))[:count]]
    inputs, targets = masked_pairs(tokenizer, chosen, Masking(length, maximum, task), rng)
    return inputs, targets["sentence_label"]


def _probe(model: Albert, task: str) -> float:
    """Returns the test accuracy of a linear classifier of frozen pooled vectors."""
    run = signature_runner(model)

    def pooled(inputs: Arrays) -> np.ndarray:
        names = model.signatures()["encode"].inputs
        batches = range(0, len(inputs["token_ids"]), EVALUATION_BATCH)
        rows = ({name: inputs[name][i : i + EVALUATION_BATCH] for name in names} for i in batches)
        return np.concatenate([run("encode", batch)["pooled_output"] for batch in rows])

    train, labels = _training_pairs(task, model.sequence_length, model.mask_selection_length, NUM_PROBED)
    test, wanted = _held_out(model, task)
    return _linear_accuracy(pooled(train), labels, pooled(test), wanted)


def _linear_accuracy(train: Any, labels: np.ndarray, test: Any, wanted: np.ndarray, strength: float = 1.0) -> float:
    """Returns the test accuracy of a logistic regression; the smaller its strength, the smaller are its weights."""
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(C=strength, max_iter=1000).fit(train, labels).score(test, wanted))


def _bag_of_words() -> dict[str, float]:
    """Returns the test accuracy of linear classifiers of which tokens each segment has, and which both have."""
    config = catalog.info("albert").preset("docstrings").config
    length, maximum, size = (config[key] for key in ("sequence_length", "mask_selection_length", "vocabulary_size"))
    found = {}
    for task in TASKS:
        train, labels = _training_pairs(task, length, maximum, NUM_BAGGED)
        inputs, targets = held_out_examples(docstrings.tokenizer_json(), DATASET, "test", task, length, maximum)
        bags = [_bags(part, size) for part in (train, inputs)]
        found[f"{task}_probe"] = _linear_accuracy(bags[0], labels, bags[1], targets["sentence_label"], BAG_STRENGTH)
    return found


def _bags(inputs: Arrays, size: int) -> Any:
    """Returns which tokens the first segment, the second and both have, sparse `(batch, 3 * size)`."""
    from scipy.sparse import csr_matrix, hstack

    rows, columns = np.nonzero(inputs["padding_mask"])
    places = inputs["segment_ids"][rows, columns] * size + inputs["token_ids"][rows, columns]
    bags = csr_matrix((np.ones(len(rows), "float32"), (rows, places)), (len(inputs["token_ids"]), 2 * size))
    bags.data[:] = 1
    return hstack([bags, bags[:, :size].multiply(bags[:, size:])]).tocsr()


def _accuracy(ledger: Ledger, arm: str, task: str) -> list[float]:
    """Returns accuracies on a task: of the arm's own head, where it was trained for it, else of the probe."""
    own = {SHARED: "sop", NSP: "nsp"}.get(arm)
    return ledger.values(arm, "sentence_accuracy" if own == task else f"{task}_probe")


# === Verdict and figure ===


def verdict(ledger: Ledger) -> str:
    """Says what the numbers of all runs show."""
    sizes = {arm: ledger.values(arm, "layer_parameters")[0] for arm in SHARING}
    times = sizes["not shared"] / sizes[SHARED]
    penalty, wide_penalty = (
        difference(ledger, *arms, "masked_lm_loss")["mean"]
        for arms in (("not shared", SHARED), (WIDE, "embedding 128"))
    )
    narrow = difference(ledger, "embedding 128", "embedding 32", "masked_lm_loss")["mean"]
    sop_on_sop, sop_on_nsp, nsp_on_sop, nsp_on_nsp = (
        float(np.mean(_accuracy(ledger, arm, task))) for arm in (SHARED, NSP) for task in ("sop", "nsp")
    )
    floor = {task: ledger.values(WORDS, f"{task}_probe")[0] for task in TASKS}
    parts = {
        f"sharing divides the layers' parameters by {times:.1f} at a loss of {penalty:+.3f} nats where embeddings have width "
        f"64, of {wide_penalty:+.3f} at 128": max(penalty, wide_penalty) <= SMALL_LOSS,
        f"an embedding of width 32 instead of 128 changes the loss by {narrow:+.3f} nats": narrow <= SMALL_CHANGE,
        f"next-sentence prediction learns its task ({nsp_on_nsp:.3f}, words {floor['nsp']:.3f}) and leaves the order of "
        f"sentences near chance ({nsp_on_sop:.3f})": nsp_on_nsp > floor["nsp"] and nsp_on_sop < NEAR_CHANCE,
        f"sentence-order prediction is learned beyond words ({sop_on_sop:.3f}, words {floor['sop']:.3f})": sop_on_sop
        > floor["sop"],
    }
    unlearned = nsp_on_nsp <= floor["nsp"] and sop_on_sop <= floor["sop"]
    early = " Neither task of sentences was learned beyond words: the runs are too short to tell what they teach."
    return (
        f"{shows(parts)}{early if unlearned else ''} Trained for order, a probe finds the next sentence with "
        f"{sop_on_nsp:.3f}. Masked tokens are found "
        f"with accuracy {spread(ledger.values(SHARED, 'masked_lm_accuracy'))} shared and "
        f"{spread(ledger.values('not shared', 'masked_lm_accuracy'))} not shared."
    )


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    losses, tasks = figure.subplots(1, 2)
    _draw_losses(losses, ledger)
    _draw_tasks(tasks, ledger)
    figure.supxlabel("means and standard deviations of seeds", fontsize=8)
    return figure


def _draw_losses(axes: Axes, ledger: Ledger) -> None:
    series = (
        (SHARING, "o", "sharing, embedding 64"),
        (WIDTHS, "s", "all shared, other embeddings"),
        ([WIDE], "^", WIDE),
    )
    for arms, marker, label in series:
        sizes = [ledger.values(arm, "parameters")[0] for arm in arms]
        values = [ledger.values(arm, "masked_lm_loss") for arm in arms]
        axes.errorbar(
            sizes, [np.mean(v) for v in values], [np.std(v) for v in values], fmt=marker, capsize=3, label=label
        )
        for arm, size, value in zip(arms, sizes, values, strict=True):
            below = arm in ("attention shared", "embedding 128")
            place = (0, -15) if below else (0, 9)
            middle = (size, float(np.mean(value)))
            axes.annotate(arm, middle, textcoords="offset points", xytext=place, fontsize=8, ha="center")
    axes.set_xscale("log")
    axes.margins(x=0.2, y=0.25)
    axes.minorticks_off()
    ticks = [number * 100_000 for number in (3, 4, 6, 8, 11, 14)]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.set(xlabel="parameters", ylabel="test loss on masked tokens (nats)", title="Parameters and masked tokens")
    axes.legend(fontsize=8)


def _draw_tasks(axes: Axes, ledger: Ledger) -> None:
    width = 0.38
    for index, (arm, label) in enumerate(((SHARED, "trained for order"), (NSP, "trained for next sentence"))):
        values = [_accuracy(ledger, arm, task) for task in TASKS]
        places = np.arange(2) + (index - 0.5) * width
        axes.bar(places, [np.mean(v) for v in values], width, yerr=[np.std(v) for v in values], capsize=3, label=label)
    for place, task in enumerate(TASKS):
        floor = ledger.values(WORDS, f"{task}_probe")[0]
        label = "bag of words" if place == 0 else None
        axes.plot([place - 0.45, place + 0.45], [floor, floor], color="black", linestyle="--", label=label)
    axes.axhline(0.5, color="grey", linestyle=":", label="chance")
    axes.set(
        xticks=range(2),
        xticklabels=[f"is judged by: {name}" for name in TASKS.values()],
        ylabel="test accuracy",
        title="Order of sentences against next sentence",
        ylim=(0.4, 1.0),
    )
    axes.legend(fontsize=8)
