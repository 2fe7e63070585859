"""Answers in texts: against transformers' model and windows, SQuAD's script, and CMRC's by hand."""

import json
import logging
import re
import string
from collections import Counter

import numpy as np
import pytest

from ftjax.data.encode import encode
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks import squad
from ftjax.tasks.span_qa import SpanQA
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    split_of,
    tensors,
    write_trained,
    write_words,
)

TASK = SpanQA(stride=4, max_answer=12)


def rows_of(count, longest=40, seed=0, empty=0.0):
    random, rows = np.random.default_rng(seed), []
    for i in range(count):
        words = [str(word) for word in random.choice(WORDS, int(random.integers(4, longest)))]
        first = int(random.integers(len(words)))
        answer = words[first : first + int(random.integers(1, 5))]
        start = len(" ".join([*words[:first], ""]))
        found = {"text": [" ".join(answer)], "answer_start": [start]}
        if random.random() < empty:
            found = {"text": [], "answer_start": []}
        question = " ".join(random.choice(WORDS, int(random.integers(2, 6))))
        row = {"question": question, "context": " ".join(words), "answers": found}
        rows.append({"id": f"q{i}", **row})
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("spans"))
    return SmallModel.of(TASK, "bert", "span", folder, labels=2), folder


def test_windows_equal_transformers(made):
    folder = made[1]
    rows = rows_of(12)
    split, _, examples = examples_of(TASK, rows, folder, 20)
    found = load_tokenizer(folder)(
        split.column("question"),
        split.column("context"),
        truncation="only_second",
        max_length=20,
        stride=4,
        return_overflowing_tokens=True,
    )
    assert len(examples) == len(found["input_ids"]) > 20
    assert examples.row_numbers.tolist() == found["overflow_to_sample_mapping"]
    for i, ids in enumerate(found["input_ids"]):
        assert examples.ids[i].tolist() == ids
    np.testing.assert_array_equal(
        examples.tokens["token_type_ids"], np.concatenate(found["token_type_ids"])
    )


def test_loss_and_gradients_equal_transformers(made):
    made, folder = made
    _, _, examples = examples_of(TASK, rows_of(6, 12), folder, 20)
    (batch,) = batches(examples, len(examples))
    assert batch["starts_at"].any()
    inputs = tensors(batch, "input_ids", "attention_mask", "token_type_ids")
    places = {"start_positions": "starts_at", "end_positions": "ends_at"}
    wanted = {name: tensors(batch, ours)[ours] for name, ours in places.items()}
    made.theirs.zero_grad()
    out = made.theirs(**inputs, **wanted)
    # transformers lets padding be an answer; a row alone has none
    alone = [
        made.theirs(
            **{
                name: value[i : i + 1, : int(inputs["attention_mask"][i].sum())]
                for name, value in inputs.items()
            },
            **{name: value[i : i + 1] for name, value in wanted.items()},
        ).loss
        for i in range(len(examples))
    ]
    loss = sum(alone) / len(alone)
    loss.backward()
    found, gradients = made.gradients(batch)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    assert abs(out.loss.item() - loss.item()) > 1e-4
    equals(gradients, made.theirs)


def test_scores_have_the_loss_of_training(made):
    made, folder = made
    split, names, examples = examples_of(TASK, rows_of(9), folder, 20)
    scores = TASK.score(made.outputs(examples), examples, split, names)
    np.testing.assert_allclose(scores["loss"], made.sums(batches(examples)), rtol=1e-5)


# SQuAD's script, as Rajpurkar et al. publish it.
def normalize(text):
    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(text.lower())))


def script_f1(prediction, truth):
    a, b = normalize(prediction).split(), normalize(truth).split()
    if len(a) == 0 or len(b) == 0:  # as of version 2.0
        return int(a == b)
    same = sum((Counter(a) & Counter(b)).values())
    if same == 0:
        return 0
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


PIECES = [
    "a",
    "The",
    "an",
    "cat",
    "cats",
    "Cat's",
    "can",
    "-",
    "1,000",
    "$5",
    "(the)",
    "“q”",
    "Ünü",
]


