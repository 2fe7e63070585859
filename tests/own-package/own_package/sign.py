"""An optimizer: signSGD."""

from dataclasses import dataclass

import optax

from ftjax.optimizers.base import Optimizer, Schedule
from ftjax.options import Above0


@dataclass(frozen=True)
class Sign(Optimizer):
    """The sign of each gradient (Bernstein et al. 2018).

    Attributes:
        strength: that it is multiplied by.
    """

    strength: Above0 = 1.0

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_sign(), optax.scale(self.strength))
