"""Conversations: one form for those of OpenAI, ShareGPT and Alpaca.

A turn is kept as its role, its content and "more", what else it has, as JSON: rows of one file may
have other keys, and a tool's arguments any form. `whole` gives the turn as it was.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ftjax.data.fields import listed, shown

ROLES = {  # who speaks, as each format calls it
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
Message = dict[str, Any]
SPEAKERS = re.compile(r"\n\n(Human|Assistant):")
MORE = "more"
CALLS = "tool_calls"  # a turn with them may have no content
WEIGHT = "weight"  # of a turn of the assistant, 0 or 1: whether it is learned; no template sees it


def adapt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with "messages" where it is of ShareGPT's or of Alpaca's form; others unchanged.

    ShareGPT: "conversations" of {"from", "value"}. Alpaca, and Dolly: "instruction", "input" or
    "context" (may be absent or empty) and "output" or "response" (absent where it is to be
    predicted). Either may have "system".
    """
    if row.get("messages") is None and row.get("conversations") is not None:
        row = {**row, "messages": row["conversations"]}
    if (turns := row.get("messages")) is not None:
        shared = isinstance(turns, list) and turns and isinstance(turns[0], Mapping)
        if shared and "from" in turns[0] and row.get("system"):
            return {**row, "messages": [_turn("system", row["system"]), *turns]}
        return row
    if row.get("instruction") is None or row.get("prompt") is not None:
        return row
    parts = [str(row[key]) for key in ("instruction", "input", "context") if row.get(key)]
    turns = [_turn("system", row["system"])] if row.get("system") else []
    turns.append(_turn("user", "\n\n".join(parts)))
    answers = [row[key] for key in ("output", "response") if row.get(key) is not None]
    return {**row, "messages": turns + [_turn("assistant", answer) for answer in answers[:1]]}


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def transcript(text: str) -> list[Message] | None:
    """Turns of a text in which Human: and Assistant: take turns, as HH-RLHF's; None for others.

    The last, where it is but begun, is left out.
    """
    parts = SPEAKERS.split(f"\n\n{text.lstrip()}")
    if parts[0] or len(parts) < 5:
        return None
    spoken = list(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))
    spoken = spoken if spoken[-1][1] else spoken[:-1]
    return messages([_turn(ROLES[who.lower()], content) for who, content in spoken])


def messages(value: Any) -> list[Message]:
    """Turns {"role", "content", "more"}, at least one, by the names of roles that chat templates
    know; a list may also be text."""
    value = listed(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"must be a list of turns, at least one, not {shown(value)}")
    return [_message(number, turn) for number, turn in enumerate(value, 1)]


def _message(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number} must have a role and a content, not {shown(turn)}")
    theirs = {"from": "role", "value": "content"}  # as ShareGPT calls them
    turn = {theirs.get(key, key): value for key, value in turn.items()} if "from" in turn else turn
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        raise ValueError(f"turn {number}: role {role!r} must be one of {known}")
    content = _joined(content)
    more = {key: x for key, x in turn.items() if key not in ("role", "content") and x is not None}
    more = {**json.loads(more.pop(MORE)), **more} if isinstance(more.get(MORE), str) else more
    if more.get(WEIGHT, 1) not in (0, 1):
        raise ValueError(f"turn {number}: weight must be 0 or 1, not {shown(more[WEIGHT])}")
    if more.get(CALLS) and (content is None or content == ""):
        more |= {"content": content} if "content" in turn else {}
        content = ""
    elif not isinstance(content, str) or (not content.strip() and ROLES[role] != "system"):
        raise ValueError(f"turn {number}: content must be text, not {shown(content)}")
    try:
        rest = {MORE: json.dumps(more, ensure_ascii=False)} if more else {}
    except TypeError as error:
        raise ValueError(f"turn {number}: {error}") from error
    return {"role": ROLES[role], "content": content, **rest}


def _joined(content: Any) -> Any:
    """A content that is given in parts, all of text, as one; others as they are."""
    parts = content if isinstance(content, list) and content else [None]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    whole = len(texts) == len(parts) and all(part.get("type") == "text" for part in parts)
    return "".join(texts) if whole and all(isinstance(x, str) for x in texts) else content


def whole(turn: Mapping[str, Any]) -> Message:
    """A turn with all that it has, as a template takes it, and perhaps its weight."""
    more = json.loads(turn[MORE]) if turn.get(MORE) else {}
    content = {} if more.get(CALLS) and not turn["content"] else {"content": turn["content"]}
    return {"role": turn["role"], **content, **more}


def tools(value: Any) -> str:
    """The tools that a chat may use, as JSON of a list; empty where there are none."""
    value = listed(value)
    if value in ("", []):
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise ValueError(f"must be a list of tools, also as JSON, not {shown(value)}")
    return json.dumps(value, ensure_ascii=False)


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Whether a whole turn is the assistant's, and of weight."""
    return turn["role"] == "assistant" and bool(turn.get(WEIGHT, 1))


def check(turns: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where whole turns have nothing to learn from."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("the chat has no turn of the assistant")
    if not any(map(is_learned, turns)):
        raise ValueError("all of the assistant's turns have weight 0")
