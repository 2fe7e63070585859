"""Headers of Parquet's pages, which say how much is held for a page before any of it is read.

They and the file's end are Thrift structs in its compact form (parquet.thrift: PageHeader,
FileMetaData).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

USUAL, LARGEST = 1 << 12, 1 << 24  # bytes of a header: read first, and at most
RATIO, SIZE = 1000, 1 << 28  # of what a page may be unpacked to, and bytes that are few
# Numbers of fields: of a page's header, and of what the end of a file says
UNPACKED, PACKED, VALUES, DICTIONARY = 2, 3, 1, 7
GROUPS, COLUMNS, CHUNK, LENGTH, DATA_AT, DICTIONARY_AT = 4, 1, 3, 7, 9, 11
DEPTH = 16  # of values within each other
# Kinds of values
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 0, 1, 2, 3, 7, 8, 12
INTEGERS, LISTS = (4, 5, 6), (9, 10)


def require_sound(file: Any, columns: Sequence[Mapping[int, Any]]) -> None:
    """Raises ValueError where a page of a row group would take more than its bytes can hold.

    Args:
        file: open, to read and seek.
        columns: of the row group; see `groups`.
    """
    for chunk in (column[CHUNK] for column in columns):
        start, dictionary = chunk[DATA_AT], chunk.get(DICTIONARY_AT, 0)
        start = dictionary if 0 < dictionary < start else start
        for header in _headers(file, start, start + chunk[LENGTH]):
            size, packed = header[UNPACKED], header[PACKED]
            if size < 0 or size > max(SIZE, RATIO * packed):
                raise ValueError(f"a page of {packed:,} bytes would take {size:,}")
            entries = header.get(DICTIONARY, {}).get(VALUES, 0)
            if entries < 0 or entries > size:  # a value has a byte at least
                raise ValueError(f"a dictionary of {size:,} bytes would have {entries:,} values")


def groups(file: Any) -> list[Sequence[Mapping[int, Any]]]:
    """The columns of each row group, as the end of the file has them.

    Not by pyarrow: its metadata of a damaged column may end the process.
    """
    end = file.seek(-8, 2)
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(end - length, 0))
    footer = Compact(file.read(length)).struct()
    return [group[COLUMNS] for group in footer[GROUPS]]


def _headers(file: Any, at: int, end: int) -> Iterator[dict[int, Any]]:
    """Those of the pages between two places of a file."""
    while at < end:
        try:
            header, length = _header(file, at, USUAL)
        except IndexError:
            header, length = _header(file, at, LARGEST)
        yield header
        if header[PACKED] < 0:
            raise ValueError(f"a page has {header[PACKED]} bytes")
        at += length + header[PACKED]


def _header(file: Any, at: int, most: int) -> tuple[dict[int, Any], int]:
    file.seek(at)
    reader = Compact(file.read(most))
    return reader.struct(), reader.at


class Compact:
    """Values of Thrift's compact form, one after another.

    Attributes:
        at: bytes that are read.
    """

    def __init__(self, content: bytes) -> None:
        self.at, self._content = 0, content

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Values by the number of their field; None for texts and numbers with a point."""
        if depth > DEPTH:
            raise ValueError("a header has too many structs within each other")
        values: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 15 != STOP:
            number = number + (head >> 4) if head >> 4 else self._integer()
            values[number] = self._value(head & 15, depth)
        return values

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind in INTEGERS:
            return self._integer()
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind in LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            element = BYTE if head & 15 in (TRUE, FALSE) else head & 15
            return [self._value(element, depth + 1) for _ in range(count)]
        if kind not in (BYTE, DOUBLE, BINARY):
            raise ValueError(f"a header has a value of kind {kind}")
        size = {BYTE: 1, DOUBLE: 8}.get(kind) or self._varint()
        self.at += size
        return None

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value, shift = value | (byte & 127) << shift, shift + 7
        return value | byte << shift

    def _integer(self) -> int:
        """Signed, as zigzag writes it."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
