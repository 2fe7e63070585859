"""Hugging Face model folders, in and out, by a family's table of module names."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import UserError, nearest
from ftjax.formats.folder import write_tokenizer
from ftjax.formats.hf.shards import SHARD_BYTES, write_weights
from ftjax.formats.hf.weights import NUMBERS
from ftjax.formats.jsons import write_json
from ftjax.names import Names, Part, shape_of
from ftjax.paths import Flat, expand

ROWS = 8192  # that are compared at a time


@dataclass(frozen=True)
class Stored:
    """A parameter as it lies in files, of which only what is asked for is read.

    Attributes:
        shape: of the parameter.
        tensors: one a layer and a stacked module; anything with a shape that slices index.
        part: how each is stored.
        leaf: the parameter's own name.
    """

    shape: tuple[int, ...]
    tensors: Sequence[Any]
    part: Part
    leaf: str

    def read(self, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """What `index` (a slice a dimension, without steps) selects of the parameter."""
        inner = len(shape_of(self.tensors[0].shape, self.part, self.leaf))
        axes = len(self.shape) - inner
        numbers = np.arange(len(self.tensors)).reshape(self.shape[:axes])[index[:axes]]
        if not axes:
            return self._slice(self.tensors[0], index).astype(dtype, copy=False)
        sizes = [len(range(n)[i]) for n, i in zip(self.shape, index, strict=True)]
        out = np.empty(sizes, dtype)
        for place, number in np.ndenumerate(numbers):
            out[place] = self._slice(self.tensors[number], index[axes:])
        return out

    def _slice(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        part = self.part
        if part.sizes:
            before = sum(part.sizes[: part.index])
            start, stop, _ = index[-1].indices(part.sizes[part.index])
            index = (*index[:-1], slice(before + start, before + stop))
        turn = self.leaf == "kernel" and not part.transposed
        index = index[::-1] if turn else index
        if part.shape:
            rows = tensor[index[0]]
            array = rows.reshape(len(rows), -1)[:, index[1]]
        else:
            array = tensor[index]
        return array.T if turn else array


def load(
    weights: Mapping[str, Any],
    shapes: Flat,
    names: Names,
    place: Callable[[str, Stored], Any],
    new_head: bool = False,
    widen: Callable[[str, Any], Any] | None = None,
) -> tuple[Flat, list[str]]:
    """Streams a folder's tensors into parameters, one at a time.

    Args:
        weights: by name, tensors with a shape that slices index.
        shapes: flat abstract parameters of the model without any method.
        names: what Hugging Face calls the model's modules.
        place: puts one parameter where it lives.
        new_head: leave the head out, even where the file has one.
        widen: what is read of a parameter's stored tensor instead, where it is given.

    Returns:
        The parameters, and the paths of the head's parameters that the folder lacks.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    prefix = names.prefix_in(weights)
    params, absent, used = {}, [], set()
    for path, leaf in shapes.items():
        head, kind = names.in_head(path), path.rsplit("/", 1)[1]
        stored = names.stored_in(weights, path, prefix)
        for _, part in names.stored(path):
            copy = part.copy_of(kind)
            used.update([copy if head else prefix + copy] if copy else ())
        missing = [name for name, _ in stored if name not in weights]
        if head and (missing or new_head):
            absent.append(path)
            used.update(name for name, _ in stored)
            continue
        if missing:
            pooler = path.startswith("pooler/")
            raise UserError(
                f"the weights lack tensor {missing[0]!r} (for parameter {path!r})"
                + ("; mean pooling, where the task has it, needs none" if pooler else "")
                + nearest(missing[0], weights)
            )
        tensors = [weights[name] for name, _ in stored]
        require_numbers(stored, tensors)
        tensors = [widen(path, tensor) for tensor in tensors] if widen else tensors
        hint = "; set model.new_head=True to start a new head" if head else ""
        require_shapes(path, leaf, stored, tensors, hint)
        copies = names.copies_of(path, stored[0][0]) & weights.keys()
        require_equal(stored[0][0], sorted(copies), weights)
        params[path] = place(path, Stored(leaf.shape, tensors, stored[0][1], kind))
        used.update(name for name, _ in stored)
    require_known(weights, used, names, prefix)
    return params, absent


def require_numbers(stored: Sequence[tuple[str, Part]], tensors: Sequence[Any]) -> None:
    """Raises UserError where a tensor is of no plain type of numbers."""
    for (name, _), tensor in zip(stored, tensors, strict=True):
        if np.dtype(tensor.dtype) not in NUMBERS:
            raise UserError(
                f"tensor {name!r} is stored as {np.dtype(tensor.dtype)}, which is no plain "
                "type of numbers (float32, bfloat16, float16, float64): the folder is of a "
                "quantization that config.json does not name; save it dequantized"
            )


def require_shapes(
    path: str, leaf: Any, stored: Sequence[tuple[str, Part]], tensors: Sequence[Any], hint: str
) -> None:
    """Raises UserError, with a hint, where tensors do not make up a parameter's shape."""
    kind = path.rsplit("/", 1)[1]
    for (name, part), tensor in zip(stored, tensors, strict=True):
        shape = shape_of(tensor.shape, part, kind)
        count = len(stored) * math.prod(shape)
        if shape != leaf.shape[leaf.ndim - len(shape) :] or count != leaf.size:
            turned = " (transposed)" if kind == "kernel" else ""
            raise UserError(
                f"tensor {name!r}{turned} has shape {shape}, but parameter "
                f"{path!r} needs {leaf.shape}{hint}"
            )


