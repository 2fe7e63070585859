"""What the fields of rows must be: a task says which it reads, and every row is checked."""

import ast
import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ftjax.errors import UserError, nearest

Row = dict[str, Any]
ABSENT = object()
FIRST = 1000  # rows that a file's form is told by
BRACKETS = ("[]", "()", "{}")


@dataclass(frozen=True)
class Field:
    """A field of rows.

    Attributes:
        read: a value as it is kept; raises ValueError, whose words go on from "field ...".
        optional: may be absent or null, but then of all rows.
        answer: what is to be found, which rows to predict need not have.
        unique: no two rows have the same.
        sparse: may be absent from some rows, which then have an empty text.
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
    settle: Callable[[Sequence[Any]], Callable[[Any], Any]] | None = None
    says: bool = False


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


class Checker:
    """Checks the rows of one file, in turn.

    Args:
        file: for messages.
        schema: what rows must be.
        columns: `data.columns`: what the file calls the fields; see `inner`.
        first: its first `FIRST` rows, as they are.
    """

    def __init__(
        self, file: str, schema: Schema, columns: Mapping[str, str], first: Sequence[Any]
    ) -> None:
        columns = {**dict(zip(schema.fields, schema.fields, strict=True)), **columns}
        self._file, self._schema, self._columns = file, schema, columns
        rows = [row for row in first if isinstance(row, Mapping)]

        def values(name: str) -> list[Any]:
            return [inner(row, columns[name]) for row in rows]

        fields = schema.fields.items()
        self._read = {n: each.settle(values(n)) if each.settle else each.read for n, each in fields}
        self._sparse = {n for n, each in fields if each.sparse and any(values(n))}
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
                if name in self._sparse
                or not (each.sparse or (each.optional and inner(row, self._columns[name]) is None))
            }
        kept = {name: self._value(place, name, row) for name in self._fields}
        for name in self._schema.fields.keys() - self._fields.keys():
            theirs = self._columns[name]
            found = inner(row, theirs)
            if found or (found is not None and not self._schema.fields[name].sparse):
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
        if value in (ABSENT, None) and name in self._sparse:
            return ""
        if value is ABSENT:
            near = nearest(theirs, [str(key) for key in row])
            raise UserError(f"{place} has no field {theirs!r} (data.columns.{name}){near}")
        if value is None:
            raise UserError(f"{place}: field {theirs!r} is null")
        try:
            found = self._read[name](value)
            _encodable(found)
        except ValueError as error:
            raise UserError(f"{place}: field {theirs!r} {error}") from None
        if self._fields[name].read in (label_name, name_or_number):  # 1 and "1" are two labels
            kind = str if isinstance(value, str) else int
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


def _encodable(found: Any) -> None:
    """Raises ValueError for text with half of a character, which is no UTF-8."""
    whole = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        half = ascii(whole[error.start])
        raise ValueError(f"has half of a character, {half}, as of a text that was cut") from None


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
