"""Epochs against a slow implementation of what is promised of their batches."""

import itertools
import math

import numpy as np
import pytest

from ftjax.data import planning
from ftjax.data.planning import EMPTY, Layout, pack, plan_epoch


def rows_of(planned):
    return [row[row != EMPTY].tolist() for row in planned.places]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
@pytest.mark.parametrize("pairs", [False, True])
def test_what_a_bucket_leaves_over_joins_the_next_longer(batch_size, pairs):
    random = np.random.default_rng(batch_size)
    shapes = [(8, 4), (16, 8), (32, 20)] if pairs else [(8, 0), (16, 0), (32, 0)]
    layout = Layout((8, 16, 32), (4, 8, 20) if pairs else ())
    for _ in range(20):
        count = int(random.integers(1, 40))
        lengths = random.integers(1, 33, count)
        written = random.integers(1, 21, count) if pairs else None
        sizes = [(n, written[i] if pairs else 0) for i, n in enumerate(lengths)]
        fits = [min(s for s in shapes if s[0] >= n and s[1] >= w) for n, w in sizes]
        wanted, left = [], []
        for shape in shapes:
            left += [number for number in range(count) if fits[number] == shape]
            while len(left) >= batch_size:
                wanted.append((left[:batch_size], shape))
                left = left[batch_size:]
        if left:
            empty = [EMPTY] * (batch_size - len(left))
            wanted.append((left + empty, max(fits[number] for number in left)))
        plan = plan_epoch(lengths, layout, batch_size, None, 0, written)
        assert [(p.places.tolist(), (p.length, p.written)) for p in plan] == wanted
        shuffled = plan_epoch(lengths, layout, batch_size, 5, 0, written)
        assert sorted((p.length, p.written) for p in shuffled) == sorted(s for _, s in wanted)
        for planned in shuffled:
            largest = max(fits[number] for number in planned.examples)
            assert (planned.length, planned.written) == largest


@pytest.mark.parametrize(("rows", "multiple"), [(1, 1), (3, 1), (4, 2)])
def test_packed_without_a_seed_rows_are_cut_into_batches(rows, multiple):
    lengths = np.random.default_rng(rows).integers(1, 16, 50)
    layout = Layout((16, 20), rows=(7 * multiple, rows), places=3, multiple=multiple)
    plan = plan_epoch(lengths, layout, 99, None, 0)
    packed = [row for planned in plan for row in rows_of(planned) if row]
    assert packed == pack(lengths, 20, 3)
    assert len(plan) == math.ceil(len(packed) / rows)
    assert all(planned.places.shape == (rows, 3) for planned in plan)
    assert {(planned.length, planned.written) for planned in plan} == {(20, 0)}


def test_a_batch_takes_the_shorter_length_where_its_examples_fit_and_more_rows_where_needed():
    layout = Layout((8, 16), rows=(2, 4), places=2, multiple=2)
    plan = plan_epoch(np.array([8, 8, 8]), layout, 3, 0, 0)  # just fits
    assert [(p.length, p.places.shape) for p in plan] == [(8, (4, 2))]  # three rows, by twos
    plan = plan_epoch(np.array([9, 8, 3]), layout, 3, 0, 0)
    assert [(p.length, p.places.shape) for p in plan] == [(16, (4, 2))]  # two rows, as usual


def test_unless_told_a_row_holds_an_example_and_a_batch_has_its_examples():
    alone = Layout((8,), rows=(3,))
    plan = plan_epoch(np.full(6, 2), alone, 3, 0, 0)
    assert all(sorted(map(len, rows_of(planned))) == [1, 1, 1] for planned in plan)
    assert alone.scaled(1).rows == (3,)
    lengths = np.random.default_rng(0).integers(1, 9, 64)
    for seed in range(5):
        plan = plan_epoch(lengths, Layout((8,), rows=(2,), places=4), 4, seed, 0)
        assert {len(planned.examples) for planned in plan} == {4}


