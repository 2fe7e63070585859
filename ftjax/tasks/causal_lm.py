"""Language modelling: each token from those before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.encode import Columns, Examples, Ragged
from ftjax.data.fields import Field, Schema, text
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.options import Natural, Share
from ftjax.tasks.base import Apply, Batch, Task, directions, of_places, smoothed


@dataclass(frozen=True)
class CausalLM(Task):
    """Cross-entropy of every token but an example's first; the logits never exist at once.

    Attributes:
        block: tokens of an example, all rows being cut up end to end; 0: a row is an example.
        label_smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / vocabulary.
    """

    block: Natural = 0
    label_smoothing: Share = 0.0

    better: ClassVar = directions(("token_accuracy",), ("perplexity",))
    encoded_by: ClassVar = ("block",)
    by_token: ClassVar = True
    schema: ClassVar = Schema({"text": Field(text)})

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "causal_lm"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """Rows end with the tokenizer's end of text, where it has one and they are not cut."""
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        if not self.block:
            encoded = super().encode(tokenizer, columns, max_length)
            whole = [ids if ids[-1:] == end else [*ids, *end] for ids in encoded["input_ids"]]
            cut = [
                was or len(ids) > max_length for was, ids in zip(encoded["cut"], whole, strict=True)
            ]
            return {"input_ids": [ids[:max_length] for ids in whole], "cut": cut}
        if not 1 < self.block <= max_length:
            raise UserError(f"task.block={self.block} must be 2 to data.max_length={max_length}")
        ids = tokenizer(columns["text"], add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [[*row, *end] for row in ids], "cut": [False] * len(ids)}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        if not self.block:
            return examples
        values = examples.ids.values
        starts = np.append(np.arange(0, len(values), self.block), len(values))
        rows = np.searchsorted(examples.ids.offsets, starts[:-1], "right") - 1
        return replace(examples, ids=Ragged(values, starts), rows=rows)

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ cross-entropies and how many; rows without examples weigh nothing."""
        scores = apply(smoothed(with_targets(batch), self.label_smoothing, train))
        return Loss(scores.loss, scores.weight)

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Σ loss, Σ hits and tokens of each example: (rows, 3), or (rows, places, 3) packed."""
        batch = with_targets(batch)
        tokens = apply(batch).tokens
        sums = jnp.concatenate([tokens, batch["target_weights"][..., None]], -1)
        if "starts" not in batch:
            return sums.sum(1)
        return of_places(batch) @ sums

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
        """One {"loss", "tokens"} a row, of blocks that begin in it: a token's mean, or null."""
        sums = np.zeros((len(split.rows), 2))
        np.add.at(sums, examples.row_numbers, outputs[:, [0, 2]])
        return [
            {"loss": round(float(loss / count), 6) if count else None, "tokens": int(count)}
            for loss, count in sums
        ]


def with_targets(batch: Batch) -> dict[str, jax.Array]:
    """With each position's next token, and 1 where that is of the same example and to be learned.

    What is to be learned "learned" says of each token; without it all are.
    """
    ids = batch["input_ids"]
    numbers = batch.get("segment_ids", batch.get("attention_mask"))
    after = jnp.pad(numbers[:, 1:], ((0, 0), (0, 1)))
    same = (after == numbers) & (numbers > 0)
    if "learned" in batch:
        same &= jnp.pad(batch["learned"][:, 1:], ((0, 0), (0, 1))) > 0
    targets = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)))
    return {**batch, "targets": targets, "target_weights": same.astype(jnp.float32)}
