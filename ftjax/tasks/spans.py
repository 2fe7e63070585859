"""Words: where each one's first token is."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ftjax.tasks.base import were_cut


def first_tokens(
    words: Sequence[Sequence[str]], tokenizer: Any, max_length: int
) -> dict[str, list]:
    """Token ids of rows of words, and of each token the word (from 1) that it is the first of.

    Words are joined by spaces, so that every tokenizer sees a text. A word that the tokenizer
    drops, as one of control characters, becomes the unknown token.

    Returns:
        "input_ids", "_word" (0 for other tokens), and whether words were "cut" off.
    """
    encoded = _first_tokens(words, tokenizer, max_length)
    unknown = tokenizer.unk_token or tokenizer.eos_token
    for i, row in enumerate(words):
        seen = set(encoded["_word"][i])
        reached = max(seen) if encoded["cut"][i] else len(row)
        mended = [word if n in seen or n > reached else unknown for n, word in enumerate(row, 1)]
        if mended != list(row):
            again = _first_tokens([mended], tokenizer, max_length)
            for name in encoded:
                encoded[name][i] = again[name][0]
    return encoded


def _first_tokens(
    words: Sequence[Sequence[str]], tokenizer: Any, max_length: int
) -> dict[str, list]:
    texts = [" ".join(row) for row in words]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    numbers = []
    for text, row, offsets in zip(texts, words, encoded["offset_mapping"], strict=True):
        starts = list(accumulate((len(word) + 1 for word in row), initial=0))[:-1]
        last, of_row = 0, []
        for start, stop in offsets:
            start += len(text[start:stop]) - len(text[start:stop].lstrip(" "))
            word = bisect_right(starts, start) if start < stop else 0
            of_row.append(word if word > last else 0)
            last = max(last, word)
        numbers.append(of_row)
    return {"input_ids": encoded["input_ids"], "_word": numbers, "cut": were_cut(encoded)}
