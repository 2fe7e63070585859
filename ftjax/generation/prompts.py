"""Prompts as tokens: texts and chats, cut and padded as the model reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftjax.data.templates import render
from ftjax.errors import UserError
from ftjax.generation import decode
from ftjax.generation.settings import Settings
from ftjax.tuned import Tuned

SHORTEST = 16  # prompts are padded to this length, or a power of two above it
ANY = 1 << 30  # tokens, where a model knows no limit
# Turns {"role", "content", ...}; or {"messages": turns, "tools": what the chat may use}.
Messages = Sequence[Mapping[str, Any]] | Mapping[str, Any]


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts.

    Attributes:
        tokenizer: of `transformers`.
        rewrite: what is made of a prompt before it is read; raises ValueError.
        pad: the token of padding.
        is_continued: whether prompts are gone on from themselves, and so padded on the left.
        room: the longest prompt that the model has positions for.
        longest: tokens of a prompt that are read of a longer one; None: it is read whole.
    """

    tokenizer: Any
    rewrite: Callable[[str | Messages], str | Messages] | None = None
    pad: int = 0
    is_continued: bool = True
    room: int = ANY
    longest: int | None = None

    @classmethod
    def of(
        cls,
        tuned: Tuned,
        settings: Settings,
        tokenizer: Any,
        longest: int | None = None,
        rewrite: Callable[[str | Messages], str | Messages] | None = None,
    ) -> "PromptEncoder":
        """What encodes for a model under settings, of which arguments are as of `Generator`."""
        is_continued = tuned.model.head == "causal_lm"
        positions = ANY if tuned.longest is None else tuned.longest
        room = positions - settings.max_new_tokens if is_continued else positions
        limit = decode.room(tuned, settings)
        if longest is not None and limit is not None:
            longest = min(longest, limit)
        return cls(tokenizer, rewrite, settings.pad, is_continued, room, longest)

    def __call__(
        self, prompts: Sequence[str | Messages], numbers: Sequence[int] | None = None
    ) -> dict[str, np.ndarray]:
        """input_ids and attention_mask: a decoder's padded on the left, else on the right.

        Raises:
            UserError: a prompt without tokens, or a chat without a chat template.
        """
        rows = [ids for ids, _ in self.tokens(prompts, numbers)]
        longest = max(len(row) for row in rows)
        width = max(SHORTEST, 1 << (longest - 1).bit_length())
        width = min(width, max(longest, self.room))
        ids = np.full((len(rows), width), self.pad, np.int32)
        mask = np.zeros((len(rows), width), np.int32)
        for number, row in enumerate(rows):
            at = slice(width - len(row), width) if self.is_continued else slice(len(row))
            ids[number, at], mask[number, at] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def tokens(
        self, prompts: Sequence[str | Messages], numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], bool]]:
        """Token ids of each prompt, and whether it was cut; raises as a call."""
        numbers = range(len(prompts)) if numbers is None else numbers
        for number, prompt in zip(numbers, prompts, strict=True):
            try:
                prompt = self.rewrite(prompt) if self.rewrite else prompt
                ids = self.ids(prompt)
            except ValueError as error:
                raise UserError(f"prompt {number + 1}: {error}") from error
            if not ids:
                raise UserError(f"prompt {number + 1} is empty: it has no token to go on from")
            is_long = self.longest is not None and len(ids) > self.longest
            yield (self._cut(prompt, ids) if is_long else ids), is_long

    def ids(self, prompt: str | Messages) -> list[int]:
        """Token ids of a whole prompt as it is."""
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        if not self.tokenizer.chat_template:
            raise UserError("the model's tokenizer has no chat template: it is no chat model")
        with_tools = isinstance(prompt, Mapping)
        turns, tools = (prompt["messages"], prompt["tools"]) if with_tools else (prompt, None)
        text = render(self.tokenizer, turns, tools=tools, ask=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _cut(self, prompt: str | Messages, ids: list[int]) -> list[int]:
        """A prompt's `longest` tokens; what asks for an answer, and what begins a text, stay."""
        if isinstance(prompt, str) and not self.is_continued:
            cut = self.tokenizer(prompt, truncation=True, max_length=self.longest)
            return cut["input_ids"]
        first = ids[:1] if ids[0] == self.tokenizer.bos_token_id else []
        return first + ids[len(ids) - self.longest + len(first) :]
