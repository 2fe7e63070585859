"""Classification of a text or a pair of texts into one of several labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats import folder as folders
from ftjax.loss import Loss

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Classification:
    """Softmax over label logits, cross-entropy loss.

    Attributes:
        pooling: "cls" (BERT's pooler), "mean", or "auto": what the folder's sentence-transformers
            configuration says, else "cls".
        label_smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / labels.
        labels: names of the labels in order; empty: those of the training split.
    """

    pooling: str = "auto"
    label_smoothing: float = 0.0
    labels: tuple[str, ...] = ()

    best_metric = "accuracy"
    labelled = True

    def __post_init__(self) -> None:
        if self.pooling not in ("auto", "cls", "mean"):
            raise UserError(f"task.pooling={self.pooling!r} must be auto, cls or mean")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"task.label_smoothing={self.label_smoothing} must be in [0, 1)")

    def label_names(self, train: Split) -> tuple[str, ...]:
        """The labels' names: those given, or those of the training split, integers in order.

        Raises:
            UserError: fewer than two labels, or one without an example.
        """
        found = set(train.column("label"))
        names = tuple(str(name) for name in (self.labels or train.label_names))
        if not names:
            integers = all(name.lstrip("-").isdigit() for name in found)
            names = tuple(sorted(found, key=int if integers else str))
            if integers and names and names[0] == "0":
                names = tuple(str(i) for i in range(int(names[-1]) + 1))
        for name in names:
            if name not in found:
                raise UserError(
                    f"{train.file}: label {name!r} has no example in the training split; "
                    "leave it out of task.labels, or renumber the labels"
                )
        if len(names) < 2:
            raise UserError(f"{train.file}: classification needs two labels, found {list(names)}")
        return names

    def targets(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """Label numbers (rows,).

        Raises:
            UserError: a row with a label that training does not have.
        """
        number = {name: i for i, name in enumerate(names)}
        labels = split.column("label")
        for label, row in zip(labels, split.column("row"), strict=True):
            if label not in number:
                raise UserError(
                    f"{split.file}: row {row} has label {label!r}, which training does not have "
                    f"(labels: {', '.join(names)})"
                )
        return np.array([number[label] for label in labels], np.int32)

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        """Arguments of the family's `Model`; `folder` is where the model is, if anywhere."""
        pooling = self.pooling
        if pooling == "auto":
            pooling = folders.pooling(folder) if folder else "cls"
        return {"head": "classification", "labels": len(names), "pooling": pooling}

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ weighted cross-entropies and Σ weights; smoothed in training only."""
        logits = apply(batch)
        targets = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        if train and self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def outputs(self, apply: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
        """Logits."""
        return apply(batch)

    def score(
        self, logits: np.ndarray, arrays: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, Any]:
        """The metrics, and the mean loss without smoothing."""
        labels = arrays["labels"]
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

    def predictions(self, logits: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
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
