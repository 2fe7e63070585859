"""Chats as token ids, and which of them are learned: what the assistant says, to its end."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any, NamedTuple

import numpy as np

from ftjax.data.chats import Message, is_learned
from ftjax.data.encode import of_row
from ftjax.data.templates import Rendered, chosen, is_marked, left_out, rendered

THINKS = re.compile(r"think|thought|reason", re.IGNORECASE)  # in marks of thoughts
Chat = tuple[Sequence[Message], Any]  # whole turns, and tools
Part = tuple[int, int]  # of a text: where it begins and ends


class EncodedChat(NamedTuple):
    """An example of a chat.

    Attributes:
        row: the number that the chat was given.
        ids: token ids.
        learned: like ids, 1 at those that are learned.
    """

    row: int
    ids: list[int]
    learned: np.ndarray


def encode_chats(
    tokenizer: Any,
    things: Iterable[tuple[int, Any]],
    chat_of: Callable[[Any], Chat],
    template: str,
    which: str = "all",
) -> list[EncodedChat]:
    """The examples of chats; their texts are tokenized together.

    A token that begins before what is learned, as with a space, and goes on in it is learned.

    Args:
        tokenizer: a fast one of `transformers`.
        things: numbers of rows, for errors, and what a chat is made of.
        chat_of: makes it.
        template: see `ftjax.data.templates.chosen`.
        which: turns of the assistant are learned, "all" or the "last".

    Raises:
        RowError: the template cannot write a chat, or its answers as it asks for them.
    """
    rows, texts, parts = [], [], []
    for row, thing in things:
        with of_row(row):
            for text, where in chat_texts(tokenizer, chat_of(thing), template, which):
                rows.append(row)
                texts.append(text)
                parts.append(where)
    if not texts:
        return []
    tokenized = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    examples = zip(rows, tokenized["input_ids"], tokenized["offset_mapping"], parts, strict=True)
    return [EncodedChat(row, ids, _marks(offsets, where)) for row, ids, offsets, where in examples]


def _marks(offsets: Sequence[Part], parts: Sequence[Part]) -> np.ndarray:
    flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets))
    begins, ends = flat.reshape(-1, 2).T
    learned = np.zeros(len(begins), np.int32)
    for start, end in parts:
        learned |= (ends > start) & (begins < end)
    return learned


@dataclass(frozen=True)
class Script:
    """What a template writes of a chat.

    Attributes:
        tokenizer: whose template it is.
        turns: whole.
        tools: that the chat may use.
        template: see `ftjax.data.templates.chosen`.
    """

    tokenizer: Any
    turns: Sequence[Message]
    tools: Any
    template: str

    def up_to(self, counts: Iterable[int], ask: bool) -> dict[int, Rendered]:
        """The first turns, so many of them."""
        counts, form = sorted({*counts}), (self.template, self.tools, ask)
        texts = rendered(self.tokenizer, self.turns, counts, *form, today=False)
        return dict(zip(counts, texts, strict=True))

    def preceding(self, number: int) -> int:
        """Characters of the turns before one, where it is not asked for."""
        return len(self.up_to([number], False)[number].text)

    def require_said(self, number: int, text: str) -> None:
        if lacks := left_out(self.turns[number], text):
            raise ValueError(
                f"turn {number + 1}: the chat template leaves out {lacks}: so must the row, or set "
                "task.template to another"
            )

    def generated(self, number: int, prefixes: Mapping[int, Rendered]) -> tuple[str, list[Part]]:
        """The chat up to a turn, and what the template marks of that."""
        after = prefixes[number + 1]
        before = len(prefixes[number].generated) if number else 0
        if not (parts := after.generated[before:]):
            raise ValueError(
                f"turn {number + 1} of the assistant is not within {{% generation %}} in the chat "
                "template: mark it there, or leave out the marks"
            )
        self.require_said(number, after.text)
        return after.text, parts

    def answered(self, number: int, before: str, after: str) -> tuple[str, list[Part]]:
        """The chat up to a turn, and where that is; `before` asks for it."""
        start = len(before)
        if not after.startswith(before):
            pairs = zip(before, after, strict=False)
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            earliest = self.preceding(number)
            if start <= earliest or not THINKS.search(before, earliest):
                raise ValueError(
                    f"turn {number + 1} is not written by the chat template as it asks for it: set "
                    "task.template to another"
                )
        if left_out(self.turns[number], after[start:]):  # but some of it may be what asks for it
            self.require_said(number, after[self.preceding(number) :])
        return after, [(start, len(after.rstrip()))]


def chat_texts(
    tokenizer: Any, chat: Chat, template: str, which: str
) -> Iterator[tuple[str, list[Part]]]:
    """Texts of a chat, and where in each that is which is learned.

    One text where the assistant's turns stand in the whole chat as when each is the last; else one
    for each turn. A turn is learned with what ends it, from where the template has asked for it;
    where the template marks what the assistant generates, by {% generation %}, that alone. Where a
    template begins thoughts as it asks for an answer, as DeepSeek R1's, and the answer has others
    or none, it is learned from there on as it is written.
    """
    turns, tools = chat
    marked = is_marked(chosen(tokenizer, template, tools))
    learned = [number for number, turn in enumerate(turns) if is_learned(turn)]
    if which == "last" and learned:
        learned = learned[-1:]
        turns = turns[: learned[0] + 1]
    script = Script(tokenizer, turns, tools, template)
    before = [number for number in learned if number and marked]
    prefixes = script.up_to([*before, *(number + 1 for number in learned), len(turns)], False)
    if marked:
        answers = [script.generated(number, prefixes) for number in learned]
    else:
        prompts = script.up_to(learned, True)
        answers = [script.answered(n, prompts[n].text, prefixes[n + 1].text) for n in learned]
    whole = prefixes[len(turns)].text
    for number, turn in enumerate(turns):
        if turn["role"] in ("system", "user"):
            script.require_said(number, whole)
    if all(whole.startswith(after.rstrip()) for after, _ in answers):
        yield whole, [part for _, parts in answers for part in parts]
    else:
        yield from answers
