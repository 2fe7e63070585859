"""Metrics of how surely labels are given, by scikit-learn where it has them."""

from collections.abc import Mapping

import numpy as np

BINS = 15  # of calibration error
TOP = (3, 5)  # labels among which the right one counts, where there are more


def of_one_label(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Metrics of rows with one label each.

    Log loss; means over labels, each against the rest, of the area under the ROC curve and of
    average precision; calibration error; accuracy of the 3 and 5 most probable labels.

    Args:
        targets: (rows,) numbers of labels.
        probabilities: (rows, labels).
    """
    guess, count = probabilities.argmax(-1), probabilities.shape[-1]
    own = np.take_along_axis(probabilities, targets[:, None], 1)
    above = (probabilities > own).sum(-1)
    return {
        "log_loss": float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()),
        **of_rankings(targets[:, None] == np.arange(count), probabilities),
        "calibration_error": calibration_error(guess == targets, probabilities.max(-1)),
        **{f"top_{k}": float((above < k).mean()) for k in TOP if k < count},
    }


def of_rankings(truth: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Means over labels of the area under the ROC curve and of average precision.

    Labels that all rows have, or none, have neither; nothing is said where that is so of all, and
    no number where scores are none.

    Args:
        truth: (rows, labels) whether a row has a label.
        scores: (rows, labels) the more, the likelier.
    """
    from sklearn import metrics as sk

    both = truth.any(0) & ~truth.all(0)
    if not both.any():
        return {}
    if not np.isfinite(scores).all():
        return {"auroc": float("nan"), "average_precision": float("nan")}
    pairs = list(zip(truth[:, both].T, scores[:, both].T, strict=True))
    return {
        "auroc": float(np.mean([sk.roc_auc_score(*pair) for pair in pairs])),
        "average_precision": float(np.mean([sk.average_precision_score(*p) for p in pairs])),
    }


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
