"""Rows of files, one after another: a file may be larger than memory."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ftjax.errors import UserError, require

csv.field_size_limit(2**31 - 1)
Rows = Iterator[tuple[int, Any]]  # numbers and rows as they are read; a UserError for a bad one
Options = Mapping[str, Any]  # the `data` section of the configuration
TAG = re.compile(r"O|[BIESLU]-\S+")
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ESCAPED = re.compile(r"[\udc80-\udcff]")  # bytes that were not UTF-8
HEAD = 1 << 16  # bytes that a file's line ends are told by
QUOTINGS = ("auto", "double", "none")
QUOTED = re.compile(r'"([^"]|"")*"')  # a field in quotation marks, those within doubled


def sound(row: Any) -> Any:
    """A row, or a line, that is not an error; errors are raised."""
    if isinstance(row, UserError):
        raise row
    return row


def _lines(file: Path) -> Iterator[str | UserError]:
    """Lines with their ends; an error for one that is not text.

    They are UTF-8, or UTF-16 in a file that begins with its byte order mark, and end with \\n, or
    with \\r where the first `HEAD` bytes have more of those alone.
    """
    with file.open("rb") as opened:
        head = opened.read(HEAD)
        opened.seek(0)
        wide, marked = head[:2] in WIDE, head.startswith(codecs.BOM_UTF8)
        if b"\0" in head[:4] and not (wide and head[2:4] != b"\0\0"):  # UTF-32, or without a mark
            raise UserError(
                f"{file} is text of neither UTF-8 nor UTF-16 with a byte order mark; convert it, "
                "for example with iconv -t UTF-8"
            )
        encoding, before = "utf-16" if wide else "utf-8-sig", len(codecs.BOM_UTF8) * marked
        first = head.decode(encoding, "replace")
        end = "\r" if first.count("\r") - first.count("\r\n") > first.count("\n") else "\n"
        lines = io.TextIOWrapper(opened, encoding, errors="surrogateescape", newline=end)
        try:
            for number, line in enumerate(lines, 1):
                bad = None if wide or line.isascii() else ESCAPED.search(line)
                if bad is None:
                    yield line
                else:
                    at = before + len(line[: bad.start()].encode())
                    yield UserError(
                        f"{file}: row {number} has bytes that are not UTF-8 (byte {at}); "
                        "convert it, for example with iconv -t UTF-8"
                    )
                before += len(line.encode("utf-8", "surrogateescape"))
        except UnicodeDecodeError as error:
            raise UserError(f"{file} begins as UTF-16 and is not: {error}") from error


def _json(file: Path, options: Options) -> Rows:
    """A row a line, or one array of rows."""
    lines, empty = _lines(file), True
    for number, line in enumerate(lines, 1):
        if isinstance(line, UserError):
            yield number, line
        elif empty and line.lstrip().startswith("["):
            whole = "".join(map(sound, [line, *lines]))
            try:
                rows = json.loads(whole)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}: not valid JSON: {error}") from error
            yield from enumerate(rows, 1)
        elif line.strip():
            empty = False
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"{file}: row {number} is not valid JSON: {error}")


def _csv(file: Path, options: Options) -> Rows:
    """Rows of named fields; the header is row 1.

    Columns without a name, as pandas writes its index, are left out. `data.quoting` says whether
    fields may be in quotation marks, those within doubled: "double", "none", or "auto", which is
    "none" between tabs, where texts begin with quotation marks of their own, unless all of the
    header is in them.
    """
    delimiter = options["delimiter"].replace("\\t", "\t")
    delimiter = delimiter or ("\t" if file.suffix == ".tsv" else ",")
    require(len(delimiter) == 1, f"data.delimiter={delimiter!r} must be one character")
    quoting = options["quoting"]
    require(quoting in QUOTINGS, f"data.quoting={quoting!r} must be one of {', '.join(QUOTINGS)}")
    every = _lines(file)
    first = sound(next(every, ""))
    names = first.rstrip("\r\n").split(delimiter)
    plain = delimiter == "\t" and not all(map(QUOTED.fullmatch, names))
    guessed = quoting == "auto" and plain
    bad: list[UserError] = []  # lines that are not text, before the row that comes next

    def lines() -> Iterator[str]:
        for line in chain([first], every):
            if isinstance(line, UserError):
                bad.append(line)
            else:
                yield line

    quotes = csv.QUOTE_NONE if quoting == "none" or guessed else csv.QUOTE_MINIMAL
    reader = csv.reader(lines(), delimiter=delimiter, quoting=quotes, strict=True)
    try:
        header, number = _header(file, next(reader, []), delimiter), 1
    except csv.Error as error:
        raise UserError(f"{file}: row 1 {_wrong(error, [], guessed)}") from error
    while True:
        try:
            fields: Any = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            fields = error
        while bad:
            number += 1
            yield number, bad.pop(0)
        if fields != []:  # an empty line
            number += 1
            if wrong := _wrong(fields, header, guessed):
                yield number, UserError(f"{file}: row {number} {wrong}")
            else:
                yield number, {name: x for name, x in zip(header, fields, strict=True) if name}
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


def _parquet(file: Path, options: Options) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with file.open("rb") as opened:
            for batch in pyarrow.parquet.ParquetFile(opened).iter_batches():
                yield from enumerate(batch.to_pylist(), number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error


def _arrow(file: Path, options: Options) -> Rows:
    """Arrow's stream or file format, as `datasets` keeps it."""
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(file)) as opened:
            try:
                batches = iter(pyarrow.ipc.open_stream(opened))
            except pyarrow.ArrowInvalid:
                found = pyarrow.ipc.open_file(opened)
                batches = map(found.get_batch, range(found.num_record_batches))
            for batch in batches:
                yield from enumerate(batch.to_pylist(), number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Arrow file: {error}") from error


def _text(file: Path, options: Options) -> Rows:
    """A row {"text"} a line, a paragraph (with the empty lines after it), or the file."""
    by, held, start, blank = options["text_rows"], "", 1, False
    for number, line in enumerate(_lines(file), 1):
        if isinstance(line, UserError):
            yield number, line
            continue
        line = line.replace("\r\n", "\n").replace("\r", "\n")
        if by == "line":
            if line.strip():
                yield number, {"text": line.rstrip("\n")}
            continue
        if by == "paragraph" and blank and held.strip() and line.strip():
            yield start, {"text": held}
            held, start = "", number
        held, blank = held + line, not line.strip()
    if held.strip():
        yield start, {"text": held}


def _conll(file: Path, options: Options) -> Rows:
    """Sentences {"tokens", "tags"}: a token a line, its tag last, an empty line between them.

    A row's number is that of its first line. Comments (# and a space, and no tag at the end) and
    lines that begin with -DOCSTART- are no tokens.
    """
    tokens, tags, start, bad = [], [], 0, None
    for number, line in enumerate(chain(_lines(file), [""]), 1):
        if isinstance(line, UserError):
            bad = line
            continue
        parts = line.strip("\r\n").split("\t" if "\t" in line else None)
        if not line.strip() or line.startswith("-DOCSTART-"):
            if tokens or bad:
                yield start, bad or {"tokens": tokens, "tags": tags}
            tokens, tags, bad = [], [], None
        elif not line.startswith("# ") or TAG.fullmatch(parts[-1]):
            start = start if tokens else number
            if len(parts) < 2 and bad is None:
                bad = UserError(f"{file}: row {number} has no tag after {line.strip()!r}")
            tokens.append(parts[0])
            tags.append(parts[-1])


def _squad(file: Path, options: Options) -> Rows:
    """Questions {"id", "context", "question", "answers"} of SQuAD's nested form, 1.1 or 2.0.

    A row's number is that of the question.
    """
    try:
        found = json.loads("".join(map(sound, _lines(file))))
        asked = [
            (paragraph["context"], question)
            for article in found["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not of SQuAD's form: {error!r} is missing") from error
    for number, (context, question) in enumerate(asked, 1):
        try:
            answers = question.get("answers", ())
            row = {
                "id": question["id"],
                "context": context,
                "question": question["question"],
                "answers": {
                    "text": [answer["text"] for answer in answers],
                    "answer_start": [answer["answer_start"] for answer in answers],
                },
            }
        except (AttributeError, KeyError, TypeError) as error:
            row = UserError(f"{file}: row {number} is no question of SQuAD's form: {error!r}")
        yield number, row


# data.source → suffixes, and how a file is read
READERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Options], Rows]]] = {
    "json": ((".jsonl", ".json"), _json),
    "csv": ((".csv", ".tsv"), _csv),
    "parquet": ((".parquet",), _parquet),
    "arrow": ((".arrow",), _arrow),
    "text": ((".txt",), _text),
    "conll": ((".conll", ".bio", ".iob", ".txt"), _conll),
    "squad": ((".json",), _squad),
}
