"""What a run does when it is asked to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_signal() -> Iterator[list[bool]]:
    """A list that is non-empty once SIGTERM has come."""
    came: list[bool] = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread: signals are the caller's
        yield came
        return
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, old)
