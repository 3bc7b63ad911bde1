"""InfoWord: the bound, its special cases, the two views of a span, what changes a loss and what must not."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import docstrings
from zoo.experiments import infoword as experiment
from zoo.experiments import language_encoders
from zoo.information import bounds
from zoo.language.bert import Bert
from zoo.language.contrastive import contrast, proposal, weighted_mean
from zoo.language.infoword import (
    OBJECTIVES,
    InfoWord,
    cut_spans,
    draw_spans,
    pretraining_batches,
    retrieval,
    token_counts,
    uncorrupted,
)
from zoo.language.pretraining_data import Masking, load_documents, masked_pairs, segment_pairs, training_batches
from zoo.language.tokenizers import SpecialIds, train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "text_encoders"
SIZES = dict(
    vocabulary_size=60, num_layers=2, hidden_dim=16, num_heads=4, intermediate_dim=24, max_sequence_length=16, dropout=0.0,
    attention_dropout=0.0, initializer_stddev=0.2, sequence_length=16, mask_selection_length=4, head="masked_lm",
    mlm_negatives=20, ngram_max=3, scale=True,
)  # fmt: skip
IDS = SpecialIds(padding=0, start=2, separator=3, mask=4)
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer():
    """Letters as pieces: 60 tokens."""
    texts = [" ".join(ALPHABET), " ".join(ALPHABET[place : place + 3] for place in range(24))] * 5
    return train_tokenizer(texts, 60)


@pytest.fixture(scope="module")
def build(tokenizer):
    def build(objective="infoword", **changes):
        keras.utils.set_random_seed(3)
        sentence_loss = "nsp" if objective == "nsp" else "none"
        arguments = {**SIZES, "objective": objective, "sentence_loss": sentence_loss, **changes}
        model = InfoWord(**arguments).build_from_signature()
        model.set_assets({"tokenizer.json": tokenizer})
        return model

    return build


def sequences(batch=6, length=16, seed=0):
    """Masked sequences of two segments."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 60, (batch, length)).astype("int32")
    sizes = rng.integers(8, length + 1, batch)
    mask = (np.arange(length) < sizes[:, None]).astype("int32")
    tokens[:, 0], tokens[:, 5] = IDS.start, IDS.separator
    tokens[np.arange(batch), sizes - 1] = IDS.separator
    tokens *= mask
    positions = np.stack([rng.choice(np.setdiff1d(np.arange(1, 7), [5]), 4, replace=False) for _ in range(batch)])
    weights = (rng.random((batch, 4)) < 0.7).astype("float32")
    weights[:, 0] = 1
    targets = {
        "mask_ids": (np.take_along_axis(tokens, positions, axis=1) * (weights > 0)).astype("int32"),
        "mask_weights": weights,
        "sentence_label": rng.integers(0, 2, batch).astype("int32"),
    }
    corrupted = tokens.copy()
    rows, columns = np.nonzero(weights)
    corrupted[rows, positions[rows, columns]] = IDS.mask
    inputs = {
        "token_ids": corrupted,
        "segment_ids": np.tile((np.arange(length) > 5).astype("int32"), (batch, 1)) * mask,
        "padding_mask": mask,
        "mask_positions": positions.astype("int32"),
    }
    return inputs, targets, tokens


def batch_for(model, batch=6, seed=0):
    inputs, targets, _ = sequences(batch, seed=seed)
    return model.span_views(inputs, targets, np.random.default_rng(seed))


def tensors(arrays):
    return {name: tf.constant(value) for name, value in arrays.items()}


def loss_and_gradients(model, inputs, targets, training=True):
    inputs, targets = tensors(inputs), tensors(targets)
    with tf.GradientTape() as tape:
        loss = model.compute_loss(inputs, targets, model(inputs, training=training), training=training)
    grads = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    return loss.numpy(), [None if grad is None else tf.convert_to_tensor(grad).numpy() for grad in grads]


# === Sizes ===


def test_presets_have_the_published_sizes():
    for preset in zoo.info("infoword").presets.values():
        with keras.StatelessScope(initialize_variables=False):
            count = InfoWord(**preset.config).build_from_signature().count_params()
        # Else the next variables of anybody would come with the values of these
        keras.utils.clear_session()
        assert count == preset.parameters, preset.name


# === The bound ===


def discrete(size=6, seed=0):
    """A joint distribution of two variables, and its information in nats."""
    logits = 1.2 * np.random.default_rng(seed).standard_normal((size, size))
    joint = np.exp(logits) / np.exp(logits).sum()
    ratio = np.log(joint / (joint.sum(1, keepdims=True) * joint.sum(0)))
    return joint, ratio, (joint * ratio).sum()


