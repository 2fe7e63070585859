"""Chats as text, by the chat templates (Jinja) of tokenizers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from ftjax.data.chats import WEIGHT, Message
from ftjax.errors import UserError

# For models whose tokenizer has no chat template. The space is the answer's, as tokenizers have it.
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}:{{ ' ' + message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
# Of turns, what is said besides the content: a template must have a place for it.
SAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def chosen(tokenizer: Any, template: str, tools: Sequence[Any] | None) -> str:
    """The template, in Jinja, that a chat is written by.

    Args:
        tokenizer: of `transformers`, which may have several templates, by name.
        template: one in Jinja, the name of one of the tokenizer's, or "plain"; empty: the
            tokenizer's, of several "tool_use" for chats with tools, else "default".
        tools: of the chat.

    Raises:
        UserError: there is none.
    """
    if template == "plain":
        return PLAIN
    if not template and not tokenizer.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template: set task.template to one, or to plain"
        )
    try:
        return tokenizer.get_chat_template(template or None, tools or None)
    except ValueError as error:
        several = tokenizer.chat_template
        names = ", ".join(several) if isinstance(several, Mapping) else "one"
        raise UserError(f"task.template: the tokenizer's templates are {names}: {error}") from error


def render(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    template: str = "",
    tools: Sequence[Any] | None = None,
    ask: bool = False,
) -> str:
    """A chat as text.

    Args:
        tokenizer: of `transformers`.
        turns: {"role", "content", ...}; all that a turn has but its weight is the template's. Keys
            of `SAID` must be, others, as ids of calls or names, may be left out by it.
        template: see `chosen`.
        tools: that the chat may use.
        ask: with what comes before an answer.

    Raises:
        UserError: there is no template.
        ValueError: the template has no place for what is said, or raises.
    """
    source = chosen(tokenizer, template, tools)
    for number, turn in enumerate(turns, 1):
        for key in SAID:
            if turn.get(key) and not re.search(rf"\b{key}\b", source):
                raise ValueError(f"turn {number} has {key!r}, which the chat template leaves out")
    if tools and not re.search(r"\btools\b", source):
        raise ValueError("has tools, which the chat template leaves out")
    messages: list[Message] = [
        {key: value for key, value in turn.items() if key != WEIGHT} for turn in turns
    ]
    try:
        return tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=source,
            tokenize=False,
            add_generation_prompt=ask,
        )
    except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"the chat template says: {error}") from error
