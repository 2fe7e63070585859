"""Chats as text, by the chat templates (Jinja) of tokenizers."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from ftjax.data.chats import CALLS, WEIGHT, Message
from ftjax.data.fields import shown
from ftjax.data.time_limit import limited
from ftjax.errors import UserError

# For models whose tokenizer has no chat template. The space is the answer's, as tokenizers have it.
PLAIN = (
    "{% for message in messages %}{{ message['role'] }}:{{ ' ' + message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
MARKING = threading.Lock()  # transformers notes marks in the template, which threads share
SECONDS = 10.0  # that a template may take for a chat
# Of turns, what is said besides the content: a template must have a place for it, by any name.
COMMAND = re.compile(r"/\w+")  # that templates take out of a text, as SmolLM 3's do /no_think
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
SAID = ((CALLS,), ("function_call",), THOUGHTS)
# What templates are told in training, which is then the same whenever and wherever it runs: the
# date that Llama 3's write where they are told none.
DATE = datetime(2024, 7, 26)
DATED = (
    "{%- macro strftime_now(form) -%}{{ form"
    + "".join(f"|replace('%{code}', '{DATE.strftime(f'%{code}')}')" for code in "aAbBdHIjmMpSyY")
    + " }}{%- endmacro -%}"
)


class Rendered(NamedTuple):
    """A chat that is written.

    Attributes:
        text: all of it.
        generated: where in it that begins and ends which is marked as generated.
    """

    text: str
    generated: list[tuple[int, int]]


@cache
def is_marked(source: str) -> bool:
    """Whether a template marks what the assistant generates."""
    return bool(GENERATION.search(source))


@cache
def _names(source: str, names: Sequence[str]) -> bool:
    """Whether a template has one of some names."""
    return bool(re.search(rf"\b({'|'.join(names)})\b", source))


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
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, Mapping) else {}
    names = ", ".join(named) or "without names"
    if template and template not in named and "{" not in template:
        raise UserError(
            f"task.template={template!r} is neither a template in Jinja nor the name of one of the "
            f"tokenizer's, which are {names}"
        )
    try:
        return tokenizer.get_chat_template(template or None, tools or None)
    except ValueError as error:
        raise UserError(f"task.template: the tokenizer's templates are {names}: {error}") from error


def render(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    template: str = "",
    tools: Sequence[Any] | None = None,
    ask: bool = False,
) -> str:
    """A chat as text, which may have today's date; see `rendered`."""
    (chat,) = rendered(tokenizer, turns, [len(turns)], template, tools, ask)
    return chat.text


def rendered(
    tokenizer: Any,
    turns: Sequence[Mapping[str, Any]],
    counts: Sequence[int],
    template: str = "",
    tools: Sequence[Any] | None = None,
    ask: bool = False,
    today: bool = True,
) -> list[Rendered]:
    """A chat as text, up to each of some of its turns.

    Arguments of calls may be objects or JSON text, as OpenAI has them: templates get objects, or
    text where they put it as it is, as DeepSeek's.

    Args:
        tokenizer: of `transformers`.
        turns: {"role", "content", ...}; all that a turn has but its weight is the template's. Keys
            of `SAID` must be, others, as ids of calls or names, may be left out by it.
        counts: of turns that are written.
        template: see `chosen`.
        tools: that the chat may use.
        ask: with what comes before an answer.
        today: whether templates that ask for the date are told today's; else `DATE`.

    Raises:
        UserError: there is no template.
        ValueError: the template has no place for what is said, raises, or does not come to an end.
    """
    source = chosen(tokenizer, template, tools)
    for number, turn in enumerate(turns, 1):
        for names in SAID:
            field = next((name for name in names if turn.get(name)), None)
            if field and not _names(source, names):
                raise ValueError(f"turn {number} has {field!r}, which the chat template leaves out")
    if tools and not _names(source, ("tools",)):
        raise ValueError("has tools, which the chat template leaves out")

    source = source if today or "strftime_now" not in source else DATED + source
    from transformers.utils.chat_template_utils import render_jinja_template

    def written(form: Callable[[Any], Any]) -> list[Rendered]:
        messages = [_message(turn, form) for turn in turns]
        texts, generated = render_jinja_template(
            conversations=[messages[:count] for count in counts],
            tools=tools or None,
            chat_template=source,
            return_assistant_tokens_mask=is_marked(source),
            add_generation_prompt=ask,
            **tokenizer.special_tokens_map,
        )
        return list(map(Rendered, texts, generated or [[]] * len(texts)))

    def either() -> list[Rendered]:
        try:
            return written(_object)
        except TypeError:
            return written(_text)

    try:
        with MARKING if is_marked(source) else nullcontext():
            return limited(either, SECONDS)
    except Exception as error:  # a template may raise anything
        message = str(error) or type(error).__name__
        raise ValueError(f"the chat template says: {message}") from error


def _message(turn: Mapping[str, Any], form: Callable[[Any], Any]) -> Message:
    """A turn without its weight, and with arguments of calls in one form."""

    def formed(call: Any) -> Any:
        if not isinstance(call, Mapping):
            return call
        if "function" in call:
            return {**call, "function": formed(call["function"])}
        return {**call, "arguments": form(call["arguments"])} if "arguments" in call else call

    message = {key: x for key, x in turn.items() if key != WEIGHT and x is not None}
    if isinstance(message.get(CALLS), list):
        message[CALLS] = list(map(formed, message[CALLS]))
    return message


def _object(arguments: Any) -> Any:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError:
        return arguments
    return value if isinstance(value, Mapping) else arguments


def _text(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def left_out(turn: Mapping[str, Any], text: str) -> str:
    """Of what a turn says that which a text of it lacks, shown; empty for none.

    Spaces and commands to the template, as /no_think, do not count.
    """
    calls = turn.get(CALLS) if isinstance(turn.get(CALLS), list) else []
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    names = [function.get("name") for function in functions if isinstance(function, Mapping)]
    parts = [*(turn.get(key) for key in ("content", *THOUGHTS)), *names]
    absent = [part for part in parts if isinstance(part, str) and part not in text]
    written = _bare(text) if absent else ""
    return next((shown(part) for part in absent if _bare(part) not in written), "")


def _bare(text: str) -> str:
    return "".join(COMMAND.sub("", text).split())
