"""What tasks with one answer a text, or a pair of texts, share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.fields import Field, Schema, label_name, text
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.sentence_transformers.modules import pooled
from ftjax.tasks.base import Array, Task


def texts_and(label: Field) -> Schema:
    """Rows of a text or a pair, and a label."""
    return Schema({"text": Field(text), "text_pair": Field(text, optional=True), "label": label})


@dataclass(frozen=True)
class Texts(Task):
    """A row of outputs for each text.

    Attributes:
        pooling: "cls" (BERT's pooler), "mean", or "auto": what the folder's sentence-transformers
            modules say (with their Dense layers, after means), else "cls".
    """

    pooling: str = "auto"

    encoded_by: ClassVar = ()
    caches: ClassVar = True
    poolings: ClassVar = ("auto", "cls", "mean")
    schema: ClassVar = texts_and(Field(label_name, answer=True))
    arrays: ClassVar = {"labels": Array("example", "int32")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in self.poolings:
            known = ", ".join(self.poolings)
            raise UserError(f"task.pooling={self.pooling!r} must be one of {known}")

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        how = pooled(folder, self.pooling)
        if how["pooling"] == "cls":  # which has a layer of its own
            how = {"pooling": "cls"}
        return {"head": "classification", "labels": len(self.output_names(names)), **how}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        return replace(examples, arrays={**examples.arrays, "labels": self.labels_of(split, names)})

    def labels_of(self, split: Split, names: Sequence[str]) -> np.ndarray:
        """What each row is to be given (rows, ...); raises as `Task.targets`."""
        raise NotImplementedError
