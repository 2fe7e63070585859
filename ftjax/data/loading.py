"""Batches by plan: which rows, at which length, in which order, on which host.

The plan of an epoch is a pure function of lengths, seed and epoch, so that a position in the data
is one number, whatever the number of hosts. Grain runs the plan: it prefetches, and its
iterator's state is what a checkpoint holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np

from ftjax.data.encode import Examples

MULTIPLE = 8  # lengths are rounded up to it


def choose_buckets(lengths: np.ndarray, count: int, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """At most `count` lengths that together need the least padding.

    Exact, by dynamic programming over the distinct rounded lengths: the cost of a bucket is its
    length times the rows it takes.
    """
    rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
    sizes, rows = np.unique(rounded, return_counts=True)
    taken = np.concatenate([[0], np.cumsum(rows)])
    best = [(0, ())] + [(np.inf, ())] * len(sizes)  # by number of sizes covered
    for _ in range(min(count, len(sizes))):
        best = [best[0]] + [
            min(
                best[j],
                *(
                    (best[i][0] + sizes[j - 1] * (taken[j] - taken[i]), (*best[i][1], j - 1))
                    for i in range(j)
                ),
                key=lambda cost: cost[0],
            )
            for j in range(1, len(sizes) + 1)
        ]
    return tuple(int(sizes[i]) for i in best[-1][1])


class Planned(NamedTuple):
    """One global batch: row numbers, and the length they are padded to."""

    rows: np.ndarray
    length: int


def plan_epoch(
    lengths: np.ndarray, buckets: tuple[int, ...], batch_size: int, seed: int | None, epoch: int
) -> list[Planned]:
    """Every row once: full batches of one bucket each, then one partial batch.

    What a bucket leaves over joins the next longer one, so that only the last batch of the
    longest is partial. Without a seed rows keep their order inside a bucket.
    """
    random = None if seed is None else np.random.default_rng((seed, epoch))
    order = np.arange(len(lengths)) if random is None else random.permutation(len(lengths))
    bucket = np.searchsorted(buckets, lengths[order])
    batches, left = [], np.zeros(0, order.dtype)
    for number, length in enumerate(buckets):
        rows = np.concatenate([left, order[bucket == number]])
        full = len(rows) // batch_size * batch_size
        batches += [Planned(part, length) for part in rows[:full].reshape(-1, batch_size)]
        left = rows[full:]
    if len(left):
        fits = int(np.searchsorted(buckets, lengths[left].max()))
        batches.append(Planned(left, buckets[fits]))
    if random is not None:
        batches = [batches[i] for i in random.permutation(len(batches))]
    return batches


@dataclass(frozen=True)
class Loader:
    """Batches of a split.

    Attributes:
        examples: the rows.
        batch_size: rows of a global batch; the partial one is filled with rows of weight 0.
        buckets: lengths; the last takes the longest row.
        seed: of the shuffle; None keeps the order.
        local: which rows of a global batch this host holds.
    """

    examples: Examples
    batch_size: int
    buckets: tuple[int, ...]
    seed: int | None
    local: np.ndarray

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def plan(self, epoch: int) -> list[Planned]:
        return _plan(self, epoch)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """This host's part of the batch of a step, counted over epochs.

        Arrays: input_ids, attention_mask and for pairs token_type_ids (rows, length), or cached
        features; the examples' arrays; weights (rows,), 0 where a row only fills the batch.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        planned = self.plan(epoch)[number]
        weights = (np.arange(self.batch_size) < len(planned.rows)).astype(np.float32)
        rows = np.resize(planned.rows, self.batch_size)[self.local]
        batch = {name: array[rows] for name, array in self.examples.arrays.items()}
        batch["weights"] = weights[self.local]
        if len(self.examples.ids):
            batch.update(_pad(self.examples, rows, planned.length))
        return batch

    def tokens(self, step: int) -> int:
        """Real tokens of the global batch of a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return int(self.examples.lengths[self.plan(epoch)[number].rows].sum())

    def iterate(self, steps: int) -> grain.DatasetIterator:
        """Batches of steps 0 to `steps` - 1, prefetched; its state can be got and set."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return iter(grain.MapDataset.range(steps).map(self.batch).to_iter_dataset(options))

    def __iter__(self) -> Iterator[tuple[Planned, Mapping[str, np.ndarray]]]:
        """One epoch in plan order, with the plan: for evaluation."""
        for number, planned in enumerate(self.plan(0)):
            yield planned, self.batch(number)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@lru_cache(maxsize=8)
def _plan(loader: Loader, epoch: int) -> list[Planned]:
    lengths = loader.examples.lengths
    return plan_epoch(lengths, loader.buckets, loader.batch_size, loader.seed, epoch)


def _pad(examples: Examples, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
    starts, sizes = examples.offsets[rows], examples.lengths[rows]
    inside = np.arange(length) < sizes[:, None]
    index = np.where(inside, starts[:, None] + np.arange(length), 0)

    def gather(values: np.ndarray) -> np.ndarray:
        return np.where(inside, values[index], 0).astype(np.int32)

    batch = {"input_ids": gather(examples.ids), "attention_mask": inside.astype(np.int32)}
    if examples.type_ids is not None:
        batch["token_type_ids"] = gather(examples.type_ids)
    return batch
