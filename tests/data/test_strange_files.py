"""Files that others' programs write: read as they mean, or refused with what to do."""

import json

import openpyxl
import pytest

from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification
from ftjax.tasks.instruction import Instruction
from ftjax.tasks.preference import Preference
from tests.conftest import data_settings

LABELLED = Classification.schema


def texts(path, schema=LABELLED, column="text", **changes):
    splits = load(data_settings("classification", path=str(path), **changes), schema)
    return splits["train"].column(column)


def test_a_quotation_mark_that_is_not_closed_takes_no_rows_with_it(tmp_path):
    """Also where bad rows are skipped: all to the end of the file would be one."""
    path = tmp_path / "a.csv"
    path.write_text('text,label\ngood,1\n"un closed,0\n' + "film,1\n" * 50)
    for changes in ({}, {"on_error": "skip"}):
        with pytest.raises(UserError, match="row 3 has a quotation mark that is not closed.* 51 l"):
            texts(path, **changes)
    assert len(texts(path, quoting="none")) == 52
    path.write_text('text,label\ngood,1\n"un closed,0')  # the last line alone
    assert texts(path, on_error="skip") == ["good"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
def test_a_zero_in_a_text_is_not_another_encoding(tmp_path, encoding):
    path, words = tmp_path / "a.csv", ["a\0b", "这是一部很好看的电影", "plain film"]
    words[0] = words[0] if encoding == "utf-8" else "ab"
    path.write_bytes("".join(["text,label\n", *(f"{w},x\n" for w in words * 9)]).encode(encoding))
    assert texts(path) == words * 9


def test_the_sheet_with_rows_is_read_and_said(tmp_path, capsys):
    path, book = tmp_path / "a.xlsx", openpyxl.Workbook()
    book.active.title = "notes"
    book.active.append(["what this is"])
    sheet = book.create_sheet("rows")
    for row in (["text", "label"], ["good", 1], ["bad", 0]):
        sheet.append(row)
    book.create_sheet("empty")
    book.save(path)
    assert texts(path) == ["good", "bad"]
    assert "of the sheets notes, rows, empty, rows is read" in capsys.readouterr().out


def test_columns_of_pandas_json(tmp_path):
    path = tmp_path / "a.json"
    for indent in (None, 1):
        columns = {"text": {"0": "good", "1": "bad"}, "label": {"0": 1, "1": 0}}
        path.write_text(json.dumps(columns, indent=indent))
        with pytest.raises(UserError, match=r"a.json has columns, .* orient='records'") as error:
            texts(path)
        assert "not valid" not in str(error.value)


def test_contents_in_parts_of_text(tmp_path):
    path = tmp_path / "a.jsonl"
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "film"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    path.write_text(json.dumps({"messages": turns}))
    (found,) = texts(path, Instruction.schema, "messages")
    assert [turn["content"] for turn in found] == ["good film", "yes"]
    parts[1] = {"type": "image_url", "image_url": {"url": "x"}}
    path.write_text(json.dumps({"messages": turns}))
    with pytest.raises(UserError, match="turn 1: content must be text, not"):
        texts(path, Instruction.schema, "messages")


def test_folders_within_are_named(tmp_path):
    """As of a data set that was cloned from the hub."""
    (tmp_path / "README.md").write_text("what this is")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.csv").write_text("text,label\ngood,1\n")
    with pytest.raises(UserError, match="its folder data has files: set data.path to it"):
        texts(tmp_path)
    assert texts(tmp_path / "data") == ["good"]


def test_answers_to_different_turns_are_not_compared(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {
        "chosen": "\n\nHuman: hi\n\nAssistant: yes",
        "rejected": "\n\nHuman: oh\n\nAssistant: no",
    }
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match="row 1: chosen and rejected answer different turns"):
        texts(path, Preference.schema, "chosen")
