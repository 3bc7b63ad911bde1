import errno
import hashlib
import http.server
import json
import os
import shutil
import socket
import sys
import threading
import types
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo
from zoo import catalog, checkpoints, files, hub
from zoo.metadata import Metadata
from zoo.model import Signature, Spec, ZooModel

WEIGHT = "blocks/container/dense/vars/0"


@keras.saving.register_keras_serializable(package="test_checkpoints")
class Toy(ZooModel):
    def __init__(self, units=3, dropout=0.1, scales=(1.0,), words=None, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dropout, self.scales, self.words = units, dropout, list(scales), words
        self.blocks = [[keras.layers.Dense(units)], [keras.layers.Dense(units)]]
        self.drop = keras.layers.Dropout(dropout)
        self.norm = keras.layers.BatchNormalization()
        self.loss_tracker = keras.metrics.Mean()
        self.text = b""

    def call(self, x, training=False):
        for (block,) in self.blocks:
            x = block(x)
        return self.norm(self.drop(x, training=training))

    def get_config(self):
        own = {"units": self.units, "dropout": self.dropout, "scales": self.scales, "words": self.words}
        return {**super().get_config(), **own}

    def signatures(self):
        inputs = {"x": Spec(("batch", 3))}
        return {"predict": Signature(lambda x: {"y": self(x)}, inputs, {"y": "prediction"})}

    @property
    def assets(self):
        return {"text.txt": self.text} if self.text else {}

    def set_assets(self, assets):
        self.text = assets["text.txt"]


@keras.saving.register_keras_serializable(package="test_checkpoints")
class OtherToy(Toy):
    pass


class Plain(keras.Sequential):
    def __init__(self, units=2):
        super().__init__([keras.Input((4,)), keras.layers.Dense(units)])
        self.units = units

    def get_config(self):
        return {"units": self.units}


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOO_OFFLINE", raising=False)
    presets = {"base": {"units": 3}, "wide": {"units": 5}}
    for name, model_class in {"toy": Toy, "other_toy": OtherToy, "plain_toy": Plain}.items():
        zoo.register(model_class, name=name, title="", task="test", presets=presets)
    yield
    for name in ("toy", "other_toy", "plain_toy"):
        zoo.unregister(name)


@pytest.fixture
def model():
    keras.utils.set_random_seed(1)
    toy = zoo.get("toy", weights=None)
    for weight in toy.weights:
        weight.assign(keras.random.normal(weight.shape))
    toy.text = "Hello.".encode("utf-16")
    return toy


@pytest.fixture
def preset(model, tmp_path):
    return model.save_to_preset(tmp_path / "presets" / "one", preset="base", metrics={"test_error": 0.25})


def values(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def assert_same(one, other):
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.get_config().keys() == other.get_config().keys()


def snapshot(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def seal(directory, **changes):
    """Writes metadata whose hashes agree with the files: what an attacker would do."""
    fields = json.loads((directory / "metadata.json").read_text())
    del fields["checksum"]
    fields["files"] = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
        for name in fields["files"]
        if (directory / name).is_file()
    }
    fields["weights_sha256"] = hashlib.sha256((directory / "model.weights.h5").read_bytes()).hexdigest()
    fields |= changes
    (directory / "metadata.json").write_text(checksummed(fields))


def checksummed(fields):
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return json.dumps({**fields, "checksum": digest})


# === Round trips ===


def test_round_trip_is_exact(model, preset):
    loaded = zoo.get("toy", weights=preset)

    assert_same(model, loaded)
    assert loaded.text == model.text
    assert loaded.metadata == model.metadata
    assert loaded.metadata.metrics == {"test_error": 0.25}
    assert (loaded.metadata.method, loaded.metadata.preset) == ("toy", "base")
    assert loaded.metadata.parameters == 36


def test_method_comes_from_the_metadata_where_none_is_given(model, preset):
    loaded = checkpoints.load_preset(str(preset))

    assert type(loaded) is Toy
    assert_same(model, loaded)


def test_float16_halves_the_weights_and_loads_into_float32(model, tmp_path):
    directory = model.save_to_preset(tmp_path / "half", weights_dtype="float16")
    loaded = checkpoints.load_preset(directory)

    with h5py.File(directory / "model.weights.h5") as file:
        assert file[WEIGHT].dtype == "float16"
    for a, b in zip(values(model), values(loaded), strict=True):
        assert b.dtype == "float32"
        np.testing.assert_array_equal(a.astype("float16").astype("float32"), b)


def test_bfloat16_variables_keep_their_values(tmp_path):
    toy = zoo.get("toy", weights=None, dtype="bfloat16")
    directory = toy.save_to_preset(tmp_path / "brain")
    loaded = checkpoints.load_preset(directory)

    for a, b in zip(values(toy), values(loaded), strict=True):
        np.testing.assert_array_equal(a.astype("float32"), b)


def test_trained_model_is_saved_without_its_optimizer(model, tmp_path):
    model.compile("adam", "mse")
    model.fit(np.ones((8, 3)), np.ones((8, 3)), verbose=0)
    loaded = checkpoints.load_preset(model.save_to_preset(tmp_path / "trained"))

    assert_same(model, loaded)


def test_optimizer_that_is_an_attribute_is_not_saved(model, tmp_path):
    model.discriminator_optimizer = keras.optimizers.Adam()
    model.discriminator_optimizer.build(model.trainable_variables)

    assert_same(model, checkpoints.load_preset(model.save_to_preset(tmp_path / "gan")))


def test_variables_that_are_no_weights_are_noticed(model, tmp_path):
    model.optimizers = {"critic": keras.optimizers.Adam()}
    model.optimizers["critic"].build(model.trainable_variables)

    with pytest.raises(
        ValueError, match=r"Keras must store exactly the weights of Toy.*36 values in weights, 98 stored"
    ):
        model.save_to_preset(tmp_path / "p")


def test_same_model_gives_same_bytes(model, tmp_path):
    one = snapshot(model.save_to_preset(tmp_path / "one"))
    keras.layers.Dense(3)  # moves the counter of automatic names on
    other = snapshot(checkpoints.load_preset(tmp_path / "one").save_to_preset(tmp_path / "other"))

    assert one == other


def test_date_can_be_fixed(model, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    model.save_to_preset(tmp_path / "p")

    assert model.metadata.created == "2020-09-13"


def test_keras_itself_reads_the_weights_file(model, preset):
    fresh = zoo.get("toy", weights=None)
    fresh.load_weights(preset / "model.weights.h5")

    assert_same(model, fresh)


def test_plain_keras_model_round_trip(tmp_path):
    plain = zoo.get("plain_toy", weights=None)
    loaded = zoo.get("plain_toy", weights=checkpoints.save_preset(plain, tmp_path / "p"))

    assert type(loaded) is Plain
    for a, b in zip(values(plain), values(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


def test_build_takes_presets_and_overrides():
    assert zoo.get("toy", "wide", weights=None).units == 5
    assert zoo.get("toy", "wide", weights=None, units=6, trainable=False).units == 6


def test_unknown_override_lists_the_valid_arguments():
    with pytest.raises(ValueError, match=r"among \['units', 'dropout', 'scales', 'words', 'name', .*'unit'"):
        zoo.get("toy", weights=None, unit=3)


def test_overrides_that_keep_the_weights_are_taken(model, preset):
    loaded = zoo.get("toy", weights=preset, dropout=0.0)

    assert loaded.dropout == 0.0
    assert_same(model, loaded)


def test_override_that_contradicts_the_weights_is_named(preset):
    with pytest.raises(ValueError, match=r"36 parameters.*Received: overrides=\{'units': 4\}, which give 52"):
        zoo.get("toy", weights=preset, units=4)


# === Saving refuses ===


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(model, tmp_path, value):
    model.norm.gamma.assign([1.0, value, 1.0])
    with pytest.raises(
        ValueError, match=r"float32. Received: 1 NaN or infinite values in 'layers/batch_normalization/"
    ):
        model.save_to_preset(tmp_path / "p")

    assert not list(tmp_path.iterdir())
    assert model.metadata is None


def test_weights_that_overflow_float16_are_refused(model, tmp_path):
    model.norm.gamma.assign([1.0, 1e6, 1.0])
    with pytest.raises(ValueError, match="finite as float16"):
        model.save_to_preset(tmp_path / "p", weights_dtype="float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights_dtype": "int8"}, "`weights_dtype` must be"),
        ({"method": "other_toy"}, "must be of method 'other_toy'"),
        ({"method": "toi"}, "Did you mean"),
        ({"metrics": {"error": float("nan")}}, "`metrics` must hold finite numbers"),
        ({"training": {"steps": {1, 2}}}, "`training.steps` must be"),
        ({"training": {1: 2}}, "`training` must have strings as keys"),
        ({"dataset": {"options": {"noise": float("inf")}}}, "`dataset.options.noise` must be"),
        ({"licence": 3}, "`licence` must be of type str"),
    ],
)
def test_bad_arguments_leave_nothing(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.save_to_preset(tmp_path / "p", **arguments)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({1: "a"}, "`words` must have strings as keys"),
        (object(), "`words` must be"),
        (np.float32(1), "`words` must be"),
        (keras.layers.serialize(keras.layers.Dense(1)), "serialised objects"),
    ],
)
def test_config_that_json_does_not_keep_is_refused(tmp_path, words, message):
    toy = zoo.get("toy", weights=None)
    toy.get_config = lambda: {"units": 3, "words": words}
    with pytest.raises(ValueError, match=message):
        toy.save_to_preset(tmp_path / "p")


def test_config_that_the_constructor_does_not_take_is_refused(model, tmp_path):
    model.get_config = lambda: {"units": 3, "colour": "red"}
    with pytest.raises(ValueError, match=r"must return constructor arguments. Received: \['colour'\]"):
        model.save_to_preset(tmp_path / "p")


@pytest.mark.parametrize("name", ["../a", "/a", "metadata.json", "model.weights.h5", ".a", "", "a/b", "a\\b", "é"])
def test_asset_names_must_be_plain(tmp_path, name):
    toy = zoo.get("toy", weights=None)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="plain name"):
        patch.setattr(Toy, "assets", {name: b""})
        toy.save_to_preset(tmp_path / "p")


