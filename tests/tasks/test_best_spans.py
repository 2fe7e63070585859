"""The best answers of outputs drawn at random: against the way of SQuAD's scripts, and by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from ftjax.config import default_config
from ftjax.data.encode import encode
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.setup.model import place_model
from ftjax.tasks.span_qa import SpanQA, answers
from tests.conftest import WORDS
from tests.tasks.small_models import examples_of, most_places, split_of
from tests.tasks.test_span_qa import rows_of

N_BEST = 20  # of run_qa.py: `n_best_size`; its `max_answer_length` is 30


def logits_of(examples, seed, sharp=2.0):
    """Steps of a quarter: many spans have equal scores, which are exact."""
    random = np.random.default_rng(seed)
    return np.round(random.normal(0, sharp, (len(examples.ids.values), 2)) * 4) / 4


def windows_of(examples, logits, row):
    """Outputs of a row's windows, and which characters each token has; None outside the context."""
    for number in np.flatnonzero(examples.row_numbers == row):
        own = slice(*examples.ids.offsets[number : number + 2])
        places = zip(examples.tokens["_begin"][own], examples.tokens["_end"][own], strict=True)
        yield logits[own], [None if a < 0 else (int(a), int(b)) for a, b in places]


def n_best(examples, logits, row, longest=30):
    """Spans by their score: those of the best starts and ends of each window, each span once."""
    found = {}
    for outputs, places in windows_of(examples, logits, row):
        inside = [i for i, place in enumerate(places) if place]
        starts, ends = (
            sorted(inside, key=lambda i: (-outputs[i, side], i))[:N_BEST] for side in (0, 1)
        )
        spans = [(i, j) for i in starts for j in ends if i <= j < i + longest]
        spans.sort(key=lambda span: -(outputs[span[0], 0] + outputs[span[1], 1]))
        for i, j in spans[:N_BEST]:
            characters = places[i][0], places[j][1]
            score = outputs[i, 0] + outputs[j, 1]
            found[characters] = max(found.get(characters, -np.inf), score)
    return sorted(found.items(), key=lambda item: -item[1])[:N_BEST]


def split_to_predict(task, rows, folder, length=32):
    split = split_of(task, rows, task.schema.to_predict())
    return split, encode(split, task, folder, length)


@pytest.mark.parametrize("longest", [1, 3, 30])
@pytest.mark.parametrize("impossible", [False, True])
def test_answers_are_those_of_n_best_lists(tiny, impossible, longest):
    task = SpanQA(stride=4, max_answer=longest, impossible=impossible)
    rows = rows_of(30, 60)
    split, examples = split_to_predict(task, rows, tiny)
    logits = logits_of(examples, longest)
    logits[examples.ids.offsets[:-1][examples.row_numbers % 2 > 0]] += 4  # of these more say none
    said, empty = task.predictions({"tokens": logits}, examples, split, ()), 0
    for number, (row, found) in enumerate(zip(rows, said, strict=True)):
        best = n_best(examples, logits, number, longest)
        none = min(outputs[0].sum() for outputs, _ in windows_of(examples, logits, number))
        scores = [score for _, score in best]
        given = not impossible or none <= scores[0]
        empty += not given
        chances = softmax([none, *scores] if impossible else scores)
        at = int(given) if impossible else 0
        np.testing.assert_allclose(found["probability"], chances[at], atol=5e-7)
        assert found["score"] == scores[0] - none * impossible
        if given:
            equal = {span for span, score in best if score == scores[0]}
            span = found["start"], found["start"] + len(found["answer"])
            assert span in equal and found["answer"] == row["context"][slice(*span)]
            assert len(found["answer"].split()) <= longest
        else:
            assert found["answer"] == "" and found["start"] == -1
    assert bool(empty) == impossible and most_places(said) == 6


def test_of_equal_spans_the_first_is_said(tiny):
    """And an answer that is as good as none is given: SQuAD's scripts ask for a difference above
    the threshold."""
    row = {"question": "is it", "context": "a good film", "answers": {}}
    for threshold, wanted in ((0.0, "a"), (-0.25, ""), (0.25, "a")):
        task = SpanQA(stride=4, impossible=True, null_threshold=threshold)
        split, examples = split_to_predict(task, [row], tiny)
        even = {"tokens": np.zeros((len(examples.ids.values), 2))}
        (said,) = task.predictions(even, examples, split, ())
        assert said["answer"] == wanted and said["score"] == 0.0
        np.testing.assert_allclose(said["probability"], 1 / 7, atol=5e-7)  # six spans, and none
    for bound, wanted in ((1.0, "a"), (0.75, "")):
        task = SpanQA(stride=4, impossible=True, null_threshold=bound)
        even["tokens"][0] = 0.5  # a sum of 1 for no answer
        assert task.predictions(even, examples, split, ())[0]["answer"] == wanted


