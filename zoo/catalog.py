"""The catalog: which methods exist, their papers and presets. Imports no TensorFlow.

A method is a module `<area>/<name>.py` with a file of facts `<name>.toml` beside it; the catalog finds it by the
existence of that file. Third parties join by `zoo.register` or by the entry-point group `zoo.methods`.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SHIPPED_WEIGHTS = PACKAGE / "weights"
ENTRY_POINT_GROUP = "zoo.methods"


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    authors: str
    venue: str
    year: int
    url: str

    @property
    def published(self) -> str:
        """Venue and year; the year once, where the venue's name has one."""
        return self.venue if re.search(r"\d{4}", self.venue) else f"{self.venue} {self.year}"


@dataclass(frozen=True)
class Preset:
    """One configuration of a method.

    Args:
        name: str. Preset name, unique within the method.
        description: str. One line: the data it is meant for and where the sizes come from.
        config: mapping. Constructor arguments of the method's class.
        parameters: int or None. Exact number of parameters, where known.
        weights: path or None. Directory of the shipped trained weights.
        class_name: str or None. Class in the method's module, where it is another than the method's: an encoder-decoder
            beside a language model, say.
    """

    name: str
    description: str
    config: Mapping[str, Any]
    parameters: int | None = None
    weights: Path | None = None
    class_name: str | None = None

    @property
    def trained(self) -> bool:
        """Whether trained weights are shipped."""
        return self.weights is not None

    @property
    def metrics(self) -> dict[str, float]:
        """Held-out metrics recorded with the shipped weights; empty where there are none."""
        if self.weights is None:
            return {}
        return json.loads((self.weights / "metadata.json").read_text())["metrics"]


@dataclass(frozen=True)
class Method:
    """Facts about a method: everything that is known without building a model."""

    name: str
    title: str
    task: str
    summary: str
    paper: Paper
    module: str
    class_name: str
    presets: Mapping[str, Preset]
    default_preset: str
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    example: str = ""
    model_class: type | None = field(default=None, repr=False)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of all presets, the method's own first."""
        return list(dict.fromkeys([self.class_name, *(p.class_name or self.class_name for p in self.presets.values())]))

    def load_class(self, class_name: str | None = None) -> type:
        """Imports and returns a model class, the method's own by default (this is what loads TensorFlow)."""
        return self.model_class or getattr(importlib.import_module(self.module), class_name or self.class_name)

    def preset(self, name: str | None = None) -> Preset:
        """Returns a preset, the default one for `None`.

        Raises:
            ValueError: if there is no such preset; the message offers the closest names.
        """
        name = name or self.default_preset
        if name not in self.presets:
            raise ValueError(
                f"Unknown preset of {self.name!r}. {_closest(name, self.presets)} Received: preset={name!r}"
            )
        return self.presets[name]

    @property
    def trained(self) -> bool:
        """Whether any preset ships trained weights."""
        return any(preset.trained for preset in self.presets.values())


_registered: dict[str, Method] = {}


def _closest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return f"Known: {', '.join(sorted(known))}."


def read_facts(path: Path, module: str, weights: Path | None = None, class_name: str | None = None) -> Method:
    """Reads a method's file of facts.

    Args:
        path: path of `<name>.toml`.
        module: str. Dotted name of the module that holds the class.
        weights: path or None. Directory with one trained preset directory per preset name.
        class_name: str or None. Class in the module; taken from the file by default.

    Returns:
        A `Method`.
    """
    facts = tomllib.loads(path.read_text(encoding="utf-8"))
    presets = {}
    for name, entry in facts["presets"].items():
        directory = weights / name if weights else None
        presets[name] = Preset(
            name=name,
            description=entry["description"],
            config=entry.get("config", {}),
            parameters=entry.get("parameters"),
            weights=directory if directory and (directory / "metadata.json").is_file() else None,
            class_name=entry.get("class"),
        )
    return Method(
        name=path.stem,
        title=facts["title"],
        task=facts["task"],
        summary=facts["summary"],
        paper=Paper(**facts["paper"]),
        module=module,
        class_name=class_name or facts["class"],
        presets=presets,
        default_preset=facts["default_preset"],
        tags=tuple(facts.get("tags", ())),
        notes=tuple(facts.get("notes", ())),
        example=facts.get("example", ""),
    )


@cache
def _own_methods() -> dict[str, Method]:
    found = {}
    for path in sorted(PACKAGE.glob("*/*.toml")):
        module = f"zoo.{path.parent.name}.{path.stem}"
        found[path.stem] = read_facts(path, module, SHIPPED_WEIGHTS / path.stem)
    return found


@cache
def _entry_point_methods() -> dict[str, Method]:
    found = {}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None:
            raise ValueError(f"Entry point {entry.name!r} names a module that is not installed: {entry.module}")
        source = Path(spec.origin)
        facts = source.with_name(f"{entry.name}.toml")
        if not facts.is_file():
            raise ValueError(f"Entry point {entry.name!r} has no file of facts beside its module: {facts}")
        found[entry.name] = read_facts(facts, entry.module, source.parent / "weights" / entry.name, entry.attr)
    return found


