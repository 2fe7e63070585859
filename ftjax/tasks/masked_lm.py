"""Masked language modelling: what masked tokens were, masked anew every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.draws import Draws
from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Schema, text
from ftjax.data.loading import Vary
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.loss import Loss
from ftjax.options import Inside
from ftjax.tasks.base import Apply, Array, Batch, Task, directions, of_places, were_cut
from ftjax.tasks.corruption import mask_tokens


@dataclass(frozen=True)
class MaskedLM(Task):
    """Cross-entropy of the tokens that are masked (Devlin et al. 2019).

    Attributes:
        rate: share of tokens that are to be found.
        whole_words: mask all tokens of a word, or none.
    """

    rate: Inside = 0.15
    whole_words: bool = False

    better: ClassVar = directions(("masked_accuracy",), ("perplexity",))
    encoded_by: ClassVar = ()
    by_token: ClassVar = True
    schema: ClassVar = Schema({"text": Field(text)})
    arrays: ClassVar = {"originals": Array("token", "int32"), "masked": Array("token", "int32")}

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "masked_lm"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "_word", each token's word, -1 for special tokens."""
        return with_words(tokenizer, [columns["text"]], max_length)

    def variation(self, tokenizer: Any) -> Vary:
        """Ids with tokens masked, and with "originals" and "masked"."""
        if tokenizer.mask_token_id is None:
            raise UserError("task.name=masked_lm: the model's tokenizer has no mask token")
        mask, vocabulary = tokenizer.mask_token_id, len(tokenizer)

        def vary(examples: Examples, draws: Draws) -> Examples:
            words = examples.tokens["_word"]
            noised = mask_tokens(
                examples.ids, words, self.rate, mask, vocabulary, draws, self.whole_words
            )
            tokens = {"originals": examples.ids.values, "masked": noised.chosen.astype(np.int32)}
            return replace(
                examples,
                ids=replace(examples.ids, values=noised.ids),
                tokens={**examples.tokens, **tokens},
            )

        return Vary(vary, lambda examples: (examples.lengths, None))

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ cross-entropies of masked tokens, and how many."""
        scores = self.scores(apply(with_positions(batch, self.rate)), batch)
        return Loss(scores[..., 0].sum(), scores[..., 2].sum())

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Σ loss, Σ hits and number of masked tokens of each example."""
        return self.of_examples(apply(with_positions(batch, self.rate)), batch)

    def scores(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Loss, hit and 1 at each masked position, 0 elsewhere: (rows, positions, 3)."""
        at = with_positions(batch, self.rate)["at_positions"]
        targets = jnp.take_along_axis(batch["originals"], at, 1)
        weights = jnp.take_along_axis(batch["masked"], at, 1).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        hits = (logits.argmax(-1) == targets).astype(jnp.float32)
        return jnp.stack([losses * weights, hits * weights, weights], -1)

    def of_examples(self, logits: jax.Array, batch: Batch) -> jax.Array:
        """Sums of `scores`: (rows, 3), or (rows, places, 3) packed."""
        at = with_positions(batch, self.rate)["at_positions"]
        own = jnp.take_along_axis(of_places(batch), at[:, None], 2)
        sums = own @ self.scores(logits, batch)
        return sums if "starts" in batch else sums[:, 0]

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean loss, perplexity exp(loss) and accuracy, of masked tokens; masks are always the
        same."""
        loss, hits, count = outputs[:, :3].astype(np.float64).sum(0)
        return {
            "loss": float(loss / max(count, 1)),
            "perplexity": float(np.exp(loss / max(count, 1))),
            "masked_accuracy": float(hits / max(count, 1)),
            "masked_tokens": int(count),
            "examples": len(outputs),
        }

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"loss", "tokens"} a row, of its masked tokens, the loss a token's mean."""
        return [
            {"loss": round(float(row[0] / max(row[2], 1)), 6), "tokens": int(row[2])}
            for row in outputs
        ]


def with_words(
    tokenizer: Any, texts: Sequence[list[str]], max_length: int, offsets: bool = False
) -> dict[str, list]:
    """Token ids of texts or pairs, with "_word", each token's word, -1 for special tokens.

    With `offsets` also "offset_mapping", where each token is in its text.

    Raises:
        UserError: the tokenizer does not say.
    """
    require(tokenizer.is_fast, "the model's tokenizer does not say which word a token is of")
    cut = tokenizer(
        *texts,
        truncation=True,
        max_length=max_length,
        return_special_tokens_mask=True,
        return_offsets_mapping=offsets,
    )
    words = []
    for number, special in enumerate(cut["special_tokens_mask"]):
        marked = zip(cut.word_ids(number), special, strict=True)
        words.append([-1 if sign or word is None else word for word, sign in marked])
    names = ("input_ids", "token_type_ids", "offset_mapping")
    encoded = {name: cut[name] for name in names if name in cut}
    if len(texts) == 1:
        encoded.pop("token_type_ids", None)
    return {**encoded, "_word": words, "cut": were_cut(cut)}


def with_positions(batch: Batch, rate: float) -> dict[str, jax.Array]:
    """With "at_positions" (rows, count), where masked tokens are, then others."""
    masked = batch["masked"]
    length = masked.shape[1]
    places = batch["starts"].shape[1] if "starts" in batch else 1
    most = min(int(np.ceil(rate * length)) + places, length)
    return {**batch, "at_positions": jnp.argsort(-masked, 1, stable=True)[:, :most]}
