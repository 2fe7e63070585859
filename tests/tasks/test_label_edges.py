"""Numbers, label sets and ordered labels at their edges, and constant answers: by scikit-learn."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import cohen_kappa_score

from ftjax.errors import UserError
from ftjax.tasks.multilabel import Multilabel
from ftjax.tasks.ordinal import Ordinal
from ftjax.tasks.regression import Regression
from tests.tasks.small_models import most_places, split_of
from tests.tasks.test_texts import NAMES, of


def test_constant_answers():
    """The mean; each label's share of rows; the most frequent label, as scikit-learn's dummy."""
    found = Regression().constant(of(np.array([1.0, 2.0, 6.0], np.float32)), ("value",))
    np.testing.assert_array_equal(found, [[3.0]] * 3)
    truth = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], np.float32)
    found = Multilabel().constant(of(truth), NAMES)
    share = [[1 / 4, 1.0, 0.0]] * 4  # where all rows, or none, have a label its loss is near 0
    assert np.isfinite(found).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), share, atol=1e-5)
    entropy = -(1 / 4 * np.log(1 / 4) + 3 / 4 * np.log(3 / 4)) / 3
    loss = Multilabel().score(found, of(truth), None, NAMES)["loss"]
    np.testing.assert_allclose(loss, entropy, atol=1e-5)
    for labels in ([0, 1, 0, 3], [1, 1, 0, 3], [2, 2, 2, 0], [3, 0, 1, 3]):
        labels = np.array(labels)
        found = Ordinal().constant(of(labels), tuple("abcd"))
        assert found.shape == (4, 3) and len(set(np.abs(found).ravel())) == 1  # none is surer
        wanted = DummyClassifier(strategy="most_frequent").fit(labels[:, None], labels)
        said = Ordinal().predictions(found, None, None, tuple("abcd"))
        assert ["abcd".index(row["label"]) for row in said] == list(wanted.predict([[0]] * 4))


@pytest.mark.parametrize("task", [Multilabel(), Ordinal()])
def test_what_is_predicted_is_of_each_label(task):
    """No output is lost, or of another label, where names are not as many."""
    logits, more = np.log([[1 / 2, 2.0, 1 / 7]]), task == Ordinal()
    names = ("a", "b", "c", "d")[: 3 + more]
    (row,) = found = task.predictions(logits, None, None, names)
    assert most_places(found) == 6
    said = list(row["above" if more else "probabilities"].values())
    np.testing.assert_allclose(said, [1 / 3, 2 / 3, 1 / 8], atol=5e-7)
    for others in (names[:-1], (*names, "e")):
        with pytest.raises(ValueError, match="argument"):
            task.predictions(logits, None, None, others)


def test_rows_to_predict_need_no_label():
    for task in (Regression(), Multilabel(), Ordinal()):
        with pytest.raises(UserError, match="label"):
            split_of(task, [{"text": "good"}])
        assert len(split_of(task, [{"text": "good"}], task.schema.to_predict()).rows) == 1


def test_errors_of_numbers_by_hand():
    """Errors of 3, −1 and 2: (9 + 1 + 4) / 3 and (3 + 1 + 2) / 3."""
    labels = of(np.array([1.0, 1.0, 0.5], np.float32))
    scores = Regression().score(np.array([[4.0], [0.0], [2.5]]), labels, None, ("value",))
    np.testing.assert_allclose([scores["loss"], scores["mean_squared_error"]], 14 / 3)
    assert scores["mean_absolute_error"] == 2.0 and scores["examples"] == 3


@pytest.mark.parametrize(
    ("task", "labels", "names"),
    [
        (Multilabel(), np.array([[1, 0], [1, 1]], np.float32), NAMES[:2]),
        (Ordinal(), np.array([1, 2]), NAMES),
    ],
)
def test_scores_have_the_loss_by_hand(task, labels, names):
    """−ln of what is right is given: 0.8, 0.9; 0.5, 0.3."""
    chances = np.array([[0.8, 0.1], [0.5, 0.3]])
    found = task.score(np.log(chances / (1 - chances)), of(labels), None, names)
    np.testing.assert_allclose(found["loss"], -np.log([0.8, 0.9, 0.5, 0.3]).mean(), rtol=1e-6)


def test_label_sets_at_their_edges():
    """A label is given above the threshold, not at it; where there is none F1 is 0."""
    even = np.zeros((2, 3))
    assert Multilabel().predictions(even, None, None, NAMES)[0]["labels"] == []
    assert Multilabel(threshold=0.49).predictions(even, None, None, NAMES)[0]["labels"] == [*NAMES]
    scores = Multilabel().score(even, of(np.zeros((2, 3), np.float32)), None, NAMES)
    assert scores["f1_micro"] == scores["f1_macro"] == scores["hamming"] == 0.0
    assert scores["accuracy"] == 1.0
    every = {"f1": 0.0, "examples": 0}
    assert scores["per_class"] == dict.fromkeys(NAMES, every)
    rows = [{"text": "good", "label": ["c", "a"]}, {"text": "bad", "label": []}]
    split = split_of(Multilabel(), [*rows, {"text": "so", "label": ["b"]}])
    found = Multilabel().labels_of(split, NAMES)
    np.testing.assert_array_equal(found, [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    with pytest.raises(UserError, match="row 3 has label 'b', which training does not have"):
        Multilabel().labels_of(split, ("a", "c"))


@pytest.mark.parametrize(("truth", "guess"), [([0, 1, 1], [1, 0, 1]), ([0, 0, 2], [0, 2, 2])])
def test_kappa_of_two_labels_is_scikit_learn_s(truth, guess):
    logits = np.where(np.array(guess)[:, None] > np.arange(2), 1.0, -1.0)
    found = Ordinal().score(logits, of(np.array(truth)), None, NAMES)["kappa"]
    np.testing.assert_allclose(found, cohen_kappa_score(truth, guess, weights="quadratic"))


def test_ordered_labels_at_their_edges():
    """A step that is as probable as not is not taken; a label's probability is between steps."""
    even = np.zeros((1, 2))
    assert Ordinal().score(even, of(np.array([0])), None, NAMES)["accuracy"] == 1.0
    assert Ordinal().predictions(even, None, None, NAMES)[0]["label"] == "a"
    for above, label, probability in (
        ((0.3, 0.1), "a", 1 - 0.3),
        ((0.8, 0.3), "b", 0.8 - 0.3),
        ((0.9, 0.7), "c", 0.7 - 0),
        ((0.2, 0.9), "b", 0.0),  # one step is taken, and not the first: no label is between
        ((2 / 3, 1 / 7), "b", 0.52381),
    ):
        logits = np.log(above) - np.log1p(-np.array(above))
        (row,) = Ordinal().predictions(logits[None], None, None, NAMES)
        assert (row["label"], row["probability"]) == (label, pytest.approx(probability, abs=5e-7))
    assert row["probability"] == 0.52381


def test_the_order_of_a_finished_head():
    """By its steps, and above the last what rows have that no step is named after, or else what
    is last of those named."""
    three = [{"text": "good", "label": label} for label in ("b", "c", "a")]
    for outputs, rows, labels, wanted in (
        (("> a", "> b"), three, (), ("a", "b", "c")),
        (("> c", "> b"), three, (), ("c", "b", "a")),
        (("> a", "> b"), three[::2], ("a", "b", "c"), ("a", "b", "c")),
        (("LABEL_0", "LABEL_1"), three, ("a", "b", "c"), ("a", "b", "c")),
    ):
        split = split_of(Ordinal(), rows)
        assert Ordinal(labels=labels).label_names(split, outputs) == wanted
    for names in (("a", "b"), ("a", "b", "c", "d")):
        assert Ordinal().output_names(names) == tuple(f"> {name}" for name in names[:-1])
