"""What the fields of rows must be: a task says which it reads, and every row is checked."""

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

Row = dict[str, Any]
ABSENT = object()
FIRST = 1000  # rows that a file's form is told by
BRACKETS = ("[]", "()", "{}")
INTEGER = re.compile(r"0|-?[1-9][0-9]*")
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)\.0+")


@dataclass(frozen=True)
class Field:
    """A field of rows.

    Attributes:
        read: a value as it is kept; raises ValueError, whose words go on from "field ...".
        optional: may be absent or null, but then of all rows; not where `data.columns` names it.
        answer: what is to be found, which rows to predict need not have.
        unique: no two rows have the same.
        sparse: may be absent from some rows, which then have `blank`.
        blank: what such rows have, and no other.
        settle: how values are read where that depends on the first ones of a file; in place of
            `read`.
        says: whether it holds text that is read or learned, which preparation looks at; of what
            `text`, `words` and `texts` read that is known.
    """

    read: Callable[[Any], Any]
    optional: bool = False
    answer: bool = False
    unique: bool = False
    sparse: bool = False
    blank: Any = ""
    settle: Callable[[Sequence[Any]], Callable[[Any], Any]] | None = None
    says: bool = False


def unchanged(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def _sound(row: Row) -> None:
    """A row of which nothing more is asked."""


@dataclass(frozen=True)
class Schema:
    """The rows of a task.

    Attributes:
        fields: by the name that `data.columns` maps.
        check: raises ValueError for a row whose answers do not go with the rest.
        adapt: gives rows of other known formats these fields, before they are read.
    """

    fields: Mapping[str, Field]
    check: Callable[[Row], None] = field(default=_sound)
    adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=unchanged)

    @property
    def by_column(self) -> bool:
        """Whether rows are good where each value of each column is."""
        plain = self.check is _sound and self.adapt is unchanged
        return plain and not any(e.unique or e.sparse or e.settle for e in self.fields.values())

    @property
    def texts(self) -> tuple[str, ...]:
        """Fields that hold text."""
        known = (text, words, texts)
        return tuple(
            name for name, field in self.fields.items() if field.says or field.read in known
        )

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(name for name, field in self.fields.items() if field.answer)

    def to_predict(self) -> "Schema":
        """The same rows without what is to be found."""
        fields = {name: field for name, field in self.fields.items() if not field.answer}
        return replace(self, fields=fields, check=_sound)


def inner(row: Mapping[str, Any], name: str, absent: Any = None) -> Any:
    """A field of a row; by "a.b" the field b of field a, as translations of the hub have it."""
    if name in row or "." not in name:
        return row.get(name, absent)
    first, _, rest = name.partition(".")
    within = row.get(first)
    return inner(within, rest, absent) if isinstance(within, Mapping) else absent


def shown(value: Any) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {type(value).__name__}")
    if not value.strip():
        raise ValueError("is empty")
    return value


