import json
from pathlib import Path
from types import SimpleNamespace

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf

import zoo
from zoo.datasets import load_arrays
from zoo.experiments import transformer_xh as experiment
from zoo.layers.transformer_encoder import TransformerEncoderLayer
from zoo.sequence import evidence_graphs as graphs
from zoo.sequence.tokenizer import load_tokenizer
from zoo.sequence.transformer_xh import (
    LABELS,
    HopAttention,
    TransformerXH,
    TransformerXHLayer,
    TransformerXHQuestionAnswerer,
    TransformerXHVerifier,
    best_spans,
)

SIZES = dict(
    vocabulary_size=30, num_layers=3, hidden_dim=16, num_heads=4, intermediate_dim=24, num_nodes=5, sequence_length=7,
    max_sequence_length=12, dropout=0.0, attention_dropout=0.0, initializer_stddev=0.2,
)  # fmt: skip
KINDS = ("dot", "gat")


def build(model_class=TransformerXHVerifier, **changes):
    keras.utils.set_random_seed(3)
    return model_class(**{**SIZES, **changes}).build_from_signature()


def random_graph(rng=0, batch=2, nodes=5, length=7, density=0.4):
    rng = np.random.default_rng(rng)
    lengths = rng.integers(2, length + 1, (batch, nodes, 1))
    adjacency = (rng.random((batch, nodes, nodes)) < density) & ~np.eye(nodes, dtype=bool)
    return {
        "token_ids": rng.integers(0, 30, (batch, nodes, length)).astype("int32"),
        "segment_ids": np.tile(np.arange(length) >= length // 2, (batch, nodes, 1)).astype("int32"),
        "padding_mask": (np.arange(length) < lengths).astype("int32"),
        "adjacency": adjacency.astype("int32"),
        "node_mask": np.ones((batch, nodes), "int32"),
    }


def hidden_states(model, inputs):
    return model.encode({name: tf.constant(value) for name, value in inputs.items()})[0].numpy()


def permuted(inputs, order):
    changed = {name: array[:, order] for name, array in inputs.items()}
    return {**changed, "adjacency": changed["adjacency"][:, :, order]}


def padded(inputs, nodes, rng=9):
    """The graph with further nodes that are masked, full of anything, with edges to and from all others."""
    more = random_graph(rng, len(inputs["node_mask"]), nodes, inputs["token_ids"].shape[2])
    count = inputs["node_mask"].shape[1]
    joined = {
        name: np.concatenate([array, more[name]], axis=1) for name, array in inputs.items() if name != "adjacency"
    }
    joined["adjacency"] = np.ones((len(inputs["node_mask"]), count + nodes, count + nodes), "int32")
    joined["adjacency"][:, :count, :count] = inputs["adjacency"]
    joined["node_mask"][:, count:] = 0
    return joined


# === Hop attention ===


def numpy_hop(layer, hubs, edges):
    """h^ of one graph, edge by edge."""
    heads, dim = layer.num_heads, hubs.shape[-1]
    width = dim // heads
    result = np.zeros((len(hubs), dim))
    for target in range(len(hubs)):
        sources = np.flatnonzero(edges[target])
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            if layer.hop_attention == "dot":
                query, key, value = (
                    (hubs @ dense.kernel.numpy() + dense.bias.numpy())[:, part]
                    for dense in (layer.query, layer.key, layer.value)
                )
                scores = [query[target] @ key[source] / np.sqrt(width) for source in sources]
                values = [value[source] for source in sources]
                rest = 0
            else:
                shared = layer.shared.kernel.numpy()
                to, by = (vector.numpy()[head] for vector in (layer.target_vector, layer.source_vector))
                values = [hubs[s, part] @ shared for s in sources]
                scores = [to @ (hubs[target, part] @ shared) + by @ value for value in values]
                scores = [score if score > 0 else 0.2 * score for score in scores]
                rest = hubs[target, part] @ layer.residual.kernel.numpy()
            weights = np.exp(scores) / np.sum(np.exp(scores)) if len(sources) else []
            total = sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros(width)) + rest
            result[target, part] = np.maximum(total, 0) if layer.hop_attention == "gat" else total
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_hop_equals_a_loop_over_edges(kind):
    keras.utils.set_random_seed(0)
    layer = HopAttention(4, kind, initializer_stddev=0.5)
    rng = np.random.default_rng(1)
    hubs = rng.standard_normal((3, 6, 16)).astype("float32")
    edges = rng.random((3, 6, 6)) < 0.4
    edges[:, :, 4:] = edges[:, 4:] = False  # two padded nodes
    edges[0, 2] = False  # one that nothing links to
    received, weights = layer(hubs, edges[:, None])

    for row in range(3):
        np.testing.assert_allclose(received[row], numpy_hop(layer, hubs[row].astype("float64"), edges[row]), atol=1e-6)
    np.testing.assert_allclose(weights.numpy().sum(-1), np.broadcast_to(edges.any(-1)[:, None], (3, 4, 6)), atol=1e-6)
    assert not weights.numpy()[np.broadcast_to(~edges[:, None], weights.shape)].any()
    if kind == "dot":
        assert not received.numpy()[0, 2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_hops_have_parameters_of_their_own(kind):
    model = build(num_hop_layers=3, hop_attention=kind)
    variables = [variable for layer in model.hop_layers for variable in (*layer.hop.weights, *layer.combine.weights)]

    assert len({id(variable) for variable in variables}) == 3 * (8 if kind == "dot" else 6)


# === The encoder ===


@pytest.mark.parametrize("kind", KINDS)
def test_without_edges_other_texts_change_nothing(kind):
    model = build(hop_attention=kind)
    inputs = random_graph(density=0.0)
    together = hidden_states(model, inputs)

    # A text in its place is the same bit for bit; in another place sums round otherwise.
    np.testing.assert_array_equal(hidden_states(model, permuted(inputs, [3, 1, 4, 0, 2]))[:, 1], together[:, 1])
    others = {name: np.array(array) for name, array in inputs.items()}
    others["token_ids"][:, 1:] = 7
    others["node_mask"][:, 3:] = 0
    np.testing.assert_array_equal(hidden_states(model, others)[:, 0], together[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_edges_texts_are_read_alone(kind):
    # In float32, sums of another number of texts round otherwise by more than 1e-6 on some processors.
    model = build(hop_attention=kind, dtype="float64")
    inputs = random_graph(density=0.0)
    together = hidden_states(model, inputs)

    for node in range(5):
        alone = permuted(inputs, np.array([node]))
        np.testing.assert_allclose(hidden_states(model, alone), together[:, [node]], atol=1e-13)
    fewer = permuted(inputs, np.array([0, 2]))
    np.testing.assert_allclose(hidden_states(model, fewer), together[:, [0, 2]], atol=1e-13)


def test_without_edges_nothing_is_received_and_hubs_are_still_combined():
    model = build(num_hop_layers=1)
    inputs = random_graph(density=0.0)
    layer = model.hop_layers[0]
    plain = build(num_hop_layers=0)
    for own, other in zip(plain.sequence_layers, [*model.sequence_layers, layer.sequence_layer], strict=True):
        own.set_weights(other.get_weights())
    for name in ("token_embedding", "position_embedding", "segment_embedding", "embedding_norm"):
        getattr(plain, name).set_weights(getattr(model, name).get_weights())
    before = hidden_states(plain, inputs)

    kernel, bias = layer.combine.get_weights()
    found = hidden_states(model, inputs)
    np.testing.assert_allclose(found[:, :, 0], before[:, :, 0] @ kernel[:16] + bias, atol=1e-5)
    np.testing.assert_allclose(found[:, :, 1:], before[:, :, 1:], atol=1e-6)


def with_identity_combine(model):
    for layer in model.hop_layers:
        layer.combine.set_weights([np.eye(2 * model.hidden_dim, model.hidden_dim), np.zeros(model.hidden_dim)])
    return model


def bert_from(golden, **changes):
    """A model with the weights of Hugging Face's `BertModel`."""

    def theirs(layer):
        # PyTorch keeps kernels transposed; gains of normalisations are vectors.
        return [golden[f"weight:{layer}.{kind}"].T for kind in ("weight", "bias")]

    model = build(**changes)
    names = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}
    for name, key in names.items():
        getattr(model, f"{name}_embedding").set_weights([golden[f"weight:embeddings.{key}.weight"]])
    model.embedding_norm.set_weights(theirs("embeddings.LayerNorm"))
    layers = [*model.sequence_layers, *(layer.sequence_layer for layer in model.hop_layers)]
    for index, layer in enumerate(layers):
        parts = {
            "attention.self.query": layer.attention.query,
            "attention.self.key": layer.attention.key,
            "attention.self.value": layer.attention.value,
            "attention.output.dense": layer.attention.outer,
            "attention.output.LayerNorm": layer.attention_norm,
            "intermediate.dense": layer.feed_forward.inner,
            "output.dense": layer.feed_forward.outer,
            "output.LayerNorm": layer.feed_forward_norm,
        }
        for key, part in parts.items():
            part.set_weights(theirs(f"encoder.layer.{index}.{key}"))
    model.pooler.set_weights(theirs("pooler.dense"))
    return with_identity_combine(model)


@pytest.mark.parametrize("num_hop_layers", [0, 1, 3])
def test_with_identity_combine_it_is_bert(num_hop_layers):
    """The numbers of Hugging Face's `BertModel`; `tests/golden/make_bert.py` made them."""
    with np.load(Path(__file__).parents[1] / "golden" / "bert.npz", allow_pickle=False) as file:
        golden = dict(file)
    model = bert_from(golden, num_hop_layers=num_hop_layers)
    texts = {name: golden[name][None] for name in ("token_ids", "segment_ids", "padding_mask")}
    inputs = {**texts, "adjacency": 1 - np.eye(4, dtype="int32")[None], "node_mask": np.ones((1, 4), "int32")}
    hidden = hidden_states(model, inputs)

    seen = golden["padding_mask"] == 1
    np.testing.assert_allclose(hidden[0][seen], golden["hidden"][seen], atol=1e-5)
    np.testing.assert_allclose(model.pool(tf.constant(hidden))[0], golden["pooled"], atol=1e-5)


def test_with_identity_combine_all_numbers_of_hops_agree():
    models = [with_identity_combine(build(num_hop_layers=hops)) for hops in (0, 2)]
    layers = [[*m.sequence_layers, *(layer.sequence_layer for layer in m.hop_layers)] for m in models]
    for first, second in zip(*layers, strict=True):
        second.set_weights(first.get_weights())
    for name in ("token_embedding", "position_embedding", "segment_embedding", "embedding_norm"):
        getattr(models[1], name).set_weights(getattr(models[0], name).get_weights())
    inputs = random_graph()

    np.testing.assert_allclose(*(hidden_states(model, inputs) for model in models), atol=1e-6)


def chain(length, num_nodes):
    """Node t + 1 receives from node t."""
    inputs = random_graph(5, 1, num_nodes, length)
    edges = [(node, node + 1) for node in range(num_nodes - 1)]
    mask = np.ones_like(inputs["padding_mask"])
    return {**inputs, "padding_mask": mask, "adjacency": graphs.adjacency_matrix(edges, num_nodes)[None]}


def changed_nodes(model, inputs, node, positions):
    """Which nodes change at given positions when a token of one node changes."""
    other = {**inputs, "token_ids": inputs["token_ids"].copy()}
    other["token_ids"][0, node, 3] = (other["token_ids"][0, node, 3] + 1) % 30
    difference = hidden_states(model, inputs) != hidden_states(model, other)
    chosen = difference[0, :, positions]
    return np.flatnonzero(chosen.reshape(len(chosen), -1).any(axis=1)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_k_layers_reach_k_hops(kind):
    model, inputs = build(hop_attention=kind), chain(7, 6)

    assert changed_nodes(model, inputs, 0, 0) == [0, 1, 2, 3]


def test_other_tokens_learn_of_it_a_layer_later():
    """What a hub received changes the rest of its text in the next layer: hops are inside the encoder, not on top."""
    inputs = chain(7, 6)

    one, two = build(num_hop_layers=1), build(num_hop_layers=2)
    assert changed_nodes(one, inputs, 0, 0) == [0, 1]
    assert changed_nodes(one, inputs, 0, slice(1, None)) == [0]
    assert changed_nodes(two, inputs, 0, 0) == [0, 1, 2]
    assert changed_nodes(two, inputs, 0, slice(1, None)) == [0, 1]


def test_edges_have_a_direction():
    model, inputs = build(), chain(7, 2)
    back = {**inputs, "adjacency": inputs["adjacency"].transpose(0, 2, 1)}

    assert changed_nodes(model, inputs, 0, 0) == [0, 1]
    assert changed_nodes(model, inputs, 1, 0) == [1]
    assert changed_nodes(model, back, 0, 0) == [0]
    assert changed_nodes(model, back, 1, 0) == [0, 1]


# === Both tasks ===


@pytest.mark.parametrize("model_class", [TransformerXHVerifier, TransformerXHQuestionAnswerer])
def test_order_of_texts_does_not_matter(model_class):
    model, inputs, order = build(model_class), random_graph(), np.array([4, 2, 0, 3, 1])
    first, second = model(inputs), model(permuted(inputs, order))

    for name in first:
        wanted = first[name] if name.startswith("label") else first[name].numpy()[:, order]
        np.testing.assert_allclose(second[name], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_class", [TransformerXHVerifier, TransformerXHQuestionAnswerer])
def test_masked_texts_do_not_matter(model_class, kind):
    model, inputs = build(model_class, hop_attention=kind), random_graph()
    first, second = model(inputs), model(padded(inputs, 3))

    for name in first:
        found = second[name] if name.startswith("label") else second[name][:, :5]
        np.testing.assert_allclose(found, first[name], atol=1e-6)


def test_a_text_with_masked_neighbours_only_receives_nothing():
    model, inputs = build(), random_graph(density=0.0)
    linked = padded(inputs, 1)

    np.testing.assert_allclose(hidden_states(model, linked)[:, :5], hidden_states(model, inputs), atol=1e-6)


EMPTY = {
    "no tokens": {"padding_mask": 0},
    "no nodes": {"node_mask": 0},
    "no edges": {"adjacency": 0},
    "nothing": {"padding_mask": 0, "node_mask": 0, "adjacency": 0},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("model_class", [TransformerXHVerifier, TransformerXHQuestionAnswerer])
def test_nothing_to_attend_to_is_finite(model_class, empty, kind):
    model, inputs = build(model_class, hop_attention=kind), random_graph()
    inputs = {name: array * empty.get(name, 1) for name, array in inputs.items()}
    with tf.GradientTape() as tape:
        outputs = model(inputs, training=True)
        loss = model.compute_loss(inputs, targets_of(model_class), outputs)
    gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")

    for value in (*outputs.values(), loss, *map(tf.convert_to_tensor, gradients)):
        assert np.isfinite(value.numpy()).all()


def targets_of(model_class):
    nodes = np.array([[1, 0, 0, -1, 0], [0, 1, 0, 0, -1]], "int32")
    if model_class is TransformerXHVerifier:
        return {"label": np.array([2, 0], "int32"), "node_labels": nodes}
    starts = np.array([[2, 1, 1, 1, 1], [-1, 3, 0, 0, 0]], "int32")
    return {"node_labels": nodes, "start_positions": starts, "end_positions": starts + 1}


# === Fact verification ===


def test_labels_are_a_mixture():
    model, inputs = build(), random_graph()
    inputs["node_mask"][1, 3:] = 0
    outputs = model(inputs)
    pooled = model.pool(model.encode(inputs)[0])
    scores, logits = model.score_layer(pooled).numpy()[..., 0], model.class_layer(pooled).numpy()

    for row, count in enumerate((5, 3)):
        weights, classes = scores[row, :count], logits[row, :count]
        weights = np.exp(weights) / np.exp(weights).sum()
        classes = np.exp(classes) / np.exp(classes).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs["label_probs"][row], weights @ classes, atol=1e-6)
    np.testing.assert_allclose(outputs["label_probs"].numpy().sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(outputs["node_scores"], scores)


def test_one_text_gives_its_own_label():
    model, inputs = build(), random_graph(nodes=1)
    logits = model.class_layer(model.pool(model.encode(inputs)[0]))[:, 0]

    np.testing.assert_allclose(model(inputs)["label_probs"], tf.nn.softmax(logits), atol=1e-6)


@pytest.mark.parametrize("double", [False, True])
def test_loss_of_claims(double):
    model, inputs = build(double_softmax=double), random_graph()
    inputs["node_mask"][1, 3] = 0
    outputs, targets = model(inputs), targets_of(TransformerXHVerifier)
    labels = targets["node_labels"].astype("float64")
    labels[1, 3] = -1
    probs, scores = (outputs[name].numpy().astype("float64") for name in ("label_probs", "node_scores"))
    said = probs[range(2), targets["label"]]
    if double:
        said = np.exp(said) / np.exp(probs).sum(axis=1)
    sigmoid = 1 / (1 + np.exp(-scores))
    terms = -np.log(np.where(labels == 1, sigmoid, 1 - sigmoid))
    wanted = [-np.log(said[row]) + terms[row][labels[row] >= 0].mean() for row in range(2)]

    np.testing.assert_allclose(model.graph_losses(inputs, targets, outputs), wanted, rtol=1e-5)
    np.testing.assert_allclose(model.compute_loss(inputs, targets, outputs), np.mean(wanted), rtol=1e-5)
    weighted = model.compute_loss(inputs, targets, outputs, sample_weight=np.array([2.0, 0.0]))
    np.testing.assert_allclose(weighted, wanted[0], rtol=1e-5)


# === Question answering ===


def test_loss_of_answers():
    model, inputs = build(TransformerXHQuestionAnswerer), random_graph()
    outputs, targets = model(inputs), targets_of(TransformerXHQuestionAnswerer)
    labels, scores = targets["node_labels"], outputs["node_scores"].numpy().astype("float64")
    sigmoid = 1 / (1 + np.exp(-scores))
    terms = -np.log(np.where(labels == 1, sigmoid, 1 - sigmoid))
    logs = np.log(tf.nn.softmax(outputs["span_logits"].numpy().astype("float64"), axis=2))
    spans = [-(logs[0, 0, 2, 0] + logs[0, 0, 3, 1]) / 2, -(logs[1, 1, 3, 0] + logs[1, 1, 4, 1]) / 2]
    wanted = [terms[row][labels[row] >= 0].mean() + spans[row] for row in range(2)]

    np.testing.assert_allclose(model.graph_losses(inputs, targets, outputs), wanted, rtol=1e-5)


def test_span_loss_sees_answers_alone():
    model, inputs = build(TransformerXHQuestionAnswerer), random_graph()
    outputs, targets = model(inputs), targets_of(TransformerXHQuestionAnswerer)
    with tf.GradientTape() as tape:
        tape.watch(outputs["span_logits"])
        loss = model.compute_loss(inputs, targets, outputs)
    gradient = tape.gradient(loss, outputs["span_logits"]).numpy()

    answers = targets["node_labels"] == 1
    assert gradient[answers].any(axis=(1, 2)).all() and not gradient[~answers].any()
    targets["start_positions"][:] = targets["end_positions"][:] = -1
    outside = model.graph_losses(inputs, targets, outputs)
    labels = targets["node_labels"]
    terms = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, "float32"), outputs["node_scores"]).numpy()
    wanted = [row[label >= 0].mean() for row, label in zip(terms, labels, strict=True)]
    np.testing.assert_allclose(outside, wanted, rtol=1e-5)


def test_best_span_is_in_the_best_document():
    inputs = random_graph(batch=1, nodes=3, length=20)
    inputs["padding_mask"][:] = 1
    inputs["padding_mask"][0, 1, 18:] = 0
    inputs["segment_ids"][:] = np.arange(20) >= 5
    inputs["node_mask"] = np.array([[1, 1, 0]], "int32")
    logits = np.zeros((1, 3, 20, 2))
    logits[0, 1, [2, 6, 19], 0] = 9, 5, 9  # in the question, in the document, in the padding
    logits[0, 1, [5, 14, 16, 19], 1] = 9, 4, 9, 9  # before the start, within ten tokens, beyond them
    outputs = {"node_scores": np.array([[0.0, 1.0, 2.0]]), "span_logits": logits}

    assert [found.tolist() for found in best_spans(inputs, outputs)] == [[1], [6], [14]]
    inputs["segment_ids"][0, 1] = 0
    assert best_spans(inputs, outputs)[0].tolist() == [0]
    inputs["segment_ids"][:] = 0
    with pytest.raises(
        ValueError, match=r"`inputs` must be graphs with tokens in segment 1. Received: none in graph 0"
    ):
        best_spans(inputs, outputs)


# === Training, saving ===


def test_fit_learns_and_a_frozen_pooler_stays():
    """Of answers; the suite of all methods fits the model of claims."""
    model_class = TransformerXHQuestionAnswerer
    model = build(model_class, freeze_pooler=True)
    pooler = model.pooler.get_weights()
    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=False)
    data = tf.data.Dataset.from_tensors((random_graph(), targets_of(model_class))).repeat()
    losses = model.fit(data, steps_per_epoch=1, epochs=25, verbose=0).history["loss"]

    assert losses[-1] < 0.5 * losses[0]
    for before, after in zip(pooler, model.pooler.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("model_class", [TransformerXHVerifier, TransformerXHQuestionAnswerer])
def test_saving_gives_the_model_back(model_class, tmp_path):
    model = build(model_class, hop_attention="gat", num_hop_layers=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")

    assert type(loaded) is model_class and loaded.get_config() == model.get_config()
    inputs = model.dummy_inputs()
    for name, value in model.run(**inputs).items():
        np.testing.assert_array_equal(loaded.run(**inputs)[name], value)


def test_dropout_acts_in_training_alone():
    model, inputs = build(dropout=0.5, attention_dropout=0.5), random_graph()
    scores = [model(inputs, training=training)["node_scores"].numpy() for training in (False, False, True, True)]

    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[2] - scores[3]).max() > 1e-3


def test_kernels_start_as_in_the_paper():
    model = build(hidden_dim=64, intermediate_dim=128, initializer_stddev=0.02)
    layer = model.hop_layers[0]
    first = layer.sequence_layer.attention

    for kernel in (layer.combine.kernel, layer.hop.query.kernel, first.value.kernel, model.token_embedding.embeddings):
        assert kernel.numpy().std() == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(first.query.kernel, first.key.kernel)
    assert 0.5 / np.sqrt(128) < np.abs(layer.combine.bias.numpy()).max() <= 1 / np.sqrt(128)
    gat = HopAttention(4, "gat")
    gat.build((None, None, 256))
    assert gat.shared.kernel.numpy().std() == pytest.approx(np.sqrt(4 / 128), rel=0.1)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_encoder_layer_is_serialisable(activation):
    layer = TransformerEncoderLayer(4, 24, dropout=0.1, attention_dropout=0.2, activation=activation)
    layer.build((None, None, 16))
    copy = TransformerEncoderLayer.from_config(layer.get_config())
    copy.build((None, None, 16))
    copy.set_weights(layer.get_weights())
    inputs = np.random.default_rng(0).standard_normal((2, 5, 16)).astype("float32")
    mask = np.ones((2, 1, 1, 5), bool)

    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(inputs, mask), layer(inputs, mask))
    hop = TransformerXHLayer(4, 24, "gat", dropout=0.1)
    hop.build((None, None, 16))
    assert TransformerXHLayer.from_config(hop.get_config()).get_config() == hop.get_config()


# === Facts ===


@pytest.mark.parametrize(
    ("preset", "changes", "parameters"),
    [
        ("hotpotqa", {"num_hop_layers": 0}, 109_482_240 + 769 + 1_538),
        ("hotpotqa", {}, 118_338_816 + 769 + 1_538),
        ("hotpotqa", {"hop_attention": "gat"}, 113_052_672 + 769 + 1_538),
        ("fever", {}, 118_338_816 + 769 + 2_307),
        ("wordnet", {}, None),
    ],
)
def test_presets_have_the_papers_number_of_parameters(preset, changes, parameters):
    method = zoo.info("transformer_xh")
    chosen = method.preset(preset)
    model_class = method.load_class(chosen.class_name)
    # Shapes only: weights would fill half a gigabyte.
    with keras.StatelessScope(initialize_variables=False):
        model = model_class(**{**chosen.config, **changes})
        specs = model.graph_specs()
        model.compute_output_spec(
            {name: keras.KerasTensor((1, *spec.shape[1:]), spec.dtype) for name, spec in specs.items()}
        )

    assert sum(int(np.prod(weight.shape)) for weight in model.weights) == (parameters or chosen.parameters)
    if parameters and not changes:
        assert chosen.parameters == parameters


# === Graphs from text ===

WORDS = ("parent", "grandparent", "who", "is", "the", "king", "of", ".", "a", "country", "in", "lives", "palace", "big")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(graphs.word_tokenizer(WORDS, 6))


def read(tokenizer, ids):
    return " ".join(tokenizer.id_to_token(int(index)) for index in ids)


def test_claims_become_graphs(tokenizer):
    evidence = [("pug", ["parent dog"]), ("dog", ["parent canine"])]
    graph = graphs.claim_graph(tokenizer, "pug grandparent canine", evidence, [(0, 1)], 3, 11)

    assert read(tokenizer, graph["token_ids"][0]) == "[CLS] @0 grandparent @1 [SEP] @0 [SEP] parent @2 [SEP] [PAD]"
    assert read(tokenizer, graph["token_ids"][1]) == "[CLS] @0 grandparent @1 [SEP] @2 [SEP] parent @1 [SEP] [PAD]"
    assert graph["segment_ids"].tolist() == [[0] * 5 + [1] * 5 + [0]] * 2 + [[0] * 11]
    assert graph["padding_mask"].tolist() == [[1] * 10 + [0]] * 2 + [[0] * 11]
    assert graph["node_mask"].tolist() == [1, 1, 0]
    assert graph["adjacency"].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    cut = graphs.claim_graph(tokenizer, "pug grandparent canine", evidence, [], 2, 7)
    assert read(tokenizer, cut["token_ids"][1]) == "[CLS] @0 grandparent @1 [SEP] @2 [SEP]"


def test_questions_become_graphs(tokenizer):
    documents = [
        ("@0", ["@0 is a country .", "the king of @0 is @1 ."]),
        ("@1 (king)", ["the king lives in the big palace ."]),
        ("@2", ["@2 is in @0 ."]),
    ]
    edges = graphs.mention_edges(
        [(title.replace("@", "N"), [s.replace("@", "N") for s in sentences]) for title, sentences in documents]
    )
    assert edges == [(0, 1), (2, 0)]
    question = "who is the king of @0"
    graph, labels = graphs.question_graph(tokenizer, question, documents, [], 4, 24, "big palace", [1])

    asked = "[CLS] who is the king of @0 [SEP] "
    assert read(tokenizer, graph["token_ids"][1][:17]) == asked + "the king lives in the big palace . [SEP]"
    assert labels["node_labels"].tolist() == [0, 1, 0, -1]
    assert labels["start_positions"].tolist() == [-1, 13, -1, -1] and labels["end_positions"][1] == 14
    short, labels = graphs.question_graph(tokenizer, question, documents, [], 3, 14, "big palace", [1])
    assert labels["node_labels"].tolist() == [0, 1, 0] and (labels["start_positions"] == -1).all()
    assert short["token_ids"].shape == (3, 14)
    _, labels = graphs.question_graph(tokenizer, question, documents, [], 3, 14)
    assert (labels["node_labels"] == -1).all()


def test_anchors_are_sentences_that_mention_the_target(tokenizer):
    documents = [("in", ["a country .", "the king lives in a palace ."]), ("palace", ["a big palace ."])]
    graph, _ = graphs.question_graph(tokenizer, "who is in", documents, graphs.mention_edges(documents), 2, 22)

    wanted = "[CLS] who is in [SEP] the king lives in a palace . [SEP] a big palace . [SEP]"
    assert read(tokenizer, graph["token_ids"][1][:18]) == wanted
    assert graph["segment_ids"][1].tolist() == [0] * 13 + [1] * 5 + [0] * 4
    assert graph["adjacency"].tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    ("sentence", "title", "found"),
    [
        ("He met Marie Curie, twice.", "Marie Curie", True),
        ("Marie-Curie street", "Marie", False),
        ("hot_dog", "dog", False),
        ("in Paris.", "Paris (city)", True),
        ("comparison", "Paris", False),
    ],
)
def test_mentions_are_whole_words(sentence, title, found):
    assert graphs.mentions(sentence, title) == found


def test_linked_articles_make_graphs(tokenizer):
    """Wikipedia's mentions, as a question's documents with their hyperlinks."""
    articles = load_arrays("wikipedia_mentions", "test")
    row = next(i for i, titles in enumerate(articles["linked_title"]) if titles[1])
    documents = [(str(articles["title"][row]), [str(articles["text"][row])])]
    linked = zip(articles["linked_title"][row].tolist(), articles["linked_text"][row].tolist(), strict=True)
    documents += [(title, [text]) for title, text in linked if title]
    edges = graphs.mention_edges(documents)

    assert {(0, target) for target in range(1, len(documents))} <= set(edges)


def test_names_beyond_the_placeholders_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"`texts` must be of at most 6 different names. Received: 7: \['a1'"):
        graphs.replace_names(["a1 b1 c1 parent d1", "e1 f1 g1"], tokenizer)
    assert graphs.replace_names(["x parent y", "y . x"], tokenizer) == ["@0 parent @1", "@1 . @0"]
    without = load_tokenizer(graphs.word_tokenizer(["a"], 0))
    assert graphs.replace_names(["anything"], without) == ["anything"]


