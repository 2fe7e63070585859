"""Batches by plan, on every host its part. Grain runs the plan: it prefetches, and its iterator's
state is what a checkpoint holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import grain
import numpy as np

from ftjax.data.draws import Draws, within
from ftjax.data.encode import IDS, Examples, Ragged
from ftjax.data.memo import Memo
from ftjax.data.planning import EMPTY, Layout, Planned, plan_epoch

KEPT = 3  # epochs in memory: the one that is trained on, the one that is read, and the next


@dataclass(frozen=True)
class Vary:
    """What makes of examples those of an epoch.

    Attributes:
        transform: of some examples, by what is drawn for each.
        lengths: of examples those of what is made of them, and of what is then written, if
            anything: they do not depend on what is drawn, so that an epoch is planned by them and
            each batch is made as it comes. None: the examples of an epoch are made together.
    """

    transform: Callable[[Examples, Draws], Examples]
    lengths: Callable[[Examples], tuple[np.ndarray, np.ndarray | None]] | None = None

    def __call__(self, examples: Examples, draws: Draws) -> Examples:
        return self.transform(examples, draws)

    def shaped(self, examples: Examples) -> Examples:
        """Examples of the lengths of those of an epoch, where that is known, with no tokens."""
        if self.lengths is None:
            return self(examples, Draws.of((0,), len(examples)))
        read, written = self.lengths(examples)
        decoder = examples.decoder if written is None else _empty(written)
        return replace(examples, ids=_empty(read), tokens={}, decoder=decoder)


def _empty(lengths: np.ndarray) -> Ragged:
    return Ragged(np.zeros(0, np.int32), np.cumsum([0, *lengths], dtype=np.int64))


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


@dataclass(frozen=True)
class Epoch:
    """The examples of an epoch, and its plan.

    Attributes:
        examples: as they are, or made by `vary`.
        plan: its batches.
        shaped: with the lengths that batches have.
        vary: makes those of a batch; None: they are made.
        seed: of what it draws, numbers.
    """

    examples: Examples
    plan: list[Planned]
    shaped: Examples
    vary: Vary | None = None
    seed: tuple[int, ...] = ()

    def batch(self, number: int, local: Callable[[int], np.ndarray] = np.arange) -> Batch:
        """A planned batch; `local` as of `Loader`."""
        planned = self.plan[number]
        return Batch(planned, counted(self.shaped, planned), self.arrays(number, local))

    def ahead(
        self, first: int, count: int, local: Callable[[int], np.ndarray] = np.arange
    ) -> Iterator[tuple[int, Batch]]:
        """Of `count` batches from one on, the first of each shape, with its number."""
        seen = set()
        for number, planned in enumerate(self.plan[first : first + count], first):
            shape = planned.places.shape, planned.length, planned.written
            if shape not in seen:
                seen.add(shape)
                yield number, self.batch(number, local)

    def arrays(self, number: int, local: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
        """This host's part of a batch, whose examples alone are made."""
        planned = self.plan[number]
        if self.vary is None:
            return make_batch(self.examples, planned, local)
        own = planned._replace(places=planned.places[local(len(planned.places))])
        numbers = own.examples if len(own.examples) else np.zeros(1, int)  # for its form
        varied = self.vary(taken(self.examples, numbers), Draws(self.seed, numbers))
        places = np.full(own.places.shape, EMPTY)
        places[own.places != EMPTY] = np.arange(len(own.examples))
        return make_batch(varied, own._replace(places=places))


