"""Intervals for what is measured on a finite test split."""

import math
import statistics
from collections.abc import Sequence

Z = 1.959963984540054  # 97.5% quantile of the standard normal


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927), for example of an accuracy.

    Args:
        share: observed, in [0, 1].
        count: of independent trials.
    """
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    half = spread * Z / (1 + Z**2 / count)
    return centre - half, centre + half


def interval(scores: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of a mean; the score itself where there is one alone."""
    from scipy import stats

    mean, count = statistics.fmean(scores), len(scores)
    if count == 1:
        return mean, mean
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(scores) / math.sqrt(count)
    return mean - half, mean + half
