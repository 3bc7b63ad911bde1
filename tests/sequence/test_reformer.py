"""Reformer: hashed attention against a softmax over the union of buckets, reversible layers against autodiff, both models."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.experiments.reformer import activation_megabytes
from zoo.layers.reversible import Branch, reconstruct, run_branches
from zoo.sequence.reformer import (
    AxialPositionEmbedding,
    LocalAttention,
    LSHAttention,
    Reformer,
    ReformerBlock,
    ReformerEncoderDecoder,
    full_shared_attention,
    hash_buckets,
    lsh_attention,
)

SIZES = dict(
    vocabulary_size=11, num_layers=4, hidden_dim=16, num_heads=2, intermediate_dim=32, axial_shape=[4, 8],
    axial_dims=[4, 12], attention_layers=["local", "lsh"], chunk_length=8, local_chunk_length=8,
)  # fmt: skip
PAIR = dict(
    vocabulary_size=11, source_vocabulary_size=9, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=32,
    target_length=12,
)  # fmt: skip


def randomised(model, seed=0, scale=0.3):
    """Gives every weight random values, so that none hides what another does."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, scale, weight.shape))
    return model


def small(**changes):
    return randomised(Reformer(**{**SIZES, **changes}).build_from_signature())


def pair(**changes):
    return randomised(ReformerEncoderDecoder(**{**PAIR, **changes}).build_from_signature())


