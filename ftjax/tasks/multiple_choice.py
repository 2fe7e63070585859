"""One of several texts that goes with a text: answers to a question, endings of a story."""

import re
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
from ftjax.data.fields import Field, Row, Schema, name_or_number, text, texts
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.tasks.base import LEAST, NONE, Apply, Array, Batch, Task, directions, were_cut
from ftjax.tasks.probabilities import calibration_error

DIGITS = re.compile("[0-9]{1,9}")


def choices(value: Any) -> list[dict[str, str]]:
    """Texts, or {"text": texts, "label": names} as ARC has them: each with its name, or none."""
    names = None
    if isinstance(value, Mapping):
        value, names = value.get("text"), value.get("label")
    value = texts(value)
    names = [""] * len(value) if names is None else list(map(str, names))
    if len(names) != len(value):
        raise ValueError(f"has {len(value)} texts and {len(names)} labels")
    return [{"text": text, "name": name} for text, name in zip(value, names, strict=True)]


def check(row: Row) -> None:
    number_of(row["label"], row["choices"])


def number_of(label: str | int, choices: Sequence[Mapping[str, str]]) -> int:
    """The number of the right choice.

    Args:
        label: an integer is a choice's name, else its number from 0, else its text; a string a
            name, else a text, else a number or a letter.
        choices: each with its name and text.

    Raises:
        ValueError: it is none of them.
    """
    name, count = str(label), len(choices)
    names, texts = ([choice[key] for choice in choices] for key in ("name", "text"))
    if name in names:
        return names.index(name)
    if isinstance(label, int) and 0 <= label < count:
        return label
    if name in texts:
        return texts.index(name)
    if DIGITS.fullmatch(name) and int(name) < count:
        return int(name)
    letters = [chr(ord("A") + number) for number in range(count)]
    if name.isalpha() and name in letters:
        return letters.index(name)
    raise ValueError(f"label {label!r} is none of the {count} choices")


def numbers_of(
    labels: Sequence[str | int], choices: Sequence[Sequence[Mapping[str, str]]]
) -> list[int]:
    """The number of each row's right choice, see `number_of`.

    Where all labels are digits, as in a csv file, they are integers unless each is a text.
    """
    pairs = list(zip(labels, choices, strict=True))
    digits = all(isinstance(label, str) and DIGITS.fullmatch(label) for label in labels)
    if digits and not all(label in [choice["text"] for choice in row] for label, row in pairs):
        pairs = [(int(label), row) for label, row in pairs]
    return [number_of(*pair) for pair in pairs]


@dataclass(frozen=True)
class MultipleChoice(Task):
    """Softmax over one output a choice, each read with the text before it; cross-entropy.

    Rows may have different numbers of choices.
    """

    best_metric = "accuracy"
    encoded_by: ClassVar = ()
    better: ClassVar = directions(("accuracy",), ("calibration_error",))
    packs = False
    group = 2
    schema: ClassVar = Schema(
        {
            "text": Field(text),
            "choices": Field(choices, says=True),
            "label": Field(name_or_number, answer=True),
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

        groups = {
            name: grouped(cut[name]) for name in ("input_ids", "token_type_ids") if name in cut
        }
        return {**groups, "cut": [any(flags) for flags in grouped(were_cut(cut))]}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        labels = numbers_of(split.column("label"), split.column("choices"))
        return replace(examples, arrays={"labels": np.array(labels, np.int32)})

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
        """Mean loss, which is the log loss, accuracy and calibration error."""
        labels = examples.arrays["labels"]
        chances = log_softmax(outputs, 1)
        right = outputs.argmax(1) == labels
        return {
            "loss": float(-np.take_along_axis(chances, labels[:, None], 1).mean()),
            "accuracy": float(right.mean()),
            "calibration_error": calibration_error(right, np.exp(chances.max(1))),
            "examples": len(labels),
        }

    def constant(self, examples: Examples, names: Sequence[str]) -> np.ndarray:
        """The shares of places that are right: the most frequent one is said."""
        labels = examples.arrays["labels"]
        return np.tile(np.log(np.maximum(np.bincount(labels), LEAST)), (len(labels), 1))

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"choice", "answer", "probability", "probabilities"} a row; choices are counted from
        0."""
        rows = zip(outputs.argmax(1), softmax(outputs, 1), split.column("choices"), strict=True)
        return [
            {
                "choice": int(best),
                "answer": choices[best]["text"],
                "probability": round(float(chances[best]), 6),
                "probabilities": [round(float(p), 6) for p in chances[: len(choices)]],
            }
            for best, chances, choices in rows
        ]
