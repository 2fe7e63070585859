"""What a work folder's model says of the rows of a file, each with all that it came with."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.changes import ROWS
from ftjax.config import in_dots
from ftjax.data.encode import unreadable
from ftjax.data.in_memory import open_rows
from ftjax.data.preparation.rewriting import rewritten
from ftjax.data.readers.rows import Reader, Rows
from ftjax.data.sources import LazySplit, Split
from ftjax.errors import UserError
from ftjax.evaluation.predictor import Predictor, open_predictor
from ftjax.evaluation.tables import check_form, write_rows
from ftjax.parallel.agreement import first
from ftjax.remote import located, path_text
from ftjax.tasks.written import Written
from ftjax.workdir.configuration import read_config
from ftjax.workdir.folder import require_other

ROW, ERROR = "row", "error"


@dataclass(frozen=True)
class Inputs:
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

    def without(self, split: Split, why: Mapping[int, str]) -> "Inputs":
        """With a split that lacks some rows, by their places in the one before."""
        places = self.places
        errors = {**self.errors, **{places[place]: reason for place, reason in why.items()}}
        return replace(self, split=split, errors=errors).required()

    def required(self) -> "Inputs":
        """Raises UserError where no row can be predicted."""
        if len(self.errors) < len(self.rows):
            return self
        reason = next(iter(self.errors.values()), "there is none")
        raise UserError(f"{self.split.file} has no row that can be predicted: {reason}")


@dataclass(frozen=True)
class Predictions:
    """What is said of rows.

    Attributes:
        rows: all of them, see `predict`.
        errors: why some could not be predicted.
    """

    rows: list[dict[str, Any]]
    errors: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of the rows."""
        import pandas

        return pandas.DataFrame(self.rows)

    def _repr_html_(self) -> str:
        return self.to_pandas()._repr_html_()


def predict(
    workdir: str | os.PathLike[str],
    rows: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    step: int | None = None,
    **keys: Any,
) -> Predictions:
    """Rows, each with what the best model of a work folder says of it.

    Every row is there as it came, in order, with "row", its number; one that cannot be
    predicted has "error", the reason. Where a row has a column of a name already, what is said
    comes as "predicted_" and the name. What `data.prepare` rewrites is rewritten for the model
    alone.

    Args:
        workdir: of a run that has at least one checkpoint.
        rows: as the model was trained on, labels not needed: a file, mappings, a pandas.DataFrame
            or a datasets.Dataset.
        output: a file to write, in the form of its suffix: see `ftjax.evaluation.tables`.
        step: of the checkpoint; None for the best.
        **keys: dotted names of what readers may change, as `**{"mesh.data": 2}`.

    Raises:
        UserError: it is no such folder, or no row can be predicted.
    """
    workdir = located(workdir)
    if output is not None:
        check_form(output := Path(path_text(output)))
        if isinstance(rows, str | os.PathLike):
            require_other(output, workdir, Path(rows))
    config = read_config(workdir, in_dots(keys), ROWS)
    inputs = _inputs(open_rows(rows, config.data), config)
    predictions = _predicted(inputs, lambda: open_predictor(workdir, config, step))
    if output is not None:
        first(partial(write_rows, output, predictions.rows))
    return predictions


def predict_rows(predictor: Predictor, rows: Any) -> Predictions:
    """As `predict`, by a model that is in place."""
    config = predictor.run.config
    return _predicted(_inputs(open_rows(rows, config.data), config), lambda: predictor)


def _predicted(inputs: Inputs, open_model: Callable[[], Predictor]) -> Predictions:
    """What is said of rows; they are looked through before the model is opened."""
    inputs, answers = _answers(open_model(), inputs)
    errors = tuple(inputs.errors[place] for place in sorted(inputs.errors))
    return Predictions(_joined(inputs, answers), errors)


def _inputs(unread: LazySplit, config: ConfigDict) -> Inputs:
    """Rows, those that are bad among them, rewritten as `data.prepare` says."""
    schema = tasks.create(config.task).schema.to_predict()
    rows: list[Any] = []
    numbers: list[int] = []

    def recorded() -> Rows:
        for number, row in unread.reader.rows():
            rows.append(row if isinstance(row, Mapping) else {})
            numbers.append(number)
            yield number, row

    verdicts = list(replace(unread, reader=Reader(recorded)).checked(schema))
    errors = {
        i: str(verdict) for i, verdict in enumerate(verdicts) if isinstance(verdict, UserError)
    }
    good = [verdict for verdict in verdicts if not isinstance(verdict, UserError)]
    split = Split.of(unread.file, datasets.Dataset.from_list(good), schema)
    inputs = Inputs(rows, numbers, errors, split).required()
    return inputs.without(*rewritten(inputs.split, config.data))


def _answers(predictor: Predictor, inputs: Inputs) -> tuple[Inputs, list[dict[str, Any]]]:
    """What is said of each row that can be encoded."""
    run = predictor.run
    why = unreadable(inputs.split, run.task, run.folder, run.config.data.max_length)
    if why:
        readable = [place for place in range(len(inputs.split.rows)) if place not in why]
        inputs = inputs.without(replace(inputs.split, rows=inputs.split.rows.select(readable)), why)
    outputs, examples = predictor.outputs(inputs.split)
    answers = run.task.predictions(outputs, examples, inputs.split, predictor.names)
    if isinstance(run.task, Written):
        texts = predictor.written(inputs.split)
        answers = [row | text.row() for row, text in zip(answers, texts, strict=True)]
    return inputs, answers


def _joined(inputs: Inputs, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All rows with their numbers, and what is said of them or why nothing is."""
    taken = {name for row in inputs.rows for name in row}
    said = dict.fromkeys(name for answer in answers for name in answer)
    names = {name: _free(name, "predicted", taken) for name in said}
    number, error = (_free(name, "input", taken) for name in (ROW, ERROR))
    of_place = dict(zip(inputs.places, answers, strict=True))
    joined = []
    for place, (row, count) in enumerate(zip(inputs.rows, inputs.numbers, strict=True)):
        answer = {names[name]: value for name, value in of_place.get(place, {}).items()}
        if place in inputs.errors:
            answer = {error: inputs.errors[place]}
        joined.append({**row, number: count, **answer})
    return joined


def _free(name: str, before: str, taken: Iterable[str]) -> str:
    """A name that rows do not have."""
    while name in taken:
        name = f"{before}_{name}"
    return name
