"""Trains by several methods, each in a process of its own, and gathers the results."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.comparison.report import Row, markdown_table, summarize, write_report
from ftjax.config import check, load_config, load_module
from ftjax.errors import UserError
from ftjax.training.records import read_rows, write_json
from ftjax.training.run import read_workdir, refuse_differences


@dataclass(frozen=True)
class Study:
    """Runs of one configuration file, each in its own work folder.

    Attributes:
        config: FILE.
        workdir: of the study.
        overrides: "--config.KEY=VALUE", for all runs.
    """

    config: str
    workdir: Path
    overrides: Sequence[str]

    def folder(self, method: str, seed: int, rate: float | None) -> Path:
        place = self.workdir / method
        return (place if rate is None else place / f"{rate:g}") / f"seed_{seed}"

    def run(self, method: str, seed: int, rate: float | None = None) -> dict[str, Any]:
        """The result of a run, which is started or gone on with unless it is finished.

        Each has its own process, so that its peak memory is its own and a failure is too.

        Raises:
            UserError: the run failed, or its folder holds one of another configuration.
        """
        changes = [f"--config.method.name={method}", *self.overrides, f"--config.seed={seed}"]
        changes += [] if rate is None else [f"--config.optimizer.learning_rate={rate}"]
        folder = self.folder(method, seed, rate)
        result = folder / "result.json"
        if result.exists():
            refuse_differences(
                str(folder), read_workdir(folder), check(load_config(self.config, changes))
            )
            print(f"  finished already: {result}", flush=True)
        else:
            command = [sys.executable, "-m", "ftjax", "train", "--config", self.config]
            code = subprocess.run([*command, "--workdir", str(folder), *changes]).returncode
            if code or not result.exists():
                raise UserError(
                    f"{method}, seed {seed} did not finish (exit code {code}); the same command "
                    "goes on from here"
                )
        return json.loads(result.read_text(encoding="utf-8"))


def compare(
    config: str, methods: Sequence[str], seeds: int, workdir: Path, overrides: Sequence[str]
) -> list[Row]:
    """Runs methods × seeds, prints the table and writes the report.

    A run that is finished is not run again, so that a study can be left and gone on with. Where
    the configuration's file has `GRID`, a mapping from methods to learning rates, a method is
    first run with each of its rates and the first seed, and then the other seeds with the rate
    that has the best validation metric. The test split has no part in that.

    Args:
        config: FILE.
        methods: names; empty for the file's `METHODS`.
        seeds: runs a method.
        workdir: runs are in `METHOD/seed_N`, or in `METHOD/RATE/seed_N`.
        overrides: "--config.KEY=VALUE", for all runs.

    Raises:
        UserError: bad input, or a run that failed.
    """
    module = load_module(config)
    methods, grid = methods or getattr(module, "METHODS", ()), getattr(module, "GRID", {})
    if not methods or seeds < 1:
        raise UserError("--methods must name at least one method, and --seeds be positive")
    for method in methods:  # all are checked before any is run
        check(load_config(config, [f"--config.method.name={method}", *overrides]))
    study, results, curves, tried = Study(config, workdir, overrides), [], {}, {}
    for number, method in enumerate(methods, 1):
        print(f"[{number}/{len(methods)}] {method}", flush=True)
        first = {rate: study.run(method, 0, rate) for rate in grid.get(method, (None,))}
        rate = max(first, key=lambda rate: score(first[rate]))
        results += [first[rate], *(study.run(method, seed, rate) for seed in range(1, seeds))]
        curves[method] = read_rows(study.folder(method, 0, rate) / "metrics.jsonl")
        if method in grid:
            tried[method] = {rate: score(result) for rate, result in first.items()}
    rows = summarize(results)
    found = {"methods": [row.to_json() for row in rows], "learning_rates": tried}
    write_json(workdir / "results.json", found)
    write_report(workdir, rows, curves, tried)
    print(f"\n{markdown_table(rows)}\n")
    for name in ("report.html", "report.md", "results.json"):
        print(workdir / name)
    return rows


def score(result: Mapping[str, Any]) -> float:
    """The validation metric that a run's best step was chosen by, the more the better."""
    metric, found = result["best_metric"], result["metrics"]["validation"]
    return -found[metric] if metric == "loss" else found[metric]
