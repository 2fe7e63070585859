"""Rows of JSON: one a line, an array of them, or an object with such an array; SQuAD's nested form.

Lines are read in blocks, whose columns Arrow reads at once where rows are of the types of the
first; each row of another block is read by itself.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.json

from ftjax.data.readers.lines import LineBlock, are_plain, head, line_blocks, lines
from ftjax.data.readers.rows import Block, Options, Rows, Section, Types, sound
from ftjax.errors import UserError

DATA = ("data", "rows", "examples", "instances", "records")  # keys that hold the rows
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def read_json(file: Path, options: Options) -> Rows:
    """A row a line; of a file that is one array or object, or objects of several lines, those."""
    every = enumerate(lines(file, options), 1)
    for number, line in every:
        if isinstance(line, UserError) or line.strip():
            if _is_row(line):
                yield from _by_line(file, chain([(number, line)], every))
            else:
                rest = (sound(line) for _, line in every)
                yield from _documents(file, "".join(chain([line], rest)))
            return


def _is_row(line: str | UserError) -> bool:
    """Whether the first line of a file with something in it is a row, if perhaps a bad one."""
    if isinstance(line, UserError):
        return True
    shell = line.strip()
    if shell.startswith("[") or shell.endswith(("{", "[", ",")):
        return False
    try:
        value = json.loads(shell)
    except (ValueError, RecursionError):
        return True
    if _are_columns(value):
        return False
    return not (isinstance(value, Mapping) and any(_are_rows(value.get(key)) for key in DATA))


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _by_line(file: Path, numbered: Iterator[tuple[int, str | UserError]]) -> Rows:
    for number, line in numbered:
        if isinstance(line, UserError):
            yield number, line
        elif line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, UserError(f"{file}: row {number} is not valid JSON: {error}")


def _documents(file: Path, text: str) -> Rows:
    """Rows of an array, of an object with one, or objects one after another.

    They are decoded one by one, so that no more than the text and a row are in memory.

    Raises:
        UserError: it is no JSON.
    """
    at = _space(text, 0)
    try:
        start = at + 1 if text[at] == "[" else _inside(text, at)
        for number, value in enumerate(_array(text, start) if start else _values(text, at), 1):
            if number == 1 and _are_columns(value):
                raise UserError(
                    f"{file} has columns, as pandas' to_json writes them: write rows, by "
                    "to_json(..., orient='records', lines=True)"
                )
            yield number, value
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error


def _are_columns(value: Any) -> bool:
    """Whether an object has cells by the numbers of rows in each column."""
    columns = list(value.values()) if isinstance(value, Mapping) else []
    numbered = [isinstance(cells, Mapping) and "0" in cells for cells in columns]
    return bool(numbered) and all(numbered)


def _space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _array(text: str, at: int) -> Iterator[Any]:
    """Values of the array whose bracket is before `at`."""
    at = _space(text, at)
    while text[at : at + 1] != "]":
        value, at = DECODER.raw_decode(text, at)
        yield value
        at = _space(text, at)
        if text[at : at + 1] == ",":
            at = _space(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Illegal trailing comma before end of array", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)


def _values(text: str, at: int) -> Iterator[Any]:
    while at < len(text):
        value, at = DECODER.raw_decode(text, at)
        yield value
        at = _space(text, at)


def _inside(text: str, at: int) -> int:
    """Where the rows begin in an object that holds them by one of `DATA`; 0 where none does."""
    if text[at] != "{":
        return 0
    at = _space(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = DECODER.raw_decode(text, at)
        at = _space(text, at)
        if text[at : at + 1] != ":":
            return 0
        at = _space(text, at + 1)
        if key in DATA and text[at : at + 1] == "[" and _begins_row(text, at + 1):
            return at + 1
        _, at = DECODER.raw_decode(text, at)
        at = _space(text, at)
        at = _space(text, at + 1) if text[at : at + 1] == "," else at
    return 0


def _begins_row(text: str, at: int) -> bool:
    at = _space(text, at)
    return text[at : at + 1] in ("{", "]")


def json_blocks(file: Path, options: Options, types: Types) -> Iterator[Block] | None:
    """Lines of rows in blocks; None for a file of another form."""
    return _blocks(file, types) if _has_lines(file, options) else None


def json_sections(
    file: Path, options: Options, at: int = 0, number: int = 1
) -> Iterator[Section] | None:
    """The same lines from some bytes on, and the line there."""
    if not _has_lines(file, options):
        return None
    blocks = line_blocks(file, at, number)
    return (Section(block.at, block.number, _block_rows(file, block)) for block in blocks)


def _has_lines(file: Path, options: Options) -> bool:
    """Whether a file is of plain lines, each a row."""
    if not are_plain(file, options):
        return False
    first = next((line for line in head(file).splitlines() if line.strip()), b"")
    return first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{") and _is_row(
        first.decode("utf-8-sig", "surrogateescape")
    )


def _blocks(file: Path, types: Types) -> Iterator[Block]:
    for block in line_blocks(file):
        numbers = range(block.number, block.number + block.count)
        table = partial(_table, block.content, block.count, types)
        yield Block(numbers, partial(_block_rows, file, block), table)


def _block_rows(file: Path, block: LineBlock) -> Rows:
    return _by_line(file, enumerate(block.lines(file), block.number))


def _table(whole: bytes, count: int, types: Types) -> pyarrow.Table | None:
    """Columns of lines that are each an object; None where one is not, or of other types.

    Arrow takes objects one after another, wherever lines end; where each line begins and ends as
    an object does, each is one.
    """
    shell = whole.replace(b"\r\n", b"\n").strip()
    shell = shell.removeprefix(codecs.BOM_UTF8)
    if shell.count(b"}\n{") != count - 1 or shell[:1] != b"{" or shell[-1:] != b"}":
        return None
    read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(shell) + 1)
    parse = pyarrow.json.ParseOptions(
        explicit_schema=pyarrow.schema(list(types.items())), unexpected_field_behavior="ignore"
    )
    try:
        if not shell.isascii():
            shell.decode()  # Arrow does not look at what it leaves out
        table = pyarrow.json.read_json(pyarrow.BufferReader(shell), read, parse)
    except (pyarrow.ArrowException, UnicodeDecodeError):
        return None
    return table if len(table) == count else None


def read_squad(file: Path, options: Options) -> Rows:
    """Questions {"id", "context", "question", "answers"} of SQuAD's nested form, 1.1 or 2.0.

    A row's number is that of the question.
    """
    text = "".join(map(sound, lines(file, options)))
    try:
        document = json.loads(text)
        questions = [
            (paragraph["context"], question)
            for article in document["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is not of SQuAD's form: {error!r} is missing") from error
    for number, (context, question) in enumerate(questions, 1):
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
