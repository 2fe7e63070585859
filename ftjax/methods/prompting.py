"""Hard prompts with a sentence encoder: nothing is trained, templates are chosen on validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST
from ftjax.methods.selection import Selection
from ftjax.partition import Rules
from ftjax.paths import Base

SCALE = 20.0  # of cosines, as sentence-transformers scales them; it changes no decision


@dataclass(frozen=True)
class Prompting(Selection):
    """Zero-shot classification by similarity (the dual-encoder form of Yin et al. 2019).

    A text gets the label whose filled template has the embedding most like the text's.

    Attributes:
        templates: each with "{label}" in it; the one with the best validation metric is used.
        words: what stands for each label in a template, in the labels' order; empty: their names.
    """

    templates: tuple[str, ...] = ("{label}", "This is {label}.", "A text about {label}.")
    words: tuple[str, ...] = ()

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(bool(self.templates), "method.templates must name at least one template")
        for template in self.templates:
            require("{label}" in template, f"method.templates: {template!r} lacks '{{label}}'")

    def rules(self, base: Base) -> Rules:
        return (FREEZE_REST,)

    def fill(self, template: str, names: Sequence[str]) -> list[str]:
        """The template filled with each label's word."""
        words = self.words or names
        require(
            len(words) == len(names),
            f"method.words={tuple(words)} must name {len(names)} words, for {tuple(names)}",
        )
        return [template.replace("{label}", word) for word in words]


def similarity_logits(texts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scaled cosines: texts (rows, features), labels (labels, features) → (rows, labels)."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

    return SCALE * unit(texts) @ unit(labels).T
