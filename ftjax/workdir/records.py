"""What a run writes beside its checkpoints: rows, curves, one progress line, its data's report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.bars import bar
from ftjax.data.preparation.page import page
from ftjax.files import finite, to_line, write_json, write_text
from ftjax.remote import is_remote
from ftjax.workdir.trackers import Board, RowsFile


def write_data_report(workdir: Path, report: list[dict[str, Any]]) -> None:
    """Writes data_report.json, and data_report.html to look at."""
    write_json(workdir / "data_report.json", report)
    write_text(workdir / "data_report.html", page(report))


def read_rows(path: Path, *names: str) -> list[dict[str, Any]]:
    """Rows of a .jsonl of a work folder that have entries of some names.

    Others are left out: cut short by a kill, or damaged.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and set(names) <= row.keys():
            rows.append(row)
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl: of numbers, "step" among them; None for what is not finite."""
    kinds, rows = (int, float, type(None)), read_rows(path, "step")
    rows = [row for row in rows if all(type(value) in kinds for value in row.values())]
    return [finite(row) for row in rows if row["step"] is not None]


class Records:
    """`metrics.jsonl`, `tensorboard/` and the progress line of a run.

    Args:
        workdir: the work folder.
        step: the step that the run starts or resumes at; later rows are of a run that was
            killed, and are dropped, since they will be written again.
        total: steps of the whole run.
        shown: whether this host writes and shows anything.
    """

    def __init__(self, workdir: Path, step: int, total: int, shown: bool = True) -> None:
        self._shown = shown
        if not shown:
            return
        path = workdir / "metrics.jsonl"
        rows = [row for row in read_metrics(path) if row["step"] <= step]
        self._rows = RowsFile(path, "".join(map(to_line, rows)))
        self._folder = None if is_remote(workdir) else workdir / "tensorboard"
        self._start, self._board = step, None
        self._bar = bar(total, step, "step", workdir.name)

    def advance(self, steps: int) -> None:
        if self._shown:
            self._bar.update(steps)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of numbers; "step" is among them."""
        if not self._shown:
            return
        self._rows.add(to_line(row))
        if self._folder is not None:
            self._draw(row)
        if "loss" in row:
            self._bar.set_postfix_str(
                f"loss {row['loss']:.4f}, lr {row['learning_rate']:.2e}, "
                f"{row['tokens_per_second']:,.0f} tok/s"
            )

    def _draw(self, row: Mapping[str, Any]) -> None:
        if self._board is None:  # not before there is something to log: it is slow to import
            self._board = Board(self._folder, self._start + 1)
        self._board.add(row)

    def keep(self) -> None:
        """To be called before a checkpoint: a resumed run goes on after the rows before it."""
        if self._shown:
            self._rows.keep()
            if self._board is not None:
                self._board.flush()

    def say(self, text: str) -> None:
        """A line above the progress line."""
        if self._shown:
            self._bar.write(text)

    def close(self) -> None:
        if self._shown:
            self._bar.close()
            try:
                if self._board is not None:
                    self._board.close()
            finally:
                self._rows.close()
