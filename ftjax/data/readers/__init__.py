"""Rows of files, one after another: a file may be larger than memory.

The form of a file follows its suffix and its content; `data.source` says it where they do not.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ftjax.data.readers import columnar, objects, tables, texts
from ftjax.data.readers.lines import NAMES, encoding_of, head
from ftjax.data.readers.rows import Block, Options, Rows, Section, Types, sound
from ftjax.errors import UserError

__all__ = ["READERS", "Form", "Options", "Rows", "form_of", "notes_on", "sound", "stem"]


class Form(NamedTuple):
    """How files of one form are read.

    Attributes:
        suffixes: of such files.
        rows: one by one.
        blocks: many at a time, where columns are of these types; None where the file has no such.
        is_text: whether the files are of lines, in an encoding.
        sections: rows from a section on, which is told by where it begins and the number there;
            None where the file has no such.
    """

    suffixes: tuple[str, ...]
    rows: Callable[[Path, Options], Rows]
    blocks: Callable[[Path, Options, Types], Iterator[Block] | None] | None = None
    is_text: bool = True
    sections: Callable[..., Iterator[Section] | None] | None = None


READERS: dict[str, Form] = {  # data.source → its form
    "json": Form(
        (".jsonl", ".json", ".ndjson"),
        objects.read_json,
        objects.json_blocks,
        sections=objects.json_sections,
    ),
    "csv": Form((".csv", ".tsv"), tables.read_csv, tables.csv_blocks),
    "parquet": Form(
        (".parquet",),
        columnar.read_parquet,
        columnar.parquet_blocks,
        False,
        columnar.parquet_sections,
    ),
    "arrow": Form(
        (".arrow",), columnar.read_arrow, columnar.arrow_blocks, False, columnar.arrow_sections
    ),
    "xlsx": Form((".xlsx",), tables.read_xlsx, None, False),
    "text": Form((".txt",), texts.read_text, sections=texts.text_sections),
    "conll": Form((".conll", ".bio", ".iob", ".txt"), texts.read_conll),
    "squad": Form((".json",), objects.read_squad),
}
COMPRESSED = (".gz", ".zst")
MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"PK\3\4": "xlsx"}
OPEN = ("", ".txt", ".data", ".dat", ".log")  # suffixes that say no more than that it is text
OBJECTS = re.compile(r"\s*(\{\s*\"|\[\s*\{)")  # how JSON of rows begins
SUFFIXES = tuple(dict.fromkeys(suffix for form in READERS.values() for suffix in form.suffixes))


def suffix_of(file: Path) -> str:
    """A file's suffix, without that of a compression."""
    return Path(file.stem if file.suffix in COMPRESSED else file.name).suffix.lower()


def stem(file: Path) -> str:
    """A file's name without its suffixes."""
    return Path(file.stem).stem if file.suffix in COMPRESSED else file.stem


def form_of(file: Path, source: str = "auto") -> str:
    """Which of `READERS` a file is of.

    Args:
        file: which is there.
        source: `data.source`; counts where several forms have the suffix, or none.

    Raises:
        UserError: neither suffix nor content say it, and `source` does not.
    """
    start = head(file)
    for mark, form in MAGIC.items():
        if start.startswith(mark):
            return form
    suffix = suffix_of(file)
    forms = [name for name, form in READERS.items() if suffix in form.suffixes]
    is_open = suffix in OPEN and source in READERS and READERS[source].is_text
    if source in forms or is_open or (not forms and source in READERS):
        return source
    if suffix in (".json", ".csv", ".tsv", *OPEN) and (form := _of_content(start)):
        return form if form != "conll" or suffix in OPEN else forms[0]
    if not forms:
        raise UserError(
            f"{file}: the suffix says no form: rename it to one of {', '.join(SUFFIXES)}, or set "
            f"data.source to one of {', '.join(READERS)}"
        )
    return forms[0]


def _of_content(start: bytes) -> str:
    """The form that the first bytes of a text are of without doubt; empty where there is none."""
    text = start.decode("utf-8-sig", "replace")
    if OBJECTS.match(text):
        return "squad" if '"paragraphs"' in text else "json"
    lines = [line.split("\t" if "\t" in line else None) for line in text.splitlines()[:200]]
    rows = [parts for parts in lines if parts and parts[0] not in ("#", "-DOCSTART-")]
    tagged = all(len(parts) > 1 and texts.TAG.fullmatch(parts[-1]) for parts in rows)
    return "conll" if len(rows) > 1 and tagged and len({*map(len, rows)}) == 1 else ""


def notes_on(file: Path, form: str, options: Options) -> tuple[str, ...]:
    """What a user should know of how a file is read."""
    if form == "xlsx":
        return tuple(filter(None, [tables.sheet_note(file)]))
    codec = encoding_of(file, options) if READERS[form].is_text else "utf-8"
    plain = codec.startswith("utf-8") or options.get("encoding", "auto") != "auto"
    return () if plain else (f"{file} is read as {NAMES.get(codec, codec)}",)
