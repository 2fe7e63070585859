"""The keys of config.json: which a family reads, which change nothing, and which are refused.

A family's file has a table, `KEYS`, by model type. Its `from_hf` sees the keys that the table says
it reads and no others, so that none is read, or ignored, in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from ftjax.errors import UserError
from ftjax.formats.jsons import check
from ftjax.models.config_values import Rope, Values
from ftjax.process import transformers

ROPE = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Keys:
    """What a model type makes of config.json's keys.

    Attributes:
        read: by `from_hf`.
        inert: they change nothing here, besides `INERT`.
        fixed: of others, the values that are implemented.
        aliases: other names of keys, which win over them.
    """

    read: frozenset[str]
    inert: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def keys(
    read: str, inert: str = "", aliases: Mapping[str, str] | None = None, **fixed: tuple
) -> Keys:
    """A table; names are separated by spaces."""
    return Keys(names(read), names(inert), fixed, aliases or {})


def first_token(tokens: Any) -> Any:
    """The first, where a key has several tokens."""
    return next(iter(tokens), None) if isinstance(tokens, list) else tokens


# What no model's outputs or loss depend on here: records, labels, other libraries' settings.
INERT = names(
    "architectures attn_implementation bos_token_id chunk_size_feed_forward cls_token_id dtype "
    "eos_token_id experts_implementation gradient_checkpointing id2label label2id name_or_path "
    "_name_or_path num_labels output_attentions output_hidden_states pad_token_id problem_type "
    "return_dict sep_token_id torch_dtype transformers_version use_cache"
)
# What no family has.
FIXED = {"per_layer_config": (None,), "tie_last_hidden_states": (None,)}


@lru_cache
def _defaults(model_type: str) -> Mapping[str, Any]:
    """Every key that transformers' class of a model type knows → its default."""
    mapping = transformers().models.auto.configuration_auto.CONFIG_MAPPING
    if model_type not in mapping:
        return {}
    config = mapping[model_type]
    values = config().to_dict()
    return {option.name: values.get(option.name) for option in fields(config)}


def resolve(hf: Mapping[str, Any], table: Keys) -> dict[str, Any]:
    """The keys that a family reads, by their own names, and the model type.

    Keys that neither the table nor transformers' class knows are ignored, as transformers does.

    Raises:
        UserError: a key that is read is not what it may be, or another key that transformers' class
            knows has not its default value.
    """
    kind = hf["model_type"]
    settings = {name: value for name, value in hf.items() if name not in table.aliases}
    settings |= {table.aliases[name]: value for name, value in hf.items() if name in table.aliases}
    fixed = {**FIXED, **table.fixed}
    for name, values in fixed.items():
        if name in settings and settings[name] not in values:
            raise UserError(f"{kind}: {name}={settings[name]!r} is not implemented")
    known = table.read | table.inert | fixed.keys() | INERT | {"model_type"}
    others = settings.keys() - known
    if others:  # asked of transformers last, since its import takes seconds
        defaults = _defaults(kind)
        for name in sorted(others & defaults.keys()):
            if settings[name] != defaults[name]:
                raise UserError(f"{kind}: {name}={settings[name]!r} is not implemented")
    values = {name: value for name, value in settings.items() if name in table.read}
    # First by the names that the file has, which messages then say
    _check(kind, {name: value for name, value in hf.items() if table.aliases.get(name) in values})
    _check(kind, values)
    return values | {"model_type": kind}


def _check(kind: str, values: Mapping[str, Any]) -> None:
    """Raises UserError where a value is not what `Values` says."""
    check(kind, values, Values)
    for name in ROPE:
        rope = values.get(name) or {}
        check(kind, rope, Rope, f"{name}.")
        for key, part in rope.items():
            check(kind, part if isinstance(part, dict) else {}, Rope, f"{name}.{key}.")