def test_a_context_without_tokens_has_no_answer(tiny):
    """As of characters that the tokenizer drops, which a split may have among others."""
    rows = [{"question": "is it", "context": text} for text in ("\x01", "good film")]
    for impossible in (False, True):
        task = SpanQA(stride=4, impossible=impossible)
        split, examples = split_to_predict(task, rows, tiny)
        logits = {"tokens": logits_of(examples, 0)}
        first, second = task.predictions(logits, examples, split, ())
        assert first["answer"] == "" and second["answer"] in ("", "good", "film", "good film")
        assert first["start"] == (-1 if impossible else 0) and first["probability"] == 1.0


def test_marks_that_tokenizers_drop_are_of_the_answer(tiny):
    """Of the word before them: between words, and where they end the context."""
    for context, at, wanted in (
        ("film\u0301\u0302 too", 0, "film\u0301\u0302"),
        ("too film\u0301\u0302", 1, "film\u0301\u0302"),
        ("too film\u0301 too", 0, "too"),
        ("film\u0301, too", 0, "film\u0301"),
    ):
        split, examples = split_to_predict(
            SpanQA(stride=4), [{"question": "is it", "context": context}], tiny
        )
        logits = np.zeros((len(examples.ids.values), 2))
        logits[np.flatnonzero(examples.tokens["_begin"] >= 0)[at]] = 9
        (said,) = SpanQA(stride=4).predictions({"tokens": logits}, examples, split, ())
        assert said["answer"] == wanted and said["start"] == context.index(wanted)


@pytest.mark.parametrize("task", [SpanQA(stride=0), SpanQA(stride=4), SpanQA(stride=12)])
def test_targets_are_the_tokens_that_have_the_answer(tiny, task):
    """In windows that have all of its characters; at its edges, too."""
    rows = rows_of(40, 40, seed=3)
    for row in rows[:6]:  # the first word, the last, and all of them
        text, part = row["context"], len(row["answers"]["text"][0]) % 3
        answer = (text.split()[0], text.split()[-1], text)[part]
        start = 0 if part != 1 else len(text) - len(answer)
        row["answers"] = {"text": [answer, "good"], "answer_start": [start, text.find("good")]}
        if "good" not in text:
            row["answers"] = {"text": [answer], "answer_start": [start]}
    split, _, examples = examples_of(task, rows, tiny, 28)
    found, lacking = 0, 0
    for number, row in enumerate(examples.row_numbers):
        answer = split.column("answers")[row]
        begins = answer["answer_start"][0]
        ends = begins + len(answer["text"][0])
        own = slice(*examples.ids.offsets[number : number + 2])
        begin, end = (examples.tokens[name][own] for name in ("_begin", "_end"))
        have = (begin >= 0) & (begin < ends) & (end > begins)
        covered = "".join(
            split.column("context")[row][a:b] for a, b in zip(begin[have], end[have], strict=True)
        )
        whole = covered == answer["text"][0].replace(" ", "")
        places = np.flatnonzero(have)[[0, -1]].tolist() if whole else [0, 0]
        assert [examples.arrays[name][number] for name in ("starts_at", "ends_at")] == places
        found, lacking = found + whole, lacking + (not whole)
    assert found > 20 and lacking > 20


def test_losses_are_those_of_log_softmax(tiny):
    """The mean over windows of half the sum of both: also of windows of several lengths."""
    task = SpanQA(stride=4)
    split, names, examples = examples_of(task, rows_of(5, 30), tiny, 20)
    logits, wanted = logits_of(examples, 1), []
    for number, (a, b) in enumerate(
        zip(examples.arrays["starts_at"], examples.arrays["ends_at"], strict=True)
    ):
        own = log_softmax(logits[slice(*examples.ids.offsets[number : number + 2])], 0)
        wanted.append(-(own[a, 0] + own[b, 1]) / 2)
    scores = task.score({"tokens": logits}, examples, split, names)
    np.testing.assert_allclose(scores["loss"], np.mean(wanted))


