"""What a work folder's model says of the rows of a file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftjax import tasks
from ftjax.data.sources import read_file
from ftjax.tasks.written import Written
from ftjax.training.predictor import open_predictor
from ftjax.training.reading import PLACE, ROWS, read_config
from ftjax.workdir.records import write_text


def predict(
    workdir: Path, file: Path, overrides: Sequence[str] = (), step: int | None = None
) -> list[dict[str, Any]]:
    """The rows of a file, each with what the best model of a work folder says of it.

    Args:
        workdir: of a run that has at least one checkpoint.
        file: of rows as the model was trained on, labels not needed.
        overrides: "--config.KEY=VALUE" of what readers may change.
        step: of the checkpoint; None for the best.

    Raises:
        UserError: it is no such folder, or a row is bad.
    """
    config = read_config(workdir, overrides, (*PLACE, *ROWS))
    schema = tasks.create(config.task).schema.to_predict()
    split = read_file(file, config.data, schema)
    predictor = open_predictor(workdir, config, step)
    outputs, examples = predictor.outputs(split)
    answers = predictor.run.task.predictions(outputs, examples, split, predictor.names)
    if isinstance(predictor.run.task, Written):
        texts = predictor.written(split)
        answers = [{**row, "written": text} for row, text in zip(answers, texts, strict=True)]
    given = split.rows.remove_columns("row")
    return [{**row, **answer} for row, answer in zip(given, answers, strict=True)]


def write_predictions(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes predictions, a line of JSON each."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
