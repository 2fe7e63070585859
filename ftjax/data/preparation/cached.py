"""Preparation of the same rows by the same steps, which is done once: see `ftjax.cache`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
import pyarrow

from ftjax import cache
from ftjax.data.preparation import steps
from ftjax.data.preparation.pipeline import Report, prepare
from ftjax.data.preparation.step import Models, Splits

KIND, VERSION = "splits", "1"
DRAWN = ("splits", "split_seed", "stratify", "group")  # of `data`, besides the steps


def prepare_once(
    splits: Splits, settings: Mapping[str, Any], models: Models, held_out: bool = False
) -> tuple[Splits, Report]:
    """What `prepare` gives, or gave when it was last asked for the same.

    Steps that go by what lies elsewhere, as a model or a database of synonyms, run each time.
    """
    contents = [(name, step.content()) for name, step in steps(settings["prepare"])]
    if any(content is None for _, content in contents):
        return prepare(splits, settings, models, held_out)
    drawn = {name: settings[name] for name in DRAWN}
    digest = hashlib.sha256(f"{VERSION} {contents} {drawn} {held_out}".encode())
    for name, split in splits.items():
        form = (name, split.file, split.label_names, split.texts, split.answers)
        for part in (repr(form), repr(split.column("row")), *split.content()):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    key = digest.hexdigest()[:32]
    if (cached := _load(key, splits)) is not None:
        return cached
    prepared, report = prepare(splits, settings, models, held_out)
    _store(key, prepared, report)
    return prepared, report


def _load(key: str, before: Splits) -> tuple[Splits, Report] | None:
    content = cache.read(KIND, f"{key}.json")
    if content is None:
        return None
    saved, splits = json.loads(bytes(content)), {}
    for name, names in saved["splits"].items():
        data = cache.read(KIND, f"{key}-{name}.arrow")
        if data is None:
            return None
        table = pyarrow.ipc.open_file(pyarrow.py_buffer(data)).read_all()
        like = before.get(name, before.get("train"))
        rows = datasets.Dataset(table)
        splits[name] = replace(like, rows=rows, label_names=tuple(names))
    return splits, saved["report"]


def _store(key: str, splits: Splits, report: Report) -> None:
    for name, split in splits.items():
        table = split.rows.with_format("arrow")[:]

        def fill(file: Any, table: pyarrow.Table = table) -> None:
            with pyarrow.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)

        if not cache.write(KIND, f"{key}-{name}.arrow", fill):
            return
    names = {name: split.label_names for name, split in splits.items()}
    saved = {"splits": names, "report": report}
    text = json.dumps(saved, ensure_ascii=False).encode("utf-8", "surrogatepass")
    cache.write(KIND, f"{key}.json", lambda file: file.write(text))
