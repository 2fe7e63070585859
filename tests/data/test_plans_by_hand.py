"""Plans against slow implementations of what is promised of their parts, and worked by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ftjax.data import packed_layout as layouts
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import Layout, bucket_layout, compose, pack, paired_layout, spread


def packed_slowly(lengths, capacity, places):
    """Best-fit decreasing: all rows are looked at for each example."""
    rows = []
    for example in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        used = [sum(lengths[each] for each in row) for row in rows]
        open_rows = [
            number
            for number, row in enumerate(rows)
            if used[number] < capacity
            and used[number] + lengths[example] <= capacity
            and len(row) < places
        ]
        if open_rows:
            rows[max(open_rows, key=used.__getitem__)].append(example)  # the first of equals
        else:
            rows.append([example])
    return rows


def up(count, multiple):
    """The next multiple, at least one."""
    return max(math.ceil(count / multiple), 1) * multiple


@pytest.mark.parametrize("places", [1, 2, 3, 40])
def test_packing_is_best_fit_decreasing(places):
    """Of few lengths, so that many are equal and many rows are just full; some have no tokens."""
    random = np.random.default_rng(places)
    for _ in range(60):
        lengths = random.integers(0, 13, random.integers(1, 40))
        assert pack(lengths, 12, places) == packed_slowly(lengths.tolist(), 12, places)


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_parts_take_one_of_each_stratum_the_longest_where_fewest_tokens_are(count):
    for seed in range(5):
        random = np.random.default_rng(seed)
        total = int(random.integers(1, 60))
        lengths = random.permutation(500)[:total] + 1  # no two are equal
        parts = spread(lengths, count, random)
        assert len(parts) == count
        ranks = np.argsort(np.argsort(-lengths))  # of the longest 0
        for part in parts:
            assert (ranks[part] // count).tolist() == list(range(len(part)))
        for stratum in range(-(-total // count)):
            before = [lengths[part[:stratum]].sum() for part in parts]
            taken = [lengths[part[stratum : stratum + 1]].sum() for part in parts]  # 0 if none
            pairs = sorted(zip(before, taken, strict=True), key=lambda pair: (pair[0], -pair[1]))
            unequal = [(a, b) for a, b in itertools.pairwise(pairs) if a[0] < b[0]]
            assert all(a[1] >= b[1] for a, b in unequal)
        assert sorted(np.concatenate(parts)) == list(range(total))


def test_any_part_may_have_the_longest_example():
    lengths = np.array([9, 3, 5, 7, 2, 8])
    found = Counter()
    for seed in range(60):
        parts = spread(lengths, 3, np.random.default_rng(seed))
        found.update(number for number, part in enumerate(parts) if 0 in part)
    assert all(found[number] >= 8 for number in range(3))


@pytest.mark.parametrize("count", [0, 5, 8, 16, 21])
def test_batches_are_composed_of_as_many_examples_but_for_one(count):
    batches = compose(np.arange(count) + 1, 8, np.random.default_rng(0))
    partial = [count % 8] if count % 8 else []
    assert sorted(map(len, batches)) == sorted([8] * (count // 8) + partial)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(count))


def test_buckets_are_divisible_by_the_multiple_and_take_examples_of_no_tokens():
    assert bucket_layout(np.array([0, 0]), 2, multiple=1).lengths == (1,)
    assert bucket_layout(np.array([1, 8, 9]), 2).lengths == (8, 16)  # by 8 unless told
    assert bucket_layout(np.array([1, 8, 9]), 1).lengths == (16,)
    # 1 + 8 + 8 tokens are fewer than 5 + 5 + 8.
    assert bucket_layout(np.array([1, 5, 8]), 2, multiple=1).lengths == (1, 8)


def share_of(values, share):
    """A quantile between two values, by hand."""
    values, at = sorted(values), share * (len(values) - 1)
    below = math.floor(at)
    above = min(below + 1, len(values) - 1)
    return values[below] + (at - below) * (values[above] - values[below])


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_second_sequences_have_room_for_98_of_100_and_the_longest_for_all(multiple, seed):
    random = np.random.default_rng(seed)
    read, written = random.integers(1, 65, 200), random.integers(1, 200, 200)
    layout = paired_layout(Layout((8, 24, 40, 64)), read, written, multiple)
    wanted = []
    for length in (8, 24, 40):
        fitting = [w for r, w in zip(read, written, strict=True) if r <= length]
        wanted.append(max([up(int(share_of(fitting, 0.98)), multiple), *wanted[-1:]]))
    assert layout.written == (*wanted, up(int(written.max()), multiple))
    assert layout.lengths == (8, 24, 40, 64)


def test_second_sequences_grow_with_the_first_and_have_a_token_where_there_are_none():
    layout = Layout((8, 16, 24))
    read, written = np.array([9, 9, 9, 20]), np.array([30, 30, 30, 1])
    # None of at most 8 tokens; of at most 16 and 24, the most is 30.
    assert paired_layout(layout, read, written, multiple=1).written == (1, 30, 30)
    assert paired_layout(layout, read, written).written == (8, 32, 32)  # by 8 unless told
    # One in a hundred that is long: 2 of 100 need not fit, but in the last.
    read, written = np.array([3] * 99 + [4, 20]), np.array([5] * 99 + [50, 2])
    assert paired_layout(layout, read, written, multiple=1).written == (5, 5, 50)
    # Among more that fit, the share falls: lengths do not.
    read, written = np.array([3] * 10 + [12] * 990), np.array([40] * 10 + [2] * 990)
    assert paired_layout(layout, read, written, multiple=1).written == (40, 40, 40)
    none = np.zeros(0, int)
    assert paired_layout(layout, none, none, multiple=1).written == (1, 1, 1)


class Trial:
    """What rows cost, where the batches of an epoch are the same whichever way they are drawn.

    Each value is in all batches: an example of a stratum goes to each. The first stratum, of the
    longest, may have two values.

    Args:
        values: of a batch, the lengths of its examples, longest first.
        batches: of an epoch.
        long: the longest example of some batches, in place of their first.
        some: of how many.
    """

    def __init__(self, values, batches, long=0, some=0, together=1, multiple=1):
        kinds = [(values, batches - some), ([long, *values[1:]], some)]
        self.kinds = [(kind * together, number) for kind, number in kinds if number]
        self.lengths = np.array([n for kind, number in kinds for n in kind * number])
        self.batches, self.together, self.multiple = batches, together, multiple

    def places(self, length):
        return math.ceil(2 * length / (sum(self.lengths) / len(self.lengths)))

    def rows(self, length, places=None):
        """Of batches that fit: the most that one needs."""
        found = []
        for kind, _ in self.kinds:
            if kind[0] <= length:
                packed = packed_slowly(kind, length, places or self.places(length))
                found.append(math.ceil(len(packed) / self.together))
        return up(max(found), self.multiple if self.together == 1 else 1)

    def cost(self, length):
        return self.rows(length) * length * (1 + length / 400)

    def chosen(self, count):
        """By trying all lengths that are divisible by 4."""
        top = up(max(self.lengths), 4)
        full = min(range(top, 2 * top, 4), key=self.cost)
        longest = sorted(kind[0] for kind, number in self.kinds for _ in range(number))
        middle = (longest[len(longest) // 2] + longest[(len(longest) - 1) // 2]) // 2

        most = self.cost(full)

        def mixed(short):
            share = sum(each <= short for each in longest) / len(longest)
            return share * self.cost(short) + (1 - share) * most

        shorter = range(up(middle, 4), top, 4)
        short = min(shorter, key=mixed) if shorter and count > 1 else full
        return (short, full) if mixed(short) < 0.97 * most else (full,)

    def check(self, layout, lengths):
        most = self.places(lengths[-1])
        rows = tuple(up(self.rows(length, most), self.multiple) for length in lengths)
        assert layout == Layout(lengths, (), rows, most, self.together, self.multiple)


def values_of(random, most):
    values = random.integers(1, most, random.integers(1, 9)).tolist()
    return sorted(values, reverse=True)


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("multiple", [1, 3])
def test_the_length_of_packed_rows_is_that_of_least_cost(together, multiple):
    """From the longest example's to twice that; a batch alone has whole multiples of rows."""
    random = np.random.default_rng(together)
    for _ in range(25):
        values = values_of(random, 40)
        trial = Trial(values, 8, together=together, multiple=multiple)
        layout = packed_layout(trial.lengths, len(values), multiple, 2, together)
        trial.check(layout, trial.chosen(1))


