"""Tensors of a torch `.bin` file, read without running what it holds.

Such a file is a pickle and the bytes of the tensors' storages: a zip archive, or before torch 1.6
one after the other. A pickle may name any function to be called; here only the few that rebuild
tensors are known, any other name is refused, and what those few give is only a place in the file.
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from ftjax.errors import UserError, require
from ftjax.formats.guard import reading, regular

# torch's names of storages, and of types of elements → numpy's type.
STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,
}
ELEMENTS = STORAGES | {name: np.dtype(name).type for name in ("uint16", "uint32", "uint64")}
# Tensors may share what a file has, and repeat it (a stride of 0): in all, what they ask for is at
# most so many times its size, and so many bytes.
SHARED, REPEATED = 16, 2**26
LEGACY = 0x1950A86A20F9469CFC6C  # what files of before torch 1.6 begin with


class Storage(NamedTuple):
    """Bytes of a file: where they start, how many they are, and the name of their elements' type.

    A tuple, as `Place` is: a pickle can set nothing in it.
    """

    key: str
    kind: str
    first: int = 0  # element, of a part of a storage


class Place(NamedTuple):
    """A tensor of a storage; offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    kind: str = ""


def _tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> Place:
    return Place(storage, offset, shape, strides)


def _typed(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    gradient: bool,
    hooks: Any,
    kind: str,
    *rest: Any,
) -> Place:
    return Place(storage, offset, shape, strides, kind)


def _of_type(rebuild: Any, kind: str, arguments: tuple[Any, ...], *rest: Any) -> Place:
    """A tensor of a subclass, which its values do not depend on."""
    require(rebuild in (_tensor, _typed), "a tensor is rebuilt otherwise than read here")
    return rebuild(*arguments)


KINDS = {("torch", "Tensor"), ("torch.nn.parameter", "Buffer"), ("torch.nn.parameter", "Parameter")}
KNOWN = {
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *rest: tensor,
}


class _Reader(pickle._Unpickler):
    """What it is given for a storage or a type is a name, which cannot be called.

    In Python: that in C makes room for as many objects as the largest number that one is given.
    """

    def find_class(self, module: str, name: str) -> Any:
        element = module in ("torch", "torch.storage") and name in ELEMENTS
        if element or (module, name) in KINDS:
            return name
        require((module, name) in KNOWN, f"it names {module}.{name}, which is not read")
        return KNOWN[module, name]

    def persistent_load(self, saved: tuple[Any, ...]) -> Storage:
        _, kind, key, _, _, *view = saved
        first = view[0][1] if view and view[0] else 0  # of a part of a storage, of old files
        return Storage(str(key), kind, first)


class Tensor:
    """A tensor in a file: indexing it by slices reads those from disk.

    Attributes:
        shape: its sizes.
        dtype: of its elements.
        nbytes: that it takes.
    """

    def __init__(self, file: Path, place: Place, start: int, size: int) -> None:
        """`start` and `size` are of the storage, in bytes of the file."""
        storage, offset, self.shape, self._strides, kind = place
        known = kind or storage.kind
        self.dtype = np.dtype(ELEMENTS[known])
        self._file, self._offset, self._start = file, storage.first + offset, start
        numbers = (self._offset, *self.shape, *self._strides)
        require(all(isinstance(n, int) and n >= 0 for n in numbers), "a tensor has no such shape")
        require(len(self.shape) == len(self._strides), "a tensor has no such shape")
        inside = 0 in self.shape or (self._last() + 1) * self.dtype.itemsize <= size
        require(inside, "a tensor lies outside its storage")
        sizes = math.prod(filter(None, self.shape)) * self.dtype.itemsize
        require(sizes < 2**62 and len(self.shape) <= 32, "a tensor has no such shape")
        self.nbytes = 0 if 0 in self.shape else sizes

    def _last(self) -> int:
        steps = zip(self.shape, self._strides, strict=True)
        return self._offset + sum((n - 1) * step for n, step in steps)

    def __getitem__(self, index: Any) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        index = () if index == (...,) else index
        index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        bounds = [i.indices(n) for i, n in zip(index, self.shape, strict=True)]
        shape = [len(range(*bound)) for bound in bounds]
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        steps = [s * bound[2] for s, bound in zip(self._strides, bounds, strict=True)]
        firsts = zip(bounds, self._strides, strict=True)
        first = self._offset + sum(bound[0] * step for bound, step in firsts)
        count = 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        with self._file.open("rb") as stream:
            stream.seek(self._start + first * self.dtype.itemsize)
            flat = np.fromfile(stream, self.dtype, count)
        if len(flat) != count:
            raise UserError(f"{self._file} is corrupt or truncated")
        strides = [step * self.dtype.itemsize for step in steps]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, strides))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)


def open_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a state dictionary by name, each read when it is asked for or sliced.

    Raises:
        UserError: the file is absent or damaged, or holds other things.
    """
    with reading(regular(file)):
        size = file.stat().st_size
        with file.open("rb") as stream:
            read = _archived if zipfile.is_zipfile(stream) else _in_turn
            stream.seek(0)
            state, storages = read(stream)
        plain = isinstance(state, Mapping) and all(isinstance(v, Place) for v in state.values())
        require(plain, "it holds more than tensors")
        tensors = {}
        for name, place in state.items():
            require(isinstance(name, str), "a tensor has no name")
            require(isinstance(place.storage, Storage), f"{name!r} has no storage")
            start, length = storages[place.storage.key]
            require(start >= 0 and start + length <= size, "it is truncated")
            tensors[name] = Tensor(file, place, start, length)
        total = sum(tensor.nbytes for tensor in tensors.values())
        most = SHARED * size + REPEATED
        require(total <= most, f"its tensors are of {total} bytes in all, and it is of {size}")
        return tensors


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary by name; raises as `open_tensors`."""
    return {name: np.asarray(tensor) for name, tensor in open_tensors(file).items()}


def _archived(stream: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The state of an archive, and where in the file each storage is: (start, bytes)."""
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        require(len(names) == 1, "it is no torch file")
        root = names[0].removesuffix("/data.pkl")
        if f"{root}/byteorder" in archive.namelist():
            order = archive.read(f"{root}/byteorder")
            require(order == b"little", "its bytes are in big-endian order")
        # As torch writes; what is compressed may be of any size.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        require(stored, "it is compressed")
        state = _Reader(archive.open(names[0])).load()
        storages = {}
        for entry in archive.infolist():
            if entry.filename.startswith(f"{root}/data/"):
                stream.seek(entry.header_offset + 26)
                start = entry.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
                storages[entry.filename.removeprefix(f"{root}/data/")] = start, entry.file_size
    return state, storages


def _in_turn(stream: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """As `_archived`, of a file of before torch 1.6."""
    head = [_Reader(stream).load() for _ in range(3)]  # number, version, and of the machine
    require(head[0] == LEGACY, "it is no torch file")
    require(head[2].get("little_endian", True), "its bytes are in big-endian order")
    kinds: dict[str, str] = {}

    class Reader(_Reader):
        def persistent_load(self, saved: tuple[Any, ...]) -> Storage:
            storage = super().persistent_load(saved)
            kinds[storage.key] = storage.kind
            return storage

    state, storages = Reader(stream).load(), {}
    for key in _Reader(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        require(count >= 0, "a storage has no size")
        size = count * np.dtype(STORAGES[kinds[key]]).itemsize
        storages[key] = stream.tell(), size
        stream.seek(size, 1)
    return state, storages