def label_name(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # an integer in a column with gaps
        value = int(value)
    if not isinstance(value, str | int) or value == "":
        raise ValueError(f"must be a string or an integer, not {shown(value)}")
    return str(int(value) if isinstance(value, bool) else value)


def label_names_as(first: Sequence[Any]) -> Callable[[Any], str]:
    """How the labels of a file are read: as integers where all have a point, as pandas writes
    those of a column with gaps."""
    names = [value for value in first if isinstance(value, str) and value]
    whole = bool(names) and all(map(WHOLE.fullmatch, names))
    return whole_label if whole else label_name


def whole_label(value: Any) -> str:
    whole = isinstance(value, str) and WHOLE.fullmatch(value)
    return label_name(value.partition(".")[0] if whole else value)


def is_integer(name: str) -> bool:
    """Whether a label is an integer as numbers are written: 00 is a name of its own."""
    return INTEGER.fullmatch(name) is not None


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Labels sorted, as numbers where all are."""
    numbers = all(map(NUMBER.fullmatch, names))
    return tuple(sorted(names, key=(lambda name: (Decimal(name), name)) if numbers else str))


def name_or_number(value: Any) -> str | int:
    """As `label_name`, but that a number stays one."""
    name = label_name(value)
    return name if isinstance(value, str) else int(name)


def number(value: Any) -> float:
    figure = value.strip() if isinstance(value, str) else value
    try:
        if isinstance(figure, bool) or not isinstance(figure, str | int | float):
            raise ValueError
        if isinstance(figure, str) and "_" in figure:  # Python's own way of writing 1000
            raise ValueError
        figure = float(figure)
    except ValueError:
        raise ValueError(f"must be a number, not {shown(value)}") from None
    if not math.isfinite(figure):
        raise ValueError(f"must be a finite number, not {shown(value)}")
    return figure


def listed(value: Any) -> Any:
    """A list that a cell of a csv file holds as text, in JSON's or Python's words; else unchanged.

    Raises:
        ValueError: strings without commas between, as numpy writes a list.
    """
    shell = value.strip() if isinstance(value, str) else ""
    if shell[:1] + shell[-1:] not in BRACKETS:
        return value
    for read in (json.loads, _literal):
        with suppress(SyntaxError, MemoryError, RecursionError, json.JSONDecodeError):
            items = read(shell)
            return list(items) if isinstance(items, list | tuple | set) or not items else value
    return value


def _literal(shell: str) -> Any:
    """Python's list; ValueError for neighbouring strings, which Python would make one."""
    with suppress(tokenize.TokenError):
        tokens = tokenize.generate_tokens(io.StringIO(shell).readline)
        kinds = [token.type for token in tokens if token.type != tokenize.NL]
        if (tokenize.STRING, tokenize.STRING) in pairwise(kinds):
            raise ValueError(f"must be a list with commas between, not {shown(shell)}")
    try:
        return ast.literal_eval(shell)
    except (ValueError, TypeError) as error:  # names, or what no set can hold
        raise SyntaxError from error


def label_names(value: Any) -> list[str]:
    """A list, also as text, or names with commas between; there may be none."""
    names = [label_name(name) for name in _items(value)]
    if len(names) > len({*names}) and {*names} <= {"0", "1"}:
        form = "a number for each label needs as many in all rows of the file"
        raise ValueError(f"is {shown(value)}: {form}")
    return sorted({*names})


def label_sets(first: Sequence[Any]) -> Callable[[Any], list[str]]:
    """How the labels of a file are read, of which a row may have several.

    Lists are indicators, one a label, where the first rows' are of one length, two or more, and
    hold nothing but 0 and 1, or false and true; the labels are then called by their numbers. Else
    they are lists of the labels that a row has: see `label_names`.
    """
    sizes = {_indicators(value) for value in first if value is not None}
    if len(sizes) != 1 or 0 in sizes:
        return label_names
    (size,) = sizes

    def read(value: Any) -> list[str]:
        if _indicators(value) != size:
            raise ValueError(f"must be {size} numbers 0 or 1, as of other rows, not {shown(value)}")
        return [str(number) for number, flag in enumerate(_items(value)) if flag in (1, "1")]

    return read


def _items(value: Any) -> Sequence[Any]:
    value = listed(value)
    if isinstance(value, str):
        names = [name.strip() for name in value.split(",") if name.strip()]
        if any(name.count(a) != name.count(b) for name in names for a, b in BRACKETS) or (
            value.strip().startswith("[")
        ):
            raise ValueError(f"must be a list that can be read, not {shown(value)}")
        value = names
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of names, or names with commas between, not {value!r}")
    return value


def _indicators(value: Any) -> int:
    """The length of a list that may be one of indicators, else 0."""
    try:
        items = _items(value)
    except ValueError:
        return 0
    return len(items) if len(items) > 1 and all(item in (0, 1, "0", "1") for item in items) else 0


def words(value: Any) -> list[str]:
    """A list of words, also as text, at least one; other text is cut at spaces."""
    items = listed(value)
    strings = isinstance(items, list) and all(isinstance(word, str) for word in items)
    if strings and items and all(map(str.strip, items)):
        return list(items)
    value = items if strings else value
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"must be a list of words, at least one, not {shown(value)}")
    for word in value:
        if not isinstance(word, str) or not word.strip():
            raise ValueError(f"must hold words, not {shown(word)}")
    return list(value)


def tags(value: Any) -> list[str]:
    """As `words`; a text in brackets must be a list."""
    items = listed(value)
    if isinstance(items, str) and items.strip()[:1] + items.strip()[-1:] in ("[]", "{}"):
        raise ValueError(f"must be a list that can be read, not {shown(value)}")
    return words(items)


def texts(value: Any) -> list[str]:
    """A list of texts, also as text, at least two."""
    value = listed(value)
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise ValueError(f"must be a list of two texts or more, not {shown(value)}")
    return [text(item) for item in value]


def identity(value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise ValueError(f"must be text or an integer, not {shown(value)}")
    return str(value)


def same_length(row: Row, first: str, second: str) -> None:
    """Raises ValueError unless two lists of a row are of one length."""
    a, b = (len(row[name]) for name in (first, second))
    if a != b:
        raise ValueError(f"{a} {first} and {b} {second}: there must be one for each")
