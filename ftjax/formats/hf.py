"""Hugging Face model folders, in and out, by a family's table of module names."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ftjax.errors import UserError, nearest
from ftjax.paths import Flat, expand

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
Place = Callable[[str, np.ndarray], Any]


def tensor_names(path: str, family: ModuleType, modules: Mapping[str, str]) -> list[str]:
    """Names of the tensors that a parameter holds, without the family's prefix, a layer each."""
    names = []
    for unrolled in expand(path):
        module, leaf = unrolled.rsplit("/", 1)
        theirs = modules.get(module) or family.HEAD_MODULES[module]
        names.append(f"{theirs}.{LEAVES[leaf]}")
    return names


def load(
    weights: Mapping[str, np.ndarray],
    shapes: Flat,
    family: ModuleType,
    modules: Mapping[str, str],
    place: Place,
    new_head: bool = False,
) -> tuple[Flat, list[str]]:
    """Streams a folder's tensors into parameters, one at a time.

    Args:
        weights: tensors by name.
        shapes: flat abstract parameters of the model without any method.
        family: module of the model's family.
        modules: our module paths → Hugging Face's.
        place: puts one array where its parameter lives.
        new_head: leave the head out, even where the file has one.

    Returns:
        The parameters, and the paths of the head's parameters that the folder lacks.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    prefix = f"{family.HF_PREFIX}."
    prefixed = any(name.startswith(prefix) for name in weights)
    params, absent, used = {}, [], set()
    for path, leaf in shapes.items():
        head = path.split("/")[0] in family.HEAD_MODULES
        names = tensor_names(path, family, modules)
        names = [name if head or not prefixed else prefix + name for name in names]
        missing = [name for name in names if name not in weights]
        if head and (missing or new_head):
            absent.append(path)
            used.update(names)
            continue
        if missing:
            raise UserError(
                f"the weights lack tensor {missing[0]!r} (for parameter {path!r})"
                f"{nearest(missing[0], weights)}"
            )
        arrays = [weights[name] for name in names]
        if path.endswith("/kernel"):
            arrays = [array.T for array in arrays]
        array = arrays[0] if path == expand(path)[0] else np.stack(arrays)
        if array.shape != leaf.shape:
            turned = " (transposed)" if path.endswith("/kernel") else ""
            hint = "; set model.new_head=True to start a new head" if head else ""
            raise UserError(
                f"tensor {names[0]!r}{turned} has shape {array.shape}, but parameter {path!r} "
                f"needs {leaf.shape}{hint}"
            )
        params[path] = place(path, array)
        used.update(names)
    known = {f"{prefix if prefixed else ''}{name}" for name in modules.values()}
    for name in sorted(set(weights) - used):
        ours = name.rsplit(".", 1)[0] in known  # of a module this head leaves out
        if not ours and not any(re.fullmatch(pattern, name) for pattern in family.IGNORED):
            raise UserError(f"the weights have an unexpected tensor {name!r}")
    return params, absent


def to_tensors(
    params: Mapping[str, Any], family: ModuleType, modules: Mapping[str, str], prefix: bool
) -> dict[str, np.ndarray]:
    """The inverse of `load`: Hugging Face's tensors by name, kernels transposed back."""
    tensors = {}
    for path, leaf in params.items():
        array = np.asarray(leaf)
        names = tensor_names(path, family, modules)
        layers = [array] if path == expand(path)[0] else list(array)
        inside = prefix and path.split("/")[0] not in family.HEAD_MODULES
        for name, layer in zip(names, layers, strict=True):
            layer = layer.T if path.endswith("/kernel") else layer
            tensors[f"{family.HF_PREFIX}." * inside + name] = np.ascontiguousarray(layer)
    return tensors


def write_folder(
    output: Path,
    source: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    extra: Iterable[str] = (),
) -> None:
    """Writes config.json and model.safetensors, and copies the tokenizer of `source`."""
    output.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), output / "model.safetensors", metadata={"format": "pt"})
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_files(source, output, (*TOKENIZER_FILES, *extra))


def copy_files(source: Path, output: Path, names: Iterable[str]) -> None:
    """Copies those of the named files that exist."""
    for name in names:
        if (source / name).exists() and source != output:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, output / name)
