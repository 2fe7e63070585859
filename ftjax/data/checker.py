"""Rows of a file against the schema of a task, one by one."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ftjax.data.fields import (
    ABSENT,
    Row,
    Schema,
    inner,
    label_name,
    label_names_as,
    name_or_number,
    unchanged,
)
from ftjax.errors import UserError, nearest

AS_JSON = json.JSONEncoder(ensure_ascii=False)


class Checker:
    """Checks the rows of one file, in turn.

    Args:
        file: for messages.
        schema: what rows must be.
        columns: `data.columns`: what the file calls the fields; see `inner`.
        first: its first `FIRST` rows, as they are.

    Attributes:
        schema: as given.
        columns: what the file calls each field of the schema.
        read: how the values of each field are read.
        present: names of the fields that rows have, as the first row does.

    Raises:
        UserError: `data.columns` names an optional field that none of the first rows has.
    """

    def __init__(
        self, file: str, schema: Schema, columns: Mapping[str, str], first: Sequence[Any]
    ) -> None:
        self.schema, self._file = schema, file
        self.columns = {name: columns.get(name, name) for name in schema.fields}
        self._renamed = [name for name, theirs in self.columns.items() if theirs != name]
        self.present: set[str] | None = None
        self._kinds: dict[str, type] = {}
        self._seen: dict[str, dict[Any, int]] = {}
        rows = [row for row in first if isinstance(row, Mapping)]
        self._require_named(rows)

        def values(name: str) -> list[Any]:
            return [inner(row, self.columns[name]) for row in rows]

        fields = schema.fields.items()
        settled = {n: label_names_as(values(n)) for n, field in fields if field.read is label_name}
        settled |= {n: field.settle(values(n)) for n, field in fields if field.settle}
        self.read = {name: settled.get(name, field.read) for name, field in fields}

    def _require_named(self, rows: Sequence[Row]) -> None:
        for name in self._renamed:
            field, theirs = self.schema.fields[name], self.columns[name]
            absent = all(inner(row, theirs, ABSENT) is ABSENT for row in rows)
            if rows and absent and (field.optional or field.sparse):
                near = nearest(theirs, {str(key) for row in rows for key in row})
                raise UserError(
                    f"{self._file}: no row has a field {theirs!r} (data.columns.{name}){near}"
                )

    def __call__(self, number: int, row: Any) -> Row:
        """A row's fields as they are kept, and its number as "row".

        Raises:
            UserError: the row is bad; its file, number and field are named.
        """
        place = f"{self._file}: row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{place} is not an object with fields")
        try:
            return {**self._values(place, number, row), "row": number}
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{place}: {error}") from None
        except RecursionError:
            raise UserError(f"{place} has too many brackets within each other") from None

    def _values(self, place: str, number: int, row: Mapping[str, Any]) -> Row:
        row = self._adapted(row)
        fields, columns = self.schema.fields, self.columns
        if self.present is None:
            self.present = {
                name
                for name, field in fields.items()
                if field.sparse or not field.optional or inner(row, columns[name]) is not None
            }
        values = {name: self._value(place, name, row) for name in fields if name in self.present}
        for name in fields.keys() - self.present:
            if inner(row, columns[name]) is not None:
                raise UserError(
                    f"{place} has a field {columns[name]!r}, which rows before have not"
                )
        self.schema.check(values)
        for name in values:
            if fields[name].unique:
                first = self._seen.setdefault(name, {}).setdefault(values[name], number)
                if first != number:
                    duplicate = f"field {columns[name]!r} is {values[name]!r}"
                    raise UserError(f"{place}: {duplicate}, as of row {first}")
        return values

    def _adapted(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row of another known form with fields as the file calls them.

        What `data.columns` names is what it says, and not to be recognized as something else.
        """
        if self.schema.adapt is unchanged:
            return row
        named = {name: inner(row, self.columns[name], ABSENT) for name in self._renamed}
        ours = {**row, **{name: value for name, value in named.items() if value is not ABSENT}}
        adapted = self.schema.adapt(ours)
        names = [n for n in self.columns if n in adapted and adapted[n] is not ours.get(n)]
        return {**row, **{self.columns[name]: adapted[name] for name in names}}

    def _value(self, place: str, name: str, row: Mapping[str, Any]) -> Any:
        theirs, field = self.columns[name], self.schema.fields[name]
        value = inner(row, theirs, ABSENT)
        if field.sparse and (value is ABSENT or value is None or value in ("", [])):
            return field.blank
        if value is ABSENT:
            near = nearest(theirs, [str(key) for key in row])
            raise UserError(f"{place} has no field {theirs!r} (data.columns.{name}){near}")
        if value is None:
            raise UserError(f"{place}: field {theirs!r} is null")
        try:
            read = self.read[name](value)
            _encodable(read)
        except ValueError as error:
            raise UserError(f"{place}: field {theirs!r} {error}") from None
        if field.read in (label_name, name_or_number):  # 1 and "1" are two labels
            kind = str if isinstance(value, str) else int
            if not self.same_kind(name, kind):
                other = {int: "an integer", str: "text"}
                raise UserError(
                    f"{place}: field {theirs!r} is {value!r}, {other[kind]}, where rows before "
                    f"have {other[self._kinds[name]]}"
                )
        return read

    def same_kind(self, name: str, kind: type) -> bool:
        """Whether a field's values are of the kind, str or int, that those before are."""
        return self._kinds.setdefault(name, kind) is kind


def _encodable(value: Any) -> None:
    """Raises ValueError for text with half of a character, which is no UTF-8."""
    whole = _joined(value)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        half = ascii(whole[error.start])
        raise ValueError(f"has half of a character, {half}, as of a text that was cut") from None


def _joined(value: Any) -> str:
    """All text of a value, whatever is between."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        with suppress(TypeError):  # others than texts
            return "".join(value)
    return AS_JSON.encode(value)
