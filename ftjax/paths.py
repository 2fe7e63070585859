"""Parameters as flat dictionaries, and the paths of their layers.

Everywhere outside a Linen `apply`, parameters are one flat dictionary from "a/b/kernel" to an
array: a selection is then a set of keys, and a pattern is matched against what a reader sees.
"""

import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

Flat = dict[str, Any]


def flatten(tree: Mapping[str, Any]) -> Flat:
    """Nested dictionaries → {"a/b/kernel": leaf}."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/kernel": leaf} → nested dictionaries."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def expand(path: str) -> list[str]:
    """The unrolled paths that a path stands for: itself, or one a layer of a scanned segment."""
    match = re.search(r"(^|/)layers_(\d+)_(\d+)(/|$)", path)
    if not match:
        return [path]
    head, tail = path[: match.start()] + match.group(1), match.group(4) + path[match.end() :]
    return [f"{head}layer_{i}{tail}" for i in range(int(match.group(2)), int(match.group(3)))]
