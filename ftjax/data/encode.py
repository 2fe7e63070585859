"""Texts to token ids, cached on disk by content."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow

from ftjax.data.sources import Split
from ftjax.formats import gguf
from ftjax.formats.folder import load_tokenizer
from ftjax.formats.hf import TOKENIZER_FILES
from ftjax.remote import cache_folder


@dataclass(frozen=True)
class Examples:
    """Encoded rows of one split, as a few flat arrays.

    Attributes:
        ids: token ids of all rows, end to end.
        offsets: (rows + 1,) where each row starts.
        type_ids: like `ids`, for pairs.
        arrays: name → (rows, ...): labels, or cached features in place of `ids`.
        truncated: rows that were longer than `max_length`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    type_ids: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Real tokens of each row."""
        return np.diff(self.offsets)


def _key(folder: Path, split: Split, max_length: int) -> str:
    digest = hashlib.sha256(f"1 {max_length}".encode())
    if gguf.is_gguf(folder):
        digest.update(gguf.tokenizer_bytes(folder))
    for name in (*TOKENIZER_FILES, "config.json"):
        digest.update((folder / name).read_bytes() if (folder / name).exists() else b"\2")
    for column in _texts(split):
        for text in split.column(column):
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(b"\1")
    return digest.hexdigest()[:32]


def _texts(split: Split) -> list[str]:
    return [name for name in ("text", "text_pair") if name in split.rows.column_names]


def encode(split: Split, folder: Path, max_length: int) -> Examples:
    """Tokenizes a split, or reads the tokens that an earlier run kept.

    Texts longer than `max_length` tokens are truncated and counted.

    Args:
        split: the rows.
        folder: of the model, with its tokenizer; read only where no tokens are kept.
        max_length: in tokens, special ones included.
    """
    key = _key(folder, split, max_length)
    file = cache_folder() / "tokens" / f"{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        rows = split.rows.map(
            _tokenizer(folder, max_length, _texts(split)),
            batched=True,
            remove_columns=split.rows.column_names,
            cache_file_name=str(file),
            new_fingerprint=key,
        )
    return _examples(rows.data, max_length)


def encoder(folder: Path, max_length: int) -> Callable[[Split], Examples]:
    """As `encode`, but nothing is kept: for windows of a stream."""
    tokenize = _tokenizer(folder, max_length)

    def encode(split: Split) -> Examples:
        columns = {name: split.column(name) for name in _texts(split)}
        return _examples(pyarrow.table(tokenize(columns)), max_length)

    return encode


def _tokenizer(
    folder: Path, max_length: int, texts: Sequence[str] | None = None
) -> Callable[[Mapping[str, list]], dict[str, list]]:
    """Texts by column → "ids", "length" before truncation, and for pairs "type_ids"."""
    loaded: list[Any] = []

    def tokenize(rows: Mapping[str, list[str]]) -> dict[str, list]:
        if not loaded:
            loaded.append(load_tokenizer(folder))
        columns = [rows[name] for name in texts or rows]
        whole = loaded[0](*columns, verbose=False)["input_ids"]
        out = loaded[0](*columns, truncation=True, max_length=max_length)
        found = {"ids": out["input_ids"], "length": [len(ids) for ids in whole]}
        if len(columns) == 2 and "token_type_ids" in out:
            found["type_ids"] = out["token_type_ids"]
        return found

    return tokenize


def _examples(table: Any, max_length: int) -> Examples:
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    ids = columns["ids"]
    offsets = ids.offsets.to_numpy().astype(np.int64)
    type_ids = columns["type_ids"].values.to_numpy() if "type_ids" in columns else None
    return Examples(
        ids=ids.values.to_numpy().astype(np.int32),
        offsets=offsets,
        type_ids=None if type_ids is None else type_ids.astype(np.int32),
        truncated=int((columns["length"].to_numpy() > max_length).sum()),
    )


class _quiet:
    """Without the library's own progress bars."""

    def __enter__(self) -> None:
        self._shown = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()

    def __exit__(self, *error: Any) -> Iterator[None]:
        if self._shown:
            datasets.enable_progress_bars()
