"""Soft prompts as PEFT stores them: one table, `prompt_embeddings`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ftjax.errors import UserError, require
from ftjax.methods.prefix import PrefixTuning
from ftjax.methods.prompt import PTuning
from ftjax.paths import Base, Flat, expand
from ftjax.tuned import Tuned

TABLE = "prompt_embeddings"
KINDS = ("key", "value")


def to_table(tuned: Tuned, params: Mapping[str, Any]) -> np.ndarray:
    """(k, d) of vectors, or (k, 2 · layers · width) of keys and values.

    Raises:
        UserError: PEFT computes something else with such a table.
    """
    method, base = tuned.method, tuned.base
    if not isinstance(method, PrefixTuning):
        return np.asarray(method.exported(base, params))
    _check(method, base)
    found = pairs(method, base, params)
    values = np.asarray([found[core] for core in method.in_order(base)])  # (layers, 2, k, width)
    entries, layers = _entries(base, len(values))
    if len(set(entries)) < len(entries):
        raise UserError(
            f"in PEFT's prefix tuning an encoder-decoder of {layers} layers has prefixes that "
            "layers share, and here each has its own: a folder cannot hold them"
        )
    table = np.zeros((layers, *values.shape[1:]), np.float32)
    table[entries] = values
    return table.transpose(2, 0, 1, 3).reshape(method.length, -1)


def pairs(
    method: PrefixTuning, base: Base, params: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Unrolled path of each attention core → its prefix of keys and of values, (k, width)."""
    found = {}
    for path, place in method.cores(base).items():
        hidden = method.hidden(lambda name, *_: params[name], base, place)
        width = base.projections()[path.removesuffix("core") + "key"][1]
        for number, unrolled in enumerate(expand(path)):

            def get(name: str, *_: Any, path=path, layer=number if unrolled != path else ...):
                return params[f"{path}/{name}"][layer]

            found[unrolled] = tuple(method.prefix(get, hidden, kind, width) for kind in KINDS)
    return found


def stacks_of(tuned: Tuned) -> int:
    """For how many stacks of layers PEFT's model is told to use a table."""
    return 2 if tuned.base.two_sided and isinstance(tuned.method, PrefixTuning) else 1


def from_table(tuned: Tuned, table: np.ndarray, file: str) -> Flat:
    """The method's parameters, from `to_table`'s.

    Raises:
        UserError: the table does not say what they are.
    """
    method, base = tuned.method, tuned.base
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
    entries, layers = _entries(base, len(cores))
    table = _shaped(table, method, base, file, 2 * layers)
    values = table.reshape(method.length, layers, 2, -1).transpose(1, 2, 0, 3)[entries]
    own = dict(zip(cores, values, strict=True))
    found = {}
    for path in method.cores(base):
        for number, kind in enumerate(KINDS):
            each = [own[core][number] for core in expand(path)]
            stacked = np.stack(each) if expand(path) != [path] else each[0]
            found[f"{path}/prefix_{kind}"] = stacked
    return found


def _entries(base: Base, count: int) -> tuple[list[int], int]:
    """Which entries of PEFT's table `count` layers read, and how many it has."""
    if not base.two_sided:
        return list(range(count)), count
    # Its table is as long as the encoder, doubled, and cut in fours, of which two are read.
    layers = sum(layer.startswith("encoder/") for layer in base.layers)
    return [2 * layer % layers for layer in range(count)], layers


def _check(method: PrefixTuning, base: Base) -> None:
    require(method.shift, "PEFT's positions begin after prefixes: it has no method.shift=False")
    require(
        not base.two_sided or set(method.cores(base).values()) == {"decoder"},
        f"PEFT has prefixes in a decoder's own attention alone, not method.places={method.places}",
    )


def _shaped(table: np.ndarray, method: Any, base: Base, file: str, entries: int) -> np.ndarray:
    if isinstance(method, PrefixTuning):
        width = next(n for path, (_, n) in base.projections().items() if path.endswith("/key"))
    else:
        width = base.words_shape[1]
    wanted = (method.length, entries * width)
    require(
        table.shape == wanted,
        f"{file}: {TABLE!r} has shape {table.shape}, but method.length={method.length} needs "
        f"{wanted}",
    )
    return table
