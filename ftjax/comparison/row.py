"""A row of a comparison: one method over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftjax.comparison.statistics import interval, wilson

SHARES = ("accuracy", "exact", "exact_match")  # metrics that are of so many rows out of all


@dataclass(frozen=True)
class Row:
    """One method, over its seeds.

    Attributes:
        split: that it was scored on.
        metric: that validation chose by.
        trainable: parameters that train.
        total: parameters in all.
        score: mean of the metric on the split.
        low, high: 95% interval: Wilson's for the split's size, of a metric of `SHARES`; of
            others Student's over seeds, or the score itself for one seed.
        deviation: standard deviation over seeds, 0 for one.
        rate: peak learning rate.
        seconds: of the training phase, without compilation and evaluation, mean.
        tokens_per_second: real tokens, mean.
        memory: peak bytes of the process, largest.
        results: each seed's result.json.
    """

    method: str
    split: str
    metric: str
    trainable: int
    total: int
    score: float
    low: float
    high: float
    deviation: float
    rate: float
    seconds: float
    tokens_per_second: float
    memory: int
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        spread = f" ± {self.deviation:.3f}" if len(self.results) > 1 else ""
        interval = f" [{self.low:.3f}, {self.high:.3f}]" if self.low < self.high else ""
        return (
            self.method,
            f"{self.trainable:,}",
            f"{self.trainable / self.total:.2%}",
            f"{self.score:.3f}{spread}{interval}",
            f"{self.rate:g}" if self.trainable else "",
            f"{self.seconds:.1f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.memory / 2**20:,.0f} MiB",
        )


def headings(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the cells of rows are."""
    scored = f"{rows[0].split} {rows[0].metric.replace('_', ' ')}"
    return (
        "method",
        "trainable parameters",
        "share",
        f"{scored} [95% interval]",
        "rate",
        "seconds",
        "tokens/s",
        "peak memory",
    )


def summarize(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Results of runs → a row a method, in the order they were run."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [dict(result) for result in results if result["method"] == method]
        split = "test" if "test" in runs[0]["metrics"] else "validation"
        metric = runs[0]["best_metric"]
        scores = [run["metrics"][split][metric] for run in runs]
        score, low, high = statistics.fmean(scores), *interval(scores)
        if metric in SHARES:
            low, high = wilson(score, runs[0]["metrics"][split]["examples"])
        rows.append(
            Row(
                method=method,
                split=split,
                metric=metric,
                trainable=runs[0]["trainable_params"],
                total=runs[0]["total_params"],
                score=score,
                low=low,
                high=high,
                deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
                rate=runs[0]["learning_rate"],
                seconds=statistics.fmean(run["train_seconds"] for run in runs),
                tokens_per_second=statistics.fmean(run["tokens_per_second"] for run in runs),
                memory=max(run["peak_memory_bytes"] for run in runs),
                results=runs,
            )
        )
    return rows
