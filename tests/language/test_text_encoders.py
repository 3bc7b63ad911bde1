"""BERT and ALBERT: sizes, sharing, heads, losses, text, and what they refuse. Hidden states are held against PyTorch's in
`test_conversion.py`."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import docstrings
from zoo.experiments import albert as experiment
from zoo.experiments import language_encoders
from zoo.experiments.training import signature_runner
from zoo.language.albert import Albert
from zoo.language.bert import Bert
from zoo.language.heads import HEADS, cross_entropy
from zoo.language.text_encoder import TextEncoder
from zoo.layers.text_embedding import TextEmbedding
from zoo.layers.transformer_encoder import TransformerEncoderLayer
from zoo.ops.activations import gelu_tanh
from zoo.sequence.tokenizer import load_tokenizer
from zoo.training.optimizers import decay_kernels_only
from zoo.training.schedules import WarmupLinearDecay

SIZES = dict(
    vocabulary_size=40, num_layers=3, hidden_dim=16, num_heads=4, intermediate_dim=24, max_sequence_length=12, dropout=0.0,
    attention_dropout=0.0, initializer_stddev=0.2, sequence_length=10, mask_selection_length=4,
)  # fmt: skip
CLASSES = {"bert": Bert, "albert": functools.partial(Albert, embedding_dim=8)}


def build(method="albert", **changes):
    keras.utils.set_random_seed(3)
    return CLASSES[method](**{**SIZES, **changes}).build_from_signature()


def random_inputs(batch=3, length=10, rng=0):
    rng = np.random.default_rng(rng)
    lengths = rng.integers(4, length + 1, (batch, 1))
    return {
        "token_ids": rng.integers(0, 40, (batch, length)).astype("int32"),
        "segment_ids": np.tile(np.arange(length) >= 5, (batch, 1)).astype("int32"),
        "padding_mask": (np.arange(length) < lengths).astype("int32"),
    }


def pretraining_batch(batch=3, rng=0):
    inputs, rng = random_inputs(batch, rng=rng), np.random.default_rng(rng)
    inputs["mask_positions"] = rng.integers(0, 10, (batch, 4)).astype("int32")
    targets = {
        "mask_ids": rng.integers(0, 40, (batch, 4)).astype("int32"),
        "mask_weights": (rng.random((batch, 4)) < 0.7).astype("float32"),
        "sentence_label": rng.integers(0, 2, batch).astype("int32"),
    }
    return inputs, targets


@pytest.fixture(params=["bert", "albert"])
def method(request):
    return request.param


# === Sizes ===


def count(name, config):
    """Counts a model's parameters without making their values."""
    with keras.StatelessScope(initialize_variables=False):
        model = zoo.info(name).load_class()(**config).build_from_signature()
        found = model.count_params()
    # Else the next variables of anybody would come with the values of these
    keras.utils.clear_session()
    return found


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_presets_have_the_published_sizes(name):
    for preset in zoo.info(name).presets.values():
        assert count(name, preset.config) == preset.parameters, preset.name


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({"share": "attention"}, 63_647_232),
        ({"share": "ffn"}, 37_686_528),
        ({"share": "none"}, 89_650_176),
        ({"embedding_dim": 64}, 9_681_408),
        ({"embedding_dim": 256}, 15_687_936),
        ({"embedding_dim": 768}, 31_114_752),
        ({"head": "masked_lm", "sentence_loss": "none"}, 11_683_584 + 128_688),
        ({"head": "masked_lm"}, 11_683_584 + 128_688 + 1538),
    ],
    ids=str,
)
def test_sharing_widths_and_heads_of_albert_base_have_the_sizes_of_the_paper(changes, parameters):
    assert count("albert", {**zoo.info("albert").preset("base").config, **changes}) == parameters


@pytest.mark.slow
def test_the_largest_preset_is_really_built():
    assert zoo.get("albert", "xxlarge", weights=None).count_params() == 222_595_584


@pytest.mark.parametrize("preset", zoo.info("albert").presets)
def test_later_versions_of_albert_have_no_dropout(preset):
    config = zoo.info("albert").preset(preset).config
    kept = 0.1 if preset in ("base", "large", "xlarge") else 0.0
    assert [config.get(name, 0.0) for name in ("dropout", "attention_dropout")] == [kept, kept]


@pytest.mark.parametrize("head", [None, *HEADS])
def test_weights_start_as_published(method, head):
    changes = {"hidden_dim": 64, "initializer_stddev": 0.02, "num_classes": 20, "head": head}
    model = CLASSES[method](**{**SIZES, **changes}).build_from_signature()
    for variable in model.weights:
        value = variable.numpy()
        if variable.name in ("kernel", "embeddings"):
            # Deviation of a normal cut at two deviations: 0.88 of its own
            error = 4 * 0.0176 / np.sqrt(2 * value.size)
            assert abs(value.std() - 0.0176) < error and np.abs(value).max() <= 0.04
        else:
            assert (value == (1.0 if variable.name == "gamma" else 0.0)).all()


