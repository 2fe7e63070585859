"""Mix-and-match adapters (He et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from ftjax.methods.combination import Combination, Part


@dataclass(frozen=True)
class Mam(Combination):
    """Mix-and-match adapters: prefix tuning and a parallel adapter (He et al. 2022, §4.6).

    AdapterHub's MAMConfig, whose prefixes are computed through a bottleneck of 800 and, in
    encoder-decoders, are in all attention: there "places" of the first part must say so.
    BERT-base: 22,493,984.
    """

    parts: tuple[Part, ...] = (
        {"name": "prefix_tuning", "length": 30, "projection": 800, "shift": False},
        {"name": "parallel"},
    )

    non_identity: ClassVar = {}