def test_model_of_no_method_is_refused(tmp_path):
    sequential = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"one method of the catalog.*Received: a Sequential"):
        checkpoints.save_preset(sequential, tmp_path / "p")


def test_model_that_is_not_built_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be built"):
        Toy().save_to_preset(tmp_path / "p")


def test_directory_with_something_else_is_not_replaced(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"this one lacks \['config.json'"):
        model.save_to_preset(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_preset_and_empty_directories_are_replaced(model, preset, tmp_path):
    model.units = 3
    model.norm.gamma.assign([7.0, 7.0, 7.0])
    model.save_to_preset(preset)
    (tmp_path / "empty").mkdir()
    model.save_to_preset(tmp_path / "empty")

    assert_same(model, checkpoints.load_preset(preset))
    assert_same(model, checkpoints.load_preset(tmp_path / "empty"))


# === Failures while saving ===


def test_full_disk_leaves_the_old_preset_and_nothing_else(model, preset, monkeypatch):
    before = snapshot(preset.parent)
    model.norm.gamma.assign([7.0, 7.0, 7.0])

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    for target in ((h5py.Group, "create_dataset"), (Path, "write_bytes"), (os, "fsync"), (os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(*target, full)
            model.save_to_preset(preset)
        assert snapshot(preset.parent) == before


def die_at(step):
    """Lets this process die at the n-th call that changes the disk."""
    calls = []

    def dying(function):
        def call(*args, **kwargs):
            calls.append(function)
            if len(calls) == step:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for owner, name in (
        *((os, name) for name in ("fsync", "replace", "rmdir", "unlink", "rename")),
        *((Path, name) for name in ("write_bytes", "mkdir")),
        (h5py.Group, "create_dataset"),
        (h5py.File, "close"),
    ):
        setattr(owner, name, dying(getattr(owner, name)))


def save_in_child(model, directory, step):
    child = os.fork()
    if child == 0:
        die_at(step)
        model.save_to_preset(directory)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole_weights(directory):
    """Returns the hash of the weights, once all files agree with the metadata."""
    files.restore_directory(directory)
    metadata = Metadata.from_json((directory / "metadata.json").read_bytes())
    expected = {**metadata.files, "model.weights.h5": metadata.weights_sha256}
    assert {name: files.sha256(directory / name) for name in expected} == expected
    return metadata.weights_sha256


def test_killed_at_every_step_leaves_the_old_or_the_new_preset(model, preset):
    old = whole_weights(preset)
    model.norm.gamma.assign([7.0, 7.0, 7.0])
    stays, step, code = [], 0, 9
    while code == 9:
        step += 1
        code = save_in_child(model, preset, step)
        stays.append(whole_weights(preset) == old)

    assert code == 0
    assert step > 20
    assert stays == sorted(stays, reverse=True), "once the new one stands it stays"
    assert stays[0]
    assert not stays[-1]
    assert_same(model, checkpoints.load_preset(preset))
    assert [path.name for path in preset.parent.iterdir() if not path.name.startswith(".")] == ["one"]


# === Loading refuses ===


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json", "text.txt"])
def test_damaged_files_are_refused(preset, name):
    path = preset / name
    data = path.read_bytes()
    for position in np.linspace(0, len(data) - 1, 12).astype(int):
        path.write_bytes(flipped(data, position))
        with pytest.raises(ValueError, match=r"damaged|metadata|format_version|must be"):
            checkpoints.load_preset(preset)
    for size in (0, 1, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"damaged|metadata"):
            checkpoints.load_preset(preset)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json", "text.txt"])
def test_missing_files_are_named(preset, name):
    (preset / name).unlink()
    with pytest.raises(ValueError, match=f"must hold '{name}'"):
        checkpoints.load_preset(preset)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json", "text.txt"])
def test_no_file_but_the_metadata_is_parsed_before_its_hash_matches(preset, name, monkeypatch):
    def never(*args, **kwargs):
        pytest.fail("parsed")

    monkeypatch.setattr("zoo.config.parse_json", never)
    monkeypatch.setattr(h5py, "File", never)
    (preset / name).write_bytes(flipped((preset / name).read_bytes(), 9))
    with pytest.raises(ValueError):
        checkpoints.load_preset(preset)


def test_no_directory_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such preset directory"):
        zoo.get("toy", weights=tmp_path / "nothing")


def test_file_for_a_directory_is_refused(preset):
    with pytest.raises(ValueError, match=r"must hold 'metadata.json'"):
        zoo.get("toy", weights=preset / "config.json")


def test_wrong_method_is_named(preset):
    with pytest.raises(ValueError, match=r"must be of method 'other_toy'. Received: one of 'toy'"):
        zoo.get("other_toy", weights=preset)


def test_unknown_method_offers_the_closest(preset):
    seal(preset, method="toyy")
    with pytest.raises(ValueError, match=r"Did you mean 'toy'"):
        checkpoints.load_preset(preset)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_wrong_version_is_refused(preset, version):
    seal(preset, format_version=version)
    with pytest.raises(ValueError, match="`format_version` must be 1"):
        checkpoints.load_preset(preset)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a/b.txt", "..", "", "metadata.json", "a\x00b"])
def test_names_that_lead_out_are_refused(preset, name):
    fields = json.loads((preset / "metadata.json").read_text())
    seal(preset, files={**fields["files"], name: "0" * 64})
    with pytest.raises(ValueError, match="plain name"):
        checkpoints.load_preset(preset)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json", "text.txt"])
def test_links_that_lead_out_are_refused(preset, tmp_path, name):
    outside = tmp_path / name
    shutil.move(preset / name, outside)
    (preset / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"'{name}' as a regular file"):
        checkpoints.load_preset(preset)


def test_links_inside_are_followed(model, preset):
    (preset / "text.txt").rename(preset / "blob")
    (preset / "text.txt").symlink_to("blob")

    assert checkpoints.load_preset(preset).text == model.text


def test_pipe_does_not_hang(preset):
    (preset / "text.txt").unlink()
    os.mkfifo(preset / "text.txt")
    with pytest.raises(ValueError, match="regular file"):
        checkpoints.load_preset(preset)


def test_large_files_are_refused_before_they_are_read(preset):
    for name in ("text.txt", "config.json", "model.weights.h5", "metadata.json"):
        data = (preset / name).read_bytes()
        with (preset / name).open("r+b") as file:
            file.truncate(1 << 34)  # sparse
        with pytest.raises(ValueError, match=f"'{name}' may have at most"):
            checkpoints.load_preset(preset)
        (preset / name).write_bytes(data)


SERIALISED = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}, "registered_name": None}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"class_name": "test_checkpoints>OtherToy", "config": {}}, "`class_name` in 'config.json' must be"),
        ({"class_name": "os.system", "config": {}}, "`class_name` in 'config.json' must be"),
        ({"class_name": ["test_checkpoints>Toy"], "config": {}}, "`class_name` in 'config.json' must be"),
        ({"class_name": "test_checkpoints>Toy"}, "exactly `class_name` and `config`"),
        ({"class_name": "test_checkpoints>Toy", "config": {}, "module": "os"}, "exactly `class_name` and `config`"),
        ({"class_name": "test_checkpoints>Toy", "config": []}, "exactly `class_name` and `config`"),
        ([], "exactly `class_name` and `config`"),
        ({"class_name": "test_checkpoints>Toy", "config": {"units": 3, "hook": 1}}, "must be among"),
        ({"class_name": "test_checkpoints>Toy", "config": {"words": SERIALISED}}, "serialised objects"),
        ({"class_name": "test_checkpoints>Toy", "config": {"words": [{"a": [SERIALISED]}]}}, "serialised objects"),
        ({"class_name": "test_checkpoints>Toy", "config": {"units": 4}}, "must fit the trained weights"),
    ],
)
def test_config_with_good_hash_and_bad_content_is_refused(preset, config, message):
    (preset / "config.json").write_text(json.dumps(config))
    seal(preset)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_preset(preset)


