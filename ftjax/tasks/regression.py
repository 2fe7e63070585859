"""A number for a text or a pair of texts, as their similarity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.fields import Field, number
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.tasks.base import Array, Batch, directions
from ftjax.tasks.texts import Texts, texts_and


@dataclass(frozen=True)
class Regression(Texts):
    """One output, squared error.

    The bias of a new head, where it has one, starts at the mean of the numbers to train on, the
    best of constant answers: else the first epochs, or all of them, are spent on getting there.
    Hugging Face's start at zero.
    """

    best_metric = "pearson"
    better: ClassVar = directions(
        ("pearson", "spearman"), ("mean_squared_error", "mean_absolute_error")
    )
    schema = texts_and(Field(number, answer=True))
    arrays: ClassVar = {"labels": Array("example", "float32")}
    problem_type = "regression"

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        return ("value",)

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """The numbers (rows,), in their own units."""
        return np.array(split.column("label"), np.float32)

    def first_bias(self, examples: Examples) -> tuple[float]:
        """The mean; of a stream, that of its first window."""
        return (float(examples.arrays["labels"].mean(dtype=np.float64)),)

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        """Σ weighted squared errors and Σ weights."""
        errors = (apply(batch)[..., 0] - batch["labels"]) ** 2
        return Loss(jnp.sum(errors * batch["weights"]), jnp.sum(batch["weights"]))

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean squared and absolute error, and the correlations of Pearson and Spearman."""
        predicted = outputs[:, 0].astype(np.float64)
        targets = examples.arrays["labels"].astype(np.float64)
        error = float(((predicted - targets) ** 2).mean())
        return {
            "loss": error,
            "mean_squared_error": error,
            "mean_absolute_error": float(np.abs(predicted - targets).mean()),
            "pearson": correlation("pearson", predicted, targets),
            "spearman": correlation("spearman", predicted, targets),
            "examples": len(targets),
        }

    def constant(self, examples: Examples, names: Sequence[str]) -> np.ndarray:
        """The mean."""
        return np.full((len(examples), 1), examples.arrays["labels"].mean(dtype=np.float64))

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"value"} a row."""
        return [{"value": round(float(value), 6)} for value in outputs[:, 0]]


def correlation(
    kind: Literal["pearson", "spearman"], predicted: np.ndarray, targets: np.ndarray
) -> float:
    """By scipy; 0 where either side is constant, and none where what was found is no number."""
    from scipy import stats

    if not np.isfinite(predicted).all():
        return float("nan")
    if np.ptp(predicted) == 0 or np.ptp(targets) == 0:
        return 0.0
    measure = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[kind]
    return float(measure(predicted, targets)[0])