def test_metrics_equal_the_script():
    random = np.random.default_rng(0)

    def text():
        return " ".join(random.choice(PIECES, int(random.integers(0, 6))))

    seen = set()
    for _ in range(400):
        found, wanted = text(), [text() for _ in range(int(random.integers(1, 4)))]
        golds = [each for each in wanted if normalize(each)] or [""]  # as of SQuAD 2.0
        exact = max(float(normalize(found) == normalize(each)) for each in golds)
        f1 = max(script_f1(found, each) for each in golds)
        assert squad.exact(found, wanted) == exact
        np.testing.assert_allclose(squad.f1(found, wanted), f1)
        seen.add((exact > 0, 0 < f1 < 1))
    assert seen == {(True, False), (False, True), (False, False)}
    for found, wanted in (("", 1.0), ("cat", 0.0), ("the", 1.0)):  # no answer is wanted
        assert squad.exact(found, []) == squad.f1(found, []) == wanted


@pytest.mark.parametrize(
    ("found", "wanted", "exact", "f1"),
    [
        ("范廷颂", "范廷颂", 1, 1),
        ("《范廷颂》，", "范廷颂", 1, 1),
        ("范廷颂枢机", "范廷颂", 0, 2 * 3 / (5 + 3)),
        # longest run 二月; pieces 一九六三年二月 and 二月
        ("一九六三年二月", "二月", 0, 2 * 2 / (7 + 2)),
        # not a common subsequence: 甲乙 and 丁 are apart in the one, so only 甲乙 counts
        ("甲乙丙丁", "甲乙丁", 0, 2 * 2 / (4 + 3)),
        # - is punctuation: 4050岁 in both
        ("40-50岁", "4050岁", 1, 1),
        # 40, 至, 50, 岁 and 4050, 岁: the run 岁 of 4 and of 2 pieces
        ("40至50岁", "40-50岁", 0, 2 * 1 / (4 + 2)),
        ("约1,500人", "1500人", 0, 2 * 1 / (3 + 2)),  # the script's comma is the Chinese one
        ("约1，500人", "1500人", 0, 2 * 2 / (3 + 2)),
        ("iPhone 7", "IPHONE 7", 1, 1),
        ("用iPhone 7拍", "iphone 8", 0, 2 * 1 / (4 + 2)),
        ("乙", "甲", 0, 0),
        ("甲乙" * 150, "丙" + "甲乙" * 150, 0, 2 * 300 / (300 + 301)),  # also of long answers
        ("，", "。", 1, 1),  # of punctuation alone nothing is left
        ("", "甲", 0, 0),
    ],
)
def test_chinese_answers_by_hand(found, wanted, exact, f1):
    """As CMRC 2018's script: characters and English words, the longest run that both have."""
    assert squad.exact(found, [wanted], "zh") == exact
    np.testing.assert_allclose(squad.f1(found, [wanted], "zh"), f1)
    assert squad.exact("x", [wanted, "x"], "zh") == squad.f1("x", [wanted, "x"], "zh") == 1


def pointed(examples, at=9.0):
    """Outputs that point at the targets."""
    logits = np.random.default_rng(0).normal(0, 0.1, (len(examples.ids.values), 2))
    for number, start in enumerate(examples.ids.offsets[:-1]):
        for i, name in enumerate(("starts_at", "ends_at")):
            logits[start + examples.arrays[name][number], i] += at
    return {"tokens": logits.astype(np.float32)}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_answers_survive_encoding(tmp_path, kind):
    """What the tokens pointed at say is the answer, in whichever window it lies."""
    folder = tmp_path / kind
    texts = [" ".join(WORDS), "naïve 中文 film?"] * 3
    folder = write_words(folder) if kind == "wordpiece" else write_trained(folder, kind, texts)
    rows = rows_of(15, seed=1)
    for context, answer in (
        ("it was 40-50 (so good) film", "(so good)"),
        ("the film: naïve one", "naïve"),
    ):
        found = {"text": [answer], "answer_start": [context.index(answer)]}
        rows.append({"id": answer, "question": "is it", "context": context, "answers": found})
    long = SpanQA(stride=16, max_answer=30)  # windows share more than an answer
    split, names, examples = examples_of(long, rows, folder, 36)
    assert len(examples) > len(rows)
    outputs = pointed(examples)
    logits = outputs["tokens"].reshape(-1, 2)
    for number in range(len(examples)):  # windows without the answer point at the first token less
        if not examples.arrays["starts_at"][number]:
            logits[examples.ids.offsets[number]] -= 9
    found = long.predictions(outputs, examples, split, names)
    for row, said in zip(rows, found, strict=True):
        assert said["answer"] == row["answers"]["text"][0], row
        assert said["start"] == row["answers"]["answer_start"][0]
    scores = long.score(outputs, examples, split, names)
    assert scores["exact_match"] == scores["f1"] == 1.0
    assert not {"exact_match_answerable"} & set(scores)


