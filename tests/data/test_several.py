"""Rows that give several examples, or none, and examples of several sequences: each once, in
epochs and in streams, on any number of hosts and from any position.
"""

from collections import Counter

import numpy as np
import pytest

from ftjax.config import default_config
from ftjax.data.encode import encode, encoder
from ftjax.data.loading import Loader
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import bucket_layout
from ftjax.data.sources import open_parts
from ftjax.data.stream_source import Source
from ftjax.data.streaming import StreamLoader, Windows
from ftjax.formats.folder import load_tokenizer
from ftjax.setup.examples import choose_layout, with_targets
from ftjax.tasks.causal_lm import CausalLM
from ftjax.tasks.instruction import Instruction
from ftjax.tasks.masked_lm import MaskedLM
from ftjax.tasks.multiple_choice import MultipleChoice
from ftjax.tasks.seq2seq import Seq2Seq
from ftjax.tasks.span_qa import SpanQA
from tests.conftest import WORDS, data_settings, write_jsonl
from tests.tasks.small_models import examples_of, split_of, write_words

ROWS, WINDOW, BATCH = 24, 8, 4
BLOCKS, WINDOWS = CausalLM(block=8), SpanQA(stride=4)


def texts(count, most=40):
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, int(random.integers(2, most)))) for _ in range(count)]


def rows_of(task):
    if task is BLOCKS:
        return [{"text": text} for text in texts(ROWS)]
    found = []
    for text in texts(ROWS):
        answer = {"text": [text.split()[0]], "answer_start": [0]}
        found.append({"question": "is it", "context": text, "answers": answer})
    return found


@pytest.fixture(params=[BLOCKS, WINDOWS], ids=["blocks", "windows"])
def made(request, tiny, tmp_path):
    """A task, a maker of a stream's windows, and the examples of each pass by hand."""
    task, kind = request.param, "causal_lm" if request.param is BLOCKS else "span_qa"
    rows = rows_of(task)
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = data_settings(kind, path=str(file))
    tokenize = encoder(task, tiny, 20)

    def make():
        source = Source(open_parts(settings)[0][1]["train"], task.schema)
        return Windows(
            [source], WINDOW, lambda split: with_targets(tokenize(split), task, split, ())
        )

    wanted = []
    for start in range(0, ROWS, WINDOW):
        _, _, examples = examples_of(task, rows[start : start + WINDOW], tiny, 20)
        assert len(examples) != WINDOW
        wanted.append(Counter(ids.tobytes() for ids in sequences(examples)))
    return task, make, wanted


def sequences(examples):
    return [examples.ids[i].astype(np.int32) for i in range(len(examples.ids))]


def seen(batch):
    """The real sequences of an unpacked batch."""
    found = zip(batch["input_ids"], batch["attention_mask"], batch["weights"], strict=True)
    return [ids[mask > 0].astype(np.int32).tobytes() for ids, mask, weight in found if weight]


def loaders(make, layout, starts=(0,), hosts=1):
    return [
        StreamLoader(make(), BATCH, layout, 3, local(host, hosts), starts=list(starts))
        for host in range(hosts)
    ]


def local(host, hosts):
    return lambda count: np.split(np.arange(count), hosts)[host]


