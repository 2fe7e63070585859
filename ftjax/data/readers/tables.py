"""Rows of tables: csv and tsv files, and the first sheet of Excel's."""

import csv
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow

from ftjax.data.readers.lines import lines
from ftjax.data.readers.rows import Block, Options, Rows, Types, sound
from ftjax.errors import UserError, require, summary

csv.field_size_limit(2**31 - 1)
QUOTINGS = ("auto", "double", "none")
QUOTED = re.compile(r'"([^"]|"")*"')  # a field in quotation marks, those within doubled
CHUNK = 10_000  # rows whose columns are checked at once
RATIO, SIZE = 200, 1 << 28  # of what a part of a file may be unpacked to, and bytes that are few


def read_csv(file: Path, options: Options) -> Rows:
    """Rows of named fields; the header is row 1.

    Columns without a name, as pandas writes its index, are left out. `data.quoting` says whether
    fields may be in quotation marks, those within doubled: "double", "none", or "auto", which is
    "none" between tabs, where texts begin with quotation marks of their own, unless all of the
    header is in them.
    """
    numbered = _records(file, options)
    _, header = next(numbered)
    yield from _named(header, numbered)


def csv_blocks(file: Path, options: Options, types: Types) -> Iterator[Block]:
    """Rows of named fields, many at a time."""
    numbered = _records(file, options)
    _, header = next(numbered)
    while records := list(islice(numbered, CHUNK)):
        numbers = [number for number, _ in records]
        rows = partial(_named, header, records)
        yield Block(numbers, rows, partial(_columns, header, records, types))


def _columns(header: list[str], records: list[tuple[int, Any]], types: Types) -> Any:
    """Columns of rows without an error, None where there is one."""
    if any(isinstance(fields, UserError) for _, fields in records):
        return None
    columns = dict(zip(header, zip(*(fields for _, fields in records), strict=True), strict=True))
    nothing = [None] * len(records)
    return pyarrow.table({name: pyarrow.array(columns.get(name, nothing)) for name in types})


def _named(header: list[str], records: Any) -> Rows:
    for number, fields in records:
        bad = isinstance(fields, UserError)
        yield number, fields if bad else {n: x for n, x in zip(header, fields, strict=True) if n}


def _records(file: Path, options: Options) -> Iterator[tuple[int, list[str] | UserError]]:
    """The header and every row, as lists of fields."""
    delimiter = options["delimiter"].replace("\\t", "\t")
    delimiter = delimiter or ("\t" if ".tsv" in file.suffixes else ",")
    require(len(delimiter) == 1, f"data.delimiter={delimiter!r} must be one character")
    quoting = options["quoting"]
    require(quoting in QUOTINGS, f"data.quoting={quoting!r} must be one of {', '.join(QUOTINGS)}")
    every = lines(file, options)
    first = sound(next(every, ""))
    names = first.rstrip("\r\n").split(delimiter)
    plain = delimiter == "\t" and not all(map(QUOTED.fullmatch, names))
    guessed = quoting == "auto" and plain
    bad: list[UserError] = []  # lines that are not text, before the row that comes next

    def texts() -> Iterator[str]:
        for line in chain([first], every):
            if isinstance(line, UserError):
                bad.append(line)
            else:
                yield line

    quotes = csv.QUOTE_NONE if quoting == "none" or guessed else csv.QUOTE_MINIMAL
    reader = csv.reader(texts(), delimiter=delimiter, quoting=quotes, strict=True)
    try:
        header, number = _header(file, next(reader, []), delimiter), 1
        yield number, header
    except csv.Error as error:
        raise UserError(f"{file}: row 1 {_wrong(error, [], guessed)}") from error
    while True:
        before = reader.line_num
        try:
            fields: Any = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fields = error
            held = reader.line_num - before
            if "end of data" in str(error) and held > 1:
                raise UserError(
                    f"{file}: row {number + 1} has a quotation mark that is not closed: its field "
                    f"would be all {held} lines to the end; if quotation marks are part of texts, "
                    "set data.quoting=none"
                ) from error
        while bad:
            number += 1
            yield number, bad.pop(0)
        if fields != []:  # an empty line
            number += 1
            if wrong := _wrong(fields, header, guessed):
                yield number, UserError(f"{file}: row {number} {wrong}")
            else:
                yield number, fields
    yield from ((0, error) for error in bad)


