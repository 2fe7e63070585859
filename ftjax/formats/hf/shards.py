"""Weights written as safetensors files, one tensor at a time."""

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from ftjax.errors import UserError
from ftjax.formats.hf.weights import SINGLE
from ftjax.formats.jsons import write_json

SHARD_BYTES = 5_000_000_000
# `--dtype` → numpy's type, and what safetensors calls it.
FLOATS = {
    "float32": (np.float32, "F32"),
    "bfloat16": (ml_dtypes.bfloat16, "BF16"),
    "float16": (np.float16, "F16"),
}


def write_weights(
    output: Path, tensors: Mapping[str, Any], dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes model.safetensors or, where that would be too large, shards and their index.

    Tensors are asked for once each, in order, and dropped when they are on disk. On several hosts
    all ask for them, and the leader alone writes.

    Args:
        output: a folder without weights.
        tensors: by name, anything with a shape that numpy makes an array of.
        dtype: that they are written in, a key of `FLOATS`.
        shard_bytes: largest size of a file's tensors; a larger tensor has a file of its own.

    Raises:
        UserError: a number is too large for the type.
    """
    width = np.dtype(FLOATS[dtype][0]).itemsize
    sizes = {name: width * math.prod(tensor.shape) for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    count, stem = len(shards), SINGLE[0].removesuffix(".safetensors")
    files = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = files if count > 1 else [SINGLE[0]]
    arrays = (np.asarray(tensor) for tensor in tensors.values())
    try:
        for file, names in zip(files, shards, strict=True):
            _write_file(output / file, {name: tensors[name] for name in names}, arrays, dtype)
    finally:
        if jax.process_count() > 1:  # others wait for this one's part in gathering the rest
            deque(arrays, maxlen=0)
    if count > 1 and jax.process_index() == 0:
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(output / f"{SINGLE[0]}.index.json", index)


def _write_file(
    file: Path, tensors: Mapping[str, Any], arrays: Iterator[np.ndarray], dtype: str
) -> None:
    """A safetensors file: the header's length, the header, and the tensors end to end.

    The library's own writer takes all of a file's tensors at once. `arrays` gives theirs in turn.
    """
    kind, code = FLOATS[dtype]
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        stop = start + np.dtype(kind).itemsize * math.prod(tensor.shape)
        header[name] = {
            "dtype": code,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if jax.process_index() != 0:
        deque(islice(arrays, len(tensors)), maxlen=0)  # it takes part in gathering them
        return
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, array in zip(tensors, arrays, strict=False):
            stream.write(memoryview(_cast(name, array, dtype)).cast("B"))


def _cast(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """An array as bytes of another type of numbers."""
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, FLOATS[dtype][0])
    if dtype == "float16" and np.isinf(cast).any() and not np.isinf(array).any():
        raise UserError(f"tensor {name!r} has numbers too large for float16: --dtype bfloat16")
    return cast.view(np.uint8) if cast.ndim else cast.reshape(1).view(np.uint8)
