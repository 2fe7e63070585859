"""Bounds for what reads files of others."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS, MEGABYTES = 30, 500  # that reading may take of a processor, and of memory besides


class Endless(BaseException):
    """Which no guard takes for damage."""


@contextmanager
def bounded() -> Iterator[None]:
    """Bounds time, of the processor and by the clock, and memory.

    What never ends is ended by SIGVTALRM: libtpu has SIGPROF sent to a process that has loaded it.
    """

    def end(*_) -> None:
        raise Endless

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before, start = peak(), time.process_time()
    earlier = [(each, signal.signal(each, end)) for each in (signal.SIGVTALRM, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    try:
        yield
    finally:
        for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in earlier:
            signal.signal(number, handler)
    assert time.process_time() - start < SECONDS
    assert peak() - before < MEGABYTES
