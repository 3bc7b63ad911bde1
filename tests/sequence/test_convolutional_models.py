"""Models of lightweight and dynamic convolutions: streaming, reach, padding, sizes."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import zoo
from zoo.experiments import convolutional_models as experiments
from zoo.sequence.convolutional_models import ConvolutionalLayer, layer_kernel_sizes
from zoo.sequence.dynamic_conv import DynamicConv, DynamicConvEncoderDecoder
from zoo.sequence.encoder_decoder import PADDING_ID
from zoo.sequence.lightweight_conv import LightweightConv, LightweightConvEncoderDecoder

METHODS = ("lightweight_conv", "dynamic_conv")
LANGUAGE_MODELS = (LightweightConv, DynamicConv)
TRANSLATORS = (LightweightConvEncoderDecoder, DynamicConvEncoderDecoder)
SHARED = dict(vocabulary_size=17, hidden_dim=16, num_heads=2, intermediate_dim=24, kernel_sizes=(3, 5))
REACH = 1 + 2 + 4 + 4  # one and the taps before the last one, of three layers


def seeded(model):
    """Gives every weight a value that shows: biases and gains begin at 0 and 1."""
    model.build_from_signature()
    rng = np.random.default_rng(3)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(weight + 0.2 * rng.standard_normal(weight.shape))
    return model


def language_model(model_class, **overrides):
    return seeded(model_class(**{**SHARED, "num_layers": 3, "window_length": 4, **overrides}))


def translator(model_class, **overrides):
    return seeded(model_class(**{**SHARED, "num_encoder_layers": 2, "num_decoder_layers": 3, **overrides}))


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, 17, shape).astype("int32")


def changed_at(token_ids, place):
    changed = token_ids.copy()
    changed[:, place] = 3 + (changed[:, place] - 2) % 14
    return changed


# === Language model ===


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
@pytest.mark.parametrize("length", [1, 5, 12])
def test_windows_read_in_sequence_equal_one_long_read(model_class, length):
    model, token_ids = language_model(model_class), tokens(2, 24)
    state, logits = model.initial_state(2), []
    for start in range(0, 24, length):
        window, state = model.forward(token_ids[:, start : start + length], state)
        logits.append(window)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), model(token_ids), atol=1e-5)
    assert state["history"].shape == (2, REACH - 1, 16)


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_reach_is_one_and_the_taps_before_the_last(model_class):
    model, token_ids = language_model(model_class), tokens(1, 30)
    last = model(token_ids).numpy()[0, -1]
    for back, same in ((REACH - 1, False), (REACH, True)):
        assert np.array_equal(model(changed_at(token_ids, 29 - back))[0, -1], last) == same


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_causality_is_exact(model_class):
    model, token_ids = language_model(model_class), tokens(1, 20)
    before = model(token_ids).numpy()
    for place in (0, 6, 13, 19):
        after = model(changed_at(token_ids, place)).numpy()
        assert np.array_equal(after[:, :place], before[:, :place])
        assert not np.array_equal(after[:, place], before[:, place])


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_parts_are_normalised_before_and_the_last_not_after(model_class):
    """With parts that give nothing the embeddings, scaled by the root of the width, reach the output as they are."""
    model, token_ids = language_model(model_class), tokens(2, 9)
    for layer in model.convolutional_layers:
        for outer in (layer.mixer.outer, layer.feed_forward.outer):
            outer.kernel.assign(0 * outer.kernel)
            outer.bias.assign(0 * outer.bias)
    expected = model.logits_layer(model.embedding(token_ids) * 4.0)
    np.testing.assert_allclose(model(token_ids), expected, atol=1e-6)


@pytest.mark.parametrize("model_class", LANGUAGE_MODELS)
def test_generated_tokens_are_those_of_repeated_reading(model_class):
    model, token_ids = language_model(model_class), tokens(1, 9)
    expected = token_ids[0].tolist()
    for _ in range(12):
        expected.append(int(np.argmax(model(np.array([expected], "int32"))[0, -1])))
    np.testing.assert_array_equal(model.generate(token_ids[0], 12, temperature=0), expected[9:])


def test_adaptive_vocabularies():
    model = language_model(DynamicConv, vocabulary_size=50, cutoffs=(10, 30), cutoff_divisor=2)
    probabilities = np.exp(model(tokens(2, 5))).sum(-1)
    np.testing.assert_allclose(probabilities, 1, atol=1e-5)


def test_the_last_kernel_size_is_that_of_all_further_layers():
    assert layer_kernel_sizes((3, 7, 15, 31), 7) == [3, 7, 15, 31, 31, 31, 31]
    assert layer_kernel_sizes((3, 7, 15, 31), 2) == [3, 7]
    paper = zoo.info("dynamic_conv").preset("wmt_en_de_big").config
    assert "kernel_sizes" not in paper and paper["num_encoder_layers"] == 7 and paper["num_decoder_layers"] == 6


# === Encoder-decoder ===


@pytest.mark.parametrize("model_class", TRANSLATORS)
def test_padding_of_a_source_changes_nothing(model_class):
    model, source_ids = translator(model_class), tokens(2, 9)
    memory, mask = model.encode(source_ids)
    longer, longer_mask = model.encode(np.pad(source_ids, ((0, 0), (0, 6))))
    np.testing.assert_allclose(longer[:, :9], memory, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(longer_mask, np.pad(mask, ((0, 0), (0, 6))))
    target_ids = tokens(2, 7, seed=1)
    inputs = {"source_ids": source_ids, "target_ids": target_ids}
    padded = {"source_ids": np.pad(source_ids, ((0, 0), (0, 6))), "target_ids": target_ids}
    np.testing.assert_allclose(model(padded), model(inputs), atol=1e-5)


@pytest.mark.parametrize("model_class", TRANSLATORS)
def test_what_follows_padding_is_not_mixed_in(model_class):
    """The mask stands before the convolution: without it the projections of padding would count."""
    model, source_ids = translator(model_class), np.pad(tokens(1, 5), ((0, 0), (0, 4)))
    memory = model.encode(source_ids)[0].numpy()
    table = model.source_embedding.embeddings.numpy()
    table[PADDING_ID] += 5
    model.source_embedding.embeddings.assign(table)
    np.testing.assert_allclose(model.encode(source_ids)[0][:, :5], memory[:, :5], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_class", TRANSLATORS)
def test_token_by_token_equals_one_pass(model_class):
    model, source_ids, target_ids = translator(model_class), tokens(2, 6), tokens(2, 14, seed=1)
    expected = model({"source_ids": source_ids, "target_ids": target_ids})
    memory, mask = model.encode(source_ids)
    state = {name: value.numpy() for name, value in model.initial_state(2).items()}
    for place in range(14):
        inputs = {"target_id": target_ids[:, place], "memory": memory, "source_mask": mask, **state}
        outputs = model.run("step", **inputs)
        state = {name: outputs[f"{name}_out"] for name in state}
        np.testing.assert_allclose(outputs["logits"], expected[:, place], atol=1e-5)
    assert state["history"].shape == (2, REACH - 1, 16)
    np.testing.assert_array_equal(state["position"], [14, 14])


@pytest.mark.parametrize("model_class", TRANSLATORS)
def test_decoder_is_causal_and_reaches_as_far_as_its_taps(model_class):
    model, source_ids, target_ids = translator(model_class), tokens(1, 6), tokens(1, 20, seed=1)
    before = model({"source_ids": source_ids, "target_ids": target_ids}).numpy()[0]
    for place in (0, 5, 9, 19):
        after = model({"source_ids": source_ids, "target_ids": changed_at(target_ids, place)}).numpy()[0]
        same = (after == before).all(-1)
        assert same[:place].all() and same[place + REACH :].all()
        assert not same[place] and (place + REACH > 20 or not same[place + REACH - 1])


def test_every_target_token_sees_the_whole_source():
    model, source_ids, target_ids = translator(DynamicConvEncoderDecoder), tokens(1, 30), tokens(1, 4, seed=1)
    before = model({"source_ids": source_ids, "target_ids": target_ids}).numpy()
    for place in (0, 15, 29):
        after = model({"source_ids": changed_at(source_ids, place), "target_ids": target_ids}).numpy()
        assert np.abs(after - before).max(-1).min() > 1e-6


def test_a_source_of_padding_alone_gives_numbers():
    model = translator(LightweightConvEncoderDecoder)
    assert np.isfinite(model({"source_ids": np.zeros((1, 4), "int32"), "target_ids": tokens(1, 3)})).all()


def test_parts_are_normalised_after():
    model = translator(DynamicConvEncoderDecoder)
    layer = model.encoder_layers[-1]
    layer.feed_forward_norm.gamma.assign(np.ones(16))
    layer.feed_forward_norm.beta.assign(np.zeros(16))
    memory = model.encode(tokens(2, 5))[0].numpy()
    np.testing.assert_allclose(memory.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(memory.std(-1), 1, atol=1e-3)


def test_embeddings_are_scaled_shared_and_empty_at_padding():
    model = LightweightConvEncoderDecoder(
        **{**SHARED, "vocabulary_size": 500, "hidden_dim": 64}, num_encoder_layers=1, num_decoder_layers=1
    ).build_from_signature()
    table = model.target_embedding.embeddings.numpy()
    assert model.source_embedding is model.target_embedding
    assert not table[PADDING_ID].any() and table[1:].any(1).all()
    assert abs(table[1:].std() / 64**-0.5 - 1) < 0.02
    embedded = model._embed(model.source_embedding, np.array([[7]]), np.array([[0]]), False).numpy()[0, 0]
    np.testing.assert_allclose(embedded, 8 * table[7] + np.repeat([0, 1], 32), atol=1e-6)


def test_vocabularies_of_their_own_have_three_tables():
    shared, own = (translator(LightweightConvEncoderDecoder, source_vocabulary_size=size) for size in (None, 11))
    assert own.count_params() - shared.count_params() == (11 + 17) * 16
    assert own.signatures()["predict"].inputs["source_ids"].maximum == 10
    assert own.get_config()["source_vocabulary_size"] == 11


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "weight_dropout", "input_dropout"])
def test_every_rate_drops_in_training_alone(rate):
    model = translator(DynamicConvEncoderDecoder, **{rate: 0.3})
    plain = translator(DynamicConvEncoderDecoder)
    plain.set_weights([weight for weight in model.get_weights() if weight.dtype == "float32"][: len(plain.weights)])
    inputs = {"source_ids": tokens(1, 6), "target_ids": tokens(1, 5)}
    np.testing.assert_array_equal(model(inputs, training=False), model(inputs, training=False))
    assert np.abs(model(inputs, training=True) - model(inputs, training=True)).max() > 1e-3


# === Sizes ===


@pytest.mark.parametrize("preset", ["austen", "iso_names"])
@pytest.mark.parametrize("method", METHODS)
def test_parameter_counts(method, preset):
    model = zoo.get(method, preset, weights=None)
    assert model.count_params() == zoo.info(method).preset(preset).parameters


PAPER = {
    ("lightweight_conv", "iwslt_de_en"): 38_139_436,
    ("lightweight_conv", "wmt_en_de_big"): 208_867_504,
    ("lightweight_conv", "wmt_en_de_big_no_glu"): 195_222_704,
    ("dynamic_conv", "iwslt_de_en"): 38_685_184,
    ("dynamic_conv", "wmt_en_de_big"): 213_237_760,
    ("dynamic_conv", "wmt_en_de_big_no_glu"): 199_592_960,
}


def test_recorded_counts_are_the_papers():
    """213M and 199M are in the paper's table; the others follow from the definition."""
    found = {(method, preset): zoo.info(method).preset(preset).parameters for method, preset in PAPER}
    assert found == PAPER


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "preset",
    ["iwslt_de_en", "wmt_base", "wmt_en_de_big", "wmt_en_de_big_no_glu", "wmt_en_fr_big", "wmt_zh_en_big", "lm_gbw"],
)
def test_parameter_counts_of_large_presets(method, preset):
    test_parameter_counts(method, preset)


