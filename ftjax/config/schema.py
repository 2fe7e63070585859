"""The JSON Schema of pages in YAML, by which editors complete keys and mark what is none.

What keys mean and may be is said in one place, the options' classes; this is made of them.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import starmap
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ftjax import methods, optimizers, tasks
from ftjax.config.keys import MOST, NAMED, NEW, SECTIONS
from ftjax.data import preparation
from ftjax.errors import UserError
from ftjax.options import Option, Seed, options
from ftjax.registry import Registry

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
TYPES: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -MOST, "maximum": MOST},
    float: {"type": "number"},
    str: {"type": ["string", "number", "boolean"]},  # as of a label 5, which is read as "5"
    type(None): {"type": "null"},
    Any: {},
}
NUMBERS = {  # as Python writes them
    "integer": r"[+-]?\d[\d_]*(\.0*)?([eE]\+?\d+)?",
    "number": r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?",
}
SECTION: Schema = {"type": ["object", "null"]}  # one may be named, and nothing said of it
SAID: dict[str, Schema] = {
    "regex": {"format": "regex"},
    "encoding": {"type": "string", "minLength": 1},
}
PAGE = "the name or file of a page to begin from, as sst2:lora; what is said here changes it"


def schema() -> Schema:
    """The schema of all keys, with those of every method, task, step and optimizer there is."""
    sections = {name: _section(options(cls)) for name, cls in SECTIONS.items()}
    for name in [name for name in sections if "." in name]:
        parent, _, last = name.partition(".")
        sections[parent]["properties"][last] = sections.pop(name)
    model, data, optimizer = (sections[name] for name in ("model", "data", "optimizer"))
    model["properties"]["new"] = described(NEW) | SECTION
    data["properties"]["prepare"] = {
        **described(options(SECTIONS["data"])["prepare"]),
        "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/step"}}, {"$ref": "#/$defs/step"}],
    }
    fields = sorted({name for _, cls in _classes(tasks.REGISTRY) for name in cls.schema.fields})
    data["properties"]["columns"] = _section({name: _column(name) for name in fields})
    _open_to_own(optimizer, optimizers.REGISTRY)
    properties = {
        "page": {"type": ["string", "null"], "description": PAGE},
        "seed": described(Option(Seed, 0, "of all that is drawn")),
        **sections,
        "method": {"$ref": "#/$defs/method"},
        "task": {"$ref": "#/$defs/task"},
    }
    steps = _chosen("step", preparation.REGISTRY, Option(str, "", "of the step"))
    steps |= {"type": "object", "required": ["step"]}
    return {
        "$schema": DRAFT,
        "title": "An experiment of ftjax",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "allOf": [*starmap(_columns, _classes(tasks.REGISTRY)), _without_page()],
        "$defs": {
            "method": _chosen("name", methods.REGISTRY, NAMED["method"]),
            "task": _chosen("name", tasks.REGISTRY, NAMED["task"]),
            "step": {"anyOf": [_names(preparation.REGISTRY), steps]},
        },
    }


def described(option: Option) -> Schema:
    """What an option may be, with its meaning and default."""
    default = option.default if isinstance(option.default, bool | int | float | str) else None
    known = {} if default is None else {"default": default}
    return {**_of_kind(option.kind), "description": option.meaning, **known}


def _section(known: Mapping[str, Option], **more: Schema) -> Schema:
    properties = {name: described(option) for name, option in known.items()} | more
    return {**SECTION, "properties": properties, "additionalProperties": False}


def _chosen(key: str, registry: Registry, name: Option) -> Schema:
    """A section whose other keys are those of the class that `key` names.

    Without the name, which a page has said then, they may be of any.
    """
    classes = dict(_classes(registry))
    named = {**described(name), **_names(registry)}
    cases = []
    for class_name, cls in classes.items():
        own = _section(options(cls), **{key: True})
        if "over" in own["properties"]:
            own["properties"]["over"] = {"$ref": "#/$defs/method"}
        cases.append({"if": _is(key, class_name), "then": own})
    every = sorted({key, *(name for cls in classes.values() for name in options(cls))})
    unnamed = {"not": {"required": [key]}}
    cases.append({"if": unnamed, "then": {"propertyNames": {"enum": every}}})
    return {**SECTION, "properties": {key: named}, "allOf": cases}


def _open_to_own(section: Schema, registry: Registry) -> None:
    """Lets a section have other keys where its name is not built in."""
    del section["additionalProperties"]
    section["if"] = {"properties": {"name": {"enum": [*registry.table]}}}
    section["then"] = {"propertyNames": {"enum": [*section["properties"]]}}


def _columns(task: str, cls: type) -> Schema:
    """What `data.columns` maps, of a task."""
    properties = {"task": {**_is("name", task), "type": "object"}}
    return {"if": {"properties": properties, "required": ["task"]}, "then": _mapped(cls)}


def _mapped(cls: type) -> Schema:
    """A page whose `data.columns` is of a task."""
    columns = _section({name: _column(name) for name in cls.schema.fields})
    return {"properties": {"data": {"properties": {"columns": columns}}}}


def _column(name: str) -> Option:
    return Option(str, name, "what the files call the field")


def _without_page() -> Schema:
    """A method and a task that have no name are the defaults, where no page says another."""
    task, unnamed = tasks.find(NAMED["task"].default), {"not": {"required": ["name"]}}
    sections = {"method": methods.find(NAMED["method"].default), "task": task}
    default = {
        name: {"if": unnamed, "then": _section(options(cls), name=True)}
        for name, cls in sections.items()
    }
    no_task = {"properties": {"task": {"anyOf": [{"type": "null"}, unnamed]}}}
    return {
        "if": {"properties": {"page": {"type": "null"}}},
        "then": {"properties": default, "if": no_task, "then": _mapped(task)},
    }


def _is(key: str, value: str) -> Schema:
    return {"properties": {key: {"const": value}}, "required": [key]}


def _classes(registry: Registry) -> Iterable[tuple[str, type]]:
    """Names and classes of what can be imported here."""
    for name in registry.entries():
        try:
            yield name, registry.find(name)
        except UserError:
            continue


def _names(registry: Registry) -> Schema:
    return {"anyOf": [{"enum": [*registry.entries()]}, {"type": "string", "pattern": "[.:]"}]}


def _of_kind(kind: Any) -> Schema:
    """What `Option.read` takes of an annotation, as JSON or YAML has it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        if isinstance(inner[1], Registry):
            return _names(inner[1])
        return {**_of_kind(inner[0]), **(SAID.get(inner[1]) or _within(inner[1]))}
    if origin is Literal:
        return {"enum": [*inner, *([None] if "none" in inner else [])]}
    if origin in (Union, UnionType):
        own = {str: {"type": "string"}}  # what is no text another of the types may hold
        return {"anyOf": [own.get(part) or _of_kind(part) for part in inner]}
    if origin is tuple and inner[-1] is not ...:
        items = [_of_kind(part) for part in inner]
        size = len(items)
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if origin is tuple:
        item = _of_kind(inner[0])
        forms = [{"type": "array", "items": item}, item, {"type": "string", "pattern": _list(item)}]
        if item.get("prefixItems"):  # pairs
            forms.append({"type": "object", "additionalProperties": item["prefixItems"][-1]})
        return {"anyOf": forms}
    if origin is list:
        return {"type": "array", "items": _of_kind(inner[0])}
    return TYPES.get(kind, {"type": "object"})


def _list(item: Schema) -> str:
    """A pattern of items as "a, b", or of none; of numbers without their bounds."""
    words = "|".join(re.escape(str(word)) for word in item.get("enum", ()))
    part = words or NUMBERS.get(str(item.get("type")))
    return rf"^$|^\s*(({part})\s*)?(,\s*(({part})\s*)?)+$" if part else "^$|,"


def _within(interval: str) -> Schema:
    """The bounds of "[0, 1)"."""
    low, high = interval[1:-1].split(", ")
    known = {"minimum" if interval[0] == "[" else "exclusiveMinimum": float(low)}
    if high != "inf":
        known["maximum" if interval[-1] == "]" else "exclusiveMaximum"] = float(high)
    return {key: int(x) if x == int(x) else x for key, x in known.items() if x != float("-inf")}
