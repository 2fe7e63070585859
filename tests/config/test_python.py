"""Configurations from Python, of pages by name, and with the messages of the command line."""

import inspect

import numpy as np
import pytest

import ftjax.config
from ftjax.config import check, default_config, flat_keys, load_config
from ftjax.errors import UserError

PAGE = "from ftjax.config import default_config\ndef get_config(method='full'):\n"
PAGE += "    config = default_config(method)\n    config.train.steps = 7\n    return config\n"


@pytest.mark.parametrize(
    ("page", "given", "overrides"),
    [
        ("sst2", {"method": "lora"}, ["method.name=lora"]),
        ("sst2:lora", {"data": "rows", "model": "tiny"}, ["data.path=rows", "model.path=tiny"]),
        ("squad", {"train.steps": 5, "seed": 3}, ["train.steps=5", "seed=3"]),
        ("sst2", {"method": "qlora", "method.over.name": "dora"},
         ["method.name=qlora", "method.over.name=dora"]),
        ("trec", {"train": {"steps": 5, "epochs": 0}}, ["train.steps=5", "train.epochs=0"]),
    ],
)  # fmt: skip
def test_python_and_the_command_line_give_the_same(page, given, overrides):
    file = f"configs/{page.replace(':', '.py:')}" + (".py" if ":" not in page else "")
    expected = check(load_config(file, [f"--config.{item}" for item in overrides]))
    assert ftjax.config(page, **given) == expected


def test_pages_are_files_names_or_tasks(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PAGE)
    assert ftjax.config(file, method="lora").train.steps == 7
    assert ftjax.config(f"{file}:lora").method.name == "lora"
    assert ftjax.config() == ftjax.config(task="classification") == default_config()
    assert ftjax.config("regression:lora") == default_config("lora", "regression")
    assert ftjax.config("masked_lm").data.path  # a page's, not the task's default


@pytest.mark.parametrize(
    ("page", "given", "message"),
    [
        ("sst3", {}, "no page 'sst3' .did you mean 'sst2'"),
        ("missing.py", {}, "missing.py does not exist"),
        ("sst2", {"task": "regression"}, "a page has a task of its own"),
        ("sst2", {"method": "lra"}, "method.name='lra' is not known .did you mean 'lora'"),
        (None, {"task": "regresion"}, "task.name='regresion' is not known"),
        ("sst2", {"train.epoch": 3}, "unknown config key 'train.epoch'"),
        ("sst2", {"train": {"epoch": 3}}, "unknown config key 'train.epoch'"),
        ("sst2", {"train": 3}, "'train' is a section"),
        ("sst2", {"train.epochs": "many"}, "train.epochs='many' has the wrong type"),
        ("sst2", {"optimizer.name": "adam"}, "optimizer.name='adam' is not known .*'adamw'"),
        ("sst2", {"train.accumulation": 3}, "train.accumulation=3 does not divide"),
    ],
)
def test_what_is_wrong_is_said_as_on_the_command_line(page, given, message):
    with pytest.raises(UserError, match=message):
        ftjax.config(page, **given)


def test_sections_are_mappings_of_any_kind(tmp_path):
    given = ftjax.config(
        task={"name": "regression"},
        method={"name": "lora", "rank": np.int64(4)},
        model={"path": tmp_path, "dtype": "bfloat16"},
        data={"path": "rows.csv", "columns": {"text": "文本"}},
        train=ftjax.config(**{"train.steps": 7}).train,
        optimizer={"learning_rate": np.float32(0.5)},
    )
    keys = {"method.rank": 4, "model.dtype": "bfloat16", "data.columns.text": "文本"}
    keys |= {"train.steps": 7, "optimizer.learning_rate": 0.5}
    named = {"task": "regression", "method": "lora", "model": str(tmp_path), "data": "rows.csv"}
    assert given == ftjax.config(**named, **keys) and type(given.method.rank) is int
    assert ftjax.config("sst2", task={"pooling": "mean"}).task.pooling == "mean"


@pytest.mark.parametrize("page", [5, {"a": 1}, default_config(), ["sst2"]])
def test_what_is_no_page(page):
    with pytest.raises(UserError, match=r"^page=(?s:.*) must be a page's name or file"):
        ftjax.config(page)
    for task in (5, ["regression"]):
        with pytest.raises(UserError, match=r"^task.name="):
            ftjax.config(task=task)


def test_a_page_that_leaves_the_process_is_an_error_of_its_own(tmp_path):
    (tmp_path / "page.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="page.py, line 2: SystemExit: 3"):
        ftjax.config(tmp_path / "page.py")


def test_the_module_can_be_called_and_says_how():
    assert list(inspect.signature(ftjax.config).parameters)[:2] == ["page", "method"]
    assert ftjax.config.default_config is default_config


def test_pages_with_names_say_what_they_are():
    said = ftjax.config.pages()
    assert said["sst2"] == "SST-2: sentiment of sentences" and all(said.values())
    assert flat_keys(ftjax.config("compare_sst2"))["data.splits.train"] == 2000
