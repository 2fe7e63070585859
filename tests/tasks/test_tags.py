"""Tags and labels of all words, by hand: their order, losses, constant answers, and metrics."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier

from ftjax.data.encode import encode
from ftjax.errors import UserError
from ftjax.tasks.token_classification import INTENT, TokenClassification
from tests.tasks.small_models import examples_of, most_places, split_of
from tests.tasks.test_token_classification import said

TASK = TokenClassification()
ROWS = [
    {"tokens": ["good", "film", "it"], "tags": ["B-per", "I-per", "O"], "label": "ask"},
    {"tokens": ["bad"], "tags": ["O"], "label": "tell"},
    {"tokens": ["so", "dull"], "tags": ["O", "B-place"], "label": "tell"},
]
OFTEN = ["B-per", "O", "B-per"]  # more than O; not than O and the special tokens
PLAIN = [{name: row[name] for name in ("tokens", "tags")} for row in ROWS]


def with_labels(split, names, examples, rows, labels):
    """Outputs by which words have the tags given, and rows the labels."""
    tags = said(examples, split, names, rows)
    for number, label in enumerate(labels):
        own = slice(*examples.ids.offsets[number : number + 2])
        tags["tokens"][own, names.index(INTENT + label)] += 9
    return tags


def test_the_order_of_tags():
    """O, then by type and prefix; parts of speech by the alphabet; as given; as of a head."""
    tags = ["B-org", "B-a", "I-a", "O"]
    row = {"tokens": list("abcd"), "tags": tags}
    names = TASK.label_names(split_of(TASK, [row]))
    assert names == ("O", "B-a", "I-a", "B-org")
    inside = {**row, "tags": ["B-a", "I-a", "B-org", "I-org"]}  # rows need not have O
    assert TASK.label_names(split_of(TASK, [inside])) == ("O", "B-a", "I-a", "B-org", "I-org")
    speech = {**row, "tags": ["NN", "O", "ADJ", "VB"]}
    assert TASK.label_names(split_of(TASK, [speech])) == ("O", "ADJ", "NN", "VB")
    del row["tags"][3], row["tokens"][3]
    given = TokenClassification(labels=("B-org", "I-a", "O", "B-a"))
    assert given.label_names(split_of(given, [row])) == ("B-org", "I-a", "O", "B-a")
    split = split_of(TASK, ROWS)
    names = TASK.label_names(split)
    assert names == ("O", "B-per", "I-per", "B-place", f"{INTENT}ask", f"{INTENT}tell")
    assert TASK.label_names(split, names[::-1]) == names[::-1]
    for lacking in ("B-place", f"{INTENT}tell"):
        with pytest.raises(UserError, match="rows.jsonl has the labels"):
            TASK.label_names(split, [name for name in names if name != lacking])
    assert TASK.label_names(split_of(TASK, PLAIN), names[:4]) == names[:4]


def test_tags_of_a_scheme_and_of_none_are_told_apart():
    speech = [{"tokens": ["a", "b"], "tags": ["X-", "NN"]}, {"tokens": ["a"], "tags": ["B-a"]}]
    for scheme, tag in (("auto", "NN"), ("IOB2", "NN")):
        task = TokenClassification(scheme=scheme)
        with pytest.raises(UserError, match=f"tag '{tag}' is not"):
            split = split_of(TokenClassification(scheme="none"), [*speech[1:], {**speech[0]}])
            task.label_names(split)
    task = TokenClassification(scheme="none")
    assert task.label_names(split_of(task, speech)) == ("B-a", "NN", "X-")


@pytest.mark.parametrize("tagged", [1, 0])
@pytest.mark.parametrize("tokens", [1, 3])
def test_losses_of_rows_of_one_token(tokens, tagged):
    """Means over one token are of one: without special tokens a row may have no more. A row of
    which no word counts has the loss of its label alone."""
    logits = np.random.default_rng(0).normal(size=(1, 4, 5)).astype(np.float32)
    batch = {
        "attention_mask": (np.arange(4) < tokens)[None].astype(np.int32),
        "tags": np.array([[2, 0, 0, 0]]),
        "tagged": np.array([[tagged, 0, 0, 0]]),
        "labels": np.array([[0.0, 1.0]], np.float32),
        "weights": np.ones(1, np.float32),
    }
    found = TASK.loss(lambda _: logits, batch, True)
    theirs, entropy = torch.tensor(logits[0, :tokens]), torch.nn.functional.cross_entropy
    wanted = entropy(theirs[:, 3:].mean(0), torch.tensor(1))
    wanted += tagged * entropy(theirs[0, :3], torch.tensor(2))
    np.testing.assert_allclose(found.total, wanted.item(), rtol=1e-5)
    assert found.weight == 1.0
    del batch["labels"]
    found = TASK.loss(lambda _: logits[..., :3], batch, True)
    assert found.weight == tagged
    np.testing.assert_allclose(found.total, tagged * entropy(theirs[0, :3], torch.tensor(2)))


@pytest.mark.parametrize("rows", [ROWS[1:2], PLAIN[1:2], ROWS, PLAIN])
def test_scores_have_the_loss_by_hand(tiny, rows):
    """Also of one word alone."""
    split, names, examples = split_of(TASK, rows), TASK.label_names(split_of(TASK, ROWS)), None
    names = names if "label" in rows[0] else names[:4]
    examples = TASK.targets(encode(split, TASK, tiny, 32), split, names)
    logits = np.random.default_rng(1).normal(size=(len(examples.ids.values), len(names)))
    entropy, of_words, of_rows = torch.nn.functional.cross_entropy, [], []
    for number, row in enumerate(rows):
        own = torch.tensor(logits[slice(*examples.ids.offsets[number : number + 2])])
        wanted = torch.tensor([names.index(tag) for tag in row["tags"]])
        each = entropy(own[1:-1, :4], wanted, reduction="none")  # a word has one token
        of_words += each.tolist()
        if "label" in row:
            asked = torch.tensor(("ask", "tell").index(row["label"]))
            of_rows.append((each.mean() + entropy(own[:, 4:].mean(0), asked)).item())
    scores = TASK.score({"tokens": logits}, examples, split, names)
    np.testing.assert_allclose(scores["loss"], np.mean(of_rows or of_words))


def test_tags_that_training_does_not_have(tiny):
    """They count as wrong, and not in the loss; where all are such it is 0, which is a number."""
    split = split_of(TASK, PLAIN[:1])
    whole = ("O", "B-per", "I-per")
    for names, tagged in ((whole, [1, 1, 1]), (("O", "B-per"), [1, 0, 1]), (("B-x",), [0, 0, 0])):
        examples = TASK.targets(encode(split, TASK, tiny, 32), split, names)
        assert examples.tokens["tagged"].tolist() == [0, *tagged, 0]
        numbers = [whole.index(tag) * n for tag, n in zip(PLAIN[0]["tags"], tagged, strict=True)]
        assert examples.tokens["tags"].tolist() == [0, *numbers, 0]
        outputs = {"tokens": np.zeros((5, len(names)))}
        outputs["tokens"][np.arange(5), examples.tokens["tags"]] = 9
        scores = TASK.score(outputs, examples, split, names)
        assert scores["accuracy"] == sum(tagged) / 3
        chance = np.log1p((len(names) - 1) * np.exp(-9)) if sum(tagged) else 0.0
        np.testing.assert_allclose(scores["loss"], chance, rtol=1e-6)


@pytest.mark.parametrize("rows", [ROWS, PLAIN, [{"tokens": list("abc"), "tags": OFTEN}]])
def test_constant_answers_are_scikit_learn_s(tiny, rows):
    split, names, examples = examples_of(TASK, rows, tiny)
    found = TASK.constant(examples, names)
    assert found["tokens"].shape == (len(examples.ids.values), len(names))
    assert set(found["tokens"].ravel()) == {0.0, 1.0}
    dummy = DummyClassifier(strategy="most_frequent")
    words = [tag for row in rows for tag in row["tags"]]
    (tag,) = dummy.fit([[0]] * len(words), words).predict([[0]])
    said = TASK.predictions(found, examples, split, names)
    assert {tag for row in said for tag in row["tags"]} == {tag}
    if "label" in rows[0]:
        labels = [row["label"] for row in rows]
        (label,) = dummy.fit([[0]] * len(rows), labels).predict([[0]])
        assert {row["label"] for row in said} == {label}


@pytest.mark.parametrize("kind", ["labels", "no labels", "only in training"])
def test_measured_is_what_is_scored(tiny, kind):
    split, names, examples = examples_of(TASK, ROWS if kind == "labels" else PLAIN, tiny)
    if kind == "only in training":
        names = (*names, f"{INTENT}ask", f"{INTENT}tell")
        examples = TASK.targets(encode(split, TASK, tiny, 32), split, names)
    logits = np.zeros((len(examples.ids.values), len(names)))
    scores = TASK.score({"tokens": logits}, examples, split, names)
    numbers = {name for name, value in scores.items() if isinstance(value, float)}
    assert numbers == set(TASK.measured(split, names))
    assert ("exact" in numbers) == ("intent_accuracy" in numbers) == (kind == "labels")


def test_rows_that_are_all_right(tiny):
    """Both the label and all tags: of four rows one, with three right labels and two right tags."""
    rows = [*ROWS, {**ROWS[1], "tokens": ["fine"]}]
    split, names, examples = examples_of(TASK, rows, tiny)
    tags = [["B-per", "I-per", "O"], ["O"], ["O", "O"], ["B-per"]]
    labels = ["tell", "tell", "tell", "tell"]
    outputs = with_labels(split, names, examples, tags, labels)
    scores = TASK.score(outputs, examples, split, names)
    assert scores["intent_accuracy"] == 3 / 4 and scores["exact"] == 1 / 4
    assert scores["accuracy"] == 5 / 7 and scores["examples"] == 4
    # B-per of two words is found; B-place is not; B-per of one word is none
    assert scores["precision"] == scores["recall"] == scores["f1"] == 1 / 2
    assert set(scores["averages"].values()) == {"micro"}
    assert scores["per_type"]["place"] == dict(precision=0.0, recall=0.0, f1=0.0, entities=1)


def test_probabilities_of_words_entities_and_rows(tiny):
    """An entity's is the mean of its words'; words that were cut off have none."""
    rows = [{**ROWS[0], "tokens": ["good", "film", "it"]}, *ROWS[1:]]
    split, names, examples = examples_of(TASK, rows, tiny, 4)  # two words, [CLS] and [SEP]
    random = np.random.default_rng(5)
    outputs = with_labels(split, names, examples, split.column("tags"), ("ask", "ask", "tell"))
    outputs["tokens"] += random.normal(0, 2, outputs["tokens"].shape).astype(np.float32)
    found = TASK.predictions(outputs, examples, split, names)
    assert found[0]["tags"] == ["B-per", "I-per", "O"] and found[0]["probabilities"][2] is None
    theirs = torch.tensor(outputs["tokens"]).double()
    words = torch.softmax(theirs[:, :4], 1).amax(1)
    np.testing.assert_allclose(found[0]["probabilities"][:2], words[1:3], atol=6e-7)
    (entity,) = found[0]["entities"]
    assert entity["text"] == "good film" and (entity["start"], entity["end"]) == (0, 2)
    np.testing.assert_allclose(entity["probability"], words[1:3].mean(), atol=2e-6)
    chances = torch.softmax(theirs[:4, 4:].mean(0), 0)
    np.testing.assert_allclose(found[0]["probability"], chances.max(), atol=6e-7)
    for part in ("probabilities", "probability", "entities"):
        assert most_places([row[part] for row in found]) == 6, part
    assert [row["label"] for row in found] == ["ask", "ask", "tell"]


def test_a_mean_over_three_words_has_six_places(tiny):
    """ln 1, ln 2 and ln 6 against 0: 1/2, 2/3 and 6/7, of which the mean is 85/126."""
    row = {"tokens": ["good", "film", "it"], "tags": ["B-per", "I-per", "I-per"]}
    task = TokenClassification(labels=("B-per", "I-per", "O"))
    split, names, examples = examples_of(task, [row], tiny)
    logits = np.full((5, 3), -np.inf)
    logits[:, 2] = 0.0
    logits[[1, 2, 3], [0, 1, 1]] = np.log([1.0, 2.0, 6.0])
    (found,) = task.predictions({"tokens": logits}, examples, split, names)
    assert found["probabilities"] == [0.5, 0.666667, 0.857143]
    assert [each["probability"] for each in found["entities"]] == [0.674603]


def test_rows_to_predict_need_neither_tags_nor_labels():
    rows = split_of(TASK, [{"tokens": ["a"]}], TASK.schema.to_predict()).rows
    assert rows.column_names == ["tokens", "row"]
    both = [{**ROWS[0], "label": 3.5}, {**ROWS[0], "tags": None}]  # what is found is not read
    rows = split_of(TASK, both, TASK.schema.to_predict()).rows
    assert rows.column_names == ["tokens", "row"] and len(rows) == 2
    with pytest.raises(UserError, match="tags"):
        split_of(TASK, [{"tokens": ["a"]}])


def test_metrics_of_tags_without_a_scheme(tiny):
    """The mean over tags that words have or are given; of the others none counts."""
    rows = [{"tokens": ["good", "film", "it"], "tags": ["JJ", "NN", "PRP"]}]
    split, examples = split_of(TASK, rows), None
    names = ("JJ", "NN", "PRP", "VB", "DT")  # DT is not, and VB is only given
    task = TokenClassification(scheme="none", labels=names)
    examples = task.targets(encode(split, task, tiny, 32), split, names)
    outputs = said(examples, split, names, [["JJ", "VB", "JJ"]])
    scores = task.score(outputs, examples, split, names)
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores["per_type"] == {
        "JJ": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "words": 1},
        "NN": {**zero, "words": 1},
        "PRP": {**zero, "words": 1},
        "VB": {**zero, "words": 0},
        "DT": {**zero, "words": 0},
    }
    assert scores["precision"] == 0.5 / 4 and scores["recall"] == 1 / 4
    np.testing.assert_allclose(scores["f1"], 2 / 3 / 4)
    assert set(scores["averages"].values()) == {"macro"} and scores["accuracy"] == 1 / 3