# === Sharing ===


@pytest.mark.parametrize(("share", "grows"), [("all", 0), ("attention", 6), ("ffn", 10), ("none", 16)])
def test_shared_variables_do_not_depend_on_depth(share, grows):
    counts = [len(build(share=share, num_layers=layers).trainable_variables) for layers in (2, 3, 5)]
    assert np.diff(counts).tolist() == [grows, 2 * grows]


def copies(shared, **changes):
    """An unshared model whose layers all start as those of a shared one."""
    model = build(**{"share": "none", **changes})
    for name in ("embedding", "embedding_map", "pooler"):
        getattr(model.backbone, name).set_weights(getattr(shared.backbone, name).get_weights())
    for step, layer in enumerate(model.backbone.encoder_layers):
        own = shared.backbone.encoder_layers[shared.backbone.order[step]]
        layer.set_weights(own.get_weights())
    return model


def gradients(model, variables):
    inputs = {key: tf.constant(value) for key, value in random_inputs().items()}
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(model(inputs)["sequence_output"]))
    return [tf.convert_to_tensor(grad).numpy() for grad in tape.gradient(loss, [v.value for v in variables])]


@pytest.mark.parametrize("share", ["all", "attention", "ffn"])
def test_gradients_of_shared_weights_are_the_sums_of_their_copies(share):
    # In float64: elements near zero are differences of large ones
    shared = build(share=share, dtype="float64")
    apart = copies(build(share="all", dtype="float64"), dtype="float64")
    first = shared.backbone.encoder_layers[0]
    for index, layer in enumerate(shared.backbone.encoder_layers):
        for part in ("attention", "attention_norm", "feed_forward", "feed_forward_norm"):
            getattr(layer, part).set_weights(getattr(apart.backbone.encoder_layers[index], part).get_weights())
    for name in ("embedding", "embedding_map", "pooler"):
        getattr(shared.backbone, name).set_weights(getattr(apart.backbone, name).get_weights())
    wanted = {
        "all": (
            lambda layer: (layer.attention.query.kernel, layer.feed_forward.inner.kernel, layer.attention_norm.gamma)
        ),
        "attention": (lambda layer: (layer.attention.query.kernel, layer.attention_norm.gamma)),
        "ffn": (lambda layer: (layer.feed_forward.inner.kernel, layer.feed_forward_norm.gamma)),
    }[share]
    together = gradients(shared, wanted(first))
    each = [gradients(apart, wanted(layer)) for layer in apart.backbone.encoder_layers]
    for index, gradient in enumerate(together):
        total = sum(grads[index] for grads in each)
        np.testing.assert_allclose(gradient, total, rtol=1e-4)
        assert np.abs(gradient - each[0][index]).max() > 1e-2 * np.abs(gradient).max()


