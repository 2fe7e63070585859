"""Work of others' making, as templates that come with models, in no more time than it may take."""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
EVERY = 0.2  # seconds between looks at the clock


class _TooLong(BaseException):
    """Raised in a thread from outside: no `except Exception` on the way holds it."""


class _Watch:
    """Raises in threads that are at work for longer than they said."""

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}  # thread → when it has to be done
        self._lock, self._busy = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, thread: int, seconds: float) -> None:
        with self._lock:
            self._ends[thread] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():  # or this process is a fork
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        self._busy.set()

    def end(self, thread: int) -> bool:
        """Whether it was too late: then something is raised, or about to be."""
        with self._lock:
            return self._ends.pop(thread, None) is None

    def _look(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(EVERY)
            with self._lock:
                for thread in [
                    thread for thread, end in self._ends.items() if end < time.monotonic()
                ]:
                    del self._ends[thread]
                    raised = ctypes.py_object(_TooLong)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
                if not self._ends:
                    self._busy.clear()


_WATCH = _Watch()


def limited(function: Callable[[], T], seconds: float) -> T:
    """What a function gives.

    Raises:
        TimeoutError: it was at work for longer, in Python: what is within one call into C is not
            interrupted.
    """
    thread = threading.get_ident()
    try:
        _WATCH.begin(thread, seconds)
        try:
            result = function()
        finally:
            late = _WATCH.end(thread)
        while late:  # it is raised here
            time.sleep(EVERY)
        return result
    except _TooLong:
        raise TimeoutError(f"not done within {seconds:g} seconds") from None
