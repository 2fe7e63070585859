"""Instructions and dialogues: what the assistant says, by a chat template."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar, Literal

import numpy as np

from ftjax.data import chats
from ftjax.data.chats import Message, is_learned, whole
from ftjax.data.encode import Columns, of_row
from ftjax.data.fields import Field, Row, Schema, text
from ftjax.data.sources import Split
from ftjax.data.templates import left_out, render
from ftjax.errors import UserError
from ftjax.options import Count, Positive
from ftjax.tasks.base import HIGHER, Array
from ftjax.tasks.causal_lm import CausalLM
from ftjax.tasks.written import Written

TURNS = ("all", "last")
THINKS = re.compile(r"think|thought|reason", re.IGNORECASE)  # in marks of thoughts
TOOLS = Field(chats.tools, optional=True, sparse=True)


def adapt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return chats.adapt(row)


def check(row: Row) -> None:
    chats.check(turns_of(row))


def turns_of(row: Mapping[str, Any]) -> list[Message]:
    """The whole turns of a row of messages, or of a prompt and its completion."""
    if row.get("messages"):
        return [whole(turn) for turn in row["messages"]]
    if not row.get("prompt"):
        raise ValueError("a row needs messages, or a prompt and a completion")
    turns = [{"role": "user", "content": row["prompt"]}]
    if row.get("completion"):
        turns.append({"role": "assistant", "content": row["completion"]})
    return turns


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools of a row, where it has any."""
    return json.loads(row["tools"]) if row.get("tools") else None


