"""Reformers of Hugging Face: equal logits, and nothing taken on trust. `tests/golden/make_reformer.py` makes the files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo.sequence.reformer_conversion import automatic_buckets, constructor_arguments, from_hugging_face

GOLDEN = Path(__file__).parents[1] / "golden" / "reformer"
LSH_LAYERS = (1, 2)


def golden(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(params=["axial", "learned"])
def name(request):
    return request.param


@pytest.mark.parametrize("case", ["hashed", "one_bucket", "short"])
def test_logits_equal_the_pytorch_original(name, case):
    arrays = golden(name)
    model = zoo.get("reformer", weights=GOLDEN / name)
    keys = {layer: f"{case}_rotations_{layer}" for layer in LSH_LAYERS}
    rotations = {layer: arrays[key] for layer, key in keys.items() if key in arrays}
    assert len(rotations) == (0 if case == "short" else 2)
    assert all(rotations[layer].any() == (case == "hashed") for layer in rotations)
    found = np.asarray(model.read(arrays[f"{case}_tokens"], rotations=rotations))
    np.testing.assert_allclose(found, arrays[f"{case}_logits"], atol=1e-5)


@pytest.mark.parametrize("option", ["attend_across_buckets", "allow_duplicates", "wrap_chunks"])
def test_their_options_matter(option):
    arrays = golden("axial")
    options = dict(attend_across_buckets=True, allow_duplicates=True, wrap_chunks=True) | {option: False}
    options["wrap_chunks"] &= options["allow_duplicates"]
    model = zoo.get("reformer", weights=GOLDEN / "axial", **options)
    rotations = {layer: arrays[f"hashed_rotations_{layer}"] for layer in LSH_LAYERS}
    found = np.asarray(model.read(arrays["hashed_tokens"], rotations=rotations))
    assert np.abs(found - arrays["hashed_logits"]).max() > 1e-3


def test_with_one_bucket_the_paper_s_attention_gives_the_same():
    """All rounds find the same keys: counting them once or thrice makes no difference to their average."""
    arrays = golden("axial")
    options = dict(attend_across_buckets=False, allow_duplicates=False, wrap_chunks=False)
    model = zoo.get("reformer", weights=str(GOLDEN / "axial"), **options)
    rotations = {layer: arrays[f"one_bucket_rotations_{layer}"] for layer in LSH_LAYERS}
    found = np.asarray(model.read(arrays["one_bucket_tokens"], rotations=rotations))
    np.testing.assert_allclose(found, arrays["one_bucket_logits"], atol=1e-4)


def test_converted_models_are_saved_as_ours(tmp_path):
    model = zoo.get("reformer", weights=GOLDEN / "learned")
    model.save_to_preset(tmp_path / "ours")
    again = zoo.get("reformer", weights=tmp_path / "ours")
    tokens = golden("learned")["hashed_tokens"]
    np.testing.assert_array_equal(model(tokens), again(tokens))


# === What must not pass ===


@pytest.fixture
def directory(tmp_path):
    return Path(shutil.copytree(GOLDEN / "axial", tmp_path / "theirs"))


def with_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def with_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return directory


def refused(directory, match):
    with pytest.raises(ValueError, match=match):
        zoo.get("reformer", weights=directory)


def test_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(directory, r"must hold 'model.safetensors'.*Received: \['config.json', 'pytorch_model.bin'\]")


def test_parts_of_weights_are_refused(directory):
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    refused(directory, "must hold 'model.safetensors'")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("lm_head.decoder.weight"), r"1 missing \['lm_head.decoder.weight'\], 0 unknown"),
        (lambda t: t.update(classifier=np.zeros(3, "float32")), r"0 missing \[\], 1 unknown \['classifier'\]"),
        (lambda t: t.update({"lm_head.bias": np.zeros(5, "float32")}), "'lm_head.bias' must have shape"),
        (lambda t: t.update({"lm_head.bias": np.full(17, np.nan, "float32")}), "'lm_head.bias' must hold finite numbers"),
        (lambda t: t.update({"lm_head.bias": np.zeros(17, "int32")}), "'lm_head.bias' must hold finite numbers"),
        (lambda t: t.update({"lm_head.decoder.bias": np.ones(17, "float32")}), "decoder.bias' must be 'lm_head.bias'"),
        (lambda t: t.update({"x.mask_value_float32": np.array(-5.0, "float32")}), "must be -1000000000.0"),
    ],
)  # fmt: skip
def test_every_weight_has_its_place(directory, change, match):
    refused(with_tensors(directory, change), match)


def test_known_copies_and_constants_are_no_weights(directory):
    def change(tensors):
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].copy()
        tensors["reformer.encoder.layers.1.attention.self_attention.self_mask_value_float32"] = np.array(
            -1e5, "float32"
        )

    expected = zoo.get("reformer", weights=GOLDEN / "axial").get_weights()
    found = zoo.get("reformer", weights=with_tensors(directory, change)).get_weights()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_damaged_file_is_refused(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(directory, "'model.safetensors' is no valid weights file")


def test_a_file_that_is_too_large_is_refused(directory, monkeypatch):
    monkeypatch.setattr("zoo.hugging_face.MAXIMUM_ASSET", 0)
    with_tensors(directory, lambda t: t.update(padding=np.zeros(100_000, "float32")))
    refused(directory, "'model.safetensors' may have at most")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(model_type="bert"), "must be of a 'ReformerModelWithLMHead'.*bert"),
        (dict(architectures=["ReformerForMaskedLM"]), "must be of a 'ReformerModelWithLMHead'"),
        (dict(is_decoder=False), "`is_decoder` in 'config.json' must be True"),
        (dict(lsh_num_chunks_before=2), "`lsh_num_chunks_before` in 'config.json' must be 1"),
        (dict(tie_word_embeddings=True), "`tie_word_embeddings` in 'config.json' must be False"),
        (dict(hidden_act="tanh"), "`hidden_act` in 'config.json' must be one of"),
        (dict(hidden_size="12"), "`hidden_size` in 'config.json' must be of the kind of 256"),
        (dict(num_buckets=[2.0, 4]), "`num_buckets` in 'config.json' must be of the kind of None"),
        (dict(num_buckets=3), "`num_buckets` must be"),
        (dict(attn_layers=["lsh", "linear", "local"]), "`attention_layers` must be"),
        (dict(axial_pos_shape=[4, 9]), "'reformer.embeddings.position_embeddings.weights.1' must have shape"),
    ],
    ids=str,
)  # fmt: skip
def test_other_configurations_are_refused(directory, changes, match):
    refused(with_config(directory, **changes), match)


def test_other_methods_do_not_take_them():
    with pytest.raises(ValueError, match=r"must hold 'metadata\.json'"):
        zoo.get("transformer_xl", weights=GOLDEN / "axial")


def test_overrides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="must have shape"):
        from_hugging_face(GOLDEN / "axial", {"intermediate_dim": 21})


def test_numbers_of_buckets_are_picked_as_theirs():
    given = constructor_arguments(json.loads((GOLDEN / "learned" / "config.json").read_text()))
    assert given["num_buckets"] == 8 and given["feed_forward_chunks"] == 8
    large = dict(lsh_attn_chunk_length=64, max_position_embeddings=524_288)
    assert automatic_buckets(524_288, large) == [128, 128]
    assert automatic_buckets(4096, large) == 128
    assert automatic_buckets(3000, large) == 64
    assert automatic_buckets(64, large) is None
