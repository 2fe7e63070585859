"""Classification of a text or a pair of texts into one of several labels."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import softmax

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.options import NotNegative, Share
from ftjax.tasks.base import LEAST, Batch, directions, label_names, one_number
from ftjax.tasks.probabilities import TOP, of_one_label, ranked
from ftjax.tasks.texts import Texts

MACRO = ("precision", "recall", "f1", "auroc", "average_precision")  # means over labels


@dataclass(frozen=True)
class Classification(Texts):
    """Softmax over label logits, cross-entropy loss.

    Attributes:
        label_smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / labels.
        labels: names of the labels in order; empty: those of the training split.
        class_weights: "none"; "balanced", n / (labels · n of the label) of the training split;
            or numbers in the labels' order, also as "1,5". The loss is the weighted mean.
        focal_gamma: γ of the focal loss of Lin et al. (2017), (1 − p)^γ · cross-entropy, whose α
            are the class weights; 0 is cross-entropy.
    """

    label_smoothing: Share = 0.0
    labels: tuple[str, ...] = ()
    class_weights: Literal["none", "balanced"] | tuple[NotNegative, ...] = "none"
    focal_gamma: NotNegative = 0.0

    best_metric = "accuracy"
    better: ClassVar = directions(
        (*MACRO, "accuracy", "matthews", *(f"top_{k}" for k in TOP)),
        ("log_loss", "calibration_error"),
    )
    problem_type = "single_label_classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights not in ("none", "balanced"):
            object.__setattr__(self, "class_weights", _weights(self.class_weights))

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """See `ftjax.tasks.base.label_names`."""
        return label_names(train, train.column("label"), self.labels, outputs)

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """See `ftjax.tasks.base.one_number`."""
        return one_number(split, names)

    def fitted(self, examples: Examples, names: Sequence[str]) -> "Classification":
        """The task with class weights in numbers, by the training split's labels.

        Raises:
            UserError: there are not as many weights as labels.
        """
        weights, targets = self.class_weights, examples.arrays["labels"]
        if weights == "balanced":
            counts = np.bincount(targets, minlength=len(names))
            weights = tuple((len(targets) / (len(names) * np.maximum(counts, 1))).tolist())
        elif weights != "none" and len(weights) != len(names):
            raise UserError(
                f"task.class_weights has {len(weights)} numbers for {len(names)} labels "
                f"({', '.join(names)})"
            )
        return replace(self, class_weights=weights)

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ weighted cross-entropies and Σ weights.

        Smoothing, class weights and γ are for training only. Of a label's weight the loss of
        every target has its own, and the sum of weights the true label's, as torch has it.
        """
        logits = apply(batch)
        targets = jax.nn.one_hot(batch["labels"], logits.shape[-1])
        if not train:
            losses = optax.softmax_cross_entropy(logits, targets)
            return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))
        weights, label_weights = batch["weights"], 1.0
        if not isinstance(self.class_weights, str):  # names stand for ones until they are fitted
            label_weights = jnp.array(self.class_weights)
            weights = weights * label_weights[batch["labels"]]
        if self.label_smoothing:
            targets = optax.smooth_labels(targets, self.label_smoothing)
        log_p = jax.nn.log_softmax(logits)
        if self.focal_gamma:
            # 1 − p, but never 0, where a root has no derivative.
            log_p *= jnp.maximum(-jnp.expm1(log_p), 1e-7) ** self.focal_gamma
        losses = -jnp.sum(targets * label_weights * log_p, -1)
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(weights))

    def score(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """The metrics, and the mean loss without smoothing: the log loss."""
        metrics = self.metrics(logits, examples.arrays["labels"], names)
        return {"loss": metrics["log_loss"], **metrics}

    def metrics(
        self, logits: np.ndarray, targets: np.ndarray, names: Sequence[str]
    ) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (macro, per class), Matthews, confusion matrix.

        All by scikit-learn; a class that is never predicted has precision 0. Means are over the
        labels that rows have or are given. Confusion rows are true labels. For more see
        `ftjax.tasks.probabilities`.
        """
        from sklearn import metrics as sk

        guess, numbers = logits.argmax(1), np.arange(len(names))
        scores = sk.precision_recall_fscore_support(
            targets, guess, labels=numbers, zero_division=0.0
        )
        precision, recall, f1, support = scores
        there = np.union1d(targets, guess)
        return {
            "accuracy": float(sk.accuracy_score(targets, guess)),
            "precision": float(precision[there].mean()),
            "recall": float(recall[there].mean()),
            "f1": float(f1[there].mean()),
            "matthews": float(sk.matthews_corrcoef(targets, guess)) if len(there) > 1 else 0.0,
            **of_one_label(targets, logits),
            "averages": dict.fromkeys(MACRO, "macro"),
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

    def constant(self, examples: Examples, names: Sequence[str]) -> np.ndarray:
        """The shares of labels, as probabilities: the most frequent one is said."""
        counts = np.bincount(examples.arrays["labels"], minlength=len(names))
        return np.tile(np.log(np.maximum(counts, LEAST)), (len(examples), 1))

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        labels = Counter(split.column("label"))
        lacking = {f"top_{k}" for k in TOP if k >= len(names)}
        if not ranked(labels, len(split.rows)):
            lacking |= {"auroc", "average_precision"}
        return super().measured(split, names) - lacking

    def predictions(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"label", "probability", "probabilities"} a row."""
        return [
            {
                "label": names[int(row.argmax())],
                "probability": round(float(row.max()), 6),
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(names, row, strict=True)
                },
            }
            for row in softmax(logits, 1)
        ]


def _weights(option: Any) -> tuple[float, ...]:
    """Positive numbers, from a sequence or from text with commas between.

    Raises:
        UserError: they are not.
    """
    try:
        parts = option.split(",") if isinstance(option, str) else option
        weights = tuple(float(weight) for weight in parts)
    except (TypeError, ValueError):
        weights = ()
    if not weights or not all(0 < weight < float("inf") for weight in weights):
        raise UserError(
            f"task.class_weights={option!r} must be none, balanced, or a positive number a label"
        )
    return weights
