"""Training without a page of configuration, pages to begin from, and what is said of keys."""

import json

import pytest

from ftjax import methods, tasks
from ftjax.cli import main
from ftjax.config import default_config, flat_keys, known_options, load_config
from ftjax.config.page import page
from ftjax.data.preparation import STEPS, find
from ftjax.options import options
from tests.conftest import here


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """The command does not start itself again."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")


def said(capsys, *arguments, expect=0):
    """What a command says, which needs no JAX."""
    assert main([*map(str, arguments)]) == expect
    out = capsys.readouterr()
    return out.err if expect else out.out


def test_training_without_a_page(tiny, corpus, tmp_path, capsys):
    command = ["train", "--task", "classification", "--model", tiny, "--data", corpus]
    command += ["--method", "lora", "--config.train.steps=2", "--config.method.rank=2"]
    here(*command, "--workdir", tmp_path / "work", "--config.data.max_length=32")
    config = json.loads((tmp_path / "work/config.json").read_text())
    expected = default_config("lora")
    expected.model.path, expected.data.path, expected.train.steps = str(tiny), str(corpus), 2
    expected.method.rank, expected.data.max_length = 2, 32
    assert config == json.loads(json.dumps(expected.to_dict()))
    result = json.loads((tmp_path / "work/result.json").read_text())
    # LoRA's best of the comparison with MiniLM, which no model here is larger than
    assert config["optimizer"]["learning_rate"] == "auto" and result["learning_rate"] == 5e-3
    assert "optimizer.learning_rate=auto: 0.005, for lora" in capsys.readouterr().out


def test_a_page_or_a_task(tmp_path, capsys):
    for wrong in ([], ["--config", "a.py", "--task", "classification"]):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "--workdir", str(tmp_path / "w"), *wrong])
    assert "--config" in capsys.readouterr().err
    strange = ["train", "--task", "clasification", "--workdir", tmp_path / "w"]
    assert "did you mean 'classification'" in said(capsys, *strange, expect=2)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_page_to_begin_from_says_the_defaults(task, tmp_path):
    method = "full" if task == "preference" else "lora"
    file = tmp_path / "mine.py"
    file.write_text(page(str(file), task, method, 'a "b"', "d's.csv"))
    config = load_config(str(file))
    expected = flat_keys(default_config(method, task))
    assert flat_keys(config) == expected | {"model.path": 'a "b"', "data.path": "d's.csv"}
    text = file.read_text()
    for option in options(methods.find(method)):
        assert f"config.method.{option} = " in text
    other = flat_keys(load_config(f"{file}:ia3"))
    assert other["method.name"] == "ia3" and "method.rank" not in other


def test_init_writes_a_page_once(tmp_path, capsys):
    file = tmp_path / "mine.py"
    assert "ftjax train --config" in said(capsys, "init", file, "--task", "regression")
    assert load_config(str(file)).task.name == "regression"
    before = file.read_text()
    assert "is there already" in said(capsys, "init", file, expect=2)
    assert file.read_text() == before
    assert "ends in .py" in said(capsys, "init", tmp_path / "mine.txt", expect=2)
    assert "did you mean 'lora'" in said(
        capsys, "init", tmp_path / "b.py", "--method=lra", expect=2
    )
    assert not (tmp_path / "b.py").exists()


@pytest.mark.parametrize(("what", "registry"), [("methods", methods), ("tasks", tasks)])
def test_options_are_listed_with_defaults_ranges_and_meanings(what, registry, capsys):
    for name in registry.METHODS if what == "methods" else registry.TASKS:
        text = said(capsys, "list", what, name)
        for key, option in options(registry.find(name)).items():
            default = option.default if option.default not in ("",) else "''"
            assert f"{what[:-1]}.{key} = {default}: {option.allowed}\n    {option.meaning}" in text


def test_steps_and_regularizers_are_listed_with_options(capsys):
    text = said(capsys, "list", "preparation")
    for name in STEPS:
        assert f"\n{name} " in f"\n{text}"
        for key, option in options(find(name)).items():
            assert f"{key}={option.default!r}" in text
    text = said(capsys, "list", "preparation", "filter_length")
    assert "maximum = 0: a whole number of at least 0" in text and "unit = characters" in text
    assert "regularization.step_size = 0.1: a number above 0" in said(
        capsys, "list", "regularizers", "pgd"
    )
    assert "optimizer.momentum" not in said(capsys, "list", "optimizers", "adamw")
    assert "did you mean 'lora'" in said(capsys, "list", "methods", "lra", expect=2)


def test_explain_says_of_every_key_what_its_definition_does(config_file, capsys):
    every = said(capsys, "train", "--explain", "--method", "lora")
    for key, option in known_options(default_config("lora")).items():
        assert f"{key} = " in every and option.meaning in every and option.allowed in every
    one = said(capsys, "train", "--explain", "optimizer.warmup")
    assert (
        one
        == said(capsys, "compile", "--explain=optimizer.warmup")
        == ("optimizer.warmup = 0.06: a number of at least 0\n    steps, or a share below 1\n")
    )
    page = said(capsys, "compile", "--config", f"{config_file}:lora", "--explain", "train", "seed")
    assert "train.batch_size = 16 (default 32): a whole number of at least 1" in page
    assert "seed = 0" in page and "method." not in page
    assert "did you mean 'optimizer'" in said(capsys, "train", "--explain", "optimiser", expect=2)
    assert "--explain is of train" in said(capsys, "list", "--explain", expect=2)


def test_commands_advise_only_what_they_take(capsys):
    """What takes no keys of a configuration does not say that it does."""
    for command in (["list", "methods"], ["init", "a.py"]):
        text = said(capsys, *command, "--nonsense", expect=2)
        assert f"ftjax {command[0]} --help" in text and "--config" not in text
    text = said(
        capsys, "export", "--workdir", "w", "--format", "hf", "--output", "o", "x", expect=2
    )
    assert "mesh.*" in text and "any configuration key" not in text
