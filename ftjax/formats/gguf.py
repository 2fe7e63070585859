"""GGUF, llama.cpp's format of one file for model and tokenizer (ggml, docs/gguf.md)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import UserError

# Special tokens: Hugging Face's name → llama.cpp's.
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


@dataclass(frozen=True)
class File:
    """An open file.

    Attributes:
        path: for messages.
        architecture: llama.cpp's name of it.
        metadata: by key.
        tensors: the package's own, by llama.cpp's name; their data is mapped, not read.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """A number or text among the architecture's own keys.

        Raises:
            UserError: it differs from layer to layer, or is absent and has no default.
        """
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key, default)
        if value is None or isinstance(value, list):
            problem = "is absent" if value is None else "differs between layers"
            raise UserError(f"{self.path}: {key} {problem}, which is not implemented")
        if isinstance(value, float):
            return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
        return value

    def token_id(self, name: str) -> int | None:
        """The special token that Hugging Face calls so, a key of `TOKENS`."""
        return self.metadata.get(f"tokenizer.ggml.{TOKENS[name]}_token_id")


def is_gguf(path: Path) -> bool:
    """Whether a model is a GGUF file rather than a folder."""
    return path.suffix == ".gguf"


def read(path: Path) -> File:
    """Opens a file; what it holds is kept until it changes, since reading a vocabulary is slow.

    Raises:
        UserError: the file is absent, truncated, no GGUF file, or one part of several.
    """
    try:
        found = path.stat()
    except OSError:
        raise UserError(f"{path} does not exist") from None
    return _read(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> File:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: entry.contents() for name, entry in reader.fields.items()}
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is not a GGUF file, or is truncated: {error}") from error
    if metadata.get("split.count", 1) > 1:
        raise UserError(f"{path} is a part of a split model; join the parts with llama-gguf-split")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return File(path, str(metadata.get("general.architecture")), metadata, tensors)


def tokenizer_bytes(path: Path) -> bytes:
    """All that the file says of its tokenizer, to tell tokenizers apart."""
    file = read(path)
    found = {name: x for name, x in file.metadata.items() if name.startswith("tokenizer.")}
    found["architecture"] = file.architecture
    return json.dumps(found, sort_keys=True).encode("utf-8", "surrogatepass")
