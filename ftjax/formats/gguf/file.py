"""GGUF, llama.cpp's format of one file for model and tokenizer (ggml, docs/gguf.md)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import UserError, require
from ftjax.formats.gguf.header import read_header
from ftjax.formats.guard import reading, regular
from ftjax.options import Option

# Special tokens: Hugging Face's name → llama.cpp's.
TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


@dataclass(frozen=True)
class File:
    """An open file.

    Attributes:
        path: for messages.
        architecture: llama.cpp's name of it.
        metadata: by key.
        tensors: by llama.cpp's name; their data is mapped, not read.
    """

    path: Path
    architecture: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    def get(self, key: str, kind: Any, default: Any = None) -> Any:
        """A number or text among the architecture's own keys.

        Args:
            key: after the architecture's name.
            kind: what it may be, as an annotation, see `ftjax.options`.
            default: where it is absent.

        Raises:
            UserError: it is not what it may be, differs from layer to layer, or is absent and has
                no default.
        """
        key = f"{self.architecture}.{key}"
        value = self.metadata.get(key, default)
        if value is None or isinstance(value, list):
            problem = "is absent" if value is None else "differs between layers"
            raise UserError(f"{self.path}: {key} {problem}, which is not implemented")
        value = Option(kind, default, "").read(f"{self.path}: {key}", value)
        if isinstance(value, float):
            return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
        return value

    def token_id(self, name: str) -> int | None:
        """The special token that Hugging Face calls so, a key of `TOKENS`.

        Raises:
            UserError: it is none of the tokens.
        """
        return self.token(f"{TOKENS[name]}_token_id")

    def token(self, key: str) -> int | None:
        """A token's number among the tokenizer's keys; None where it is absent."""
        key = f"tokenizer.ggml.{key}"
        number = self.metadata.get(key)
        sound = number is None or (type(number) is int and number >= 0)
        require(sound, f"{self.path}: {key}={number!r} is no number of a token")
        return number

    def tokens(self) -> list[str]:
        """The tokenizer's, by their numbers; none where it is absent."""
        tokens = self.metadata.get("tokenizer.ggml.tokens", [])
        # Lists are of one kind.
        sound = isinstance(tokens, list) and isinstance((tokens or [""])[0], str)
        require(sound, f"{self.path}: tokenizer.ggml.tokens are no texts")
        return tokens


def is_gguf(path: Path) -> bool:
    """Whether a model is a GGUF file rather than a folder."""
    return path.suffix == ".gguf"


def read(path: Path) -> File:
    """Opens a file; what it holds is kept until it changes, since reading a vocabulary is slow.

    Raises:
        UserError: the file is absent, truncated, no GGUF file, or one part of several.
    """
    status = regular(path).stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _parsed(path: Path, changed: int, size: int) -> File:
    with reading(path, "is not a GGUF file, or is truncated"):
        metadata, tensors = read_header(path)
        parts = metadata.get("split.count", 1)
        require(parts in (0, 1), "is a part of a split model; join the parts with llama-gguf-split")
    return File(path, str(metadata.get("general.architecture")), metadata, tensors)


def tokenizer_bytes(path: Path) -> bytes:
    """All that the file says of its tokenizer, to tell tokenizers apart."""
    file = read(path)
    entries = {name: x for name, x in file.metadata.items() if name.startswith("tokenizer.")}
    entries["architecture"] = file.architecture
    return json.dumps(entries, sort_keys=True).encode("utf-8", "surrogatepass")
