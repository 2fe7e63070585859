"""Memory of this process: what is in use, its peak, and giving it back."""

import resource
import sys
from typing import Any

import jax


def memory_in_use() -> dict[str, int]:
    """Bytes in use on the fullest device, where devices say so."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [stat["bytes_in_use"] for stat in stats if "bytes_in_use" in stat]
    return {"memory_bytes": max(used)} if used else {}


def peak_memory_bytes() -> int:
    """Peak bytes in use: of the busiest device where it says so, else resident in this host."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    if peaks:
        return max(peaks)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free(tree: Any) -> None:
    """Gives the memory of a tree's arrays back now, whoever still refers to them."""
    for leaf in jax.tree.leaves(tree):
        if not leaf.is_deleted():
            leaf.delete()
