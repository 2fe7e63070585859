"""The optimizers that are built in: optax's. What their options mean, and their defaults, are those
of the `optimizer` section."""

from dataclasses import dataclass

import optax

from ftjax.optimizers.base import Optimizer, Schedule, decayed


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Loshchilov & Hutter 2019."""

    beta1: float
    beta2: float
    epsilon: float

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.beta1, self.beta2, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """Weight decay is of the loss: momentum sees it."""

    momentum: float

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.add_decayed_weights(self.weight_decay, decayed)

    def rest(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.sgd(rate, momentum=self.momentum or None)


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Shazeer & Stern 2018; optax's is one piece."""

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        mask = decayed if self.weight_decay else None
        return optax.adafactor(
            rate, weight_decay_rate=self.weight_decay or None, weight_decay_mask=mask
        )

    def rest(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.identity()


@dataclass(frozen=True)
class Lion(Optimizer):
    """Chen et al. 2023."""

    def core(self, rate: Schedule) -> optax.GradientTransformation:
        return optax.scale_by_lion(0.9, 0.99)
