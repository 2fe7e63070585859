"""Rows as the source gives them, and steps made of their configuration."""

import datasets

from ftjax.data.preparation import create
from ftjax.data.sources import Split


def split(rows, file="made.jsonl", **more):
    """A split of rows, or of texts, numbered from 1."""
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    numbered = [{**row, "row": number} for number, row in enumerate(rows, 1)]
    return Split(file, datasets.Dataset.from_list(numbered), **more)


def applied(entry, models=None, **splits):
    """What a step makes of splits: name → split, and the counts of each."""
    _, step = create(entry)
    made = {name: rows if isinstance(rows, Split) else split(rows) for name, rows in splits.items()}
    found = step.apply(made, models)
    after = {**made, **{name: outcome.split for name, outcome in found.items()}}
    return after, {name: outcome.counts for name, outcome in found.items()}


def texts_of(split):
    return split.column("text")
