import json
import statistics
import subprocess
import sys
import time
import tomllib

import keras
import pytest

import zoo
from zoo import catalog

FACTS = """
title = "Toy Method"
task = "toy_task"
summary = "Adds one."
class = "Toy"
default_preset = "base"
tags = ["toy"]

[paper]
title = "On Toys"
authors = "A. Author"
venue = "ICLR"
year = 2020
url = "https://example.org"

[presets.base]
description = "Small."
parameters = 12
[presets.base.config]
units = 3

[presets.large]
description = "Large."
[presets.large.config]
units = 30
"""


class Toy(keras.Sequential):
    def __init__(self, units=2):
        super().__init__([keras.Input((3,)), keras.layers.Dense(units)])


@pytest.fixture
def toy():
    yield zoo.register(
        Toy, name="toy", title="Toy", task="toy_task", presets={"base": {"units": 3}, "wide": {"units": 9}}
    )
    if "toy" in catalog._registered:
        zoo.unregister("toy")


# === Fast and lazy ===


ASK = "import zoo; names = zoo.list_models(); facts = [zoo.info(name) for name in names]; [f.trained for f in facts]"


def seconds(code):
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(3))


def test_asking_the_catalog_imports_nothing_heavy():
    heavy = ["tensorflow", "keras", "numpy", "h5py", "pooch", "rich"]
    code = f"{ASK}; import sys, json; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert json.loads(done.stdout) == []


def test_asking_the_catalog_is_quick():
    # Against the bare interpreter, so that a busy machine does not decide
    assert seconds(ASK) - seconds("pass") < 0.5


# === Own methods ===


def test_every_own_method_has_facts_beside_its_module_and_a_class_in_it():
    assert len(zoo.list_models()) >= 1
    for name in zoo.list_models():
        method = zoo.info(name)
        folder, file = catalog.PACKAGE / method.module.split(".")[1], f"{method.module.split('.')[2]}.py"
        assert (folder / file).is_file()
        assert (folder / f"{name}.toml").is_file()
        assert f"class {method.class_name}(" in (folder / file).read_text()
        assert method.default_preset in method.presets
        assert method.paper.year > 1990
        assert method.paper.url.startswith("https://")
        assert method.summary


def test_facts_hold_nothing_that_no_reader_asks_for():
    known = {"title", "task", "summary", "class", "default_preset", "tags", "notes", "example", "paper", "presets"}
    for path in catalog.PACKAGE.glob("*/*.toml"):
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
        assert set(facts) <= known, path
        assert set(facts["paper"]) == {"title", "authors", "venue", "year", "url"}, path
        for preset in facts["presets"].values():
            assert set(preset) <= {"description", "config", "parameters", "class"}, path


def test_facts_are_data(tmp_path):
    (tmp_path / "toy.toml").write_text(FACTS)
    (tmp_path / "weights" / "base").mkdir(parents=True)
    (tmp_path / "weights" / "base" / "metadata.json").write_text('{"metrics": {"test_error": 0.5}}')
    (tmp_path / "weights" / "large").mkdir()
    method = catalog.read_facts(tmp_path / "toy.toml", "package.toy", tmp_path / "weights")

    assert (method.name, method.title, method.task, method.class_name) == ("toy", "Toy Method", "toy_task", "Toy")
    assert method.paper == zoo.Paper("On Toys", "A. Author", "ICLR", 2020, "https://example.org")
    assert method.preset().config == {"units": 3}
    assert method.preset("large").config == {"units": 30}
    assert (method.preset().parameters, method.preset("large").parameters) == (12, None)
    assert method.preset().metrics == {"test_error": 0.5}
    assert (method.preset().trained, method.preset("large").trained) == (True, False)
    assert method.preset("large").metrics == {}
    assert method.trained
    assert method.tags == ("toy",)


def test_submodules_and_the_model_class_come_when_asked_for():
    assert zoo.ZooModel is zoo.model.ZooModel
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        zoo.nothing  # noqa: B018


# === Names ===


