"""The classification task: its loss and its metrics by hand."""

import jax
import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from ftjax.config import check, load_config, override
from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.runs.train import train
from ftjax.tasks.classification import Classification
from ftjax.workdir.records import read_rows
from tests.conftest import make_rows, write_jsonl
from tests.tasks.small_models import most_places, split_of

pytestmark = pytest.mark.usefixtures("first_device")

NAMES = ("a", "b", "c")


def labelled(labels):
    """Examples with labels and no tokens."""
    return Examples(ragged([[]] * len(labels)), arrays={"labels": labels})


def test_loss_equals_torch():
    random = np.random.default_rng(0)
    logits = random.normal(size=(9, 3)).astype(np.float32)
    batch = {"labels": random.integers(0, 3, 9), "weights": random.random(9).astype(np.float32)}
    for smoothing in (0.0, 0.1):
        task = Classification(label_smoothing=smoothing)
        loss = task.loss(lambda _: logits, batch, train=True)
        each = torch.nn.functional.cross_entropy(
            torch.tensor(logits),
            torch.tensor(batch["labels"]),
            reduction="none",
            label_smoothing=smoothing,
        ).numpy()
        np.testing.assert_allclose(loss.total, (each * batch["weights"]).sum(), rtol=1e-5)
        np.testing.assert_allclose(loss.weight, batch["weights"].sum(), rtol=1e-6)
    calm = task.loss(lambda _: logits, batch, train=False)
    assert abs(float(calm.total) - float(loss.total)) > 1e-3  # smoothed in training only


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_equals_torch(smoothing):
    random = np.random.default_rng(1)
    logits = random.normal(size=(9, 3)).astype(np.float32)
    labels, weights = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2]), "0.5,1.5,4"
    task = Classification(label_smoothing=smoothing, class_weights=weights)
    batch = {"labels": labels, "weights": np.ones(9, np.float32)}
    loss = task.fitted(labelled(labels), NAMES).loss(lambda _: logits, batch, train=True)
    wanted = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(labels),
        weight=torch.tensor([0.5, 1.5, 4.0]),
        label_smoothing=smoothing,
    )
    np.testing.assert_allclose(loss.total / loss.weight, float(wanted), rtol=1e-5)
    calm = task.loss(lambda _: logits, batch, train=False)
    plain = Classification().loss(lambda _: logits, batch, train=True)
    np.testing.assert_allclose(calm.total / calm.weight, plain.total / plain.weight, rtol=1e-6)


