"""What readers give: rows one after another, or blocks of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow

from ftjax.errors import UserError

Rows = Iterator[tuple[int, Any]]  # numbers and rows as they are read; a UserError for a bad one
Options = Mapping[str, Any]  # the `data` section of the configuration
Types = Mapping[str, pyarrow.DataType]  # by what the file calls a field; null: it is absent


@dataclass(frozen=True)
class Block:
    """Rows next to each other in a file.

    Attributes:
        numbers: of the rows, where `table` has them.
        rows: the numbers and rows, one by one.
        table: columns of the types asked for; None where rows are of others.
    """

    numbers: Sequence[int]
    rows: Callable[[], Rows]
    table: Callable[[], pyarrow.Table | None]


class Section(NamedTuple):
    """Rows next to each other in a file, that can be read without those before.

    Attributes:
        at: where they begin, as the file's reader counts: bytes, row groups or batches.
        number: of the first row, or line.
        rows: the numbers and rows, one by one.
    """

    at: int
    number: int
    rows: Rows


class Reader(NamedTuple):
    """How one file, or what is read like one, is read: each starts from its beginning.

    Attributes:
        rows: one by one.
        blocks: many at a time, where columns are of these types; None where there are no such.
        sections: from a section on, which is told by where it begins and the number there; None
            where there are no such.
    """

    rows: Callable[[], Rows]
    blocks: Callable[[Types], Iterator[Block] | None] | None = None
    sections: Callable[[int, int], Iterator[Section] | None] | None = None


def sound(row: Any) -> Any:
    """A row, or a line, that is not an error; errors are raised."""
    if isinstance(row, UserError):
        raise row
    return row
