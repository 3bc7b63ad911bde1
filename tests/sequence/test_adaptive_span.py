"""Adaptive attention span: the mask, the penalty and the trimming of the paper, checked against brute force."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import zoo
from zoo.experiments import adaptive_span as experiment
from zoo.export import export_model
from zoo.export.runners import open_artifact
from zoo.sequence.adaptive_span import (
    AdaptiveSpanAttention,
    AdaptiveSpanTransformer,
    ClipToInterval,
    bias_uniform,
    fan_in_uniform,
    span_mask,
)
from zoo.training.optimizers import ClippedAdagrad
from zoo.training.streams import token_streams


def small(**overrides):
    config = dict(
        vocabulary_size=17, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=24, window_length=4, max_span=12,
        ramp=3, span_penalty=0.0,
    )  # fmt: skip
    return AdaptiveSpanTransformer(**{**config, **overrides}).build_from_signature()


def with_spans(model, spans):
    """Sets z' of every head, `(num_layers, num_heads)`."""
    shape = (model.num_layers, model.num_heads)
    for layer, values in zip(model.transformer_layers, np.broadcast_to(spans, shape), strict=True):
        layer.attention.span.assign(values)
    return model


def tokens(*shape, seed=0, vocabulary_size=17):
    return tf.constant(np.random.default_rng(seed).integers(0, vocabulary_size, shape), "int32")


def read(model, token_ids, length, **options):
    """Reads a text in windows; returns all logits and the last state."""
    state = model.initial_state(token_ids.shape[0])
    logits = []
    for start in range(0, token_ids.shape[1], length):
        window_logits, state = model.forward(token_ids[:, start : start + length], state, training=False, **options)
        logits.append(window_logits.numpy())
    return np.concatenate(logits, axis=1), state


def attention(memory_length=12, seed=0, spans=None, dtype="float32", **options):
    """A layer of two heads of width four and random arrays to call it with: inputs, memory, table of distances."""
    keras.utils.set_random_seed(seed)
    config = dict(max_span=memory_length, memory_length=memory_length, ramp=3, span_penalty=0.0)
    layer = AdaptiveSpanAttention(2, 4, **{**config, **options}, dtype=dtype)
    layer.build((None, None, 8))
    if spans is not None:
        layer.span.assign(np.array(spans) / memory_length)
    rng = np.random.default_rng(seed)
    shapes = ((2, 5, 8), (2, memory_length, 8), (memory_length, 4))
    return layer, [tf.constant(rng.normal(size=shape), dtype) for shape in shapes]


# === Mask ===


@pytest.mark.parametrize("offset", [0, 1])
def test_mask_values_of_the_worked_example(offset):
    """S = 16, R = 4: the released code's convention, and the paper's, which begins one step later."""
    distances = np.arange(1, 17)
    shift = 1 - offset
    for span, weights in ((0.0, [1, 0.75, 0.5, 0.25]), (4.0, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25])):
        expected = np.zeros(17)
        expected[: len(weights)] = weights
        mask = span_mask(distances, tf.constant(span), ramp=4, distance_offset=offset)
        np.testing.assert_allclose(mask, expected[shift : shift + 16], atol=1e-7)


def test_full_spans_equal_plain_relative_attention():
    """z' = 1: no mask is left, only the window of S positions."""
    layer, (inputs, memory, table) = attention(spans=[12, 12])
    output, probabilities = layer(inputs, memory, table)
    expected, weights = brute_force(layer, inputs, memory, table, lambda distance, head: 1.0)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(probabilities, weights, atol=1e-6)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("length", [1, 5])
def test_equals_a_double_loop_over_queries_and_distances(offset, length):
    """Query i sees the S positions before it, never itself; a mask by head; one query takes the absorbed order."""
    spans = (0.7, 6.3)
    layer, (inputs, memory, table) = attention(spans=spans, distance_offset=offset)
    inputs = inputs[:, :length]

    def mask(distance, head):
        return min(max((3 + spans[head] - (distance - offset)) / 3, 0), 1)

    expected, weights = brute_force(layer, inputs, memory, table, mask)
    output, probabilities = layer(inputs, memory, table)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    np.testing.assert_allclose(probabilities, weights, atol=1e-5)
    np.testing.assert_allclose(ops.sum(probabilities, axis=-1), np.ones((2, 2, length)), atol=1e-6)


