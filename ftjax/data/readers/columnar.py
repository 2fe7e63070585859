"""Rows of files that hold columns: Parquet, and Arrow's stream and file formats."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ftjax.data.readers.lines import head, opened
from ftjax.data.readers.rows import Block, Options, Rows, Types
from ftjax.errors import UserError, summary

Batches = Iterator[pyarrow.RecordBatch]


def read_parquet(file: Path, options: Options) -> Rows:
    return _rows(_parquet(file))


def read_arrow(file: Path, options: Options) -> Rows:
    return _rows(_arrow(file))


def parquet_blocks(file: Path, options: Options, types: Types) -> Iterator[Block]:
    return _blocks(_parquet(file, [*types]), types)


def arrow_blocks(file: Path, options: Options, types: Types) -> Iterator[Block]:
    return _blocks(_arrow(file), types)


def _rows(batches: Batches) -> Rows:
    number = 0
    for batch in batches:
        yield from enumerate(batch.to_pylist(), number + 1)
        number += len(batch)


def _blocks(batches: Batches, types: Types) -> Iterator[Block]:
    number = 0
    for batch in batches:
        numbers = range(number + 1, number + 1 + len(batch))
        rows = partial(_numbered, numbers, batch)
        yield Block(numbers, rows, partial(of_types, batch, types))
        number += len(batch)


def _numbered(numbers: range, batch: pyarrow.RecordBatch) -> Rows:
    """One by one: rows as Python's objects take many times the room of the batch."""
    for start in range(0, len(batch), 1000):
        yield from zip(numbers[start:], batch.slice(start, 1000).to_pylist(), strict=False)


def of_types(table: pyarrow.Table | pyarrow.RecordBatch, types: Types) -> pyarrow.Table | None:
    """Columns of these types; None where one is of another, or there twice."""
    columns = {}
    for name, wanted in types.items():
        if table.schema.names.count(name) > 1:
            return None
        column = table.column(name) if name in table.schema.names else None
        if column is None or column.null_count == len(column):
            columns[name] = pyarrow.nulls(len(table))
        elif not pyarrow.types.is_null(wanted) and _takes(column.type, wanted):
            columns[name] = column.cast(wanted)
        else:
            return None
    return pyarrow.table(columns)


def _takes(theirs: pyarrow.DataType, wanted: pyarrow.DataType) -> bool:
    """Whether the values of a type are, as Python's objects, of the wanted one."""
    types = pyarrow.types
    if types.is_dictionary(theirs):
        return _takes(theirs.value_type, wanted)
    if types.is_string(wanted):
        return types.is_string(theirs) or types.is_large_string(theirs)
    if types.is_int64(wanted):
        return types.is_integer(theirs) and theirs != pyarrow.uint64()
    return types.is_floating(theirs) or theirs in (pyarrow.int32(), pyarrow.int16(), pyarrow.int8())


def _parquet(file: Path, columns: Sequence[str] | None = None) -> Batches:
    """Sound batches of some of the columns, or of all."""
    try:
        with opened(file) as stream:
            source = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
            found = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
            there = (
                None if columns is None else [c for c in columns if c in found.schema_arrow.names]
            )
            for batch in found.iter_batches(columns=there):
                batch.validate(full=True)
                yield batch
    except UserError:
        raise
    except Exception as error:  # of the many that a damaged file has led to
        raise UserError(f"{file} is not a readable parquet file: {summary(error)}") from error


def _arrow(file: Path) -> Batches:
    """Sound batches; read, since a damaged file that is mapped ends the process."""
    try:
        with opened(file) as stream:
            source = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
            if head(file).startswith(b"ARROW1"):
                whole = pyarrow.ipc.open_file(source)
                batches = map(whole.get_batch, range(whole.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            for batch in batches:
                batch.validate(full=True)
                yield batch
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{file} is not a readable Arrow file: {summary(error)}") from error