def test_layouts_of_larger_batches_have_more_rows_in_multiples():
    layout = Layout((8, 16), rows=(10, 4), places=3, together=2, multiple=2)
    assert layout.scaled(2.5) == Layout((8, 16), (), (26, 10), 3, 2, 2)  # 25 and 10
    assert layout.scaled(0.01).rows == (2, 2)
    assert Layout((8,)).scaled(3) == Layout((8,))


@pytest.mark.parametrize("together", [2, 3, 8])
@pytest.mark.parametrize("count", [12, 48, 61])
def test_at_most_so_many_batches_are_packed_as_one(together, count, monkeypatch):
    """Groups have equal numbers of batches, or one more; so have their batches of rows."""
    lengths = np.random.default_rng(0).integers(3, 17, count)
    groups, pack_rows = [], planning.pack

    def recorded(lengths, capacity, places):
        rows = pack_rows(lengths, capacity, places)
        groups.append((len(lengths), len(rows)))
        return rows

    monkeypatch.setattr(planning, "pack", recorded)
    layout = Layout((16,), rows=(2,), places=3, together=together)
    plan = plan_epoch(lengths, layout, 6, 1, 0)
    batches = math.ceil(count / 6)
    number = math.ceil(batches / together)
    assert len(plan) == batches and len(groups) == number
    per_batch = count / batches
    held = sorted(round(examples / per_batch) for examples, _ in groups)
    assert sum(held) == batches and held[-1] - held[0] <= 1 and held[-1] <= together
    rows = sorted(sum(map(bool, rows_of(planned))) for planned in plan)
    assert sum(rows) == sum(packed for _, packed in groups)
    shares = [(packed // size, -(-packed // size)) for size in set(held) for _, packed in groups]
    assert rows[0] >= min(low for low, _ in shares) and rows[-1] <= max(most for _, most in shares)


@pytest.mark.parametrize("together", [2, 4])
def test_of_batches_packed_as_one_any_may_have_the_longest_example(together):
    lengths = np.array([16, *np.random.default_rng(0).integers(3, 9, 31)])
    layout = Layout((16,), rows=(4,), places=4, together=together)
    at = [
        next(n for n, p in enumerate(plan_epoch(lengths, layout, 8, seed, 0)) if 0 in p.examples)
        for seed in range(60)
    ]
    assert min(at.count(number) for number in range(4)) >= 5


def test_where_as_many_rows_as_batches_are_packed_each_batch_has_one():
    """Packed one by one, some would have two."""
    random, uneven = np.random.default_rng(0), 0
    for seed in range(300):
        lengths = random.integers(1, 11, 6)
        if len(pack(lengths, 12, 6)) != 2:
            continue
        layout = Layout((12,), rows=(1,), places=6, together=2)
        plan = plan_epoch(lengths, layout, 3, seed, 0)
        assert [len(planned.places) for planned in plan] == [1, 1]
        uneven += len({len(planned.examples) for planned in plan}) > 1
    assert uneven > 3  # not the parts that examples were spread to


def test_what_has_no_place_is_an_error():
    """None is lost without a word; nor is a layout whose parts do not match taken."""
    lengths, written = np.array([3, 20, 4, 30]), np.array([1, 5, 2, 2])
    with pytest.raises(RuntimeError, match=r"2 of 4 .* number 1, of \[20\] tokens, 0 times"):
        plan_epoch(lengths, Layout((8,)), 2, 0, 0)
    layout = Layout((8, 32), (4, 4))
    with pytest.raises(RuntimeError, match=r"1 of 4 .* number 1, of \[20, 5\] tokens, 0 times"):
        plan_epoch(lengths, layout, 2, 0, 0, written)
    with pytest.raises(ValueError, match="zip"):
        plan_epoch(lengths, Layout((8, 32), (4,)), 2, 0, 0, np.ones(4, int))
    for rows in ((1,), (1, 1, 1)):
        with pytest.raises(ValueError, match="zip"):
            plan_epoch(lengths, Layout((8, 32), rows=rows), 2, 0, 0)


def test_no_example_makes_no_batch():
    none = np.zeros(0, int)
    for layout, seed in itertools.product((Layout((8,)), Layout((8,), rows=(1,))), (None, 0)):
        assert plan_epoch(none, layout, 4, seed, 0) == []
