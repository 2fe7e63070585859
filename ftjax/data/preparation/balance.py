"""As many training rows of each label, or nearly."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ftjax.data.preparation.splits import strata
from ftjax.data.preparation.step import (
    Models,
    Outcome,
    Row,
    TrainingStep,
    Verdict,
    grown,
    judged,
)
from ftjax.data.sources import Split
from ftjax.options import Portion


@dataclass(frozen=True)
class _Balance(TrainingStep):
    """Draws rows of each label.

    Attributes:
        ratio: of the rarest label's rows to the most frequent one's, at least.
    """

    ratio: Portion = 1.0

    def drawn(self, split: Split) -> tuple[np.ndarray, np.ndarray, Counter]:
        """Label of each row, a random order of rows, and how many each label has."""
        labels = np.array(strata(split))
        order = np.random.default_rng(self.seed).permutation(len(labels))
        return labels, order, Counter(labels.tolist())


@dataclass(frozen=True)
class Oversample(_Balance):
    """Repeats rows of labels that have few, each as often as the others but for one time."""

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        labels, order, counts = self.drawn(split)
        least = round(self.ratio * max(counts.values()))
        more: list[int] = []
        for label in sorted(counts):
            own = order[labels[order] == label]
            more += np.resize(own, max(least - len(own), 0)).tolist()
        return grown(
            split, rows, [(rows[i], rows[i]) for i in more], (f"label {labels[i]}" for i in more)
        )


@dataclass(frozen=True)
class Undersample(_Balance):
    """Leaves out rows of labels that have many."""

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        labels, order, counts = self.drawn(split)
        most = int(min(counts.values()) / self.ratio)
        chosen: set[int] = set()
        for label in counts:
            chosen.update(order[labels[order] == label][:most].tolist())
        verdicts = (
            Verdict(row if i in chosen else None, () if i in chosen else (f"label {labels[i]}",))
            for i, row in enumerate(rows)
        )
        return judged(split, rows, verdicts)