def test_assets_for_a_model_that_takes_none_are_refused(tmp_path):
    directory = checkpoints.save_preset(zoo.get("plain_toy", weights=None), tmp_path / "p")
    (directory / "text.txt").write_text("x")
    fields = json.loads((directory / "metadata.json").read_text())
    seal(directory, files={**fields["files"], "text.txt": hashlib.sha256(b"x").hexdigest()})
    with pytest.raises(ValueError, match="Only a ZooModel has assets"):
        checkpoints.load_preset(directory)


# === Weights files with a good hash and bad content ===


def external_link(file):
    file["blocks/container/dense/vars"].move("0", "1000")
    file[WEIGHT] = h5py.ExternalLink("/etc/hostname", "/x")
    del file["blocks/container/dense/vars/1000"]


def soft_link(file):
    del file[WEIGHT]
    file[WEIGHT] = h5py.SoftLink("/blocks/container_1/dense/vars/0")


def hard_link(file):
    del file[WEIGHT]
    file[WEIGHT] = file["blocks/container_1/dense/vars/0"]


def loop(file):
    file["blocks/loop"] = file["/"]
    file["x"] = [1.0]


def virtual(file):
    del file[WEIGHT]
    source = h5py.VirtualLayout((3, 3), "float32")
    source[:] = h5py.VirtualSource("/etc/hostname", "x", (3, 3))
    file.create_virtual_dataset(WEIGHT, source)


