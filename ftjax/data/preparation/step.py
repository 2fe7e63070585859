"""What preparation steps share: rows, what they say, and what becomes of a split."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import datasets

from ftjax.data.sources import SPLITS, Split
from ftjax.errors import UserError, nearest, require
from ftjax.options import Seed, conform

Row = Mapping[str, Any]
Splits = dict[str, Split]
ORDER = ("test", "validation", "train")  # a text in two splits stays in the first of these
SHOWN, WIDTH = 5, 200  # examples of a report, and their characters


class Models(Protocol):
    """What steps ask of models. Who reads data lends it: data imports nothing of models."""

    def classify(self, workdir: str, split: Split) -> list[Mapping[str, float]]:
        """Label → probability, of each row, by a run's best checkpoint."""

    def generate(self, model: str, prompts: Sequence[str], settings: Mapping) -> list[str]:
        """What a language model says to each prompt."""

    def fill(
        self, model: str, texts: Sequence[Sequence[str]], count: int
    ) -> list[list[dict[str, float]]]:
        """Words and probabilities at each gap between the parts of each text."""


def spoken(value: Any) -> str | None:
    """What a string says, or words, a chat's messages, or choices; None of what says nothing."""
    if isinstance(value, str):
        return value
    items = value if isinstance(value, list) else []
    if items and all(isinstance(item, str) for item in items):
        return " ".join(items)
    if items and all(_is_message(item) for item in items):
        return "\n".join(item["content"] for item in items if isinstance(item["content"], str))
    if items and all(isinstance(item, Mapping) and "text" in item for item in items):
        return "\n".join(item["text"] for item in items)
    return None


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and "content" in value


