"""A stream's rows are those of its sources, in shares, the same from any position."""

import itertools
import json

import numpy as np
import pytest

from ftjax.config import default_config
from ftjax.data.encode import Examples, Ragged
from ftjax.data.planning import bucket_layout, packed_layout
from ftjax.data.sources import open_parts
from ftjax.data.streaming import Source, StreamLoader, Windows, shares
from ftjax.errors import UserError
from ftjax.tasks.classification import Classification

SCHEMA = Classification.schema


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
        Source(opened(path), SCHEMA).take(0, 10)
    source = Source(opened(path), SCHEMA, skip=True)
    good = [row["row"] for row in source.take(0, 16)]
    assert good == [1, 2, 3, 7, 8, 9, 10, 11, 1, 2, 3, 7, 8, 9, 10, 11]
    assert [message.split(": ")[1] for message in source.skipped] == [
        "row 4 is not valid JSON",
        f"row 5 has bytes that are not UTF-8 (byte {sum(map(len, lines[:4])) + 10}); "
        "if the file is of another encoding, set data.encoding, as to cp1252",
        "row 6 has no field 'text' (data.columns.text) (known",
    ]
    path.write_bytes(b'{"label": 1}\n')
    with pytest.raises(UserError, match="has no rows"):
        Source(opened(path), SCHEMA, skip=True).take(0, 1)


def test_shares_of_a_window():
    assert shares([1, 1, 1], 8) in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert shares([0.7, 0.2, 0.1], 10) == [7, 2, 1]
    with pytest.raises(UserError, match="less than a row"):
        shares([1000, 1], 10)
    with pytest.raises(UserError, match="must be positive"):
        shares([1, 0], 10)
