"""Token ids made harder to read, as pretraining objectives ask for: pure functions of draws.

Each takes and gives `Ragged` ids, over all examples at once where numpy can.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ftjax.data.draws import Draws, ranks, within
from ftjax.data.encode import Ragged, ragged


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
    draws: Draws,
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
        draws: of the examples.
        whole_words: choose all tokens of a word, or none; part of one where all are longer than
            what is chosen.
    """
    count, sizes, real = len(ids.values), ids.lengths, words >= 0
    example = np.repeat(np.arange(len(ids)), sizes)
    tokens = np.bincount(example[real], minlength=len(ids))
    most = np.maximum(np.floor(rate * tokens + 0.5).astype(int), 1)[example]
    drawn, later = draws.bits(sizes, 0), np.zeros(count, np.int64)
    if whole_words:  # tokens of a word are neighbours, and share the draw of its first
        new = np.ones(count, bool)
        new[1:] = (words[1:] != words[:-1]) | (example[1:] != example[:-1])
        word = np.cumsum(new) - 1
        drawn, later = drawn[new][word], (np.bincount(word)[word] > most).astype(np.int64)
    rank = ranks(sizes, drawn, np.where(real, later, 3))  # too long words come last
    chosen = real & (rank < most)
    if whole_words:  # not a word that would be cut, unless all are too long
        last = np.zeros(word[-1] + 1 if count else 0, np.int64)
        np.maximum.at(last, word, rank)
        chosen &= (last[word] < most) | (rank[new][word] == 0)
    kind = draws.uniform(sizes, 1)
    other = (draws.uniform(sizes, 2) * vocabulary).astype(np.int32)
    read = np.where(kind < 0.8, mask, np.where(kind < 0.9, other, ids.values))
    return Masked(np.where(chosen, read, ids.values).astype(np.int32), chosen)


def noise_and_spans(
    lengths: np.ndarray, density: float, mean_span: float
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of noise, and spans of them, of texts of these lengths: see `noise_spans`."""
    noise = np.minimum(np.maximum(np.rint(lengths * density), 1), lengths - 1).clip(0)
    spans = np.minimum(np.maximum(np.rint(noise / mean_span), 1), lengths - noise)
    return noise.astype(np.int64), np.where(noise > 0, spans, 0).astype(np.int64)


class Spans(NamedTuple):
    """Spans of noise, those of all examples end to end.

    Attributes:
        counts: (examples,) how many each has.
        gaps: tokens before each that stay; only the first of an example may be 0.
        noise: tokens of each.
    """

    counts: np.ndarray
    gaps: np.ndarray
    noise: np.ndarray

    def at_most(self, most: int) -> "Spans":
        """With the last ones of an example joined where it has more."""
        first = np.flatnonzero(within(self.counts) < most)
        parts = (np.add.reduceat(lengths, first) if len(first) else lengths for lengths in self[1:])
        return Spans(np.minimum(self.counts, most), *parts)


def noise_spans(lengths: np.ndarray, density: float, mean_span: float, draws: Draws) -> Spans:
    """Spans of texts that are noise (T5, Raffel et al. 2020, 3.1.4).

    round(density · length) tokens are noise, in round(noise / mean_span) spans of random lengths.
    Noise may come first, and what is left at the end is kept, so that texts of one span are not
    always cut at their end. A text of one token has none.
    """
    noise, counts = noise_and_spans(lengths, density, mean_span)

    def parts(totals: np.ndarray, counts: np.ndarray, which: int) -> np.ndarray:
        """Of each total, the lengths of `counts` parts, none of them empty."""
        rank = ranks(totals, draws.bits(totals, which), within(totals) > 0)
        begins = np.flatnonzero(rank < np.repeat(counts, totals))
        return np.diff(begins, append=totals.sum())

    number = within(counts + 1)
    gaps = parts(lengths - noise + 2, counts + 1, 0)  # one more at both ends, which may be empty
    gaps = np.where(number == 0, gaps - 1, gaps)[number < np.repeat(counts, counts + 1)]
    return Spans(counts, gaps, parts(noise, counts, 1))


def corrupt_spans(
    ids: Ragged,
    density: float,
    mean_span: float,
    sentinels: Sequence[int],
    end: int,
    draws: Draws,
) -> tuple[Ragged, Ragged]:
    """T5's objective: what is read has a sentinel for each noise span, what is written has the
    spans, each after its sentinel. Both end with `end`, which ids do not.

    An example has at most as many spans as there are sentinels.
    """
    spans = noise_spans(ids.lengths, density, mean_span, draws).at_most(len(sentinels))
    example = np.repeat(np.arange(len(ids)), spans.counts)
    ends = np.cumsum(spans.gaps + spans.noise)
    before = np.append(0, ends)[np.cumsum(spans.counts) - spans.counts]  # other examples' spans
    ends += (ids.offsets[:-1] - before)[example]
    starts = ends - spans.noise
    change = np.zeros(len(ids.values) + 1, np.int64)
    change[starts] += 1
    change[ends] -= 1
    is_noise, begins = np.cumsum(change[:-1]) > 0, np.zeros(len(ids.values), bool)
    begins[starts] = True
    marks = np.asarray(sentinels, np.int32)[within(spans.counts)]

    read = ids.values.copy()
    read[starts] = marks
    repeats = is_noise + begins.astype(np.int64)  # how often a token stands in what is written
    written = np.repeat(ids.values, repeats)
    written[(np.cumsum(repeats) - repeats)[starts]] = marks
    noise = np.bincount(example, spans.noise, len(ids)).astype(np.int64)
    return (
        _ended(read[~is_noise | begins], ids.lengths - noise + spans.counts, end),
        _ended(written, noise + spans.counts, end),
    )


def _ended(values: np.ndarray, sizes: np.ndarray, end: int) -> Ragged:
    """Sequences of these sizes, which are end to end, each with a token after it."""
    ids = np.full(len(values) + len(sizes), end, np.int32)
    ids[np.arange(len(values)) + np.repeat(np.arange(len(sizes)), sizes)] = values
    return Ragged(ids, np.cumsum(np.append(0, sizes + 1), dtype=np.int64))


def corrupted_lengths(
    lengths: np.ndarray, density: float, mean_span: float, sentinels: int
) -> tuple[np.ndarray, np.ndarray]:
    """How long what `corrupt_spans` gives is, which depends on the lengths alone."""
    noise, spans = noise_and_spans(lengths, density, mean_span)
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
        left, is_replaced, inserted = round(rate * len(at)), np.zeros(len(row), bool), []
        masks = np.zeros(len(row), bool)
        while left > 0 and len(at):
            span = min(int(random.poisson(mean_span)), left)
            start = int(random.integers(len(at)))
            if span == 0:
                inserted.append(at[start])
                left -= 1
                continue
            covered = at[start : start + span]
            covered = covered[~is_replaced[covered]]
            if not len(covered):
                left -= 1
                continue
            is_replaced[covered] = True
            masks[covered[0]] = True
            left -= len(covered)
        out = np.where(masks, mask, row)
        keep = ~is_replaced | masks
        room = len(row) - int(keep.sum())
        positions = np.concatenate([np.flatnonzero(keep), np.array(inserted[:room], int)])
        values = np.concatenate([out[keep], np.full(len(positions) - int(keep.sum()), mask)])
        rows.append(values[np.argsort(positions, kind="stable")])
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
