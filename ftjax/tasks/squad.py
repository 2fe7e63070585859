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


def exact(answer: str, references: Sequence[str], language: str = "en") -> float:
    """1 where the answer is one of those wanted, but for case, punctuation and articles."""
    same = _normal_en if language == "en" else _normal_zh
    return float(
        any(same(answer) == same(reference) for reference in _answers(references, language))
    )


def f1(answer: str, references: Sequence[str], language: str = "en") -> float:
    """The best F1 of the answer with one of those wanted: of words; or in Chinese of the longest
    run of characters and English words that they share."""
    measure = _f1_en if language == "en" else _f1_zh
    return max(measure(answer, text) for text in _answers(references, language))


def _answers(references: Sequence[str], language: str) -> Sequence[str]:
    """Those of which a word is left, as of SQuAD 2.0's script; no answer where there is none."""
    answers = [text for text in references if language != "en" or _normal_en(text)]
    return answers or [""]


def _normal_en(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in PUNCTUATION["en"])
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _normal_zh(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in PUNCTUATION["zh"])


def _f1_en(answer: str, reference: str) -> float:
    a, b = _normal_en(answer).split(), _normal_en(reference).split()
    return _harmonic(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def _f1_zh(answer: str, reference: str) -> float:
    a, b = _pieces(answer), _pieces(reference)
    match = SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    return _harmonic(match.size, len(a), len(b))


def _harmonic(shared: int, first: int, second: int) -> float:
    """F1 of what two answers share, by their sizes; two empty ones are the same."""
    total = first + second
    return 2 * shared / total if total else 1.0


def _pieces(text: str) -> list[str]:
    """Chinese characters, and what is between them in words as nltk cuts them."""
    from nltk.tokenize import NLTKWordTokenizer

    runs = re.findall(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+", _normal_zh(text))
    return [word for piece in runs for word in NLTKWordTokenizer().tokenize(piece)]
