"""Changes the code in small ways, one at a time, and counts the changes that tests notice.

    python scripts/mutants.py [--count 300] [--seed 0] [--jobs 2] [--only PART] [--output FILE]
    python scripts/mutants.py --again FILE    # those that survived in an earlier output

An operator, a comparison or a constant is changed in the files of `TARGETS`, and their tests run
until one fails, those first that run the changed line. A change that no test notices is printed
with its place: either a test is missing, or the change makes no difference.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
SECONDS = 600  # after which a run of tests is taken to hang, which notices the change, too
TASKS = {  # file of a task's metrics → its tests
    "classification": ["test_classification", "test_probabilities"],
    "probabilities": ["test_probabilities", "test_classification"],
    "multilabel": ["test_label_edges", "test_texts", "test_better", "test_shapes_of_batches"],
    "ordinal": ["test_label_edges", "test_texts", "test_better"],
    "regression": ["test_label_edges", "test_texts", "test_better"],
    "relation": ["test_relation"],
    "contrastive": ["test_contrastive", "test_shapes_of_batches"],
    "multiple_choice": ["test_multiple_choice", "test_shapes_of_batches"],
    "schemes": ["test_schemes", "test_token_classification"],
    "spans": ["test_token_classification", "test_span_qa"],
    "squad": ["test_span_qa"],
    "span_qa": ["test_best_spans", "test_span_qa"],
    "token_classification": ["test_tags", "test_token_classification", "test_schemes"],
    "written": ["test_written", "test_seq2seq"],
}
METHODS = ["methods/test_counts.py", "methods/test_invariants.py"]
PLANS = ["data/test_epochs_by_hand.py", "data/test_plans_by_hand.py", "data/test_planning.py"]
TARGETS: dict[str, list[str]] = {  # file → tests of its room, the quickest first
    "partition.py": ["test_partition.py", "methods/test_disjoint.py"],
    "training/step.py": ["training/test_step.py", "training/test_averages.py"],
    "training/optimizers.py": ["training/test_optimizers.py", "training/test_step.py"],
    "optimizers/rules.py": ["training/test_optimizers.py"],
    "optimizers/base.py": ["training/test_optimizers.py"],
    "training/averages.py": ["training/test_averages.py", "training/test_step.py"],
    "data/packed_layout.py": [*PLANS, "data/test_loading.py"],
    "data/planning.py": [*PLANS, "data/test_loading.py"],
    "data/loading.py": ["data/test_loading.py", *PLANS],
    "methods/lora.py": ["methods/test_lora.py", *METHODS],
    "methods/additive.py": ["methods/test_lora.py", "methods/test_lora_variants.py", *METHODS],
    "methods/low_rank.py": ["methods/test_lora.py", "methods/test_lora_variants.py", *METHODS],
    "methods/bottleneck.py": ["methods/test_bottleneck.py", *METHODS],
    "methods/adapter.py": ["methods/test_bottleneck.py", *METHODS],
    **{f"tasks/{name}.py": [f"tasks/{t}.py" for t in tests] for name, tests in TASKS.items()},
}
SOME = {  # file → which tests of those of all methods are its own
    "methods/lora.py": "not test_invariants or [lora- or [rslora- or [lora_fa-",
    "methods/additive.py": "not test_invariants or [lora- or [ia3- or [vera-",
    "methods/low_rank.py": "not test_invariants or [lora- or [loha-",
    "methods/bottleneck.py": "not test_invariants or [houlsby- or [parallel-",
    "methods/adapter.py": "not test_invariants or [pfeiffer- or [compacter-",
}
SWAPS: dict[type, str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.Pow: "*", ast.MatMult: "*", ast.BitOr: "&", ast.BitAnd: "|", ast.Lt: "<=", ast.LtE: "<",
    ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in", ast.NotIn: "in",
    ast.Is: "is not", ast.IsNot: "is", ast.And: "or", ast.Or: "and",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: below `ftjax`.
        line: from 1.
        start, end: characters of the file that are replaced.
        before, after: what stood there, and what stands there.
    """

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def applied(self, text: str) -> str:
        return text[: self.start] + self.after + text[self.end :]


