"""What tasks with one answer a text, or a pair of texts, share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats import folder as folders

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Texts:
    """A row of outputs for each text.

    Attributes:
        pooling: "cls" (BERT's pooler), "mean", or "auto": what the folder's sentence-transformers
            configuration says, else "cls".
    """

    pooling: str = "auto"

    def __post_init__(self) -> None:
        if self.pooling not in ("auto", "cls", "mean"):
            raise UserError(f"task.pooling={self.pooling!r} must be auto, cls or mean")

    def output_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """What each output stands for."""
        return tuple(names)

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        """Arguments of the family's `Model`; `folder` is where the model is, if anywhere."""
        pooling = self.pooling
        if pooling == "auto":
            pooling = folders.pooling(folder) if folder else "cls"
        count = len(self.output_names(names))
        return {"head": "classification", "labels": count, "pooling": pooling}

    def outputs(self, apply: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
        """What the head gives: (rows, outputs), or (rows, places, outputs) packed."""
        return apply(batch)


def label_names(train: Split, labels: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    """Names of labels: those given, or those of the training split, integers in order.

    Args:
        train: the split.
        labels: all that it has.
        given: by the configuration.

    Raises:
        UserError: fewer than two labels, or one without an example.
    """
    found = set(labels)
    names = tuple(str(name) for name in (given or train.label_names))
    if not names:
        integers = all(name.lstrip("-").isdigit() for name in found)
        names = tuple(sorted(found, key=int if integers else str))
        if integers and names and names[0] == "0":
            names = tuple(str(i) for i in range(int(names[-1]) + 1))
    for name in names:
        if name not in found:
            raise UserError(
                f"{train.file}: label {name!r} has no example in the training split; "
                "leave it out of task.labels, or renumber the labels"
            )
    if len(names) < 2:
        raise UserError(f"{train.file}: classification needs two labels, found {list(names)}")
    return names


def one_number(split: Split, names: Sequence[str]) -> np.ndarray:
    """The number of each row's one label (rows,); raises as `numbers`."""
    each = numbers(split, [[label] for label in split.column("label")], names)
    return np.array([number for (number,) in each], np.int32)


def numbers(split: Split, labels: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Numbers of each row's labels.

    Raises:
        UserError: a row with a label that training does not have.
    """
    number = {name: i for i, name in enumerate(names)}
    for found, row in zip(labels, split.column("row"), strict=True):
        for label in found:
            if label not in number:
                raise UserError(
                    f"{split.file}: row {row} has label {label!r}, which training does not have "
                    f"(labels: {', '.join(names)})"
                )
    return [[number[label] for label in found] for found in labels]
