"""What options and keys are, in words, from their one definition."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ftjax.config.checks import require_config
from ftjax.config.keys import NEW, default_config, flat_keys, known_options
from ftjax.errors import UserError, nearest, require
from ftjax.options import Option


def describe(name: str, option: Option, value: Any = None) -> str:
    """Two lines: what it is and may be, and what it means.

    Args:
        name: of the option, or a key.
        option: its definition.
        value: what it is; None for its default.
    """
    default = _shown(option.default)
    now = default if value is None else _shown(value)
    set_to = f"{name} = {now}" + (f" (default {default})" if now != default else "")
    return f"{set_to}: {option.allowed}\n    {option.meaning}"


def explain(key: str, config: ConfigDict | None = None) -> str:
    """What a key is: its value, default, choices and meaning; or each key of a section.

    >>> print(explain("train.accumulation"))  # doctest: +ELLIPSIS
    train.accumulation = 1: ...

    Args:
        key: a dotted key, or a section; "" for all.
        config: whose method and task have their own keys; None for the default.

    Raises:
        UserError: no such key; the nearest is named.
    """
    require(isinstance(key, str), f"{key!r} is no key: a text, as 'train.epochs'")
    config = default_config() if config is None else config
    require_config(config)
    known, values = known_options(config) | {"model.new": NEW}, flat_keys(config)
    values["model.new"] = config.model.new
    keys = [name for name in known if not key or name == key or name.startswith(f"{key}.")]
    if not keys:
        raise UserError(f"unknown config key {key!r}{nearest(key, _named(known))}")
    return "\n".join(describe(name, known[name], values.get(name)) for name in keys)


def _named(known: Mapping[str, Option]) -> list[str]:
    """Keys and sections."""
    return [*known, *{key.rpartition(".")[0] for key in known} - {""}]


def _shown(value: Any) -> str:
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return value if isinstance(value, str) and value else repr(value)
