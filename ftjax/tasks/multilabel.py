"""Any number of labels for a text or a pair of texts."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit

from ftjax.data.encode import Examples
from ftjax.data.fields import Field, label_sets
from ftjax.data.fields import label_names as read_names
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.options import Inside
from ftjax.tasks.base import LEAST, Array, Batch, directions, label_names, numbers
from ftjax.tasks.probabilities import calibration_error, of_rankings, ranked
from ftjax.tasks.texts import Texts, texts_and


@dataclass(frozen=True)
class Multilabel(Texts):
    """A sigmoid a label, binary cross-entropy.

    A row's labels are a list of names, names with commas between, or indicators, a list of 0 and 1:
    see `ftjax.data.fields.label_sets`.

    Attributes:
        labels: names of the labels in order; empty: those of the training split.
        threshold: a label is given where its probability is above.
    """

    labels: tuple[str, ...] = ()
    threshold: Inside = 0.5

    best_metric = "f1_micro"
    better: ClassVar = directions(
        ("f1_micro", "f1_macro", "accuracy", "auroc", "average_precision"),
        ("hamming", "calibration_error"),
    )
    schema = texts_and(Field(read_names, answer=True, settle=label_sets))
    arrays: ClassVar = {"labels": Array("example", "float32", (2,))}
    problem_type = "multi_label_classification"

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """See `ftjax.tasks.base.label_names`."""
        used = [name for labels in train.column("label") for name in labels]
        return label_names(train, used, self.labels, outputs)

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """1 for each label that a row has (rows, labels).

        Raises:
            UserError: a row with a label that training does not have.
        """
        label_numbers = numbers(split, split.column("label"), names)
        targets = np.zeros((len(label_numbers), len(names)), np.float32)
        for row, own in zip(targets, label_numbers, strict=True):
            row[own] = 1
        return targets

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ of weighted means over labels, and Σ weights."""
        losses = _losses(apply(batch), batch["labels"])
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def score(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """F1 over all decisions and as a mean over labels, rows that are all right, and the loss.

        By scikit-learn; the mean is over labels that rows have or are given, and 0 where there is
        none. Also of `ftjax.tasks.probabilities`, with the calibration error of all decisions.
        """
        from sklearn import metrics as sk

        targets = examples.arrays["labels"]
        probabilities = _sigmoid(logits)
        truth, guess = targets.astype(bool), probabilities > self.threshold
        f1_scores = sk.f1_score(truth, guess, average=None, zero_division=0.0)
        there = (truth | guess).any(0)
        return {
            "loss": float(_losses(jnp.asarray(logits), targets).mean()),
            "f1_micro": float(sk.f1_score(truth, guess, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_scores[there].mean()) if there.any() else 0.0,
            "accuracy": float(sk.accuracy_score(truth, guess)),
            "hamming": float(sk.hamming_loss(truth, guess)),
            **of_rankings(truth, logits),
            "calibration_error": calibration_error(truth.ravel(), probabilities.ravel()),
            "averages": {"auroc": "macro", "average_precision": "macro"},
            "per_class": {
                name: {"f1": float(f1), "examples": int(count)}
                for name, f1, count in zip(names, f1_scores, truth.sum(0), strict=True)
            },
            "examples": len(targets),
        }

    def constant(self, examples: Examples, names: Sequence[str]) -> np.ndarray:
        """The share of rows that have each label, as its probability."""
        share = np.clip(examples.arrays["labels"].mean(0), LEAST, 1 - LEAST)
        return np.tile(np.log(share / (1 - share)), (len(examples), 1))

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        labels = Counter(name for row in split.column("label") for name in row)
        lacking = set() if ranked(labels, len(split.rows)) else {"auroc", "average_precision"}
        return super().measured(split, names) - lacking

    def predictions(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"labels", "probabilities"} a row."""
        return [
            {
                "labels": [names[i] for i in np.flatnonzero(chances > self.threshold)],
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(names, chances, strict=True)
                },
            }
            for chances in _sigmoid(logits)
        ]


def _losses(logits: jax.Array, labels: jax.Array | np.ndarray) -> jax.Array:
    """Each row's mean over labels of binary cross-entropy."""
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return expit(logits.astype(np.float64))
