"""The base of encoder-decoders, on one that writes its source again, and the experiments' data."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from conformance.checks import MODEL_CHECKS, check_facts, check_parameter_count
from conformance.shipping_checks import EXPORT_CHECKS
from conformance.signature_checks import SIGNATURE_CHECKS
from conformance.subject import Subject
from keras import ops

from zoo import datasets
from zoo.experiments import translation
from zoo.model import Spec
from zoo.sequence.encoder_decoder import (
    END_ID,
    PADDING_ID,
    SPECIAL_CHARACTERS,
    START_ID,
    EncoderDecoder,
    LabelSmoothedCrossEntropy,
    shifted,
)
from zoo.sequence.tokenizer import character_tokenizer

ALPHABET = "abcdefgh"
SIZE = 3 + len(ALPHABET)


@keras.saving.register_keras_serializable(package="zoo_tests")
class Echo(EncoderDecoder):
    """Writes its source again: the memory holds it, and what the state counts says which token comes next."""

    def __init__(self, vocabulary_size=SIZE, source_vocabulary_size=SIZE, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size, self.source_vocabulary_size = vocabulary_size, source_vocabulary_size
        self.hidden_dim = source_vocabulary_size

    def encode(self, source_ids, training=None):
        return ops.one_hot(source_ids, self.hidden_dim), ops.not_equal(source_ids, PADDING_ID)

    def state_specs(self):
        return {"position": Spec(("batch",), "int32", "Tokens read.", 0, 100)}

    def decode(self, target_ids, memory, source_mask, state, training=None):
        length = ops.shape(target_ids)[1]
        places = ops.expand_dims(state["position"], 1) + ops.reshape(ops.arange(length, dtype="int32"), (1, -1))
        logits = 9 * ops.matmul(ops.one_hot(places, ops.shape(memory)[1]), memory)
        return logits, {"position": state["position"] + length}

    def get_config(self):
        sizes = dict(vocabulary_size=self.vocabulary_size, source_vocabulary_size=self.source_vocabulary_size)
        return {**super().get_config(), **sizes}


@pytest.fixture
def echo():
    model = Echo()
    model.set_assets({"tokenizer.json": character_tokenizer(SPECIAL_CHARACTERS + ALPHABET)})
    return model.build_from_signature()


# === Text ===


def test_special_tokens_are_the_first_three():
    assert (PADDING_ID, START_ID, END_ID) == (0, 1, 2)


def test_texts_end_with_a_two_and_are_padded(echo):
    np.testing.assert_array_equal(echo.encode_texts(["ab", "hgfe"]), [[3, 4, 2, 0, 0], [10, 9, 8, 7, 2]])
    assert echo.decode_texts(np.array([[3, 4, 2, 0, 5], [10, 9, 8, 7, 6]])) == ["ab", "hgfed"]


def test_targets_are_shifted_by_one():
    np.testing.assert_array_equal(shifted(np.array([[5, 6, 2, 0]])), [[1, 5, 6, 2]])


def test_generate_writes_until_every_target_has_ended(echo):
    assert echo.generate("feed") == "feed"
    assert echo.generate(["a", "headache", "cab"], max_new_tokens=30) == ["a", "headache", "cab"]
    assert echo.generate("headache", max_new_tokens=4) == "head"


def test_generate_takes_ids_and_pads_behind_the_end(echo):
    written = echo.generate(np.array([[5, 2, 0, 0], [6, 7, 8, 2]]), max_new_tokens=6)
    np.testing.assert_array_equal(written, [[5, 2, 0, 0, 0, 0], [6, 7, 8, 2, 0, 0]])


def test_generation_stops_early(echo):
    """A loop that went on to its last turn would take a source as long as that."""
    calls = []
    decode = echo.decode
    echo.decode = lambda *args, **kwargs: (
        calls.append(tf.py_function(lambda: turns.append(1), [], [])),
        decode(*args, **kwargs),
    )[1]
    turns = []
    echo.generate("bad", max_new_tokens=500)
    assert len(turns) == len("bad") + 1


def test_bad_sources_are_named(echo):
    for source, message in [
        ("", "must not be empty"),
        ([], "`texts` must be a sequence of at least one text"),
        (["ab", "x"], r"outside the vocabulary: \['x'\]"),
        (np.array([[3, SIZE]]), r"`source_ids` must be in \[0, 10\]"),
        (np.array([3, 4]), "`source_ids` must have shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            echo.generate(source)
    for tokens in (0, 1025):
        with pytest.raises(ValueError, match=f"`max_new_tokens` must be between 1 and 1024. Received: {tokens}"):
            echo.generate("ab", max_new_tokens=tokens)
    with pytest.raises(ValueError, match="no tokenizer"):
        Echo().generate("ab")


def test_tokenizers_that_do_not_fit_are_refused():
    tokenizer = character_tokenizer(SPECIAL_CHARACTERS + ALPHABET)
    for model, assets, message in [
        (Echo(SIZE + 1, SIZE + 1), {"tokenizer.json": tokenizer}, f"must have {SIZE + 1} tokens. Received: {SIZE}"),
        (Echo(SIZE, SIZE + 1), {"tokenizer.json": tokenizer}, "one vocabulary"),
        (Echo(), {"tokenizer.json": character_tokenizer("abcdefghijk")}, "must begin with the tokens"),
        (Echo(), {"vocabulary.txt": b""}, "Only `tokenizer.json`"),
        (Echo(), {"tokenizer.json": b"{"}, "Malformed tokenizer.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_assets(assets)
        assert not model.assets


def test_a_base_class_says_what_it_lacks():
    model = EncoderDecoder()
    for call in (lambda: model.encode(None), model.state_specs, lambda: model.decode(None, None, None, {})):
        with pytest.raises(NotImplementedError, match="EncoderDecoder defines no"):
            call()


# === Signatures ===


def test_step_continues_what_encode_gave(echo):
    source_ids = echo.encode_texts(["bad", "fad"])
    encoded = echo.run("encode", source_ids=source_ids)
    target_id, position = np.full(2, START_ID), np.zeros(2, "int32")
    written = []
    for _ in range(4):
        outputs = echo.run("step", target_id=target_id, position=position, **encoded)
        target_id, position = outputs["logits"].argmax(-1), outputs["position_out"]
        written.append(target_id)
    np.testing.assert_array_equal(np.transpose(written), source_ids)


def test_predict_is_the_call(echo):
    inputs = echo.dummy_inputs("predict")
    np.testing.assert_array_equal(echo.run("predict", **inputs)["logits"], echo(inputs))


# === Loss ===


def test_loss_is_the_smoothed_cross_entropy_of_what_is_no_padding():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 4, 5)).astype("f"), np.array([[3, 1, 2, 0], [4, 2, 0, 0]])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = []
    for row, place in zip(*np.nonzero(labels), strict=True):
        smooth = np.full(5, 0.1 / 5)
        smooth[labels[row, place]] += 0.9
        expected.append(-(smooth * log_probs[row, place]).sum())
    assert abs(float(LabelSmoothedCrossEntropy(0.1)(labels, logits)) - np.mean(expected)) < 1e-6
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    assert abs(float(LabelSmoothedCrossEntropy(0.0)(labels, logits)) - float(plain(labels, logits))) < 1e-6
    assert float(LabelSmoothedCrossEntropy()(np.zeros((1, 3)), logits[:1, :3])) == 0


def test_loss_round_trips_and_refuses_what_is_no_share():
    loss = LabelSmoothedCrossEntropy(0.2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.label_smoothing == 0.2
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 1\). Received: 1.0"):
        LabelSmoothedCrossEntropy(1.0)


# === Held-out data ===


@pytest.fixture
def pairs(monkeypatch):
    """Stands in for the names: targets are sources backwards."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(ALPHABET), rng.integers(2, 9))) for _ in range(200)]
    data = {"source": np.array(texts), "target": np.array([text[::-1] for text in texts])}
    monkeypatch.setattr(datasets, "load_arrays", lambda name, split: data)
    translation.tokenizer_json.cache_clear()
    yield data
    translation.tokenizer_json.cache_clear()


