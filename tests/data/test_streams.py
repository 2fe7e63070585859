"""A stream's rows are those of its sources, in shares, the same from any position."""

import itertools
import json
import threading

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from ftjax.config import default_config
from ftjax.data.encode import Examples, Ragged, ragged
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import bucket_layout
from ftjax.data.preparation.step import Verdict
from ftjax.data.sources import open_parts, read_split
from ftjax.data.stream_source import START, Cursor, Position, Source
from ftjax.data.streaming import StreamLoader, Windows, joined, shares
from ftjax.errors import UserError
from ftjax.runs.announce import are_sorted
from ftjax.setup.splits import Data
from ftjax.tasks.classification import Classification

SCHEMA = Classification.schema


class Keep:
    """A step that drops row 20, and notes what it looks at."""

    def __init__(self):
        self.seen = []

    def takes(self, split):
        return True

    def judge(self, row):
        self.seen.append(row["row"])
        return Verdict(None if row["row"] == 20 else row)


def write(path, rows, first=0):
    lines = [json.dumps({"text": "x " * (1 + n % 7), "label": first + n}) for n in range(rows)]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def opened(path):
    return open_parts(default_config().data.to_dict() | {"path": str(path)})[0][1]["train"]


def encode(split):
    """A token a word, and the label, so that rows can be told apart."""
    lengths = [len(text.split()) for text in split.column("text")]
    labels = np.array(split.column("label"), int)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = Ragged(np.repeat(labels, lengths).astype(np.int32), offsets)
    return Examples(ids, arrays={"labels": labels})


@pytest.fixture
def windows(tmp_path):
    a, b = write(tmp_path / "a.jsonl", 100), write(tmp_path / "b.jsonl", 30, first=1000)

    def make():
        return Windows([Source(opened(a), SCHEMA, 3.0), Source(opened(b), SCHEMA, 1.0)], 64, encode)

    return make


def rows(batch):
    return batch.arrays["labels"][batch.arrays["weights"] > 0].tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_shares_order_and_position(windows, packed):
    lengths = windows()[0].lengths
    layout = packed_layout(lengths, 16, 4) if packed else bucket_layout(lengths, 3)
    loader = StreamLoader(windows(), 16, layout, 7)
    seen = [rows(loader.at(step)) for step in range(40)]
    # Ten windows of 48 rows of the first and 16 of the second, each pass in the file's order.
    first, second = itertools.cycle(range(100)), itertools.cycle(range(1000, 1030))
    for number in range(10):
        wanted = [*itertools.islice(first, 48), *itertools.islice(second, 16)]
        found = list(itertools.chain(*seen[4 * number : 4 * number + 4]))
        assert sorted(found) == sorted(wanted) and found != wanted
    for step in (0, 39, 13, 2):  # also backwards
        assert rows(StreamLoader(windows(), 16, layout, 7).at(step)) == seen[step]
    assert loader.at(5).counts.examples == 16
    iterator = loader.iterate(40)
    before = [rows(next(iterator)) for _ in range(23)]
    state = iterator.get_state()
    fresh = StreamLoader(windows(), 16, layout, 7).iterate(40)
    fresh.set_state(state)
    assert before + [rows(batch) for batch in fresh] == seen
    hosts = [
        StreamLoader(windows(), 16, layout, 7, lambda n, h=h: np.split(np.arange(n), 4)[h])
        for h in range(4)
    ]
    for step in range(8):
        assert sorted(itertools.chain(*(rows(host.at(step)) for host in hosts))) == sorted(
            seen[step]
        )


def test_bad_rows_stop_or_are_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", 10)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3:5] = [b'{"text": "cut\n', b'{"text": "\xff", "label": 1}\n', b'{"label": 1}\n']
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"a\.jsonl: row 4 is not valid JSON"):
        Cursor(Source(opened(path), SCHEMA)).take(START, 10)
    source = Cursor(Source(opened(path), SCHEMA, skip=True))
    rows, position = source.take(START, 16)
    good = [row["row"] for row in rows]
    assert good == [1, 2, 3, 7, 8, 9, 10, 11, 1, 2, 3, 7, 8, 9, 10, 11]
    assert position.place.skipped == 3
    path.write_bytes(b'{"label": 1}\n')
    with pytest.raises(UserError, match="has no rows"):
        Cursor(Source(opened(path), SCHEMA, skip=True)).take(START, 1)


