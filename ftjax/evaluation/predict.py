"""What a work folder's model says of the rows of a file, each with all that it came with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from ftjax import tasks
from ftjax.changes import ROWS
from ftjax.data.encode import unreadable
from ftjax.data.preparation.rewriting import rewritten
from ftjax.data.readers import Rows
from ftjax.data.sources import Opened, Split, open_file
from ftjax.errors import UserError
from ftjax.evaluation.predictor import Predictor, open_predictor
from ftjax.evaluation.tables import write_rows
from ftjax.parallel.agreement import first
from ftjax.tasks.written import Written
from ftjax.workdir.configuration import read_config

ROW, ERROR = "row", "error"


@dataclass(frozen=True)
class Given:
    """The rows of a file as they are, and those that can be predicted.

    Attributes:
        rows: all, in order; empty for what is no row.
        numbers: of each, as messages have it.
        errors: place among them → why a row cannot be predicted.
        split: the others.
    """

    rows: list[Mapping[str, Any]]
    numbers: list[int]
    errors: dict[int, str]
    split: Split

    @property
    def places(self) -> list[int]:
        """Where each row of the split is among all."""
        return [place for place in range(len(self.rows)) if place not in self.errors]

    def without(self, split: Split, why: Mapping[int, str]) -> "Given":
        """With a split that lacks some rows, by their places in the one before."""
        places = self.places
        errors = {**self.errors, **{places[place]: reason for place, reason in why.items()}}
        return replace(self, split=split, errors=errors).required()

    def required(self) -> "Given":
        """Raises UserError where no row can be predicted."""
        if len(self.errors) < len(self.rows):
            return self
        reason = next(iter(self.errors.values()), "there is none")
        raise UserError(f"{self.split.file} has no row that can be predicted: {reason}")


@dataclass(frozen=True)
class Predictions:
    """What is said of the rows of a file.

    Attributes:
        rows: all of them, see `predict`.
        errors: why some could not be predicted.
    """

    rows: list[dict[str, Any]]
    errors: tuple[str, ...] = ()


def predict(
    workdir: Path, file: Path, overrides: Sequence[str] = (), step: int | None = None
) -> Predictions:
    """The rows of a file, each with what the best model of a work folder says of it.

    Every row is there as it came, in order, with "row", its number in the file; one that cannot be
    predicted has "error", the reason. Where a row has a column of a name already, what is said
    comes as "predicted_" and the name. What `data.prepare` rewrites is rewritten for the model
    alone.

    Args:
        workdir: of a run that has at least one checkpoint.
        file: of rows as the model was trained on, labels not needed.
        overrides: "--config.KEY=VALUE" of what readers may change.
        step: of the checkpoint; None for the best.

    Raises:
        UserError: it is no such folder, or no row can be predicted.
    """
    config = read_config(workdir, overrides, ROWS)
    given = _read(open_file(file, config.data), tasks.create(config.task).schema.to_predict())
    given = given.without(*rewritten(given.split, config.data))
    predictor = open_predictor(workdir, config, step)
    given, answers = _answers(predictor, given)
    errors = tuple(given.errors[place] for place in sorted(given.errors))
    return Predictions(_joined(given, answers), errors)


def write_predictions(file: Path, predictions: Predictions) -> None:
    """Writes them in the form of the file's suffix: see `ftjax.evaluation.tables`."""
    first(partial(write_rows, file, predictions.rows))


def _read(opened: Opened, schema: Any) -> Given:
    """The rows of a file, those that are bad among them."""
    rows: list[Any] = []
    numbers: list[int] = []

    def recorded() -> Rows:
        for number, row in opened.read():
            rows.append(row if isinstance(row, Mapping) else {})
            numbers.append(number)
            yield number, row

    verdicts = list(replace(opened, read=recorded).checked(schema))
    errors = {i: str(each) for i, each in enumerate(verdicts) if isinstance(each, UserError)}
    kept = [each for each in verdicts if not isinstance(each, UserError)]
    split = Split.of(opened.file, datasets.Dataset.from_list(kept), schema)
    return Given(rows, numbers, errors, split).required()


def _answers(predictor: Predictor, given: Given) -> tuple[Given, list[dict[str, Any]]]:
    """What is said of each row that can be encoded."""
    run = predictor.run
    why = unreadable(given.split, run.task, run.folder, run.config.data.max_length)
    if why:
        kept = [place for place in range(len(given.split.rows)) if place not in why]
        given = given.without(replace(given.split, rows=given.split.rows.select(kept)), why)
    outputs, examples = predictor.outputs(given.split)
    answers = run.task.predictions(outputs, examples, given.split, predictor.names)
    if isinstance(run.task, Written):
        texts = predictor.written(given.split)
        answers = [row | text.said() for row, text in zip(answers, texts, strict=True)]
    return given, answers


def _joined(given: Given, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All rows with their numbers, and what is said of them or why nothing is."""
    taken = {name for row in given.rows for name in row}
    said = dict.fromkeys(name for answer in answers for name in answer)
    names = {name: _free(name, "predicted", taken) for name in said}
    number, error = (_free(name, "input", taken) for name in (ROW, ERROR))
    of_place = dict(zip(given.places, answers, strict=True))
    joined = []
    for place, (row, count) in enumerate(zip(given.rows, given.numbers, strict=True)):
        answer = {names[name]: value for name, value in of_place.get(place, {}).items()}
        if place in given.errors:
            answer = {error: given.errors[place]}
        joined.append({**row, number: count, **answer})
    return joined


def _free(name: str, before: str, taken: Iterable[str]) -> str:
    """A name that rows do not have."""
    while name in taken:
        name = f"{before}_{name}"
    return name
