"""Peak memory of this process."""

import resource
import sys

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
