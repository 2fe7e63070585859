"""Files of a path, split by split."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ftjax.data.lazy_split import LazySplit
from ftjax.data.readers import READERS, SUFFIXES, Options, form_of, notes_on, stem, suffix_of
from ftjax.data.readers.rows import Reader
from ftjax.data.split_names import choose, unused
from ftjax.errors import UserError

# One of several files of a split, as train-00003-of-00010.parquet
SHARD = re.compile(r"(?P<name>.+?)[-_.](?P<number>\d+)-of-(?P<count>\d+)")


def open_file(file: Path, settings: Options) -> LazySplit:
    """One file, in the form that its suffix and its content say, or else `data.source`."""
    name = form_of(file, settings["source"])
    form, notes = READERS[name], notes_on(file, name, settings)
    blocks = form.blocks and partial(form.blocks, file, settings)
    sections = form.sections and partial(form.sections, file, settings)
    reader = Reader(partial(form.rows, file, settings), blocks, sections)
    return LazySplit(str(file), reader, dict(settings["columns"]), notes=notes)


def open_files(path: Path, settings: Options) -> dict[str, LazySplit]:
    """The one file to train on, or those of a folder.

    Raises:
        UserError: the path does not exist or has no split, or two files for one.
    """
    if path.is_file():
        return {"train": open_file(path, settings)}
    if not path.is_dir():
        hint = "" if path.suffix else "; of a dataset of the hub, set data.source=hub"
        raise UserError(f"data.path={str(path)!r} does not exist{hint}")
    files: dict[str, list[Path]] = {}
    for file in _files(path):
        files.setdefault(_split_name(stem(file)), []).append(file)
    stems = {split: _stem(name) for split, name in settings["split_names"].items()}
    names = choose(files, stems, f"data.path={str(path)!r}")
    if "train" not in names and "test" not in names:
        known = ", ".join(SUFFIXES)
        within = [
            folder.name for folder in sorted(path.iterdir()) if folder.is_dir() and _files(folder)
        ]
        if files:
            known = f"files: {', '.join(files)}; set data.split_names.train"
        elif within:
            known = f"but its folder {within[0]} has files: set data.path to it"
        raise UserError(f"data.path={str(path)!r} has no train or test file ({known})")
    opened = {}
    for split, name in names.items():
        chosen = _chosen(files[name], settings, settings["split_names"][split])
        one, *others = (open_file(file, settings) for file in chosen)
        opened[split] = replace(one, others=tuple(others))
    left = unused(files, names.values(), str(path))
    first = next(iter(opened))
    notes = (*left, *opened[first].notes)
    return {**opened, first: replace(opened[first], notes=notes)}


def _files(folder: Path) -> list[Path]:
    """Those that may be of rows, in order."""
    named = (file for file in sorted(folder.iterdir()) if not file.name.startswith("."))
    return [file for file in named if suffix_of(file) in SUFFIXES and file.is_file()]


def _stem(name: str) -> str:
    """A name of a split without the suffix that a file of it may be given with."""
    return _split_name(stem(Path(name))) if suffix_of(Path(name)) in SUFFIXES else name


def _split_name(name: str) -> str:
    """Without what says which of several files one is."""
    shard = SHARD.fullmatch(name)
    return shard["name"] if shard else name


def _chosen(files: Sequence[Path], settings: Mapping, name: str) -> Sequence[Path]:
    """The files of a split: the one that is asked for, or of the form that `data.source` says, or
    all of which one is NUMBER-of-COUNT.

    Raises:
        UserError: there are others beside it, or some of them are not there.
    """
    form = READERS.get(settings["source"])
    of_form = [file for file in files if form and suffix_of(file) in form.suffixes]
    named = [file for file in files if file.name == name]
    candidates = named or of_form or files
    shards = [match for file in candidates if (match := SHARD.fullmatch(stem(file)))]
    kinds = {(suffix_of(file), SHARD.sub(r"\g<count>", stem(file))) for file in candidates}
    if len(shards) == len(candidates) and len(kinds) == 1:
        count = int(shards[0]["count"])
        if sorted(int(shard["number"]) for shard in shards) not in (
            [*range(count)],
            [*range(1, count + 1)],
        ):
            raise UserError(
                f"data.path={str(files[0].parent)!r} has {len(shards)} of the {count} files of "
                f"which {candidates[0].name} is one: some are missing"
            )
        return candidates
    if len(candidates) > 1:
        names = " and ".join(file.name for file in candidates)
        raise UserError(
            f"data.path={str(files[0].parent)!r} has {names}: leave one, or set data.split_names "
            "to the one to take"
        )
    return candidates
