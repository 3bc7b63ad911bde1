"""Transformer-XL: the mathematics of the paper, checked against brute force and closed forms."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import zoo
from zoo.layers import AdaptiveEmbedding, AdaptiveLogSoftmax, RelativeMultiHeadAttention
from zoo.ops import causal_memory_mask, masked_softmax, relative_shift, sinusoid_positions, take_distances
from zoo.sequence.transformer_xl import TransformerXL


def small(**overrides):
    config = dict(
        vocabulary_size=17, num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=24, window_length=4,
        memory_length=8, initializer_stddev=0.3,
    )  # fmt: skip
    return TransformerXL(**{**config, **overrides}).build_from_signature()


def tokens(*shape, seed=0, vocabulary_size=17):
    return tf.constant(np.random.default_rng(seed).integers(0, vocabulary_size, shape), "int32")


def read(model, token_ids, length):
    """Reads a text in windows; returns all logits and the last state."""
    state = model.initial_state(token_ids.shape[0])
    logits = []
    for start in range(0, token_ids.shape[1], length):
        window_logits, state = model.forward(token_ids[:, start : start + length], state, training=False)
        logits.append(window_logits.numpy())
    return np.concatenate(logits, axis=1), state


@pytest.mark.parametrize(("length", "memory"), [(1, 0), (1, 5), (4, 0), (4, 7), (7, 3)])
def test_shifted_scores_equal_a_triple_loop_over_terms_a_to_d(length, memory):
    rng = np.random.default_rng(length + 10 * memory)
    num_keys, heads, dim = length + memory, 2, 6
    query, key = rng.normal(size=(heads, length, dim)), rng.normal(size=(heads, num_keys, dim))
    relative = rng.normal(size=(heads, num_keys, dim))  # row c: distance num_keys - 1 - c
    u, w = rng.normal(size=(heads, 1, dim)), rng.normal(size=(heads, 1, dim))
    expected = np.zeros((heads, length, num_keys))
    for h in range(heads):
        for i in range(length):
            for j in range(i + memory + 1):
                r = relative[h, num_keys - 1 - (i + memory - j)]
                q, k = query[h, i], key[h, j]
                expected[h, i, j] = q @ k + q @ r + u[h, 0] @ k + w[h, 0] @ r
    by_distance = tf.constant((query + w) @ relative.transpose(0, 2, 1))[None]
    actual = ((query + u) @ key.transpose(0, 2, 1))[None] + relative_shift(by_distance)
    allowed = causal_memory_mask(length, memory).numpy()
    assert np.abs(np.where(allowed, actual - expected, 0)).max() < 1e-10
    distances = np.clip(np.arange(length)[:, None] + memory - np.arange(num_keys), 0, num_keys - 1)[None]
    gathered = take_distances(by_distance, tf.constant(distances, "int32"))
    assert np.abs(np.where(allowed, gathered - relative_shift(by_distance), 0)).max() == 0


def test_encodings_are_sines_then_cosines_of_descending_distances():
    encodings = sinusoid_positions(5, 6).numpy()
    for row, distance in enumerate((4, 3, 2, 1, 0)):
        angles = distance / 10000 ** (np.array([0, 2, 4]) / 6)
        np.testing.assert_allclose(encodings[row], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-6)
    clamped = sinusoid_positions(5, 6, clamp_length=2).numpy()
    np.testing.assert_array_equal(clamped[:3], np.tile(clamped[2], (3, 1)))


def test_both_orders_of_computation_agree():
    """One query takes the absorbed path, sixteen copies of it the plain one."""
    layer = RelativeMultiHeadAttention(2, 8, initializer_stddev=0.3)
    layer.build((None, None, 16))
    rng = np.random.default_rng(0)
    memory, query = rng.normal(size=(1, 9, 16)).astype("f"), rng.normal(size=(1, 1, 16)).astype("f")
    biases = dict(content_bias=rng.normal(size=(2, 8)).astype("f"), position_bias=rng.normal(size=(2, 8)).astype("f"))
    mask = causal_memory_mask(1, 9)
    absorbed, _ = layer(query, memory, mask, positions=sinusoid_positions(10, 16), **biases)
    window = np.concatenate([query, rng.normal(size=(1, 15, 16)).astype("f")], axis=1)
    plain, _ = layer(window, memory, causal_memory_mask(16, 9), positions=sinusoid_positions(25, 16), **biases)
    np.testing.assert_allclose(absorbed[:, 0], plain[:, 0], atol=1e-5)


def test_segmenting_does_not_change_the_function():
    model = small(memory_length=24)
    token_ids = tokens(2, 24)
    whole, _ = read(model, token_ids, 24)
    for length in (1, 3, 4, 8, 12):
        np.testing.assert_allclose(read(model, token_ids, length)[0], whole, atol=1e-5)


def test_segmenting_changes_the_function_with_absolute_positions():
    model = small(memory_length=24, position="absolute")
    token_ids = tokens(2, 24)
    assert np.abs(read(model, token_ids, 8)[0] - read(model, token_ids, 24)[0]).max() > 1e-2


@pytest.mark.parametrize("position", ["xl", "shaw"])
def test_no_gradient_reaches_the_memory(position):
    model = small(position=position)
    token_ids = tokens(2, 4)
    state = model.dummy_inputs("step")
    state = {name: tf.constant(state[name]) for name in ("memory", "memory_count")}
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(state["memory"])
        loss = tf.reduce_sum(model.forward(token_ids, state)[0] ** 2)
    assert tape.gradient(loss, state["memory"]) is None
    with tf.GradientTape() as constant_tape:
        constant_loss = tf.reduce_sum(model.forward(token_ids, state)[0] ** 2)
    for own, constant in zip(
        tape.gradient(loss, model.trainable_weights),
        constant_tape.gradient(constant_loss, model.trainable_weights),
        strict=True,
    ):
        np.testing.assert_array_equal(tf.convert_to_tensor(own), tf.convert_to_tensor(constant))


def test_gradient_check_can_fail():
    """Without stop-gradient the memory would receive one: the new memory is a function of this window's weights."""
    model = small()
    with tf.GradientTape() as tape:
        hidden = model.embed(tokens(2, 4))
        loss = tf.reduce_sum(hidden**2)
    assert tape.gradient(loss, model.embedding.tables[0]) is not None
    with tf.GradientTape() as tape:
        _, state = model.forward(tokens(2, 4), model.initial_state(2))
        loss = tf.reduce_sum(state["memory"] ** 2)
    assert tape.gradient(loss, model.embedding.tables[0]) is None


