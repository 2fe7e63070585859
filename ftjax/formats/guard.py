"""Files that others wrote: what goes wrong in reading one is a UserError that names it."""

import pickle
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ftjax.errors import UserError, summary
from ftjax.remote import is_remote

# What damaged content leads readers to raise. Of a library in Rust, also a panic, see `reading`.
DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
)


@contextmanager
def reading(file: Path, problem: str = "is corrupt or truncated") -> Iterator[None]:
    """Around what takes a file apart: all that its content leads to is an error of the user's.

    It stands around readers, never around what computes with what they gave: the faults of that
    are a program's.

    Args:
        file: that messages name.
        problem: what they say of it.

    Raises:
        UserError: any of `DAMAGED`, and a UserError, which then names the file.
    """
    try:
        with named(file):
            yield
    except UserError:
        raise
    except MemoryError as error:  # a number in it says how much to make room for
        raise UserError(f"{file} {problem}: it asks for more memory than there is") from error
    except DAMAGED as error:
        raise UserError(f"{file} {problem}: {summary(error)}") from error
    except BaseException as error:
        # Libraries in Rust raise no other kind, or pyo3's panic, which cannot be imported.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{file} {problem}: {summary(error)}") from error


@contextmanager
def named(file: Path) -> Iterator[None]:
    """Around what is said of a file's content: the message of a UserError then names the file."""
    try:
        yield
    except UserError as error:
        if str(file) in str(error):
            raise
        raise UserError(f"{file}: {error}") from error


def regular(file: Path) -> Path:
    """A file that can be read to its end, as pipes and devices cannot.

    Raises:
        UserError: it is absent, or of another kind.
    """
    if is_remote(file):
        return file
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{file} is {kind}, and should be a file")
    return file
