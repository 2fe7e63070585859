"""Scores of a work folder's model on a split of its data, or on another file."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.changes import ROWS
from ftjax.config import in_dots
from ftjax.data.in_memory import open_rows
from ftjax.data.preparation.rewriting import rewritten
from ftjax.data.sources import Split, load, read_split
from ftjax.errors import UserError, require
from ftjax.evaluation import preparation_models
from ftjax.evaluation.predictor import open_predictor
from ftjax.evaluation.written_answers import check_written, is_written
from ftjax.files import write_json
from ftjax.remote import located
from ftjax.setup.diagnostics import baseline
from ftjax.setup.inputs import split_of
from ftjax.setup.splits import read_splits
from ftjax.workdir.configuration import read_config
from ftjax.workdir.fingerprints import noted


def evaluate(
    workdir: str | os.PathLike[str],
    split: str = "test",
    rows: Any = None,
    *,
    step: int | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """Scores the best model of a work folder, or that of another step.

    Args:
        workdir: of a run that has at least one checkpoint.
        split: "train", "validation" or "test".
        rows: to score in place of the split's: a file, mappings, a pandas.DataFrame or a
            datasets.Dataset.
        step: of the checkpoint; None for the best.
        **keys: dotted names of what readers may change; `data.path` may be a file.

    Returns:
        The metrics, with those of a constant answer as "baseline"; the step; what file was read,
        and, where it is not of the run's own split by content, "data_digest".

    Raises:
        UserError: it is no such folder, or the data has no such split.
    """
    workdir, changes = located(workdir), in_dots(keys)
    if isinstance(rows, str | os.PathLike):
        rows, changes = None, {**changes, "data.path": os.fspath(rows)}
    config = read_config(workdir, changes, ROWS)
    is_given = rows is not None
    rows = _given_rows(config, split, rows) if is_given else _split_rows(config, split, changes)
    predictor = open_predictor(workdir, config, step)
    if is_written(predictor.run):
        check_written(predictor.run, rows)
    outputs, examples = predictor.outputs(rows)
    scores = predictor.run.task.score(outputs, examples, rows, predictor.names)
    scores |= predictor.written_scores(rows)
    if constant := baseline(predictor.run.task, examples, rows, predictor.names):
        scores["baseline"] = constant
    arrays = {name: array for name, array in examples.arrays.items() if name != "reference"}
    fingerprint = split_of(split, replace(examples, arrays=arrays), rows)
    own = noted(workdir).get(f"{split} split")
    other = (
        own != fingerprint if own else is_given or any(key.startswith("data.") for key in changes)
    )
    digest = {"data_digest": fingerprint.rpartition(" ")[2]} if other else {}
    return scores | {"step": predictor.step, "data": rows.file, **digest}


def write_scores(workdir: Path, split: str, step: int | None, scores: Mapping[str, Any]) -> Path:
    """Writes scores into the work folder, those of other data than the run's apart.

    Args:
        workdir: the work folder.
        split: that is said to have been scored.
        step: that was asked for.
        scores: as `evaluate` gives them.

    Returns:
        The file.
    """
    name = f"evaluate_{split}" + ("" if step is None else f"_step_{step}")
    if digest := scores.get("data_digest"):
        name += f"_{re.sub(r'[^a-zA-Z0-9]+', '-', Path(scores['data']).stem)}_{digest[:6]}"
    file = workdir / f"{name}.json"
    write_json(file, scores)
    return file


def _given_rows(config: ConfigDict, split: str, rows: Any) -> Split:
    schema, skip = tasks.create(config.task).schema, config.data.on_error == "skip"
    return _rewritten(read_split([open_rows(rows, config.data)], schema, skip), config, split)


def _rewritten(rows: Split, config: ConfigDict, split: str) -> Split:
    """Rows as `data.prepare` rewrites those of a split."""
    rows, dropped = rewritten(rows, config.data, split)
    if dropped:
        reason = next(iter(dropped.values()))
        require(len(rows.rows), f"{rows.file}: no row is left ({reason})")
        print(f"{rows.file}: {len(dropped)} rows are left out, as by {reason}")
    return rows


def _split_rows(config: ConfigDict, split: str, changes: Mapping[str, Any]) -> Split:
    task = tasks.create(config.task)
    config.data.update({"streaming": False, "mixture": changes.get("data.mixture", ())})
    if "data.path" in changes and located(str(changes["data.path"])).is_file():
        config.data.group = ""  # no splits are drawn from it
        return _rewritten(load(config.data, task.schema)["train"], config, split)
    splits, _ = read_splits(config, task, preparation_models, held_out=split != "train")
    if not isinstance(split, str) or split not in splits:
        raise UserError(
            f"--split {split}: the data has {', '.join(splits)}; another file is scored by "
            "data.path=FILE"
        )
    return splits[split]
