"""Trains by several methods, each in a process of its own, and gathers the results."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.comparison.pool import pool_of
from ftjax.comparison.processes import Processes
from ftjax.comparison.report import html_table, latex_table, markdown_table, write_report
from ftjax.comparison.row import Row, better_of, summarize
from ftjax.config import check, in_dots, load_module
from ftjax.config.load import loaded
from ftjax.config.yaml import to_yaml
from ftjax.errors import Stopped, UserError, require
from ftjax.files import write_json, write_text
from ftjax.remote import located, path_text
from ftjax.training.progress import gain
from ftjax.training.signals import STOPS, listening
from ftjax.workdir.folder import finished
from ftjax.workdir.records import read_metrics
from ftjax.workdir.result import read_result

PAGE = "page.yaml"  # of a study of a configuration that a program gave
MOST = 10_000  # seeds, folds or processes of a study


@dataclass(frozen=True)
class Runs:
    """Runs of one configuration, each in its own work folder.

    Attributes:
        config: FILE; empty for a task's default.
        workdir: of the study.
        keys: dotted names and values, for all runs.
        jobs: runs at once.
        folds: of cross-validation; 0: none.
        processes: of its runs.
        task: whose default it is where there is no file.
    """

    config: str
    workdir: Path
    keys: Mapping[str, Any]
    jobs: int = 1
    folds: int = 0
    processes: Processes = field(default_factory=Processes)
    task: str = ""

    def folder(self, method: str, seed: int, rate: float | None, fold: int = 0) -> Path:
        place = self.workdir / method
        place = (place if rate is None else place / f"{rate:g}") / f"seed_{seed}"
        return place / f"fold_{fold}" if self.folds else place

    def run(
        self, method: str, seed: int, rate: float | None = None, fold: int = 0
    ) -> dict[str, Any]:
        """The result of a run, which is started or gone on with unless it is finished.

        Each has its own process, so that its peak memory is its own and a failure is too.

        Raises:
            Stopped: a signal stopped the run.
            UserError: the run failed, or its folder holds one of another configuration.
        """
        keys = {"method.name": method, **self.keys, "seed": seed}
        keys |= {} if rate is None else {"optimizer.learning_rate": float(rate)}
        if self.folds:
            keys |= {"data.splits.folds": self.folds, "data.splits.fold": fold}
        folder = self.folder(method, seed, rate, fold)
        result = folder / "result.json"
        if finished(folder, check(loaded(self.config, [*keys.items()], self.task))) is not None:
            print(f"  finished already: {result}", flush=True)
        else:
            page = ["--config", self.config] if self.config else ["--task", self.task]
            changes = [f"--config.{key}={value!r}" for key, value in keys.items()]
            code = self._start(["train", *page, "--workdir", str(folder), *changes], folder)
            if (number := _signal(code)) in STOPS:
                raise Stopped(number)
            if code or not result.exists():
                raise UserError(self._unfinished(f"{method}, seed {seed}", folder, code))
        return read_result(folder)

    def run_all(self, runs: Sequence[tuple[str, int, float | None, int]]) -> list[dict[str, Any]]:
        """The results of runs (method, seed, rate, fold), `jobs` at once, each with its share of
        cores.

        Raises:
            Stopped: a signal stopped the study, or a run of it.
            UserError: the first failure; runs that had begun are finished before.
        """
        with pool_of(self.jobs) as pool:
            futures = [pool.submit(self.run, *run) for run in runs]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _unfinished(self, run: str, folder: Path, code: int) -> str:
        """What is said of a run that has no result: bad input stays bad until it is mended."""
        why, file = "", _output(folder)
        if self.jobs > 1 and file.exists():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            why = next((f", {line}" for line in reversed(lines) if line.startswith("error: ")), "")
        mend = "once that is mended, " if code == 2 else ""
        return f"{run} did not finish (exit code {code}{why}); {mend}the same command goes on"

    def _start(self, arguments: Sequence[str], folder: Path) -> int:
        """Exit code; what runs print side by side goes to files."""
        if self.jobs == 1:
            return self.processes.run(arguments)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _output(folder).open("ab") as output:
            code = self.processes.run(arguments, output)
        done = "stopped" if _signal(code) in STOPS else f"failed, see {output.name}"
        print(f"  {folder}: {done if code else 'finished'}", flush=True)
        return code


def _output(folder: Path) -> Path:
    """Where a run that goes beside others prints."""
    return folder.with_suffix(".txt")


def _signal(code: int) -> int:
    """The signal that an exit code says a process was stopped by: its own way, or the system's."""
    return code - 128 if code > 128 else -code


@dataclass(frozen=True)
class Study:
    """What came of a comparison.

    Attributes:
        rows: one a method, in the order asked for.
        workdir: of the study, with report.html, report.md and results.json.
    """

    rows: list[Row]
    workdir: Path

    def __repr__(self) -> str:
        return markdown_table(self.rows)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, a row a method: its score, interval, cost and parameters."""
        import pandas

        rows = [row.to_json() for row in self.rows]
        flat = [{k: v for k, v in row.items() if not isinstance(v, list | dict)} for row in rows]
        return pandas.DataFrame(flat)

    def to_latex(self) -> str:
        """The table as LaTeX's tabular, with booktabs."""
        return latex_table(self.rows)

    def _repr_html_(self) -> str:
        return html_table(self.rows)


