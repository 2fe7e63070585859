"""What is read again of result.json."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError
from ftjax.formats.jsons import check, read_json
from ftjax.options import Count, Natural, NotNegative

PENDING = "pending"  # of a result: what is still to come of it


@dataclass(frozen=True)
class Result:
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
        check(path, result, Result, whole=True)
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
