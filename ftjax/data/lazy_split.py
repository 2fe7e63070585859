"""Parts of a source that have not been read: their rows, checked one by one or many at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple

import pyarrow

from ftjax.data import columns
from ftjax.data.checker import Checker
from ftjax.data.fields import ABSENT, FIRST, Row, Schema, inner
from ftjax.data.readers.rows import Reader, Rows, sound
from ftjax.errors import UserError, nearest

GROUP = "group"  # the column of `data.group`
CHUNK = 10_000  # rows that are Python's objects at once


class Mark(NamedTuple):
    """Where a source can be read on without what is before.

    Attributes:
        rows: before it.
        at: see `Section`.
        number: of the row there.
    """

    rows: int = 0
    at: int = 0
    number: int = 1


BEGIN = Mark()


@dataclass(frozen=True)
class LazySplit:
    """A split that has not been read.

    Attributes:
        file: for messages.
        reader: of its rows.
        columns: `data.columns`.
        label_names: in order, where the source names them.
        notes: what a user should know of how it is read.
        group: `data.group`; empty where rows need none.
        others: further files of the split.
    """

    file: str
    reader: Reader
    columns: Mapping[str, str]
    label_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    group: str = ""
    others: tuple["LazySplit", ...] = ()

    @property
    def files(self) -> tuple["LazySplit", ...]:
        """It and the others, each by itself."""
        return (replace(self, others=()), *self.others)

    def grouped(self, group: str) -> "LazySplit":
        """With `data.group`."""
        others = tuple(replace(other, group=group) for other in self.others)
        return replace(self, group=group, others=others)

    def checked(self, schema: Schema, start: int = 0) -> Iterator[Row | UserError]:
        """Rows as `Split` has them; a UserError in place of a bad one.

        Args:
            schema: what rows must be.
            start: how many are left out, unchecked but for the first, by which others are read.
        """
        # As `Reader.rows` gives them, which may be watched.
        whole = replace(self, reader=self.reader._replace(sections=None))
        return (row for row, _ in whole.checked_from(schema, start))

    def checked_from(
        self, schema: Schema, start: int = 0, mark: Mark = BEGIN
    ) -> Iterator[tuple[Row | UserError, Mark]]:
        """As `checked`, with the mark from which on each can be read.

        Args:
            schema: what rows must be.
            start: how many are left out.
            mark: what of those need not be read.
        """
        head = self.reader.rows()
        first = list(islice(head, FIRST))
        check = Checker(self.file, schema, self.columns, [row for _, row in first])
        for number, row in first[:start]:
            with suppress(UserError):
                check(number, sound(row))
        start_at = self.reader.sections
        sections = start_at(mark.at, mark.number) if start_at else None
        if sections is None:
            rest = islice(chain(first, head), start, None)
            yield from ((row, BEGIN) for row in self._checked(check, rest))
            return
        rows = mark.rows
        for section in sections:
            mark, left = Mark(rows, section.at, section.number), max(start - rows, 0)
            for _ in islice(section.rows, left):
                rows += 1
            for row in self._checked(check, section.rows):
                rows += 1
                yield row, mark

    def tables(self, schema: Schema, bad: Callable[[UserError], None]) -> Iterator[pyarrow.Table]:
        """The same rows as tables, in order.

        Args:
            schema: what rows must be.
            bad: is told of each that is bad.
        """
        rows = self.reader.rows()
        first = list(islice(rows, FIRST))
        check = Checker(self.file, schema, self.columns, [row for _, row in first])
        types = columns.types_of(check, [row for _, row in first])
        plain = bool(self.reader.blocks and types and not self.group)
        blocks = self.reader.blocks(types) if plain else None
        if blocks is None:
            yield from self._tables(check, chain(first, rows), bad)
            return
        for block in blocks:
            table = columns.checked(check, block)
            yield from self._tables(check, block.rows(), bad) if table is None else [table]

    def _checked(self, check: Checker, rows: Rows) -> Iterator[Row | UserError]:
        for number, row in rows:
            try:
                checked = check(number, sound(row))
                yield {**checked, GROUP: self._group(number, row)} if self.group else checked
            except UserError as error:
                yield error

    def _group(self, number: int, row: Row) -> str:
        """What a row is kept together by, with others of the same.

        Raises:
            UserError: it has no such field.
        """
        value = inner(row, self.columns.get(self.group, self.group), ABSENT)
        if value is None or value is ABSENT:
            near = "" if value is None else nearest(self.group, [str(key) for key in row])
            raise UserError(f"{self.file}: row {number} has no {self.group!r} (data.group){near}")
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)

    def _tables(
        self, check: Checker, rows: Rows, bad: Callable[[UserError], None]
    ) -> Iterator[pyarrow.Table]:
        every = self._checked(check, rows)
        while some := list(islice(every, CHUNK)):
            for row in some:
                if isinstance(row, UserError):
                    bad(row)
            if good := [row for row in some if not isinstance(row, UserError)]:
                yield pyarrow.Table.from_pylist(good)
