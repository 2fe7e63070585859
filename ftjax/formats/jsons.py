"""JSON objects in files."""

import json
from pathlib import Path
from typing import Any

from ftjax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: the file is absent or not a JSON object.
    """
    value = read_value(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def read_value(path: Path) -> Any:
    """What a JSON file holds; raises as `read_json`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: of its text, encoding or numbers
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as Hugging Face's files are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
