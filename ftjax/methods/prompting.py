"""Hard prompts: nothing is trained, a text is put into words that the model goes on from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ftjax.base_model import Base
from ftjax.errors import UserError, nearest, require
from ftjax.methods.method import FREEZE_REST
from ftjax.methods.selection import Selection
from ftjax.options import Natural
from ftjax.partition import Rules

SCALE = 20.0  # of cosines, as sentence-transformers scales them; it changes no decision
CONTENT_FREE = ("N/A", "", "[MASK]")  # inputs of Zhao et al. 2021
FIELDS = {"sentence": ("label",), "causal": ("text", "label"), "masked": ("text", "mask")}
FIELD = re.compile(r"\{(\w*)\}")
HEADS = {"sentence": "embedding", "causal": "causal_lm", "masked": "masked_lm"}  # of a kind
TEMPLATES = {
    "sentence": ("{label}", "This is {label}.", "A text about {label}."),
    "causal": ("{text}\nLabel: {label}",),
    "masked": ("{text}\nIt is {mask}.",),
}


@dataclass(frozen=True)
class Prompting(Selection):
    """Zero-shot and few-shot classification; rows go in buckets of length, never packed.

    "sentence": a text gets the label whose filled template has the embedding most like the text's
    (the dual-encoder form of Yin et al. 2019). "causal": the label whose words have the highest
    mean log-probability after the prompt (Brown et al. 2020). "masked": the label whose word is
    most probable at the mask (PET; Schick and Schütze 2021).

    Attributes:
        kind: one of those; "auto": by the model.
        templates: with the fields {text}, {text_pair}, and {label} or {mask}; the one with the
            best validation metric is used. Empty: the kind's own.
        words: what stands for each label, in the labels' order; empty: their names. A label's
            score is the mean over several words, as "good|great".
        instruction: before everything.
        separator: between instruction, demonstrations and the text in question.
        shots: demonstrations in a prompt, of the training split; 0: none.
        demonstrations: "random"; "balanced", equally many of each label; "nearest", those whose
            embeddings are most like the text's, the nearest last (Liu et al. 2022).
        encoder: of sentences, that nearest demonstrations are found by.
        calibrate: divide by what the labels get for inputs without content (Zhao et al. 2021).
    """

    kind: Literal["auto", *HEADS] = "auto"
    templates: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    instruction: str = ""
    separator: str = "\n\n"
    shots: Natural = 0
    demonstrations: Literal["random", "balanced", "nearest"] = "balanced"
    encoder: str = "minilm"
    calibrate: bool = False

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()

    def rules(self, base: Base) -> Rules:
        return (FREEZE_REST,)

    def templates_of(self, kind: str, pairs: bool) -> tuple[str, ...]:
        """The templates, checked, for texts or pairs of them."""
        pairs = pairs and kind != "sentence"  # an encoder takes them as they are
        fields = {*FIELDS[kind], *["text_pair"] * pairs}
        for template in self.templates:
            _check(template, kind, fields)
        text = "{text}\n{text_pair}" if pairs else "{text}"
        usual = (template.replace("{text}", text) for template in TEMPLATES[kind])
        return self.templates or tuple(usual)

    def words_of(self, names: Sequence[str]) -> list[list[str]]:
        """The words of each label."""
        require(
            len(self.words or names) == len(names),
            f"method.words={tuple(self.words)} must name {len(names)} words, for {tuple(names)}",
        )
        words = [words.split("|") for words in self.words] or [[name] for name in names]
        require(all(map(all, words)), f"method.words={tuple(self.words)} has an empty word")
        return words


def _check(template: str, kind: str, fields: set[str]) -> None:
    """Raises UserError where a template has not the fields that it should."""
    where, used = f"method.templates: {template!r}", FIELD.findall(template)
    for name in sorted(fields - set(used)):
        raise UserError(f"{where} lacks '{{{name}}}', which {kind} prompts of such rows need")
    for name in sorted(set(used) - fields):
        known = nearest(name, fields)
        raise UserError(f"{where}: {kind} prompts have no use for '{{{name}}}'{known}")
    once = used.count("mask") + used.count("label") == 1
    require(kind != "masked" or once, f"{where} has several masks")
    ends = once and template.endswith("{label}")
    require(kind != "causal" or ends, f"{where} must end with its only '{{label}}'")


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with a value in place of each field; what a value says is left alone."""
    return FIELD.sub(lambda field: values[field[1]], template)


def similarities(texts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines: texts (rows, features), others (columns, features) → (rows, columns)."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return unit(texts) @ unit(others).T


def label_means(scores: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Scores of words (rows, words), each label's next to each other → (rows, labels)."""
    starts = np.cumsum([0, *counts[:-1]])
    return np.add.reduceat(scores, starts, axis=1) / np.asarray(counts, scores.dtype)


def calibrated(scores: np.ndarray, free: np.ndarray) -> np.ndarray:
    """log(p / p̄): p of the labels, p̄ the mean of those of inputs without content.

    Args:
        scores: (rows, labels), logits.
        free: (rows, inputs, labels), logits.
    """
    mean = np.exp(_log_softmax(free)).mean(1)
    return _log_softmax(scores) - np.log(np.maximum(mean, np.finfo(mean.dtype).tiny))


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