@pytest.mark.parametrize(
    ("stride", "length", "room"),
    # of 20 tokens three are special, and the context's go on by one at least
    [(4, 20, 10), (6, 20, 10), (7, 20, 9), (8, 20, 8), (14, 20, 2), (15, 20, 1), (4, 21, 10)],
)
def test_room_of_questions(tiny, stride, length, room):
    """Half of a window at most, and so much that windows go on."""
    task, tokenizer = SpanQA(stride=stride), load_tokenizer(tiny)
    for count in (1, room - 1, room, room + 1, 30):
        if not count:
            continue
        row = {"question": " ".join(WORDS[:count]), "context": " ".join(WORDS[:29])}
        _, examples = split_to_predict(task, [row], tiny, length)
        kept = tokenizer.convert_tokens_to_ids(WORDS[: min(count, room)])
        for number in range(len(examples)):
            ids = examples.ids[number].tolist()
            assert ids[1 : ids.index(tokenizer.sep_token_id)] == kept and len(ids) <= length
        inside = examples.tokens["_begin"] >= 0
        assert len(set(examples.tokens["_begin"][inside])) == 29
    assert len(examples) > 1 and examples.truncated == 0


def test_strides_that_leave_no_room(tiny):
    row = {"question": "is it", "context": "good film"}
    with pytest.raises(UserError, match="task.stride=16 leaves no room for questions"):
        split_to_predict(SpanQA(stride=16), [row], tiny, 20)
    with pytest.raises(UserError, match="leaves no room"):  # half of one token is none
        split_to_predict(SpanQA(stride=0), [row], tiny, 1)


def test_measured_is_what_is_scored(tiny):
    """By whether questions have answers: all, some, or none of them."""
    for impossible in (False, True):
        for empty in (0.0, 0.5, 1.0) if impossible else (0.0,):
            task, rows = SpanQA(stride=4, impossible=impossible), rows_of(8, 12, empty=empty)
            split, names, examples = examples_of(task, rows, tiny)
            scores = task.score({"tokens": logits_of(examples, 2)}, examples, split, names)
            numbers = {name for name, value in scores.items() if isinstance(value, float)}
            kinds = {name.rpartition("_")[2] for name in numbers} & {"answerable", "unanswerable"}
            wanted = {0.0: {"answerable"}, 0.5: {"answerable", "unanswerable"}}
            assert numbers == set(task.measured(split, names))
            assert kinds == (wanted.get(empty, {"unanswerable"}) if impossible else set())


def test_metrics_are_of_each_kind_of_question(tiny):
    """One of three answers is right; no answer is right of one of two that have none."""
    rows = [
        {"question": "is it", "context": "a good film", "answers": found}
        for found in (
            {"text": ["good"], "answer_start": [2]},
            {"text": ["a"], "answer_start": [0]},
            {"text": ["a good film", "film"], "answer_start": [0, 7]},
            {"text": [], "answer_start": []},
            {"text": [], "answer_start": []},
        )
    ]
    task = SpanQA(stride=4, impossible=True)
    split, names, examples = examples_of(task, rows, tiny)
    logits = np.zeros((len(examples), len(examples.ids[0]), 2))
    for number, word in enumerate((5, 5, 6, 0, 5)):  # good, good, film, none, good
        logits[number, word] = 9
    scores = task.score({"tokens": logits.reshape(-1, 2)}, examples, split, names)
    assert scores["exact_match"] == 3 / 5 and scores["exact_match_answerable"] == 2 / 3
    assert scores["exact_match_unanswerable"] == scores["f1_unanswerable"] == 1 / 2
    assert scores["examples"] == 5


@pytest.mark.parametrize(
    "value",
    [
        {"text": [3], "answer_start": [0]},
        {"text": ["a", ""], "answer_start": [0, 1]},
        {"text": ["a"], "answer_start": [0, 1]},
        {"text": ["a"], "answer_start": ["x"]},
        {"text": None, "answer_start": [0]},
        ["a"],
    ],
)
def test_answers_of_another_form_are_refused(value):
    with pytest.raises(ValueError, match="must have text"):
        answers(value)
    assert answers({"text": ("a", "b"), "answer_start": ["0", 2]}) == {
        "text": ["a", "b"],
        "answer_start": [0, 2],
    }


def test_rows_may_lack_ids_and_are_predicted_without_answers(tiny):
    row = {"question": "is it", "context": "good film"}
    split, _ = split_to_predict(SpanQA(stride=4), [row], tiny)
    assert set(split.rows.column_names) == {"question", "context", "row"}
    with pytest.raises(UserError, match="answers"):
        split_of(SpanQA(stride=4), [row])


def test_windows_are_not_packed(tiny):
    """Of a row that has several, no softmax over its tokens would be one window's."""
    config = default_config("head", "span_qa")
    config.model.path, config.data.batching, config.data.max_length = str(tiny), "pack", 64
    with pytest.raises(UserError, match="data.batching=pack is not for task.name=span_qa"):
        place_model(config, ())
