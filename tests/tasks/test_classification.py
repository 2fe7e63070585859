"""The classification task: its loss and its metrics by hand."""

import numpy as np
import torch

from ftjax.tasks.classification import Classification

NAMES = ("a", "b", "c")


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
    np.testing.assert_allclose(found["f1"], (3 / 4 + 1 / 2 + 0) / 3)
    # Matthews of the two classes that are there: (3·1 − 1·1) / √(4·2·4·2)
    np.testing.assert_allclose(found["matthews"], 2 / 8)


def test_predictions_are_probabilities():
    logits = np.array([[0.0, np.log(3.0), -1e9]])
    (row,) = Classification().predictions(logits, None, None, NAMES)
    assert row == {"label": "b", "probabilities": {"a": 0.25, "b": 0.75, "c": 0.0}}
