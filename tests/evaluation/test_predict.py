"""Predictions of files: every row comes back, those that cannot be predicted with the reason."""

import csv
import json
import re

import numpy as np
import openpyxl
import pandas
import pytest

from ftjax.errors import UserError
from ftjax.evaluation.evaluate import evaluate
from ftjax.evaluation.predict import predict
from ftjax.evaluation.tables import write_rows
from tests.conftest import ftjax, here, make_rows, write_jsonl

STEPS = (
    {"step": "repair"},
    {"step": "clean_labels", "case": "lower", "mapping": {"neg": "negative", "?": None}},
    {"step": "mask_personal", "kinds": ("email",)},
)


@pytest.fixture(scope="module")
def work(config_file, tmp_path_factory):
    """A run of which cleaning is a part."""
    folder = tmp_path_factory.mktemp("predict")
    rows = [{**row, "label": row["label"].replace("negative", "NEG ")} for row in make_rows(60, 0)]
    write_jsonl(folder / "train.jsonl", rows)
    text = config_file.read_text().replace(
        "    return config", f"    config.data.prepare = {STEPS!r}\n    return config"
    )
    (folder / "config.py").write_text(text)
    flags = ["--config.train.steps=3", f"--config.data.path={folder / 'train.jsonl'}"]
    ftjax("train", "--config", f"{folder / 'config.py'}:head", "--workdir", folder / "work", *flags)
    return folder / "work"


def test_rows_come_back_whole(work, tmp_path, capsys):
    """In order, with their numbers, their own columns, and why some are not predicted."""
    rows = [
        {"id": "a", "text": "good film", "label": "mine", "row": 7, "note": {"x": [1]}},
        {"id": "b", "text": " ", "error": "mine too"},
        {"id": "c", "text": "bad plot", "probabilities": None},
        {"id": "d"},
        {"id": "e", "text": "\u0007"},  # of which repairing leaves nothing
    ]
    lines = [json.dumps(row) for row in rows]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n")
    here("predict", "--workdir", work, "--input", file, "--output", tmp_path / "out.jsonl")
    assert re.search(r"2 predictions: .*\n4 of 6 rows .*, as .*row 2", capsys.readouterr().out)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    said = ("predicted_label", "probability", "predicted_probabilities")
    for row, given in zip(found, [*rows[:2], {}, *rows[2:]], strict=True):
        assert {name: row[name] for name in given} == given
    assert [row["input_row"] for row in found] == [1, 2, 3, 4, 5, 6]
    for number, reason in (
        (1, "in.jsonl: row 2: field 'text' is empty"),
        (2, "in.jsonl: row 3 is not valid JSON"),
        (4, "in.jsonl: row 5 has no field 'text'"),
        (5, "data.prepare: repair: nothing is left"),
    ):
        assert reason in found[number]["input_error"]
        assert not {*said} & found[number].keys()
    for row in (found[0], found[3]):
        assert {*said} <= row.keys() and "input_error" not in row
        assert row["predicted_probabilities"][row["predicted_label"]] == row["probability"]
    with pytest.raises(UserError, match="has no row that can be predicted: .*row 1 has no field"):
        predict(work, write_jsonl(tmp_path / "none.jsonl", rows[3:4]))


def test_what_rewrites_is_a_part_of_the_model(work, tmp_path):
    dirty = ["good \ufb01lm", "bad plot of ann@example.org", "the film"]
    clean = ["good film", "bad plot of [EMAIL]", "the film"]
    files = [write_jsonl(tmp_path / f"{i}.jsonl", [{"text": text} for text in texts])
             for i, texts in enumerate((dirty, clean))]  # fmt: skip
    found = predict(work, files[0]).rows
    assert [row["text"] for row in found] == dirty  # as they came
    wanted = predict(work, files[1], **{"data.prepare": ()}).rows
    assert [row["probabilities"] for row in found] == [row["probabilities"] for row in wanted]
    raw = predict(work, files[0], **{"data.prepare": ()}).rows
    assert [a["probabilities"] == b["probabilities"] for a, b in zip(raw, found, strict=True)] == [
        False,
        False,
        True,
    ]