@pytest.mark.parametrize("buffer", [0, 7, 64])
def test_sources_go_on_from_any_position_without_what_is_before(tmp_path, buffer):
    path = write(tmp_path / "a.jsonl", 50)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b'{"text": "no label"}\n'
    path.write_bytes(b"".join(lines))
    keep = Keep()

    def source():
        steps = [("keep", keep)]
        return Cursor(Source(opened(path), SCHEMA, 1.0, True, steps, buffer, (5,)))

    def saved(position):
        return Position.read(json.loads(json.dumps(position.saved())))

    whole, position, first = [], START, source()
    positions = [START]
    for _ in range(20):  # three passes
        rows, position = first.take(position, 8)
        whole.append([row["row"] for row in rows])
        positions.append(position)
    every = list(itertools.chain(*whole))
    good = [n for n in range(1, 51) if n not in (4, 20)]
    for number in range(3):  # each pass once, in its order or shuffled within the buffer
        part = every[number * 48 : number * 48 + 48]
        if buffer == 0:
            assert part == good
        elif buffer == 7:
            assert part != good and len({*part}) > 40
        assert len({*every[:48]}) >= 40 - buffer * (buffer == 64)
    place = positions[-1].place
    assert (place.skipped, place.dropped) == (1, {"keep": 1})
    for start in (1, 7, 13):
        keep.seen.clear()
        again, position = source(), saved(positions[start])
        found = []
        for _ in range(start, 20):
            rows, position = again.take(position, 8)
            found.append([row["row"] for row in rows])
        assert found == whole[start:] and position == positions[-1]
        if start == 1 and not buffer:
            assert keep.seen[0] == whole[1][0]  # none before was looked at
    counts = np.bincount(every[:48])
    assert buffer or counts.max() == 1


def test_windows_are_read_ahead_and_their_errors_wait(tmp_path):
    path = write(tmp_path / "a.jsonl", 20)
    with path.open("a") as file:
        file.write('{"text": 1}\n')
    windows = Windows([Source(opened(path), SCHEMA)], 10, encode)
    ahead = threading.Event()
    encoded = windows._encode

    def watched(split):
        if split.column("row")[0] == 11:
            ahead.set()
        return encoded(split)

    windows._encode = watched
    assert windows[0].arrays["labels"].tolist() == list(range(10))
    assert ahead.wait(60)  # nobody asked for it yet
    assert windows[1].arrays["labels"].tolist() == list(range(10, 20))
    windows.last = 1
    assert windows.counts == {"rows_skipped": 0, "rows_dropped": {}}
    for _ in range(2):
        with pytest.raises(UserError, match="row 21: field 'text' must be text"):
            windows[2]
    windows.close()


def test_labels_of_a_stream_are_counted_where_all_are(tmp_path):
    """Not in its first window, which may have few of some: here one of 64."""
    path, held = tmp_path / "a.jsonl", write(tmp_path / "b.jsonl", 40)
    labels = ["0"] * 63 + ["1"] + ["0", "1"] * 50
    path.write_text("".join(json.dumps({"text": "x", "label": n}) + "\n" for n in labels))
    windows = Windows([Source(opened(path), SCHEMA)], 64, encode)
    rows = read_split([opened(held)], SCHEMA, skip=False)
    validation = Examples(
        ragged([[1]] * 40), arrays={"labels": np.arange(40, dtype=np.int32) % 3 % 2}
    )
    data = Data({"validation": rows}, {"validation": validation}, ("0", "1"), [], windows)
    found = Classification(class_weights="balanced").fitted(data.counted, data.names)
    labels = validation.arrays["labels"]
    wanted = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    np.testing.assert_allclose(found.class_weights, wanted)
    windows.close()


def test_sorted_rows_are_told_from_shuffled_ones():
    random = np.random.default_rng(0)
    labels = random.choice(4, 2000, p=[0.7, 0.2, 0.05, 0.05]).astype(np.int32)
    assert not are_sorted(labels) and are_sorted(np.sort(labels)) and are_sorted(labels * 0)
    assert are_sorted(np.sort(labels.reshape(-1, 100)).ravel())  # in runs
    assert not are_sorted(labels * 0.5) and not are_sorted(None) and not are_sorted(labels[:3] * 0)


def test_shares_of_a_window():
    assert shares([1, 1, 1], 8) in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert shares([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    with pytest.raises(UserError, match="less than a row"):
        shares([1000, 1], 10)
    with pytest.raises(UserError, match="must be positive"):
        shares([1, 0], 10)


def test_a_window_of_several_sources_has_rows_of_more_and_fewer_choices():
    """Those of fewer get empty sequences, as within one source."""
    two = Examples(ragged([[1], [2, 2], [3], [4]]), arrays={"labels": np.array([0, 1])}, group=2)
    three = Examples(ragged([[5], [], [6, 6]]), arrays={"labels": np.array([2])}, group=3)
    found = joined([two, three, two])
    assert found.group == 3 and len(found) == 5 and found.row_numbers.tolist() == [0, 1, 2, 3, 4]
    each = [found.ids[n].tolist() for n in range(15)]
    wanted = [[1], [2, 2], [], [3], [4], []]
    assert each == [*wanted, [5], [], [6, 6], *wanted]
    assert found.arrays["labels"].tolist() == [0, 1, 2, 0, 1]