def test_list_models_filters(toy):
    assert zoo.list_models("to[xy]") == ["toy"]
    assert zoo.list_models(task="toy_task") == ["toy"]
    assert zoo.list_models("toy", trained=True) == []
    assert zoo.list_models("toy", trained=False) == ["toy"]
    assert zoo.list_models("nothing*") == []
    assert zoo.list_models() == sorted(zoo.list_models())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.info("toi"), "Unknown method. Did you mean 'toy'.* Received: name='toi'"),
        (lambda: zoo.get("tooy"), "Unknown method. Did you mean 'toy'"),
        (lambda: zoo.info("?"), "Unknown method. Known: .*toy"),
        (lambda: zoo.get("toy", "bas"), r"Unknown preset of 'toy'. Did you mean 'base'\? Received: preset='bas'"),
        (lambda: zoo.get("toy", "?"), "Unknown preset of 'toy'. Known: base, wide"),
        (lambda: zoo.list_models(task="toy_tasks"), "No method has this task. Did you mean 'toy_task'"),
    ],
)
def test_unknown_names_offer_the_closest(toy, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_asked_for_where_none_are_shipped(toy):
    match = r"No trained weights are shipped for preset 'wide' of 'toy' \(shipped: none\).*directory or hf:// address"
    with pytest.raises(ValueError, match=match):
        zoo.get("toy", "wide")


# === Registration ===


def test_registered_model_is_built_like_any_other(toy):
    model = zoo.get("toy", "wide", weights=None)

    assert type(model) is Toy
    assert model.count_params() == 4 * 9
    assert zoo.get("toy", weights=None, units=1).count_params() == 4
    assert toy.load_class() is Toy
    assert toy.default_preset == "base"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "toy"}, "A method of this name exists already"),
        ({"name": "no-identifier"}, "valid Python identifier"),
        ({"presets": {}}, "`presets` must hold the default preset"),
        ({"default_preset": "other"}, "`presets` must hold the default preset"),
    ],
)
def test_bad_registrations_are_refused(toy, changes, message):
    arguments = {"name": "new_toy", "title": "", "task": "", "presets": {"base": {}}, **changes}
    with pytest.raises(ValueError, match=message):
        zoo.register(Toy, **arguments)

    assert "new_toy" not in zoo.list_models()


def test_unregister(toy):
    zoo.unregister("toy")

    assert "toy" not in zoo.list_models()
    for name in ("toy", *zoo.list_models()[:1]):
        with pytest.raises(ValueError, match="Not a registered method"):
            zoo.unregister(name)


# === Entry points ===


def install(folder, entry, files):
    """Lays out what pip would have installed: a package and its record."""
    package, record = folder / "toy_package", folder / "toy_package-1.0.dist-info"
    package.mkdir()
    record.mkdir()
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[zoo.methods]\n{entry}\n")


MODULE = """
import sys
import keras

class Renamed(keras.Sequential):
    def __init__(self, units=2):
        super().__init__([keras.Input((3,)), keras.layers.Dense(units)])
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    def make(entry, **files):
        install(tmp_path, entry, {"__init__.py": "", **{name.replace("__", "."): text for name, text in files.items()}})
        monkeypatch.syspath_prepend(tmp_path)
        catalog._entry_point_methods.cache_clear()

    yield make
    monkeypatch.undo()
    catalog._entry_point_methods.cache_clear()
    for name in [name for name in sys.modules if name.startswith("toy_package")]:
        del sys.modules[name]


def test_entry_point_joins_the_catalog_without_being_imported(installed):
    installed("toy_method = toy_package.toy_method:Renamed", toy_method__py=MODULE, toy_method__toml=FACTS)

    assert "toy_method" in zoo.list_models(task="toy_task")
    assert zoo.info("toy_method").class_name == "Renamed"
    assert "toy_package.toy_method" not in sys.modules
    assert zoo.get("toy_method", weights=None).count_params() == 12


def test_entry_point_method_round_trips(installed, tmp_path):
    installed("toy_method = toy_package.toy_method:Renamed", toy_method__py=MODULE, toy_method__toml=FACTS)
    model = zoo.get("toy_method", "large", weights=None)
    model.get_config = lambda: {"units": 30}
    directory = zoo.checkpoints.save_preset(model, tmp_path / "p", preset="large")

    assert model.metadata.method == "toy_method"
    assert zoo.get("toy_method", weights=directory).count_params() == 120


OTHER = """
class Other(Renamed):
    pass
"""


def test_presets_of_one_method_may_be_of_different_classes(installed, tmp_path):
    facts = FACTS.replace("[presets.large]", '[presets.large]\nclass = "Other"')
    installed("toy_method = toy_package.toy_method:Renamed", toy_method__py=MODULE + OTHER, toy_method__toml=facts)
    model = zoo.get("toy_method", "large", weights=None)
    model.get_config = lambda: {"units": 30}
    directory = zoo.checkpoints.save_preset(model, tmp_path / "p", preset="large")
    again = zoo.get("toy_method", weights=directory)

    assert zoo.info("toy_method").class_names == ["Renamed", "Other"]
    assert type(zoo.get("toy_method", "base", weights=None)).__name__ == "Renamed"
    assert type(model).__name__ == type(again).__name__ == "Other"
    assert again.count_params() == 120


def test_entry_point_without_facts_is_an_error(installed):
    installed("toy_method = toy_package.toy_method:Renamed", toy_method__py=MODULE)
    with pytest.raises(ValueError, match="'toy_method' has no file of facts beside its module"):
        zoo.list_models()


def test_entry_point_to_a_missing_module_is_an_error(installed):
    installed("toy_method = toy_package.nothing:Renamed")
    with pytest.raises(ValueError, match=r"names a module that is not installed: toy_package.nothing"):
        zoo.list_models()


def test_two_methods_of_one_name_are_an_error(installed, toy):
    installed("toy = toy_package.toy:Renamed", toy__py=MODULE, toy__toml=FACTS)
    with pytest.raises(ValueError, match=r"Two methods are called 'toy': toy_package.toy and"):
        zoo.list_models()