def outside(file):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (3, 3), "float32", external=[("/etc/hostname", 0, 36)])


def compressed(file):
    value = file[WEIGHT][()]
    del file[WEIGHT]
    file.create_dataset(WEIGHT, data=value, compression="gzip")


def never_written(file):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (3, 3), "float32")


def text(file):
    del file[WEIGHT]
    file[WEIGHT] = np.full((3, 3), b"x")


def group_for_a_weight(file):
    del file[WEIGHT]
    file.create_group(WEIGHT)


def shape_bomb(file):
    del file[WEIGHT]
    file.create_dataset(WEIGHT, (1 << 40,), "float32", chunks=(1 << 10,), fillvalue=1.0)


def transposed(file):
    del file["layers/batch_normalization/vars/0"]
    file["layers/batch_normalization/vars/0"] = np.ones((3, 1), "float32")


def missing(file):
    del file[WEIGHT]


def extra(file):
    file["blocks/container_2/dense/vars/0"] = np.ones(3, "float32")


def renamed(file):
    file.move("blocks/container_1", "blocks/container_7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, r"must not hold links. Received: ExternalLink"),
        (soft_link, r"must not hold links. Received: SoftLink"),
        (hard_link, r"1 missing \['blocks/container"),
        (loop, r"1 unknown \['x'\]"),
        (virtual, r"stored as plain numbers.*virtual=True"),
        (outside, r"stored as plain numbers.*external=\["),
        (compressed, r"stored as plain numbers.*chunks=\(3, 3\)"),
        (never_written, r"stored as plain numbers.* 0 of 36 bytes"),
        (text, r"stored as plain numbers.*dtype=\|S1"),
        (group_for_a_weight, r"1 missing"),
        (shape_bomb, r"must have shape \(3, 3\). Received: shape=\(1099511627776,\)"),
        (transposed, r"must have shape \(3,\). Received: shape=\(3, 1\)"),
        (missing, r"1 missing \['blocks/container/dense/vars/0'\], 0 unknown"),
        (extra, r"0 missing \[\], 1 unknown \['blocks/container_2/dense/vars/0'\]"),
        (renamed, r"2 missing .*2 unknown"),
    ],
)
def test_weights_that_do_not_fit_are_refused(preset, change, message):
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        change(file)
    seal(preset)
    with pytest.raises(ValueError, match=message):
        checkpoints.load_preset(preset)


