"""How long a step must take at least, by what it computes, moves and sends."""

from collections.abc import Mapping

from ftjax.forecast.chips import Chip

# Of what a collective gives, how much a chip receives and sends on at most.
PASSED = {"all-reduce": 2.0}


def seconds(
    chip: Chip, flops: float, moved: float, sent: Mapping[str, float], across: float
) -> dict[str, float]:
    """The least time of each kind of work, all others being free.

    Args:
        chip: its published figures.
        flops: of one chip.
        moved: bytes to and from its memory.
        sent: bytes that collectives within a slice give it, by kind.
        across: bytes that collectives between slices, or hosts of GPUs, give it.
    """
    interconnect = sum(PASSED.get(kind, 1.0) * count for kind, count in sent.items())
    return {
        "compute": flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "interconnect": interconnect / chip.links,
        "network": across / chip.network,
    }
