"""Digests of large files, each read once for all commands: it takes minutes.

What a system says of a file, its size and times among it, tells whether it is still what it was; a
digest is kept by that in the cache folder.
"""

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ftjax import cache

LARGE = 2**26  # bytes from which on a digest is kept
SETTLED = 2 * 10**9  # nanoseconds: a file may change again in the moment that its times say
AT_ONCE = 8  # files that are read side by side


def digests(files: Sequence[Path]) -> list[bytes]:
    """sha256 of files."""
    with ThreadPoolExecutor(AT_ONCE) as readers:
        return list(readers.map(_digest, files))


def _digest(file: Path) -> bytes:
    return _digest_of(os.path.realpath(file), _form(file))


def _form(file: Path | str) -> tuple[int, ...]:
    at = os.stat(file)
    return at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns


@functools.cache
def _digest_of(file: str, form: tuple[int, ...]) -> bytes:
    """Of a file as it is now, by what its system says of it."""
    _, _, size, *times = form
    key = hashlib.sha256(f"{file} {form}".encode("utf-8", "surrogateescape")).hexdigest()
    prefix = f"{key} "  # before it: a file that was renamed says nothing of another
    stored = bytes(cache.read("digests", key) or b"").decode() if size >= LARGE else ""
    if stored.startswith(prefix):
        return bytes.fromhex(stored.removeprefix(prefix))
    settled = time.time_ns() - max(times) > SETTLED
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    if size >= LARGE and settled and _form(file) == form:
        cache.write("digests", key, lambda entry: entry.write(f"{prefix}{digest.hex()}".encode()))
    return digest
