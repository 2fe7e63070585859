"""Batches hold their rows, the same on any number of hosts, from any position."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ftjax.data import loading
from ftjax.data.encode import Examples, Ragged, ragged
from ftjax.data.loading import Loader, Vary, counted, make_batch, taken, token_index
from ftjax.data.memo import Memo
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import EMPTY, Layout, Planned, bucket_layout


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
    planned.clear()
    far = Loader(data, 8, layout(data, False), 0)  # more batches an epoch than are read ahead
    iterator = far.iterate(50 * far.steps_per_epoch)
    next(iterator)
    deadline = time.monotonic() + 10
    while len(planned) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert planned == [0, 1]


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


READ = [[[1, 2, 3], [4]], [[], [5, 6]], [[7], [8, 9]]]  # three examples of two sequences
WRITTEN = [[11, 12], [], [13]]


def pairs(read=READ, written=WRITTEN):
    """Examples of groups of sequences that write, with an array a token and one an example."""
    sequences = [sequence for group in read for sequence in group]
    ids = ragged(sequences)
    arrays = {"labels": np.arange(len(read)) + 20, "_text": np.arange(len(read))}
    tokens = {"token_type_ids": ids.values + 100, "_start": ids.values}
    rows = np.arange(len(read)) * 10
    return Examples(ids, tokens, arrays, ragged(written), rows, len(read[0]))


def padded(sequence, length):
    return [*sequence, *[0] * (length - len(sequence))]


@pytest.mark.parametrize("group", [1, 2])
def test_a_batch_of_groups_that_write_is_as_by_hand(group):
    read = [each[:group] for each in READ]
    data = pairs(read)
    planned = Planned(np.array([2, EMPTY, 0]), 4, 3)
    batch = make_batch(data, planned)
    assert set(batch) == {
        *("labels", "weights", "input_ids", "token_type_ids", "attention_mask"),
        *("targets", "target_weights"),
    }
    ids = [[padded(s, 4) for s in each] for each in (read[2], [[]] * group, read[0])]
    ids = np.array(ids)[:, 0] if group == 1 else np.array(ids)
    np.testing.assert_array_equal(batch["input_ids"], ids)
    np.testing.assert_array_equal(batch["attention_mask"], ids > 0)
    np.testing.assert_array_equal(batch["token_type_ids"], np.where(ids > 0, ids + 100, 0))
    np.testing.assert_array_equal(batch["targets"], [[13, 0, 0], [0, 0, 0], [11, 12, 0]])
    np.testing.assert_array_equal(batch["target_weights"], batch["targets"] > 0)
    assert batch["weights"].tolist() == [1, 0, 1] and batch["labels"][[0, 2]].tolist() == [22, 20]
    counts = counted(data, planned)
    assert counts.tokens == sum(len(s) for i in (0, 2) for s in read[i]) + 3
    assert (counts.examples, counts.slots) == (2, 3 * (group * 4 + 3))


def test_some_examples_are_taken_in_an_order_with_all_that_is_theirs():
    found = taken(pairs(), np.array([2, 0, 2]))
    wanted = pairs([READ[2], READ[0], READ[2]], [WRITTEN[2], WRITTEN[0], WRITTEN[2]])
    for one, other in ((found.ids, wanted.ids), (found.decoder, wanted.decoder)):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.offsets, other.offsets)
    for name, values in wanted.tokens.items():
        np.testing.assert_array_equal(found.tokens[name], values)
    assert found.arrays["labels"].tolist() == [22, 20, 22] and set(found.arrays) == {*wanted.arrays}
    assert found.rows.tolist() == [20, 0, 20] and found.group == 2
    assert taken(examples(3), np.array([1])).decoder is None


def test_a_single_token_has_its_place():
    """Nothing is looked up beyond it, for places and rows without one."""
    data = Examples(ragged([[9]]), arrays={"labels": np.array([4])})
    for places in ([0, EMPTY], [[EMPTY, EMPTY], [0, EMPTY]]):
        planned = Planned(np.array(places), 1)
        batch = make_batch(data, planned)
        real = np.array(places) != EMPTY
        np.testing.assert_array_equal(batch["input_ids"], real.reshape(2, -1)[:, :1] * 9)
        assert batch["weights"].sum() == 1 and counted(data, planned) == (1, 1, 2)
        index, inside = token_index(data, planned)
        assert data.ids.values[index[inside]].tolist() == [9] and not index[~inside].any()
    long = make_batch(data, Planned(np.array([[0, EMPTY]]), 3))
    assert long["input_ids"].tolist() == [[9, 0, 0]] and long["segment_ids"].tolist() == [[1, 0, 0]]


def test_a_place_of_a_full_row_without_an_example_starts_inside_the_row():
    data = Examples(ragged([[1, 2], [3]]))
    batch = make_batch(data, Planned(np.array([[0, 1, EMPTY], [1, EMPTY, EMPTY], [1, 1, 1]]), 3))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [3, 0, 0], [3, 3, 3]]
    assert batch["segment_ids"].tolist() == [[1, 1, 2], [1, 0, 0], [1, 2, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert batch["starts"][0, :2].tolist() == [0, 2] and (batch["starts"] < 3).all()


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_of_a_batch_are_found_in_the_examples(packed):
    data = examples()
    loader = Loader(data, 16, layout(data, packed), 0)
    for step, (planned, batch) in enumerate(loader):  # the epoch that begins at step 0
        np.testing.assert_array_equal(planned.places, loader.at(step).planned.places)
        index, inside = token_index(data, planned)
        np.testing.assert_array_equal(inside, batch["input_ids"] > 0)
        np.testing.assert_array_equal(data.ids.values[index[inside]], batch["input_ids"][inside])


@pytest.mark.parametrize("packed", [False, True])
def test_features_in_place_of_tokens_are_all_that_a_batch_has(packed):
    ids = Ragged(np.zeros(0, np.int32), np.zeros(4, np.int64))
    data = Examples(ids, arrays={"features": np.arange(6.0).reshape(3, 2)})
    batch = make_batch(data, Planned(np.array([[2, 1]] if packed else [2, 1]), 8))
    assert set(batch) == {"features", "weights"}
    np.testing.assert_array_equal(batch["features"].reshape(2, 2), [[4, 5], [2, 3]])


@pytest.mark.parametrize("packed", [False, True])
def test_ahead_are_the_first_batches_of_each_shape_up_to_the_epochs_end(packed):
    data = examples()
    loader = Loader(data, 16, layout(data, packed), 0)
    steps = loader.steps_per_epoch
    assert steps == 13  # 203 examples in batches of 16
    for step, count in [(0, 13), (2, 5), (steps + 4, 3), (steps + 4, 30), (2 * steps - 1, 4)]:
        wanted = {}
        for number in range(step, min(step + count, (step // steps + 1) * steps)):
            planned = loader.at(number).planned
            shape = planned.places.shape, planned.length
            wanted.setdefault(shape, number)
        found = list(loader.ahead(step, count))
        assert [number for number, _ in found] == list(wanted.values())
        for number, batch in found:
            labels = loader.at(number).arrays["labels"]
            np.testing.assert_array_equal(batch.arrays["labels"], labels)


def test_three_epochs_are_kept():
    """The one that is trained on, the one that is read and the next; more would fill the memory."""
    loader = Loader(examples(), 16, Layout((64,)), 0)
    first = [loader.epoch(number) for number in range(3)]
    assert all(loader.epoch(number) is first[number] for number in range(3))
    loader.epoch(3)
    assert loader.epoch(2) is first[2] and loader.epoch(1) is first[1]
    assert loader.epoch(0) is not first[0]


def noisy(examples, draws):
    """Adds a token that is drawn to each token, and writes each sequence's first two."""
    noise = draws.bits(examples.ids.lengths, 0) % np.uint64(1000)
    ids = Ragged(examples.ids.values * 1000 + noise.astype(np.int64), examples.ids.offsets)
    written = [ids[number][:2] for number in range(len(ids))]
    return Examples(ids, {}, examples.arrays, ragged(written))


