"""A page of configuration to begin from."""

import json
import textwrap
from typing import Any

from ftjax import tasks
from ftjax.config.keys import default_config, flat_keys, known_options
from ftjax.tasks import TASKS

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

from ftjax.config import default_config


def get_config(method: str = "{method}") -> ConfigDict:
    """`method`: as in FILE:METHOD."""
    config = default_config(method, "{task}")
{body}
    return config
'''


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
    known, values = known_options(config), flat_keys(config)
    values |= {key: text for key, text in (("model.path", model), ("data.path", data)) if text}

    def lines(key: str, indent: str) -> list[str]:
        comment = [f"{indent}# {line}" for line in textwrap.wrap(known[key].meaning, 90)]
        return [*comment, f"{indent}config.{key} = {_literal(values[key])}"]

    def of(section: str) -> list[str]:
        named = [key for key in known if key.startswith(f"{section}.") and key in values]
        return [key for key in named if not key.endswith(".name")]

    body = [line for key in (*KEYS, *of("task")) for line in lines(key, " " * 4)]
    if of("method"):
        body.append(f'    if method == "{method}":')
        body += [line for key in of("method") for line in lines(key, " " * 8)]
    fields = tasks.find(task).schema.fields
    named = [f"{k} (optional)" if e.optional or e.sparse else k for k, e in fields.items()]
    return TEMPLATE.format(
        title=f"{task}: {TASKS[task][-1]}",
        file=file,
        stem=file.rpartition("/")[2].removesuffix(".py"),
        fields=", ".join(named),
        method=method,
        task=task,
        body="\n".join(body),
    )


def _literal(value: Any) -> str:
    """A value as Python source."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