def estimates(critic, joint, candidates, draws=20_000, seed=1):
    rng = np.random.default_rng(seed)
    a, b = np.divmod(rng.choice(joint.size, draws, p=joint.ravel()), len(joint))
    others = rng.choice(len(joint), (draws, candidates - 1), p=joint.sum(0))
    scores = critic[a[:, None], np.concatenate([b[:, None], others], axis=1)]
    return contrast(tf.constant(scores), tf.zeros(draws, "int32")).bound.numpy()


def test_the_bound_of_the_best_critic_is_below_the_information_and_grows_with_candidates():
    joint, ratio, information = discrete()
    found = {count: estimates(ratio, joint, count) for count in (8, 16, 64)}
    for count, values in found.items():
        deviation = values.std() / np.sqrt(len(values))
        assert values.mean() <= min(information + 4 * deviation, np.log(count)), count
    means = [values.mean() for values in found.values()]
    assert means[0] < means[1] < means[2] and information - means[2] < 0.1
    assert not estimates(np.zeros((6, 6)), joint, 8).any()


def test_the_bound_is_at_most_the_number_of_candidates():
    # I = log 6 here, and four candidates
    joint = np.eye(6) / 6
    values = estimates(np.where(np.eye(6) > 0, 30.0, -30.0), joint, 4)
    assert values.mean() <= np.log(4) < np.log(6)


# === Special cases ===


def words_of(model, seed=5):
    rng = np.random.default_rng(seed)
    for variable in (model.head_layer.bias, model.backbone.embedding.token.embeddings):
        variable.assign(rng.standard_normal(variable.shape))
    states = tf.constant(rng.standard_normal((3, 4, 16)), "float32")
    ids = tf.constant(rng.integers(0, 60, (3, 4)), "int32")
    return states, ids


def test_drawn_words_that_are_all_words_give_the_full_softmax(build):
    """Values and gradients."""
    model = build("mlm_nce")
    states, ids = words_of(model)
    head, table = model.head_layer, model.backbone.embedding.token.embeddings

    def value_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(states)
            value = tf.reduce_mean(function())
        sources = [states, table.value, head.bias.value]
        return value, [tf.convert_to_tensor(grad) for grad in tape.gradient(value, sources)]

    def drawn():
        return head.contrast_words(states, ids, tf.range(60), table.value).loss

    def full():
        flat = tf.matmul(tf.reshape(states, (-1, 16)), table.value, transpose_b=True) + head.bias.value
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(ids, [-1]), flat)

    ours, theirs = value_and_gradients(drawn), value_and_gradients(full)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_drawn_words_are_compared_as_written(build):
    model = build("mlm_nce")
    states, ids = words_of(model)
    table, bias = model.backbone.embedding.token.embeddings.numpy(), model.head_layer.bias.numpy()
    drawn = np.array([int(ids[0, 0]), 7, 7, 11], "int32")
    found = model.head_layer.contrast_words(states, ids, tf.constant(drawn), tf.constant(table))
    for row in range(3):
        for place in range(4):
            word = int(ids[row, place])
            candidates = [word, *(other for other in drawn if other != word)]
            scores = table[candidates] @ states.numpy()[row, place] + bias[candidates]
            expected = np.log(np.exp(scores - scores[0]).sum())
            np.testing.assert_allclose(found.loss[row, place], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                found.bound[row, place], np.log(len(candidates)) - expected, rtol=1e-4, atol=1e-5
            )


