"""Metrics of answers, as the scripts of SQuAD (Rajpurkar et al. 2016) and of CMRC 2018 (Cui et al.
2019) compute them."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

LANGUAGES = ("en", "zh")
PUNCTUATION = {
    "en": frozenset(string.punctuation),
    # of ASCII what CMRC's script names, and of Chinese
    "zh": frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"),
}


def exact(found: str, wanted: Sequence[str], language: str = "en") -> float:
    """1 where the answer is one of those wanted, but for case, punctuation and articles."""
    same = _normal_en if language == "en" else _normal_zh
    return float(any(same(found) == same(each) for each in _answers(wanted, language)))


def f1(found: str, wanted: Sequence[str], language: str = "en") -> float:
    """The best F1 of the answer with one of those wanted: of words; or in Chinese of the longest
    run of characters and English words that they share."""
    each = _f1_en if language == "en" else _f1_zh
    return max(each(found, text) for text in _answers(wanted, language))


def _answers(wanted: Sequence[str], language: str) -> Sequence[str]:
    """Those of which a word is left, as of SQuAD 2.0's script; no answer where there is none."""
    kept = [text for text in wanted if language != "en" or _normal_en(text)]
    return kept or [""]


def _normal_en(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in PUNCTUATION["en"])
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _normal_zh(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in PUNCTUATION["zh"])


def _f1_en(found: str, wanted: str) -> float:
    a, b = _normal_en(found).split(), _normal_en(wanted).split()
    if not a or not b:
        return float(a == b)
    return _harmonic(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def _f1_zh(found: str, wanted: str) -> float:
    a, b = _pieces(found), _pieces(wanted)
    if not a or not b:
        return float(a == b)
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return _harmonic(match.size, len(a), len(b))


def _harmonic(shared: int, first: int, second: int) -> float:
    return 2 * shared / (first + second)


def _pieces(text: str) -> list[str]:
    """Chinese characters, and what is between them in words as nltk cuts them."""
    from nltk.tokenize import NLTKWordTokenizer

    found = re.findall(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+", _normal_zh(text))
    return [word for piece in found for word in NLTKWordTokenizer().tokenize(piece)]
