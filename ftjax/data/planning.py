"""Plans: which examples lie in which places of which batch, and how long the batch's rows are.

The plan of an epoch is a pure function of lengths, layout, seed and epoch, so that a position in
the data is one number, whatever the number of hosts.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ftjax.options import Positive

EMPTY = -1  # in `Planned.places`, where no example lies
SHARE = 0.98  # of second sequences that fit where the first do


@dataclass(frozen=True)
class Layout:
    """The shapes of batches: few, since each is compiled.

    Attributes:
        lengths: a batch's rows are padded to one of these; the last takes the longest example.
        written: of each length, that of the second sequence; empty where there is none.
        rows: of a packed batch of each length, a row holding several examples; None where it
            holds one.
        places: examples that a packed row can hold.
        together: batches that are packed as one, so that less is left empty; each then has its
            examples in the mean alone.
        multiple: packed rows come in multiples of it, so that they divide over devices.
    """

    lengths: tuple[Positive, ...]
    written: tuple[Positive, ...] = ()
    rows: tuple[Positive, ...] | None = None
    places: Positive = 1
    together: Positive = 1
    multiple: Positive = 1

    def scaled(self, factor: float) -> "Layout":
        """The layout of batches `factor` times as large."""
        if self.rows is None:
            return self
        rows = (round_up(round(count * factor), self.multiple) for count in self.rows)
        return replace(self, rows=tuple(rows))


class Planned(NamedTuple):
    """One global batch.

    Attributes:
        places: example numbers, `EMPTY` where there is none: (rows,), or packed (rows, places).
        length: that rows are padded to.
        written: that second sequences are padded to; 0 where there are none.
    """

    places: np.ndarray
    length: int
    written: int = 0

    @property
    def examples(self) -> np.ndarray:
        return self.places[self.places != EMPTY]


def round_up(count: int, multiple: int) -> int:
    return max(-(-count // multiple), 1) * multiple


def bucket_layout(lengths: np.ndarray, count: int, multiple: int = 8) -> Layout:
    """At most `count` lengths, each divisible by `multiple`, that need the least padding.

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
    return Layout(tuple(int(sizes[i]) for i in best[-1][1]))


def paired_layout(
    layout: Layout, read: np.ndarray, written: np.ndarray, multiple: int = 8
) -> Layout:
    """Buckets with room for second sequences: for nearly all of those whose first ones fit.

    Lengths of the second grow with those of the first, so that an example that is long in either
    goes where both fit.
    """
    bucket, longest = np.searchsorted(layout.lengths, read), []
    for number in range(len(layout.lengths) - 1):
        among = written[bucket <= number]
        most = np.quantile(among, SHARE) if len(among) else 1
        longest.append(round_up(int(most), multiple))
    longest.append(round_up(int(written.max(initial=1)), multiple))
    return replace(layout, written=tuple(np.maximum.accumulate(longest).tolist()))


