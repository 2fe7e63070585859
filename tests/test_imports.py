"""Rooms import those before them, never those after; no file imports itself by way of others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = """
errors process options patterns paths partition loss dropout leaf int8_product
quantization quantized_product_gpu
remote cache files html bars registry names base_model
parallel
quantized_product_tpu quantized_product
optimizers
methods
tuned
formats
models
build pretrained
data
tasks
regularization
config changes
generation
training
workdir
setup
evaluation
forecast
runs
model
comparison
adapters
testing
commands
__main__
"""
RANK = {name: rank for rank, line in enumerate(ROOMS.strip().splitlines()) for name in line.split()}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module → those of the package that it imports, wherever in the file."""
    files = {module_of(file): file for file in (ROOT / "ftjax").rglob("*.py")}
    found = {}
    for module, file in files.items():
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in files else node.module for name in inside}
        found[module] = {name for name in names if name.split(".")[0] == "ftjax"} - {module}
    return found


def test_rooms_import_those_before_them():
    room = lambda module: module.split(".")[1]  # noqa: E731
    edges = [
        (module, name)
        for module, names in imports().items()
        for name in names - {"ftjax"}
        if module != "ftjax" and room(module) != room(name)
    ]
    assert {room(module) for edge in edges for module in edge} <= RANK.keys()
    wrong = [f"{a} imports {b}" for a, b in edges if RANK[room(b)] > RANK[room(a)]]
    assert not wrong, wrong
    assert len(edges) > 800  # they were found


def test_no_file_imports_itself_by_way_of_others():
    files = imports()
    # A package's registry names its modules and imports them when asked for, as they import it.
    order = TopologicalSorter(
        {a: {b for b in bs if not a.startswith(f"{b}.")} for a, bs in files.items()}
    )
    assert [*order.static_order()]
