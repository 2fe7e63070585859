"""Damage to files, from a seed: bits, bytes and lengths of any, types and values of JSON."""

import copy
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

VALUES = [None, True, False, 0, 1, -1, 7, 2**31, 2**40, 10**400, 0.5, 1e308, -0.0, "", "a", "4"]
VALUES += ["../x", "\0", "é" * 50, "none", [], [1], ["a"], [[]], [None, 1], {}, {"a": 1}]
VALUES += [{"0": "a"}, float("nan"), float("inf"), "(", "default", ["a", "a"], 3, 1e-5]


def damaged(content: bytes, seed: int, count: int, text: bool) -> Iterator[bytes]:
    """A file's mutants; half of those of JSON, where `text`, are JSON still."""
    rng = random.Random(seed)
    parsed = json.loads(content) if text else None
    for number in range(count):
        if text and number % 2:
            yield json.dumps(changed(parsed, rng)).encode()
        else:
            yield bytes(hurt(bytearray(content), rng))


def hurt(content: bytearray, rng: random.Random) -> bytearray:
    """Bytes with one damage, or a few."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        size = len(content)
        if not size:
            break
        # Beginnings, where lengths and names are, are hurt as often as all else.
        at = rng.randrange(rng.choice((size, size, min(size, 64), min(size, 2000))))
        kind = rng.randrange(8)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at:]
        elif kind == 3:
            del content[at : at + rng.choice((1, 2, 4, 8, 100))]
        elif kind == 4:
            content[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 100)))
        elif kind == 5:  # a length
            number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            whole = struct.pack("<Q", number)[: rng.choice((4, 8))]
            content[at : at + len(whole)] = whole
        elif kind == 6:
            count = rng.choice((1, 8, 64))
            content[at : at + count] = b"\0" * len(content[at : at + count])
        else:
            other = rng.randrange(size)
            content[at : at + 16] = content[other : other + 16]
    return content


def changed(value: Any, rng: random.Random) -> Any:
    """JSON with one value of another type, or absent, or that of another place, or a few."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(VALUES)
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif kind == 2:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])))
        elif kind == 3 and type(holder[key]) in (int, float) and abs(holder[key]) < 1e300:
            factor = rng.choice((-1, 0, 0.5, 2, 1.5, 10**6))
            holder[key] = type(holder[key])(holder[key] * factor)
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where values are: (object or list, key)."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