def test_balanced_weights_are_scikit_learn_s():
    labels = np.random.default_rng(2).choice(3, 200, p=[0.7, 0.2, 0.1])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = Classification(class_weights="balanced").fitted(labelled(labels), NAMES)
    np.testing.assert_allclose(found.class_weights, wanted)
    labels = np.array([0, 1, 1, 1, 2, 2])  # one row has the first label
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    for names in (NAMES, (*NAMES, "d")):  # and none has the last, which then weighs a number, too
        found = Classification(class_weights="balanced").fitted(labelled(labels), names)
        scale = len(names) / 3
        np.testing.assert_allclose(np.array(found.class_weights[:3]) * scale, wanted)
        assert np.isfinite(found.class_weights).all()
    with pytest.raises(UserError, match=r"2 numbers for 3 labels \(a, b, c\)"):
        Classification(class_weights=(1, 2)).fitted(labelled(labels), NAMES)
    for bad in ("balance", "1,-1", (0, 1), (1, float("inf")), (float("nan"), 1), ()):
        with pytest.raises(UserError, match="task.class_weights="):
            Classification(class_weights=bad)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_by_its_formula(gamma):
    random = np.random.default_rng(3)
    logits, labels = random.normal(size=(7, 3)), random.integers(0, 3, 7)
    alpha, rows = np.array([0.25, 0.5, 0.75]), np.arange(7)
    batch = {"labels": labels, "weights": np.ones(7, np.float32)}
    task = Classification(class_weights=tuple(alpha), focal_gamma=gamma).fitted(
        labelled(labels), NAMES
    )
    loss = task.loss(lambda _: logits.astype(np.float32), batch, train=True)
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[rows, labels]
    np.testing.assert_allclose(
        loss.total, (-alpha[labels] * (1 - p) ** gamma * np.log(p)).sum(), rtol=1e-5
    )
    # Finite also where the model is as certain as numbers can be, of the right or the wrong label.
    certain = np.array([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], np.float32)
    batch = {"labels": np.zeros(2, int), "weights": np.ones(2, np.float32)}
    grads = jax.grad(lambda logits: task.loss(lambda _: logits, batch, train=True).total)(certain)
    assert np.isfinite(grads).all() and abs(grads[1, 0]) > 0.2


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_loss_of_the_surest_that_is_not_certain(gamma):
    """Down to 2^-23, the least that single precision tells from a 1 − p of 0, the formula holds."""
    task, rest = Classification(focal_gamma=gamma), 2.0**-23
    batch = {"labels": np.zeros(1, int), "weights": np.ones(1, np.float32)}
    logits = np.array([[np.log(1 / rest), 0.0]], np.float32)
    loss = task.loss(lambda _: logits, batch, train=True)
    np.testing.assert_allclose(loss.total, rest**gamma * -np.log1p(-rest), rtol=1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_packed_rows_is_that_of_rows(smoothing):
    random, shape = np.random.default_rng(4), (2, 5)
    logits = random.normal(size=(*shape, 3)).astype(np.float32)
    batch = {
        "labels": random.integers(0, 3, shape),
        "weights": random.random(shape).astype(np.float32),
    }
    flat = {name: value.ravel() for name, value in batch.items()}
    task = Classification(class_weights=(1.0, 2.0, 3.0), focal_gamma=2.0, label_smoothing=smoothing)
    for is_train in (False, True):
        packed = task.loss(lambda _: logits, batch, is_train)
        rows = task.loss(lambda _: logits.reshape(-1, 3), flat, is_train)
        np.testing.assert_allclose(packed.total, rows.total, rtol=1e-5)
        np.testing.assert_allclose(packed.weight, rows.weight, rtol=1e-6)


def test_the_constant_answer_is_scikit_learn_s():
    """The shares of labels; one that no row has gets a chance that is no number to speak of."""
    labels = np.array([1, 1, 0, 1, 3, 0])
    wanted = DummyClassifier(strategy="prior").fit(labels[:, None], labels)
    found = Classification().constant(labelled(labels), (*NAMES, "d"))
    chances = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    assert np.isfinite(found).all() and found.shape == (6, 4)
    there = [0, 1, 3]
    np.testing.assert_allclose(chances[:, there], wanted.predict_proba(labels[:, None]), atol=1e-6)
    assert (chances[:, 2] < 1e-6).all() and (found.argmax(1) == wanted.predict([[0]])).all()


def test_training_takes_the_training_split_s_weights(config_file, tmp_path):
    rows = make_rows(40, 0)
    rows = [row for row in rows if row["label"] == "positive"][:6] + [
        row for row in rows if row["label"] == "negative"
    ]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    negative = len(rows) - 6
    weights = [len(rows) / (2 * negative), len(rows) / 12]
    losses = {}
    for given in ("none", "balanced", weights):
        config = load_config(str(config_file), ["--config.method.name=head"])
        override(config, "task.class_weights", given)
        config.data.update({"path": str(file), "prepare": ()})
        config.data.splits.validation = 0.0
        config.train.update({"steps": 2, "log_every": 1, "batch_size": 8})
        result = train(check(config), tmp_path / str(len(losses)))
        assert result["steps"] == 2
        logged = read_rows(tmp_path / str(len(losses)) / "metrics.jsonl")
        losses[str(given)] = [row["loss"] for row in logged if "loss" in row]
    assert losses["balanced"] == losses[str(weights)] != losses["none"]


def test_metrics_by_hand():
    #          truth   a  a  a  b  b  a        guess   a  b  a  b  a  a   (c is never there)
    truth, guess = np.array([0, 0, 0, 1, 1, 0]), np.array([0, 1, 0, 1, 0, 0])
    found = Classification().metrics(np.eye(3)[guess], truth, NAMES)
    assert found["accuracy"] == 4 / 6
    assert found["confusion"] == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert found["per_class"]["a"] == {
        "precision": 3 / 4,
        "recall": 3 / 4,
        "f1": 3 / 4,
        "examples": 4,
    }
    assert found["per_class"]["b"]["f1"] == 0.5
    np.testing.assert_allclose(found["f1"], (3 / 4 + 1 / 2) / 2)  # as scikit-learn: without c
    # Matthews of the two classes that are there: (3·1 − 1·1) / √(4·2·4·2)
    np.testing.assert_allclose(found["matthews"], 2 / 8)


def test_scores_have_the_plain_loss():
    """Whatever training makes of it: smoothing, class weights, γ."""
    random = np.random.default_rng(6)
    logits, labels = random.normal(size=(20, 3)), random.integers(0, 3, 20)
    chances, weights = softmax(logits, 1), random.random(20)
    wanted = log_loss(labels, chances)
    weighted = log_loss(labels, chances, sample_weight=weights)
    for options in ({}, {"label_smoothing": 0.1, "class_weights": (1, 2, 3), "focal_gamma": 2.0}):
        task = Classification(**options)
        found = task.score(logits, labelled(labels), None, NAMES)
        np.testing.assert_allclose([found["loss"], found["log_loss"]], wanted)
        loss = task.loss(lambda _: logits, {"labels": labels, "weights": weights}, False)
        np.testing.assert_allclose(loss.total / loss.weight, weighted, rtol=1e-5)


def test_predictions_are_probabilities():
    logits = np.array([[0.0, np.log(3.0), -1e9]])
    (row,) = Classification().predictions(logits, None, None, NAMES)
    chances = {"a": 0.25, "b": 0.75, "c": 0.0}
    assert row == {"label": "b", "probability": 0.75, "probabilities": chances}
    thirds = np.log([[1.0, 2.0, 0.0001]])
    (row,) = found = Classification().predictions(thirds, None, None, NAMES)
    assert most_places(found) == 6 and row["probability"] == row["probabilities"]["b"]
    np.testing.assert_allclose(row["probability"], 2 / 3.0001, atol=5e-7)
    for names in (NAMES[:2], (*NAMES, "d")):  # no probability is lost, or of another label
        with pytest.raises(ValueError, match="argument"):
            Classification().predictions(logits, None, None, names)


@pytest.mark.parametrize("answers", [True, False])
def test_rows_to_predict_need_no_label(answers):
    schema = Classification.schema if answers else Classification.schema.to_predict()
    if answers:
        with pytest.raises(UserError, match="label"):
            split_of(Classification(), [{"text": "good"}], schema)
    else:
        assert len(split_of(Classification(), [{"text": "good"}], schema).rows) == 1


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_top_k_of_all_labels_is_not_measured(count):
    """It is 1, whatever the model says."""
    names = tuple("abcdef"[:count])
    split = split_of(Classification(), [{"text": "x", "label": name} for name in names])
    every = {f"top_{k}" for k in range(1, 10)} & {*Classification().better}
    measured = {name for name in Classification().measured(split, names) if "top_" in name}
    assert measured == {name for name in every if int(name[4:]) < count}


@pytest.mark.parametrize("labels", ["aaa", "aab", "abc", "abcd"])
def test_measured_is_what_is_scored(labels):
    """Rankings only where some rows have a label and others lack it."""
    names = tuple("abcd")
    split = split_of(Classification(), [{"text": "x", "label": label} for label in labels])
    examples = labelled(np.array([names.index(label) for label in labels]))
    scores = Classification().score(np.eye(4)[: len(labels)], examples, split, names)
    numbers = {name for name, value in scores.items() if isinstance(value, float)}
    assert numbers == set(Classification().measured(split, names))
    assert ("auroc" in numbers) == (len(set(labels)) > 1)
