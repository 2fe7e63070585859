"""Folders in object stores, gs://, s3:// and az://, beside those of this machine."""

import hashlib
import logging
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from etils import epath

from ftjax.errors import UserError, require

DRIVERS: Mapping[str, str] = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}  # scheme → package
# What they are built on, whose errors pass through them.
LIBRARIES = (*DRIVERS.values(), "fsspec", "aiohttp", "google.auth", "google.api_core", "botocore")
LIBRARIES += ("aiobotocore", "azure")
CHUNK = 2**26  # bytes that are copied at a time


def cache_folder() -> Path:
    """Where tokens, compiled programs and copies are kept: $FTJAX_CACHE, or ~/.cache/ftjax."""
    return Path(os.environ.get("FTJAX_CACHE") or Path.home() / ".cache" / "ftjax")


def path_text(place: str | os.PathLike[str]) -> str:
    """A path as a text.

    Raises:
        UserError: it is no path, but None or a number.
    """
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    require(isinstance(text, str) and "\0" not in text, f"{place!r} is no path")
    return text


def located(place: str | os.PathLike[str]) -> Path:
    """A path of this machine, or one of an object store, which has the same methods.

    Raises:
        UserError: an unknown scheme, or one whose package is not installed; or no path.
    """
    text = path_text(place)
    scheme, colon, _ = text.partition("://")
    if not colon:
        return Path(text).expanduser()
    if scheme not in DRIVERS:
        raise UserError(f"{text}: the scheme must be one of {', '.join(DRIVERS)}")
    try:
        __import__(DRIVERS[scheme])
    except ImportError as error:
        raise UserError(f"{text} needs a package: pip install {DRIVERS[scheme]}") from error
    return epath.Path(text)


@contextmanager
def raised_once() -> Iterator[None]:
    """Keeps the libraries of object stores from logging, too, what they raise: of a command, whose
    process is our own."""
    loggers = [logging.getLogger(name) for name in (*DRIVERS.values(), "fsspec")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


def of_store(error: BaseException) -> bool:
    """Whether the libraries of object stores raised an error, of a kind of their own or any."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_globals.get("__name__", "") for frame in frames]
    modules += [kind.__module__ for kind in type(error).__mro__]
    return any(f"{module}.".startswith(f"{name}.") for module in modules for name in LIBRARIES)


def create(path: Path, text: str) -> bool:
    """Writes a file where there is none: of several processes that try at once, one does.

    Returns:
        Whether it did.
    """
    try:
        if not is_remote(path):
            file = path.open("x", encoding="utf-8")
            try:
                with file:
                    file.write(text)
            except OSError as error:  # of a full disk: no half of it is left
                path.unlink(missing_ok=True)
                error.filename = str(path)
                raise
            return True
        store, name = _store(path)
        store.pipe_file(name, text.encode(), mode="create")  # the store itself refuses a second
    except FileExistsError:
        return False
    return True


def text_of(path: Path) -> str | None:
    """What a small file says at this moment, whatever was listed before; None where it is not."""
    try:
        if not is_remote(path):
            return path.read_text(encoding="utf-8", errors="replace")
        store, name = _store(path)
        return store.cat_file(name).decode(errors="replace")
    except FileNotFoundError:
        return None


def _store(path: Path) -> tuple[Any, str]:
    import fsspec

    return fsspec.url_to_fs(str(path))


def copied(folder: Path) -> Path:
    """A folder of this machine with the files of one in an object store, copied once.

    The copy has those that the store has now, of the same sizes and times.

    Raises:
        UserError: there is no such folder.
    """
    if not is_remote(folder):
        return folder
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    copy = cache_folder() / "copies" / name / folder.name
    files = {Path(str(file.relative_to(folder))): file for file in _files(folder)}
    for old in list(_files(copy)) if copy.is_dir() else ():
        if old.relative_to(copy) not in files:
            old.unlink(missing_ok=True)
    for inside, file in files.items():
        target, theirs = copy / inside, file.stat()
        if target.exists() and _form(target.stat()) == (theirs.length, int(theirs.mtime)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f"{inside.name}.{uuid4().hex}")
        part.write_bytes(file.read_bytes())
        os.utime(part, (theirs.mtime, theirs.mtime))
        part.replace(target)
    return copy


def uploaded(folder: Path, target: Path, last: str) -> None:
    """Copies a folder of this machine to one in an object store, the file called `last` at the end.

    A file appears there once it is whole.
    """
    files = sorted(_files(folder), key=lambda file: file == folder / last)
    for file in files:
        with file.open("rb") as own, (target / file.relative_to(folder)).open("wb") as theirs:
            shutil.copyfileobj(own, theirs, CHUNK)


def _form(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, int(status.st_mtime)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
