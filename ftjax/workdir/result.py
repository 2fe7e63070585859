"""The result of a run, as result.json holds it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.formats.jsons import check, read_json
from ftjax.html import table
from ftjax.options import Count, Natural, NotNegative

PENDING = "pending"  # of a result: what is still to come of it


@dataclass(frozen=True)
class Known:
    """What is read again of result.json, which holds more."""

    method: str
    task: str
    seed: Natural
    best_step: Count
    best_metric: str
    trainable_params: Natural
    total_params: Natural
    learning_rate: NotNegative
    train_seconds: NotNegative
    tokens_per_second: NotNegative
    peak_memory_bytes: Natural
    metrics: dict


def read_result(workdir: Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        UserError: it is absent, or damaged.
    """
    path = workdir / "result.json"
    try:
        result = read_json(path)
        check(path, result, Known, whole=True)
        for split, scores in result["metrics"].items():
            if not isinstance(scores, dict):
                raise UserError(f"{path}: metrics of {split} are not by name")
            if scores.get(result["best_metric"], "") is None:
                scores[result["best_metric"]] = math.nan
            known = isinstance(scores.get(result["best_metric"]), float)
            # What chose a step by validation, as AUROC, a test split of one label does not have.
            if not known and split == "validation" and not result.get(PENDING):
                raise UserError(f"{path}: {split} has no number {result['best_metric']!r}")
    except UserError as error:
        raise UserError(f"{error}; remove it, and the same command writes it anew") from error
    return result


class Result(Mapping[str, Any]):
    """What came of a run: the mapping that result.json holds.

    >>> result = Result({"method": "lora", "metrics": {"test": {"accuracy": 0.9}}}, Path("runs/a"))
    >>> result["method"], result.metrics["test"]["accuracy"]
    ('lora', 0.9)

    Attributes:
        workdir: of the run.
    """

    def __init__(self, values: Mapping[str, Any], workdir: Path) -> None:
        self._values, self.workdir = dict(values), workdir

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Result({self._values!r}, {str(self.workdir)!r})"

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Split → name of a metric → its value, of the best step."""
        return self._values["metrics"]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of the metrics that are numbers, a column a split."""
        import pandas

        return pandas.DataFrame(self._numbers())

    def _repr_html_(self) -> str:
        numbers = self._numbers()
        names = list(dict.fromkeys(name for scores in numbers.values() for name in scores))
        rows = [[name, *(scores.get(name) for scores in numbers.values())] for name in names]
        return table([f"{self._values.get('method', '')}: {self.workdir.name}", *numbers], rows)

    def _numbers(self) -> dict[str, dict[str, float]]:
        return {
            split: {name: value for name, value in scores.items() if isinstance(value, int | float)}
            for split, scores in self.metrics.items()
        }
