"""How far a long piece of work has come: a bar on a terminal and in a notebook, lines in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


class Lines:
    """Progress as lines, one each `EVERY` seconds and the last."""

    def __init__(self, total: int, initial: int, unit: str, desc: str) -> None:
        self._total, self._done, self._unit, self._desc = total, initial, unit, desc
        self._began, self._start = time.monotonic(), initial
        self._said, self._text = self._began, ""
        self._last = -1  # what was said of last

    def update(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._said >= EVERY:
            self._say()

    def set_postfix_str(self, text: str) -> None:
        self._text = text

    def write(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        if self._done not in (self._last, self._start):
            self._say()

    def _say(self) -> None:
        self._said, self._last = time.monotonic(), self._done
        rate = (self._done - self._start) / max(self._said - self._began, 1e-9)
        left = (self._total - self._done) / rate if rate else 0
        share = f"{self._done / max(self._total, 1):.0%}"
        parts = [f"{self._desc}: {self._unit} {self._done:,} of {self._total:,} ({share})"]
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
