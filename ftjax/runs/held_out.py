"""The end of a run: what is said of each held-out row, and what to doubt of it all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.evaluation.written_answers import written_scores
from ftjax.generation.text import Generator, Text
from ftjax.paths import Flat
from ftjax.runs.predictions import write_predictions
from ftjax.setup.diagnostics import baseline, of_result, of_training
from ftjax.setup.model import Run
from ftjax.tasks.base import Task
from ftjax.workdir.records import read_metrics

HELD_OUT = ("validation", "test")


@dataclass(frozen=True)
class HeldOut:
    """A held-out split with what the best model says of it.

    Attributes:
        name: of the split.
        split: its rows.
        examples: with targets.
        outputs: see `Task.score`.
        scores: its metrics.
        texts: what was written, by index of the row.
    """

    name: str
    split: Split
    examples: Examples
    outputs: Any
    scores: dict[str, Any]
    texts: dict[int, Text]


def write_texts(
    run: Run, params: Flat, held_out: HeldOut, generator: Generator | None = None
) -> None:
    """Writes for the rows of a split, and adds the scores of that."""
    scores = written_scores(run, params, held_out.split, generator, held_out.texts)
    held_out.scores.update(scores)


def diagnose(
    workdir: Path, task: Task, names: Sequence[str], metric: str, held_outs: Sequence[HeldOut]
) -> list[str]:
    """Writes predictions, adds to scores those of a constant answer, and says what to doubt.

    Args:
        workdir: the work folder.
        task: of the run.
        names: of labels.
        metric: that chose the best step.
        held_outs: the held-out splits.
    """
    doubts = []
    for held in held_outs:
        if constant := baseline(task, held.examples, held.split, names):
            held.scores["baseline"] = constant
        doubts += of_result(held.name, held.scores, metric, task.better[metric], names)
        if jax.process_index() == 0:
            record = (workdir, held.name, task, held.outputs, held.examples, held.split)
            write_predictions(*record, names, held.texts)
    if jax.process_index() == 0:
        doubts += of_training(read_metrics(workdir / "metrics.jsonl"))
    return doubts
