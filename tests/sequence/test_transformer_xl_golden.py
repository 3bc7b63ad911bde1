"""Parity with Hugging Face's PyTorch Transformer-XL; the numbers are made by `tests/golden/make_transformer_xl.py`."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from zoo.sequence.transformer_xl import TransformerXL


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "golden" / "transformer_xl.npz", allow_pickle=False) as file:
        return dict(file)


def converted(golden):
    """Our model with their weights."""
    model = TransformerXL(
        vocabulary_size=30, num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=24, window_length=4,
        memory_length=6, untie_biases=True, cutoffs=(10, 20), cutoff_divisor=2, mask_empty=False,
    ).build_from_signature()  # fmt: skip

    def theirs(name):
        return golden[f"weight:{name}"]

    for i in range(3):
        model.embedding.tables[i].assign(theirs(f"transformer.word_emb.emb_layers.{i}.weight"))
        model.embedding.projections[i].assign(theirs(f"transformer.word_emb.emb_projs.{i}").T)
    for i, layer in enumerate(model.transformer_layers):
        prefix = f"transformer.layers.{i}."
        projections = np.split(theirs(prefix + "dec_attn.qkv_net.weight").T, 3, axis=1)
        attention = layer.attention
        attention.query.kernel.assign(projections[0])
        attention.key.kernel.assign(projections[1])
        attention.value.kernel.assign(projections[2])
        attention.relative.kernel.assign(theirs(prefix + "dec_attn.r_net.weight").T)
        attention.output_dense.kernel.assign(theirs(prefix + "dec_attn.o_net.weight").T)
        layer.attention_norm.set_weights([theirs(prefix + f"dec_attn.layer_norm.{w}") for w in ("weight", "bias")])
        layer.feed_forward_norm.set_weights([theirs(prefix + f"pos_ff.layer_norm.{w}") for w in ("weight", "bias")])
        for dense, index in ((layer.feed_forward.inner, 0), (layer.feed_forward.outer, 3)):
            net = prefix + f"pos_ff.CoreNet.{index}."
            dense.set_weights([theirs(net + "weight").T, theirs(net + "bias")])
    biases = [[theirs(f"transformer.layers.{i}.dec_attn.{b}") for i in range(2)] for b in ("r_w_bias", "r_r_bias")]
    for own, values in zip(model.attention_biases, biases, strict=True):
        own.assign(values)
    output = model.logits_layer
    output.projections[0].assign(theirs("crit.out_projs.0").T)
    output.bias.assign(np.concatenate([theirs(f"crit.out_layers.{i}.bias") for i in range(3)]))
    output.cluster_kernel.assign(theirs("crit.cluster_weight"))
    output.cluster_bias.assign(theirs("crit.cluster_bias"))
    return model


def test_three_segments_equal_the_pytorch_original(golden):
    model = converted(golden)
    state = model.initial_state(2)
    for index in range(3):
        logits, state = model.forward(tf.constant(golden[f"tokens_{index}"]), state)
        log_probs = logits - tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
        np.testing.assert_allclose(log_probs, golden[f"log_probs_{index}"].reshape(2, 4, 30), atol=1e-5)
        memory = golden[f"memory_{index}"].transpose(2, 0, 1, 3)
        np.testing.assert_allclose(state["memory"], memory[:, :2], atol=1e-5)


def test_golden_weights_are_tied_as_ours(golden):
    for i in (1, 2):
        tied = golden[f"weight:transformer.word_emb.emb_projs.{i}"], golden[f"weight:crit.out_projs.{i}"]
        np.testing.assert_array_equal(*tied)