def test_rows_of_long_examples_packed_together_are_tried_at_each_fourth_length():
    random = np.random.default_rng(0)
    for _ in range(4):
        values = [400, *values_of(random, 400)]
        trial = Trial(values, 4, together=2)
        layout = packed_layout(trial.lengths, len(values), together=2)
        trial.check(layout, trial.chosen(1))


def test_rows_are_at_most_twice_as_long_as_the_longest_example():
    # All 50 tokens in a row of 52 would cost 52 * 1.13 = 58.8, but that is more than twice 20.
    trial = Trial([20, 10, 10, 10], 4)
    assert [trial.cost(length) for length in (20, 28, 32)] == pytest.approx([63, 89.88, 69.12])
    assert packed_layout(trial.lengths, 4).lengths == (20,)


def test_of_batches_packed_together_one_in_twenty_may_need_more_rows_than_usual():
    lengths = np.array([20] + [10] * 79)
    # Two batches of two in two rows of 20, but for those with the long one, which take three.
    assert packed_layout(lengths, 2, 1, 1, together=2) == Layout((20,), (), (1,), 4, 2)
    # Alone, all fit: a row of 32 (32 * 1.08) costs less than two of 20 (40 * 1.05).
    assert packed_layout(lengths, 2, 1, 1) == Layout((32,), (), (1,), 7)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("multiple", [1, 2])
