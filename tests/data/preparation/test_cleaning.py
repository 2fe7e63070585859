"""Texts and labels as they were meant, beside ftfy."""

import ftfy
import pytest

from ftjax.errors import UserError
from tests.data.preparation.rows import applied, split, texts_of

BROKEN = [
    "schÃ¶n, l’été",
    "&lt;b&gt; &amp; more",
    "ﬁne\u0000 work\r\nhere",
    "ｆｕｌｌ，宽度“引号”",
    "cafe\u0301 10³",
    "plain",
]


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_repair_equals_ftfy(form):
    entry = {"step": "repair", "form": form, "quotes": True, "width": True}
    found, counts = applied(entry, train=BROKEN)
    assert texts_of(found["train"]) == [ftfy.fix_text(t, normalization=form) for t in BROKEN]
    assert counts["train"]["changed"] == 5
    assert counts["train"]["changes"][0] == {
        "row": 1,
        "before": "schÃ¶n, l’été",
        "after": "schön, l'été",
    }


def test_chinese_punctuation_stays():
    found, _ = applied("repair", train=[*BROKEN, "\u0007", "“好，”"])
    assert texts_of(found["train"])[3] == "ｆｕｌｌ，宽度“引号”"
    assert texts_of(found["train"])[-1] == "“好，”"
    assert len(found["train"].rows) == 7  # of a bell alone nothing is left


def test_labels_are_cleaned():
    rows = [{"text": "t", "label": label} for label in (" Pos", "pos", "neg ", "so-so", "5")]
    mapping = {"pos": "positive", "neg": "negative", "so-so": None, 5: "positive"}
    made = split(rows, label_names=(" Pos", "neg ", "so-so"))
    entry = {"step": "clean_labels", "case": "lower", "mapping": mapping}
    found, counts = applied(entry, train=made)
    assert found["train"].column("label") == ["positive", "positive", "negative", "positive"]
    assert found["train"].label_names == ("positive", "negative")
    assert counts["train"]["reasons"] == {"label 'so-so'": 1}
    assert counts["train"]["changes"][0] == {"row": 1, "before": " Pos", "after": "positive"}
    with pytest.raises(UserError, match="label '5' is not in it"):
        applied({**entry, "mapping": {"pos": "p", "neg": "n", "so-so": None}, "others": "refuse"},
                train=rows)  # fmt: skip
    several = [{"text": "t", "label": ["a ", "b"]}, {"text": "t", "label": ["b", "c"]}]
    entry = {"step": "clean_labels", "mapping": {"c": "a"}, "others": "keep"}
    assert applied(entry, train=several)[0]["train"].column("label") == [["a", "b"]] * 2
    with pytest.raises(UserError, match="row 1 has no label that is a name"):
        applied("clean_labels", train=[{"text": "t", "label": 0.5}])
