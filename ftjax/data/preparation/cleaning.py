"""Texts and labels as they were meant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from ftjax.data.preparation.step import (
    Models,
    Outcome,
    Row,
    RowStep,
    Splits,
    TextStep,
    Verdict,
)
from ftjax.errors import UserError, require

FORMS = ("NFC", "NFKC", "NFD", "NFKD", "none")


@dataclass(frozen=True)
class Repair(TextStep):
    """Mends text by ftfy: wrong encodings, entities, control characters, ligatures, line breaks.

    Quotes and full-width characters stay, as Chinese text has them, unless asked for.

    Attributes:
        form: Unicode normalization: NFC, NFKC, NFD, NFKD or none.
        quotes: make curly quotes straight.
        width: make full-width Latin and half-width kana of usual width.
    """

    form: Literal[tuple(FORMS)] = "NFC"
    quotes: bool = False
    width: bool = False

    rewrites: ClassVar = "texts"

    @cached_property
    def _config(self) -> Any:
        import ftfy

        return ftfy.TextFixerConfig(
            normalization=None if self.form == "none" else self.form,
            uncurl_quotes=self.quotes,
            fix_character_width=self.width,
            explain=False,
        )

    def judge(self, row: Row) -> Verdict:
        import ftfy

        return self.rewrite(row, lambda text: ftfy.fix_text(text, self._config))


@dataclass(frozen=True)
class CleanLabels(RowStep):
    """Labels of one spelling.

    Attributes:
        strip: without space around them.
        case: "keep", "lower" or "upper".
        mapping: label, as the others leave it, → what it becomes; rows whose label becomes null
            are dropped.
        others: what is done with labels that the mapping lacks: "keep", "drop" or "refuse".
    """

    strip: bool = True
    case: Literal["keep", "lower", "upper"] = "keep"
    mapping: Mapping[str, str | None] | None = None
    others: Literal["keep", "drop", "refuse"] = "keep"

    rewrites: ClassVar = "answers"

    def clean(self, label: str) -> str | None:
        """What a label becomes; None where its row is dropped.

        Raises:
            UserError: the mapping lacks it, where that is refused.
        """
        label = label.strip() if self.strip else label
        label = {"keep": str, "lower": str.lower, "upper": str.upper}[self.case](label)
        table = {str(key): value for key, value in (self.mapping or {}).items()}
        if label in table or self.others == "keep":
            cleaned = table.get(label, label)
            return None if cleaned is None else str(cleaned)
        require(self.others == "drop", f"mapping: label {label!r} is not in it")
        return None

    def judge(self, row: Row) -> Verdict:
        label = row.get("label")
        if isinstance(label, int):  # the number of a choice
            return Verdict(row)
        if isinstance(label, str):
            new = self.clean(label)
        elif isinstance(label, list):
            new = sorted({name for name in map(self.clean, label) if name is not None})
        else:
            raise UserError(f"row {row['row']} has no label that is a name")
        if new is None:
            return Verdict(None, (f"label {label!r}",))
        return Verdict(row if new == label else {**row, "label": new})

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        outcomes = super().apply(splits, models)
        for name, outcome in outcomes.items():
            names = dict.fromkeys(map(self.clean, outcome.split.label_names))
            label_names = tuple(name for name in names if name is not None)
            outcomes[name] = replace(outcome, split=replace(outcome.split, label_names=label_names))
        return outcomes
