"""`ftjax config`: what is printed is a configuration, in each of its forms."""

import json

import pytest

from ftjax.config import check, load_config
from ftjax.config.saved import from_json, to_json
from ftjax.config.schema import schema
from tests.commands.test_pages import _in_this_process, said  # noqa: F401


@pytest.mark.parametrize("form", ["yaml", "py"])
def test_what_is_printed_is_a_page(form, tmp_path, capsys):
    asked = ["config", "--config", "sst2:lora", "--format", form, "--config.method.rank=4"]
    file = tmp_path / f"mine.{form}"
    file.write_text(said(capsys, *asked))
    config = check(load_config(str(file)))
    assert config == check(load_config("sst2:lora", ["--config.method.rank=4"]))


def test_what_is_printed_as_json_is_what_a_work_folder_has(capsys):
    config = from_json(said(capsys, "config", "--task", "regression", "--format=json"))
    assert to_json(config) == to_json(load_config("", task="regression"))
    assert said(capsys, "config").startswith("seed: 0\nmodel:\n")


def test_what_is_wrong_is_said(capsys):
    text = said(capsys, "config", "--config", "sst2", "--config.train.epoch=3", expect=2)
    assert "did you mean 'train.epochs'" in text
    assert "did you mean 'sst2'" in said(capsys, "config", "--config", "sst3", expect=2)


def test_explain_says_choices_and_defaults(capsys):
    assert said(capsys, "config", "--explain", "data.batching") == (
        "data.batching = bucket: one of bucket, pack, pad\n"
        "    by lengths, several examples a row, or all padded to the longest\n"
    )
    text = said(capsys, "config", "--explain", "optimizer.name", "method.name", "model.new")
    assert "one of adamw, sgd, adafactor, lion, or MODULE:CLASS of one's own" in text
    assert "a name of `ftjax list methods`" in text and "keys of its config.json" in text
    text = said(capsys, "config", "--config", "sst2", "--explain", "data.batching")
    assert text.startswith("data.batching = pack (default bucket): ")


def test_the_schema_is_written(tmp_path, capsys):
    said(capsys, "config", "--schema", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(json.dumps(schema()))


def test_pages_with_names_are_listed(capsys):
    text = said(capsys, "list", "pages")
    assert "sst2                  SST-2: sentiment of sentences\n" in text
    assert said(capsys, "list", "pages", "sst2") == "sst2: SST-2: sentiment of sentences\n"
    assert "did you mean 'sst2'" in said(capsys, "list", "pages", "sst3", expect=2)