def _methods() -> dict[str, Method]:
    methods = {**_own_methods()}
    for source in (_entry_point_methods(), _registered):
        for name, method in source.items():
            if name in methods:
                raise ValueError(f"Two methods are called {name!r}: {methods[name].module} and {method.module}")
            methods[name] = method
    return dict(sorted(methods.items()))


def info(name: str) -> Method:
    """Returns the facts of a method.

    Raises:
        ValueError: if there is no such method; the message offers the closest names.
    """
    methods = _methods()
    if name not in methods:
        raise ValueError(f"Unknown method. {_closest(name, methods)} Received: name={name!r}")
    return methods[name]


def list_models(pattern: str = "*", *, task: str | None = None, trained: bool | None = None) -> list[str]:
    """Lists method names.

    Args:
        pattern: str. Glob pattern over method names, such as `"transformer*"`.
        task: str or None. Keep the methods of one task, such as `"language_modeling"`.
        trained: bool or None. Keep the methods with (or without) shipped weights.

    Returns:
        Sorted list of names.

    Raises:
        ValueError: if no method at all has the task.
    """
    methods = _methods()
    tasks = {method.task: None for method in methods.values()}
    if task is not None and task not in tasks:
        raise ValueError(f"No method has this task. {_closest(task, tasks)} Received: task={task!r}")
    return [
        name
        for name, method in methods.items()
        if fnmatch.fnmatchcase(name, pattern)
        and (task is None or method.task == task)
        and (trained is None or method.trained == trained)
    ]


def register(
    model_class: type,
    *,
    name: str,
    title: str,
    task: str,
    presets: Mapping[str, Mapping[str, Any]],
    summary: str = "",
    paper: Paper | None = None,
    default_preset: str | None = None,
) -> Method:
    """Adds a user's own Keras model to the catalog for this process.

    Args:
        model_class: a `keras.Model` subclass; a `zoo.model.ZooModel` brings its own signatures.
        name: str. Catalog name, a valid identifier that no other method has.
        title: str. Human-readable name.
        task: str. Task, such as `"image_classification"`.
        presets: mapping from preset name to constructor arguments.
        summary: str. One line.
        paper: `Paper` or None.
        default_preset: str or None. The first of `presets` by default.

    Returns:
        The registered `Method`.

    Raises:
        ValueError: if the name is taken or no identifier, or `presets` is empty or lacks the default.
    """
    if not name.isidentifier():
        raise ValueError(f"`name` must be a valid Python identifier. Received: name={name!r}")
    if name in _methods():
        raise ValueError(f"A method of this name exists already. Received: name={name!r}")
    if not presets or (default_preset is not None and default_preset not in presets):
        raise ValueError(f"`presets` must hold the default preset. Received: {default_preset=}, presets={presets}")
    method = Method(
        name=name,
        title=title,
        task=task,
        summary=summary,
        paper=paper or Paper(title, "", "", 0, ""),
        module=model_class.__module__,
        class_name=model_class.__qualname__,
        presets={key: Preset(key, "", dict(config)) for key, config in presets.items()},
        default_preset=default_preset or next(iter(presets)),
        model_class=model_class,
    )
    _registered[name] = method
    return method


def unregister(name: str) -> None:
    """Removes a method that `register` added in this process."""
    if name not in _registered:
        raise ValueError(f"Not a registered method. Received: name={name!r}")
    del _registered[name]


def get(name: str, preset: str | None = None, weights: str | Path | None = "default", **overrides: Any) -> Any:
    """Builds a model, by default with its shipped trained weights.

    Args:
        name: str. Method name, see `list_models`.
        preset: str or None. Preset name, the method's default by default.
        weights: `"default"` (the shipped ones), `None` (random initialisation), a preset directory, or an
            `hf://user/repository` or `https://` address of one.
        **overrides: constructor arguments that replace the preset's. With `head` among them, such as
            `head="classification", num_classes=4`, the backbone is loaded and a head that it does not have starts at random.

    Returns:
        A built `keras.Model`.

    Raises:
        ValueError: for an unknown method or preset, a preset without shipped weights asked for with them, or overrides
            that contradict the weights.
    """
    method = info(name)
    if weights == "default":
        chosen = method.preset(preset)
        if chosen.weights is None:
            trained = [key for key, value in method.presets.items() if value.trained]
            raise ValueError(
                f"No trained weights are shipped for preset {chosen.name!r} of {name!r} (shipped: {trained or 'none'}). "
                f"Pass weights=None for random initialisation, or the directory or hf:// address of some. "
                f"Received: weights='default'"
            )
        weights = chosen.weights
    from zoo import checkpoints

    if weights is None:
        return checkpoints.build(method, method.preset(preset), overrides)
    return checkpoints.load_preset(weights, method=method, overrides=overrides)
