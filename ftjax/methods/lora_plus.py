"""LoRA+ (Hayou et al. 2024): B learns faster than A."""

import re
from dataclasses import dataclass

from ftjax.base_model import Base
from ftjax.methods.additive import leaves_of
from ftjax.methods.lora import Lora
from ftjax.options import Above0


@dataclass(frozen=True)
class LoraPlus(Lora):
    """LoRA of which B's learning rate is λ times A's (Hayou et al. 2024, §4).

    In wide models one rate for both is too slow for B. The head learns at A's rate. `peft`'s
    create_loraplus_optimizer gives the high rate to every trainable vector besides, a classifier's
    bias among them; the paper gives it to B alone, and so does this. Parameters as LoRA's. Where
    LoRA learns slowly; lower the learning rate somewhat.

    Attributes:
        ratio: λ.
    """

    ratio: Above0 = 16.0

    def rate_of(self, base: Base, path: str) -> float:
        return self.ratio if re.fullmatch(leaves_of(self.matched(base), "lora_b"), path) else 1.0
