"""Which devices a collective of a compiled program joins."""

import math
import re
from collections.abc import Mapping

import numpy as np

LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
COUNTED = re.compile(r"replica_groups=\[\d+,([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
PAIR = re.compile(r"\{(\d+),(\d+)\}")
# How often a ring passes what a collective gives; a sum goes round twice.
ROUNDS: Mapping[str, float] = {"all-reduce": 2.0}


def first_group(text: str) -> tuple[int, ...]:
    """Numbers of the devices of a collective's first group; empty where they are not said.

    Args:
        text: of the instruction.
    """
    if listed := LISTED.search(text):
        return integers(listed[1])
    if counted := COUNTED.search(text):
        order = np.arange(math.prod(integers(counted[2]))).reshape(integers(counted[2]))
        order = order.transpose(integers(counted[3])) if counted[3] else order
        return tuple(order.reshape(-1)[: math.prod(integers(counted[1]))].tolist())
    if named := NAMED.search(text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        spread = re.findall(r"'(\w+)'", named[2])
        order = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        of_first = tuple(slice(size if axis in spread else 1) for axis, size in sizes.items())
        return tuple(order[of_first].reshape(-1).tolist())
    return ()


def over_hosts(text: str, kind: str, host: int) -> float:
    """Of what a collective gives a GPU, how much its network adapter receives.

    Rings enter each host once, through all its adapters at a time, and bring all that is gathered
    or summed.

    Args:
        text: of the instruction.
        kind: of the collective.
        host: GPUs of each.
    """
    if kind == "collective-permute":
        pairs = [(int(a) // host, int(b) // host) for a, b in PAIR.findall(_pairs(text))]
        return sum(a != b for a, b in pairs) / max(len(pairs), 1)
    group = first_group(text)
    if len({number // host for number in group}) < 2:
        return 0.0
    if kind == "all-to-all":  # each sends its part to all others at once
        return sum(number // host != group[0] // host for number in group) / len(group)
    whole = len(group) if kind == "reduce-scatter" else 1
    return whole * ROUNDS.get(kind, 1.0) / host


def integers(text: str) -> tuple[int, ...]:
    """Numbers between commas."""
    return tuple(int(n) for n in text.split(",") if n)


def _pairs(text: str) -> str:
    found = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    return found[1] + "}" if found else ""
