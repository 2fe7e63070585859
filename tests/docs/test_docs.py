"""What the documentation says is so: its code runs, its commands parse, its names and links exist."""

import ast
import importlib
import json
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

import ftjax
from ftjax import methods, tasks
from ftjax.changes import ALL
from ftjax.commands import COMMANDS
from ftjax.commands.command import load_page
from ftjax.commands.entry import parser
from ftjax.commands.explain import print_explanations
from ftjax.data.preparation import STEPS
from ftjax.models import FAMILIES
from scripts.docs import counts, figures
from scripts.docs.pages import generated
from scripts.docs.rows import EXAMPLES
from tests.compiler import FLAGS
from tests.covering import product

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = {str(file.relative_to(DOCS)): file.read_text("utf-8") for file in DOCS.rglob("*.md")}
FILES = {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.*")}
DRAWN = {"assets/eight_methods.png", "assets/sst2.png"}  # see scripts/docs/hook.py
OWN = "adding/own-package.md"  # of a package that is not there
GROUPS = ("ftjax.families", "ftjax.optimizers", "ftjax.preparation")  # of entry points
FENCE = re.compile(r"(?m)^( *)(<!-- run -->\n *)?```(\w+)[^\n]*\n(.*?)^ *```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
RUN = [name for name, text in WRITTEN.items() if re.search(r"(?m)^ *<!-- run -->$", text)]
COUNTED = [
    (name, model)
    for name, found in json.loads(counts.FILE.read_text("utf-8")).items()
    for model in found
]
NAMES = ("lora", "houlsby", "prefix_tuning", "ia3", "top_k", "qlora")
FEW = [*zip(NAMES, [*counts.MODELS] * 2, strict=True)]


@cache
def pages() -> dict[str, str]:
    """Every page, written or made."""
    return {**WRITTEN, **dict(generated())}


def blocks(text: str, language: str, marked: bool = False) -> list[str]:
    return [
        textwrap.dedent(code)
        for _, mark, kind, code in FENCE.findall(text)
        if kind == language and (mark or not marked)
    ]


def prose(text: str) -> str:
    """A page without its blocks."""
    return FENCE.sub("", text)


def test_everything_registered_has_a_page():
    found = pages()
    assert {f"methods/{name}.md" for name in methods.METHODS} <= found.keys()
    assert {f"tasks/{name}.md" for name in tasks.TASKS} <= found.keys()
    assert {f"models/{name}.md" for name in FAMILIES} <= found.keys()
    assert all(f"## {name}\n" in found["reference/preparation.md"] for name in STEPS)
    assert all(f"## ftjax {name}\n" in found["reference/commands.md"] for name in COMMANDS)
    names = [name for name in ftjax.__all__ if name != "__version__"]
    assert all(f"## ftjax.{name}\n" in found["reference/python.md"] for name in names)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_methods_page_has_what_is_known_of_it(name):
    page, (module, *_) = pages()[f"methods/{name}.md"], methods.METHODS[name]
    assert (ROOT / f"ftjax/methods/{module}.py").read_text("utf-8").rstrip() in page
    for model, found in json.loads(counts.FILE.read_text("utf-8"))[name].items():
        assert f"`{model}`" in page and (isinstance(found, str) or f"{found[0]:,}" in page)
    for row in [rows[name] for rows in figures.cost().values() if name in rows]:
        assert f"| {row['FLOPs']} | {row['temporaries']} |" in page
    for row in [rows[name] for rows in figures.scores().values() if name in rows]:
        assert figures.score_in(row)[1] in page
    assert ("Not measured" in page) == (name not in figures.cost()["bert-base"])
    assert ("Not in the studies" in page) == (
        not any(name in rows for rows in figures.scores().values())
    )
    assert all(f"`method.{option}`" in page for option in methods.hyperparameters(name))


def test_counts_are_those_of_the_table_of_costs():
    known = json.loads(counts.FILE.read_text("utf-8"))
    assert [*known] == [*methods.METHODS]
    for model, key in (("bert-base", "bert-base"), ("llama-3.2-1b", "llama-1b")):
        for name, row in figures.cost()[key].items():
            assert f"{known[name][model][0]:,}" == row["trainable"], name


@pytest.mark.parametrize(
    "name, model",
    product(COUNTED, FEW),
)
def test_counts_are_the_partitions(name, model):
    found = counts.count(name, model)
    assert found == json.loads(counts.FILE.read_text("utf-8"))[name][model]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_rows_of_a_tasks_page_are_such(task):
    schema = tasks.find(task).schema
    for row in EXAMPLES[task]:
        assert row.keys() <= schema.fields.keys()
        needed = {k for k, each in schema.fields.items() if not (each.optional or each.sparse)}
        assert needed <= row.keys()
        schema.check({key: schema.fields[key].read(value) for key, value in row.items()})


def test_links_lead_somewhere():
    found = pages().keys() | FILES | DRAWN
    for name, text in pages().items():
        for link in LINK.findall(prose(text)):
            if "://" not in link:
                place = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(link)))
                assert place in found, f"{name}: {link}"


