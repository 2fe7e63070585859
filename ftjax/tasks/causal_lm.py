"""Language modelling: each token from those before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.fields import Field, Schema, text
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.tasks.base import Apply, Batch, Task, of_places


@dataclass(frozen=True)
class CausalLM(Task):
    """Cross-entropy of every token but an example's first; the logits never exist at once."""

    schema: ClassVar = Schema({"text": Field(text)})

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "causal_lm"}

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ cross-entropies and how many; rows without examples weigh nothing."""
        scores = apply(_with_targets(batch))
        return Loss(scores.loss, scores.weight)

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Σ loss, Σ hits and tokens of each example: (rows, 3), or (rows, places, 3) packed."""
        batch = _with_targets(batch)
        tokens = apply(batch).tokens
        each = jnp.concatenate([tokens, batch["target_weights"][..., None]], -1)
        if "starts" not in batch:
            return each.sum(1)
        return of_places(batch) @ each

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean loss, perplexity exp(loss) and accuracy of tokens, over all tokens."""
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
        """One {"loss", "tokens"} a row, the loss a token's mean."""
        return [
            {"loss": round(float(loss / max(count, 1)), 6), "tokens": int(count)}
            for loss, _, count in outputs
        ]


def _with_targets(batch: Batch) -> dict[str, jax.Array]:
    """With each position's next token, and 1 where that is of the same example."""
    ids = batch["input_ids"]
    numbers = batch.get("segment_ids", batch.get("attention_mask"))
    after = jnp.pad(numbers[:, 1:], ((0, 0), (0, 1)))
    same = (after == numbers) & (numbers > 0)
    targets = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    return {**batch, "targets": targets, "target_weights": same.astype(jnp.float32)}
