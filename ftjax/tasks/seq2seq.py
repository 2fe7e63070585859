"""One text from another: translation, summaries, texts of tables."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Schema, listed, shown, text
from ftjax.data.sources import Split
from ftjax.errors import UserError, nearest
from ftjax.options import Count, Positive
from ftjax.tasks.base import HIGHER, cut_to
from ftjax.tasks.rebuilding import Rebuilding
from ftjax.tasks.written import ROUGE, References, Written, summary_scores, translation_scores

METRICS = ("translation", "summary", "exact")


def other_targets(value: Any) -> list[str]:
    """A list of texts, also as text."""
    value = listed(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of texts, not {shown(value)}")
    return [text(target) for target in value]


@dataclass(frozen=True)
class Seq2Seq(Written, Rebuilding):
    """Cross-entropy of the target's tokens, given those before it and the source.

    Rows of one source are written for once, and all their targets are references of what is
    written, with the texts that a row may have in "references".

    Attributes:
        prefix: of every source, as "translate English to German: ".
        languages: of sources and targets, for models that mark them, as mBART's
            ("en_XX", "zh_CN"); empty: those of the tokenizer.
        max_target: tokens of a target.
        metrics: of what is written: "translation" (BLEU, chrF), "summary" (ROUGE) or "exact".
        tokenize: sacrebleu's tokenizer for BLEU: "13a", for Chinese "zh".
        generate: sources that are written for in scoring; 0 for none, -1 for all.
        max_new_tokens: of what is written.
        num_beams: of beam search; 1 is greedy.
    """

    prefix: str = ""
    languages: tuple[str, ...] = ()
    max_target: Annotated[int, "[2, inf)"] = 128
    metrics: Literal[tuple(METRICS)] = "translation"
    tokenize: str = "13a"
    generate: Count = -1
    max_new_tokens: Positive = 128
    num_beams: Positive = 1

    at_end: ClassVar = ("exact_match", "bleu", "chrf", *ROUGE)
    better: ClassVar = {**Rebuilding.better, **dict.fromkeys(at_end, HIGHER)}
    encoded_by: ClassVar = ("prefix", "languages", "max_target")
    answer: ClassVar = ""
    schema: ClassVar = Schema(
        {
            "source": Field(text),
            "target": Field(text, answer=True),
            "references": Field(other_targets, optional=True, answer=True),
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.languages) not in (0, 2):
            raise UserError(f"task.languages={self.languages} must be a source's and a target's")

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "decoder_ids", the target's tokens to its end; rows without targets have none."""
        self._set_languages(tokenizer)
        texts = [self.prefix + text for text in columns["source"]]
        cut, long = cut_to(tokenizer, max_length, texts)
        encoded = {"input_ids": cut["input_ids"], "cut": long}
        if "target" in columns:
            targets = tokenizer(text_target=columns["target"], verbose=False)["input_ids"]
            limit, end = self.max_target, tokenizer.eos_token_id
            encoded["decoder_ids"] = [ended(ids, end, limit) for ids in targets]
            encoded["cut"] = [a or len(b) > limit for a, b in zip(long, targets, strict=True)]
        return encoded

    def longest_written(self, max_length: int) -> int:
        return self.max_target

    @property
    def measured_written(self) -> Collection[str]:
        more = {"translation": ("bleu", "chrf"), "summary": ROUGE, "exact": ()}[self.metrics]
        return (*super().measured_written, *more) if self.generate else ()

    def generation_settings(self, tokenizer: Any) -> dict[str, Any]:
        """What is written starts with its language where targets do, or after it where they end
        with it, as `ftjax.models.bart` has it."""
        settings = super().generation_settings(tokenizer)
        if not self.languages:
            return settings
        self._set_languages(tokenizer)
        language = tokenizer.convert_tokens_to_ids(self.languages[1])
        first = tokenizer(text_target="")["input_ids"][0] == language
        marks = {"forced_first": language} if first else {"start": language, "forced_first": None}
        return {**settings, **marks}

    def _set_languages(self, tokenizer: Any) -> None:
        if not self.languages:
            return
        known = [code for code in tokenizer.get_added_vocab() if "_" in code]
        if not hasattr(tokenizer, "src_lang"):
            raise UserError("task.languages: the model's tokenizer has no languages")
        for code in self.languages:
            if code not in known:
                raise UserError(f"task.languages: {code!r} is not known{nearest(code, known)}")
        tokenizer.src_lang, tokenizer.tgt_lang = self.languages

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Nothing but what is written."""
        return [{} for _ in outputs]

    def prompts(self, split: Split) -> list[str]:
        return [self.prefix + text for text in split.column("source")]

    def references(self, split: Split) -> list[list[str]]:
        """The target of each row, and its other references."""
        targets = split.column("target")
        more = split.column("references") if split.has(["references"]) else [[]] * len(targets)
        return [[target, *others] for target, others in zip(targets, more, strict=True)]

    def written(self, texts: Sequence[str], references: References) -> dict[str, Any]:
        scores = super().written(texts, references)
        if self.metrics == "translation":
            scores |= translation_scores(texts, references, self.tokenize)
        if self.metrics == "summary":
            scores |= summary_scores(texts, references)
        return scores


def ended(ids: Sequence[int], end: int | None, limit: int) -> list[int]:
    """A target of at most `limit` tokens that ends as its tokenizer ends texts, with the language
    after the end where that is mBART's way; with `end` where it does not end them.
    """
    ids = list(ids)
    if end is not None and end not in ids[-2:]:
        ids.append(end)
    last = 2 if ids[-2:-1] == [end] else 1
    return ids if len(ids) <= limit else [*ids[: limit - last], *ids[-last:]]
