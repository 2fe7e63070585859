"""Texts in pieces: nothing is lost, and where they are cut."""

import numpy as np
import pytest

from ftjax.data.preparation.pieces import pieces
from ftjax.data.preparation.pipeline import prepare
from ftjax.errors import UserError
from tests.conftest import data_settings
from tests.data.preparation.rows import applied, split, texts_of


@pytest.mark.parametrize("longest", [1, 7, 20, 100])
def test_pieces_are_the_text_and_fit(longest):
    random = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(random.choice(list("abcd  .!?。\n你好"), 120))
        found = pieces(text, longest)
        assert "".join(found) == text
        assert all(0 < len(piece) <= longest for piece in found)


@pytest.mark.parametrize(
    ("text", "longest", "wanted"),
    [
        ("One two. Three four! Five", 15, ["One two. ", "Three four! ", "Five"]),
        ("One two. Three four! Five", 21, ["One two. Three four! ", "Five"]),
        ("A b. C d.\nE f. G h.", 12, ["A b. C d.\n", "E f. G h."]),
        ("one two three", 8, ["one two ", "three"]),
        ("一二三。四五。六", 5, ["一二三。", "四五。六"]),
        ("abcdefg", 3, ["abc", "def", "g"]),
    ],
)
def test_texts_are_cut_at_lines_then_sentences_then_words(text, longest, wanted):
    assert pieces(text, longest) == wanted


def test_a_row_becomes_several_of_its_split_and_label():
    rows = [{"text": "One two. Three four.", "label": "a"}, {"text": "Five.", "label": "b"}]
    found, counts = applied({"step": "cut_texts", "longest": 12}, train=rows, test=["Six."])
    assert texts_of(found["train"]) == ["One two.", "Three four.", "Five."]
    assert found["train"].column("label") == ["a", "a", "b"]
    assert found["train"].column("row") == [1, 1, 2]
    assert texts_of(found["test"]) == ["Six."]
    assert (counts["train"]["changed"], counts["train"]["added"]) == (1, 1)


def test_no_text_has_pieces_in_two_splits():
    rows = [f"Text {i} begins. Text {i} goes on. Text {i} ends." for i in range(40)]
    entry = {"step": "cut_texts", "longest": 20}
    settings = data_settings(prepare=(entry,), splits={"train": 0, "validation": 10, "test": 0})
    found, _ = prepare({"train": split(rows)}, settings)
    numbers = {name: {text.split()[1] for text in texts_of(found[name])} for name in found}
    assert len(numbers["validation"]) == 10 and len(found["validation"].rows) == 30
    assert not numbers["train"] & numbers["validation"]


def test_rows_of_several_texts_are_refused():
    with pytest.raises(UserError, match="several texts"):
        applied("cut_texts", train=[{"text": "a", "text_pair": "b"}])
    with pytest.raises(UserError, match="no text by itself"):
        applied("cut_texts", train=[{"tokens": ["a"], "tags": ["O"]}])
    with pytest.raises(UserError, match="longest=0"):
        applied({"step": "cut_texts", "longest": 0}, train=["a"])
