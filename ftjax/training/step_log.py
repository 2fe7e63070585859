"""What steps say of themselves, once the device has come to them."""

import math
from collections.abc import Callable
from typing import Any, Protocol

from ftjax.data.loading import Counts
from ftjax.training.clock import Clock
from ftjax.training.memory import memory_in_use
from ftjax.training.programs import Key
from ftjax.training.progress import Progress

Row = dict[str, float]


class Records(Protocol):
    """Where a run's numbers and lines go."""

    def log(self, row: dict[str, Any]) -> None: ...

    def advance(self, steps: int) -> None: ...

    def say(self, text: str) -> None: ...


class StepLog:
    """Steps that have begun, and the rows of the log.

    Args:
        progress: what they are counted in.
        records: where rows go.
        epochs: passes over the data by a step.
        flops: of a step on a batch of some shapes, at least; None where the peak is not known.
        peak: FLOPs a second of all devices together.
        skipped: is told of a step that changed nothing, and raises where they are too many.
    """

    def __init__(
        self,
        progress: Progress,
        records: Records,
        epochs: Callable[[int], float | None],
        flops: Callable[[Key], float],
        peak: float | None,
        skipped: Callable[[int, Row], None],
    ) -> None:
        self.progress, self.clock = progress, Clock()
        self._records, self._epochs, self._skipped = records, epochs, skipped
        self._flops, self._peak = flops, peak
        self._pending: list[tuple[int, Any, Counts, Key]] = []

    def add(self, step: int, metrics: Any, counts: Counts, shapes: Key) -> None:
        """A step that has begun, of which nothing is known before it is waited for."""
        self._pending.append((step, metrics, counts, shapes))

    def flush(self, log: bool = False) -> None:
        """Waits for the device, checks and counts what is pending, and logs a row if asked."""
        if not self._pending:
            return
        progress = self.progress
        rows = [(at, {k: float(v) for k, v in m.items()}) for at, m, *_ in self._pending]
        seconds, losses = self.clock.lap(), []
        for at, row in rows:
            if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
                losses.append(row["loss"])
            else:
                progress.skipped += 1
                self._skipped(at, row)
        progress.totals.seconds += seconds
        for *_, counts, shapes in self._pending:
            progress.totals.add(counts, self._flops(shapes))
        progress.losses += losses
        if log:
            at, last = rows[-1]
            row = progress.row(at, self._epochs(at), last, self._peak)
            self._records.log(row | memory_in_use())
        self._records.advance(len(rows))
        self._pending.clear()
        self.clock.lap()  # what logging took is not of training
