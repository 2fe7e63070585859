"""What a run writes beside its checkpoints: rows, curves, one progress line, its result."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm import tqdm

from ftjax.data.preparation.page import page
from ftjax.remote import is_remote

SECONDS = 30.0  # between writes of rows to an object store


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: to a temporary name, then renamed."""
    if is_remote(path):  # where a file appears once it is whole
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # hosts may share numbers
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_data_report(workdir: Path, report: list[dict[str, Any]]) -> None:
    """Writes data_report.json, and data_report.html to look at."""
    write_json(workdir / "data_report.json", report)
    write_text(workdir / "data_report.html", page(report))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a row cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class _Rows:
    """A growing file; in an object store, which has none, it is written anew now and then."""

    def __init__(self, path: Path, text: str) -> None:
        write_text(path, text)
        self._path, self._text, self._written = path, text, time.monotonic()
        self._file = None if is_remote(path) else path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line)
            self._file.flush()
            return
        self._text += line
        if time.monotonic() - self._written > SECONDS:
            self.keep()

    def keep(self) -> None:
        """Nothing added so far is lost when the process dies."""
        if self._file is None:
            write_text(self._path, self._text)
            self._written = time.monotonic()

    def close(self) -> None:
        self.keep()
        if self._file is not None:
            self._file.close()


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
        rows = [row for row in read_rows(path) if row["step"] <= step]
        self._rows = _Rows(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._folder = None if is_remote(workdir) else workdir / "tensorboard"
        self._start, self._board = step, None
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            desc=workdir.name,
        )

    def advance(self, steps: int) -> None:
        if self._shown:
            self._bar.update(steps)

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of numbers; "step" is among them."""
        if not self._shown:
            return
        self._rows.add(json.dumps(row) + "\n")
        if self._folder is not None:
            self._draw(row)
        if "loss" in row:
            self._bar.set_postfix_str(
                f"loss {row['loss']:.4f}, lr {row['learning_rate']:.2e}, "
                f"{row['tokens_per_second']:,.0f} tok/s"
            )

    def _draw(self, row: Mapping[str, Any]) -> None:
        if self._board is None:  # not before there is something to log: it is slow to import
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._folder), purge_step=self._start + 1)
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, row["step"])

    def keep(self) -> None:
        """To be called before a checkpoint: a resumed run goes on after the rows before it."""
        if self._shown:
            self._rows.keep()

    def say(self, text: str) -> None:
        """A line above the progress line."""
        if self._shown:
            self._bar.write(text)

    def close(self) -> None:
        if self._shown:
            self._bar.close()
            if self._board is not None:
                self._board.close()
            self._rows.close()