def _header(file: Path, names: list[str], delimiter: str) -> list[str]:
    """Names of columns, which are all different."""
    other = next((mark for mark in "\t;|," if mark != delimiter and mark in "".join(names)), None)
    if len(names) == 1 and other:
        raise UserError(
            f"{file}: row 1: the header {names[0]!r} is one field; if {other!r} is between "
            f"fields, set data.delimiter={other!r}"
        )
    for name in filter(None, names):
        once = names.count(name) == 1
        require(once, f"{file}: row 1: {names.count(name)} columns are called {name!r}: rename one")
    return names


def _wrong(fields: list[str] | csv.Error, header: list[str], guessed: bool) -> str:
    """What is wrong with a row of a csv file; empty where nothing is."""
    if isinstance(fields, csv.Error) and "new-line" in str(fields):
        return "has a carriage return in a field without quotation marks"
    if isinstance(fields, csv.Error):
        return (
            f"cannot be read ({fields}): if its quotation marks are part of texts, "
            "set data.quoting=none"
        )
    opens = guessed and any(field.startswith('"') for field in fields)
    mend = "if fields are in quotation marks, set data.quoting=double"
    if len(fields) != len(header):
        much = "more" if len(fields) > len(header) else "fewer"
        return f"has {much} fields than the header" + (f"; {mend}" if opens else "")
    if opens and any('""' in field[1:-1] and QUOTED.fullmatch(field) for field in fields):
        return f"has quotation marks around a field and doubled in it: {mend}, else to none"
    return ""


def read_xlsx(file: Path, options: Options) -> Rows:
    """Rows of the first sheet that has any below its header, which is the first.

    Cells have what was last computed in them; dates are texts, and empty cells null.
    """
    with _book(file) as book:
        yield from _cells(file, _sheet(book)[1])


@contextmanager
def _book(file: Path) -> Iterator[Any]:
    """A workbook, none of whose parts is unpacked to more than it may."""
    try:
        import openpyxl
    except ImportError as error:
        raise UserError(f"{file} needs a package: pip install 'ftjax[excel]'") from error
    try:
        with file.open("rb") as opened:
            for part in zipfile.ZipFile(opened).infolist():
                few = part.file_size <= max(SIZE, RATIO * part.compress_size)
                require(few, f"{file}: {part.filename} would take {part.file_size:,} bytes")
            opened.seek(0)
            yield openpyxl.load_workbook(opened, read_only=True, data_only=True)
    except UserError:
        raise
    except Exception as error:  # of the many that a damaged file has led to
        raise UserError(f"{file} is not a readable Excel file: {summary(error)}") from error


def sheet_note(file: Path) -> str:
    """Which of a file's sheets is read, where there are several; else empty."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as parts:
        if sum(name.startswith("xl/worksheets/") for name in parts.namelist()) < 2:
            return ""
    with _book(file) as book:
        return f"{file}: of the sheets {', '.join(book.sheetnames)}, {_sheet(book)[0]} is read"


def _sheet(book: Any) -> tuple[str, Iterator[tuple[int, tuple]]]:
    """The first sheet with a row below its header, or else with any: its name and filled rows."""
    sheets = [(sheet.title, list(islice(_filled(sheet), 2))) for sheet in book.worksheets]
    few = next((title for title, first in sheets if first), book.sheetnames[0])
    title = next((title for title, first in sheets if len(first) > 1), few)
    return title, _filled(book[title])


def _filled(sheet: Any) -> Iterator[tuple[int, tuple]]:
    """Numbered rows that are not empty."""
    rows = enumerate(sheet.iter_rows(values_only=True), 1)
    return ((number, row) for number, row in rows if any(x is not None for x in row))


def _cells(file: Path, numbered: Iterator[tuple[int, tuple]]) -> Rows:
    _, first = next(numbered, (0, ()))
    header = _header(file, ["" if name is None else str(name) for name in first], ",")
    for number, row in numbered:
        yield number, {n: _cell(x) for n, x in zip(header, row, strict=False) if n}


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else str(value)
