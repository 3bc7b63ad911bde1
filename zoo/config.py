"""What a model is made of: the constructor arguments of a class that the catalog names, as JSON."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from zoo.catalog import Method
from zoo.metadata import CONFIG, dump_json, parse_json, plain
from zoo.model import ZooModel

# Arguments of every Keras model that say how it runs, not what it is
_KERAS_ARGUMENTS = ("name", "dtype", "trainable")


def constructor_arguments(model_class: type) -> list[str]:
    """Returns the names of all arguments that a model class takes, those passed on by `**kwargs` included."""
    names: dict[str, None] = {}
    for base in model_class.__mro__:
        if base.__module__.partition(".")[0] == "keras":
            names.update(dict.fromkeys(_KERAS_ARGUMENTS))
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names.update({p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)})
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def construct(
    method: Method, class_name: str | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> keras.Model:
    """Builds a model of a method.

    Args:
        method: `Method`.
        class_name: str or None. Which of its classes; its own by default.
        config: mapping. Constructor arguments.
        overrides: mapping. Constructor arguments that replace some of `config`.

    Returns:
        A `keras.Model`; built, unless it is a user's class that only a call can build.

    Raises:
        ValueError: for arguments that the constructor does not take.
    """
    model_class = method.load_class(class_name)
    valid = constructor_arguments(model_class)
    for origin, arguments in (("Arguments", overrides), ("Arguments in the configuration", config)):
        if unknown := sorted(set(arguments) - set(valid)):
            raise ValueError(f"{origin} of {method.name!r} must be among {valid}. Received: {unknown}")
    model = model_class(**{**config, **overrides})
    return model.build_from_signature() if isinstance(model, ZooModel) else model


def write_config(model: keras.Model) -> bytes:
    """Returns the contents of `config.json`.

    Raises:
        ValueError: if `get_config` returns what the constructor does not take, or what JSON does not keep.
    """
    name = type(model).__name__
    config = {key: value for key, value in model.get_config().items() if key not in _KERAS_ARGUMENTS}
    if unknown := sorted(set(config) - set(constructor_arguments(type(model)))):
        raise ValueError(f"get_config of {name} must return constructor arguments. Received: {unknown}")
    config = {key: plain(value, key) for key, value in config.items()}
    _check_no_objects(config, name)
    return dump_json({"class_name": keras.saving.get_registered_name(type(model)), "config": config}).encode()


def _check_no_objects(value: Any, name: str) -> None:
    """Refuses what Keras would turn into an object of a class that the file names."""
    if isinstance(value, dict):
        if "class_name" in value:
            raise ValueError(f"The configuration of {name} must not hold serialised objects. Received: {value}")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_no_objects(item, name)


def read_config(data: bytes, method: Method) -> tuple[str, dict[str, Any]]:
    """Returns the name of the class and the constructor arguments in the contents of `config.json`.

    Raises:
        ValueError: for a class that is none of the method's, serialised objects, or another structure.
    """
    stored = parse_json(data, CONFIG)
    keys = set(stored) if isinstance(stored, dict) else set()
    if keys != {"class_name", "config"} or not isinstance(stored["config"], dict):
        raise ValueError(f"`{CONFIG}` must hold exactly `class_name` and `config`. Received: {stored!r}")
    valid = {keras.saving.get_registered_name(method.load_class(name)): name for name in method.class_names}
    if not isinstance(stored["class_name"], str) or stored["class_name"] not in valid:
        expected = " or ".join(map(repr, valid))
        raise ValueError(f"`class_name` in {CONFIG!r} must be {expected}. Received: {stored['class_name']!r}")
    _check_no_objects(stored["config"], method.name)
    return valid[stored["class_name"]], stored["config"]
