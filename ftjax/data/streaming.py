"""Training data larger than memory, and of several sources at once: window after window.

A window is a fixed number of rows, of each source its share, planned as if it were an epoch. So
which rows a step has is a function of its number, the configuration and the sources alone, and a
position in the data is one number, also on another mesh or number of hosts.
"""

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import datasets
import grain
import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.loading import Loader, prefetched
from ftjax.data.planning import Layout, Planned
from ftjax.data.preparation.pipeline import passed
from ftjax.data.sources import Opened, Split, checked
from ftjax.errors import UserError, require

KEPT = 4  # windows in memory


@dataclass
class Source:
    """Rows of one source, read again and again.

    Attributes:
        opened: the source.
        weight: share of a window, before the shares are made to sum to 1.
        label: what labels are, a key of `LABELS`; None where rows need none.
        skip: leave out and count bad rows, instead of stopping.
        steps: of `data.prepare` that training rows go through, by name.
        skipped: messages of the first pass's bad rows.
        dropped: step → rows of the first pass that it dropped.
    """

    opened: Opened
    weight: float = 1.0
    label: str | None = "name"
    skip: bool = False
    steps: Sequence[tuple[str, Any]] = ()
    skipped: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._at, self._rows = 0, self._passes()

    def _passes(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            good = 0
            for row in checked(self.opened, self.label):
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
        UserError: some have pairs and some have not.
    """
    same = {part.type_ids is None for part in parts}
    require(len(same) == 1, "data.mixture: rows of pairs and of single texts are mixed")
    ends = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    names = parts[0].arrays
    return Examples(
        ids=np.concatenate([part.ids for part in parts]),
        offsets=np.concatenate([*offsets, ends[-1:]]),
        type_ids=None if same == {True} else np.concatenate([part.type_ids for part in parts]),
        arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in names},
        truncated=sum(part.truncated for part in parts),
    )


@dataclass(frozen=True, eq=False)  # itself alone: loaders are kept by it
class StreamLoader:
    """Batches of windows, one after another; see `Loader`, whose interface it has."""

    windows: Windows
    batch_size: int
    layout: Layout
    seed: int
    local: Callable[[int], np.ndarray] = np.arange

    steps_per_epoch = None  # a stream has no end

    def planned(self, step: int) -> Planned:
        return self._find(step)[1]

    def at(self, step: int) -> dict[str, np.ndarray]:
        loader, planned = self._find(step)
        return loader.batch(planned)

    def counts(self, step: int) -> tuple[int, int]:
        loader, planned = self._find(step)
        return loader.tokens(planned), self.batch_size

    def iterate(self, steps: int) -> grain.DatasetIterator:
        return prefetched(self.at, steps)

    def _find(self, step: int) -> tuple[Loader, Planned]:
        window, number = divmod(step, self.windows.size // self.batch_size)
        loader = _loader(self, window)
        return loader, loader.plan(window)[number]


@lru_cache(maxsize=KEPT)
def _loader(stream: StreamLoader, window: int) -> Loader:
    examples = stream.windows[window]
    return Loader(examples, stream.batch_size, stream.layout, stream.seed, stream.local)
