"""How long a run trains."""

import time


class Clock:
    """Seconds of what comes in turn: steps and waiting for data, which count, and other things."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