def test_as_many_groups_as_layers_is_no_sharing():
    grouped = build(num_groups=3)
    apart = copies(grouped)
    assert len(grouped.backbone.encoder_layers) == 3
    np.testing.assert_allclose(
        grouped(random_inputs())["sequence_output"], apart(random_inputs())["sequence_output"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        (dict(num_layers=5, num_groups=2), [0, 0, 0, 1, 1]),
        (dict(num_layers=3, num_inner_layers=2), [0, 1, 0, 1, 0, 1]),
        (dict(num_layers=4, num_groups=2, num_inner_layers=2), [0, 1, 0, 1, 2, 3, 2, 3]),
        (dict(num_layers=2, num_inner_layers=2, share="attention"), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_groups_and_inner_layers_are_applied_in_order(changes, order):
    backbone = build(**changes).backbone
    assert backbone.order == order
    if changes.get("share") == "attention":
        first, second, third, fourth = backbone.encoder_layers
        assert first.attention is third.attention and second.attention is fourth.attention
        assert first.attention is not second.attention and first.feed_forward is not third.feed_forward


def test_parts_are_shared_within_groups_only():
    layers = build(num_layers=4, num_groups=2, share="ffn").backbone.encoder_layers
    assert layers[0].feed_forward is layers[1].feed_forward and layers[2].feed_forward is layers[3].feed_forward
    assert layers[0].feed_forward is not layers[2].feed_forward and layers[0].attention is not layers[1].attention


def test_one_layer_is_a_layer_of_bert_on_the_mapped_embedding():
    model, inputs = build(num_layers=1), random_inputs()
    layer = TransformerEncoderLayer(4, 24, activation=gelu_tanh)
    layer.build((None, None, 16))
    layer.set_weights(model.backbone.encoder_layers[0].get_weights())
    embedding = TextEmbedding(40, 8, 12)
    embedding.build()
    embedding.set_weights(model.backbone.embedding.get_weights())
    kernel, bias = (variable.numpy() for variable in model.backbone.embedding_map.weights)
    mapped = embedding(inputs["token_ids"], inputs["segment_ids"]).numpy() @ kernel + bias
    expected = layer(mapped, inputs["padding_mask"][:, None, None] > 0)
    np.testing.assert_allclose(model(inputs)["sequence_output"], expected, atol=1e-6)


def test_shared_models_are_saved_and_loaded(tmp_path):
    for share in ("all", "attention"):
        model = build(share=share, num_layers=2, num_inner_layers=2)
        model.save_to_preset(tmp_path / share)
        again = zoo.get("albert", weights=tmp_path / share)
        np.testing.assert_array_equal(model(random_inputs())["pooled_output"], again(random_inputs())["pooled_output"])


# === Forward pass ===


def test_padding_does_not_matter(method):
    model, inputs = build(method), random_inputs()
    more = {key: np.pad(value, ((0, 0), (0, 2))) for key, value in inputs.items()}
    more["token_ids"][:, 10:] = 7
    before, after = model(inputs), model(more)
    real = inputs["padding_mask"] == 1
    np.testing.assert_allclose(after["sequence_output"][:, :10][real], before["sequence_output"][real], atol=1e-5)
    np.testing.assert_allclose(after["pooled_output"], before["pooled_output"], atol=1e-5)


def test_a_batch_of_only_padding_is_finite_and_its_loss_is_zero(method):
    model = build(method, head="masked_lm", sentence_loss="none")
    inputs, targets = pretraining_batch()
    inputs["padding_mask"][:] = 0
    targets["mask_weights"][:] = 0
    outputs = model(inputs)
    assert np.isfinite(outputs["masked_lm_logits"]).all()
    assert float(model.compute_loss(inputs, targets, outputs)) == 0
    model.compile("sgd")
    model.train_on_batch(inputs, targets)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_masks_and_segments_may_be_left_out(method):
    model, inputs = build(method), random_inputs()
    alone = model({"token_ids": inputs["token_ids"]})
    full = {
        **inputs,
        "padding_mask": np.ones_like(inputs["token_ids"]),
        "segment_ids": np.zeros_like(inputs["token_ids"]),
    }
    np.testing.assert_array_equal(alone["sequence_output"], model(full)["sequence_output"])


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "head_dropout"])
def test_dropout_is_for_training(method, kind):
    model, inputs = build(method, head="classification", **{"head_dropout": 0.0, kind: 0.5}), random_inputs()
    before = model(inputs).numpy()
    assert np.abs(model(inputs, training=True) - before).max() > 1e-2
    np.testing.assert_array_equal(model(inputs), before)
    assert build(method, head="classification").head_dropout == 0.1
    none = build(method, head="classification", head_dropout=0.0)
    np.testing.assert_array_equal(none(inputs, training=True), none(inputs))


# === Heads ===


def test_masked_tokens_are_read_where_they_are_and_by_the_table(method):
    model = build(method, head="masked_lm")
    inputs, _ = pretraining_batch()
    chosen = model(inputs)["masked_lm_logits"].numpy()
    every = model({key: value for key, value in inputs.items() if key != "mask_positions"})["masked_lm_logits"].numpy()
    picked = np.take_along_axis(every, inputs["mask_positions"][..., None], axis=1)
    np.testing.assert_allclose(chosen, picked, atol=1e-5)
    table = model.backbone.embedding.token.embeddings
    assert table.shape == (40, 8 if method == "albert" else 16)
    before = every
    table.assign(2 * table)
    head = model.head_layer
    hidden = head.norm(head.transform(model.backbone(inputs)["sequence_output"])).numpy()
    np.testing.assert_allclose(
        model({**inputs, "mask_positions": np.tile(np.arange(10, dtype="int32"), (3, 1))})["masked_lm_logits"],
        hidden @ table.numpy().T + head.bias.numpy(),
        atol=1e-4,
    )
    assert np.abs(before - hidden @ table.numpy().T).max() > 0.1


def test_pretraining_loss_is_masked_tokens_plus_sentences(method):
    model = build(method, head="masked_lm")
    inputs, targets = pretraining_batch(6)
    targets["sentence_label"][0] = -1
    outputs = model(inputs)
    log_probs = tf.nn.log_softmax(outputs["masked_lm_logits"]).numpy()
    nll = -np.take_along_axis(log_probs, targets["mask_ids"][..., None], axis=-1)[..., 0]
    weights = targets["mask_weights"]
    sentences = tf.nn.log_softmax(outputs["sentence_logits"]).numpy()[np.arange(6), targets["sentence_label"]]
    expected = (weights * nll).sum() / (weights.sum() + 1e-5) - sentences[1:].mean()
    np.testing.assert_allclose(model.compute_loss(inputs, targets, outputs), expected, rtol=1e-5)
    weighted = model.compute_loss(inputs, targets, outputs, np.array([1, 1, 1, 0, 0, 0]))
    half = {key: value[:3] for key, value in outputs.items()}
    np.testing.assert_allclose(
        weighted, model.compute_loss(inputs, {key: value[:3] for key, value in targets.items()}, half), rtol=1e-5
    )


def test_cross_entropy_leaves_negative_labels_out():
    logits = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("float32")
    labels = np.array([[1, -100, 2], [-1, 0, 3]])
    log_probs = tf.nn.log_softmax(logits).numpy()
    kept = [log_probs[0, 0, 1], log_probs[0, 2, 2], log_probs[1, 1, 0], log_probs[1, 2, 3]]
    np.testing.assert_allclose(cross_entropy(tf.constant(labels), tf.constant(logits)), -np.mean(kept), rtol=1e-5)
    weighted = cross_entropy(tf.constant(labels), tf.constant(logits), [1.0, 3.0])
    np.testing.assert_allclose(weighted, -np.dot(kept, [1, 1, 3, 3]) / 8, rtol=1e-5)
    assert float(cross_entropy(tf.constant([[-1]]), tf.constant([[[0.0, 1.0]]]))) == 0


@pytest.mark.parametrize(
    ("method", "head", "targets", "shapes"),
    [
        ("bert", "classification", lambda rng: rng.integers(0, 3, 8), {"logits": (8, 3)}),
        ("albert", "token_classification", lambda rng: rng.integers(-1, 3, (8, 10)), {"logits": (8, 10, 3)}),
        (
            "albert",
            "question_answering",
            lambda rng: {f"{end}_positions": rng.integers(0, 4, 8) for end in ("start", "end")},
            {"start_logits": (8, 10), "end_logits": (8, 10)},
        ),
    ],
    ids=["classification", "token_classification", "question_answering"],
)
def test_heads_learn_a_batch_by_heart(method, head, targets, shapes):
    model = build(method, head=head, num_layers=1, num_classes=3, head_dropout=0.0)
    inputs, rng = random_inputs(8), np.random.default_rng(1)
    labels = targets(rng)
    batch = tf.data.Dataset.from_tensors((inputs, labels)).repeat()
    metrics = ["accuracy"] if head == "classification" else None
    model.compile(keras.optimizers.Adam(1e-2), metrics=metrics, jit_compile=False)
    first = model.evaluate(inputs, labels, verbose=0, return_dict=True)
    model.fit(batch, steps_per_epoch=100, shuffle=False, verbose=0)
    last = model.evaluate(inputs, labels, verbose=0, return_dict=True)
    assert last["loss"] < 0.2 * first["loss"]
    if metrics:
        assert last["accuracy"] == 1
    outputs = model.run("predict", **inputs)
    assert {key: value.shape for key, value in outputs.items()} == shapes


def test_a_loss_of_one_s_own_is_used(method):
    model = build(method, head="classification", num_classes=3)
    inputs, labels = random_inputs(), np.array([0, 1, 2])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"))
    logits = model(inputs)
    expected = 3 * cross_entropy(tf.constant(labels), logits)
    np.testing.assert_allclose(model.compute_loss(inputs, labels, logits), expected, rtol=1e-5)


def test_another_head_starts_from_the_same_backbone(method):
    model = build(method, head="masked_lm")
    other = model.with_head("classification", num_classes=4, dropout=0.3)
    assert isinstance(other, TextEncoder) and other(random_inputs()).shape == (3, 4) and other.backbone.dropout == 0.3
    np.testing.assert_array_equal(
        model.backbone(random_inputs())["pooled_output"], model.with_head(None)(random_inputs())["pooled_output"]
    )
    other.backbone.embedding.token.embeddings.assign(np.zeros((40, model.backbone.embedding.dim)))
    assert model.backbone.embedding.token.embeddings.numpy().any()
    with pytest.raises(ValueError, match=r"`num_layers` must be 3, as the weights are\. Received: 2"):
        model.with_head("classification", num_layers=2)


def test_another_head_leaves_the_sharing_as_it_is():
    assert build().with_head(None, share="all", embedding_dim=8).backbone.share == "all"
    with pytest.raises(ValueError, match=r"`share` must be 'all', as the weights are\. Received: 'none'"):
        build().with_head(None, share="none")


def test_a_model_without_pooler_gets_one_with_a_head_that_needs_it(method):
    model = build(method, head="masked_lm", sentence_loss="none", use_pooler=False)
    assert set(model.run("encode", **model.dummy_inputs("encode"))) == {"sequence_output"}
    with pytest.raises(ValueError, match="`use_pooler` must be True for the head 'classification'"):
        model.with_head("classification")
    assert model.with_head("classification", use_pooler=True)(random_inputs()).shape == (3, 2)


def test_a_pooler_that_no_head_reads_is_not_trained(method):
    frozen = {head: not build(method, head=head).backbone.pooler.trainable for head in (None, *HEADS)}
    assert [head for head, is_frozen in frozen.items() if is_frozen] == ["token_classification", "question_answering"]
    assert not build(method, head="masked_lm", sentence_loss="none").backbone.pooler.trainable


def test_frozen_backbones_stay_as_they_are():
    model = build("bert", head="classification", num_layers=1)
    model.backbone.trainable = False
    before = model.backbone.get_weights()
    model.compile("adam", jit_compile=False)
    model.fit(random_inputs(), np.array([0, 1, 0]), verbose=0)
    assert len(model.trainable_variables) == 2
    for a, b in zip(before, model.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# === Text ===


@pytest.fixture(scope="module")
def reader():
    model = zoo.get("albert", weights=None)
    model.set_assets({"tokenizer.json": docstrings.tokenizer_json()})
    return model


def test_text_becomes_framed_ids(reader):
    inputs = reader.text_inputs(["Returns the mean.", "An axis"], ["Along an axis.", "of x"])
    tokens = [reader.tokenizer.id_to_token(int(i)) for i in inputs["token_ids"][1]]
    assert tokens[:8] == ["[CLS]", "an", "axis", "[SEP]", "of", "x", "[SEP]", "[PAD]"]
    assert inputs["segment_ids"][1].tolist() == [0] * 4 + [1] * 3 + [0] * 57
    assert inputs["padding_mask"].sum(axis=1).tolist() == [11, 7]
    assert all(value.shape == (2, 64) and value.dtype == "int32" for value in inputs.values())
    single = reader.text_inputs(["An axis"])
    assert single["token_ids"][0, :4].tolist() == inputs["token_ids"][1, :4].tolist()
    assert not single["segment_ids"].any()


def test_masks_are_filled(reader):
    (first, second) = reader.fill_mask("Returns the [MASK] of the [MASK].", top_k=3)
    assert len(first) == len(second) == 3 and first[0][1] >= first[1][1]
    assert all(isinstance(token, str) and 0 < probability < 1 for token, probability in first + second)


def test_long_texts_are_cut_only_where_asked(reader):
    text = "mean " * 100
    with pytest.raises(ValueError, match=r"`texts` must be of at most 64 tokens each; .*Received: 102 at place 1"):
        reader.text_inputs(["x", text])
    with pytest.raises(ValueError, match=r"`texts, pairs` must be of at most 64 tokens each; .*Received: 104 at"):
        reader.text_inputs(["x"], [text])
    inputs = reader.text_inputs(["x", text], truncate=True)
    assert inputs["padding_mask"].sum(axis=1).tolist() == [3, 64]
    assert inputs["token_ids"][1, -1] == inputs["token_ids"][0, 2]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([],), "`texts` must be a sequence of at least one text"),
        (("text",), "`texts` must be a sequence"),
        ((["a", " "],), "`texts` must be strings that are not empty. Received: ' ' at place 1"),
        (([float("nan")],), "`texts` must be strings that are not empty. Received: nan at place 0"),
        ((["a", None],), "`texts` must be strings that are not empty. Received: None at place 1"),
        ((["a"], [""]), "`pairs` must be strings that are not empty"),
        ((["a"], [3]), "`pairs` must be strings that are not empty. Received: 3 at place 0"),
        ((["a", "b"], ["c"]), "`pairs` must be None or 2 texts. Received: 1"),
    ],
    ids=str,
)
def test_empty_texts_are_refused(reader, arguments, match):
    with pytest.raises(ValueError, match=match):
        reader.text_inputs(*arguments)


