"""The configuration: defaults, files, overrides from the command line, checks.

Every key is read by something; a key that is not here is an error that suggests the nearest.
The `method` section holds the named method's hyperparameters, the `task` section the task's.
"""

import ast
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_origin

from ml_collections import ConfigDict, FieldReference

from ftjax.config.sections import SECTIONS
from ftjax.data.preparation import steps
from ftjax.errors import UserError, nearest
from ftjax.methods.rates import OPTIMIZERS
from ftjax.options import Option, Seed, options

NAMED = {  # section → its name
    "method": Option(str, "full", "of the method (`ftjax list methods`), whose options these are"),
    "task": Option(str, "classification", "of the task (`ftjax list tasks`)"),
}

MOST = 2**31 - 1


def default_config(method: str = "full", task: str = "classification") -> ConfigDict:
    """The locked default configuration for a method and a task.

    Raises:
        UserError: an unknown method or task.
    """
    from ftjax import tasks

    sections: dict[str, Any] = {"seed": 0, "task": {"name": task, **_values(tasks.find(task))}}
    for name, cls in SECTIONS.items():
        section = sections
        *parents, last = name.split(".")
        for parent in parents:
            section = section[parent]
        section[last] = _values(cls)
    sections["model"]["new"] = ConfigDict()  # any keys of a config.json
    sections["data"]["columns"] = tasks.columns(task)
    sections["method"] = method_section(method)
    config = ConfigDict(sections)
    config.lock()
    return config


def known_options(config: ConfigDict) -> dict[str, Option]:
    """Every key that a configuration of this method and task has, but for `model.new`.

    Raises:
        UserError: an unknown method or task.
    """
    from ftjax import methods, tasks

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
    for name in tasks.columns(config.task.name):
        known[f"data.columns.{name}"] = Option(str, name, "what the files call the field")
    return {key: known[key] for key in known if not key.endswith(".over")}


def _name(config: ConfigDict, section: str) -> str:
    """What a section says that its method or task is called; a page may have put anything there."""
    key = f"{section}.name"
    return NAMED[section.partition(".")[0]].read(key, flat_keys(config).get(key))


def _read(key: str, option: Option, value: Any) -> Any:
    """A key's value as its option holds it: numbers that are counted to are not beyond those that
    devices count with."""
    found = option.read(key, value)
    if isinstance(found, int) and abs(found) > MOST:
        raise UserError(f"{key}={value!r} must be at most {MOST:,}")
    return found


def method_section(name: str, over: str = "") -> dict[str, Any]:
    """The default `method` section: a method's hyperparameters, and those of the one it is over.

    Args:
        name: of the method.
        over: of the method that it is over, where it is; empty for its default.
    """
    from ftjax import methods

    section = {"name": name, **_values(methods.find(name))}
    if "over" in section:
        default = section["over"]
        inner = method_section(over or default["name"])
        section["over"] = {**inner, **(default if inner["name"] == default["name"] else {})}
    return section


def _values(cls: type) -> dict[str, Any]:
    """Names and defaults of options; what may be of several types can be set to any of them."""
    return {
        name: FieldReference(option.default, field_type=object)
        if get_origin(option.kind) in (Union, UnionType)
        else option.default
        for name, option in options(cls).items()
    }


def load_config(
    spec: str, overrides: Iterable[str] = (), method: str | None = None, task: str = ""
) -> ConfigDict:
    """The configuration of FILE[:ARG], or a task's default, with `--config.KEY=VALUE` overrides.

    Where the file's `get_config` takes an argument, ARG is passed, or else `method`.

    Args:
        spec: FILE[:ARG]; empty for the default of `task`.
        overrides: in their order.
        method: whose options the `method` section has.
        task: whose default it is where there is no file.

    Raises:
        UserError: the file, a key or a value is wrong.
    """
    changes = [parse_override(item) for item in overrides]
    named = dict(changes).get("method.name")
    config = _of_file(spec, method, named) if spec else default_config(task=task)
    if named or method:
        use_method(config, str(named or method))
    if over := dict(changes).get("method.over.name"):
        use_method(config, config.method.name, str(over))
    for key, value in changes:
        override(config, key, value)
    return config


def _of_file(spec: str, method: str | None, named: Any) -> ConfigDict:
    """What the `get_config` of FILE[:ARG] returns; `named` is the method of an override."""
    file, _, argument = spec.partition(":")
    module = load_module(file)
    with errors_of_page(file):
        takes = bool(inspect.signature(module.get_config).parameters)
        argument = argument or method or (str(named) if named else "")
        config = module.get_config(argument) if takes and argument else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returns {config!r}, no configuration")
    return config


def load_module(file: str) -> ModuleType:
    """The configuration's file as a module.

    Raises:
        UserError: it does not exist, cannot be run, or has no `get_config`.
    """
    path = Path(file)
    if not path.is_file():
        what = "is a folder, not a page" if path.is_dir() else "does not exist"
        raise UserError(f"--config: {file} {what}; ftjax init writes a page to begin from")
    if path.suffix != ".py":
        raise UserError(f"--config: {file}: a page is Python and ends in .py")
    spec = importlib.util.spec_from_file_location(f"ftjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with errors_of_page(file):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} has no get_config()")
    return module


@contextmanager
def errors_of_page(file: str) -> Iterator[None]:
    """Whatever a page raises is an error of its own, which names the line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        own = Path(file).absolute()
        lines = [line for name, line in _lines(error) if Path(name).absolute() == own]
        place = f"{file}, line {lines[-1]}" if lines else file
        text = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{place}: {type(error).__name__}: {text}") from error


def _lines(error: BaseException) -> Iterator[tuple[str, int]]:
    """Files and lines that an error passed through."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, line
    if isinstance(error, SyntaxError):
        yield str(error.filename), error.lineno or 1


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


