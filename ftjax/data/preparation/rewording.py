"""More training texts by models: translated there and back, or with words of a masked one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ftjax.data.preparation.augmentation import Augmentation, Text
from ftjax.data.preparation.step import Models, Outcome, Row, inputs
from ftjax.data.sources import Split
from ftjax.errors import require
from ftjax.options import NotNegative, Portion, Positive


@dataclass(frozen=True)
class BackTranslation(Augmentation):
    """Adds copies that were translated into another language and back (Sennrich et al. 2016;
    Yu et al. 2018, for augmentation).

    Attributes:
        there: a model, or a work folder of ftjax, that translates.
        back: one that translates back.
        prompt_there: what a model is given, with {text} in it; T5 wants to be told the languages.
        prompt_back: the same, of the way back.
        temperature: 0 takes the most probable tokens, and gives one copy; above it they are
            sampled.
        num_beams: of beam search, where nothing is sampled.
        max_new_tokens: of a translation.
        batch_size: texts that are translated at once.
    """

    there: str = ""
    back: str = ""
    prompt_there: str = "{text}"
    prompt_back: str = "{text}"
    temperature: NotNegative = 0.0
    num_beams: Positive = 1
    max_new_tokens: Positive = 128
    batch_size: Positive = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("there", "back"):
            require(bool(getattr(self, name)), f"{name} is empty: it names a model that translates")
            prompt = getattr(self, f"prompt_{name}")
            require("{text}" in prompt, f"prompt_{name}={prompt!r} has no {{text}}")
        distinct = self.copies == 1 or self.temperature > 0
        require(distinct, f"copies={self.copies} would be alike: set a temperature above 0")

    def content(self) -> None:
        """It goes by models, which keep what they have said."""

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        new = [(row, dict(row)) for row in rows for _ in range(self.copies)]
        for name in inputs(rows[0], self.columns):
            reworded = self._reworded([row[name] for row, _ in new], models)
            for (_, copy), text in zip(new, reworded, strict=True):
                copy[name] = text
        return self.added(split, rows, new)

    def _reworded(self, texts: list[str], models: Models | None) -> list[str]:
        """Each text there and back; as it was where a translation is empty."""
        translations = list(texts)
        for turn, way in enumerate(("there", "back")):
            prompt = getattr(self, f"prompt_{way}")
            nonempty = [i for i, text in enumerate(translations) if text.strip()]
            prompts = [prompt.replace("{text}", translations[i]) for i in nonempty]
            translated = models.generate(getattr(self, way), prompts, self._settings(turn))
            translations = [""] * len(texts)
            for i, text in zip(nonempty, translated, strict=True):
                translations[i] = text.strip()
        return [new or old for new, old in zip(translations, texts, strict=True)]

    def _settings(self, turn: int) -> Mapping[str, float]:
        names = ("temperature", "num_beams", "max_new_tokens", "batch_size")
        return {**{name: getattr(self, name) for name in names}, "seed": 2 * self.seed + turn}


@dataclass(frozen=True)
class MaskedSubstitution(Augmentation):
    """Adds copies in which a masked language model has put in other words (Wu et al. 2019).

    Words are masked together, and each is drawn by its probability among the most probable whole
    words that are not the one which stood there.

    Attributes:
        model: with a head of a masked language model.
        alpha: the share of a text's words that is replaced, one at least.
        top_k: words that are drawn from.
    """

    model: str = ""
    alpha: Portion = 0.15
    top_k: Positive = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.model), "model is empty: it names a masked language model")

    def content(self) -> None:
        """It goes by models, which keep what they have said."""

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        new = [(row, dict(row)) for row in rows for _ in range(self.copies)]
        for column, name in enumerate(inputs(rows[0], self.columns)):
            parts = [Text.of(row[name]) for row, _ in new]
            randoms = [np.random.default_rng((self.seed, column, i)) for i in range(len(new))]
            places = [self._places(t, random) for t, random in zip(parts, randoms, strict=True)]
            chosen = [i for i, masked in enumerate(places) if len(masked)]
            gaps = [between(parts[i], places[i]) for i in chosen]
            filled = models.fill(self.model, gaps, self.top_k + 1) if chosen else []
            for i, words in zip(chosen, filled, strict=True):
                for place, known in zip(places[i], words, strict=True):
                    _put(parts[i], place, known, randoms[i], self.top_k)
                new[i][1][name] = str(parts[i])
        return self.added(split, rows, new)

    def _places(self, text: Text, random: np.random.Generator) -> np.ndarray:
        count = min(len(text.words), max(1, int(self.alpha * len(text.words))))
        return np.sort(random.choice(len(text.words), count, replace=False)) if count else []


def between(text: Text, places: np.ndarray) -> list[str]:
    """What stands before, between and after the words at some places."""
    parts, start = [], 0
    for place in places:
        words, gaps = text.words[start:place], text.gaps[start : place + 1]
        parts.append(str(Text(words, gaps)))
        start = place + 1
    return [*parts, str(Text(text.words[start:], text.gaps[start:]))]


def _put(
    text: Text, place: int, known: Mapping[str, float], random: np.random.Generator, top_k: int
) -> None:
    """Puts one of the known words, but for the one that is there, in a place."""
    old = text.words[place]
    others = {word: p for word, p in known.items() if word.lower() != old.lower()}
    words = list(others)[:top_k]
    if words:
        odds = np.array([others[word] for word in words])
        new = words[random.choice(len(words), p=odds / odds.sum())]
        text.words[place] = new.capitalize() if old[0].isupper() else new
