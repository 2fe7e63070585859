"""Token ids made harder to read, as pretraining objectives ask for: pure functions of a generator.

Each takes and gives `Ragged` ids, over all examples of an epoch at once where numpy can.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ftjax.data.encode import Ragged, ragged
from ftjax.data.loading import Random


def _drawn(
    random: Random, lengths: np.ndarray, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> np.ndarray:
    """What is drawn for tokens, of each example by its own generator where it has one."""
    if isinstance(random, np.random.Generator):
        return draw(random, int(lengths.sum()))
    each = [draw(own, int(n)) for own, n in zip(random, lengths, strict=True)]
    return np.concatenate([*each, draw(np.random.default_rng(0), 0)])


class Masked(NamedTuple):
    """Ids with some masked.

    Attributes:
        ids: as they are read.
        chosen: where a token is to be found, like `ids`.
    """

    ids: np.ndarray
    chosen: np.ndarray


def mask_tokens(
    ids: Ragged,
    words: np.ndarray,
    rate: float,
    mask: int,
    vocabulary: int,
    random: Random,
    whole_words: bool = False,
) -> Masked:
    """BERT's masking (Devlin et al. 2019, section 3.1).

    Of each example's tokens round(rate · tokens), but at least one, are chosen: 80% become the
    mask, 10% a random token, 10% stay.

    Args:
        ids: token ids.
        words: like the ids, the number of the word in its example; negative for special tokens,
            which are never chosen.
        rate: share of tokens.
        mask: the token's id.
        vocabulary: random tokens are below it.
        random: source of all draws.
        whole_words: choose all tokens of a word, or none; part of one where all are longer than
            what is chosen.
    """
    count = len(ids.values)
    example = np.repeat(np.arange(len(ids)), ids.lengths)
    draw, real = _drawn(random, ids.lengths, lambda own, n: own.random(n)), words >= 0
    tokens = np.bincount(example[real], minlength=len(ids))
    most = np.maximum(np.floor(rate * tokens + 0.5).astype(int), 1)[example]
    if whole_words:  # tokens of a word are neighbours, and share the draw of its first
        new = np.ones(count, bool)
        new[1:] = (words[1:] != words[:-1]) | (example[1:] != example[:-1])
        word = np.cumsum(new) - 1
        draw = draw[new][word] + (np.bincount(word)[word] > most)  # too long ones come last
    order = np.lexsort((np.arange(count), np.where(real, draw, 3.0), example))
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    rank -= np.repeat(ids.offsets[:-1], ids.lengths)
    chosen = real & (rank < most)
    if whole_words:  # not a word that would be cut, unless all are too long
        last = np.zeros(word[-1] + 1 if count else 0, np.int64)
        np.maximum.at(last, word, rank)
        chosen &= (last[word] < most) | (rank[new][word] == 0)
    kind = _drawn(random, ids.lengths, lambda own, n: own.random(n))
    other = _drawn(random, ids.lengths, lambda own, n: own.integers(0, vocabulary, n))
    read = np.where(kind < 0.8, mask, np.where(kind < 0.9, other, ids.values))
    return Masked(np.where(chosen, read, ids.values).astype(np.int32), chosen)


def noise_and_spans(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Tokens of noise, and spans of them, of a text of two tokens or more: see `noise_spans`."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), length - noise)


def noise_spans(
    length: int, density: float, mean_span: float, random: np.random.Generator
) -> np.ndarray:
    """Lengths of spans that are kept and that are noise, in turn (T5, Raffel et al. 2020, 3.1.4).

    round(density · length) tokens are noise, in round(noise / mean_span) spans of random lengths.
    Noise may come first, and what is left at the end is kept, so that texts of one span are not
    always cut at their end.

    Returns:
        (spans, 2) kept, noise; only the first kept one may be 0.
    """
    noise, spans = noise_and_spans(length, density, mean_span)

    def cut(total: int, parts: int) -> np.ndarray:
        ends = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
        return np.diff([0, *ends, total])

    kept = cut(length - noise + 2, spans + 1)[:spans]  # one more at both ends, which may be empty
    kept[0] -= 1
    return np.stack([kept, cut(noise, spans)], 1)


def corrupt_spans(
    ids: Ragged,
    density: float,
    mean_span: float,
    sentinels: Sequence[int],
    end: int,
    random: Random,
) -> tuple[Ragged, Ragged]:
    """T5's objective: what is read has a sentinel for each noise span, what is written has the
    spans, each after its sentinel. Both end with `end`, which ids do not.

    An example has at most as many spans as there are sentinels.
    """
    read, written = [], []
    for number in range(len(ids)):
        row = ids[number]
        if len(row) < 2:
            read.append(np.append(row, end))
            written.append(np.array([end]))
            continue
        own = random if isinstance(random, np.random.Generator) else random[number]
        spans = noise_spans(len(row), density, mean_span, own)
        if len(spans) > len(sentinels):
            kept = len(sentinels) - 1
            spans = np.concatenate([spans[:kept], spans[kept:].sum(0, keepdims=True)])
        ends = np.cumsum(spans.ravel())
        *parts, rest = np.split(row, ends)
        marks = [np.array([mark]) for mark in sentinels[: len(spans)]]
        last = np.array([end])
        kept = [part for pair in zip(parts[::2], marks, strict=True) for part in pair]
        noise = [part for pair in zip(marks, parts[1::2], strict=True) for part in pair]
        read.append(np.concatenate([*kept, rest, last]))
        written.append(np.concatenate([*noise, last]))
    return ragged(read), ragged(written)


def corrupted_lengths(
    lengths: np.ndarray, density: float, mean_span: float, sentinels: int
) -> tuple[np.ndarray, np.ndarray]:
    """How long what `corrupt_spans` gives is, which depends on the lengths alone."""
    known = {n: noise_and_spans(n, density, mean_span) for n in set(lengths.tolist()) if n > 1}
    noise, spans = np.array([known.get(n, (0, 0)) for n in lengths.tolist()]).reshape(-1, 2).T
    spans = np.minimum(spans, sentinels)
    return lengths - noise + spans + 1, noise + spans + 1


def infill(
    ids: Ragged,
    inner: np.ndarray,
    rate: float,
    mean_span: float,
    mask: int,
    random: np.random.Generator,
) -> Ragged:
    """BART's text infilling (Lewis et al. 2020, section 2.2): spans of Poisson lengths become one
    mask each, until `rate` of an example's tokens are gone; spans of no token put a mask in.

    No example becomes longer than it was.

    Args:
        inner: like the ids, 1 at tokens that may be changed.
    """
    rows = []
    for number in range(len(ids)):
        row = ids[number]
        at = np.flatnonzero(inner[ids.offsets[number] : ids.offsets[number + 1]])
        left, gone, inserted = round(rate * len(at)), np.zeros(len(row), bool), []
        masks = np.zeros(len(row), bool)
        while left > 0 and len(at):
            span = min(int(random.poisson(mean_span)), left)
            start = int(random.integers(len(at)))
            if span == 0:
                inserted.append(at[start])
                left -= 1
                continue
            covered = at[start : start + span]
            covered = covered[~gone[covered]]
            if not len(covered):
                left -= 1
                continue
            gone[covered] = True
            masks[covered[0]] = True
            left -= len(covered)
        out = np.where(masks, mask, row)
        keep = ~gone | masks
        room = len(row) - int(keep.sum())
        places = np.concatenate([np.flatnonzero(keep), np.array(inserted[:room], int)])
        values = np.concatenate([out[keep], np.full(len(places) - int(keep.sum()), mask)])
        rows.append(values[np.argsort(places, kind="stable")])
    return ragged(rows)


def permuted(ids: Ragged, sentence: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Each example's sentences in a random order: the order of all tokens.

    Args:
        sentence: like the ids, the number of a token's sentence; negative ones stay in place.
    """
    order = np.arange(len(ids.values))
    for start, end in zip(ids.offsets[:-1], ids.offsets[1:], strict=True):
        numbers = sentence[start:end]
        inner = np.flatnonzero(numbers >= 0)
        if len(inner):
            rank = random.permutation(numbers.max() + 1)
            sort = np.argsort(rank[numbers[inner]], kind="stable")
            order[start + inner] = start + inner[sort]
    return order
