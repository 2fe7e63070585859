"""Files that are written whole or not at all, and JSON without numbers that are not finite."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from ftjax.errors import UserError
from ftjax.remote import is_remote


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: to a temporary name, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    if is_remote(path):  # where a file appears once it is whole
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # hosts may share numbers
    try:
        with naming(path):
            temporary.write_bytes(content)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What a disk refuses names the file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def check_writable(path: Path) -> None:
    """Raises UserError or OSError where no file could be written, before there is any to lose."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if is_remote(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_line(value, indent=2))


def to_line(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no numbers that are not finite: they become null."""
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def finite(value: Any) -> Any:
    """A value with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
