"""A page of configuration to begin from."""

import json
import textwrap
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config.keys import NEW, default_config, flat_keys, known_options, override

KEYS = (  # what most runs set
    "model.path",
    "data.path",
    "data.max_length",
    "data.prepare",
    "optimizer.learning_rate",
    "optimizer.warmup",
    "optimizer.weight_decay",
    "train.epochs",
    "train.batch_size",
    "train.early_stopping",
    "seed",
)
TEMPLATE = '''"""{title}.

ftjax train --config {file} --workdir runs/{stem}

data.path: a file, or a folder with train, validation and test files, whose rows have
{fields}; data.columns says what they are called there.
ftjax train --config {file} --explain [KEY] says what each key is.
"""

from ml_collections import ConfigDict

from ftjax.config import {imports}


def get_config(method: str = "{method}") -> ConfigDict:
    """`method`: as in FILE:METHOD."""
    config = default_config(method, "{task}")
{body}
    return config
'''
NAMES = ("optimizer.name", "method.over.name")  # with which other keys come


def page(file: str, task: str, method: str = "full", model: str = "", data: str = "") -> str:
    """The text of a page for a task: what most runs set, each with its meaning and default.

    Args:
        file: what it will be called.
        task: of the configuration.
        method: where FILE:METHOD names no other.
        model: `model.path`; empty for the default.
        data: `data.path`.

    Raises:
        UserError: an unknown method or task.
    """
    config = default_config(method, task)
    for key, text in (("model.path", model), ("data.path", data)):
        if text:
            override(config, key, text)
    own = [key for key in flat_keys(config) if key.startswith(("task.", "method."))]
    return _page(file, config, [*KEYS, *(key for key in own if not key.endswith(".name"))])


def page_of(config: ConfigDict, file: str = "PAGE.py") -> str:
    """The text of a page that gives this configuration: what differs from the defaults.

    Args:
        config: of any method and task.
        file: what it will be called.
    """
    default, values = default_config(config.method.name, config.task.name), flat_keys(config)
    named = [key for key in NAMES if flat_keys(default).get(key) != values.get(key)]
    for key in named:
        override(default, key, values[key])
    before = flat_keys(default)
    keys = [key for key, value in values.items() if before.get(key) != value]
    new = ["model.new"] * bool(config.model.new)
    return _page(file, config, [*named, *new, *(k for k in keys if not k.startswith("model.new."))])


def _page(file: str, config: ConfigDict, keys: Iterable[str]) -> str:
    """A page that sets keys to what they are, each below its meaning."""
    method, task = config.method.name, config.task.name
    known, values = known_options(config), flat_keys(config)
    special = [key for key in keys if key in (*NAMES, "model.new")]

    def lines(key: str) -> list[str]:
        indent = " " * (8 if key.startswith("method.") else 4)
        meaning = known.get(key, NEW).meaning
        comment = [f"{indent}# {line}" for line in textwrap.wrap(meaning, 90)]
        if key not in special:
            return [*comment, f"{indent}config.{key} = {_literal(values[key])}"]
        value = config.model.new.to_dict() if key == "model.new" else values[key]
        return [*comment, f"{indent}override(config, {_literal(key)}, {_literal(value)})"]

    keys = [key for key in keys if key not in ("method.name", "task.name")]
    of_method = [key for key in keys if key.startswith("method.")]
    body = [line for key in keys if key not in of_method for line in lines(key)]
    if of_method:
        body += [f'    if method == "{method}":', *(x for key in of_method for x in lines(key))]
    fields = tasks.find(task).schema.fields
    named = [f"{k} (optional)" if e.optional or e.sparse else k for k, e in fields.items()]
    return TEMPLATE.format(
        title=f"{task}: {tasks.REGISTRY.text(task)}",
        file=file,
        stem=file.rpartition("/")[2].removesuffix(".py"),
        fields=", ".join(named),
        imports="default_config, override" if special else "default_config",
        method=method,
        task=task,
        body="\n".join(body),
    )


def _literal(value: Any) -> str:
    """A value as Python source."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
