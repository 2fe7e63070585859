"""What a work folder has noted that its run is made of, and its tokenizer among it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import require
from ftjax.formats.folder import load_tokenizer
from ftjax.formats.jsons import read_json

NAME, TOKENIZER = "inputs.json", "tokenizer"
READ = ("A text, to 1", "ÀÉ  ﬁ Ünïcode\t\n", "你好 мир", "1234567 it's {x}")  # by each tokenizer


def noted(workdir: Path) -> dict[str, Any]:
    """What a work folder has noted that its run is made of; empty where nothing."""
    file = workdir / NAME
    return read_json(file) if file.exists() else {}


def tokenizer_of(folder: Path) -> str:
    """A fingerprint of what a tokenizer does: its words, and how it reads some texts.

    Of its files it is not: libraries write them anew in other words.
    """
    tokenizer = load_tokenizer(folder)
    words = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return sha256([words, json.dumps([list(tokenizer(text)["input_ids"]) for text in READ])])


def require_same_tokenizer(workdir: Path, folder: Path) -> None:
    """Raises UserError where a base model reads texts otherwise than when a run was trained."""
    saved = noted(workdir).get(TOKENIZER)  # which earlier versions did not note
    require(
        saved is None or saved == tokenizer_of(folder),
        f"{workdir} was trained with another tokenizer than {folder} has now: put it back",
    )


def sha256(parts: Sequence[Any] | Iterator[Any]) -> str:
    """The first half of the sha256 of texts, bytes and arrays in turn."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype == object:
            part = repr(part.tolist())
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode())
            part = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(part)} ".encode())
        digest.update(part)
    return digest.hexdigest()[:32]
