"""Measured figures of the experiments' files and of the tests, by method and by model."""

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDIES = {"SST-2": "compare_sst2", "MRPC": "compare_mrpc", "TREC": "compare_trec"}
PARITY = ROOT / "tests/PARITY.md"


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of a text's first table, by the heads of columns."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@cache
def cost() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Model → method → its row of METHOD_COST.md."""
    text = (ROOT / "experiments/METHOD_COST.md").read_text(encoding="utf-8")
    parts = re.split(r"(?m)^## (.+)$", text)
    return {
        name: {row["method"]: row for row in rows_of(part)}
        for name, part in zip(parts[1::2], parts[2::2], strict=True)
    }


@cache
def scores() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Task → method → its row of the study's report."""
    found = {}
    for task, folder in STUDIES.items():
        text = (ROOT / f"experiments/{folder}/report.md").read_text(encoding="utf-8")
        found[task] = {row["method"]: row for row in rows_of(text)}
    return found


def score_in(row: Mapping[str, str]) -> tuple[str, str]:
    """What is measured on test, and the value, of a row of a study's report."""
    name = next(name for name in row if name.startswith("test "))
    return name.removeprefix("test ").partition(" [")[0], row[name]


@cache
def parity() -> list[dict[str, str]]:
    """The rows of PARITY.md, a model and head each."""
    return rows_of(PARITY.read_text(encoding="utf-8"))


@cache
def in_peft() -> Mapping[str, str]:
    """Method → the configuration class of peft that the tests compare it with."""
    text = (ROOT / "tests/methods/peft_cases.py").read_text(encoding="utf-8")
    pairs = re.findall(r'\{"name": "(\w+)"[^}]*\},\s*peft\.(\w+)', text)
    each = r'\{"name": name,[^}]*\},\s*peft\.(\w+).*?for name in (\(.*?\))'
    several = re.findall(each, text, re.DOTALL)
    return {
        **dict(pairs),
        **{name: kind for kind, names in several for name in ast.literal_eval(names)},
    }


@cache
def in_adapterhub() -> frozenset[str]:
    """Folders that AdapterHub's library wrote and the tests compute with."""
    folders = (ROOT / "tests/fixtures/adapterhub").glob("*/*")
    return frozenset(folder.name for folder in folders)


@cache
def tested_in(method: str) -> tuple[str, ...]:
    """Files of tests/methods that name a method, but for those that go through all of them."""
    files = sorted((ROOT / "tests/methods").glob("test_*.py"))
    own = re.compile(rf'"{method}"')
    named = (file for file in files if own.search(file.read_text(encoding="utf-8")))
    return tuple(str(file.relative_to(ROOT)) for file in named if "invariants" not in file.name)
