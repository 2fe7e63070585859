"""Classification of a text or a pair of texts into one of several labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.tasks.base import Batch, label_names, one_number
from ftjax.tasks.texts import Texts


@dataclass(frozen=True)
class Classification(Texts):
    """Softmax over label logits, cross-entropy loss.

    Attributes:
        label_smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / labels.
        labels: names of the labels in order; empty: those of the training split.
    """

    label_smoothing: float = 0.0
    labels: tuple[str, ...] = ()

    best_metric = "accuracy"
    problem_type = "single_label_classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing={self.label_smoothing} must be in [0, 1)")

    def label_names(self, train: Split) -> tuple[str, ...]:
        """See `ftjax.tasks.base.label_names`."""
        return label_names(train, train.column("label"), self.labels)

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """See `ftjax.tasks.base.one_number`."""
        return one_number(split, names)

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ weighted cross-entropies and Σ weights; smoothed in training only."""
        logits = apply(batch)
        targets = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def score(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """The metrics, and the mean loss without smoothing."""
        labels = examples.arrays["labels"]
        batch = {"labels": jnp.asarray(labels), "weights": jnp.ones(len(labels))}
        loss = self.loss(lambda _: jnp.asarray(logits), batch, train=False)
        return {"loss": float(loss.total / loss.weight), **self.metrics(logits, labels, names)}

    def metrics(
        self, logits: np.ndarray, targets: np.ndarray, names: Sequence[str]
    ) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (macro, per class), Matthews, confusion matrix.

        All by scikit-learn; a class that is never predicted has precision 0. Confusion rows are
        true labels.
        """
        from sklearn import metrics as sk

        guess, numbers = logits.argmax(-1), np.arange(len(names))
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            targets, guess, labels=numbers, zero_division=0.0
        )
        return {
            "accuracy": float(sk.accuracy_score(targets, guess)),
            "precision": float(precision.mean()),
            "recall": float(recall.mean()),
            "f1": float(f1.mean()),
            "matthews": float(sk.matthews_corrcoef(targets, guess)),
            "per_class": {
                name: {
                    "precision": float(precision[i]),
                    "recall": float(recall[i]),
                    "f1": float(f1[i]),
                    "examples": int(support[i]),
                }
                for i, name in enumerate(names)
            },
            "confusion": sk.confusion_matrix(targets, guess, labels=numbers).tolist(),
            "examples": len(targets),
        }

    def predictions(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"label", "probabilities"} a row."""
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = shifted / shifted.sum(-1, keepdims=True)
        return [
            {
                "label": names[int(row.argmax())],
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(names, row, strict=True)
                },
            }
            for row in probabilities
        ]
