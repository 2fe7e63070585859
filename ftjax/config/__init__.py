"""The configuration: defaults, pages, changes, checks.

`ftjax.config("sst2", method="lora")` is a configuration, and `from ftjax.config import
default_config` begins a page: the module can be called, as the function of its name.
"""

import inspect
import sys
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ftjax.config.checks import check, check_stream, require_config
from ftjax.config.keys import (
    default_config,
    flat_keys,
    in_dots,
    known_options,
    method_section,
    override,
    use_method,
    use_optimizer,
)
from ftjax.config.load import config, load_config, load_module, pages, parse_override

__all__ = [
    "check",
    "check_stream",
    "config",
    "default_config",
    "flat_keys",
    "in_dots",
    "known_options",
    "load_config",
    "load_module",
    "method_section",
    "override",
    "pages",
    "parse_override",
    "require_config",
    "use_method",
    "use_optimizer",
]


class _Room(ModuleType):
    """A package is in its parent by its name, where the function `ftjax.config` is to be, too."""

    def __call__(self, *arguments: Any, **keys: Any) -> ConfigDict:
        return config(*arguments, **keys)


__signature__ = inspect.signature(config)  # for whoever asks what it is called with
sys.modules[__name__].__class__ = _Room
