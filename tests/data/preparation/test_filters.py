"""What is dropped, by hand."""

from types import SimpleNamespace

import pytest

from ftjax.errors import UserError
from tests.data.preparation.rows import applied, texts_of

TEXTS = {
    "en": "The waiter brought us the wrong bill, twice.",
    "de": "Der Kellner brachte uns zweimal die falsche Rechnung.",
    "fr": "Le serveur nous a apporté deux fois la mauvaise addition.",
    "zh": "服务员两次给我们送错了账单。",
    "ja": "ウェイターは二度も間違った勘定書を持ってきた。",
    "ru": "Официант дважды принёс нам не тот счёт.",
}


@pytest.mark.parametrize("kept", [("en",), ("zh",), ("de", "ru")])
def test_languages(kept):
    short = ["ok", "7"]  # too short to tell
    entry = {"step": "filter_language", "languages": kept}
    found, counts = applied(entry, train=[*TEXTS.values(), *short])
    assert texts_of(found["train"]) == [TEXTS[code] for code in TEXTS if code in kept] + short
    assert set(counts["train"]["reasons"]) == {f"language {c}" for c in TEXTS if c not in kept}
    pairs = [{"source": TEXTS["en"], "target": TEXTS["zh"]},
             {"source": TEXTS["en"], "target": TEXTS["fr"]}]  # fmt: skip
    entry = {"step": "filter_language", "languages": ["zh"], "columns": ["target"]}
    assert applied(entry, train=pairs)[0]["train"].column("row") == [1]


@pytest.mark.parametrize(
    ("unit", "minimum", "maximum", "kept"),
    [
        ("characters", 3, 0, ["abc", "好 吃吗", "don't do 2.5"]),
        ("characters", 1, 3, ["a", "abc"]),
        ("words", 2, 0, ["好 吃吗", "don't do 2.5"]),
        ("words", 3, 3, ["好 吃吗", "don't do 2.5"]),
    ],
)
def test_lengths(unit, minimum, maximum, kept):
    entry = {"step": "filter_length", "unit": unit, "minimum": minimum, "maximum": maximum}
    found, _ = applied(entry, train=["a", "abc", "好 吃吗", "don't do 2.5"])
    assert texts_of(found["train"]) == kept
    limited, _ = applied({**entry, "splits": ["train"]}, train=kept, test=["", "x" * 9])
    assert texts_of(limited["test"]) == ["", "x" * 9]


def test_words_of_a_list(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("# what is not wanted\nass\nson of a gun\n傻瓜\n\ndon't\n", encoding="utf-8")
    good = ["a class act", "son of the gun", "傻 和 瓜 x", "do not"]
    bad = ["An ASS!", "ass-backwards", "You son of a gun.", "他是傻瓜吗", "DON'T"]
    found, counts = applied({"step": "filter_words", "file": str(file)}, train=good[:2] + bad)
    assert texts_of(found["train"]) == good[:2]
    assert counts["train"]["examples"][2] == {
        "row": 5,
        "text": "You son of a gun.",
        "reason": "word of the list: son of a gun",
    }
    assert counts["train"]["reasons"] == {"word of the list": 5}
    empty = tmp_path / "empty.txt"
    empty.write_text("# none\n")
    with pytest.raises(UserError, match="has no entries"):
        applied({"step": "filter_words", "file": str(empty)}, train=good)


def test_a_classifier_s_probabilities():
    asked = []

    def classify(workdir, split):
        asked.append((workdir, split.column("text")))
        return [{"bad": 0.1 * i, "good": 1 - 0.1 * i} for i in range(len(split.rows))]

    rows = [{"text": f"t{i}", "text_pair": "p", "label": "l"} for i in range(10)]
    entry = {"step": "filter_classifier", "workdir": "run", "labels": ["bad"], "threshold": 0.45}
    found, counts = applied(entry, SimpleNamespace(classify=classify), train=rows, test=rows)
    assert found["train"].column("row") == found["test"].column("row") == [1, 2, 3, 4, 5]
    assert asked[0] == ("run", [f"t{i}\np" for i in range(10)]) and len(asked) == 2
    assert counts["test"]["reasons"] == {"label bad": 5}
    with pytest.raises(UserError, match="run has no 'toxic'"):
        applied({**entry, "labels": ["toxic"]}, SimpleNamespace(classify=classify), train=rows)
