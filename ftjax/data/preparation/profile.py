"""What splits look like, before and after: how many rows of each label, and how long."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from ftjax.data.fields import in_order
from ftjax.data.preparation.step import Splits, texts
from ftjax.data.sources import Split

BINS = 24  # of lengths, at most; the last has no end
NUMBERS = 10  # bins of labels that are numbers


def profiles(step: str, splits: Splits) -> list[dict[str, Any]]:
    """Rows of the report, one a split, with the distributions of labels and of lengths.

    Args:
        step: "source" or "prepared".
        splits: that they are of.
    """
    sizes = {name: _lengths(split) for name, split in splits.items()}
    every = np.concatenate([*sizes.values(), np.zeros(1)])
    width = _nice(np.percentile(every, 99) / BINS)
    edges = np.arange(0, min(BINS, int(every.max() // width) + 1) + 1) * width
    rows = []
    for name, split in splits.items():
        count = len(split.rows)
        row = {"step": step, "split": name, "rows_in": count, "rows_out": count, "file": split.file}
        if "label" in split.rows.column_names:
            row["labels"] = label_counts(split.column("label"))
        rows.append({**row, "lengths": _histogram(sizes[name], edges)})
    return rows


def _lengths(split: Split) -> np.ndarray:
    rows = split.rows.to_list()
    return np.array([sum(map(len, texts(row, split.texts).values())) for row in rows], np.int64)


def _histogram(lengths: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Characters of rows, all their texts together."""
    if not len(lengths):
        return {}
    counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 1), edges)
    percentiles = {"median": 50, "p95": 95, "max": 100}
    return {
        "unit": "characters",
        **{name: int(np.percentile(lengths, share)) for name, share in percentiles.items()},
        "edges": edges[:-1].tolist(),
        "counts": counts.tolist(),
    }


def label_counts(labels: list[Any]) -> dict[str, int]:
    """Rows of each label in the labels' order; of each of several; of numbers by tenths."""
    if labels and isinstance(labels[0], list):
        labels = [name for row_labels in labels for name in row_labels]
    elif labels and isinstance(labels[0], float):
        counts, edges = np.histogram(np.array(labels, float), NUMBERS)
        names = [f"{a:.3g} – {b:.3g}" for a, b in pairwise(edges)]
        return dict(zip(names, counts.tolist(), strict=True))
    counts = Counter(map(str, labels))
    return {name: counts[name] for name in in_order(counts)}


def _nice(width: float) -> int:
    """The least of 1, 2, 5, 10, 20, ... that is no less."""
    power = 10 ** max(0, math.floor(math.log10(max(width, 1))))
    return next(int(power * step) for step in (1, 2, 5, 10) if power * step >= width)
