"""Long texts in pieces, so that nothing is cut off at `data.max_length`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import datasets

from ftjax.data.preparation.step import (
    SHOWN,
    Models,
    Outcome,
    Row,
    Splits,
    TextStep,
    difference,
    texts,
)
from ftjax.errors import require
from ftjax.options import Positive

# Where a text is cut: behind a line, behind a sentence, behind a word.
ENDS = (r"\n+", r"[.!?]+[\"'”’)]*\s+|[。！？]+[”’）]*", r"\s+")
CUTS = tuple(re.compile(rf".+?(?:{end}|$)", re.DOTALL) for end in ENDS)


def pieces(text: str, longest: int, level: int = 0) -> list[str]:
    """Parts of at most `longest` characters, end to end: whole lines, or sentences, or words, as
    many as fit. What is longer than that alone is cut up by the next."""
    if len(text) <= longest:
        return [text]
    if level == len(CUTS):
        return [text[at : at + longest] for at in range(0, len(text), longest)]
    parts = [""]
    for whole in CUTS[level].findall(text):
        for part in pieces(whole, longest, level + 1):
            if len(parts[-1]) + len(part) <= longest:
                parts[-1] += part
            else:
                parts.append(part)
    return [part for part in parts if part]


@dataclass(frozen=True)
class CutTexts(TextStep):
    """Makes of a row with a long text several, each with a piece of it and all else the same.

    Splits are drawn before, so that no text has pieces in two.

    Attributes:
        longest: characters of a piece; a token is about four of English, and one or two of
            Chinese.
    """

    longest: Positive = 500

    by_row: ClassVar[bool] = False
    divides: ClassVar[bool] = True

    def cut(self, row: Row) -> Iterator[Row]:
        """The rows that come of one.

        Raises:
            UserError: it has several texts, or places in them.
        """
        names = list(texts(row, self.columns))
        require(len(names) == 1, f"rows have several texts ({', '.join(names)})")
        require(
            isinstance(row[names[0]], str) and "answers" not in row,
            f"{names[0]!r} is no text by itself",
        )
        for piece in pieces(row[names[0]], self.longest):
            if piece.strip():
                yield {**row, names[0]: piece.strip()}

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        outcomes = {}
        for name in filter(self.takes, splits):
            split = splits[name]
            rows, new_rows, changes, changed = split.rows.to_list(), [], [], 0
            for row in rows:
                parts = list(self.cut(row))
                new_rows += parts
                if len(parts) > 1:
                    changed += 1
                    changes += [difference(row, parts[0])] if len(changes) < SHOWN else []
            rows = datasets.Dataset.from_list(new_rows, features=split.rows.features)
            counts = {
                "changed": changed,
                "added": len(new_rows) - len(split.rows),
                "changes": changes,
            }
            outcomes[name] = Outcome(replace(split, rows=rows), counts)
        return outcomes
