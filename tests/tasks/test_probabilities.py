"""Metrics of probabilities: against scikit-learn, and the formula of calibration error."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from ftjax.data.encode import Examples, ragged
from ftjax.tasks.classification import Classification
from ftjax.tasks.multilabel import Multilabel
from ftjax.tasks.probabilities import calibration_error, of_rankings, ranked

NAMES = tuple("abcdefg")


@pytest.mark.parametrize("labels", [2, 3, 4, 5, 7])
def test_one_label_equals_scikit_learn(labels):
    random = np.random.default_rng(labels)
    targets = random.integers(0, labels, 200)
    logits = np.eye(labels)[targets] + random.normal(0, 1, (200, labels))
    found, chances = Classification().metrics(logits, targets, NAMES[:labels]), softmax(logits, -1)
    several = chances if labels > 2 else chances[:, 1]
    auroc = sk.roc_auc_score(targets, several, multi_class="ovr")
    np.testing.assert_allclose(found["auroc"], auroc)
    np.testing.assert_allclose(
        found["average_precision"], sk.average_precision_score(np.eye(labels)[targets], chances)
    )
    np.testing.assert_allclose(found["log_loss"], sk.log_loss(targets, chances))
    right = logits.argmax(1) == targets
    error = calibration_error(right, chances.max(1))
    np.testing.assert_allclose(found["calibration_error"], error)
    assert {name for name in found if "top" in name} == {f"top_{k}" for k in (3, 5) if k < labels}
    for k in (k for k in (3, 5) if k < labels):
        np.testing.assert_allclose(found[f"top_{k}"], sk.top_k_accuracy_score(targets, logits, k=k))


def test_calibration_error_by_its_formula():
    """Of neighbouring bins one says too little, the next too much, which would make up for it."""
    sure = np.append(np.random.default_rng(0).uniform(0, 1, 500), [1.0, 0.0])
    right = np.append((sure[:500] * 15).astype(int) % 2 == 0, [False, True])
    total = 0.0
    for i in range(15):
        inside = (sure >= i / 15) & ((sure < (i + 1) / 15) | (i == 14))
        if inside.any():
            total += abs(right[inside].mean() - sure[inside].mean()) * inside.mean()
    np.testing.assert_allclose(calibration_error(right, sure), total)
    assert calibration_error(np.array([True, True]), np.array([1.0, 1.0])) == 0.0


def test_means_are_over_labels_that_are_there():
    """As scikit-learn has them: those of rows or of answers."""
    random, lacking = np.random.default_rng(1), 0
    for _ in range(20):
        targets, logits = random.choice(7, 9), random.normal(size=(9, 7))
        found, guess = Classification().metrics(logits, targets, NAMES), logits.argmax(-1)
        lacking += len(np.union1d(targets, guess)) < 7
        for name in ("precision", "recall", "f1"):
            score = getattr(sk, f"{name}_score")
            wanted = score(targets, guess, average="macro", zero_division=0.0)
            np.testing.assert_allclose(found[name], wanted, err_msg=name)
        assert found["averages"]["f1"] == "macro" and len(found["per_class"]) == 7
    assert lacking > 5


def test_several_labels_equal_scikit_learn():
    random = np.random.default_rng(2)
    truth = random.random((60, 5)) < [0.5, 0.3, 0.1, 0.0, 1.0]  # one that none has, one that all
    logits = truth * 2.0 + random.normal(0, 2, truth.shape)
    logits[:, 3] = -5.0  # and that none is given
    examples = Examples(ragged([[1]] * 60), arrays={"labels": truth.astype(np.float32)})
    found = Multilabel().score(logits.astype(np.float32), examples, None, NAMES[:5])
    guess, some = logits > 0, [0, 1, 2]
    wanted = sk.f1_score(truth, guess, average="macro", zero_division=np.nan)
    np.testing.assert_allclose(found["f1_macro"], wanted)
    np.testing.assert_allclose(found["auroc"], sk.roc_auc_score(truth[:, some], logits[:, some]))
    np.testing.assert_allclose(
        found["average_precision"],
        sk.average_precision_score(truth[:, some], logits[:, some]),
    )
    np.testing.assert_allclose(
        found["calibration_error"], calibration_error(truth.ravel(), expit(logits).ravel())
    )


def test_equal_scores_and_sure_ones():
    """Of equal ones the first counts as said; what rounds to a probability of 1 has an order."""
    random = np.random.default_rng(3)
    for scale in (0, 1, 1000):
        logits = np.round(random.normal(size=(40, 7)) * scale).astype(np.float32)
        targets = np.append(np.arange(7), random.integers(0, 7, 33))
        found = Classification().metrics(logits, targets, NAMES)
        truth, chances = np.eye(7)[targets], log_softmax(logits.astype(np.float64), -1)
        for name, score in (
            ("auroc", sk.roc_auc_score),
            ("average_precision", sk.average_precision_score),
        ):
            np.testing.assert_allclose(found[name], score(truth, chances), err_msg=name)
        tops = np.argsort(-logits, -1, kind="stable")
        for k in (3, 5):
            right = (tops[:, :k] == targets[:, None]).any(-1)
            np.testing.assert_allclose(found[f"top_{k}"], right.mean())
        examples = Examples(ragged([[1]] * 40), arrays={"labels": truth.astype(np.float32)})
        several = Multilabel().score(logits, examples, None, NAMES)
        np.testing.assert_allclose(several["auroc"], sk.roc_auc_score(truth, logits))


@pytest.mark.filterwarnings("error")
def test_one_label_alone_is_said_without_a_word():
    found = Classification().metrics(np.array([[1.0, 0.0]]), np.array([0]), NAMES[:2])
    assert found["accuracy"] == 1.0 and found["matthews"] == 0.0


@pytest.mark.parametrize("count", range(6))
def test_a_label_is_ranked_where_some_rows_have_it(count):
    """A ROC curve needs a row that has the label and one that lacks it, and no more."""
    truth, scores = np.arange(5) < count, np.array([0.3, 0.1, 0.9, 0.3, 0.2])
    found = of_rankings(truth[:, None], scores[:, None])
    assert ranked({"a": count}, 5) == bool(found) == (count not in (0, 5))
    assert ranked({"none": 0, "all": 5, "a": count}, 5) == bool(found)
    if found:
        np.testing.assert_allclose(found["auroc"], sk.roc_auc_score(truth, scores))
        wanted = sk.average_precision_score(truth, scores)
        np.testing.assert_allclose(found["average_precision"], wanted)


def test_outputs_that_are_no_numbers():
    logits = np.full((4, 4), np.nan)
    found = Classification().metrics(logits, np.array([0, 1, 2, 0]), NAMES[:4])
    for name in ("auroc", "average_precision", "calibration_error", "log_loss", "top_3"):
        assert np.isnan(found[name]), name
