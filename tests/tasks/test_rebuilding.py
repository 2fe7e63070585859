"""T5's and BART's pretraining: what is read and written, put together, is the text."""

import numpy as np
import pytest

from ftjax.data.draws import Draws
from ftjax.data.encode import Ragged, ragged
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.corruption import corrupt_spans, corrupted_lengths, infill, noise_spans, permuted
from ftjax.tasks.denoising import Denoising
from ftjax.tasks.span_corruption import SpanCorruption
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    examples_of,
    varied,
    write_trained,
    write_words,
)

SENTINELS = list(range(999, 899, -1))  # descending, as T5's
END = 1


def texts(count, seed=0, most=200):
    """Ids from 10 to 799."""
    random = np.random.default_rng(seed)
    sizes = [1, 2, 3, *random.integers(1, most, count - 3)]
    return ragged([random.integers(10, 800, n) for n in sizes])


def put_back(read, written):
    """The text, and the lengths of its spans."""
    spans, mark = {}, None
    assert read[-1] == written[-1] == END
    for token in written[:-1]:
        if token >= 900:
            mark = token
            spans[mark] = []
        else:
            spans[mark].append(token)
    text = [t for token in read[:-1] for t in (spans[token] if token >= 900 else [token])]
    marks = [token for token in read if token >= 900]
    assert marks == list(spans) == SENTINELS[: len(marks)]
    return text, [len(span) for span in spans.values()]


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 8.0), (0.15, 1.0), (0.9, 2.0)])
def test_spans_put_back_give_the_text(density, mean):
    ids = texts(300)
    read, written = corrupt_spans(ids, density, mean, SENTINELS, END, Draws.of((1,), 300))
    lengths = corrupted_lengths(ids.lengths, density, mean, len(SENTINELS))
    assert (read.lengths == lengths[0]).all() and (written.lengths == lengths[1]).all()
    task = SpanCorruption(density=density, mean_span=mean)
    longest = [task.longest_written(int(length) + 1) for length in ids.lengths]
    assert (written.lengths <= np.maximum(longest, 1)).all()  # and as long, with enough sentinels
    assert (written.lengths == longest)[ids.lengths > 1].mean() > 0.9
    noise, spans, total = 0, 0, 0
    for number in range(len(ids)):
        text, lengths = put_back(read[number].tolist(), written[number].tolist())
        assert text == ids[number].tolist()
        assert all(lengths)
        if len(text) > 1:
            wanted = min(max(round(len(text) * density), 1), len(text) - 1)
            assert sum(lengths) == wanted
            noise, spans, total = noise + sum(lengths), spans + len(lengths), total + len(text)
    assert abs(noise / total - density) < 0.03
    if density * mean < 1.8:  # others have more spans than sentinels, or than kept tokens
        assert abs(noise / spans - mean) < 0.1 * mean + 0.2


@pytest.mark.parametrize("length", [40, 10])
def test_spans_are_anywhere(length):
    """Every token is left out about as often, also where there is one span."""
    left, draws = np.zeros(length), Draws.of((0,), 4000)
    counts, *spans = noise_spans(np.full(4000, length), 0.15, 3.0, draws)
    for each in np.stack(spans, 1).reshape(4000, -1, 2):
        for start, stop in np.cumsum(each.ravel()).reshape(-1, 2):
            left[start:stop] += 1
    noise = {40: 6, 10: 2}[length]
    assert left.sum() == 4000 * noise and (counts == max(round(noise / 3), 1)).all()
    inner = left[noise:-noise]
    assert inner.max() / inner.min() < 1.4 and left.min() > 0.3 * inner.mean()


def test_few_sentinels_join_the_last_spans():
    ids = ragged([np.arange(10, 110)])
    read, written = corrupt_spans(ids, 0.3, 1.0, SENTINELS[:4], END, Draws.of((0,), 1))
    lengths = corrupted_lengths(ids.lengths, 0.3, 1.0, 4)
    assert (read.lengths == lengths[0]).all() and (written.lengths == lengths[1]).all()
    text, lengths = put_back(read[0].tolist(), written[0].tolist())
    assert text == ids[0].tolist() and len(lengths) == 4


def test_span_corruption_of_texts(tmp_path):
    names = [f"<extra_id_{i}>" for i in range(20)]
    folder = write_trained(tmp_path, "bpe", [" ".join(WORDS)] * 3, names)
    random = np.random.default_rng(0)
    rows = [{"text": " ".join(random.choice(WORDS, 20))} for _ in range(6)]
    task, tokenizer = SpanCorruption(), load_tokenizer(folder)
    _, _, examples = examples_of(task, rows, folder, 64)
    vary = task.variation(tokenizer)
    found, other = (varied(examples, vary, seed) for seed in (0, 1))
    read, written = vary.lengths(examples)
    assert (found.ids.lengths == read).all() and (found.decoder.lengths == written).all()
    assert found.ids.values.tolist() != other.ids.values.tolist()
    for number, row in enumerate(rows):
        read, written = (tokenizer.decode(x[number]) for x in (found.ids, found.decoder))
        assert read.endswith("</s>") and written.endswith("</s>")
        parts = written.removesuffix("</s>").split("<extra_id_")[1:]
        for part in parts:
            name, span = part.split(">", 1)
            read = read.replace(f"<extra_id_{name}>", span)
        assert read.removesuffix("</s>") == row["text"]
    assert len(found.ids[0]) <= 64
    _, _, short = examples_of(task, rows, folder, 10)
    assert short.truncated == 6 and vary(short, Draws.of((0,), 6)).ids.lengths.max() <= 10
    with pytest.raises(UserError, match="no <extra_id_0>"):
        task.variation(load_tokenizer(write_words(tmp_path / "words", eos="[SEP]")))


