"""Rows that a program has at hand, read as those of files are."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets

from ftjax.data.lazy_split import LazySplit
from ftjax.data.readers.rows import Options, Reader
from ftjax.data.sources import open_file
from ftjax.errors import UserError
from ftjax.files import plain, to_line, write_text
from ftjax.remote import located

NAME = "the given rows"  # in messages, where a file would be named


def open_rows(rows: Any, settings: Options) -> LazySplit:
    """Rows that have not been checked.

    Args:
        rows: a file, or what `as_rows` takes.
        settings: the `data` section of the configuration.

    Raises:
        UserError: there is no such file, or it is nothing that has rows.
    """
    if isinstance(rows, str | os.PathLike):
        return open_file(located(os.fspath(rows)), settings)
    mappings = as_rows(rows)
    reader = Reader(lambda: iter(enumerate(mappings, 1)))
    return LazySplit(NAME, reader, dict(settings["columns"]))


def as_rows(rows: Any) -> list[Mapping[str, Any]]:
    """Mappings from column to value.

    Args:
        rows: mappings, a pandas.DataFrame (whose missing values become None) or a
            datasets.Dataset.

    Raises:
        UserError: it is something else; the row is named.
    """
    if isinstance(rows, datasets.Dataset):
        rows = rows.to_list()
    elif hasattr(rows, "columns") and hasattr(rows, "to_dict"):
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        what = "a list of mappings, a pandas.DataFrame, a datasets.Dataset or a file"
        raise UserError(f"rows must be {what}, not {type(rows).__name__}")
    listed = list(rows)
    for number, row in enumerate(listed, 1):
        if not isinstance(row, Mapping):
            raise UserError(f"{NAME}: row {number} is a {type(row).__name__}, not a mapping")
    return [{str(name): plain(value) for name, value in row.items()} for row in listed]


def write_splits(folder: Path, splits: Mapping[str, Any]) -> None:
    """Writes rows to train on and to hold out as a folder with a file a split.

    Args:
        folder: made if absent; a file that says the same stays as it is.
        splits: "train", "validation" or "test" → what `as_rows` takes.

    Raises:
        UserError: another name, no rows to train on, or a file there says something else.
    """
    known = ("train", "validation", "test")
    if not isinstance(splits, Mapping) or "train" not in splits or {*splits} - {*known}:
        raise UserError(f"data must be a mapping with train, and perhaps {' and '.join(known[1:])}")
    texts = {name: "".join(map(to_line, as_rows(rows))) for name, rows in splits.items()}
    for name, text in texts.items():
        file = folder / f"{name}.jsonl"
        if not file.exists():
            write_text(file, text)
        elif file.read_text(encoding="utf-8") != text:
            raise UserError(f"{file} holds other rows, of an earlier run: use another work folder")
