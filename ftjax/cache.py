"""What is kept on disk since it can be made again: tokens, prepared rows, digests of models.

A file ends with the SHA-256 of what is before, and is checked when it is read: one that is damaged
is removed, and made again. What was not used for longest goes first where all is larger than
$FTJAX_CACHE_LIMIT. A disk that is full costs time, not the run.
"""

import hashlib
import mmap
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple
from uuid import uuid4

from ftjax.errors import require
from ftjax.remote import cache_folder

# Folders of files that are checked, and that the limit is for
KEPT = ("tokens", "splits", "prepared", "digests", "forecasts")
FOLDERS = {
    "tokens": "texts as token ids",
    "splits": "rows as data.prepare leaves them",
    "prepared": "what models that data.prepare asks have said",
    "digests": "what large files of models add up to",
    "forecasts": "layouts compiled ahead of time",
    "copies": "folders of object stores",
    "xla": "compiled programs",
}
SEAL = 64  # characters of a hash
LIMIT = "50GB"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
ABANDONED = 86_400  # seconds after which what is half written is no process's any more


class Size(NamedTuple):
    """What a folder holds.

    Attributes:
        files: how many.
        bytes: of all of them.
    """

    files: int
    bytes: int


class _Sealed:
    """A file that is written, with the hash of what went in."""

    def __init__(self, file: Any) -> None:
        self._file, self._digest, self.closed = file, hashlib.sha256(), False

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        self._file.write(self._digest.hexdigest().encode())


def limit() -> int:
    """Bytes that `KEPT` may hold: $FTJAX_CACHE_LIMIT, as 500MB or 20GB.

    Raises:
        UserError: it is no size.
    """
    text = os.environ.get("FTJAX_CACHE_LIMIT") or LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B|)", text.strip().upper())
    require(bool(match), f"FTJAX_CACHE_LIMIT={text!r} must be a size, as 500MB or 20GB")
    return int(float(match[1]) * UNITS[match[2]])


def read(kind: str, name: str) -> memoryview | None:
    """What was kept under a name; None where nothing is, or it is damaged.

    Args:
        kind: of `KEPT`.
        name: of the file.
    """
    path = cache_folder() / kind / name
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        data, seal = memoryview(content)[:-SEAL], content[-SEAL:]
        if size >= SEAL and hashlib.sha256(data).hexdigest().encode() == seal:
            os.utime(path)
            return data
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        _say(f"{path} cannot be read ({error.strerror or error}): it is made again")
    return None


def write(kind: str, name: str, fill: Callable[[Any], Any]) -> bool:
    """Keeps something, whole or not at all.

    Args:
        kind: of `KEPT`.
        name: of the file.
        fill: writes to the file that it is given.

    Returns:
        Whether it is kept: not where the disk is full, or may not be written to.
    """
    limit()  # a bad one is said before anything is written
    folder = cache_folder() / kind
    part, problem = folder / f".{name}.{uuid4().hex}", None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            sealed = _Sealed(file)
            fill(sealed)
            sealed.seal()
        part.replace(folder / name)
    except OSError as error:
        problem = error
    finally:
        if problem is not None or part.exists():
            _remove(part)
    if problem is not None:
        _say(f"{folder} cannot be written to ({problem.strerror or problem}): nothing is kept")
        return False
    trim(folder / name)
    return True


def trim(newest: Path | None = None) -> None:
    """Removes what was not used for longest, until all is within the limit.

    Args:
        newest: stays.
    """
    files, now = [], time.time()
    for kind in KEPT:
        for path, stat in _files(cache_folder() / kind):
            if path.name.startswith("."):
                if now - stat.st_mtime > ABANDONED:
                    _remove(path)
            else:
                files.append((path == newest, stat.st_mtime, stat.st_size, path))
    held = sum(size for _, _, size, _ in files)
    for is_newest, _, size, path in sorted(files):
        if held <= limit() or is_newest:
            return
        _remove(path)
        held -= size


def sizes() -> dict[str, Size]:
    """What each folder holds."""
    by_folder = {}
    for kind in FOLDERS:
        file_sizes = [stat.st_size for _, stat in _files(cache_folder() / kind)]
        by_folder[kind] = Size(len(file_sizes), sum(file_sizes))
    return by_folder


def clear(kinds: Iterable[str] = FOLDERS) -> None:
    """Removes folders, which are made again as they are needed."""
    for kind in kinds:
        shutil.rmtree(cache_folder() / kind, ignore_errors=True)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """All files under a folder; what vanishes meanwhile is left out."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            try:
                stat = path.stat()
            except OSError:
                continue
            if S_ISREG(stat.st_mode):
                yield path, stat


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # of another user: it may stay


@cache
def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