MASK = 4


@pytest.mark.parametrize(("rate", "mean"), [(0.3, 3.0), (0.15, 1.0), (0.6, 10.0)])
def test_infilling(rate, mean):
    """What is left is the text in its order, with masks between; never longer than it was."""
    random = np.random.default_rng(0)
    ids = ragged([[1, *range(10, 10 + n), 2] for n in [1, 2, *random.integers(5, 200, 300)]])
    inner = (ids.values >= 10).astype(int)
    read = infill(ids, inner, rate, mean, MASK, np.random.default_rng(1))
    gone, total, masks = 0, 0, 0
    for number in range(len(ids)):
        before, after = ids[number], read[number]
        assert len(after) <= len(before)
        left = after[after != MASK]
        assert left[0] == 1 and left[-1] == 2 and (np.diff(left[:-1]) > 0).all()
        assert set(left) <= set(before)
        lost = len(before) - len(left)
        assert lost <= round(rate * (len(before) - 2))
        gone, total, masks = gone + lost, total + len(before) - 2, masks + (after == MASK).sum()
    assert 0.7 * rate < gone / total <= rate
    assert masks < gone


def test_sentences_are_permuted():
    sentence = np.array([-1, 0, 0, 1, 2, 2, 2, -1, -1, 0, 0, -1])
    ids = Ragged(np.arange(100, 112).astype(np.int32), np.array([0, 8, 12]))
    seen = set()
    for seed in range(60):
        order = permuted(ids, sentence, np.random.default_rng(seed))
        mixed = ids.values[order]
        assert mixed[0] == 100 and mixed[7:].tolist() == [107, 108, 109, 110, 111]
        parts = {0: "101 102", 1: "103", 2: "104 105 106"}
        text = " ".join(map(str, mixed[1:7]))
        for number, part in parts.items():
            assert part in text
            text = text.replace(part, str(number))
        seen.add(text)
    assert len(seen) == 6  # every order


def test_sentences_of_texts(tmp_path):
    folder = write_trained(tmp_path, "bpe", ["One two. Three! four"] * 3)
    rows = [{"text": 'One 3.5 two. "Three!" four\nfive 六。七'}]
    _, _, examples = examples_of(Denoising(), rows, folder)
    tokenizer, number = load_tokenizer(folder), examples.tokens["_sentence"]
    found = [tokenizer.decode(examples.ids.values[number == n]) for n in range(number.max() + 1)]
    assert "".join(found) == rows[0]["text"]
    assert [part.strip() for part in found] == [
        "One 3.5 two.",
        '"Three!"',
        "four",
        "five 六。",
        "七",
    ]


@pytest.mark.parametrize("task", [SpanCorruption(), Denoising()], ids=["t5", "bart"])
def test_epochs_differ_and_evaluation_does_not(tmp_path, task):
    kind = "t5" if isinstance(task, SpanCorruption) else "bart"
    folder = write_words(tmp_path, eos="[SEP]")
    made = SmallModel.of(task, kind, "seq2seq_lm", folder)
    random = np.random.default_rng(0)
    rows = [{"text": " ".join(random.choice(WORDS, 12)) + ". good film."} for _ in range(5)]
    split, names, examples = examples_of(task, rows, folder, 24)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{i}>" for i in range(3)]})
    if kind == "t5":  # beyond the model's vocabulary: words stand for sentinels
        names_of = {f"<extra_id_{i}>": 40 + i for i in range(20)}
        tokenizer.get_vocab = lambda: names_of
    vary = task.variation(tokenizer)
    first, again = (made.outputs(examples, vary=vary) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    scores = task.score(first, examples, split, names)
    np.testing.assert_allclose(scores["loss"], made.sums(batches(examples, vary=vary)), rtol=1e-5)
    alone = (
        varied(examples, vary) if vary.lengths else vary(examples, Draws.of((0,), len(examples)))
    )
    wanted = alone.decoder
    assert scores["tokens"] == len(wanted.values)
    if kind == "bart":
        np.testing.assert_array_equal(wanted.values, examples.ids.values)
    assert (
        vary(examples, Draws.of((1,), len(examples))).ids.values.tolist()
        != vary(examples, Draws.of((2,), len(examples))).ids.values.tolist()
    )
