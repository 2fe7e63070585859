"""One of several labels that have an order, as stars of reviews."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.tasks.base import Batch, directions, label_names, one_number
from ftjax.tasks.texts import Texts

STEP = "> "  # before the label that an output is the step above of


@dataclass(frozen=True)
class Ordinal(Texts):
    """A binary output for each step of the order: is the label above it?

    Cheng et al. (2008): a label k of K has the targets 1 (k times), 0 (K − 1 − k times). The label
    found is the number of steps more probable than not.

    Attributes:
        labels: names of the labels, the lowest first; empty: integers of the training split in
            order, or names by the alphabet.
    """

    labels: tuple[str, ...] = ()

    best_metric = "kappa"
    better: ClassVar = directions(("accuracy", "kappa"), ("mean_absolute_error",))
    problem_type = "multi_label_classification"

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """See `ftjax.tasks.base.label_names`; of a finished head's last step, what is above it is
        the label that no step is named after."""
        labels = set(train.column("label"))
        if outputs:
            steps = [name.removeprefix(STEP) for name in outputs]
            above = sorted(labels - set(steps)) or list(self.labels[-1:])
            named = all(name.startswith(STEP) for name in outputs)
            outputs = (*steps, *above) if named else (*outputs, f"LABEL_{len(outputs)}")
        return label_names(train, labels, self.labels, outputs)

    def output_names(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(f"{STEP}{name}" for name in names[:-1])

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """See `ftjax.tasks.base.one_number`."""
        return one_number(split, names)

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ of weighted means over steps of binary cross-entropy, and Σ weights."""
        losses = _losses(apply(batch), batch["labels"])
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def score(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Accuracy, error in steps, and Cohen's kappa with squared weights, by scikit-learn."""
        from sklearn import metrics as sk

        targets, guess = examples.arrays["labels"], (logits > 0).sum(1)
        numbers = np.arange(len(names))
        kappa = 1.0  # where all are of one label, and it would be 0 / 0
        if len(np.union1d(targets, guess)) > 1:
            kappa = sk.cohen_kappa_score(targets, guess, labels=numbers, weights="quadratic")
        return {
            "loss": float(_losses(jnp.asarray(logits), targets).mean()),
            "accuracy": float(sk.accuracy_score(targets, guess)),
            "mean_absolute_error": float(np.abs(targets - guess).mean()),
            "kappa": float(kappa),
            "confusion": sk.confusion_matrix(targets, guess, labels=numbers).tolist(),
            "examples": len(targets),
        }

    def constant(self, examples: Examples, names: Sequence[str]) -> np.ndarray:
        """The most frequent label."""
        counts = np.bincount(examples.arrays["labels"], minlength=len(names))
        above = np.arange(len(names) - 1) < counts.argmax()
        return np.tile(np.where(above, 1.0, -1.0).astype(np.float32), (len(examples), 1))

    def predictions(
        self, logits: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"label", "probability", "above"} a row: "above" has the probability that the label
        is above each step, "probability" that of the label by those on both its sides."""
        above = 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))
        return [
            {
                "label": names[number],
                "probability": _of_step(row, number),
                "above": {
                    name: round(float(p), 6) for name, p in zip(names[:-1], row, strict=True)
                },
            }
            for row, number in zip(above, (above > 0.5).sum(1), strict=True)
        ]


def _losses(logits: jax.Array, labels: jax.Array | np.ndarray) -> jax.Array:
    """Each row's mean over steps of binary cross-entropy."""
    above = labels[..., None] > jnp.arange(logits.shape[-1])
    return optax.sigmoid_binary_cross_entropy(logits, above.astype(jnp.float32)).mean(-1)


def _of_step(above: np.ndarray, number: int) -> float:
    """P(above the step before) − P(above the next), of probabilities that each step has alone."""
    ends = np.concatenate([[1.0], above, [0.0]])
    return round(float(max(ends[number] - ends[number + 1], 0.0)), 6)
