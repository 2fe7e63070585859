"""Rows of a file from any place on are those that reading all of it gives, without what is before."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ftjax.data.opened import BEGIN
from ftjax.data.readers import lines
from ftjax.data.sources import open_parts
from ftjax.data.stream_source import START, Position, Source
from ftjax.errors import UserError
from ftjax.tasks.masked_lm import MaskedLM
from tests.conftest import data_settings

SCHEMA = MaskedLM.schema
TEXTS = [f"text {n} " + "é" * (n % 5) for n in range(3000)]


def written(folder, form):
    """A file, or a folder, of rows in one form; those of texts with a bad row and empty lines."""
    path, table = folder / f"rows.{form}", pyarrow.table({"text": TEXTS})
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS]
    rows[1500] = '{"text": "cut'
    whole = ("\ufeff" + "\r\n".join([*rows[:7], "", *rows[7:]])).encode()
    if form == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=700)
    elif form == "arrow":
        with pyarrow.ipc.new_file(path, table.schema) as file:
            file.write_table(table, max_chunksize=700)
    elif form == "saved":
        datasets.Dataset(table).save_to_disk(path)
    elif form == "txt":
        path.write_text("\n\n".join(TEXTS) + "\n")
    else:
        path.write_bytes(gzip.compress(whole) if form.endswith("gz") else whole)
    return path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "txt", "parquet", "arrow", "saved", "csv"])
def test_rows_from_any_place_on(tmp_path, monkeypatch, form):
    monkeypatch.setattr(lines, "BLOCK", 20_000)
    monkeypatch.setattr("ftjax.data.published.CHUNK", 700)
    if form == "csv":  # which has no sections: a field may go on over lines
        path = tmp_path / "rows.csv"
        path.write_text("text\n" + "\n".join(f'"{text}"' for text in TEXTS))
    else:
        path = written(tmp_path, form)
    opened = open_parts(data_settings("masked_lm", path=str(path)))[0][1]["train"]

    def plain(row):
        return str(row) if isinstance(row, UserError) else (row["row"], row["text"])

    every = [(plain(row), mark) for row, mark in opened.checked_from(SCHEMA)]
    assert [row for row, _ in every] == list(map(plain, opened.checked(SCHEMA)))
    whole = [plain(row) for row in opened._each(lambda n, row: {**row, "row": n}, opened.read())]
    assert [row for row, _ in every] == whole and len(every) == 3000
    marks = {mark for _, mark in every}
    assert (len(marks) > 2) == (form != "csv") and BEGIN in marks
    for start in (0, 1, 999, 1000, 1001, 1499, 1501, 2999):
        found = opened.checked_from(SCHEMA, start, every[start][1])
        assert [(plain(row), mark) for row, mark in found] == every[start:]
        assert every[start][1].rows <= start
    assert list(opened.checked_from(SCHEMA, 3000, every[-1][1])) == []


def test_a_stream_goes_on_without_reading_what_is_before(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 20_000)
    path = written(tmp_path, "jsonl")

    def source():
        opened = open_parts(data_settings("masked_lm", path=str(path)))[0][1]["train"]
        return Source(opened, SCHEMA, skip=True)

    first, position = source(), START
    for _ in range(25):
        _, position = first.take(position, 100)
    wanted = [first.take(position, 900)[0]]
    saved = json.loads(json.dumps(position.saved()))
    content = path.read_bytes()
    middle = range(200_000 // 8, saved["place"]["mark"][1] - 10)
    assert len(middle) > 1000
    with monkeypatch.context() as patch:  # and nothing there is looked at
        seen, blocks = [], lines.line_blocks

        def watched(file, at=0, number=1):
            for block in blocks(file, at, number):
                seen.append(block.at)
                yield block

        patch.setattr("ftjax.data.readers.objects.line_blocks", watched)
        assert [source().take(Position.read(saved), 900)[0]] == wanted
    assert seen[0] == saved["place"]["mark"][1] > len(content) / 2
    older = {**saved, "place": {n: x for n, x in saved["place"].items() if n != "mark"}}
    assert [source().take(Position.read(older), 900)[0]] == wanted
