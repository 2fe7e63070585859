"""T5's pretraining: what stood where sentinels stand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from ftjax.data.draws import Draws
from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Schema, text
from ftjax.data.loading import Vary
from ftjax.errors import UserError
from ftjax.options import Inside
from ftjax.tasks.corruption import corrupt_spans, corrupted_lengths, noise_and_spans
from ftjax.tasks.rebuilding import Rebuilding

SENTINELS = 100


@dataclass(frozen=True)
class SpanCorruption(Rebuilding):
    """Spans of tokens are left out, anew every epoch, and written (Raffel et al. 2020, 3.1.4).

    Attributes:
        density: share of tokens that are left out.
        mean_span: tokens of a span.
    """

    density: Inside = 0.15
    mean_span: Annotated[float, "[1, inf)"] = 3.0

    encoded_by: ClassVar = ()
    schema: ClassVar = Schema({"text": Field(text)})

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """Without the end, which comes after sentinels are there."""
        ids = tokenizer(columns["text"], add_special_tokens=False, verbose=False)["input_ids"]
        cut = [len(row) > max_length - 1 for row in ids]
        return {"input_ids": [row[: max_length - 1] for row in ids], "cut": cut}

    def longest_written(self, max_length: int) -> int:
        """Of the longest text the noise, a sign for each span, and the end."""
        longest = np.array([max_length - 1])
        return int(sum(noise_and_spans(longest, self.density, self.mean_span))[0]) + 1

    def variation(self, tokenizer: Any) -> Vary:
        sentinels = sentinels_of(tokenizer)

        def vary(examples: Examples, draws: Draws) -> Examples:
            read, written = corrupt_spans(
                examples.ids,
                self.density,
                self.mean_span,
                sentinels,
                tokenizer.eos_token_id,
                draws,
            )
            return replace(examples, ids=read, decoder=written)

        def lengths(examples: Examples) -> tuple[np.ndarray, np.ndarray]:
            spans = (self.density, self.mean_span, len(sentinels))
            return corrupted_lengths(examples.lengths, *spans)

        return Vary(vary, lengths)


def sentinels_of(tokenizer: Any) -> Sequence[int]:
    """Ids of <extra_id_0>, <extra_id_1>, ...

    Raises:
        UserError: the tokenizer has none.
    """
    names = [f"<extra_id_{number}>" for number in range(SENTINELS)]
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[name] for name in names if name in vocabulary]
    if not ids or tokenizer.eos_token_id is None:
        raise UserError("task.name=span_corruption: the tokenizer has no <extra_id_0>, as T5's has")
    return ids