def brute_force(layer, inputs, memory, table, mask):
    """Attention as the paper prints it: a softmax over S distances, multiplied by the mask and normalised again."""
    context = np.concatenate([memory, inputs], axis=1)
    query, key, value = (
        np.reshape(x @ dense.kernel.numpy(), (2, -1, 2, 4))
        for x, dense in ((inputs.numpy(), layer.query), (context, layer.key), (context, layer.value))
    )
    slots, length = memory.shape[1], inputs.shape[1]
    attended, weights = np.zeros((2, length, 2, 4)), np.zeros((2, 2, length, slots + length))
    for batch in range(2):
        for head in range(2):
            for i in range(length):
                places = [slots + i - distance for distance in range(1, slots + 1)]
                q = query[batch, i, head]
                scores = np.array([q @ (key[batch, j, head] + table[j - i].numpy()) / 2 for j in places])
                exponentials = np.exp(scores - scores.max())
                softmax = exponentials / exponentials.sum()
                masked = softmax * np.array([mask(distance, head) for distance in range(1, slots + 1)])
                masked = masked / (masked.sum() + 1e-8)
                weights[batch, head, i, places] = masked
                attended[batch, i, head] = masked @ value[batch, places, head]
    return attended.reshape(2, length, 8) @ layer.output_dense.kernel.numpy(), weights


