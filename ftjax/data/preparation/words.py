"""Words of languages with spaces, characters of those without: Chinese and Japanese."""

import re
from collections.abc import Sequence

HAN = (
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)  # and kana
IS_HAN = re.compile(f"[{HAN}]")
# A character of those, or letters and digits with what joins them: don't, well-known, 2.5, 12:30.
WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:(?:['’-]|(?<=\d)[.,:](?=\d))[^\W_{HAN}]+)*")
PIECE = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")  # the same without what joins them


def words(text: str) -> list[str]:
    """The words of a text, without case; each Chinese or Japanese character is one."""
    return WORD.findall(text.casefold())


def shingles(text: str, length: int, characters: int) -> frozenset[str]:
    """Runs of `length` words, and of `characters` Chinese or Japanese ones.

    A text with fewer is one shingle; one with neither is itself.
    """
    every = words(text)
    spaced = [word for word in every if not IS_HAN.match(word)]
    joined = "".join(word for word in every if IS_HAN.match(word))
    runs = {" ".join(run) for run in _runs(spaced, length)}
    runs |= set(_runs(joined, characters))
    return frozenset(runs or {text.strip()})


def _runs(items: Sequence, length: int) -> list[Sequence]:
    """Of fewer items than `length` one run."""
    return [items[i : i + length] for i in range(max(len(items) - length, 0) + 1)] if items else []
