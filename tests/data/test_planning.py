"""Plans: each example once an epoch, little padding, few shapes."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import EMPTY, bucket_layout, compose, pack, plan_epoch


def lengths_of(count=203, seed=0, most=60):
    return np.random.default_rng(seed).integers(3, most, count)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_buckets_are_the_best_of_all_choices(seed, count):
    lengths = np.random.default_rng(seed).integers(1, 50, 40)
    found = bucket_layout(lengths, count, multiple=8).lengths
    rounded = -(-lengths // 8) * 8

    def cost(buckets):
        return sum(min(b for b in buckets if b >= n) for n in rounded)

    sizes = sorted(set(rounded))
    choices = itertools.combinations(sizes, min(count, len(sizes)))
    assert cost(found) == min(cost(c) for c in choices if c[-1] == sizes[-1])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 16, 64, 300])
@pytest.mark.parametrize("epoch", [0, 1])
def test_each_example_once_an_epoch(packed, batch_size, epoch):
    lengths = lengths_of()
    layout = packed_layout(lengths, batch_size) if packed else bucket_layout(lengths, 4)
    plan = plan_epoch(lengths, layout, batch_size, 0, epoch)
    assert sorted(np.concatenate([p.examples for p in plan])) == list(range(len(lengths)))
    assert len(plan) == -(-len(lengths) // batch_size)
    assert sum(len(p.examples) != batch_size for p in plan) <= 1
    for planned in plan:
        sizes = np.where(planned.places == EMPTY, 0, lengths[planned.places])
        rows = sizes.sum(1) if packed else sizes
        assert planned.length in layout.lengths and rows.max() <= planned.length


def test_shuffling_is_by_seed_and_epoch():
    lengths = lengths_of()
    for layout in (bucket_layout(lengths, 1), packed_layout(lengths, 16)):

        def order(seed, epoch, layout=layout):
            plan = plan_epoch(lengths, layout, 16, seed, epoch)
            return tuple(np.concatenate([p.examples for p in plan]))

        assert len({order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}) == 4
        assert order(1, 1) == order(1, 1)


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("seed", [0, None])
def test_packed_batches_have_few_shapes_and_little_padding(multiple, seed):
    lengths = np.clip(np.random.default_rng(0).gamma(5, 5, 4000), 4, 80).astype(int)
    layout = packed_layout(lengths, 64, multiple)
    shapes, slots = set(), 0
    for epoch in range(3 if seed is not None else 1):
        plan = plan_epoch(lengths, layout, 64, seed, epoch)
        shapes |= {(p.places.shape, p.length) for p in plan}
        slots = sum(len(p.places) * p.length for p in plan)
        assert all(len(p.places) % multiple == 0 for p in plan)
    assert len(shapes) <= 2
    assert lengths.sum() / slots > 0.9


def test_rows_that_grow_for_each_place_have_few():
    """As by soft prompts: what a plan computes of an epoch, against every number of places."""
    lengths = lengths_of(1600)

    def computed(layout):
        plan = plan_epoch(lengths, layout, 32, 0, 0)
        return sum(len(p.places) * (p.length + 20 * layout.places) for p in plan)

    plain = packed_layout(lengths, 32, count=1)
    chosen = packed_layout(lengths, 32, count=1, inserted=20)
    least = min(computed(replace(chosen, places=n)) for n in range(1, plain.places + 1))
    assert computed(chosen) <= 1.02 * least  # it is chosen by the first batches
    assert computed(chosen) < 0.8 * computed(plain)
    assert packed_layout(lengths, 32, count=1, inserted=0) == plain


def test_composed_batches_are_random_with_equal_numbers_of_tokens():
    lengths = lengths_of(3200)
    batches = compose(lengths, 32, np.random.default_rng(0))
    tokens = np.array([lengths[batch].sum() for batch in batches])
    assert len(batches) == 100 and np.ptp(tokens) <= 0.02 * tokens.mean()
    # A batch knows nothing of labels: the share of any half of the examples is binomial.
    half = np.random.default_rng(1).permutation(3200) < 1600
    share = np.array([half[batch].mean() for batch in batches])
    assert abs(share.std() - 0.5 / np.sqrt(32)) < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_packing_fits_and_loses_nothing(seed):
    lengths = lengths_of(40, seed)
    rows = pack(lengths, 64, 4)
    assert sorted(itertools.chain(*rows)) == list(range(40))
    assert all(lengths[row].sum() <= 64 and len(row) <= 4 for row in rows)
    # Best-fit decreasing needs at most 11/9 of the best, which is at least the filled rows.
    assert len(pack(lengths, 64, 40)) <= 11 / 9 * -(-lengths.sum() // 64) + 1


@pytest.mark.parametrize("longest_row", [0, 400])
@pytest.mark.parametrize(("count", "batch_size"), [(4003, 16), (60, 16), (5, 16), (17, 16)])
def test_batches_packed_together_hold_each_example_once(count, batch_size, longest_row):
    """As many batches as packed one by one, each with about as many examples, and less padding."""
    lengths = np.clip(np.random.default_rng(0).gamma(4, 30, count), 8, 180).astype(int)
    layout = packed_layout(lengths, batch_size, together=8, longest_row=longest_row)
    share = {}
    for epoch in range(2):
        plan = plan_epoch(lengths, layout, batch_size, 3, epoch)
        assert len(plan) == -(-count // batch_size)
        assert sorted(np.concatenate([p.examples for p in plan])) == list(range(count))
        assert all(len(p.examples) for p in plan)
        sizes = [np.where(p.places == EMPTY, 0, lengths[p.places]).sum(1) for p in plan]
        assert all(rows.max() <= layout.lengths[-1] for rows in sizes)
        share[epoch] = lengths.sum() / sum(p.places.shape[0] * p.length for p in plan)
    if count > 1000:
        alone = packed_layout(lengths, batch_size)
        plan = plan_epoch(lengths, alone, batch_size, 3, 0)
        one_by_one = lengths.sum() / sum(p.places.shape[0] * p.length for p in plan)
        assert share[0] > one_by_one and share[0] > (0.95 if longest_row else 0.93)


def test_batches_packed_together_do_not_depend_on_the_mesh():
    """A run can go on on another mesh: only how many rows are empty differs."""
    lengths = np.clip(np.random.default_rng(0).gamma(4, 30, 500), 8, 180).astype(int)
    plans = [
        plan_epoch(lengths, packed_layout(lengths, 16, multiple, together=8), 16, 3, 1)
        for multiple in (1, 8)
    ]
    for one, other in zip(*plans, strict=True):
        assert one.length == other.length and len(other.places) % 8 == 0
        np.testing.assert_array_equal(one.examples, other.examples)


@pytest.mark.parametrize("seed", range(3))
def test_long_rows_of_few_examples_are_full(seed):
    """As of 149 instructions in batches of 8, the longest of which is held out."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(4.6, 0.7, 149), 20, 480).astype(int)
    layout = packed_layout(
        lengths, 8, together=8, longest_row=1024, longest_example=lengths.max() + 20
    )
    assert layout.lengths[-1] >= lengths.max() + 20
    places = 0
    for epoch in range(6):
        plan = plan_epoch(lengths, layout, 8, 3, epoch)
        assert sorted(np.concatenate([p.examples for p in plan])) == list(range(149))
        places += sum(p.places.shape[0] * p.length for p in plan)
    assert 6 * lengths.sum() / places > 0.95


def test_packed_rows_are_no_longer_than_what_is_packed_together():
    """However long they may be, so that lengths that no rows fill are not tried."""
    lengths = np.random.default_rng(0).integers(4, 60, 200)
    layout = packed_layout(lengths, 16, together=4, longest_row=100_000_000)
    (length,) = layout.lengths
    assert length <= 16 * 4 * 60
    assert packed_layout(lengths, 16, together=4, longest_row=4000).lengths == layout.lengths
