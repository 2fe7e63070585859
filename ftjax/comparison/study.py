"""Trains by several methods, each in a process of its own, and gathers the results."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftjax.comparison.report import Row, markdown_table, summarize, write_report
from ftjax.config import check, load_config
from ftjax.errors import UserError
from ftjax.training.records import read_rows, write_json


def compare(
    config: str, methods: Sequence[str], seeds: int, workdir: Path, overrides: Sequence[str]
) -> list[Row]:
    """Runs methods × seeds, prints the table and writes the report.

    Each run has its own process, so that its peak memory is its own and a failure is too, and
    its own work folder `workdir/METHOD/seed_N`; a run that is finished is not run again.

    Raises:
        UserError: bad input, or a run that failed.
    """
    if not methods or seeds < 1:
        raise UserError("--methods must name at least one method, and --seeds be positive")
    for method in methods:  # all are checked before any is run
        check(load_config(config, [f"--config.method.name={method}", *overrides]))
    results = []
    for number, method in enumerate(methods, 1):
        for seed in range(seeds):
            print(f"[{number}/{len(methods)}] {method}, seed {seed}", flush=True)
            folder = workdir / method / f"seed_{seed}"
            results.append(_run(config, method, seed, folder, overrides))
    rows = summarize(results)
    write_json(workdir / "results.json", {"methods": [row.to_json() for row in rows]})
    curves = {
        row.method: read_rows(workdir / row.method / "seed_0" / "metrics.jsonl") for row in rows
    }
    write_report(workdir, rows, curves)
    print(f"\n{markdown_table(rows)}\n")
    for name in ("report.html", "report.md", "results.json"):
        print(workdir / name)
    return rows


def _run(
    config: str, method: str, seed: int, folder: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    command = [sys.executable, "-m", "ftjax", "train", "--config", config]
    command += ["--workdir", str(folder), f"--config.method.name={method}", *overrides]
    command += [f"--config.seed={seed}"]
    finished = subprocess.run(command, check=False)
    result = folder / "result.json"
    if finished.returncode or not result.exists():
        raise UserError(
            f"{method}, seed {seed} did not finish (exit code {finished.returncode}); the same "
            "command goes on from here"
        )
    return json.loads(result.read_text(encoding="utf-8"))