def taken(examples: Examples, numbers: np.ndarray) -> Examples:
    """Some examples, in an order."""
    sequences = (numbers[:, None] * examples.group + np.arange(examples.group)).ravel()
    starts, ends = examples.ids.offsets[sequences], examples.ids.offsets[sequences + 1]
    at = _ranges(starts, ends)
    decoder = examples.decoder
    if decoder is not None:
        written = _ranges(decoder.offsets[numbers], decoder.offsets[numbers + 1])
        sizes = decoder.offsets[numbers + 1] - decoder.offsets[numbers]
        decoder = Ragged(decoder.values[written], np.cumsum([0, *sizes], dtype=np.int64))
    return Examples(
        ids=Ragged(examples.ids.values[at], np.cumsum([0, *(ends - starts)], dtype=np.int64)),
        tokens={name: values[at] for name, values in examples.tokens.items()},
        arrays={name: array[numbers] for name, array in examples.arrays.items()},
        decoder=decoder,
        rows=examples.row_numbers[numbers],
        group=examples.group,
    )


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The numbers from each start to its end, end to end."""
    return within(ends - starts) + np.repeat(starts, ends - starts)


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

    _epochs: Memo[Epoch] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = (self.examples, self.layout, self.batch_size, self.seed, self.vary)
        object.__setattr__(self, "_epochs", Memo(partial(epoch_of, *parts), KEPT))

    @property
    def steps_per_epoch(self) -> int:
        """Of a shuffled epoch."""
        return -(-len(self.examples) // self.batch_size)

    def epoch(self, number: int) -> Epoch:
        return self._epochs(number)

    def at(self, step: int) -> Batch:
        """The batch of a step, counted over epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self.epoch(epoch).batch(number, self.local)

    def ahead(self, step: int, count: int) -> Iterator[tuple[int, Batch]]:
        """From a step on, to its epoch's end or for `count` steps: the first batch of each shape.

        Yields:
            Its step, and the batch.
        """
        epoch, first = divmod(step, self.steps_per_epoch)
        for number, batch in self.epoch(epoch).ahead(first, count, self.local):
            yield step + number - first, batch

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
        epoch = self.epoch(0)
        for number, planned in enumerate(epoch.plan):
            yield planned, epoch.arrays(number, self.local)


def epoch_of(
    examples: Examples,
    layout: Layout,
    batch_size: int,
    seed: int | None,
    vary: Vary | None,
    number: int,
) -> Epoch:
    """The examples of an epoch, and its plan; arguments as of `Loader`."""
    draws, shaped = (seed or 0, number, 1), examples
    if vary is not None and vary.lengths is None:
        examples = shaped = vary(examples, Draws.of(draws, len(examples)))
        vary = None
    elif vary is not None:
        shaped = vary.shaped(examples)
    written = None if shaped.decoder is None else shaped.decoder.lengths
    plan = plan_epoch(shaped.lengths, layout, batch_size, seed, number, written)
    return Epoch(examples, plan, shaped, vary, draws)


def prefetched(at: Callable[[int], Batch], steps: int) -> grain.DatasetIterator:
    """`at` of steps 0 to `steps` - 1, ahead of their use; its state can be got and set."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(steps).map(at).to_iter_dataset(options))


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
    tokens = _token_arrays(examples, inside, index)
    return {**batch, **tokens, "attention_mask": inside.astype(np.int32)}


def _index(sequences: Ragged, places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of padded sequences are, and which are real: (*places, length)."""
    sizes = _lengths(sequences, places)
    inside = np.arange(length) < sizes[..., None]
    starts = sequences.offsets[:-1][places]
    return np.where(inside, starts[..., None] + np.arange(length), 0), inside


def _packed(examples: Examples, places: np.ndarray, length: int) -> dict[str, np.ndarray]:
    index, inside, segment, position, starts = packed_index(examples.ids, places, length)
    return {
        **_token_arrays(examples, inside, index),
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


def _token_arrays(
    examples: Examples, inside: np.ndarray, index: np.ndarray
) -> dict[str, np.ndarray]:
    named = _placed({IDS: examples.ids.values, **examples.tokens})
    return {name: _gather(values, inside, index) for name, values in named}


def _placed(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Those that are not the host's alone."""
    return [(name, array) for name, array in arrays.items() if not name.startswith("_")]


def _gather(values: np.ndarray, inside: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.where(inside, values[index], 0).astype(np.int32)
