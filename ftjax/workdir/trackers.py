"""Where a run's rows of numbers go: a growing file, and TensorBoard."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.files import naming, write_text
from ftjax.process import unused
from ftjax.remote import is_remote

SECONDS = 30.0  # between writes of rows to an object store, and of what is drawn


class RowsFile:
    """A growing file; in an object store, which has none, it is written anew now and then."""

    def __init__(self, path: Path, text: str) -> None:
        write_text(path, text)
        self._path, self._text, self._written = path, text, time.monotonic()
        self._file = None if is_remote(path) else path.open("a", encoding="utf-8")

    def add(self, line: str) -> None:
        if self._file is not None:
            with naming(self._path):
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
            with naming(self._path):
                self._file.close()


class Board:
    """`tensorboard/`, written by whoever logs: what a disk refuses would end a thread of its own,
    which would then be waited for without end.

    Args:
        folder: made if absent.
        step: from which on earlier rows count no more.
    """

    def __init__(self, folder: Path, step: int) -> None:
        with unused("torch", "google.cloud.storage", "boto3"):
            from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._folder, self._event, self._scalar = folder, Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            self._writer = EventsWriter(str(folder / "events"), f".{step}")
            self._flushed = time.monotonic()
            self._writer.write_event(Event(step=step, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=step, session_log=start))

    def add(self, row: Mapping[str, Any]) -> None:
        now = {"step": row["step"], "wall_time": time.time()}
        with naming(self._folder):
            for name, value in row.items():
                if name != "step":
                    drawn = self._event(summary=self._scalar(name, value), **now)
                    self._writer.write_event(drawn)
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        with naming(self._folder):
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        with naming(self._folder):
            self._writer.close()
