"""Errors that are the input's fault, and the words that help to mend them."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints its message and exits with code 2."""


class Stopped(Exception):
    """A run was asked to stop and has saved: the same command goes on.

    Attributes:
        code: exit code, 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.code = 128 + number


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition`."""
    if not condition:
        raise UserError(message)


def summary(error: BaseException) -> str:
    """An error's kind and first line, or all where that only begins a list."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    message = " ".join(" ".join(lines).split()) if lines[0].rstrip().endswith(":") else lines[0]
    return f"{type(error).__name__}: {message[:300]}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Returns " (did you mean ...?)" with the known names most like `name`, or the known names."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return f" (did you mean {' or '.join(map(repr, close))}?)"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" (known: {shown})" if known else ""
