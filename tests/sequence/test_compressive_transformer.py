"""Compressive Transformer: queues, compression functions, losses and their isolation, as in the paper."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.sequence.compressive_transformer import Compression, CompressiveTransformer
from zoo.sequence.transformer_xl import TransformerXL

SIZES = dict(
    vocabulary_size=17, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=24, initializer_stddev=0.3
)  # fmt: skip


def small(**overrides):
    config = dict(**SIZES, window_length=6, memory_length=6, compressed_memory_length=4, compression_rate=3)
    return CompressiveTransformer(**{**config, **overrides}).build_from_signature()


def tokens(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).integers(0, 17, shape), "int32")


def full_state(model, batch_size=2, seed=0):
    """A state whose every slot is filled with noise."""
    state = model.dummy_inputs("step", batch_size, seed)
    state["memory_count"][:] = model.memory_length
    state["compressed_count"][:] = model.compressed_memory_length
    return {name: tf.constant(state[name]) for name in model.state_specs()}


def windows(model, text, **kwargs):
    state = model.initial_state(text.shape[0])
    logits = []
    for start in range(0, text.shape[1], model.window_length):
        window_logits, state = model.forward(text[:, start : start + model.window_length], state, **kwargs)
        logits.append(window_logits.numpy())
    return np.concatenate(logits, axis=1), state


def test_degenerates_to_transformer_xl():
    """Rate 1 and the identity kernel: compressed slots are further memory slots."""
    model = small(compression_rate=1, compressed_memory_length=12, mask_empty=False)
    for compressor in model.compressors:
        compressor.stages[0].set_weights([np.eye(16)[None], np.zeros(16)])
    plain = TransformerXL(**SIZES, window_length=6, memory_length=18, mask_empty=False).build_from_signature()
    by_path = {w.path.removeprefix(f"{model.name}/"): w for w in model.weights}
    for weight in plain.weights:
        weight.assign(by_path[weight.path.removeprefix(f"{plain.name}/")])
    text = tokens(2, 36)
    state, logits = plain.initial_state(2), []
    for start in range(0, 36, 6):
        window_logits, state = plain.forward(text[:, start : start + 6], state)
        logits.append(window_logits.numpy())
    np.testing.assert_allclose(windows(model, text)[0], np.concatenate(logits, 1), atol=1e-5)


@pytest.mark.parametrize("memory_length", [6, 12, 9])
def test_queues_hold_the_expected_times(memory_length):
    """With states replaced by their time, mean pooling keeps exact averages of known times."""
    model = small(memory_length=memory_length, compression="mean_pool", compression_loss="none")
    state = model.initial_state(1)
    memory, compressed, counts = [0.0] * memory_length, [0.0] * 4, [0, 0]
    for step in range(10):
        times = np.arange(1 + 6 * step, 7 + 6 * step, dtype="float32")
        states = [tf.constant(np.tile(times[None, :, None], (1, 1, 16)))] * 2
        state = model._advance(state, states, [tf.zeros((1, 2, 6, 10 + memory_length))] * 2, training=False)
        evicted, memory = memory[:6], (memory + times.tolist())[-memory_length:]
        compressed = [*compressed, np.mean(evicted[:3]), np.mean(evicted[3:])][-4:]
        counts[1] = min(counts[1] + np.count_nonzero(evicted) // 3, 4)
        counts[0] = min(counts[0] + 6, memory_length)
        np.testing.assert_array_equal(state["memory"][0, :, :, 0], [memory, memory])
        np.testing.assert_array_equal(state["compressed_memory"][0, :, :, 0], [compressed, compressed])
        assert [int(state["memory_count"][0]), int(state["compressed_count"][0])] == counts


def gradients(model, text, which, state=None):
    with tf.GradientTape() as tape:
        logits, _ = model.forward(text, state or full_state(model), training=True)
        loss = tf.add_n(model.losses) if which == "auxiliary" else tf.reduce_sum(logits**2)
    model._clear_losses()
    return {
        w.path: g for w, g in zip(model.trainable_weights, tape.gradient(loss, model.trainable_weights), strict=True)
    }


@pytest.mark.parametrize("compression", ["conv1d", "dilated_conv"])
@pytest.mark.parametrize("loss", ["attention_reconstruction", "auto_encoding"])
def test_gradients_are_isolated(compression, loss):
    model = small(compression=compression, compression_loss=loss)
    auxiliary, task = (gradients(model, tokens(2, 6), which) for which in ("auxiliary", "task"))
    for path, gradient in auxiliary.items():
        assert (gradient is not None and np.abs(gradient).max() > 0) == ("compression_" in path), path
    for path in task:
        assert (task[path] is None) == ("compression_" in path), path


def test_bptt_trains_the_compression_from_the_second_window_on():
    model = small(compression_loss="bptt")
    one = gradients(model, tokens(2, 6), "task")
    two = gradients(model, tokens(2, 12), "task")
    for path in one:
        if "compression_" in path and "bias" not in path:
            assert one[path] is None
            assert np.abs(two[path]).max() > 0
    assert model.losses == []


def test_task_gradient_of_two_windows_stays_out_of_the_compression_otherwise():
    two = gradients(small(), tokens(2, 12), "task")
    assert all(gradient is None for path, gradient in two.items() if "compression_" in path)


def numpy_attention(layer, h, z):
    def heads(x, dense):
        return (x @ dense.kernel.numpy()).reshape(*x.shape[:2], 2, 8).transpose(0, 2, 1, 3)

    attention = layer.attention
    scores = heads(h, attention.query) @ heads(z, attention.key).transpose(0, 1, 3, 2) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ heads(z, attention.value)).transpose(0, 2, 1, 3).reshape(h.shape)


@pytest.mark.parametrize("norm", ["mse", "l2"])
def test_reconstruction_loss_equals_numpy(norm):
    model = small(reconstruction_norm=norm)
    state, text = full_state(model), tokens(2, 6)
    _, states, _ = model.read_window(text, state)
    model.forward(text, state, training=True)
    assert len(model.losses) == 2
    for index, loss in enumerate(model.losses):
        h, old = states[index].numpy(), state["memory"].numpy()[:, index, :6]
        kernel, bias = model.compressors[index].stages[0].get_weights()
        new = np.einsum("bgcd,cde->bge", old.reshape(2, 2, 3, 16), kernel) + bias
        layer = model.transformer_layers[index]
        error = numpy_attention(layer, h, old) - numpy_attention(layer, h, new)
        expected = np.mean(error**2) if norm == "mse" else np.sqrt((error**2).sum((1, 2))).mean()
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


def test_auto_encoding_loss_equals_numpy():
    model = small(compression_loss="auto_encoding")
    state = full_state(model)
    model.forward(tokens(2, 6), state, training=True)
    for index, loss in enumerate(model.losses):
        old, compressor = state["memory"].numpy()[:, index, :6], model.compressors[index]
        kernel, bias = compressor.stages[0].get_weights()
        new = np.einsum("bgcd,cde->bge", old.reshape(2, 2, 3, 16), kernel) + bias
        back, back_bias = compressor.inverse.get_weights()
        decoded = np.einsum("bge,cde->bgcd", new, back).reshape(2, 6, 16) + back_bias
        np.testing.assert_allclose(loss, np.mean((old - decoded) ** 2), rtol=1e-5)


def test_reconstruction_is_perfect_for_the_identity_and_for_constant_memories():
    identity = small(compression_rate=1)
    for compressor in identity.compressors:
        compressor.stages[0].set_weights([np.eye(16)[None], np.zeros(16)])
    identity.forward(tokens(2, 6), full_state(identity), training=True)
    np.testing.assert_allclose(identity.losses, 0, atol=1e-6)
    pooled = small(compression="mean_pool")
    state = full_state(pooled)
    state["memory"] = tf.broadcast_to(state["memory"][:, :, :1], state["memory"].shape)
    pooled.forward(tokens(2, 6), state, training=True)
    np.testing.assert_allclose(pooled.losses, 0, atol=1e-6)


def test_rows_without_filled_evictions_carry_no_loss():
    model = small()
    model.forward(tokens(2, 6), model.initial_state(2), training=True)
    np.testing.assert_array_equal(model.losses, [0, 0])


def test_auxiliary_loss_leaves_the_language_model_alone():
    """Twenty steps with the loss and without it, the compression frozen in both: the same weights, bit for bit."""
    results = []
    for loss in ("attention_reconstruction", "none"):
        keras.utils.set_random_seed(3)
        model = small(compression_loss=loss)
        for compressor in model.compressors:
            compressor.trainable = False
        model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        text = tokens(2, 6 * 21).numpy()
        for i in range(20):
            x = {"token_ids": text[:, 6 * i : 6 * i + 6], "stream_start": np.array([i == 0] * 2)}
            model.train_on_batch(x, text[:, 6 * i + 1 : 6 * i + 7])
        results.append(model.get_weights())
    assert len(results[0]) == len(results[1])
    for with_loss, without in zip(*results, strict=True):
        np.testing.assert_array_equal(with_loss, without)


def test_most_used_keeps_the_planted_slots_in_order():
    compression = Compression(3, "most_used")
    states = np.arange(12, dtype="float32")[None, :, None] * np.ones((2, 1, 4), "float32")
    usage = np.zeros((2, 12), "float32")
    for row, planted in enumerate([(9, 1, 4, 11), (0, 2, 10, 3)]):
        usage[row, list(planted)] = np.arange(1, 5)
        expected = np.sort(planted)
        np.testing.assert_array_equal(compression(states, usage=usage)[row, :, 0], expected)


def test_most_used_ranks_by_the_attention_of_the_current_window():
    model = small(compression="most_used", compression_loss="none", memory_length=9)
    state = full_state(model)
    _, _, probabilities = model.read_window(tokens(2, 6), state)
    usage = probabilities[0].numpy()[..., 4:13].mean((1, 2))
    chosen = np.sort(np.argsort(-usage[:, :6], axis=1)[:, :2], axis=1)
    _, new = model.forward(tokens(2, 6), state)
    expected = np.take_along_axis(state["memory"].numpy()[:, 0], chosen[..., None], 1)
    np.testing.assert_allclose(new["compressed_memory"][:, 0, -2:], expected)


@pytest.mark.parametrize(("length", "rate", "slots"), [(12, 2, 6), (12, 3, 4), (12, 4, 3), (10, 3, 3)])
def test_pooling_and_convolution_equal_numpy(length, rate, slots):
    x = np.random.default_rng(0).normal(size=(2, length, 5)).astype("f")
    groups = x[:, length % rate :].reshape(2, slots, rate, 5)
    np.testing.assert_allclose(Compression(rate, "max_pool")(x), groups.max(2))
    np.testing.assert_allclose(Compression(rate, "mean_pool")(x), groups.mean(2), rtol=1e-6, atol=1e-7)
    convolution = Compression(rate, "conv1d")
    convolved = convolution(x)
    kernel, bias = convolution.stages[0].get_weights()
    np.testing.assert_allclose(convolved, np.einsum("bgcd,cde->bge", groups, kernel) + bias, rtol=1e-4, atol=1e-5)
    assert Compression(rate, "dilated_conv")(x).shape == (2, slots, 5)


def test_range_of_one_layer():
    """A token rate * n_cm + n_m + n_s - 1 steps back still counts; one that both queues dropped does not."""
    model = small(num_layers=1)
    reach = 3 * 4 + 6 + 6 - 1
    text = tokens(1, 48).numpy()
    base = windows(model, tf.constant(text))[0][0, -1]
    for back, same in ((reach, False), (reach + 1, True)):
        changed = text.copy()
        changed[0, -1 - back] = (changed[0, -1 - back] + 1) % 17
        assert np.array_equal(windows(model, tf.constant(changed))[0][0, -1], base) == same


@pytest.mark.parametrize("position", ["slot", "time"])
@pytest.mark.parametrize("compression", ["conv1d", "max_pool", "mean_pool", "dilated_conv", "most_used"])
def test_reading_token_by_token_equals_reading_windows(compression, position):
    model = small(compression=compression, compression_loss="none", compressed_position=position, memory_length=9)
    text = tokens(2, 36)
    state, logits = model.initial_decoding_state(2), []
    for i in range(36):
        token_logits, state = model.decode_token(text[:, i : i + 1], state)
        logits.append(token_logits.numpy())
    np.testing.assert_allclose(np.concatenate(logits, 1), windows(model, text)[0], atol=2e-5)


def test_decode_signature_takes_rows_at_different_places():
    """Rows may stand at different places of their windows: each gives what it gives alone."""
    model = small()
    state = {name: value.numpy() for name, value in full_state(model).items()}
    rng = np.random.default_rng(1)
    window = rng.normal(size=(2, 2, 6, 16)).astype("f")
    both = model.run("decode", token_ids=[[3], [5]], **state, window=window, window_count=[2, 4])
    for row, (token, count) in enumerate([(3, 2), (5, 4)]):
        own = {name: value[row : row + 1] for name, value in state.items()}
        alone = model.run("decode", token_ids=[[token]], **own, window=window[row : row + 1], window_count=[count])
        np.testing.assert_allclose(both["logits"][row], alone["logits"][0], atol=1e-5)


def test_slot_distance_is_the_place_in_the_concatenation():
    slot, time = small()._key_times().numpy(), small(compressed_position="time")._key_times().numpy()
    np.testing.assert_array_equal(slot, np.arange(-10, 0))
    np.testing.assert_array_equal(time, [-18, -15, -12, -9, -6, -5, -4, -3, -2, -1])


def test_longer_memories_at_evaluation_need_no_new_weights():
    model = small()
    longer = small(compressed_memory_length=9, memory_length=12)
    longer.set_weights(model.get_weights())
    text = tokens(1, 12)
    np.testing.assert_allclose(windows(longer, text)[0], windows(model, text)[0], atol=1e-5)


def test_generation_continues_and_repeats():
    model = small()
    prompt = tokens(40).numpy()
    text = model.generate(prompt, max_new_tokens=20, seed=1)
    np.testing.assert_array_equal(model.generate(prompt, max_new_tokens=20, seed=1), text)
    assert not np.array_equal(model.generate(prompt, max_new_tokens=20, seed=2), text)
    greedy = model.generate(prompt, max_new_tokens=20, temperature=0.0)
    logits = model(np.concatenate([prompt, greedy])[None, :-1])
    np.testing.assert_array_equal(np.argmax(logits[0, 39:], -1), greedy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt=[]), "at least one token"),
        (dict(prompt=[17]), "integers from 0 to 16"),
        (dict(prompt=[0.5]), "integers from 0 to 16"),
        (dict(prompt=[1], temperature=-1), "temperature"),
        (dict(prompt=[1], top_k=18), "top_k"),
        (dict(prompt=[1], max_new_tokens=0), "max_new_tokens"),
        (dict(prompt="text"), "no tokenizer"),
    ],
)
def test_bad_prompts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small().generate(**arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (dict(memory_length=5), "memory_length"),
        (dict(compression="lstm"), "compression"),
        (dict(compression_loss="mse"), "compression_loss"),
        (dict(reconstruction_norm="l1"), "reconstruction_norm"),
        (dict(compressed_position="far"), "compressed_position"),
        (dict(compression_rate=7), "compression_rate"),
        (dict(same_length=True), "same_length"),
    ],
)
def test_bad_arguments_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        small(**override)


def test_state_of_another_preset_and_broken_windows_are_named():
    model, other = small(), small(num_layers=3)
    with pytest.raises(ValueError, match=r"`memory` must have shape .*Received: shape=\(2, 3, 6, 16\)"):
        model.run("step", **other.dummy_inputs("step"))
    with pytest.raises(ValueError, match="multiple of 6"):
        model.forward(tokens(1, 7), model.initial_state(1))
    with pytest.raises(ValueError, match="at most 6 along dimension 'time'"):
        model.run("predict", token_ids=tokens(1, 7))


def test_parameter_count_of_the_shipped_preset():
    model = zoo.get("compressive_transformer", weights=None)
    assert model.count_params() == zoo.info("compressive_transformer").preset().parameters


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["enwik8", "wt103"])
def test_parameter_counts_of_large_presets(preset):
    model = zoo.get("compressive_transformer", preset, weights=None)
    assert model.count_params() == zoo.info("compressive_transformer").preset(preset).parameters
