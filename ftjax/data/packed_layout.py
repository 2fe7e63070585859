"""The shapes of packed rows, chosen by packing some batches on trial."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from ftjax.data.planning import Layout, drawn_together, pack, round_up

CANDIDATES = 512  # lengths of packed rows that are tried at most
COVERED = 0.9  # of groups of batches that fit in the usual number of rows
DRAWN = 16  # groups of batches, at least, that the length of long packed rows is chosen by


@dataclass(frozen=True)
class _Sample:
    """Batches that are packed on trial, to see which rows they take.

    Attributes:
        lengths: of the examples.
        groups: batches that are packed as one, of each its examples.
        together: see `Layout`.
        multiple: see `Layout`.
        tried: groups that are packed to rows of a length.
        inserted: tokens that a row grows by for each example that it can hold.
    """

    lengths: np.ndarray
    groups: list[list[np.ndarray]]
    together: int
    multiple: int
    tried: int
    inserted: int

    @cached_property
    def longest(self) -> np.ndarray:
        """The longest example of each group."""
        return np.array([self.lengths[np.concatenate(group)].max() for group in self.groups])

    @property
    def covered(self) -> float:
        return COVERED if self.together > 1 else 1

    def places(self, length: int) -> int:
        """Twice the mean, so that a row of short examples does not make all rows wide; or fewer,
        where each that is free costs virtual tokens."""
        if length not in self._places:
            most = int(np.ceil(2 * length / self.lengths.mean()))
            counts = range(1, most + 1) if self.inserted else (most,)
            # Each by itself while few, then in steps of an eighth.
            counts = [n for n in counts if n == most or n % max(1, n // 8) == 0]
            cost = partial(self.cost_of, length)
            self._places[length] = counts[0] if len(counts) == 1 else min(counts, key=cost)
        return self._places[length]

    @cached_property
    def _places(self) -> dict[int, int]:
        """By length what `places` has given."""
        return {}

    def rows(self, length: int, places: int) -> int:
        """How many rows a batch usually takes."""
        usual, needed = self.multiple if self.together == 1 else 1, []
        for number in np.flatnonzero(self.longest <= length)[: self.tried]:
            group = self.groups[number]
            packed = pack(self.lengths[np.concatenate(group)], length, places)
            needed.append(round_up(-(-len(packed) // len(group)), usual))
        return int(np.quantile(needed, self.covered))

    def cost(self, length: int) -> float:
        return self.cost_of(length, self.places(length))

    def cost_of(self, length: int, places: int) -> float:
        # Attention's share grows with the length; 1 / 400 is that of a small model on a CPU.
        grown = length + places * self.inserted
        return self.rows(length, places) * grown * (1 + grown / 400)

    def held(self, length: int) -> tuple[float, int]:
        """Tokens that a batch's rows hold, in the mean, and how many rows it usually has."""
        sizes = []
        for group in self.groups[: self.tried]:
            examples = self.lengths[np.concatenate(group)]
            count = len(pack(examples, length, self.places(length)))
            sizes += [len(part) for part in np.array_split(range(count), len(group))]
        usual = int(np.quantile(sizes, self.covered))
        grown = length + self.places(length) * self.inserted
        return grown * float(np.maximum(sizes, usual).mean()), usual

    def layout(self, chosen: tuple[int, ...], rows: Sequence[int]) -> Layout:
        """Of rows of the chosen lengths, so many of each."""
        counts = tuple(round_up(count, self.multiple) for count in rows)
        most = self.places(chosen[-1])
        return Layout(
            chosen, rows=counts, places=most, together=self.together, multiple=self.multiple
        )


def packed_layout(
    lengths: np.ndarray,
    batch_size: int,
    multiple: int = 1,
    count: int = 2,
    together: int = 1,
    longest_row: int = 0,
    longest_example: int = 0,
    inserted: int = 0,
) -> Layout:
    """The shapes of packed rows that take `batch_size` examples at least cost.

    One length, from the longest example's to twice that; or two, if `count` allows, where few
    batches hold an example that the shorter does not take and that saves 3%. Lengths are divisible
    by 4. Rows are counted by packing the first batches of an epoch.

    Where batches are packed together, which examples each has depends on the lengths: so these do
    not depend on `multiple`, and a run can go on on another mesh.

    Where `longest_row` is given, one length of at most that many tokens and at least half of them,
    with the least padding: for long rows whose attention costs no more, as by kernels that skip
    other examples. Rows have room for `longest_example`, which `lengths` may lack, and grow by
    `inserted` virtual tokens for each example that they can hold.
    """
    groups = drawn_together(lengths, batch_size, together, np.random.default_rng(0))
    # Few candidates and few examples, also where both are large.
    tried = min(64, max(4, 2048 // (batch_size * together)))
    sample = _Sample(lengths, groups, together, multiple, tried, inserted)
    top = round_up(max(int(lengths.max()), longest_example), 4)
    step = 4 if together > 1 else round_up(top // 32, 4)
    if longest_row:
        # No row holds more than what is packed together, nor are thousands of lengths tried.
        limit = max(int(lengths[np.concatenate(group)].sum()) for group in groups)
        high = max(top, min(longest_row, round_up(limit, 4)))
        low = max(top, high // 2)
        step = max(step, round_up((high - low) // CANDIDATES, 4))
        draws = range(-(-DRAWN // len(groups)))  # few examples are drawn again, as in later epochs
        randoms = map(np.random.default_rng, draws)
        again = partial(drawn_together, lengths, batch_size, together)
        drawn = [group for random in randoms for group in again(random)]
        drawn = replace(sample, groups=drawn)
        candidates = range(low, high + 1, step)
        (_, rows), only = min((drawn.held(length), length) for length in candidates)
        return sample.layout((only,), (rows,))
    full = min(range(top, 2 * top, step), key=sample.cost)
    chosen, least, longest = (full,), 0.97 * sample.cost(full), sample.longest
    shorter = range(round_up(int(np.median(longest)), 4), top, step) if count > 1 else ()
    for short in shorter:
        share = (longest <= short).mean()
        mixed = share * sample.cost(short) + (1 - share) * sample.cost(full)
        if mixed < least:
            chosen, least = (short, full), mixed
    most = sample.places(chosen[-1])
    return sample.layout(chosen, [sample.rows(length, most) for length in chosen])