def tokens(*shape, seed=0, low=0, high=11):
    return np.random.default_rng(seed).integers(low, high, shape).astype("int32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def hashed(query, rounds, num_buckets, seed=1):
    """Buckets `(batch, rounds, length)` of vectors `(batch, length, dim)`."""
    rotations = normal(1, query.shape[-1], rounds, num_buckets // 2, seed=seed)
    return hash_buckets(query[:, None], rotations, num_buckets).numpy()[:, 0]


def union_weights(query, allowed):
    """Softmax over the allowed keys without oneself, or oneself where there are none: the definition, in float64."""
    query = query.astype("float64")
    key = query / np.linalg.norm(query, axis=-1, keepdims=True)
    others = allowed & ~np.eye(len(query), dtype=bool)
    exponentials = np.where(others, np.exp(query @ key.T), 0.0)
    total = exponentials.sum(1, keepdims=True)
    return np.where(total > 0, exponentials / np.where(total > 0, total, 1), np.eye(len(query)))


def shares(buckets):
    """Rounds `(rounds, length, length)` in which two positions share a bucket."""
    return buckets[:, :, None] == buckets[:, None, :]


def largest(buckets):
    return max(np.bincount(row).max() for row in buckets.reshape(-1, buckets.shape[-1]))


def weights_of(query, buckets, chunk_length, **options):
    """What lsh_attention weighs each position by: its outputs where values are unit vectors."""
    value = np.broadcast_to(np.eye(query.shape[1], dtype="float32"), (len(query), query.shape[1], query.shape[1]))
    options = dict(num_buckets=int(buckets.max()) + 1, **options)
    return lsh_attention(tf.constant(query), tf.constant(value), tf.constant(buckets), chunk_length, **options).numpy()


# === Attention ===


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_bucket_is_full_attention(rounds):
    query, value = normal(2, 32, 8), normal(2, 32, 5, seed=1)
    buckets = hash_buckets(query[:, None], np.zeros((1, 8, rounds, 2), "float32"), 4).numpy()[:, 0]
    assert not buckets.any()
    full = full_shared_attention(tf.constant(query), tf.constant(value)).numpy()
    found = lsh_attention(tf.constant(query), tf.constant(value), buckets, 32, 4)
    np.testing.assert_allclose(found, full, atol=1e-6)
    np.testing.assert_allclose(full[0], union_weights(query[0], np.tri(32, dtype=bool)) @ value[0], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_rounds_together_are_a_softmax_over_the_union(rounds, causal):
    query = 2 * normal(2, 64, 6)
    buckets = hashed(query, rounds, 8)
    assert largest(buckets) <= 32 and largest(buckets) > 8
    found = weights_of(query, buckets, 32, causal=causal)
    past = np.tri(64, dtype=bool) if causal else np.ones((64, 64), bool)
    expected = np.stack([union_weights(q, shares(b).any(0) & past) for q, b in zip(query, buckets, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if rounds > 1:
        # The correction is what makes it so
        twice = weights_of(query, buckets, 32, causal=causal, allow_duplicates=True)
        assert np.abs(twice - expected).max() > 0.05


def test_both_directions_reach_buckets_that_lie_across_chunks():
    query = normal(1, 64, 6)
    buckets = hashed(query, 1, 16)
    assert largest(buckets) <= 16
    chunk = np.empty(64, int)
    chunk[np.lexsort((np.arange(64), buckets[0, 0]))] = np.arange(64) // 16
    straddling = shares(buckets[0])[0] & (chunk[:, None] < chunk)
    assert straddling.any()
    weights = weights_of(query, buckets, 16, causal=False)[0]
    assert (weights[straddling] > 0).all()
    np.testing.assert_allclose(weights, union_weights(query[0], shares(buckets[0])[0]), atol=1e-5)


@pytest.mark.parametrize("rounds", [1, 3])
def test_only_lonely_positions_attend_to_themselves(rounds):
    query = 3 * normal(1, 64, 6)
    buckets = hashed(query, rounds, 16)
    weights = weights_of(query, buckets, 32)[0]
    others = shares(buckets[0]).any(0) & np.tri(64, k=-1, dtype=bool)
    lonely = ~others.any(1)
    assert lonely[0] and 0 < lonely.sum() < 64
    np.testing.assert_array_equal(np.diag(weights)[lonely], 1.0)
    assert np.diag(weights)[~lonely].max() < 1e-6
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    full = full_shared_attention(tf.constant(query), tf.eye(64)[None]).numpy()[0]
    assert full[0, 0] == 1 and np.diag(full)[1:].max() < 1e-6


@pytest.mark.parametrize("allow_duplicates", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_across_buckets_everything_in_neighbouring_chunks_counts(causal, allow_duplicates):
    query, rounds = normal(1, 32, 6), 3
    buckets = hashed(query, rounds, 8)
    found = weights_of(query, buckets, 8, causal=causal, attend_across_buckets=True, allow_duplicates=allow_duplicates)[
        0
    ]
    places = np.argsort(buckets[0] * 32 + np.arange(32), axis=-1).argsort(-1) // 8
    distance = places[:, :, None] - places[:, None, :]
    reached = ((distance <= 1) & (distance >= (0 if causal else -1))).sum(0)
    reached = reached * (np.tri(32, k=-1) if causal else 1 - np.eye(32))
    key = query[0] / np.linalg.norm(query[0], axis=-1, keepdims=True)
    exponentials = np.exp((query[0] @ key.T).astype("float64")) * (reached if allow_duplicates else reached > 0)
    exponentials[exponentials.sum(1) == 0, np.flatnonzero(exponentials.sum(1) == 0)] = 1
    np.testing.assert_allclose(found, exponentials / exponentials.sum(1, keepdims=True), atol=1e-5)


def test_ties_are_sorted_by_position():
    query = np.repeat(normal(1, 1, 6), 64, axis=1)
    weights = weights_of(query, np.zeros((1, 1, 64), "int32"), 8)[0]
    i, j = np.arange(64)[:, None], np.arange(64)
    expected = (j < i) & (i // 8 - j // 8 <= 1)
    expected[0, 0] = True
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), atol=1e-6)


def test_hash_finds_neighbours():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4000, 16)).astype("float32")
    noise = rng.normal(size=(4000, 16)).astype("float32")
    rates = []
    for mix in (0.0, 0.5, 0.9, 0.99):
        both = np.stack([first, mix * first + (1 - mix**2) ** 0.5 * noise], 1)[None]
        rotations = normal(1, 16, 1, 8, seed=2)
        left, right = (hash_buckets(both[:, None, :, side], rotations, 16).numpy() for side in (0, 1))
        rates.append((left == right).mean())
    # 4 s.e. of a rate of 4000 is at most 0.032
    assert np.all(np.diff(rates) > 0.032) and rates[-1] > 0.7
    buckets, scaled, opposite = (
        hash_buckets(first[None, None] * factor, rotations, 16).numpy() for factor in (1.0, 37.0, -1.0)
    )
    np.testing.assert_array_equal(buckets, scaled)
    np.testing.assert_array_equal(opposite, (buckets + 8) % 16)
    assert len(np.unique(buckets)) == 16


def test_factors_of_the_hash():
    vectors, rotations = normal(2, 3, 40, 6), normal(3, 6, 2, 5)
    first = hash_buckets(vectors, rotations[..., :2], 4).numpy()
    second = hash_buckets(vectors, rotations[..., 2:], 6).numpy()
    np.testing.assert_array_equal(hash_buckets(vectors, rotations, [4, 6]), first + 4 * second)
    layer = LSHAttention(3, 6, 8, num_rounds=2, num_buckets=[4, 6])
    assert layer.rotation_shape(40) == rotations.shape


def test_no_gradient_flows_through_the_hash():
    vectors = tf.constant(normal(1, 1, 8, 6))
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        buckets = tf.cast(hash_buckets(vectors, normal(1, 6, 1, 2), 4), tf.float32)
    assert tape.gradient(buckets, vectors) is None


def layer_of(kind, **options):
    layer = LSHAttention(2, 6, **options) if kind == "lsh" else LocalAttention(2, 6, **options)
    layer.build((None, None, 12))
    return randomised(layer)


def outputs_of(layer, inputs, **options):
    found = layer(inputs, **options)
    return (found[0] if isinstance(found, tuple) else found).numpy()


@pytest.mark.parametrize(("kind", "chunk_length"), [("lsh", 32), ("lsh", None), ("local", 8), ("local", None)])
@pytest.mark.parametrize("length", [5, 40, 37])
def test_attention_is_causal(kind, chunk_length, length):
    options = dict(num_rounds=2, num_buckets=8) if kind == "lsh" else {}
    layer = layer_of(kind, chunk_length=chunk_length, **options)
    inputs = normal(2, length, 12)
    changed = inputs.copy()
    changed[:, length // 2 :] = normal(2, length, 12, seed=1)[:, length // 2 :]
    before, after = outputs_of(layer, inputs), outputs_of(layer, changed)
    np.testing.assert_allclose(before[:, : length // 2], after[:, : length // 2], atol=1e-6)
    assert np.abs(before - after)[:, length // 2 :].max() > 1e-3


@pytest.mark.parametrize(("kind", "chunk_length"), [("lsh", 32), ("lsh", None), ("local", 8), ("local", None)])
def test_padding_is_not_seen(kind, chunk_length):
    options = dict(num_rounds=2, num_buckets=8) if kind == "lsh" else {}
    layer = layer_of(kind, chunk_length=chunk_length, causal=False, **options)
    inputs, mask = normal(2, 37, 12), np.ones((2, 37), bool)
    mask[0, 30:] = False
    mask[1, ::5] = False
    changed = np.where(mask[:, :, None], inputs, 9.0).astype("float32")
    before, after = (outputs_of(layer, x, padding_mask=mask) for x in (inputs, changed))
    np.testing.assert_allclose(before[mask], after[mask], atol=1e-6)
    assert np.isfinite(after).all()
    nobody = outputs_of(layer, inputs, padding_mask=np.zeros((2, 37), bool))
    assert np.isfinite(nobody).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [32, 27])
def test_local_attention_is_a_band_of_chunks(length, causal):
    layer = layer_of("local", chunk_length=8, causal=causal)
    inputs = normal(2, length, 12)
    query, key, value = (
        np.asarray(dense(inputs)).reshape(2, length, 2, 6).transpose(0, 2, 1, 3)
        for dense in (layer.query, layer.key, layer.value)
    )
    i, j = np.arange(length)[:, None], np.arange(length)
    allowed = (j <= i) & (i // 8 - j // 8 <= 1) if causal else abs(i // 8 - j // 8) <= 1
    scores = np.where(allowed, np.exp(query @ key.transpose(0, 1, 3, 2) / 6**0.5), 0)
    merged = (scores / scores.sum(-1, keepdims=True) @ value).transpose(0, 2, 1, 3).reshape(2, length, 12)
    np.testing.assert_allclose(outputs_of(layer, inputs), layer.output_dense(merged), atol=1e-5)


@pytest.mark.parametrize("length", [64, 51])
def test_layer_is_the_union_in_every_head(length):
    """Lengths that are no multiple of the chunk too, and values, keys and gradients of the whole layer."""
    layer = layer_of("lsh", chunk_length=32, num_rounds=3, num_buckets=8)
    inputs = tf.constant(normal(2, length, 12))
    rotations = layer.draw_rotations(length)
    direction = normal(2, length, 12, seed=3)

    def heads(dense):
        return tf.transpose(tf.reshape(dense(inputs), (2, length, 2, 6)), (0, 2, 1, 3))

    def dense_attention():
        query, value = heads(layer.query_key), heads(layer.value)
        buckets = hash_buckets(query, rotations, 8).numpy()
        assert largest(buckets) <= 32
        allowed = np.stack([[shares(b).any(0) for b in row] for row in buckets]) & np.tri(length, k=-1, dtype=bool)
        allowed |= ~allowed.any(-1, keepdims=True) & np.eye(length, dtype=bool)
        key = query * tf.math.rsqrt(tf.reduce_mean(query**2, -1, keepdims=True) + 1e-6) / 6**0.5
        weights = tf.nn.softmax(tf.where(allowed, query @ tf.transpose(key, (0, 1, 3, 2)), -1e9))
        return layer.output_dense(tf.reshape(tf.transpose(weights @ value, (0, 2, 1, 3)), (2, length, 12)))

    results = []
    for function in (lambda: layer(inputs, rotations=rotations)[0], dense_attention):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function()
        results.append([outputs, *tape.gradient(outputs, [inputs, *layer.trainable_weights], direction)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=3e-5 * float(tf.reduce_max(tf.abs(expected))))


def test_rotations_are_fixed_by_the_seed_and_new_in_training():
    layer = layer_of("lsh", chunk_length=8)
    inputs = normal(2, 32, 12)
    np.testing.assert_array_equal(layer(inputs)[1], layer(inputs)[1])
    other = LSHAttention.from_config({**layer.get_config(), "hash_seed": 1})
    other.build((None, None, 12))
    other.set_weights(layer.get_weights())
    assert (layer(inputs)[1].numpy() != other(inputs)[1].numpy()).any()
    first, second = (layer(inputs, seed=tf.constant([0, i]))[1].numpy() for i in (1, 2))
    assert (first != second).any()
    np.testing.assert_array_equal(first, layer(inputs, seed=tf.constant([0, 1]))[1])
    # Given buckets are used rather than found
    given = np.zeros_like(first)
    np.testing.assert_array_equal(layer(inputs, buckets=given)[1], given)


def test_attention_dropout_keeps_the_mean():
    query, value = normal(1, 16, 4), np.ones((1, 16, 1), "float32")
    options = dict(rate=0.3)
    drawn = [full_shared_attention(query, value, seed=tf.constant([0, i]), **options) for i in range(400)]
    drawn = np.stack(drawn)[:, 0, 1:, 0]
    assert drawn.std(0).min() > 0
    # 4 s.e. of 400 draws; the deviation of each is at most that of one key, sqrt(0.3 / 0.7)
    assert np.abs(drawn.mean(0) - 1).max() < 4 * (0.3 / 0.7 / 400) ** 0.5


# === Reversible layers ===


def blocks_of(num_blocks, dtype="float32", dropout=0.0, **options):
    attentions = [
        LSHAttention(2, 4, 8, num_rounds=2, attention_dropout=dropout, dtype=dtype),
        LocalAttention(2, 4, 8, attention_dropout=dropout, dtype=dtype),
    ]
    blocks = []
    for index in range(num_blocks):
        attention = type(attentions[index % 2]).from_config(attentions[index % 2].get_config())
        blocks.append(ReformerBlock(attention, 12, dropout=dropout, dtype=dtype, **options))
        blocks[-1].build((None, 32, 8))
        randomised(blocks[-1], seed=index)
    return blocks


def branches_of(blocks):
    return [branch for block in blocks for branch in block.branches()]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_inputs_are_reconstructed_from_outputs(dtype, tolerance):
    branches = branches_of(blocks_of(12, dtype, dropout=0.1))
    first, second = (tf.constant(normal(2, 32, 8, seed=i), dtype) for i in (0, 1))
    seed = tf.constant([1, 2])
    outputs = run_branches(branches, first, second, seed=seed)
    assert min(float(tf.norm(o - i)) for o, i in zip(outputs, (first, second), strict=True)) > 1
    for found, expected in zip(reconstruct(branches, *outputs, seed=seed), (first, second), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_block_is_its_equations():
    (block,) = blocks_of(1)
    x1, x2 = (tf.constant(normal(2, 32, 8, seed=i)) for i in (0, 1))
    y1, y2 = block(x1, x2)
    np.testing.assert_allclose(y1, x1 + block.attention(block.attention_norm(x2))[0], atol=1e-6)
    np.testing.assert_allclose(y2, x2 + block.feed_forward(block.feed_forward_norm(y1)), atol=1e-6)
    again = ReformerBlock.from_config(block.get_config())
    assert again.get_config() == block.get_config()


def gradients_of(model, ids, graph, seed):
    model.dropout_layer.rate = 0.0  # outside of the stack, where masks come from a counter

    def compute(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.sin(model.read(ids, training=True, seed=seed)))
        return loss, tape.gradient(loss, [weight.value for weight in model.trainable_weights])

    loss, gradients = (tf.function(compute) if graph else compute)(tf.constant(ids))
    return [loss, *map(tf.convert_to_tensor, gradients)]


@pytest.mark.parametrize(("dropout", "graph"), [(0.0, True), (0.2, False)])
def test_recomputed_gradients_are_those_of_autodiff(dropout, graph):
    rates = dict(dropout=dropout, lsh_attention_dropout=dropout, local_attention_dropout=dropout)
    model = small(num_layers=2, feed_forward_chunks=2, **rates)
    plain = Reformer.from_config({**model.get_config(), "reversible": False}).build_from_signature()
    plain.set_weights(model.get_weights())
    ids, seed = tokens(2, 29), tf.constant([3, 4])
    found, expected = (gradients_of(m, ids, graph, seed) for m in (model, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(tf.reduce_max(tf.abs(b))))
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in found)
    if dropout and not graph:
        assert float(gradients_of(model, ids, graph, tf.constant([3, 5]))[0]) != float(found[0])


def test_what_branches_read_comes_back_without_rounding():
    read = []

    def watched(branch):
        def function(inputs, *others):
            read.append(inputs.numpy())
            return branch.function(inputs, *others)

        return Branch(function)

    branches = [watched(branch) for branch in branches_of(blocks_of(12))]
    streams = [tf.constant(normal(2, 32, 8, seed=i)) for i in (0, 1)]
    with tf.GradientTape() as tape:
        tape.watch(streams)
        outputs = run_branches(branches, *streams, recompute=True)
    tape.gradient(outputs, streams)
    assert len(read) == 2 * len(branches) == 48
    np.testing.assert_allclose(read[24:], read[23::-1], rtol=1e-6)


def test_decisions_of_the_forward_pass_are_kept_for_the_backward_pass():
    """A branch that would decide otherwise the second time: gradients show which decision was used."""
    decisions = iter([2.0, 5.0, 7.0])
    plans = []

    def function(inputs, context, seed, plan):
        plans.append(plan)
        plan = tf.constant(next(decisions)) if plan is None else plan
        return plan * inputs, plan

    with tf.GradientTape() as tape:
        inputs = tf.constant([[[3.0]]])
        tape.watch(inputs)
        outputs = run_branches([Branch(function)], tf.zeros_like(inputs), inputs, recompute=True)
    assert float(tf.squeeze(outputs[1])) == 6.0
    assert float(tf.squeeze(tape.gradient(outputs[1], inputs))) == 2.0
    assert plans[0] is None and len(plans) == 2 and float(plans[1]) == 2.0


def test_context_gets_the_gradient_of_all_branches():
    branch = Branch(lambda inputs, context, seed, plan: (tf.sin(inputs * context), None))
    values = [tf.constant(normal(2, 3, 4, seed=i)) for i in range(3)]
    results = []
    for recompute in (True, False):
        with tf.GradientTape() as tape:
            tape.watch(values)
            first, second = run_branches([branch] * 5, *values, recompute=recompute)
            loss = tf.reduce_sum(first * second)
        results.append(tape.gradient(loss, values))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def kept_bytes(**changes):
    """Bytes of activations and of whole numbers that the backward graph reads of the forward graph."""
    model = small(**changes)
    forward = tf.function(lambda ids: tf.reduce_mean(model.read(ids, training=True, seed=tf.constant([0, 1]))))
    concrete = forward.get_concrete_function(tf.TensorSpec((2, 32), tf.int32))
    _, backward = concrete._delayed_rewrite_functions.forward_backward(1)
    # Weights, which are there anyway, have two axes
    floats = [x for x in backward.inputs if x.dtype.is_floating and len(x.shape) > 2]
    whole = [x for x in backward.inputs if x.dtype.is_integer]
    return tuple(sum(int(np.prod(x.shape)) * x.dtype.size for x in tensors) for tensors in (floats, whole))


@pytest.mark.parametrize("depths", [(1, 2), pytest.param((2, 8, 32), marks=pytest.mark.slow)])
def test_what_is_kept_does_not_grow_with_depth(depths):
    floats, whole = zip(*(kept_bytes(num_layers=n, attention_layers=["local"]) for n in depths), strict=True)
    assert len(set(floats)) == 1 and len(set(whole)) == 1


@pytest.mark.slow
def test_of_hashing_only_buckets_are_kept():
    (floats, whole), (more_floats, more_whole) = (kept_bytes(num_layers=n, attention_layers=["lsh"]) for n in (2, 6))
    # One number per layer, position, head and round
    assert more_floats == floats and more_whole - whole <= 4 * 2 * 32 * 2 * 2 * 4


def test_without_recomputation_what_is_kept_grows():
    one, three = (kept_bytes(num_layers=n, attention_layers=["local"], reversible=False)[0] for n in (1, 3))
    assert three > 2 * one


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_activations_take_the_same_memory_at_every_depth():
    shallow, deep, plain = (activation_megabytes(*kind) for kind in ((2, True), (12, True), (12, False)))
    assert deep < 1.2 * shallow and plain > 3 * deep


# === Chunks and positions ===


def test_chunked_feed_forward_is_the_same():
    whole, pieces = (branches_of(blocks_of(2, feed_forward_chunks=chunks)) for chunks in (1, 5))
    inputs = [tf.constant(normal(2, 32, 8, seed=i)) for i in (0, 1)]
    results = []
    for branches in (whole, pieces):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = run_branches(branches, *inputs, recompute=True)
            loss = tf.reduce_sum(tf.sin(outputs[0] * outputs[1]))
        results.append([loss, *outputs, *tape.gradient(loss, inputs)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_chunked_loss_is_the_same(weighted):
    ids, targets = tokens(3, 32), tokens(3, 32, seed=1)
    sample_weight = np.random.default_rng(0).random((3, 32)).astype("float32") if weighted else None
    results = []
    for chunks in (1, 4):
        model = small(loss_chunks=chunks, num_layers=1)
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["sparse_categorical_accuracy"],
            jit_compile=False,
        )
        dataset = tf.data.Dataset.from_tensors((ids, targets) if not weighted else (ids, targets, sample_weight))
        history = model.fit(dataset.repeat(2), steps_per_epoch=2, verbose=0).history
        results.append([*(history[name][0] for name in sorted(history)), *model.get_weights()])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_chunked_loss_refuses_sums():
    model = small(loss_chunks=2, num_layers=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(keras.optimizers.SGD(), loss, run_eagerly=True)
    with pytest.raises(ValueError, match=r"`loss` must be averaged over the batch.*reduction='sum'"):
        model.fit(tokens(2, 32), tokens(2, 32), verbose=0)


def test_axial_positions_are_coordinates_side_by_side():
    layer = AxialPositionEmbedding([2, 3, 4], [5, 6, 1])
    layer.build()
    found = layer(length=22).numpy()
    tables = layer.get_weights()
    for position in range(22):
        a, b, c = np.unravel_index(position, (2, 3, 4))
        np.testing.assert_array_equal(found[position], np.concatenate([tables[0][a], tables[1][b], tables[2][c]]))
    assert layer.count_params() == 2 * 5 + 3 * 6 + 4 * 1
    assert AxialPositionEmbedding.from_config(layer.get_config()).get_config() == layer.get_config()
    drawn = AxialPositionEmbedding([100, 100], [50, 50])
    drawn.build()
    # 4 s.e. of the deviation of 10,000 values
    assert abs(np.concatenate([t.ravel() for t in drawn.get_weights()]).std() - 1) < 4 / (2 * 10_000) ** 0.5


# === Language model ===


def test_start_of_training():
    model = Reformer(**{**SIZES, "hidden_dim": 64, "axial_dims": [16, 48]}).build_from_signature()
    table = model.embedding.embeddings.numpy()
    assert abs(table.var() * 64 - 1) < 0.2 and np.abs(table).max() <= (3 / 64) ** 0.5
    kernel = model.blocks[1].attention.query_key.kernel.numpy()
    assert np.abs(kernel).max() <= (6 / 128) ** 0.5 and np.abs(kernel).max() > 0.9 * (6 / 128) ** 0.5
    assert model.norm.gamma.shape == (128,) and model.logits_layer.kernel.shape == (128, 11)
    assert not any("bias" in weight.path for weight in model.blocks[0].attention.weights)


def test_logits_are_of_both_streams():
    model = small(attention_layers=["full"])
    ids = tokens(2, 32)
    stream = model.embedding(ids) + model.positions(length=32)
    first = second = stream
    for block in model.blocks:
        first = first + block.attention(block.attention_norm(second))
        second = second + block.feed_forward(block.feed_forward_norm(first))
    expected = model.logits_layer(model.norm(tf.concat([first, second], -1)))
    np.testing.assert_allclose(model(ids), expected, atol=1e-5)


def test_kinds_of_attention_are_repeated():
    model = small(num_layers=5, attention_layers=["local", "full", "lsh"])
    kinds = [(type(block.attention), block.attention.chunk_length) for block in model.blocks]
    assert kinds == [
        (LocalAttention, 8),
        (LocalAttention, None),
        (LSHAttention, 8),
        (LocalAttention, 8),
        (LocalAttention, None),
    ]


@pytest.mark.parametrize("length", [1, 9, 23])
def test_tokens_behind_the_length_are_none(length):
    model = small(num_buckets=4, num_rounds=3, num_layers=2)
    ids = tokens(2, 32)
    found = model.read(ids, {"length": np.full((2,), length, "int32")})[:, :length]
    changed = np.concatenate([ids[:, :length], tokens(2, 32 - length, seed=5)], axis=1)
    again = model.read(changed, {"length": np.full((2,), length, "int32")})[:, :length]
    np.testing.assert_allclose(found, again, atol=1e-5)
    if length > 8:  # shorter windows than a chunk are not hashed
        np.testing.assert_allclose(found, model.read(ids[:, :length]), atol=1e-5)


def test_generation_reads_what_there_is():
    model = small(num_buckets=4, num_layers=2)
    prompt = tokens(12).tolist()
    found = model.generate(prompt, max_new_tokens=3, temperature=0)
    ids = list(prompt)
    for _ in range(3):
        ids.append(int(np.argmax(model.read(np.array([ids], "int32"))[0, -1])))
    assert found.tolist() == ids[12:]


def test_training_draws_new_rotations_and_inference_does_not():
    model = small()
    ids = tokens(2, 32)
    np.testing.assert_array_equal(model(ids), model(ids, training=False))
    assert (np.asarray(model(ids, training=True)) != np.asarray(model(ids, training=True))).any()
    given = {
        i: np.zeros(block.attention.rotation_shape(32), "float32") for i, block in enumerate(model.blocks) if i % 2
    }
    assert np.abs(np.asarray(model.read(ids, rotations=given)) - np.asarray(model(ids))).max() > 1e-4


def test_mixed_precision_trains():
    model = Reformer(
        **{**SIZES, "num_layers": 1, "attention_layers": ["lsh"]}, dtype="mixed_bfloat16"
    ).build_from_signature()
    seen = []
    hidden, _ = run_branches(
        [Branch(lambda x, context, seed, plan: (seen.append(x.dtype) or tf.cast(x, "bfloat16"), None))],
        tf.zeros((1, 2, 3)), tf.ones((1, 2, 3)),
    )  # fmt: skip
    assert hidden.dtype == seen[0] == tf.float32
    ids = tokens(4, 32)
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    history = model.fit(ids, ids, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.7 * history[0]


def test_frozen_layers_train_the_others():
    model = small(num_layers=2)
    model.blocks[0].trainable = False
    model.blocks[1].attention.trainable = False
    before = model.get_weights()
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    model.fit(tokens(4, 32), tokens(4, 32, seed=1), verbose=0)
    frozen = {weight.path for weight in (*model.blocks[0].weights, *model.blocks[1].attention.weights)}
    for weight, old in zip(model.weights, before, strict=True):
        assert np.array_equal(weight.numpy(), old) == (weight.path in frozen), weight.path


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("enwik8", 149_182_722), ("imagenet64", 60_664_832), ("crime_and_punishment", 2_748_224)],
)
def test_sizes_of_the_released_models(preset, parameters):
    assert zoo.info("reformer").preset(preset).parameters == parameters


@pytest.mark.slow
@pytest.mark.parametrize("preset", zoo.info("reformer").presets)
def test_presets_build_with_their_size(preset):
    assert (
        zoo.get("reformer", preset=preset, weights=None).count_params()
        == zoo.info("reformer").preset(preset).parameters
    )


# === Encoder-decoder ===


def sources(*shape):
    ids = tokens(*shape, low=3, high=9)
    ids[0, -3:] = 0
    return ids


def test_encoder_decoder_recomputes_the_same_gradients():
    model = pair(dropout=0.2, num_layers=1)
    plain = ReformerEncoderDecoder.from_config({**model.get_config(), "reversible": False}).build_from_signature()
    plain.set_weights(model.get_weights())
    inputs = {"source_ids": sources(2, 7), "target_ids": tokens(2, 5, low=1)}
    results = []
    for one in (model, plain):
        one.dropout_layer.rate = 0.0
        one.seed_generator.state.assign([5, 0])

        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.sin(one(inputs, training=True)))
        gradients = tape.gradient(loss, [weight.value for weight in one.trainable_weights])
        results.append([loss, *map(tf.convert_to_tensor, gradients)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(tf.reduce_max(tf.abs(expected))) + 1e-8)
    dead = [w.path for w, g in zip(model.trainable_weights, results[0][1:], strict=True) if not float(tf.norm(g)) > 0]
    # Biases of keys shift all scores of a query alike
    assert all(path.endswith("key/bias") for path in dead)


def test_tokens_one_by_one_are_read_as_all_at_once():
    model = pair()
    source_ids, target_ids = sources(2, 7), tokens(2, 6, low=1)
    expected = model({"source_ids": source_ids, "target_ids": target_ids})
    memory, mask = model.encode(source_ids)
    state, found = model.initial_state(2), []
    for start, end in ((0, 1), (1, 2), (2, 5), (5, 6)):
        logits, state = model.decode(target_ids[:, start:end], memory, mask, state)
        found.append(logits)
    np.testing.assert_allclose(tf.concat(found, 1), expected, atol=1e-5)
    assert state["length"].numpy().tolist() == [6, 6]
    junk = {**model.initial_state(2), "decoded": tf.constant(normal(2, 2, 12, 16))}
    np.testing.assert_allclose(model.decode(target_ids, memory, mask, junk)[0], expected, atol=1e-5)


def test_encoder_decoder_does_not_see_padding_or_the_future():
    model = pair()
    source_ids, target_ids = sources(2, 7), tokens(2, 6, low=1)
    expected = model({"source_ids": source_ids, "target_ids": target_ids})
    longer = np.concatenate([source_ids, np.zeros((2, 4), "int32")], 1)
    np.testing.assert_allclose(model({"source_ids": longer, "target_ids": target_ids}), expected, atol=1e-5)
    changed = np.concatenate([target_ids[:, :3], tokens(2, 3, seed=4, low=1)], 1)
    found = model({"source_ids": source_ids, "target_ids": changed})
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-5)
    assert np.abs(found - expected).max() > 1e-3


@pytest.mark.slow
def test_encoder_decoder_learns_to_copy(tmp_path):
    keras.utils.set_random_seed(0)
    model = ReformerEncoderDecoder(**{**PAIR, "source_vocabulary_size": 11, "dropout": 0.1}).build_from_signature()
    source_ids = tokens(64, 4, low=3)
    inputs = {
        "source_ids": source_ids,
        "target_ids": np.concatenate([np.ones((64, 1), "int32"), source_ids[:, :-1]], 1),
    }
    model.compile(
        keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    history = model.fit(inputs, source_ids, epochs=60, batch_size=64, verbose=0).history["loss"]
    assert history[-1] < 0.3 * history[0]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(model.generate(source_ids[:3], 4), again.generate(source_ids[:3], 4))


@pytest.mark.slow
def test_encoder_decoder_exports(tmp_path):
    report = zoo.export.export_model(pair(), tmp_path, ["saved_model", "litert", "onnx"], "none", benchmark=False)
    assert len(report.artifacts) == 3 and all(artifact.verified for artifact in report.artifacts)


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(axial_shape=[4, 0]), "`axial_shape` must be one or more positive sizes"),
        (dict(axial_shape=[]), "`axial_shape` must be one or more positive sizes"),
        (dict(axial_dims=[4, 8]), "`axial_dims` must be 2 positive widths with the sum hidden_dim=16"),
        (dict(axial_dims=[16]), "`axial_dims` must be 2 positive widths"),
        (dict(axial_dims=None), "`axial_dims` must be 2 positive widths"),
        (dict(window_length=31), "`axial_shape` must be sizes with the product window_length=31"),
        (dict(axial_shape=None), "`axial_dims` must be None where there is no axial_shape"),
        (dict(axial_shape=None, axial_dims=None), "`window_length` must be at least 1"),
        (dict(num_buckets=5), "`num_buckets` must be None, a positive even number, or one or more"),
        (dict(num_buckets=[4, 3]), "`num_buckets` must be"),
        (dict(num_buckets=[]), "`num_buckets` must be"),
        (dict(num_rounds=0), "`num_rounds` must be at least 1"),
        (dict(chunk_length=0), "`chunk_length` must be at least 1"),
        (dict(attention_layers=["sparse"]), "`attention_layers` must be one or more of"),
        (dict(attention_layers=[]), "`attention_layers` must be one or more of"),
        (dict(num_heads=3), "`hidden_dim` must be a multiple of num_heads=3"),
        (dict(wrap_chunks=True), "`wrap_chunks` must be False unless allow_duplicates=True"),
        (dict(dropout=1.0), "`dropout` must be in"),
        (dict(lsh_attention_dropout=-0.1), "`attention_dropout` must be in"),
        (dict(hash_seed=-1), "`hash_seed` must be at least 0"),
        (dict(loss_chunks=5), "`loss_chunks` must be a divisor of window_length=32"),
    ],
    ids=str,
)
def test_bad_sizes(changes, match):
    with pytest.raises(ValueError, match=match):
        Reformer(**{**SIZES, **changes})


def test_bad_windows():
    model = small()
    with pytest.raises(ValueError, match=r"`token_ids` must be of 1 to 32 positions.*Received: length=33"):
        model.read(tokens(1, 33))
    with pytest.raises(ValueError, match="`token_ids` must be of 1 to 32 positions"):
        model.read(np.zeros((1, 0), "int32"))


@pytest.mark.parametrize(
    "changes", [dict(hidden_dim=15), dict(num_heads=3), dict(target_length=0), dict(dropout=-1)], ids=str
)
def test_bad_sizes_of_the_encoder_decoder(changes):
    with pytest.raises(ValueError, match="must be"):
        ReformerEncoderDecoder(**{**PAIR, **changes})


def test_targets_longer_than_the_state_are_refused():
    with pytest.raises(ValueError, match="`max_new_tokens` must be between 1 and target_length=12"):
        pair().generate(sources(2, 5), max_new_tokens=13)