EVIDENCE = [("dog", ["parent canine"])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: graphs.adjacency_matrix([(0, 3)], 3),
            r"`edges` must be pairs of node numbers from 0 to 2. Received: \(0, 3\)",
        ),
        (lambda t: graphs.adjacency_matrix([(-1, 0)], 3), r"`edges` must be .* Received: \(-1, 0\)"),
        (
            lambda t: graphs.claim_graph(t, "dog is a", EVIDENCE, [(0, 1)], 3, 12),
            r"`edges` must be .* Received: \(0, 1\)",
        ),
        (lambda t: graphs.claim_graph(t, "dog is a", [], [], 3, 12), r"`nodes` must be 1 to 3. Received: 0"),
        (lambda t: graphs.claim_graph(t, "dog is a", EVIDENCE * 4, [], 3, 12), r"`nodes` must be 1 to 3. Received: 4"),
        (lambda t: graphs.claim_graph(t, " ", EVIDENCE, [], 3, 12), r"`texts` must be not empty. Received: ''"),
        (
            lambda t: graphs.claim_graph(t, "dog is a", EVIDENCE, [], 3, 5),
            r"`claim` must be shorter than 3 tokens. Received",
        ),
        (
            lambda t: graphs.question_graph(t, "who", EVIDENCE, [], 3, 9, "a", [1]),
            r"`answer_documents` must be below 1. Received: \[1\]",
        ),
        (lambda t: graphs.word_tokenizer(["a", "a"], 1), r"`words` must be distinct.*Received: \['a', 'a'\]"),
    ],
)
def test_bad_graphs_are_refused(call, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        call(tokenizer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary_size": 0}, "`vocabulary_size` must be positive"),
        ({"num_heads": 3}, "`num_heads` must be a divisor"),
        ({"num_hop_layers": 4}, "`num_hop_layers` must be from 0 to 3"),
        ({"num_hop_layers": -1}, "`num_hop_layers` must be from 0 to 3"),
        ({"hop_attention": "gcn"}, "`hop_attention` must be one of"),
        ({"sequence_length": 13}, "`sequence_length` must be <= 12"),
        ({"intermediate_dim": 0}, "`intermediate_dim` must be positive"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message + r".*Received: "):
        TransformerXHVerifier(**{**SIZES, **changes})


def test_the_encoder_alone_has_no_task():
    model = TransformerXH(**SIZES)
    with pytest.raises(NotImplementedError, match="TransformerXH defines no loss"):
        model.compute_loss({}, {}, {})


# === Claims of WordNet, and the experiment ===


def small_verifier():
    model = experiment._build(experiment.SHOWN, {"hidden_dim": 16, "intermediate_dim": 16})
    assert model.assets
    return model


@pytest.fixture(scope="module")
def verifier():
    return small_verifier()


def test_claims_are_linked_by_the_nouns_they_mention(verifier):
    claims = {name: array[:20] for name, array in load_arrays("wordnet_claims", "test").items()}
    inputs, targets = verifier.claim_arrays(claims)

    assert inputs["token_ids"].shape == (20, 6, 10) and inputs["padding_mask"].all() and inputs["node_mask"].all()
    for row in range(20):
        parents = [text.split()[1] for text in claims["evidence"][row].tolist()]
        wanted = np.array(claims["title"][row])[:, None] == np.array(parents)[None]
        np.testing.assert_array_equal(inputs["adjacency"][row], wanted)
    np.testing.assert_array_equal(targets["node_labels"], claims["evidence_label"])
    # The claim's nouns are the first two placeholders, whatever they are called.
    assert len(np.unique(inputs["token_ids"][:, :, 1])) == len(np.unique(inputs["token_ids"][:, :, 3])) == 1


def test_verify_says_labels_and_evidence(verifier):
    pages = [("pug", ["parent dog"]), ("dog", ["parent canine"]), ("lynx", ["parent feline"])]
    found = verifier.verify("pug grandparent canine", pages)

    assert found["label"] in LABELS and sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert found["probabilities"][found["label"]] == max(found["probabilities"].values())
    assert len(found["evidence"]) == 3 and all(0 < score < 1 for score in found["evidence"])
    renamed = [("x", ["parent y"]), ("y", ["parent z"]), ("v", ["parent w"])]
    assert verifier.verify("x grandparent z", renamed) == found
    with pytest.raises(ValueError, match="no tokenizer"):
        build().verify("a", pages)


def test_answer_gives_a_document_and_a_text():
    model = build(TransformerXHQuestionAnswerer, vocabulary_size=23, sequence_length=12)
    model.set_assets({"tokenizer.json": graphs.word_tokenizer(WORDS, 6)})
    documents = [("king", ["the king lives in a palace ."]), ("palace", ["a big palace ."])]
    found = model.answer("who lives", documents, [(0, 1)])

    assert found["title"] == documents[found["document"]][0]
    assert found["answer"] in documents[found["document"]][1][0] + " [SEP]"
    with pytest.raises(ValueError, match="`edges` must be"):
        model.answer("who lives", documents, [(0, 2)])


def test_held_out_claims_and_the_metric(verifier):
    assert list(verifier.real_inputs("predict")) == [] and verifier.task_metric() is None
    model = small_verifier()
    model.metadata = SimpleNamespace(evaluation_dataset="wordnet_claims")
    batch = next(iter(model.real_inputs("predict", 3)))
    model.signatures()["predict"].check(batch)
    truth = load_arrays("wordnet_claims", "test")["label"]
    answers = iter(np.array_split(np.eye(3)[truth], 20))
    metric = model.task_metric()

    assert metric.compute(lambda name, inputs: {"label_probs": next(answers)}) == 1.0
    assert metric.higher_is_better and metric.allowed(1.0) == 0.01


def test_mean_of_hubs_is_the_mean_logit():
    model = build(experiment.MeanVerifier)
    scores, logits = np.zeros((1, 3), "float32"), np.array([[[1, 2, 3], [3, 2, 2], [9, 9, 0]]], "float32")
    found = np.exp(model.mixture(scores, logits, np.array([[1, 1, 0]])))

    np.testing.assert_allclose(found[0], np.exp([2, 2, 2.5]) / np.exp([2, 2, 2.5]).sum(), rtol=1e-5)


def test_one_sequence_holds_all_sentences():
    claims = {name: array[:2] for name, array in experiment._claims(experiment.ONE_SEQUENCE, "test").items()}
    model = experiment._build(experiment.ONE_SEQUENCE, experiment.NETWORK)
    inputs, targets = model.claim_arrays(claims)

    assert inputs["token_ids"].shape == (2, 1, 35) and inputs["padding_mask"].all()
    assert (inputs["token_ids"] == model.tokenizer.token_to_id("[SEP]")).sum() == 2 * 13
    assert (targets["node_labels"] == -1).all()


@pytest.mark.parametrize(("one", "two", "shown"), [(0.01, 0.4, True), (0.3, 0.4, False), (0.0, -0.1, False)])
def test_verdict_can_say_both(one, two, shown):
    gains = {
        f"accuracy_{number}_evidence": {"mean": mean, "least": mean - 0.02}
        for number, mean in ((1, one), (2, two), (3, 0.3))
    }
    accuracies = {arm: {"mean": 0.5 + index / 20} for index, arm in enumerate(experiment.ARMS)}

    assert experiment.verdict(gains, accuracies, accuracies).startswith("Shows" if shown else "Does not show")


@pytest.mark.slow
def test_experiment_runs(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    experiment.reproduce(tmp_path, seeds=1, updates=2, network={"hidden_dim": 8, "intermediate_dim": 8})
    result = json.loads((tmp_path / "transformer_xh.json").read_text())

    assert set(result["accuracy"]) == set(experiment.ARMS)
    assert (tmp_path / "transformer_xh.png").stat().st_size > 10_000
    assert (tmp_path / "transformer_xh_attention.png").stat().st_size > 10_000
