"""Training without a page of configuration, pages to begin from, and what is said of keys."""

import json
from argparse import ArgumentParser
from dataclasses import replace

import pytest

from ftjax import methods, tasks
from ftjax.commands import COMMANDS
from ftjax.commands.entry import main
from ftjax.config import default_config, flat_keys, known_options, load_config
from ftjax.config.page import page
from ftjax.data.preparation import STEPS, find
from ftjax.errors import UserError
from ftjax.options import options
from tests.conftest import here

NEEDED = {"train": ["--task", "classification"], "generate": ["--model", "x"]}  # of either two


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """The command does not start itself again."""
    monkeypatch.setenv("GLIBC_TUNABLES", "")


def said(capsys, *arguments, expect=0):
    """What a command says, which needs no JAX."""
    assert main([*map(str, arguments)]) == expect
    out = capsys.readouterr()
    return out.err if expect else out.out


def test_training_without_a_page(shallow, corpus, tmp_path, capsys):
    command = ["train", "--task", "classification", "--model", shallow, "--data", corpus]
    command += ["--method", "lora", "--config.train.steps=2", "--config.method.rank=2"]
    here(*command, "--workdir", tmp_path / "work", "--config.data.max_length=32")
    config = json.loads((tmp_path / "work/config.json").read_text())
    expected = default_config("lora")
    expected.model.path, expected.data.path, expected.train.steps = str(shallow), str(corpus), 2
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
    assert "train.batch_size = 16 (default 32): a whole number in [1, 1000000]" in page
    assert "seed = 0" in page and "method." not in page
    assert "did you mean 'optimizer'" in said(capsys, "train", "--explain", "optimiser", expect=2)
    assert "--explain is of train" in said(capsys, "list", "--explain", expect=2)


def test_commands_advise_only_what_they_take(capsys):
    """What takes no keys of a configuration does not say that it does."""
    for command in (["list", "methods"], ["init", "a.py"]):
        text = said(capsys, *command, "--nonsense", expect=2)
        assert f"ftjax {command[0]} --help" in text and "--config" not in text
    export = ["export", "--workdir", "w", "--format", "hf", "--output", "o"]
    for strange in ("x", "--epochs=3"):
        text = said(capsys, *export, strange, expect=2)
        assert "mesh.*" in text and "any configuration key" not in text and "train." not in text
    for mistaken in ("--batch-size 4", "--train.batch_size=4", "--config.train.batch_size 4"):
        train = ["train", "--workdir", "w", "--task", "classification", *mistaken.split()]
        assert "as --config.train.batch_size=4;" in said(capsys, *train, expect=2)


@pytest.mark.parametrize(
    ("command", "message", "keys"),
    [
        ("export", "set model.new_head=True, task.pooling=cls", ["model.new_head", "task.pooling"]),
        ("export", "mesh.data=3 and model.dtype do not go with train.jsonl, a/data.py", []),
        ("predict", "data.columns.text, task.num_beams or data.path; method.over.rank is fixed",
         ["method.over.rank"]),
        ("train", "set model.new_head=True", []),
        ("init", "method.name='lra', model.path='x' and data.path are its own arguments", []),
        ("generate", "model.path='x'; data.path", ["data.path"]),
    ],
)  # fmt: skip
def test_keys_that_a_command_does_not_take_are_said(command, message, keys, capsys, monkeypatch):
    def fail(arguments, overrides):
        raise UserError(message)

    given = ArgumentParser()
    COMMANDS[command].arguments(given)
    needed = [action for action in given._actions if action.required]
    line = [text for a in needed for text in (*a.option_strings, (a.choices or ["mine.py"])[0])]
    line += NEEDED.get(command, [])
    monkeypatch.setitem(COMMANDS, command, replace(COMMANDS[command], run=fail, starts_jax=False))
    noted = said(capsys, command, *line, expect=2).removeprefix(f"error: {message}").strip()
    assert noted.startswith(f"({' and '.join(keys)} " if keys else "") and bool(noted) == bool(keys)


def test_a_heading_says_what_rates_are_for(capsys):
    assert "22.6M (measured here), 110M, 7B (not)" in said(capsys, "list", "rates")
    assert "optimizer.name = lion" in said(capsys, "list", "optimizers", "lion")


def test_pages_that_are_none_are_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("x")
    for file, message in {"": "is a folder", "a.txt": "ends in .py", "b.py": "ftjax init"}.items():
        command = ["train", "--workdir", tmp_path / "w", "--config", f"{tmp_path}/{file}"]
        assert message in said(capsys, *command, expect=2)


def test_arguments_that_do_not_go_together_are_named(tmp_path, capsys):
    compare = ["compare", "--workdir", tmp_path / "w", "--task", "classification"]
    assert "--methods must name" in said(capsys, *compare, expect=2)
    assert "--seeds 0 must be positive" in said(capsys, *compare, "--seeds=0", expect=2)
    asked = ["compile", "--task=classification", "--topology=v5e:2x2", "--quick", "--price=1"]
    assert "--price" in said(capsys, *asked, expect=2)