def mutants(file: str) -> list[Mutant]:
    """All changes of a file; texts, annotations and what only raises errors are left alone."""
    text = (ROOT / "ftjax" / file).read_text()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        encoded = text[starts[line - 1] : starts[line]].encode()[:column]
        return starts[line - 1] + len(encoded.decode())

    def changes(node: ast.AST) -> Iterator[tuple[int, int, str]]:
        def between(left: ast.AST, right: ast.AST, operator: ast.AST) -> Iterator:
            start = place(left.end_lineno, left.end_col_offset)
            end = place(right.lineno, right.col_offset)
            if type(operator) in SWAPS:
                yield start, end, _swapped(text[start:end], SWAPS[type(operator)])

        if isinstance(node, ast.BinOp):
            yield from between(node.left, node.right, node.op)
        elif isinstance(node, ast.BoolOp):
            yield from between(node.values[0], node.values[1], node.op)
        elif isinstance(node, ast.Compare):
            yield from between(node.left, node.comparators[0], node.ops[0])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            start = place(node.lineno, node.col_offset)
            yield start, start + (4 if isinstance(node.op, ast.Not) else 1), ""
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            start, value = place(node.lineno, node.col_offset), node.value
            other = not value if isinstance(value, bool) else value + 1 if value == 0 else value * 2
            yield start, place(node.end_lineno, node.end_col_offset), repr(other)

    every = (
        Mutant(file, node.lineno, start, end, text[start:end], after)
        for node in _code(ast.parse(text))
        for start, end, after in changes(node)
    )
    return [each for each in every if each.after != each.before]


def _swapped(inside: str, operator: str) -> str:
    """What is between two operands with another operator; brackets around operands stay."""
    closing = inside[: len(inside) - len(inside.lstrip(") \n"))]
    rest = inside[len(closing) :]
    opened = rest[len(rest.rstrip("( \n")) :]
    return f"{closing or ' '}{operator}{opened or ' '}"


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a tree that say what is done."""
    skipped = (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "type_params", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            says = isinstance(child, ast.AST) and not isinstance(child, skipped)
            if says and not _raises(child):
                yield child
                yield from _code(child)


def _raises(node: ast.AST) -> bool:
    """Whether a node does nothing but raise errors: `require`, or `strict=True` of `zip`."""
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"
    )


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module of the package from a changed text."""

    def __init__(self, mutant: Mutant) -> None:
        self.path = ROOT / "ftjax" / mutant.file
        self.name = "ftjax." + mutant.file.removesuffix(".py").replace("/", ".")
        self.text = mutant.applied(self.path.read_text())

    def find_spec(self, name: str, path=None, target=None):
        if name == self.name:
            return importlib.util.spec_from_loader(name, self, origin=str(self.path))
        return None

    def exec_module(self, module) -> None:
        module.__file__ = str(self.path)
        exec(compile(self.text, str(self.path), "exec"), module.__dict__)


class Recorder:
    """A plugin of pytest that records which lines of a file each test runs."""

    def __init__(self, file: str) -> None:
        import coverage

        self._path = str(ROOT / "ftjax" / file)
        self._coverage = coverage.Coverage(data_file=None, include=[self._path])
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def tests(self) -> dict[int, list[str]]:
        """Line, from 1 → ids of the tests that run it."""
        self._coverage.stop()
        return self._coverage.get_data().contexts_by_lineno(self._path)


class Order:
    """A plugin of pytest that runs some tests before the others."""

    def __init__(self, first: Collection[str]) -> None:
        self._first = set(first)

    def pytest_collection_modifyitems(self, items: list) -> None:
        items.sort(key=lambda item: item.nodeid not in self._first)


def run_tests(file: str, folder: Path, plugin: Recorder | Order, *options: str) -> int:
    """Exit code of pytest on a file's tests, in a process that has not imported the package."""
    import pytest

    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    tests = [str(ROOT / "tests" / test) for test in TARGETS[file]]
    options += ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}/tmp")
    options += ("-k", SOME[file]) if file in SOME else ()
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def record(file: str, folder: Path) -> int:
    """Writes which tests run each line of a file; they pass, or no change could be told by them."""
    recorder = Recorder(file)
    code = run_tests(file, folder, recorder)
    (folder / "lines.json").write_text(json.dumps(recorder.tests()))
    return code