def test_files_that_are_scored_are_cleaned_too(work, tmp_path, capsys):
    """Labels as well: those of the data are not those of the model."""
    labels = ["NEG ", "Positive", "?"]
    rows = [{"text": "good \ufb01lm", "label": label} for label in labels]
    file = write_jsonl(tmp_path / "test.jsonl", rows)
    scores = evaluate(work, "test", file)
    assert scores["examples"] == 2 and scores["per_class"]["negative"]["examples"] == 1
    assert "1 rows are left out, as by data.prepare: clean_labels: label '?'" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match="no row is left"):
        write_jsonl(file, rows[2:])
        evaluate(work, "test", file)


ROWS = [
    {"text": "=1+1", "n": 1, "p": {"good": 0.25, "bad": 0.75}, "tags": ["a", "b"], "ok": True},
    {"text": '"a",\tb\nc', "n": 2.5, "p": {"good": 0.5, "bad": 0.5}, "tags": [], "ok": False},
    {"text": "é好\u0001", "n": None, "error": "why"},
    {"text": "half \ud800", "n": float("nan")},
]


def test_tables_are_read_by_others(tmp_path):
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet", "xlsx"):
        write_rows(tmp_path / f"rows.{suffix}", ROWS)
    texts = [row["text"] for row in ROWS[:3]]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[:3] == ROWS[:3] == json.loads((tmp_path / "rows.json").read_text())[:3]
    assert lines[3] == {"text": "half \ud800", "n": None}
    names = ["text", "n", "p.good", "p.bad", "tags", "ok", "error"]
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"rows.{suffix}").open(newline="") as file:
            header, *cells = csv.reader(file, delimiter=mark)
        assert header == names and [row[0] for row in cells] == [*texts, "half \ufffd"]
        assert cells[0][1:] == ["1", "0.25", "0.75", '["a", "b"]', "true", ""]
        assert cells[3][1:] == [""] * 6
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert frame["text"].tolist() == [*texts, "half \ufffd"]
    assert frame["p"][0] == {"good": 0.25, "bad": 0.75} and frame["p"][2] is None
    assert frame["tags"][0].tolist() == ["a", "b"] and frame["ok"][1] is False
    np.testing.assert_array_equal(frame["n"], [1, 2.5, np.nan, np.nan])
    sheet = openpyxl.load_workbook(tmp_path / "rows.xlsx")["predictions"]
    header, *cells = sheet.iter_rows(values_only=True)
    assert list(header) == names
    assert cells[0] == ("=1+1", 1, 0.25, 0.75, '["a", "b"]', "true", None)
    assert sheet["A2"].data_type == "s"  # no formula
    assert cells[2][0] == "é好\ufffd"


def test_what_a_form_cannot_hold(work, tmp_path):
    mixed = [{"a": 1, "b": {}}, {"a": "x", "b": {"c": 1}}, {"a": 10**30}]
    write_rows(tmp_path / "mixed.parquet", mixed)
    assert pandas.read_parquet(tmp_path / "mixed.parquet")["a"].tolist() == ["1", "x", str(10**30)]
    with pytest.raises(UserError, match="row 1 has a text of 32,768 characters, and a cell 32,767"):
        write_rows(tmp_path / "long.xlsx", [{"text": "a" * 32_768}])
    assert not (tmp_path / "long.xlsx").exists()
    asked = ["predict", "--workdir", work, "--input", tmp_path / "absent.jsonl", "--output"]
    with pytest.raises(UserError, match=r"out.txt: the suffix must be one of .jsonl, .json, .csv"):
        here(*asked, tmp_path / "out.txt")  # before anything is read
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        here(*asked, (tmp_path / "out.csv").mkdir() or tmp_path / "out.csv")
    with pytest.raises(FileExistsError):  # a file is where a folder should be
        here(*asked, tmp_path / "mixed.parquet" / "out.csv")