def compare(
    config: ConfigDict | str | os.PathLike[str],
    methods: Sequence[str] | str = (),
    workdir: str | os.PathLike[str] = "",
    *,
    seeds: int = 1,
    jobs: int = 1,
    folds: int = 0,
    task: str = "",
    **keys: Any,
) -> Study:
    """Runs methods × seeds × folds, each in a process of its own, and writes the report.

    A run that is finished is not run again, so that a study can be left and gone on with. Where
    the configuration's file has `GRID`, a mapping from methods to learning rates, a method is
    first run with each of its rates and the first seed and fold, and then the others with the rate
    that has the best validation metric. The test split has no part in that.

    In cross-validation the rows to train on are cut into `folds` parts, each of which is the
    validation split of a run, and its scores are compared: a little too high, since a run keeps the
    checkpoint that is best on it.

    Args:
        config: a configuration, a page's file or its name; empty for the default of `task`.
        methods: names, or a text of them with commas between; empty for the page's `METHODS`.
        workdir: runs are in `METHOD/seed_N`, or in `METHOD/RATE/seed_N`; folds in `fold_N` of it.
        seeds: runs a method.
        jobs: runs at once, each with its share of the cores (not on accelerators).
        folds: of cross-validation, 2 or more; 0: none.
        task: where there is no file.
        **keys: dotted names and values, for all runs.

    Raises:
        Stopped: SIGTERM or Ctrl-C stopped the study, once its runs had saved: the same command
            goes on.
        UserError: bad input, or a run that failed.
    """
    require(workdir != "", "workdir is empty: name a folder for the study")
    workdir = located(workdir)
    for name, count in (("seeds", seeds), ("folds", folds), ("jobs", jobs)):
        require(isinstance(count, int), f"--{name} {count!r} must be a whole number")
    if isinstance(config, ConfigDict):
        write_text(workdir / PAGE, to_yaml(config))
        config = workdir / PAGE
    config = path_text(config)
    keys = in_dots(keys)
    module = load_module(config) if config else None
    methods, grid = methods or getattr(module, "METHODS", ()), getattr(module, "GRID", {})
    require(isinstance(methods, Iterable), f"methods={methods!r} must be a list of names")
    listed = methods.split(",") if isinstance(methods, str) else map(str, methods)
    methods = [*dict.fromkeys(filter(None, map(str.strip, listed)))]
    for name, count in {"--seeds": seeds, "--jobs": jobs}.items():
        require(count > 0, f"{name} {count} must be positive")
    if not methods:
        raise UserError("--methods must name what is compared, as --methods full,lora,head")
    require(folds == 0 or folds > 1, f"--folds {folds} must be 2 or more, or 0 for none")
    for name, count in (("seeds", seeds), ("folds", folds), ("jobs", jobs)):
        require(count <= MOST, f"--{name} {count} must be at most {MOST:,}")
    for method in methods:  # all are checked before any is run
        check(loaded(config, [("method.name", method), *keys.items()], task))
    runs = Runs(config, workdir, keys, jobs, folds, task=task)
    rates = {method: grid.get(method, (None,)) for method in methods}
    first = [(method, 0, rate, 0) for method in methods for rate in rates[method]]
    others = [(seed, fold) for seed in range(seeds) for fold in range(folds or 1)][1:]
    by_method = {name: {} for name in methods}
    with listening(STOPS, runs.processes.stop):
        for (method, _, rate, _), result in zip(first, runs.run_all(first), strict=True):
            by_method[method][rate] = result
        chosen = {method: best_rate(by_rate) for method, by_rate in by_method.items()}
        rest = [(name, seed, chosen[name], fold) for name in methods for seed, fold in others]
        results = [by_method[method][rate] for method, rate in chosen.items()] + runs.run_all(rest)
    curves = {m: read_metrics(runs.folder(m, 0, r) / "metrics.jsonl") for m, r in chosen.items()}
    scores = {m: {r: score(x) for r, x in by_method[m].items()} for m in methods if m in grid}
    rows = summarize(results)
    report = {"methods": [row.to_json() for row in rows], "learning_rates": scores}
    write_json(workdir / "results.json", report)
    write_report(workdir, rows, curves, scores)
    return Study(rows, workdir)


def best_rate(results: Mapping[Any, Mapping[str, Any]]) -> Any:
    """The learning rate whose result is the best on validation."""
    return max(results, key=lambda rate: gain(score(results[rate]), better_of(results[rate])))


def score(result: Mapping[str, Any]) -> float:
    """The validation metric that a run's best step was chosen by."""
    return result["metrics"]["validation"][result["best_metric"]]
