"""Training data larger than memory, and of several sources at once: window after window.

A window is a fixed number of rows, of each source its share, planned as if it were an epoch. So
which examples a step has is a function of its number, the configuration and the sources alone, and
a position in the data is one number, also on another mesh or number of hosts.

Every host reads and tokenizes whole windows. Which examples a batch has depends on the lengths of
all examples of its window, so that no host knows its own before all are tokenized: a row may be
bad, be dropped by a step, give several examples or none. To share the work they would have to tell
each other tokens from the thread that reads ahead, at moments that differ from host to host, while
collective operations have to come in one order on all.
"""

import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import datasets
import grain
import numpy as np

from ftjax.data.encode import Examples, Ragged
from ftjax.data.loading import Batch, Epoch, Vary, epoch_of, prefetched
from ftjax.data.memo import Memo
from ftjax.data.planning import Layout
from ftjax.data.sources import Split
from ftjax.data.stream_source import START, Cursor, Position, Source
from ftjax.errors import require

KEPT = 4  # windows in memory
KNOWN = 64  # windows whose positions are known: more than are prefetched, though they be short
Positions = tuple[Position, ...]  # of each source


class Mixture:
    """Rows of several sources, window after window: of each source its share.

    Args:
        sources: with their weights.
        size: rows of a window.
    """

    def __init__(self, sources: Sequence[Source], size: int) -> None:
        self._cursors = [Cursor(source) for source in sources]
        self._counts = shares([source.weight for source in sources], size)
        self._positions: dict[int, Positions] = {0: (START,) * len(sources)}

    def window(self, number: int) -> Iterator[Split]:
        """The rows of a window, of each source that has some there."""
        for cursor, rows in zip(self._cursors, self._taken(number), strict=True):
            if rows:
                yield Split(cursor.source.split.file, datasets.Dataset.from_list(rows))

    def counts(self, number: int) -> dict[str, Any]:
        """Rows of first passes that were bad, and that steps dropped, before a window."""
        marks = [position.place for position in self._positions.get(number, ())]
        dropped = sum((Counter(mark.dropped) for mark in marks), Counter())
        return {
            "rows_skipped": sum(mark.skipped for mark in marks),
            "rows_dropped": dict(dropped),
        }

    def saved(self) -> dict[str, Any]:
        """Where the last windows begin in the sources, as JSON has it: none before is read again,
        nor a row before."""
        positions = list(self._positions.items())
        return {str(n): [position.saved() for position in window] for n, window in positions}

    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Begins where another's sources were."""
        for number, window in saved.items():
            self._positions[int(number)] = tuple(map(Position.read, window))

    def _taken(self, number: int) -> list[list[dict[str, Any]]]:
        """The rows of a window, of each source: none before is read where its position is known."""
        at = max(known for known in list(self._positions) if known <= number)
        while True:
            drawn = [
                cursor.take(position, count)
                for cursor, position, count in zip(
                    self._cursors, self._positions[at], self._counts, strict=True
                )
            ]
            at += 1
            self._positions[at] = tuple(position for _, position in drawn)
            while len(self._positions) > KNOWN:  # but for the first, from which all can be found
                del self._positions[sorted(self._positions)[1]]
            if at > number:
                return [rows for rows, _ in drawn]


