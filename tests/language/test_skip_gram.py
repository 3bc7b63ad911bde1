"""Skip-gram: pairs of a text, losses and their optima, neighbours, analogies, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.experiments import skip_gram as experiment
from zoo.information import bounds
from zoo.language.contrastive import contrast, proposal
from zoo.language.skip_gram import (
    NUM_CANDIDATES,
    UNKNOWN,
    Corpus,
    SkipGram,
    context_accuracy,
    draw_words,
    encode_words,
    held_out_pairs,
    keep_probabilities,
    training_batches,
    with_candidates,
    word_pairs,
    word_tokenizer,
)
from zoo.sequence.tokenizer import load_tokenizer

TEXTS = ["The rows, the ROWS of n_samples: 3 rows!", "the Étude of rows"]


def build(**changes):
    keras.utils.set_random_seed(2)
    return SkipGram(**{"vocabulary_size": 7, "embedding_dim": 4, **changes}).build_from_signature()


def fill(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.standard_normal(variable.shape))
    return [variable.numpy() for variable in model.weights]


# === Sizes ===


def test_presets_have_two_tables_of_the_published_sizes():
    for preset in zoo.info("skip_gram").presets.values():
        with keras.StatelessScope(initialize_variables=False):
            model = SkipGram(**preset.config).build_from_signature()
            assert model.count_params() == preset.parameters == 2 * model.vocabulary_size * model.embedding_dim
        # Else the next variables of anybody would come with the values of these
        keras.utils.clear_session()


def test_words_start_small_and_contexts_at_zero():
    model = build(vocabulary_size=400, embedding_dim=10)
    words, contexts = (variable.numpy() for variable in model.weights)
    assert np.abs(words).max() <= 0.05 and words.min() < -0.049 and words.max() > 0.049
    assert not contexts.any()


# === Text ===


def test_words_are_lower_case_and_numbered_by_frequency():
    tokenizer = load_tokenizer(word_tokenizer(TEXTS, 6))
    words = [tokenizer.id_to_token(index) for index in range(6)]
    assert words[:3] == [UNKNOWN, "rows", "the"] and set(words[3:]) == {"of", "n_samples", "etude"}
    assert word_tokenizer(TEXTS, 6) == word_tokenizer(TEXTS, 6)


def test_unknown_words_are_left_out_of_the_text():
    content = word_tokenizer(TEXTS, 4)
    tokenizer = load_tokenizer(content)
    (ids, nothing) = encode_words(content, ["Rows unheard of ROWS", "3 + 4"])
    assert [tokenizer.id_to_token(int(i)) for i in ids] == ["rows", "of", "rows"] and len(nothing) == 0


def test_more_words_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"`vocabulary_size` must be at most what the texts give, 6\. Received: 7"):
        word_tokenizer(TEXTS, 7)


# === Pairs ===


def loop_pairs(documents, window, kept, rng):
    """The same pairs word by word, of the same draws."""
    flat = [(word, index) for index, document in enumerate(documents) for word in document]
    draws = rng.random(len(flat))
    flat = [entry for entry, draw in zip(flat, draws, strict=True) if draw < kept[entry[0]]]
    reach = rng.integers(1, window + 1, len(flat))
    found = []
    for place, (word, owner) in enumerate(flat):
        for other in range(max(0, place - reach[place]), min(len(flat), place + reach[place] + 1)):
            if other != place and flat[other][1] == owner:
                found.append((word, flat[other][0]))
    return found


@pytest.mark.parametrize("window", [1, 3, 50])
def test_pairs_are_those_within_a_window_of_one_document(window):
    rng = np.random.default_rng(4)
    documents = [rng.integers(0, 9, size).astype("int32") for size in (12, 1, 0, 30, 2)]
    kept = rng.uniform(0.4, 1.0, 9)
    words, contexts = word_pairs(documents, window, kept, np.random.default_rng(5))
    assert sorted(zip(words, contexts, strict=True)) == sorted(
        loop_pairs(documents, window, kept, np.random.default_rng(5))
    )
    assert words.dtype == contexts.dtype == "int32" and len(words) > 20


def test_a_single_word_has_no_pair():
    words, contexts = word_pairs([np.array([3], "int32")], 5, np.ones(9), np.random.default_rng(0))
    assert len(words) == len(contexts) == 0


def test_frequent_words_are_left_out():
    counts = np.array([10_000, 100, 0, 1])
    frequency = counts / counts.sum()
    kept = keep_probabilities(counts, 1e-3)
    expected = [min(1, np.sqrt(1e-3 / f) + 1e-3 / f) for f in frequency[:2]]
    np.testing.assert_allclose(kept, [*expected, 1, 1])
    documents = [np.repeat([0, 1], [20_000, 2000]).astype("int32")]
    words, _ = word_pairs(documents, 1, np.where(np.arange(4) == 0, 0.1, 1.0), np.random.default_rng(0))
    # 2000 of 20,000 stay, each in two pairs; 4 standard errors
    assert abs((words == 0).sum() / 2 - 2000) < 4 * np.sqrt(20_000 * 0.1 * 0.9)


def test_wrong_words_are_drawn_by_frequency_to_the_power_of_three_quarters():
    counts = np.array([81, 16, 1, 0])
    expected = np.array([27, 8, 1, 1]) / 37
    np.testing.assert_allclose(proposal(counts), expected)
    drawn = np.bincount(draw_words(40_000, proposal(counts), np.random.default_rng(0)), minlength=4) / 40_000
    # Four tests at 4 standard errors: a false alarm in 4,000
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / 40_000)).all()
    np.testing.assert_allclose(proposal(counts, 0.0), 0.25)
    for bad in ([[1, 2]], [], [1, -1], [np.nan, 1]):
        with pytest.raises(ValueError, match="`counts` must be a vector of numbers that are not negative"):
            proposal(np.array(bad))


def test_batches_have_the_right_word_first_and_cover_every_pair_of_a_pass():
    model = build(window=1, num_negatives=3, subsample_threshold=1.0)
    texts = Corpus.of([np.array([0, 1, 2, 3, 4], "int32")], 7)
    batches = training_batches(model, texts, 4, seed=0)
    passed = [next(batches), next(batches)]
    pairs = {(a, b[0]) for batch in passed for a, b in zip(batch["word_ids"], batch["candidate_ids"], strict=True)}
    assert pairs == {(a, b) for a in range(5) for b in range(5) if abs(a - b) == 1}
    assert passed[0]["candidate_ids"].shape == (4, 4)
    again = training_batches(model, texts, 4, seed=0)
    for batch in passed:
        np.testing.assert_array_equal(next(again)["candidate_ids"], batch["candidate_ids"])
    full = build(loss="softmax", num_negatives=None, window=1, subsample_threshold=1.0)
    inputs, targets = next(training_batches(full, texts, 8, seed=0))
    assert set(inputs) == {"word_ids"} and set(zip(inputs["word_ids"], targets, strict=True)) == pairs


def test_texts_that_are_too_short_are_refused():
    model = build()
    with pytest.raises(ValueError, match="`documents` must be texts with 100 pairs of words"):
        next(training_batches(model, Corpus.of([np.arange(5, dtype="int32")], 7), 100, 0))
    with pytest.raises(ValueError, match="`documents` must be texts with words"):
        Corpus.of([np.zeros(0, "int32")], 7)


# === Losses ===


def batch_of_pairs(seed=0, size=6, negatives=4):
    rng = np.random.default_rng(seed)
    words, contexts = rng.integers(0, 7, (2, size)).astype("int32")
    return with_candidates(words, contexts, negatives, np.full(7, 1 / 7), rng)


def test_scores_are_products_of_two_tables():
    model = build()
    u, v = fill(model)
    batch = batch_of_pairs()
    expected = np.einsum("bd,bnd->bn", u[batch["word_ids"]], v[batch["candidate_ids"]])
    np.testing.assert_allclose(model(batch), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model({"word_ids": batch["word_ids"]}), u[batch["word_ids"]] @ v.T, rtol=1e-5, atol=1e-6)


def test_negative_sampling_is_a_sum_of_logistic_losses():
    model, batch = build(), batch_of_pairs()
    fill(model)
    scores = model(batch).numpy().astype("float64")
    log_sigmoid = lambda values: -np.log1p(np.exp(-values))  # noqa: E731
    expected = -(log_sigmoid(scores[:, 0]) + log_sigmoid(-scores[:, 1:]).sum(axis=1)).mean()
    np.testing.assert_allclose(model.compute_loss(batch, None, model(batch)), expected, rtol=1e-5)


def test_softmax_over_drawn_words_is_info_nce_without_the_right_word_twice():
    model, batch = build(loss="softmax"), batch_of_pairs(size=30)
    fill(model)
    scores, ids = model(batch).numpy(), batch["candidate_ids"]
    repeated = (ids[:, 1:] == ids[:, :1]).any(axis=1)
    assert 0 < repeated.sum() < 30
    expected, bound = [], []
    for row, words in zip(scores.astype("float64"), ids, strict=True):
        kept = np.array([True, *(words[1:] != words[0])])
        expected.append(np.log(np.exp(row[kept]).sum()) - row[0])
        bound.append(np.log(kept.sum()) - expected[-1])
    np.testing.assert_allclose(model.compute_loss(batch, None, model(batch)), np.mean(expected), rtol=1e-5)
    plain = ~repeated
    np.testing.assert_allclose(
        bounds.info_nce(scores[plain], positives=np.zeros(plain.sum(), "int32")),
        np.mean(np.array(bound)[plain]),
        rtol=1e-5,
    )


def test_all_words_as_candidates_are_a_full_softmax_with_its_gradient():
    model = build(loss="softmax", num_negatives=None)
    fill(model)
    words, contexts = tf.constant([1, 2, 2, 6]), tf.constant([0, 3, 3, 5])

    def value_and_gradient(function):
        with tf.GradientTape() as tape:
            value = function(model({"word_ids": words}))
        grads = tape.gradient(value, [v.value for v in model.trainable_variables])
        return value.numpy(), [tf.convert_to_tensor(grad).numpy() for grad in grads]

    ours = value_and_gradient(lambda scores: model.compute_loss({"word_ids": words}, contexts, scores))
    theirs = value_and_gradient(
        lambda scores: tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(contexts, scores))
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def toy_pairs(size=20, count=20_000):
    """Pairs of a random joint distribution, whose rows and columns differ much in frequency."""
    rng = np.random.default_rng(0)
    logits = 0.8 * rng.standard_normal((size, size)) + 0.4 * rng.standard_normal((2, size)).sum(0)[None]
    joint = np.exp(logits) / np.exp(logits).sum()
    return np.divmod(rng.choice(size * size, count, p=joint.ravel()), size)


@pytest.mark.parametrize(("loss", "negatives"), [("sgns", 5), ("softmax", 5)])
def test_scores_converge_to_pointwise_mutual_information(loss, negatives):
    """u'v is PMI - log K of negative sampling; of a softmax over drawn words it is PMI, up to a constant of each word."""
    words, contexts = toy_pairs()
    counts = np.zeros((20, 20))
    np.add.at(counts, (words, contexts), 1)
    marginal = counts.sum(axis=0) / counts.sum()
    model = build(vocabulary_size=20, embedding_dim=20, loss=loss, num_negatives=negatives)
    rng, steps = np.random.default_rng(1), 500

    def batches():
        while True:
            order = rng.permutation(len(words))
            for rows in order.reshape(10, -1):
                yield with_candidates(words[rows], contexts[rows], negatives, marginal, rng)

    spec = {
        "word_ids": tf.TensorSpec((None,), "int32"),
        "candidate_ids": tf.TensorSpec((None, 1 + negatives), "int32"),
    }
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, steps)), jit_compile=False)
    model.fit(
        tf.data.Dataset.from_generator(batches, output_signature=spec),
        steps_per_epoch=steps,
        epochs=1,
        shuffle=False,
        verbose=0,
    )
    scores = model({"word_ids": np.arange(20)} | {"candidate_ids": np.tile(np.arange(20), (20, 1))}).numpy()
    often = counts >= 20
    information = np.log(np.maximum(counts, 1) / counts.sum(axis=1, keepdims=True)) - np.log(marginal)
    if loss == "softmax":
        weights = often / often.sum(axis=1, keepdims=True)
        scores, information = (v - (v * weights).sum(axis=1, keepdims=True) for v in (scores, information))
        assert np.abs(scores - information)[often].mean() < 0.2
    else:
        assert abs((scores - information)[often].mean() + np.log(negatives)) < 0.2
    assert often.sum() > 200 and np.corrcoef(scores[often], information[often])[0, 1] > 0.98


