"""Conversations: one form for those of OpenAI, ShareGPT and Alpaca."""

from collections.abc import Mapping
from typing import Any

from ftjax.data.fields import shown

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
Message = dict[str, str]


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
        turns = [{"role": each.get("from"), "content": each.get("value")} for each in said]
        return {**row, "messages": first + turns}
    if "instruction" in row and "prompt" not in row:
        asked = "\n\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
        turns = [{"role": "user", "content": asked}]
        if row.get("output") is not None:
            turns.append({"role": "assistant", "content": row["output"]})
        return {**row, "messages": first + turns}
    return row


def messages(found: Any) -> list[Message]:
    """Turns {"role", "content"}, at least one, by the names of roles that chat templates know."""
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
    if not isinstance(content, str) or (not content.strip() and ROLES[role] != "system"):
        raise ValueError(f"turn {number}: content must be text, not {shown(content)}")
    return {"role": ROLES[role], "content": content}


def check(turns: list[Message]) -> None:
    """Raises ValueError where there is nothing to learn from."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("the chat has no turn of the assistant")
