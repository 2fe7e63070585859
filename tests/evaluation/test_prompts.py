"""Demonstrations come from where they should, and prompts fit."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from ftjax.errors import UserError
from ftjax.evaluation.prompts import Writer, draw, nearest_rows
from ftjax.formats.folder import load_tokenizer
from ftjax.methods.prompting import Prompting, similarities
from tests.conftest import make_rows

NAMES = ("negative", "positive")
WORDS = {"negative": ["bad"], "positive": ["very good", "great"]}
CAUSAL = "the film: {text} it was {label}"
MASKED = "{text} it was {mask} ."


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny)


def test_drawn_rows_are_of_the_training_split_balanced_and_seeded():
    rows = make_rows(40, 0)
    balanced = Prompting(shots=6)
    chosen = draw(balanced, rows, NAMES, 0)
    assert [row["label"] for row in chosen].count("positive") == 3 == len(chosen) / 2
    assert all(row in rows for row in chosen)
    assert len({row["text"] for row in chosen}) == 6
    assert chosen == draw(balanced, rows, NAMES, 0) != draw(balanced, rows, NAMES, 1)
    several = [draw(Prompting(shots=5, demonstrations="random"), rows, NAMES, s) for s in (0, 0, 1)]
    assert several[0] == several[1] != several[2] and len(several[0]) == 5
    assert all(row in rows for row in several[2])
    assert draw(Prompting(shots=5, demonstrations="nearest"), rows, NAMES, 0) == rows
    assert draw(Prompting(), rows, NAMES, 0) == []


def test_nearest_rows_are_those_of_a_search_through_all():
    random = np.random.default_rng(0)
    asked, pool = make_rows(7, 1), make_rows(30, 2)
    pool[11] = dict(asked[3])  # it would give its own label away
    texts, others = random.normal(size=(7, 5)), random.normal(size=(30, 5))
    others[11] = texts[3]
    found = nearest_rows(similarities(texts, others), asked, pool, 4)
    for number, row in enumerate(cosine_similarity(texts, others)):
        order = [i for i in np.argsort(row) if not (number == 3 and i == 11)]
        assert found[number].tolist() == order[-4:]


def test_prompts_hold_instruction_demonstrations_and_text(tokenizer):
    shown = [{"text": "a dull plot", "label": "negative"}, {"text": "music", "label": "positive"}]
    row = {"text": "the {label} scene"}  # what a text says is no field
    method = Prompting(instruction="is it so ?", separator=" or ")
    writer = Writer(method, CAUSAL, WORDS, tokenizer, 64)
    examples, kept = writer([row], [shown])
    wanted = (
        "is it so ? or the film: a dull plot it was bad or the film: music it was very good or "
        "the film: the {label} scene it was"
    )
    assert examples.ids.values.tolist() == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    assert kept == [shown]
    words = [["bad"], ["very", "good"], ["great"]]
    assert writer.labels == [tokenizer.convert_tokens_to_ids(word) for word in words]

    writer = Writer(Prompting(), MASKED, {"n": ["bad"], "p": ["good"]}, tokenizer, 64)
    examples, _ = writer([{"text": "music [MASK]"}, {"text": "plot"}], [[], []])
    wanted = [tokenizer(f"{t} it was [MASK] .")["input_ids"] for t in ("music [MASK]", "plot")]
    assert examples.ids.values.tolist() == [*wanted[0], *wanted[1]]
    assert examples.arrays["mask_place"].tolist() == [5, 4]


def test_what_does_not_fit_loses_the_farthest_demonstrations_then_text(tokenizer):
    shown = [{"text": " ".join(["plot"] * n), "label": "negative"} for n in (9, 5, 3)]
    rows = [{"text": "music"}, {"text": "scene " * 12}, {"text": "story " * 40}]
    room = 30  # a label's two tokens among them
    writer = Writer(Prompting(separator=" "), CAUSAL, WORDS, tokenizer, room)
    examples, kept = writer(rows, [shown, shown, shown])
    # with 6 tokens of its own each demonstration, 5 the text: 5 + 1 + 9 + 11 <= 28 < ... + 15
    assert kept == [shown[1:], shown[2:], []]
    assert examples.lengths.tolist() == [26, 26, 28]
    assert examples.truncated == 1
    long = tokenizer("the film: " + "story " * 23 + "it was", add_special_tokens=False)["input_ids"]
    assert examples.ids.values[-28:].tolist() == long


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: Prompting(kind="casual"), "method.kind='casual' .*'causal'"),
        (lambda t: Prompting(demonstrations="near"), "method.demonstrations='near'"),
        (lambda t: Prompting(shots=-1), "method.shots=-1"),
        (
            lambda t: Prompting(templates=("so {label}",)).templates_of("causal", False),
            "'so {label}' lacks '{text}'",
        ),
        (
            lambda t: Prompting(templates=("{text} {label}",)).templates_of("causal", True),
            "lacks '{text_pair}'",
        ),
        (
            lambda t: Prompting(templates=("{text} {label}",)).templates_of("sentence", False),
            "no use for '{text}'",
        ),
        (
            lambda t: Prompting(templates=("{text} is {label}.",)).templates_of("causal", False),
            "must end with its only '{label}'",
        ),
        (
            lambda t: Prompting(templates=("{mask} {text} {mask}",)).templates_of("masked", False),
            "several masks",
        ),
        (lambda t: Prompting(words=("bad",)).words_of(NAMES), "must name 2 words"),
        (lambda t: Prompting(words=("bad", "a||b")).words_of(NAMES), "empty word"),
        (
            lambda t: draw(Prompting(shots=3), make_rows(40, 0), NAMES, 0),
            "method.shots=3 must be a multiple of the 2 labels",
        ),
        (
            lambda t: draw(Prompting(shots=8, demonstrations="random"), make_rows(5, 0), NAMES, 0),
            "the training split has 5 rows",
        ),
        (lambda t: Writer(Prompting(), MASKED, WORDS, t, 64), "'very good' is 2 tokens"),
        (lambda t: Writer(Prompting(), MASKED, {"x": ["xyz"]}, t, 64), "does not know 'xyz'"),
        (
            lambda t: Writer(Prompting(), CAUSAL, WORDS, t, 7)([{"text": "plot plot"}], [[]]),
            "data.max_length=7: the template .* leaves no room",
        ),
    ],
)
def test_bad_options_are_refused(make, message, tokenizer):
    with pytest.raises(UserError, match=message):
        make(tokenizer)