def test_texts_without_mask_and_models_without_that_head_fill_none(reader):
    with pytest.raises(ValueError, match="`text` must be a text with the tokenizer's mask token"):
        reader.fill_mask("nothing to fill")
    with pytest.raises(ValueError, match=r"`top_k` must be positive\. Received: 0"):
        reader.fill_mask("[MASK]", top_k=0)
    with pytest.raises(ValueError, match="`head` must be 'masked_lm'"):
        reader.with_head("classification").fill_mask("[MASK]")


def test_a_model_without_tokenizer_reads_no_text():
    with pytest.raises(ValueError, match=r"no tokenizer.*vocab\.txt or spiece\.model\), give it one by `set_assets`"):
        build().text_inputs(["text"])


def test_a_tokenizer_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"must have 40 tokens\. Received: 4000"):
        build().set_assets({"tokenizer.json": docstrings.tokenizer_json()})


def test_names_of_classes_are_kept(tmp_path, reader):
    model = reader.with_head("classification", num_classes=3)
    model.labels = ["bad", "so so", "good"]
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").labels == ["bad", "so so", "good"]
    model.save_to_preset(tmp_path / "preset")
    again = zoo.get("albert", weights=tmp_path / "preset")
    assert again.labels == ["bad", "so so", "good"] and again.assets == model.assets
    with pytest.raises(ValueError, match="`labels` must be None or 3 strings"):
        model.labels = ["bad", "good"]
    with pytest.raises(ValueError, match=r"labels\.json"):
        model.set_assets({"labels.json": b"["})


