"""Skip-gram: how its checkpoint is trained, and what its losses learn.

Negative sampling, softmax over drawn words and softmax over all words, with and without leaving frequent words out, under
equal updates: held-out contexts, analogies of inflections, neighbours, and how the scores u'v follow the pointwise mutual
information of the pairs that they learned from.

The questions are made by rule from lists of words that are written here: nouns and their plurals, verbs and two of their
forms, adjectives and adverbs, and, for neighbours only, pairs of opposites. What the vocabulary lacks is left out. They were
chosen among frequent words of documentation before any model was trained.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from zoo import catalog
from zoo.datasets import load_arrays
from zoo.experiments.report import Ledger, Progress, difference, mean_and_std, shows, spread, write_results
from zoo.experiments.training import cosine_adam, signature_runner
from zoo.language.contrastive import proposal
from zoo.language.skip_gram import (
    NUM_CANDIDATES,
    Corpus,
    SkipGram,
    context_accuracy,
    keep_probabilities,
    load_words,
    training_batches,
    word_pairs,
    word_tokenizer,
)
from zoo.model import Runner
from zoo.training.recipe import Recipe, TrainingData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATASET = "docstrings"
BATCH = 4096
LEARNING_RATE = 5e-3


# === Questions ===

NOUNS = (
    "array vector element sample feature parameter model object tuple tensor estimator result instance example algorithm "
    "point argument polynomial string error variable layer dimension dataset metric kernel column row weight label"
).split()
VERBS = (
    "compute return transform evaluate generate perform solve predict convert construct minimize represent determine "
    "select update define produce provide reduce accept implement compare remove improve increase replace require "
    "describe preserve combine"
).split()
ADJECTIVES = (
    "random linear equal relative normal exact independent uniform efficient correct direct explicit implicit unique "
    "identical numerical exponential sequential vertical horizontal"
).split()
OPPOSITES = (
    ("minimum", "maximum"), ("min", "max"), ("lower", "upper"), ("left", "right"), ("true", "false"), ("row", "column"),
    ("rows", "columns"), ("input", "output"), ("first", "last"), ("start", "end"), ("increasing", "decreasing"),
    ("horizontal", "vertical"), ("positive", "negative"), ("discrete", "continuous"), ("forward", "backward"),
    ("even", "odd"), ("real", "imaginary"), ("small", "large"), ("encode", "decode"), ("numerator", "denominator"),
    ("height", "width"), ("above", "below"), ("before", "after"), ("train", "test"), ("add", "remove"), ("sum", "product"),
    ("sin", "cos"), ("precision", "recall"), ("inclusive", "exclusive"), ("symmetric", "asymmetric"),
)  # fmt: skip


def _past(verb: str) -> str:
    return f"{verb}d" if verb.endswith("e") else f"{verb}ed"


RELATIONS: Mapping[str, Sequence[tuple[str, str]]] = {
    "plural": [(noun, f"{noun}s") for noun in NOUNS],
    "third person": [(verb, f"{verb}s") for verb in VERBS],
    "past": [(verb, _past(verb)) for verb in VERBS],
    "adverb": [(word, f"{word}ly") for word in ADJECTIVES],
}


def known_pairs(model: SkipGram, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the pairs of which the model knows both words."""
    return [pair for pair in pairs if all(model.tokenizer.token_to_id(word) is not None for word in pair)]


def questions(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    """Returns "a is to b as c is to d" for every two pairs of a relation, in both orders."""
    return [(*first, *second) for first, second in itertools.permutations(pairs, 2)]


def judge_words(model: SkipGram) -> dict[str, float]:
    """Returns the accuracy of analogies by relation and over all questions, and how many partners are neighbours.

    Empty for a model of other words.
    """
    pairs = {name: known_pairs(model, relation) for name, relation in RELATIONS.items()}
    asked = {name: questions(known) for name, known in pairs.items() if len(known) > 1}
    if not asked:
        return {}
    found = {f"analogy_{name.replace(' ', '_')}": model.analogy_accuracy(asked[name]) for name in asked}
    counts = [len(part) for part in asked.values()]
    partners = [pair for known in (*pairs.values(), known_pairs(model, OPPOSITES)) for pair in known]
    return {
        **found,
        "analogy_accuracy": float(np.average(list(found.values()), weights=counts)),
        "neighbor_recall": model.neighbor_recall(partners),
    }


# === Recipe ===


@functools.cache
def tokenizer_json(dataset: str, vocabulary_size: int) -> bytes:
    """Returns a tokenizer of the words of a data set's train split."""
    return word_tokenizer(load_arrays(dataset, "train")["text"].tolist(), vocabulary_size)


def corpus(model: SkipGram, dataset: str) -> Corpus:
    """Returns the train split as words."""
    words = load_words(tokenizer_json(dataset, model.vocabulary_size), dataset, "train")
    return Corpus.of(words, model.vocabulary_size)


def prepare(model: SkipGram, dataset: str) -> None:
    """Sets the tokenizer."""
    model.set_assets({"tokenizer.json": tokenizer_json(dataset, model.vocabulary_size)})


def pair_data(model: SkipGram, dataset: str, seed: int, batch_size: int = BATCH) -> TrainingData:
    """Returns batches of pairs; the `data` function of a recipe.

    Args:
        model: `SkipGram`.
        dataset: str.
        seed: int.
        batch_size: int.
    """
    texts = corpus(model, dataset)
    batches = functools.partial(training_batches, model, texts, batch_size, seed)
    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((batch_size, *array.shape[1:]), array.dtype), next(batches())
    )
    train = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)
    held_out = model.held_out(dataset, "validation", model.num_negatives or 1)
    if model.num_negatives is None:
        held_out = {"word_ids": held_out["word_ids"]}, held_out["candidate_ids"][:, 0]
    return TrainingData(train, tf.data.Dataset.from_tensor_slices(held_out).batch(1000))


