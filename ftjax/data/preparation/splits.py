"""Held-out splits that the source lacks, drawn from `train`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ftjax.data.lazy_split import GROUP
from ftjax.data.preparation.step import Splits
from ftjax.data.sources import Split
from ftjax.errors import UserError, require


def draw(splits: Splits, sizes: Mapping[str, float], seed: int, stratify: bool = False) -> Splits:
    """Takes test and validation rows out of `train` where they are lacking, then trims `train`.

    Rows of one group are taken together, so that a split has as nearly as many as are asked for,
    and one group at least.

    Args:
        splits: what the source has.
        sizes: rows (1 or more) or a share of `train`'s rows (below 1); 0 takes none, and leaves
            `train` the rest. With "folds", validation is "fold" of so many equal parts of what is
            not tested on: every row is in one of them.
        seed: of the one permutation that all are drawn from.
        stratify: give each split every label in the same proportion.

    Raises:
        UserError: more rows, or groups, are asked for than there are, or there are no labels to
            stratify by.
    """
    if "train" not in splits:
        return splits
    train = splits["train"]
    total = len(train.rows)
    random = np.random.default_rng(seed)
    if GROUP in train.rows.column_names:
        require(not stratify, "data.stratify goes by rows, and data.group by groups: choose one")
        order, ends = _grouped(train.column(GROUP), random)
    else:
        order, ends = random.permutation(total), np.arange(total + 1)
    if stratify:
        order = order[np.argsort(_quantiles(np.array(strata(train))[order]), kind="stable")]
    result, start = dict(splits), 0
    for name in ("test", "validation"):
        size = sizes[name]
        count = round(size * total) if size < 1 else int(size)
        if name == "validation" and sizes.get("folds"):
            first, count = _fold(splits, sizes, total - start)
            a, b = (_nearest(ends, start + number) for number in (first, first + count))
            require(a < b, f"data.splits.folds={sizes['folds']}: there are fewer groups")
            order = np.append(order[:start], np.roll(order[start:], start - a))  # it comes next
            later = np.sort((ends[ends > start] - a) % (total - start))
            ends = np.concatenate([ends[ends <= start], start + later[1:], [total]])
            count = b - a
        if name in splits or not count:
            continue
        end = _end(ends, start, count)
        chosen = order[start:end]
        result[name] = replace(train, rows=train.rows.select(np.sort(chosen)))
        start = end
    size = sizes["train"]
    count = (total - start) if not size else round(size * total) if size < 1 else int(size)
    if count >= 1 and start + count <= total:
        count = _end(ends, start, count) - start
    if count < 1 or start + count > total:
        raise UserError(
            f"{train.file} has {total} rows for training: too few for data.splits "
            f"(held out {start}, training {count})"
        )
    if start or count < total:
        chosen = np.sort(order[start : start + count])
        result["train"] = replace(train, rows=train.rows.select(chosen))
    return result


def _grouped(groups: Sequence[str], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows in a random order of their groups, and where in it groups begin, with its end."""
    _, number, sizes = np.unique(np.array(groups, object), return_inverse=True, return_counts=True)
    shuffled = random.permutation(len(sizes))
    rank = np.argsort(shuffled)
    return np.argsort(rank[number], kind="stable"), np.cumsum([0, *sizes[shuffled]])


def _end(ends: np.ndarray, start: int, count: int) -> int:
    """The end after `start`, of `ends`, that is nearest to `start + count`."""
    later = ends[ends > start]
    return _nearest(later, start + count) if len(later) else start + count


def _nearest(ends: np.ndarray, place: int) -> int:
    return int(ends[np.argmin(np.abs(ends - place))])


def _fold(splits: Splits, sizes: Mapping[str, float], rows: int) -> tuple[int, int]:
    """Where the fold that validates begins among rows, and how many it has."""
    folds, fold = sizes["folds"], sizes.get("fold", 0)
    if "validation" in splits:
        raise UserError(
            f"data.splits.folds={folds}: the data has a validation split of its own, "
            f"{splits['validation'].file}; set data.path to the file of training rows alone"
        )
    require(2 <= folds <= rows, f"data.splits.folds={folds} must be 2 to the {rows} rows there are")
    require(fold < folds, f"data.splits.fold={fold} must be below data.splits.folds={folds}")
    first, end = (round(number * rows / folds) for number in (fold, fold + 1))
    return first, end - first


def strata(split: Split) -> list[str]:
    """The label of each row.

    Raises:
        UserError: rows have no label, or one that is a number or several names.
    """
    labels = split.column("label") if "label" in split.rows.column_names else [None]
    if not all(isinstance(label, str | int) for label in labels):
        raise UserError(f"{split.file}: rows have no label of one name, to stratify or balance by")
    return list(map(str, labels))


def _quantiles(labels: np.ndarray) -> np.ndarray:
    """Where each row stands among those of its label, in (0, 1).

    In this order any run of rows has nearly each label's share, and a label's only row is in the
    middle: it stays in training, which must know all labels.
    """
    quantiles = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        quantiles[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return quantiles