# === What must not pass ===


def test_sequences_beyond_the_positions_are_refused(method):
    model = build(method)
    with pytest.raises(ValueError, match=r"`token_ids` may have at most 12 tokens, the positions.*Received: 13"):
        model({"token_ids": np.zeros((1, 13), "int32")})
    with pytest.raises(ValueError, match=r"`token_ids` must have shape"):
        model.run("encode", **{key: np.zeros((1, 13), "int32") for key in random_inputs()})


@pytest.mark.parametrize("name", ["padding_mask", "segment_ids"])
@pytest.mark.parametrize("shape", [(2, 4), (1, 1), (8,), (8, 1), (1, 8, 1)], ids=str)
def test_inputs_of_several_shapes_are_refused(name, shape):
    model, inputs = build("bert", head="classification", num_layers=1), {"token_ids": np.zeros((1, 8), "int32")}
    inputs[name] = np.ones(shape, "int32")
    match = rf"`{name}` must be of the shape of `token_ids`, \(1, 8\)\. Received: shape={re.escape(str(shape))}"
    for function in (model, tf.function(lambda inputs: model(inputs))):
        with pytest.raises(ValueError, match=match):
            function(inputs)
    model.compile("sgd", jit_compile=False)
    if shape[0] == 1:
        with pytest.raises(ValueError, match=f"`{name}` must be of the shape"):
            model.fit(inputs, np.zeros(1), verbose=0)


