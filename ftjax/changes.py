"""Keys of a configuration that commands take: all, or of a run that is read only some."""

import re
from collections.abc import Iterator, Sequence

ALL = ("",)  # keys begin with one of these
PLACE = ("mesh.", "model.dtype", "model.attention")  # what any reader may change
ROWS = (  # what those may that read rows of data
    "data.",
    "train.eval_batch_size",
    "task.generate",
    "task.max_new_tokens",
    "task.num_beams",
    *PLACE,
)
SHORT = {  # keys that have arguments of their own
    "model.path": "--model",
    "data.path": "--data",
    "method.name": "--method",
    "task.name": "--task",
}


def spoken(keys: Sequence[str]) -> str:
    """What can be given, for a command's help and messages; empty for nothing."""
    if not keys:
        return ""
    listed = ", ".join(f"{key}*" if key.endswith(".") else key for key in keys)
    return (
        f"{'any configuration key' if keys == ALL else listed} can be given as --config.KEY=VALUE"
    )


def refused(message: str, keys: Sequence[str], arguments: Sequence[str] = ()) -> list[str]:
    """Keys that a message names although the command does not take them.

    Args:
        message: of an error.
        keys: what those that it takes begin with.
        arguments: the command's own, as "--model".
    """
    return [
        key
        for key in dict.fromkeys(_named(message))
        if not key.startswith(tuple(keys)) and SHORT.get(key) not in arguments
    ]


def every_key() -> list[str]:
    """All keys but those of methods and tasks."""
    from ftjax.config.sections import SECTIONS
    from ftjax.options import options

    return [f"{section}.{key}" for section, cls in SECTIONS.items() for key in options(cls)]


def _named(message: str) -> Iterator[str]:
    """Keys in a message; a file such as train.jsonl is none."""
    every = set(every_key())
    for key in re.findall(r"(?<![\w/.])[a-z]+(?:\.[a-z_0-9]+)+(?![\w/])", message):
        if key in every or key in SHORT or re.match(r"(method|task)\.(over\.)?[a-z_]+$", key):
            yield key