@dataclass(frozen=True)
class Instruction(CausalLM, Written):
    """Cross-entropy of the assistant's turns alone, each with the sign that ends it.

    Rows are chats ("messages" of role and content; ShareGPT's and Alpaca's forms are recognized),
    or a "prompt" and a "completion". "tools" of a row, and what a turn has besides its content, as
    "tool_calls" and "reasoning_content", are the template's; turns of "weight" 0 are not learned.

    Attributes:
        block: must be 0.
        template: a chat template (Jinja), or the name of one of the tokenizer's; empty: the
            tokenizer's; "plain": "role: content" lines. Templates that write today's date write one
            that is always the same.
        turns: of the assistant that are learned, "all" or the "last". Where the template changes
            turns by those after them, as Qwen 3's takes out earlier thoughts, each turn is an
            example of its own, of the chat up to it: as it is written when it is the last.
        generate: rows of the test split whose last turn is written; 0 for none, -1 for all.
        max_new_tokens: of what is written.
        answer: a regular expression whose first group (or match) is compared, of what is written
            and of the row's last turn; empty to compare the whole.
    """

    template: str = ""
    turns: Literal[tuple(TURNS)] = "all"
    generate: Count = 0
    max_new_tokens: Positive = 256
    num_beams: Positive = 1
    answer: str = ""

    better: ClassVar = {**CausalLM.better, "exact_match": HIGHER}
    at_end: ClassVar = ("exact_match",)
    schema: ClassVar = Schema(
        {
            "messages": Field(chats.messages, optional=True, sparse=True, blank=[]),
            "prompt": Field(text, optional=True, sparse=True),
            "completion": Field(text, optional=True, sparse=True, answer=True),
            "tools": TOOLS,
        },
        check,
        adapt,
    )
    arrays: ClassVar = {"learned": Array("token", "int32")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block:
            raise UserError("task.block is for causal_lm")

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "learned", 1 at tokens of the assistant. Chats that are cut before any are left out.

        Raises:
            UserError: there is no template.
            RowError: the template cannot write a row's chat.
        """
        found: dict[str, list] = {"input_ids": [], "learned": [], "row": [], "cut": []}
        for number in range(len(next(iter(columns.values())))):
            row = {name: values[number] for name, values in columns.items()}
            with of_row(number):
                examples = list(encoded(tokenizer, row_chat(row), self.template, self.turns))
            for ids, learned in examples:
                if learned.any() and not learned[1:max_length].any():
                    continue
                found["input_ids"].append(ids[:max_length])
                found["learned"].append(learned[:max_length].tolist())
                found["row"].append(number)
                found["cut"].append(len(ids) > max_length)
        return found

    def prompts(self, split: Split) -> list[list[Message] | Mapping[str, Any]]:
        """Chats up to the assistant's last turn, with their tools where they have any."""
        found = []
        for turns, tools in map(row_chat, split.rows):
            asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            found.append({"messages": asked, "tools": tools} if tools else asked)
        return found

    def references(self, split: Split) -> list[str | None]:
        """The contents of last turns; None where one but calls tools, or nothing is answered."""
        rows = [turns_of(row)[-1] for row in split.rows]
        return [(turn["role"] == "assistant" and turn.get("content")) or None for turn in rows]


def row_chat(row: Mapping[str, Any]) -> tuple[list[Message], list[Any] | None]:
    """A row's turns and tools."""
    return turns_of(row), tools_of(row)


def encoded(
    tokenizer: Any, chat: tuple[Sequence[Message], Any], template: str, turns: str = "all"
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Token ids of a chat's examples, and 1 at tokens that are learned.

    A token that begins before a turn, as with a space, and goes on in it is of the turn.

    Args:
        tokenizer: a fast one of `transformers`.
        chat: its turns and tools.
        template: see `ftjax.data.templates.chosen`.
        turns: see `Instruction`.

    Raises:
        ValueError: the template cannot write the chat, or its answers as it asks for them.
    """
    for said, parts in written(tokenizer, chat, template, turns):
        found = tokenizer(
            said, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        begins, ends = np.array(found["offset_mapping"]).reshape(-1, 2).T
        learned = np.zeros(len(begins), np.int32)
        for start, end in parts:
            learned |= (ends > start) & (begins < end)
        yield found["input_ids"], learned


def written(
    tokenizer: Any, chat: tuple[Sequence[Message], Any], template: str, which: str
) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Texts of a chat, and where in each the turns are that are learned, with what ends each.

    One text where the assistant's turns stand in the whole chat as when each is the last; else one
    for each turn. Where a template begins thoughts as it asks for an answer, as DeepSeek R1's, and
    the answer has others or none, it is learned from there on as it is written.
    """
    turns, tools = chat

    def text_of(count: int, ask: bool = False) -> str:
        return render(tokenizer, turns[:count], template, tools, ask, today=False)

    def part(number: int) -> tuple[str, tuple[int, int]]:
        """The chat up to a turn, and where that is."""
        before, after = text_of(number, ask=True), text_of(number + 1)
        start = len(before)
        if not after.startswith(before):
            pairs = zip(before, after, strict=False)
            start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            said = len(text_of(number))
            if start <= said or not THINKS.search(before, said):
                raise ValueError(
                    f"turn {number + 1} is not written by the chat template as it asks for it: set "
                    "task.template to another"
                )
        if left_out(turns[number], after[start:]):  # but some of it may be what asks for it
            require_said(number, after[len(text_of(number)) :])
        return after, (start, len(after.rstrip()))

    def require_said(number: int, text: str) -> None:
        if lacks := left_out(turns[number], text):
            raise ValueError(
                f"turn {number + 1}: the chat template leaves out {lacks}: so must the row, or set "
                "task.template to another"
            )

    learned = [number for number, turn in enumerate(turns) if is_learned(turn)]
    if which == "last" and learned:
        learned = learned[-1:]
        turns = turns[: learned[0] + 1]
    parts, every = [part(number) for number in learned], text_of(len(turns))
    for number, turn in enumerate(turns):
        if turn["role"] in ("system", "user"):
            require_said(number, every)
    if all(every.startswith(after.rstrip()) for after, _ in parts):
        yield every, [where for _, where in parts]
    else:
        yield from ((after, [where]) for after, where in parts)