@pytest.mark.parametrize("shape", [(None, None), (None, 10)], ids=str)
def test_sizes_that_are_not_known_yet_pass(shape):
    model, inputs = build("bert", num_layers=1), random_inputs()
    specs = {name: tf.TensorSpec(shape, "int32") for name in inputs}
    specs["token_ids"] = tf.TensorSpec((None, 10), "int32")
    traced = tf.function(lambda inputs: model(inputs), input_signature=[specs])
    np.testing.assert_allclose(traced(inputs)["pooled_output"], model(inputs)["pooled_output"], atol=1e-5)


TOKENS = np.zeros((1, 8), "int32")


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (TOKENS, r"`inputs` must be a dict with `token_ids` int \(batch, length\)\. Received: int32 \(1, 8\)"),
        ({"input_ids": TOKENS}, r"with `token_ids` .*Received: \{'input_ids': 'int32 \(1, 8\)'\}"),
        ({"token_ids": TOKENS[0]}, r"with `token_ids` .*Received: \{'token_ids': 'int32 \(8,\)'\}"),
        ({"token_ids": TOKENS.astype("float32")}, r"with `token_ids` .*Received: \{'token_ids': 'float32 \(1, 8\)'\}"),
        (
            {"token_ids": TOKENS, "attention_mask": TOKENS},
            r"`inputs` must be a dict of no other names than \['token_ids', .*Received: \['attention_mask'\]",
        ),
    ],
    ids=["array", "another name", "rank", "type", "unknown name"],
)
def test_inputs_that_are_no_tokens_are_refused(inputs, match):
    with pytest.raises(ValueError, match=match):
        build("bert", num_layers=1)(inputs)


def test_tokens_beyond_the_vocabulary_are_refused(method):
    model, inputs = build(method), random_inputs()
    inputs["token_ids"][0, 0] = 40
    with pytest.raises(ValueError, match=r"`token_ids` must be in \[0, 39\]"):
        model.run("encode", **inputs)


