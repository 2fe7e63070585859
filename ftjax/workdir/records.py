"""What a run writes beside its checkpoints: rows, curves, one progress line, its result."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from ftjax.bars import bar
from ftjax.data.preparation.page import page
from ftjax.errors import UserError
from ftjax.formats.jsons import check, read_json
from ftjax.options import Count, Natural, NotNegative
from ftjax.remote import is_remote

SECONDS = 30.0  # between writes of rows to an object store, and of what is drawn
PENDING = "pending"  # of a result: what is still to come of it


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: to a temporary name, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_text`."""
    if is_remote(path):  # where a file appears once it is whole
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # hosts may share numbers
    try:
        with _naming(path):
            temporary.write_bytes(content)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What a disk refuses names the file."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def check_writable(path: Path) -> None:
    """Raises UserError or OSError where no file could be written, before there is any to lose."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    if is_remote(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass


def write_json(path: Path, value: Any) -> None:
    write_text(path, to_line(value, indent=2))


def to_line(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no numbers that are not finite: they become null."""
    text = json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def finite(value: Any) -> Any:
    """A value with None in place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def write_data_report(workdir: Path, report: list[dict[str, Any]]) -> None:
    """Writes data_report.json, and data_report.html to look at."""
    write_json(workdir / "data_report.json", report)
    write_text(workdir / "data_report.html", page(report))


@dataclass(frozen=True)
class Result:
    """What is read again of result.json, which holds more."""

    method: str
    task: str
    seed: Natural
    best_step: Count
    best_metric: str
    trainable_params: Natural
    total_params: Natural
    learning_rate: NotNegative
    train_seconds: NotNegative
    tokens_per_second: NotNegative
    peak_memory_bytes: Natural
    metrics: dict


def read_result(workdir: Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        UserError: it is absent, or damaged.
    """
    path = workdir / "result.json"
    try:
        result = read_json(path)
        check(path, result, Result, whole=True)
        for split, scores in result["metrics"].items():
            if not isinstance(scores, dict):
                raise UserError(f"{path}: metrics of {split} are not by name")
            if scores.get(result["best_metric"], "") is None:
                scores[result["best_metric"]] = math.nan
            known = isinstance(scores.get(result["best_metric"]), float)
            # What chose a step by validation, as AUROC, a test split of one label does not have.
            if not known and split == "validation" and not result.get(PENDING):
                raise UserError(f"{path}: {split} has no number {result['best_metric']!r}")
    except UserError as error:
        raise UserError(f"{error}; remove it, and the same command writes it anew") from error
    return result


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


class _Rows:
    """A growing file; in an object store, which has none, it is written anew now and then."""

    def __init__(self, path: Path, text: str) -> None:
        write_text(path, text)
        self._path, self._text, self._written = path, text, time.monotonic()
        self._file = None if is_remote(path) else path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        if self._file is not None:
            with _naming(self._path):
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
            with _naming(self._path):
                self._file.close()


class _Board:
    """`tensorboard/`, written by whoever logs: what a disk refuses would end a thread of its own,
    which would then be waited for without end.

    Args:
        folder: made if absent.
        step: from which on earlier rows count no more.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._folder, self._event, self._scalar = folder, Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        with _naming(folder):
            self._writer = EventsWriter(str(folder / "events"), f".{step}")
            self._flushed = time.monotonic()
            self._writer.write_event(Event(step=step, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step, session_log=start))

    def add(self, row: Mapping[str, Any]) -> None:
        now = {"step": row["step"], "wall_time": time.time()}
        with _naming(self._folder):
            for name, value in row.items():
                if name != "step":
                    drawn = self._event(summary=self._scalar(name, value), **now)
                    self._writer.write_event(drawn)
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        with _naming(self._folder):
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with _naming(self._folder):
            self._writer.close()


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
        self._rows = _Rows(path, "".join(map(to_line, rows)))
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
            self._board = _Board(self._folder, self._start + 1)
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