def test_targets_by_hand(tiny):
    """[CLS] is it [SEP] the film was too good [SEP]: tokens 0 to 9."""
    answer = {"text": ["was too"], "answer_start": [9]}
    row = {"question": "is it", "context": "the film was too good", "answers": answer}
    _, _, examples = examples_of(TASK, [row], tiny)
    assert examples.arrays["starts_at"].tolist() == [6] and examples.arrays["ends_at"].tolist() == [
        7
    ]
    inside = {"text": ["ilm w"], "answer_start": [5]}  # within words: the tokens that have it
    _, _, examples = examples_of(TASK, [{**row, "answers": inside}], tiny)
    assert examples.arrays["starts_at"].tolist() == [5] and examples.arrays["ends_at"].tolist() == [
        6
    ]


def test_targets_within_what_has_no_spaces(tiny):
    """[CLS] is it [SEP] it was 40 - 50 - 60 [SEP]: what ends or begins at a bound is outside."""
    row = {"question": "is it", "context": "it was 40-50-60"}
    for answer, at, tokens in (("50", 10, (8, 8)), ("-50-", 9, (7, 9)), ("it", 0, (4, 4))):
        row["answers"] = {"text": [answer], "answer_start": [at]}
        _, _, examples = examples_of(TASK, [row], tiny)
        assert (examples.arrays["starts_at"][0], examples.arrays["ends_at"][0]) == tokens
    begin, end = (examples.tokens[name].tolist() for name in ("_begin", "_end"))
    assert begin == [-1, -1, -1, -1, 0, 3, 7, 9, 10, 12, 13, -1]
    assert end == [-1, -1, -1, -1, 2, 6, 9, 10, 12, 13, 15, -1]


def test_long_answers(tiny):
    """An answer longer than a window is in none; those of more than max_answer are not given."""
    words = ["film"] * 40
    answers = {"text": [" ".join(words[:30])], "answer_start": [0]}
    row = {"question": "is it", "context": " ".join(words), "answers": answers}
    _, _, examples = examples_of(TASK, [row], tiny, 20)
    assert not examples.arrays["starts_at"].any() and not examples.arrays["ends_at"].any()
    split, names, examples = examples_of(TASK, [row], tiny, 64)
    outputs = pointed(examples)
    (said,) = TASK.predictions(outputs, examples, split, names)
    assert len(said["answer"].split()) <= 12
    for count in (30, 31):  # by default 30, as of run_qa.py's `max_answer_length`
        answers["text"] = [" ".join(words[:count])]
        split, names, examples = examples_of(SpanQA(), [row], tiny, 80)
        (said,) = SpanQA().predictions(pointed(examples), examples, split, names)
        assert (said["answer"] == answers["text"][0]) == (count == 30)


def test_no_answer_and_its_threshold(tiny):
    rows = rows_of(2, 12, seed=2)
    rows[1]["answers"] = {"text": [], "answer_start": []}
    task = SpanQA(stride=4, impossible=True)
    split, names, examples = examples_of(task, rows, tiny)
    assert examples.arrays["starts_at"][0] and not examples.arrays["starts_at"][1]
    outputs = pointed(examples)
    scores = task.score(outputs, examples, split, names)
    assert scores["exact_match"] == 1.0
    assert scores["f1_answerable"] == scores["f1_unanswerable"] == 1.0
    first, second = task.predictions(outputs, examples, split, names)
    assert second["answer"] == "" and second["start"] == -1 and second["score"] < 0 < first["score"]
    start, end = (examples.arrays[name][0] for name in ("starts_at", "ends_at"))
    logits = outputs["tokens"]
    margin = logits[start, 0] + logits[end, 1] - logits[0].sum()
    np.testing.assert_allclose(first["score"], margin, rtol=1e-5)
    for threshold in (-margin - 0.1, 0.1 - margin, -100.0, 100.0):
        other = SpanQA(stride=4, impossible=True, null_threshold=float(threshold))
        for row in other.predictions(outputs, examples, split, names):
            # of SQuAD's scripts: score_diff > null_score_diff_threshold says that there is none
            assert (row["answer"] == "") == (-row["score"] > threshold)