def test_a_model_without_head_needs_a_loss(method):
    model = build(method)
    model.compile("sgd")
    with pytest.raises(ValueError, match="`head` must be set"):
        model.fit(random_inputs(), np.zeros(3), verbose=0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(num_heads=3), "`num_heads` must be a divisor of `hidden_dim` 16. Received: 3"),
        (dict(num_layers=0), "`num_layers` must be positive"),
        (dict(vocabulary_size=0), "`vocabulary_size` must be positive"),
        (dict(dropout=1.0), r"`dropout` must be in \[0, 1\)"),
        (dict(attention_dropout=-0.1), r"`attention_dropout` must be in \[0, 1\)"),
        (dict(activation="tanh"), "`activation` must be one of"),
        (dict(head="translation"), "`head` must be None or one of .*Received: 'translation'"),
        (dict(sentence_loss="order"), "`sentence_loss` must be one of"),
        (dict(num_classes=1), "`num_classes` must be at least 2"),
        (dict(head_dropout=1), "`head_dropout` must be in"),
        (dict(mask_selection_length=0), "`mask_selection_length` must be positive"),
        (dict(sequence_length=13), "`sequence_length` must be from 1 to 12"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(method, changes, match):
    with pytest.raises(ValueError, match=match):
        build(method, **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(share="some"), "`share` must be one of"),
        (dict(num_groups=4), "`num_groups` must be from 1 to 3. Received: 4"),
        (dict(num_inner_layers=0), "`num_inner_layers` must be positive"),
        (dict(embedding_dim=0), "`embedding_dim` must be positive"),
    ],
    ids=str,
)
def test_bad_sharing_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        build(**changes)


# === Optimisers ===


def one_step(optimizer, weights, gradients):
    variables = [keras.Variable(np.array(weight, "float32"), name=name) for name, weight in weights.items()]
    optimizer.apply([tf.constant(gradient, "float32") for gradient in gradients], variables)
    return [
        variable.numpy() - np.array(weight, "float32")
        for variable, weight in zip(variables, weights.values(), strict=True)
    ]


def test_lamb_of_keras_moves_by_the_length_of_the_weights():
    """A step has length lr |w|, whatever the gradient, as in the paper: the ratio is |w| / |u|."""
    weights = {"kernel": [1.2, -1.6], "zero": [0.0, 0.0]}
    kernel, zero = one_step(keras.optimizers.Lamb(0.1, epsilon=1e-6), weights, [[3e-3, 4e-3], [3e-3, 4e-3]])
    np.testing.assert_allclose(np.linalg.norm(kernel), 0.1 * 2, rtol=1e-4)
    # |w| = 0: the ratio is 1. u is m / sqrt(v) of corrected moments, 1 for each; the authors' are not, 0.1 / sqrt(0.001)
    np.testing.assert_allclose(zero, [-0.1, -0.1], rtol=1e-3)
    assert 0.1 / np.sqrt(0.001) == pytest.approx(3.1623, abs=1e-4)


def test_lamb_of_keras_decays_apart_from_the_ratio_and_scales_biases_too():
    """In the authors' LAMB decay is a part of u, and biases and normalisations have ratio 1."""
    optimizer = decay_kernels_only(keras.optimizers.Lamb(0.1, epsilon=1e-6, weight_decay=0.01))
    weights = {"kernel": [1.2, -1.6], "bias": [0.3, 0.4]}
    kernel, bias = one_step(optimizer, weights, [[3e-3, 4e-3], [3e-3, 4e-3]])
    decayed = np.array([1.2, -1.6]) * (1 - 0.1 * 0.01)
    expected = decayed - 0.1 * 2 * (1 - 0.1 * 0.01) * np.array([1, 1]) / np.sqrt(2) - [1.2, -1.6]
    np.testing.assert_allclose(kernel, expected, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(bias), 0.1 * 0.5, rtol=1e-3)


@pytest.mark.parametrize(
    "compiled", [language_encoders.adamw(1e-3), language_encoders.lamb(1e-3)], ids=["adamw", "lamb"]
)
def test_recipes_decay_neither_biases_nor_normalisations(compiled):
    model = build(head="masked_lm")
    compiled(model, 100)
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(1 + variable)
    before = [variable.numpy() for variable in variables]
    model.optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    for variable, old in zip(variables, before, strict=True):
        assert (variable.numpy() != old).any() == (variable.name in ("embeddings", "kernel")), variable.path
    assert model.optimizer.global_clipnorm == 1.0


