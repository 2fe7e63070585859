"""Proportions of labels, beside scikit-learn."""

from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import KFold, StratifiedShuffleSplit

from ftjax.data.preparation.splits import draw
from ftjax.errors import UserError
from tests.data.preparation.rows import applied, split

SIZES = {"a": 700, "b": 211, "c": 80, "d": 8, "e": 1}


def rows(sizes=SIZES):
    labels = [label for label, count in sizes.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(labels))
    return split([{"text": f"t{i}", "label": labels[i]} for i in order])


def counts(part):
    return Counter(part.column("label"))


def test_stratified_splits_have_scikit_learn_s_proportions():
    made = rows({label: count for label, count in SIZES.items() if count > 1})
    labels = np.array(made.column("label"))
    sizes = {"train": 0.0, "validation": 0.1, "test": 0.25}
    for seed in range(5):
        found = draw({"train": made}, sizes, seed, stratify=True)
        test, validation = len(found["test"].rows), len(found["validation"].rows)
        for name, size in (("test", test), ("validation", validation)):
            reference = StratifiedShuffleSplit(1, test_size=size, random_state=seed)
            _, chosen = next(reference.split(labels, labels))
            wanted = Counter(labels[chosen].tolist())
            assert all(abs(counts(found[name])[c] - wanted[c]) <= 1 for c in wanted)
        assert sum(map(counts, found.values()), Counter()) == counts(made)
    other = draw({"train": made}, sizes, 6, stratify=True)
    assert other["test"].column("text") != found["test"].column("text")


@pytest.mark.parametrize("stratify", [False, True])
def test_folds_hold_each_row_once(stratify):
    """As many as scikit-learn's folds have, and with `stratify` in one proportion of labels."""
    made = rows({"a": 50, "b": 23, "c": 10})
    sizes = {"train": 0.0, "validation": 0.1, "test": 10}
    seen, parts = [], []
    for fold in range(5):
        found = draw({"train": made}, {**sizes, "folds": 5, "fold": fold}, 3, stratify)
        seen += found["validation"].column("text")
        held = {name: set(part.column("text")) for name, part in found.items()}
        assert sum(map(len, held.values())) == len(set.union(*held.values())) == 83
        parts.append(counts(found["validation"]))
    assert sorted([*seen, *held["test"]]) == sorted(made.column("text"))
    wanted = [len(test) for _, test in KFold(5).split(seen)]
    assert sorted(sum(part.values()) for part in parts) == sorted(wanted)
    if stratify:
        every = sum(parts, Counter())
        for part in parts:
            share = sum(part.values()) / sum(every.values())
            assert all(abs(part[label] - share * every[label]) < 1 for label in "abc")
    for changes, message in (
        ({"folds": 1}, "folds=1 must be 2 to the 73 rows"),
        ({"folds": 99}, "folds=99 must be 2 to"),
        ({"folds": 3, "fold": 3}, "fold=3 must be below data.splits.folds=3"),
    ):
        with pytest.raises(UserError, match=message):
            draw({"train": made}, {**sizes, **changes}, 0)
    with pytest.raises(UserError, match="the data has a validation split"):
        draw({"train": made, "validation": made}, {**sizes, "folds": 3}, 0)


def test_a_label_s_only_row_stays_in_training():
    for seed in range(20):
        sizes = {"train": 0.0, "validation": 0.2, "test": 0.2}
        found = draw({"train": rows()}, sizes, seed, stratify=True)
        assert counts(found["train"])["e"] == 1 and set(counts(found["train"])) == set(SIZES)
    with pytest.raises(UserError, match="no label of one name, to stratify"):
        draw({"train": split(["a", "b"])}, sizes, 0, stratify=True)


def test_oversampling_repeats_evenly():
    found, told = applied("oversample", train=rows(), test=rows())
    assert counts(found["train"]) == dict.fromkeys(SIZES, 700)
    assert counts(found["test"]) == SIZES
    times = Counter(found["train"].column("text"))
    of = dict(zip(found["train"].column("text"), found["train"].column("label"), strict=True))
    for label, count in SIZES.items():
        each = [times[text] for text in times if of[text] == label]
        assert len(each) == count and max(each) - min(each) <= 1
    assert told["train"]["added"] == 5 * 700 - sum(SIZES.values())
    half = applied({"step": "oversample", "ratio": 0.25}, train=rows())[0]["train"]
    assert counts(half) == {"a": 700, "b": 211, "c": 175, "d": 175, "e": 175}


def test_undersampling_draws():
    made = rows({"a": 60, "b": 20, "c": 10})
    found, told = applied("undersample", train=made)
    assert counts(found["train"]) == {"a": 10, "b": 10, "c": 10}
    assert told["train"]["reasons"] == {"label a": 50, "label b": 10}
    assert found["train"].column("row") == sorted(found["train"].column("row"))
    other = applied({"step": "undersample", "seed": 1}, train=made)[0]["train"]
    assert other.column("row") != found["train"].column("row")
    assert counts(applied({"step": "undersample", "ratio": 0.4}, train=made)[0]["train"]) == {
        "a": 25, "b": 20, "c": 10
    }  # fmt: skip
