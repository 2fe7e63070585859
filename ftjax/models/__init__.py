"""The registry of model families: a new family is one file and one line here.

A family's module has `from_hf`, `Model`, `hf_modules`, `MODEL`, `HF_PREFIX` and
`DEFAULT_TARGETS`; see `ftjax/models/bert.py`.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ftjax.errors import UserError

# Hugging Face's model_type → (module, what it covers). Imported when used.
FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("bert", "encoder"),
    "roberta": ("roberta", "encoder"),
    "xlm-roberta": ("roberta", "encoder"),
    "distilbert": ("distilbert", "encoder"),
    "electra": ("electra", "encoder"),
    "albert": ("albert", "encoder"),
    "modernbert": ("modernbert", "encoder"),
    "xlnet": ("xlnet", "encoder"),
    "deberta-v2": ("deberta", "encoder"),
    "gpt2": ("gpt2", "decoder"),
    "gpt_neo": ("gpt_neo", "decoder"),
    "llama": ("llama", "decoder"),
    "mistral": ("llama", "decoder"),
    "mixtral": ("llama", "decoder"),
    "qwen2": ("llama", "decoder"),
    "qwen3": ("llama", "decoder"),
    "phi3": ("llama", "decoder"),
    "bart": ("bart", "encoder-decoder"),
    "mbart": ("bart", "encoder-decoder"),
    "marian": ("bart", "encoder-decoder"),
    "t5": ("t5", "encoder-decoder"),
    "mt5": ("t5", "encoder-decoder"),
    "gemma": ("gemma", "decoder"),
    "gemma2": ("gemma", "decoder"),
    "gemma3_text": ("gemma", "decoder"),
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


def kind_of(hf_config: Mapping[str, Any]) -> str:
    """ "encoder", "decoder" or "encoder-decoder"; raises as `family` does."""
    family(hf_config)
    return FAMILIES[hf_config["model_type"]][1]
