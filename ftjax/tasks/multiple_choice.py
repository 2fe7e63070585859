"""One of several texts that goes with a text: answers to a question, endings of a story."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax, softmax

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Row, Schema, label_name, text, texts
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.tasks.base import Apply, Array, Batch, Task, directions, were_cut

NONE = -1e9  # what is said of a choice that a row does not have


def choices(found: Any) -> list[dict[str, str]]:
    """Texts, or {"text": texts, "label": names} as ARC has them: each with its name, or none."""
    names = None
    if isinstance(found, Mapping):
        found, names = found.get("text"), found.get("label")
    found = texts(found)
    names = [""] * len(found) if names is None else list(map(str, names))
    if len(names) != len(found):
        raise ValueError(f"has {len(found)} texts and {len(names)} labels")
    return [{"text": text, "name": name} for text, name in zip(found, names, strict=True)]


def check(row: Row) -> None:
    number_of(row["label"], row["choices"])


def number_of(label: str, choices: Sequence[Mapping[str, str]]) -> int:
    """The number of the right choice, given by its name or its text, or else as a number from 0 or
    a letter."""
    for key in ("name", "text"):
        every = [choice[key] for choice in choices]
        if label in every:
            return every.index(label)
    letter = ord(label) - ord("A") if len(label) == 1 and label.isalpha() else -1
    number = int(label) if label.isdigit() else letter
    if not 0 <= number < len(choices):
        raise ValueError(f"label {label!r} is none of the {len(choices)} choices")
    return number


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Softmax over one output a choice, each read with the text before it; cross-entropy.

    Rows may have different numbers of choices.
    """

    best_metric = "accuracy"
    encoded_by: ClassVar = ()
    better: ClassVar = directions(("accuracy",))
    packs = False
    group = 2
    schema: ClassVar = Schema(
        {
            "text": Field(text),
            "choices": Field(choices, says=True),
            "label": Field(label_name, answer=True),
        },
        check,
    )
    arrays: ClassVar = {"labels": Array("example", "int32")}

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "choice"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """A pair a choice; where it is too long the text is cut, from its start on."""
        counts = [len(choices) for choices in columns["choices"]]
        first = [t for t, n in zip(columns["text"], counts, strict=True) for _ in range(n)]
        second = [choice["text"] for choices in columns["choices"] for choice in choices]
        cut = tokenizer(first, second, truncation=True, max_length=max_length)
        ends = np.cumsum([0, *counts])

        def grouped(flat: Sequence[Any]) -> list[Sequence[Any]]:
            return [flat[a:b] for a, b in pairwise(ends)]

        found = {
            name: grouped(cut[name]) for name in ("input_ids", "token_type_ids") if name in cut
        }
        return {**found, "cut": [any(each) for each in grouped(were_cut(cut))]}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        pairs = zip(split.column("label"), split.column("choices"), strict=True)
        labels = np.array([number_of(*pair) for pair in pairs], np.int32)
        return replace(examples, arrays={"labels": labels})

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """(rows, choices)."""
        return jnp.where(batch["attention_mask"].any(-1), apply(batch), NONE)

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ weighted cross-entropies and Σ weights."""
        logits = self.outputs(apply, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean loss and accuracy."""
        labels = examples.arrays["labels"]
        chances = log_softmax(outputs, -1)
        return {
            "loss": float(-np.take_along_axis(chances, labels[:, None], 1).mean()),
            "accuracy": float((outputs.argmax(-1) == labels).mean()),
            "examples": len(labels),
        }

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"choice", "answer", "probabilities"} a row; choices are counted from 0."""
        rows = zip(outputs.argmax(-1), softmax(outputs, -1), split.column("choices"), strict=True)
        return [
            {
                "choice": int(best),
                "answer": choices[best]["text"],
                "probabilities": [round(float(p), 6) for p in chances[: len(choices)]],
            }
            for best, chances, choices in rows
        ]
