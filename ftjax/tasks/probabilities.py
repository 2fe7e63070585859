"""Metrics of how surely labels are given."""

from collections.abc import Mapping

import numpy as np
from scipy.special import log_softmax

BINS = 15  # of calibration error
TOP = (3, 5)  # labels among which the right one counts, where there are more


def of_one_label(targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Metrics of rows with one label each.

    Log loss; means over labels, each against the rest, of the area under the ROC curve and of
    average precision; calibration error; accuracy of the 3 and 5 most probable labels, of equal
    ones the first as in `argmax`. What is no number makes all of them none.

    Args:
        targets: (rows,) numbers of labels.
        logits: (rows, labels).
    """
    logits, numbers = logits.astype(np.float64), np.arange(logits.shape[1])
    chances = log_softmax(logits, 1)  # which tell apart what rounds to a probability of 1 or 0
    own = np.take_along_axis(logits, targets[:, None], 1)
    before = (logits > own) | ((logits == own) & (numbers < targets[:, None]))
    right, unknown = logits.argmax(1) == targets, np.isnan(chances).any()
    share = {f"top_{k}": before.sum(1) < k for k in TOP if k < len(numbers)}
    return {
        "log_loss": float(np.abs(np.take_along_axis(chances, targets[:, None], 1)).mean()),
        **of_rankings(targets[:, None] == numbers, chances),
        "calibration_error": calibration_error(right, np.exp(chances.max(1))),
        **{name: float("nan" if unknown else hits.mean()) for name, hits in share.items()},
    }


def of_rankings(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means over labels of the area under the ROC curve and of average precision.

    Labels that all rows have, or none, have neither; nothing is said where that is so of all, and
    no number where scores are none.

    Args:
        truth: (rows, labels) whether a row has a label.
        scores: (rows, labels) the more, the likelier.
    """
    both = np.flatnonzero(truth.any(0) & ~truth.all(0))
    if not len(both):
        return {}
    if np.isnan(scores).any():
        return {"auroc": float("nan"), "average_precision": float("nan")}
    pairs = [_of_ranking(truth[:, label], scores[:, label]) for label in both]
    auroc, precision = np.mean(pairs, 0)
    return {"auroc": float(auroc), "average_precision": float(precision)}


def _of_ranking(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision, as scikit-learn has them, which takes seven
    times as long: with a thousand labels seconds an evaluation."""
    every, positive = np.sort(scores), np.sort(scores[truth])
    below, own_below = (np.searchsorted(x, positive, "left") for x in (every, positive))
    up_to, own_up_to = (np.searchsorted(x, positive, "right") for x in (every, positive))
    others = (below - own_below + up_to - own_up_to) / 2  # of equal ones half are below
    precision = (len(positive) - own_below) / (len(every) - below)
    return float(others.mean() / (len(every) - len(positive))), float(precision.mean())


def calibration_error(right: np.ndarray, sure: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3), in `BINS` of equal width.

    Args:
        right: (answers,) whether each is right.
        sure: (answers,) its probability.
    """
    if not np.isfinite(sure).all():
        return float("nan")
    number = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = np.bincount(number, right.astype(np.float64) - sure, BINS)
    return float(np.abs(gaps).sum() / len(sure))


def ranked(labels: Mapping[str, int], rows: int) -> bool:
    """Whether `of_rankings` says anything of labels, by how many rows have each."""
    return any(0 < count < rows for count in labels.values())