def texts(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """What a row says, by column; raises UserError where it has none of them."""
    present = {name: spoken(row[name]) or "" for name in columns if name in row}
    require(bool(present), f"rows have no text (columns: {', '.join(row)})")
    return present


def looking(step: Any, columns: Sequence[str], texts: Sequence[str], answers: Sequence[str]) -> Any:
    """A step that looks at some columns, where it looks at any: its own, or those with text.

    Args:
        step: the step.
        columns: that rows have.
        texts: those that hold text.
        answers: those that are to be found, which training alone does not add to.

    Raises:
        UserError: its own are not among them.
    """
    own = getattr(step, "columns", None)
    if own is None:
        return step
    for name in own:
        require(name in columns, f"columns: rows have no {name!r}{nearest(name, texts)}")
    learned = answers if step.training_only else ()
    return replace(step, columns=own or tuple(name for name in texts if name not in learned))


def rewritten(row: Row, change: Callable[[str], str], columns: Sequence[str]) -> Row:
    """A row whose strings, or messages, `change` was made to; the same object if nothing changed.

    Raises:
        UserError: offsets point into the texts, or there is none that can be rewritten.
    """
    names = [name for name in texts(row, columns) if _is_free(row[name])]
    _check(row, names)
    changed = {name: _changed(row[name], change) for name in names}
    return {**row, **changed} if any(changed[name] != row[name] for name in names) else row


def _is_free(value: Any) -> bool:
    """Whether a text is a string or a chat; lists of words have tags beside them."""
    return isinstance(value, str) or (isinstance(value, list) and _is_message(value[0]))


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    return [
        {**item, "content": change(item["content"])} if isinstance(item["content"], str) else item
        for item in value
    ]


def inputs(row: Row, columns: Sequence[str]) -> list[str]:
    """Of columns those of strings, which may be augmented.

    Raises:
        UserError: offsets point into the texts, or there is none.
    """
    names = [name for name in columns if isinstance(row.get(name), str)]
    _check(row, names)
    return names


def _check(row: Row, names: Sequence[str]) -> None:
    if "answers" in row and "context" in names:
        raise UserError(
            "'answers' point into 'context', which cannot be rewritten: name other columns, "
            'such as "columns": ["question"]'
        )
    require(bool(names), f"rows have no text that can be rewritten (columns: {', '.join(row)})")


class Verdict(NamedTuple):
    """What a step says of a row.

    Attributes:
        row: as it goes on; None where it is dropped.
        reasons: why it was dropped or changed, to be counted.
        detail: what is told of an example besides.
    """

    row: Row | None
    reasons: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a step made of a split.

    Attributes:
        split: after the step.
        counts: for the report, besides rows in and out.
    """

    split: Split
    counts: Mapping[str, Any] = field(default_factory=dict)


def judged(split: Split, rows: Sequence[Row], verdicts: Iterable[Verdict]) -> Outcome:
    """A split by the verdict on each of its rows."""
    remaining, dropped, changes, reasons, changed = [], [], [], Counter(), 0
    for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        reasons.update(verdict.reasons)
        if verdict.row is None:
            if len(dropped) < SHOWN:
                reason = ": ".join(filter(None, (", ".join(verdict.reasons), verdict.detail)))
                text = _short(row_text(row, split.texts))
                dropped.append({"row": row["row"], "text": text, "reason": reason})
            continue
        if verdict.row is not row:
            changed += 1
            if len(changes) < SHOWN:
                changes.append(difference(row, verdict.row))
        remaining.append((number, verdict.row))
    if changed:
        dataset = datasets.Dataset.from_list(
            [row for _, row in remaining], features=split.rows.features
        )
    else:
        dataset = split.rows.select([number for number, _ in remaining])
    counts = {"changed": changed, "reasons": dict(reasons.most_common())}
    return Outcome(replace(split, rows=dataset), counts | {"examples": dropped, "changes": changes})


def grown(
    split: Split,
    rows: Sequence[Row],
    added: Sequence[tuple[Row, Row]],
    reasons: Iterable[str] = (),
) -> Outcome:
    """A split with more rows.

    Args:
        split: before.
        rows: its rows.
        added: the rows that come after them, each behind the one that it was made from.
        reasons: what is counted of them.
    """
    changes = [difference(source, new) for source, new in added[:SHOWN] if new is not source]
    every = [*rows, *(new for _, new in added)]
    dataset = datasets.Dataset.from_list(every, features=split.rows.features)
    counts = {"added": len(added), "reasons": dict(Counter(reasons).most_common())}
    return Outcome(replace(split, rows=dataset), counts | {"changes": changes})


def row_text(row: Row, columns: Sequence[str]) -> str:
    """What a row says, in a line."""
    return " | ".join(texts(row, columns).values())


def _short(text: str, start: int = 0) -> str:
    """`WIDTH` characters of a text from `start`, with dots where there is more."""
    start = max(0, min(start, len(text) - WIDTH))
    end = start + WIDTH
    return "…" * (start > 0) + text[start:end] + "…" * (end < len(text))


def difference(before: Row, after: Row) -> dict[str, Any]:
    """The number of a row, and where it differs from what it was."""
    names = [name for name in before if before[name] != after[name]] or list(before)
    old, new = (
        " | ".join(spoken(row[name]) or str(row[name]) for name in names) for row in (before, after)
    )
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    start = same - WIDTH // 4
    return {"row": before["row"], "before": _short(old, start), "after": _short(new, start)}


@dataclass(frozen=True)
class RowStep:
    """A step that looks at one row at a time, so that a stream can have it too.

    Attributes:
        splits: those that it is for; empty: all.
        by_row: whether a stream can have it.
        training_only: whether it only ever changes the training split.
        divides: whether it makes several rows of one, which belong in one split.
        rewrites: what it changes of a row, "texts" or "answers", so that it is a part of the model:
            rows to be predicted go through it too; empty: nothing.
    """

    splits: tuple[Literal[tuple(SPLITS)], ...] = ()

    by_row: ClassVar[bool] = True
    training_only: ClassVar[bool] = False
    divides: ClassVar[bool] = False
    rewrites: ClassVar[Literal["", "texts", "answers"]] = ""

    def __post_init__(self) -> None:
        conform(self)

    def content(self) -> str | None:
        """All that it goes by but the rows; None where that lies elsewhere, as in a model."""
        return repr(self)

    def judge(self, row: Row) -> Verdict:
        """Drops, changes or keeps a row."""
        raise NotImplementedError

    def takes(self, split: str) -> bool:
        return not self.splits or split in self.splits

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        """What becomes of each split that it is for."""
        outcomes = {}
        for name in filter(self.takes, splits):
            rows = splits[name].rows.to_list()
            outcomes[name] = judged(splits[name], rows, map(self.judge, rows))
        return outcomes


@dataclass(frozen=True)
class TextStep(RowStep):
    """A step by row that looks at texts.

    Attributes:
        columns: those that it looks at; empty: all that hold text.
    """

    columns: tuple[str, ...] = ()

    def rewrite(self, row: Row, change: Callable[[str], str]) -> Verdict:
        """A verdict of a row whose texts are changed; dropped where one is then empty."""
        new = rewritten(row, change, self.columns)
        if new is not row and any(
            old.strip() and not (spoken(new[name]) or "").strip()
            for name, old in texts(row, self.columns).items()
        ):
            return Verdict(None, ("nothing is left",))
        return Verdict(new)


@dataclass(frozen=True)
class TrainingStep:
    """A step that only ever changes the training split, after the others have been drawn from it.

    Attributes:
        seed: what it draws depends on the seed and the rows alone.
    """

    seed: Seed = 0

    by_row: ClassVar[bool] = False
    training_only: ClassVar[bool] = True
    divides: ClassVar[bool] = False

    def __post_init__(self) -> None:
        conform(self)

    def content(self) -> str | None:
        """See `RowStep.content`."""
        return repr(self)

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        """What becomes of the training split."""
        raise NotImplementedError

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        if "train" not in splits:
            return {}
        return {"train": self.change(splits["train"], splits["train"].rows.to_list(), models)}
