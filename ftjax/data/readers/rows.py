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


def sound(row: Any) -> Any:
    """A row, or a line, that is not an error; errors are raised."""
    if isinstance(row, UserError):
        raise row
    return row
