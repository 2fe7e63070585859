"""What tasks share whose answers are written: prompts, references, and metrics of texts."""

import json
import re
import unicodedata
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import regex

from ftjax.data.sources import Split
from ftjax.data.templates import chosen
from ftjax.errors import UserError, nearest, summary

References = Sequence[Sequence[str]]  # of each text those that are wanted, any of them

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
OTHER = regex.compile(  # a character with its marks, or a word, of another script than Latin
    rf"([{UNSPACED}]\p{{M}}*"
    rf"|[\p{{L}}\p{{Nd}}--[\p{{Latin}}{UNSPACED}0-9]]"
    rf"[\p{{L}}\p{{M}}\p{{Nd}}--[\p{{Latin}}{UNSPACED}0-9]]*)",
    regex.V1,
)


class Written:
    """A task that is also scored by what the model writes.

    Attributes:
        generate: rows that are written for in scoring; 0 for none, -1 for all.
        max_new_tokens: of what is written.
        num_beams: of beam search; 1 is greedy.
        answer: see `exact_match`.
    """

    generate: int
    max_new_tokens: int
    num_beams: int
    answer: str

    def prompts(self, split: Split) -> list[Any]:
        """What is gone on from, one a row: texts, or chats."""
        raise NotImplementedError

    def references(self, split: Split) -> list[list[str]]:
        """What is wanted of each row, any of several texts; none where it is not scored."""
        raise NotImplementedError

    @property
    def measured_written(self) -> Collection[str]:
        """Metrics that `written` gives, where rows are written for."""
        return ("exact_match",) if self.generate else ()

    def generation_settings(self, tokenizer: Any) -> dict[str, Any]:
        """Settings of generation; the tokenizer is made ready for prompts."""
        return {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}

    def written(self, texts: Sequence[str], references: References) -> dict[str, Any]:
        """Metrics of texts."""
        return {"exact_match": exact_match(texts, references, self.answer)}


def ready(task: Any, tokenizer: Any) -> dict[str, Any]:
    """Settings of generation as a task has them; the tokenizer then writes chats as in training."""
    if template := getattr(task, "template", ""):
        tokenizer.chat_template = chosen(tokenizer, template, None)
    return task.generation_settings(tokenizer) if isinstance(task, Written) else {}


def merged(
    prompts: Sequence[Any], references: References
) -> tuple[list[Any], list[list[str]], list[list[int]]]:
    """Each prompt once, with the references of all rows that ask it, each once, and the rows."""
    rows: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        rows.setdefault(json.dumps(prompt, sort_keys=True), []).append(number)
    distinct = [
        list(dict.fromkeys(text for number in numbers for text in references[number]))
        for numbers in rows.values()
    ]
    return [prompts[numbers[0]] for numbers in rows.values()], distinct, list(rows.values())


def exact_match(texts: Sequence[str], references: References, pattern: str = "") -> float:
    """The share of texts that are as wanted, but for case and spaces.

    Args:
        texts: what was written.
        references: what is wanted of each, any of them; one in which `pattern` finds nothing does
            not count, nor a text without any other.
        pattern: a regular expression: what its last match says is compared, its first group where
            it has one, without commas in numbers; a text without a match is wrong.
    """
    pairs = [
        (
            extracted(text, pattern),
            {extracted(reference, pattern) for reference in accepted} - {None},
        )
        for text, accepted in zip(texts, references, strict=True)
    ]
    right = [text in accepted for text, accepted in pairs if accepted]
    return sum(right) / max(len(right), 1)


def extracted(text: str, pattern: str) -> str | None:
    """What is compared of a text."""
    if pattern:
        matches = list(re.finditer(pattern, text))
        if not matches:
            return None
        text = matches[-1].group(1 if matches[-1].re.groups else 0) or ""
        text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return " ".join(text.lower().split())


def translation_scores(
    texts: Sequence[str], references: References, tokenize: str
) -> dict[str, Any]:
    """BLEU and chrF by sacrebleu, 0 to 100, with the signature of each.

    Args:
        texts: what was written.
        references: of each one or several, which all count, as Papineni et al. (2002) have it.
        tokenize: sacrebleu's: "13a", "zh", "ja-mecab", "char", "flores200", ...
    """
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    streams = [
        [of_text[i] if i < len(of_text) else None for of_text in references] for i in range(most)
    ]
    try:
        bleu, chrf = BLEU(tokenize=tokenize), CHRF()
    except Exception as error:  # of an unknown name, or of a package that is not installed
        known = nearest(tokenize, BLEU.TOKENIZERS) if tokenize not in BLEU.TOKENIZERS else ""
        raise UserError(f"task.tokenize={tokenize!r}{known}: {summary(error)}") from error
    scores = {}
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        scores[name] = float(metric.corpus_score(list(texts), streams).score)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def summary_scores(texts: Sequence[str], references: References) -> dict[str, float]:
    """ROUGE-1, -2, -L and -Lsum (F-measures, means over texts, in parts of 1) by rouge-score.

    Of several references the best counts, for each kind, as `score_multi` has it. Words are
    lower-cased and stemmed as usual, those of other scripts as `_Words` has them; lines are
    sentences for ROUGE-Lsum.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), tokenizer=_Words())
    pairs = zip(references, texts, strict=True)
    scores = [scorer.score_multi(list(accepted), text) for accepted, text in pairs]
    return {
        kind: sum(score[kind].fmeasure for score in scores) / max(len(scores), 1) for kind in ROUGE
    }


class _Words:
    """rouge-score's tokenizer, which drops what is not ASCII, around words of other scripts.

    Those are runs of letters and their marks, with case folded; where no spaces are between words,
    as in Chinese, Japanese and Thai, each character.
    """

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._stemmed = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        pieces = OTHER.split(text)  # every second one is of another script
        words = [
            [unicodedata.normalize("NFC", piece).casefold()]
            if i % 2
            else self._stemmed.tokenize(piece)
            for i, piece in enumerate(pieces)
        ]
        return list(chain.from_iterable(words))