def test_bits_of_a_model_that_knows_nothing_and_of_one_that_errs(echo, pairs):
    def uniform(name, inputs):
        return {"logits": np.zeros((*inputs["target_ids"].shape, SIZE), "float32")}

    assert abs(echo.bits_per_token(uniform, dataset="any") - np.log2(SIZE)) < 1e-6
    pairs["target"] = pairs["source"]
    assert echo.bits_per_token(lambda name, inputs: echo.run(name, **inputs), dataset="any") < 0.01


def test_evaluation_counts_edits(echo, pairs):
    pairs["target"] = pairs["source"]
    assert translation.evaluate(echo, "any", "test")["exact_match"] == 1
    pairs["target"] = np.array([text + "a" for text in pairs["source"]])
    results = translation.evaluate(echo, "any", "test")
    assert results["exact_match"] == 0
    assert abs(results["character_error_rate"] - 200 / sum(map(len, pairs["target"]))) < 1e-12


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edit_distance(first, second, distance):
    assert translation.edit_distance(first, second) == translation.edit_distance(second, first) == distance


def test_batches_hold_every_pair_once_with_its_shifted_target(echo, pairs):
    data = translation.pair_data(16)(echo, "any", 0)
    found = []
    for inputs, labels in data.validation.as_numpy_iterator():
        np.testing.assert_array_equal(inputs["target_ids"], shifted(labels))
        found += zip(echo.decode_texts(inputs["source_ids"]), echo.decode_texts(labels), strict=True)
    assert sorted(found) == sorted(zip(pairs["source"], pairs["target"], strict=True))
    batches = [next(translation.pair_data(16)(echo, "any", seed).train.as_numpy_iterator())[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(batches[0], batches[1])
    assert not np.array_equal(batches[0], batches[2])


# === The conformance suite, for the translators, which are no method's default preset ===

# Those of the catalog's facts, which are of all presets, and of a count, which differs with the vocabulary of `pairs`
OF_ITS_OWN = (check_facts, check_parameter_count)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lightweight_conv", "dynamic_conv"])
@pytest.mark.parametrize(
    "check",
    [check for check in (*MODEL_CHECKS, *SIGNATURE_CHECKS, *EXPORT_CHECKS) if check not in OF_ITS_OWN],
    ids=lambda check: check.__name__,
)
def test_conformance_of_translators(method, check, pairs, tmp_path):
    subject = Subject.of_method(method, tmp_path, "iso_names")
    # The shipped weights know other characters than `pairs` has
    subject.preset = dataclasses.replace(subject.preset, weights=None)
    check(subject)
