"""JSON objects in files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftjax.errors import UserError, summary
from ftjax.formats.guard import regular
from ftjax.options import options

SURROGATE = r"\\u[dD][89a-fA-F]"


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
        text = regular(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if re.search(SURROGATE, text):  # of which a half alone cannot be written anywhere
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except UserError:
        raise
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{path} has half a character, which no text is: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers too long, too many brackets
        raise UserError(f"{path} is not valid JSON: {summary(error)}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_names(path: Path) -> tuple[str, ...]:
    """The texts that a JSON file lists; raises as `read_json`."""
    names = read_value(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must hold a list of names")
    return tuple(names)


def check(
    file: Any, values: Mapping[str, Any], schema: type, inside: str = "", whole: bool = False
) -> None:
    """Raises UserError where a value is not what its key's annotation says.

    Args:
        file: that messages name.
        values: that it holds; keys that the schema does not have may be anything.
        schema: a dataclass, see `ftjax.options`; its defaults are examples.
        inside: what comes before the keys in messages.
        whole: whether each key of the schema has to be there.
    """
    for name, option in options(schema).items():
        if name not in values:
            if whole:
                raise UserError(f"{file} has no {inside}{name}")
            continue
        key, value = f"{file}: {inside}{name}", values[name]
        if option.kind in (str, str | None) and type(value) not in (str, type(None)):
            # Which a command line's text may pass for
            example = f"str expected, as in {option.default!r}"
            raise UserError(f"{key}={value!r} has the wrong type: {example}")
        if option.kind is str and value is None:
            continue
        held = option.read(key, value)
        pairs = zip(_items(held), _items(value), strict=False)
        if any(isinstance(a, int) and isinstance(b, float) for a, b in pairs):
            raise UserError(f"{key}={value!r} has the wrong type: a whole number expected")


def _items(value: Any) -> list[Any]:
    return [*value] if isinstance(value, list | tuple) else [value]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as Hugging Face's files are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
