"""Batches hold their rows, the same on any number of hosts, from any position."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ftjax.data import loading
from ftjax.data.encode import Examples, Ragged
from ftjax.data.loading import Loader
from ftjax.data.memo import Memo
from ftjax.data.planning import EMPTY, bucket_layout, packed_layout


def examples(count=203, seed=0):
    lengths = np.random.default_rng(seed).integers(3, 60, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)]).astype(np.int32)
    return Examples(Ragged(ids, offsets), arrays={"labels": np.arange(count)})


def layout(data, packed, multiple=1):
    return packed_layout(data.lengths, 16, multiple) if packed else bucket_layout(data.lengths, 4)


def collect(loader, steps):
    return [loader.at(step).arrays for step in range(steps)]


def test_padded_batches_hold_their_rows():
    data = examples()
    loader = Loader(data, 16, layout(data, False), 0)
    seen = []
    for batch in collect(loader, loader.steps_per_epoch):
        real = batch["weights"] > 0
        for label, ids, mask in zip(
            batch["labels"][real],
            batch["input_ids"][real],
            batch["attention_mask"][real],
            strict=True,
        ):
            size = data.lengths[label]
            assert (ids[:size] == label + 1).all() and not ids[size:].any()
            assert mask.sum() == size and mask[:size].all()
        assert not batch["attention_mask"][~real].any()
        seen += batch["labels"][real].tolist()
    assert sorted(seen) == list(range(len(data)))
    steps = range(loader.steps_per_epoch)
    counts = [loader.at(step).counts for step in steps]
    assert sum(each.tokens for each in counts) == len(data.ids.values)
    assert sum(each.examples for each in counts) == len(data)
    assert [each.slots for each in counts] == [
        batch["input_ids"].size for batch in collect(loader, len(steps))
    ]


@pytest.mark.parametrize("seed", [0, None])
def test_packed_batches_hold_their_examples(seed):
    data = examples()
    loader = Loader(data, 16, layout(data, True), seed)
    seen = []
    for planned, batch in loader:
        ids, segments, positions = (
            batch[name] for name in ("input_ids", "segment_ids", "position_ids")
        )
        assert not ids[segments == 0].any() and not positions[segments == 0].any()
        for row, place in np.argwhere(planned.places != EMPTY):
            label = planned.places[row, place]
            size, start = data.lengths[label], batch["starts"][row, place]
            assert (segments[row] == place + 1).sum() == size
            inside = slice(start, start + size)
            assert (segments[row, inside] == place + 1).all()
            assert (ids[row, inside] == label + 1).all()
            np.testing.assert_array_equal(positions[row, inside], np.arange(size))
            assert batch["labels"][row, place] == label and batch["weights"][row, place] == 1
            seen.append(label)
        assert batch["weights"].sum() == len(planned.examples)
    assert sorted(seen) == list(range(len(data)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_a_batch_without_overlap(hosts, packed):
    data = examples()
    shapes = layout(data, packed, hosts)
    whole = collect(Loader(data, 16, shapes, 0), 13)
    parts = [
        collect(Loader(data, 16, shapes, 0, lambda n, h=h: np.split(np.arange(n), hosts)[h]), 13)
        for h in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for name, array in batch.items():
            joined = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 7, 20])
def test_position_can_be_saved_and_restored(stop, packed):
    data = examples()
    loader = Loader(data, 16, layout(data, packed), 0)
    first = loader.iterate(30)
    for _ in range(stop):
        next(first)
    second = loader.iterate(30)
    second.set_state(first.get_state())
    rest = [batch.arrays for batch in second]
    wanted = collect(loader, 30)[stop:]
    assert len(rest) == len(wanted)
    for a, b in zip(rest, wanted, strict=True):
        np.testing.assert_array_equal(a["labels"], b["labels"])
        np.testing.assert_array_equal(a["input_ids"], b["input_ids"])


def test_an_epoch_is_planned_once_whoever_asks_and_the_next_ahead(monkeypatch):
    """By the threads that read ahead and by several readers at once; none is planned beyond."""
    planned, plan = [], loading.plan_epoch

    def slow(*given):
        planned.append(given[4])
        time.sleep(0.05)  # so that others come meanwhile
        return plan(*given)

    monkeypatch.setattr(loading, "plan_epoch", slow)
    data = examples()
    loader = Loader(data, 16, layout(data, False), 0)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(loader.epoch, [0] * 8))
    assert all(each is found[0] for each in found) and planned == [0]
    steps = 2 * loader.steps_per_epoch
    iterator = loader.iterate(steps)
    next(iterator)
    deadline = time.monotonic() + 10
    while planned != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(iterator)) == steps - 1 and planned == [0, 1]


def test_what_fails_is_tried_again():
    tries = []

    def compute(number):
        tries.append(number)
        if len(tries) < 3:
            raise ValueError(f"try {len(tries)}")
        return -number

    memo = Memo(compute, 2)
    for number in (1, 2):
        with pytest.raises(ValueError, match=f"try {number}"):
            memo(5)
    assert memo(5) == -5 and memo(6) == -6 and memo(7) == -7 and tries == [5, 5, 5, 6, 7]
    assert memo(5) == -5 and tries[-1] == 5  # two are kept
