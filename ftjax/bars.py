"""How far a long piece of work has come: a bar on a terminal and in a notebook, lines in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

EVERY = 30.0  # seconds between lines in a log


def bar(total: int, initial: int, unit: str, desc: str) -> Any:
    """A tqdm bar, or what has the same methods and writes lines."""
    if not sys.stderr.isatty() and not _in_notebook():
        return Lines(total, initial, unit, desc)
    from tqdm.auto import tqdm

    shape = {"dynamic_ncols": True, "mininterval": 0.5}
    return tqdm(total=total, initial=initial, unit=unit, desc=desc, **shape)


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel; one that runs notebooks has ipykernel, too."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


@dataclass
class Pace:
    """How fast work of a known length goes.

    Attributes:
        total: how much there is.
        start: how much of it was done before.
        began: when the rest was begun.
    """

    total: int
    start: int
    began: float = field(default_factory=time.monotonic)

    def left(self, done: int, now: float) -> float:
        """Seconds that what is not done will take; 0 where that is not known."""
        rate = (done - self.start) / max(now - self.began, 1e-9)
        return (self.total - done) / rate if rate else 0


class Lines:
    """Progress as lines, one each `EVERY` seconds and the last."""

    def __init__(self, total: int, initial: int, unit: str, desc: str) -> None:
        self._what, self._pace = f"{desc}: {unit}", Pace(total, initial)
        self._done, self._text = initial, ""
        self._said, self._when = initial, self._pace.began  # of the last line

    def update(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._when >= EVERY:
            self._say()

    def set_postfix_str(self, text: str) -> None:
        self._text = text

    def write(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        if self._done != self._said:
            self._say()

    def _say(self) -> None:
        self._said, self._when = self._done, time.monotonic()
        total, left = self._pace.total, self._pace.left(self._done, self._when)
        share = f"{self._done / max(total, 1):.0%}"
        parts = [f"{self._what} {self._done:,} of {total:,} ({share})"]
        parts += [self._text] if self._text else []
        parts += [f"{left:,.0f} s left"] if left else []
        print(", ".join(parts), file=sys.stderr, flush=True)


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Says for how long something of unknown length is going on: on a terminal each second."""
    shown, over = sys.stderr.isatty(), threading.Event()

    def tell() -> None:
        start = time.monotonic()
        while not over.wait(1.0 if shown else EVERY):
            text = f"{what}: {time.monotonic() - start:,.0f} s"
            print(f"\r{text}" if shown else text, end="" if shown else "\n", file=sys.stderr)
        if shown:
            print("\r" + " " * (len(what) + 20) + "\r", end="", file=sys.stderr)

    print(what, file=sys.stderr, flush=True, end="" if shown else "\n")
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
