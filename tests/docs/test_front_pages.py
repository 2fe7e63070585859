"""What stands at the front of the repository is so: links, commands, code, and one version."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import ftjax
from ftjax.changes import ALL
from ftjax.commands import COMMANDS
from ftjax.commands.command import load_page
from ftjax.commands.entry import parser
from tests.conftest import make_rows, write_tiny

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh.md")
PAGES = (*READMES, "CONTRIBUTING.md", "CHANGELOG.md")
FILES = {"README.md": "reviews.csv", "README.zh.md": "pinglun.csv"}  # that a reader would have
COLUMNS = {"README.md": "text,label", "README.zh.md": "评论,情感"}
MODELS = r'"(minilm|google-bert/bert-base-chinese)"'


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(name), re.DOTALL)


def shell(name: str) -> list[str]:
    """Lines that are typed into a shell."""
    text = "".join(blocks(name, "bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        place, _, anchor = link.partition("#")
        if "://" not in place:
            assert (ROOT / place).exists(), link
            assert not anchor or anchor in anchors(ROOT / place), link


@pytest.mark.parametrize("name", READMES)
def test_a_readme_is_read_at_once(name):
    assert len(text_of(name).splitlines()) < 120


def shape(name: str) -> list[str]:
    """What both languages have alike: headings, rows of tables, blocks and pictures."""
    kinds = ("#", "|", "```", "![")
    return [next(k for k in kinds if line.startswith(k)) for line in lines(name, kinds)]


def lines(name: str, starts: tuple[str, ...]) -> list[str]:
    outside = re.sub(r"(?m)(^```\w*\n)(.*?)(^```$)", r"\1\3", text_of(name), flags=re.DOTALL)
    return [line for line in outside.splitlines() if line.startswith(starts)]


def test_both_languages_have_the_same():
    assert shape("README.md") == shape("README.zh.md")
    english, chinese = ([words[0] for words in map(str.split, shell(name))] for name in READMES)
    assert english == chinese


@pytest.mark.parametrize("name", READMES)
def test_commands_are_understood(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = [line.removeprefix("srun ") for line in shell(name)]
    commands = [line for line in given if line.startswith("ftjax ")]
    assert len(commands) == 11
    for command in commands:
        argv = shlex.split(command, comments=True)[1:]
        if "--explain" in argv or "page.py" in argv:
            continue
        arguments, rest = parser().parse_known_args(argv)
        keys = COMMANDS[arguments.command].keys
        assert all(item.startswith("--config.") and keys for item in rest), command
        if keys == ALL:
            assert load_page(arguments, rest).task.name


@pytest.mark.parametrize("name", READMES)
def test_code_runs(name, tmp_path, monkeypatch, capsys):
    """With a tiny model, on a reader's own file."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{row['text']},{row['label']}" for row in make_rows(40, 0)]
    Path(FILES[name]).write_text("\n".join([COLUMNS[name], *rows]), "utf-8")
    (code,) = blocks(name, "python")
    model = write_tiny(tmp_path / "model", num_hidden_layers=2, max_position_embeddings=128)
    code, count = re.subn(MODELS, repr(str(model)), code)
    assert count == 1
    exec(compile(code, name, "exec"), {})
    assert "(2114, 26530)" in capsys.readouterr().out
    assert (tmp_path / "runs/adapter/adapter_config.json").exists()
    assert json.loads((tmp_path / "runs/lora/result.json").read_text())["method"] == "lora"


def test_the_version_is_in_one_place():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["version"] == ftjax.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # that it must have
    assert f"{ftjax.__version__}" in text_of("CHANGELOG.md")