def parse_override(item: str) -> tuple[str, Any]:
    """ "--config.a.b=value" → ("a.b", value), read as a Python literal or as JSON if it is one."""
    key, equals, text = item.removeprefix("--config.").partition("=")
    if not item.startswith("--config.") or not equals:
        raise UserError(f"{item!r} is not understood; overrides are --config.KEY=VALUE")
    for read in (ast.literal_eval, json.loads):
        try:
            return key, read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return key, {"true": True, "false": False, "none": None}.get(text.lower(), text)


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """ "a.b" → value, over all sections."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flat_keys(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def in_dots(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys → values of keys that are dotted, or sections' names with mappings."""
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        within = value.items() if isinstance(value, Mapping) and "." not in key else ()
        flat |= {f"{key}.{name}": each for name, each in within} or {key: value}
    return flat


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key, keeping its type.

    Raises:
        UserError: the key is unknown (the nearest are named) or the value of another type.
    """
    if key == "model.new" and not value:
        with config.unlocked():
            config.model.new = ConfigDict()
        return
    known = known_options(config)
    new = flat_keys(config.model.new, "model.new.")  # of the types that its page has
    known |= {name: Option(type(value), value, "") for name, value in new.items()}
    if key not in known:
        raise UserError(_unknown(key, known))
    if key == "task.name" and value != config.task.name:  # whose options the section has
        raise UserError(
            f"task.name={value!r}: the configuration is of {config.task.name}, with its options; "
            f"give --task {value}, or on a page default_config(method, {value!r})"
        )
    _set(config, key, _read(key, known[key], value))


def _unknown(key: str, known: Iterable[str]) -> str:
    """What is said of a key that there is not, or of a section that is given as one."""
    if inside := [each for each in known if each.startswith(f"{key}.")]:
        return f"{key!r} is a section; its keys are {', '.join(inside)}"
    return f"unknown config key {key!r}{nearest(key, known)}"


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a dotted key to a value of any type."""
    *parents, last = key.split(".")
    for parent in parents:
        config = config[parent]
    with config.ignore_type():
        config[last] = value


def check(config: ConfigDict) -> ConfigDict:
    """Checks what can be checked before anything is loaded.

    Raises:
        UserError: a key is missing or unknown, or a value out of range.
    """
    known, flat = known_options(config), flat_keys(config)
    for key, value in flat.items():
        if key.startswith("model.new."):
            continue
        if key not in known:
            raise UserError(_unknown(key, known))
        read = _read(key, known[key], value)
        if read is not value:
            _set(config, key, read)  # a page may have lists, or whole numbers, or "a,b"
    for key in known:
        if key not in flat:
            raise UserError(f"config lacks {key!r}")
    _check_together(config)
    prepared = steps(config.data.prepare)
    if config.data.streaming or config.data.mixture:
        check_stream(config, prepared)
    return config


def _check_together(config: ConfigDict) -> None:
    """Raises UserError for keys that do not go together."""
    train, splits, warmup = config.train, config.data.splits, config.optimizer.warmup
    if not train.epochs and not train.steps:
        raise UserError("train.epochs and train.steps are both 0: nothing to train")
    if config.model.from_step and not config.model.from_run:
        raise UserError(f"model.from_step={config.model.from_step} is a step of model.from_run")
    if train.average and train.swa_start:
        raise UserError("train.average and train.swa_start are two averages: one must be 0")
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation={train.accumulation} does not divide "
            f"train.batch_size={train.batch_size}"
        )
    if config.optimizer.learning_rate == "auto" and config.optimizer.name not in OPTIMIZERS:
        name = config.optimizer.name
        raise UserError(f"optimizer.learning_rate=auto is not for optimizer.name={name}: give one")
    if warmup >= 1 and warmup != int(warmup):
        raise UserError(f"optimizer.warmup={warmup} must be whole steps, or a share below 1")
    if train.steps and warmup > train.steps:
        raise UserError(f"optimizer.warmup={warmup:g} is more than train.steps={train.steps}")
    profiled = tuple(train.profile_steps)
    if profiled and (len(profiled) != 2 or profiled[0] > profiled[1]):
        raise UserError(f"train.profile_steps={profiled} must be two steps, first and last")
    for name, size in splits.items():
        if size >= 1 and size != int(size):
            raise UserError(f"data.splits.{name}={size} must be whole rows, or a share below 1")
    held_out = splits.validation + splits.test
    if max(splits.validation, splits.test) < 1 <= held_out + 1e-9:
        raise UserError(
            f"data.splits.validation + data.splits.test = {held_out:g} leaves no rows to train on"
        )


def check_stream(config: ConfigDict, prepared: Iterable[tuple[str, Any]]) -> None:
    """Raises UserError for what a stream of rows cannot be asked for.

    Args:
        config: the configuration.
        prepared: names and steps of `data.prepare`.
    """
    window, rows = config.data.window, config.train.batch_size
    if window < rows or window % rows:
        raise UserError(f"data.window={window} must be a multiple of train.batch_size={rows}")
    if not config.train.steps:
        raise UserError("train.steps must be positive: a stream of rows has no epochs")
    if config.data.group:
        raise UserError(f"data.group={config.data.group!r}: no splits are drawn from a stream")
    for name, step in prepared:
        if not step.by_row:
            raise UserError(
                f"data.prepare: {name} looks at all rows, and those of a stream are not there at "
                "once; prepare the files before, and leave it out"
            )
