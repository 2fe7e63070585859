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
SPLITS = ("train", "validation", "test")


def open_rows(rows: Any, settings: Options) -> LazySplit:
    """Rows that have not been checked.

    Args:
        rows: a file, or what `as_rows` takes.
        settings: the `data` section of the configuration.

    Raises:
        UserError: there is no such file, or it is nothing that has rows.
    """
    if isinstance(rows, str | os.PathLike):
        return open_file(located(rows), settings)
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
        _require_different(f"{NAME} have", rows.columns)
        rows = rows.astype(object).where(rows.notna(), None).to_dict("records")
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        what = "a list of mappings, a pandas.DataFrame, a datasets.Dataset or a file"
        raise UserError(f"rows must be {what}, not {type(rows).__name__}")
    listed = list(rows)
    for number, row in enumerate(listed, 1):
        if not isinstance(row, Mapping):
            what = f"is a {type(row).__name__}, not a mapping from column to value"
            raise UserError(f"{NAME}: row {number} {what}")
        _require_different(f"{NAME}: row {number} has", row)
    try:
        return [{str(name): plain(value) for name, value in row.items()} for row in listed]
    except RecursionError:
        raise UserError(f"{NAME} have a value that is within itself") from None


def _require_different(whose: str, columns: Iterable[Any]) -> None:
    """Raises UserError for columns of one name, of which all but one would be lost."""
    names = list(map(str, columns))
    if len({*names}) < len(names):  # each row is asked: which it is, is looked for where one is
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{whose} two columns {twice!r}: rename one, or drop it")


def as_texts(splits: Mapping[str, Any]) -> dict[str, str]:
    """Rows to train on and to hold out as the text of a file each.

    Args:
        splits: "train", "validation" or "test" → what `as_rows` takes.

    Raises:
        UserError: another name, or no rows to train on.
    """
    if not isinstance(splits, Mapping) or "train" not in splits or {*splits} - {*SPLITS}:
        others = " and ".join(SPLITS[1:])
        raise UserError(f'data must be a mapping, as {{"train": rows}}, perhaps with {others}')
    return {name: "".join(map(to_line, as_rows(rows))) for name, rows in splits.items()}


def require_same_rows(folder: Path, texts: Mapping[str, str]) -> None:
    """Raises UserError where a folder does not hold these rows.

    Args:
        folder: with a file a split.
        texts: of the files.
    """
    for name in SPLITS:
        file = folder / f"{name}.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else None
        if text != texts.get(name):
            holds = "holds other rows, of an earlier run" if text else "is not of the earlier run"
            raise UserError(f"{file} {holds}: use another work folder")


def write_splits(folder: Path, texts: Mapping[str, str]) -> None:
    """Makes a folder hold these rows, and no others.

    Args:
        folder: made if absent; a file that says the same stays as it is.
        texts: split → of its file.
    """
    for name in {*SPLITS} - {*texts}:
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    for name, text in texts.items():
        file = folder / f"{name}.jsonl"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
