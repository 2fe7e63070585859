"""A task: classification whose answers are less sure."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from ftjax.loss import Loss
from ftjax.options import Share
from ftjax.tasks.base import Batch
from ftjax.tasks.classification import Classification


@dataclass(frozen=True)
class Cautious(Classification):
    """Classification whose logits are larger where they are trained.

    Attributes:
        caution: by what share they are larger.
    """

    caution: Share = 0.1

    def loss(self, apply: Callable[[Batch], jax.Array], batch: Batch, train: bool) -> Loss:
        larger = 1 + self.caution if train else 1.0
        return super().loss(lambda batch: larger * apply(batch), batch, train)