def evaluate(model: SkipGram, dataset: str, split: str) -> dict[str, float]:
    """Returns the accuracy on held-out contexts, and that of analogies and neighbours, which are of no split."""
    found = judge_words(model)
    words = {name: found[name] for name in ("analogy_accuracy", "neighbor_recall") if name in found}
    return {"context_accuracy": context_accuracy(signature_runner(model), model.held_out(dataset, split)), **words}


RECIPES = {
    "docstrings": Recipe(
        method="skip_gram",
        preset="docstrings",
        dataset=DATASET,
        epochs=8,
        steps_per_epoch=500,
        data=pair_data,
        compile=cosine_adam(LEARNING_RATE),
        evaluate=evaluate,
        monitor="val_loss",
        prepare=prepare,
    )
}


# === Experiment ===

CLAIM = (
    "Negative sampling learns vectors as good as a softmax over all words, at a fraction of the cost, and leaving frequent "
    "words out helps (Mikolov et al. 2013, sections 2.2, 2.3 and 3). Its scores u'v tend to PMI - log K; a softmax over "
    "candidates, InfoNCE, tends to PMI up to a constant of each word (Kong et al. 2020, section 3; Levy and Goldberg 2014)."
)
SGNS, MORE, DRAWN, FULL, ALL_WORDS = (
    "negative sampling, K = 5",
    "negative sampling, K = 15",
    "softmax, 5 drawn words",
    "softmax, all words",
    "K = 5, nothing left out",
)
# What each arm changes in the preset `docstrings`
ARMS: Mapping[str, Mapping[str, Any]] = {
    SGNS: {},
    MORE: {"num_negatives": 15},
    DRAWN: {"loss": "softmax"},
    FULL: {"loss": "softmax", "num_negatives": None},
    # Every word has a frequency below 1
    ALL_WORDS: {"subsample_threshold": 1.0},
}
# Smaller than the recipe's: a softmax over all words has as many scores a pair as there are words
ARM_BATCH = 1024
SHOWN = ("matrix", "rows", "minimum", "mean", "eigenvalues", "classifier", "returned", "randomly")
# Pairs of words that occur so often have a PMI to speak of
MINIMUM_COUNT = 20
POINTS = 4000
# How near the mean of u'v - PMI has to be to -log K, in nats, and by how much accuracies may differ to be as good
OFFSET_TOLERANCE, AS_GOOD = 0.3, 0.02


def reproduce(directory: Path, seeds: int = 3, updates: int = 2500, progress: Progress = lambda message: None) -> None:
    """Trains every arm with every seed and writes `skip_gram.json` and `.png`.

    Args:
        directory: path of the results.
        seeds: int. Seeds per arm.
        updates: int. Updates of an arm, of 1024 pairs each.
        progress: callable that takes one line per run.
    """
    settings = {"dataset": DATASET, "split": "test", "updates": updates, "batch_size": ARM_BATCH}
    ledger = Ledger(directory / "skip_gram.runs.json", settings)
    for seed in range(seeds):
        for arm in ARMS:
            ledger.run(arm, seed, functools.partial(_run, ARMS[arm], updates, seed), progress)
    keys = ("context_accuracy", "analogy_accuracy", "neighbor_recall", *_relation_keys(), "pmi_correlation")
    more = ("pmi_correlation_within_words", "pmi_offset", "cpu_ms_per_update")
    tables = {
        **{key: {arm: mean_and_std(ledger.values(arm, key)) for arm in ARMS} for key in (*keys, *more)},
        "neighbors": ledger.values(SGNS, "neighbors")[0],
        "questions": ledger.values(SGNS, "questions")[0],
        "chance": {"context_accuracy": 1 / NUM_CANDIDATES},
    }
    write_results(
        "skip_gram",
        directory,
        claim=CLAIM,
        verdict=verdict(ledger),
        command=f"zoo reproduce skip_gram --seeds {seeds} --updates {updates}",
        tables=tables,
        figure=_figure(ledger),
        settings={**settings, "seeds": seeds, "minimum_count_of_pmi": MINIMUM_COUNT},
    )


