"""Notebooks run, from the first cell to the last, at their tiny size: each in a kernel of its own,
which takes some seconds to import everything."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.compiler import FLAGS
from tests.covering import product

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
PATHS = re.compile(r"/(?:home|root|tmp|work|usr|Users)/")  # of the machine that ran it
NAMES = [file.stem for file in NOTEBOOKS]
FEW = ("data_frame_to_predictions", "first_run", "write_a_method")


@pytest.mark.parametrize("name", product(NAMES, FEW, each=False))
@pytest.mark.notebook
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    for variable, value in {"FTJAX_TINY": "1", "PYTHONPATH": str(ROOT), "XLA_FLAGS": FLAGS}.items():
        monkeypatch.setenv(variable, value)
    place = {"metadata": {"path": str(tmp_path)}}
    book = nbformat.read(ROOT / f"docs/notebooks/{name}.ipynb", as_version=4)
    NotebookClient(book, timeout=300, kernel_name="python3", resources=place).execute()


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_as_it_ran(file):
    """Its outputs are there, all of one run, small, and without a machine's paths."""
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert not PATHS.search(str(outputs))
    assert file.stat().st_size < 40_000
    assert "pip install" in code[0].source and "TINY" in code[1].source
