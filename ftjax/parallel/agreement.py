"""Decisions of a run that has several hosts: made once, and told to all."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def told(values: Sequence[int]) -> list[int]:
    """The numbers of the first host, whatever the others take them for."""
    if jax.process_count() == 1:
        return list(values)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(values))))
    first = jax.process_index() == 0
    mine = np.asarray(values if first else np.zeros(count), np.int32)
    return [int(value) for value in multihost_utils.broadcast_one_to_all(mine)]


def worst(severity: int) -> int:
    """The highest number of all hosts, which wait here for each other."""
    if jax.process_count() == 1:
        return severity
    return int(np.max(multihost_utils.process_allgather(np.int32(severity))))