def pack(lengths: Sequence[int], capacity: int, places: int) -> list[list[int]]:
    """Rows' examples by best-fit decreasing: each, longest first, into the fullest row with room.

    A full row has no room for an example of no tokens, either. Of equals, the first is taken.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for example in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        size = int(lengths[example])
        at = bisect_left(room, (size,))
        if at < len(room):
            free, row = room.pop(at)
            rows[row].append(example)
        else:
            free, row = capacity, len(rows)
            rows.append([example])
        if free > size and len(rows[row]) < places:
            insort(room, (free - size, row))
    return rows


def spread(lengths: np.ndarray, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """Examples in `count` random parts with nearly equal numbers of examples and of tokens.

    Examples are sorted by length and cut into strata of `count`; every part takes one at random of
    each, the longest going where there are fewest tokens yet.
    """
    order = random.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    strata = np.pad(order, (0, -len(order) % count), constant_values=EMPTY).reshape(-1, count)
    parts, tokens = np.empty_like(strata), np.zeros(count, np.int64)
    for number, stratum in enumerate(strata):
        shuffled = random.permutation(count)
        parts[number, shuffled[np.argsort(tokens[shuffled], kind="stable")]] = stratum
        tokens += lengths[parts[number]]  # of the last, which may be `EMPTY`, nobody reads it
    return [part[part != EMPTY] for part in parts.T]


def compose(lengths: np.ndarray, batch_size: int, random: np.random.Generator) -> list[np.ndarray]:
    """Random batches of `batch_size` examples with nearly equal numbers of tokens.

    What does not divide is drawn at random first and makes a partial batch.
    """
    order = random.permutation(len(lengths))
    rest, order = np.split(order, [len(order) % batch_size])
    count = len(order) // batch_size
    batches = [order[part] for part in spread(lengths[order], count, random)] if count else []
    batches += [rest] if len(rest) else []
    return [batches[i] for i in random.permutation(len(batches))]


def drawn_together(
    lengths: np.ndarray, batch_size: int, count: int, random: np.random.Generator
) -> list[list[np.ndarray]]:
    """Batches in groups of at most `count`, each of which is packed as one."""
    if count == 1:
        return [[batch] for batch in compose(lengths, batch_size, random)]
    steps = -(-len(lengths) // batch_size)
    batches, groups = spread(lengths, steps, random), -(-steps // count)
    return [batches[i * steps // groups : (i + 1) * steps // groups] for i in range(groups)]


def plan_epoch(
    lengths: np.ndarray,
    layout: Layout,
    batch_size: int,
    seed: int | None,
    epoch: int,
    written: np.ndarray | None = None,
) -> list[Planned]:
    """Every example once.

    Args:
        lengths: tokens of each example.
        layout: the shapes of batches.
        batch_size: examples of a batch; packed without a seed, roughly.
        seed: of the shuffle; without one the order depends on the lengths alone.
        epoch: each has an order of its own.
        written: tokens of each example's second sequence.
    """
    random = None if seed is None else np.random.default_rng((seed, epoch))
    if layout.rows is None:
        bucket = np.searchsorted(layout.lengths, lengths)
        if written is not None:
            bucket = np.maximum(bucket, np.searchsorted(layout.written, written))
        plan = _plan_buckets(bucket, layout, batch_size, random)
    else:
        plan = _plan_packed(lengths, layout, batch_size, random)
    _check_placed(plan, layout, lengths, written)
    return plan


def _check_placed(
    plan: Sequence[Planned], layout: Layout, lengths: np.ndarray, written: np.ndarray | None
) -> None:
    """Raises RuntimeError unless each example is placed once: none may be lost without a word."""
    placed = [batch.examples for batch in plan]
    times = np.bincount(np.concatenate([*placed, np.zeros(0, int)]), minlength=len(lengths))
    if (times != 1).any():
        first = int(np.argmax(times != 1))
        sizes = [int(tokens[first]) for tokens in (lengths, written) if tokens is not None]
        raise RuntimeError(
            f"{(times != 1).sum()} of {len(lengths)} examples are not placed once in {layout}: "
            f"the first is number {first}, of {sizes} tokens, {times[first]} times"
        )


def _plan_buckets(
    bucket: np.ndarray, layout: Layout, batch_size: int, random: np.random.Generator | None
) -> list[Planned]:
    """Full batches of one length each, then one partial batch.

    What a bucket leaves over joins the next longer one, so that only the last batch of the
    longest is partial.
    """
    order = np.arange(len(bucket)) if random is None else random.permutation(len(bucket))
    shapes = list(zip(layout.lengths, layout.written or (0,) * len(layout.lengths), strict=True))
    batches, left = [], np.zeros(0, order.dtype)
    for number, shape in enumerate(shapes):
        rows = np.concatenate([left, order[bucket[order] == number]])
        full = len(rows) // batch_size * batch_size
        batches += [Planned(part, *shape) for part in rows[:full].reshape(-1, batch_size)]
        left = rows[full:]
    if len(left):
        places = np.full(batch_size, EMPTY)
        places[: len(left)] = left
        batches.append(Planned(places, *shapes[bucket[left].max()]))
    return batches if random is None else [batches[i] for i in random.permutation(len(batches))]


def _plan_packed(
    lengths: np.ndarray, layout: Layout, batch_size: int, random: np.random.Generator | None
) -> list[Planned]:
    """Batches of `layout.rows` rows; one that needs more gets the next multiple."""
    usual = dict(zip(layout.lengths, layout.rows, strict=True))
    if random is None:
        length = layout.lengths[-1]
        rows = pack(lengths, length, layout.places)
        count = usual[length]
        groups = [(length, rows[i : i + count]) for i in range(0, len(rows), count)]
    else:
        groups = []
        joint = layout.together > 1
        for batches in drawn_together(lengths, batch_size, layout.together, random):
            every = np.concatenate(batches)
            length = next(n for n in layout.lengths if n >= lengths[every].max())
            rows = [every[row] for row in pack(lengths[every], length, layout.places)]
            if len(rows) < len(batches):  # then some would have none
                for batch in batches:
                    alone = pack(lengths[batch], length, layout.places)
                    groups.append((length, [batch[row] for row in alone]))
                continue
            order = random.permutation(len(rows)) if joint else np.arange(len(rows))
            parts = np.array_split(order, len(batches))
            groups += [(length, [rows[i] for i in part]) for part in parts]
        if joint:
            groups = [groups[i] for i in random.permutation(len(groups))]
    planned = []
    for length, group in groups:
        count = max(usual[length], round_up(len(group), layout.multiple))
        places = np.full((count, layout.places), EMPTY)
        for number, row in enumerate(group):
            places[number, : len(row)] = row
        planned.append(Planned(places, length))
    return planned
