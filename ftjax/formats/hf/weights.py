"""The tensors of a model's folder: of safetensors or of torch's `.bin` files, one or several."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from ftjax.errors import UserError, require
from ftjax.formats import pickled
from ftjax.formats.guard import reading, regular
from ftjax.formats.jsons import read_json

SINGLE = ("model.safetensors", "pytorch_model.bin")  # the first that is there, or whose index is
SUFFIXES = (".safetensors", ".bin")
OTHERS = {"tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax"}
# What safetensors calls types of elements.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
NUMBERS = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
READ = [np.dtype(kind) for name, kind in DTYPES.items() if not name.startswith("F8")]
POINTER = b"version https://git-lfs."  # what stands for a file that was not fetched
# What torch puts into names when modules are wrapped: to be on several devices, or compiled.
WRAPPERS = r"(^|\.)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"


def usual_name(stored: str) -> str:
    """A tensor's name without wrappers, and in torch's words where it is in TensorFlow's."""
    name = re.sub(WRAPPERS, r"\1", stored).replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")


def _index(folder: Path, single: str) -> dict[str, str] | None:
    """Tensor → file, by the index of a folder's shards; None where there is none."""
    path = folder / f"{single}.index.json"
    if not path.exists():
        return None
    weight_map = read_json(path).get("weight_map")
    named = isinstance(weight_map, dict) and all(isinstance(v, str) for v in weight_map.values())
    if not named or not weight_map:
        raise UserError(f'{path} has no "weight_map" from tensors to files')
    for name in weight_map.values():
        if Path(name).name != name or not name.endswith(SUFFIXES) or "\0" in name:
            raise UserError(f"{path} names {name!r}, which is no file of weights beside it")
    return weight_map


def _single(folder: Path) -> str:
    """Which of `SINGLE` a folder has, whole or in shards.

    Raises:
        UserError: none.
    """
    for single in SINGLE:
        if (folder / single).exists() or (folder / f"{single}.index.json").exists():
            return single
    for name, library in OTHERS.items():
        if (folder / name).exists():
            raise UserError(
                f"{folder} has only {library}'s weights, {name}: save it with transformers as "
                f"{SINGLE[0]}"
            )
    raise UserError(f"{folder} has no {' or '.join(SINGLE)}")


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's tensors.

    Raises:
        UserError: there are none, or the index is damaged or names an absent one.
    """
    single = _single(folder)
    index = _index(folder, single)
    if index is None:
        return [regular(folder / single)]
    files = [folder / name for name in sorted(set(index.values()))]
    for file in files:
        if not file.exists():
            index = f"{single}.index.json"
            raise UserError(f"{folder / index} names {file.name}, which is absent")
    return [regular(file) for file in files]


@dataclass(frozen=True)
class Tensor:
    """A tensor in a safetensors file: indexing it by slices reads those from disk.

    The file is open only meanwhile: pages of a mapped file count as the process's memory.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.dtype not in READ:
            raise UserError(
                f"{self.file}: {self.name!r} is of type {self.dtype}, which is not read"
            )
        with reading(self.file):
            if 0 in self.shape:  # slices of which safetensors calls out of bounds
                return np.empty(self.shape, self.dtype)[index]
            with safe_open(self.file, framework="numpy") as handle:
                return handle.get_slice(self.name)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[...] if dtype is None else self[...].astype(dtype, copy=False)


def tensors_of(file: Path) -> Mapping[str, Any]:
    """The tensors of a file by the names that they have there.

    Raises:
        UserError: the file is damaged.
    """
    with reading(regular(file)), file.open("rb") as stream:
        pointer = stream.read(len(POINTER)) == POINTER
    if pointer:
        raise UserError(f"{file} only points to what Git LFS stores: run `git lfs pull` there")
    if file.suffix == ".bin":
        return pickled.open_tensors(file)
    tensors = {}
    with reading(file), safe_open(file, framework="numpy") as handle:
        for name in handle.keys():  # noqa: SIM118 (not a mapping)
            part = handle.get_slice(name)
            kind = part.get_dtype()
            dtype = np.dtype(DTYPES.get(kind, np.void))  # refused where it is read
            tensors[name] = Tensor(file, name, tuple(part.get_shape()), dtype)
    return tensors


def arrays_of(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a file that is read whole, as an adapter's is.

    Raises:
        UserError: the file is damaged, or has other tensors than of plain numbers.
    """
    tensors = tensors_of(file)
    for name, tensor in tensors.items():
        numbers = np.dtype(tensor.dtype) in NUMBERS
        require(numbers, f"{file}: {name!r} is stored as {tensor.dtype}, which is not read")
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def largest_axis(tensors: Mapping[str, Any]) -> int:
    """The longest axis of any tensor, which bounds what a file's settings may make room for."""
    return max((size for tensor in tensors.values() for size in tensor.shape), default=0)


class Weights(Mapping[str, Any]):
    """Tensors of a folder by name.

    Args:
        folder: with one of `SINGLE`, or shards and an index.

    Raises:
        UserError: a file is absent or damaged, or lacks a tensor that the index names.
    """

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, Any] = {}
        stored: set[tuple[str, str]] = set()
        for file in weight_files(folder):
            for name, tensor in tensors_of(file).items():
                if usual_name(name) in self._tensors:
                    raise UserError(f"{folder} has two tensors {usual_name(name)!r}")
                self._tensors[usual_name(name)] = tensor
                stored.add((name, file.name))
        single = _single(folder)
        for name, file in (_index(folder, single) or {}).items():
            if (name, file) not in stored:
                index = folder / f"{single}.index.json"
                raise UserError(f"{folder / file} lacks tensor {name!r}, which {index} names")

    def __getitem__(self, name: str) -> Any:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
