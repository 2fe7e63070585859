"""Files of a path, split by split."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ftjax.data.opened import Opened
from ftjax.data.readers import READERS, SUFFIXES, Options, form_of, notes_on, stem, suffix_of
from ftjax.data.split_names import choose, unused
from ftjax.errors import UserError


def open_file(file: Path, settings: Options) -> Opened:
    """One file, in the form that its suffix and its content say, or else `data.source`."""
    name = form_of(file, settings["source"])
    form, notes = READERS[name], notes_on(file, name, settings)
    blocks = form.blocks and partial(form.blocks, file, settings)
    rows = partial(form.rows, file, settings)
    return Opened(str(file), rows, dict(settings["columns"]), blocks=blocks, notes=notes)


def open_files(path: Path, settings: Options) -> dict[str, Opened]:
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
    for file in sorted(path.iterdir()):
        if suffix_of(file) in SUFFIXES and not file.name.startswith(".") and file.is_file():
            files.setdefault(stem(file), []).append(file)
    asked = {split: _stem(name) for split, name in settings["split_names"].items()}
    names = choose(files, asked, f"data.path={str(path)!r}")
    if "train" not in names and "test" not in names:
        known = (
            f"files: {', '.join(files)}; set data.split_names.train"
            if files
            else ", ".join(SUFFIXES)
        )
        raise UserError(f"data.path={str(path)!r} has no train or test file ({known})")
    chosen = {
        split: _one(files[name], settings, settings["split_names"][split])
        for split, name in names.items()
    }
    opened = {split: open_file(file, settings) for split, file in chosen.items()}
    left = unused(files, names.values(), str(path))
    first = next(iter(opened))
    notes = (*left, *opened[first].notes)
    return {**opened, first: replace(opened[first], notes=notes)}


def _stem(name: str) -> str:
    """A name of a split without the suffix that a file of it may be given with."""
    return stem(Path(name)) if suffix_of(Path(name)) in SUFFIXES else name


def _one(files: Sequence[Path], settings: Mapping, asked: str) -> Path:
    """The file that is asked for, or of the form that `data.source` says."""
    form = READERS.get(settings["source"])
    of_form = [file for file in files if form and suffix_of(file) in form.suffixes]
    named = [file for file in files if file.name == asked]
    several = named or of_form or files
    if len(several) > 1:
        names = " and ".join(file.name for file in several)
        raise UserError(
            f"data.path={str(files[0].parent)!r} has {names}: leave one, or set data.split_names "
            "to the one to take"
        )
    return several[0]
