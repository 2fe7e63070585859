"""Sentence embeddings: texts that belong together are near each other, others far."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Schema, number, text
from ftjax.data.sources import Split
from ftjax.formats.sentence_transformers.modules import pooled
from ftjax.loss import Loss
from ftjax.options import Above0
from ftjax.tasks.base import NONE, Apply, Batch, Task, cut_texts, directions
from ftjax.tasks.regression import correlation


@dataclass(frozen=True)
class Contrastive(Task):
    """Cross-entropy of each text's partner among those of the whole batch, by cosine.

    InfoNCE with the other rows' partners as negatives (Henderson et al. 2017; van den Oord et al.
    2018); under `train.accumulation` of the same part of the batch. Rows have "text" and
    "text_pair", and may have a "negative", a text that does not belong; rows of one text are read
    twice, under different dropout (SimCSE, Gao et al. 2021). A "label" is a similarity, which is
    only scored by. Without dropout both readings of a text are the same, so that rows of one text
    are validated by how far apart texts are ("uniformity", Wang and Isola 2020, and the loss);
    labelled pairs, as of STS, say more.

    Attributes:
        pooling: as of `classification`; "auto" with the folder's Dense layers after "cls" too.
        scale: that cosines are multiplied by: 1 / temperature.
        symmetric: add the loss of the text for its partner.
    """

    pooling: Literal["auto", "cls", "mean"] = "auto"
    scale: Above0 = 20.0
    symmetric: bool = False

    packs = False
    group = 2
    encoded_by: ClassVar = ()
    better: ClassVar = directions(("accuracy", "reciprocal_rank", "spearman"), ("uniformity",))
    schema: ClassVar = Schema(
        {
            "text": Field(text),
            "text_pair": Field(text, optional=True),
            "negative": Field(text, optional=True),
            "label": Field(number, optional=True, answer=True),
        }
    )

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "embedding", **pooled(folder, self.pooling)}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """A group of two or three sequences a row."""
        pair = "text_pair" if "text_pair" in columns else "text"
        names = ["text", pair, *(["negative"] if "negative" in columns else [])]
        encoded = [cut_texts(tokenizer, columns, [name], max_length) for name in names]
        groups = zip(*(text["input_ids"] for text in encoded), strict=True)
        cut = zip(*(text["cut"] for text in encoded), strict=True)
        return {"input_ids": list(map(list, groups)), "cut": list(map(any, cut))}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        if "label" not in split.rows.column_names:
            return examples
        labels = np.array(split.column("label"), np.float32)
        return replace(examples, arrays={**examples.arrays, "_label": labels})

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Embeddings of length 1: (rows, texts, features)."""
        rows, group, length = batch["input_ids"].shape
        flat = {name: batch[name].reshape(-1, length) for name in ("input_ids", "attention_mask")}
        embeddings = apply(flat)
        squares = jnp.sum(embeddings**2, 1, keepdims=True)  # 0 where there is no example
        embeddings = embeddings * jax.lax.rsqrt(jnp.maximum(squares, 1e-18))
        return embeddings.reshape(rows, group, -1)

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ weighted cross-entropies and Σ weights; places without an example are no negatives."""
        embedded, weights = self.outputs(apply, batch), batch["weights"]
        first, others = embedded[:, 0], embedded[:, 1:].swapaxes(0, 1)  # (texts - 1, rows, d)
        sims = self.scale * jnp.einsum("id,tjd->itj", first, others)
        sims = jnp.where(weights > 0, sims, NONE)
        rows = jnp.arange(len(first))
        losses = optax.softmax_cross_entropy_with_integer_labels(sims.reshape(len(first), -1), rows)
        if self.symmetric:
            back = jnp.where(weights > 0, sims[:, 0].T, NONE)
            losses = (losses + optax.softmax_cross_entropy_with_integer_labels(back, rows)) / 2
        return Loss(jnp.sum(losses * weights), jnp.sum(weights))

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """The loss over all; of pairs the rank of a text's partner among all: accuracy, and mean
        reciprocal rank. Another text that is as near comes before it, so that texts that are all
        in one place are not found. With labels, Spearman's correlation of cosines with them.
        Uniformity is log E exp(−2 ‖x − y‖²) of different texts."""
        first, second = outputs[:, 0], outputs[:, 1]
        partner = "text_pair" if "text_pair" in split.rows.column_names else "text"
        number: dict[str, int] = {}
        texts = np.array([number.setdefault(t, len(number)) for t in split.column(partner)])
        ranks, losses, near = [], [], 0.0
        for start in range(0, len(first), 1024):
            sims = first[start : start + 1024] @ second.T
            own = np.arange(start, start + len(sims))
            alike = first[own] @ first.T
            alike[np.arange(len(own)), own] = -np.inf  # a text and itself
            near += np.exp(4 * (alike.astype(np.float64) - 1)).sum()
            partners = np.take_along_axis(sims, own[:, None], 1)
            other = texts != texts[own, None]
            ranks.append((other & ~(sims < partners)).sum(1) + 1)  # what is no number is before
            scaled = self.scale * (sims - sims.max(1, keepdims=True))
            total = np.log(np.exp(scaled).sum(1))
            losses.append(total - np.take_along_axis(scaled, own[:, None], 1)[:, 0])
        rank, others = np.concatenate(ranks), len(first) * (len(first) - 1)
        metrics = {
            "loss": float(np.concatenate(losses).mean()),
            "uniformity": float(np.log(near / others)) if others else 0.0,
            "accuracy": float((rank == 1).mean()),
            "reciprocal_rank": float((1 / rank).mean()),
        }
        if "_label" in examples.arrays:
            cosines = (first * second).sum(1)
            metrics["spearman"] = correlation("spearman", cosines, examples.arrays["_label"])
        measured = self.measured(split, names)
        return {k: v for k, v in metrics.items() if k in measured} | {"examples": len(first)}

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        columns, lacking = split.rows.column_names, set()
        if "text_pair" not in columns:  # the partner is the text itself
            lacking = {"accuracy", "reciprocal_rank", "spearman"}
        elif "label" not in columns:
            lacking = {"spearman"}
        return super().measured(split, names) - lacking

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"embedding", "cosine"} a row: of its first text, with its second."""
        cosines = (outputs[:, 0] * outputs[:, 1]).sum(1)
        return [
            {"embedding": [round(float(x), 6) for x in row], "cosine": round(float(cosine), 6)}
            for row, cosine in zip(outputs[:, 0], cosines, strict=True)
        ]
