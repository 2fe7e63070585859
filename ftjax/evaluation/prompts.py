"""Prompts: which demonstrations they have, how they are written, and that they fit the model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.encode import Examples, ragged
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.methods.prompting import Prompting, fill

Row = Mapping[str, str]  # text, text_pair (of pairs) and label
FIELDS = ("text", "text_pair", "label")


def rows_of(split: Split) -> list[Row]:
    """The texts and labels of a split."""
    names = [name for name in FIELDS if name in split.rows.column_names]
    columns = [split.column(name) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def draw(method: Prompting, rows: Sequence[Row], names: Sequence[str], seed: int) -> list[Row]:
    """Of training rows those that demonstrate: all where the nearest are chosen text by text.

    Raises:
        UserError: there are too few, or `method.shots` does not divide by the labels.
    """
    labels, shots = np.array([row["label"] for row in rows]), method.shots
    require(shots <= len(rows), f"method.shots={shots}: the training split has {len(rows)} rows")
    random = np.random.default_rng(seed)
    if not shots:
        return []
    if method.demonstrations == "nearest":
        return list(rows)
    if method.demonstrations == "random":
        return [rows[i] for i in random.permutation(len(rows))[:shots]]
    per_label, rest = divmod(shots, len(names))
    require(not rest, f"method.shots={shots} must be a multiple of the {len(names)} labels")
    chosen = []
    for name in names:
        of_label = np.flatnonzero(labels == name)
        require(
            len(of_label) >= per_label, f"method.shots={shots}: {name!r} has {len(of_label)} rows"
        )
        chosen += random.permutation(of_label)[:per_label].tolist()
    return [rows[i] for i in random.permutation(chosen)]


def nearest_rows(
    similarity: np.ndarray, rows: Sequence[Row], pool: Sequence[Row], count: int
) -> np.ndarray:
    """Of a pool the rows most like each row, the most similar last: (rows, count).

    Args:
        similarity: (rows, pool).
        rows: what is asked about; a row of the pool with the same text is no demonstration.
        pool: the training rows.
        count: how many.
    """

    def keys(rows: Sequence[Row]) -> np.ndarray:
        return np.array([f"{row['text']}\0{row.get('text_pair')}" for row in rows], object)

    others = keys(pool)
    similarity = similarity.copy()
    for number, key in enumerate(keys(rows)):
        similarity[number, others == key] = -np.inf
    return np.argsort(similarity, 1, kind="stable")[:, -count:]


class Template(NamedTuple):
    """A template in its parts.

    Attributes:
        before: what is before the label's word.
        gap: a space that belongs to the word, as tokenizers have it; or nothing.
        after: what is after it.
        masked: whether the word is asked for at a mask.
    """

    before: str
    gap: str
    after: str
    masked: bool

    @classmethod
    def read(cls, text: str) -> "Template":
        masked = "{mask}" in text
        head, _, after = text.partition("{mask}" if masked else "{label}")
        before = head.rstrip(" ")
        return cls(before, head[len(before) :], after, masked)

    def filled(self, row: Row, word: str) -> str:
        """A row, with the word of its label."""
        return fill(self.before, row) + self.gap + word + fill(self.after, row)


class Writer:
    """Writes prompts by one template.

    Args:
        method: the method.
        template: checked by it.
        words: label name → the word that demonstrates it.
        tokenizer: a fast one of `transformers`.
        max_length: tokens of a prompt and the longest label.
    """

    def __init__(
        self,
        method: Prompting,
        template: str,
        words: Mapping[str, Sequence[str]],
        tokenizer: Any,
        max_length: int,
    ) -> None:
        self._method, self._words, self._tokenizer = method, words, tokenizer
        self.template, self._max_length = Template.read(template), max_length
        require(not self.template.masked or tokenizer.mask_token, "the tokenizer has no mask token")
        first = tokenizer("")["input_ids"][:1]
        self._start = first if first == [tokenizer.bos_token_id] else []
        self.labels = [self._word(word) for label_words in words.values() for word in label_words]

    @property
    def _limit(self) -> int:
        """Tokens of a prompt: the longest label follows, but for a mask."""
        longest = 0 if self.template.masked else max(map(len, self.labels))
        return self._max_length - longest

    def _word(self, word: str) -> list[int]:
        """The tokens of a label's word where it stands in the template.

        Raises:
            UserError: they are not apart from what is before, or unknown, or too many for a mask.
        """
        template = self.template
        context = fill(template.before, {"text": "a", "text_pair": "a"})
        ids = self._tokenizer(context, add_special_tokens=False)["input_ids"]
        text = context + template.gap + word
        whole = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        own = whole[len(ids) :]
        name = "mask" if template.masked else "label"
        require(
            whole[: len(ids)] == ids and bool(own),
            f"method.words: {word!r} makes no token of its own after {context!r}: put a space "
            f"before '{{{name}}}' in method.templates",
        )
        unknown = self._tokenizer.unk_token_id
        require(unknown not in own, f"method.words: the model's tokenizer does not know {word!r}")
        if template.masked and len(own) > 1:
            tokens = self._tokenizer.convert_ids_to_tokens(own)
            raise UserError(
                f"method.words: {word!r} is {len(own)} tokens ({', '.join(tokens)}), and a mask "
                "takes one: choose another word"
            )
        return own

    def _text(self, row: Row, demonstrations: Sequence[Row]) -> tuple[str, int]:
        """A prompt, and where its mask stands."""
        template = self.template
        parts = [self._method.instruction] * bool(self._method.instruction)
        for shown in demonstrations:
            parts.append(template.filled(shown, self._words[shown["label"]][0]))
        before = self._method.separator.join([*parts, fill(template.before, row)])
        if not template.masked:
            return before, 0
        before += template.gap
        return before + self._tokenizer.mask_token + fill(template.after, row), len(before)

    def _tokens(self, prompts: Sequence[tuple[str, int]]) -> list[tuple[list[int], int]]:
        """Token ids, and which of them is the mask."""
        texts = [text for text, _ in prompts]
        encoded = self._tokenizer(texts, add_special_tokens=self.template.masked, verbose=False)
        ids = encoded["input_ids"]
        if not self.template.masked:
            return [(self._start + row, 0) for row in ids]
        masks = [encoded.char_to_token(i, at) for i, (_, at) in enumerate(prompts)]
        return list(zip(ids, masks, strict=True))

    def __call__(
        self, rows: Sequence[Row], demonstrations: Sequence[Sequence[Row]]
    ) -> tuple[Examples, list[list[Row]]]:
        """Prompts for rows.

        What does not fit loses demonstrations from the far end, and only then of its text.

        Args:
            rows: the texts.
            demonstrations: of each row, in order.

        Returns:
            The prompts' tokens, of causal models those before the label, of masked ones with
            `arrays`' "mask_place" (rows,); `truncated` counts rows of which the text was cut. And
            the demonstrations that each has.

        Raises:
            UserError: a template is too long without any text, or a prompt has no token.
        """
        rows, shown, limit = list(rows), [list(own) for own in demonstrations], self._limit
        prompts: list[tuple[list[int], int]] = [([], 0)] * len(rows)
        pending, cut = list(range(len(rows))), set()
        while pending:
            tokens = self._tokens([self._text(rows[i], shown[i]) for i in pending])
            left = []
            for i, (ids, place) in zip(pending, tokens, strict=True):
                require(bool(ids), "method.templates: a prompt needs words besides an empty text")
                excess = len(ids) - limit
                if excess <= 0:
                    prompts[i] = (ids, place)
                    continue
                left.append(i)
                if shown[i]:
                    shown[i] = shown[i][1:]
                else:
                    rows[i] = self._shorter(rows[i], excess)
                    cut.add(i)
            pending = left
        masks = np.array([place for _, place in prompts], np.int32)
        examples = Examples(
            ids=ragged([ids for ids, _ in prompts]),
            arrays={"mask_place": masks} if self.template.masked else {},
            truncated=len(cut),
        )
        return examples, shown

    def _shorter(self, row: Row, excess: int) -> Row:
        """A row without the last tokens of its longer text."""
        name = max((name for name in FIELDS[:2] if name in row), key=lambda name: len(row[name]))
        encoded = self._tokenizer(
            row[name], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        starts = [start for start, _ in encoded["offset_mapping"]]
        require(
            len(starts) > 1,
            f"data.max_length={self._max_length}: the template {self.template.before!r} leaves no "
            "room for a text",
        )
        return {**row, name: row[name][: starts[-min(excess, len(starts) - 1)]]}
