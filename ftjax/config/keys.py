"""The keys of a configuration: their defaults, what there is to say of each, and their change.

Every key is read by something; a key that is not here is an error that suggests the nearest.
The `method` section holds the named method's hyperparameters, the `task` section the task's, and
the `optimizer` section those of an optimizer that is not built in besides its own.
"""

import os
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_origin

from ml_collections import ConfigDict, FieldReference

from ftjax import methods, optimizers, tasks
from ftjax.config.sections import SECTIONS, Model
from ftjax.errors import UserError, nearest
from ftjax.options import Option, Seed, meanings, options

METHOD_NAME, TASK_NAME = Annotated[str, methods.REGISTRY], Annotated[str, tasks.REGISTRY]
NAMED = {  # section → its name
    "method": Option(METHOD_NAME, "full", "of the method, whose options these are"),
    "task": Option(TASK_NAME, "classification", "of the task, whose options these are"),
}
NEW = Option(Mapping[str, Any], {}, meanings(Model)["new"])  # `model.new`: any keys
NESTED = {*SECTIONS, "data.columns", "method", "method.over", "task"}  # what is a section
MOST = 2**31 - 1


def default_config(method: str = "full", task: str = "classification") -> ConfigDict:
    """The locked default configuration for a method and a task.

    Raises:
        UserError: an unknown method or task.
    """
    sections: dict[str, Any] = {"seed": 0, "task": {"name": task}}
    sections["task"] |= _values(options(tasks.find(task)))
    for name, cls in SECTIONS.items():
        section = sections
        *parents, last = name.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = _values(options(cls))
    sections["model"]["new"] = ConfigDict()  # any keys of a config.json
    sections["data"]["columns"] = tasks.columns(task)
    sections["method"] = method_section(method)
    config = ConfigDict(sections)
    config.lock()
    return config


def known_options(config: ConfigDict) -> dict[str, Option]:
    """Every key that a configuration of this method and task has, but for `model.new`.

    Raises:
        UserError: an unknown method, task or optimizer.
    """
    known = {"seed": Option(Seed, 0, "of all that is drawn")}
    classes = {**SECTIONS, "task": tasks.find(_name(config, "task"))}
    prefix, method = "method", config.method
    while method is not None:  # one that is over another has its options beside its own
        classes[prefix] = methods.find(_name(config, prefix))
        method, prefix = method.get("over"), f"{prefix}.over"
    for section, cls in classes.items():
        if section in ("method", "method.over", "task"):
            known[f"{section}.name"] = NAMED[section.partition(".")[0]]
        known.update({f"{section}.{name}": option for name, option in options(cls).items()})
        if section == "optimizer":
            own = optimizers.own_options(_name(config, section))
            known |= {f"{section}.{name}": own[name] for name in own if name not in options(cls)}
    for name in tasks.columns(config.task.name):
        known[f"data.columns.{name}"] = Option(str, name, "what the files call the field")
    return {key: known[key] for key in known if not key.endswith(".over")}


def _name(config: ConfigDict, section: str) -> str:
    """What a section says its method, task or optimizer is called; a page may say anything."""
    key, kind = f"{section}.name", section.partition(".")[0]
    option = options(SECTIONS[kind])["name"] if kind in SECTIONS else NAMED[kind]
    return option.read(key, flat_keys(config).get(key))


def read(key: str, option: Option, value: Any) -> Any:
    """A key's value as its option holds it: numbers that are counted to are not beyond those that
    devices count with."""
    checked = option.read(key, value)
    if isinstance(checked, int) and abs(checked) > MOST:
        raise UserError(f"{key}={value!r} must be at most {MOST:,}")
    return checked


def method_section(name: str, over: str = "") -> dict[str, Any]:
    """The default `method` section: a method's hyperparameters, and those of the one it is over.

    Args:
        name: of the method.
        over: of the method that it is over, where it is; empty for its default.
    """
    section = {"name": name, **_values(options(methods.find(name)))}
    if "over" in section:
        default = section["over"]
        inner = method_section(over or default["name"])
        section["over"] = {**inner, **(default if inner["name"] == default["name"] else {})}
    return section


def _values(known: Mapping[str, Option]) -> dict[str, Any]:
    """Names and defaults of options; what may be of several types can be set to any of them."""
    return {
        name: FieldReference(option.default, field_type=object)
        if get_origin(option.kind) in (Union, UnionType)
        else option.default
        for name, option in known.items()
    }


def use_method(config: ConfigDict, name: str, over: str = "") -> None:
    """Gives `config` the default `method` section of another method.

    Args:
        config: changed in place.
        name: of the method.
        over: of the method that it is over; empty to leave that.
    """
    now = config.method
    if now.name != name or (over and "over" in now and now.over.name != over):
        with config.unlocked():
            config.method = ConfigDict(method_section(name, over))


def use_optimizer(config: ConfigDict, name: str) -> None:
    """Gives the `optimizer` section of `config` another name, and the keys of that optimizer.

    Args:
        config: changed in place.
        name: of the optimizer; one that is not built in has options of its own.
    """
    section, own = config.optimizer, optimizers.own_options(name)
    with config.unlocked(), config.ignore_type():
        section.name = name
        for key in {*section} - {*options(SECTIONS["optimizer"]), *own}:
            del section[key]
        for key, value in _values(own).items():
            if key not in section:
                section[key] = value


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """ "a.b" → value, over all sections."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flat_keys(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def in_sections(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of sections in sections, as of a file; keys may be dotted already.

    Values that are mappings are left as they are: only sections are gone into.
    """
    flat = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in NESTED and isinstance(value, Mapping | ConfigDict | None):
            flat += in_sections(value or {}, f"{key}.")
        elif isinstance(value, os.PathLike):
            flat.append((key, os.fspath(value)))
        else:  # a number of numpy as Python's
            flat.append((key, value.tolist() if hasattr(value, "tolist") else value))
    return flat


def in_dots(keys: Mapping[str, Any]) -> dict[str, Any]:
    """As `in_sections`, by key."""
    return dict(in_sections(keys))


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key, keeping its type; with a name come the options of what it names.

    Raises:
        UserError: the key is unknown (the nearest are named) or the value of another type.
    """
    if key == "model.new" and isinstance(value, Mapping | None):
        with config.unlocked():
            config.model.new = ConfigDict(dict(value or {}))
        return
    known = known_options(config)
    new = flat_keys(config.model.new, "model.new.")  # of the types that its page has
    known |= {name: Option(type(value), value, "") for name, value in new.items()}
    if key not in known:
        raise UserError(unknown(key, known))
    if key == "task.name" and value != config.task.name:  # whose options the section has
        raise UserError(
            f"task.name={value!r}: the configuration is of {config.task.name}, with its options; "
            f"give --task {value}, or on a page default_config(method, {value!r})"
        )
    value = read(key, known[key], value)
    if key == "method.name":
        use_method(config, value)
    elif key == "method.over.name":
        use_method(config, config.method.name, value)
    elif key == "optimizer.name":
        use_optimizer(config, value)
    set_key(config, key, value)


def unknown(key: str, known: Iterable[str]) -> str:
    """What is said of a key that there is not, or of a section that is given as one."""
    if inside := [name for name in known if name.startswith(f"{key}.")]:
        return f"{key!r} is a section; its keys are {', '.join(inside)}"
    return f"unknown config key {key!r}{nearest(key, known)}"


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key to a value of any type."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    with config.ignore_type():
        config[last] = value