def _relation_keys() -> list[str]:
    return [f"analogy_{name.replace(' ', '_')}" for name in RELATIONS]


def _run(changes: Mapping[str, Any], updates: int, seed: int) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    model = SkipGram(**{**catalog.info("skip_gram").preset("docstrings").config, **changes}).build_from_signature()
    prepare(model, DATASET)
    cosine_adam(LEARNING_RATE)(model, updates)
    data = pair_data(model, DATASET, seed, ARM_BATCH).train
    begun = time.process_time()
    model.fit(data, steps_per_epoch=updates, epochs=1, shuffle=False, verbose=0)
    spent = time.process_time() - begun
    # All arms are judged by the same pairs
    standard = SkipGram(**catalog.info("skip_gram").preset("docstrings").config)
    prepare(standard, DATASET)
    pairs, texts = standard.held_out(DATASET, "test"), corpus(model, DATASET)
    asked = {name: len(questions(known_pairs(model, known))) for name, known in RELATIONS.items()}
    return {
        "context_accuracy": context_accuracy(_comparable_scores(model, texts), pairs),
        **judge_words(model),
        **information_fit(model, texts, seed),
        "cpu_ms_per_update": 1000 * spent / updates,
        "neighbors": {word: [near for near, _ in model.most_similar(word, 6)] for word in SHOWN},
        "questions": asked,
    }


def _comparable_scores(model: SkipGram, texts: Corpus) -> Runner:
    """Returns a runner whose scores tend to log p(c | w) / q(c), where held-out candidates are drawn from q.

    A softmax over all words tends to log p(c | w), up to a constant of each word.
    """
    run = signature_runner(model)
    if model.num_negatives is not None:
        return run
    drawn = proposal(texts.counts)
    return lambda name, inputs: {"scores": run(name, inputs)["scores"] - np.log(drawn[inputs["candidate_ids"]])}


def information_fit(model: SkipGram, texts: Corpus, seed: int) -> dict[str, Any]:
    """Compares scores with what they tend to: log p(c | w) / q(c), the pointwise mutual information of a pair.

    q is what words are drawn from. Where all words are candidates it is uniform.

    Args:
        model: `SkipGram`.
        texts: `Corpus`. One pass over it is counted.
        seed: int. Of what is left out, and of the points that are returned.

    Returns:
        Dict of `pmi_correlation`, over pairs with at least `MINIMUM_COUNT` occurrences; `pmi_correlation_within_words`, of
        both less their means over each word's pairs; `pmi_offset`, the mean of score - PMI; and `points`, some pairs' PMI and
        score.
    """
    rng = np.random.default_rng(seed)
    kept = keep_probabilities(texts.counts, model.subsample_threshold)
    words, contexts = word_pairs(texts.documents, model.window, kept, rng)
    pairs, counts = np.unique(words.astype("int64") * model.vocabulary_size + contexts, return_counts=True)
    often = counts >= MINIMUM_COUNT
    first, second = np.divmod(pairs[often], model.vocabulary_size)
    of_word = np.bincount(words, minlength=model.vocabulary_size)
    every = np.full(model.vocabulary_size, 1 / model.vocabulary_size)
    drawn = every if model.num_negatives is None else proposal(texts.counts)
    information = np.log(counts[often] / of_word[first]) - np.log(drawn[second])
    tables = (model.word_embedding, model.context_embedding)
    u, v = (table.embeddings.numpy()[ids] for table, ids in zip(tables, (first, second), strict=True))
    scores = (u * v).sum(axis=1)
    centred = [_less_means(values, first) for values in (information, scores)]
    chosen = rng.permutation(len(scores))[:POINTS]
    return {
        "pmi_correlation": float(np.corrcoef(information, scores)[0, 1]),
        "pmi_correlation_within_words": float(np.corrcoef(*centred)[0, 1]),
        "pmi_offset": float((scores - information).mean()),
        "points": np.round([information[chosen], scores[chosen]], 2).tolist(),
    }


