"""Markdown of what docstrings and tables say."""

import inspect
import re
from collections.abc import Iterable, Sequence
from textwrap import dedent
from typing import Any, Literal, get_args, get_origin

from ftjax.options import options

SECTION = re.compile(r"\n(Attributes|Args|Returns|Raises|Yields):\n")
SPECIAL = re.compile(r"([\\*_\[\]|#])")


def escaped(text: str) -> str:
    """A text in which only what is between backticks is markup."""
    parts = text.split("`")
    return "`".join(
        part.replace("|", "\\|") if number % 2 else SPECIAL.sub(r"\\\1", part).replace("<", "&lt;")
        for number, part in enumerate(parts)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """A table of cells that are Markdown; columns `right` hold numbers."""
    rule = ["---:" if number in right else "---" for number in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def fenced(code: str, language: str = "", title: str = "") -> str:
    """A block of code."""
    named = f' title="{title}"' if title else ""
    return f"```{language}{named}\n{code.rstrip()}\n```\n"


def wrapped(command: str, width: int = 76) -> str:
    """A command line that goes on in further lines, before an option."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) >= width:
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(lines)


def sections(entry: Any) -> dict[str, str]:
    """A docstring by section: "" is what comes before the first."""
    doc = inspect.cleandoc(vars(entry).get("__doc__") or entry.__doc__ or "")
    first, *rest = SECTION.split(f"\n{doc}\n")
    return {"": first.strip(), **dict(zip(rest[::2], map(dedent, rest[1::2]), strict=True))}


def entries(text: str) -> dict[str, str]:
    """Name → meaning of what an `Attributes`, `Args` or `Raises` section lists."""
    listed = re.split(r"\n(?=[\w.*]+: )", f"\n{text.strip()}")
    pairs = (item.strip().partition(": ") for item in listed if item.strip())
    return {name: " ".join(meaning.split()) for name, _, meaning in pairs}


def prose(text: str) -> str:
    """Paragraphs of a docstring."""
    return "\n\n".join(escaped(" ".join(part.split())) for part in text.split("\n\n")) + "\n"


def options_table(cls: type, prefix: str = "") -> str:
    """Every option of a dataclass: default, range and meaning."""
    rows = [
        (f"`{prefix}{name}`", code(option.default), allowed(option), escaped(option.meaning))
        for name, option in options(cls).items()
    ]
    return table(("option", "default", "may be", "meaning"), rows) if rows else "No options.\n"


def allowed(option: Any) -> str:
    """What an option may be; listed choices in backticks."""
    if get_origin(option.kind) is Literal:
        return ", ".join(map(code, get_args(option.kind)))
    return escaped(option.allowed)


def code(value: Any) -> str:
    """A value as it is written, between backticks."""
    text = repr(dict(value)) if hasattr(value, "items") else repr(value)
    return f"`{text}`".replace("|", "\\|")
