"""The registry of model families: a new family is one file and one line here.

A family's module has `Config.from_hf`, `Model`, `hf_modules`, `HF_PREFIX`, `HEAD_MODULES`,
`DEFAULT_TARGETS` and `IGNORED`; see `ftjax/models/bert.py`.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ftjax.errors import UserError

# Hugging Face's model_type → (module, what it covers). Imported when used.
FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("bert", "encoder: hidden states, classification"),
}


def family(hf_config: Mapping[str, Any]) -> ModuleType:
    """The module of the family that config.json names.

    Raises:
        UserError: the model type is not supported.
    """
    kind = hf_config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"model type {kind!r} is not supported (supported: {', '.join(sorted(FAMILIES))})"
        )
    return importlib.import_module(f"ftjax.models.{FAMILIES[kind][0]}")
