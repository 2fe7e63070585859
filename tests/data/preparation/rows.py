"""Rows as the source gives them, and steps made of their configuration."""

import datasets

from ftjax.data.preparation import create
from ftjax.data.preparation.step import looking
from ftjax.data.sources import Split

OTHER = ("label", "tags", "id", "answers", "row")  # what is no text, here
ANSWERS = ("target", "label", "tags", "answers")


def split(rows, file="made.jsonl", **more):
    """A split of rows, or of texts, numbered from 1."""
    rows = [{"text": row} if isinstance(row, str) else row for row in rows]
    numbered = [{**row, "row": number} for number, row in enumerate(rows, 1)]
    names = [name for name in numbered[0] if name not in OTHER]
    answers = [name for name in ANSWERS if name in numbered[0]]
    more = {"texts": tuple(names), "answers": tuple(answers), **more}
    return Split(file, datasets.Dataset.from_list(numbered), **more)


def applied(entry, models=None, **splits):
    """What a step makes of splits: name → split, and the counts of each."""
    _, step = create(entry)
    made = {name: rows if isinstance(rows, Split) else split(rows) for name, rows in splits.items()}
    of = next(iter(made.values()))
    found = looking(step, of.rows.column_names, of.texts, of.answers).apply(made, models)
    after = {**made, **{name: outcome.split for name, outcome in found.items()}}
    return after, {name: outcome.counts for name, outcome in found.items()}


def texts_of(split):
    return split.column("text")
