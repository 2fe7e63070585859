"""Scores of a work folder's model on a split of its data, or on another file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config import parse_override
from ftjax.data.sources import Split, load
from ftjax.errors import UserError
from ftjax.remote import located
from ftjax.training.predictor import open_predictor
from ftjax.training.reading import PLACE, ROWS, read_config
from ftjax.training.splits import read_splits
from ftjax.workdir.records import write_json


def evaluate(
    workdir: Path, split: str = "test", overrides: Sequence[str] = (), step: int | None = None
) -> dict[str, Any]:
    """Scores the best model of a work folder, or that of another step.

    Args:
        workdir: of a run that has at least one checkpoint.
        split: "train", "validation" or "test".
        overrides: "--config.KEY=VALUE" of what readers may change; `data.path` may be a file.
        step: of the checkpoint; None for the best.

    Returns:
        The metrics, the step, and what file was read.

    Raises:
        UserError: it is no such folder, or the data has no such split.
    """
    config = read_config(workdir, overrides, (*PLACE, *ROWS))
    rows = _read(config, split, dict(map(parse_override, overrides)))
    predictor = open_predictor(workdir, config, step)
    outputs, examples = predictor.outputs(rows)
    scores = predictor.run.task.score(outputs, examples, rows, predictor.names)
    scores |= predictor.written_scores(rows)
    return scores | {"step": predictor.step, "data": rows.file}


def write_scores(workdir: Path, split: str, step: int | None, scores: Mapping[str, Any]) -> Path:
    """Writes scores into the work folder; returns the file."""
    of_step = "" if step is None else f"_step_{step}"
    file = workdir / f"evaluate_{split}{of_step}.json"
    write_json(file, scores)
    return file


def _read(config: ConfigDict, split: str, changes: Mapping[str, Any]) -> Split:
    task = tasks.create(config.task)
    config.data.update({"streaming": False, "mixture": changes.get("data.mixture", ())})
    if "data.path" in changes and located(str(changes["data.path"])).is_file():
        return load(config.data, task.schema)["train"]
    splits, _ = read_splits(config, task, held_out=split != "train")
    if split not in splits:
        raise UserError(f"--split {split}: the data has {', '.join(splits)}")
    return splits[split]
