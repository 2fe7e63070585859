"""Random numbers of examples: the same in whatever batch, host or step an example is.

Each is a hash of the example's number and of the place in the example (SplitMix64, Steele et al.
2014), so that those of a whole batch are drawn at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MOST = 2**21  # examples whose numbers fit beside what is drawn


@dataclass(frozen=True)
class Draws:
    """What is drawn for some examples.

    Attributes:
        seed: numbers, as of a run and its epoch.
        numbers: (examples,) which examples they are.
    """

    seed: Sequence[int]
    numbers: np.ndarray

    @classmethod
    def of(cls, seed: Sequence[int], count: int) -> "Draws":
        """Of all examples of an epoch."""
        return cls(seed, np.arange(count))

    def generator(self) -> np.random.Generator:
        """One for all examples together, whichever they are."""
        return np.random.default_rng(self.seed)

    def bits(self, sizes: np.ndarray, which: int) -> np.ndarray:
        """`sizes` numbers of 64 random bits for each example, end to end.

        Args:
            sizes: (examples,).
            which: tells the draws of one purpose from those of others.
        """
        first = np.random.SeedSequence((*self.seed, which)).generate_state(1, np.uint64)
        keys = _mixed(first + GOLDEN * self.numbers.astype(np.uint64))
        return _mixed(np.repeat(keys, sizes) + GOLDEN * within(sizes).astype(np.uint64))

    def uniform(self, sizes: np.ndarray, which: int) -> np.ndarray:
        """As `bits`, numbers from 0 to below 1."""
        return (self.bits(sizes, which) >> np.uint64(11)) * 2.0**-53


def within(sizes: np.ndarray) -> np.ndarray:
    """The numbers from 0 to below each size, end to end."""
    starts = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) - np.repeat(starts, sizes)


def ranks(sizes: np.ndarray, bits: np.ndarray, later: np.ndarray) -> np.ndarray:
    """The rank of each thing among those of its example.

    Args:
        sizes: (examples,) things of each, which are end to end.
        bits: 64 random ones a thing.
        later: 0 to 3; things of a higher number come after all of a lower one.
    """
    example = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    drawn = (bits >> np.uint64(24)).astype(np.int64)  # 40 bits: what is left are the examples'
    if len(sizes) <= MOST:
        order = np.argsort((example << 42) | (later.astype(np.int64) << 40) | drawn, kind="stable")
    else:
        order = np.lexsort((drawn, later, example))  # the same, in more time
    rank = np.empty(len(order), np.int64)
    rank[order] = within(sizes)
    return rank


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output of states."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
