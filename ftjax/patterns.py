"""Regular expressions in files of others, of which some take no end of time."""

import re

import regex

from ftjax.errors import UserError

SECONDS = 1.0  # that a pattern may take at a name; usual ones take microseconds


def require_pattern(what: str, pattern: str) -> None:
    """Raises UserError unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{what}: {pattern!r} is not a regular expression: {error}") from error


def matches(pattern: str, name: str) -> bool:
    """Whether a regular expression matches a name in full.

    Raises:
        UserError: it takes too long.
    """
    try:
        return regex.fullmatch(pattern, name, timeout=SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"the pattern {pattern!r} takes more than {SECONDS:g} s at {name!r}: repeat nothing "
            "that repeats"
        ) from None
    except regex.error as error:
        raise UserError(f"the pattern {pattern!r} is not read: {error}") from error


def ends_match(pattern: str, name: str) -> bool:
    """Whether a regular expression matches the last dotted parts of a name; raises as `matches`."""
    return matches(rf"(.*\.)?({pattern})", name)