@pytest.mark.parametrize("loss", ["sgns", "softmax"])
def test_fit_learns_pairs(loss):
    model, batch = build(loss=loss), batch_of_pairs()
    model.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    history = model.fit(
        tf.data.Dataset.from_tensors(batch).repeat(), steps_per_epoch=1, epochs=30, shuffle=False, verbose=0
    ).history["loss"]
    assert history[-1] < 0.7 * history[0]


# === Neighbours and analogies ===


@pytest.fixture
def compass():
    """Words in known directions."""
    model = build(vocabulary_size=7, embedding_dim=2)
    texts = [" ".join(["east"] * 7 + ["north"] * 6 + ["west"] * 5 + ["south"] * 4 + ["upeast"] * 3 + ["far"] * 2)]
    model.set_assets({"tokenizer.json": word_tokenizer(texts, 7)})
    table = [[0.0, 0.0], [1, 0], [0, 2], [-1, 0], [0, -1], [1, 0.2], [3, 3]]
    model.word_embedding.embeddings.assign(np.array(table, "float32"))
    return model


def test_neighbours_have_the_largest_cosines(compass):
    found = compass.most_similar("east", 3)
    assert [word for word, _ in found] == ["upeast", "far", "north"]
    np.testing.assert_allclose([cosine for _, cosine in found], [1 / np.hypot(1, 0.2), np.sqrt(0.5), 0], atol=1e-6)
    assert len(compass.most_similar("east", 100)) == 5
    np.testing.assert_array_equal(compass.vector("north"), [0, 2])
    with pytest.raises(ValueError, match=r"`top_k` must be positive\. Received: 0"):
        compass.most_similar("east", 0)


