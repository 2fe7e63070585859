"""What several hosts must not decide each for itself: made once, and told to all."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftjax.errors import require

T = TypeVar("T")


def told(value: T) -> T:
    """The first process's value, of what JSON has, in all, which call this together."""
    if jax.process_count() == 1:
        return value
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
    held = own if jax.process_index() == 0 else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(held), np.uint8).tobytes())


def worst(severity: int) -> int:
    """The highest number of all processes, which call this together."""
    if jax.process_count() == 1:
        return severity
    return int(np.max(multihost_utils.process_allgather(np.int32(severity))))


def require_same(what: str, parts: Iterable[Any]) -> None:
    """Raises UserError in all processes, which call this together, where one holds other things.

    Args:
        what: is compared, for the message.
        parts: of it, arrays or what has a text; read only where there are several processes.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for part in parts:
        array = isinstance(part, np.ndarray)
        digest.update(np.ascontiguousarray(part).tobytes() if array else str(part).encode())
        digest.update(b"\0")
    every = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    others = [str(n) for n, found in enumerate(np.asarray(every)) if (found != every[0]).any()]
    require(
        not others,
        f"{what} on process {', '.join(others)} is not that of process 0: all hosts must see the "
        "same files, and have the same versions of packages",
    )