def test_logits_do_not_depend_on_the_absolute_offset():
    """The same sixteen tokens, once at the start of a stream and once after forty others that memory has dropped."""
    model = small(num_layers=1, memory_length=4)
    tail = tokens(1, 16)
    late = tf.concat([tokens(1, 40, seed=1), tail], axis=1)
    np.testing.assert_array_equal(read(model, late, 4)[0][:, -8:], read(model, tail, 4)[0][:, -8:])


@pytest.mark.parametrize(("num_layers", "memory", "length"), [(1, 4, 4), (2, 8, 4), (3, 4, 4)])
def test_reach_is_layers_times_memory_plus_window(num_layers, memory, length):
    model = small(num_layers=num_layers, memory_length=memory)
    reach = num_layers * memory + length - 1
    token_ids = tokens(1, 48).numpy()
    base = read(model, tf.constant(token_ids), length)[0][0, -1]
    for back, same in ((reach, False), (reach + 1, True)):
        changed = token_ids.copy()
        changed[0, -1 - back] = (changed[0, -1 - back] + 1) % 17
        last = read(model, tf.constant(changed), length)[0][0, -1]
        assert np.array_equal(last, base) == same


def test_causality_is_exact():
    model = small()
    token_ids = tokens(1, 12).numpy()
    base = read(model, tf.constant(token_ids), 12)[0]
    for place in range(12):
        changed = token_ids.copy()
        changed[0, place] = (changed[0, place] + 1) % 17
        logits = read(model, tf.constant(changed), 12)[0]
        assert np.array_equal(logits[:, :place], base[:, :place])
        assert not np.array_equal(logits[:, place], base[:, place])


