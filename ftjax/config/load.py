"""Configurations: of pages in Python or YAML, of pages by name and of tasks, and with changes."""

import ast
import importlib.util
import inspect
import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config.checks import check
from ftjax.config.keys import NAMED, NESTED, default_config, in_sections, override
from ftjax.config.yaml import read_yaml
from ftjax.errors import UserError, nearest, require
from ftjax.options import shown

Changes = list[tuple[str, Any]]  # dotted keys and values, in their order
NAMES = ("method.name", "method.over.name", "optimizer.name")  # with which other keys come
YAML = (".yaml", ".yml")
ROOM = Path(__file__).parents[1]


def config(
    page: str | os.PathLike[str] | None = None,
    *,
    method: str | Mapping[str, Any] | None = None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    task: str | Mapping[str, Any] | None = None,
    **keys: Any,
) -> ConfigDict:
    """A checked configuration: `config("sst2", method="lora", **{"data.path": "reviews"})`.

    Args:
        page: the name of a page (`ftjax list pages`), a page's file (.py or .yaml), each also with
            ":ARG", or the name of a task that no page has; None for the defaults of `task`.
        method: `method.name`, or a mapping of the section's keys, as `{"name": "lora", "rank": 4}`.
        model: `model.path`, or a mapping.
        data: `data.path`, or a mapping.
        task: whose defaults they are without a page, or a mapping with its name; by itself
            "classification".
        **keys: by dotted names, or mappings of a section's keys.

    Raises:
        UserError: as the command line would have it: a page, a key or a value is wrong.
    """
    mapped = task if isinstance(task, Mapping) else None
    if page is not None and task is not None and mapped is None:
        raise UserError(f"a page has a task of its own: leave out {page!r} or task={task!r}")
    if not isinstance(page, str | os.PathLike | None):
        raise UserError(f"page={shown(page)} must be a page's name or file")
    short = {"model": (model, "path"), "data": (data, "path"), "method": (method, "name")}
    short |= {"task": (mapped, "name")}
    sections = {
        name: value if isinstance(value, Mapping) else {key: value}
        for name, (value, key) in short.items()
        if value is not None
    }
    changes = in_sections(sections) + in_sections(keys)
    named = dict(changes).get("task.name") if mapped is not None else task
    spec = "" if page is None else os.fspath(page)
    return check(loaded(spec, changes, named or "classification"))


def load_config(spec: str, overrides: Iterable[str] = (), task: str = "") -> ConfigDict:
    """The configuration of FILE[:ARG], or a task's default, with `--config.KEY=VALUE` overrides.

    Args:
        spec: FILE[:ARG], as `page` of `config`; empty for the default of `task`.
        overrides: in their order.
        task: whose default it is where there is no file.

    Raises:
        UserError: the file, a key or a value is wrong.
    """
    return loaded(spec, [parse_override(item) for item in overrides], task)


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
    return key, {"true": True, "false": False}.get(text.lower(), text)


def loaded(
    spec: str, changes: Changes, task: str = "", before: tuple[Path, ...] = ()
) -> ConfigDict:
    """The configuration of FILE[:ARG], or a task's default, with changes.

    Where the page's `get_config` takes an argument, ARG is passed, or else the method of a change.
    `before` are the pages of YAML that begin from it.
    """
    named = dict(changes).get("method.name")
    method = "" if named is None else str(named)
    file, _, argument = spec.partition(":")
    if not spec:
        begun = default_config(task=task)
    elif (path := _file(file)) is None:
        begun = default_config(argument or method or "full", file)
    elif path.suffix in YAML:
        begun = _of_yaml(path, argument or method, before)
    else:
        begun = _of_page(path, argument or method)
    return changed(begun, changes)


def changed(config: ConfigDict, changes: Changes) -> ConfigDict:
    """A configuration with changes made to it, those first that other keys come with."""
    values = dict(changes)
    for key in NAMES:
        if key in values:
            override(config, key, values[key])
    for key, value in changes:
        override(config, key, value)
    return config


