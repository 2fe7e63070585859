"""Changes the code in small ways, one at a time, and counts the changes that tests notice.

    python scripts/mutants.py [--count 300] [--seed 0] [--jobs 2] [--only PART] [--output FILE]

An operator, a comparison or a constant is changed in the files of `TARGETS`, and their tests run
until one fails. A change that no test notices is printed with its place: either a test is missing,
or the change makes no difference.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 600  # after which a run of tests is taken to hang, which notices the change, too
TASKS = {  # file of a task's metrics → its tests
    "classification": ["test_classification", "test_probabilities"],
    "probabilities": ["test_probabilities", "test_classification"],
    "multilabel": ["test_texts", "test_better"],
    "ordinal": ["test_texts", "test_better"],
    "regression": ["test_texts", "test_better"],
    "relation": ["test_relation"],
    "contrastive": ["test_contrastive"],
    "multiple_choice": ["test_multiple_choice"],
    "schemes": ["test_schemes", "test_token_classification"],
    "spans": ["test_token_classification", "test_span_qa"],
    "squad": ["test_span_qa"],
    "span_qa": ["test_span_qa"],
    "token_classification": ["test_token_classification"],
    "written": ["test_written", "test_seq2seq"],
}
METHODS = ["methods/test_counts.py", "methods/test_invariants.py"]
TARGETS: dict[str, list[str]] = {  # file → tests of its room, the quickest first
    "partition.py": ["test_partition.py", "methods/test_disjoint.py"],
    "training/step.py": ["training/test_step.py", "training/test_averages.py"],
    "training/optimizers.py": ["training/test_step.py", "training/test_rate.py"],
    "optimizers/rules.py": ["training/test_step.py"],
    "optimizers/base.py": ["training/test_step.py"],
    "training/averages.py": ["training/test_averages.py", "training/test_step.py"],
    "data/planning.py": ["data/test_planning.py", "data/test_loading.py"],
    "data/loading.py": ["data/test_loading.py", "data/test_planning.py"],
    "methods/lora.py": ["methods/test_lora.py", *METHODS],
    "methods/additive.py": ["methods/test_lora.py", "methods/test_lora_variants.py", *METHODS],
    "methods/low_rank.py": ["methods/test_lora.py", "methods/test_lora_variants.py", *METHODS],
    "methods/bottleneck.py": ["methods/test_bottleneck.py", *METHODS],
    "methods/adapter.py": ["methods/test_bottleneck.py", *METHODS],
    **{f"tasks/{name}.py": [f"tasks/{t}.py" for t in tests] for name, tests in TASKS.items()},
}
SOME = {  # file → which tests of those of all methods are its own
    "methods/lora.py": "not test_invariants or lora",
    "methods/additive.py": "not test_invariants or lora or ia3 or vera",
    "methods/low_rank.py": "not test_invariants or lora or loha",
    "methods/bottleneck.py": "not test_invariants or houlsby or pfeiffer or parallel",
    "methods/adapter.py": "not test_invariants or houlsby or pfeiffer or parallel or compacter",
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
    """Whether a call is of `require`, which raises an error."""
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


def run_tests(mutant: Mutant, folder: str) -> int:
    """Exit code of pytest under a change, in a process that has not imported the package."""
    import pytest

    log = (Path(folder) / "log.txt").open("w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.meta_path.insert(0, Finder(mutant))
    tests = [str(ROOT / "tests" / test) for test in TARGETS[mutant.file]]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder}/tmp"]
    options += ["-k", SOME[mutant.file]] if mutant.file in SOME else []
    return int(pytest.main([*options, *tests]))


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


def all_run(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, str, float]]:
    """Each change with what became of it, and the seconds that took."""
    waiting, running = list(reversed(chosen)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant, folder = waiting.pop(), tempfile.mkdtemp()
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, 0)
                code = 2
                try:
                    code = run_tests(mutant, folder)
                finally:
                    os._exit(code)
            running[pid] = mutant, folder, time.monotonic()
        time.sleep(0.2)
        for pid, (mutant, folder, began) in list(running.items()):
            seconds = time.monotonic() - began
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and seconds < SECONDS:
                continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            survived = bool(done) and os.waitstatus_to_exitcode(status) == 0
            shutil.rmtree(folder, ignore_errors=True)
            del running[pid]
            yield mutant, "survived" if survived else "killed", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="changes that are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="files whose path has this part")
    parser.add_argument("--output", type=Path, help="a .jsonl of what became of each")
    options = parser.parse_args()
    every = [each for file in TARGETS if options.only in file for each in mutants(file)]
    for each in every:  # a change that is no Python would be noticed by anything
        ast.parse(each.applied((ROOT / "ftjax" / each.file).read_text()))
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} changes", flush=True)
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    import_others()
    counts: Counter[tuple[str, str]] = Counter()
    output = options.output.open("w") if options.output else io.StringIO()
    with output:
        for mutant, outcome, seconds in all_run(chosen, options.jobs):
            counts[mutant.file, outcome] += 1
            output.write(json.dumps({**asdict(mutant), "outcome": outcome}) + "\n")
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