def _less_means(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    totals, sizes = np.bincount(groups, values), np.bincount(groups)
    return values - (totals / np.maximum(sizes, 1))[groups]


# === Verdict and figure ===


def verdict(ledger: Ledger) -> str:
    """Says what the numbers of all runs show."""
    analogies = {arm: ledger.values(arm, "analogy_accuracy") for arm in ARMS}
    cost = {arm: float(np.mean(ledger.values(arm, "cpu_ms_per_update"))) for arm in (SGNS, FULL)}
    less = difference(ledger, SGNS, FULL, "analogy_accuracy")["mean"]
    gain = difference(ledger, ALL_WORDS, SGNS, "analogy_accuracy")["mean"]
    offsets = {arm: float(np.mean(ledger.values(arm, "pmi_offset"))) for arm in (SGNS, MORE)}
    expected = {SGNS: -np.log(5), MORE: -np.log(15)}
    fits = {arm: float(np.mean(ledger.values(arm, "pmi_correlation"))) for arm in (SGNS, DRAWN)}
    within = float(np.mean(ledger.values(DRAWN, "pmi_correlation_within_words")))
    parts = {
        f"negative sampling answers {spread(analogies[SGNS])} of the analogies, a softmax over all words "
        f"{spread(analogies[FULL])}": less <= AS_GOOD,
        f"an update costs {cost[SGNS]:.0f} instead of {cost[FULL]:.0f} ms of processor time": cost[SGNS]
        < cost[FULL] / 2,
        f"leaving frequent words out changes the share of analogies by {gain:+.3f}": gain > 0,
        f"scores of negative sampling correlate with PMI by {fits[SGNS]:.2f} and lie {offsets[SGNS]:+.2f} from it for "
        f"K = 5 and {offsets[MORE]:+.2f} for K = 15, by -log K {expected[SGNS]:+.2f} and {expected[MORE]:+.2f}": all(
            abs(offsets[arm] - expected[arm]) <= OFFSET_TOLERANCE for arm in expected
        ),
        f"scores of the softmax over drawn words correlate with PMI by {within:.2f} within words and by {fits[DRAWN]:.2f} "
        "across them": within > fits[DRAWN],
    }
    return shows(parts)


def _figure(ledger: Ledger) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 5), layout="constrained")
    scatter, bars, table = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.05))
    _draw_points(scatter, ledger)
    _draw_accuracies(bars, ledger)
    _draw_neighbors(table, ledger)
    return figure


def _draw_points(axes: Axes, ledger: Ledger) -> None:
    for arm, color, count in ((SGNS, "tab:blue", 5), (MORE, "tab:orange", 15)):
        information, scores = np.array(ledger.values(arm, "points")[0])
        axes.scatter(information, scores, s=3, alpha=0.25, color=color, linewidths=0)
        ends = np.array([information.min(), information.max()])
        axes.plot(ends, ends - np.log(count), color=color, label=f"PMI - log {count}")
    axes.set(xlabel="PMI of a pair, log p(c | w) / q(c)", ylabel="score u'v", title="Scores of negative sampling")
    axes.legend(fontsize=8)


def _draw_accuracies(axes: Axes, ledger: Ledger) -> None:
    keys = {"context_accuracy": "context among 20", "analogy_accuracy": "analogies", "neighbor_recall": "neighbours"}
    width = 0.8 / len(ARMS)
    for index, arm in enumerate(ARMS):
        values = [ledger.values(arm, key) for key in keys]
        places = np.arange(len(keys)) + (index - (len(ARMS) - 1) / 2) * width
        axes.bar(places, [np.mean(v) for v in values], width, yerr=[np.std(v) for v in values], capsize=2, label=arm)
    axes.axhline(1 / NUM_CANDIDATES, color="grey", linestyle=":", label="chance of the context")
    axes.set(
        xticks=range(len(keys)),
        xticklabels=keys.values(),
        ylabel="accuracy",
        title="What vectors know, mean and deviation of seeds",
    )
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    axes.legend(fontsize=8, ncols=2, loc="upper center")


def _draw_neighbors(axes: Axes, ledger: Ledger) -> None:
    axes.axis("off")
    axes.set_title(f"Nearest words, {SGNS}")
    found = ledger.values(SGNS, "neighbors")[0]
    for row, (word, near) in enumerate(found.items()):
        height = 0.94 - row / len(found)
        axes.text(0.0, height, word, weight="bold", fontsize=9, va="top")
        lines = [", ".join(part) for part in (near[:3], near[3:])]
        axes.text(0.26, height, "\n".join(lines), fontsize=9, va="top")
