"""What relates two entities that are marked in a text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ftjax.data.encode import Columns
from ftjax.data.fields import Field, Row, Schema, label_name, text
from ftjax.tasks.base import HIGHER, Array, were_cut
from ftjax.tasks.classification import Classification

MARKED = re.compile(r"<e1>(.*?)</e1>.*<e2>(.*?)</e2>|<e2>(.*?)</e2>.*<e1>(.*?)</e1>", re.DOTALL)
TAG = re.compile(r"<(/?)(e[12])>")
SIGNS = {"e1": "@", "e2": "#"}


def check(row: Row) -> None:
    if not MARKED.search(row["text"]):
        raise ValueError("the text must have two entities, <e1>...</e1> and <e2>...</e2>")


@dataclass(frozen=True)
class Relation(Classification):
    """Softmax over relations, of a text "... <e1>rats</e1> ... <e2>cages</e2> ...".

    Attributes:
        markers: how entities are shown to the model: "signs" (@ rats @, # cages #: Zhou and Chen
            2022), "tags" (as in the text) or "none".
        pooling: "entities" puts the means over the two entities and the first token beside each
            other (after R-BERT, Wu and He 2019); others as of `classification`.
        negative: the label of no relation, which the mean F1 leaves out.
    """

    pooling: str = "entities"
    markers: Literal["signs", "tags", "none"] = "signs"
    negative: str = "Other"

    best_metric = "f1_relations"
    encoded_by: ClassVar = ("markers",)
    better: ClassVar = {**Classification.better, "f1_relations": HIGHER}
    poolings: ClassVar = ("entities", "auto", "cls", "mean")
    caches = False
    schema: ClassVar = Schema({"text": Field(text), "label": Field(label_name, answer=True)}, check)
    arrays: ClassVar = {
        "labels": Array("example", "int32"),
        "entities": Array("token", "int32"),
    }

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        if self.pooling != "entities":
            return super().head(names, folder)
        return {"head": "classification", "labels": len(names), "pooling": "entities"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "entities": 1 and 2 at tokens of the two, their markers not among them."""
        shown = [shown_entities(text, self.markers) for text in columns["text"]]
        texts = [text for text, _ in shown]
        cut = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        entities = [
            [_entity_at(spans, *offset) for offset in offsets]
            for (_, spans), offsets in zip(shown, cut["offset_mapping"], strict=True)
        ]
        return {"input_ids": cut["input_ids"], "entities": entities, "cut": were_cut(cut)}

    def metrics(
        self, logits: np.ndarray, targets: np.ndarray, names: Sequence[str]
    ) -> dict[str, Any]:
        """Those of `classification`, and "f1_relations", that of SemEval-2010 task 8.

        The mean over relations but the negative one of the F1 of both directions together, where
        a direction that is wrong is an error (Hendrickx et al. 2010, the official figure); of
        relations that rows have or are given. Names end with the direction: Cause-Effect(e1,e2).
        """
        guess = logits.argmax(1)
        kinds = np.array([re.sub(r"\(e\d,e\d\)$", "", name) for name in names])
        scores = []
        for kind in dict.fromkeys(kinds[kinds != self.negative]):
            of_kind = kinds == kind
            right = np.sum(of_kind[targets] & (guess == targets))
            if count := of_kind[targets].sum() + of_kind[guess].sum():
                scores.append(2 * right / count)
        mean = float(np.mean(scores)) if scores else 0.0
        metrics = super().metrics(logits, targets, names)
        averages = {**metrics["averages"], "f1_relations": "macro"}
        return {"f1_relations": mean, **metrics, "averages": averages}


def shown_entities(marked: str, markers: str) -> tuple[str, dict[int, tuple[int, int]]]:
    """A text with its entities shown by `markers`, and where they are: 1 or 2 → (start, end)."""
    out, spans, start = "", {}, 0
    for piece in re.split(r"\s*(</?e[12]>)\s*", marked):
        tag, end = TAG.fullmatch(piece), len(out)
        if tag:
            piece = {"signs": SIGNS[tag.group(2)], "tags": piece, "none": ""}[markers]
        out += f" {piece}" if out and piece else piece
        if not tag:
            continue
        if tag.group(1):
            spans[int(tag.group(2)[1])] = (start, end)
        else:
            start = len(out) + bool(out)
    return out, spans


def _entity_at(spans: dict[int, tuple[int, int]], start: int, stop: int) -> int:
    """1 or 2 for a token within an entity, else 0."""
    inside = (n for n, (first, end) in spans.items() if max(start, first) < min(stop, end))
    return next(inside, 0)
