"""BERT's pretraining: masked tokens, and whether the second half of a text follows the first."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.draws import Draws
from ftjax.data.encode import Columns, Examples, Ragged, ragged
from ftjax.data.loading import Vary
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.tasks.base import HIGHER, Apply, Array, Batch
from ftjax.tasks.masked_lm import MaskedLM, with_positions, with_words

END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


@dataclass(frozen=True)
class NextSentence(MaskedLM):
    """The sum of both cross-entropies (Devlin et al. 2019, section 3.1).

    A text is halved at the end of a sentence; half of the second halves, drawn every epoch, are
    those of other texts.
    """

    better: ClassVar = {**MaskedLM.better, "next_sentence_accuracy": HIGHER}
    encoded_by: ClassVar = ()
    by_token: ClassVar = False
    arrays: ClassVar = {**MaskedLM.arrays, "labels": Array("example", "int32")}

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "pretraining"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """Both halves, with "_word" and "token_type_ids"."""
        first, second = zip(*map(halves, columns["text"]), strict=True)
        encoded = with_words(tokenizer, [list(first), list(second)], max_length)
        if "token_type_ids" not in encoded:
            raise UserError(
                "task.name=next_sentence: the model's tokenizer does not tell first from second "
                "texts by token types, as BERT's does"
            )
        return encoded

    def variation(self, tokenizer: Any) -> Vary:
        """Second halves exchanged, and tokens masked."""
        mask = super().variation(tokenizer)

        def vary(examples: Examples, draws: Draws) -> Examples:
            return mask(exchanged(examples, draws.generator()), draws)

        return Vary(vary)

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ over examples of the mean loss of the row's masked tokens and the pair's, and how many
        examples."""
        outputs = self.outputs(apply, batch)
        weights = batch["weights"]
        losses = outputs[..., 0] / jnp.maximum(outputs[..., 2], 1) + outputs[..., 3]
        return Loss(jnp.sum(losses * weights), jnp.sum(weights))

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """As of `masked_lm`, and the pair's loss and hit: (..., 5)."""
        words, follows = apply(with_positions(batch, self.rate))
        loss = optax.softmax_cross_entropy_with_integer_labels(follows, batch["labels"])
        hit = (follows.argmax(-1) == batch["labels"]).astype(jnp.float32)
        return jnp.concatenate([self.of_examples(words, batch), jnp.stack([loss, hit], -1)], -1)

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """As of `masked_lm`, with the accuracy of pairs; the loss is the sum of both."""
        metrics = super().score(outputs, examples, split, names)
        follows, hits = outputs[:, 3:].astype(np.float64).mean(0)
        loss = metrics["loss"] + float(follows)
        return {**metrics, "loss": loss, "next_sentence_accuracy": float(hits)}


def halves(text: str) -> tuple[str, str]:
    """A text cut at the end of the sentence, or else at the space, that is nearest its middle."""
    ends = [at.end() for at in END.finditer(text)] + [0]
    inner = [at for at in ends if text[:at].strip() and text[at:].strip()]
    inner = inner or [at.end() for at in re.finditer(r"\s+", text.strip())] or [len(text) // 2]
    at = min(inner, key=lambda at: abs(at - len(text) / 2))
    return text[:at].strip() or text, text[at:].strip() or text


def exchanged(examples: Examples, random: np.random.Generator) -> Examples:
    """Half of the second halves are another example's, cut to what fits; "labels" is 1 there.

    0 is for what follows, as in Hugging Face's models.
    """
    count, ids = len(examples), examples.ids
    second = Ragged(examples.tokens["token_type_ids"], ids.offsets)
    words = Ragged(examples.tokens["_word"], ids.offsets)
    cuts = np.array([int(np.argmax(second[i] > 0)) for i in range(count)])
    other = (np.arange(count) + random.integers(1, max(count, 2), count)) % count
    labels = ((random.random(count) < 0.5) & (other != np.arange(count))).astype(np.int32)
    longest = int(ids.lengths.max(initial=0))
    columns: dict[str, list[np.ndarray]] = {"ids": [], "token_type_ids": [], "_word": []}
    for i in range(count):
        j = other[i] if labels[i] else i
        room = longest - cuts[i]
        for name, values in (("ids", ids), ("token_type_ids", second), ("_word", words)):
            tail = values[j][cuts[j] :]
            if len(tail) > room:  # the last token ends the text
                tail = np.append(tail[: room - 1], tail[-1])
            columns[name].append(np.concatenate([values[i][: cuts[i]], tail]))
    mixed = ragged(columns.pop("ids"))
    tokens = {name: ragged(rows).values for name, rows in columns.items()}
    return replace(examples, ids=mixed, tokens=tokens, arrays={**examples.arrays, "labels": labels})
