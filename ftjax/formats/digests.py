"""Digests of large files, each read once for all commands: it takes minutes.

What a system says of a file, its size and times among it, tells whether it is still what it was; a
digest is kept by that in the cache folder.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

from ftjax.remote import cache_folder

LARGE = 2**26  # bytes from which on a digest is kept
SETTLED = 2 * 10**9  # nanoseconds: a file may change again in the moment that its times say
AT_ONCE = 8  # files that are read side by side


def digests(files: Sequence[Path]) -> list[bytes]:
    """sha256 of files."""
    with ThreadPoolExecutor(AT_ONCE) as readers:
        return list(readers.map(_digest, files))


def _digest(file: Path) -> bytes:
    return _of(os.path.realpath(file), _form(file))


def _form(file: Path | str) -> tuple[int, ...]:
    at = os.stat(file)
    return at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns


@cache
def _of(file: str, form: tuple[int, ...]) -> bytes:
    """Of a file as it is now, by what its system says of it."""
    _, _, size, *times = form
    key = hashlib.sha256(f"{file} {form}".encode("utf-8", "surrogateescape")).hexdigest()
    kept = cache_folder() / "digests" / key
    if size >= LARGE and (digest := _read(kept)):
        return digest
    settled = time.time_ns() - max(times) > SETTLED
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    if size >= LARGE and settled and _form(file) == form:
        _keep(kept, digest)
    return digest


def _line(key: str, digest: bytes) -> str:
    """With a sum of its own, since a damaged one would say that a model has changed."""
    return f"{digest.hex()} {hashlib.sha256(key.encode() + digest).hexdigest()}\n"


def _read(kept: Path) -> bytes | None:
    """A digest that was kept; None where there is none, or a damaged one."""
    try:
        text = kept.read_text()
        digest = bytes.fromhex(text[:64])
    except (OSError, ValueError):
        return None
    return digest if text == _line(kept.name, digest) else None


def _keep(kept: Path, digest: bytes) -> None:
    """Where that cannot be, as on a full disk, the file is read again another time."""
    partial = kept.with_name(f".{kept.name}.{uuid4().hex}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_line(kept.name, digest))
        partial.replace(kept)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
