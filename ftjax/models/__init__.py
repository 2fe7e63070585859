"""The registry of model families: a new family is one file and one line here.

A family's module has `KEYS`, `from_hf`, `Model`, `MODEL`, `HF_PREFIX` and `DEFAULT_TARGETS`; see
`ftjax/models/bert.py`. One of another package (`ftjax.registry`) also has `KIND`, what it covers,
as the table here says of others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ftjax import registry
from ftjax.errors import UserError
from ftjax.models.config_keys import resolve

if TYPE_CHECKING:  # it needs JAX, which lists of models do without
    from ftjax.models.layers import Options

# Hugging Face's model_type → (module, what it covers). Imported when used.
FAMILIES: dict[str, tuple[str, str]] = {
    "bert": ("bert", "encoder"),
    "roberta": ("roberta", "encoder"),
    "xlm-roberta": ("roberta", "encoder"),
    "distilbert": ("distilbert", "encoder"),
    "electra": ("electra", "encoder"),
    "albert": ("albert", "encoder"),
    "deberta-v2": ("deberta", "encoder"),
    "xlnet": ("xlnet", "encoder"),
    "modernbert": ("modernbert", "encoder"),
    "gpt2": ("gpt2", "decoder"),
    "gpt_neo": ("gpt_neo", "decoder"),
    "llama": ("llama", "decoder"),
    "mistral": ("llama", "decoder"),
    "mixtral": ("llama", "decoder"),
    "qwen2": ("llama", "decoder"),
    "qwen3": ("llama", "decoder"),
    "phi3": ("llama", "decoder"),
    "gemma": ("gemma", "decoder"),
    "gemma2": ("gemma", "decoder"),
    "gemma3_text": ("gemma", "decoder"),
    "t5": ("t5", "encoder-decoder"),
    "mt5": ("t5", "encoder-decoder"),
    "bart": ("bart", "encoder-decoder"),
    "mbart": ("bart", "encoder-decoder"),
    "marian": ("bart", "encoder-decoder"),
}
REGISTRY = registry.Registry(
    "model type {!r}",
    "ftjax.models",
    FAMILIES,
    "ftjax.families",
    needs=(
        "KEYS",
        "from_hf",
        "Model",
        "MODEL",
        "HF_PREFIX",
        "DEFAULT_TARGETS",
        "KIND",
    ),
)
# What the tests found equal to transformers: model type → task → checks.
VERIFIED = Path(__file__).with_name("verified.json")


def table() -> dict[str, str]:
    """Model type → what it is, its tasks and what is verified of them, for people to read."""
    verified = json.loads(VERIFIED.read_text(encoding="utf-8"))
    rows = {}
    for name, (_, kind) in FAMILIES.items():
        heads = verified.get(name, {})
        tasks = {head: checks for head, checks in heads.items() if head != "none"}
        distinct = list(dict.fromkeys(check for checks in heads.values() for check in checks))
        common = [check for check in distinct if all(check in checks for checks in tasks.values())]
        others = [check for check in distinct if check not in common]
        lines = [kind, f"tasks: {', '.join(tasks)}", f"verified of each: {', '.join(common)}"]
        lines += [f"of some: {', '.join(others)}"] if others else []
        rows[name] = ("\n" + " " * 22).join(lines if tasks else [kind, "nothing verified yet"])
    return {**REGISTRY.entries(), **rows}


def family(hf_config: Mapping[str, Any]) -> ModuleType:
    """The module of the family that config.json names.

    Raises:
        UserError: the model type is not known.
    """
    kind = hf_config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"model type {kind!r} is not known: config.json names none")
    return REGISTRY.find(kind)


def configure(hf_config: Mapping[str, Any], options: "Options") -> Any:
    """The family's `Config` of what config.json says.

    Raises:
        UserError: a key is missing, or says what is not implemented.
    """
    module, kind = family(hf_config), hf_config["model_type"]
    keys = module.KEYS.get(kind) or next(iter(module.KEYS.values()))  # of one by its dotted name
    try:
        return module.from_hf(resolve(hf_config, keys), options)
    except KeyError as error:
        raise UserError(f"config.json of this {kind} lacks {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder's model, of which all that its family reads is sound.

    Raises:
        UserError: it is not, or there is none.
    """
    from ftjax.formats import folder as formats
    from ftjax.formats.guard import named
    from ftjax.models.layers import Options

    config = formats.read_config(folder)
    with named(formats.config_file(folder)):
        configure(config, Options())
    return config


def kind_of(hf_config: Mapping[str, Any]) -> str:
    """ "encoder", "decoder" or "encoder-decoder"; raises as `family` does."""
    module, kind = family(hf_config), hf_config["model_type"]
    return FAMILIES[kind][1] if kind in FAMILIES else module.KIND
