"""What several hosts must not decide each for itself: made once, and told to all."""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftjax.errors import UserError, require

T = TypeVar("T")
SHORT = 1024  # bytes: what is sent is filled up to this, or a power of two times it


def broadcast(value: T) -> T:
    """The first process's value, of what JSON has, in all, which call this together."""
    if jax.process_count() == 1:
        return value
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
    size = SHORT  # few sizes, since a program is compiled for each
    while size < length:
        size *= 2
    held = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        held[:length] = own
    text = np.asarray(multihost_utils.broadcast_one_to_all(held), np.uint8)[:length]
    return json.loads(text.tobytes())


def first(decide: Callable[[], T]) -> T:
    """What the first process decides, or writes, alone; all call this together.

    Args:
        decide: gives what JSON has.

    Raises:
        UserError: in all, what it is refused with, or could not be written for.
    """
    if jax.process_count() == 1:
        return decide()
    value, problem = None, None
    if jax.process_index() == 0:
        try:
            value = decide()
        except Exception as error:  # raised below, once all know
            problem = error
    value, refusal = broadcast((value, None if problem is None else str(problem)))
    if problem is not None:
        raise problem
    if refusal is not None:
        raise UserError(refusal)
    return value


def raise_together(problem: Exception | None, what: str) -> None:
    """Raises in all processes, which call this together, where one has to raise.

    Args:
        problem: of this process.
        what: there is to say where it is not this process's, nor the first one's.
    """
    message = broadcast(None if problem is None else str(problem))
    if worst(problem is not None):
        raise problem or UserError(message or what)


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
        if isinstance(part, np.ndarray) and part.dtype == object:
            part = part.tolist()
        if isinstance(part, np.ndarray):
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(str(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    every = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.uint8))
    others = [str(n) for n, other in enumerate(np.asarray(every)) if (other != every[0]).any()]
    require(
        not others,
        f"{what} on process {', '.join(others)} is not that of process 0: all hosts must see the "
        "same files, and have the same versions of packages",
    )
