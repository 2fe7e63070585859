"""Parts of a source that have not been read: their rows, checked one by one or many at a time."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow

from ftjax.data import columns
from ftjax.data.checker import Checker
from ftjax.data.fields import FIRST, Row, Schema
from ftjax.data.readers.rows import Block, Rows, Types, sound
from ftjax.errors import UserError

CHUNK = 10_000  # rows that are Python's objects at once


@dataclass(frozen=True)
class Opened:
    """A split that has not been read.

    Attributes:
        file: for messages.
        read: starts reading its rows.
        columns: `data.columns`.
        label_names: in order, where the source names them.
        blocks: starts reading them many at a time, where columns are of these types.
        notes: what a user should know of how it is read.
    """

    file: str
    read: Callable[[], Rows]
    columns: Mapping[str, str]
    label_names: tuple[str, ...] = ()
    blocks: Callable[[Types], Iterator[Block] | None] | None = None
    notes: tuple[str, ...] = ()

    def checked(self, schema: Schema) -> Iterator[Row | UserError]:
        """Rows as `Split` has them; a UserError in place of a bad one."""
        rows = self.read()
        first = list(islice(rows, FIRST))
        check = Checker(self.file, schema, self.columns, [row for _, row in first])
        yield from _each(check, chain(first, rows))

    def tables(self, schema: Schema, bad: Callable[[UserError], None]) -> Iterator[pyarrow.Table]:
        """The same rows as tables, in order.

        Args:
            schema: what rows must be.
            bad: is told of each that is bad.
        """
        rows = self.read()
        first = list(islice(rows, FIRST))
        check = Checker(self.file, schema, self.columns, [row for _, row in first])
        types = columns.types_of(check, [row for _, row in first])
        blocks = self.blocks(types) if self.blocks and types else None
        if blocks is None:
            yield from _tables(check, chain(first, rows), bad)
            return
        for block in blocks:
            table = columns.checked(check, block)
            yield from _tables(check, block.rows(), bad) if table is None else [table]


def _each(check: Checker, rows: Rows) -> Iterator[Row | UserError]:
    for number, row in rows:
        try:
            yield check(number, sound(row))
        except UserError as error:
            yield error


def _tables(
    check: Checker, rows: Rows, bad: Callable[[UserError], None]
) -> Iterator[pyarrow.Table]:
    every = _each(check, rows)
    while some := list(islice(every, CHUNK)):
        for row in some:
            if isinstance(row, UserError):
                bad(row)
        if good := [row for row in some if not isinstance(row, UserError)]:
            yield pyarrow.Table.from_pylist(good)
