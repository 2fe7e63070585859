"""Columns of many rows, checked at once where nothing in them is out of the ordinary.

What a row must be is said in `ftjax.data.fields` alone. Here are quick proofs that all values of a
column are kept as they are; where there is none, the rows are checked one by one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.compute as pc

from ftjax.data import fields
from ftjax.data.checker import Checker
from ftjax.data.readers.rows import Block, Types, sound
from ftjax.errors import UserError


def type_of(values: Sequence[Any]) -> pyarrow.DataType | None:
    """The type of all of some values, where columns of it can be checked at once."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pyarrow.null()
    if kinds == {str}:
        return pyarrow.string()
    if kinds == {int}:
        return pyarrow.int64()
    return pyarrow.float64() if kinds <= {int, float} else None


def _texts(column: pyarrow.Array) -> pyarrow.Array | None:
    if not pyarrow.types.is_string(column.type):
        return None
    visible = pc.match_substring_regex(column, "[!-~]")
    others = column.filter(pc.invert(visible)).to_pylist()
    return column if all(map(str.strip, others)) else None


def _labels(column: pyarrow.Array) -> pyarrow.Array | None:
    if pyarrow.types.is_int64(column.type):
        return column.cast(pyarrow.string())
    distinct = pc.unique(column).to_pylist()
    same = all(isinstance(name, str) and _is_kept(name) for name in distinct)
    return column if same else None


def _is_kept(name: str) -> bool:
    try:
        return fields.label_name(name) == name
    except ValueError:
        return False


def _numbers(column: pyarrow.Array) -> pyarrow.Array | None:
    try:
        numbers = column.cast(pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return None
    return numbers if pc.all(pc.is_finite(numbers)).as_py() else None


# how a field is read → the column as it is kept, where that is plain to see, else None
PLAIN: Mapping[Callable, Callable[[pyarrow.Array], pyarrow.Array | None]] = {
    fields.text: _texts,
    fields.label_name: _labels,
    fields.number: _numbers,
}


def types_of(check: Checker, first: Sequence[Any]) -> Types | None:
    """The types of the columns that a schema reads, by a file's first rows.

    None where rows must be read one by one: their fields are lists, or depend on each other.
    """
    if not check.schema.by_column:
        return None
    types = {}
    for name, theirs in check.columns.items():
        column_type = type_of([row.get(theirs) for row in first if isinstance(row, Mapping)])
        absent = column_type == pyarrow.null() and not check.schema.fields[name].optional
        if column_type is None or absent or check.read[name] not in PLAIN:
            return None
        if "." in theirs or theirs in types:
            return None
        types[theirs] = column_type
    return types


def checked(check: Checker, block: Block) -> pyarrow.Table | None:
    """A block's rows as they are kept, with their numbers; None where some may be bad."""
    table = block.table()
    if table is None or not len(table):
        return None
    for number, row in block.rows():
        try:
            check(number, sound(row))
        except UserError:
            return None
        break
    columns = {}
    for name, theirs in check.columns.items():
        column = table.column(theirs).combine_chunks()
        if isinstance(column, pyarrow.ChunkedArray):
            column = pyarrow.concat_arrays(column.chunks)
        if name not in check.present:
            if column.null_count < len(column):
                return None
            continue
        read = check.read[name]
        values = None if column.null_count else PLAIN[read](column)
        if values is None:
            return None
        if read is fields.label_name:
            kind = str if pyarrow.types.is_string(column.type) else int
            if not check.same_kind(name, kind):
                return None
        columns[name] = values
    return pyarrow.table({**columns, "row": pyarrow.array(block.numbers, pyarrow.int64())})