def test_both_forms_of_the_masked_softmax_agree():
    """m exp(s) normalised, a softmax multiplied by m and normalised, and exp(s + log m), for scores in [-5, 5]."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(-5, 5, size=(2, 2, 5, 17)).astype("float32")
    layer, _ = attention(spans=[0.4, 7.5])
    log_mask, allowed = layer._log_mask(layer.spans(None), 5, 12)
    mask = np.where(allowed, np.exp(log_mask), 0)
    masked = mask * np.exp(scores)
    softmax = np.asarray(ops.softmax(scores)) * mask
    forms = [
        masked / masked.sum(-1, keepdims=True),
        softmax / (softmax.sum(-1, keepdims=True) + 1e-8),
        np.where(allowed, ops.softmax(np.where(allowed, scores + log_mask, -100.0)), 0),
    ]
    np.testing.assert_allclose(forms[0], forms[1], atol=1e-6)
    np.testing.assert_allclose(forms[0], forms[2], atol=1e-6)


def test_a_token_is_no_key_of_its_own_query():
    """The output at a position gets no gradient from its own key and value, nor from any later one."""
    layer, (inputs, memory, table) = attention(spans=[12, 12])
    layer.query.kernel.assign(tf.zeros_like(layer.query.kernel))  # what is left of a token is its key and its value
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output, _ = layer(inputs, memory, table)
    gradient = np.abs(tape.batch_jacobian(output, inputs)).sum((0, 2, 4))
    assert np.array_equal(gradient > 0, np.tri(5, k=-1, dtype=bool))


def test_changed_tokens_reach_later_positions_only():
    model = with_spans(small(num_layers=1), [0.5, 1.0])
    token_ids = tokens(1, 12).numpy()
    base = read(model, tf.constant(token_ids), 12)[0]
    for place in range(12):
        changed = token_ids.copy()
        changed[0, place] = (changed[0, place] + 1) % 17
        logits = read(model, tf.constant(changed), 12)[0]
        assert np.array_equal(logits[:, :place], base[:, :place])
        assert not np.array_equal(logits[:, place], base[:, place])


@pytest.mark.parametrize(("span", "reach"), [(0, 3), (2, 5), (12, 12)])
def test_reach_is_the_span_and_its_ramp(span, reach):
    """The farthest token that the last one hears of in one layer."""
    model = with_spans(small(num_layers=1), span / 12)
    token_ids = tokens(1, 20).numpy()
    base = read(model, tf.constant(token_ids), 4)[0][0, -1]
    for back, same in ((reach, False), (reach + 1, True)):
        changed = token_ids.copy()
        changed[0, -1 - back] = (changed[0, -1 - back] + 1) % 17
        assert np.array_equal(read(model, tf.constant(changed), 4)[0][0, -1], base) == same
    np.testing.assert_allclose(model.attention_spans(), np.full((1, 2), reach))


# === Trimming ===


@pytest.mark.parametrize(("share", "dropped"), [(0.9, 0), (0.6, 64), (0.0, 192)])
def test_trimming_is_invisible(share, dropped):
    model = with_spans(small(max_span=256, window_length=32, num_layers=2), [share, share / 2])
    token_ids = tokens(2, 320)
    whole, _ = read(model, token_ids, 32, num_keys=[256, 256])
    needed = [layer.attention.constant_needed_keys() for layer in model.transformer_layers]
    assert needed == [256 - dropped] * 2
    np.testing.assert_allclose(read(model, token_ids, 32)[0], whole, atol=1e-6)
    trimmed = model.trim()
    assert trimmed.memory_lengths == (int(np.ceil(share * 256 + 3)),) * 2
    logits, state = read(trimmed, token_ids, 32)
    np.testing.assert_allclose(logits, whole, atol=1e-6)
    assert state["memory"].shape == (2, sum(trimmed.memory_lengths), 16)
    assert trimmed.positions.shape[0] == max(trimmed.memory_lengths)
    again = type(trimmed).from_config(trimmed.get_config()).build_from_signature()
    again.set_weights(trimmed.get_weights())
    np.testing.assert_array_equal(read(again, token_ids, 32)[0], logits)


def test_exported_trimmed_model_equals_the_whole_one(tmp_path):
    """A LiteRT file of shorter memories, read window by window, gives the logits of the model with all its slots."""
    model = with_spans(small(max_span=64, window_length=8, num_layers=1), [0.1, 0.2])
    trimmed = model.trim()
    report = export_model(trimmed, tmp_path / "bundle", ["litert"], benchmark=False)
    artifact = report.artifact("litert")
    run = open_artifact("litert", {name: tmp_path / "bundle" / path for name, path in artifact.paths.items()})
    token_ids = tokens(2, 48)
    whole, _ = read(model, token_ids, 8)
    memory, logits = np.zeros((2, 16, 16), "float32"), []
    for start in range(0, 48, 8):
        outputs = run("step", {"token_ids": token_ids[:, start : start + 8].numpy(), "memory": memory})
        logits.append(outputs["logits"])
        memory = outputs["memory_out"]
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=1e-5)


def test_trimming_too_much_is_visible():
    model = with_spans(small(max_span=256, window_length=32), 0.6)
    token_ids = tokens(2, 320)
    whole, _ = read(model, token_ids, 32)
    assert np.abs(read(model, token_ids, 32, num_keys=[128, 128])[0] - whole).max() > 1e-3


def test_layers_are_trimmed_each_to_its_own_length():
    model = with_spans(small(max_span=256, window_length=32), [[0.0, 0.1], [0.5, 0.0]])
    trimmed = model.trim()
    assert trimmed.memory_lengths == (29, 131)
    token_ids = tokens(2, 320)
    np.testing.assert_allclose(read(trimmed, token_ids, 32)[0], read(model, token_ids, 32)[0], atol=1e-6)
    spec = trimmed.signatures()["step"].inputs["memory"]
    assert spec.shape == ("batch", 160, 16)
    with pytest.raises(ValueError, match="`memory` must have shape"):
        trimmed.run("step", **model.dummy_inputs("step"))


def test_products_are_of_the_trimmed_size():
    """Attention never computes with more keys than the blocks that the longest span touches, also in a graph."""
    layer, _ = attention(memory_length=256, spans=[0, 70])
    inputs, memory, table = tf.ones((1, 8, 8)), tf.ones((1, 256, 8)), tf.ones((256, 4))
    for call in (layer, tf.function(layer)):
        _, probabilities = call(inputs, memory, table)
        assert probabilities.shape[-1] in (None, 128 + 8)
        assert ops.shape(probabilities)[-1] == 128 + 8
    layer.span.assign([0.0, 0.0])
    assert call(inputs, memory, table)[1].shape == (1, 2, 8, 64 + 8)  # the same graph, other spans


def test_signatures_have_the_spans_as_constants():
    """The exported graph knows every size beforehand: one block of keys and the window of four."""
    model = with_spans(small(max_span=256, window_length=4), 0.1)
    signature = model.signatures()["step"]
    specs = {name: spec.tensor_spec(name) for name, spec in signature.inputs.items()}
    specs["token_ids"] = tf.TensorSpec((1, 4), tf.int32, "token_ids")
    graph = tf.function(signature.function).get_concrete_function(**specs).graph
    shapes = {tuple(op.outputs[0].shape) for op in graph.get_operations() if op.type == "Softmax"}
    assert [shape[-1] for shape in shapes] == [64 + 4]


@pytest.mark.slow
def test_short_spans_save_time():
    """Fixed spans of 4096 against learned ones of a few tokens: a window must cost less than half, it costs a tenth."""
    times = []
    for share in (1.0, 0.0):
        model = with_spans(small(max_span=4096, window_length=64, num_layers=2, hidden_dim=64), share)
        step = tf.function(lambda token_ids, state, model=model: model.forward(token_ids, state))
        token_ids, state = tokens(4, 64), model.initial_state(4)
        laps = []
        for _ in range(6):
            start = time.process_time()
            step(token_ids, state)[0].numpy()
            laps.append(time.process_time() - start)
        times.append(np.median(laps[1:]))
    assert times[1] < times[0] / 2


def test_windows_do_not_change_the_function():
    model = with_spans(small(), [[0.2, 1.0], [0.0, 0.5]])
    token_ids = tokens(2, 24)
    whole, _ = read(model, token_ids, 24)
    for length in (1, 3, 4, 8, 12):
        np.testing.assert_allclose(read(model, token_ids, length)[0], whole, atol=1e-5)


def test_generation_continues_what_windows_read():
    """The most likely next token, read in windows, is the one that the token loop gives."""
    model = with_spans(small(), 0.4)
    prompt = tokens(11).numpy()
    new = model.generate(prompt, max_new_tokens=3, temperature=0)
    expected = list(prompt)
    for _ in range(3):
        expected.append(int(np.argmax(read(model, tf.constant([expected], "int32"), 4)[0][0, -1])))
    np.testing.assert_array_equal(new, expected[11:])


# === Memory ===


def test_memory_holds_the_inputs_of_each_layer():
    model = small()
    token_ids = tokens(2, 8)
    _, state = read(model, token_ids, 4)
    np.testing.assert_array_equal(state["memory"][:, 4:12], model.embedding(token_ids))
    assert np.abs(state["memory"][:, :4]).max() == 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_empty_slots_are_ignored_only_where_asked(dynamic):
    """Ignoring the slots of a stream's past before its beginning is as if there were no such slots."""
    token_ids = tokens(1, 5)
    attended, masked = (small(mask_empty=mask_empty, dynamic=dynamic, span_init=1.0) for mask_empty in (False, True))
    masked.set_weights(attended.get_weights())
    logits = [read(model, token_ids, 5)[0] for model in (attended, masked)]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    # The first token has nothing to attend to: attention gives zeros, no NaN
    layer, (inputs, memory, table) = attention(spans=[12, 12])
    output, _ = layer(inputs, memory, table, filled=tf.constant([0, 12]))
    np.testing.assert_array_equal(output[0, 0], np.zeros(8))
    assert np.abs(output[1, 0]).max() > 0
    # No key, value or score of an empty slot is left, whatever it holds
    other = layer(inputs, memory + 7.0 * np.eye(2)[0].reshape(2, 1, 1), table, filled=tf.constant([0, 12]))[0]
    np.testing.assert_allclose(other, output, atol=1e-6)
    np.testing.assert_array_equal(read(masked, tokens(1, 8), 4)[1]["memory_count"], [8])


