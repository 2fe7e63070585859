"""Rows of files that hold columns: Parquet, and Arrow's stream and file formats."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ftjax.data.readers.lines import head, opened
from ftjax.data.readers.pages import groups, require_sound
from ftjax.data.readers.rows import Block, Options, Rows, Section, Types
from ftjax.errors import UserError, summary

Batches = Iterator[pyarrow.RecordBatch]
Placed = Iterator[tuple[int, pyarrow.RecordBatch]]  # and the number of its row group, or its own
Sections = Iterator[Section]


def read_parquet(file: Path, options: Options) -> Rows:
    return _rows(file, _batches(_parquet(file)))


def read_arrow(file: Path, options: Options) -> Rows:
    return _rows(file, _batches(_arrow(file)))


def parquet_blocks(file: Path, options: Options, types: Types) -> Iterator[Block]:
    return _blocks(file, _batches(_parquet(file, [*types])), types)


def arrow_blocks(file: Path, options: Options, types: Types) -> Iterator[Block]:
    return _blocks(file, _batches(_arrow(file)), types)


def parquet_sections(file: Path, options: Options, at: int = 0, number: int = 1) -> Sections:
    """Row groups, from one on, and the row there."""
    return _sections(file, _parquet(file, first=at), number)


def arrow_sections(file: Path, options: Options, at: int = 0, number: int = 1) -> Sections:
    """Batches, from one on, and the row there."""
    return _sections(file, _arrow(file, at), number)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Makes a message of whatever reading a damaged file leads to."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        form = "parquet" if ".parquet" in file.suffixes else "Arrow"
        raise UserError(f"{file} is not a readable {form} file: {summary(error)}") from error


def _batches(placed: Placed) -> Batches:
    return (batch for _, batch in placed)


def _sections(file: Path, placed: Placed, number: int) -> Sections:
    def rows(batches: Placed) -> Rows:
        nonlocal number
        for _, batch in batches:
            yield from _numbered(file, batch, number)
            number += len(batch)

    with _readable(file):
        for at, batches in groupby(placed, itemgetter(0)):
            yield Section(at, number, rows(batches))


def _rows(file: Path, batches: Batches) -> Rows:
    number = 1
    with _readable(file):
        for batch in batches:
            yield from _numbered(file, batch, number)
            number += len(batch)


def _blocks(file: Path, batches: Batches, types: Types) -> Iterator[Block]:
    number = 1
    with _readable(file):
        for batch in batches:
            rows, table = partial(_numbered, file, batch, number), partial(of_types, batch, types)
            yield Block(range(number, number + len(batch)), rows, table)
            number += len(batch)


def _numbered(file: Path, batch: pyarrow.RecordBatch, number: int) -> Rows:
    """A thousand at a time: rows as Python's objects take many times the room of the batch."""
    with _readable(file):
        for start in range(0, len(batch), 1000):
            yield from enumerate(batch.slice(start, 1000).to_pylist(), number + start)


def of_types(table: pyarrow.Table | pyarrow.RecordBatch, types: Types) -> pyarrow.Table | None:
    """Columns of these types; None where one is of another, or there twice."""
    columns = {}
    try:
        for name, kind in types.items():
            if table.schema.names.count(name) > 1:
                return None
            column = table.column(name) if name in table.schema.names else None
            if column is None or column.null_count == len(column):
                columns[name] = pyarrow.nulls(len(table))
            elif not pyarrow.types.is_null(kind) and _takes(column.type, kind):
                columns[name] = column.cast(kind)
            else:
                return None
    except (
        pyarrow.ArrowException,
        UnicodeDecodeError,
    ):  # names that are no text, too large numbers
        return None
    return pyarrow.table(columns)


def _takes(theirs: pyarrow.DataType, kind: pyarrow.DataType) -> bool:
    """Whether the values of a type are, as Python's objects, of the wanted one."""
    types = pyarrow.types
    if types.is_dictionary(theirs):
        return _takes(theirs.value_type, kind)
    if types.is_string(kind):
        return types.is_string(theirs) or types.is_large_string(theirs)
    if types.is_int64(kind):
        return types.is_integer(theirs) and theirs != pyarrow.uint64()
    return types.is_floating(theirs) or theirs in (pyarrow.int32(), pyarrow.int16(), pyarrow.int8())


def _parquet(file: Path, columns: Sequence[str] | None = None, first: int = 0) -> Placed:
    """Sound batches of some of the columns, or of all, from a row group on."""
    with _readable(file), opened(file) as stream:
        source = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
        whole = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
        names = whole.schema_arrow.names
        held = groups(source)
        there = None if columns is None else [name for name in columns if name in names]
        for group in range(first, whole.num_row_groups):
            require_sound(source, held[group])
            for batch in whole.iter_batches(row_groups=[group], columns=there):
                batch.validate(full=True)
                yield group, batch


def _arrow(file: Path, first: int = 0) -> Placed:
    """Sound batches from one on; read, since a damaged file that is mapped ends the process."""
    with _readable(file), opened(file) as stream:
        source = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
        if head(file).startswith(b"ARROW1"):
            whole = pyarrow.ipc.open_file(source)
            batches = map(whole.get_batch, range(first, whole.num_record_batches))
        else:
            batches = islice(pyarrow.ipc.open_stream(source), first, None)
        for number, batch in enumerate(batches, first):
            batch.validate(full=True)
            yield number, batch
