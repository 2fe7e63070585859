"""Rows that are left out for what their texts are: of another language, too long, harmful."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, Literal

import datasets

from ftjax.data.preparation.step import (
    Models,
    Outcome,
    Row,
    Splits,
    TextStep,
    Verdict,
    judged,
    texts,
)
from ftjax.data.preparation.words import PIECE, words
from ftjax.data.sources import Split
from ftjax.errors import UserError, nearest, require
from ftjax.options import Natural, Portion
from ftjax.remote import located


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class FilterLanguage(TextStep):
    """Drops texts that py3langid finds to be of another language.

    Short texts tell little: one stays unless another language is much more probable.

    Attributes:
        languages: that stay, by their ISO 639-1 codes.
        odds: a text is dropped where another language is so many times as probable as each.
    """

    languages: tuple[str, ...] = ("en",)
    odds: Annotated[float, "[1, inf)"] = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        known = _identifier().labels
        for code in self.languages:
            require(code in known, f"languages: {code!r} is not known{nearest(code, known)}")
        require(bool(self.languages), "languages is empty")

    def judge(self, row: Row) -> Verdict:
        text = "\n".join(texts(row, self.columns).values())
        ranks = dict(_identifier().rank(text))
        best = max(ranks, key=ranks.get)
        likeliest = max(ranks[code] for code in self.languages)
        if best in self.languages or ranks[best] < self.odds * likeliest:
            return Verdict(row)
        return Verdict(None, (f"language {best}",), f"probability {ranks[best]:.2f}")


@dataclass(frozen=True)
class FilterLength(TextStep):
    """Drops rows with a text of another length.

    Attributes:
        unit: "characters", or "words", of which a Chinese or Japanese character is one.
        minimum: of each text.
        maximum: of each text; 0 for none.
    """

    unit: Literal["characters", "words"] = "characters"
    minimum: Natural = 1
    maximum: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        good = not self.maximum or self.maximum >= self.minimum
        require(good, f"maximum={self.maximum} is below minimum={self.minimum}")

    def judge(self, row: Row) -> Verdict:
        for text in texts(row, self.columns).values():
            length = len(text if self.unit == "characters" else words(text))
            if length < self.minimum:
                return Verdict(None, ("too short",), f"{length} {self.unit}")
            if self.maximum and length > self.maximum:
                return Verdict(None, ("too long",), f"{length} {self.unit}")
        return Verdict(row)


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(PIECE.findall(text.casefold()))


@dataclass(frozen=True)
class FilterWords(TextStep):
    """Drops texts that have a word, or words in a row, of a list; whatever their case.

    What is Chinese or Japanese is found anywhere, the rest as whole words.

    Attributes:
        file: of the list, one entry a line; lines that begin with # are left out.
    """

    file: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.file), "file is empty: it names a list, one entry a line")
        require(bool(self._entries), f"file: {self.file} has no entries")

    @cached_property
    def _entries(self) -> dict[tuple[str, ...], str]:
        """Words of an entry → the entry."""
        try:
            lines = located(self.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"file: {self.file} cannot be read as UTF-8 text: {error}") from error
        entries = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        return {pieces: entry for entry in entries if (pieces := _pieces(entry))}

    def content(self) -> str:
        return f"{self!r} {sorted(self._entries.values())}"

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({len(entry) for entry in self._entries})

    def judge(self, row: Row) -> Verdict:
        for text in texts(row, self.columns).values():
            every = _pieces(text)
            for length in self._lengths:
                for start in range(len(every) - length + 1):
                    phrase = every[start : start + length]
                    if phrase in self._entries:
                        return Verdict(None, ("word of the list",), self._entries[phrase])
        return Verdict(row)


@dataclass(frozen=True)
class FilterClassifier(TextStep):
    """Drops rows to which a classifier gives some label.

    Attributes:
        workdir: of a finished run of ftjax whose task has labels.
        labels: that are dropped.
        threshold: where one has at least this probability.
    """

    workdir: str = ""
    labels: tuple[str, ...] = ()
    threshold: Portion = 0.5

    by_row: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.workdir), "workdir is empty: it names the folder of a trained classifier")
        require(bool(self.labels), "labels is empty: it names what is dropped")

    def apply(self, splits: Splits, models: Models | None) -> dict[str, Outcome]:
        outcomes = {}
        for name in filter(self.takes, splits):
            rows = splits[name].rows.to_list()
            joined = ["\n".join(texts(row, self.columns).values()) for row in rows]
            columns = {"text": joined, "row": [row["row"] for row in rows]}
            dataset = datasets.Dataset.from_dict(columns)
            split = Split(splits[name].file, dataset, texts=("text",))
            predictions = models.classify(self.workdir, split)
            verdicts = map(self._verdict, rows, predictions)
            outcomes[name] = judged(splits[name], rows, verdicts)
        return outcomes

    def content(self) -> None:
        """It goes by a model, which keeps what it has said."""

    def _verdict(self, row: Row, probabilities: dict[str, float]) -> Verdict:
        for label in self.labels:
            known = nearest(label, probabilities)
            require(label in probabilities, f"labels: {self.workdir} has no {label!r}{known}")
            if probabilities[label] >= self.threshold:
                return Verdict(None, (f"label {label}",), f"probability {probabilities[label]:.2f}")
        return Verdict(row)
