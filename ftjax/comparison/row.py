"""A row of a comparison: one method over its seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftjax.comparison.statistics import interval, wilson
from ftjax.html import percent
from ftjax.tasks import find
from ftjax.tasks.base import spoken

SHARES = ("accuracy", "exact", "exact_match")  # metrics that are of so many rows out of all
OF_WORDS = ("token_classification", "accuracy")  # whose words are not drawn one by one


@dataclass(frozen=True)
class Row:
    """One method, over its seeds.

    Attributes:
        split: that it was scored on.
        metric: that validation chose by.
        trainable: parameters that train.
        total: parameters in all.
        score: mean of the metric on the split.
        low, high: 95% interval, see `of_examples`; the score itself where there is none.
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

    @property
    def seeds(self) -> list[float]:
        """The score of each seed."""
        return [result["metrics"][self.split][self.metric] for result in self.results]

    @property
    def better(self) -> str:
        """Which way the metric is better."""
        return better_of(self.results[0])

    @property
    def spoken_metric(self) -> str:
        """The metric in words, with what average it is of labels."""
        return spoken(self.metric, self.results[0]["metrics"][self.split]).replace("_", " ")

    @property
    def of_examples(self) -> bool:
        """What the interval is of.

        True for a metric of `SHARES`: Wilson's, of the examples of the split, as if the mean over
        seeds were one model's share of them. What another seed would give has no part in it. False
        for others: Student's, of the mean over seeds, without the examples' part; one seed alone
        has none.
        """
        return is_share(self.results[0])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval_of": "examples" if self.of_examples else "seeds"}

    def cells(self) -> tuple[str, ...]:
        repeated = len(self.results) > 1
        return (
            self.method,
            f"{self.trainable:,}",
            percent(self.trainable / self.total),
            f"{self.score:.3f}" + (f" ± {self.deviation:.3f}" if repeated else ""),
            f"{min(self.seeds):.3f} to {max(self.seeds):.3f}" if repeated else "one",
            f"[{self.low:.3f}, {self.high:.3f}]" if self.low < self.high else "none",
            f"{self.rate:g}" if self.trainable else "",
            f"{self.seconds:.1f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.memory / 2**20:,.0f} MiB",
        )


def headings(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the cells of rows are."""
    return (
        "method",
        "trainable parameters",
        "share",
        f"{rows[0].split} {rows[0].spoken_metric}",
        "seeds",
        f"95% interval of {interval_of(rows[0])}",
        "rate",
        "seconds",
        "tokens/s",
        "peak memory",
    )


def interval_of(row: Row) -> str:
    """What a row's interval is of, in words."""
    return f"{row.split} examples" if row.of_examples else "the mean over seeds"


def better_of(result: Mapping[str, Any]) -> str:
    """Which way the metric that chose a run's best step is better."""
    return find(result["task"]).better[result["best_metric"]]


def is_share(result: Mapping[str, Any]) -> bool:
    """Whether the metric that chose a run's best step is a share of rows."""
    metric = result["best_metric"]
    return metric in SHARES and (result["task"], metric) != OF_WORDS


def examples_of(results: Sequence[Mapping[str, Any]], split: str) -> int:
    """How many examples a method is scored on, of what is written those that are written for; of
    cross-validation those of all folds."""
    counts = {}
    for result in results:
        scores, task = result["metrics"][split], find(result["task"])
        written = result["best_metric"] in task.at_end
        counts[result.get("fold")] = scores["written" if written else "examples"]
    return sum(counts.values())


def summarize(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Results of runs → a row a method, in the order they were run."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [dict(result) for result in results if result["method"] == method]
        folds = {result.get("fold") for result in runs} - {None}  # whose rows are all validated on
        metric = runs[0]["best_metric"]
        tested = all(metric in result["metrics"].get("test", {}) for result in runs)
        split = "test" if tested and not folds else "validation"
        scores = [result["metrics"][split][metric] for result in runs]
        score, low, high = statistics.fmean(scores), *interval(scores)
        if is_share(runs[0]):
            low, high = wilson(score, examples_of(runs, split))
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
                seconds=statistics.fmean(result["train_seconds"] for result in runs),
                tokens_per_second=statistics.fmean(result["tokens_per_second"] for result in runs),
                memory=max(result["peak_memory_bytes"] for result in runs),
                results=runs,
            )
        )
    return rows
