"""Tags of each scheme, and predictions at random, as seqeval scores them."""

import numpy as np
import pytest
import seqeval.scheme
from seqeval import metrics as sq
from sklearn.metrics import f1_score

from ftjax.tasks.token_classification import TokenClassification
from tests.conftest import WORDS
from tests.tasks.small_models import examples_of
from tests.tasks.test_token_classification import said

LETTERS = {  # first, inside, last, alone
    "IOB1": "IIII",
    "IOB2": "BIIB",
    "IOE1": "IIII",
    "IOE2": "IIEE",
    "BIOES": "BIES",
    "BILOU": "BILU",
}


def random_tags(random, count, scheme):
    """Entities of one to four words, some beside each other."""
    first, inside, last, alone = LETTERS[scheme]
    tags = []
    while len(tags) < count:
        size = min(int(random.integers(1, 5)), count - len(tags))
        kind = random.choice(["per", "place"])
        if random.random() < 0.4:
            tags.append("O")
            continue
        letters = alone if size == 1 else first + inside * (size - 2) + last
        if tags and tags[-1][2:] == kind:  # neighbours of one type
            letters = "B" + letters[1:] if scheme == "IOB1" else letters
            tags[-1] = f"E-{kind}" if scheme == "IOE1" else tags[-1]
        tags += [f"{letter}-{kind}" for letter in letters]
    return tags


def rows_of(scheme, seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 16, 40)
    return [
        {"tokens": random.choice(WORDS, n).tolist(), "tags": random_tags(random, n, scheme)}
        for n in sizes
    ]


@pytest.mark.parametrize("scheme", LETTERS)
def test_scores_equal_seqeval_s(tiny, scheme):
    task = TokenClassification(scheme=scheme)
    split, names, examples = examples_of(task, rows_of(scheme, 0), tiny)
    truth, random = split.column("tags"), np.random.default_rng(1)
    noisy = [[t if random.random() < 0.7 else str(random.choice(names)) for t in r] for r in truth]
    strict = {"scheme": getattr(seqeval.scheme, scheme.replace("BIOES", "IOBES"))}
    strict |= {"mode": "strict", "zero_division": 0}
    lenient = {"zero_division": 0}
    guesses = (noisy, [random_tags(random, len(row), scheme) for row in truth])
    for guess in guesses:
        outputs = said(examples, split, names, guess)
        for asked, how in ((scheme, strict), ("auto", lenient if scheme == "IOB2" else strict)):
            if asked == "auto" and scheme[-1] == "1":
                continue  # which no prefix tells
            found = TokenClassification(scheme=asked).score(outputs, examples, split, names)
            assert 0 < found["f1"] < 1
            for name in ("f1", "precision", "recall"):
                assert found[name] == getattr(sq, f"{name}_score")(truth, guess, **how)
            report = sq.classification_report(truth, guess, output_dict=True, **how)
            for kind in ("per", "place"):
                assert found["per_type"][kind]["f1"] == report[kind]["f1-score"]
                assert found["per_type"][kind]["entities"] == report[kind]["support"]
        rows = task.predictions(outputs, examples, split, names)
        assert sum(len(row["entities"]) for row in rows) > 0


def test_entities_are_those_that_the_tags_were_made_of(tiny):
    rows = [
        {"tokens": list("abcdef"), "tags": ["B-per", "L-per", "U-per", "O", "B-place", "L-place"]}
    ]
    task = TokenClassification()
    split, names, examples = examples_of(task, rows, tiny)
    outputs = said(examples, split, names, split.column("tags"))
    (found,) = task.predictions(outputs, examples, split, names)
    spans = [(each["type"], each["start"], each["end"]) for each in found["entities"]]
    assert spans == [("per", 0, 2), ("per", 2, 3), ("place", 4, 6)]


def test_parts_of_speech_are_scored_by_word(tiny):
    random, kinds = np.random.default_rng(0), ["NN", "VB", "-LRB-", "DT"]
    rows = [
        {"tokens": random.choice(WORDS, n).tolist(), "tags": random.choice(kinds, n).tolist()}
        for n in random.integers(1, 12, 20)
    ]
    task = TokenClassification()
    split, names, examples = examples_of(task, rows, tiny, 10)  # some are cut
    assert names == ("-LRB-", "DT", "NN", "VB")
    truth = split.column("tags")
    guess = [[t if random.random() < 0.6 else str(random.choice(kinds)) for t in r] for r in truth]
    outputs = said(examples, split, names, guess)
    found, rows = (f(outputs, examples, split, names) for f in (task.score, task.predictions))
    read = [row["tags"] for row in rows]
    assert [r[:8] for r in read] == [r[:8] for r in guess] and {*read[0][8:]} <= {""}
    assert found["accuracy"] == sq.accuracy_score(truth, read)
    words = ([t for row in rows for t in row] for rows in (truth, read))
    wanted = f1_score(*words, labels=names, average=None)
    np.testing.assert_allclose(found["f1"], wanted.mean())
    assert {tag: each["f1"] for tag, each in found["per_type"].items()} == dict(
        zip(names, wanted, strict=True)
    )
    assert all(row["entities"] == [] for row in rows)
