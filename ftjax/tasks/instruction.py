"""Instructions and dialogues: what the assistant says, by a chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ftjax.data import chats
from ftjax.data.chats import Message
from ftjax.data.encode import Columns
from ftjax.data.fields import Field, Row, Schema, text
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.tasks.base import Array
from ftjax.tasks.causal_lm import CausalLM
from ftjax.tasks.written import Written

# For models whose tokenizer has no chat template. The space is the answer's, as tokenizers have it.
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}:{{ ' ' + message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def adapt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return chats.adapt(row)


def check(row: Row) -> None:
    chats.check(turns_of(row))


def turns_of(row: Mapping[str, Any]) -> list[Message]:
    """The turns of a row of messages, or of a prompt and its completion."""
    if row.get("messages"):
        return row["messages"]
    if not row.get("prompt"):
        raise ValueError("a row needs messages, or a prompt and a completion")
    turns = [{"role": "user", "content": row["prompt"]}]
    if row.get("completion"):
        turns.append({"role": "assistant", "content": row["completion"]})
    return turns


@dataclass(frozen=True)
class Instruction(CausalLM, Written):
    """Cross-entropy of the assistant's turns alone, each with the sign that ends it.

    Rows are chats ("messages" of role and content; ShareGPT's and Alpaca's forms are recognized),
    or a "prompt" and a "completion".

    Attributes:
        block: must be 0.
        template: a chat template (Jinja); empty: the tokenizer's; "plain": "role: content" lines.
        generate: rows of the test split whose last turn is written; 0 for none, -1 for all.
        max_new_tokens: of what is written.
        answer: a regular expression whose first group (or match) is compared, of what is written
            and of the row's last turn; empty to compare the whole.
    """

    template: str = ""
    generate: int = 0
    max_new_tokens: int = 256
    num_beams: int = 1
    answer: str = ""

    schema: ClassVar = Schema(
        {
            "messages": Field(chats.messages, optional=True),
            "prompt": Field(text, optional=True),
            "completion": Field(text, optional=True, answer=True),
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
            UserError: a template that is not there, or that changes turns by those after them.
        """
        found: dict[str, list] = {"input_ids": [], "learned": [], "row": [], "cut": []}
        for number in range(len(next(iter(columns.values())))):
            row = {name: values[number] for name, values in columns.items()}
            ids, learned = encoded(tokenizer, turns_of(row), self.template)
            if learned.any() and not learned[1:max_length].any():
                continue
            found["input_ids"].append(ids[:max_length])
            found["learned"].append(learned[:max_length].tolist())
            found["row"].append(number)
            found["cut"].append(len(ids) > max_length)
        return found

    def prompts(self, split: Split) -> list[list[Message]]:
        """Chats up to the assistant's last turn."""
        rows = [turns_of(row) for row in split.rows]
        return [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows]

    def references(self, split: Split) -> list[str]:
        rows = [turns_of(row) for row in split.rows]
        return [row[-1]["content"] if row[-1]["role"] == "assistant" else "" for row in rows]


def encoded(
    tokenizer: Any, turns: Sequence[Message], template: str, last: bool = False
) -> tuple[list[int], np.ndarray]:
    """Token ids of a chat, and 1 at those of the assistant's turns, or of the last of them.

    A token that begins before a turn, as with a space, and goes on in it is of the turn.
    """
    whole, parts = rendered(tokenizer, turns, template)
    parts = parts[-1:] if last else parts
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    begins, ends = np.array(found["offset_mapping"]).reshape(-1, 2).T
    learned = np.zeros(len(begins), np.int32)
    for start, end in parts:
        learned |= (ends > start) & (begins < end)
    return found["input_ids"], learned


def rendered(
    tokenizer: Any, turns: Sequence[Message], template: str
) -> tuple[str, list[tuple[int, int]]]:
    """A chat as text, and where the assistant's turns are in it, with the sign that ends each."""
    template = PLAIN if template == "plain" else template or tokenizer.chat_template
    if not template:
        raise UserError(
            "the model's tokenizer has no chat template: set task.template to one, or to plain"
        )

    def render(count: int, ask: bool) -> str:
        said = list(turns[:count])
        return tokenizer.apply_chat_template(
            said, chat_template=template, tokenize=False, add_generation_prompt=ask
        )

    whole, parts = render(len(turns), False), []
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before, after = render(number, True), render(number + 1, False)
            if not (after.startswith(before) and whole.startswith(after.rstrip())):
                raise UserError("task.template: the chat template changes turns by those after")
            parts.append((len(before), len(after.rstrip())))
    return whole, parts
