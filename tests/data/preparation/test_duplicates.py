"""Near-duplicates beside every pair compared."""

import re

import numpy as np
import pytest

from ftjax.data import fields
from ftjax.tasks.multiple_choice import MultipleChoice
from ftjax.tasks.token_classification import TokenClassification
from tests.data.preparation.rows import applied, texts_of
from tests.tasks.small_models import split_of


def reference_set(text, words, characters):
    """Shingles, as the documentation says them."""
    parts = re.findall(r"[一-鿿]|[a-z0-9]+", text.lower())
    han = "".join(part for part in parts if "一" <= part <= "鿿")
    spaced = [part for part in parts if not "一" <= part <= "鿿"]
    found = set()
    for items, size, name in ((spaced, words, "w"), (list(han), characters, "c")):
        if items:
            size = min(size, len(items))
            found |= {(name, *items[i : i + size]) for i in range(len(items) - size + 1)}
    return found


def changed_texts(count, random):
    """Texts in two writings, many of them others with a few words changed."""
    texts = []
    for _ in range(count):
        if texts and random.random() < 0.6:
            words = texts[random.integers(len(texts))].split(" ")
            for _ in range(random.integers(0, 4)):
                words[random.integers(len(words))] = f"new{random.integers(99)}"
            texts.append(" ".join(words) + random.choice(["", " !", "..."]))
        elif random.random() < 0.5:
            texts.append(" ".join(f"w{i}" for i in random.integers(0, 300, random.integers(3, 25))))
        else:
            han = "".join(chr(0x4E00 + i) for i in random.integers(0, 400, random.integers(4, 40)))
            texts.append(han[:5] + "，" + han[5:])
    return texts


@pytest.mark.parametrize(
    ("threshold", "words", "characters"), [(0.5, 1, 2), (0.7, 2, 3), (0.85, 2, 3)]
)
def test_every_pair_compared(threshold, words, characters):
    random = np.random.default_rng(0)
    parts = {"train": changed_texts(300, random)}
    parts["test"] = parts["train"][:40] + changed_texts(60, random)
    parts["validation"] = parts["train"][30:60] + changed_texts(40, random)
    random.shuffle(parts["train"])
    kept, wanted = [], {}
    for name in ("test", "validation", "train"):
        wanted[name] = []
        for text in parts[name]:
            own = reference_set(text, words, characters)
            if all(len(own & other) / len(own | other) < threshold for other in kept):
                kept.append(own)
                wanted[name].append(text)
    entry = {"step": "drop_near_duplicates", "threshold": threshold, "words": words,
             "characters": characters, "only_training": False}  # fmt: skip
    found, counts = applied(entry, **parts)
    assert {name: texts_of(split) for name, split in found.items()} == wanted
    lost = {name: len(parts[name]) - len(wanted[name]) for name in parts}
    assert {name: sum(counts[name]["reasons"].values()) for name in parts} == lost
    assert counts["train"]["reasons"]["near-duplicate of a test row"] > 10


def test_columns_must_all_be_alike():
    context = " ".join(f"word{i}" for i in range(200))
    rows = [
        {"text": context, "text_pair": "who wrote the first of these books ?", "label": "a"},
        {"text": context, "text_pair": "when did the second king die ?", "label": "a"},
        {"text": context + " end", "text_pair": "who wrote the first of these books", "label": "b"},
    ]
    found, counts = applied("drop_near_duplicates", train=rows)
    assert found["train"].column("row") == [1, 2]
    reason = counts["train"]["examples"][0]["reason"]
    assert reason.startswith("near-duplicate of a row of the split: row 1 (0.99), of another label")
    of_context = {"step": "drop_near_duplicates", "columns": ["text"]}
    assert applied(of_context, train=rows)[0]["train"].column("row") == [1]


@pytest.mark.parametrize("step", ["drop_duplicates", "drop_near_duplicates"])
def test_held_out_splits_stay_whole_unless_asked(step):
    parts = {
        "train": ["one two three", "four five six", "seven eight nine"],
        "validation": ["one two three", "four five six"],
        "test": ["one  two three", "ten eleven twelve", "ten eleven twelve"],
    }
    found, _ = applied({"step": step, "only_training": False}, **parts)
    assert {name: len(split.rows) for name, split in found.items()} == {
        "train": 1, "validation": 1, "test": 2
    }  # fmt: skip
    found, _ = applied(step, **parts)
    assert {name: len(split.rows) for name, split in found.items()} == {
        "train": 1, "validation": 2, "test": 3
    }  # fmt: skip
    pairs = [{"source": "a b c", "target": "x"}, {"source": "a b c", "target": "y"}]
    assert len(applied(step, train=pairs)[0]["train"].rows) == 2
    by_source = {"step": step, "columns": ["source"]}
    assert len(applied(by_source, train=pairs)[0]["train"].rows) == 1


def test_what_is_alike_is_said_by_the_schema():
    """Choices are what is asked, names are not their words in lower case, whatever fields are
    called."""
    asked = [
        {"text": "which is a city ?", "choices": [f"word{i}", f"word{i + 1}"], "label": "A"}
        for i in range(10)
    ]
    questions = split_of(MultipleChoice(), [*asked, asked[4]])
    for step in ("drop_duplicates", "drop_near_duplicates"):
        assert len(applied(step, train=questions)[0]["train"].rows) == 10
    named = [
        {"tokens": ["Turkey", "eats"], "tags": ["B-LOC", "O"]},
        {"tokens": ["turkey", "eats"], "tags": ["O", "O"]},
        {"tokens": ["Turkey", "eats"], "tags": ["O", "O"]},
    ]
    entities = split_of(TokenClassification(), named)
    assert applied("drop_duplicates", train=entities)[0]["train"].column("row") == [1, 2]
    any_case = {"step": "drop_duplicates", "ignore_case": True}
    assert applied(any_case, train=entities)[0]["train"].column("row") == [1]

    class Own:
        schema = fields.Schema(
            {
                "id": fields.Field(fields.text),
                "label": fields.Field(fields.text),
                "text": fields.Field(fields.label_name),
            }
        )

    rows = [
        {"id": "a b", "label": "c", "text": "1"},
        {"id": "a b", "label": "d", "text": "1"},
        {"id": "a b", "label": "c", "text": "2"},
    ]
    assert applied("drop_duplicates", train=split_of(Own(), rows))[0]["train"].column("row") == [
        1, 2
    ]  # fmt: skip
