"""Pages of YAML: what is written is read again, and what is wrong is named."""

import pytest

import ftjax.config
from ftjax.config import check, default_config, flat_keys, load_config
from ftjax.config.page import page_of
from ftjax.config.yaml import to_yaml
from ftjax.errors import UserError

SPECS = [*ftjax.config.pages(), "sst2:qlora", "sst2:combination", "trec:lora", "squad:mam"]


def read(tmp_path, text, *overrides, ending=".yaml"):
    file = tmp_path / f"page{ending}"
    file.write_text(text, encoding="utf-8")
    return check(load_config(str(file), overrides))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("ending", "write"), [(".yaml", to_yaml), (".py", page_of)])
def test_what_is_written_is_read_again(spec, ending, write, tmp_path):
    config = check(load_config(spec))
    again = read(tmp_path, write(config), ending=ending)
    assert flat_keys(again) == flat_keys(config) and again.model.new == config.model.new


def test_texts_that_look_like_others_stay_texts(tmp_path):
    texts = ("no", "1e-3", "007", "null", "~", "true", "2024-01-01", "", "é: x", "0x10", "1_000")
    config = default_config("prompting")
    config.method.words = texts
    assert read(tmp_path, to_yaml(config)).method.words == texts


def test_a_page_of_yaml_is_of_the_same_keys(tmp_path):
    text = """
task: {name: regression}
method: {name: lora, rank: 4, targets: [query, key], rank_pattern: {query: 2}}
optimizer:
  learning_rate: 1e-3
data:
  path: rows
  columns: {text: sentence}
train:
"""
    config = read(tmp_path, text)
    assert config.task.name == "regression" and config.method.targets == ("query", "key")
    assert config.method.rank_pattern == (("query", 2),) and config.data.columns.text == "sentence"
    assert config.optimizer.learning_rate == 1e-3
    assert read(tmp_path, text, "--config.method.rank=2").method.rank == 2
    other = read(tmp_path, text, "--config.method.name=ia3")  # LoRA's options are LoRA's
    assert other.method.name == "ia3" and other.optimizer.learning_rate == 1e-3


def test_a_page_of_yaml_may_begin_from_another(tmp_path):
    config = read(tmp_path, "page: sst2\nmethod: {name: lora, rank: 4}\n")
    expected = load_config("sst2:lora", ["--config.method.rank=4"])
    assert config == expected and config.optimizer.learning_rate == 5e-3
    (tmp_path / "first.yaml").write_text("page: sst2:lora\ntrain: {steps: 9}\n")
    assert read(tmp_path, "page: first.yaml\nseed: 4\n").train.steps == 9
    assert read(tmp_path, "page: first.yaml:ia3\n").method.name == "ia3"


def test_anchors_merges_and_sections_without_keys(tmp_path):
    text = """
data:
  splits: &few {train: 200, validation: 0.1}
  columns:
train: &short {epochs: 1, batch_size: 8}
model:
page:
optimizer: {learning_rate: 1E-3, warmup: 1e1}
"""
    config = read(tmp_path, text)
    assert (config.data.splits.train, config.train.batch_size) == (200, 8)
    assert (config.optimizer.learning_rate, config.optimizer.warmup) == (1e-3, 10)
    merged = "model: {new: {a: &base {x: 1, y: 2}, b: {<<: *base, y: 3}}}"
    assert read(tmp_path, merged).model.new.b.to_dict() == {"x": 1, "y": 3}


def test_ends_of_lines_marks_and_documents(tmp_path):
    for text in ("\ufeffseed: 7\n", "seed: 7\r\ntrain:\r\n  epochs: 1\r\n", "---\nseed: 7\n...\n"):
        assert read(tmp_path, text).seed == 7
    assert read(tmp_path, "") == read(tmp_path, "# nothing\n") == default_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n\tepochs: 3", "line 2: .*by spaces, not tabs"),
        ('data: {path: "C:\\data"}', "line 1: .*in single quotes"),
        ("train.epochs: 3\ntrain: {epochs: 4}", "train.epochs: write it in its section, as train"),
        ("data: {splits.test: 3}", "data.splits.test: write it in its section, as splits"),
        ("model: {new: &a {b: *a}}", "line 1: found unconstructable recursive node"),
        ("optimizer: {learning_rate: .inf}", "learning_rate='.inf' must be auto or a number"),
        ("data: {stratify: yes}", "data.stratify='yes' has the wrong type: True or False expected"),
        ("data: {path: }", "data.path=None has the wrong type: a text expected"),
        ("task: {labels: }", "task.labels=None has the wrong type"),
        ("page: 5", "page=5 must be a page's name or file"),
        ("seed: 1\n---\nseed: 2", "line 2: but found another document"),
        ("? [a]\n: 1", "line 1: found unhashable key: a key is a text"),
        ("train: {epoch: 3}", "unknown config key 'train.epoch' .did you mean"),
        ("trian: {epochs: 3}", "unknown config key 'trian'"),
        ("train: {epochs: many}", "train.epochs='many' has the wrong type"),
        ("train: 5", "'train' is a section; its keys are"),
        ("method: {name: lra}", "method.name='lra' is not known .did you mean 'lora'"),
        ("method: {name: [lora]}", "method.name"),
        ("task: {name: 5}", "task.name"),
        ("page: sst2\ntask: {name: regression}", "the configuration is of classification"),
        ("page: sst3", "no page 'sst3'"),
        ("page: page.yaml", "it begins from itself"),
        ("seed: 1\ntrain: {epochs: 1, epochs: 2}", "line 2: 'epochs' is said twice"),
        ("seed: 1\ntrain: [", "line 2|line 3"),
        ("- 1", "is a mapping of sections"),
        ("seed: !!python/object:os.system x", "line 1: could not determine a constructor"),
        ("seed: \0", "is no YAML"),
        ("7: 8", "unknown config key '7'"),
    ],
)
def test_what_is_wrong_names_the_file_and_the_key_or_line(text, message, tmp_path):
    with pytest.raises(UserError, match=f"page.yaml.*?({message})"):
        read(tmp_path, text)


def test_a_page_that_is_not_utf_8(tmp_path):
    file = tmp_path / "page.yaml"
    file.write_bytes("data: {path: café}".encode("latin-1"))
    with pytest.raises(UserError, match="page.yaml is not UTF-8 .*save it as UTF-8"):
        load_config(str(file))
