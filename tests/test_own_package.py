"""What another package brings is found, trained, kept and read again, with no edit here.

`tests/own-package` is installed as pip does it, into a folder of its own.
"""

import json
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from pathlib import Path

import pytest

import ftjax.config
from ftjax import methods, optimizers, tasks, testing
from ftjax.config import check, known_options, load_config
from ftjax.config.page import page_of
from ftjax.config.schema import schema
from ftjax.config.yaml import to_yaml
from ftjax.data import preparation
from ftjax.errors import UserError
from ftjax.workdir.folder import read_workdir
from tests.commands.test_pages import _in_this_process, said  # noqa: F401
from tests.conftest import here

SOURCE = Path(__file__).with_name("own-package")  # a name that is no module's
DOTTED = {
    "method": "own_package.scale:Scale",
    "task": "own_package.cautious:Cautious",
    "optimizer": "own_package.sign:Sign",
    "step": "own_package.whisper:Whisper",
    "family": "own_package.family",
}
NAMED = {"method": "scale", "task": "cautious", "optimizer": "sign", "step": "whisper"}
NAMED |= {"family": "own_bert"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    source, target = tmp_path_factory.mktemp("own") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    return target


@pytest.fixture
def installed(site, monkeypatch):
    """The package is on the path, and after the test as if it never was."""
    monkeypatch.syspath_prepend(site)
    invalidate_caches()
    yield site
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def overrides(names: dict[str, str]) -> list[str]:
    """Of a run in which everything is the package's."""
    step = {"step": names["step"], "loud": 1}
    return [
        f"--config.optimizer.name={names['optimizer']}",
        "--config.optimizer.strength=0.5",
        "--config.optimizer.learning_rate=1e-3",
        "--config.task.caution=0.2",
        "--config.method.start=0.01",
        f"--config.data.prepare=({step!r},)",
    ]


@pytest.mark.parametrize("names", [DOTTED, NAMED], ids=["dotted", "entry points"])
def test_a_run_by_all_of_the_package(names, installed, tiny, corpus, tmp_path, capsys):
    family = tmp_path / "model"
    shutil.copytree(tiny, family)
    config = json.loads((family / "config.json").read_text())
    (family / "config.json").write_text(json.dumps({**config, "model_type": names["family"]}))
    work = ["--workdir", tmp_path / "work"]
    train = ["train", *work, "--task", names["task"], "--method", names["method"]]
    train += ["--model", family, "--data", corpus, *overrides(names), "--config.train.steps=4"]
    train += [
        "--config.data.max_length=32",
        "--config.train.batch_size=16",
        "--config.train.checkpoint_every=2",
    ]
    here(*train)
    result = json.loads((tmp_path / "work/result.json").read_text())
    assert (result["method"], result["task"]) == (names["method"], names["task"])
    assert result["trainable_params"] == 4 * 32 + (32 * 2 + 2)  # scales, and the head
    report = json.loads((tmp_path / "work/data_report.json").read_text())
    assert any(row["step"] == names["step"] for row in report)
    saved = read_workdir(tmp_path / "work")
    assert saved.optimizer.strength == 0.5 and saved.task.caution == 0.2
    if names is NAMED:
        return  # what reads it goes by config.json, whichever name that has
    here("evaluate", *work, "--split", "test")
    here("predict", *work, "--input", corpus / "test.jsonl", "--output", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 40
    capsys.readouterr()
    here(*train, "--config.train.steps=6", "--extend")
    assert "resumed at step 4" in capsys.readouterr().out


def test_a_folder_whose_package_is_gone_says_so(site, tiny, tmp_path):
    for names in (DOTTED, NAMED):
        folder = tmp_path / names["method"]
        folder.mkdir()
        config = json.loads(json.dumps(ftjax.config("sst2", method="bitfit").to_dict()))
        config["method"] = {"name": names["method"], "start": 0.0}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="names what is not installed here.*method.name"):
            read_workdir(folder)


def test_lists_show_what_is_installed(installed, capsys):
    wanted = {
        "methods": "scale                 h ← h · (1 + s), s learned, after every",
        "tasks": "cautious              Classification whose logits are larger",
        "optimizers": "sign                  The sign of each gradient",
        "preparation": "whisper               Writes texts in small letters\n",
        "models": "own_bert              A family: BERT under another name",
    }
    for what, line in wanted.items():
        assert line in said(capsys, "list", what), what
    for name in (DOTTED["method"], "scale"):
        text = said(capsys, "list", "methods", name)
        assert "method.start = 0.0: a number\n    of s" in text
    text = said(capsys, "list", "optimizers", "sign")
    assert "optimizer.strength = 1.0: a number above 0" in text and "clip_norm" in text
    assert "loud = 0" in said(capsys, "list", "preparation", "whisper")


@pytest.mark.parametrize("names", [DOTTED, NAMED], ids=["dotted", "entry points"])
def test_its_keys_are_checked_explained_and_written(names, installed, tmp_path, capsys):
    spec = [f"--config.method.name={names['method']}", *overrides(names)]
    config = check(load_config("", spec, task=names["task"]))
    assert all(option.meaning for option in known_options(config).values())
    for ending, write in ((".yaml", to_yaml), (".py", page_of)):
        (tmp_path / f"page{ending}").write_text(write(config))
        assert check(load_config(str(tmp_path / f"page{ending}"))) == config
    for key, message in {
        "method.start='much'": "method.start='much' has the wrong type",
        "method.strat=1": "did you mean 'method.start'",
        "optimizer.strength=0": "optimizer.strength=0 must be positive",
        "task.caution=2": "task.caution=2 must be in",
        "data.prepare=({'step': 'own_package.whisper:Whisper', 'lout': 1},)": "did you mean 'loud'",
    }.items():
        with pytest.raises(UserError, match=message):
            check(load_config("", [*spec, f"--config.{key}"], task=names["task"]))
    asked = ["config", "--task", names["task"], "--method", names["method"]]
    assert "    of s\n" in said(capsys, *asked, "--explain", "method.start")
    other = load_config("", [*spec, "--config.optimizer.name=lion"], task=names["task"])
    assert "strength" not in check(other).optimizer


def test_the_schema_has_its_options(installed):
    text = json.dumps(schema())
    assert '"scale"' in text and '"caution"' in text and '"loud"' in text


def test_names_are_of_the_class_itself(installed):
    scale = methods.find("scale")
    assert scale is methods.find(DOTTED["method"])
    assert methods.name_of(scale()) == DOTTED["method"]
    assert tasks.find("cautious") is tasks.find(DOTTED["task"])
    assert optimizers.REGISTRY.find("sign") is optimizers.REGISTRY.find(DOTTED["optimizer"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.scale:Scale", "no module 'nowhere' is installed; install its package"),
        ("own_package.nothing:Scale", "no module 'own_package.nothing'"),
        ("own_package.scale:Scal", "own_package.scale has no 'Scal' .did you mean 'Scale'"),
        ("own_package.scale", "is no subclass of ftjax.methods.method.Method"),
        ("own_package.sign:Sign", "is no subclass of ftjax.methods.method.Method"),
        ("own_broken:Scale", "own_broken fails: ZeroDivisionError"),
        ("own_plain:Plain", "decorate Plain with @dataclass"),
        ("own_plain:Lacking", "its option 'size' has no default"),
        ("own_plain:Nameless", "an annotation of its fails: NameError: .*'Nothing'"),
        (":Scale", "is neither MODULE:CLASS nor MODULE"),
        ("..", "is neither MODULE:CLASS nor MODULE"),
        ("own_leaving:Scale", "own_leaving fails: SystemExit: 3"),
        ("scales", "is not known .did you mean 'scale'"),
    ],
)
def test_what_is_no_method_is_said(name, message, installed, tmp_path, monkeypatch):
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    (tmp_path / "own_leaving.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "own_plain.py").write_text(
        "from dataclasses import dataclass\nfrom ftjax.methods.method import Method\n"
        "class Plain(Method):\n    size: int = 3\n"
        "@dataclass(frozen=True)\nclass Lacking(Method):\n    size: int\n"
        "@dataclass(frozen=True)\nclass Nameless(Method):\n    size: 'Nothing' = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^method.name='{name}'.*{message}"):
        ftjax.config(method=name)


@pytest.mark.parametrize("name", ["lora", "scale"])
def test_an_entry_point_with_a_name_that_another_has(name, installed, tmp_path, monkeypatch):
    folder = tmp_path / "rival-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[ftjax.methods]\n{name} = rival:Method\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = methods.REGISTRY.entries()["rival:Method" if name == "lora" else "scale"]
    assert said.startswith("cannot be used") and f"rename '{name}'" in said and "rival" in said
    assert methods.find("lora").__module__ == "ftjax.methods.lora"
    if name == "scale":
        with pytest.raises(UserError, match="^method.name='scale' is an entry point.*rival"):
            methods.find("scale")
    with pytest.raises(UserError, match="^method.name='scales' is not known"):  # of no package
        methods.find("scales")


def test_built_in_names_are_found_without_looking_for_packages(monkeypatch):
    def never(*arguments):
        raise AssertionError("packages were looked for")

    monkeypatch.setattr("ftjax.registry.entry_points", never)
    ftjax.config("sst2", method="lora")
    assert preparation.find("repair")


def test_the_method_keeps_what_every_method_does(installed):
    trial = testing.Trial(DOTTED["method"])
    for invariant in testing.INVARIANTS:
        invariant(trial)


@pytest.mark.parametrize(
    ("name", "body", "broken"),
    [
        ("Shifted", "start: float = 0.1", "step_0_is_the_base_model"),
        ("Vacuous", "non_identity: ClassVar = {}", "another_init_is_not"),
        ("Wordless", "more: int = 3", "every_option_says_what_it_means"),
    ],
)
def test_a_method_that_does_not_keep_them_is_found_out(
    name, body, broken, installed, tmp_path, monkeypatch
):
    (tmp_path / "own_broken.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from own_package.scale import Scale\n\n"
        f"@dataclass(frozen=True)\nclass {name}(Scale):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_broken", raising=False)
    (invariant,) = (each for each in testing.INVARIANTS if each.__name__ == broken)
    with pytest.raises(AssertionError):
        invariant(testing.Trial(f"own_broken:{name}"))
    monkeypatch.delitem(sys.modules, "own_broken")
