"""Tensors of a torch `.bin` file, read without running what it holds.

Such a file is a zip archive of a pickle and of the tensors' bytes. A pickle may name any function
to be called; here only the few that rebuild tensors are known, and any other name is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ftjax.errors import UserError, require

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
}


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> np.ndarray:
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    inside = min(offset, *strides, *shape, 0) >= 0 and (0 in shape or last < len(storage))
    require(inside, "a tensor lies outside its storage")
    steps = [s * storage.itemsize for s in strides]
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
    return np.ascontiguousarray(view)


KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        require((module, name) in KNOWN, f"it names {module}.{name}, which is not read")
        return KNOWN[module, name]

    def persistent_load(self, saved: tuple[str, Any, str, str, int]) -> np.ndarray:
        _, dtype, key, _, _ = saved
        return np.frombuffer(self._archive.read(f"{self._root}/data/{key}"), dtype)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary by name.

    Raises:
        UserError: the file is absent, damaged, of before torch 1.6, or holds other things.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            require(len(pickles) == 1, "it is no torch file")
            tensors = _Reader(archive, pickles[0].removesuffix("/data.pkl")).load()
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is corrupt: {error}") from error
    plain = isinstance(tensors, Mapping) and all(
        isinstance(tensor, np.ndarray) for tensor in tensors.values()
    )
    require(plain, f"{file} holds more than tensors")
    return dict(tensors)