def test_two_lengths_where_few_batches_hold_a_long_example_and_it_saves_enough(count, multiple):
    random, found = np.random.default_rng(count), Counter()
    for _ in range(40):
        values = values_of(random, 30)
        long = values[0] + int(random.integers(1, 80))
        trial = Trial(values, 10, long, int(random.integers(1, 10)), multiple=multiple)
        layout = packed_layout(trial.lengths, len(values), multiple, count)
        trial.check(layout, trial.chosen(count))
        found[len(layout.lengths)] += 1
    assert found[1] and bool(found[2]) == (count == 2)


@pytest.mark.parametrize("together", [1, 2, 4])
@pytest.mark.parametrize("multiple", [1, 3])
def test_long_rows_have_the_least_padding(together, multiple):
    """Of lengths of at most what is asked for, or of all that is packed as one, and of half."""
    random = np.random.default_rng(together)
    for longest_row in random.integers(20, 300, 25).tolist():
        values = values_of(random, 40)
        trial = Trial(values, 8, together=together, multiple=multiple)
        layout = packed_layout(trial.lengths, len(values), multiple, 2, together, longest_row)
        (length,) = layout.lengths
        top = up(values[0], 4)
        high = max(top, min(longest_row, up(sum(values) * together, 4)))
        tokens = {}
        for each in range(max(top, high // 2), high + 1, 4):
            packed = packed_slowly(values * together, each, trial.places(each))
            rows = math.ceil(len(packed) / together)
            tokens[each] = each * rows
        assert tokens[length] == min(tokens.values())
        assert layout.rows == (up(tokens[length] // length, multiple),)
        assert (layout.places, layout.together) == (trial.places(length), together)


def test_rows_are_no_longer_than_asked_for_where_a_token_more_would_take_all():
    layout = packed_layout(np.array([69, 69, 68] * 4), 3, longest_row=205)
    assert layout == Layout((138,), (), (2,), 5)  # not a row of 206


def test_rows_have_room_for_an_example_that_is_to_come():
    lengths = np.full(32, 5)
    for longest_row in (0, 20, 40):
        layout = packed_layout(lengths, 8, longest_row=longest_row, longest_example=30)
        assert 30 <= layout.lengths[-1] <= max(longest_row, 60)
    one = packed_layout(np.array([7, 7, 7]), 3)  # nothing else is told
    assert (one.multiple, one.together) == (1, 1)


@pytest.mark.parametrize("settings", [(1, 0), (1, 10**6), (8, 10**6)])
def test_few_lengths_are_tried_where_they_are_large(settings, monkeypatch):
    """Nor thousands of lengths, nor half of the examples, where those are many."""
    together, longest_row = settings
    lengths = np.random.default_rng(0).integers(500, 4000, 64)
    tried = trials(monkeypatch, lengths, 8, together, longest_row)
    assert len(tried) < (1000 if longest_row else 100)


@pytest.mark.parametrize("together", [1, 2])
def test_few_batches_are_packed_on_trial_where_they_are_large(together, monkeypatch):
    lengths = np.random.default_rng(0).integers(1, 6, 8192)
    tried = trials(monkeypatch, lengths, 512 // together, together)
    assert min(tried.values()) < 8192 / 2  # what is chosen is packed again, to count its rows


def trials(monkeypatch, lengths, batch_size, together, longest_row=0):
    """Length of rows → how many examples are packed to it on trial."""
    tried, pack_rows = Counter(), layouts.pack

    def recorded(lengths, capacity, places):
        tried[capacity] += len(lengths)
        return pack_rows(lengths, capacity, places)

    monkeypatch.setattr(layouts, "pack", recorded)
    packed_layout(lengths, batch_size, 1, 1, together, longest_row)
    return tried