def lengths_of(examples):
    return examples.lengths, np.minimum(examples.lengths, 2)


@pytest.mark.parametrize("batch_size", [16, 600])
def test_examples_varied_by_batch_are_those_varied_at_once(batch_size):
    """On each host, also on one with none of a batch's examples, and of each epoch and seed."""
    data, shapes, seen = examples(), Layout((16, 64), (8, 8)), set()
    halves = [lambda n, h=h: np.split(np.arange(n), 2)[h] for h in range(2)]
    for seed, step in [(0, 0), (0, 20), (1, 0), (None, 0)]:
        at_once = Loader(data, batch_size, shapes, seed, vary=Vary(noisy)).at(step)
        vary = Vary(noisy, lengths_of)
        parts = [Loader(data, batch_size, shapes, seed, half, vary).at(step) for half in halves]
        for name, array in at_once.arrays.items():
            joined = np.concatenate([part.arrays[name] for part in parts])
            real = at_once.arrays["weights"] > 0
            np.testing.assert_array_equal(joined[real], array[real])
            np.testing.assert_array_equal(joined.shape, array.shape)
        assert all(part.counts == at_once.counts for part in parts)
        order = np.argsort(at_once.arrays["labels"], kind="stable")
        if seed is not None:
            seen.add(at_once.arrays["input_ids"][order].tobytes())
        assert (at_once.arrays["target_weights"].sum(1)[real] == 2).all()
    assert len(seen) == 3


def test_shapes_of_varied_examples_are_known_without_their_tokens():
    data = examples(30)
    known, made = Vary(noisy, lengths_of).shaped(data), Vary(noisy).shaped(data)
    for shaped in (known, made):
        np.testing.assert_array_equal(shaped.ids.offsets, data.ids.offsets)
        np.testing.assert_array_equal(shaped.decoder.offsets, 2 * np.arange(31))
    assert not len(known.ids.values) and not len(known.decoder.values) and not known.tokens
    silent = Vary(noisy, lambda each: (each.lengths + 1, None))
    np.testing.assert_array_equal(silent.shaped(data).lengths, data.lengths + 1)
    assert silent.shaped(data).decoder is None
    late = Loader(data, 16, Layout((64,), (8,)), 0, vary=Vary(noisy, lengths_of))
    assert late.epoch(0).examples is data  # each batch is made as it comes
    both = Vary(noisy, lambda each: (each.lengths, None)).shaped(made)
    assert both.decoder is made.decoder  # what is written stays