@pytest.mark.parametrize("hosts", [1, 4])
def test_streams_give_each_example_once(made, hosts):
    _, make, wanted = made
    layout = bucket_layout(np.array([20]), 1)
    several = loaders(make, layout, hosts=hosts)
    total = [-(-sum(part.values()) // BATCH) for part in wanted]  # steps of each window
    step = 0
    for _ in range(2):  # passes
        for part, count in zip(wanted, total, strict=True):
            found = Counter()
            for number in range(step, step + count):
                for loader in several:
                    found.update(seen(loader.at(number).arrays))
            assert found == part
            step += count
    assert several[0].starts[:4] == [0, *np.cumsum(total)]
    examples = sum(several[0].at(number).counts.examples for number in range(step))
    assert examples == 2 * sum(sum(part.values()) for part in wanted)


def test_streams_go_on_where_they_stopped(made):
    """From the steps that windows start at, which a checkpoint has: no window before is read."""
    _, make, _ = made
    layout = bucket_layout(np.array([20]), 1)
    (first,) = loaders(make, layout)
    whole = []
    while len(first.starts) < 5:
        whole.append(seen(first.at(len(whole)).arrays))
    stop = first.starts[2] + 1
    windows = make()
    read, take = [], windows._read
    windows._read = lambda number: read.append(number) or take(number)
    again = StreamLoader(windows, BATCH, layout, 3, starts=list(first.starts))
    assert [seen(again.at(step).arrays) for step in range(stop, len(whole))] == whole[stop:]
    assert min(read) == 2


def test_packed_streams_give_each_example_once(tiny, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", rows_of(BLOCKS))
    opened = open_parts(data_settings("causal_lm", path=str(file)))[0][1]["train"]
    tokenize = encoder(BLOCKS, tiny, 20)

    def encoded(split):
        return with_targets(tokenize(split), BLOCKS, split, ())

    windows = Windows([Source(opened, BLOCKS.schema)], WINDOW, encoded)
    examples = windows[0]
    loader = StreamLoader(windows, BATCH, packed_layout(examples.lengths, BATCH), 3)
    found, step = Counter(), 0
    loader.at(0)
    for step in range(loader.starts[1]):
        batch = loader.at(step).arrays
        for row, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
            found.update(
                row[segments == n].astype(np.int32).tobytes() for n in range(1, segments.max() + 1)
            )
    assert found == Counter(ids.tobytes() for ids in sequences(examples))


def test_long_targets_of_later_windows_have_a_place(tiny, tmp_path):
    """Also of 70 tokens, where those of the first window have 5 at most."""
    rows = [
        {"source": "good film", "target": " ".join(WORDS[: 1 + i % 3] * (1 + 20 * (i >= WINDOW)))}
        for i in range(2 * WINDOW)
    ]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = default_config("full", "seq2seq")
    config.data.path, config.data.max_length, task = str(file), 20, Seq2Seq(max_target=50)
    tokenize = encoder(task, write_words(tmp_path / "words", eos="[SEP]"), 20)
    windows = Windows(
        [Source(open_parts(config.data)[0][1]["train"], task.schema)], WINDOW, tokenize
    )
    short = choose_layout(config, None, [windows[0]], BATCH)
    room = (20, task.longest_written(20))
    layout = choose_layout(config, None, [windows[0]], BATCH, None, room)
    assert short.written == (8,) and layout.written[-1] == 56
    loader = StreamLoader(windows, BATCH, layout, 3)
    for number, longest in ((0, 5), (1, 50)):
        batches = [loader.at(2 * number + step) for step in range(2)]
        written = [int(n) for batch in batches for n in batch.arrays["target_weights"].sum(1)]
        wanted = windows[number].decoder.lengths.tolist()
        assert sorted(written) == sorted(wanted) and max(written) == longest
    with pytest.raises(
        RuntimeError, match=r"8 of 8 examples are not placed once.* tokens, 0 times"
    ):
        StreamLoader(windows, BATCH, short, 3, starts=[0, 2]).at(2)


@pytest.mark.parametrize("hosts", [1, 2])
def test_groups_stay_together(tiny, hosts):
    """Choices lie beside each other, with empty sequences where a row has fewer."""
    rows = [
        {
            "text": f"good {WORDS[i]}",
            "choices": [f"film {w}" for w in WORDS[: 2 + i % 3]],
            "label": 0,
        }
        for i in range(11)
    ]
    _, _, examples = examples_of(MultipleChoice(), rows, tiny)
    assert examples.group == 4 and len(examples) == 11
    layout, once = bucket_layout(examples.lengths, 2), []
    every = [Loader(examples, 4, layout, 0, local(host, hosts)) for host in range(hosts)]
    tokenizer = load_tokenizer(tiny)
    for step in range(every[0].steps_per_epoch):
        for loader in every:
            batch = loader.at(step).arrays
            assert batch["input_ids"].shape[:2] == (4 // hosts, 4)
            for ids, mask, weight in zip(
                batch["input_ids"], batch["attention_mask"], batch["weights"], strict=True
            ):
                if not weight:
                    assert not mask.any()
                    continue
                real = [tokenizer.decode(row[m > 0]) for row, m in zip(ids, mask, strict=True)]
                number = WORDS.index(real[0].split()[2])
                once.append(number)
                pairs = [
                    f"[CLS] good {WORDS[number]} [SEP] {c} [SEP]" for c in rows[number]["choices"]
                ]
                assert real == pairs + [""] * (4 - len(pairs))
    assert sorted(once) == list(range(11))


@pytest.mark.parametrize("packed", [False, True])
def test_varied_examples_come_once_an_epoch(tiny, packed):
    """Originals each once in every epoch, whatever is masked of them."""
    _, _, examples = examples_of(MaskedLM(), [{"text": text} for text in texts(21, 20)], tiny)
    vary = MaskedLM().variation(load_tokenizer(tiny))
    layout = packed_layout(examples.lengths, 4) if packed else bucket_layout(examples.lengths, 2)
    loader = Loader(examples, 4, layout, 0, vary=vary)
    wanted, reads = Counter(ids.tobytes() for ids in sequences(examples)), []
    for epoch in range(2):
        found, read = Counter(), []
        for step in range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch):
            batch = loader.at(step).arrays
            numbers = batch["segment_ids"] if packed else batch["attention_mask"]
            for row, ids, own in zip(batch["originals"], batch["input_ids"], numbers, strict=True):
                for n in range(1, own.max(initial=0) + 1):
                    found[row[own == n].astype(np.int32).tobytes()] += 1
                    read.append(ids[own == n].tobytes())
        assert found == wanted
        reads.append(sorted(read))
    assert reads[0] != reads[1]


def test_rows_without_examples_are_left_out(tiny, tmp_path):
    """Their numbers are those of the rows that are left."""
    folder, task = write_words(tmp_path, eos="[SEP]"), Instruction(template="plain")
    long = {"prompt": "good " * 40, "completion": "bad"}
    rows = [
        long,
        {"prompt": "good", "completion": "bad"},
        long,
        {"prompt": "it", "completion": "so"},
    ]
    examples = encode(split_of(task, rows), task, folder, 16)
    assert examples.row_numbers.tolist() == [1, 3]


def test_windows_in_several_parts_have_the_same_examples(tmp_path, monkeypatch):
    """Also where a part has no example."""
    folder, task = write_words(tmp_path, eos="[SEP]"), Instruction(template="plain")
    rows = [{"prompt": text, "completion": "bad"} for text in texts(30)]
    rows[8:16] = [{"prompt": "good " * 40, "completion": "bad"}] * 8
    split = split_of(task, rows)
    wanted = encode(split, task, folder, 24)
    monkeypatch.setattr("ftjax.data.encode.CHUNK", 4)
    found = encoder(task, folder, 24)(split)
    assert found.row_numbers.tolist() == wanted.row_numbers.tolist()
    assert set(range(30)) - set(wanted.row_numbers.tolist()) > set(range(8, 16))
    np.testing.assert_array_equal(found.ids.values, wanted.ids.values)
    np.testing.assert_array_equal(found.ids.offsets, wanted.ids.offsets)
    np.testing.assert_array_equal(found.tokens["learned"], wanted.tokens["learned"])
    assert found.truncated == wanted.truncated