def test_names_of_the_package_exist():
    for name, text in pages().items():
        for dotted in set(re.findall(r"(?<![\w/.-])ftjax(?:\.[A-Za-z_]\w*)+", text)):
            if dotted not in GROUPS:
                assert resolves(dotted), f"{name}: {dotted}"


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    first, *rest = dotted.split(".")
    found = importlib.import_module(first)
    for number, part in enumerate(rest):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join([first, *rest[: number + 1]]))
            except ImportError:
                return False
    return True


def test_files_that_are_named_exist():
    named = re.compile(r"`((?:ftjax|tests|experiments|scripts|configs)/[\w/.-]+)`")
    for name, text in WRITTEN.items():
        for file in named.findall(text):
            example = file in ("ftjax/methods/scale.py", "ftjax/models/stablelm.py")
            assert example or (ROOT / file).exists(), f"{name}: {file}"


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `ftjax` that a shell is told to run."""
    found = []
    for name, text in pages().items():
        for block in blocks(text, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.removeprefix("srun ")
                found += [(name, command)] if command.startswith("ftjax ") else []
    return found


def test_commands_are_understood(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(commands()) > 100
    for name, line in commands():
        argv = shlex.split(line, comments=True)[1:]
        if "--explain" in argv:
            assert print_explanations(argv) == 0
            continue
        try:
            arguments, rest = parser().parse_known_args(argv)
        except SystemExit:
            pytest.fail(f"{name}: {line}\n{capsys.readouterr().err}")
        keys = COMMANDS[arguments.command].keys
        assert all(item.startswith("--config.") and keys for item in rest), f"{name}: {line}"
        if keys == ALL and name != OWN:
            assert load_page(arguments, rest).task.name


@pytest.mark.parametrize("name", RUN)
def test_marked_blocks_run(name, tmp_path):
    """A page's blocks are a script, here of one epoch on one device."""
    shutil.copytree(DOCS / "data", tmp_path, dirs_exist_ok=True)
    script = "\n".join(blocks(WRITTEN[name], "python", marked=True))
    (tmp_path / "page.py").write_text(script.replace('epochs": 10', 'epochs": 1'), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}
    subprocess.run([sys.executable, "page.py"], cwd=tmp_path, env=environment, check=True)


def test_blocks_of_python_are_python():
    for name, text in WRITTEN.items():
        for block in blocks(text, "python"):
            code = "{" + block + "}" if re.match(r'\s*"\w+": \(', block) else block
            if "--8<--" not in block and "init(model under" not in block:
                ast.parse(textwrap.dedent(code)), name


@pytest.mark.parametrize("name", ["method", "task", "step", "family"])
def test_examples_of_new_entries_can_be_made(name):
    first = blocks(WRITTEN[f"adding/{name}.md"], "python")[0]
    entries: dict = {"__name__": "example"}
    exec(compile(first, name, "exec"), entries)
    own = {"method": "Scale", "task": "Cautious", "step": "Whisper"}.get(name)
    assert entries[own]() if own else entries["KEYS"]["stablelm"].read


@cache
def spoken() -> list[str]:
    """Every piece of text in the package's code."""
    found = []
    for file in (ROOT / "ftjax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages_are_those_of_the_code():
    """Of each message the longest piece without names of one's own."""
    said = 0
    for line in WRITTEN["troubleshooting.md"].splitlines():
        cell = re.match(r"\| `(.+?)` \|", line)
        if cell:
            names = r"'[^']*'|\([^)]*\)|\[[^]]*\]|\.\.\.|\b[A-Z]\b|\b[A-Z_]{2,}\b|'--\S+|=\w+|\b\d+\b|: "
            piece = max(re.split(names, cell[1]), key=len).strip()
            assert any(piece in text for text in spoken()), (cell[1], piece)
            said += 1
    assert said >= 40