def try_out(mutant: Mutant, first: Collection[str], folder: Path) -> int:
    """Exit code of the tests under a change."""
    sys.meta_path.insert(0, Finder(mutant))
    return run_tests(mutant.file, folder, Order(first), "-x")


def import_others() -> None:
    """What the tests import besides the package, and starts no thread or device."""
    import datasets  # noqa: F401
    import flax.linen  # noqa: F401
    import jax  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401


def forked(
    calls: Iterable[tuple[T, Callable[[Path], int]]], jobs: int
) -> Iterator[tuple[T, int | None, Path, float]]:
    """Runs calls in processes of their own, so many at once.

    Args:
        calls: what a call is of, and the call, which is given a folder and returns an exit code.
        jobs: processes at once.

    Yields:
        What a call was of, its exit code or None after `SECONDS`, its folder and its seconds.
    """
    waiting, running = list(reversed([*calls])), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            (subject, call), folder = waiting.pop(), Path(tempfile.mkdtemp())
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                code = 2
                try:
                    code = call(folder)
                finally:
                    os._exit(code)
            running[pid] = subject, folder, time.monotonic()
        time.sleep(0.1)
        for pid, (subject, folder, began) in list(running.items()):
            seconds = time.monotonic() - began
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and seconds < SECONDS:
                continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del running[pid]
            yield subject, os.waitstatus_to_exitcode(status) if done else None, folder, seconds
            shutil.rmtree(folder, ignore_errors=True)


def covering(files: Iterable[str], jobs: int) -> dict[tuple[str, int], list[str]]:
    """File and line → ids of its tests that run it.

    Raises:
        SystemExit: tests fail without any change.
    """
    tests: dict[tuple[str, int], list[str]] = {}
    for file, code, folder, seconds in forked(((f, partial(record, f)) for f in files), jobs):
        if code != 0:
            sys.exit(f"the tests of {file} fail:\n{(folder / 'log.txt').read_text()}")
        print(f"{seconds:4.0f} s of tests for {file}", flush=True)
        lines = json.loads((folder / "lines.json").read_text())
        tests |= {(file, int(line)): ids for line, ids in lines.items()}
    return tests


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a change is known by, while its line stays where it is."""
    return tuple(row[name] for name in ("file", "line", "before", "after"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="changes that are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose path has this part")
    parser.add_argument("--output", type=Path, help="a .jsonl of what became of each")
    parser.add_argument("--again", type=Path, help="an output whose survivors are tried again")
    options = parser.parse_args()
    every = [each for file in TARGETS if options.only in file for each in mutants(file)]
    for each in every:  # a change that is no Python would be noticed by anything
        ast.parse(each.applied((ROOT / "ftjax" / each.file).read_text()))
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    if options.again:
        rows = map(json.loads, options.again.read_text().splitlines())
        survived = {_key(row) for row in rows if row["outcome"] == "survived"}
        chosen = [each for each in every if _key(asdict(each)) in survived]
    print(f"{len(chosen)} of {len(every)} changes", flush=True)
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    import_others()
    tests = covering(sorted({mutant.file for mutant in chosen}), options.jobs)
    calls = ((m, partial(try_out, m, tests.get((m.file, m.line), ()))) for m in chosen)
    counts: Counter[tuple[str, str]] = Counter()
    output = options.output.open("w") if options.output else io.StringIO()
    with output:
        for mutant, code, _, seconds in forked(calls, options.jobs):
            outcome = "survived" if code == 0 else "killed"
            counts[mutant.file, outcome] += 1
            output.write(json.dumps({**asdict(mutant), "outcome": outcome, "s": seconds}) + "\n")
            output.flush()
            if outcome == "survived":
                change = f"{mutant.before.strip()!r} → {mutant.after.strip()!r}"
                place = f"ftjax/{mutant.file}:{mutant.line}"
                print(f"survived {place}: {change} ({seconds:.0f} s)", flush=True)
    for file in sorted({file for file, _ in counts}):
        killed, survived = counts[file, "killed"], counts[file, "survived"]
        print(f"{killed:>4} of {killed + survived:>4} killed in ftjax/{file}")
    killed = sum(count for (_, outcome), count in counts.items() if outcome == "killed")
    print(f"{killed} of {len(chosen)} killed: {killed / max(len(chosen), 1):.1%}")


if __name__ == "__main__":
    main()
