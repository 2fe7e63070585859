"""What happens to rows before they are encoded: cleaned, split, balanced. Every step is counted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ftjax.data.fields import Schema
from ftjax.data.preparation import steps
from ftjax.data.preparation.personal import MaskPersonal
from ftjax.data.preparation.profile import profiles
from ftjax.data.preparation.splits import draw
from ftjax.data.preparation.step import Models, Outcome, Row, Splits, looking
from ftjax.errors import UserError

Report = list[dict[str, Any]]


def prepare(
    splits: Splits,
    settings: Mapping[str, Any],
    models: Models | None = None,
    held_out: bool = False,
) -> tuple[Splits, Report]:
    """Runs `data.prepare`'s steps and draws the splits that the source lacks.

    They are drawn before the first step that only changes training rows, or that makes several
    rows of one, or at the end.

    Args:
        splits: what the source has.
        settings: the `data` section of the configuration.
        models: for steps that ask one.
        held_out: only held-out splits are asked for: steps that change none are left out.

    Returns:
        The splits, and one {"step", "split", "rows_in", "rows_out", ...} a step and split. The
        first and the last, "source" and "prepared", have the distributions of labels and lengths.

    Raises:
        UserError: an unknown step, one that these rows cannot take, or that leaves a split
            without rows; or more rows asked for than there are.
    """
    report, drawn, prepared = profiles("source", splits), False, steps(settings["prepare"])
    for name, step in prepared:
        if (step.training_only or step.divides) and not drawn:
            splits, drawn = _drawn(splits, settings, report), True
        if step.training_only and held_out:
            continue
        try:
            outcomes = _looking(step, splits).apply(splits, models)
        except UserError as error:
            raise UserError(f"data.prepare: {name}: {error}") from error
        for split, outcome in outcomes.items():
            _note(report, name, splits, split, outcome)
        splits = {**splits, **{split: outcome.split for split, outcome in outcomes.items()}}
    if not drawn:
        splits = _drawn(splits, settings, report)
    for _, step in prepared:
        if isinstance(step, MaskPersonal):
            _conceal(report, step)
    return splits, report + profiles("prepared", splits)


def _looking(step: Any, splits: Splits) -> Any:
    """A step that looks at columns of splits, which all have the same."""
    first = next(iter(splits.values()))
    return looking(step, first.rows.column_names, first.texts, first.answers)


def _conceal(report: Report, step: MaskPersonal) -> None:
    """Takes out of the examples of all steps what this one masks."""
    for row in report:
        for example in (*row.get("examples", ()), *row.get("changes", ())):
            for name, text in example.items():
                if isinstance(text, str):
                    example[name] = step.concealed(text)


def steps_of(entries: Sequence[Any], schema: Schema) -> list[tuple[str, Any]]:
    """Names and steps, which look at the columns of rows that are not read yet."""
    columns = (tuple(schema.fields), schema.texts, schema.answers)
    named = []
    for name, step in steps(entries):
        try:
            named.append((name, looking(step, *columns)))
        except UserError as error:
            raise UserError(f"data.prepare: {name}: {error}") from error
    return named


def passed(row: Row, prepared: Iterable[tuple[str, Any]]) -> tuple[Row | None, str]:
    """A training row after steps by row; None, and the name of the one that dropped it."""
    for name, step in prepared:
        if step.takes("train"):
            try:
                row = step.judge(row).row
            except UserError as error:
                raise UserError(f"data.prepare: {name}: {error}") from error
            if row is None:
                return None, name
    return row, ""


def _drawn(splits: Splits, settings: Mapping[str, Any], report: Report) -> Splits:
    drawn = draw(splits, settings["splits"], settings["split_seed"], settings["stratify"])
    for name, split in drawn.items():
        _note(report, "split", splits, name, Outcome(split))
    return drawn


def _note(report: Report, step: str, before: Splits, name: str, outcome: Outcome) -> None:
    """A row of the report.

    Raises:
        UserError: no row is left.
    """
    came, left = len(before[name].rows) if name in before else 0, len(outcome.split.rows)
    if came and not left:
        reasons = ", ".join(outcome.counts.get("reasons", {}))
        raise UserError(f"data.prepare: {step} leaves {name} without rows ({reasons})")
    report.append(
        {"step": step, "split": name, "rows_in": came, "rows_out": left, **outcome.counts}
    )
