"""Rows of a file from any place on are those that reading all of it gives, without what is before."""

import gzip
import itertools
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from ftjax.data.lazy_split import BEGIN
from ftjax.data.readers import lines
from ftjax.data.sources import load, open_parts
from ftjax.data.stream_source import START, Cursor, Position, Source
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
    rows = opened.reader.rows()
    whole = [plain(row) for row in opened._checked(lambda n, row: {**row, "row": n}, rows)]
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
        return Cursor(Source(opened, SCHEMA, skip=True))

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
    path.write_bytes(content[:5000] + b" " + content[5000:])  # all that follows is elsewhere
    with pytest.raises(UserError, match=f"no line begins at byte {seen[0]}, .* changed since"):
        source().take(Position.read(saved), 900)
    path.write_bytes(content)
    older = {**saved, "place": {n: x for n, x in saved["place"].items() if n != "mark"}}
    assert [source().take(Position.read(older), 900)[0]] == wanted


def shards(folder, count, rows=40):
    """Files of one split, each row of which is told by its file and number."""
    folder.mkdir()
    for number in range(count):
        texts = [f"{number} {row}" for row in range(rows)]
        file = folder / f"train-{number:05d}-of-{count:05d}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.mark.parametrize("changes", [{}, {"source": "hub", "streaming": True}])
def test_files_of_a_split_are_read_in_an_order_of_each_pass(tmp_path, changes):
    folder = shards(tmp_path / "rows", 5)
    opened = open_parts(data_settings("masked_lm", path=str(folder), **changes))[0][1]["train"]
    assert len(opened.files) == 5
    whole = [f"{number} {row}" for number in range(5) for row in range(40)]
    in_order, _ = Cursor(Source(opened, SCHEMA)).take(START, 400)
    assert [row["text"] for row in in_order] == whole * 2

    def source():
        return Cursor(Source(opened, SCHEMA, buffer=10, seed=(3,)))

    every, position, first = [], START, source()
    places = [START]
    for _ in range(40):  # two passes
        rows, position = first.take(position, 10)
        every.append([row["text"] for row in rows])
        places.append(position)
    orders = []
    for number in range(2):
        part = every[20 * number : 20 * number + 20]
        assert sorted(itertools.chain(*part)) == sorted(whole)
        orders.append([rows[0].split()[0] for rows in part[::4]])
    assert len({*map(tuple, orders), ("0", "1", "2", "3", "4")}) == 3
    for start in (3, 4, 22, 39):
        again, position = source(), Position.read(json.loads(json.dumps(places[start].saved())))
        for number in range(start, 40):
            rows, position = again.take(position, 10)
            assert [row["text"] for row in rows] == every[number]


def test_files_of_a_split_are_all_there(tmp_path):
    folder = shards(tmp_path / "rows", 3)
    (folder / "test.jsonl").write_text('{"text": "a"}\n')
    splits = load(data_settings("masked_lm", path=str(folder)), SCHEMA)
    assert splits["train"].column("text")[::40] == ["0 0", "1 0", "2 0"] and len(splits) == 2
    (folder / "train-00001-of-00003.jsonl").unlink()
    with pytest.raises(UserError, match="has 2 of the 3 files of which train-00000-of-00003.jsonl"):
        load(data_settings("masked_lm", path=str(folder)), SCHEMA)
    (folder / "train.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"has train-00000-of-00003.jsonl and .* leave one"):
        load(data_settings("masked_lm", path=str(folder)), SCHEMA)
