"""What a GGUF file says before its numbers: metadata, and where each tensor lies (ggml, gguf.md).

Read here rather than by the package `gguf`, which believes every length that a file gives (a
damaged one takes all memory) and makes an array of each token.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC, VERSIONS = b"GGUF", (2, 3)
TEXT, LIST = 8, 9  # of kinds of values
CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32  # where the file says none
# Far above what published files have: of a header's bytes, of a list, of a tensor's axes.
LARGEST, LONGEST, AXES = 2**28, 2**22, 4
PLAIN = {
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
}


def require(sound: bool, problem: str) -> None:
    """Raises ValueError with what is wrong, which the reader's guard says of the file."""
    if not sound:
        raise ValueError(problem)


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: innermost first.
        tensor_type: the package's, of how numbers are stored.
        data: mapped, not read; the outermost axis first, bytes where numbers are in blocks.
    """

    shape: tuple[int, ...]
    tensor_type: Any
    data: np.ndarray

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class _Cursor:
    """A place in a file's bytes, which what is read moves on."""

    content: mmap.mmap
    end: int
    at: int = 0

    def take(self, count: int) -> int:
        """Where the next `count` bytes begin."""
        start, self.at = self.at, self.at + count
        require(self.at <= self.end, "it ends, or has a length that is too large")
        return start

    def number(self, code: str) -> Any:
        size = struct.calcsize(code)
        return struct.unpack_from(f"<{code}", self.content, self.take(size))[0]

    def text(self) -> str:
        size = self.number("Q")
        start = self.take(size)
        return self.content[start : start + size].decode()

    def value(self) -> Any:
        kind = self.number("I")
        if kind == LIST:
            return self.values()
        require(kind == TEXT or kind in CODES, f"it has a value of the unknown kind {kind}")
        return self.text() if kind == TEXT else self.number(CODES[kind])

    def values(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        require(count <= LONGEST, f"it has a list of {count} values")
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        require(kind in CODES, f"it has a list of the unknown kind {kind}")
        dtype = np.dtype(CODES[kind]).newbyteorder("<")
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.content, dtype, count, start).tolist()


def read_header(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata by key, and tensors by name.

    Raises:
        Exception: of any kind of `guard.DAMAGED`, where the file is damaged.
    """
    with file.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(content, min(len(content), LARGEST))
    start = cursor.take(len(MAGIC))
    require(content[start : len(MAGIC)] == MAGIC, "it does not begin as one")
    version = cursor.number("I")
    require(version in VERSIONS, f"it is of version {version}, and {VERSIONS} are read")
    tensor_count, entry_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text()
        require(key not in metadata, f"it has two values of {key!r}")
        metadata[key] = cursor.value()
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, axes = cursor.text(), cursor.number("I")
        require(axes <= AXES, f"tensor {name!r} has {axes} axes")
        require(name not in entries, f"it has two tensors {name!r}")
        shape = tuple(cursor.number("Q") for _ in range(axes))
        entries[name] = shape, cursor.number("I"), cursor.number("Q")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    sound = isinstance(alignment, int) and alignment > 0
    require(sound, f"general.alignment={alignment!r} is not read")
    first = -(-cursor.at // alignment) * alignment
    return metadata, {name: _tensor(content, first, name, *it) for name, it in entries.items()}


def _tensor(
    content: mmap.mmap, first: int, name: str, shape: tuple[int, ...], number: int, offset: int
) -> Tensor:
    """Args: the file, where numbers begin, and what the header says of the tensor."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    kind = GGMLQuantizationType(number)
    block, size = GGML_QUANT_SIZES[kind]
    sound = (shape[0] if shape else 1) % block == 0 and all(shape)
    require(sound, f"tensor {name!r} of {kind.name} has the shape {shape}")
    outer = shape[::-1]
    if kind.name in PLAIN:
        dtype = np.dtype(PLAIN[kind.name])
    else:
        dtype, outer = np.dtype(np.uint8), (*outer[:-1], (outer or (1,))[-1] // block * size)
    start, count = first + offset, math.prod(outer)
    inside = start + count * dtype.itemsize <= len(content)
    require(inside, f"tensor {name!r} lies beyond its end")
    return Tensor(shape, kind, np.frombuffer(content, dtype, count, start).reshape(outer))
