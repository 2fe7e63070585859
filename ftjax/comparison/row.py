"""A row of a comparison: one method over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftjax.comparison.statistics import wilson

HEADINGS = (
    "method",
    "trainable parameters",
    "share",
    "test accuracy [95% interval]",
    "rate",
    "seconds",
    "tokens/s",
    "peak memory",
)


@dataclass(frozen=True)
class Row:
    """One method, over its seeds.

    Attributes:
        split: that it was scored on.
        trainable: parameters that train.
        total: parameters in all.
        accuracy: mean on the test split.
        low, high: Wilson's 95% interval for the test split's size.
        deviation: standard deviation over seeds, 0 for one.
        rate: peak learning rate.
        seconds: of the training phase, without compilation and evaluation, mean.
        tokens_per_second: real tokens, mean.
        memory: peak bytes of the process, largest.
        results: each seed's result.json.
    """

    method: str
    split: str
    trainable: int
    total: int
    accuracy: float
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
        return (
            self.method,
            f"{self.trainable:,}",
            f"{self.trainable / self.total:.2%}",
            f"{self.accuracy:.3f}{spread} [{self.low:.3f}, {self.high:.3f}]",
            f"{self.rate:g}" if self.trainable else "",
            f"{self.seconds:.1f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.memory / 2**20:,.0f} MiB",
        )


def summarize(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Results of runs → a row a method, in the order they were run."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [dict(result) for result in results if result["method"] == method]
        split = "test" if "test" in runs[0]["metrics"] else "validation"
        scores = [run["metrics"][split]["accuracy"] for run in runs]
        accuracy = statistics.fmean(scores)
        low, high = wilson(accuracy, runs[0]["metrics"][split]["examples"])
        rows.append(
            Row(
                method=method,
                split=split,
                trainable=runs[0]["trainable_params"],
                total=runs[0]["total_params"],
                accuracy=accuracy,
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