def test_probabilities_are_those_of_n_best_lists(tiny):
    """A softmax over the sums of start and end of all spans, each counted once."""
    row = {"question": "is it", "context": "a good film", "answers": rows_of(1)[0]["answers"]}
    for impossible in (False, True):
        task = SpanQA(stride=4, impossible=impossible)
        split = split_of(task, [row], task.schema.to_predict())
        examples = encode(split, task, tiny, 32)
        own = examples.tokens["_begin"] >= 0
        logits = np.random.default_rng(0).normal(0, 2, (len(own), 2)).astype(np.float32)
        tokens = logits[own]
        sums = {(i, j): tokens[i, 0] + tokens[j, 1] for i in range(3) for j in range(i, 3)}
        if impossible:
            sums[()] = logits[0].sum()
        best = max(sums, key=sums.get)
        (said,) = task.predictions({"tokens": logits}, examples, split, ())
        words = ["a", "good", "film"][best[0] : best[1] + 1] if best else []
        assert said["answer"] == " ".join(words)
        total = sum(np.exp(list(sums.values())))
        np.testing.assert_allclose(said["probability"], np.exp(sums[best]) / total, rtol=1e-4)


def test_empty_answers_are_refused_where_there_must_be_one(tiny):
    rows = [*rows_of(1), {**rows_of(1)[0], "id": "x", "answers": {"text": [], "answer_start": []}}]
    with pytest.raises(UserError, match="rows.jsonl: row 2 has no answer; set task.impossible"):
        examples_of(TASK, rows, tiny)
    examples_of(SpanQA(stride=4, impossible=True), rows, tiny)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers": {"text": ["bad"], "answer_start": [1]}},
            r"row 2: id two: answer 'bad' is not in the context at answer_start=1, where 'ood' is",
        ),
        ({"answers": {"text": ["good"], "answer_start": [-4]}}, "answer_start=-4"),
        ({"answers": {"text": ["good film now"], "answer_start": [0]}}, "where 'good film' is"),
        (
            {"answers": {"text": ["good"], "answer_start": []}},
            "row 2: field 'answers' must have texts",
        ),
        ({"answers": {"text": ["good"]}}, "row 2: field 'answers' must have text and answer_start"),
        ({"answers": "good"}, "row 2: field 'answers' must have text and answer_start"),
        (
            {"answers": {"text": [""], "answer_start": [0]}},
            "row 2: field 'answers' must have texts",
        ),
        ({"id": "one"}, "row 2: field 'id' is 'one', as of row 1"),
        ({"context": " "}, "row 2: field 'context' is empty"),
    ],
)
def test_bad_rows_are_named(changes, message):
    answers = {"text": ["good"], "answer_start": [0]}
    row = {"question": "is it", "context": "good film", "answers": answers}
    with pytest.raises(UserError, match=message):
        split_of(TASK, [{"id": "one", **row}, {"id": "two", **row, **changes}])


def test_long_questions_are_cut_without_a_word(tmp_path, caplog, monkeypatch):
    """Of transformers', that more tokens than the model reads were found, which it does not."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    file = write_words(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 20}))
    row = {"question": "film " * 30, "context": "the story was good"}
    encode(split_of(TASK, [row], TASK.schema.to_predict()), TASK, tmp_path, 20)
    assert not caplog.records


def test_long_questions_are_cut_and_strides_fit(tiny):
    row = {"question": "film " * 30, "context": "the story was good " * 8}
    split = split_of(TASK, [row], TASK.schema.to_predict())
    examples = encode(split, TASK, tiny, 20)
    assert examples.lengths.max() <= 20
    inside = examples.tokens["_begin"] >= 0
    assert len(set(examples.tokens["_begin"][inside])) == 32  # every word of the context
    with pytest.raises(UserError, match="task.stride=64 leaves no room for questions"):
        encode(split, SpanQA(), tiny, 20)
