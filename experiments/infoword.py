"""InfoWord: how its checkpoint is trained, and what each part of its objective teaches.

Masked words among all words or drawn ones, spans alone, and both, under equal updates; beside them vectors of words that a
skip-gram learned, averaged. Frozen features of held-out documents are judged by three tasks: to find the span that was
removed from a text, to tell which package a line is of from few labels, and to predict masked words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tokenizers import Tokenizer

from zoo import catalog
from zoo.datasets import docstrings, load_arrays
from zoo.datasets.docstring_packages import names_package
from zoo.experiments import language_encoders, skip_gram
from zoo.experiments.language_encoders import adamw
from zoo.experiments.report import Ledger, Progress, difference, mean_and_std, shows, spread, write_results
from zoo.experiments.training import cosine_adam, signature_runner
from zoo.language.infoword import InfoWord, encode_all, pretraining_batches, retrieval, token_counts
from zoo.language.pretraining_data import load_documents
from zoo.language.skip_gram import SkipGram, encode_words
from zoo.language.text_encoder import EVALUATION_BATCH
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASET = "docstrings"
BATCH = 32
LEARNING_RATE = 1e-3


# === Recipe ===


def prepare(model: InfoWord, dataset: str) -> None:
    """Sets the tokenizer, and how often wrong words are drawn."""
    language_encoders.prepare(model, dataset)
    if model.pretrains and model.draws_words:
        documents = load_documents(docstrings.tokenizer_json(), dataset, "train")
        model.set_proposal(token_counts(documents, model.vocabulary_size))


def _data(model: InfoWord, dataset: str, seed: int) -> TrainingData:
    documents = load_documents(docstrings.tokenizer_json(), dataset, "train")
    batches = functools.partial(pretraining_batches, model, documents, BATCH, seed)
    validation = tf.data.Dataset.from_tensor_slices(model.held_out_views(dataset, "validation"))
    signature = keras.tree.map_structure(
        lambda spec: tf.TensorSpec((BATCH, *spec.shape), spec.dtype), validation.element_spec
    )
    train = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)
    return TrainingData(train, validation.batch(EVALUATION_BATCH))


def evaluate(model: InfoWord, dataset: str, split: str) -> dict[str, float]:
    """Returns accuracy and loss on masked words; recall of spans among 64, and their bound."""
    run = signature_runner(model)
    return {**model.scores(run, dataset, split), **model.span_retrieval(run, dataset, split)}


RECIPES = {
    "docstrings": Recipe(
        method="infoword",
        preset="docstrings",
        dataset=DATASET,
        epochs=10,
        steps_per_epoch=300,
        data=_data,
        compile=adamw(LEARNING_RATE),
        evaluate=evaluate,
        monitor="val_loss",
        prepare=prepare,
    )
}


# === Experiment ===

CLAIM = (
    "Masked words by negative sampling are learned as well as by a softmax over all words; spans as a second view, found by "
    "the same encoder among those of other texts, add what masked words alone do not teach, most where labels are few "
    "(paper, sections 4 and 5)."
)
MLM, NCE, DIM, BOTH, HALF, VECTORS = (
    "masked words, all",
    "masked words, drawn",
    "spans only",
    "InfoWord",
    "InfoWord, λ = 0.5",
    "word vectors",
)
# What each arm changes in the preset `docstrings`
ARMS: Mapping[str, Mapping[str, Any]] = {
    MLM: {"objective": "mlm"},
    NCE: {"objective": "mlm_nce"},
    DIM: {"objective": "dim"},
    BOTH: {},
    HALF: {"dim_weight": 0.5},
}
ALL = (*ARMS, VECTORS)
WORD_DIM, WORD_BATCH = 128, 4096
CANDIDATES = (8, 16, 32, 64, 128, 256)
JUDGED = 64
LABELS = (50, 200, 1000)
# Lines that probes learn from, in disjoint parts, and that they are judged by; lines with fewer signs say nothing
NUM_LABELLED, NUM_TESTED, SHORTEST = 3000, 2000, 20
# Largest number of separate trainings of one probe
REPEATS = 5
CURVE_POINTS = 20
# Differences in the accuracy on masked words that count as none
SAME, SMALL = 0.01, 0.02


def reproduce(
    directory: Path,
    seeds: int = 3,
    updates: int = 1000,
    network: Mapping[str, Any] | None = None,
    progress: Progress = lambda message: None,
) -> None:
    """Trains every arm with every seed and writes `infoword.json`, `infoword.png` and `infoword_bounds.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of an arm, of 32 texts each, or 4096 pairs of words.
        network: mapping or None. Constructor arguments that differ from the preset `docstrings`.
        progress: callable that takes one line per run.
    """
    network = network or {}
    settings = {"dataset": DATASET, "split": "test", "updates": updates, "batch_size": BATCH, **network}
    ledger = Ledger(directory / "infoword.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, functools.partial(_run, {**network, **ARMS[arm]}, updates, seed), progress)
        ledger.run(VECTORS, seed, functools.partial(_run_vectors, updates, seed), progress)
    tables = {
        **{key: {arm: mean_and_std(ledger.values(arm, key)) for arm in ALL} for key in ("span_recall", *_label_keys())},
        **{
            key: {arm: mean_and_std(ledger.values(arm, key)) for arm in ARMS if arm != DIM}
            for key in ("masked_lm_accuracy", "masked_lm_loss")
        },
        "package_gain_over_drawn_words": {
            str(count): difference(ledger, NCE, BOTH, _label_key(count)) for count in LABELS
        },
        "span_bound_by_candidates": {arm: _bounds(ledger, arm) for arm in ALL},
        "floors": {"span_recall": 1 / JUDGED, "package_accuracy": ledger.values(MLM, "package_majority")[0]},
    }
    write_results(
        "infoword",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce infoword --seeds {seeds} --updates {updates}",
        tables=tables,
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds, "word_vectors_dim": WORD_DIM, "word_vectors_batch_size": WORD_BATCH},
        more_figures={"bounds": _bounds_figure(ledger)},
    )


def _label_key(count: int) -> str:
    return f"package_accuracy_{count}"


def _label_keys() -> list[str]:
    return [_label_key(count) for count in LABELS]


def _bounds(ledger: Ledger, arm: str) -> dict[str, dict[str, float]]:
    values = ledger.values(arm, "bounds")
    return {str(count): mean_and_std([found[str(count)] for found in values]) for count in CANDIDATES}


def _run(changes: Mapping[str, Any], updates: int, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    model = InfoWord(**{**catalog.info("infoword").preset("docstrings").config, **changes}).build_from_signature()
    prepare(model, DATASET)
    adamw(LEARNING_RATE)(model, updates)
    points = min(CURVE_POINTS, updates)
    history = model.fit(
        _data(model, DATASET, seed).train, steps_per_epoch=updates // points, epochs=points, shuffle=False, verbose=0
    ).history
    run = signature_runner(model)
    texts, spans = model.gaps_and_spans(DATASET, "test")
    vectors = [encode_all(run, view, JUDGED) for view in (texts, spans)]

    def score(text: np.ndarray, span: np.ndarray) -> np.ndarray:
        return model.critic(tf.constant(text), tf.constant(span)).numpy()

    def features(lines: list[str]) -> np.ndarray:
        starts = range(0, len(lines), 250)
        return np.concatenate([model.embed(lines[start : start + 250], truncate=True) for start in starts])

    words = model.scores(run, DATASET, "test") if model.has_words else {}
    return {
        **_judge(vectors, spans["token_ids"], score, features, seed),
        **{key: words[key] for key in ("masked_lm_accuracy", "masked_lm_loss") if key in words},
        "curve": history.get("dim_bound", []),
        "updates_a_point": updates // points,
    }


def _run_vectors(updates: int, seed: int) -> dict[str, Any]:
    """Trains a skip-gram and judges means of its vectors, compared by cosine."""
    keras.utils.set_random_seed(seed)
    config = {**catalog.info("skip_gram").preset("docstrings").config, "embedding_dim": WORD_DIM}
    model = SkipGram(**config).build_from_signature()
    skip_gram.prepare(model, DATASET)
    cosine_adam(skip_gram.LEARNING_RATE)(model, updates)
    data = skip_gram.pair_data(model, DATASET, seed, WORD_BATCH).train
    model.fit(data, steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)

    def features(lines: list[str]) -> np.ndarray:
        table = model.word_embedding.embeddings.numpy()
        words = encode_words(model.assets["tokenizer.json"], lines)
        return np.array([table[ids].mean(axis=0) if len(ids) else np.zeros(WORD_DIM) for ids in words], "float32")

    def score(text: np.ndarray, span: np.ndarray) -> np.ndarray:
        first, second = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9) for rows in (text, span))
        return first @ second.T

    reader = InfoWord(**catalog.info("infoword").preset("docstrings").config)
    language_encoders.prepare(reader, DATASET)
    views = reader.gaps_and_spans(DATASET, "test")
    vectors = [features(_decoded(reader.tokenizer, view["token_ids"])) for view in views]
    whole = len(vectors[0]) // JUDGED * JUDGED
    return _judge([rows[:whole] for rows in vectors], views[1]["token_ids"], score, features, seed)


def _decoded(tokenizer: Tokenizer, token_ids: np.ndarray) -> list[str]:
    return tokenizer.decode_batch([row.tolist() for row in token_ids], skip_special_tokens=True)


# === Probes ===


def _judge(
    vectors: list[np.ndarray],
    span_ids: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    features: Callable[[list[str]], np.ndarray],
    seed: int,
) -> dict[str, Any]:
    found = {count: retrieval(*vectors, span_ids, score, count) for count in CANDIDATES}
    return {
        "span_recall": found[JUDGED]["span_recall"],
        "bounds": {str(count): result["span_bound"] for count, result in found.items()},
        **_tell_packages(features, seed),
    }


@functools.lru_cache(maxsize=4)
def _lines(split: str, count: int) -> tuple[list[str], np.ndarray]:
    """Returns lines of a split that name no package, in a fixed random order, and the packages that they are of."""
    data = load_arrays("docstring_packages", split)
    found = [
        (line, package)
        for text, package in zip(data["text"], data["label"], strict=True)
        for line in text.split("\n")
        if len(line) >= SHORTEST and not names_package(line)
    ]
    chosen = [found[place] for place in np.random.default_rng(0).permutation(len(found))[:count]]
    return [line for line, _ in chosen], np.array([package for _, package in chosen])


def _tell_packages(features: Callable[[list[str]], np.ndarray], seed: int) -> dict[str, float]:
    """Returns the test accuracy of linear classifiers of frozen features, means over disjoint sets of labels.

    Labels are of lines of the validation split: no encoder has read these documents.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lines, packages = _lines("validation", NUM_LABELLED)
    tested, wanted = _lines("test", NUM_TESTED)
    train, test = features(lines), features(tested)
    order = np.random.default_rng(seed).permutation(len(lines))
    accuracies = {"package_majority": float(np.unique(wanted, return_counts=True)[1].max() / len(wanted))}
    for count in LABELS:
        parts = order[: min(len(order) // count, REPEATS) * count].reshape(-1, count)
        probes = (make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)) for _ in parts)
        hits = [p.fit(train[rows], packages[rows]).score(test, wanted) for p, rows in zip(probes, parts, strict=True)]
        accuracies[_label_key(count)] = float(np.mean(hits))
    return accuracies


# === Verdict and figures ===


def verdict(ledger: Ledger) -> str:
    """Says what the numbers of all runs show."""
    found = {arm: ledger.values(arm, "span_recall") for arm in ALL}
    recall = {arm: float(np.mean(values)) for arm, values in found.items()}
    gains = {count: difference(ledger, NCE, BOTH, _label_key(count))["mean"] for count in LABELS}
    fewest = LABELS[0]
    on_each_seed = all(
        ours > theirs
        for ours, theirs in zip(*(ledger.values(arm, _label_key(fewest)) for arm in (BOTH, NCE)), strict=True)
    )
    words = {arm: float(np.mean(ledger.values(arm, "masked_lm_accuracy"))) for arm in (MLM, NCE, BOTH)}
    told = ", ".join(f"{gain:+.3f} with {count}" for count, gain in gains.items())
    parts = {
        f"masked words are found with accuracy {words[NCE]:.3f} among drawn words and {words[MLM]:.3f} among all": abs(
            words[NCE] - words[MLM]
        )
        <= SAME,
        f"InfoWord finds {words[BOTH]:.3f} of them": words[MLM] - words[BOTH] <= SMALL,
        f"it finds a removed span among {JUDGED} with {recall[BOTH]:.3f}, masked words alone with {recall[NCE]:.3f}, "
        f"averaged word vectors with {recall[VECTORS]:.3f}": min(found[BOTH]) > max(*found[NCE], *found[VECTORS]),
        f"with few labels it tells packages better than masked words alone do: {told} labels": on_each_seed,
        f"most with {fewest}": gains[fewest] > 0 and gains[fewest] == max(gains.values()),
    }
    key = _label_key(fewest)
    return (
        f"{shows(parts)} With {fewest} labels InfoWord tells {spread(ledger.values(BOTH, key))} of the packages, spans alone "
        f"{spread(ledger.values(DIM, key))}, averaged word vectors {spread(ledger.values(VECTORS, key))}; "
        f"{ledger.values(MLM, 'package_majority')[0]:.3f} of the lines are of the largest one."
    )


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    spans, packages, words = figure.subplots(1, 3)
    _draw_bars(spans, ledger, ALL, "span_recall", f"Finding the removed span among {JUDGED}", "recall")
    spans.axhline(1 / JUDGED, color="grey", linestyle=":", label="chance")
    spans.legend(fontsize=8)
    _draw_packages(packages, ledger)
    _draw_bars(
        words, ledger, [arm for arm in ARMS if arm != DIM], "masked_lm_accuracy", "Masked words", "test accuracy"
    )
    figure.supxlabel("means and standard deviations of seeds", fontsize=8)
    return figure


def _draw_bars(axes: Axes, ledger: Ledger, arms: Any, key: str, title: str, label: str) -> None:
    for place, arm in enumerate(arms):
        values = ledger.values(arm, key)
        axes.bar(place, np.mean(values), yerr=np.std(values), capsize=3, color=_color(arm))
    names = [arm.replace(" = ", "=").replace(" ", "\n") for arm in arms]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set(ylabel=label, title=title)


def _color(arm: str) -> str:
    return f"C{ALL.index(arm)}"


def _draw_packages(axes: Axes, ledger: Ledger) -> None:
    for arm in ALL:
        values = [ledger.values(arm, key) for key in _label_keys()]
        means, deviations = ([float(f(v)) for v in values] for f in (np.mean, np.std))
        axes.errorbar(LABELS, means, deviations, marker="o", capsize=3, color=_color(arm), label=arm)
    axes.axhline(ledger.values(MLM, "package_majority")[0], color="grey", linestyle=":", label="largest package")
    axes.set_xscale("log")
    axes.set_xticks(LABELS, [str(count) for count in LABELS])
    axes.minorticks_off()
    axes.set(xlabel="labelled lines", ylabel="test accuracy", title="Which package a line is of, frozen features")
    axes.legend(fontsize=8)


def _bounds_figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    capped, curves = figure.subplots(1, 2)
    for arm in (DIM, BOTH, HALF):
        found = _bounds(ledger, arm)
        means, deviations = ([found[str(count)][key] for count in CANDIDATES] for key in ("mean", "std"))
        capped.errorbar(CANDIDATES, means, deviations, marker="o", capsize=3, color=_color(arm), label=arm)
        for index, (curve, step) in enumerate(
            zip(ledger.values(arm, "curve"), ledger.values(arm, "updates_a_point"), strict=True)
        ):
            places = (np.arange(len(curve)) + 0.5) * step
            curves.plot(places, curve, color=_color(arm), alpha=0.8, label=arm if index == 0 else None)
    capped.plot(CANDIDATES, np.log(CANDIDATES), color="black", linestyle="--", label="log N, the most there can be")
    capped.set_xscale("log")
    capped.set_xticks(CANDIDATES, [str(count) for count in CANDIDATES])
    capped.minorticks_off()
    capped.set(xlabel="candidates N", ylabel="bound on test texts (nats)", title="Information of a text and its span")
    curves.axhline(np.log(BATCH), color="black", linestyle="--", label=f"log {BATCH}, the batch")
    curves.set(xlabel="updates", ylabel="bound in training (nats)", title=f"Training, {BATCH} candidates")
    for axes in (capped, curves):
        axes.legend(fontsize=8)
    return figure