@pytest.mark.parametrize(("memory", "length"), [(8, 4), (4, 4), (4, 7), (8, 3)])
def test_new_memory_is_the_end_of_the_concatenation(memory, length):
    model = small(memory_length=memory, window_length=length)
    token_ids = tokens(2, 3 * length)
    _, state = read(model, token_ids, length)
    embedded = model.embed(token_ids).numpy()
    filled = min(memory, 3 * length)
    np.testing.assert_array_equal(state["memory_count"], [filled, filled])
    # The first layer's memory is its input: the embedding itself.
    np.testing.assert_array_equal(state["memory"][:, 0, memory - filled :], embedded[:, -filled:])


def test_empty_slots_are_ignored_unless_asked_for():
    token_ids = tokens(1, 4)
    masked, attended = small(), small(mask_empty=False)
    attended.set_weights(masked.get_weights())
    without = small(memory_length=0)
    without.set_weights(masked.get_weights())
    logits = [read(model, token_ids, 4)[0] for model in (masked, attended, without)]
    np.testing.assert_allclose(logits[0], logits[2], atol=1e-6)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_same_length_leaves_every_query_as_many_keys():
    visible = causal_memory_mask(5, 8, same_length=True).numpy().sum(-1)
    np.testing.assert_array_equal(visible, np.full((1, 1, 5), 9))
    model = small(same_length=True)
    assert np.isfinite(read(model, tokens(2, 8), 4)[0]).all()


def test_a_row_with_nothing_to_attend_to_gives_zeros():
    probabilities = masked_softmax(tf.ones((1, 1, 2, 3)), tf.constant([[[[True, False, False], [False] * 3]]]))
    np.testing.assert_array_equal(probabilities[0, 0], [[1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("divisor", [1, 2])
def test_adaptive_softmax_sums_to_one(divisor):
    embedding = AdaptiveEmbedding(50, 16, cutoffs=(10, 30), divisor=divisor, initializer_stddev=1.0)
    embedding.build()
    hidden = np.random.default_rng(0).normal(size=(2, 3, 16)).astype("f")
    log_probs = AdaptiveLogSoftmax(embedding)(hidden)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), np.ones((2, 3)), atol=1e-6)


def test_adaptive_softmax_with_one_bin_is_plain_softmax():
    embedding = AdaptiveEmbedding(20, 16, initializer_stddev=1.0)
    embedding.build()
    hidden = np.random.default_rng(0).normal(size=(2, 3, 16)).astype("f")
    expected = hidden @ embedding.tables[0].numpy().T
    logits = AdaptiveLogSoftmax(embedding)(hidden)
    np.testing.assert_allclose(ops.softmax(logits), ops.softmax(expected), atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_adaptive_log_probs_factorise_over_bins(tied):
    embedding = AdaptiveEmbedding(12, 8, cutoffs=(4, 8), divisor=2, initializer_stddev=1.0)
    embedding.build()
    layer = AdaptiveLogSoftmax(embedding, tie_projections=tied)
    hidden = np.random.default_rng(0).normal(size=(1, 1, 8)).astype("f")
    log_probs = layer(hidden).numpy()[0, 0]
    first = hidden[0, 0] @ layer.projections[0].numpy().T
    head = np.concatenate([embedding.tables[0].numpy() @ first, layer.cluster_kernel.numpy() @ first])
    head = head - np.log(np.exp(head).sum())
    np.testing.assert_allclose(log_probs[:4], head[:4], atol=1e-5)
    projections = (embedding if tied else layer).projections
    for index, (start, stop) in enumerate(embedding.bins[1:], start=1):
        tail = embedding.tables[index].numpy() @ (projections[index].numpy() @ hidden[0, 0])
        tail = tail - np.log(np.exp(tail).sum())
        np.testing.assert_allclose(log_probs[start:stop], head[3 + index] + tail, atol=1e-5)


def test_embedding_scales_by_the_root_of_the_width_and_ties_the_output():
    model = small()
    table = model.embedding.tables[0].numpy()
    np.testing.assert_allclose(model.embed(tf.constant([[3]]))[0, 0], table[3] * 4, rtol=1e-6)
    logits = model.to_logits(tf.ones((1, 1, 16)))
    np.testing.assert_allclose(logits[0, 0], table.sum(1), rtol=1e-4, atol=1e-5)


def test_untied_biases_and_options_change_what_they_should():
    tied, untied = small(), small(untie_biases=True)
    assert untied.count_params() - tied.count_params() == 2 * 2 * 2 * 8
    assert small(pre_norm=True).count_params() == tied.count_params()
    assert small(position="absolute").count_params() < tied.count_params()
    shaw = small(position="shaw")
    assert shaw.transformer_layers[0].attention.distance_table.shape == (12, 2, 8)


def test_initialisation_is_normal_with_the_papers_spread():
    model = zoo.get("transformer_xl", weights=None)
    layer = model.transformer_layers[0]
    for kernel in (layer.attention.query.kernel, layer.feed_forward.inner.kernel, model.embedding.tables[0]):
        assert abs(float(ops.std(kernel)) - 0.02) < 1e-3
    assert float(ops.max(ops.abs(layer.feed_forward.outer.bias))) == 0
    queries = [layer.attention.query.kernel.numpy() for layer in model.transformer_layers]
    assert not np.array_equal(queries[0], queries[1])


@pytest.mark.parametrize("preset", ["austen", "enwik8_base"])
def test_parameter_counts(preset):
    model = zoo.get("transformer_xl", preset, weights=None)
    assert model.count_params() == zoo.info("transformer_xl").preset(preset).parameters


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["enwik8_large", "text8_large", "wt103_base", "wt103_large", "lm1b_large"])
def test_parameter_counts_of_large_presets(preset):
    test_parameter_counts(preset)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (dict(num_layers=0), "num_layers"),
        (dict(memory_length=-1), "memory_length"),
        (dict(num_heads=3), "num_heads"),
        (dict(position="learned"), "position"),
        (dict(cutoffs=(30,)), "cutoffs"),
    ],
)
def test_bad_arguments_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        small(**override)


