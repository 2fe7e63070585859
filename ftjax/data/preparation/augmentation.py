"""Easy data augmentation (Wei and Zou 2019): more training texts by small changes of words.

What is between words, as spaces and punctuation, stays where it is. Of Chinese and Japanese each
character is taken as a word.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ftjax.data.preparation import wordnet
from ftjax.data.preparation.step import Models, Outcome, Row, TrainingStep, grown, inputs
from ftjax.data.preparation.words import WORD
from ftjax.data.sources import Split
from ftjax.errors import require
from ftjax.options import Portion, Positive

Random = np.random.Generator
TRIES = 10  # words that an insertion looks up before it gives up


@dataclass
class Text:
    """A text in parts.

    Attributes:
        words: its words.
        gaps: what is before each and after the last.
    """

    words: list[str]
    gaps: list[str]

    @classmethod
    def of(cls, text: str) -> "Text":
        matches = list(WORD.finditer(text))
        ends = [0, *(match.end() for match in matches)]
        starts = [*(match.start() for match in matches), len(text)]
        gaps = [text[end:start] for end, start in zip(ends, starts, strict=True)]
        return cls([match[0] for match in matches], gaps)

    def __str__(self) -> str:
        return "".join(
            part for pair in zip(self.gaps, [*self.words, ""], strict=True) for part in pair
        )

    def insert(self, place: int, words: str) -> None:
        """Puts words before a word, or after the last."""
        at_end = place == len(self.words)
        self.words.insert(place, words)
        self.gaps.insert(place, " " if at_end else self.gaps[place])
        if not at_end:
            self.gaps[place + 1] = " "

    def remove(self, place: int) -> None:
        """Takes out a word, and one of the spaces beside it."""
        del self.words[place]
        before, after = self.gaps[place], self.gaps.pop(place + 1)
        if (before[-1:].isspace() and after[:1].isspace()) or not place:
            after = after.lstrip()
        self.gaps[place] = before + after


@dataclass(frozen=True)
class Augmentation(TrainingStep):
    """Adds changed copies of training rows, with their labels. One that is as it was is left out.

    Attributes:
        copies: of each row.
        columns: that are changed; empty: all that hold text, but for what is to be learnt.
    """

    copies: Positive = 1
    columns: tuple[str, ...] = ()

    def added(self, split: Split, rows: list[Row], new: list[tuple[Row, Row]]) -> Outcome:
        """The outcome of (row, changed copy) pairs.

        Raises:
            UserError: none is changed.
        """
        changed = [(row, copy) for row, copy in new if copy != row]
        require(bool(changed), f"none of the {len(rows)} rows could be changed")
        return grown(split, rows, changed)


@dataclass(frozen=True)
class Easy(Augmentation):
    """Adds copies with a few words changed.

    Attributes:
        alpha: α, the share of a text's words that is changed; one at least, but for deletion.
    """

    alpha: Portion = 0.1

    def alter(self, text: Text, random: Random, turn: int) -> None:
        """Changes a text in place; turns are counted over copies and rows."""
        raise NotImplementedError

    def count(self, text: Text) -> int:
        """How many words are changed."""
        return max(1, int(self.alpha * len(text.words)))

    def change(self, split: Split, rows: list[Row], models: Models | None) -> Outcome:
        new = []
        for number, row in enumerate(rows):
            names = inputs(row, self.columns)
            for copy in range(self.copies):
                random = np.random.default_rng((self.seed, number, copy))
                changed = {name: self._altered(row[name], random, number + copy) for name in names}
                new.append((row, {**row, **changed}))
        return self.added(split, rows, new)

    def _altered(self, text: str, random: Random, turn: int) -> str:
        parts = Text.of(text)
        self.alter(parts, random, turn)
        return str(parts)


@dataclass(frozen=True)
class RandomSwap(Easy):
    """Exchanges two words, αn times."""

    def alter(self, text: Text, random: Random, turn: int) -> None:
        swap(text, random, self.count(text))


@dataclass(frozen=True)
class RandomDeletion(Easy):
    """Leaves out each word with probability α, but never all."""

    def alter(self, text: Text, random: Random, turn: int) -> None:
        delete(text, random, self.alpha)


@dataclass(frozen=True)
class _Synonyms(Easy):
    """Asks WordNet, which is of English words.

    Attributes:
        wordnet: the folder of its database; empty: where it is usually found.
    """

    wordnet: str = ""

    def content(self) -> None:
        """It goes by a database."""

    @cached_property
    def synonyms(self) -> Callable[[str], list[str]]:
        """The synonyms of a word, which a stop word has none of."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        synonyms_of = wordnet.opened(wordnet.find(self.wordnet)).synonyms
        return lambda word: [] if word.lower() in ENGLISH_STOP_WORDS else synonyms_of(word)


@dataclass(frozen=True)
class SynonymReplacement(_Synonyms):
    """Puts a random synonym in place of αn different words, wherever they stand."""

    def alter(self, text: Text, random: Random, turn: int) -> None:
        replace(text, random, self.count(text), self.synonyms)


@dataclass(frozen=True)
class RandomInsertion(_Synonyms):
    """Puts in a random synonym of a random word at a random place, αn times."""

    def alter(self, text: Text, random: Random, turn: int) -> None:
        insert(text, random, self.count(text), self.synonyms)


@dataclass(frozen=True)
class Eda(_Synonyms):
    """The four in turn: of four copies of a row each is of another."""

    copies: Positive = 4

    def alter(self, text: Text, random: Random, turn: int) -> None:
        ways = (
            lambda: swap(text, random, self.count(text)),
            lambda: delete(text, random, self.alpha),
            lambda: replace(text, random, self.count(text), self.synonyms),
            lambda: insert(text, random, self.count(text), self.synonyms),
        )
        ways[turn % len(ways)]()


def swap(text: Text, random: Random, count: int) -> None:
    """Exchanges two words, `count` times."""
    if len(text.words) > 1:
        for _ in range(count):
            a, b = random.choice(len(text.words), 2, replace=False)
            text.words[a], text.words[b] = text.words[b], text.words[a]


def delete(text: Text, random: Random, share: float) -> None:
    """Leaves out each word with a probability, but one at least stays."""
    is_deleted = random.random(len(text.words)) < share
    if is_deleted.all() and len(is_deleted):
        is_deleted[random.integers(len(is_deleted))] = False
    for place in np.flatnonzero(is_deleted)[::-1]:
        text.remove(place)


def replace(text: Text, random: Random, count: int, synonyms: Callable[[str], list[str]]) -> None:
    """Puts synonyms in place of `count` different words that have some."""
    different = list(dict.fromkeys(text.words))
    for number in random.permutation(len(different)):
        word = different[number]
        if count and (known := synonyms(word)):
            new = known[random.integers(len(known))]
            new = new.capitalize() if word[0].isupper() else new
            text.words = [new if old == word else old for old in text.words]
            count -= 1


def insert(text: Text, random: Random, count: int, synonyms: Callable[[str], list[str]]) -> None:
    """Puts in synonyms of `count` words that have some."""
    words = list(text.words)
    for _ in range(count):
        for word in random.permutation(np.array(words, object))[:TRIES]:
            if known := synonyms(word):
                place = int(random.integers(len(text.words) + 1))
                text.insert(place, known[random.integers(len(known))])
                break