def test_no_gradient_reaches_the_memory():
    model = with_spans(small(), 1.0)
    state = {"memory": tf.constant(model.dummy_inputs("step")["memory"])}
    with tf.GradientTape() as tape:
        tape.watch(state["memory"])
        loss = tf.reduce_sum(model.forward(tokens(2, 4), state)[0] ** 2)
    assert tape.gradient(loss, state["memory"]) is None


# === Learning spans ===


def test_span_gradient_is_a_central_difference():
    """In float64, at spans away from the mask's kinks."""
    layer, arrays = attention(spans=[0.3, 6.6], dtype="float64")
    target = np.random.default_rng(1).normal(size=(2, 5, 8))

    def loss():
        return tf.reduce_sum(layer(*arrays)[0] * target)

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, layer.span.value).numpy()
    assert np.abs(gradient).min() > 1e-3
    start, step = layer.span.numpy(), 1e-6
    for head in range(2):
        ends = []
        for sign in (1, -1):
            layer.span.assign(start + sign * step * np.eye(2)[head])
            ends.append(float(loss()))
        layer.span.assign(start)
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(gradient[head], abs=1e-6)


def test_penalty_is_added_in_training_only_and_summed_over_layers():
    model = with_spans(small(span_penalty=1e-3), [[0.5, 0.25], [1.0, 0.0]])
    model(tokens(2, 4), training=True)
    assert float(sum(model.losses)) == pytest.approx(1e-3 * 12 * (0.375 + 0.5), rel=1e-6)
    model(tokens(2, 4), training=False)
    assert not model.losses