@pytest.mark.parametrize("size", [0, 8, 100, 1000, 3000])
def test_no_hdf5_file_is_refused(preset, size):
    path = preset / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:size])
    seal(preset)
    with pytest.raises(ValueError, match="no valid weights file"):
        checkpoints.load_preset(preset)


# === Fuzzing ===


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["replace", "insert", "delete"]), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)
FUZZ = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def edited(data, edits):
    for place, kind, byte in edits:
        position = int(place * (len(data) - 1))
        new = b"" if kind == "delete" else bytes([byte])
        data = data[:position] + new + data[position + (kind != "insert") :]
    return data


@settings(FUZZ, max_examples=40)
@given(edits=EDITS, name=st.sampled_from(["metadata.json", "config.json"]))
def test_edited_preset_is_refused_or_is_the_same(model, preset, edits, name):
    data = (preset / name).read_bytes()
    (preset / name).write_bytes(edited(data, edits))
    try:
        assert_same(model, checkpoints.load_preset(preset))
        assert name == "metadata.json" or edited(data, edits) == data
    except ValueError:
        pass
    finally:
        (preset / name).write_bytes(data)


@settings(FUZZ, max_examples=40)
@given(edits=EDITS)
def test_edited_config_with_good_hash_is_refused_or_keeps_the_weights_shapes(model, preset, edits):
    data, record = (preset / "config.json").read_bytes(), (preset / "metadata.json").read_bytes()
    (preset / "config.json").write_bytes(edited(data, edits))
    seal(preset)
    try:
        loaded = checkpoints.load_preset(preset)
        assert loaded.units == 3
    except (ValueError, TypeError):  # TypeError: the constructor's own, for a value of another type
        pass
    finally:
        (preset / "config.json").write_bytes(data)
        (preset / "metadata.json").write_bytes(record)


