"""Texts for many prompts, in batches of one shape."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from ftjax.generation.prompts import Messages

T = TypeVar("T")
Write = Callable[[Sequence[str | Messages], Sequence[int]], list[list[T]]]


def in_batches(write: Write, prompts: Sequence[str | Messages], batch_size: int) -> list[list[T]]:
    """What is written for each prompt, in their order.

    Prompts of a batch are of like length, the longest come first, and the last batch is filled up
    with its last prompt, so that few programs are compiled.

    Args:
        write: `Generator.__call__` or `Generator.likely`.
        prompts: texts or chats.
        batch_size: prompts at once.
    """
    order = np.argsort([-len(str(prompt)) for prompt in prompts], kind="stable")
    size, texts = min(batch_size, len(order)), [[] for _ in prompts]
    for start in range(0, len(order), size or 1):
        numbers = order[start : start + size]
        numbers = np.pad(numbers, (0, size - len(numbers)), "edge")
        for number, written in zip(
            numbers, write([prompts[i] for i in numbers], numbers), strict=True
        ):
            texts[number] = written
    return texts