def test_penalty_gradient_where_the_ramp_meets_no_attention():
    """Past the limit the ramp has nothing to weigh: lambda S / H is left, exactly."""
    model = with_spans(small(span_penalty=1e-3), 1.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(tokens(2, 4), training=True) ** 2) + sum(model.losses)
    spans = [layer.attention.span.value for layer in model.transformer_layers]
    for gradient in tape.gradient(loss, spans):
        np.testing.assert_allclose(gradient, [1e-3 * 12 / 2] * 2, rtol=1e-6)


def fit(model, learning_rate=0.1, steps=2, clip_norm=None):
    data = token_streams(tokens(400).numpy(), 2, 4, repeat=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(ClippedAdagrad(learning_rate, clip_norm=clip_norm), loss)
    assert not model.jit_compile  # sizes that depend on weights are nothing for XLA: `compile` finds out by itself
    return model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False).history


@pytest.mark.parametrize("penalty", [0.0, 1e3])
def test_spans_stay_between_zero_and_the_limit(penalty):
    """Adagrad's first step moves every weight by the learning rate, here five times the whole range."""
    model = with_spans(small(span_penalty=penalty), 0.4)
    fit(model, learning_rate=5.0, steps=1)
    spans = np.stack([layer.attention.span.numpy() for layer in model.transformer_layers])
    assert np.isin(spans, [0.0, 1.0]).all()
    if penalty:
        assert not spans.any()


def test_spans_of_a_trimmed_model_stay_within_its_memory():
    model = with_spans(small(), [[0.0, 0.25], [0.5, 0.0]]).trim()
    assert model.memory_lengths == (6, 9)
    for layer, limit in zip(model.transformer_layers, (6 / 12, 9 / 12), strict=True):
        constraint = layer.attention.span.constraint
        np.testing.assert_allclose(constraint(tf.constant([-1.0, 0.1, 2.0])), [0, 0.1, limit])
    again = keras.constraints.deserialize(keras.constraints.serialize(ClipToInterval(0.5)))
    assert again.maximum == 0.5


def test_evaluation_knows_no_penalty():
    """`evaluate` gives the cross-entropy; `fit`, with a learning rate of zero, the penalty on top of it."""
    model = with_spans(small(span_penalty=0.01), 0.5)
    trained = fit(model, learning_rate=0.0, steps=1)["loss"][0]
    first = token_streams(tokens(400).numpy(), 2, 4).take(1)
    assert trained - model.evaluate(first, verbose=0) == pytest.approx(2 * 0.01 * 6, abs=1e-5)


def test_dynamic_spans_that_ignore_the_token_equal_static_ones():
    token_ids = tokens(2, 12)
    static = with_spans(small(), [0.3, 0.8])
    dynamic = small(dynamic=True)
    others = [[weight for weight in model.weights if "/span" not in weight.path] for model in (dynamic, static)]
    for weight, value in zip(*others, strict=True):
        weight.assign(value)
    for layer in dynamic.transformer_layers:
        layer.attention.span_dense.kernel.assign(np.zeros((16, 2)))
        layer.attention.span_dense.bias.assign(np.log([0.3 / 0.7, 0.8 / 0.2]))
    np.testing.assert_allclose(read(dynamic, token_ids, 4)[0], read(static, token_ids, 4)[0], atol=1e-6)