def test_analogies_exclude_the_words_of_the_question(compass):
    # north - east + west points up and left; without exclusion west and north would be nearest
    ((word, cosine),) = compass.analogy("east", "north", "west")
    units = compass.unit_vectors()
    places = {w: compass.tokenizer.token_to_id(w) for w in ("east", "north", "west", "far", "south")}
    query = units[places["north"]] - units[places["east"]] + units[places["west"]]
    assert word == "far"
    np.testing.assert_allclose(cosine, units[places["far"]] @ query / np.linalg.norm(query), atol=1e-6)
    questions = [("east", "north", "west", "far"), ("east", "north", "west", "south")]
    assert compass.analogy_accuracy(questions) == 0.5
    assert compass.neighbor_recall([("east", "upeast"), ("east", "west")], top_k=1) == 0.5


def test_words_that_are_not_known_are_refused(compass):
    for word in ("up", UNKNOWN):
        with pytest.raises(ValueError, match=r"`word` must be one of the model's 7 words. Received: '.*'"):
            compass.most_similar(word)
    with pytest.raises(ValueError, match="`questions` must be at least one"):
        compass.analogy_accuracy([])
    with pytest.raises(ValueError, match="`pairs` must be at least one"):
        compass.neighbor_recall([])
    with pytest.raises(ValueError, match="no tokenizer"):
        build().vector("east")


