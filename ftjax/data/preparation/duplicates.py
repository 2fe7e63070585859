"""Texts that are there twice, or nearly, also in two splits."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from ftjax.data.preparation.step import (
    ORDER,
    WIDTH,
    Models,
    Outcome,
    Row,
    Splits,
    Verdict,
    judged,
    row_text,
    texts,
)
from ftjax.data.preparation.words import shingles
from ftjax.options import Portion, Positive, conform

PERMUTATIONS, SCHEME = 128, "affine32"
RECALL = 0.995  # of pairs as similar as the threshold; more of those that are more so
MARGIN = 0.15  # of similarities as sketches have them: more than three deviations


@dataclass(frozen=True)
class _Unique:
    """Keeps each text once, over all splits.

    Held-out splits keep theirs, so that nothing that is trained on is tested on. Of texts that
    are given different labels the first is kept.

    Attributes:
        columns: that must be alike; empty: all that hold text.
        only_training: leave held-out splits as they are, as published ones must be.
    """

    columns: tuple[str, ...] = ()
    only_training: bool = True

    def __post_init__(self) -> None:
        conform(self)

    by_row: ClassVar[bool] = False
    training_only: ClassVar[bool] = False
    divides: ClassVar[bool] = False

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        rows = {name: splits[name].rows.to_list() for name in ORDER if name in splits}
        every = [row for split_rows in rows.values() for row in split_rows]
        verdicts = self.verdicts(every, [name for name in rows for _ in rows[name]])
        outcomes = {
            name: judged(splits[name], split_rows, list(islice(verdicts, len(split_rows))))
            for name, split_rows in rows.items()
        }
        return {name: outcomes[name] for name in splits}

    def content(self) -> str | None:
        """See `RowStep.content`."""
        return repr(self)

    def stays(self, place: str) -> bool:
        """Whether rows of a split are kept whatever they are like."""
        return self.only_training and place != "train"

    def verdicts(self, rows: list[Row], splits: list[str]) -> Iterator[Verdict]:
        """Of each row, where the first of those alike is kept."""
        raise NotImplementedError

    def dropped(self, what: str, here: str, there: str, row: Row, first: Row, more: str) -> Verdict:
        """The verdict on a row that is like one that is kept."""
        where = "a row of the split" if here == there else f"a {there} row"
        other = ", of another label" if row.get("label") != first.get("label") else ""
        detail = f"row {first['row']}{more}{other}: {row_text(first, self.columns)[: WIDTH // 2]}"
        return Verdict(None, (f"{what} of {where}",), detail)


@dataclass(frozen=True)
class DropDuplicates(_Unique):
    """Texts alike but for spacing.

    Attributes:
        ignore_case: also those alike but for case.
    """

    ignore_case: bool = False

    def verdicts(self, rows: list[Row], splits: list[str]) -> Iterator[Verdict]:
        seen: dict[Any, int] = {}
        for number, row in enumerate(rows):
            every = texts(row, self.columns).values()
            every = [text.lower() for text in every] if self.ignore_case else every
            key = tuple(" ".join(text.split()) for text in every)
            first = seen.setdefault(key, number)
            if first == number or self.stays(splits[number]):
                yield Verdict(row)
            else:
                match = splits[number], splits[first], row, rows[first]
                yield self.dropped("duplicate", *match, "")


@dataclass(frozen=True)
class DropNearDuplicates(_Unique):
    """Texts whose sets of shingles have a Jaccard similarity of `threshold`, in every column.

    Candidates are found by MinHash and bands (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, 3.4), and then compared exactly: a row is dropped where it is like one that is kept.
    Texts that share half of their words with most others, as a prompt, take longer.

    Attributes:
        threshold: of the similarity, in (0, 1].
        words: of a shingle.
        characters: of a shingle of Chinese or Japanese.
    """

    threshold: Portion = 0.8
    words: Positive = 2
    characters: Positive = 3

    def verdicts(self, rows: list[Row], splits: list[str]) -> Iterator[Verdict]:
        from datasketch import MinHash, MinHashLSH

        names = self._telling(rows)
        if not names:
            return
        band = bands(self.threshold)
        index = MinHashLSH(num_perm=PERMUTATIONS, params=band)
        sets = ({s.encode("utf-8", "surrogatepass") for s in self._set(r, names[0])} for r in rows)
        sketches = np.empty((len(rows), PERMUTATIONS), np.uint32)
        for number, sketch in enumerate(
            MinHash.generator(sets, num_perm=PERMUTATIONS, scheme=SCHEME)
        ):
            row, sketches[number] = rows[number], sketch.hashvalues
            near = np.array(index.query(sketch), np.int64)
            share = (sketches[near] == sketches[number]).mean(1)  # an estimate of the similarity
            near = near[share >= self.threshold - MARGIN]
            alike = [(self._similarity(row, rows[i], names), -i) for i in near.tolist()]
            most, first = max(alike, default=(0.0, 0))
            if most < self.threshold or self.stays(splits[number]):
                index.insert(number, sketch)
                yield Verdict(row)
            else:
                match = splits[number], splits[-first], row, rows[-first]
                yield self.dropped("near-duplicate", *match, f" ({most:.2f})")

    def _telling(self, rows: list[Row]) -> list[str]:
        """The columns, that of most different texts first: candidates are found by it."""
        if not rows:
            return []
        names = list(texts(rows[0], self.columns))
        return sorted(names, key=lambda name: -len({texts(row, (name,))[name] for row in rows}))

    def _set(self, row: Row, name: str) -> frozenset[str]:
        return shingles(texts(row, (name,))[name], self.words, self.characters)

    def _similarity(self, row: Row, other: Row, names: list[str]) -> float:
        """The least similarity of a column."""
        least = 1.0
        for name in names:
            a, b = self._set(row, name), self._set(other, name)
            least = min(least, len(a & b) / len(a | b))
        return least


def bands(threshold: float) -> tuple[int, int]:
    """The number of bands, and of rows in each, that find pairs of a similarity.

    As many rows as `RECALL` allows: a pair of similarity s shares one of b bands of r rows with
    probability 1 − (1 − sʳ)ᵇ.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1
