"""Conversations: one form for those of OpenAI, ShareGPT and Alpaca.

A turn is kept as its role, its content and "more", what else it has, as JSON: rows of one file may
have other keys, and a tool's arguments any form. `whole` gives the turn as it was.
"""

import json
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
MORE = "more"
CALLS = "tool_calls"  # a turn with them may have no content
WEIGHT = "weight"  # of a turn of the assistant, 0 or 1: whether it is learned; no template sees it


def adapt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row with "messages" where it is of ShareGPT's or of Alpaca's form; others unchanged.

    ShareGPT: "conversations" of {"from", "value"}. Alpaca: "instruction", "input" (may be absent
    or empty) and "output" (absent where it is to be predicted). Either may have "system".
    """
    if "messages" in row:
        return row
    first = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if "conversations" in row:
        said = row["conversations"]
        if not isinstance(said, list) or not all(isinstance(each, Mapping) for each in said):
            raise ValueError("field 'conversations' must be a list of {'from', 'value'}")
        turns = [
            {"role": each.get("from"), "content": each.get("value")}
            | {key: value for key, value in each.items() if key not in ("from", "value")}
            for each in said
        ]
        return {**row, "messages": first + turns}
    if "instruction" in row and "prompt" not in row:
        asked = "\n\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
        turns = [{"role": "user", "content": asked}]
        if row.get("output") is not None:
            turns.append({"role": "assistant", "content": row["output"]})
        return {**row, "messages": first + turns}
    return row


def messages(found: Any) -> list[Message]:
    """Turns {"role", "content", "more"}, at least one, by the names of roles that chat templates
    know; a list may also be text."""
    found = listed(found)
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"must be a list of turns, at least one, not {shown(found)}")
    return [_message(number, each) for number, each in enumerate(found, 1)]


def _message(number: int, turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"turn {number} must have a role and a content, not {shown(turn)}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        known = ", ".join(dict.fromkeys(ROLES.values()))
        raise ValueError(f"turn {number}: role {role!r} must be one of {known}")
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


def whole(turn: Mapping[str, Any]) -> Message:
    """A turn with all that it has, as a template takes it, and perhaps its weight."""
    more = json.loads(turn[MORE]) if turn.get(MORE) else {}
    said = {} if more.get(CALLS) and not turn["content"] else {"content": turn["content"]}
    return {"role": turn["role"], **said, **more}


def tools(found: Any) -> str:
    """The tools that a chat may use, as JSON of a list; empty where there are none."""
    found = listed(found)
    if found in ("", []):
        return ""
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise ValueError(f"must be a list of tools, also as JSON, not {shown(found)}")
    return json.dumps(found, ensure_ascii=False)


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Whether a whole turn is the assistant's, and of weight."""
    return turn["role"] == "assistant" and bool(turn.get(WEIGHT, 1))


def check(turns: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError where whole turns have nothing to learn from."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("the chat has no turn of the assistant")
    if not any(map(is_learned, turns)):
        raise ValueError("all of the assistant's turns have weight 0")