def pages() -> dict[str, str]:
    """The pages that have names → the first lines of what they say of themselves."""
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(_folder().glob("*.py"))}
    docstrings = {name: ast.get_docstring(ast.parse(text)) or "" for name, text in texts.items()}
    return {name: text.partition("\n")[0].removesuffix(".") for name, text in docstrings.items()}


def load_module(name: str) -> ModuleType | None:
    """A page of Python as a module; None of what is no Python.

    Args:
        name: a file, or the name of a page.

    Raises:
        UserError: it does not exist, cannot be run, or has no `get_config`.
    """
    file = _file(name.partition(":")[0])
    return None if file is None or file.suffix in YAML else _module(file)


def _folder() -> Path:
    """Where pages with names are: in the installed package, or beside it in a checkout."""
    installed = ROOM / "configs"
    return installed if installed.is_dir() else ROOM.with_name("configs")


def _file(name: str) -> Path | None:
    """The file of a page, by its path or its name; None where that names a task.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if not path.suffix and len(path.parts) == 1 and not path.is_file():
        path = _folder() / f"{name}.py"
        if not path.is_file():
            with suppress(ValueError):
                tasks.REGISTRY.require(name)
                return None
            raise UserError(
                f"--config: there is no page {name!r}{nearest(name, pages())}; a file ends in .py "
                "or .yaml; ftjax list pages says which have names"
            )
    if not path.is_file():
        what = "is a folder, not a page" if path.is_dir() else "does not exist"
        raise UserError(f"--config: {name} {what}; ftjax init writes a page to begin from")
    if path.suffix not in (".py", *YAML):
        raise UserError(f"--config: {name}: a page is Python or YAML and ends in .py or .yaml")
    return path


def _of_page(file: Path, argument: str) -> ConfigDict:
    """What `get_config` of a page returns, given an argument where it takes one."""
    module = _module(file)
    with errors_of_page(file):
        takes = bool(inspect.signature(module.get_config).parameters)
        config = module.get_config(argument) if takes and argument else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returns {config!r}, no configuration")
    return config


def _of_yaml(file: Path, method: str, before: tuple[Path, ...]) -> ConfigDict:
    """What a page of YAML says, over the page that it begins from, if any.

    Args:
        file: the page.
        method: instead of the page's, whose options are then left out.
        before: pages that begin from this one.
    """
    if file.absolute() in before:
        raise UserError("it begins from itself")
    tree = dict(read_yaml(file))
    page, keys = tree.pop("page", None), in_sections(tree)
    own, task = dict(keys).get("method.name"), dict(keys).get("task.name", "classification")
    if method and own is not None and method != own:
        keys = [(key, value) for key, value in keys if not key.startswith("method.")]
    try:
        require(isinstance(page, str | None), f"page={page!r} must be a page's name or file")
        _require_nested(tree)
        begin = [("method.name", method or own)] if method or own else []
        if page:
            begun = loaded(_beside(file, page), begin, before=(*before, file.absolute()))
        else:
            begun = changed(default_config(task=NAMED["task"].read("task.name", task)), begin)
        return changed(begun, keys)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _require_nested(tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for keys in dots, which the same page may have in their sections too."""
    for name, value in tree.items():
        section, dot, rest = str(name).partition(".")
        require(not dot, f"{prefix}{name}: write it in its section, as {section}: {{{rest}: ...}}")
        if f"{prefix}{name}" in NESTED and isinstance(value, Mapping):
            _require_nested(value, f"{prefix}{name}.")


def _beside(file: Path, page: str) -> str:
    """What a page of YAML begins from: another file beside it, or as it is said."""
    name, colon, argument = page.partition(":")
    beside = file.parent / name
    return f"{beside}{colon}{argument}" if Path(name).suffix and beside.is_file() else page


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ftjax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    with errors_of_page(file):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} has no get_config()")
    return module


@contextmanager
def errors_of_page(file: Path) -> Iterator[None]:
    """Whatever a page raises is an error of its own, which names the line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        own = file.absolute()
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
