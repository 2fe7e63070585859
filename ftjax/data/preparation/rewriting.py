"""Steps that rewrite rows as a part of the model: what it was trained on, it is to be asked.

They are applied to every row that a trained model reads, in whatever file it comes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets

from ftjax.data.fields import Schema
from ftjax.data.preparation import steps
from ftjax.data.preparation.step import Row
from ftjax.data.sources import Split
from ftjax.errors import UserError


def rewritten(
    split: Split, settings: Mapping[str, Any], name: str = "test"
) -> tuple[Split, dict[int, str]]:
    """A split that is not prepared, under the rewriting steps of `data.prepare`.

    Args:
        split: as it was read, perhaps without answers.
        settings: the `data` section of the configuration.
        name: the split that it stands for: steps may be for some alone.

    Returns:
        The rows that are left; and of each that is not its place in the split, and why.

    Raises:
        UserError: a step cannot take these rows.
    """
    chosen = _rewriting(settings, name, split.rows.column_names, split.texts)
    if not chosen:
        return split, {}
    left: list[Row] = []
    dropped: dict[int, str] = {}
    for place, row in enumerate(split.rows.to_list()):
        after, why = _through(row, chosen)
        if after is None:
            dropped[place] = why
        else:
            left.append(after)
    if not left:
        return replace(split, rows=split.rows.select([])), dropped
    rows = datasets.Dataset.from_list(left, features=split.rows.features)
    return replace(split, rows=rows), dropped


def rewritten_prompt(prompt: Any, settings: Mapping[str, Any], schema: Schema) -> Any:
    """A text, or turns of a chat, that a task's model goes on from, under the same steps.

    It stands for any text that the task's rows are asked by.

    Args:
        prompt: the text; turns; or {"messages": turns, ...}.
        settings: the `data` section of the configuration.
        schema: of the task's rows.

    Raises:
        ValueError: nothing is left of it.
        UserError: a step cannot take it.
    """
    if isinstance(prompt, Mapping):
        turns = rewritten_prompt(prompt["messages"], settings, schema)
        return {**prompt, "messages": turns}
    columns = [name for name in schema.texts if name not in schema.answers]
    name = columns[0]
    chosen = [
        (step_name, replace(step, columns=(name,)) if hasattr(step, "columns") else step)
        for step_name, step in _rewriting(settings, "test", columns, columns)
    ]
    after, why = _through({"row": 1, name: prompt}, chosen)
    if after is None:
        raise ValueError(why)
    return after[name]


def _rewriting(
    settings: Mapping[str, Any], where: str, columns: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, Any]]:
    """Names and steps, those of what rows do not have left out."""
    chosen = []
    for name, step in steps(settings["prepare"]):
        kind = getattr(step, "rewrites", "")
        if not kind or not step.takes(where) or (kind == "answers" and "label" not in columns):
            continue
        own = getattr(step, "columns", None)
        if own is None:
            chosen.append((name, step))
        elif there := tuple(column for column in own or texts if column in columns):
            chosen.append((name, replace(step, columns=there)))
    return chosen


def _through(row: Row, chosen: list[tuple[str, Any]]) -> tuple[Row | None, str]:
    """A row after steps; None, and why, where one drops it."""
    for name, step in chosen:
        try:
            verdict = step.judge(row)
        except UserError as error:
            raise UserError(f"data.prepare: {name}: row {row['row']}: {error}") from error
        if verdict.row is None:
            return None, f"data.prepare: {name}: {', '.join(verdict.reasons)}"
        row = verdict.row
    return row, ""