# === Addresses ===


class Handler(http.server.SimpleHTTPRequestHandler):
    requested: list

    def do_GET(self):
        self.requested.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}{self.path[6:]}")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(preset, monkeypatch):
    """Serves the preset's parent directory; plain http:// to this server counts as https:// here."""
    handler = type("Recorder", (Handler,), {"requested": []})

    def make(*args):
        return handler(*args, directory=str(preset.parent))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(hub, "_SCHEMES", (address, "hf://"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield types.SimpleNamespace(address=address, requested=handler.requested)
        running.shutdown()


def digest_of(preset):
    return hashlib.sha256((preset / "metadata.json").read_bytes()).hexdigest()


def test_preset_is_downloaded_once(model, server):
    address = f"{server.address}/one/"
    assert_same(model, checkpoints.load_preset(address))
    first = sorted(server.requested)
    server.requested.clear()
    assert_same(model, checkpoints.load_preset(address))

    assert first == ["/one/config.json", "/one/metadata.json", "/one/model.weights.h5", "/one/text.txt"]
    assert server.requested == ["/one/metadata.json"]


def test_pinned_preset_is_not_asked_for_again(model, server, preset):
    address = f"{server.address}/one#sha256={digest_of(preset)}"
    zoo.get("toy", weights=address)
    server.requested.clear()

    assert_same(model, zoo.get("toy", weights=address))
    assert server.requested == []


def test_offline_opens_no_socket(model, server, monkeypatch):
    address = f"{server.address}/one"
    checkpoints.load_preset(address)

    def never(*args, **kwargs):
        pytest.fail("opened a socket")

    monkeypatch.setattr(socket, "socket", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert_same(model, checkpoints.load_preset(address, offline=True))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert_same(model, zoo.get("toy", weights=address))
    for other in (f"{server.address}/two", f"{address}#sha256={'0' * 64}", "hf://user/repository"):
        with pytest.raises(FileNotFoundError, match="Offline, and the cache"):
            zoo.get("toy", weights=other)


def test_new_preset_at_the_address_replaces_the_old_one(model, server, preset):
    checkpoints.load_preset(f"{server.address}/one")
    model.norm.gamma.assign([7.0, 7.0, 7.0])
    model.save_to_preset(preset)

    assert_same(model, checkpoints.load_preset(f"{server.address}/one"))


def test_damaged_copy_in_the_cache_is_mended(model, server):
    checkpoints.load_preset(f"{server.address}/one")
    for name in ("model.weights.h5", "metadata.json"):
        (copy,) = hub.cache_directory().glob(f"*/{name}")
        copy.write_bytes(b"x")
        assert_same(model, checkpoints.load_preset(f"{server.address}/one"))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "text.txt", "metadata.json"])
def test_tampered_download_is_refused_and_leaves_nothing(server, preset, name):
    address = f"{server.address}/one#sha256={digest_of(preset)}"
    (preset / name).write_bytes(flipped((preset / name).read_bytes(), 9))
    with pytest.raises(ValueError, match="does not match"):
        checkpoints.load_preset(address)

    assert not list(hub.cache_directory().glob("*"))


def test_endless_download_is_cut_off(server, preset):
    with (preset / "text.txt").open("r+b") as file:
        file.truncate(1 << 28)
    with pytest.raises(ValueError, match="may have at most 67108864 bytes"):
        checkpoints.load_preset(f"{server.address}/one")


def test_redirect_to_another_scheme_is_refused(server):
    with pytest.raises(ValueError, match="must not lead away"):
        checkpoints.load_preset(f"{server.address}/moved/one")


def test_nothing_at_the_address_is_a_connection_error(server):
    with pytest.raises(ConnectionError, match="404"):
        checkpoints.load_preset(f"{server.address}/nothing")


@pytest.mark.parametrize(
    "source",
    [
        "http://example.org/preset",
        "file:///tmp/preset",
        "ftp://example.org/preset",
        "https://example.org/preset#sha256=abc",
        "https://example.org/preset#md5=abc",
        "hf://user",
        "hf://user/../x",
        "hf://user/repository/../../other",
        "hf://user/repository@",
        "hf://user/repository@a/../b",
    ],
)
def test_malformed_addresses_are_refused(source):
    with pytest.raises(ValueError, match=r"address (must|may).*Received"):
        checkpoints.load_preset(source)


@pytest.fixture
def fake_hub(preset, monkeypatch):
    """A stand-in for huggingface_hub that serves the preset's parent directory."""
    asked = []

    def url(repository, file, revision=None):
        return f"{repository}|{file}|{revision}"

    def metadata(address):
        path = preset.parent / address.split("|")[1]
        if not path.is_file():
            raise OSError("404 Client Error")
        return types.SimpleNamespace(size=path.stat().st_size)

    def download(repository, file, revision=None, local_dir=None):
        asked.append((repository, file, revision))
        target = Path(local_dir) / file
        target.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(preset.parent / file, target))

    module = types.SimpleNamespace(hf_hub_url=url, get_hf_file_metadata=metadata, hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", types.SimpleNamespace(HTTPError=RuntimeError))
    return asked


def test_hf_address_with_folder_and_revision(model, fake_hub):
    assert_same(model, zoo.get("toy", weights="hf://user/repository/one@v1.0"))
    assert set(fake_hub) == {
        ("user/repository", f"one/{name}", "v1.0")
        for name in ("config.json", "metadata.json", "model.weights.h5", "text.txt")
    }
    assert_same(model, zoo.get("toy", weights="hf://user/repository/one@v1.0"))
    assert len(fake_hub) == 5


def test_hf_file_that_was_changed_is_refused(fake_hub, preset):
    (preset / "text.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"'one/text.txt' must have SHA-256"):
        zoo.get("toy", weights="hf://user/repository/one")

    assert not list(hub.cache_directory().glob("*"))


def test_hf_file_that_is_too_large_is_refused(fake_hub, preset):
    with (preset / "text.txt").open("r+b") as file:
        file.truncate(1 << 28)
    with pytest.raises(ValueError, match="may have at most 67108864 bytes"):
        zoo.get("toy", weights="hf://user/repository/one")


def test_hf_repository_that_is_not_there_is_a_connection_error(fake_hub):
    with pytest.raises(ConnectionError, match="404 Client Error"):
        zoo.get("toy", weights="hf://user/repository/two")


def test_hf_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'method-zoo\[hub\]'"):
        zoo.get("toy", weights="hf://user/repository")


def test_hub_offers_what_is_used():
    import huggingface_hub

    assert callable(huggingface_hub.hf_hub_download)
    assert "user/repository" in huggingface_hub.hf_hub_url("user/repository", "one/config.json", revision="v1.0")
    assert callable(huggingface_hub.get_hf_file_metadata)


def test_cache_is_in_the_users_directory_by_default(monkeypatch):
    monkeypatch.delenv("ZOO_CACHE_DIR")

    assert hub.cache_directory().parts[-2:] == ("method-zoo", "presets")


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_offline_by_environment(monkeypatch, value, offline):
    monkeypatch.setenv("ZOO_OFFLINE", value)

    assert hub.is_offline() is offline
    assert hub.is_offline(not offline) is not offline


def test_catalog_reads_the_metrics_of_a_preset(preset):
    assert catalog.Preset("base", "", {}, weights=preset).metrics == {"test_error": 0.25}