class Windows:
    """Encoded rows of the sources, `size` at a time. The next is read while one is in use.

    Args:
        sources: with their weights.
        size: rows of a window.
        encode: of a split: its tokens and targets.

    Attributes:
        mixture: of the sources, which the windows are rows of.
        last: the window that is trained on, up to which rows are counted.
    """

    def __init__(
        self, sources: Sequence[Source], size: int, encode: Callable[[Split], Examples]
    ) -> None:
        self.size, self.mixture, self._encode = size, Mixture(sources, size), encode
        self._windows: OrderedDict[int, Future] = OrderedDict()
        self.last, self._lock = -1, threading.Lock()
        self._reader = ThreadPoolExecutor(1, "windows")  # sources are read by one thread, in turn

    def __getitem__(self, number: int) -> Examples:
        with self._lock:
            examples, _ = self._begun(number), self._begun(number + 1)
            while len(self._windows) > KEPT:
                self._windows.popitem(last=False)
        return examples.result()

    def _begun(self, number: int) -> Future:
        """A window that is read, or to be read, by the reader."""
        if number not in self._windows or _has_failed(self._windows[number]):
            self._windows[number] = self._reader.submit(self._read, number)
        self._windows.move_to_end(number)
        return self._windows[number]

    @property
    def counts(self) -> dict[str, Any]:
        """Rows of first passes that were bad, and that steps dropped, up to the last window."""
        return self.mixture.counts(self.last + 1)

    def close(self) -> None:
        """Reads no further."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read(self, number: int) -> Examples:
        parts = [self._encode(split) for split in self.mixture.window(number)]
        parts = [part for part in parts if len(part)]
        require(bool(parts), f"data.window={self.size}: no row of a window gives an example")
        return joined(parts)


def _has_failed(window: Future) -> bool:
    return window.done() and window.exception() is not None


def shares(weights: Sequence[float], size: int) -> list[int]:
    """Whole numbers in the proportion of `weights` that sum to `size`: by largest remainders.

    Raises:
        UserError: a weight that is not positive, or too small for a row.
    """
    for weight in weights:
        require(weight > 0, f"data.mixture: weight {weight} must be positive")
    exact = np.array(weights, float) / sum(weights) * size
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    for weight, count in zip(weights, counts, strict=True):
        require(count, f"data.mixture: weight {weight} is less than a row of data.window={size}")
    return counts.tolist()


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples end to end; those of fewer sequences, as of fewer choices, get empty ones.

    Raises:
        UserError: they are of different forms.
    """
    group = max(part.group for part in parts)
    parts = [_widened(part, group) for part in parts]
    same = {tuple(sorted([*part.tokens, *part.arrays])) for part in parts}
    mixed = "rows of different forms, as pairs and single texts"
    require(len(same) == 1, f"data.mixture: {mixed}")
    rows = np.cumsum([0, *(1 + part.row_numbers.max(initial=-1) for part in parts)])
    numbers = [part.row_numbers + first for part, first in zip(parts, rows, strict=False)]

    def concatenated(get: Callable[[Examples], Any], join: Callable) -> dict[str, Any]:
        return {name: join([get(part)[name] for part in parts]) for name in get(parts[0])}

    return Examples(
        ids=_end_to_end([part.ids for part in parts]),
        tokens=concatenated(lambda part: part.tokens, np.concatenate),
        arrays=concatenated(lambda part: part.arrays, np.concatenate),
        decoder=None if parts[0].decoder is None else _end_to_end([p.decoder for p in parts]),
        rows=np.concatenate(numbers),
        group=group,
        truncated=sum(part.truncated for part in parts),
    )


def _widened(examples: Examples, group: int) -> Examples:
    """Of `group` sequences each."""
    offsets, count = examples.ids.offsets, group - examples.group
    begins = offsets[:-1].reshape(-1, examples.group)
    empty = np.repeat(offsets[examples.group :: examples.group, None], count, 1)
    starts = np.append(np.concatenate([begins, empty], 1), offsets[-1])
    return replace(examples, ids=Ragged(examples.ids.values, starts), group=group)


def _end_to_end(parts: Sequence[Ragged]) -> Ragged:
    ends = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Ragged(
        np.concatenate([part.values for part in parts]), np.concatenate([*offsets, ends[-1:]])
    )


class StreamLoader:
    """Batches of windows, one after another; see `Loader`, whose interface it has.

    Attributes:
        windows: the examples.
        starts: the first step of each window that was read, and of the next. A checkpoint has
            them, so that no window before its position is tokenized again.
    """

    steps_per_epoch = None  # a stream has no end

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        layout: Layout,
        seed: int,
        local: Callable[[int], np.ndarray] = np.arange,
        vary: Vary | None = None,
        starts: Sequence[int] = (0,),
    ) -> None:
        self.windows, self.starts = windows, [*starts]
        self._local, self._lock = local, threading.Lock()

        def plan(window: int) -> Epoch:
            return epoch_of(windows[window], layout, batch_size, seed, vary, window)

        self._planned = Memo(plan, KEPT)

    def begun(self, step: int) -> Examples | None:
        """The window that a step, which is now trained on, is the first of; None where it is in
        the midst of one."""
        epoch, number = self._find(step)
        self.windows.last = bisect_right(self.starts, step) - 1
        return None if number else epoch.examples

    def at(self, step: int) -> Batch:
        epoch, number = self._find(step)
        return epoch.batch(number, self._local)

    def ahead(self, step: int, count: int) -> Iterator[tuple[int, Batch]]:
        epoch, first = self._find(step)
        for number, batch in epoch.ahead(first, count, self._local):
            yield step + number - first, batch

    def iterate(self, steps: int) -> grain.DatasetIterator:
        return prefetched(self.at, steps)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has of it, as JSON has it."""
        return {"starts": [*self.starts], "sources": self.windows.mixture.saved()}

    def go_on(self, saved: Mapping[str, Any]) -> None:
        """Begins where another was when it was saved."""
        with self._lock:  # batches may be read ahead already
            self.starts[:] = saved["starts"]
            self.windows.mixture.go_on(saved["sources"])

    def _find(self, step: int) -> tuple[Epoch, int]:
        """The window that a step is of, and which of its batches the step has."""
        with self._lock:
            while step >= self.starts[-1]:
                epoch = self._planned(len(self.starts) - 1)
                self.starts.append(self.starts[-1] + len(epoch.plan))
        window = bisect_right(self.starts, step) - 1
        epoch = self._planned(window)
        self._planned.begin(window + 1)
        return epoch, step - self.starts[window]