def test_the_deployed_model_finds_the_same_neighbours(compass):
    outputs = compass.run("predict", query=compass.run("encode", word_ids=np.array([1]))["embedding"])
    tokens = [compass.tokenizer.id_to_token(int(index)) for index in outputs["neighbor_ids"][0]]
    expected = compass.most_similar("east", 5)
    assert tokens[:3] == ["east", *(word for word, _ in expected[:2])]
    np.testing.assert_allclose(outputs["similarities"][0, 1:3], [cosine for _, cosine in expected[:2]], atol=1e-6)
    nothing = compass.run("predict", query=np.zeros((1, 2), "float32"))
    assert np.isfinite(nothing["similarities"]).all()


# === Held-out contexts ===


@pytest.fixture(scope="module")
def reader():
    model = SkipGram(**zoo.info("skip_gram").preset("docstrings").config).build_from_signature()
    experiment.prepare(model, "docstrings")
    return model


def test_held_out_pairs_are_the_same_each_time(reader):
    first = reader.held_out("docstrings", "validation")
    held_out_pairs.cache_clear()
    again = reader.held_out("docstrings", "validation")
    assert first["candidate_ids"].shape == (5000, NUM_CANDIDATES)
    np.testing.assert_array_equal(first["candidate_ids"], again["candidate_ids"])


