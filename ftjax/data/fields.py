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
        return tuple(name for name, each in self.fields.items() if each.says or each.read in known)

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(name for name, each in self.fields.items() if each.answer)

    def to_predict(self) -> "Schema":
        """The same rows without what is to be found."""
        fields = {name: each for name, each in self.fields.items() if not each.answer}
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


def text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(f"must be text, not {type(found).__name__}")
    if not found.strip():
        raise ValueError("is empty")
    return found


def label_name(found: Any) -> str:
    if isinstance(found, float) and found.is_integer():  # an integer in a column with gaps
        found = int(found)
    if not isinstance(found, str | int) or found == "":
        raise ValueError(f"must be a string or an integer, not {shown(found)}")
    return str(int(found) if isinstance(found, bool) else found)


def label_names_as(first: Sequence[Any]) -> Callable[[Any], str]:
    """How the labels of a file are read: as integers where all have a point, as pandas writes
    those of a column with gaps."""
    names = [value for value in first if isinstance(value, str) and value]
    whole = bool(names) and all(map(WHOLE.fullmatch, names))
    return whole_label if whole else label_name


def whole_label(found: Any) -> str:
    whole = isinstance(found, str) and WHOLE.fullmatch(found)
    return label_name(found.partition(".")[0] if whole else found)


def is_integer(name: str) -> bool:
    """Whether a label is an integer as numbers are written: 00 is a name of its own."""
    return INTEGER.fullmatch(name) is not None


def in_order(names: Collection[str]) -> tuple[str, ...]:
    """Labels sorted, as numbers where all are."""
    numbers = all(map(NUMBER.fullmatch, names))
    return tuple(sorted(names, key=(lambda name: (Decimal(name), name)) if numbers else str))


def name_or_number(found: Any) -> str | int:
    """As `label_name`, but that a number stays one."""
    name = label_name(found)
    return name if isinstance(found, str) else int(name)


def number(found: Any) -> float:
    value = found.strip() if isinstance(found, str) else found
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if isinstance(value, str) and "_" in value:  # Python's own way of writing 1000
            raise ValueError
        value = float(value)
    except ValueError:
        raise ValueError(f"must be a number, not {shown(found)}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {shown(found)}")
    return value


def listed(found: Any) -> Any:
    """A list that a cell of a csv file holds as text, in JSON's or Python's words; else unchanged.

    Raises:
        ValueError: strings without commas between, as numpy writes a list.
    """
    shell = found.strip() if isinstance(found, str) else ""
    if shell[:1] + shell[-1:] not in BRACKETS:
        return found
    for read in (json.loads, _literal):
        with suppress(SyntaxError, MemoryError, RecursionError, json.JSONDecodeError):
            value = read(shell)
            return list(value) if isinstance(value, list | tuple | set) or not value else found
    return found


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


def label_names(found: Any) -> list[str]:
    """A list, also as text, or names with commas between; there may be none."""
    names = [label_name(name) for name in _items(found)]
    if len(names) > len({*names}) and {*names} <= {"0", "1"}:
        form = "a number for each label needs as many in all rows of the file"
        raise ValueError(f"is {shown(found)}: {form}")
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

    def read(found: Any) -> list[str]:
        if _indicators(found) != size:
            raise ValueError(f"must be {size} numbers 0 or 1, as of other rows, not {shown(found)}")
        return [str(number) for number, has in enumerate(_items(found)) if has in (1, "1")]

    return read


def _items(found: Any) -> Sequence[Any]:
    found = listed(found)
    if isinstance(found, str):
        names = [name.strip() for name in found.split(",") if name.strip()]
        if any(name.count(a) != name.count(b) for name in names for a, b in BRACKETS) or (
            found.strip().startswith("[")
        ):
            raise ValueError(f"must be a list that can be read, not {shown(found)}")
        found = names
    if not isinstance(found, list | tuple):
        raise ValueError(f"must be a list of names, or names with commas between, not {found!r}")
    return found


def _indicators(found: Any) -> int:
    """The length of a list that may be one of indicators, else 0."""
    try:
        items = _items(found)
    except ValueError:
        return 0
    return len(items) if len(items) > 1 and all(each in (0, 1, "0", "1") for each in items) else 0


def words(found: Any) -> list[str]:
    """A list of words, also as text, at least one; other text is cut at spaces."""
    given = listed(found)
    strings = isinstance(given, list) and all(isinstance(each, str) for each in given)
    if strings and given and all(map(str.strip, given)):
        return list(given)
    found = given if strings else found
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"must be a list of words, at least one, not {shown(found)}")
    for each in found:
        if not isinstance(each, str) or not each.strip():
            raise ValueError(f"must hold words, not {shown(each)}")
    return list(found)


def tags(found: Any) -> list[str]:
    """As `words`; a text in brackets must be a list."""
    given = listed(found)
    if isinstance(given, str) and given.strip()[:1] + given.strip()[-1:] in ("[]", "{}"):
        raise ValueError(f"must be a list that can be read, not {shown(found)}")
    return words(given)


def texts(found: Any) -> list[str]:
    """A list of texts, also as text, at least two."""
    found = listed(found)
    if not isinstance(found, list | tuple) or len(found) < 2:
        raise ValueError(f"must be a list of two texts or more, not {shown(found)}")
    return [text(each) for each in found]


def identity(found: Any) -> str:
    if not isinstance(found, str | int) or isinstance(found, bool) or found == "":
        raise ValueError(f"must be text or an integer, not {shown(found)}")
    return str(found)


def same_length(row: Row, first: str, second: str) -> None:
    """Raises ValueError unless two lists of a row are of one length."""
    a, b = (len(row[name]) for name in (first, second))
    if a != b:
        raise ValueError(f"{a} {first} and {b} {second}: there must be one for each")
