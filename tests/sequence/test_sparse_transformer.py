"""Sparse Transformer: patterns counted and compared to dense masks, causality, recomputation, cost, both models."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import zoo
from zoo.sequence.sparse_transformer import (
    SparseAttention,
    SparseImageTransformer,
    SparseTransformer,
    SparseTransformerBlock,
    attend,
    quick_gelu,
)

SIZES = dict(
    vocabulary_size=11, num_layers=2, hidden_dim=16, num_heads=4, intermediate_dim=32, position_shape=[4, 4], stride=4,
    pattern="strided",
)  # fmt: skip


def randomised(model, seed=0, scale=0.3):
    """Gives every weight random values: output kernels that start at zero would hide everything."""
    rng = np.random.default_rng(seed)
    for weight in model.build_from_signature().trainable_weights:
        weight.assign(rng.normal(0, scale, weight.shape))
    return model


def small(**changes):
    return randomised(SparseTransformer(**{**SIZES, **changes}))


def small_image(**changes):
    return randomised(SparseImageTransformer(**{**SIZES, **changes}))


def tokens(*shape, seed=0, vocabulary_size=11):
    return np.random.default_rng(seed).integers(0, vocabulary_size, shape).astype("int32")


# === Patterns ===


def dense_mask(names, length, stride, inclusive=True, width=1, group=0):
    """The definition, pair by pair."""
    i, j = np.arange(length)[:, None], np.arange(length)
    last = stride - width * group
    sets = {
        "full": j <= i,
        "local": (j <= i) & (i - j <= (stride if inclusive else stride - 1)),
        "stride": (j <= i) & ((i - j) % stride == 0),
        "row": (j <= i) & (i // stride == j // stride),
        "summary": (j <= i) & (j % stride >= last - width) & (j % stride < last),
    }
    return np.any([sets[name] for name in names], axis=0)


def sparse_mask(names, length, stride, **options):
    """The pairs the block-wise computation reaches: with all scores equal, weights are positive exactly there."""
    padded = -(-length // stride) * stride
    sets = SparseAttention(1, 4, [names], stride, **options).key_sets(names, padded, [0])
    zeros = tf.zeros((1, 1, padded, 4))
    weights = attend(zeros, zeros, tf.eye(padded, dtype="float32")[None, None], sets).numpy()[0, 0]
    counts = (weights > 0).sum(1)
    rows = counts > 0
    # Every key once: a key that two sets of a union share would have twice the weight
    np.testing.assert_allclose(weights[rows].max(1), 1 / counts[rows], rtol=1e-5)
    return weights[:length, :length] > 0


GOLDEN = {
    # n, l: local as written, local as released, stride, union; row, summary of 1, of 2, unions; full
    (16, 4): (70, 58, 40, 82, 40, 28, 60, 64, 88, 136),
    (64, 8): (540, 484, 288, 708, 288, 232, 472, 512, 736, 2080),
    (256, 16): (4216, 3976, 2176, 5896, 2176, 1936, 3888, 4096, 6016, 32896),
}


@pytest.mark.parametrize(("sizes", "expected"), GOLDEN.items())
def test_numbers_of_allowed_pairs(sizes, expected):
    n, stride = sizes
    masks = (
        sparse_mask(("local",), n, stride),
        sparse_mask(("local",), n, stride, local_inclusive=False),
        sparse_mask(("stride",), n, stride),
        sparse_mask(("local", "stride"), n, stride),
        sparse_mask(("row",), n, stride),
        sparse_mask(("summary",), n, stride),
        sparse_mask(("summary",), n, stride, summary_width=2),
        sparse_mask(("row", "summary"), n, stride),
        sparse_mask(("row", "summary"), n, stride, summary_width=2),
        sparse_mask(("full",), n, stride),
    )
    assert tuple(int(mask.sum()) for mask in masks) == expected
    np.testing.assert_array_equal(masks[3], sparse_mask(("local", "stride"), n, stride, local_inclusive=False))


@pytest.mark.parametrize("near_far", [("local", "stride"), ("row", "summary")])
def test_two_steps_reach_every_earlier_position(near_far):
    near, far = (dense_mask((name,), 64, 8) | np.eye(64, dtype=bool) for name in near_far)
    np.testing.assert_array_equal(far.astype(int) @ near > 0, np.tri(64, dtype=bool))
    if near_far == ("row", "summary"):
        # Far keys first leaves gaps, which is why blocks begin with the near ones
        assert (near.astype(int) @ far > 0).sum() < np.tri(64).sum()
    model = small(pattern="strided" if "local" in near_far else "fixed")
    assert [block.attention.head_sets for block in model.blocks] == [((name,),) for name in near_far]


CASES = [
    (("full",), {}), (("local",), {}), (("local",), dict(local_inclusive=False)), (("stride",), {}), (("row",), {}),
    (("summary",), dict(summary_width=2)), (("local", "stride"), {}), (("local", "stride"), dict(local_inclusive=False)),
    (("row", "summary"), dict(summary_width=2)), (("row", "summary"), dict(summary_width=2, num_summaries=2)),
]  # fmt: skip


@pytest.mark.parametrize("length", [24, 21])
@pytest.mark.parametrize(("names", "options"), CASES, ids=str)
def test_blocks_equal_masked_dense_attention_and_so_do_their_gradients(names, options, length):
    stride, heads, dim = 6, 4, 8
    layer = SparseAttention(heads, heads * dim, [names], stride, **options)
    layer.build((None, length, heads * dim))
    rng = np.random.default_rng(0)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    inputs = tf.constant(rng.normal(size=(2, length, heads * dim)), tf.float32)
    direction = tf.constant(rng.normal(size=(2, length, heads * dim)), tf.float32)
    width, groups = options.get("summary_width", 1), options.get("num_summaries", 1)
    inclusive = options.get("local_inclusive", True)
    mask = np.stack([dense_mask(names, length, stride, inclusive, width, head % groups) for head in range(heads)])

    def dense(x):
        query, key, value = (
            tf.transpose(tf.reshape(part(x), (2, length, heads, dim)), (0, 2, 1, 3))
            for part in (layer.query, layer.key, layer.value)
        )
        scores = tf.where(mask, query @ tf.transpose(key, (0, 1, 3, 2)) / dim**0.5, -1e9)
        weights = tf.nn.softmax(scores) * tf.cast(mask, tf.float32)
        return layer.output_dense(tf.reshape(tf.transpose(weights @ value, (0, 2, 1, 3)), (2, length, heads * dim)))

    found, expected = [], []
    for function, results in ((layer, found), (dense, expected)):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(inputs)
        results += [outputs, *tape.gradient(outputs, [inputs, *layer.trainable_weights], direction)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(tf.reduce_max(tf.abs(b))) + 1e-5)


def test_queries_without_keys_get_zeros_and_finite_gradients():
    sets = SparseAttention(1, 4, [("summary",)], 4).key_sets(("summary",), 16, [0])
    values = tf.constant(np.random.default_rng(0).normal(size=(1, 1, 16, 4)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = attend(values, values, values, sets)
    np.testing.assert_array_equal(outputs[0, 0, :3], 0)
    assert np.abs(outputs[0, 0, 3:]).min() > 0
    assert np.isfinite(tape.gradient(outputs, values)).all()


@pytest.mark.parametrize(
    ("names", "stride", "options", "limit"),
    [(("local",), 16, {}, 1e-6), (("row",), 16, {}, 1e-6), (("summary",), 4, dict(summary_width=4), 1e-6)],
    ids=str,
)
def test_wide_rows_and_summaries_are_full_attention(names, stride, options, limit):
    layers = [SparseAttention(2, 8, [chosen], stride, **options) for chosen in (names, ("full",))]
    for layer in layers:
        layer.build((None, 16, 8))
        layer.set_weights(layers[0].get_weights())
    inputs = np.random.default_rng(0).normal(size=(2, 16, 8)).astype("float32")
    np.testing.assert_allclose(layers[0](inputs), layers[1](inputs), atol=limit)


def multiply_adds(length):
    """Products in the traced graph of one merged attention, from the shapes of its matrix products."""
    layer = SparseAttention(1, 4, [("local", "stride")], round(length**0.5))
    sets = layer.key_sets(("local", "stride"), length, [0])
    spec = tf.TensorSpec((1, 1, length, 4))
    graph = tf.function(lambda q, k, v: attend(q, k, v, sets)).get_concrete_function(spec, spec, spec).graph
    products = [op for op in graph.get_operations() if op.type.startswith("BatchMatMul")]
    assert len(products) == 4
    return sum(np.prod(op.outputs[0].shape) * op.inputs[0].shape[-1] for op in products)


def test_cost_grows_with_the_power_three_halves():
    lengths = np.array([256, 1024, 4096])
    slope = np.polyfit(np.log(lengths), np.log([multiply_adds(int(n)) for n in lengths]), 1)[0]
    assert slope == pytest.approx(1.5, abs=0.1)


# === Network ===


@pytest.mark.parametrize("combine", ["interleaved", "merged", "heads"])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
def test_causality_is_exact(pattern, combine):
    text = small(pattern=pattern, combine=combine)
    image = small_image(pattern=pattern, combine=combine)
    ids = tokens(1, 16)
    for place in (0, 5, 15):
        changed = ids.copy()
        changed[0, place] = (ids[0, place] + 1) % 11
        change = np.abs(text.read(ids) - text.read(changed)).max(-1)[0]
        np.testing.assert_array_equal(change[:place], 0)
        assert change[place] > 0
        grids = (x.reshape(1, 4, 4) for x in (ids, changed))
        first, second = (np.asarray(image(grid)).reshape(16, 11) for grid in grids)
        np.testing.assert_array_equal(first[: place + 1], second[: place + 1])
        assert place == 15 or np.abs(first[place + 1] - second[place + 1]).max() > 0


def test_block_adds_both_parts_to_its_input():
    layer = SparseTransformerBlock(SparseAttention(2, 8, [("full",)], 4), 16, depth=3)
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 4, 8)), tf.float32)
    layer.build(x.shape)
    a = layer.attention(layer.attention_norm(x))
    b = layer.feed_forward(layer.feed_forward_norm(x + a))
    np.testing.assert_allclose(layer(x), x + a + b, atol=1e-6)


def test_activation():
    x = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(quick_gelu(tf.constant(x)), x / (1 + np.exp(-1.702 * x)), rtol=1e-9)


def test_fresh_network_is_uniform_and_scaled_by_depth():
    keras.utils.set_random_seed(0)
    model = SparseTransformer(
        **{**SIZES, "hidden_dim": 128, "num_layers": 8, "intermediate_dim": 512, "vocabulary_size": 256}
    ).build_from_signature()
    ids = tokens(2, 16, vocabulary_size=256)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(ids, model(ids))
    assert float(loss) == pytest.approx(np.log(256), abs=1e-6)

    def deviation(kernels):
        return np.std([np.asarray(kernel) for kernel in kernels])

    blocks = model.blocks
    scale = 0.125 / 16**0.5
    outputs = [block.attention.output_dense.kernel for block in blocks]
    assert deviation(outputs) == pytest.approx(scale / 128**0.5, rel=0.03)
    outer = [block.feed_forward.outer.kernel for block in blocks]
    assert deviation(outer) == pytest.approx(scale / 512**0.5, rel=0.03)
    inner = [block.feed_forward.inner.kernel for block in blocks]
    queries = [block.attention.query.kernel for block in blocks]
    assert deviation(inner) == pytest.approx(0.125 / 128**0.5, rel=0.03)
    assert deviation(queries) == pytest.approx(0.125 / 128**0.5, rel=0.03)
    assert deviation([model.embedding.embeddings]) == pytest.approx(0.125 / 128**0.5, rel=0.03)
    tables = np.concatenate([np.ravel(table.embeddings) for table in model.position_tables])
    assert tables.std() == pytest.approx(0.125 / 256**0.5, rel=0.06)
    assert np.abs(tables).max() > 0


def loss_and_gradients(model, ids, seed=3):
    keras.utils.set_random_seed(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout) and layer.rate:
            layer.seed_generator.state.assign([seed, 0])
    with tf.GradientTape() as tape:
        logits = model(ids, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(ids, logits, from_logits=True))
    return loss, tape.gradient(loss, [weight.value for weight in model.trainable_weights])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputation_changes_no_loss_and_no_gradient(dropout):
    kept, recomputed = (small(recompute=recompute, dropout=dropout) for recompute in (False, True))
    ids = tokens(3, 16)
    (loss, gradients), (other_loss, others) = (loss_and_gradients(model, ids) for model in (kept, recomputed))
    assert float(loss) == pytest.approx(float(other_loss), abs=1e-6)
    assert len(gradients) == len(others) and None not in others
    for a, b in zip(gradients, others, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(a), tf.convert_to_tensor(b), atol=1e-6)


def test_recomputation_keeps_less_for_the_backward_pass():
    """Tensors of the forward graph that the backward graph reads."""

    def kept_bytes(recompute):
        model = small(recompute=recompute, num_layers=4)
        forward = tf.function(lambda ids: tf.reduce_mean(model.read(ids, training=True)))
        concrete = forward.get_concrete_function(tf.TensorSpec((8, 16), tf.int32))
        _, backward = concrete._delayed_rewrite_functions.forward_backward(1)
        return sum(np.prod(x.shape) * x.dtype.size for x in backward.inputs if x.dtype.is_floating)

    assert kept_bytes(True) < 0.5 * kept_bytes(False)


def test_position_tables_are_coordinates():
    model = small(position_shape=[2, 8], stride=8)
    for table in model.position_tables:
        table.embeddings.assign(ops.zeros_like(table.embeddings))
    ids = np.zeros((1, 16), "int32")
    same_rows = np.asarray(model.read(ids))
    model.position_tables[0].embeddings.assign(np.outer([0, 1], np.random.default_rng(0).normal(size=16)))
    assert model.position_tables[0].embeddings.shape == (2, 16)
    assert model.position_tables[1].embeddings.shape == (8, 16)
    np.testing.assert_allclose(same_rows[0, :8], np.asarray(model.read(ids))[0, :8], atol=1e-5)
    assert np.abs(same_rows[0, 8:] - np.asarray(model.read(ids))[0, 8:]).max() > 1e-3


# === Text ===


def test_generation_reads_the_window_as_training_does():
    model = small()
    prompt = tokens(7).tolist()
    found = model.generate(prompt, max_new_tokens=5, temperature=0)
    ids = list(prompt)
    for _ in range(5):
        ids.append(int(np.argmax(model.read(np.array([ids], "int32"))[0, -1])))
    assert found.tolist() == ids[7:]


def test_generation_goes_on_where_the_window_is_full():
    model = small()
    prompt = tokens(40).tolist()
    found = model.generate(prompt, max_new_tokens=2, temperature=0)
    first = int(np.argmax(model.read(np.array([prompt[-16:]], "int32"))[0, -1]))
    second = int(np.argmax(model.read(np.array([[*prompt[-15:], first]], "int32"))[0, -1]))
    assert found.tolist() == [first, second]


def test_streams_are_read_window_by_window():
    model = small()
    assert model.state_specs() == {}
    assert list(model.signatures()) == ["predict"]
    ids = tokens(2, 16)
    inputs = {"token_ids": ids, "stream_start": np.array([True, True])}
    np.testing.assert_array_equal(model(inputs), model.read(ids))


# === Images ===


def test_log_probabilities_sum_to_one_over_all_images():
    model = small_image(position_shape=[2, 2], vocabulary_size=3, stride=2)
    images = np.stack(np.meshgrid(*[range(3)] * 4, indexing="ij"), -1).reshape(-1, 2, 2)
    log_prob = model.log_prob(images)
    assert np.exp(log_prob.astype("float64")).sum() == pytest.approx(1, abs=1e-5)
    assert np.ptp(log_prob) > 0.1
    assert model.bits_per_dimension(-4 * np.log(2.0)) == pytest.approx(1.0)


def test_samples_follow_the_distribution():
    model = small_image(position_shape=[1, 2], vocabulary_size=3, stride=2)
    images = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1).reshape(-1, 1, 2)
    expected = np.exp(model.log_prob(images))
    samples = model.sample(4000, seed=0)[:, 0]
    found = np.bincount(samples[:, 0] * 3 + samples[:, 1], minlength=9) / 4000
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)
    np.testing.assert_array_equal(samples, model.sample(4000, seed=0)[:, 0])
    assert (samples != model.sample(4000, seed=1)[:, 0]).any()


def test_image_model_fits_its_inputs():
    model = small_image()
    images = tokens(8, 4, 4)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(images, images, epochs=80, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_image_model_is_saved_and_loaded(tmp_path):
    model = small_image(combine="heads", pattern="fixed", num_summaries=2, summary_width=2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = tokens(2, 4, 4)
    np.testing.assert_array_equal(model(images), again(images))
    assert model.get_config() == again.get_config()


def test_block_is_saved_and_loaded():
    layer = SparseTransformerBlock(SparseAttention(2, 8, [("row", "summary")], 4), 16, depth=3, recompute=True)
    again = SparseTransformerBlock.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


# === Presets ===


@pytest.mark.parametrize(
    ("preset", "parameters"), [("enwik8", 94_949_376), ("cifar10", 59_196_672), ("imagenet64", 151_644_672)]
)
def test_sizes_of_the_paper(preset, parameters):
    assert zoo.info("sparse_transformer").preset(preset).parameters == parameters


# === Bad input ===


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(pattern="random"), "`pattern` must be one of"),
        (dict(combine="sum"), "`combine` must be one of"),
        (dict(num_heads=3), "`hidden_dim` must be a multiple of num_heads=3"),
        (dict(key_dim=10), "`key_dim` must be a multiple of num_heads=4"),
        (dict(num_heads=1, combine="heads"), "`num_heads` must be even"),
        (dict(summary_width=5), "`summary_width` must be from 1 to"),
        (dict(summary_width=2, num_summaries=3), "`summary_width` must be from 1 to stride // num_summaries = 1"),
        (dict(position_shape=[]), "`position_shape` must be one or more positive sizes"),
        (dict(position_shape=[4, 0]), "`position_shape` must be one or more positive sizes"),
        (dict(stride=0), "`stride` must be at least 1"),
    ],
    ids=str,
)
def test_bad_sizes(changes, match):
    with pytest.raises(ValueError, match=match):
        SparseTransformer(**{**SIZES, **changes})


def test_bad_inputs():
    model, image = small(), small_image()
    with pytest.raises(ValueError, match=r"`token_ids` must be of at most 16 positions.* Received: length=17"):
        model(tokens(1, 17))
    with pytest.raises(ValueError, match=r"`levels` must be of shape \(batch, 4, 4\)"):
        image.log_prob(tokens(1, 16))
    with pytest.raises(ValueError, match="`levels` must be whole numbers from 0 to 10"):
        image.log_prob(np.full((1, 4, 4), 11))
    for arguments, match in ((dict(num_samples=0), "`num_samples`"), (dict(num_samples=1, temperature=0), "`temper")):
        with pytest.raises(ValueError, match=match):
            image.sample(**arguments)
