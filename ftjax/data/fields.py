"""What the fields of rows must be: a task says which it reads, and every row is checked."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ftjax.errors import UserError, nearest

Row = dict[str, Any]
ABSENT = object()


@dataclass(frozen=True)
class Field:
    """A field of rows.

    Attributes:
        read: a value as it is kept; raises ValueError, whose words go on from "field ...".
        optional: may be absent or null, but then of all rows.
        answer: what is to be found, which rows to predict need not have.
        unique: no two rows have the same.
    """

    read: Callable[[Any], Any]
    optional: bool = False
    answer: bool = False
    unique: bool = False


def _unchanged(row: Mapping[str, Any]) -> Mapping[str, Any]:
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
    adapt: Callable[[Mapping[str, Any]], Mapping[str, Any]] = field(default=_unchanged)

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(name for name, each in self.fields.items() if each.answer)

    def to_predict(self) -> "Schema":
        """The same rows without what is to be found."""
        fields = {name: each for name, each in self.fields.items() if not each.answer}
        return replace(self, fields=fields, check=_sound)


class Checker:
    """Checks the rows of one file, in turn.

    Args:
        file: for messages.
        schema: what rows must be.
        columns: `data.columns`: what the file calls the fields; see `inner`.
    """

    def __init__(self, file: str, schema: Schema, columns: Mapping[str, str]) -> None:
        self._file, self._schema, self._columns = file, schema, columns
        self._fields: dict[str, Field] | None = None  # that the first row has
        self._kinds: dict[str, type] = {}
        self._seen: dict[str, dict[Any, int]] = {}

    def __call__(self, number: int, row: Any) -> Row:
        """A row's fields as they are kept, and its number as "row".

        Raises:
            UserError: the row is bad; its file, number and field are named.
        """
        place = f"{self._file}: row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{place} is not an object with fields")
        try:
            row = self._schema.adapt(row)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        if self._fields is None:
            self._fields = {
                name: each
                for name, each in self._schema.fields.items()
                if not each.optional or inner(row, self._columns[name]) is not None
            }
        kept = {name: self._value(place, name, row) for name in self._fields}
        for name in self._schema.fields.keys() - self._fields.keys():
            theirs = self._columns[name]
            if inner(row, theirs) is not None:
                raise UserError(f"{place} has a field {theirs!r}, which rows before have not")
        try:
            self._schema.check(kept)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        for name, each in self._fields.items():
            if each.unique:
                first = self._seen.setdefault(name, {}).setdefault(kept[name], number)
                if first != number:
                    found = f"field {self._columns[name]!r} is {kept[name]!r}"
                    raise UserError(f"{place}: {found}, as of row {first}")
        return {**kept, "row": number}

    def _value(self, place: str, name: str, row: Mapping[str, Any]) -> Any:
        theirs = self._columns[name]
        value = inner(row, theirs, ABSENT)
        if value is ABSENT:
            near = nearest(theirs, [str(key) for key in row])
            raise UserError(f"{place} has no field {theirs!r} (data.columns.{name}){near}")
        if value is None:
            raise UserError(f"{place}: field {theirs!r} is null")
        try:
            found = self._fields[name].read(value)
        except ValueError as error:
            raise UserError(f"{place}: field {theirs!r} {error}") from None
        if self._fields[name].read is label_name:  # 1 and "1" are not to be one label
            kind = int if isinstance(value, int) else str
            if self._kinds.setdefault(name, kind) is not kind:
                other = {int: "an integer", str: "text"}
                raise UserError(
                    f"{place}: field {theirs!r} is {value!r}, {other[kind]}, where rows before "
                    f"have {other[self._kinds[name]]}"
                )
        return found


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
    if not isinstance(found, str | int) or found == "":
        raise ValueError(f"must be a string or an integer, not {shown(found)}")
    return str(int(found) if isinstance(found, bool) else found)


def number(found: Any) -> float:
    value = found.strip() if isinstance(found, str) else found
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        value = float(value)
    except ValueError:
        raise ValueError(f"must be a number, not {shown(found)}") from None
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {shown(found)}")
    return value


def label_names(found: Any) -> list[str]:
    """A list, or text with commas between; there may be none."""
    if isinstance(found, str):
        found = [name.strip() for name in found.split(",") if name.strip()]
    if not isinstance(found, list | tuple):
        raise ValueError(f"must be a list of names, or names with commas between, not {found!r}")
    return sorted({label_name(name) for name in found})


def words(found: Any) -> list[str]:
    """A list of words, at least one; text is cut at spaces."""
    if isinstance(found, str):
        found = found.split()
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"must be a list of words, at least one, not {shown(found)}")
    for each in found:
        if not isinstance(each, str) or not each.strip():
            raise ValueError(f"must hold words, not {shown(each)}")
    return list(found)


def texts(found: Any) -> list[str]:
    """A list of texts, at least two."""
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