def test_contexts_are_found_where_their_score_is_the_best(reader):
    pairs = reader.held_out("docstrings", "test")
    ids = pairs["candidate_ids"]

    def run(name, inputs):
        assert name == "score"
        return {"scores": scores}

    scores = (ids == ids[:, :1]).astype("float32")
    assert context_accuracy(run, pairs) == 1
    # Equal scores say nothing
    scores = np.zeros(ids.shape, "float32")
    assert context_accuracy(run, pairs) == 0
    # 0.05 by chance, less what is drawn twice; 4 standard errors
    scores = np.random.default_rng(0).standard_normal(ids.shape)
    assert abs(context_accuracy(run, pairs) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 5000) + 0.003


# === What is refused ===


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(vocabulary_size=1), "`vocabulary_size` must be at least 2"),
        (dict(embedding_dim=0), "`embedding_dim` must be positive"),
        (dict(window=0), "`window` must be positive"),
        (dict(num_negatives=0), "`num_negatives` must be positive, or None with the loss 'softmax'"),
        (dict(num_negatives=None), "`num_negatives` must be positive, or None"),
        (dict(loss="hinge"), "`loss` must be one of"),
        (dict(subsample_threshold=0.0), "`subsample_threshold` must be positive"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


def test_data_of_the_other_loss_are_refused():
    model, batch = build(), batch_of_pairs()
    alone = {"word_ids": batch["word_ids"]}
    for x, y, match in (
        (batch, batch["word_ids"], "`y` must be None"),
        (alone, None, "`y` must be the right words"),
        (alone, batch["word_ids"], "`x` must be a dict with 'candidate_ids'"),
    ):
        with pytest.raises(ValueError, match=match):
            model.compute_loss(x, y, model(x))
    with pytest.raises(ValueError, match="`sample_weight` must be None"):
        model.compute_loss(batch, None, model(batch), np.ones(6))
    with pytest.raises(ValueError, match=r"must have 7 tokens\. Received: 6"):
        model.set_assets({"tokenizer.json": word_tokenizer(TEXTS, 6)})


def test_contrast_takes_any_row_of_candidates():
    scores = np.random.default_rng(0).standard_normal((2, 3, 5)).astype("float32")
    positives = np.array([[0, 1, 4], [2, 2, 3]])
    found = contrast(tf.constant(scores), tf.constant(positives))
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(positives, scores)
    np.testing.assert_allclose(found.loss, expected, atol=1e-6)
    np.testing.assert_allclose(found.bound, np.log(5) - expected.numpy(), atol=1e-6)


# === The experiment ===


def test_questions_are_of_known_regular_words(reader):
    for name, pairs in experiment.RELATIONS.items():
        assert len(set(pairs)) == len(pairs) and len(experiment.known_pairs(reader, pairs)) >= 15, name
    assert ("compute", "computed") in experiment.RELATIONS["past"] and ("return", "returned") in experiment.RELATIONS[
        "past"
    ]
    assert experiment.questions([("a", "b"), ("c", "d")]) == [("a", "b", "c", "d"), ("c", "d", "a", "b")]
    assert len(experiment.known_pairs(reader, experiment.OPPOSITES)) >= 20


def test_chance_is_low_for_vectors_that_know_nothing(reader):
    found = experiment.judge_words(reader)
    assert found["analogy_accuracy"] < 0.01 and found["neighbor_recall"] < 0.05
    assert set(found) == {"analogy_accuracy", "neighbor_recall", *experiment._relation_keys()}
    stranger = build()
    stranger.set_assets({"tokenizer.json": word_tokenizer(["one two three four five six"], 7)})
    assert experiment.judge_words(stranger) == {}


@pytest.mark.parametrize("all_words", [False, True])
def test_information_is_that_of_the_counted_pairs(all_words):
    changes = dict(loss="softmax", num_negatives=None) if all_words else {}
    model = build(vocabulary_size=3, embedding_dim=3, window=1, subsample_threshold=1.0, **changes)
    texts = Corpus.of([np.array([0, 1, 0, 2] * 50, "int32")], 3)
    counts = np.array([[0, 100, 99], [100, 0, 0], [99, 0, 0]])
    drawn = np.full(3, 1 / 3) if all_words else proposal(texts.counts)
    information = np.log(counts / counts.sum(axis=1, keepdims=True) / drawn + 1e-30)
    model.word_embedding.embeddings.assign(np.eye(3))
    model.context_embedding.embeddings.assign((2 * information - 1).T)
    found = experiment.information_fit(model, texts, 0)
    assert found["pmi_correlation"] == pytest.approx(1, abs=1e-5)
    expected = (information - 1)[counts > 0].mean()
    assert found["pmi_offset"] == pytest.approx(expected, abs=1e-4)


def test_scores_of_all_words_are_compared_with_drawn_ones_by_how_often_they_are_drawn():
    texts = Corpus.of([np.array([0, 1, 1, 2, 2, 2], "int32")], 3)
    ids = np.array([[0, 2], [1, 0]], "int32")
    inputs = {"word_ids": np.array([0, 1], "int32"), "candidate_ids": ids}
    found = {}
    for count in (5, None):
        model = build(vocabulary_size=3, embedding_dim=3, loss="softmax", num_negatives=count)
        model.context_embedding.embeddings.assign(np.arange(9).reshape(3, 3))
        scores = experiment._comparable_scores(model, texts)("score", inputs)["scores"]
        found[count] = scores - model.run("score", **inputs)["scores"]
    assert not found[5].any()
    np.testing.assert_allclose(found[None], -np.log(proposal(texts.counts)[ids]), rtol=1e-5)


def ledger_of(tmp_path, **changes):
    """A ledger of runs that show the claim, but for what is changed."""
    good = {"full": 0.3, "all": 0.25, "offset": -np.log(15) + 0.1, "cost": 100.0, "drawn": 0.3} | changes
    ledger = experiment.Ledger(tmp_path / "runs.json", {})
    for arm in experiment.ARMS:
        found = {
            "context_accuracy": 0.3,
            "neighbor_recall": 0.4,
            "analogy_accuracy": {experiment.FULL: good["full"], experiment.ALL_WORDS: good["all"]}.get(arm, 0.3),
            "cpu_ms_per_update": good["cost"] if arm == experiment.FULL else 20.0,
            "pmi_correlation": good["drawn"] if arm == experiment.DRAWN else 0.8,
            "pmi_correlation_within_words": 0.7,
            "pmi_offset": good["offset"] if arm == experiment.MORE else -np.log(5),
            "points": [[0.0, 1.0], [-1.0, 0.5]],
            "neighbors": {word: ["a", "b", "c", "d"] for word in experiment.SHOWN},
        }
        ledger.run(arm, 0, lambda found=found: found, lambda line: None)
    return ledger


@pytest.mark.parametrize(
    ("changes", "shown"),
    [({}, 5), ({"full": 0.5}, 4), ({"all": 0.4}, 4), ({"offset": 0.0}, 4), ({"cost": 30.0}, 4), ({"drawn": 0.9}, 4)],
    ids=str,
)
def test_the_verdict_follows_the_numbers(tmp_path, changes, shown):
    ledger = ledger_of(tmp_path, **changes)
    positive, _, negative = experiment.verdict(ledger).partition("Does not show:")
    phrases = ("answers", "an update costs", "leaving frequent", "lie", "within words")
    assert sum(phrase in positive for phrase in phrases) == shown and bool(negative) == (shown < 5)
    experiment._figure(ledger)


@pytest.mark.slow
def test_the_experiment_runs(tmp_path):
    experiment.reproduce(tmp_path, seeds=1, updates=3)
    assert {path.name for path in tmp_path.iterdir()} == {"skip_gram.json", "skip_gram.png", "skip_gram.runs.json"}
