"""Texts for the prompts of a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.config.sections import Data
from ftjax.data.readers import READERS, form_of
from ftjax.errors import UserError
from ftjax.generation.batches import in_batches
from ftjax.generation.text import Generator
from ftjax.options import defaults
from ftjax.parallel.agreement import require_same


def generate_rows(
    generator: Generator, file: Path, chat: bool = False, batch_size: int = 8
) -> list[dict[str, Any]]:
    """The rows of a file with what comes after their prompts, in batches.

    Args:
        generator: of the model.
        file: whose rows have "prompt", or "messages" for chats.
        chat: whether they are chats.
        batch_size: prompts at once.

    Returns:
        Each row and its "text", or texts where several are asked for.

    Raises:
        UserError: a bad row; file and row are named.
    """
    rows = _rows(file, "messages" if chat else "prompt")
    require_same(f"what is read of {file}", rows)
    prompts = [_chat(row) if chat else row["prompt"] for row in rows]
    texts = in_batches(generator, prompts, batch_size)
    alone = generator.settings.num_return_sequences == 1
    return [
        {**row, "text": answers[0] if alone else answers}
        for row, answers in zip(rows, texts, strict=True)
    ]


def _chat(row: Mapping[str, Any]) -> Any:
    """A row's messages, and tools where it has any."""
    chat = {"messages": row["messages"], "tools": row.get("tools")}
    return chat if chat["tools"] else row["messages"]


def _rows(file: Path, field: str) -> list[dict[str, Any]]:
    """The rows of a file, in the form that its suffix and its content say.

    Raises:
        UserError: a row is not an object with the field; file and row are named.
    """
    rows = []
    for number, row in READERS[form_of(file)].rows(file, defaults(Data)):
        if isinstance(row, UserError):
            raise row
        kind = list if field == "messages" else str
        if not isinstance(row, dict) or not isinstance(row.get(field), kind):
            raise UserError(f"{file}, row {number}: needs {field!r}, a {kind.__name__}")
        for message in row[field] if field == "messages" else ():
            parts = {"content", "tool_calls"} & {*message} if isinstance(message, dict) else ()
            if not parts or "role" not in message:
                raise UserError(f"{file}, row {number}: a message needs 'role' and 'content'")
        rows.append(row)
    if not rows:
        raise UserError(f"{file} has no rows")
    return rows
