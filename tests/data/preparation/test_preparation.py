"""Steps as the configuration names them, in order, and what a run and a stream take of them."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ftjax import tasks
from ftjax.config import (
    check,
    default_config,
    load_config,
    override,
    parse_override,
)
from ftjax.config.saved import from_json, to_json
from ftjax.data.preparation import STEPS, find, steps
from ftjax.data.preparation.cached import prepare_once
from ftjax.data.preparation.pipeline import prepare, steps_of
from ftjax.data.sources import open_parts
from ftjax.data.stream_source import START, Cursor, Source
from ftjax.errors import UserError
from ftjax.setup.splits import open_stream
from ftjax.tasks.classification import Classification
from tests.conftest import here, write_jsonl
from tests.data.preparation.rows import applied, split


def settings(*prepared, **more):
    return default_config().data.to_dict() | {"prepare": prepared, **more}


def test_entries_of_files_and_of_the_command_line(tmp_path):
    config = default_config()
    entry = {"step": "filter_length", "minimum": 3, "splits": ["train"]}
    for text in ("repair,mask_personal", json.dumps(["repair", entry]), json.dumps(entry)):
        override(config, *parse_override(f"--config.data.prepare={text}"))
        found = steps(check(from_json(to_json(config))).data.prepare)
        assert [name for name, _ in found] == [
            name for name in ("repair", "mask_personal", "filter_length") if name in text
        ]
    assert found[0][1].minimum == 3 and found[0][1].splits == ("train",)
    file = tmp_path / "config.py"
    file.write_text(
        "from ftjax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.data.prepare = ('repair', {entry!r})\n"
        "    return config\n"
    )
    (_, repair), (_, length) = steps(check(load_config(str(file))).data.prepare)
    assert repair == find("repair")() and length == found[0][1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("drop_duplicate", "data.prepare: 'drop_duplicate' is not known.*drop_duplicates"),
        ({"step": "repair", "from": "NFC"}, "repair: 'from' is not an option.*form"),
        ({"step": "filter_length", "minimum": "3"}, "minimum='3' has the wrong type"),
        ({"step": "drop_near_duplicates", "threshold": 1.5}, r"threshold=1.5 must be in \(0, 1\]"),
        ({"step": "random_swap", "alpha": 0.0}, r"random_swap: alpha=0.0 must be in"),
        (
            {"step": "repair", "splits": ["dev"]},
            r"repair: splits=.*dev.* must be one of train, validation, test",
        ),
        ({"step": "filter_language", "languages": ["english"]}, "'english' is not known"),
        ({"step": "filter_words", "file": "absent.txt"}, "absent.txt cannot be read"),
        ({"step": "mask_personal", "regions": ["England"]}, "'England' is no country's code"),
        ({"name": "repair"}, "neither a step's name nor a mapping"),
    ],
)
def test_bad_entries_are_named(entry, message):
    config = default_config()
    config.data.prepare = (entry,)
    with pytest.raises(UserError, match=message):
        check(config)


def test_steps_are_listed(capsys):
    here("list", "preparation")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(STEPS)


def test_rows_that_a_step_cannot_take():
    answers = {"context": "a b c", "question": "what ?", "answers": {"text": ["b"], "start": [2]}}
    words = {"tokens": ["a", "b"], "tags": ["O", "B"]}
    for entry in ("repair", "mask_personal", "random_swap"):
        with pytest.raises(UserError, match="'answers' point into 'context'"):
            applied(entry, train=[answers])
        with pytest.raises(UserError, match=r"no text that can be rewritten.*tokens"):
            applied(entry, train=[words])
    with pytest.raises(UserError, match="no label of one name"):
        applied("oversample", train=["a", "b"])
    with pytest.raises(UserError, match="no 'txt'.*'text'"):
        applied({"step": "repair", "columns": ["txt"]}, train=["a"])
    found, _ = applied({"step": "random_swap", "columns": ["question"]}, train=[
        answers | {"question": "who is it ?"}
    ])  # fmt: skip
    assert found["train"].column("context") == ["a b c"] * 2
    with pytest.raises(UserError, match="filter_length leaves train without rows .too short"):
        prepare(
            {"train": split(["a"])}, settings({"step": "filter_length", "minimum": 2}, splits={})
        )


def test_rows_of_any_columns_are_filtered():
    rows = {
        "tokens": [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["a"], "tags": ["O"]}],
        "messages": [
            {"messages": [{"role": "user", "content": text}]} for text in ("hello you", "hello")
        ],
        "pairs": [{"source": "a b", "target": "c d"}, {"source": "a b", "target": "c"}],
    }
    for several in rows.values():
        entry = {"step": "filter_length", "unit": "words", "minimum": 2}
        found, counts = applied(entry, train=several)
        assert found["train"].rows.to_list() == [{**several[0], "row": 1}]
        assert counts["train"]["examples"][0]["row"] == 2
    chat = [{"messages": [{"role": "user", "content": "write to me@example.org"}]}]
    found, counts = applied("mask_personal", train=chat)
    assert found["train"].column("messages")[0][0] == {
        "role": "user",
        "content": "write to [EMAIL]",
    }
    assert counts["train"]["changed"] == 1


def test_held_out_rows_are_drawn_before_training_rows_are_added():
    rows = [{"text": f"word{i} other{i} third{i}", "label": "ab"[i % 3 == 0]} for i in range(60)]
    drawn = {"train": 0.0, "validation": 0.2, "test": 0.1}
    asked = settings("repair", {"step": "random_swap", "copies": 3}, "oversample", splits=drawn)
    found, report = prepare({"train": split(rows)}, asked)
    numbers = {name: set(part.column("row")) for name, part in found.items()}
    assert not numbers["train"] & (numbers["validation"] | numbers["test"])
    assert len(found["validation"].rows) == 12 and len(found["test"].rows) == 6
    assert [row["step"] for row in report] == [
        "source", "repair", *["split"] * 3, "random_swap", "oversample", *["prepared"] * 3
    ]  # fmt: skip
    strict, _ = prepare({"train": split(rows)}, settings(splits=drawn, stratify=True))
    assert Counter(strict["validation"].column("label")) == {"a": 8, "b": 4}
    assert Counter(strict["test"].column("label")) == {"a": 4, "b": 2}
    plain, _ = prepare({"train": split(rows)}, settings(splits=drawn))
    assert plain["test"].column("text") == found["test"].column("text")
    again, _ = prepare({"train": split(rows)}, asked)
    assert again["train"].rows.to_list() == found["train"].rows.to_list()


def test_evaluation_leaves_out_what_only_training_rows_need():
    rows = [{"text": f"word{i} other{i} third{i}", "label": "ab"[i % 2]} for i in range(60)]
    added = {"step": "back_translation", "there": "zh", "back": "en"}
    short = {"step": "filter_length", "minimum": 3, "unit": "words"}
    drawn = {"train": 0.0, "validation": 0.0, "test": 0.2}
    asked = settings("repair", added, short, "drop_near_duplicates", splits=drawn)
    used = []

    def generate(model, given, _):
        used.append(model)
        return [f"{text} {model}" for text in given]

    models = SimpleNamespace(generate=generate)
    ran, _ = prepare({"train": split(rows)}, asked, models)
    assert used == ["zh", "en"]
    found, report = prepare({"train": split(rows)}, asked, models, held_out=True)
    assert used == ["zh", "en"]  # no more
    assert found["test"].rows.to_list() == ran["test"].rows.to_list()
    assert "back_translation" not in {row["step"] for row in report}


def test_streams_take_steps_by_row_and_refuse_others(config_file, corpus, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x" * n, "label": "l"} for n in range(1, 9)])
    opened = open_parts(settings(path=str(path)))[0][1]["train"]
    schema = Classification.schema
    entries = [
        {"step": "filter_length", "maximum": 5},
        {"step": "filter_length", "minimum": 5, "splits": ["test"]},
        {"step": "clean_labels", "case": "upper"},
    ]
    source = Cursor(Source(opened, schema, steps=steps_of(entries, schema)))
    rows, position = source.take(START, 12)
    assert [len(row["text"]) for row in rows] == [1, 2, 3, 4, 5] * 2 + [1, 2]
    assert {row["label"] for row in rows} == {"L"}
    assert position.place.dropped == {"filter_length": 3}
    entries = [{"step": "filter_length", "minimum": 50}]
    none = Cursor(Source(opened, schema, steps=steps_of(entries, schema)))
    with pytest.raises(UserError, match="no rows that data.prepare leaves"):
        none.take(START, 1)
    with pytest.raises(UserError, match="data.prepare: filter_length: columns: rows have no 'txt'"):
        steps_of([{"step": "filter_length", "columns": ["txt"]}], schema)

    config = load_config(str(config_file))
    config.data.update({"streaming": True, "window": 64})
    config.train.steps = 10
    with pytest.raises(UserError, match="drop_duplicates looks at all rows"):
        check(config)
    config.data.group = "text"
    with pytest.raises(UserError, match="data.group='text': no splits are drawn from a stream"):
        check(config)
    config.data.group = ""
    config.data.prepare = ({"step": "filter_length", "unit": "words", "minimum": 6},)
    task = tasks.create(check(config).task)
    windows = open_stream(config, task, ("negative", "positive"), Path(config.model.path))
    rows = [json.loads(line)["text"] for line in (corpus / "train.jsonl").open()]
    long = [len(text.split()) + 2 for text in rows if len(text.split()) > 5]  # [CLS] and [SEP]
    found = np.concatenate([windows[i].lengths for i in range(3)])
    np.testing.assert_array_equal(found, (long * 2)[: 3 * 64])
    windows.last = 2
    counts = {"rows_skipped": 0, "rows_dropped": {"filter_length": len(rows) - len(long)}}
    assert windows.counts == counts and len(rows) - len(long) > 5


def test_what_was_prepared_is_not_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FTJAX_CACHE", str(tmp_path / "cache"))
    words = tmp_path / "words.txt"
    words.write_text("word3\n")
    rows = [{"text": f"word{i % 30} and more", "label": "ab"[i % 2]} for i in range(60)]
    steps_of_run = ("drop_duplicates", {"step": "filter_words", "file": str(words)}, "undersample")
    asked = settings(*steps_of_run, splits={"train": 0.0, "validation": 0.2, "test": 0.0})
    first, report = prepare_once({"train": split(rows)}, asked, None)
    again = "ftjax.data.preparation.cached.prepare"
    with monkeypatch.context() as patch:
        patch.setattr(again, lambda *arguments: 1 / 0)
        found, said = prepare_once({"train": split(rows)}, asked, None)
        assert said == json.loads(json.dumps(report))
        for name in ("train", "validation"):
            assert found[name].rows.to_list() == first[name].rows.to_list()
            assert found[name].rows.features == first[name].rows.features
            assert found[name].texts == ("text",)
        other = {**asked, "split_seed": 1}
        for changed in (rows[:-1], [*rows[:-1], {**rows[-1], "label": "a"}]):
            with pytest.raises(ZeroDivisionError):
                prepare_once({"train": split(changed)}, asked, None)
        with pytest.raises(ZeroDivisionError):
            prepare_once({"train": split(rows)}, other, None)
        with pytest.raises(ZeroDivisionError):
            prepare_once({"train": split(rows)}, asked, None, held_out=True)
        words.write_text("word4\n")
        with pytest.raises(ZeroDivisionError):
            prepare_once({"train": split(rows)}, asked, None)
    words.write_text("word3\n")
    for file in (tmp_path / "cache" / "splits").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    found, _ = prepare_once({"train": split(rows)}, asked, None)
    assert found["train"].rows.to_list() == first["train"].rows.to_list()
