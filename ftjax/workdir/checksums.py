"""Sums by which a checkpoint is known to be what was written, whatever mesh it is read on.

The storage checks only its own indices: a bit that flipped in the data would be trained on.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ODD = 2654435761  # Knuth's, for places: each bit then counts by an odd number, and is missed


def array_sums(tree: Any) -> dict[str, tuple[str, int]]:
    """Path → the type of a leaf and the sum of its bits modulo 2³², each by where it lies.

    On several hosts all must call it, with the same tree.
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    # One after the other: hosts may not run several programs in the same order
    return {jax.tree_util.keystr(path): (str(leaf.dtype), int(_sum(leaf))) for path, leaf in leaves}


def differing(saved: Mapping[str, Any], tree: Any) -> list[str]:
    """Paths of leaves that are not what was saved; those of another type are not compared.

    Args:
        saved: what `array_sums` gave, also after it was JSON; paths that it lacks are not compared.
        tree: as it was read.
    """
    now = array_sums(tree)
    same_type = (path for path in now if path in saved and saved[path][0] == now[path][0])
    return [path for path in same_type if saved[path][1] != now[path][1]]


def text_sum(value: Any) -> str:
    """The first half of the sha256 of what is written as JSON."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def weighed(arrays: ModuleType, x: Any) -> Any:
    """The sum of an array of `arrays`, which is numpy or jax.numpy."""
    bits = x.view(f"uint{8 * x.dtype.itemsize}").astype("uint32")
    place = arrays.zeros((), "uint32")
    for axis, size in enumerate(x.shape):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        along = arrays.arange(size, dtype="uint32") * arrays.uint32(stride)
        place = place + along.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return (bits * (place * arrays.uint32(ODD) | arrays.uint32(1))).sum(dtype="uint32")


_on_devices = jax.jit(partial(weighed, jnp))


def _sum(leaf: Any) -> Any:
    """Computed where the array is; in a CPU's memory without a program, which would be compiled."""
    if jax.default_backend() == "cpu" and getattr(leaf, "is_fully_addressable", True):
        return weighed(np, np.asarray(leaf))
    return _on_devices(leaf)
