"""Rows as a file, in the form that its suffix says."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.files import check_writable, plain, write_bytes

Rows = Sequence[Mapping[str, Any]]
CELL, SHEET = 32_767, 1_048_576  # characters of a cell, and rows of a sheet, that Excel has
HALF = "surrogatepass"


def write_rows(file: Path, rows: Rows) -> None:
    """Writes rows whole or not at all.

    JSON keeps values as they are. In tables a mapping becomes a column for each of its keys,
    "probabilities.good", and a list its JSON; parquet keeps both where all rows have one type.

    Args:
        file: .jsonl, .json (a list), .csv, .tsv, .parquet or .xlsx.
        rows: they need not all have the same columns.

    Raises:
        UserError: another suffix, a package that is not installed, or rows that such a file cannot
            hold.
    """
    write_bytes(file, _form(file)(file, rows))


def check_form(file: Path) -> None:
    """Raises UserError or OSError where rows could not be written there, whatever they are."""
    _form(file)
    if file.suffix == ".xlsx":
        _openpyxl(file)
    check_writable(file)


def _form(file: Path) -> Callable[[Path, Rows], bytes]:
    if file.suffix not in FORMS:
        raise UserError(f"{file}: the suffix must be one of {', '.join(FORMS)}")
    return FORMS[file.suffix]


def _jsonl(file: Path, rows: Rows) -> bytes:
    return "".join(f"{_json(row)}\n" for row in rows).encode()


def _array(file: Path, rows: Rows) -> bytes:
    return ("[\n" + ",\n".join(map(_json, rows)) + "\n]\n").encode()


def _csv(file: Path, rows: Rows) -> bytes:
    """Between tabs all is in quotation marks, so that texts may begin with them."""
    tabs = file.suffix == ".tsv"
    quotes, text = csv.QUOTE_ALL if tabs else csv.QUOTE_MINIMAL, io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tabs else ",", quoting=quotes, lineterminator="\n")
    for cells in _cells(rows):
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue().encode()


def _xlsx(file: Path, rows: Rows) -> bytes:
    openpyxl = _openpyxl(file)
    if len(rows) >= SHEET:
        raise UserError(f"{file}: a sheet has {SHEET:,} rows at most; write a .parquet or .jsonl")
    table = list(_cells(rows))
    for number, cells in enumerate(table):
        longest = max((len(cell) for cell in cells if isinstance(cell, str)), default=0)
        if longest > CELL:
            raise UserError(
                f"{file}: row {number} has a text of {longest:,} characters, and a cell {CELL:,} "
                "at most; write a .parquet or .jsonl"
            )
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("predictions")
    for cells in table:
        sheet.append([_cell(openpyxl, sheet, cell) for cell in cells])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def _cell(openpyxl: Any, sheet: Any, value: Any) -> Any:
    """A cell; of text one that is no formula, without control characters, which it cannot have."""
    if not isinstance(value, str):
        return value
    text = openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("\ufffd", value)
    cell = openpyxl.cell.WriteOnlyCell(sheet, text)
    cell.data_type = "s"
    return cell


def _openpyxl(file: Path) -> Any:
    try:
        import openpyxl
        import openpyxl.cell
    except ImportError as error:
        raise UserError(f"{file}: .xlsx needs its package: pip install openpyxl") from error
    return openpyxl


def _parquet(file: Path, rows: Rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {_whole(name): _column([row.get(name) for row in rows]) for name in _names(rows)}
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    return content.getvalue()


def _column(values: list[Any]) -> Any:
    """Values of one type as they are; others as text, lists and mappings as their JSON."""
    import pyarrow

    try:
        array = pyarrow.array(values)
        if not _has_empty(array.type):  # which parquet cannot hold
            return array
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        pass
    texts = [None if cell is None else str(cell) for cell in map(_scalar, values)]
    return pyarrow.array(texts, pyarrow.string())


def _has_empty(kind: Any) -> bool:
    """Whether a type is, or has in it, a mapping without keys."""
    import pyarrow

    if pyarrow.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty(kind.field(i).type) for i in range(kind.num_fields))


def _cells(rows: Rows) -> Iterator[list[Any]]:
    """The names of all columns, then what each row has of them: text, numbers, or None."""
    flat = [_flattened(row) for row in rows]
    names = _names(flat)
    yield names
    for row in flat:
        yield [row.get(name) for name in names]


def _flattened(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and value:
            cells |= _flattened(value, f"{before}{name}.")
        else:
            cells[_whole(f"{before}{name}")] = _scalar(value)
    return cells


def _scalar(value: Any) -> str | int | float | None:
    """A number or None as it is, and else text: of lists, mappings, true and false JSON's."""
    content = plain(value)
    if content is None or (isinstance(content, int | float) and not isinstance(content, bool)):
        return content
    return _whole(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))


def _names(rows: Rows) -> list[str]:
    """Of all columns, in the order in which they come."""
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def _json(row: Mapping[str, Any]) -> str:
    """A row in a line; with half of a character, which is no UTF-8, in ASCII."""
    content = plain(row)
    text = json.dumps(content, ensure_ascii=False)
    return text if text.isascii() or _sound(text) else json.dumps(content)


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(value: Any) -> Any:
    """Text without halves of characters."""
    if isinstance(value, str) and not _sound(value):
        return value.encode("utf-16", HALF).decode("utf-16", "replace")
    return value


FORMS = {
    ".jsonl": _jsonl,
    ".json": _array,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
}
