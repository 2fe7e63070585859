"""Batches by plan, on every host its part. Grain runs the plan: it prefetches, and its iterator's
state is what a checkpoint holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from ftjax.data.encode import IDS, Examples, Ragged
from ftjax.data.once import Once
from ftjax.data.planning import EMPTY, Layout, Planned, plan_epoch

Vary = Callable[[Examples, np.random.Generator], Examples]
KEPT = 3  # epochs in memory: the one that is trained on, the one that is read, and the next


class Counts(NamedTuple):
    """What a global batch holds: real tokens, examples, and places for tokens."""

    tokens: int
    examples: int
    slots: int


class Batch(NamedTuple):
    """A global batch, as one host has it.

    Attributes:
        planned: which examples lie where.
        counts: what all hosts' parts hold.
        arrays: this host's part; see `make_batch`.
    """

    planned: Planned
    counts: Counts
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of a split.

    Attributes:
        examples: the rows.
        batch_size: examples of a global batch; the partial one has places of weight 0.
        layout: the shapes of batches.
        seed: of the shuffle; None keeps the order.
        local: how many rows a global batch has → which of them this host holds.
        vary: makes of the examples those of an epoch, as with other tokens masked; None where
            they are the same in all.
    """

    examples: Examples
    batch_size: int
    layout: Layout
    seed: int | None
    local: Callable[[int], np.ndarray] = np.arange
    vary: Vary | None = None

    _epochs: Once[tuple[Examples, list[Planned]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = (self.examples, self.layout, self.batch_size, self.seed, self.vary)
        object.__setattr__(self, "_epochs", Once(partial(epoch_of, *parts), KEPT))

    @property
    def steps_per_epoch(self) -> int:
        """Of a shuffled epoch."""
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, number: int) -> tuple[Examples, list[Planned]]:
        """The examples of an epoch, and its plan."""
        return self._epochs(number)

    def at(self, step: int) -> Batch:
        """The batch of a step, counted over epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        examples, plan = self.epoch(epoch)
        return batch_of(examples, plan[number], self.local)

    def ahead(self, step: int, count: int) -> Iterator[tuple[int, Batch]]:
        """From a step on, to its epoch's end or for `count` steps: the first batch of each shape.

        Yields:
            Its step, and the batch.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        examples, plan = self.epoch(epoch)
        for at, planned in first_of_each(plan[number : number + count]):
            yield step + at, batch_of(examples, planned, self.local)

    def iterate(self, steps: int) -> grain.DatasetIterator:
        """Batches of steps 0 to `steps` - 1, prefetched; its state can be got and set.

        While an epoch is read, the next is planned.
        """

        def at(step: int) -> Batch:
            batch, following = self.at(step), step // self.steps_per_epoch + 1
            if following * self.steps_per_epoch < steps:
                self._epochs.begin(following)
            return batch

        return prefetched(at, steps)

    def __iter__(self) -> Iterator[tuple[Planned, Mapping[str, np.ndarray]]]:
        """One epoch in plan order, with the plan: for evaluation."""
        examples, plan = self.epoch(0)
        for planned in plan:
            yield planned, make_batch(examples, planned, self.local)


def epoch_of(
    examples: Examples,
    layout: Layout,
    batch_size: int,
    seed: int | None,
    vary: Vary | None,
    number: int,
) -> tuple[Examples, list[Planned]]:
    """The examples of an epoch, and its plan; arguments as of `Loader`."""
    if vary is not None:
        examples = vary(examples, np.random.default_rng((seed or 0, number, 1)))
    written = None if examples.decoder is None else examples.decoder.lengths
    plan = plan_epoch(examples.lengths, layout, batch_size, seed, number, written)
    return examples, plan


def prefetched(at: Callable[[int], Batch], steps: int) -> grain.DatasetIterator:
    """`at` of steps 0 to `steps` - 1, ahead of their use; its state can be got and set."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(steps).map(at).to_iter_dataset(options))


def batch_of(
    examples: Examples, planned: Planned, local: Callable[[int], np.ndarray] = np.arange
) -> Batch:
    """A planned batch; `local` as of `Loader`."""
    return Batch(planned, counted(examples, planned), make_batch(examples, planned, local))


def first_of_each(plan: Sequence[Planned]) -> Iterator[tuple[int, Planned]]:
    """The first batch of each shape, and its number."""
    seen = set()
    for number, planned in enumerate(plan):
        shape = planned.places.shape, planned.length, planned.written
        if shape not in seen:
            seen.add(shape)
            yield number, planned


def counted(examples: Examples, planned: Planned) -> Counts:
    """Counts of a planned batch."""
    slots = len(planned.places) * (examples.group * planned.length + planned.written)
    numbers = planned.examples
    tokens = _lengths(examples.ids, numbers, examples.group).sum()
    if examples.decoder is not None:
        tokens += _lengths(examples.decoder, numbers).sum()
    return Counts(int(tokens), len(numbers), slots)


def _lengths(sequences: Ragged, numbers: np.ndarray, group: int = 1) -> np.ndarray:
    """Of some groups of sequences, not of all, which are many; 0 where there is none."""
    first, end = numbers * group, (numbers + 1) * group
    return np.where(numbers == EMPTY, 0, sequences.offsets[end] - sequences.offsets[first])


def make_batch(
    examples: Examples, planned: Planned, local: Callable[[int], np.ndarray] = np.arange
) -> dict[str, np.ndarray]:
    """This host's part of a batch.

    Arrays, an element a place, (rows,) or packed (rows, places): the examples' arrays; weights, 0
    where no example lies; packed: starts, the position of its first token. An element a token,
    (rows, length), or (rows, group, length): input_ids; the examples' others; attention_mask, or
    packed segment_ids (1 is the first example of its row, 0 padding) and position_ids. Of second
    sequences (rows, written): targets and target_weights.
    """
    places = planned.places[local(len(planned.places))]
    batch = {name: array[places] for name, array in _placed(examples.arrays)}
    batch["weights"] = (places != EMPTY).astype(np.float32)
    if not len(examples.ids.values):
        return batch
    if places.ndim == 2:
        return batch | _packed(examples, places, planned.length)
    if examples.decoder is not None:
        index, inside = _index(examples.decoder, places, planned.written)
        batch["targets"] = _gather(examples.decoder.values, inside, index)
        batch["target_weights"] = inside.astype(np.float32)
    if examples.group > 1:
        numbers = places[:, None] * examples.group + np.arange(examples.group)
        places = np.where(places[:, None] == EMPTY, EMPTY, numbers)
    index, inside = _index(examples.ids, places, planned.length)
    each = _each(examples, inside, index)
    return {**batch, **each, "attention_mask": inside.astype(np.int32)}


def _index(sequences: Ragged, places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of padded sequences are, and which are real: (*places, length)."""
    sizes = _lengths(sequences, places)
    inside = np.arange(length) < sizes[..., None]
    starts = sequences.offsets[:-1][places]
    return np.where(inside, starts[..., None] + np.arange(length), 0), inside


def _packed(examples: Examples, places: np.ndarray, length: int) -> dict[str, np.ndarray]:
    index, inside, segment, position, starts = packed_index(examples.ids, places, length)
    return {
        **_each(examples, inside, index),
        "segment_ids": np.where(inside, segment + 1, 0).astype(np.int32),
        "position_ids": position.astype(np.int32),
        "starts": np.minimum(starts, length - 1).astype(np.int32),
    }


def packed_index(sequences: Ragged, places: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
    """Where the values of packed sequences are, which are real, whose each is, and its position in
    it: (rows, length); and where each starts (rows, places)."""
    sizes = _lengths(sequences, places)
    ends = np.cumsum(sizes, 1)
    starts = ends - sizes
    token = np.arange(length)
    segment = (token[None, :, None] >= ends[:, None]).sum(-1)  # which place a token belongs to
    inside = segment < places.shape[1]
    segment = np.minimum(segment, places.shape[1] - 1)
    position = np.where(inside, token - np.take_along_axis(starts, segment, 1), 0)
    example = np.take_along_axis(places, segment, 1)
    index = np.where(inside, sequences.offsets[:-1][example] + position, 0)
    return index, inside, segment, position, starts


def token_index(examples: Examples, planned: Planned) -> tuple[np.ndarray, np.ndarray]:
    """Of a global batch's tokens (rows, length): where they are in `examples.ids`, and which are
    real."""
    if planned.places.ndim == 2:
        return packed_index(examples.ids, planned.places, planned.length)[:2]
    return _index(examples.ids, planned.places, planned.length)


def _each(examples: Examples, inside: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    named = _placed({IDS: examples.ids.values, **examples.tokens})
    return {name: _gather(values, inside, index) for name, values in named}


def _placed(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Those that are not the host's alone."""
    return [(name, array) for name, array in arrays.items() if not name.startswith("_")]


def _gather(values: np.ndarray, inside: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.where(inside, values[index], 0).astype(np.int32)