# === The experiments' mixers ===


@pytest.mark.parametrize("arm", experiments.MIXERS)
def test_every_mixer_continues_a_sequence_and_ignores_padding(arm):
    model = seeded(
        experiments.with_mixer(DynamicConvEncoderDecoder, arm)(**SHARED, num_encoder_layers=2, num_decoder_layers=3)
    )
    source_ids, target_ids = tokens(2, 6), tokens(2, 8, seed=1)
    expected = model({"source_ids": source_ids, "target_ids": target_ids})
    memory, mask = model.encode(np.pad(source_ids, ((0, 0), (0, 5))))
    first, state = model.decode(target_ids[:, :3], memory, mask, model.initial_state(2))
    second, _ = model.decode(target_ids[:, 3:], memory, mask, state)
    np.testing.assert_allclose(ops.concatenate([first, second], axis=1), expected, atol=1e-5)


def test_equal_size_widens_the_feed_forward_networks():
    def build(width):
        return DynamicConv(**{**SHARED, "intermediate_dim": width}, num_layers=2).build_from_signature()

    assert abs(experiments.equal_size(build, 24, 9000).count_params() - 9000) <= 2 * 33 / 2


# === Bad input ===


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (dict(num_layers=0), "`num_layers` must be positive. Received: 0"),
        (dict(window_length=0), "`window_length` must be positive"),
        (dict(vocabulary_size=0), "`vocabulary_size` must be positive"),
        (dict(num_heads=3), "`num_heads` must be a divisor of hidden_dim=16. Received: 3"),
        (dict(kernel_sizes=()), "`kernel_sizes` must be of one size or more"),
        (dict(kernel_sizes=(3, 1)), r"`kernel_sizes` must be .* at least 2. Received: \(3, 1\)"),
    ],
)
def test_bad_arguments_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        language_model(DynamicConv, **override)


def test_bad_arguments_of_translators_are_named():
    for override in (dict(num_encoder_layers=0), dict(num_decoder_layers=0), dict(hidden_dim=17)):
        (name,) = override
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            translator(DynamicConvEncoderDecoder, **override)


def test_a_state_of_another_model_is_refused():
    model = language_model(LightweightConv)
    good = model.dummy_inputs("step")
    with pytest.raises(ValueError, match=r"`history` must have shape .* Received: shape=\(2, 9, 16\)"):
        model.run("step", **{**good, "history": good["history"][:, :9]})


def test_layer_round_trips():
    layer = translator(DynamicConvEncoderDecoder).decoder_layers[0]
    again = ConvolutionalLayer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert tf.nest.map_structure(type, again.mixer.get_config()) == tf.nest.map_structure(
        type, layer.mixer.get_config()
    )
