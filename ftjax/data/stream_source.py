"""The rows of one source of a stream: read again and again, from any position."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ftjax.data.fields import Schema
from ftjax.data.lazy_split import BEGIN, LazySplit, Mark
from ftjax.data.preparation.pipeline import passed
from ftjax.errors import UserError, require

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a source is read on.

    Attributes:
        passes: over the source, that are done.
        files: of this pass that are done.
        rows: of the file that were read, good and bad.
        good: of those of this pass, what was given.
        skipped: bad rows of the first pass.
        dropped: step → rows of the first pass that it dropped.
        mark: before those, from which on the file is read.
    """

    passes: int = 0
    files: int = 0
    rows: int = 0
    good: int = 0
    skipped: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    mark: Mark = BEGIN

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Place":
        """Of what JSON has; earlier versions kept no mark."""
        return cls(**{**saved, "mark": Mark(*saved.get("mark", BEGIN))})


@dataclass(frozen=True)
class Position:
    """Where rows are taken from: a place, and how far the shuffled rows from there are taken.

    Attributes:
        place: where the buffer of rows begins.
        number: of buffers before.
        taken: rows of the buffer.
    """

    place: Place = Place()
    number: int = 0
    taken: int = 0

    def saved(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Position":
        return cls(**{**saved, "place": Place.read(saved["place"])})


START = Position()


@dataclass(frozen=True)
class Source:
    """What the rows of one source are, and in which order.

    Attributes:
        split: the source.
        schema: what rows must be.
        weight: share of a window, before the shares are made to sum to 1.
        skip: leave out and count bad rows, instead of stopping.
        steps: of `data.prepare` that training rows go through, by name.
        buffer: rows that are shuffled together before they are given, of files in an order that is
            shuffled too; 0: they come as they are.
        seed: of the shuffle, numbers.
    """

    split: LazySplit
    schema: Schema
    weight: float = 1.0
    skip: bool = False
    steps: Sequence[tuple[str, Any]] = ()
    buffer: int = 0
    seed: tuple[int, ...] = (0,)

    def rows_from(self, place: Place) -> Iterator[tuple[dict[str, Any], Place]]:
        """Good rows of all passes from a place on, unshuffled, and the place after each.

        Raises:
            UserError: a bad row, which is named, where they are not skipped.
        """
        passes, done, number, good = place.passes, place.files, place.rows, place.good
        skipped, dropped, begin = place.skipped, place.dropped, place.mark
        while True:
            for files, file in list(enumerate(self._files(passes)))[done:]:
                for row, mark in file.checked_from(self.schema, number, begin):
                    number, by = number + 1, ""
                    if isinstance(row, UserError):
                        if not self.skip:
                            raise row
                        skipped += not passes
                        continue
                    row, by = passed(row, self.steps)
                    if row is not None:
                        good += 1
                        yield row, Place(passes, files, number, good, skipped, dropped, mark)
                    elif not passes:
                        dropped = {**dropped, by: dropped.get(by, 0) + 1}
                number, begin = 0, BEGIN
            left = f" that data.prepare leaves ({dropped})" if dropped else ""
            require(good > 0, f"{self.split.file} has no rows{left}")
            passes, done, good = passes + 1, 0, 0

    def _files(self, passes: int) -> Sequence[LazySplit]:
        """Those of the source in the order of a pass: shuffled as rows are."""
        files = self.split.files
        if not self.buffer:
            return files
        order = np.random.default_rng((*self.seed, passes, len(files))).permutation(len(files))
        return [files[number] for number in order]

    def shuffled(self, rows: Rows, number: int) -> Rows:
        """The rows of a buffer, of which there are `number` before."""
        order = np.random.default_rng((*self.seed, number)).permutation(len(rows))
        return [rows[i] for i in order]


class Cursor:
    """Takes rows of a source from any position; those that follow the last ones are at hand."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._place: Place | None = None  # where the open rows go on; None: none are open
        self._rows: Iterator[tuple[dict[str, Any], Place]] = iter(())
        self._buffered: tuple[Any, Rows, Place] = (None, [], Place())

    def take(self, position: Position, count: int) -> tuple[Rows, Position]:
        """The next good rows of all passes, end to end, and where it goes on.

        Raises:
            UserError: a bad row, which is named, where they are not skipped.
        """
        if not self.source.buffer:
            rows, place = self._read(position.place, count)
            return rows, Position(place)
        taken: Rows = []
        while len(taken) < count:
            rows, after = self._buffer(position)
            end = position.taken + count - len(taken)
            taken += rows[position.taken : end]
            position = Position(position.place, position.number, min(end, len(rows)))
            if position.taken == len(rows):
                position = Position(after, position.number + 1)
        return taken, position

    def _buffer(self, position: Position) -> tuple[Rows, Place]:
        """The shuffled rows that a position is in, and the place after them."""
        key = position.place, position.number
        if self._buffered[0] != key:
            rows, after = self._read(position.place, self.source.buffer)
            self._buffered = key, self.source.shuffled(rows, position.number), after
        return self._buffered[1:]

    def _read(self, place: Place, count: int) -> tuple[Rows, Place]:
        """Good rows in the source's order."""
        if place != self._place:
            self._place, self._rows = place, self.source.rows_from(place)
        try:
            pairs = list(itertools.islice(self._rows, count))
        except BaseException:  # a generator that has raised is at its end
            self._place = None
            raise
        self._place = pairs[-1][1] if pairs else place
        return [row for row, _ in pairs], self._place