def test_bad_inputs_are_named():
    model = small()
    good = model.dummy_inputs("step")
    for name, value, message in [
        ("token_ids", good["token_ids"] + 17, r"`token_ids` must be in \[0, 16\]"),
        ("token_ids", good["token_ids"] * 0.5, "dtype int32"),
        ("memory", good["memory"][:, :, :5], r"`memory` must have shape .* Received: shape=\(2, 3, 5, 16\)"),
        ("memory", good["memory"][:1], "dimension 'batch'"),
        ("memory", good["memory"] * np.nan, "`memory` must be finite"),
        ("memory_count", good["memory_count"] + 9, "`memory_count` must be in"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            model.run("step", **{**good, name: value})
    with pytest.raises(ValueError, match="Expected inputs"):
        model.run("step", token_ids=good["token_ids"])
    with pytest.raises(ValueError, match="Unknown signature"):
        model.run("encode")


def test_carried_state_follows_the_stream():
    """`fit`-style calls with `stream_start` give the logits of explicit state, and a restart forgets."""
    model = small()
    token_ids = tokens(2, 16)
    expected, _ = read(model, token_ids, 4)
    starts = [tf.constant([True, True]), tf.constant([False, False]), tf.constant([False, True])]
    outputs = [
        model({"token_ids": token_ids[:, 4 * i : 4 * i + 4], "stream_start": start}).numpy()
        for i, start in enumerate(starts)
    ]
    np.testing.assert_allclose(outputs[1], expected[:, 4:8], atol=1e-5)
    np.testing.assert_allclose(outputs[2][0], expected[0, 8:12], atol=1e-5)
    fresh = model(token_ids[1:, 8:12]).numpy()
    np.testing.assert_allclose(outputs[2][1:], fresh, atol=1e-5)
