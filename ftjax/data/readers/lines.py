"""Lines of text files: compressed or not, of whatever encoding, one after another."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow

from ftjax.data.readers.rows import Options
from ftjax.errors import UserError

BLOCK = 1 << 22  # bytes that are read at once
HEAD = 1 << 20  # bytes that a file's encoding and line ends are told by
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # first bytes → codec
MARKS = {  # byte order marks, the longer first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16"}
NAMES |= {"utf-16-be": "UTF-16", "utf-32": "UTF-32", "gb18030": "GB18030"}
ESCAPED = re.compile(r"[\udc80-\udcff]")  # bytes that are not of the encoding
ZEROS = 0.1  # share of zeros of UTF-8 at most: texts may have a few
COMMON = 0.8  # share of other characters that are common Chinese ones, in Chinese texts


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A file's bytes; those of gzip and Zstandard decompressed, whatever the file is called.

    Raises:
        UserError: a compressed file that is damaged.
    """
    with file.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        codec = next((name for mark, name in COMPRESSED.items() if head.startswith(mark)), "")
        if not codec:
            yield raw
            return
        try:
            with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), codec) as stream:
                yield io.BufferedReader(_Raw(stream), HEAD)
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{file} is not a readable {codec} file: {error}") from error


class _Raw(io.RawIOBase):
    """Arrow's stream as Python's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._stream.readinto(buffer)


def head(file: Path) -> bytes:
    """The first bytes of a file, decompressed."""
    with opened(file) as stream:
        return stream.read(HEAD)


def encoding_of(file: Path, options: Options) -> str:
    """Python's name of a text file's encoding: `data.encoding`, or what its first bytes are.

    Those of a byte order mark; UTF-8; UTF-16, by its zeros; GB18030 where all is and most is common
    Chinese; else UTF-8 with bytes that are not, whose lines are bad rows.

    Raises:
        UserError: no encoding is known that has such bytes.
    """
    start = head(file)
    mark = next((codec for mark, codec in MARKS.items() if start.startswith(mark)), "")
    setting = options.get("encoding", "auto")
    if setting != "auto":
        name = codecs.lookup(setting).name
        return mark if mark and mark.startswith(name) else name  # with its mark left out
    if mark:
        return mark
    if start.count(0) > ZEROS * len(start) or (b"\0" in start and _decoded(start, "utf-8") is None):
        codec = "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
        text = _decoded(start[: len(start) // 2 * 2], codec)
        if text and "\0" not in text:
            return codec
        raise UserError(
            f"{file} is text of none of UTF-8, UTF-16 and GB18030, or none at all: set "
            "data.encoding to what it is, as cp1252, or convert it"
        )
    if start.isascii():
        return "utf-8"
    if len(start) == HEAD:  # the last line may be cut in a character
        start = start[: start.rfind(b"\n") + 1] or start
    text = start.decode("utf-8", "replace")
    wrong, others = text.count("\ufffd"), sum(map(len, re.findall(r"[^\0-\x7f]+", text)))
    return "gb18030" if 2 * wrong > others and _is_chinese(start) else "utf-8"


def _decoded(start: bytes, codec: str) -> str | None:
    """A text's beginning, whose last character may be cut; None where it is of another encoding."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(start)
    except UnicodeDecodeError:
        return None


def _is_chinese(start: bytes) -> bool:
    """Whether bytes are GB18030's, and most of those that are no ASCII common in Chinese texts."""
    text = _decoded(start, "gb18030")
    if text is None:
        return False
    others = re.findall(r"[^\0-\x7f]", text)
    codes = [character.encode("gb18030") for character in others]
    common = [code for code in codes if 0xA1 <= code[0] <= 0xA3 or 0xB0 <= code[0] <= 0xD7]
    return sum(code[1] >= 0xA1 for code in common) >= COMMON * len(codes)