def require_known(weights: Mapping[str, Any], used: set[str], names: Names, prefix: str) -> None:
    """Raises UserError for a tensor beside those used that a model of this kind does not have."""
    known = {prefix + name for name in names.plain().values()}
    modules = {name.rsplit(".", 1)[0] for name in used}
    for name in sorted(set(weights) - used):
        module = name.rsplit(".", 1)[0]
        if any(re.fullmatch(pattern, name) for pattern in names.ignored):
            continue
        if module in modules and np.any(np.asarray(weights[name])):  # zeros change nothing
            raise UserError(
                f"the weights have {name!r}, and by config.json {module!r} is without it: an "
                "option there (attention_bias, mlp_bias) differs from the model"
            )
        if module not in modules | known:  # those that are known alone, this head leaves out
            raise UserError(f"the weights have an unexpected tensor {name!r}")


def require_equal(table: str, copies: Iterable[str], weights: Mapping[str, Any]) -> None:
    """Raises UserError where a tensor that should equal another, as words' table, differs."""
    for name in copies:
        one, other = weights[table], weights[name]
        count = one.shape[0]
        parts = (slice(i, min(i + ROWS, count)) for i in range(0, count, ROWS))
        same = tuple(one.shape) == tuple(other.shape)
        same = same and all(np.array_equal(one[part], other[part]) for part in parts)
        if not same:
            mend = 'set "tie_word_embeddings": false there to use both'
            if name.endswith(".bias"):
                mend = f"remove one of them (transformers adds {name!r})"
            raise UserError(
                f"config.json says that {name!r} is tied to {table!r}, but the two differ; {mend}"
            )


@dataclass(frozen=True)
class Written:
    """A tensor to be written, made when it is asked for.

    Attributes:
        shape: as stored.
        make: gives it.
    """

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.make()
        return array if dtype is None else array.astype(dtype, copy=False)


def written(
    shapes: Mapping[str, Any], names: Names, prefix: bool, read: Callable[[str, int], np.ndarray]
) -> dict[str, Written]:
    """The inverse of `load`: Hugging Face's tensors by name.

    Args:
        shapes: flat parameters, or anything with their shapes.
        names: what Hugging Face calls the model's modules.
        prefix: with the prefix of models with this head.
        read: gives a parameter's part, by its path and its number among `Names.stored`.
    """
    pieces: dict[str, dict[int, tuple[str, int]]] = {}
    parts: dict[str, Part] = {}
    copies: dict[str, str] = {}
    for path in shapes:
        inside = prefix and not names.in_head(path) and names.prefix
        before = f"{names.prefix}." if inside else ""
        for number, (stored, part) in enumerate(names.stored(path)):
            name, copy = before + stored, part.copy_of(path.rsplit("/", 1)[1])
            pieces.setdefault(name, {})[part.index] = path, number
            parts[name] = part
            copies |= {name: before + copy} if copy else {}

    def tensor(name: str) -> Written:
        part, paths = parts[name], [pieces[name][i] for i in sorted(pieces[name])]
        axes = [_axes(path, names) for path, _ in paths]
        inner = [shapes[path].shape[n:] for (path, _), n in zip(paths, axes, strict=True)]
        shape = (*inner[0][:-1], sum(size[-1] for size in inner)) if inner[0] else ()
        transposed = paths[0][0].endswith("/kernel") and not part.transposed
        shape = part.shape or (shape[::-1] if transposed else shape)

        def make() -> np.ndarray:
            arrays = [np.asarray(read(path, number)) for path, number in paths]
            array = np.concatenate(arrays, -1) if len(arrays) > 1 else arrays[0]
            return np.ascontiguousarray(array.T if transposed else array).reshape(shape)

        return Written(shape, make)

    tensors = {name: tensor(name) for name in pieces}
    return {copy: tensors[name] for name, copy in copies.items()} | tensors


def _axes(path: str, names: Names) -> int:
    """How many leading axes of a parameter count layers and stacked modules."""
    return (path != expand(path)[0]) + bool(names.stored(path)[0][1].stack)


def to_tensors(params: Mapping[str, Any], names: Names, prefix: bool) -> dict[str, np.ndarray]:
    """The inverse of `load`, at once: Hugging Face's tensors by name."""

    def read(path: str, number: int) -> np.ndarray:
        array = np.asarray(params[path])
        return array.reshape(-1, *array.shape[_axes(path, names) :])[number]

    return {n: np.asarray(x) for n, x in written(params, names, prefix, read).items()}


def write_folder(
    output: Path,
    source: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the weights, and the tokenizer of `source`.

    Args:
        tensors: anything with a shape that numpy makes an array of, in turn.
        dtype: that they are written in, a key of `shards.FLOATS`.
        shard_bytes: largest size of a file's tensors.
    """
    output.mkdir(parents=True, exist_ok=True)
    write_weights(output, tensors, dtype, shard_bytes)
    write_json(output / "config.json", config)
    if source != output:
        write_tokenizer(source, output)
