"""Rows of plain text, and sentences with a tag a token."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ftjax.data.readers.lines import LineBlock, are_plain, line_blocks, lines
from ftjax.data.readers.rows import Options, Rows, Section
from ftjax.errors import UserError

TAG = re.compile(r"O|[BIESLU]-\S+")


def read_text(file: Path, options: Options) -> Rows:
    """A row {"text"} a line, a paragraph (with the empty lines after it), or the file."""
    by, held, start, blank = options["text_rows"], "", 1, False
    for number, line in enumerate(lines(file, options), 1):
        if isinstance(line, UserError):
            yield number, line
            continue
        if by == "line":
            if line.strip():
                yield number, _line_row(line)
            continue
        line = _plain(line)
        if by == "paragraph" and blank and held.strip() and line.strip():
            yield start, {"text": held}
            held, start = "", number
        held, blank = held + line, not line.strip()
    if held.strip():
        yield start, {"text": held}


def text_sections(
    file: Path, options: Options, at: int = 0, number: int = 1
) -> Iterator[Section] | None:
    """Rows of a line each, from some bytes on, and the line there; None for others."""
    if options["text_rows"] != "line" or not are_plain(file, options):
        return None

    def rows(block: LineBlock) -> Rows:
        for number, line in enumerate(block.lines(file), block.number):
            if isinstance(line, UserError):
                yield number, line
            elif line.strip():
                yield number, _line_row(line)

    blocks = line_blocks(file, at, number)
    return (Section(block.at, block.number, rows(block)) for block in blocks)


def _line_row(line: str) -> dict[str, str]:
    return {"text": _plain(line).rstrip("\n")}


def _plain(line: str) -> str:
    return line.replace("\r\n", "\n").replace("\r", "\n")


def read_conll(file: Path, options: Options) -> Rows:
    """Sentences {"tokens", "tags"}: a token a line, its tag last, an empty line between them.

    A row's number is that of its first line. Comments (# and a space, and no tag at the end) and
    lines that begin with -DOCSTART- are no tokens.
    """
    tokens, tags, start, bad = [], [], 0, None
    for number, line in enumerate(chain(lines(file, options), [""]), 1):
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
