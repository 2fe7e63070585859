"""Batches: each row once an epoch, little padding, the same on any number of hosts."""

import itertools

import numpy as np
import pytest

from ftjax.data.encode import Examples
from ftjax.data.loading import Loader, choose_buckets, plan_epoch


def examples(count=203, seed=0):
    lengths = np.random.default_rng(seed).integers(3, 60, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)]).astype(np.int32)
    return Examples(ids, offsets, arrays={"labels": np.arange(count)})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_buckets_are_the_best_of_all_choices(seed, count):
    lengths = np.random.default_rng(seed).integers(1, 50, 40)
    found = choose_buckets(lengths, count, multiple=8)
    rounded = -(-lengths // 8) * 8

    def cost(buckets):
        return sum(min(b for b in buckets if b >= n) for n in rounded)

    sizes = sorted(set(rounded))
    choices = itertools.combinations(sizes, min(count, len(sizes)))
    assert cost(found) == min(cost(c) for c in choices if c[-1] == sizes[-1])


@pytest.mark.parametrize("batch_size", [1, 16, 64, 300])
@pytest.mark.parametrize("epoch", [0, 1])
def test_each_row_once_an_epoch(batch_size, epoch):
    data = examples()
    buckets = choose_buckets(data.lengths, 4)
    plan = plan_epoch(data.lengths, buckets, batch_size, 0, epoch)
    rows = np.concatenate([planned.rows for planned in plan])
    assert sorted(rows) == list(range(len(data)))
    assert sum(len(planned.rows) < batch_size for planned in plan) <= 1
    assert len(plan) == -(-len(data) // batch_size)
    for planned in plan:
        assert planned.length in buckets and data.lengths[planned.rows].max() <= planned.length


def test_shuffling_is_by_seed_and_epoch():
    data = examples()
    order = {
        (seed, epoch): tuple(
            np.concatenate([p.rows for p in plan_epoch(data.lengths, (64,), 16, seed, epoch)])
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(order.values())) == 4
    again = plan_epoch(data.lengths, (64,), 16, 1, 1)
    assert order[1, 1] == tuple(np.concatenate([p.rows for p in again]))


def collect(loader, steps):
    return [loader.batch(step) for step in range(steps)]


def test_batches_hold_their_rows_padded_and_weighted():
    data = examples()
    loader = Loader(data, 16, choose_buckets(data.lengths, 4), 0, np.arange(16))
    seen = []
    for batch in collect(loader, loader.steps_per_epoch):
        real = batch["weights"] > 0
        for label, ids, mask in zip(
            batch["labels"], batch["input_ids"], batch["attention_mask"], strict=True
        ):
            size = data.lengths[label]
            assert (ids[:size] == label + 1).all() and not ids[size:].any()
            assert mask.sum() == size and mask[:size].all()
        seen += batch["labels"][real].tolist()
    assert sorted(seen) == list(range(len(data)))
    assert sum(loader.tokens(s) for s in range(loader.steps_per_epoch)) == len(data.ids)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_a_batch_without_overlap(hosts):
    data = examples()
    buckets = choose_buckets(data.lengths, 4)
    whole = collect(Loader(data, 16, buckets, 0, np.arange(16)), 13)
    parts = [
        collect(Loader(data, 16, buckets, 0, part), 13) for part in np.split(np.arange(16), hosts)
    ]
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_position_can_be_saved_and_restored(stop):
    data = examples()
    loader = Loader(data, 16, choose_buckets(data.lengths, 4), 0, np.arange(16))
    first = loader.iterate(30)
    for _ in range(stop):
        next(first)
    second = loader.iterate(30)
    second.set_state(first.get_state())
    rest = list(second)
    wanted = collect(loader, 30)[stop:]
    assert len(rest) == len(wanted)
    for a, b in zip(rest, wanted, strict=True):
        np.testing.assert_array_equal(a["labels"], b["labels"])
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])
