"""How long collectives take: rings along the dimensions of a torus, by how many links they use.

As in "How to Scale Your Model" (Austin et al. 2025, part 3): what each chip must receive, over the
links that bring it. A dimension that is closed to a ring brings it from both sides; on an open
one the chip at an end has one link, and all wait for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ftjax.forecast.groups import first_group

HOP = 1e-6  # seconds from a chip to the next, however little is sent


@dataclass(frozen=True)
class Ring:
    """One dimension of the torus, as a group of devices uses it.

    Attributes:
        size: devices along it.
        links: by which a device receives, shared with groups in between.
    """

    size: int
    links: float


@dataclass(frozen=True)
class Torus:
    """Where the devices of a program are.

    Attributes:
        coordinates: of each device in the program's order, (devices, dimensions).
        closed: of each dimension, whether its ends are linked.
        link: bytes a second of one link, one way.
    """

    coordinates: np.ndarray
    closed: tuple[bool, ...]
    link: float

    def rings(self, group: Sequence[int]) -> list[Ring]:
        """The dimensions along which a group of devices extends."""
        rings = []
        for every, closed in zip(self.coordinates.T, self.closed, strict=True):
            places = np.unique(every[list(group)])
            if len(places) < 2:
                continue
            apart = (places[-1] - places[0]) / (len(places) - 1)
            both = closed and len(places) > 2 and len(places) * apart > np.ptp(every)
            rings.append(Ring(len(places), (2 if both else 1) / apart))
        return rings

    def seconds(self, kind: str, nbytes: float, text: str) -> float:
        """Of one collective.

        Args:
            kind: its opcode.
            nbytes: of the whole array: what an all-gather gives, what others read.
            text: of its line, which says who takes part.
        """
        if kind == "collective-permute":
            return nbytes / self.link + HOP
        group = first_group(text) or range(len(self.coordinates))
        rings = self.rings(group)
        if not rings:
            return 0.0
        if kind == "all-to-all":  # through the middle of the longest line
            sends = max(ring.size / (4 * ring.links) for ring in rings)
        else:
            sends = (len(group) - 1) / len(group) / sum(ring.links for ring in rings)
        times = 2 if kind == "all-reduce" else 1
        hops = sum(ring.size / min(ring.links, 2) for ring in rings)
        return float(times * (nbytes * sends / self.link + HOP * hops))