def test_dynamic_spans_start_short_and_are_penalised():
    model = small(dynamic=True, span_penalty=1e-3)
    layer = model.transformer_layers[0].attention
    np.testing.assert_allclose(layer.span_dense.bias, [-4.0, -4.0])
    inputs = model.embedding(tokens(2, 4))
    spans = layer.spans(inputs)
    assert spans.shape == (2, 2, 4, 1)
    model(tokens(2, 4), training=True)
    assert float(model.losses[0]) == pytest.approx(1e-3 * float(ops.mean(spans)), rel=1e-5)
    history = fit(model, steps=40)
    assert np.isfinite(history["loss"]).all()


# === Optimiser ===


@pytest.mark.parametrize("clip_norm", [None, 0.03])
def test_clipped_adagrad_equals_a_loop(clip_norm):
    """The sum takes the unclipped square and starts at zero; the step alone is scaled, by variable."""
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=(6, 3)), rng.normal(size=(6, 2, 2)) * 1e-3]
    variables = [keras.Variable(np.ones(grad.shape[1:], "float32")) for grad in grads]
    expected, sums = [np.ones(grad.shape[1:]) for grad in grads], [0.0, 0.0]
    optimizer = ClippedAdagrad(0.07, clip_norm=clip_norm)
    optimizer.build(variables)
    for step in range(6):
        optimizer.apply([tf.constant(grad[step], "float32") for grad in grads], variables)
        for i, grad in enumerate(grads):
            sums[i] = sums[i] + grad[step] ** 2
            rate = 0.07 * (1.0 if clip_norm is None else min(1.0, clip_norm / np.sqrt((grad[step] ** 2).sum())))
            expected[i] = expected[i] - rate * grad[step] / (np.sqrt(sums[i]) + 1e-10)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5)


def test_clipped_adagrad_sums_the_gradients_of_a_repeated_token():
    """The norm and the square are of an embedding's whole gradient, whatever form it comes in."""
    variables = [keras.Variable(np.ones((4, 2), "float32")) for _ in range(2)]
    slices = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]]), tf.constant([1, 1]), tf.constant([4, 2]))
    for variable, gradient in zip(variables, (slices, tf.convert_to_tensor(slices)), strict=True):
        optimizer = ClippedAdagrad(0.1, clip_norm=0.5)
        optimizer.build([variable])
        optimizer.apply([gradient], [variable])
    np.testing.assert_array_equal(variables[0], variables[1])
    assert not np.array_equal(variables[0][1], [1.0, 1.0])


def test_clipped_adagrad_leaves_alone_what_has_no_gradient():
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer = ClippedAdagrad(0.1, clip_norm=0.5)
    optimizer.build([variable])
    optimizer.apply([tf.zeros(2)], [variable])
    np.testing.assert_array_equal(variable, [1.0, 1.0])


def test_clipped_adagrad_round_trips_and_refuses():
    optimizer = ClippedAdagrad(0.05, clip_norm=0.03, epsilon=1e-9)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()
    for arguments in (dict(clip_norm=0.0), dict(epsilon=0.0)):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be positive. Received"):
            ClippedAdagrad(**arguments)


# === Sizes ===


def test_one_table_of_distances_serves_all_heads_and_layers():
    model = small(num_layers=3)
    tables = [weight for weight in model.weights if tuple(weight.shape) == (12, 8)]
    assert [weight.path for weight in tables] == [model.positions.path]
    longer = small(num_layers=3, max_span=13)
    assert longer.count_params() - model.count_params() == 8