def lines(file: Path, options: Options) -> Iterator[str | UserError]:
    """Lines with their ends; an error for one that is not text.

    They end with \\n, or with \\r where the first `HEAD` bytes have more of those alone.
    """
    codec = encoding_of(file, options)
    first = head(file).decode(codec, "replace")
    end = "\r" if first.count("\r") - first.count("\r\n") > first.count("\n") else "\n"
    with opened(file) as stream:
        text = io.TextIOWrapper(stream, encoding=codec, errors="surrogateescape", newline=end)
        try:
            yield from sound_lines(file, text, codec)
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not {NAMES.get(codec, codec)}: {error}") from error


def sound_lines(
    file: Path, text: Iterable[str], codec: str, number: int = 1, before: int = 0
) -> Iterator[str | UserError]:
    """Decoded lines, an error for each in which some bytes were not of the encoding.

    Args:
        file: for messages.
        text: lines with their ends, and such bytes as lone surrogates.
        codec: the encoding.
        number: of the first line.
        before: bytes before it.
    """
    name, counted = NAMES.get(codec, codec), codec in ("utf-8", "utf-8-sig")
    before += len(codecs.BOM_UTF8) * (codec == "utf-8-sig")
    for row, line in enumerate(text, number):
        bad = None if line.isascii() else ESCAPED.search(line)
        if bad is None:
            yield line
        else:
            at = f" (byte {before + len(line[: bad.start()].encode())})" if counted else ""
            yield UserError(
                f"{file}: row {row} has bytes that are not {name}{at}; if the file is of another "
                "encoding, set data.encoding, as to cp1252"
            )
        before += len(line.encode("utf-8", "surrogateescape")) if counted else 0


def are_plain(file: Path, options: Options) -> bool:
    """Whether a file is of UTF-8's lines, which then end with \\n wherever one looks."""
    plain = encoding_of(file, options) in ("utf-8", "utf-8-sig")
    return plain and b"\r" not in head(file).replace(b"\r\n", b"")


class LineBlock(NamedTuple):
    """Whole lines of a plain file.

    Attributes:
        at: bytes before them.
        number: of the first line.
        content: the lines.
        count: of lines.
    """

    at: int
    number: int
    content: bytes
    count: int

    def lines(self, file: Path) -> Iterator[str | UserError]:
        """As `lines` gives them."""
        codec = "utf-8" if self.at else "utf-8-sig"
        content = io.BytesIO(self.content)  # of which often one line is asked for
        text = io.TextIOWrapper(content, codec, "surrogateescape", newline="\n")
        mark = self.content.startswith(codecs.BOM_UTF8) and not self.at
        return sound_lines(file, text, codec if mark else "utf-8", self.number, self.at)


def line_blocks(file: Path, at: int = 0, number: int = 1) -> Iterator[LineBlock]:
    """The lines of a plain file, many at a time, from some bytes and the line there on.

    A block ends with the last line that ends before a multiple of `BLOCK`, wherever one begins.

    Raises:
        UserError: no line begins there.
    """
    rest, more = b"", True
    with opened(file) as stream:
        if at and _skipped(stream, at) != b"\n":
            raise UserError(
                f"{file}: no line begins at byte {at}, where it was read to: it was changed since"
            )
        while more:
            more = stream.read(BLOCK - (at + len(rest)) % BLOCK)
            whole, end, rest = (rest + more).rpartition(b"\n") if more else (rest, b"", b"")
            if whole := whole + end:
                count = whole.count(b"\n") + (not end)
                yield LineBlock(at, number, whole, count)
                at, number = at + len(whole), number + count


def _skipped(stream: BinaryIO, count: int) -> bytes:
    """The last of some bytes, which are left out; empty where there are not as many."""
    if stream.seekable():
        stream.seek(count - 1)
        return stream.read(1)
    last = b""
    while count > 0 and (last := stream.read(min(count, BLOCK))):
        count -= len(last)
    return last[-1:]
