"""What pretraining of encoder-decoders shares: a text is written from a part of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.options import Share
from ftjax.tasks.base import Apply, Batch, Task, directions, smoothed


@dataclass(frozen=True)
class Rebuilding(Task):
    """Cross-entropy of what is written, given the right tokens before and what is read.

    Attributes:
        label_smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / vocabulary.
    """

    label_smoothing: Share = 0.0

    better: ClassVar = directions(("token_accuracy",), ("perplexity",))
    packs: ClassVar = False
    writes: ClassVar = True

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "seq2seq_lm"}

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ cross-entropies and how many tokens; the logits never exist at once."""
        scores = apply(smoothed(batch, self.label_smoothing, train))
        return Loss(scores.loss, scores.weight)

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Σ loss, Σ hits and tokens of each example: (rows, 3); zeros without targets."""
        if "targets" not in batch:
            return jnp.zeros((len(batch["input_ids"]), 3))
        scores = jnp.concatenate([apply(batch).tokens, batch["target_weights"][..., None]], -1)
        return scores.sum(1)

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean loss, perplexity exp(loss) and accuracy of tokens, given the right ones before."""
        loss, hits, count = outputs.astype(np.float64).sum(0)
        return {
            "loss": float(loss / max(count, 1)),
            "perplexity": float(np.exp(loss / max(count, 1))),
            "token_accuracy": float(hits / max(count, 1)),
            "tokens": int(count),
            "examples": len(outputs),
        }

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"loss"} a row where it has a target, the mean of its tokens."""
        return [
            {"loss": round(float(loss / count), 6)} if count else {} for loss, _, count in outputs
        ]
