"""BART's pretraining: a text from one with spans masked and sentences in another order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ftjax.data.draws import Draws
from ftjax.data.encode import Columns, Examples, Ragged
from ftjax.data.fields import Field, Schema, text
from ftjax.data.loading import Vary
from ftjax.errors import UserError
from ftjax.options import Inside, NotNegative
from ftjax.tasks.corruption import infill, permuted
from ftjax.tasks.masked_lm import with_words
from ftjax.tasks.rebuilding import Rebuilding

# Where sentences end; spaces are of the next, as tokenizers have them, lines of the one before.
END = re.compile(r"([.!?]+[\"'”’)]*(?=\s|$)|[。！？]+[”’）]*)(\s*\n+)?|\n+")


@dataclass(frozen=True)
class Denoising(Rebuilding):
    """Text infilling and sentence permutation, anew every epoch (Lewis et al. 2020, section 2.2).

    Attributes:
        rate: share of tokens that are masked.
        mean_span: of the Poisson lengths of spans; a span becomes one mask.
        permute: whether sentences come in a random order.
    """

    rate: Inside = 0.3
    mean_span: NotNegative = 3.0
    permute: bool = True

    encoded_by: ClassVar = ()
    schema: ClassVar = Schema({"text": Field(text)})

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "_sentence", each token's sentence, -1 for special tokens."""
        encoded = with_words(tokenizer, [columns["text"]], max_length, offsets=True)
        words, offsets = encoded.pop("_word"), encoded.pop("offset_mapping")
        encoded["_sentence"] = [
            _sentences(*row) for row in zip(columns["text"], offsets, words, strict=True)
        ]
        return encoded

    def variation(self, tokenizer: Any) -> Vary:
        if tokenizer.mask_token_id is None:
            raise UserError("task.name=denoising: the model's tokenizer has no mask token")

        def vary(examples: Examples, draws: Draws) -> Examples:
            random = draws.generator()
            whole, sentence = examples.ids, examples.tokens["_sentence"]
            order = permuted(whole, sentence, random) if self.permute else slice(None)
            mixed = Ragged(whole.values[order], whole.offsets)
            inner = (sentence >= 0).astype(np.int32)
            mask = tokenizer.mask_token_id
            read = infill(mixed, inner, self.rate, self.mean_span, mask, random)
            return replace(examples, ids=read, tokens={}, decoder=whole)

        return Vary(vary)


def _sentences(text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int]) -> list[int]:
    """The number of each token's sentence, -1 for special tokens."""
    ends = np.array([at.end() for at in END.finditer(text)] or [len(text)])
    starts = np.array([start for start, _ in offsets])
    return np.where(np.array(words) < 0, -1, np.searchsorted(ends, starts, "right")).tolist()
