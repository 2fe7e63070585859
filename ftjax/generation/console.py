"""Texts on a terminal while they come, and conversations."""

import sys
from collections.abc import Sequence
from typing import Any

from ftjax.generation.text import Generator


def with_turn(messages: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """A conversation in which the user says one thing more."""
    return [*messages, {"role": "user", "content": text}]


def print_text(generator: Generator, prompt: Any, number: int = 0) -> str:
    """Prints a text while it comes, or several when they are there; returns the first."""
    shown, texts = "", [""]
    alone = generator.settings.num_return_sequences == 1
    for texts in generator.stream([prompt], 1 if alone else 16, [number]):
        if alone:
            print(texts[0][len(shown) :], end="", flush=True)
            shown = texts[0]
    if not alone:
        print("\n---\n".join(texts), end="")
    print(flush=True)
    return texts[0]


def converse(generator: Generator) -> None:
    """A chat with whoever writes to standard input, until it ends."""
    messages: list[dict[str, str]] = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            messages = with_turn(messages, line.strip())
            messages.append({"role": "assistant", "content": print_text(generator, messages)})
