"""Instructions and dialogues: what the assistant says, by a chat template."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ftjax.data import chats
from ftjax.data.chat_tokens import encode_chats
from ftjax.data.chats import Message, whole
from ftjax.data.encode import Columns
from ftjax.data.fields import Field, Row, Schema, text
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.options import Count, Positive, Regex
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
        turns: of the assistant that are learned, "all" or the "last"; of templates that mark it by
            {% generation %}, what is within. Where the template changes
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
    answer: Regex = ""

    better: ClassVar = {**CausalLM.better, "exact_match": HIGHER}
    encoded_by: ClassVar = ("template", "turns")
    at_end: ClassVar = ("exact_match",)
    schema: ClassVar = Schema(
        {
            "messages": Field(chats.messages, optional=True, sparse=True, blank=[], says=True),
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
        examples: dict[str, list] = {"input_ids": [], "learned": [], "row": [], "cut": []}
        rows = ({n: x[i] for n, x in columns.items()} for i in range(_count(columns)))
        for example in encode_chats(
            tokenizer, enumerate(rows), row_chat, self.template, self.turns
        ):
            if example.learned.any() and not example.learned[1:max_length].any():
                continue
            examples["input_ids"].append(example.ids[:max_length])
            examples["learned"].append(example.learned[:max_length].tolist())
            examples["row"].append(example.row)
            examples["cut"].append(len(example.ids) > max_length)
        return examples

    def prompts(self, split: Split) -> list[list[Message] | Mapping[str, Any]]:
        """Chats up to the assistant's last turn, with their tools where they have any."""
        chats = []
        for turns, tools in map(row_chat, split.rows):
            before = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            chats.append({"messages": before, "tools": tools} if tools else before)
        return chats

    def references(self, split: Split) -> list[list[str]]:
        """The contents of last turns; none where one but calls tools, or nothing is answered."""
        turns = [turns_of(row)[-1] for row in split.rows]
        answers = [turn["role"] == "assistant" and turn.get("content") for turn in turns]
        return [[answer] if answer else [] for answer in answers]


def row_chat(row: Mapping[str, Any]) -> tuple[list[Message], list[Any] | None]:
    """A row's turns and tools."""
    return turns_of(row), tools_of(row)


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))
