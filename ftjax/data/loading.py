"""Batches by plan, on every host its part. Grain runs the plan: it prefetches, and its iterator's
state is what a checkpoint holds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import grain
import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.planning import EMPTY, Layout, Planned, plan_epoch


@dataclass(frozen=True)
class Loader:
    """Batches of a split.

    Attributes:
        examples: the rows.
        batch_size: examples of a global batch; the partial one has places of weight 0.
        layout: the shapes of batches.
        seed: of the shuffle; None keeps the order.
        local: how many rows a global batch has → which of them this host holds.
    """

    examples: Examples
    batch_size: int
    layout: Layout
    seed: int | None
    local: Callable[[int], np.ndarray] = np.arange

    @property
    def steps_per_epoch(self) -> int:
        """Of a shuffled epoch."""
        return -(-len(self.examples) // self.batch_size)

    def plan(self, epoch: int) -> list[Planned]:
        return _plan(self, epoch)

    def planned(self, step: int) -> Planned:
        """The plan of a step, counted over epochs."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self.plan(epoch)[number]

    def batch(self, planned: Planned) -> dict[str, np.ndarray]:
        """This host's part of a batch.

        Arrays, an element a place, (rows,) or packed (rows, places): the examples' arrays;
        weights, 0 where no example lies; packed: starts, the position of its first token. An
        element a token, (rows, length): input_ids; for pairs token_type_ids; attention_mask, or
        packed segment_ids (1 is the first example of its row, 0 padding) and position_ids.
        """
        places = planned.places[self.local(len(planned.places))]
        batch = {name: array[places] for name, array in self.examples.arrays.items()}
        batch["weights"] = (places != EMPTY).astype(np.float32)
        if not len(self.examples.ids):
            return batch
        if places.ndim == 2:
            return batch | _packed(self.examples, places, planned.length)
        return batch | _padded(self.examples, places, planned.length)

    def at(self, step: int) -> dict[str, np.ndarray]:
        """This host's part of the batch of a step."""
        return self.batch(self.planned(step))

    def tokens(self, planned: Planned) -> int:
        """Real tokens of a global batch."""
        return int(self.examples.lengths[planned.examples].sum())

    def counts(self, step: int) -> tuple[int, int]:
        """Real tokens and examples of the global batch of a step."""
        planned = self.planned(step)
        return self.tokens(planned), len(planned.examples)

    def iterate(self, steps: int) -> grain.DatasetIterator:
        """Batches of steps 0 to `steps` - 1, prefetched; its state can be got and set."""
        return prefetched(self.at, steps)

    def __iter__(self) -> Iterator[tuple[Planned, Mapping[str, np.ndarray]]]:
        """One epoch in plan order, with the plan: for evaluation."""
        for planned in self.plan(0):
            yield planned, self.batch(planned)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def prefetched(at: Callable[[int], Mapping[str, np.ndarray]], steps: int) -> grain.DatasetIterator:
    """`at` of steps 0 to `steps` - 1, ahead of their use; its state can be got and set."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.range(steps).map(at).to_iter_dataset(options))


@lru_cache(maxsize=8)
def _plan(loader: Loader, epoch: int) -> list[Planned]:
    lengths = loader.examples.lengths
    return plan_epoch(lengths, loader.layout, loader.batch_size, loader.seed, epoch)


def _padded(examples: Examples, places: np.ndarray, length: int) -> dict[str, np.ndarray]:
    starts = examples.offsets[places]
    sizes = np.where(places == EMPTY, 0, examples.lengths[places])
    inside = np.arange(length) < sizes[:, None]
    index = np.where(inside, starts[:, None] + np.arange(length), 0)
    return {**_gather(examples, inside, index), "attention_mask": inside.astype(np.int32)}


def _packed(examples: Examples, places: np.ndarray, length: int) -> dict[str, np.ndarray]:
    sizes = np.where(places == EMPTY, 0, examples.lengths[places])
    ends = np.cumsum(sizes, 1)
    starts = ends - sizes
    token = np.arange(length)
    segment = (token[None, :, None] >= ends[:, None]).sum(-1)  # which place a token belongs to
    inside = segment < places.shape[1]
    segment = np.minimum(segment, places.shape[1] - 1)
    position = np.where(inside, token - np.take_along_axis(starts, segment, 1), 0)
    example = np.take_along_axis(places, segment, 1)
    index = np.where(inside, examples.offsets[example] + position, 0)
    return {
        **_gather(examples, inside, index),
        "segment_ids": np.where(inside, segment + 1, 0).astype(np.int32),
        "position_ids": position.astype(np.int32),
        "starts": np.minimum(starts, length - 1).astype(np.int32),
    }


def _gather(examples: Examples, inside: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    def gather(values: np.ndarray) -> np.ndarray:
        return np.where(inside, values[index], 0).astype(np.int32)

    batch = {"input_ids": gather(examples.ids)}
    if examples.type_ids is not None:
        batch["token_type_ids"] = gather(examples.type_ids)
    return batch
