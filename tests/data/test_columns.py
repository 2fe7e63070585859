"""Columns that are checked at once are what rows that are checked one by one are."""

import csv
import json
import random
from dataclasses import replace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ftjax.data.checker import Checker
from ftjax.data.sources import open_parts, read_split
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification
from ftjax.tasks.regression import Regression
from tests.conftest import data_settings, write_jsonl

GOOD = ["good film", " 电影 ", "a\u2028b\u00a0", 'say "so"', "x\\n,y", "\u0000z"]
ODD = ["", " \u3000\u00a0", "\x1c\x1f", None, 5, 1.5, True, ["a"], {"a": 1}, "a\ud800"]
LABELS = {"names": ["a", "²", "00", "-1", "1.0x"], "integers": [0, 1, 2]}
LABELS |= {"pandas": ["1.0", "0.0"], "floats": [1.0, 0.0], "mixed": ["1", 1, 0.5]}


def cases(seed):
    """Rows of which, in some, a few have something odd."""
    draw = random.Random(seed)
    labels = LABELS[draw.choice([*LABELS])]
    rows = [
        {"text": draw.choice(GOOD), "label": draw.choice(labels), "more": {"x": [None, "y"]}}
        for _ in range(draw.choice([3, 40]))
    ]
    if draw.random() < 0.3:
        rows = [{**row, "text_pair": "b"} for row in rows]
    for _ in range(draw.choice([0, 0, 1, 3])):
        row, name = draw.choice(rows), draw.choice(["text", "label", "text_pair", "new"])
        row[name] = draw.choice(ODD)
        if draw.random() < 0.3:
            del row[name]
    return rows


def read(opened, schema, skip):
    """Rows and messages of bad ones, or the error."""
    try:
        split = read_split([opened], schema, skip)
    except UserError as error:
        return str(error)
    return split.rows.to_list(), split.skipped, split.rows.column_names


def both(path, schema, **changes):
    """What is read at once and what is one by one."""
    ((_, parts),) = open_parts(data_settings(path=str(path), **changes))
    opened = parts["train"]
    assert opened.reader.blocks is not None
    slow = replace(opened, reader=opened.reader._replace(blocks=None))
    return [[read(each, schema, skip) for skip in (False, True)] for each in (opened, slow)]


@pytest.mark.parametrize("task", [Classification, Regression])
def test_blocks_give_what_rows_give(tmp_path, monkeypatch, task):
    """Of lines of JSON, of tables and of columns, whatever is odd in them."""
    monkeypatch.setattr("ftjax.data.readers.lines.BLOCK", 400)
    monkeypatch.setattr("ftjax.data.readers.tables.CHUNK", 7)
    at_once = 0
    for seed in range(60):
        rows = cases(seed)
        if task is Regression:
            numbers = [seed / 7, seed, "1e3", None, float("inf")][: 1 if seed % 3 else 5]
            rows = [{**row, "label": numbers[n % len(numbers)]} for n, row in enumerate(rows)]
        lines = [json.dumps(row) for row in rows]
        if seed % 10 == 1:
            lines.insert(
                len(lines) // 2, ["", '{"text": ', '{"text": "a"} {"text": "b"}'][seed % 3]
            )
        file = tmp_path / "a.jsonl"
        file.write_text("\r\n".join(lines) if seed % 7 == 1 else "\n".join(lines), newline="")
        fast, slow = both(file, task.schema)
        assert fast == slow, (seed, rows)
        texts = [{k: v for k, v in row.items() if isinstance(v, str | int | float)} for row in rows]
        file = tmp_path / "a.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["text", "label", "text_pair"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows([row for row in texts if ODD[-1] not in row.values()])
        fast, slow = both(file, task.schema)
        assert fast == slow, (seed, rows)
        try:
            table = pyarrow.Table.from_pylist(rows)
        except (pyarrow.ArrowException, UnicodeEncodeError):
            continue
        at_once += 1
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        fast, slow = both(tmp_path / "a.parquet", task.schema)
        assert fast == slow, (seed, rows)
    assert at_once > 20


def test_large_files_do_not_become_objects(tmp_path, monkeypatch):
    """Rows of the first's form are never Python's objects but the first of a block."""
    rows = [{"text": f"film {n}", "label": n % 2} for n in range(5000)]
    file = write_jsonl(tmp_path / "a.jsonl", rows)
    ((_, parts),) = open_parts(data_settings(path=str(file)))
    calls = []
    call = Checker.__call__
    monkeypatch.setattr(Checker, "__call__", lambda *given: calls.append(1) or call(*given))
    split = read_split([parts["train"]], Classification.schema, skip=False)
    assert len(split.rows) == 5000 and len(calls) == 1
    assert split.rows[4999] == {"text": "film 4999", "label": "1", "row": 5000}


def test_numbered_classes_of_saved_folders(tmp_path):
    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    for labels in ([1, 0, 1], [1, None, 0], [1, -1, 0]):
        rows = {"text": ["a", "b", "c"], "label": labels}
        datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / f"{labels}")
        fast, slow = both(tmp_path / f"{labels}", Classification.schema)
        assert fast == slow
        assert (labels == [1, 0, 1]) == (fast[0][1] == ())