def test_next_sentence_is_the_softmax_of_two_label_vectors(build):
    model = build("nsp")
    inputs, targets = batch_for(model)
    targets["sentence_label"][0] = -1
    pooled = model.backbone(inputs)["pooled_output"].numpy()
    kernel, bias = (variable.numpy() for variable in model.head_layer.sentence.weights)
    logits = tf.constant(pooled @ kernel + bias)
    labels = targets["sentence_label"][1:]
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits[1:]).numpy()
    found, weights = model.contrasts(inputs, targets, model(inputs))["nsp"]
    np.testing.assert_allclose(found.loss[1:], expected, atol=1e-6)
    np.testing.assert_array_equal(weights, [0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(loss_and_gradients(model, inputs, targets)[0], expected.mean(), atol=1e-6)


def copied(model, other):
    other.backbone.set_weights(model.backbone.get_weights())
    own, theirs = model.head_layer, other.head_layer
    for name in ("transform", "norm", "sentence"):
        if getattr(theirs, name) is not None:
            getattr(theirs, name).set_weights(getattr(own, name).get_weights())
    theirs.bias.assign(own.bias)
    return other


def test_bert_is_a_special_case(build):
    """Masked words among all words and next sentence are BERT's loss, with its gradients."""
    model = build("mlm", sentence_loss="nsp")
    names = ("objective", "mlm_negatives", "ngram_max", "scale")
    sizes = {key: value for key, value in SIZES.items() if key not in names}
    bert = copied(model, Bert(**sizes).build_from_signature())
    inputs, targets = batch_for(model)
    ours, theirs = (loss_and_gradients(m, inputs, targets) for m in (model, bert))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_predictions_put_the_distribution_of_drawn_words_back(build):
    model = build("mlm_nce")
    inputs, _ = batch_for(model)
    before = model(inputs)["masked_lm_logits"].numpy()
    counts = np.arange(60) ** 2
    model.set_proposal(counts)
    after = model(inputs)["masked_lm_logits"].numpy()
    expected = np.log(proposal(counts)) + np.log(60)
    np.testing.assert_allclose(after - before, np.broadcast_to(expected, after.shape), atol=1e-4)
    drawn = np.concatenate([model.head_layer.draw_negatives() for _ in range(500)])
    share = np.bincount(drawn, minlength=60) / len(drawn)
    q = proposal(counts)
    # 60 tests at 4 standard errors, a false alarm in 260
    assert (np.abs(share - q) <= 4 * np.sqrt(q * (1 - q) / len(drawn)) + 1e-9).all()
    with pytest.raises(ValueError, match=r"`counts` must be 60 numbers\. Received: shape=\(3,\)"):
        model.set_proposal([1, 2, 3])
    with pytest.raises(ValueError, match="`objective` must be one that draws words"):
        build("mlm").set_proposal(counts)


def test_out_of_training_drawn_words_are_judged_among_all(build):
    model = build("mlm_nce")
    inputs, targets = batch_for(model)
    logits = model(inputs)["masked_lm_logits"]
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(targets["mask_ids"], logits)
    expected = np.average(nats, weights=targets["mask_weights"])
    np.testing.assert_allclose(loss_and_gradients(model, inputs, targets, training=False)[0], expected, rtol=1e-5)
    assert "masked_lm_logits" not in model(inputs, training=True)


# === Spans ===


def test_spans_are_uniform_and_never_hold_special_tokens():
    maskable = np.ones((20_000, 12), bool)
    maskable[:, [0, 5, 11]] = False
    starts, lengths = draw_spans(maskable, 3, np.random.default_rng(0))
    assert all(maskable[0, start : start + length].all() for start, length in set(zip(starts, lengths, strict=True)))
    share = np.bincount(lengths, minlength=4)[1:] / 20_000
    # 3 + 3 places of length 3, and each length in a third of the draws; 4 standard errors
    assert (np.abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / 20_000)).all()
    of_three = starts[lengths == 3]
    places = np.bincount(of_three, minlength=12) / len(of_three)
    expected = np.isin(np.arange(12), [1, 2, 6, 7, 8]) / 5
    assert (np.abs(places - expected) <= 4 * np.sqrt(0.16 / len(of_three))).all()


def test_short_texts_have_short_spans():
    maskable = np.array([[0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    for seed in range(20):
        starts, lengths = draw_spans(maskable, 5, np.random.default_rng(seed))
        assert 1 <= lengths[0] <= 2 and (starts[1], lengths[1]) == (2, 1) and lengths[2] == 0
        assert maskable[0, starts[0] : starts[0] + lengths[0]].all()


def test_spans_are_framed():
    tokens = np.array([[2, 7, 8, 9, 3, 0], [2, 7, 8, 9, 10, 3]], "int32")
    starts, lengths = np.array([2, 1]), np.array([2, 3])
    spans, mask = cut_spans(tokens, starts, lengths, IDS, 5, original=False)
    assert spans.tolist() == [[2, 8, 9, 3, 0], [2, 7, 8, 9, 3]] and mask.sum(axis=1).tolist() == [4, 5]
    spans, mask = cut_spans(tokens, starts, lengths, IDS, 6, original=True)
    assert spans.tolist() == [[2, 0, 8, 9, 3, 0], [2, 7, 8, 9, 3, 0]]
    np.testing.assert_array_equal(mask, spans != 0)


def test_views_are_the_text_without_the_span_and_the_span(build):
    inputs, targets, tokens = sequences(40)
    for changes in ({}, {"span_positions": "original"}):
        views, same_targets = build(**changes).span_views(inputs, targets, np.random.default_rng(0))
        assert same_targets is targets and views["token_ids"] is inputs["token_ids"]
        gap = views["sentence_ids"] != tokens
        # All of the span is masked, and nothing else
        assert (views["sentence_ids"][gap] == IDS.mask).all()
        for row in range(40):
            inner = views["span_ids"][row][views["span_mask"][row] == 1][1:-1]
            np.testing.assert_array_equal(inner, tokens[row][gap[row]])
            places = np.flatnonzero(gap[row])
            assert 1 <= len(places) <= 3 and (np.diff(places) == 1).all()
            if changes:
                assert (views["span_ids"][row][places] == inner).all()


def test_one_copy_for_both_views_masks_the_span_and_does_not_predict_it(build):
    inputs, targets, tokens = sequences(40)
    apart, _ = build().span_views(inputs, targets, np.random.default_rng(0))
    shared, weighed = build(share_masked_view=True).span_views(inputs, targets, np.random.default_rng(0))
    gap = apart["sentence_ids"] != tokens
    assert "sentence_ids" not in shared
    np.testing.assert_array_equal(shared["token_ids"], np.where(gap, IDS.mask, inputs["token_ids"]))
    in_gap = np.take_along_axis(gap, inputs["mask_positions"], axis=1)
    np.testing.assert_array_equal(weighed["mask_weights"], targets["mask_weights"] * ~in_gap)
    assert in_gap.any() and (targets["mask_weights"] * in_gap).any()
    # Spans alone need no second copy either, and nothing else is missing from it
    alone, _ = build("dim").span_views(inputs, targets, np.random.default_rng(0))
    np.testing.assert_array_equal(alone["token_ids"], apart["sentence_ids"])


def test_masks_are_taken_back():
    inputs, targets, tokens = sequences(20)
    np.testing.assert_array_equal(uncorrupted(inputs["token_ids"], inputs["mask_positions"], targets), tokens)


def test_nothing_leaks_from_the_span_into_the_text_or_back(build):
    model = build()
    inputs, targets, tokens = sequences(8)
    views, _ = model.span_views(inputs, targets, np.random.default_rng(0))
    gap = views["sentence_ids"] != tokens
    others = np.where(gap, (tokens + 7) % 50 + 5, tokens).astype("int32")
    targets_of_others = {**targets, "mask_weights": np.zeros_like(targets["mask_weights"])}
    changed, _ = model.span_views({**inputs, "token_ids": others}, targets_of_others, np.random.default_rng(0))
    before, after = model(views), model(changed)
    np.testing.assert_allclose(after["sentence_vec"], before["sentence_vec"], atol=1e-7)
    assert (np.abs(after["span_vec"] - before["span_vec"]).max(axis=1) > 1e-3).all()
    # The span's vector does not change with the text around it
    around = {**views, "sentence_ids": np.where(gap, IDS.mask, 9).astype("int32"), "token_ids": others}
    np.testing.assert_allclose(model(around)["span_vec"], before["span_vec"], atol=1e-7)


def test_both_views_are_of_one_encoder_and_train_it(build):
    """The gradient is the sum of both paths: no side is held fixed."""
    model = build("dim")
    inputs, targets = batch_for(model)
    names = {variable.path for variable in model.trainable_variables}
    assert names == {v.path for v in model.backbone.variables if "pooler" not in v.path and "seed" not in v.path}
    constant = {key: value.numpy() for key, value in model(inputs).items()}

    def gradients(**fixed):
        with tf.GradientTape() as tape:
            outputs = {**model(tensors(inputs)), **fixed}
            loss = model.compute_loss(tensors(inputs), tensors(targets), outputs)
        grads = tape.gradient(loss, [v.value for v in model.trainable_variables], unconnected_gradients="zero")
        return [tf.convert_to_tensor(grad).numpy() for grad in grads]

    both = gradients()
    of_text, of_span = gradients(span_vec=constant["span_vec"]), gradients(sentence_vec=constant["sentence_vec"])
    for whole, first, second in zip(both, of_text, of_span, strict=True):
        np.testing.assert_allclose(whole, first + second, atol=1e-5)
    sizes = [sum(float(np.square(grad).sum()) for grad in grads) for grads in (of_text, of_span)]
    assert min(sizes) > 1e-4


def test_only_small_presets_divide_scores():
    for preset in zoo.info("infoword").presets.values():
        assert preset.config.get("scale", False) == (preset.config["hidden_dim"] < 768), preset.name


def test_at_the_start_all_spans_are_alike(build):
    config = {**zoo.info("infoword").preset("docstrings").config, "objective": "dim", "vocabulary_size": 60}
    for changes in ({}, {"hidden_dim": 768, "num_layers": 2, "num_heads": 12, "intermediate_dim": 96}):
        keras.utils.set_random_seed(0)
        model = InfoWord(**{**config, **changes, "sequence_length": 16, "ngram_max": 3}).build_from_signature()
        model.set_assets(build().assets)
        inputs, targets = batch_for(model, 32)
        found, weights = model.contrasts(inputs, targets, model(inputs))["dim"]
        assert abs(weighted_mean(found.loss, weights) - np.log(32)) < 1.0


def test_equal_spans_are_no_negatives(build):
    model = build("dim")
    inputs, targets = batch_for(model)
    inputs["span_ids"], inputs["span_mask"] = (
        np.repeat(inputs[key][:1], 6, axis=0) for key in ("span_ids", "span_mask")
    )
    found, _ = model.contrasts(inputs, targets, model(inputs))["dim"]
    np.testing.assert_array_equal(found.loss, np.zeros(6))
    inputs["span_ids"][3, 1] += 1
    found, _ = model.contrasts(inputs, targets, model(inputs))["dim"]
    assert (found.loss.numpy() > 0).all()
    np.testing.assert_allclose(found.loss + found.bound, np.log([2, 2, 2, 6, 2, 2]), atol=1e-6)


def test_scores_are_scaled_products(build):
    text, span = np.random.default_rng(0).standard_normal((2, 3, 16)).astype("float32")
    plain = text @ span.T
    lengths = np.linalg.norm(text, axis=1)[:, None] * np.linalg.norm(span, axis=1)
    for changes, expected in (
        (dict(scale=False), plain),
        (dict(scale=True), plain / 4),
        (dict(scale=False, temperature=0.5), 2 * plain),
        (dict(scale=False, normalise=True, temperature=0.1), 10 * plain / lengths),
    ):
        found = build("dim", **changes).run("score", sentence_vec=text, span_vec=span)["scores"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_symmetric_is_the_mean_of_both_directions(build):
    model, one_way = build("dim", symmetric=True), build("dim")
    inputs, targets = batch_for(model)
    outputs = model(inputs)
    turned = {**outputs, "sentence_vec": outputs["span_vec"], "span_vec": outputs["sentence_vec"]}
    expected = [one_way.contrasts(inputs, targets, given)["dim"][0].loss for given in (outputs, turned)]
    found = model.contrasts(inputs, targets, outputs)["dim"][0].loss
    np.testing.assert_allclose(found, (expected[0] + expected[1]) / 2, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_spans_of_past_batches_are_negatives_in_training(build):
    model = build("dim", queue_size=8)
    first, second = (batch_for(model, seed=seed) for seed in (0, 1))
    second[0]["span_ids"][0], second[0]["span_mask"][0] = first[0]["span_ids"][2], first[0]["span_mask"][2]
    first[0]["padding_mask"][5] = 0
    spans = model(first[0])["span_vec"].numpy()
    empty = model.contrasts(*first, model(first[0]), training=True)["dim"][0]
    without = model.contrasts(*first, model(first[0]))["dim"][0]
    np.testing.assert_allclose(empty.loss, without.loss, atol=1e-6)
    np.testing.assert_allclose(model.queue.vectors.numpy()[:6], spans, atol=1e-6)
    np.testing.assert_array_equal((model.queue.tokens.numpy() >= 0).all(axis=1), [1, 1, 1, 1, 1, 0, 0, 0])
    found = model.contrasts(*second, model(second[0]), training=True)["dim"][0]
    # 6 of the batch and 5 of the past one; the first text's span was among these
    np.testing.assert_allclose(found.loss + found.bound, np.log([10, *[11] * 5]), atol=1e-6)
    np.testing.assert_allclose(model.queue.vectors.numpy()[6:], spans[:2], atol=1e-6)
    text, span = (model(second[0])[key].numpy() for key in ("sentence_vec", "span_vec"))
    scores = text[1] @ np.concatenate([span, spans[:5]]).T / 4
    np.testing.assert_allclose(found.loss[1], np.log(np.exp(scores - scores[1]).sum()), rtol=1e-4)


# === What changes a loss ===


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_losses_follow_their_examples_and_do_not_see_padding(build, training, symmetric):
    model = build(sentence_loss="nsp", symmetric=symmetric)

    def contrasts(inputs, targets):
        # The same words are drawn each time
        model.head_layer.seed_generator.state.assign([7, 0])
        return model.contrasts(inputs, targets, model(inputs, training=training), training)

    inputs, targets = batch_for(model)
    found = contrasts(inputs, targets)
    order = np.array([3, 0, 5, 1, 4, 2])
    mixed = [{key: value[order] for key, value in part.items()} for part in (inputs, targets)]
    permuted = contrasts(*mixed)
    more = [{key: np.concatenate([v, np.zeros_like(v[:1])]) for key, v in part.items()} for part in (inputs, targets)]
    more[1]["sentence_label"][-1] = -1
    padded = contrasts(*more)
    assert set(found) == {"mlm_nce", "dim", "nsp"}
    for name, (values, weights) in found.items():
        np.testing.assert_allclose(permuted[name][0].loss, values.loss.numpy()[order], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(padded[name][0].loss[:-1], values.loss, atol=1e-6, err_msg=name)
        assert not padded[name][1].numpy()[-1].any() and weights.numpy().any()
    np.testing.assert_allclose(
        loss_and_gradients(model, *more, training=False)[0], loss_and_gradients(model, inputs, targets, training=False)[0],
        rtol=1e-6,
    )  # fmt: skip


def trained(model, steps=4):
    """Returns the loss of each step and the final weights; what a step reports are means since the last reset."""
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    losses = []
    for seed in range(steps):
        inputs, targets = batch_for(model, seed=seed)
        model.reset_metrics()
        losses.append(model.train_on_batch(tensors(inputs), tensors(targets), return_dict=True)["loss"])
    return losses, model.get_weights()


def test_spans_of_no_weight_leave_masked_words_as_they_are(build):
    ours, theirs = trained(build(dim_weight=0.0)), trained(build("mlm_nce"))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(trained(build())[1][0] - ours[1][0]).max() > 1e-3


def test_the_loss_is_the_weighted_sum_of_means(build):
    model = build(mlm_weight=0.5, dim_weight=3.0)
    inputs, targets = batch_for(model)
    outputs = model(inputs)
    found = model.contrasts(inputs, targets, outputs)
    words = np.average(found["mlm_nce"][0].loss, weights=targets["mask_weights"])
    expected = 0.5 * words + 3 * found["dim"][0].loss.numpy().mean()
    np.testing.assert_allclose(model.compute_loss(inputs, targets, outputs, training=False), expected, rtol=1e-5)
    tracked = {metric.name: float(metric.result()) for metric in model.trackers.values()}
    np.testing.assert_allclose(tracked["mlm_nce_loss"], words, rtol=1e-5)
    np.testing.assert_allclose(tracked["dim_loss"] + tracked["dim_bound"], np.log(6), rtol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_what_it_uses(build, objective):
    model = build(objective, queue_size=4, num_layers=1)
    inputs, targets = batch_for(model)
    _, gradients = loss_and_gradients(model, inputs, targets)
    idle = [
        v.path for v, grad in zip(model.trainable_variables, gradients, strict=True) if grad is None or not grad.any()
    ]
    # A bias of keys moves all scores of a query alike
    assert [path for path in idle if "key" not in path] == []
    model.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    data = tf.data.Dataset.from_tensors((inputs, targets)).repeat()
    logs = model.fit(data, steps_per_epoch=1, epochs=25, shuffle=False, verbose=0).history
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    names = (*OBJECTIVES[objective], *(["nsp"] if objective == "nsp" else []))
    assert {key for key in logs if key != "loss"} == {f"{name}_{kind}" for name in names for kind in ("loss", "bound")}


def test_a_batch_of_only_padding_has_no_loss(build):
    model = build()
    inputs, targets = batch_for(model)
    inputs = {key: np.zeros_like(value) for key, value in inputs.items()}
    targets["mask_weights"][:] = 0
    loss, gradients = loss_and_gradients(model, inputs, targets)
    assert loss == 0 and all(np.isfinite(grad).all() for grad in gradients if grad is not None)


# === The encoder ===


def test_the_encoder_is_bert_of_pytorch():
    """Golden arrays of `BertForPreTraining`, see `tests/golden/make_text_encoders.py`."""
    with np.load(GOLDEN / "bert_pretraining.npz", allow_pickle=False) as file:
        arrays = dict(file)
    original = zoo.get("bert", weights=GOLDEN / "bert_pretraining")
    kept = ("vocabulary_size", "num_layers", "hidden_dim", "num_heads", "intermediate_dim", "max_sequence_length")
    sizes = {name: original.get_config()[name] for name in kept}
    model = InfoWord(**sizes, head="masked_lm", sequence_length=15).build_from_signature()
    model.backbone.set_weights(original.backbone.get_weights())
    inputs = {name: arrays[name] for name in ("token_ids", "segment_ids", "padding_mask")}
    outputs = model.run("encode", **inputs)
    expected = arrays["hidden_states"][-1]
    np.testing.assert_allclose(outputs["sequence_output"], expected, atol=1e-5)
    np.testing.assert_allclose(outputs["cls"], expected[:, 0], atol=1e-5)
    spans = model({**inputs, "span_ids": inputs["token_ids"], "span_mask": inputs["padding_mask"]})
    # Without segments, which a span has none of
    alone = original.backbone({**inputs, "segment_ids": np.zeros_like(inputs["token_ids"])})["sequence_output"][:, 0]
    np.testing.assert_allclose(spans["span_vec"], alone, atol=1e-5)
    np.testing.assert_allclose(spans["sentence_vec"], expected[:, 0], atol=1e-5)
    for wrong in (inputs["token_ids"], {**inputs, "span": inputs["token_ids"]}):
        with pytest.raises(ValueError, match="`inputs` must be a dict"):
            model(wrong)
    with pytest.raises(ValueError, match="`padding_mask` must be of the shape of `token_ids`"):
        model({**inputs, "span_ids": inputs["token_ids"], "span_mask": inputs["padding_mask"][:, :1]})


def test_the_encoder_goes_on_as_a_classifier_and_as_a_bert(build, tmp_path):
    model = build()
    inputs, _, _ = sequences()
    encoder_inputs = {key: inputs[key] for key in ("token_ids", "segment_ids", "padding_mask")}
    classifier = model.with_head("classification", num_classes=3)
    assert classifier(encoder_inputs).shape == (6, 3)
    classifier.compile("adam", jit_compile=False)
    logs = classifier.fit(encoder_inputs, np.array([0, 1, 2, 0, 1, 2]), verbose=0).history
    assert set(logs) == {"loss"}
    model.save_to_hugging_face(tmp_path / "theirs")
    bert = zoo.get("bert", weights=tmp_path / "theirs")
    np.testing.assert_array_equal(
        bert(encoder_inputs)["sequence_output"], model.run("encode", **encoder_inputs)["sequence_output"]
    )


def test_models_are_saved_with_their_distribution_and_queue(build, tmp_path):
    model = build(queue_size=8)
    model.set_proposal(np.arange(60))
    model.contrasts(*(batch := batch_for(model)), model(batch[0]), training=True)
    model.save_to_preset(tmp_path / "preset")
    again = zoo.get("infoword", weights=tmp_path / "preset")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.assets == model.assets and again.queue.tokens.dtype == "int32"


# === Data and judgement ===


@pytest.fixture(scope="module")
def reader():
    config = zoo.info("infoword").preset("docstrings").config
    model = InfoWord(**{**config, "num_layers": 1}).build_from_signature()
    language_encoders.prepare(model, "docstrings")
    return model


def test_batches_have_the_masks_that_bert_would_have(reader):
    documents = load_documents(docstrings.tokenizer_json(), "docstrings", "test")
    inputs, targets = next(pretraining_batches(reader, documents, 16, seed=3))
    masking = Masking(48, 8, "none", whole_words=False)
    theirs, _ = next(training_batches(docstrings.tokenizer_json(), documents, masking, 16, 3))
    for key, value in theirs.items():
        np.testing.assert_array_equal(inputs[key], value)
    again, _ = next(pretraining_batches(reader, documents, 16, seed=3))
    np.testing.assert_array_equal(inputs["span_ids"], again["span_ids"])
    assert inputs["span_ids"].shape == (16, 7) and targets["mask_weights"].sum() > 16
    counts = token_counts(documents[:3], 4000)
    assert counts.sum() == sum(len(line) for document in documents[:3] for line in document)


def test_padding_of_the_data_never_reaches_a_span():
    tokenizer = docstrings.tokenizer_json()
    documents = load_documents(tokenizer, "docstrings", "test")[:40]
    rng = np.random.default_rng(0)
    pairs = list(segment_pairs(documents, 48, "none", rng))
    inputs, targets = masked_pairs(tokenizer, pairs, Masking(48, 8, "none"), rng)
    tokens = uncorrupted(inputs["token_ids"], inputs["mask_positions"], targets)
    assert not np.isin(tokens, 4).any()
    maskable = (inputs["padding_mask"] == 1) & (tokens != 2) & (tokens != 3)
    starts, lengths = draw_spans(maskable, 5, rng)
    spans, mask = cut_spans(tokens, starts, lengths, IDS, 7, False)
    assert (lengths >= 1).all() and not np.isin(spans[:, 1:], [2, 4]).any() and ((spans != 0) == (mask == 1)).all()


def test_held_out_views_are_the_same_each_time(reader):
    first, second = (reader.held_out_views("docstrings", "test")[0] for _ in range(2))
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
    texts, spans = reader.gaps_and_spans("docstrings", "test", 10)
    assert (texts["token_ids"] == 4).any(axis=1).all() and spans["token_ids"].shape == (10, 48)


def test_retrieval_is_judged_strictly():
    ids = np.arange(8)[:, None] // 2

    def judge(scores):
        return retrieval(np.zeros((8, 1)), np.zeros((8, 1)), ids, lambda a, b: scores, 8)

    assert judge(np.eye(8, dtype="float32"))["span_recall"] == 1
    # Equal scores are no hit, nor a bound
    assert judge(np.zeros((8, 8), "float32")) == pytest.approx({"span_recall": 0.0, "span_bound": 0.0}, abs=1e-6)
    # A span that another text has too is no mistake
    twins = (ids == ids.T).astype("float32")
    assert judge(9 * twins)["span_recall"] == 1
    scores = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")
    masked = np.array([[scores[i, j] for j in range(8) if j == i or ids[i] != ids[j]] for i in range(8)])
    own = np.array([scores[i, i] for i in range(8)])
    expected = (np.log(7) + own - np.log(np.exp(masked).sum(axis=1))).mean()
    assert judge(scores)["span_bound"] == pytest.approx(expected, abs=1e-5)


def test_span_retrieval_runs_through_the_signatures(reader):
    calls = []

    def run(name, inputs):
        calls.append(name)
        return reader.run(name, **inputs)

    found = reader.span_retrieval(run, "docstrings", "test", num_candidates=16, count=40)
    assert calls == ["encode"] * 4 + ["score"] * 2 and 0 <= found["span_recall"] <= 1
    assert found["span_bound"] <= np.log(16)
    assert bounds.info_nce is contrast.__globals__["bounds"].info_nce


def test_texts_are_embedded(reader):
    vectors = reader.embed(["Returns the mean.", "mean " * 100], truncate=True)
    assert vectors.shape == (2, 128)
    with pytest.raises(ValueError, match="`texts` must be of at most 48 tokens each; truncate=True"):
        reader.embed(["mean " * 100])


# === What is refused ===


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(objective="xlnet"), "`objective` must be one of .*Received: 'xlnet'"),
        (
            dict(objective="nsp", sentence_loss="none"),
            "`sentence_loss` must be 'nsp', or 'none' with another objective",
        ),
        (dict(sentence_loss="sop"), "`sentence_loss` must be 'nsp'"),
        (dict(mlm_weight=-1.0), "`mlm_weight` must be finite and not negative"),
        (dict(dim_weight=np.inf), "`dim_weight` must be finite"),
        (dict(mlm_negatives=0), "`mlm_negatives` must be positive"),
        (dict(ngram_max=0), "`ngram_max` must be positive"),
        (dict(ngram_max=15), r"`ngram_max` must be at most `sequence_length` without \[CLS\] and \[SEP\], 14"),
        (dict(span_positions="relative"), "`span_positions` must be one of"),
        (dict(queue_size=-1), "`queue_size` must be not negative"),
        (dict(temperature=0.0), "`temperature` must be positive and finite"),
        (dict(num_heads=3), "`num_heads` must be a divisor"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(build, changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


def test_spans_for_a_model_without_are_refused(build):
    inputs, targets = batch_for(build())
    for model in (build("mlm"), build().with_head("classification")):
        with pytest.raises(ValueError, match="`objective` must be one with spans"):
            model(inputs)
    model = build()
    with pytest.raises(ValueError, match="`sample_weight` must be None"):
        model.compute_loss(inputs, targets, model(inputs), np.ones(6))


# === The experiment ===


def ledger_of(tmp_path, **changes):
    """A ledger of runs that show the claim, but for what is changed."""
    good = {"nce": 0.3, "both": 0.29, "recall": 0.6, "gain": (0.05, 0.03, 0.01)} | changes
    ledger = experiment.Ledger(tmp_path / "runs.json", {})
    for arm in experiment.ALL:
        ours = arm == experiment.BOTH
        found = {
            "span_recall": good["recall"] if ours else 0.2,
            "bounds": {str(count): 0.5 for count in experiment.CANDIDATES},
            "package_majority": 0.4,
            "masked_lm_accuracy": {experiment.NCE: good["nce"], experiment.BOTH: good["both"]}.get(arm, 0.3),
            "masked_lm_loss": 4.0,
            "curve": [0.1, 0.5] if arm in (experiment.DIM, experiment.BOTH, experiment.HALF) else [],
            "updates_a_point": 10,
        }
        for count, gain in zip(experiment.LABELS, good["gain"], strict=True):
            found[f"package_accuracy_{count}"] = 0.5 + (gain if ours else 0.0)
        ledger.run(arm, 0, lambda found=found: found, lambda line: None)
    return ledger


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, 5),
        ({"nce": 0.27}, 4),
        ({"both": 0.25}, 4),
        ({"recall": 0.1}, 4),
        ({"gain": (-0.01, 0.03, 0.01)}, 3),
        ({"gain": (0.01, 0.03, 0.01)}, 4),
    ],
    ids=str,
)
def test_the_verdict_follows_the_numbers(tmp_path, changes, shown):
    ledger = ledger_of(tmp_path, **changes)
    positive, _, negative = experiment.verdict(ledger).partition("Does not show:")
    phrases = ("masked words are found", "InfoWord finds", "removed span among", "tells packages", "most with")
    negative = negative.partition("With 50 labels")[0]
    assert sum(phrase in positive for phrase in phrases) == shown
    assert sum(phrase in negative for phrase in phrases) == 5 - shown
    experiment._figure(ledger)
    experiment._bounds_figure(ledger)


def test_lines_of_the_probe_are_of_known_packages():
    lines, packages = experiment._lines("test", 2000)
    assert len(lines) == 2000 and set(packages) == {"keras", "numpy", "scipy", "sklearn"}
    assert not any(package in line.lower() for line in lines for package in set(packages))
    assert min(map(len, lines)) >= experiment.SHORTEST


@pytest.mark.slow
def test_the_experiment_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "NUM_LABELLED", 1000)
    monkeypatch.setattr(experiment, "NUM_TESTED", 200)
    network = dict(num_layers=1, hidden_dim=32, num_heads=2, intermediate_dim=32)
    experiment.reproduce(tmp_path, seeds=1, updates=2, network=network)
    names = {"infoword.json", "infoword.png", "infoword_bounds.png", "infoword.runs.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