def test_the_learning_rate_rises_and_falls_on_a_line_from_the_first_step():
    schedule = WarmupLinearDecay(1e-3, 10, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[:9], 1e-3 * np.arange(1, 10) / 10, rtol=1e-5)
    np.testing.assert_allclose(rates[10:], 1e-3 * (1 - np.arange(10, 101) / 100), atol=1e-9)
    assert rates.max() == pytest.approx(0.9e-3, abs=2e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(again(50)) == float(schedule(50))
    with pytest.raises(ValueError, match="`warmup_steps` must be from 0 to 9"):
        WarmupLinearDecay(1e-3, 10, 10)


# === Held-out data and the experiment ===


def test_scores_are_those_of_the_probabilities(reader):
    scores = reader.scores(signature_runner(reader), "docstrings", "test", 60)
    inputs, targets = (
        {key: value[:60] for key, value in part.items()} for part in reader.held_out("docstrings", "test")
    )
    outputs = reader(inputs)
    log_probs, weights = tf.nn.log_softmax(outputs["masked_lm_logits"]).numpy(), targets["mask_weights"]
    nll = -np.take_along_axis(log_probs, targets["mask_ids"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores["masked_lm_loss"], (weights * nll).sum() / weights.sum(), rtol=1e-4)
    hits = log_probs.argmax(-1) == targets["mask_ids"]
    np.testing.assert_allclose(scores["masked_lm_accuracy"], (weights * hits).sum() / weights.sum(), rtol=1e-5)
    sentences = outputs["sentence_logits"].numpy().argmax(-1) == targets["sentence_label"]
    assert scores["sentence_accuracy"] == sentences.mean()


def ledger_of(tmp_path, **changes):
    """A ledger of runs that show the claim, but for what is changed."""
    good = {
        "loss": {"not shared": 4.0, "embedding 32": 4.2, experiment.WIDE: 4.0},
        "sop": 0.7,
        "nsp": 0.8,
        "cross": 0.52,
        "floor": 0.6,
    } | changes
    ledger = experiment.Ledger(tmp_path / "runs.json", {})
    ledger.run(experiment.WORDS, 0, lambda: {"sop_probe": good["floor"], "nsp_probe": good["floor"]}, lambda line: None)
    for arm in (*experiment.ARMS, experiment.LAMB):
        task = "nsp" if arm == experiment.NSP else "sop"
        found = {
            "parameters": 1000 * (1 + len(arm)),
            "layer_parameters": 400 if arm == "not shared" else 100,
            "embedding_parameters": 10,
            "masked_lm_loss": good["loss"].get(arm, 4.15),
            "masked_lm_accuracy": 0.3,
            "sentence_accuracy": good[task],
            "sop_probe": good["cross"],
            "nsp_probe": good["cross"],
        }
        ledger.run(arm, 0, lambda found=found: found, lambda line: None)
    return ledger


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, 4),
        ({"loss": {"not shared": 3.0}}, 3),
        ({"loss": {experiment.WIDE: 3.0}}, 3),
        ({"loss": {"embedding 32": 5.0}}, 3),
        ({"cross": 0.6}, 3),
        ({"sop": 0.55}, 3),
        ({"nsp": 0.55}, 3),
        ({"nsp": 0.55, "sop": 0.55}, 2),
    ],
    ids=str,
)
def test_the_verdict_follows_the_numbers(tmp_path, changes, shown):
    verdict = experiment.verdict(ledger_of(tmp_path, **changes))
    positive, _, negative = verdict.partition("Does not show:")
    phrases = (
        "sharing divides the layers' parameters by",
        "an embedding of",
        "next-sentence prediction learns",
        "sentence-order prediction is",
    )
    assert sum(phrase in positive for phrase in phrases) == shown and bool(negative) == (shown < 4)
    assert ("runs are too short" in verdict) == (changes == {"nsp": 0.55, "sop": 0.55})
    experiment._figure(ledger_of(tmp_path))


def test_the_bag_of_words_knows_what_both_segments_have():
    inputs = {
        "token_ids": np.array([[2, 5, 6, 3, 6, 7, 3, 0]]),
        "segment_ids": np.array([[0, 0, 0, 0, 1, 1, 1, 0]]),
        "padding_mask": np.array([[1] * 7 + [0]]),
    }
    bags = experiment._bags(inputs, 10).toarray()
    assert np.flatnonzero(bags[0]).tolist() == [2, 3, 5, 6, 13, 16, 17, 23, 26]


def test_shared_parameters_are_counted_once():
    layers = build(share="attention").backbone.encoder_layers
    assert experiment._parameters(layers) == sum(
        int(np.prod(variable.shape)) for variable in {id(v): v for layer in layers for v in layer.weights}.values()
    ) < sum(layer.count_params() for layer in layers)  # fmt: skip


@pytest.mark.slow
def test_the_experiment_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "NUM_PROBED", 100)
    monkeypatch.setattr(experiment, "NUM_BAGGED", 300)
    network = dict(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=32)
    experiment.reproduce(tmp_path, seeds=1, updates=2, network=network)
    assert {path.name for path in tmp_path.iterdir()} == {"albert.json", "albert.png", "albert.runs.json"}


def test_the_embedded_tokenizer_is_of_the_presets_size(method):
    size = load_tokenizer(docstrings.tokenizer_json()).get_vocab_size()
    assert zoo.info(method).preset("docstrings").config["vocabulary_size"] == size == 4000