def test_initialisation():
    model = small(hidden_dim=256, intermediate_dim=400, num_heads=4, num_layers=1, vocabulary_size=300, max_span=64)
    layer = model.transformer_layers[0]
    for table in (model.embedding.embeddings, model.positions):
        assert float(ops.std(table)) == pytest.approx(1.0, abs=0.05)
    attended = layer.attention
    for weight, fan_in in (
        *((dense.kernel, 256) for dense in (attended.query, attended.key, attended.value, attended.output_dense)),
        (layer.feed_forward.inner.kernel, 256),
        (layer.feed_forward.inner.bias, 256),
        (layer.feed_forward.outer.kernel, 400),
        (layer.feed_forward.outer.bias, 400),
        (model.logits_layer.kernel, 256),
        (model.logits_layer.bias, 256),
    ):
        bound = fan_in**-0.5
        values = np.abs(weight.numpy())
        assert 0.95 * bound < values.max() <= bound
        assert values.mean() == pytest.approx(bound / 2, rel=0.15)
    assert not attended.span.numpy().any()
    np.testing.assert_allclose(
        fan_in_uniform()((100, 7)).numpy().max(), bias_uniform(100)((700,)).numpy().max(), rtol=0.02
    )


def test_dropout_is_on_attention_and_inside_the_feed_forward_network_only():
    model = small(dropout=0.5)
    layer = model.transformer_layers[0]
    rates = (layer.attention.dropout_layer.rate, layer.feed_forward.inner_dropout.rate)
    assert rates == (0.5, 0.5) and layer.feed_forward.outer_dropout.rate == 0


@pytest.mark.parametrize("preset", ["austen", "enwik8_small"])
def test_parameter_counts(preset):
    model = zoo.get("adaptive_span", preset, weights=None)
    assert model.count_params() == zoo.info("adaptive_span").preset(preset).parameters


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["enwik8", "text8", "enwik8_large", "text8_large"])
def test_parameter_counts_of_large_presets(preset):
    """Counted from the configuration with short memories: nothing but the table of distances depends on them."""
    facts = zoo.info("adaptive_span").preset(preset)
    model = AdaptiveSpanTransformer(**{**facts.config, "memory_lengths": [64] * facts.config["num_layers"]})
    model.build_from_signature()
    head_dim = facts.config["hidden_dim"] // facts.config["num_heads"]
    assert model.count_params() + (8192 - 64) * head_dim == facts.parameters


# === Bad input ===


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (dict(num_layers=0), "num_layers"),
        (dict(max_span=0), "max_span"),
        (dict(num_heads=3), "num_heads"),
        (dict(ramp=0), "ramp"),
        (dict(ramp=13), "ramp"),
        (dict(span_init=1.5), "span_init"),
        (dict(span_penalty=-1.0), "span_penalty"),
        (dict(distance_offset=2), "distance_offset"),
        (dict(dropout=1.0), "dropout"),
        (dict(memory_lengths=[12]), "memory_lengths"),
        (dict(memory_lengths=[12, 0]), "memory_lengths"),
        (dict(memory_lengths=[12, 13]), "memory_lengths"),
        (dict(memory_lengths=[12, 6], span_init=0.75), "memory_lengths"),
        (dict(memory_lengths=[12, 6], dynamic=True), "memory_lengths"),
    ],
)
def test_bad_arguments_are_named(override, message):
    with pytest.raises(ValueError, match=f"`{message}` must be .* Received: "):
        small(**override)


def test_spans_longer_than_the_memory_are_refused():
    """Weights of a model with a longer memory would silently lose what they attend to."""
    model = small(memory_lengths=[6, 6])
    model.transformer_layers[1].attention.span.assign([0.0, 0.8])
    with pytest.raises(ValueError, match=r"layer_1/attention/span` must be at most 6 tokens. Received: 9.6"):
        model.run("step", **model.dummy_inputs("step"))


def test_dynamic_spans_have_no_table():
    model = small(dynamic=True)
    for method in (model.attention_spans, model.trim):
        with pytest.raises(ValueError, match="`dynamic` must be False"):
            method()


# === Experiment ===


def test_verdict_says_what_the_numbers_say():
    spans = [[16.0, 16.0], [16.0, 120.0]]
    good = experiment._verdict({"fixed 32": 2.6, "fixed 256": 2.5, experiment.MAIN: 2.505}, spans, 256)
    assert "is within" in good and "does not" not in good
    bad = experiment._verdict({"fixed 32": 2.5, "fixed 256": 2.5, experiment.MAIN: 2.6}, spans[::-1], 256)
    assert bad.count("not") >= 3
