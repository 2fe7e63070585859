"""Soft prompts as PEFT stores them: one table, `prompt_embeddings`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftjax.base_model import Base
from ftjax.errors import UserError, require
from ftjax.methods.prefix import PrefixTuning
from ftjax.methods.prompt import PTuning
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned

TABLE = "prompt_embeddings"
KINDS = ("key", "value")


def to_table(tuned: Tuned, params: Mapping[str, Any]) -> np.ndarray:
    """(k, d) of vectors, or (k, 2 · layers · width) of keys and values.

    Raises:
        UserError: PEFT has no such prefixes.
    """
    method, base = tuned.method, tuned.base
    if not isinstance(method, PrefixTuning):
        return np.asarray(method.exported(base, params))
    _check(method, base)
    prefixes = pairs(method, base, params)
    values = np.asarray([prefixes[core] for core in method.in_order(base)])  # (layers, 2, k, width)
    layers = _layers(base, len(values))
    table = np.zeros((layers, *values.shape[1:]), np.float32)
    table[_entries(base, len(values), layers)] = values
    return table.transpose(2, 0, 1, 3).reshape(method.length, -1)


def pairs(
    method: PrefixTuning, base: Base, params: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Unrolled path of each attention core → its prefix of keys and of values, (k, width)."""
    prefixes = {}
    for path, place in method.cores(base).items():
        hidden = method.hidden(lambda name, *_: params[name], base, place)
        width = base.projections()[path.removesuffix("core") + "key"][1]
        for number, unrolled in enumerate(expand(path)):

            def get(name: str, *_: Any, path=path, layer=number if unrolled != path else ...):
                return params[f"{path}/{name}"][layer]

            prefixes[unrolled] = tuple(method.prefix(get, hidden, kind, width) for kind in KINDS)
    return prefixes


def sizes_of(tuned: Tuned) -> dict[str, int]:
    """What PEFT's model is told of a table's shape."""
    method, base = tuned.method, tuned.base
    if not (base.two_sided and isinstance(method, PrefixTuning)):
        return {"num_transformer_submodules": 1}
    layers = _layers(base, len(method.in_order(base)))
    return {"num_transformer_submodules": 2, "num_layers": layers}


def from_table(tuned: Tuned, table: np.ndarray, file: str) -> Flat:
    """The method's parameters, from `to_table`'s.

    Raises:
        UserError: the table does not say what they are.
    """
    method, base = tuned.method, tuned.base
    require(table.ndim == 2, f"{file}: {TABLE!r} has shape {table.shape}, which is no table")
    if isinstance(method, PTuning):
        raise UserError(
            f"{file} has p_tuning's vectors without the encoder that they came from: "
            "use method.name=prompt_tuning"
        )
    if not isinstance(method, PrefixTuning):
        return {"prompt_embedding": _shaped(table[: method.length], method, base, file, 1)}
    _check(method, base)
    require(not method.projection, f"{file} has no projection: use method.projection=0")
    cores = method.in_order(base)
    layers = _layers(base, len(cores), table.shape[-1])
    table = _shaped(table, method, base, file, 2 * layers)
    values = table.reshape(method.length, layers, 2, -1).transpose(1, 2, 0, 3)
    values = values[_entries(base, len(cores), layers)]
    own = dict(zip(cores, values, strict=True))
    params = {}
    for path in method.cores(base):
        for number, kind in enumerate(KINDS):
            arrays = [own[core][number] for core in expand(path)]
            stacked = np.stack(arrays) if expand(path) != [path] else arrays[0]
            params[f"{path}/prefix_{kind}"] = stacked
    return params


def _entries(base: Base, count: int, layers: int) -> list[int]:
    """Which entries of PEFT's table, of so many layers, are read by `count` layers."""
    if not base.two_sided:
        return list(range(count))
    # Keys and values of all entries come twice in turn and are cut in fours, of which a layer
    # reads the first two.
    return [2 * layer % layers for layer in range(count)]


def _layers(base: Base, count: int, width: int = 0) -> int:
    """How many layers' prefixes PEFT's table has, for `count` layers.

    Of an encoder-decoder, as many as the encoder has; where layers would then share a prefix,
    which they do not here, twice as many as read it.

    Args:
        base: the model.
        count: the layers that have prefixes.
        width: of a table that is there already.
    """
    if not base.two_sided:
        return count
    layers = sum(layer.startswith("encoder/") for layer in base.layers)
    shared = len(set(_entries(base, count, layers))) < count
    wide = width == 2 * layers * _width(base)
    return 2 * count if shared and not wide else layers


def _check(method: PrefixTuning, base: Base) -> None:
    require(method.shift, "PEFT's positions begin after prefixes: it has no method.shift=False")
    require(
        not base.two_sided or set(method.cores(base).values()) == {"decoder"},
        f"PEFT has prefixes in a decoder's own attention alone, not method.places={method.places}",
    )


def _width(base: Base) -> int:
    """Of a layer's keys."""
    return next(n for path, (_, n) in base.projections().items() if path.endswith("/key"))


def _shaped(table: np.ndarray, method: Any, base: Base, file: str, entries: int) -> np.ndarray:
    width = _width(base) if isinstance(method, PrefixTuning) else base.words_shape[1]
    needed = (method.length, entries * width)
    require(
        table.shape == needed,
        f"{file}: {TABLE!r} has shape {table.shape}, but method.length={method.length} needs "
        f"{needed}",
    )
    return table
