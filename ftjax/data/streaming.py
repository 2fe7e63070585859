"""Training data larger than memory, and of several sources at once: window after window.

A window is a fixed number of rows, of each source its share, planned as if it were an epoch. So
which examples a step has is a function of its number, the configuration and the sources alone, and
a position in the data is one number, also on another mesh or number of hosts.
"""

import itertools
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import datasets
import grain
import numpy as np

from ftjax.data.encode import Examples, Ragged
from ftjax.data.fields import Schema
from ftjax.data.loading import Batch, Loader, Vary, batch_of, first_of_each, prefetched
from ftjax.data.planning import Layout, Planned
from ftjax.data.preparation.pipeline import passed
from ftjax.data.sources import Opened, Split
from ftjax.errors import UserError, require

KEPT = 4  # windows in memory


@dataclass
class Source:
    """Rows of one source, read again and again.

    Attributes:
        opened: the source.
        schema: what rows must be.
        weight: share of a window, before the shares are made to sum to 1.
        skip: leave out and count bad rows, instead of stopping.
        steps: of `data.prepare` that training rows go through, by name.
        skipped: messages of the first pass's bad rows.
        dropped: step → rows of the first pass that it dropped.
    """

    opened: Opened
    schema: Schema
    weight: float = 1.0
    skip: bool = False
    steps: Sequence[tuple[str, Any]] = ()
    skipped: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._at, self._rows = 0, self._passes()

    def _passes(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            good = 0
            for row in self.opened.checked(self.schema):
                if not isinstance(row, UserError):
                    row, by = passed(row, self.steps)
                    if row is not None:
                        good += 1
                        yield row
                    elif not number:
                        self.dropped[by] += 1
                elif not self.skip:
                    raise row
                elif not number:
                    self.skipped.append(str(row))
            left = f" that data.prepare leaves ({dict(self.dropped)})" if self.dropped else ""
            require(good > 0, f"{self.opened.file} has no rows{left}")

    def take(self, start: int, count: int) -> list[dict[str, Any]]:
        """Good rows `start` to `start + count` of all passes, end to end.

        Raises:
            UserError: a bad row, which is named, where they are not skipped.
        """
        try:
            if start < self._at:
                self._at, self._rows = 0, self._passes()
            for _ in range(start - self._at):
                next(self._rows)
            rows = list(itertools.islice(self._rows, count))
        except BaseException:  # a generator that has raised is at its end
            self._at, self._rows = 0, self._passes()
            raise
        self._at = start + count
        return rows


class Windows:
    """Encoded rows of the sources, `size` at a time.

    Args:
        sources: with their weights.
        size: rows of a window.
        encode: of a split: its tokens and targets.
    """

    def __init__(
        self, sources: Sequence[Source], size: int, encode: Callable[[Split], Examples]
    ) -> None:
        self.size, self._sources, self._encode = size, sources, encode
        self._counts = shares([source.weight for source in sources], size)
        self._kept: OrderedDict[int, Examples] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def skipped(self) -> list[str]:
        return [message for source in self._sources for message in source.skipped]

    @property
    def counts(self) -> dict[str, Any]:
        """Rows of first passes that were bad, and that steps dropped."""
        dropped = sum((source.dropped for source in self._sources), Counter())
        return {"rows_skipped": len(self.skipped), "rows_dropped": dict(dropped)}

    def __getitem__(self, number: int) -> Examples:
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self._read(number)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return self._kept[number]

    def _read(self, number: int) -> Examples:
        parts = []
        for source, count in zip(self._sources, self._counts, strict=True):
            if rows := source.take(number * count, count):
                split = Split(source.opened.file, datasets.Dataset.from_list(rows))
                parts.append(self._encode(split))
        parts = [part for part in parts if len(part)]
        require(bool(parts), f"data.window={self.size}: no row of a window gives an example")
        return joined(parts)


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
    """Examples end to end.

    Raises:
        UserError: they are of different forms.
    """
    same = {(part.group, *sorted([*part.tokens, *part.arrays])) for part in parts}
    mixed = "rows of different forms, as pairs and single texts, or more and fewer choices"
    require(len(same) == 1, f"data.mixture: {mixed}")
    rows = np.cumsum([0, *(1 + part.row_numbers.max(initial=-1) for part in parts)])
    numbers = [part.row_numbers + first for part, first in zip(parts, rows, strict=False)]

    def each(get: Callable[[Examples], Any], join: Callable) -> dict[str, Any]:
        return {name: join([get(part)[name] for part in parts]) for name in get(parts[0])}

    return Examples(
        ids=_end_to_end([part.ids for part in parts]),
        tokens=each(lambda part: part.tokens, np.concatenate),
        arrays=each(lambda part: part.arrays, np.concatenate),
        decoder=None if parts[0].decoder is None else _end_to_end([p.decoder for p in parts]),
        rows=np.concatenate(numbers),
        group=parts[0].group,
        truncated=sum(part.truncated for part in parts),
    )


def _end_to_end(parts: Sequence[Ragged]) -> Ragged:
    ends = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    return Ragged(
        np.concatenate([part.values for part in parts]), np.concatenate([*offsets, ends[-1:]])
    )


@dataclass(frozen=True, eq=False)  # itself alone: loaders are kept by it
class StreamLoader:
    """Batches of windows, one after another; see `Loader`, whose interface it has.

    Attributes:
        starts: the first step of each window that was read, and of the next. A checkpoint has
            them, so that no window before its position is tokenized again.
    """

    windows: Windows
    batch_size: int
    layout: Layout
    seed: int
    local: Callable[[int], np.ndarray] = np.arange
    vary: Vary | None = None
    starts: list[int] = field(default_factory=lambda: [0])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    steps_per_epoch = None  # a stream has no end

    def begun(self, step: int) -> Examples | None:
        """The window that a step is the first of; None where it is in the midst of one."""
        examples, _ = self._find(step)
        return examples if step == self.starts[bisect_right(self.starts, step) - 1] else None

    def at(self, step: int) -> Batch:
        return batch_of(*self._find(step), self.local)

    def ahead(self, step: int, count: int) -> Iterator[tuple[int, Batch]]:
        self._find(step)  # so that the window's first step is known
        window = bisect_right(self.starts, step) - 1
        examples, plan = _loader(self, window).epoch(window)
        number = step - self.starts[window]
        for at, planned in first_of_each(plan[number : number + count]):
            yield step + at, batch_of(examples, planned, self.local)

    def iterate(self, steps: int) -> grain.DatasetIterator:
        return prefetched(self.at, steps)

    def _find(self, step: int) -> tuple[Examples, Planned]:
        with self._lock:
            while step >= self.starts[-1]:
                window = len(self.starts) - 1
                _, plan = _loader(self, window).epoch(window)
                self.starts.append(self.starts[-1] + len(plan))
        window = bisect_right(self.starts, step) - 1
        examples, plan = _loader(self, window).epoch(window)
        return examples, plan[step - self.starts[window]]


@lru_cache(maxsize=KEPT)
def _loader(stream: StreamLoader, window: int) -> Loader:
    examples = stream.windows[window]
    layout, seed = stream.layout, stream.seed
    return Loader(examples, stream.batch_size, layout, seed, stream.local, stream.vary)
